//! From one file to another: which tensors are quantized is planned from the header alone, then every tensor is streamed.
//!
//! A tensor is quantized if it is of float16, bfloat16, float32 or float64, has two axes or more, and a last axis that holds at
//! least one group (whole ones only, where the format needs that). Everything else is copied byte for byte, and the plan says why.
//! Tensors are read, converted and written a block of rows at a time, each while the blocks beside it are. The parts of a tensor are stored as [`super::checkpoint`] describes.
//!
//! A GGUF file becomes a GGUF file, a folder of Hugging Face a folder, anything else a safetensors file, or an npz file if it is called
//! so. The readers of GGUF expect some tensors to stay floats and all others to be of the type that was asked for: there `gguf::llama` says which are kept, vectors become
//! float32, and a tensor that its format does not take refuses the job, unless a [`Fallback`] was asked for. A mixture asks for several
//! formats. In a folder `folder::modules` says which are quantized, `folder::family` how they are stored, and a weight that the format
//! does not take refuses the job too.
//!
//! | module | what |
//! |---|---|
//! | `choice` | what happens to one tensor |
//! | `work` | doing it |
//! | `importance` | what errors are weighted with, where scales are searched for |
//! | `flow` | reading ahead of the work, and writing behind it |
//! | `assembly` | putting parts together whose rows lie in many pieces |

mod assembly;
mod choice;
mod flow;
mod importance;
mod work;

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::checkpoint::{Checkpoint, Entry, KEY, part_tensors, write_scheme};
use super::folder::output::{Contents, FolderWriter};
use super::folder::{self, family, modules};
use super::gguf::image::{self, Image};
use super::gguf::mixture::Mixture;
use super::gguf::split::SplitWriter;
use super::gguf::{self, Key, llama};
use super::input::Input;
use super::journal::{Journaled, Past};
use super::output::{FileWriter, Hash, Output, TensorWriter};
use super::rows::{self, BLOCK_ELEMENTS, Cut, ELEMENT_BYTES, Share};
use super::workshop::Workshop;
use super::{Container, StoredDtype, Tensor, glob, is_named, npz, safetensors, shown};
use crate::engine::{NonFinite, Run, Sums};
use crate::error::{Error, Result};
use crate::layout::{Layout, Options};
use crate::spec::{GroupSize, Spec};
use choice::{Convention, Rules};
pub(super) use work::largest;

/// What is wanted of the tensors that are selected.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// This format.
    Format(&'static Spec, Options),
    /// The formats that llama.cpp's quantizer chooses for this, in a GGUF file.
    Mixture(&'static Mixture),
    /// Floats: of this dtype, or of that which a quantized tensor had before.
    Floats(Option<StoredDtype>),
}

/// What a matrix of a GGUF file becomes whose rows the blocks of its format do not divide.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// What llama.cpp's quantizer makes of it: another format, or float16.
    Llama,
    /// This format.
    Format(&'static Spec),
}

/// How weights are quantized.
pub struct How {
    /// What becomes of elements that are not finite.
    pub nonfinite: NonFinite,
    /// How scales are chosen.
    pub scales: Scales,
    /// What of the work is done.
    pub work: Work,
    /// Elements that are in memory at a time, if the tensor can be cut between rows: not those of the layouts that pair rows far apart or
    /// have one group.
    pub block: usize,
    /// Bytes in memory to put parts together in that are stored `[in, out]`; those that do not fit are written piece by piece.
    pub room: usize,
}

impl Default for How {
    fn default() -> How {
        How { nonfinite: NonFinite::Raise, scales: Scales::Nearest, work: Work::Once, block: BLOCK_ELEMENTS, room: 0 }
    }
}

/// What of a job is in memory at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// See [`How::block`].
    pub block: usize,
    /// See [`How::room`].
    pub room: usize,
    /// The bytes that tensors then take.
    pub peak: u64,
}

/// What of its work a job does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// All; where it ends early nothing is left.
    #[default]
    Once,
    /// All but what an earlier job of the same fingerprint has left, shards of a folder and tensors of a file; what is done stays where it
    /// ends early.
    Rest,
    /// These shards of a folder, beside other jobs that do others.
    Shards(Vec<usize>),
    /// What a folder needs when all its shards are done: index, config, side files and its name.
    Finish,
}

/// How scales are chosen.
#[derive(Default)]
pub enum Scales {
    /// By the rule of the format's home project.
    #[default]
    Nearest,
    /// Those of the smallest error, or of a small one that is found `fast`. The errors of a tensor are weighted by what the file of
    /// importance, if there is one, has under its name: one number for each of its columns, or for each of its elements. Where there is
    /// none they are weighted by magnitude.
    Searched {
        /// What weights errors.
        importance: Option<Checkpoint>,
        /// Whether it is enough that the error is small.
        fast: bool,
        /// How far elements may be cut, as a part of the largest magnitude of their group, where it is not enough.
        clip_limit: Option<f32>,
    },
}

/// Bytes of a shard of a folder where nothing else is asked for, as huggingface_hub has it.
pub const SHARD_SIZE: u64 = 5_000_000_000;

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
    /// What selected tensors become, in place of what is wanted of all: the first that matches decides.
    pub rules: Vec<Rule>,
    /// What a matrix becomes that its format does not take.
    pub fallback: Option<Fallback>,
    /// Whether a quantized tensor whose values the format cannot hold goes through floats; else it refuses the job.
    pub requantize: bool,
    /// The GGUF file that another file becomes.
    pub image: Option<Image>,
}

/// What tensors of some names become.
#[derive(Clone, Debug)]
pub struct Rule {
    /// The pattern of the names.
    pub pattern: String,
    /// The format; `None`: they are kept as they are.
    pub format: Option<(&'static Spec, Options)>,
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
    first: usize,
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

/// What a step did to the values of its tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effect {
    /// Errors of the quantized values against the original ones; `None` where nothing was quantized.
    pub errors: Option<Sums>,
    /// Elements that were not finite and were replaced.
    pub replaced: u64,
    /// What errors were weighted with in the search for scales, if there was one: `magnitude` or `importance`.
    pub weights: Option<&'static str>,
    /// Hash of the bytes that the tensor has in the new file, part after part; `None` in shards that an earlier job wrote, or another does.
    pub sha256: Option<Hash>,
    /// How long it took.
    pub seconds: f64,
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
        how: &How,
        run: &Run,
        advance: &mut dyn FnMut(u64, &str) -> Result<()>,
    ) -> std::result::Result<Vec<Effect>, Failure> {
        let mut steps = file.entries().iter().zip(&self.steps);
        if let Some((entry, step)) = steps.find(|(_, step)| matches!(step.action, Action::Refuse(_))) {
            return Err(choice::refusal(entry, step));
        }
        self.check_name(path)?;
        let workshop = match self.head {
            Head::Folder(_) => None,
            _ => self.workshop(&file, path, overwrite, how)?,
        };
        let mut writer: Box<dyn TensorWriter + Send + '_> = match (&self.head, &workshop) {
            (Head::Folder(contents), _) => {
                let fingerprint = if how.work == Work::Once { String::new() } else { self.fingerprint(&file, how) };
                Box::new(FolderWriter::create(path, contents, &how.work, &fingerprint)?)
            }
            (_, Some(workshop)) => {
                let past = Past::read(workshop)?;
                let writer = self.file_writer(path, overwrite || past.is_named(), Some(workshop.path()))?;
                let steps = (0..self.steps.len()).map(|step| self.tensors_of(step));
                Box::new(Journaled::new(writer, workshop, &past, steps, || advance(0, "what an earlier job left"))?)
            }
            (_, None) => self.file_writer(path, overwrite, None)?,
        };
        let done = work::convert(self, &file, &mut *writer, how, run, advance);
        let effects = done.inspect_err(|_| writer.leave())?;
        // On some systems a file that is open cannot be replaced, and the new file may take the old one's name.
        drop(file);
        writer.finish()?;
        workshop.map_or(Ok(()), Workshop::remove)?;
        Ok(effects)
    }

    /// Where a file is made, or several, if that can be taken up.
    fn workshop(&self, file: &Checkpoint, path: &Path, overwrite: bool, how: &How) -> Result<Option<Workshop>> {
        match how.work {
            Work::Once => Ok(None),
            Work::Rest => {
                Output::target(&self.made(path), overwrite)?;
                // Beside the file itself where `path` is a link to it, on the same disk.
                let target = fs::canonicalize(path).unwrap_or(path.to_path_buf());
                Workshop::open(&target, &self.fingerprint(file, how), &how.work, |_| true).map(Some)
            }
            Work::Shards(_) | Work::Finish => {
                Err(Error::value("the new file", "one file", "a folder can be made in parts: a file is made at once"))
            }
        }
    }

    /// Begin the file, or several; see [`Output::begin`].
    fn file_writer<'a>(&'a self, path: &Path, overwrite: bool, workshop: Option<&'a Path>) -> Result<Box<dyn FileWriter + Send + 'a>> {
        let output = || Output::begin(path, overwrite, workshop);
        Ok(match &self.head {
            Head::Named(metadata) if is_named(path, "npz") => Box::new(npz::create(output()?, &self.tensors, metadata)?),
            Head::Named(metadata) => Box::new(safetensors::create(output()?, &self.tensors, metadata)?),
            Head::Gguf(keys, Some(parts)) => Box::new(SplitWriter::create(path, overwrite, workshop, parts, keys)?),
            Head::Gguf(keys, None) => Box::new(gguf::create(output()?, &self.tensors, keys)?),
            Head::Folder(_) => unreachable!("a folder is no file"),
        })
    }

    /// The new file's tensors that a step makes.
    fn tensors_of(&self, step: usize) -> Range<usize> {
        self.steps[step].first..self.steps.get(step + 1).map_or(self.tensors.len(), |next| next.first)
    }

    /// What a job is told by: what it reads, what it makes of it, how, and who does it. Machines that share a job may see the files under
    /// other paths and times.
    pub fn fingerprint(&self, file: &Checkpoint, how: &How) -> String {
        let is_shared = matches!(how.work, Work::Shards(_) | Work::Finish);
        let read = |file: &Checkpoint| {
            let stamp =
                |input: &&Input| (input.path().file_name().map(OsStr::to_owned), input.length(), input.changed().filter(|_| !is_shared));
            let stamps: Vec<_> = file.container().inputs().iter().map(stamp).collect();
            format!("{stamps:?}\n{:?}", file.container().tensors())
        };
        let scales = match &how.scales {
            Scales::Nearest => "nearest".to_string(),
            Scales::Searched { importance, fast, clip_limit } => {
                format!("searched {fast} {clip_limit:?} {:?}", importance.as_ref().map(read))
            }
        };
        let version = env!("CARGO_PKG_VERSION");
        let Plan { steps, tensors, head } = self;
        let head = match head {
            Head::Folder(Contents { shards, metadata, texts, side_files, source: _ }) => {
                let shards: Vec<usize> = shards.iter().map(Vec::len).collect();
                format!("{shards:?} {metadata:?} {texts:?} {side_files:?}")
            }
            head => format!("{head:?}"),
        };
        let step = |Step { name, dtype, action, layout, .. }: &Step| {
            let layout = layout.as_ref().map(|layout| {
                let Layout { spec, shape, group_size, scale_dtype, global_scale } = layout;
                format!("{} {:?} {shape:?} {group_size:?} {scale_dtype:?} {global_scale:?}", spec.name, spec.choice)
            });
            format!("{name:?} {dtype:?} {action:?} {layout:?}\n")
        };
        let steps: String = steps.iter().map(step).collect();
        let (read, nonfinite) = (read(file), how.nonfinite);
        format!("{version}\n{read}\n{steps}{tensors:?}\n{head}\n{nonfinite:?} {scales}\n")
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

    /// The name of the new file must not promise another container.
    fn check_name(&self, path: &Path) -> Result<()> {
        let (others, is): (&[&str], _) = match self.head {
            Head::Named(_) => (&["gguf", "npy"], "one that ends in .safetensors or .npz"),
            Head::Gguf(..) => (&["safetensors", "npy", "npz"], "one that ends in .gguf"),
            Head::Folder(_) => (&["safetensors", "gguf", "npy", "npz"], "that of a folder"),
        };
        if matches!(self.head, Head::Folder(_)) && is_named(path, "gguf") {
            return Err(Error::value("the name of the new file", shown(&path.to_string_lossy()), image::LANGUAGE));
        }
        if others.iter().any(|other| is_named(path, other)) {
            let expected = format!(
                "expected {is}: safetensors, npy and npz files become safetensors or npz, models of images GGUF with arch; others stay what they are"
            );
            return Err(Error::value("the name of the new file", shown(&path.to_string_lossy()), expected));
        }
        Ok(())
    }
}

impl Selection {
    /// Every pattern and name must mean something: one that fits no tensor is most likely misspelt.
    fn check(&self, file: &Checkpoint) -> Result<()> {
        let names = || file.entries().iter().map(|entry| entry.name.as_str());
        let rules: Vec<String> = self.rules.iter().map(|rule| rule.pattern.clone()).collect();
        for (argument, patterns) in [("include", &self.include), ("exclude", &self.exclude), ("a rule", &rules)] {
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

    /// The rule that decides about a tensor, if it is selected.
    fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| glob::matches(&rule.pattern, name))
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
