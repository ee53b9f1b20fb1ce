//! Files as Python sees them: open one, convert one, compare two.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::IntoPyObjectExt;
use pyo3::create_exception;
use pyo3::exceptions::{PyFileExistsError, PyIsADirectoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::api::named_policy;
use super::arrays::{Array, Item, Outputs, Wanted};
use super::errors::{CorruptFileError, guarded};
use super::tensor::{Tensor, chosen, named_scale_dtype};
use crate::engine::{Run, Sums};
use crate::error::{Error, Result};
use crate::files::StoredDtype;
use crate::files::checkpoint::{Checkpoint, Entry, part_tensors};
use crate::files::compare::{self, Compared, Verdict};
use crate::files::convert::{Action, Effect, Failure, Fallback, How, Memory, Plan, Rule, Scales, Selection, Step, Target, Work};
use crate::files::gguf::Value;
use crate::files::gguf::image::{self, Image};
use crate::files::gguf::mixture::{self, Mixture};
use crate::files::output::hex;
use crate::files::verify;
use crate::formats::{self, Format};
use crate::layout::{Layout, Options};
use crate::level::Level;
use crate::spec::{Extent, GroupSize};
use crate::{files, threads};

create_exception!(
    quantize,
    PolicyError,
    PyValueError,
    "A tensor of a file cannot be converted under the policy that was chosen. No file was written."
);

/// An open file.
#[pyclass(frozen, module = "quantize._core")]
pub(super) struct File {
    checkpoint: Checkpoint,
    path: PathBuf,
}

/// One tensor of a file: name, dtype, shape, bytes, and how it is quantized.
type Info = (String, &'static str, Vec<usize>, u64, Option<Tensor>);

/// One stored tensor: the part that it is, its bytes as uint8, its dtype, its shape.
type Stored<'py> = (&'static str, Array<'py>, &'static str, Bound<'py, PyTuple>);

#[pymethods]
impl File {
    #[new]
    fn new(path: PathBuf) -> PyResult<File> {
        guarded(|| {
            let checkpoint = open(&path)?;
            Ok(File { checkpoint, path })
        })
    }

    /// The name of the container.
    #[getter]
    fn container(&self) -> &'static str {
        self.checkpoint.container().container()
    }

    /// The free text of the file, or its typed values, by key.
    #[getter]
    fn metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let found = PyDict::new(py);
        let container = self.checkpoint.container();
        container.metadata().iter().try_for_each(|(key, text)| found.set_item(key, text))?;
        container.keys().iter().try_for_each(|key| found.set_item(&key.name, object(py, key.value())?))?;
        Ok(found)
    }

    /// `(name, dtype, shape, bytes, tensor)` of every tensor, `tensor` None for what is not quantized.
    fn tensors(&self) -> Vec<Info> {
        let info = |entry: &Entry| {
            let tensor = entry.layout().map(settled);
            (entry.name.clone(), entry.dtype.name(), entry.shape.clone(), self.checkpoint.bytes(entry), tensor)
        };
        self.checkpoint.entries().iter().map(info).collect()
    }

    /// How a folder says that its tensors are quantized, where that is not read.
    #[getter]
    fn unread(&self) -> Option<&str> {
        self.checkpoint.unread()
    }

    /// `(part, bytes, dtype, shape)` of tensor `index` as it is stored: once, the part without a name, or for each part.
    fn read<'py>(&self, py: Python<'py>, index: usize) -> PyResult<Vec<Stored<'py>>> {
        guarded(|| {
            let entry = &self.checkpoint.entries()[index];
            let wanted = |(_, tensor): (usize, &files::Tensor)| Wanted {
                argument: format!("'{}'", tensor.name),
                item: Item::U8,
                shape: vec![tensor.bytes() as usize],
            };
            let wanted: Vec<Wanted> = self.checkpoint.stored(entry).map(wanted).collect();
            let mut outputs = Outputs::new(py, &wanted)?;
            let mut slices = outputs.slices();
            watched(py, None, |watch| {
                let read = self.checkpoint.read(entry, &mut slices, &mut |_| watch.look(None));
                read.map_err(|error| watch.exception(error, Some(&self.path)))
            })?;
            // A part is one of the format's, however the container shapes it.
            let seen = match entry.layout() {
                Some(layout) => of_parts(&entry.name, layout),
                None => self.checkpoint.stored(entry).map(|(_, tensor)| plain(tensor)).collect(),
            };
            stored(py, seen, outputs)
        })
    }

    /// The rows of tensor `index` between which it can be cut: each block but the last has a multiple of so many.
    fn step(&self, index: usize) -> usize {
        self.checkpoint.step(&self.checkpoint.entries()[index])
    }

    /// The blocks of about so many elements that quantized tensor `index` can be read in: first row, number of rows.
    fn blocks(&self, index: usize, elements: usize) -> Vec<(usize, usize)> {
        self.checkpoint.blocks(&self.checkpoint.entries()[index], elements)
    }

    /// Rows `first` to `first + count` of tensor `index` as a matrix of their own: how they are quantized, and what [`Self::read`] gives.
    /// Nothing is said of parts that contradict the layout.
    fn read_rows<'py>(&self, py: Python<'py>, index: usize, first: usize, count: usize) -> PyResult<(Option<Tensor>, Vec<Stored<'py>>)> {
        guarded(|| {
            let entry = &self.checkpoint.entries()[index];
            let layout = entry.layout_of_rows(count);
            let mut parts = Vec::new();
            py.detach(|| self.checkpoint.read_rows(entry, first, count, &mut parts)).map_err(|error| exception(error, Some(&self.path)))?;
            let seen: Vec<_> = match &layout {
                Some(layout) => {
                    for (_, bytes) in layout.spec.parts.iter().zip(&mut parts).filter(|(part, _)| part.extent == Extent::Lengths) {
                        *bytes = lengths(layout);
                    }
                    of_parts(&entry.name, layout)
                }
                None => {
                    let columns = entry.shape.last().copied().unwrap_or(1);
                    vec![plain(&files::Tensor { name: entry.name.clone(), dtype: entry.dtype, shape: vec![count, columns] })]
                }
            };
            let wanted: Vec<Wanted> = parts
                .iter()
                .map(|part| Wanted { argument: format!("'{}'", entry.name), item: Item::U8, shape: vec![part.len()] })
                .collect();
            let mut outputs = Outputs::new(py, &wanted)?;
            outputs.slices().iter_mut().zip(&parts).for_each(|(out, part)| out.copy_from_slice(part));
            Ok((layout.as_ref().map(settled), stored(py, seen, outputs)?))
        })
    }
}

/// What a stored tensor is as an array: the name of the part, dtype and shape.
type Seen = (&'static str, &'static str, Vec<usize>);

/// The parts of a layout as arrays.
fn of_parts(name: &str, layout: &Layout) -> Vec<Seen> {
    let names = layout.spec.parts.iter().map(|part| part.name);
    names.zip(part_tensors(name, layout)).map(|(name, part)| (name, part.dtype.name(), part.shape)).collect()
}

/// What was read, and what it is.
fn stored<'py>(py: Python<'py>, seen: Vec<Seen>, read: Outputs<'py>) -> PyResult<Vec<Stored<'py>>> {
    let seen = seen.into_iter().zip(read.into_arrays());
    seen.map(|((name, dtype, shape), bytes)| Ok((name, bytes, dtype, PyTuple::new(py, shape)?))).collect()
}

/// The lengths of axes as a part has them.
fn lengths(layout: &Layout) -> Vec<u8> {
    layout.shape.iter().flat_map(|&length| (length as i64).to_le_bytes()).collect()
}

/// No name of a part, and dtype and shape of a stored tensor as an array: blocks are bytes along the last axis.
fn plain(tensor: &files::Tensor) -> Seen {
    let (mut shape, block) = (tensor.shape.clone(), tensor.dtype.block());
    match shape.last_mut() {
        Some(last) if tensor.dtype.safetensors_name().is_none() => {
            *last = *last / block.elements as usize * block.bytes as usize;
            ("", StoredDtype::U8.name(), shape)
        }
        _ => ("", tensor.dtype.name(), shape),
    }
}

/// A value of a key as Python has it.
fn object(py: Python<'_>, value: Value) -> PyResult<Bound<'_, PyAny>> {
    match value {
        Value::Unsigned(number) => number.into_bound_py_any(py),
        Value::Signed(number) => number.into_bound_py_any(py),
        Value::Float(number) => number.into_bound_py_any(py),
        Value::Bool(yes) => yes.into_bound_py_any(py),
        Value::Text(text) => text.into_bound_py_any(py),
        Value::List(values) => {
            let list = PyList::empty(py);
            values.into_iter().try_for_each(|value| list.append(object(py, value)?))?;
            Ok(list.into_any())
        }
    }
}

/// The numbers that errors are made of, as `compare` of arrays gives them.
type Errors = (u64, f64, f64, f64, f64, f64);

/// One tensor of a conversion: name, shape, dtype, action, reason, the rule that decided, how it is quantized in the new file, bytes before
/// and after, the dtype or format in the new file, the format that was asked for where that is another, what was done.
type Row = (
    String,
    Vec<usize>,
    &'static str,
    &'static str,
    Option<String>,
    Option<String>,
    Option<Tensor>,
    (u64, u64),
    &'static str,
    Option<&'static str>,
    Done,
);

/// Errors, elements replaced, what errors were weighted with, hash of the bytes in the new file, seconds.
type Done = (Option<Errors>, u64, Option<&'static str>, Option<String>, f64);

/// A pattern of names, and the format, group size, dtype of scales and other options; `None`: kept.
type GivenRule<'py> = (String, Option<(String, Option<GroupSize>, Option<String>, Option<Bound<'py, PyDict>>)>);

/// What a job is told by, the names of the new shards, and the one that each tensor goes to.
type Job = (String, Vec<String>, Vec<usize>);

/// What a conversion tells: a row for each tensor, bytes of memory, the job, and the path of what was made.
type Told = (Vec<Row>, u64, Option<Job>, Option<PathBuf>);

/// `convert(source, target, format, group_size, scale_dtype, options, method, clip_limit, importance, nonfinite, include, exclude, keep, rules, fallback,
/// requantize, arch, names, shard_size, memory_limit, work, shards, overwrite, threads, progress)` gives one row a tensor, the bytes of
/// memory that tensors take at a time, of a folder that is not made at once what its shards are, and the path of what was made. Without a
/// format: back to floats, of `scale_dtype` if there is one. Without a target: the plan alone. `work` is `once`, `rest`, `shards` or `finish`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the public function, one each")]
pub(super) fn convert(
    py: Python<'_>,
    source: PathBuf,
    target: Option<PathBuf>,
    format: Option<&str>,
    group_size: Option<GroupSize>,
    scale_dtype: Option<&str>,
    options: Option<&Bound<'_, PyDict>>,
    method: &str,
    clip_limit: Option<f32>,
    importance: Option<PathBuf>,
    nonfinite: &str,
    include: Vec<String>,
    exclude: Vec<String>,
    keep: Vec<String>,
    rules: Vec<GivenRule<'_>>,
    fallback: Option<&str>,
    requantize: bool,
    arch: Option<&str>,
    names: BTreeMap<String, String>,
    shard_size: Option<u64>,
    memory_limit: u64,
    work: &str,
    shards: Vec<usize>,
    overwrite: bool,
    threads: Option<isize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Told> {
    guarded(|| {
        let format = format.map(|name| Ok::<_, PyErr>((name, named_format(name, options)?))).transpose()?;
        let floats = scale_dtype.and_then(StoredDtype::from_name);
        let scale_dtype = if format.is_some() { scale_dtype.map(named_scale_dtype).transpose()? } else { None };
        let given = Options { group_size, scale_dtype, ..Options::default() };
        let fallback = fallback.map(named_fallback).transpose()?;
        let scales = match method {
            "nearest" => Scales::Nearest,
            _ => {
                let importance = importance.as_deref().map(open).transpose()?;
                Scales::Searched { importance, fast: method == "fast", clip_limit }
            }
        };
        let nonfinite = named_policy(nonfinite)?;
        let rules = rules.into_iter().map(named_rule).collect::<PyResult<_>>()?;
        let image = arch.map(|arch| Image::new(arch, names)).transpose()?;
        let selection = Selection { include, exclude, keep, rules, fallback, requantize, image };
        let work = match work {
            "rest" => Work::Rest,
            "shards" => Work::Shards(shards),
            "finish" => Work::Finish,
            _ => Work::Once,
        };
        let (level, threads) = (Level::current()?, thread_count(threads)?);
        watched(py, progress, |watch| {
            let file = open(&source)?;
            let wanted = match format {
                Some((name, format)) => wanted(name, format, given, file.container().container())?,
                None => Target::Floats(floats),
            };
            let mut plan = Plan::new(&file, wanted, &selection)?;
            if let Some(size) = shard_size {
                plan.shard(size);
            }
            let Memory { block, room, peak } = plan.within(memory_limit)?;
            let how = How { nonfinite, scales, work, block, room };
            let shards = plan.shards().filter(|_| how.work != Work::Once);
            let job = shards.map(|(names, of_steps)| (plan.fingerprint(&file, &how), names, of_steps));
            let made = target.as_deref().map(|target| plan.made(target));
            let effects = match target {
                None => vec![Effect::default(); plan.steps.len()],
                Some(target) => {
                    let total = plan.steps.iter().map(|step| step.bytes_before).sum();
                    let mut advance = watch.counter(total);
                    let interrupted = || watch.look(None).is_err();
                    let run = Run { level, threads, interrupted: &interrupted, reused: false };
                    let done = plan.run(file, &target, overwrite, &how, &run, &mut advance);
                    done.map_err(|Failure { tensor, error }| match tensor {
                        Some(name) => PolicyError::new_err(format!("{}: tensor {}: {error}", source.display(), files::shown(&name))),
                        None => watch.exception(error, Some(&source)),
                    })?
                }
            };
            Ok((plan.steps.into_iter().zip(effects).map(|(step, effect)| row(step, effect)).collect(), peak, job, made))
        })
    })
}

/// `name_map(text)`: the names of a JSON object, the old one to the new one; or what is wrong with it, in words that follow its name.
#[pyfunction]
pub(super) fn name_map(text: &[u8]) -> PyResult<BTreeMap<String, String>> {
    guarded(|| image::names(text).map_err(PyValueError::new_err))
}

/// The format of this name and its options; `None` where it is the name of a mixture alone.
fn named_format(name: &str, options: Option<&Bound<'_, PyDict>>) -> PyResult<Option<(Format, Options)>> {
    match (mixture::find(name).filter(|_| formats::find(name).is_err()), options) {
        (None, _) => chosen(name, options).map(Some),
        (Some(_), None) => Ok(None),
        (Some(mixture), Some(options)) => Err(takes_no(mixture, &options.keys().get_item(0)?.extract::<String>()?).into()),
    }
}

fn takes_no(mixture: &Mixture, option: &str) -> Error {
    Error::Option { option: option.into(), format: mixture.name.into(), options: Vec::new() }
}

/// What a name means for files of this container: `q4_0` is a mixture of llama.cpp in GGUF files, elsewhere a format.
fn wanted(name: &str, format: Option<(Format, Options)>, given: Options, container: &str) -> Result<Target> {
    match (mixture::find(name), format) {
        (mixture, Some((format, options))) if mixture.is_none() || container != "gguf" => {
            let Options { group_size, scale_dtype, .. } = given;
            Ok(Target::Format(format.spec(), Options { group_size, scale_dtype, ..options }))
        }
        (mixture, _) => {
            let mixture = mixture.expect("a name is that of a format or of a mixture");
            let given = [("group_size", given.group_size.is_some()), ("scale_dtype", given.scale_dtype.is_some())];
            match given.into_iter().find(|option| option.1) {
                Some((option, _)) => Err(takes_no(mixture, option)),
                None => Ok(Target::Mixture(mixture)),
            }
        }
    }
}

fn named_fallback(name: &str) -> Result<Fallback> {
    if name == "llama.cpp" { Ok(Fallback::Llama) } else { Ok(Fallback::Format(formats::find(name)?.spec())) }
}

fn named_rule((pattern, format): GivenRule<'_>) -> PyResult<Rule> {
    let named = |(name, group_size, scale_dtype, options): (String, _, Option<String>, Option<Bound<'_, PyDict>>)| {
        let (format, options) = chosen(&name, options.as_ref())?;
        let scale_dtype = scale_dtype.as_deref().map(named_scale_dtype).transpose()?;
        Ok::<_, PyErr>((format.spec(), Options { group_size, scale_dtype, ..options }))
    };
    Ok(Rule { pattern, format: format.map(named).transpose()? })
}

fn row(step: Step, effect: Effect) -> Row {
    let becomes = match &step.action {
        Action::Cast(dtype, _) => dtype.name(),
        _ => step.layout.as_ref().map_or(step.dtype.name(), |layout| layout.spec.name),
    };
    let fallback = step.wanted.map(|(spec, _)| spec.name).filter(|&name| name != becomes && !matches!(step.action, Action::Refuse(_)));
    let (action, reason) = match step.action {
        Action::Keep(reason) => ("keep", Some(reason)),
        Action::Quantize => ("quantize", step.why),
        Action::Repack => ("repack", None),
        Action::Requantize => ("requantize", step.why),
        Action::Dequantize => ("dequantize", None),
        Action::Refuse(reason) => ("refuse", Some(reason)),
        Action::Cast(_, reason) => ("cast", Some(reason)),
    };
    let tensor = step.layout.as_ref().map(settled);
    let bytes = (step.bytes_before, step.bytes_after);
    let Effect { errors, replaced, weights, sha256, seconds } = effect;
    let done = (errors.map(numbers), replaced, weights, sha256.as_ref().map(hex), seconds);
    (step.name, step.shape, step.dtype.name(), action, reason, step.rule, tensor, bytes, becomes, fallback, done)
}

/// What a file has under a name: format or dtype, shape, bytes.
type Kept = (&'static str, Vec<usize>, u64);

/// One name: what either file has under it, how both relate, the errors.
type Pair = (String, Option<Kept>, Option<Kept>, Option<&'static str>, Option<Errors>);

/// `compare_files(reference, other, threads, progress)` gives `(name, reference, other, verdict, errors)` for every name.
/// The verdict is `measured`, `same`, `different`, `shapes`, `dtypes`, or None where one file lacks the tensor.
#[pyfunction]
pub(super) fn compare_files(
    py: Python<'_>,
    reference: PathBuf,
    other: PathBuf,
    threads: Option<isize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Vec<Pair>> {
    guarded(|| {
        let (level, threads) = (Level::current()?, thread_count(threads)?);
        watched(py, progress, |watch| {
            let (reference, other) = (open(&reference)?, open(&other)?);
            let total = reference.entries().iter().map(|entry| reference.bytes(entry)).sum();
            let interrupted = || watch.look(None).is_err();
            let run = Run { level, threads, interrupted: &interrupted, reused: true };
            let compared = compare::compare(&reference, &other, &run, &mut watch.counter(total));
            let compared = compared.map_err(|error| watch.exception(error, None))?;
            let kept = |stored: compare::Stored| (stored.kind, stored.shape, stored.bytes);
            let tuple = |compared: Compared| {
                let (verdict, errors) = match compared.verdict {
                    None => (None, None),
                    Some(Verdict::Measured(sums)) => (Some("measured"), Some(numbers(sums))),
                    Some(Verdict::SameBytes(same)) => (Some(if same { "same" } else { "different" }), None),
                    Some(Verdict::Shapes) => (Some("shapes"), None),
                    Some(Verdict::Dtypes) => (Some("dtypes"), None),
                };
                (compared.name, compared.reference.map(kept), compared.other.map(kept), verdict, errors)
            };
            Ok(compared.into_iter().map(tuple).collect())
        })
    })
}

/// What `verify_file` says of a tensor: its name, the verdict, the reason of a fault, the errors.
type Verdicts = Vec<(String, &'static str, Option<String>, Option<Errors>)>;

/// `verify_file(path, against, threads, progress)` gives a verdict for every tensor: `sound`, `same`, `reproduced`, `bounded` or `faulty`.
#[pyfunction]
pub(super) fn verify_file(
    py: Python<'_>,
    path: PathBuf,
    against: Option<PathBuf>,
    threads: Option<isize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Verdicts> {
    guarded(|| {
        let (level, threads) = (Level::current()?, thread_count(threads)?);
        watched(py, progress, |watch| {
            let file = open(&path)?;
            let against = against.as_deref().map(open).transpose()?;
            let total = file.entries().iter().map(|entry| file.bytes(entry)).sum();
            let interrupted = || watch.look(None).is_err();
            let run = Run { level, threads, interrupted: &interrupted, reused: true };
            let found = verify::verify(&file, against.as_ref(), &run, &mut watch.counter(total));
            let tuple = |found: verify::Verified| {
                let (verdict, reason) = match found.verdict {
                    verify::Verdict::Sound => ("sound", None),
                    verify::Verdict::Same => ("same", None),
                    verify::Verdict::Reproduced => ("reproduced", None),
                    verify::Verdict::Bounded => ("bounded", None),
                    verify::Verdict::Faulty(reason) => ("faulty", Some(reason)),
                };
                (found.name, verdict, reason, found.errors.map(numbers))
            };
            Ok(found.map_err(|error| watch.exception(error, None))?.into_iter().map(tuple).collect())
        })
    })
}

fn open(path: &Path) -> PyResult<Checkpoint> {
    files::open(path).and_then(Checkpoint::new).map_err(|error| exception(error, Some(path)))
}

/// An error of a file as an exception that names the file.
fn exception(error: Error, path: Option<&Path>) -> PyErr {
    const EEXIST: i32 = 17;
    const EISDIR: i32 = 21;
    match (error, path) {
        (Error::Corrupt { container, reason }, Some(path)) => {
            CorruptFileError::new_err(format!("{}: {}", path.display(), Error::Corrupt { container, reason }))
        }
        (Error::Io { source, path }, _) if source.kind() == ErrorKind::AlreadyExists => {
            PyFileExistsError::new_err((EEXIST, "the file exists; overwrite replaces it", path))
        }
        (Error::Io { source, path }, _) if source.kind() == ErrorKind::IsADirectory => {
            PyIsADirectoryError::new_err((EISDIR, "a file is needed, this is a folder", path))
        }
        (error, _) => error.into(),
    }
}

fn thread_count(requested: Option<isize>) -> Result<usize> {
    let refuse = |n: isize| Error::value("threads", n.to_string(), "expected 1 or more");
    let requested = requested.map(|n| usize::try_from(n).ok().filter(|&n| n > 0).ok_or_else(|| refuse(n))).transpose()?;
    Ok(threads::count(requested))
}

fn settled(layout: &Layout) -> Tensor {
    Tensor { layout: layout.clone(), axis: layout.shape.len() - 1 }
}

fn numbers(sums: Sums) -> Errors {
    (sums.count, sums.error_squares, sums.squares, sums.other_squares, sums.products, sums.max_abs_error)
}

/// What stops long work: a signal's handler, or the caller's progress callback.
struct Watch {
    progress: Option<Py<PyAny>>,
    /// The exception of either.
    raised: Mutex<Option<PyErr>>,
}

/// Do work without the interpreter, under a watch.
fn watched<T: Send>(py: Python<'_>, progress: Option<Py<PyAny>>, work: impl FnOnce(&Watch) -> PyResult<T> + Send) -> PyResult<T> {
    py.detach(|| work(&Watch { progress, raised: Mutex::new(None) }))
}

impl Watch {
    /// Let handlers of signals run, and the callback if there is something to tell: `(done, total, name)`.
    fn look(&self, news: Option<(u64, u64, &str)>) -> Result<()> {
        // Without an interpreter to ask, as at its exit, nobody stops the work.
        let asked = Python::try_attach(|py| {
            py.check_signals()?;
            match (&self.progress, news) {
                (Some(progress), Some(news)) => progress.call1(py, news).map(drop),
                _ => Ok(()),
            }
        });
        match asked {
            Some(Err(raised)) => {
                *self.slot() = Some(raised);
                Err(Error::Cancelled)
            }
            Some(Ok(())) | None => Ok(()),
        }
    }

    /// Counts bytes up to `total` and tells of them.
    fn counter(&self, total: u64) -> impl FnMut(u64, &str) -> Result<()> {
        let mut done = 0;
        move |bytes, name| {
            done += bytes;
            self.look(Some((done, total, name)))
        }
    }

    /// What the caller gets to see of an error: where something was raised meanwhile, that.
    fn exception(&self, error: Error, path: Option<&Path>) -> PyErr {
        self.slot().take().unwrap_or_else(|| exception(error, path))
    }

    fn slot(&self) -> MutexGuard<'_, Option<PyErr>> {
        self.raised.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
