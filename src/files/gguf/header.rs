//! The keys and the list of tensors, read from front to back.

use std::collections::HashSet;

use super::key::{self, Key, kind};
use super::{ALIGNMENT, ALIGNMENT_KEY, MAGIC, MOST_AXES, TYPES};
use crate::error::{Error, Index, Result};
use crate::files::input::Input;
use crate::files::{Tensor, buffer, looks_like, shown};

/// Most bytes of keys and list together; the vocabulary of a large model takes 20 MB.
const LONGEST: u64 = 256 << 20;

/// Most tensors, and most keys.
const MOST: u64 = 1_000_000;

/// Longest name of a key, in bytes.
const LONGEST_KEY: u64 = 65_535;

/// Longest name of a tensor, in bytes.
const LONGEST_NAME: u64 = 127;

/// Largest alignment.
const LARGEST_ALIGNMENT: u32 = 1 << 20;

/// A key takes at least a name of one byte and its length, a type and one byte of value.
const SHORTEST_KEY: u64 = 8 + 1 + 4 + 1;

/// A tensor takes at least the length of its name, a number of axes, a type and an offset.
const SHORTEST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// What has passed every check: the keys, the tensors in the order of their data, and where each begins in the file.
pub(super) struct Header {
    pub(super) keys: Vec<Key>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) starts: Vec<u64>,
}

/// Read and check all that stands in front of the data.
pub(super) fn read(input: &Input) -> Result<Header> {
    let start = input.start()?;
    if !start.starts_with(MAGIC) {
        return Err(corrupt(looks_like(&start).unwrap_or("the file does not begin as one")));
    }
    let mut cursor = Cursor { input, at: MAGIC.len() as u64, window: Vec::new(), window_start: 0 };
    let version = cursor.u32("the version")?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 2 | 3) => {
            return Err(corrupt(
                "the file is big-endian; only little-endian files are read: convert it with the scripts of the gguf package",
            ));
        }
        _ => return Err(corrupt(format!("version {version} is not known; 2 and 3 are"))),
    }
    let tensor_count = cursor.count("tensors", SHORTEST_TENSOR)?;
    let key_count = cursor.count("keys", SHORTEST_KEY)?;

    let mut keys: Vec<Key> = Vec::new();
    let mut names = HashSet::new();
    for index in 0..key_count {
        let key = cursor.key(index)?;
        if !names.insert(key.name.clone()) {
            return Err(corrupt(format!("key {} comes twice", shown(&key.name))));
        }
        keys.push(key);
    }
    let alignment = keys.iter().find(|key| key.name == ALIGNMENT_KEY).map_or(Ok(ALIGNMENT), alignment)?;

    let mut tensors: Vec<Tensor> = Vec::new();
    let mut starts = Vec::new();
    let mut names = HashSet::new();
    let mut expected = 0u64;
    let mut end = 0;
    for index in 0..tensor_count {
        let (tensor, offset) = cursor.tensor(index)?;
        let named = || format!("tensor {}", shown(&tensor.name));
        if !names.insert(tensor.name.clone()) {
            return Err(corrupt(format!("{} comes twice", named())));
        }
        let bytes = bytes(&tensor)?;
        if offset != expected {
            let fault = if offset > expected { "leaves a hole after" } else { "overlaps" };
            return Err(corrupt(format!("{} begins at byte {offset} of the data and {fault} what ends at {expected}", named())));
        }
        end = offset.checked_add(bytes).ok_or_else(|| too_large(&tensor))?;
        expected = end.checked_next_multiple_of(alignment).ok_or_else(|| too_large(&tensor))?;
        starts.push(offset);
        tensors.push(tensor);
    }
    // A place in a file and the largest alignment fit 64 bits together.
    let data = cursor.at.next_multiple_of(alignment);
    let found = input.length().saturating_sub(data);
    if end > found {
        let name = tensors.last().map(|tensor| shown(&tensor.name)).unwrap_or_default();
        return Err(corrupt(format!("the data of the last tensor, {name}, ends at byte {end}; {found} are there: the file is cut short")));
    }
    starts.iter_mut().for_each(|start| *start += data);
    Ok(Header { keys, tensors, starts })
}

fn alignment(key: &Key) -> Result<u64> {
    let wrong = || {
        let found = key.as_u32().map_or("of another type".into(), |alignment| alignment.to_string());
        corrupt(format!("key {ALIGNMENT_KEY} is {found}; expected a u32, a power of two from 8 to {LARGEST_ALIGNMENT}"))
    };
    let alignment = key.as_u32().ok_or_else(wrong)?;
    let known = alignment.is_power_of_two() && (8..=LARGEST_ALIGNMENT).contains(&alignment);
    known.then_some(u64::from(alignment)).ok_or_else(wrong)
}

/// The bytes of a tensor whose rows are whole blocks.
fn bytes(tensor: &Tensor) -> Result<u64> {
    let row = tensor.shape.last().map_or(1, |&length| length as u64);
    let block = tensor.dtype.block().elements;
    if !row.is_multiple_of(block) {
        let fault = format!("has rows of {row} elements; {} takes blocks of {block}", tensor.dtype.name());
        return Err(corrupt(format!("tensor {} {fault}", shown(&tensor.name))));
    }
    // Also of a tensor without elements no other axis may be longer than anything can be.
    let lengths = tensor.shape.iter().map(|&length| (length as u64).max(1));
    let countable = lengths.into_iter().try_fold(1u64, u64::checked_mul).is_some_and(|elements| elements <= i64::MAX as u64);
    countable.then(|| tensor.checked_bytes()).flatten().ok_or_else(|| too_large(tensor))
}

fn too_large(tensor: &Tensor) -> Error {
    let fault = format!("has shape {}, more than 64 bits can count", Index(&tensor.shape));
    corrupt(format!("tensor {} {fault}", shown(&tensor.name)))
}

fn corrupt(reason: impl Into<String>) -> Error {
    Error::Corrupt { container: "gguf", reason: reason.into() }
}

/// A place in the file that moves on over what is read.
struct Cursor<'a> {
    input: &'a Input,
    at: u64,
    /// Bytes of the file from `window_start` on, so that not every number is a call to the system.
    window: Vec<u8>,
    window_start: u64,
}

impl Cursor<'_> {
    /// The next `count` bytes. Nothing is allocated for bytes that are not there.
    fn take(&mut self, count: u64, what: &str) -> Result<&[u8]> {
        const WINDOW: u64 = 64 << 10;

        let left = self.input.length() - self.at;
        if count > left {
            return Err(corrupt(format!("{what} takes {count} bytes; {left} are left: the file is cut short")));
        }
        let end = self.at + count;
        if end > LONGEST {
            return Err(corrupt(format!("{what} goes past byte {LONGEST}, the limit of what stands in front of the data")));
        }
        if end > self.window_start + self.window.len() as u64 || self.window.is_empty() {
            self.window = buffer(count.max(WINDOW).min(left), || "the header".into())?;
            self.window_start = self.at;
            self.input.read("gguf", self.at, &mut self.window)?;
        }
        let start = (self.at - self.window_start) as usize;
        self.at = end;
        Ok(&self.window[start..][..count as usize])
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(*self.take(N as u64, what)?.first_chunk().expect("as many were asked for"))
    }

    fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A number of things that take `least` bytes each, or more.
    fn count(&mut self, what: &str, least: u64) -> Result<u64> {
        let count = self.u64(&format!("the number of {what}"))?;
        if count > MOST {
            return Err(corrupt(format!("the file claims {count} {what}; the limit is {MOST}")));
        }
        let left = self.input.length() - self.at;
        if count * least > left {
            return Err(corrupt(format!("the file claims {count} {what} of {least} bytes or more; {left} bytes are left")));
        }
        Ok(count)
    }

    /// A length of at most `longest`, and as many bytes of UTF-8.
    fn name(&mut self, what: &str, longest: u64) -> Result<String> {
        let length = self.u64(what)?;
        if length > longest {
            return Err(corrupt(format!("{what} claims {length} bytes; the limit is {longest}")));
        }
        let name = self.take(length, what)?.to_vec();
        String::from_utf8(name).map_err(|_| corrupt(format!("{what} is not UTF-8")))
    }

    fn key(&mut self, index: u64) -> Result<Key> {
        let name = self.name(&format!("the name of key {index}"), LONGEST_KEY)?;
        if name.is_empty() {
            return Err(corrupt(format!("the name of key {index} is empty")));
        }
        let what = format!("key {}", shown(&name));
        let kind = self.u32(&what)?;
        let mut bytes = Vec::new();
        self.value(kind, &what, &mut bytes)?;
        Ok(Key::new(name, kind, bytes))
    }

    /// Append the bytes of a value of this type.
    fn value(&mut self, kind: u32, what: &str, bytes: &mut Vec<u8>) -> Result<()> {
        match (kind, key::size(kind)) {
            (_, Some(size)) => bytes.extend(self.take(size, what)?),
            (kind::TEXT, _) => self.text(what, bytes)?,
            (kind::ARRAY, _) => {
                let kind = self.u32(what)?;
                let count = self.u64(what)?;
                bytes.extend(kind.to_le_bytes());
                bytes.extend(count.to_le_bytes());
                let left = self.input.length() - self.at;
                let size = match kind {
                    kind::TEXT => 8,
                    kind::ARRAY => return Err(corrupt(format!("{what} is an array of arrays; no reader takes those"))),
                    _ => key::size(kind).ok_or_else(|| corrupt(format!("{what} is an array of type {kind}; types are 0 to 12")))?,
                };
                let Some(total) = count.checked_mul(size).filter(|&total| total <= left) else {
                    let claim = format!("{what} claims {count} elements of {size} bytes or more");
                    return Err(corrupt(format!("{claim}; {left} bytes are left: the file is cut short")));
                };
                if kind != kind::TEXT {
                    bytes.extend(self.take(total, what)?);
                    return Ok(());
                }
                for _ in 0..count {
                    self.text(what, bytes)?;
                }
            }
            _ => return Err(corrupt(format!("{what} has type {kind}; types are 0 to 12"))),
        }
        Ok(())
    }

    /// Append a text as it is stored: a length and its bytes, which need not be UTF-8.
    fn text(&mut self, what: &str, bytes: &mut Vec<u8>) -> Result<()> {
        let length = self.u64(what)?;
        bytes.extend(length.to_le_bytes());
        bytes.extend(self.take(length, what)?);
        Ok(())
    }

    /// A line of the list, and the offset that it states.
    fn tensor(&mut self, index: u64) -> Result<(Tensor, u64)> {
        let name = self.name(&format!("the name of tensor {index}"), LONGEST_NAME)?;
        let what = format!("tensor {}", shown(&name));
        let axes = self.u32(&what)? as usize;
        if axes > MOST_AXES {
            return Err(corrupt(format!("{what} has {axes} axes; the limit is {MOST_AXES}")));
        }
        let mut shape = Vec::with_capacity(axes);
        for _ in 0..axes {
            let length = self.u64(&what)?;
            let length = i64::try_from(length).ok().and_then(|length| usize::try_from(length).ok());
            shape.push(length.ok_or_else(|| corrupt(format!("{what} has an axis longer than 63 bits can count")))?);
        }
        shape.reverse();
        let number = self.u32(&what)?;
        let Some(&(dtype, _)) = TYPES.iter().find(|row| row.1 == number) else {
            return Err(corrupt(format!("{what} has type {number}, which is not known: its size cannot be told")));
        };
        Ok((Tensor { name, dtype, shape }, self.u64(&what)?))
    }
}
