//! Doing what a plan says, tensor by tensor.

use std::collections::HashMap;

use half::f16;

use super::{Action, Effect, Failure, How, Plan, Scales, Step};
use crate::element::{Dtype, Sink, Source};
use crate::engine::{self, Importance, Method, Outcome, Run, Sums};
use crate::error::{Error, Result};
use crate::files::checkpoint::{Advance, BLOCK, Checkpoint, Entry};
use crate::files::compare::{Rows, Scratch, errors};
use crate::files::folder::{family, modules};
use crate::files::output::TensorWriter;
use crate::files::rows::{self, Cut};
use crate::files::{StoredDtype, shown};
use crate::layout::Layout;
use crate::simd::ieee::Ieee;
use crate::spec::Extent;
use crate::tensor::Quantized;

/// The end of the name under which an importance matrix of llama.cpp has the sums of squares of a tensor's inputs.
const SUMS_OF_SQUARES: &str = ".in_sum2";

impl Scales {
    /// What the errors of a tensor are weighted with: the tensor of the file, read.
    fn weights(&self, name: &str) -> Result<Option<(&Entry, Vec<u8>)>> {
        let Scales::Searched { importance: Some(file), .. } = self else { return Ok(None) };
        let names = [name.to_string(), format!("{name}{SUMS_OF_SQUARES}")];
        let Some(entry) = file.entries().iter().find(|entry| names.contains(&entry.name)) else { return Ok(None) };
        if entry.dtype.float().is_none() || entry.layout().is_some() {
            let argument = format!("importance of tensor {}", shown(name));
            return Err(Error::dtype(argument, entry.dtype.name(), "floats"));
        }
        Ok(file.load(entry)?.into_iter().next().map(|bytes| (entry, bytes)))
    }

    /// The name of what errors are weighted with, if there is a search.
    fn named(&self, given: bool) -> Option<&'static str> {
        match self {
            Scales::Nearest => None,
            Scales::Searched { .. } => Some(if given { "importance" } else { "magnitude" }),
        }
    }
}

/// Writes bytes of one of the tensors that a step makes: which, from which byte of it on, the bytes.
type WritePart<'a> = &'a mut dyn FnMut(usize, u64, &[u8]) -> Result<()>;

/// A plan at work.
pub(super) struct Conversion<'a> {
    plan: &'a Plan,
    file: Checkpoint,
    writer: Box<dyn TensorWriter + 'a>,
    how: &'a How,
    run: &'a Run<'a>,
    /// The largest magnitude of weights that share the second level of their scales, by what they have in common.
    largest: HashMap<String, f32>,
}

impl<'a> Conversion<'a> {
    pub(super) fn new(
        plan: &'a Plan,
        file: Checkpoint,
        writer: Box<dyn TensorWriter + 'a>,
        how: &'a How,
        run: &'a Run<'a>,
    ) -> Conversion<'a> {
        Conversion { plan, file, writer, how, run, largest: HashMap::new() }
    }

    /// Put the new file under its name.
    pub(super) fn finish(self) -> Result<()> {
        // On some systems a file that is open cannot be replaced, and the new file may take the old one's name.
        drop(self.file);
        self.writer.finish()
    }

    pub(super) fn step(
        &mut self,
        index: usize,
        step: &Step,
        advance: &mut dyn FnMut(u64, &str) -> Result<()>,
    ) -> std::result::Result<Effect, Failure> {
        if self.writer.has(step.first) {
            advance(step.bytes_before, &step.name)?;
            return Ok(Effect::default());
        }
        let largest = self.shared_largest(step)?;
        let Conversion { file, writer, how, run, .. } = self;
        let entry = &file.entries()[index];
        let advance = &mut |bytes| advance(bytes, &entry.name);
        let mut write = |part: usize, offset: u64, bytes: &[u8]| writer.write(step.first + part, offset, bytes);
        let of_tensor = |error| {
            let of_values =
                matches!(error, Error::NonFinite { .. } | Error::ScaleOverflow { .. } | Error::Lossy { .. } | Error::Value { .. });
            Failure { tensor: of_values.then(|| entry.name.clone()), error }
        };
        file.check_once(entry)?;
        match &step.action {
            Action::Keep(_) => copy(file, entry, advance, &mut write)?,
            Action::Refuse(_) => unreachable!("a plan that refuses a tensor is not carried out"),
            &Action::Cast(dtype, _) if entry.layout().is_some() => dequantize(file, entry, dtype, (how.block, run), advance, &mut write)?,
            &Action::Cast(dtype, _) => cast(file, entry, dtype, run, advance, &mut write).map_err(of_tensor)?,
            Action::Dequantize => dequantize(file, entry, step.dtype, (how.block, run), advance, &mut write)?,
            Action::Quantize | Action::Repack | Action::Requantize => {
                let layout = step.layout.as_ref().expect("a step that quantizes has a layout");
                let mut rewrite = Rewrite { file, entry, layout, repack: step.action == Action::Repack, largest, how, run };
                let effect = rewrite.blocks(advance, &mut write).map_err(of_tensor)?;
                let constants = if file.container().folder().is_some() { family::constants(layout, entry.dtype) } else { Vec::new() };
                for (index, constant) in constants.iter().enumerate() {
                    write(layout.spec.parts.len() + index, 0, constant)?;
                }
                return Ok(effect);
            }
        }
        Ok(Effect::default())
    }

    /// The largest magnitude of all weights that share the second level of their scales with that of `step`; `None` where it has its own.
    fn shared_largest(&mut self, step: &Step) -> Result<Option<f32>> {
        let shared = |step: &Step| {
            let shares = self.file.container().folder().is_some() && family::shares_scales(step.layout.as_ref()?.spec);
            shares.then(|| modules::fused(&step.name))?
        };
        let is_anew = |step: &Step| matches!(step.action, Action::Quantize | Action::Requantize);
        let Some(common) = is_anew(step).then(|| shared(step)).flatten() else { return Ok(None) };
        if let Some(&known) = self.largest.get(&common) {
            return Ok(Some(known));
        }
        let mut all = 0.0f32;
        for (entry, other) in self.file.entries().iter().zip(&self.plan.steps) {
            if is_anew(other) && shared(other).as_ref() == Some(&common) {
                all = all.max(largest(&self.file, entry, (self.how.block, self.run))?);
            }
        }
        self.largest.insert(common, all);
        Ok(Some(all))
    }
}

/// How a tensor is cut that is stored as `entry` and becomes `layout`.
pub(super) fn cut(entry: &Entry, layout: Option<&Layout>) -> Cut {
    [entry.layout(), layout].into_iter().flatten().map(Cut::of).fold(Cut::Rows(1), Cut::and)
}

/// The largest magnitude of a tensor, block by block.
fn largest(file: &Checkpoint, entry: &Entry, (block, run): (usize, &Run)) -> Result<f32> {
    let (mut parts, mut scratch, mut largest) = (Vec::new(), Vec::new(), 0.0f32);
    for (first, count) in cut(entry, None).blocks(&entry.shape, block) {
        file.read_rows(entry, first, count, &mut parts)?;
        let rows = Rows::of(entry, count, &parts);
        largest = largest.max(engine::largest(&rows.source(&mut scratch, run)?, run)?);
    }
    Ok(largest)
}

/// Copy what an entry lies in, block by block.
fn copy(file: &Checkpoint, entry: &Entry, advance: Advance, write: WritePart) -> Result<()> {
    let mut block = Vec::new();
    for (part, (index, tensor)) in file.stored(entry).enumerate() {
        let bytes = tensor.bytes();
        for offset in (0..bytes).step_by(BLOCK) {
            block.resize((bytes - offset).min(BLOCK as u64) as usize, 0);
            file.container().read(index, offset, &mut block)?;
            write(part, offset, &block)?;
            advance(block.len() as u64)?;
        }
    }
    Ok(())
}

/// Store a plain tensor as floats of another dtype, block by block.
fn cast(file: &Checkpoint, entry: &Entry, dtype: StoredDtype, run: &Run, advance: Advance, write: WritePart) -> Result<()> {
    let from = entry.dtype.float().expect("only floats are cast");
    let to = dtype.float().expect("to floats");
    let _ieee = Ieee::enter();
    let (mut block, mut floats, mut bytes) = (Vec::new(), Vec::new(), Vec::new());
    for (index, tensor) in file.stored(entry) {
        for offset in (0..tensor.bytes()).step_by(BLOCK) {
            block.resize((tensor.bytes() - offset).min(BLOCK as u64) as usize, 0);
            file.container().read(index, offset, &mut block)?;
            let len = block.len() / from.size();
            floats.resize(len, 0.0);
            Source::from_bytes(&block, from, &[len]).load(run.level, 0, &mut floats);
            if to == Dtype::F16
                && let Some(beyond) = floats.iter().find(|x| f16::from_f32(**x).is_infinite() && x.is_finite())
            {
                return Err(Error::value("an element", beyond.to_string(), "float16 reaches 65504: keep the tensor out with exclude"));
            }
            bytes.resize(len * to.size(), 0);
            Sink::from_bytes(&mut bytes, to, &[len]).store(run.level, 0, &floats);
            write(0, offset / from.size() as u64 * to.size() as u64, &bytes)?;
            advance(block.len() as u64)?;
        }
    }
    Ok(())
}

/// Decode a quantized tensor to `dtype`, block by block.
fn dequantize(
    file: &Checkpoint,
    entry: &Entry,
    dtype: StoredDtype,
    (block, run): (usize, &Run),
    advance: Advance,
    write: WritePart,
) -> Result<()> {
    let layout = entry.layout().expect("only quantized tensors are planned to be decoded");
    let dtype = dtype.float().expect("tensors are decoded to floats");
    let row = rows::lengths(&entry.shape).0 * dtype.size();
    let (mut parts, mut decoded) = (Vec::new(), Vec::new());
    for (first, count) in cut(entry, None).blocks(&entry.shape, block) {
        let read = file.read_rows(entry, first, count, &mut parts)?;
        let layout = rows::layout_of(layout, count);
        decoded.resize(count * row, 0);
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        engine::dequantize(&layout, &views, Sink::from_bytes(&mut decoded, dtype, &layout.shape), run)?;
        write(0, (first * row) as u64, &decoded)?;
        advance(read)?;
    }
    Ok(())
}

/// A tensor that is written in the format `layout`.
struct Rewrite<'a> {
    file: &'a Checkpoint,
    entry: &'a Entry,
    layout: &'a Layout,
    /// Whether it keeps the values of the format that it is in.
    repack: bool,
    /// The largest magnitude of all that share the second level of its scales.
    largest: Option<f32>,
    how: &'a How,
    run: &'a Run<'a>,
}

impl Rewrite<'_> {
    /// Convert block by block, measure and write.
    fn blocks(&mut self, advance: Advance, write: WritePart) -> Result<Effect> {
        let Rewrite { file, entry, layout, how, run, .. } = *self;
        let cut = cut(entry, Some(layout));
        let (columns, all) = rows::lengths(&entry.shape);
        let is_cut = cut.blocks(&entry.shape, how.block).nth(1).is_some();
        // A search for it would find another one where the tensor is cut.
        if (is_cut || !matches!(how.scales, Scales::Nearest))
            && !self.repack
            && layout.spec.global_part().is_some()
            && self.largest.is_none()
        {
            self.largest = Some(largest(file, entry, (how.block, run))?);
        }
        let weights = how.scales.weights(&entry.name)?;
        let mut effect = Effect { errors: Some(Sums::default()), ..Effect::default() };
        if self.is_searched() {
            effect.weights = how.scales.named(weights.is_some());
        }
        // Elements that are not finite are counted to the end: how many, and the first.
        let mut not_finite: Option<(u64, Vec<usize>, f64)> = None;
        let (mut parts, mut scratch, mut floats) = (Vec::new(), Scratch::default(), Vec::new());
        for (first, count) in cut.blocks(&entry.shape, how.block) {
            let read = file.read_rows(entry, first, count, &mut parts)?;
            let block = rows::layout_of(layout, count);
            let mut made = Quantized::zeroed(block)?;
            let before = Rows::of(entry, count, &parts);
            let done = match &before {
                Rows::Quantized(from, views) if self.repack => {
                    let mut slices: Vec<&mut [u8]> = made.parts.iter_mut().map(Vec::as_mut_slice).collect();
                    engine::repack(from, views, &made.layout, &mut slices, run)
                }
                _ => self.quantize(&before.source(&mut floats, run)?, weights.as_ref(), (first, count), &mut made),
            };
            match done {
                Ok(outcome) => effect.replaced += outcome.replaced,
                // The message speaks of groups of the whole tensor.
                Err(Error::Lossy { .. }) if is_cut => return Err(self.repack_whole()),
                Err(Error::NonFinite { count, first: place, value }) => {
                    let found = not_finite.get_or_insert_with(|| (0, in_tensor(&entry.shape, first, place), value));
                    found.0 += count;
                }
                Err(Error::ScaleOverflow { part, dtype, group }) => {
                    let group = if layout.spec.is_flat() {
                        vec![first * columns / layout.group_elements() + group.first().copied().unwrap_or(0)]
                    } else {
                        in_tensor(&layout.groups_shape(), first, group)
                    };
                    return Err(Error::ScaleOverflow { part, dtype, group });
                }
                Err(error) => return Err(error),
            }
            if not_finite.is_none() {
                let after = Rows::Quantized(made.layout.clone(), made.views());
                effect.errors = Some(errors(effect.errors.unwrap_or_default(), &before, &after, &mut scratch, run)?);
                self.write(&made, first, count, write)?;
            }
            advance(read)?;
        }
        if all == 0 {
            let made = Quantized::zeroed(layout.clone())?;
            self.write(&made, 0, 0, write)?;
        }
        match not_finite {
            Some((count, first, value)) => Err(Error::NonFinite { count, first, value }),
            None => Ok(effect),
        }
    }

    /// Whether the scales may be searched for: the companions of 4-bit formats, which mixtures have beside them, have no search.
    fn is_searched(&self) -> bool {
        !self.repack && !self.layout.spec.is_companion()
    }

    fn quantize(
        &self,
        source: &Source,
        weights: Option<&(&Entry, Vec<u8>)>,
        (first, count): (usize, usize),
        made: &mut Quantized,
    ) -> Result<Outcome> {
        let Quantized { layout, parts } = made;
        let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
        let importance = weights.map(|(weights, bytes)| {
            let dtype = weights.dtype.float().expect("it was looked at");
            if weights.shape == self.entry.shape && weights.shape.len() > 1 {
                let row = bytes.len() / rows::lengths(&weights.shape).1.max(1);
                Source::from_bytes(&bytes[first * row..][..count * row], dtype, &layout.shape)
            } else {
                Source::from_bytes(bytes, dtype, &weights.shape)
            }
        });
        let importance = importance.as_ref().map_or(Importance::Magnitude, Importance::Array);
        let method = match self.how.scales {
            _ if !self.is_searched() => Method::Nearest,
            Scales::Nearest => Method::Nearest,
            Scales::Searched { fast: false, .. } => Method::Optimal(importance),
            Scales::Searched { fast: true, .. } => Method::Fast(importance),
        };
        engine::quantize_sharing(source, layout, method, self.largest, self.how.nonfinite, &mut slices, self.run)
    }

    /// Write the rows of each part to their places, and with the first of them the parts that the tensor has once.
    fn write(&self, made: &Quantized, first: usize, count: usize, write: WritePart) -> Result<()> {
        for (index, (part, spec)) in made.parts.iter().zip(self.layout.spec.parts).enumerate() {
            match rows::share(self.layout, index, first, count) {
                Some(share) => share.places().try_for_each(|(at, place)| write(index, at, &part[place]))?,
                None if first > 0 => {}
                None if spec.extent == Extent::Lengths => {
                    let lengths: Vec<u8> = self.layout.shape.iter().flat_map(|&length| (length as i64).to_le_bytes()).collect();
                    write(index, 0, &lengths)?;
                }
                None => write(index, 0, part)?,
            }
        }
        Ok(())
    }

    /// Why the tensor as a whole cannot keep its values.
    fn repack_whole(&self) -> Error {
        let repacked = || {
            let from = self.entry.layout().expect("only quantized tensors are repacked");
            let loaded = self.file.load(self.entry)?;
            let parts: Vec<&[u8]> = loaded.iter().map(Vec::as_slice).collect();
            let mut made = Quantized::zeroed(self.layout.clone())?;
            let mut slices: Vec<&mut [u8]> = made.parts.iter_mut().map(Vec::as_mut_slice).collect();
            engine::repack(from, &parts, self.layout, &mut slices, self.run)
        };
        repacked().expect_err("a block of it was refused")
    }
}

/// The place in a tensor of what lies at `place` of a block that begins at row `first`; `shape` is that of the tensor, or of its groups.
fn in_tensor(shape: &[usize], first: usize, place: Vec<usize>) -> Vec<usize> {
    let [row, column] = place[..] else { return place };
    let (_, axes) = shape.split_last().expect("a block has rows and columns");
    let mut rest = first + row;
    let mut index: Vec<usize> = axes
        .iter()
        .rev()
        .map(|&length| {
            let at = rest % length.max(1);
            rest /= length.max(1);
            at
        })
        .collect();
    index.reverse();
    index.push(column);
    index
}
