//! Whether a file is whole, and whether it is what a conversion makes of another.
//!
//! That a container holds what its header says is known once it is open. Here every quantized tensor is decoded: it is sound where all its
//! values are finite. Against the file that it was made of, each tensor is one of these:
//!
//! * the same, to the byte or in every value, of a tensor that was copied, cast, decoded or converted without loss;
//! * what the format's own rule makes of the source, to the byte;
//! * within bounds, which any choice of scales keeps, whatever it weights: each element has the code whose value is nearest to it, and no
//!   group that the format's own rule keeps far better has become one value, as one does that lost its scale;
//! * at fault.

use std::collections::{HashMap, HashSet};

use super::checkpoint::{Advance, Checkpoint, Entry};
use super::compare::{self, Rows, Scratch, errors};
use super::convert::largest;
use super::folder::family;
use super::rows::{self, BLOCK_ELEMENTS, Cut};
use crate::element::{Sink, Source};
use crate::engine::{self, Method, NonFinite, Run, Sums};
use crate::error::{Error, Index, Result};
use crate::layout::Layout;
use crate::spec::Extent;
use crate::tensor::Quantized;

/// What was found of one tensor.
#[derive(Debug)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// What it is.
    pub verdict: Verdict,
    /// Its errors against the source, where it has numbers there.
    pub errors: Option<Sums>,
}

/// What a tensor is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Readable and finite; there is no source to compare with.
    Sound,
    /// The values of the source.
    Same,
    /// What the format's own rule makes of the source.
    Reproduced,
    /// Within the bounds of the format.
    Bounded,
    /// At fault, for this reason.
    Faulty(String),
}

/// How much more error energy than the format's own rule a group of one value may have: such a group loses about 20 dB with its scale.
const WORSE: f64 = 16.0;

/// Look at every tensor of `file`, with the file that it was made of if there is one.
///
/// `advance` hears of every few MiB of `file` that are done and of the tensor at hand, and can stop the work.
///
/// # Errors
///
/// Those of reading, of the engine and of `advance`. What is wrong with a tensor is no error, but its verdict.
pub fn verify(
    file: &Checkpoint,
    against: Option<&Checkpoint>,
    run: &Run,
    advance: &mut dyn FnMut(u64, &str) -> Result<()>,
) -> Result<Vec<Verified>> {
    let sources: HashMap<&str, &Entry> =
        against.into_iter().flat_map(Checkpoint::entries).map(|entry| (entry.name.as_str(), entry)).collect();
    let mut found = Vec::with_capacity(file.entries().len());
    let mut largest = HashMap::new();
    for entry in file.entries() {
        let advance = &mut |bytes| advance(bytes, &entry.name);
        let source = against.zip(sources.get(entry.name.as_str()).copied());
        let verified = match source {
            _ if against.is_none() => is_sound(file, entry, run, advance),
            Some(source) => shared_largest((file, entry), source.0, &sources, &mut largest, run)
                .and_then(|largest| of_source((file, entry), source, largest, run, advance)),
            None => Ok((Verdict::Faulty("the source has no such tensor".into()), None)),
        };
        let (verdict, errors) = match verified {
            Err(Error::Corrupt { reason, .. }) => (Verdict::Faulty(reason), None),
            verified => verified?,
        };
        found.push(Verified { name: entry.name.clone(), verdict, errors });
    }
    let names: HashSet<&str> = file.entries().iter().map(|entry| entry.name.as_str()).collect();
    let missing = against.into_iter().flat_map(Checkpoint::entries).filter(|entry| !names.contains(entry.name.as_str()));
    found.extend(missing.map(|entry| {
        let verdict = Verdict::Faulty("the source has it, the file has not".into());
        Verified { name: entry.name.clone(), verdict, errors: None }
    }));
    Ok(found)
}

/// Whether the parts of a tensor agree, and all that they stand for is finite.
fn is_sound(file: &Checkpoint, entry: &Entry, run: &Run, advance: Advance) -> Result<(Verdict, Option<Sums>)> {
    file.check_once(entry)?;
    let Some(layout) = entry.layout() else {
        advance(file.bytes(entry))?;
        return Ok((Verdict::Sound, None));
    };
    let (mut parts, mut values) = (Vec::new(), Vec::new());
    for (first, count) in Cut::of(layout).blocks(&entry.shape, BLOCK_ELEMENTS) {
        let read = file.read_rows(entry, first, count, &mut parts)?;
        floats(&Rows::of(entry, count, &parts), &mut values, run)?;
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            return Ok((Verdict::Faulty(not_finite(entry, first, at)), None));
        }
        advance(read)?;
    }
    Ok((Verdict::Sound, None))
}

/// The largest magnitude in the source of all weights that share the second level of their scales with `entry`; `None` where it has its
/// own. What is known of others is looked up in `known`.
fn shared_largest(
    (file, entry): (&Checkpoint, &Entry),
    against: &Checkpoint,
    sources: &HashMap<&str, &Entry>,
    known: &mut HashMap<String, f32>,
    run: &Run,
) -> Result<Option<f32>> {
    let shared = |entry: &Entry| {
        file.container().folder()?;
        family::sharing(&entry.name, entry.layout()?)
    };
    let Some(common) = shared(entry) else { return Ok(None) };
    if let Some(&known) = known.get(&common) {
        return Ok(Some(known));
    }
    let mut all = 0.0f32;
    for other in file.entries().iter().filter(|other| shared(other).as_ref() == Some(&common)) {
        match sources.get(other.name.as_str()) {
            Some(source) if has_numbers(source) => all = all.max(largest(against, source, (BLOCK_ELEMENTS, run))?),
            _ => {}
        }
    }
    known.insert(common, all);
    Ok(Some(all))
}

/// Whether a tensor has values that can be compared.
fn has_numbers(entry: &Entry) -> bool {
    entry.layout().is_some() || entry.dtype.float().is_some()
}

/// What a tensor is of the one of its name that it was made of.
fn of_source(
    (file, entry): (&Checkpoint, &Entry),
    (against, source): (&Checkpoint, &Entry),
    largest: Option<f32>,
    run: &Run,
    advance: Advance,
) -> Result<(Verdict, Option<Sums>)> {
    if entry.shape != source.shape {
        advance(file.bytes(entry))?;
        let reason = format!("its shape is {}, that of the source {}", Index(&entry.shape), Index(&source.shape));
        return Ok((Verdict::Faulty(reason), None));
    }
    file.check_once(entry)?;
    against.check_once(source)?;
    if !(has_numbers(entry) && has_numbers(source)) {
        let same = entry.dtype == source.dtype && compare::same_bytes((file, entry), (against, source), advance)?;
        return Ok((if same { Verdict::Same } else { Verdict::Faulty("its bytes are not those of the source".into()) }, None));
    }
    let cut = [entry, source].into_iter().filter_map(Entry::layout).map(Cut::of).fold(Cut::Rows(1), Cut::and);
    let (mut parts, mut source_parts) = (Vec::new(), Vec::new());
    let (mut x, mut y, mut scratch) = (Vec::new(), Vec::new(), Scratch::default());
    let (mut verdict, mut sums) = (Verdict::Same, Sums::default());
    for (first, count) in cut.blocks(&entry.shape, BLOCK_ELEMENTS) {
        let read = file.read_rows(entry, first, count, &mut parts)?;
        against.read_rows(source, first, count, &mut source_parts)?;
        let (found, origin) = (Rows::of(entry, count, &parts), Rows::of(source, count, &source_parts));
        floats(&found, &mut y, run)?;
        floats(&origin, &mut x, run)?;
        let judged = match (&found, entry.dtype.float()) {
            (Rows::Quantized(layout, views), _) => quantized(layout, views, (&x, &y), largest, run)?,
            // Floats of another dtype than those of the source are the nearest of theirs.
            (Rows::Plain(.., bytes), Some(dtype)) => {
                let mut expected = vec![0; bytes.len()];
                Sink::from_bytes(&mut expected, dtype, &[x.len()]).store(run.level, 0, &x);
                if expected == *bytes { Judged::As(Verdict::Same) } else { Judged::Fault("its values are not those of the source", None) }
            }
            (Rows::Plain(..), None) => unreachable!("it has numbers"),
        };
        match judged {
            Judged::As(judged) => verdict = worse(verdict, judged),
            Judged::Fault(reason, at) => {
                let at = at.map(|at| format!(", the first at {}", place(entry, first, at))).unwrap_or_default();
                return Ok((Verdict::Faulty(format!("{reason}{at}")), None));
            }
        }
        sums = errors(sums, &origin, &found, &mut scratch, run)?;
        advance(read)?;
    }
    Ok((verdict, Some(sums)))
}

enum Judged {
    As(Verdict),
    /// Why, and the element where.
    Fault(&'static str, Option<usize>),
}

/// What some rows are that are stored as `layout` and decode to `y`, where the source has `x`.
fn quantized(layout: &Layout, parts: &[&[u8]], (x, y): (&[f32], &[f32]), largest: Option<f32>, run: &Run) -> Result<Judged> {
    if x.iter().zip(y).all(|(x, y)| x == y) {
        return Ok(Judged::As(Verdict::Same));
    }
    if let Some(at) = y.iter().position(|value| !value.is_finite()) {
        return Ok(Judged::Fault("its values are not finite", Some(at)));
    }
    let own = own_rule(layout, x, largest, run)?;
    if own.as_ref().is_some_and(|own| is_same(own, parts)) {
        return Ok(Judged::As(Verdict::Reproduced));
    }
    if let Some((_, at)) = engine::misplaced(layout, parts, x, run)? {
        return Ok(Judged::Fault("elements are not stored as the nearest value", Some(at)));
    }
    let Some(own) = own else { return Ok(Judged::As(Verdict::Bounded)) };
    let mut nearest = vec![0.0; x.len()];
    engine::dequantize(&own.layout, &own.views(), Sink::from_slice(&mut nearest, &layout.shape), run)?;
    let (line, group) = (if layout.spec.is_flat() { x.len() } else { layout.columns() }, layout.group_elements());
    for line in (0..x.len()).step_by(line).map(|start| start..start + line) {
        for start in line.clone().step_by(group) {
            let range = start..(start + group).min(line.end);
            let finite = || range.clone().filter(|&at| x[at].is_finite());
            let energy = |y: &[f32]| finite().map(|at| f64::from(x[at] - y[at]).powi(2)).sum::<f64>();
            if y[range.clone()].iter().all(|value| *value == y[start]) && energy(y) > WORSE * energy(&nearest) {
                return Ok(Judged::Fault("all of a group has one value", Some(start)));
            }
        }
    }
    Ok(Judged::As(Verdict::Bounded))
}

/// What the format's own rule makes of some rows, and of the `largest` magnitude of all that share a second level of scales with them; `None`
/// where they do not fit it.
fn own_rule(layout: &Layout, x: &[f32], largest: Option<f32>, run: &Run) -> Result<Option<Quantized>> {
    let mut own = Quantized::zeroed(layout.clone())?;
    let mut slices: Vec<&mut [u8]> = own.parts.iter_mut().map(Vec::as_mut_slice).collect();
    let source = Source::from_slice(x, &layout.shape);
    match engine::quantize_sharing(&source, layout, Method::Nearest, largest, NonFinite::Zero, &mut slices, run) {
        Ok(_) => Ok(Some(own)),
        Err(Error::ScaleOverflow { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether parts are those of `own`, but for the lengths of the whole tensor, which are not those of some rows.
fn is_same(own: &Quantized, parts: &[&[u8]]) -> bool {
    let specs = own.layout.spec.parts.iter();
    specs.zip(&own.parts).zip(parts).all(|((spec, own), part)| spec.extent == Extent::Lengths || own == part)
}

fn worse(one: Verdict, other: Verdict) -> Verdict {
    let rank = |verdict: &Verdict| match verdict {
        Verdict::Sound | Verdict::Same => 0,
        Verdict::Reproduced => 1,
        Verdict::Bounded => 2,
        Verdict::Faulty(_) => 3,
    };
    if rank(&other) > rank(&one) { other } else { one }
}

/// The values of some rows.
fn floats(rows: &Rows, values: &mut Vec<f32>, run: &Run) -> Result<()> {
    let mut scratch = Vec::new();
    let source = rows.source(&mut scratch, run)?;
    values.resize(source.len(), 0.0);
    source.load(run.level, 0, values);
    Ok(())
}

fn not_finite(entry: &Entry, first: usize, at: usize) -> String {
    format!("its values are not finite, the first at {}", place(entry, first, at))
}

/// The place in a tensor of element `at` of rows that begin at `first`.
fn place(entry: &Entry, first: usize, at: usize) -> String {
    let columns = rows::lengths(&entry.shape).0.max(1);
    let mut rest = first * columns + at;
    let mut index: Vec<usize> = entry
        .shape
        .iter()
        .rev()
        .map(|&length| {
            let at = rest % length.max(1);
            rest /= length.max(1);
            at
        })
        .collect();
    index.reverse();
    Index(&index).to_string()
}
