//! What will be done, from the header alone: a pure function.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::choice::{self, Convention, Rules};
use super::job::Memory;
use super::selection::Selection;
use super::{Fallback, SHARD_SIZE, Target, work};
use crate::error::{Error, Result};
use crate::files::checkpoint::{Checkpoint, Entry, KEY, part_tensors, write_scheme};
use crate::files::folder::output::Contents;
use crate::files::folder::{self, family, modules};
use crate::files::gguf::split::SplitWriter;
use crate::files::gguf::{self, Key, image, llama};
use crate::files::rows::{self, BLOCK_ELEMENTS, Cut, ELEMENT_BYTES, Share};
use crate::files::{Container, StoredDtype, Tensor, shown};
use crate::layout::{Layout, Options};
use crate::spec::{GroupSize, Spec};

/// What happens to each tensor of a file, and what the new file will hold.
#[derive(Debug)]
pub struct Plan {
    /// One step for each entry of the file, in its order.
    pub steps: Vec<Step>,
    pub(super) tensors: Vec<Tensor>,
    pub(super) head: Head,
}

/// What the new file says besides its tensors, as its container says it.
#[derive(Debug)]
pub(super) enum Head {
    /// The free text of a safetensors file, or of an npz file where the new file is called so.
    Named(BTreeMap<String, String>),
    /// Its keys, and the tensors of each file where there may be several.
    Gguf(Vec<Key>, Option<Vec<Vec<Tensor>>>),
    Folder(Contents),
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
    pub wanted: Option<(&'static Spec, Options)>,
    /// Why that is not what most tensors become, where it is not.
    pub why: Option<String>,
    /// The pattern of the rule that decided, if one did.
    pub rule: Option<String>,
    /// Bytes that it takes in the old file.
    pub bytes_before: u64,
    /// Bytes that it takes in the new file.
    pub bytes_after: u64,
    /// The first of the new file's tensors that the step makes; it makes them in a row.
    pub(super) first: usize,
    /// How the tensor is cut, so that a part of it is in memory at a time.
    cut: Cut,
}

/// What can happen to a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Copied as it is, for this reason.
    Keep(String),
    /// Quantized.
    Quantize,
    /// Quantized before, and now in another format with the same values.
    Repack,
    /// Quantized before, and now anew from the values that it had, which changes them.
    Requantize,
    /// Decoded to its dtype before.
    Dequantize,
    /// Stored as floats of this dtype, for this reason.
    Cast(StoredDtype, String),
    /// The job cannot be done, for this reason.
    Refuse(String),
}

impl Step {
    /// Bytes of the parts that are put together in memory where the tensor is cut into blocks of so many elements.
    fn assembled(&self, block: usize) -> usize {
        let Some(layout) = &self.layout else { return 0 };
        let (first, count) = self.cut.blocks(&self.shape, block).next().unwrap_or((0, 0));
        let shares = (0..layout.spec.parts.len()).filter_map(|part| rows::share(layout, part, first, count));
        shares.filter(|share| share.pieces > 1).map(Share::span).sum()
    }
}

impl Plan {
    /// Plan what happens to the tensors of `file`.
    ///
    /// # Errors
    ///
    /// Those of [`Layout::new`] for options that the format does not take; [`Error::Value`] for a pattern or name that fits no
    /// tensor, for a part that would take the name of another tensor, for a format that the container has no type for, and for a folder that is quantized in a way that is not read; those of looking for the files
    /// that are copied with a folder.
    pub fn new(file: &Checkpoint, target: Target, selection: &Selection) -> Result<Plan> {
        if let Target::Format(spec, options) = target {
            // An option that the format does not take is a fault whatever the file holds. Every format takes a matrix of nothing.
            Layout::new(spec, &[0, 0], options)?;
        }
        let container = file.container();
        let (is_gguf, folder) = (container.container() == "gguf" || selection.image.is_some(), container.folder());
        check_container(file, target, selection)?;
        selection.check(file)?;
        let rules = Rules {
            convention: Convention::of(container, target, selection.image.is_some()),
            fallback: selection.fallback,
            requantize: selection.requantize,
        };
        let wishes = choice::wishes(file, target)?;

        let mut steps = Vec::with_capacity(file.entries().len());
        let mut tensors = Vec::new();
        for (entry, wish) in file.entries().iter().zip(wishes) {
            let left_out = selection.leaves_out(&entry.name);
            let rule = if left_out.is_none() { selection.rule(&entry.name) } else { None };
            let wish = match rule.and_then(|rule| rule.format) {
                Some((spec, options)) => Some(choice::Wish { spec, options, why: None }),
                None => wish,
            };
            let kept_by_rule = rule.filter(|rule| rule.format.is_none()).map(|rule| format!("kept by rule {}", shown(&rule.pattern)));
            let kept = left_out.or(kept_by_rule).or_else(|| factor_beside(entry, target, selection, file));
            let (action, layout) = match kept {
                Some(_) if folder.is_some() && entry.layout().is_some() => left_out_of_folder(target)?,
                Some(reason) => (Action::Keep(reason), entry.layout().cloned()),
                None => choice::action(entry, wish.as_ref(), rules),
            };
            let is_made = matches!(action, Action::Quantize | Action::Repack | Action::Requantize | Action::Refuse(_));
            let wish = wish.filter(|_| is_made || matches!(action, Action::Cast(StoredDtype::F16, _)));
            let name = selection.image.as_ref().map_or(entry.name.as_str(), |image| image.name(&entry.name));
            let plain = |dtype| Tensor { name: name.into(), dtype, shape: entry.shape.clone() };
            let first = tensors.len();
            match (&action, &layout) {
                (Action::Quantize | Action::Repack | Action::Requantize, Some(layout)) => match folder {
                    _ if is_gguf => tensors.push(plain(gguf::dtype(layout.spec)?)),
                    Some(_) => tensors.extend(family::tensors(&entry.name, layout, entry.dtype)),
                    None => tensors.extend(part_tensors(&entry.name, layout)),
                },
                (Action::Dequantize, _) => tensors.push(plain(dequantized(entry, target))),
                (&Action::Cast(dtype, _), _) => tensors.push(plain(dtype)),
                // Blocks that lie in another file as bytes have a type here.
                (_, Some(layout)) if is_gguf => tensors.push(plain(gguf::dtype(layout.spec)?)),
                _ if selection.image.is_some() => tensors.push(plain(entry.dtype)),
                _ => tensors.extend(file.stored(entry).map(|(_, tensor)| tensor.clone())),
            }
            let cut = work::cut(entry, layout.as_ref());
            steps.push(Step {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                dtype: if action == Action::Dequantize { dequantized(entry, target) } else { entry.dtype },
                why: wish.as_ref().and_then(|wish| wish.why(entry, layout.as_ref())),
                rule: rule.map(|rule| rule.pattern.clone()),
                action,
                layout,
                wanted: wish.map(|wish| (wish.spec, wish.options)),
                bytes_before: file.bytes(entry),
                bytes_after: tensors[first..].iter().map(Tensor::bytes).sum(),
                first,
                cut,
            });
        }
        refuse_taken_names(&tensors)?;

        let head = if let Some(folder) = folder {
            Head::Folder(contents(folder, target, &steps)?)
        } else if is_gguf {
            let is_new = |step: &Step| !matches!(step.action, Action::Keep(_)) || selection.image.is_some() && step.layout.is_some();
            let changed = steps.iter().any(is_new);
            let file_type = changed.then(|| file_type(target)).transpose()?;
            let keys = match &selection.image {
                Some(image) => image.keys(file_type),
                None => llama::keys(container.keys(), file_type),
            };
            Head::Gguf(keys, None)
        } else {
            let mut metadata = container.metadata().clone();
            metadata.remove(KEY);
            let mut quantized = steps.iter().filter_map(|step| Some((step.name.as_str(), step.layout.as_ref()?, step.dtype))).peekable();
            if quantized.peek().is_some() {
                metadata.insert(KEY.into(), write_scheme(quantized));
            }
            Head::Named(metadata)
        };
        let mut plan = Plan { steps, tensors, head };
        if folder.is_some() {
            plan.shard(SHARD_SIZE);
        }
        Ok(plan)
    }

    /// Cut a folder, or a GGUF file, into shards of at most `size` bytes; a tensor that is larger has one of its own. Other files have no
    /// shards.
    pub fn shard(&mut self, size: u64) {
        let of_steps = folder::output::shards(self.steps.iter().map(|step| step.bytes_after), size);
        let mut shards = vec![Vec::new(); of_steps.last().map_or(1, |last| last + 1)];
        let ends = self.steps.iter().skip(1).map(|step| step.first).chain([self.tensors.len()]);
        for ((step, end), shard) in self.steps.iter().zip(ends).zip(of_steps) {
            shards[shard].extend_from_slice(&self.tensors[step.first..end]);
        }
        match &mut self.head {
            Head::Folder(contents) => contents.shards = shards,
            Head::Gguf(_, parts) => *parts = (shards.len() > 1).then_some(shards),
            Head::Named(_) => {}
        }
    }

    /// What will be there when the plan is carried out for `path`: that, or of a model in several files the first.
    pub fn made(&self, path: &Path) -> PathBuf {
        match &self.head {
            Head::Gguf(_, Some(parts)) => SplitWriter::path_of(path, 0, parts.len()),
            _ => path.to_path_buf(),
        }
    }

    /// What may be in memory at a time where all may take `limit` bytes.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] names the first tensor that cannot be cut and takes more.
    pub fn within(&self, limit: u64) -> Result<Memory> {
        let block = usize::try_from(limit / ELEMENT_BYTES).unwrap_or(BLOCK_ELEMENTS).clamp(1, BLOCK_ELEMENTS);
        let streamed = || self.steps.iter().filter(|step| !matches!(step.action, Action::Keep(_) | Action::Cast(..)));
        let of_block = |step: &Step| step.cut.largest(&step.shape, block) as u64 * ELEMENT_BYTES;
        if let Some(step) = streamed().find(|step| of_block(step) > limit) {
            let bytes = of_block(step);
            let least = format!("tensor {} takes {bytes} bytes, and cannot be cut further in its format", shown(&step.name));
            return Err(Error::value("memory_limit", format!("{limit} bytes"), least));
        }
        let blocks = streamed().map(of_block).max().unwrap_or(0);
        let room = usize::try_from(limit - blocks).unwrap_or(usize::MAX);
        let assembled = streamed().map(|step| step.assembled(block)).max().unwrap_or(0);
        Ok(Memory { block, room, peak: blocks + assembled.min(room) as u64 })
    }

    /// The new file's tensors that a step makes.
    pub(super) fn tensors_of(&self, step: usize) -> Range<usize> {
        self.steps[step].first..self.steps.get(step + 1).map_or(self.tensors.len(), |next| next.first)
    }

    /// The names of the shards of a folder, and the one that each step writes to; `None` for a file.
    pub fn shards(&self) -> Option<(Vec<String>, Vec<usize>)> {
        let Head::Folder(contents) = &self.head else { return None };
        let names = (0..contents.shards.len()).map(|shard| contents.shard_name(shard)).collect();
        let mut ends = Vec::with_capacity(contents.shards.len());
        for shard in &contents.shards {
            ends.push(ends.last().unwrap_or(&0) + shard.len());
        }
        let shard_of = |step: &Step| ends.partition_point(|&end| end <= step.first).min(ends.len() - 1);
        Some((names, self.steps.iter().map(shard_of).collect()))
    }
}

/// Whether the container takes what is wanted.
fn check_container(file: &Checkpoint, target: Target, selection: &Selection) -> Result<()> {
    let is_gguf = file.container().container() == "gguf";
    if let Some(method) = file.unread() {
        return Err(Error::value("the folder", format!("quantized by {method}"), "that is not among the formats that are read"));
    }
    for rule in &selection.rules {
        let Some((spec, options)) = rule.format else { continue };
        Layout::new(spec, &[0, 0], options)?;
        match target {
            Target::Format(wanted, _) if file.container().folder().is_some() && wanted.name != spec.name => {
                let expected = format!("config.json names one format for the whole folder, here {}", wanted.name);
                return Err(Error::value("a rule", spec.name, expected));
            }
            _ if is_gguf => drop(gguf::dtype(spec)?),
            _ => {}
        }
    }
    if let Some(image) = &selection.image {
        if file.container().folder().is_some() {
            return Err(Error::value("the source", "a folder", image::LANGUAGE));
        }
        if is_gguf {
            return Err(Error::value("arch", "given", "the source is a GGUF file, which says itself what it is"));
        }
        image.check(file)?;
    }
    match (target, selection.fallback) {
        (Target::Floats(_), _) if !selection.rules.is_empty() => {
            Err(Error::value("a rule", shown(&selection.rules[0].pattern), "floats are wanted: give no rules"))
        }
        (Target::Mixture(mixture), _) if !is_gguf => {
            Err(Error::value("format", mixture.name, "a mixture of llama.cpp is for GGUF files; formats() lists what any file takes"))
        }
        (_, Some(_)) if !is_gguf => Err(Error::value("fallback", "given", "it is for GGUF files")),
        (Target::Floats(_), Some(_)) => Err(Error::value("fallback", "given", "floats fit any tensor")),
        (_, Some(Fallback::Format(spec))) => gguf::dtype(spec).map(drop),
        (Target::Format(spec, _), _) if file.container().folder().is_some() => family::check(spec),
        _ => Ok(()),
    }
}

/// The kinds of quantized weights that a folder holds, that of most modules first.
fn kinds(steps: &[Step]) -> Result<Vec<family::Kind>> {
    let mut kinds: Vec<family::Kind> = Vec::new();
    let mut computed_together: HashMap<String, (usize, &str)> = HashMap::new();
    for step in steps.iter().filter(|step| !matches!(step.action, Action::Refuse(_))) {
        let (Some(layout), Some(module)) = (&step.layout, family::module_of(&step.name)) else { continue };
        let is_of = |kind: &family::Kind| std::ptr::eq(kind.spec, layout.spec) && kind.group_size == layout.group_size;
        let at = kinds.iter().position(is_of).unwrap_or_else(|| {
            kinds.push(family::Kind { spec: layout.spec, group_size: layout.group_size, modules: Vec::new() });
            kinds.len() - 1
        });
        kinds[at].modules.push(module.into());
        if let Some(group) = modules::fused(&step.name) {
            let (first, name) = *computed_together.entry(group).or_insert((at, &step.name));
            if first != at {
                let found = format!("not quantized as that of {}", shown(name));
                return Err(Error::value(
                    format!("tensor {}", shown(&step.name)),
                    found,
                    "readers compute both together: give them one rule",
                ));
            }
        }
    }
    kinds.sort_by_key(|kind| std::cmp::Reverse(kind.modules.len()));
    Ok(kinds)
}

/// What happens to a quantized weight of a folder that is not selected: a folder holds one format, and floats.
fn left_out_of_folder(target: Target) -> Result<(Action, Option<Layout>)> {
    match target {
        Target::Format(..) | Target::Mixture(_) => Ok((Action::Dequantize, None)),
        Target::Floats(_) => Err(Error::value("include, exclude or keep", "given", "a folder is decoded whole: leave them out")),
    }
}

/// The dtype that a quantized tensor is decoded to.
fn dequantized(entry: &Entry, target: Target) -> StoredDtype {
    match target {
        Target::Floats(Some(dtype)) => dtype,
        _ => entry.dtype,
    }
}

/// What the new folder has besides the tensors' bytes.
fn contents(folder: &folder::Folder, target: Target, steps: &[Step]) -> Result<Contents> {
    let mut metadata = folder.metadata().clone();
    metadata.insert("format".into(), "pt".into());
    let mut texts = Vec::new();
    let mut config = family::floats(folder.config());
    if let Target::Format(spec, options) = target {
        if family::is_mlx(spec) {
            metadata.insert("format".into(), "mlx".into());
        }
        let kept = |step: &Step| {
            let float_matrix = step.layout.is_none() && step.dtype.float().is_some() && step.shape.len() == 2;
            float_matrix.then(|| family::module_of(&step.name)).flatten().map(String::from)
        };
        let kept: Vec<String> = steps.iter().filter_map(kept).collect();
        let mut kinds = kinds(steps)?;
        if kinds.is_empty() {
            let group_size = options.group_size.unwrap_or(GroupSize::Elements(spec.group_sizes.default()));
            kinds.push(family::Kind { spec, group_size, modules: Vec::new() });
        }
        let described = family::describe(folder.config(), &kinds, &kept)?;
        config = described.config;
        texts.extend(described.files);
    } else if let Target::Floats(Some(dtype)) = target {
        for key in ["dtype", "torch_dtype"] {
            config.entry(key).and_modify(|before| *before = dtype.name().into());
        }
    }
    texts.push((folder::CONFIG, config.into()));
    Ok(Contents { shards: Vec::new(), metadata, texts, source: folder.path().to_path_buf(), side_files: folder.side_files()? })
}

/// The number by which a GGUF file says what its weights became.
fn file_type(target: Target) -> Result<u32> {
    Ok(match target {
        Target::Floats(_) => llama::file_type(StoredDtype::F32),
        Target::Format(spec, _) => llama::file_type(gguf::dtype(spec)?),
        Target::Mixture(mixture) => mixture.file_type,
    })
}

/// Why a tensor is not decoded although it could be: in GGUF the factor of an NVFP4 tensor `x.weight` may be another tensor, `x.scale`.
fn factor_beside(entry: &Entry, target: Target, selection: &Selection, file: &Checkpoint) -> Option<String> {
    let decodes = matches!(target, Target::Floats(_)) || selection.requantize;
    let is_nvfp4 = decodes && entry.layout().is_some_and(|layout| layout.spec.name == "gguf:nvfp4");
    let scale = is_nvfp4.then(|| entry.name.strip_suffix(".weight"))??.to_string() + ".scale";
    let found = file.entries().iter().any(|other| other.name == scale);
    found.then(|| format!("{} has its factor, which decoding does not apply", shown(&scale)))
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
