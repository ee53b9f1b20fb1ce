//! Doing what a plan says, tensor by tensor.

use std::collections::HashMap;
use std::ops::Range;
use std::time::Instant;
use std::{mem, thread};

use half::f16;

use super::flow::{self, Ends, Flow, Made, Piece};
use super::importance::Weights;
use super::{Action, Effect, Failure, How, Plan, Scales, Step};
use crate::element::{Dtype, Sink, Source};
use crate::engine::{self, Importance, Method, Outcome, Run, Sums};
use crate::error::{Error, Result};
use crate::files::StoredDtype;
use crate::files::checkpoint::{Advance, Checkpoint, Entry};
use crate::files::compare::{Rows, Scratch, errors};
use crate::files::folder::family;
use crate::files::output::TensorWriter;
use crate::files::rows::{self, Cut, Share};
use crate::layout::Layout;
use crate::simd::ieee::Ieee;
use crate::spec::Extent;
use crate::tensor::Quantized;

/// A plan at work.
struct Conversion<'a> {
    plan: &'a Plan,
    file: &'a Checkpoint,
    how: &'a How,
    run: &'a Run<'a>,
    /// The largest magnitude of weights that share the second level of their scales, by what they have in common.
    largest: HashMap<String, f32>,
}

/// Hears of bytes that are done and of the tensor at hand, and can stop the work.
type Progress<'a> = &'a mut dyn FnMut(u64, &str) -> Result<()>;

/// Do what `plan` says with the tensors of `file`.
pub(super) fn convert(
    plan: &Plan,
    file: &Checkpoint,
    writer: &mut (dyn TensorWriter + Send),
    how: &How,
    run: &Run,
    advance: Progress,
) -> std::result::Result<Vec<Effect>, Failure> {
    let before =
        |tensors: Range<usize>| writer.has(tensors.clone()).then(|| Effect { sha256: writer.hash_of(tensors), ..Effect::default() });
    let done: Vec<Option<Effect>> = (0..plan.steps.len()).map(|step| before(plan.tensors_of(step))).collect();
    let flow = Flow::new(file, writer, how.room);
    thread::scope(|scope| {
        let todo = file.entries().iter().zip(&plan.steps).zip(&done).filter(|(_, done)| done.is_none());
        let pieces = todo.flat_map(|((entry, step), _)| pieces(file, entry, step, how.block).map(move |piece| (entry, piece)));
        let ends = flow.ends(scope, run.threads, pieces);
        let mut conversion = Conversion { plan, file, how, run, largest: HashMap::new() };
        let mut effects = Vec::with_capacity(plan.steps.len());
        for ((index, step), done) in plan.steps.iter().enumerate().zip(&done) {
            if let Some(effect) = done {
                advance(step.bytes_before, &step.name)?;
                effects.push(*effect);
                continue;
            }
            let started = Instant::now();
            let effect = conversion.step(index, step, &ends, advance)?;
            effects.push(Effect { seconds: started.elapsed().as_secs_f64(), ..effect });
        }
        for (step, hash) in ends.finish()? {
            effects[step].sha256 = Some(hash);
        }
        Ok(effects)
    })
}

/// What is read of the tensor of a step, in its order.
fn pieces<'f>(file: &'f Checkpoint, entry: &'f Entry, step: &Step, block: usize) -> Box<dyn Iterator<Item = Piece> + Send + 'f> {
    match &step.action {
        Action::Keep(_) => Box::new(flow::bytes(file, entry)),
        Action::Cast(..) if entry.layout().is_none() => Box::new(flow::bytes(file, entry)),
        Action::Cast(..) | Action::Dequantize => Box::new(flow::rows(cut(entry, None), entry, block)),
        _ => Box::new(flow::rows(cut(entry, step.layout.as_ref()), entry, block)),
    }
}

/// The tensor of a step, on its way from the old file to the new one.
struct Passage<'a, 'e, 'f> {
    entry: &'a Entry,
    /// What is read of it, in its order.
    pieces: Box<dyn Iterator<Item = Piece> + Send + 'a>,
    /// The first of the new file's tensors that the step makes.
    first: usize,
    ends: &'a Ends<'e, 'f>,
    run: &'a Run<'a>,
}

impl Conversion<'_> {
    fn step(&mut self, index: usize, step: &Step, ends: &Ends, advance: Progress) -> std::result::Result<Effect, Failure> {
        let largest = self.shared_largest(step)?;
        let Conversion { plan, file, how, run, .. } = *self;
        let entry = &file.entries()[index];
        let advance = &mut |bytes| advance(bytes, &entry.name);
        let of_tensor = |error| {
            let of_values =
                matches!(error, Error::NonFinite { .. } | Error::ScaleOverflow { .. } | Error::Lossy { .. } | Error::Value { .. });
            Failure { tensor: of_values.then(|| entry.name.clone()), error }
        };
        file.check_once(entry)?;
        let passage = Passage { entry, pieces: pieces(file, entry, step, how.block), first: step.first, ends, run };
        let (mut tensors, mut tail, mut effect) = (plan.tensors_of(index), Vec::new(), Effect::default());
        match &step.action {
            Action::Keep(_) => passage.copy(advance)?,
            Action::Refuse(_) => unreachable!("a plan that refuses a tensor is not carried out"),
            &Action::Cast(dtype, _) if entry.layout().is_some() => passage.dequantize(dtype, advance)?,
            &Action::Cast(dtype, _) => passage.cast(dtype, advance).map_err(of_tensor)?,
            Action::Dequantize => passage.dequantize(step.dtype, advance)?,
            Action::Quantize | Action::Repack | Action::Requantize => {
                let layout = step.layout.as_ref().expect("a step that quantizes has a layout");
                let mut rewrite = Rewrite { file, passage, layout, repack: step.action == Action::Repack, largest, how, tail: Vec::new() };
                effect = rewrite.blocks(advance).map_err(of_tensor)?;
                let constants = if file.container().folder().is_some() { family::constants(layout, entry.dtype) } else { Vec::new() };
                let place = step.first + layout.spec.parts.len();
                let constants = constants.into_iter().enumerate();
                ends.write(constants.map(|(index, constant)| (place + index, Share::piece(0, constant.len()), constant)).collect())?;
                // What is hashed are the parts, as whoever opens the file reads them.
                tail = rewrite.tail;
                tensors.end = place - usize::from(!tail.is_empty());
            }
        }
        ends.whole(index, tensors, tail)?;
        Ok(effect)
    }

    /// The largest magnitude of all weights that share the second level of their scales with that of `step`; `None` where it has its own.
    fn shared_largest(&mut self, step: &Step) -> Result<Option<f32>> {
        let shared = |step: &Step| {
            self.file.container().folder()?;
            family::sharing(&step.name, step.layout.as_ref()?)
        };
        let is_anew = |step: &Step| matches!(step.action, Action::Quantize | Action::Requantize);
        let Some(common) = is_anew(step).then(|| shared(step)).flatten() else { return Ok(None) };
        if let Some(&known) = self.largest.get(&common) {
            return Ok(Some(known));
        }
        let mut all = 0.0f32;
        for (entry, other) in self.file.entries().iter().zip(&self.plan.steps) {
            if is_anew(other) && shared(other).as_ref() == Some(&common) {
                all = all.max(largest(self.file, entry, (self.how.block, self.run))?);
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
pub(in crate::files) fn largest(file: &Checkpoint, entry: &Entry, (block, run): (usize, &Run)) -> Result<f32> {
    let (mut parts, mut scratch, mut largest) = (Vec::new(), Vec::new(), 0.0f32);
    for (first, count) in cut(entry, None).blocks(&entry.shape, block) {
        file.read_rows(entry, first, count, &mut parts)?;
        let rows = Rows::of(entry, count, &parts);
        largest = largest.max(engine::largest(&rows.source(&mut scratch, run)?, run)?);
    }
    Ok(largest)
}

impl Passage<'_, '_, '_> {
    /// Copy what the entry lies in.
    fn copy(self, advance: Advance) -> Result<()> {
        for piece in self.pieces {
            let mut block = self.ends.next(self.entry, piece)?;
            let Piece::Bytes(part, offset, len) = piece else { unreachable!("what is copied is read as bytes") };
            self.ends.write(vec![(self.first + part, Share::piece(offset, len), mem::take(&mut block.parts[0]))])?;
            advance(block.read)?;
            self.ends.done(block);
        }
        Ok(())
    }

    /// Store a plain tensor as floats of another dtype.
    fn cast(self, dtype: StoredDtype, advance: Advance) -> Result<()> {
        let from = self.entry.dtype.float().expect("only floats are cast");
        let to = dtype.float().expect("to floats");
        let _ieee = Ieee::enter();
        let mut floats = Vec::new();
        for piece in self.pieces {
            let block = self.ends.next(self.entry, piece)?;
            let Piece::Bytes(_, offset, len) = piece else { unreachable!("what is cast is read as bytes") };
            let len = len / from.size();
            floats.resize(len, 0.0);
            Source::from_bytes(&block.parts[0], from, &[len]).load(self.run.level, 0, &mut floats);
            if to == Dtype::F16
                && let Some(beyond) = floats.iter().find(|x| f16::from_f32(**x).is_infinite() && x.is_finite())
            {
                return Err(Error::value("an element", beyond.to_string(), "float16 reaches 65504: keep the tensor out with exclude"));
            }
            let mut bytes = self.ends.buffer(len * to.size());
            Sink::from_bytes(&mut bytes, to, &[len]).store(self.run.level, 0, &floats);
            let start = offset / from.size() as u64 * to.size() as u64;
            self.ends.write(vec![(self.first, Share::piece(start, bytes.len()), bytes)])?;
            advance(block.read)?;
            self.ends.done(block);
        }
        Ok(())
    }

    /// Decode a quantized tensor to `dtype`.
    fn dequantize(self, dtype: StoredDtype, advance: Advance) -> Result<()> {
        let layout = self.entry.layout().expect("only quantized tensors are planned to be decoded");
        let dtype = dtype.float().expect("tensors are decoded to floats");
        let row = rows::lengths(&self.entry.shape).0 * dtype.size();
        for piece in self.pieces {
            let block = self.ends.next(self.entry, piece)?;
            let Piece::Rows(first, count) = piece else { unreachable!("what is decoded is read as rows") };
            let layout = rows::layout_of(layout, count);
            let views: Vec<&[u8]> = block.parts.iter().map(Vec::as_slice).collect();
            let mut decoded = self.ends.buffer(count * row);
            engine::dequantize(&layout, &views, Sink::from_bytes(&mut decoded, dtype, &layout.shape), self.run)?;
            self.ends.write(vec![(self.first, Share::piece((first * row) as u64, decoded.len()), decoded)])?;
            advance(block.read)?;
            self.ends.done(block);
        }
        Ok(())
    }
}

/// A tensor that is written in the format `layout`.
struct Rewrite<'a, 'e, 'f> {
    file: &'a Checkpoint,
    passage: Passage<'a, 'e, 'f>,
    layout: &'a Layout,
    /// Whether it keeps the values of the format that it is in.
    repack: bool,
    /// The largest magnitude of all that share the second level of its scales.
    largest: Option<f32>,
    how: &'a How,
    /// The bytes of the part that the new file has in a text.
    tail: Vec<u8>,
}

impl Rewrite<'_, '_, '_> {
    /// Convert block by block, measure and write.
    fn blocks(&mut self, advance: Advance) -> Result<Effect> {
        let Rewrite { file, layout, how, passage: Passage { entry, ends, run, .. }, .. } = *self;
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
        let weights = how.scales.weights(entry)?;
        let mut effect = Effect { errors: Some(Sums::default()), ..Effect::default() };
        if self.is_searched() {
            effect.weights = how.scales.named(weights.is_some());
        }
        // Elements that are not finite are counted to the end: how many, and the first.
        let mut not_finite: Option<(u64, Vec<usize>, f64)> = None;
        let (mut scratch, mut floats) = (Scratch::default(), Vec::new());
        while let Some(piece) = self.passage.pieces.next() {
            let block = ends.next(entry, piece)?;
            let Piece::Rows(first, count) = piece else { unreachable!("what is quantized is read as rows") };
            let mut made = Quantized::zeroed(rows::layout_of(layout, count))?;
            let before = Rows::of(entry, count, &block.parts);
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
                ends.write(self.places(made, first, count))?;
            }
            advance(block.read)?;
            ends.done(block);
        }
        if all == 0 {
            let made = Quantized::zeroed(layout.clone())?;
            ends.write(self.places(made, 0, 0))?;
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
        weights: Option<&Weights>,
        (first, count): (usize, usize),
        made: &mut Quantized,
    ) -> Result<Outcome> {
        let Quantized { layout, parts } = made;
        let mut slices: Vec<&mut [u8]> = parts.iter_mut().map(Vec::as_mut_slice).collect();
        let (mut scratch, columns) = (Vec::new(), rows::lengths(&layout.shape).0);
        let rows = weights.map(|weights| (weights, weights.rows(first, count, columns, &mut scratch)));
        let importance = rows.as_ref().map_or(Importance::Magnitude, |(weights, rows)| weights.importance(rows));
        let method = match self.how.scales {
            _ if !self.is_searched() => Method::Nearest,
            Scales::Nearest => Method::Nearest,
            Scales::Searched { fast: true, .. } => Method::Fast(importance),
            Scales::Searched { clip_limit: Some(limit), .. } => Method::Clipped(importance, limit),
            Scales::Searched { .. } => Method::Optimal(importance),
        };
        engine::quantize_sharing(source, layout, method, self.largest, self.how.nonfinite, &mut slices, self.passage.run)
    }

    /// Where the rows of each part belong, and with the first of them the parts that the tensor has once.
    fn places(&mut self, made: Quantized, first: usize, count: usize) -> Vec<Made> {
        let in_folder = self.file.container().folder().is_some();
        if in_folder && let Some(index) = family::in_text(self.layout) {
            self.tail.clone_from(&made.parts[index]);
        }
        let place = |(index, mut part): (usize, Vec<u8>)| {
            let tensor = self.passage.first + index;
            if in_folder {
                part = family::stored(self.layout, self.passage.entry.dtype, index, part);
            }
            match rows::share(self.layout, index, first, count) {
                Some(share) => Some((tensor, share, part)),
                None if first > 0 => None,
                None if self.layout.spec.parts[index].extent == Extent::Lengths => {
                    let lengths: Vec<u8> = self.layout.shape.iter().flat_map(|&length| (length as i64).to_le_bytes()).collect();
                    Some((tensor, Share::piece(0, lengths.len()), lengths))
                }
                None => Some((tensor, Share::piece(0, part.len()), part)),
            }
        };
        made.parts.into_iter().enumerate().filter_map(place).collect()
    }

    /// Why the tensor as a whole cannot keep its values.
    fn repack_whole(&self) -> Error {
        let repacked = || {
            let from = self.passage.entry.layout().expect("only quantized tensors are repacked");
            let loaded = self.file.load(self.passage.entry)?;
            let parts: Vec<&[u8]> = loaded.iter().map(Vec::as_slice).collect();
            let mut made = Quantized::zeroed(self.layout.clone())?;
            let mut slices: Vec<&mut [u8]> = made.parts.iter_mut().map(Vec::as_mut_slice).collect();
            engine::repack(from, &parts, self.layout, &mut slices, self.passage.run)
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
