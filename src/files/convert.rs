//! From one file to another: which tensors are quantized is planned from the header alone, then every tensor is streamed.
//!
//! A tensor is quantized if it is of float16, bfloat16, float32 or float64, has two axes or more, and a last axis that holds at
//! least one group (whole ones only, where the format needs that). Everything else is copied byte for byte, and the plan says why.
//! At most one tensor is in memory at a time. The parts of a tensor are stored as [`super::checkpoint`] describes.
//!
//! A GGUF file becomes a GGUF file, a folder of Hugging Face a folder, anything else a safetensors file. The readers of GGUF expect some tensors to stay floats and all
//! others to be of the type that was asked for: there `gguf::llama` says which are kept, and a tensor that its format does not
//! take refuses the job. In a folder `folder::modules` says which are quantized, `folder::family` how they are stored, and a weight that
//! the format does not take refuses the job too.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::checkpoint::{Advance, BLOCK, Checkpoint, Entry, KEY, part_tensors, write_scheme};
use super::compare::{Values, blocks, errors, rows};
use super::folder::output::{Contents, FolderWriter};
use super::folder::{self, family, modules};
use super::gguf::{self, Key, llama};
use super::output::{Output, TensorWriter};
use super::{Container, StoredDtype, Tensor, glob, is_named, safetensors, shown};
use crate::element::{Dtype, Sink, Source};
use crate::engine::{self, Importance, Method, NonFinite, Run, Sums};
use crate::error::{Error, Result};
use crate::formats;
use crate::layout::{Layout, Options};
use crate::spec::{Choice, GroupSize, GroupSizes, Spec};
use crate::tensor::Quantized;

/// What is wanted of the tensors that are selected.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// This format.
    Format(&'static Spec, Options),
    /// Floats: of this dtype, or of that which a quantized tensor had before.
    Floats(Option<StoredDtype>),
}

/// How weights are quantized.
#[derive(Default)]
pub struct How {
    /// What becomes of elements that are not finite.
    pub nonfinite: NonFinite,
    /// How scales are chosen.
    pub scales: Scales,
}

/// How scales are chosen.
#[derive(Default)]
pub enum Scales {
    /// By the rule of the format's home project.
    #[default]
    Nearest,
    /// Those of the smallest error. The errors of a tensor are weighted by what the file, if there is one, has under its name: one
    /// number for each of its columns, or for each of its elements. Where there is none they are weighted by magnitude.
    Optimal(Option<Checkpoint>),
}

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

/// Bytes of a shard of a folder where nothing else is asked for, as huggingface_hub has it.
pub const SHARD_SIZE: u64 = 5_000_000_000;

/// Which tensors are selected, by their names. With nothing given: all.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// Patterns: if there are any, only tensors that match one.
    pub include: Vec<String>,
    /// Patterns: no tensor that matches one.
    pub exclude: Vec<String>,
    /// Names that are not selected; each must be there.
    pub keep: Vec<String>,
    /// Whether a quantized tensor whose values the format cannot hold goes through floats; else it refuses the job.
    pub requantize: bool,
}

/// What happens to each tensor of a file, and what the new file will hold.
#[derive(Debug)]
pub struct Plan {
    /// One step for each entry of the file, in its order.
    pub steps: Vec<Step>,
    target: Target,
    tensors: Vec<Tensor>,
    head: Head,
}

/// What the new file says besides its tensors, as its container says it.
#[derive(Debug)]
enum Head {
    Safetensors(BTreeMap<String, String>),
    Gguf(Vec<Key>),
    Folder(Contents),
}

/// What decides which tensors are quantized.
#[derive(Clone, Copy)]
enum Convention<'a> {
    /// Every matrix that holds a group.
    Matrices,
    /// Those that llama.cpp quantizes.
    Gguf,
    /// The linear layers of a model of this type, and its embeddings where that is usual; those that were quantized before, if any were.
    Folder { model_type: Option<&'a str>, embeddings: bool, quantized: bool },
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
    /// Quantized before, and now in another format with the same values.
    Repack,
    /// Quantized before, and now anew from the values that it had, which changes them.
    Requantize,
    /// Decoded to its dtype before.
    Dequantize,
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
    /// tensor, for a part that would take the name of another tensor, for a format that the container has no type for, for one
    /// file of a split model and for a folder that is quantized in a way that is not read; those of looking for the files
    /// that are copied with a folder.
    pub fn new(file: &Checkpoint, target: Target, selection: &Selection) -> Result<Plan> {
        if let Target::Format(spec, options) = target {
            // An option that the format does not take is a fault whatever the file holds. Every format takes a matrix of nothing.
            Layout::new(spec, &[0, 0], options)?;
        }
        let is_gguf = file.container().container() == "gguf";
        let folder = file.container().folder();
        if folder.is_some() {
            check_folder(file, target)?;
        }
        let convention = match (folder, target) {
            (Some(folder), Target::Format(spec, _)) => Convention::Folder {
                model_type: folder.config().get("model_type").and_then(|name| name.as_str()),
                embeddings: family::is_mlx(spec),
                quantized: family::method(folder.config()).is_some(),
            },
            _ if is_gguf => Convention::Gguf,
            _ => Convention::Matrices,
        };
        // What weights become, as a GGUF file has it.
        let dtype = match target {
            Target::Format(spec, _) if is_gguf => gguf::dtype(spec)?,
            _ => StoredDtype::F32,
        };
        llama::refuse_split(file.container().keys())?;
        selection.check(file)?;

        let mut steps = Vec::with_capacity(file.entries().len());
        let mut tensors = Vec::new();
        for entry in file.entries() {
            let (action, layout) = match selection.leaves_out(&entry.name).or_else(|| factor_beside(entry, target, file)) {
                Some(_) if folder.is_some() && entry.layout().is_some() => left_out_of_folder(target)?,
                Some(reason) => (Action::Keep(reason), entry.layout().cloned()),
                None => action(entry, target, convention, selection.requantize),
            };
            let plain = |dtype| Tensor { name: entry.name.clone(), dtype, shape: entry.shape.clone() };
            let first = tensors.len();
            match (&action, &layout) {
                (Action::Quantize | Action::Repack | Action::Requantize, Some(layout)) => match folder {
                    _ if is_gguf => tensors.push(plain(dtype)),
                    Some(_) => tensors.extend(family::tensors(&entry.name, layout, entry.dtype)),
                    None => tensors.extend(part_tensors(&entry.name, layout)),
                },
                (Action::Dequantize, _) => tensors.push(plain(dequantized(entry, target))),
                _ => tensors.extend(file.stored(entry).map(|(_, tensor)| tensor.clone())),
            }
            steps.push(Step {
                name: entry.name.clone(),
                shape: entry.shape.clone(),
                dtype: if action == Action::Dequantize { dequantized(entry, target) } else { entry.dtype },
                action,
                layout,
                bytes_before: file.bytes(entry),
                bytes_after: tensors[first..].iter().map(Tensor::bytes).sum(),
                first,
            });
        }
        refuse_taken_names(&tensors)?;

        let head = if let Some(folder) = folder {
            Head::Folder(contents(folder, target, &steps)?)
        } else if is_gguf {
            let changed = steps.iter().any(|step| !matches!(step.action, Action::Keep(_)));
            Head::Gguf(llama::keys(file.container().keys(), changed.then_some(dtype)))
        } else {
            let mut metadata = file.container().metadata().clone();
            metadata.remove(KEY);
            let mut quantized = steps.iter().filter_map(|step| Some((step.name.as_str(), step.layout.as_ref()?, step.dtype))).peekable();
            if quantized.peek().is_some() {
                metadata.insert(KEY.into(), write_scheme(quantized));
            }
            Head::Safetensors(metadata)
        };
        let mut plan = Plan { steps, target, tensors, head };
        plan.shard(SHARD_SIZE);
        Ok(plan)
    }

    /// Cut a folder into shards of at most `size` bytes; a tensor that is larger has one of its own. A file has no shards.
    pub fn shard(&mut self, size: u64) {
        let Head::Folder(contents) = &mut self.head else { return };
        let of_steps = folder::output::shards(self.steps.iter().map(|step| step.bytes_after), size);
        contents.shards = vec![Vec::new(); of_steps.last().map_or(1, |last| last + 1)];
        let ends = self.steps.iter().skip(1).map(|step| step.first).chain([self.tensors.len()]);
        for ((step, end), shard) in self.steps.iter().zip(ends).zip(of_steps) {
            contents.shards[shard].extend_from_slice(&self.tensors[step.first..end]);
        }
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
            return Err(self.refusal(entry, step));
        }
        self.check_name(path)?;
        let writer: Box<dyn TensorWriter + '_> = match &self.head {
            Head::Safetensors(metadata) => Box::new(safetensors::create(Output::create(path, overwrite)?, &self.tensors, metadata)?),
            Head::Gguf(keys) => Box::new(gguf::create(Output::create(path, overwrite)?, &self.tensors, keys)?),
            Head::Folder(contents) => Box::new(FolderWriter::create(path, contents)?),
        };
        let mut conversion = Conversion { plan: self, file, writer, how, run, largest: HashMap::new() };
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

    /// The error of a step that refuses.
    fn refusal(&self, entry: &Entry, step: &Step) -> Failure {
        let Target::Format(spec, options) = self.target else { unreachable!("floats fit any tensor") };
        if let Some(from) = entry.layout() {
            let again = again(from, spec, options).and_then(|to| engine::check_repack(from, &to));
            return Failure { tensor: Some(step.name.clone()), error: again.expect_err("the plan refused it") };
        }
        let error = match Layout::new(spec, &step.shape, options) {
            Err(Error::Shape { argument, found, expected }) => {
                let advice = "keep the tensor out with exclude, or choose another format";
                Error::Shape { argument, found, expected: format!("{expected}: {advice}") }
            }
            other => unreachable!("a matrix of floats is refused for its shape, not {other:?}"),
        };
        Failure { tensor: Some(step.name.clone()), error }
    }

    /// The name of the new file must not promise another container.
    fn check_name(&self, path: &Path) -> Result<()> {
        let (others, is): (&[&str], _) = match self.head {
            Head::Safetensors(_) => (&["gguf"], "one that ends in .safetensors"),
            Head::Gguf(_) => (&["safetensors"], "one that ends in .gguf"),
            Head::Folder(_) => (&["safetensors", "gguf", "npy"], "that of a folder"),
        };
        if others.iter().any(|other| is_named(path, other)) {
            let expected = format!("expected {is}: a file stays in its container, an npy file becomes safetensors");
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

/// Whether a folder can become what is wanted.
fn check_folder(file: &Checkpoint, target: Target) -> Result<()> {
    if let Some(method) = file.unread() {
        return Err(Error::value("the folder", format!("quantized by {method}"), "that is not among the formats that are read"));
    }
    if let Target::Format(spec, _) = target { family::check(spec) } else { Ok(()) }
}

/// The format and the group size of all weights of a folder, whose config has one place for both; `None` where nothing is quantized.
fn common(steps: &[Step]) -> Result<Option<(&'static Spec, GroupSize)>> {
    let mut found: Option<&Layout> = None;
    for layout in steps.iter().filter(|step| !matches!(step.action, Action::Refuse(_))).filter_map(|step| step.layout.as_ref()) {
        let first = *found.get_or_insert(layout);
        if first.group_size != layout.group_size {
            let sizes = format!("{} and {}", first.group_size, layout.group_size);
            return Err(Error::value("group_size", format!("not given, and the weights have {sizes}"), "a folder has one: give it"));
        }
        if !std::ptr::eq(first.spec, layout.spec) {
            let expected = "a folder has one kind: give symmetric=False";
            return Err(Error::value("symmetric", "not given, and some weights have zero points", expected));
        }
    }
    Ok(found.map(|layout| (layout.spec, layout.group_size)))
}

/// What happens to a quantized weight of a folder that is not selected: a folder holds one format, and floats.
fn left_out_of_folder(target: Target) -> Result<(Action, Option<Layout>)> {
    match target {
        Target::Format(..) => Ok((Action::Dequantize, None)),
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
        let (spec, group_size) = common(steps)?.unwrap_or((spec, GroupSize::Elements(spec.group_sizes.default())));
        let described = family::describe(folder.config(), spec, options.group_size.unwrap_or(group_size), &kept);
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

/// What happens to a tensor that is selected, and how it is then quantized.
fn action(entry: &Entry, target: Target, convention: Convention, requantize: bool) -> (Action, Option<Layout>) {
    let keep = |reason: String| (Action::Keep(reason), entry.layout().cloned());
    match (target, entry.layout()) {
        (Target::Floats(_), Some(_)) => (Action::Dequantize, None),
        (Target::Floats(_), None) => keep("not quantized".into()),
        (Target::Format(spec, options), Some(from)) => match (convention, again(from, spec, options)) {
            (Convention::Folder { model_type, embeddings, .. }, _) if modules::spares(entry, model_type, embeddings).is_some() => {
                (Action::Dequantize, None)
            }
            // In a folder a weight has more than its parts, which are written anew.
            (Convention::Matrices | Convention::Gguf, Ok(to)) if is_same(from, &to) => keep(format!("already {}", spec.name)),
            (_, Ok(to)) => match engine::check_repack(from, &to) {
                Ok(()) => (Action::Repack, Some(to)),
                Err(_) if requantize => (Action::Requantize, Some(to)),
                Err(error) => (Action::Refuse(error.to_string()), Some(to)),
            },
            (_, Err(error)) => (Action::Refuse(error.to_string()), None),
        },
        (Target::Format(..), None) if matches!(convention, Convention::Folder { quantized: true, .. }) => {
            keep("not quantized before".into())
        }
        (Target::Format(spec, options), None) => {
            let spared = || match convention {
                Convention::Matrices => None,
                Convention::Gguf => llama::spares(&entry.name),
                Convention::Folder { model_type, embeddings, .. } => modules::spares(entry, model_type, embeddings),
            };
            if let Some(reason) = no_matrix(entry).or_else(spared) {
                return keep(reason);
            }
            match (layout(entry, spec, options).map_err(|error| error.to_string()), convention) {
                (Ok(layout), _) => (Action::Quantize, Some(layout)),
                (Err(reason), Convention::Matrices) => keep(reason),
                (Err(reason), _) => (Action::Refuse(reason), None),
            }
        }
    }
}

/// Why a tensor is not decoded although it could be: in GGUF the factor of an NVFP4 tensor `x.weight` may be another tensor, `x.scale`.
fn factor_beside(entry: &Entry, target: Target, file: &Checkpoint) -> Option<String> {
    let is_nvfp4 = matches!(target, Target::Floats(_)) && entry.layout().is_some_and(|layout| layout.spec.name == "gguf:nvfp4");
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

/// How a tensor that is quantized already would be in another format: with what it has, but for what is asked for.
fn again(from: &Layout, spec: &'static Spec, options: Options) -> Result<Layout> {
    // Of the variants that differ in zero points the one that has them where the tensor does.
    let open = options.choice.is_none() && matches!(spec.choice, Some(Choice::Symmetric(_)));
    let symmetric = match from.spec.choice {
        Some(Choice::Symmetric(symmetric)) => symmetric,
        _ => !from.spec.has_offsets(),
    };
    let spec = if open { formats::choose(spec.name, Some(Choice::Symmetric(symmetric)))?.spec() } else { spec };
    Layout::new(spec, &from.shape, engine::kept_options(from, spec, Options { choice: None, ..options }))
}

/// Whether two layouts of one tensor store the same parts.
fn is_same(one: &Layout, other: &Layout) -> bool {
    std::ptr::eq(formats::stored(one.spec).spec(), formats::stored(other.spec).spec())
        && (one.group_size, one.scale_dtype) == (other.group_size, other.scale_dtype)
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
type WritePart<'a> = &'a mut dyn FnMut(usize, u64, &[u8]) -> Result<()>;

/// A plan at work.
struct Conversion<'a> {
    plan: &'a Plan,
    file: Checkpoint,
    writer: Box<dyn TensorWriter + 'a>,
    how: &'a How,
    run: &'a Run<'a>,
    /// The largest magnitude of weights that share the second level of their scales, by what they have in common.
    largest: HashMap<String, f32>,
}

impl Conversion<'_> {
    fn step(
        &mut self,
        index: usize,
        step: &Step,
        advance: &mut dyn FnMut(u64, &str) -> Result<()>,
    ) -> std::result::Result<Effect, Failure> {
        let largest = self.shared_largest(step)?;
        let Conversion { plan, file, writer, how, run, .. } = self;
        let entry = &file.entries()[index];
        let advance = &mut |bytes| advance(bytes, &entry.name);
        let mut write = |part: usize, offset: u64, bytes: &[u8]| writer.write(step.first + part, offset, bytes);
        match &step.action {
            Action::Keep(_) => copy(file, entry, advance, &mut write)?,
            Action::Dequantize => dequantize(file, entry, dequantized(entry, plan.target), run, advance, &mut write)?,
            Action::Refuse(_) => unreachable!("a plan that refuses a tensor is not carried out"),
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
