//! The functions of `quantize._core`: borrow, let go of the interpreter, call, hand over.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use numpy::PyUntypedArrayMethods;
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arrays::{self, Array, Item, Outputs, Wanted};
use super::errors::{QuantizeWarning, guarded};
use super::tensor::{Tensor, named_scale_dtype, normal_axis};
use crate::element::Dtype;
use crate::engine::{self, NonFinite, Outcome, Run, SERIAL, Sums};
use crate::error::{Error, Result};
use crate::formats;
use crate::level::Level;
use crate::spec::{Extent, GroupSize, GroupSizes, Layout, Options, PartDtype, ScaleDtype, Scheme, Spec};
use crate::{pool, threads};

type Parts<'py> = Bound<'py, PyDict>;

/// `quantize(array, bits, format, axis, group_size, scale_dtype, nonfinite, out, threads)` gives `(tensor, parts)`.
///
/// `bits` says that uint16 holds bfloat16; `out` is a dict from every part's name to its array, or None.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the public function, one each")]
pub(super) fn quantize<'py>(
    array: &Array<'py>,
    bits: bool,
    format: &str,
    axis: isize,
    group_size: Option<GroupSize>,
    scale_dtype: Option<&str>,
    nonfinite: &str,
    out: Option<&Parts<'py>>,
    threads: Option<isize>,
) -> PyResult<(Tensor, Parts<'py>)> {
    guarded(|| {
        let py = array.py();
        let spec = formats::find(format)?.spec();
        let nonfinite = named_policy(nonfinite)?;
        let source = arrays::source(array, "array", bits)?;
        let scale_dtype = scale_dtype.map(named_scale_dtype).transpose()?.or_else(|| spec.scale_dtype_of(source.dtype()));
        let options = Options { group_size, scale_dtype };
        let tensor = Tensor::new(spec, array.shape(), axis, options)?;
        let wanted = wanted_parts(&tensor.layout, if out.is_some() { "out" } else { "parts" });
        let mut outputs = match out {
            None => Outputs::new(py, &wanted)?,
            Some(out) => Outputs::given(named_parts(spec, out, "out")?, &wanted, &[array])?,
        };
        let source = source.with_axis_last(tensor.axis);
        let (layout, mut slices) = (&tensor.layout, outputs.slices());
        let work = |run: &Run| engine::quantize(&source, layout, nonfinite, &mut slices, run);
        let outcome = call(py, layout.elements(), threads, out.is_some(), work)?;
        report(py, &outcome)?;
        Ok((tensor, dict(py, spec, outputs)?))
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
        call(py, layout.elements(), None, false, |run| engine::unpack(layout, &parts, unpacked, scales, offsets, &mut [], run))?;
        let mut arrays = outputs.into_arrays().into_iter();
        let scales = arrays.next().expect("scales were asked for");
        let offsets = if has_offsets { arrays.next() } else { None };
        Ok((arrays.next(), scales, offsets))
    })
}

/// `repack(tensor, parts, format, group_size, scale_dtype, requantize, threads)` gives `(tensor, parts)` in another format.
///
/// Options that are None stay as they are where the format has them. Lossless, or through floats if `requantize` says so.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the public function, one each")]
pub(super) fn repack<'py>(
    py: Python<'py>,
    tensor: Tensor,
    parts: &Parts<'py>,
    format: &str,
    group_size: Option<GroupSize>,
    scale_dtype: Option<&str>,
    requantize: bool,
    threads: Option<isize>,
) -> PyResult<(Tensor, Parts<'py>)> {
    guarded(|| {
        let (from, spec) = (&tensor.layout, formats::find(format)?.spec());
        let options = Options {
            group_size: group_size.or(spec.group_sizes.takes(from.group_size).then_some(from.group_size)),
            scale_dtype: scale_dtype.map(named_scale_dtype).transpose()?.or_else(|| kept_scale_dtype(spec, from.scale_dtype)),
        };
        let to = Tensor { layout: Layout::new(spec, &from.shape, options)?, axis: tensor.axis };
        let parts = borrow_parts(from, parts)?;
        let mut outputs = Outputs::new(py, &wanted_parts(&to.layout, "parts"))?;
        let bytes: Vec<&[u8]> = parts.iter().map(arrays::bytes).collect();
        let mut slices = outputs.slices();
        let lossless = call(py, from.elements(), threads, false, |run| match engine::repack(from, &bytes, &to.layout, &mut slices, run) {
            Err(Error::Lossy { .. }) if requantize => Ok(None),
            other => other.map(Some),
        })?;
        let outcome = match lossless {
            Some(outcome) => outcome,
            None => {
                let floats = Wanted { argument: "floats".into(), item: Item::Float(Dtype::F32), shape: tensor.shape() };
                let mut floats = Outputs::new(py, &[floats])?;
                decode(py, &tensor, &parts, Dtype::F32, &mut floats, false, threads)?;
                let floats = floats.into_arrays().remove(0);
                let source = arrays::source(&floats, "array", false)?.with_axis_last(to.axis);
                let work = |run: &Run| engine::quantize(&source, &to.layout, NonFinite::Raise, &mut slices, run);
                call(py, from.elements(), threads, false, work)?
            }
        };
        report(py, &outcome)?;
        Ok((to, dict(py, spec, outputs)?))
    })
}

/// `from_parts(format, parts, shape, axis, group_size, scale_dtype)` gives `(tensor, parts)`, all checked; without a shape the
/// largest that the parts allow.
#[pyfunction]
pub(super) fn from_parts<'py>(
    format: &str,
    parts: &Parts<'py>,
    shape: Option<Vec<isize>>,
    axis: isize,
    group_size: Option<GroupSize>,
    scale_dtype: Option<&str>,
) -> PyResult<(Tensor, Parts<'py>)> {
    guarded(|| {
        let py = parts.py();
        let spec = formats::find(format)?.spec();
        let arrays: Vec<Array<'py>> =
            named_parts(spec, parts, "parts")?.iter().map(|part| part.cast().cloned().map_err(PyErr::from)).collect::<PyResult<_>>()?;
        for (part, array) in spec.parts.iter().zip(&arrays) {
            let item = match part.dtype {
                PartDtype::U8 => Item::U8,
                PartDtype::U32 => Item::U32,
                PartDtype::Scale => continue,
            };
            arrays::check_dtype(array, &format!("parts['{}']", part.name), item)?;
        }
        let given = scale_dtype.map(named_scale_dtype).transpose()?;
        let options = Options { group_size, scale_dtype: stored_scale_dtype(spec, &arrays, given)? };
        let shape = match shape {
            Some(shape) => lengths(&shape)?,
            None => {
                let mut shape = widest(spec, group_size, &arrays)?;
                let columns = shape.pop().expect("it has an axis");
                shape.insert(normal_axis(axis, shape.len() + 1)?, columns);
                shape
            }
        };
        let tensor = Tensor::new(spec, &shape, axis, options)?;
        let arrays = borrow_parts(&tensor.layout, parts)?;
        Ok((tensor, dict_of(py, spec, arrays)?))
    })
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

/// `formats()` gives one tuple a format, in the order of the fields of `FormatInfo`.
#[pyfunction]
#[pyo3(name = "formats")]
pub(super) fn list_formats<'py>(py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
    guarded(|| formats::FORMATS.iter().map(|format| describe(py, format.spec())).collect())
}

fn describe<'py>(py: Python<'py>, spec: &'static Spec) -> PyResult<Bound<'py, PyTuple>> {
    let (scheme, codes) = match spec.scheme {
        Scheme::Symmetric => ("symmetric", (-8, 7)),
        Scheme::Affine => ("affine", (0, 15)),
        Scheme::Minimum => ("minimum", (0, 15)),
        Scheme::Codebook(_) => ("codebook", (0, 15)),
    };
    let (group_size, sizes) = match spec.group_sizes {
        GroupSizes::Fixed(size) | GroupSizes::InBlocks { size, .. } => (size, vec![size]),
        GroupSizes::OneOf { sizes, default } => (default, sizes.to_vec()),
        GroupSizes::Any { default } => (default, Vec::new()),
    };
    let (any, sizes) = (sizes.is_empty(), PyTuple::new(py, sizes)?);
    let scale_dtypes = PyTuple::new(py, spec.scale_dtypes.iter().map(|dtype| dtype.name()))?;
    let parts = spec.parts.iter().map(|part| match part.dtype {
        PartDtype::U8 => (part.name, "uint8"),
        PartDtype::U32 => (part.name, "uint32"),
        PartDtype::Scale if spec.scale_dtypes[0].size() == 1 => (part.name, "uint8"),
        PartDtype::Scale => (part.name, spec.scale_dtypes[0].name()),
    });
    let parts = PyTuple::new(py, parts)?;
    let bits = spec.bits_per_weight(group_size, spec.scale_dtypes[0]);
    let (aliases, options) = (PyTuple::new(py, spec.aliases)?, PyTuple::new(py, spec.options())?);
    let fields = [
        spec.name.into_pyobject(py)?.into_any(),
        aliases.into_any(),
        spec.summary.into_pyobject(py)?.into_any(),
        scheme.into_pyobject(py)?.into_any(),
        codes.into_pyobject(py)?.into_any(),
        group_size.into_pyobject(py)?.into_any(),
        sizes.into_any(),
        any.into_pyobject(py)?.to_owned().into_any(),
        scale_dtypes.into_any(),
        spec.scales_follow_array.into_pyobject(py)?.to_owned().into_any(),
        options.into_any(),
        parts.into_any(),
        bits.into_pyobject(py)?.into_any(),
        spec.home.into_pyobject(py)?.into_any(),
    ];
    PyTuple::new(py, fields)
}

/// `refuse_option(format, option)` raises: the format lacks this option.
#[pyfunction]
pub(super) fn refuse_option(format: &str, option: &str) -> PyResult<()> {
    let spec = formats::find(format)?.spec();
    Err(Error::Option { option: option.into(), format: spec.name.into(), options: spec.options() }.into())
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
fn call<T: Send>(
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
fn report(py: Python<'_>, outcome: &Outcome) -> PyResult<()> {
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

pub(super) fn named_policy(name: &str) -> Result<NonFinite> {
    match name {
        "raise" => Ok(NonFinite::Raise),
        "zero" => Ok(NonFinite::Zero),
        "clip" => Ok(NonFinite::Clip),
        other => Err(Error::value("nonfinite", format!("'{other}'"), "expected \"raise\", \"zero\" or \"clip\"")),
    }
}

fn part_item(layout: &Layout, index: usize) -> Item {
    match (layout.spec.parts[index].dtype, layout.scale_dtype) {
        (PartDtype::U8, _) | (PartDtype::Scale, ScaleDtype::E8m0 | ScaleDtype::E4m3) => Item::U8,
        (PartDtype::U32, _) => Item::U32,
        (PartDtype::Scale, ScaleDtype::F16) => Item::Float(Dtype::F16),
        (PartDtype::Scale, ScaleDtype::Bf16) => Item::Float(Dtype::Bf16),
        (PartDtype::Scale, ScaleDtype::F32) => Item::Float(Dtype::F32),
    }
}

fn wanted_parts(layout: &Layout, argument: &str) -> Vec<Wanted> {
    let wanted = |(index, part): (usize, &crate::spec::Part)| Wanted {
        argument: format!("{argument}['{}']", part.name),
        item: part_item(layout, index),
        shape: layout.part_shape(index),
    };
    layout.spec.parts.iter().enumerate().map(wanted).collect()
}

/// The parts in the order of the format, as arrays that fit the layout.
fn borrow_parts<'py>(layout: &Layout, parts: &Parts<'py>) -> PyResult<Vec<Array<'py>>> {
    let given = named_parts(layout.spec, parts, "parts")?;
    let wanted = wanted_parts(layout, "parts");
    given.iter().zip(&wanted).map(|(part, wanted)| arrays::part(part, &wanted.argument, wanted.item, &wanted.shape)).collect()
}

/// The values of a dict that has exactly the names of the parts, in the order of the format.
fn named_parts<'py>(spec: &Spec, parts: &Parts<'py>, argument: &str) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let names = || spec.parts.iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
    let given: Vec<_> = spec.parts.iter().map_while(|part| parts.get_item(part.name).transpose()).collect::<PyResult<_>>()?;
    if given.len() != spec.parts.len() || parts.len() != given.len() {
        let found: Vec<String> = parts.keys().iter().map(|name| Ok(name.str()?.to_string())).collect::<PyResult<_>>()?;
        let found = format!("a mapping of {}", if found.is_empty() { "nothing".into() } else { found.join(", ") });
        return Err(Error::value(argument, found, format!("{} has {}", spec.name, names())).into());
    }
    Ok(given)
}

fn dict<'py>(py: Python<'py>, spec: &Spec, outputs: Outputs<'py>) -> PyResult<Parts<'py>> {
    dict_of(py, spec, outputs.into_arrays())
}

fn dict_of<'py>(py: Python<'py>, spec: &Spec, arrays: Vec<Array<'py>>) -> PyResult<Parts<'py>> {
    let dict = PyDict::new(py);
    for (part, array) in spec.parts.iter().zip(arrays) {
        dict.set_item(part.name, array)?;
    }
    Ok(dict)
}

/// The scale dtype for a conversion: the same, or float32 where the target does not have it; None where there is no choice.
fn kept_scale_dtype(spec: &Spec, from: ScaleDtype) -> Option<ScaleDtype> {
    let choice = spec.scale_dtypes.len() > 1;
    [from, ScaleDtype::F32].into_iter().find(|dtype| choice && spec.scale_dtypes.contains(dtype))
}

/// The scale dtype that the parts are stored in; None where the format leaves no choice.
fn stored_scale_dtype(spec: &Spec, parts: &[Array<'_>], given: Option<ScaleDtype>) -> PyResult<Option<ScaleDtype>> {
    if spec.scale_dtypes.len() < 2 {
        return Ok(given); // the layout refuses an option that the format lacks
    }
    let Some((part, array)) = spec.parts.iter().zip(parts).find(|(part, _)| part.dtype == PartDtype::Scale) else {
        return Ok(given);
    };
    let found = arrays::dtype_name(array)?;
    let name = if found == "uint16" { "bfloat16" } else { &found };
    let Some(&stored) = spec.scale_dtypes.iter().find(|dtype| dtype.name() == name) else {
        let names: Vec<_> = spec.scale_dtypes.iter().map(|dtype| dtype.name()).collect();
        return Err(Error::dtype(format!("parts['{}']", part.name), found, names.join(", ")).into());
    };
    match given {
        Some(given) if given != stored => {
            let expected = format!("parts['{}'] has dtype {found}", part.name);
            Err(Error::value("scale_dtype", given.name(), expected).into())
        }
        _ => Ok(Some(stored)),
    }
}

fn lengths(shape: &[isize]) -> Result<Vec<usize>> {
    let length = |&n: &isize| usize::try_from(n).map_err(|_| Error::value("shape", format!("{shape:?}"), "expected lengths of 0 or more"));
    shape.iter().map(length).collect()
}

/// The shape, group axis last, of the longest rows that all parts allow.
fn widest(spec: &Spec, group_size: Option<GroupSize>, parts: &[Array<'_>]) -> Result<Vec<usize>> {
    let group = match (spec.group_sizes, group_size) {
        (GroupSizes::Fixed(size) | GroupSizes::InBlocks { size, .. }, _) | (_, Some(GroupSize::Elements(size))) => Some(size),
        (GroupSizes::Any { default } | GroupSizes::OneOf { default, .. }, None) => Some(default),
        (_, Some(GroupSize::Row | GroupSize::Tensor)) => None,
    };
    let mut shape = Vec::new();
    let mut columns = usize::MAX;
    for (part, array) in spec.parts.iter().zip(parts) {
        let (&length, rows) = array
            .shape()
            .split_last()
            .ok_or_else(|| Error::shape(format!("parts['{}']", part.name), "is 0-d", "expected at least one axis"))?;
        let per_item = match part.extent {
            Extent::Codes if part.dtype == PartDtype::U32 => Some(8),
            Extent::Codes => Some(2),
            Extent::GroupCodes => {
                shape = rows.split_last().map_or(&[][..], |(_, rows)| rows).to_vec();
                columns = columns.min(rows.last().map_or(0, |groups| groups.saturating_mul(group.unwrap_or(1))));
                None
            }
            Extent::Groups => group,
            Extent::GroupPairs => group.map(|group| group.saturating_mul(2)),
            Extent::Blocks(bytes) => {
                columns = columns.min((length / bytes).saturating_mul(group.unwrap_or(1)));
                shape = rows.to_vec();
                None
            }
        };
        if part.extent == Extent::Codes {
            shape = rows.to_vec();
        }
        columns = per_item.map_or(columns, |elements| columns.min(length.saturating_mul(elements)));
    }
    shape.push(columns);
    Ok(shape)
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
