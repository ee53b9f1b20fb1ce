//! Error feedback: the Hessian of a layer's inputs, and the weights that are quantized by it.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::api::{call, report};
use super::arrays::{self, Array, Item, Outputs, Wanted};
use super::errors::guarded;
use super::parts::{Parts, dict, wanted_parts};
use super::tensor::{Tensor, chosen, named_scale_dtype};
use crate::element::Dtype;
use crate::error::{Error, Result};
use crate::feedback::{self, Options, Order, Scales};
use crate::formats;
use crate::layout;
use crate::spec::GroupSize;

/// Products that take about as long as one element of a call takes to encode.
const PRODUCTS: usize = 64;

/// The work of products of matrices, in elements of other calls.
fn elements(rows: usize, columns: usize) -> usize {
    rows.saturating_mul(columns).saturating_mul(columns) / PRODUCTS
}

/// Sums of x x^T.
#[pyclass(module = "quantize._core")]
pub(super) struct Hessian(feedback::Hessian);

#[pymethods]
impl Hessian {
    #[new]
    fn new(n: isize) -> PyResult<Hessian> {
        let n = usize::try_from(n).map_err(|_| Error::value("n", n.to_string(), "expected the number of inputs of the layer, 1 or more"));
        Ok(Hessian(feedback::Hessian::new(n?)?))
    }

    /// `from_matrix(matrix, bits)`
    #[staticmethod]
    fn from_matrix(matrix: &Array<'_>, bits: bool) -> PyResult<Hessian> {
        guarded(|| {
            let source = arrays::source(matrix, "matrix", bits)?;
            Ok(Hessian(call(matrix.py(), 0, None, false, |run| feedback::Hessian::from_matrix(&source, run))?))
        })
    }

    /// `update(inputs, bits, argument, threads)`: messages call the inputs `argument`.
    fn update(&mut self, inputs: &Array<'_>, bits: bool, argument: &str, threads: Option<isize>) -> PyResult<()> {
        guarded(|| {
            let source = arrays::source(inputs, argument, bits)?;
            let hessian = &mut self.0;
            let work = elements(source.len() / hessian.length(), hessian.length());
            call(inputs.py(), work, threads, false, |run| hessian.update(&source, argument, run))
        })
    }

    #[getter]
    fn n(&self) -> usize {
        self.0.length()
    }

    #[getter]
    fn count(&self) -> u64 {
        self.0.count()
    }

    /// E[x^2] as float64.
    #[getter]
    fn diagonal<'py>(&self, py: Python<'py>) -> PyResult<Array<'py>> {
        self.means(py, vec![self.0.length()], |flat| (flat, flat))
    }

    /// E[x x^T] as float64.
    #[getter]
    fn matrix<'py>(&self, py: Python<'py>) -> PyResult<Array<'py>> {
        let n = self.0.length();
        self.means(py, vec![n, n], |flat| (flat / n, flat % n))
    }
}

impl Hessian {
    fn means<'py>(&self, py: Python<'py>, shape: Vec<usize>, place: impl Fn(usize) -> (usize, usize)) -> PyResult<Array<'py>> {
        guarded(|| {
            let mut outputs = Outputs::new(py, &[Wanted { argument: "the means".into(), item: Item::Float(Dtype::F64), shape }])?;
            let means = bytemuck::cast_slice_mut::<u8, f64>(outputs.slices().remove(0));
            for (flat, mean) in means.iter_mut().enumerate() {
                let (i, j) = place(flat);
                *mean = self.0.mean(i, j);
            }
            Ok(outputs.into_arrays().remove(0))
        })
    }
}

/// `gptq(weight, bits, hessian, format, group_size, scale_dtype, options, method, damping, order, refine, threads)` gives
/// `(tensor, parts)`.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the public function, one each")]
pub(super) fn gptq<'py>(
    weight: &Array<'py>,
    bits: bool,
    hessian: &Bound<'py, Hessian>,
    format: &str,
    group_size: Option<GroupSize>,
    scale_dtype: Option<&str>,
    options: Option<&Bound<'py, PyDict>>,
    method: &str,
    damping: f64,
    order: &str,
    refine: isize,
    threads: Option<isize>,
) -> PyResult<(Tensor, Parts<'py>)> {
    guarded(|| {
        let py = weight.py();
        let (format, options) = chosen(format, options)?;
        let spec = format.spec();
        let how = named(method, damping, order, refine)?;
        let source = arrays::source(weight, "weight", bits)?;
        let scale_dtype = scale_dtype.map(named_scale_dtype).transpose()?.or_else(|| spec.scale_dtype_of(source.dtype()));
        let options = layout::Options { group_size, scale_dtype, ..options };
        let mut tensor = Tensor::new(spec, weight.shape(), -1, options)?;
        let mut outputs = Outputs::new(py, &wanted_parts(&tensor.layout, "parts"))?;
        let (layout, mut slices) = (&tensor.layout, outputs.slices());
        let hessian = hessian.borrow();
        let hessian = &hessian.0;
        let work = elements(layout.rows(), layout.columns());
        let outcome = call(py, work, threads, false, |run| feedback::quantize(&source, hessian, layout, how, &mut slices, run))?;
        report(py, &outcome)?;
        tensor.layout = tensor.layout.in_format(formats::stored(spec).spec());
        Ok((tensor, dict(py, spec, outputs.into_arrays())?))
    })
}

fn named(method: &str, damping: f64, order: &str, refine: isize) -> Result<Options> {
    let scales = match method {
        "optimal" => Scales::Optimal,
        "nearest" => Scales::Nearest,
        other => return Err(Error::value("method", format!("'{other}'"), "expected \"optimal\" or \"nearest\"")),
    };
    let order = match order {
        "natural" => Order::Natural,
        "activation" => Order::Activation,
        other => return Err(Error::value("order", format!("'{other}'"), "expected \"natural\" or \"activation\"")),
    };
    let refine =
        usize::try_from(refine).map_err(|_| Error::value("refine", refine.to_string(), "expected a number of rounds, 0 or more"))?;
    Ok(Options { scales, damping, order, refine })
}

/// `output_error(weight, weight_bits, other, other_bits, hessian, threads)`: both arrays have the inputs as their last axis.
#[pyfunction]
pub(super) fn output_error<'py>(
    weight: &Array<'py>,
    weight_bits: bool,
    other: &Bound<'py, PyUntypedArray>,
    other_bits: bool,
    hessian: &Bound<'py, Hessian>,
    threads: Option<isize>,
) -> PyResult<f64> {
    guarded(|| {
        let x = arrays::source(weight, "weight", weight_bits)?;
        let y = arrays::source(other, "other", other_bits)?;
        arrays::check_shape(other, "other", weight.shape())?;
        let hessian = hessian.borrow();
        let hessian = &hessian.0;
        let work = elements(x.len() / hessian.length(), hessian.length());
        call(weight.py(), work, threads, false, |run| feedback::output_error(&x, &y, hessian, run))
    })
}
