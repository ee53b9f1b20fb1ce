//! What happens to one tensor: whether it is quantized, as what, and why not.

use super::{Action, Fallback, Step, Target};
use crate::engine;
use crate::error::{Error, Result};
use crate::files::checkpoint::{Checkpoint, Entry};
use crate::files::convert::Failure;
use crate::files::folder::{family, modules};
use crate::files::gguf::mixture::{self, Part};
use crate::files::gguf::{self, image, llama};
use crate::files::{Container, StoredDtype, Tensor};
use crate::formats;
use crate::layout::{Layout, Options};
use crate::spec::{Choice, GroupSize, GroupSizes, Spec};

/// What decides, for all tensors of a file.
#[derive(Clone, Copy)]
pub(super) struct Rules<'a> {
    pub(super) convention: Convention<'a>,
    pub(super) fallback: Option<Fallback>,
    pub(super) requantize: bool,
}

/// What decides which tensors are quantized.
#[derive(Clone, Copy)]
pub(super) enum Convention<'a> {
    /// Every matrix that holds a group.
    Matrices,
    /// Those that llama.cpp quantizes.
    Gguf,
    /// Those of a model of images.
    Image,
    /// The linear layers of a model of this type, and its embeddings where that is usual; those that were quantized before, if any were.
    Folder { model_type: Option<&'a str>, embeddings: bool, quantized: bool },
}

impl<'a> Convention<'a> {
    /// That of a file which becomes `target`, a model of images or not.
    pub(super) fn of(container: &'a dyn Container, target: Target, image: bool) -> Convention<'a> {
        match (container.folder(), target) {
            (Some(folder), Target::Format(spec, _)) => Convention::Folder {
                model_type: folder.config().get("model_type").and_then(|name| name.as_str()),
                embeddings: family::is_mlx(spec),
                quantized: family::method(folder.config()).is_some(),
            },
            _ if image => Convention::Image,
            _ if container.container() == "gguf" => Convention::Gguf,
            _ => Convention::Matrices,
        }
    }

    /// Why a matrix of floats is not quantized, if it is not.
    fn spares(self, entry: &Entry) -> Option<String> {
        match self {
            Convention::Matrices => None,
            Convention::Gguf => llama::spares(&entry.name, &entry.shape),
            Convention::Image => image::spares(entry),
            Convention::Folder { model_type, embeddings, .. } => modules::spares(entry, model_type, embeddings),
        }
    }
}

/// What is asked of a matrix.
#[derive(Clone)]
pub(super) struct Wish {
    pub(super) spec: &'static Spec,
    pub(super) options: Options,
    /// Why it is not what is asked of most.
    pub(super) why: Option<String>,
}

impl Wish {
    /// Why a tensor becomes something else than most do; of a fallback the reason is that of the format that was wanted.
    pub(super) fn why(&self, entry: &Entry, layout: Option<&Layout>) -> Option<String> {
        match layout {
            Some(layout) if layout.spec.name != self.spec.name => {
                self::layout(entry, self.spec, self.options).err().map(|error| error.to_string())
            }
            _ => self.why.clone(),
        }
    }
}

/// What is asked of each entry, should it be a matrix; `None` where floats are wanted.
pub(super) fn wishes(file: &Checkpoint, target: Target) -> Result<Vec<Option<Wish>>> {
    let entries = file.entries();
    let mixture = match target {
        Target::Floats(_) => return Ok(vec![None; entries.len()]),
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

/// What happens to a tensor that is selected, and how it is then quantized. Without a wish it becomes floats.
pub(super) fn action(entry: &Entry, wish: Option<&Wish>, rules: Rules) -> (Action, Option<Layout>) {
    let keep = |reason: String| (Action::Keep(reason), entry.layout().cloned());
    let Some(&Wish { spec, options, .. }) = wish else {
        return if entry.layout().is_some() { (Action::Dequantize, None) } else { keep("not quantized".into()) };
    };
    if let Some(from) = entry.layout() {
        return convert(entry, from, (spec, options), rules);
    }
    let convention = rules.convention;
    if matches!(convention, Convention::Folder { quantized: true, .. }) {
        return keep("not quantized before".into());
    }
    let widened = match convention {
        Convention::Gguf => is_vector(entry).then_some("a vector or norm, which llama.cpp reads as float32"),
        Convention::Image => image::is_precise(entry).then_some("small, or one whose precision counts"),
        _ => None,
    };
    if let Some(reason) = widened.filter(|_| matches!(entry.dtype, StoredDtype::F16 | StoredDtype::Bf16)) {
        return (Action::Cast(StoredDtype::F32, reason.into()), None);
    }
    if let Some(reason) = no_matrix(entry).or_else(|| convention.spares(entry)) {
        return keep(reason);
    }
    match layout(entry, spec, options).map_err(|error| error.to_string()) {
        Ok(layout) => (Action::Quantize, Some(layout)),
        Err(reason) if matches!(convention, Convention::Matrices | Convention::Image) => keep(reason),
        Err(reason) => fall_back(entry, spec, rules.fallback, reason),
    }
}

/// What happens to a tensor that is quantized already, as `from`.
fn convert(entry: &Entry, from: &Layout, (spec, options): (&'static Spec, Options), rules: Rules) -> (Action, Option<Layout>) {
    let is_folder = matches!(rules.convention, Convention::Folder { .. });
    if is_folder && rules.convention.spares(entry).is_some() {
        return (Action::Dequantize, None);
    }
    // Tensors of more bits that others have beside 4-bit ones.
    if from.spec.is_companion() && !rules.requantize {
        return (Action::Keep(format!("already {}", from.spec.name)), Some(from.clone()));
    }
    let to = match again(from, spec, options) {
        Ok(to) => to,
        Err(error) if rules.requantize => {
            return match fall_back(entry, spec, rules.fallback, error.to_string()) {
                (Action::Quantize, layout) => (Action::Requantize, layout),
                other => other,
            };
        }
        Err(error) => return (Action::Refuse(error.to_string()), None),
    };
    // In a folder a weight has more than its parts, which are written anew.
    if is_same(from, &to) && !is_folder {
        return (Action::Keep(format!("already {}", spec.name)), Some(from.clone()));
    }
    match engine::check_repack(from, &to) {
        Ok(()) => (Action::Repack, Some(to)),
        Err(_) if rules.requantize => (Action::Requantize, Some(to)),
        Err(error) => (Action::Refuse(error.to_string()), Some(to)),
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
pub(super) fn refusal(entry: &Entry, step: &Step) -> Failure {
    let (spec, options) = step.wanted.expect("only what was asked for is refused");
    let tensor = Some(step.name.clone());
    if let Some(from) = entry.layout() {
        let again = again(from, spec, options).and_then(|to| engine::check_repack(from, &to));
        return Failure { tensor, error: again.expect_err("the plan refused it") };
    }
    let error = match Layout::new(spec, &step.shape, options) {
        Err(Error::Shape { argument, found, expected }) => {
            let advice = "keep the tensor out with exclude, name a fallback, or choose another format";
            Error::Shape { argument, found, expected: format!("{expected}: {advice}") }
        }
        other => unreachable!("a matrix of floats is refused for its shape, not {other:?}"),
    };
    Failure { tensor, error }
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
