//! Two files, tensor by tensor: how far the values of one are from those of the other.

use std::collections::{HashMap, HashSet};

use super::checkpoint::{Checkpoint, Content, Entry};
use crate::element::{Dtype, Sink, Source};
use crate::engine::{self, Run, Sums};
use crate::error::Result;
use crate::layout::Layout;

/// What two files have under one name.
#[derive(Debug)]
pub struct Compared {
    /// The name.
    pub name: String,
    /// In the first file.
    pub reference: Option<Stored>,
    /// In the second file.
    pub other: Option<Stored>,
    /// How they relate; `None` where one is missing.
    pub verdict: Option<Verdict>,
}

/// A tensor as a file stores it.
#[derive(Debug)]
pub struct Stored {
    /// The format, or the dtype of what is not quantized.
    pub kind: &'static str,
    /// The shape.
    pub shape: Vec<usize>,
    /// The bytes that it takes.
    pub bytes: u64,
}

/// How two tensors of one name relate.
#[derive(Debug)]
pub enum Verdict {
    /// Numbers of one shape: their errors.
    Measured(Sums),
    /// Of one dtype that is not measured: whether the bytes are the same.
    SameBytes(bool),
    /// The shapes differ.
    Shapes,
    /// The dtypes differ, and one of them is not measured.
    Dtypes,
}

/// Compare the tensors of two files, in the order of the first, then those that only the second has.
///
/// `advance` hears of every few MiB of the first file that are done and of the tensor at hand, and can stop the work.
///
/// # Errors
///
/// Those of reading, of the engine and of `advance`.
pub fn compare(
    reference: &Checkpoint,
    other: &Checkpoint,
    run: &Run,
    advance: &mut dyn FnMut(u64, &str) -> Result<()>,
) -> Result<Vec<Compared>> {
    let others: HashMap<&str, &Entry> = other.entries().iter().map(|entry| (entry.name.as_str(), entry)).collect();
    let mut compared = Vec::new();
    for entry in reference.entries() {
        let twin = others.get(entry.name.as_str()).copied();
        let verdict = match twin {
            Some(twin) => Some(pair((reference, entry), (other, twin), run, &mut |bytes| advance(bytes, &entry.name))?),
            None => {
                advance(reference.bytes(entry), &entry.name)?;
                None
            }
        };
        compared.push(Compared {
            name: entry.name.clone(),
            reference: Some(stored(reference, entry)),
            other: twin.map(|twin| stored(other, twin)),
            verdict,
        });
    }
    let names: HashSet<&str> = reference.entries().iter().map(|entry| entry.name.as_str()).collect();
    let rest = other.entries().iter().filter(|entry| !names.contains(entry.name.as_str()));
    compared.extend(rest.map(|entry| Compared {
        name: entry.name.clone(),
        reference: None,
        other: Some(stored(other, entry)),
        verdict: None,
    }));
    Ok(compared)
}

fn stored(file: &Checkpoint, entry: &Entry) -> Stored {
    let kind = entry.layout().map_or(entry.dtype.name(), |layout| layout.spec.name);
    Stored { kind, shape: entry.shape.clone(), bytes: file.bytes(entry) }
}

fn pair(
    (file, entry): (&Checkpoint, &Entry),
    (other_file, twin): (&Checkpoint, &Entry),
    run: &Run,
    advance: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<Verdict> {
    if entry.shape != twin.shape {
        advance(file.bytes(entry))?;
        return Ok(Verdict::Shapes);
    }
    let bytes = file.load(entry, advance)?;
    // The second file is waited for, but its bytes do not count towards the first's.
    let other_bytes = other_file.load(twin, &mut |_| advance(0))?;
    match (values(entry, &bytes), values(twin, &other_bytes)) {
        (Some(reference), Some(other)) => errors(&entry.shape, &reference, &other, run).map(Verdict::Measured),
        _ if entry.dtype == twin.dtype => Ok(Verdict::SameBytes(bytes == other_bytes)),
        _ => Ok(Verdict::Dtypes),
    }
}

/// The values of an entry, if they are numbers that are measured.
fn values<'a>(entry: &'a Entry, bytes: &'a [Vec<u8>]) -> Option<Values<'a>> {
    match &entry.content {
        Content::Plain(_) => Some(Values::Plain(entry.dtype.float()?, &bytes[0])),
        Content::Quantized { layout, .. } => Some(Values::Quantized(layout, bytes.iter().map(Vec::as_slice).collect())),
    }
}

/// A tensor in memory.
pub(super) enum Values<'a> {
    /// Little-endian numbers in C order.
    Plain(Dtype, &'a [u8]),
    /// Parts.
    Quantized(&'a Layout, Vec<&'a [u8]>),
}

/// The errors of `other` against `reference`, both of `shape`; a block of rows at a time where both can be cut between
/// rows, so that memory stays small.
pub(super) fn errors(shape: &[usize], reference: &Values, other: &Values, run: &Run) -> Result<Sums> {
    let columns = shape.last().copied().unwrap_or(1);
    let mut sums = Sums::default();
    let (mut scratch, mut other_scratch) = (Vec::new(), Vec::new());
    let whole = [reference, other].iter().any(|values| matches!(values, Values::Quantized(layout, _) if !layout.spec.is_by_rows()));
    for (first, count) in blocks(shape, whole) {
        let x = reference.source(first, count, columns, &mut scratch, run)?;
        let y = other.source(first, count, columns, &mut other_scratch, run)?;
        sums = engine::compare(&x, &y, run)?.into_iter().fold(sums, Sums::then);
    }
    Ok(sums)
}

/// Elements of a block: 16 MiB of f32, enough for all threads to have work.
const BLOCK_ELEMENTS: usize = 4 << 20;

/// The rows of a tensor in blocks of about [`BLOCK_ELEMENTS`], or as one `whole`: first row, number of rows.
pub(super) fn blocks(shape: &[usize], whole: bool) -> impl Iterator<Item = (usize, usize)> {
    let (columns, rows) = match shape.split_last() {
        Some((&columns, rows)) => (columns, rows.iter().product()),
        None => (1, 1),
    };
    let rows = if columns == 0 { 0 } else { rows };
    let step = if whole { rows.max(1) } else { (BLOCK_ELEMENTS / columns.max(1)).max(1) };
    (0..rows).step_by(step).map(move |first| (first, step.min(rows - first)))
}

/// The layout of rows `first..first + count` of a quantized tensor, and their share of its parts.
pub(super) fn rows<'a>(layout: &Layout, parts: &[&'a [u8]], first: usize, count: usize) -> (Layout, Vec<&'a [u8]>) {
    if !layout.spec.is_by_rows() {
        return (layout.clone(), parts.to_vec());
    }
    let block = Layout { shape: vec![count, layout.columns()], ..layout.clone() };
    let share = |(index, part): (usize, &&'a [u8])| {
        let bytes = block.part_bytes(index);
        // One group for the whole tensor is every block's.
        let start = if part.len() == bytes { 0 } else { part.len() / layout.rows() * first };
        &part[start..start + bytes]
    };
    let shares = parts.iter().enumerate().map(share).collect();
    (block, shares)
}

impl Values<'_> {
    /// Rows `first..first + count` as floats.
    fn source<'s>(&'s self, first: usize, count: usize, columns: usize, scratch: &'s mut Vec<f32>, run: &Run) -> Result<Source<'s>> {
        let shape = [count, columns];
        match self {
            Values::Plain(dtype, bytes) => {
                let row = columns * dtype.size();
                Ok(Source::from_bytes(&bytes[first * row..][..count * row], *dtype, &shape))
            }
            Values::Quantized(layout, parts) => {
                let (block, parts) = rows(layout, parts, first, count);
                scratch.resize(count * columns, 0.0);
                engine::dequantize(&block, &parts, Sink::from_slice(scratch, &block.shape), run)?;
                Ok(Source::from_slice(scratch, &shape))
            }
        }
    }
}
