//! Doing what a plan says, tensor by tensor.

use std::collections::HashMap;

use half::f16;

use super::{Action, Effect, Failure, How, Plan, Scales, Step};
use crate::element::{Dtype, Sink, Source};
use crate::engine::{self, Importance, Method, Run};
use crate::error::{Error, Result};
use crate::files::checkpoint::{Advance, BLOCK, Checkpoint, Entry};
use crate::files::compare::{Values, blocks, errors, rows};
use crate::files::folder::{family, modules};
use crate::files::output::TensorWriter;
use crate::files::{StoredDtype, shown};
use crate::layout::Layout;
use crate::simd::ieee::Ieee;
use crate::tensor::Quantized;

/// The end of the name under which an importance matrix of llama.cpp has the sums of squares of a tensor's inputs.
const SUMS_OF_SQUARES: &str = ".in_sum2";

impl Scales {
    /// What the errors of a tensor are weighted with: the tensor of the file, read.
    fn weights(&self, name: &str) -> Result<Option<(&Entry, Vec<u8>)>> {
        let Scales::Optimal(Some(file)) = self else { return Ok(None) };
        let names = [name.to_string(), format!("{name}{SUMS_OF_SQUARES}")];
        let Some(entry) = file.entries().iter().find(|entry| names.contains(&entry.name)) else { return Ok(None) };
        if entry.dtype.float().is_none() || entry.layout().is_some() {
            let argument = format!("importance of tensor {}", shown(name));
            return Err(Error::dtype(argument, entry.dtype.name(), "floats"));
        }
        let loaded = file.load(entry, &mut |_| Ok(()))?;
        Ok(loaded.into_iter().next().map(|bytes| (entry, bytes)))
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
        let largest = self.shared_largest(step)?;
        let Conversion { file, writer, how, run, .. } = self;
        let entry = &file.entries()[index];
        let advance = &mut |bytes| advance(bytes, &entry.name);
        let mut write = |part: usize, offset: u64, bytes: &[u8]| writer.write(step.first + part, offset, bytes);
        match &step.action {
            Action::Keep(_) => copy(file, entry, advance, &mut write)?,
            Action::Dequantize => dequantize(file, entry, step.dtype, run, advance, &mut write)?,
            Action::Refuse(_) => unreachable!("a plan that refuses a tensor is not carried out"),
            &Action::Cast(dtype, _) => {
                let loaded = file.load(entry, advance)?;
                let [data] = &loaded[..] else { unreachable!("a plain tensor lies in one piece") };
                cast(entry, data, dtype, run, &mut write)?;
            }
            Action::Quantize | Action::Repack | Action::Requantize => {
                let layout = step.layout.as_ref().expect("a step that quantizes has a layout");
                let loaded = file.load(entry, advance)?;
                let parts: Vec<&[u8]> = loaded.iter().map(Vec::as_slice).collect();
                let done = match (entry.layout(), &step.action) {
                    (Some(from), Action::Repack) => repack(entry, (from, parts), layout, run),
                    (Some(from), _) => {
                        let mut floats = Vec::new();
                        decode((from, &parts), Dtype::F32, run, &mut |_, block| {
                            floats.extend_from_slice(block);
                            Ok(())
                        })?;
                        quantize(entry, (Dtype::F32, &floats), layout, largest, how, run)
                    }
                    (None, _) => {
                        let dtype = entry.dtype.float().expect("only floats are planned to be quantized");
                        quantize(entry, (dtype, parts[0]), layout, largest, how, run)
                    }
                };
                let (quantized, effect) = done.map_err(|error| {
                    let of_values = matches!(error, Error::NonFinite { .. } | Error::ScaleOverflow { .. } | Error::Lossy { .. });
                    Failure { tensor: of_values.then(|| entry.name.clone()), error }
                })?;
                let constants = if file.container().folder().is_some() { family::constants(layout, entry.dtype) } else { Vec::new() };
                for (index, part) in quantized.parts.iter().chain(&constants).enumerate() {
                    write(index, 0, part)?;
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
        let mut largest = 0.0f32;
        for (entry, other) in self.file.entries().iter().zip(&self.plan.steps) {
            if is_anew(other) && shared(other).as_ref() == Some(&common) {
                let loaded = self.file.load(entry, &mut |_| Ok(()))?;
                let parts: Vec<&[u8]> = loaded.iter().map(Vec::as_slice).collect();
                let mut look = |dtype: Dtype, bytes: &[u8]| {
                    let elements = [bytes.len() / dtype.size()];
                    engine::largest(&Source::from_bytes(bytes, dtype, &elements), self.run).map(|found| largest = largest.max(found))
                };
                match entry.layout() {
                    Some(layout) => decode((layout, &parts), Dtype::F32, self.run, &mut |_, block| look(Dtype::F32, block))?,
                    None => look(entry.dtype.float().expect("only floats are planned to be quantized"), parts[0])?,
                }
            }
        }
        self.largest.insert(common, largest);
        Ok(Some(largest))
    }
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

/// Store a plain tensor's `data` as floats of another dtype, block by block.
fn cast(entry: &Entry, data: &[u8], dtype: StoredDtype, run: &Run, write: WritePart) -> std::result::Result<(), Failure> {
    let from = entry.dtype.float().expect("only floats are cast");
    let to = dtype.float().expect("to floats");
    let source = Source::from_bytes(data, from, &entry.shape);
    let _ieee = Ieee::enter();
    let (mut floats, mut bytes) = (Vec::new(), Vec::new());
    for start in (0..source.len()).step_by(BLOCK) {
        let len = BLOCK.min(source.len() - start);
        floats.resize(len, 0.0);
        source.load(run.level, start, &mut floats);
        if to == Dtype::F16
            && let Some(beyond) = floats.iter().find(|x| f16::from_f32(**x).is_infinite() && x.is_finite())
        {
            let error = Error::value("an element", beyond.to_string(), "float16 reaches 65504: keep the tensor out with exclude");
            return Err(Failure { tensor: Some(entry.name.clone()), error });
        }
        bytes.resize(len * to.size(), 0);
        Sink::from_bytes(&mut bytes, to, &[len]).store(run.level, 0, &floats);
        write(0, (start * to.size()) as u64, &bytes)?;
    }
    Ok(())
}

/// The same values in another format.
fn repack(entry: &Entry, (from, parts): (&Layout, Vec<&[u8]>), to: &Layout, run: &Run) -> Result<(Quantized, Effect)> {
    let mut quantized = Quantized::zeroed(to.clone())?;
    let mut slices: Vec<&mut [u8]> = quantized.parts.iter_mut().map(Vec::as_mut_slice).collect();
    engine::repack(from, &parts, to, &mut slices, run)?;
    let values = Values::Quantized(to, quantized.views());
    let errors = errors(&entry.shape, &Values::Quantized(from, parts), &values, run)?;
    Ok((quantized, Effect { errors: Some(errors), ..Effect::default() }))
}

/// The parts of a plain tensor's `data`, and how far they are from it.
fn quantize(
    entry: &Entry,
    (dtype, data): (Dtype, &[u8]),
    layout: &Layout,
    largest: Option<f32>,
    how: &How,
    run: &Run,
) -> Result<(Quantized, Effect)> {
    let mut quantized = Quantized::zeroed(layout.clone())?;
    let mut slices: Vec<&mut [u8]> = quantized.parts.iter_mut().map(Vec::as_mut_slice).collect();
    let source = Source::from_bytes(data, dtype, &entry.shape);
    let weights = how.scales.weights(&entry.name)?;
    let importance = weights.as_ref().map(|(weights, bytes)| {
        let dtype = weights.dtype.float().expect("it was looked at");
        Source::from_bytes(bytes, dtype, &weights.shape)
    });
    let method = match (&how.scales, &importance) {
        (Scales::Nearest, _) => Method::Nearest,
        (Scales::Optimal(_), Some(weights)) => Method::Optimal(Importance::Array(weights)),
        (Scales::Optimal(_), None) => Method::Optimal(Importance::Magnitude),
    };
    let outcome = engine::quantize_sharing(&source, layout, method, largest, how.nonfinite, &mut slices, run)?;
    let values = Values::Quantized(layout, quantized.views());
    let errors = errors(&entry.shape, &Values::Plain(dtype, data), &values, run)?;
    let weights = match method {
        Method::Nearest => None,
        Method::Optimal(Importance::Array(_)) => Some("importance"),
        Method::Optimal(_) => Some("magnitude"),
    };
    Ok((quantized, Effect { errors: Some(errors), replaced: outcome.replaced, weights }))
}

/// Decode a quantized tensor to `dtype`, block by block.
fn dequantize(file: &Checkpoint, entry: &Entry, dtype: StoredDtype, run: &Run, advance: Advance, write: WritePart) -> Result<()> {
    let layout = entry.layout().expect("only quantized tensors are planned to be decoded");
    let dtype = dtype.float().expect("tensors are decoded to floats");
    let loaded = file.load(entry, advance)?;
    let parts: Vec<&[u8]> = loaded.iter().map(Vec::as_slice).collect();
    decode((layout, &parts), dtype, run, &mut |offset, block| write(0, offset, block))
}

/// The values of a quantized tensor, block by block: from which byte on, the bytes.
fn decode((layout, parts): (&Layout, &[&[u8]]), dtype: Dtype, run: &Run, write: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
    let row = layout.shape.last().map_or(1, |&columns| columns) * dtype.size();
    let mut decoded = Vec::new();
    for (first, count) in blocks(&layout.shape, !layout.spec.is_by_rows()) {
        let (block, parts) = rows(layout, parts, first, count);
        decoded.resize(count * row, 0);
        engine::dequantize(&block, &parts, Sink::from_bytes(&mut decoded, dtype, &block.shape), run)?;
        write((first * row) as u64, &decoded)?;
    }
    Ok(())
}
