//! Two files, tensor by tensor: how far the values of one are from those of the other.

use std::collections::{HashMap, HashSet};

use super::checkpoint::{BLOCK, Checkpoint, Entry};
use super::rows::{self, BLOCK_ELEMENTS, Cut};
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
    let measured = |entry: &Entry| entry.layout().is_some() || entry.dtype.float().is_some();
    if !(measured(entry) && measured(twin)) {
        if entry.dtype != twin.dtype || entry.layout().is_some() || twin.layout().is_some() {
            advance(file.bytes(entry))?;
            return Ok(Verdict::Dtypes);
        }
        return same_bytes((file, entry), (other_file, twin), advance).map(Verdict::SameBytes);
    }
    file.check_once(entry)?;
    other_file.check_once(twin)?;
    let cut = [entry, twin].into_iter().filter_map(Entry::layout).map(Cut::of).fold(Cut::Rows(1), Cut::and);
    let (mut parts, mut other_parts) = (Vec::new(), Vec::new());
    let mut sums = Sums::default();
    let mut scratch = Scratch::default();
    for (first, count) in cut.blocks(&entry.shape, BLOCK_ELEMENTS) {
        let read = file.read_rows(entry, first, count, &mut parts)?;
        other_file.read_rows(twin, first, count, &mut other_parts)?;
        let (reference, other) = (Rows::of(entry, count, &parts), Rows::of(twin, count, &other_parts));
        sums = errors(sums, &reference, &other, &mut scratch, run)?;
        advance(read)?;
    }
    Ok(Verdict::Measured(sums))
}

/// Whether two plain tensors of one dtype and shape are the same.
pub(super) fn same_bytes(
    (file, entry): (&Checkpoint, &Entry),
    (other_file, twin): (&Checkpoint, &Entry),
    advance: &mut dyn FnMut(u64) -> Result<()>,
) -> Result<bool> {
    let (mut block, mut other_block) = (Vec::new(), Vec::new());
    let mut same = true;
    for ((index, tensor), (other_index, _)) in file.stored(entry).zip(other_file.stored(twin)) {
        for offset in (0..tensor.bytes()).step_by(BLOCK) {
            block.resize((tensor.bytes() - offset).min(BLOCK as u64) as usize, 0);
            other_block.resize(block.len(), 0);
            file.container().read(index, offset, &mut block)?;
            other_file.container().read(other_index, offset, &mut other_block)?;
            same &= block == other_block;
            advance(block.len() as u64)?;
        }
    }
    Ok(same)
}

/// Some rows of a tensor, in memory.
pub(super) enum Rows<'a> {
    /// Little-endian numbers in C order: their dtype, how many rows.
    Plain(Dtype, usize, &'a [u8]),
    /// Parts.
    Quantized(Layout, Vec<&'a [u8]>),
}

/// Floats that are kept from block to block.
#[derive(Default)]
pub(super) struct Scratch(Vec<f32>, Vec<f32>);

impl<'a> Rows<'a> {
    /// `count` rows of a tensor of numbers, as they were read.
    pub(super) fn of(entry: &Entry, count: usize, parts: &'a [Vec<u8>]) -> Rows<'a> {
        match entry.layout() {
            Some(layout) => Rows::Quantized(rows::layout_of(layout, count), parts.iter().map(Vec::as_slice).collect()),
            None => Rows::Plain(entry.dtype.float().expect("a tensor of numbers"), count, &parts[0]),
        }
    }

    /// The rows as floats.
    pub(super) fn source<'s>(&'s self, scratch: &'s mut Vec<f32>, run: &Run) -> Result<Source<'s>> {
        match self {
            &Rows::Plain(dtype, count, bytes) => {
                let columns = (bytes.len() / dtype.size()).checked_div(count).unwrap_or(0);
                Ok(Source::from_bytes(bytes, dtype, &[count, columns]))
            }
            Rows::Quantized(layout, parts) => {
                let (columns, rows) = rows::lengths(&layout.shape);
                scratch.resize(rows * columns, 0.0);
                engine::dequantize(layout, parts, Sink::from_slice(scratch, &layout.shape), run)?;
                Ok(Source::from_slice(scratch, &[rows, columns]))
            }
        }
    }
}

/// The errors of `other` against `reference`, the same rows, added to those `before`.
pub(super) fn errors(before: Sums, reference: &Rows, other: &Rows, scratch: &mut Scratch, run: &Run) -> Result<Sums> {
    let x = reference.source(&mut scratch.0, run)?;
    let y = other.source(&mut scratch.1, run)?;
    Ok(engine::compare(&x, &y, run)?.into_iter().fold(before, Sums::then))
}
