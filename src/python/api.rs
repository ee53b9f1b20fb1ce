//! The functions of `quantize._core`: borrow, let go of the interpreter, call, hand over.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arrays::{self, Array, Item, Outputs, Wanted};
use super::errors::{QuantizeWarning, guarded};
use super::parts::{Parts, borrow_parts, dict, named_parts, wanted_parts};
use super::tensor::{Tensor, chosen, named_scale_dtype, normal_axis};
use crate::element::{Dtype, Source};
use crate::engine::{self, Importance, Method, NonFinite, Outcome, Run, SERIAL, Sums};
use crate::error::{Error, Result};
use crate::formats::{self, Format};
use crate::layout::{Layout, Options};
use crate::level::Level;
use crate::spec::{Choice, Global, GroupSize, Spec};
use crate::{pool, threads};

/// `quantize(array, bits, format, axis, group_size, scale_dtype, options, method, importance, importance_bits, tolerance, clip_limit,
/// nonfinite, out, threads)` gives `(tensor, parts)`.
///
/// `bits` says that uint16 holds bfloat16; `importance` is None, a string or an array; `options` are those beside the two before them, or None; `out` is a dict from every
/// part's name to its array, or None.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the public function, one each")]
pub(super) fn quantize<'py>(
    array: &Array<'py>,
    bits: bool,
    format: &str,
    axis: isize,
    group_size: Option<GroupSize>,
    scale_dtype: Option<&str>,
    options: Option<&Bound<'py, PyDict>>,
    method: &str,
    importance: Option<&Bound<'py, PyAny>>,
    importance_bits: bool,
    tolerance: Option<f32>,
    clip_limit: Option<f32>,
    nonfinite: &str,
    out: Option<&Parts<'py>>,
    threads: Option<isize>,
) -> PyResult<(Tensor, Parts<'py>)> {
    guarded(|| {
        let py = array.py();
        let (format, options) = chosen(format, options)?;
        let spec = format.spec();
        let nonfinite = named_policy(nonfinite)?;
        let source = arrays::source(array, "array", bits)?;
        let scale_dtype = scale_dtype.map(named_scale_dtype).transpose()?.or_else(|| spec.scale_dtype_of(source.dtype()));
        let options = Options { group_size, scale_dtype, ..options };
        let mut tensor = Tensor::new(spec, array.shape(), axis, options)?;
        let name = importance.and_then(|importance| importance.extract::<String>().ok());
        let weights = importance.filter(|_| name.is_none()).map(|weights| weights.cast::<PyUntypedArray>()).transpose()?;
        let weights_source = weights.map(|weights| arrays::source(weights, "importance", importance_bits)).transpose()?;
        // One weight for each place along the axis, or one for each element.
        let by_element = |weights: &Source<'_>| weights.shape().len() == array.ndim();
        let weights_source = weights_source.map(|weights| if by_element(&weights) { weights.with_axis_last(tensor.axis) } else { weights });
        let method = named_method(method, name.as_deref(), weights_source.as_ref(), (tolerance, clip_limit))?;
        let wanted = wanted_parts(&tensor.layout, if out.is_some() { "out" } else { "parts" });
        let inputs: Vec<&Array<'_>> = [Some(array), weights].into_iter().flatten().collect();
        let mut outputs = match out {
            None => Outputs::new(py, &wanted)?,
            Some(out) => Outputs::given(named_parts(spec, out, "out")?, &wanted, &inputs)?,
        };
        let source = source.with_axis_last(tensor.axis);
        let (layout, mut slices) = (&tensor.layout, outputs.slices());
        let work = |run: &Run| engine::quantize_by(&source, layout, method, nonfinite, &mut slices, run);
        let outcome = call(py, layout.elements(), threads, out.is_some(), work)?;
        report(py, &outcome)?;
        tensor.layout = tensor.layout.in_format(formats::stored(spec).spec());
        Ok((tensor, dict(py, spec, outputs.into_arrays())?))
    })
}

/// `dequantize(tensor, parts, dtype, out, threads)` gives an array of the tensor's shape; bfloat16 leaves as uint16.
#[pyfunction]
pub(super) fn dequantize<'py>(
    py: Python<'py>,
    tensor: Tensor,
    parts: &Parts<'py>,
    dtype: &str,
    out: Option<Bound<'py, PyAny>>,
    threads: Option<isize>,
) -> PyResult<Array<'py>> {
    guarded(|| {
        let known = [Dtype::F32, Dtype::F16, Dtype::Bf16, Dtype::F64].into_iter().find(|known| known.name() == dtype);
        let expected = "expected float16, bfloat16, float32 or float64";
        let dtype = known.ok_or_else(|| PyTypeError::new_err(format!("dtype is {dtype}; {expected}")))?;
        let parts = borrow_parts(&tensor.layout, parts)?;
        let wanted = [Wanted { argument: "out".into(), item: Item::Float(dtype), shape: tensor.shape() }];
        let reused = out.is_some();
        let mut outputs = match out {
            None => Outputs::new(py, &wanted)?,
            Some(out) => Outputs::given(vec![out], &wanted, &parts.iter().collect::<Vec<_>>())?,
        };
        decode(py, &tensor, &parts, dtype, &mut outputs, reused, threads)?;
        Ok(outputs.into_arrays().remove(0))
    })
}

/// `groups(tensor, parts, codes)` gives `(codes, scales, offsets)` with the group axis last: int8 codes if `codes` asks for them,
/// float32 scales, and float32 zero points or minimums if the scheme has either; else None.
#[pyfunction]
pub(super) fn groups<'py>(
    py: Python<'py>,
    tensor: Tensor,
    parts: &Parts<'py>,
    codes: bool,
) -> PyResult<(Option<Array<'py>>, Array<'py>, Option<Array<'py>>)> {
    guarded(|| {
        let layout = &tensor.layout;
        let parts = borrow_parts(layout, parts)?;
        let parts: Vec<&[u8]> = parts.iter().map(arrays::bytes).collect();
        let has_offsets = layout.spec.has_offsets();
        let floats = |name: &str| Wanted { argument: name.into(), item: Item::Float(Dtype::F32), shape: layout.groups_shape() };
        let mut wanted = vec![floats("the scales")];
        wanted.extend(has_offsets.then(|| floats("the offsets")));
        wanted.extend(codes.then(|| Wanted { argument: "the codes".into(), item: Item::I8, shape: layout.shape.clone() }));
        let mut outputs = Outputs::new(py, &wanted)?;
        let mut slices = outputs.slices().into_iter();
        let scales = slices.next().map_or(&mut [][..], bytemuck::cast_slice_mut);
        let offsets = has_offsets.then(|| slices.next()).flatten().map_or(&mut [][..], bytemuck::cast_slice_mut);
        let unpacked = slices.next().map_or(&mut [][..], bytemuck::cast_slice_mut);
        call(py, layout.elements(), None, false, |run| {
            engine::unpack(layout, &parts, unpacked, scales, offsets, &mut [], run)?;
            engine::make_effective(layout, &parts, scales);
            Ok(())
        })?;
        let mut arrays = outputs.into_arrays().into_iter();
        let scales = arrays.next().expect("scales were asked for");
        let offsets = if has_offsets { arrays.next() } else { None };
        Ok((arrays.next(), scales, offsets))
    })
}

/// `repack(tensor, parts, format, group_size, scale_dtype, options, requantize, threads)` gives `(tensor, parts)` in another format.
///
/// Options that are None stay as they are where the format has them; a symmetric variant is taken where it holds the values.
/// Lossless, or through floats if `requantize` says so.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the public function, one each")]
pub(super) fn repack<'py>(
    py: Python<'py>,
    tensor: Tensor,
    parts: &Parts<'py>,
    format: &str,
    group_size: Option<GroupSize>,
    scale_dtype: Option<&str>,
    options: Option<&Bound<'py, PyDict>>,
    requantize: bool,
    threads: Option<isize>,
) -> PyResult<(Tensor, Parts<'py>)> {
    guarded(|| {
        let from = &tensor.layout;
        let (format, options) = chosen(format, options)?;
        let spec = format.spec();
        let scale_dtype = scale_dtype.map(named_scale_dtype).transpose()?;
        let options = engine::kept_options(from, spec, Options { group_size, scale_dtype, ..options });
        let parts = borrow_parts(from, parts)?;
        let bytes: Vec<&[u8]> = parts.iter().map(arrays::bytes).collect();
        let global_scale = options.global_scale.or_else(|| kept_global_scale(spec, from, &bytes));
        let settle = |spec: &'static Spec| {
            let options = Options { choice: None, global_scale, ..options };
            Ok::<_, Error>(Tensor { layout: Layout::new(spec, &from.shape, options)?, axis: tensor.axis })
        };
        let open = options.choice.is_none() && matches!(spec.choice, Some(Choice::Symmetric(_)));
        let variants: Vec<&'static Spec> = if open { formats::variants(spec).map(Format::spec).collect() } else { vec![spec] };
        let mut refusal = None;
        for &spec in &variants {
            let to = settle(spec)?;
            let mut outputs = Outputs::new(py, &wanted_parts(&to.layout, "parts"))?;
            let mut slices = outputs.slices();
            let converted =
                call(py, from.elements(), threads, false, |run| match engine::repack(from, &bytes, &to.layout, &mut slices, run) {
                    Err(lossy @ Error::Lossy { .. }) => Ok(Err(lossy)),
                    other => other.map(Ok),
                })?;
            match converted {
                Ok(outcome) => {
                    report(py, &outcome)?;
                    let layout = to.layout.in_format(formats::stored(spec).spec());
                    return Ok((Tensor { layout, ..to }, dict(py, spec, outputs.into_arrays())?));
                }
                Err(lossy) => refusal = Some(lossy),
            }
        }
        if let Some(lossy) = refusal.filter(|_| !requantize) {
            return Err(lossy.into());
        }
        // Zero points stay where the source has them.
        let spec = if from.spec.has_offsets() { variants[variants.len() - 1] } else { variants[0] };
        let to = settle(spec)?;
        let mut outputs = Outputs::new(py, &wanted_parts(&to.layout, "parts"))?;
        let floats = Wanted { argument: "floats".into(), item: Item::Float(Dtype::F32), shape: tensor.shape() };
        let mut floats = Outputs::new(py, &[floats])?;
        decode(py, &tensor, &parts, Dtype::F32, &mut floats, false, threads)?;
        let floats = floats.into_arrays().remove(0);
        let source = arrays::source(&floats, "array", false)?.with_axis_last(to.axis);
        let mut slices = outputs.slices();
        let work = |run: &Run| engine::quantize(&source, &to.layout, NonFinite::Raise, &mut slices, run);
        report(py, &call(py, from.elements(), threads, false, work)?)?;
        let layout = to.layout.in_format(formats::stored(spec).spec());
        Ok((Tensor { layout, ..to }, dict(py, spec, outputs.into_arrays())?))
    })
}

/// The largest magnitude of the tensor, as the second level of its scales tells it, where the target wants to know it.
fn kept_global_scale(spec: &Spec, from: &Layout, parts: &[&[u8]]) -> Option<f32> {
    let stored = engine::global_of(from, parts);
    let largest = match from.spec.global.filter(|_| spec.global == Some(Global::Largest))? {
        Global::Largest => return from.global_scale,
        Global::Multiplies => stored * Global::LARGEST,
        Global::Divides => Global::LARGEST / stored,
    };
    (largest.is_finite() && largest > 0.0).then_some(largest)
}

/// `part_shapes(tensor)` gives the shape of every part.
#[pyfunction]
pub(super) fn part_shapes<'py>(py: Python<'py>, tensor: Tensor) -> PyResult<Vec<Bound<'py, PyTuple>>> {
    (0..tensor.layout.spec.parts.len()).map(|index| PyTuple::new(py, tensor.layout.part_shape(index))).collect()
}

/// `pack(codes, signed, out, threads)` gives `(packed, wrong)`: two codes a byte along the last axis, the even one in the low nibble.
/// `wrong` is the flat index of the first code out of range, or None.
///
/// `codes` is int8 if they are signed, else uint8, and C-contiguous.
#[pyfunction]
pub(super) fn pack<'py>(
    codes: &Array<'py>,
    signed: bool,
    out: Option<Bound<'py, PyAny>>,
    threads: Option<isize>,
) -> PyResult<(Array<'py>, Option<usize>)> {
    guarded(|| {
        let py = codes.py();
        let item = if signed { Item::I8 } else { Item::U8 };
        let columns = last(codes, "codes")?;
        let codes = arrays::part(codes, "codes", item, codes.shape())?;
        let shape = with_last(codes.shape(), columns.div_ceil(2));
        let reused = out.is_some();
        let mut outputs = one_output(py, Wanted { argument: "out".into(), item: Item::U8, shape }, out, &codes)?;
        let (bytes, mut slices) = (arrays::bytes(&codes), outputs.slices());
        let work = |run: &Run| engine::pack(bytes, columns, signed, slices[0], run);
        let (in_range, outcome) = call(py, bytes.len(), threads, reused, work)?;
        report(py, &outcome)?;
        let bias = if signed { 8 } else { 0u8 };
        let wrong = if in_range { None } else { bytes.iter().position(|code| code.wrapping_add(bias) > 15) };
        Ok((outputs.into_arrays().remove(0), wrong))
    })
}

/// `unpack(packed, count, signed, out, threads)` gives the first `count` codes of every row.
#[pyfunction]
pub(super) fn unpack<'py>(
    packed: &Array<'py>,
    count: isize,
    signed: bool,
    out: Option<Bound<'py, PyAny>>,
    threads: Option<isize>,
) -> PyResult<Array<'py>> {
    guarded(|| {
        let py = packed.py();
        let columns = last(packed, "packed")?;
        let packed = arrays::part(packed, "packed", Item::U8, packed.shape())?;
        let Some(count) = usize::try_from(count).ok().filter(|count| count.div_ceil(2) == columns) else {
            let counts = if columns == 0 { "0".into() } else { format!("{} or {}", 2 * columns, 2 * columns - 1) };
            return Err(Error::value("count", count.to_string(), format!("rows of {columns} bytes hold {counts} codes")).into());
        };
        let item = if signed { Item::I8 } else { Item::U8 };
        let shape = with_last(packed.shape(), count);
        let reused = out.is_some();
        let mut outputs = one_output(py, Wanted { argument: "out".into(), item, shape }, out, &packed)?;
        let (bytes, mut slices) = (arrays::bytes(&packed), outputs.slices());
        let elements = slices[0].len();
        let work = |run: &Run| engine::unpack_nibbles(bytes, count, signed, slices[0], run);
        report(py, &call(py, elements, threads, reused, work)?)?;
        Ok(outputs.into_arrays().remove(0))
    })
}

/// `compare(reference, reference_bits, other, other_bits, axis, threads)` gives float64 sums of shape (..., 6), the axes of the
/// arrays without `axis` before the last, or none of them if it is None: the count, the squares of the errors, of the
/// reference and of the other, the products, the largest error.
#[pyfunction]
pub(super) fn compare<'py>(
    reference: &Array<'py>,
    reference_bits: bool,
    other: &Array<'py>,
    other_bits: bool,
    axis: Option<isize>,
    threads: Option<isize>,
) -> PyResult<Array<'py>> {
    guarded(|| {
        let py = reference.py();
        let x = arrays::source(reference, "reference", reference_bits)?;
        let y = arrays::source(other, "other", other_bits)?;
        arrays::check_shape(other, "other", reference.shape())?;
        last(reference, "reference")?;
        let at = normal_axis(axis.unwrap_or(-1), reference.ndim())?;
        let (x, y) = (x.with_axis_last(at), y.with_axis_last(at));
        let mut shape = x.shape().to_vec();
        let mut sums = call(py, x.len(), threads, true, |run| engine::compare(&x, &y, run))?;
        if axis.is_none() {
            sums = vec![sums.into_iter().fold(Sums::default(), Sums::then)];
            shape.clear();
        }
        shape.pop();
        shape.push(6);
        let mut outputs = Outputs::new(py, &[Wanted { argument: "sums".into(), item: Item::Float(Dtype::F64), shape }])?;
        let (rows, _) = bytemuck::cast_slice_mut::<u8, f64>(outputs.slices().remove(0)).as_chunks_mut();
        for (row, sums) in rows.iter_mut().zip(sums) {
            let Sums { count, error_squares, squares, other_squares, products, max_abs_error } = sums;
            *row = [count as f64, error_squares, squares, other_squares, products, max_abs_error];
        }
        Ok(outputs.into_arrays().remove(0))
    })
}

/// `cpu_features()` gives the level that calls use, and the levels of this CPU, the slowest first.
#[pyfunction]
pub(super) fn cpu_features() -> PyResult<(&'static str, Vec<&'static str>)> {
    guarded(|| Ok((Level::current()?.name(), Level::available().into_iter().map(Level::name).collect())))
}

/// Panic, on a thread of the pool or on the caller's: a hook for tests.
#[pyfunction]
#[pyo3(name = "_panic_for_tests")]
pub(super) fn panic_for_tests(py: Python<'_>, in_pool: bool) -> PyResult<()> {
    guarded(|| {
        py.detach(|| {
            let caller = std::thread::current().id();
            let work = |_| {
                let here = std::thread::current().id() == caller;
                assert!(here == in_pool, "deliberate, for a test");
                std::thread::sleep(std::time::Duration::from_millis(1)); // the other thread gets its turn
            };
            pool::for_each(0..10_000, if in_pool { 2 } else { 1 }, &|| false, work)
        })?;
        Ok(())
    })
}

/// Do the work of a call. Large work lets go of the interpreter, runs on threads, and ends early with the exception of a signal.
/// `reused` says that the output is the caller's, not new.
pub(super) fn call<T: Send>(
    py: Python<'_>,
    elements: usize,
    threads: Option<isize>,
    reused: bool,
    work: impl FnOnce(&Run) -> Result<T> + Send,
) -> PyResult<T> {
    let threads = threads.map(|n| usize::try_from(n).ok().filter(|&n| n > 0).ok_or(n)).transpose();
    let threads = threads.map_err(|n| Error::value("threads", n.to_string(), "expected 1 or more"))?;
    let level = Level::current()?;
    warn_of_lacking_level(py, level)?;
    if elements < SERIAL {
        return Ok(work(&Run { level, threads: 1, interrupted: &|| false, reused })?);
    }
    let threads = threads::count(threads);
    py.detach(|| {
        let raised = Mutex::new(None);
        // Without an interpreter to ask, as at its exit, nobody interrupts.
        let interrupted = || match Python::try_attach(|py| py.check_signals()) {
            Some(Err(exception)) => {
                *raised.lock().unwrap_or_else(PoisonError::into_inner) = Some(exception);
                true
            }
            Some(Ok(())) | None => false,
        };
        let result = work(&Run { level, threads, interrupted: &interrupted, reused });
        match raised.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(exception) => Err(exception),
            None => Ok(result?),
        }
    })
}

fn decode(
    py: Python<'_>,
    tensor: &Tensor,
    parts: &[Array<'_>],
    dtype: Dtype,
    out: &mut Outputs<'_>,
    reused: bool,
    threads: Option<isize>,
) -> PyResult<()> {
    let parts: Vec<&[u8]> = parts.iter().map(arrays::bytes).collect();
    let sink = out.sink(dtype).with_axis_last(tensor.axis);
    let work = |run: &Run| engine::dequantize(&tensor.layout, &parts, sink, run);
    report(py, &call(py, tensor.layout.elements(), threads, reused, work)?)
}

/// Warn of what the work did otherwise than asked.
pub(super) fn report(py: Python<'_>, outcome: &Outcome) -> PyResult<()> {
    static WARNED: AtomicBool = AtomicBool::new(false);
    if outcome.replaced > 0 {
        let elements = if outcome.replaced == 1 { "element was" } else { "elements were" };
        warn(py, format!("{} {elements} not finite and replaced, as nonfinite= asks", outcome.replaced))?;
    }
    if outcome.pool_failed && !WARNED.swap(true, Ordering::Relaxed) {
        warn(py, "the system gives no more threads; working on the calling thread, slower, with the same results".into())?;
    }
    Ok(())
}

fn warn_of_lacking_level(py: Python<'_>, level: Level) -> PyResult<()> {
    static ASKED: AtomicBool = AtomicBool::new(false);
    if !ASKED.load(Ordering::Relaxed)
        && !ASKED.swap(true, Ordering::Relaxed)
        && let Some(name) = Level::lacking()
    {
        let variable = crate::level::VARIABLE;
        warn(py, format!("{variable} asks for {name}, which this CPU lacks; using {}, with the same results", level.name()))?;
    }
    Ok(())
}

fn warn(py: Python<'_>, message: String) -> PyResult<()> {
    const CALLER_OF_THE_FACADE: i32 = 2;
    PyErr::warn(py, py.get_type::<QuantizeWarning>().as_any(), &CString::new(message)?, CALLER_OF_THE_FACADE)
}

/// A method by its name, with the importance, and the tolerance or the clip limit, that belong to it.
fn named_method<'a>(
    name: &str,
    importance: Option<&str>,
    weights: Option<&'a Source<'a>>,
    (tolerance, clip_limit): (Option<f32>, Option<f32>),
) -> Result<Method<'a>> {
    let importance = match (importance, weights) {
        (None, None) => Importance::Equal,
        (None, Some(weights)) => Importance::Array(weights),
        (Some("magnitude"), _) => Importance::Magnitude,
        (Some(other), _) => return Err(Error::value("importance", format!("'{other}'"), "expected None, \"magnitude\" or an array")),
    };
    if name != "optimal"
        && let Some(argument) = tolerance.map(|_| "tolerance").or(clip_limit.map(|_| "clip_limit"))
    {
        return Err(Error::value(argument, "given", format!("method=\"{name}\" has no use for it: say method=\"optimal\"")));
    }
    if let Some(limit) = clip_limit {
        return match tolerance {
            None => Ok(Method::Clipped(importance, limit)),
            Some(_) => Err(Error::value("tolerance", "given", "what has a clip_limit is searched exactly: leave it out")),
        };
    }
    match (name, importance, tolerance) {
        ("nearest", Importance::Equal, _) => Ok(Method::Nearest),
        ("nearest", ..) => Err(Error::value("importance", "given", "method=\"nearest\" has no use for it: say method=\"optimal\"")),
        ("optimal", importance, None) => Ok(Method::Optimal(importance)),
        ("optimal", importance, Some(tolerance)) => Ok(Method::Within(importance, tolerance)),
        ("fast", importance, _) => Ok(Method::Fast(importance)),
        (other, ..) => Err(Error::value("method", format!("'{other}'"), "expected \"nearest\", \"optimal\" or \"fast\"")),
    }
}

pub(super) fn named_policy(name: &str) -> Result<NonFinite> {
    match name {
        "raise" => Ok(NonFinite::Raise),
        "zero" => Ok(NonFinite::Zero),
        "clip" => Ok(NonFinite::Clip),
        other => Err(Error::value("nonfinite", format!("'{other}'"), "expected \"raise\", \"zero\" or \"clip\"")),
    }
}

/// The length of the last axis.
fn last(array: &Array<'_>, argument: &str) -> Result<usize> {
    array.shape().last().copied().ok_or_else(|| Error::shape(argument, "is 0-d", "expected at least one axis"))
}

fn with_last(shape: &[usize], last: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    *shape.last_mut().expect("the caller saw an axis") = last;
    shape
}

/// The caller's array, or a new one.
fn one_output<'py>(py: Python<'py>, wanted: Wanted, out: Option<Bound<'py, PyAny>>, input: &Array<'py>) -> PyResult<Outputs<'py>> {
    match out {
        None => Outputs::new(py, &[wanted]),
        Some(out) => Outputs::given(vec![out], &[wanted], &[input]),
    }
}
