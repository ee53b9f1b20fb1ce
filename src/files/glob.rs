//! Names against shell patterns: `*` any run (dots and slashes too), `?` one character, `[a-c]`, `[!a-c]`.

/// Whether the whole of `name` matches `pattern`. A `[` that is never closed stands for itself.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let pattern: Vec<char> = pattern.chars().collect();
    let name: Vec<char> = name.chars().collect();
    let (mut p, mut n) = (0, 0);
    // Where to go on when what follows the last star does not fit: the star takes one character more.
    let mut retry: Option<(usize, usize)> = None;
    while n < name.len() {
        if pattern.get(p) == Some(&'*') {
            p += 1;
            retry = Some((p, n));
        } else if let Some(next) = one(&pattern, p, name[n]) {
            p = next;
            n += 1;
        } else if let Some((after_star, taken)) = retry {
            p = after_star;
            n = taken + 1;
            retry = Some((p, n));
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// If the pattern element at `p` takes the character `c`: where the next element begins.
fn one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    match *pattern.get(p)? {
        '?' => Some(p + 1),
        '[' => {
            let negated = pattern.get(p + 1) == Some(&'!');
            let first = p + 1 + usize::from(negated);
            // A bracket in the first place is a member, as in the shell.
            let Some(end) = (first + 1..pattern.len()).find(|&i| pattern[i] == ']') else {
                return (c == '[').then_some(p + 1);
            };
            let mut set = &pattern[first..end];
            let mut found = false;
            while let [low, rest @ ..] = set {
                if let ['-', high, rest @ ..] = rest {
                    found |= (*low..=*high).contains(&c);
                    set = rest;
                } else {
                    found |= *low == c;
                    set = rest;
                }
            }
            (found != negated).then_some(end + 1)
        }
        literal => (literal == c).then_some(p + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn patterns_match_as_in_the_shell() {
        for (pattern, name, expected) in [
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
            ("*.weight", "layers.0.weight", true),
            ("*.weight", "layers.0.weight.scales", false),
            ("layers.?.weight", "layers.0.weight", true),
            ("layers.?.weight", "layers.10.weight", false),
            ("layers.[0-3].*", "layers.2.bias", true),
            ("layers.[0-3].*", "layers.4.bias", false),
            ("layers.[!0-3].*", "layers.4.bias", true),
            ("[]a]", "]", true),
            ("[!]]", "]", false),
            ("[a-]", "-", true),
            ("a[b", "a[b", true),
            ("*a*b*c", "xxaxxbxxbc", true),
            ("*a*b*c", "xxaxxbxxb", false),
            ("**", "anything", true),
            ("gewicht.ä?", "gewicht.äö", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern:?} on {name:?}");
        }
    }

    #[test]
    fn many_stars_take_no_exponential_time() {
        assert!(!matches(&"*a".repeat(40), &"a".repeat(39)));
        assert!(!matches(&format!("{}b", "a*".repeat(1000)), &"a".repeat(10_000)));
    }
}
