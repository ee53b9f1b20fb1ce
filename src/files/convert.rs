//! From one file to another: which tensors are quantized is planned from the header alone, then every tensor is streamed.
//!
//! A tensor is quantized if it is of float16, bfloat16, float32 or float64, has two axes or more, and a last axis that holds at
//! least one group (whole ones only, where the format needs that). Everything else is copied byte for byte, and the plan says why.
//! At most one tensor is in memory at a time. The parts of a tensor are stored as [`super::checkpoint`] describes.
//!
//! A GGUF file becomes a GGUF file, anything else a safetensors file. The readers of GGUF expect some tensors to stay floats and all
//! others to be of the type that was asked for: there `gguf::llama` says which are kept, vectors become float32, and a tensor that
//! its format does not take refuses the job, unless a [`Fallback`] was asked for. A mixture asks for several formats.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use half::f16;

use super::checkpoint::{Advance, BLOCK, Checkpoint, Entry, KEY, part_tensors, write_scheme};
use super::compare::{Values, blocks, errors, rows};
use super::gguf::mixture::{self, Mixture, Part};
use super::gguf::{self, Key, llama};
use super::output::{Output, Writer};
use super::{StoredDtype, Tensor, buffer, glob, is_named, safetensors, shown};
use crate::element::{Dtype, Sink, Source};
use crate::engine::{self, NonFinite, Run, Sums};
use crate::error::{Error, Result};
use crate::formats;
use crate::layout::{Layout, Options};
use crate::simd::ieee::Ieee;
use crate::spec::{GroupSize, GroupSizes, Spec};
use crate::tensor::Quantized;

/// What is wanted of the tensors that are selected.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// This format.
    Format(&'static Spec, Options),
    /// The formats that llama.cpp's quantizer chooses for this, in a GGUF file.
    Mixture(&'static Mixture),
    /// The dtype that a quantized tensor had before.
    Floats,
}

/// What a matrix of a GGUF file becomes whose rows the blocks of its format do not divide.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// What llama.cpp's quantizer makes of it: another format, or float16.
    Llama,
    /// This format.
    Format(&'static Spec),
}

/// Which tensors are selected, by their names, and what becomes of those that their format does not take. With nothing given: all,
/// and such a one refuses the job.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Patterns: if there are any, only tensors that match one.
    pub include: Vec<String>,
    /// Patterns: no tensor that matches one.
    pub exclude: Vec<String>,
    /// Names that are not selected; each must be there.
    pub keep: Vec<String>,
    /// What a matrix becomes that its format does not take.
    pub fallback: Option<Fallback>,
    /// Whether what is quantized in another format is decoded and quantized again.
    pub requantize: bool,
}

/// What happens to each tensor of a file, and what the new file will hold.
#[derive(Debug)]
pub struct Plan {
    /// One step for each entry of the file, in its order.
    pub steps: Vec<Step>,
    tensors: Vec<Tensor>,
    head: Head,
}

/// What the new file says besides its tensors, as its container says it.
#[derive(Debug)]
enum Head {
    Safetensors(BTreeMap<String, String>),
    Gguf(Vec<Key>),
}

/// What happens to one tensor.
#[derive(Debug)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its dtype, or the one that it had before it was quantized.
    pub dtype: StoredDtype,
    /// What happens.
    pub action: Action,
    /// How it is quantized in the new file, if it is.
    pub layout: Option<Layout>,
    /// The format that was asked for, if one was: another than that of the layout where there was a fallback.
    pub wanted: Option<&'static Spec>,
    /// Why that is not what most tensors become, where it is not.
    pub why: Option<String>,
    /// Bytes that it takes in the old file.
    pub bytes_before: u64,
    /// Bytes that it takes in the new file.
    pub bytes_after: u64,
    /// The first of the new file's tensors that the step makes; it makes them in a row.
    first: usize,
}

/// What can happen to a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Copied as it is, for this reason.
    Keep(String),
    /// Quantized.
    Quantize,
    /// Decoded to its dtype before.
    Dequantize,
    /// Stored as floats of this dtype, for this reason.
    Cast(StoredDtype, String),
    /// The job cannot be done, for this reason.
    Refuse(String),
}

/// What a step did to the values of its tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effect {
    /// Errors of the quantized values against the original ones; `None` where nothing was quantized.
    pub errors: Option<Sums>,
    /// Elements that were not finite and were replaced.
    pub replaced: u64,
}

/// An error, and the tensor at hand when it came.
#[derive(Debug)]
pub struct Failure {
    /// The tensor, where the error is one of its values and not of the file.
    pub tensor: Option<String>,
    /// The error.
    pub error: Error,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { tensor: None, error }
    }
}

impl Plan {
    /// Plan what happens to the tensors of `file`.
    ///
    /// # Errors
    ///
    /// Those of [`Layout::new`] for options that the format does not take; [`Error::Value`] for a pattern or name that fits no
    /// tensor, for a part that would take the name of another tensor, for a format that the container has no type for and for one
    /// file of a split model.
    pub fn new(file: &Checkpoint, target: Target, selection: &Selection) -> Result<Plan> {
        if let Target::Format(spec, options) = target {
            // An option that the format does not take is a fault whatever the file holds. Every format takes a matrix of nothing.
            Layout::new(spec, &[0, 0], options)?;
        }
        let is_gguf = file.container().container() == "gguf";
        check_container(target, selection, is_gguf)?;
        llama::refuse_split(file.container().keys())?;
        selection.check(file)?;
        let wishes = wishes(file, target)?;

        let mut steps = Vec::with_capacity(file.entries().len());
        let mut tensors = Vec::new();
        for (entry, wish) in file.entries().iter().zip(wishes) {
            let (action, layout) = match selection.leaves_out(&entry.name).or_else(|| factor_beside(entry, target, selection, file)) {
                Some(reason) => (Action::Keep(reason), entry.layout().cloned()),
                None => action(entry, wish.as_ref(), selection, is_gguf),
            };
            let is_made = matches!(action, Action::Quantize | Action::Refuse(_));
            let wish = wish.filter(|_| is_made || matches!(action, Action::Cast(StoredDtype::F16, _)));
            let plain = |dtype| Tensor { name: entry.name.clone(), dtype, shape: entry.shape.clone() };
            let first = tensors.len();
            match (&action, &layout) {
                (Action::Quantize, Some(layout)) if is_gguf => tensors.push(plain(gguf::dtype(layout.spec)?)),
                (Action::Quantize, Some(layout)) => tensors.extend(part_tensors(&entry.name, layout)),
                (Action::Dequantize, _) => tensors.push(plain(entry.dtype)),
                (&Action::Cast(dtype, _), _) => tensors.push(plain(dtype)),
                _ => tensors.extend(file.stored(entry).map(|(_, tensor)| tensor.clone())),
            }
            // Of a fallback the reason is that of the format that was wanted.
            let fell_back = |wish: &&Wish| layout.as_ref().is_some_and(|layout| layout.spec.name != wish.spec.name);
            let why = match wish.as_ref().filter(fell_back) {
                Some(wish) => self::layout(entry, wish.spec, wish.options).err().map(|error| error.to_string()),
                None => wish.as_ref().and_then(|wish| wish.why.clone()),
            };
            steps.push(Step {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                dtype: entry.dtype,
                action,
                layout,
                wanted: wish.as_ref().map(|wish| wish.spec),
                why,
                bytes_before: file.bytes(entry),
                bytes_after: tensors[first..].iter().map(Tensor::bytes).sum(),
                first,
            });
        }
        refuse_taken_names(&tensors)?;

        let head = if is_gguf {
            let changed = steps.iter().any(|step| !matches!(step.action, Action::Keep(_)));
            let file_type = changed.then(|| file_type(target)).transpose()?;
            Head::Gguf(llama::keys(file.container().keys(), file_type))
        } else {
            let mut metadata = file.container().metadata().clone();
            metadata.remove(KEY);
            let mut quantized = steps.iter().filter_map(|step| Some((step.name.as_str(), step.layout.as_ref()?, step.dtype))).peekable();
            if quantized.peek().is_some() {
                metadata.insert(KEY.into(), write_scheme(quantized));
            }
            Head::Safetensors(metadata)
        };
        Ok(Plan { steps, tensors, head })
    }

    /// Carry the plan out: write the file `path`, which appears when it is whole.
    ///
    /// `advance` hears of every few MiB of `file` that are done and of the tensor at hand, and can stop the work. The answer
    /// has one effect for each step.
    ///
    /// # Errors
    ///
    /// Those of reading and writing, of the engine and of `advance`; that of the first step that refuses; [`Error::Value`] for a path
    /// that ends as a file of another container. Nothing is then left of the new file.
    pub fn run(
        &self,
        file: Checkpoint,
        path: &Path,
        overwrite: bool,
        nonfinite: NonFinite,
        run: &Run,
        advance: &mut dyn FnMut(u64, &str) -> Result<()>,
    ) -> std::result::Result<Vec<Effect>, Failure> {
        if let Some(step) = self.steps.iter().find(|step| matches!(step.action, Action::Refuse(_))) {
            return Err(refusal(step));
        }
        self.check_name(path)?;
        let output = Output::create(path, overwrite)?;
        let writer = match &self.head {
            Head::Safetensors(metadata) => safetensors::create(output, &self.tensors, metadata)?,
            Head::Gguf(keys) => gguf::create(output, &self.tensors, keys)?,
        };
        let mut conversion = Conversion { file, writer, nonfinite, run };
        let mut effects = Vec::with_capacity(self.steps.len());
        for (index, step) in self.steps.iter().enumerate() {
            effects.push(conversion.step(index, step, advance)?);
        }
        let Conversion { file, writer, .. } = conversion;
        // On some systems a file that is open cannot be replaced, and the new file may take the old one's name.
        drop(file);
        writer.finish()?;
        Ok(effects)
    }

    /// The name of the new file must not promise another container.
    fn check_name(&self, path: &Path) -> Result<()> {
        let (is, other) = match self.head {
            Head::Safetensors(_) => ("safetensors", "gguf"),
            Head::Gguf(_) => ("gguf", "safetensors"),
        };
        if is_named(path, other) {
            let expected = format!("expected one that ends in .{is}: a file stays in its container, an npy file becomes safetensors");
            return Err(Error::value("the name of the new file", shown(&path.to_string_lossy()), expected));
        }
        Ok(())
    }
}

impl Selection {
    /// Every pattern and name must mean something: one that fits no tensor is most likely misspelt.
    fn check(&self, file: &Checkpoint) -> Result<()> {
        let names = || file.entries().iter().map(|entry| entry.name.as_str());
        for (argument, patterns) in [("include", &self.include), ("exclude", &self.exclude)] {
            if let Some(pattern) = patterns.iter().find(|pattern| !names().any(|name| glob::matches(pattern, name))) {
                return Err(Error::value(argument, shown(pattern), "no tensor of the file matches it"));
            }
        }
        match self.keep.iter().find(|kept| !names().any(|name| name == *kept)) {
            Some(kept) => Err(Error::value("keep", shown(kept), "no tensor of the file has that name")),
            None => Ok(()),
        }
    }

    /// The reason why a tensor is not selected.
    fn leaves_out(&self, name: &str) -> Option<String> {
        let matching = |patterns: &'_ [String]| patterns.iter().find(|pattern| glob::matches(pattern, name)).cloned();
        if self.keep.iter().any(|kept| kept == name) {
            Some("kept by name".into())
        } else if let Some(pattern) = matching(&self.exclude) {
            Some(format!("excluded by {}", shown(&pattern)))
        } else if !self.include.is_empty() && matching(&self.include).is_none() {
            Some("not included".into())
        } else {
            None
        }
    }
}

/// Whether the container takes what is wanted.
fn check_container(target: Target, selection: &Selection, is_gguf: bool) -> Result<()> {
    match (target, selection.fallback) {
        (Target::Mixture(mixture), _) if !is_gguf => {
            Err(Error::value("format", mixture.name, "a mixture of llama.cpp is for GGUF files; formats() lists what any file takes"))
        }
        (_, Some(_)) if !is_gguf => Err(Error::value("fallback", "given", "it is for GGUF files; in others such a tensor is kept")),
        (Target::Floats, Some(_)) => Err(Error::value("fallback", "given", "floats fit any tensor")),
        (_, Some(Fallback::Format(spec))) => gguf::dtype(spec).map(drop),
        _ => Ok(()),
    }
}

/// What is asked of a matrix.
#[derive(Clone)]
struct Wish {
    spec: &'static Spec,
    options: Options,
    /// Why it is not what is asked of most.
    why: Option<String>,
}

/// What is asked of each entry, should it be a matrix; `None` where floats are wanted.
fn wishes(file: &Checkpoint, target: Target) -> Result<Vec<Option<Wish>>> {
    let entries = file.entries();
    let mixture = match target {
        Target::Floats => return Ok(vec![None; entries.len()]),
        Target::Format(spec, options) => return Ok(vec![Some(Wish { spec, options, why: None }); entries.len()]),
        Target::Mixture(mixture) => mixture,
    };
    // The mixture counts what the quantizer would take, also where the selection leaves it out.
    let is_taken = |entry: &Entry| entry.shape.len() > 1 && llama::spares(&entry.name, &entry.shape).is_none();
    let plain = |entry: &Entry| Tensor { name: entry.name.clone(), dtype: entry.dtype, shape: entry.shape.clone() };
    let taken: Vec<Tensor> = entries.iter().filter(|entry| is_taken(entry)).map(plain).collect();
    let mut parts = mixture.parts(file.container().keys(), &taken)?.into_iter();
    let wish = |entry: &Entry| {
        let most = || Part { dtype: mixture.default, why: None };
        let Part { dtype, why } = if is_taken(entry) { parts.next().expect("a part for each") } else { most() };
        let name = gguf::format(dtype).expect("a mixture is made of formats");
        Ok(Some(Wish { spec: formats::find(name)?.spec(), options: Options::default(), why: why.map(String::from) }))
    };
    entries.iter().map(wish).collect()
}

/// The number by which a GGUF file says what its weights became.
fn file_type(target: Target) -> Result<u32> {
    Ok(match target {
        Target::Floats => llama::file_type(StoredDtype::F32),
        Target::Format(spec, _) => llama::file_type(gguf::dtype(spec)?),
        Target::Mixture(mixture) => mixture.file_type,
    })
}

/// What happens to a tensor that is selected, and how it is then quantized. Without a wish it becomes floats.
fn action(entry: &Entry, wish: Option<&Wish>, selection: &Selection, is_gguf: bool) -> (Action, Option<Layout>) {
    let keep = |reason: String| (Action::Keep(reason), entry.layout().cloned());
    let Some(Wish { spec, options, .. }) = wish else {
        return if entry.layout().is_some() { (Action::Dequantize, None) } else { keep("not quantized".into()) };
    };
    let stays = |layout: &&Layout| !selection.requantize || layout.spec.name == spec.name;
    if let Some(layout) = entry.layout().filter(stays) {
        return keep(format!("already {}", layout.spec.name));
    }
    if is_gguf && is_vector(entry) && matches!(entry.dtype, StoredDtype::F16 | StoredDtype::Bf16) {
        return (Action::Cast(StoredDtype::F32, "a vector or norm, which llama.cpp reads as float32".into()), None);
    }
    if let Some(reason) = no_matrix(entry).or_else(|| is_gguf.then(|| llama::spares(&entry.name, &entry.shape)).flatten()) {
        return keep(reason);
    }
    match layout(entry, spec, *options).map_err(|error| error.to_string()) {
        Ok(layout) => (Action::Quantize, Some(layout)),
        Err(reason) if is_gguf => fall_back(entry, spec, selection.fallback, reason),
        Err(reason) => keep(reason),
    }
}

/// Whether llama.cpp needs a tensor of floats in float32.
fn is_vector(entry: &Entry) -> bool {
    entry.shape.len() < 2 || entry.name.contains("_norm.weight")
}

/// What a matrix becomes that `spec` does not take, for this reason.
fn fall_back(entry: &Entry, spec: &Spec, fallback: Option<Fallback>, reason: String) -> (Action, Option<Layout>) {
    let columns = entry.shape.last().map_or(1, |&columns| columns as u64);
    let next = match fallback {
        None => None,
        Some(Fallback::Llama) => gguf::dtype(spec).ok().and_then(|dtype| mixture::fallback(dtype, columns)),
        Some(Fallback::Format(spec)) => gguf::dtype(spec).ok(),
    };
    let Some(dtype) = next else { return (Action::Refuse(reason), None) };
    let Some(name) = gguf::format(dtype) else { return (Action::Cast(dtype, reason), None) };
    match formats::find(name).and_then(|format| layout(entry, format.spec(), Options::default())) {
        Ok(layout) => (Action::Quantize, Some(layout)),
        Err(error) => (Action::Refuse(format!("{reason}, and the fallback: {error}")), None),
    }
}

/// The error of a step that refuses.
fn refusal(step: &Step) -> Failure {
    let spec = step.wanted.expect("only what was asked for is refused");
    let error = match Layout::new(spec, &step.shape, Options::default()) {
        Err(Error::Shape { argument, found, expected }) => {
            let advice = "keep the tensor out with exclude, name a fallback, or choose another format";
            Error::Shape { argument, found, expected: format!("{expected}: {advice}") }
        }
        other => unreachable!("a matrix of floats is refused for its shape, not {other:?}"),
    };
    Failure { tensor: Some(step.name.clone()), error }
}

/// Why a tensor is not decoded although it could be: in GGUF the factor of an NVFP4 tensor `x.weight` may be another tensor, `x.scale`.
fn factor_beside(entry: &Entry, target: Target, selection: &Selection, file: &Checkpoint) -> Option<String> {
    let decodes = matches!(target, Target::Floats) || selection.requantize;
    let is_nvfp4 = decodes && entry.layout().is_some_and(|layout| layout.spec.name == "gguf:nvfp4");
    let scale = is_nvfp4.then(|| entry.name.strip_suffix(".weight"))??.to_string() + ".scale";
    let found = file.entries().iter().any(|other| other.name == scale);
    found.then(|| format!("{} has its factor, which decoding does not apply", shown(&scale)))
}

/// Why a tensor is no matrix of floats, if it is none.
fn no_matrix(entry: &Entry) -> Option<String> {
    if entry.dtype.float().is_none() {
        Some(format!("{} is not quantized", entry.dtype.name()))
    } else if entry.shape.len() < 2 {
        Some(format!("{}-d; a matrix has 2 axes or more", entry.shape.len()))
    } else if entry.elements() == 0 {
        Some("no elements".into())
    } else {
        None
    }
}

/// How a matrix is quantized, or why it is not.
fn layout(entry: &Entry, spec: &'static Spec, options: Options) -> Result<Layout> {
    let scale_dtype = options.scale_dtype.or_else(|| spec.scale_dtype_of(entry.dtype.float()?));
    let layout = Layout::new(spec, &entry.shape, Options { scale_dtype, ..options })?;
    let columns = layout.columns();
    match (layout.group_size, spec.group_sizes) {
        (GroupSize::Elements(group), GroupSizes::Any { .. }) if columns < group => {
            Err(Error::shape("last axis", format!("has {columns} elements"), format!("a group has {group}")))
        }
        _ => Ok(layout),
    }
}

/// Two tensors of the new file may not have one name: `w.scales` of the old file and the scales of `w`.
fn refuse_taken_names(tensors: &[Tensor]) -> Result<()> {
    let mut names: Vec<&str> = tensors.iter().map(|tensor| tensor.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let expected = "two tensors of the new file would have that name: keep one of them out with exclude";
            Err(Error::value("the name of a part", shown(pair[0]), expected))
        }
        None => Ok(()),
    }
}

/// Writes bytes of one of the tensors that a step makes: which, from which byte of it on, the bytes.
type Write<'a> = &'a mut dyn FnMut(usize, u64, &[u8]) -> Result<()>;

/// A plan at work.
struct Conversion<'a> {
    file: Checkpoint,
    writer: Writer,
    nonfinite: NonFinite,
    run: &'a Run<'a>,
}

impl Conversion<'_> {
    fn step(
        &mut self,
        index: usize,
        step: &Step,
        advance: &mut dyn FnMut(u64, &str) -> Result<()>,
    ) -> std::result::Result<Effect, Failure> {
        let Conversion { file, writer, nonfinite, run } = self;
        let entry = &file.entries()[index];
        let advance = &mut |bytes| advance(bytes, &entry.name);
        let mut write = |part: usize, offset: u64, bytes: &[u8]| writer.write(step.first + part, offset, bytes);
        match &step.action {
            Action::Keep(_) => copy(file, entry, advance, &mut write)?,
            Action::Dequantize => dequantize(file, entry, run, advance, &mut write)?,
            Action::Refuse(_) => unreachable!("a plan that refuses a tensor is not carried out"),
            &Action::Cast(dtype, _) => {
                let loaded = file.load(entry, advance)?;
                let (data, from) = floats(entry, &loaded, run)?;
                cast(entry, &Source::from_bytes(&data, from, &entry.shape), dtype, run, &mut write)?;
            }
            Action::Quantize => {
                let layout = step.layout.as_ref().expect("a step that quantizes has a layout");
                let loaded = file.load(entry, advance)?;
                let (data, dtype) = floats(entry, &loaded, run)?;
                let (quantized, effect) = quantize(entry, &data, dtype, layout, *nonfinite, run).map_err(|error| {
                    let of_values = matches!(error, Error::NonFinite { .. } | Error::ScaleOverflow { .. });
                    Failure { tensor: of_values.then(|| entry.name.clone()), error }
                })?;
                for (index, part) in quantized.parts.iter().enumerate() {
                    write(index, 0, part)?;
                }
                return Ok(effect);
            }
        }
        Ok(Effect::default())
    }
}

/// Copy what an entry lies in, block by block.
fn copy(file: &Checkpoint, entry: &Entry, advance: Advance, write: Write) -> Result<()> {
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

/// The floats of an entry and their dtype: its own, or float32 of what is quantized.
fn floats<'a>(entry: &Entry, loaded: &'a [Vec<u8>], run: &Run) -> Result<(Cow<'a, [u8]>, Dtype)> {
    let Some(layout) = entry.layout() else {
        let [data] = loaded else { unreachable!("a plain tensor lies in one piece") };
        return Ok((Cow::Borrowed(data), entry.dtype.float().expect("a plan takes floats")));
    };
    let mut floats = buffer(4 * layout.elements() as u64, || format!("tensor {}", shown(&entry.name)))?;
    let parts: Vec<&[u8]> = loaded.iter().map(Vec::as_slice).collect();
    engine::dequantize(layout, &parts, Sink::from_bytes(&mut floats, Dtype::F32, &layout.shape), run)?;
    Ok((Cow::Owned(floats), Dtype::F32))
}

/// Store an entry's `source` as floats of another dtype, block by block.
fn cast(entry: &Entry, source: &Source<'_>, dtype: StoredDtype, run: &Run, write: Write) -> std::result::Result<(), Failure> {
    let to = dtype.float().expect("to floats");
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

/// The parts of an entry's floats, and how far they are from them.
fn quantize(entry: &Entry, data: &[u8], dtype: Dtype, layout: &Layout, nonfinite: NonFinite, run: &Run) -> Result<(Quantized, Effect)> {
    let mut quantized = Quantized::zeroed(layout.clone())?;
    let mut slices: Vec<&mut [u8]> = quantized.parts.iter_mut().map(Vec::as_mut_slice).collect();
    let outcome = engine::quantize(&Source::from_bytes(data, dtype, &entry.shape), layout, nonfinite, &mut slices, run)?;
    let values = Values::Quantized(layout, quantized.views());
    let errors = errors(&entry.shape, &Values::Plain(dtype, data), &values, run)?;
    Ok((quantized, Effect { errors: Some(errors), replaced: outcome.replaced }))
}

/// Decode a quantized tensor to the dtype that it had before, block by block.
fn dequantize(file: &Checkpoint, entry: &Entry, run: &Run, advance: Advance, write: Write) -> Result<()> {
    let layout = entry.layout().expect("only quantized tensors are planned to be decoded");
    let dtype = entry.dtype.float().expect("only floats are quantized");
    let loaded = file.load(entry, advance)?;
    let parts: Vec<&[u8]> = loaded.iter().map(Vec::as_slice).collect();
    let row = layout.shape.last().map_or(1, |&columns| columns) * dtype.size();
    let mut decoded = Vec::new();
    for (first, count) in blocks(&layout.shape, !layout.spec.is_by_rows()) {
        let (block, parts) = rows(layout, &parts, first, count);
        decoded.resize(count * row, 0);
        engine::dequantize(&block, &parts, Sink::from_bytes(&mut decoded, dtype, &block.shape), run)?;
        write(0, (first * row) as u64, &decoded)?;
    }
    Ok(())
}
