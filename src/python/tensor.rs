//! A settled format as Python holds it: the tuple `(format, shape, axis, group_size, scale_dtype)`.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyInt, PyTuple};

use crate::error::{Error, Result};
use crate::formats;
use crate::spec::{GroupSize, Layout, Options, ScaleDtype, Spec};

/// A layout, and where the caller has its last axis.
#[derive(Debug)]
pub(super) struct Tensor {
    /// The format settled for the shape with the group axis last.
    pub(super) layout: Layout,
    /// Where the group axis is in the caller's array.
    pub(super) axis: usize,
}

impl Tensor {
    /// `shape` and `axis` are the caller's; a negative axis counts from the end.
    pub(super) fn new(spec: &'static Spec, shape: &[usize], axis: isize, options: Options) -> Result<Tensor> {
        // A 0-d array has no axis to check; the layout refuses it with a better word.
        let axis = if shape.is_empty() { 0 } else { normal_axis(axis, shape.len())? };
        let layout = Layout::new(spec, &move_to_end(shape, axis), options)?;
        Ok(Tensor { layout, axis })
    }

    /// The caller's shape.
    pub(super) fn shape(&self) -> Vec<usize> {
        let (&columns, rows) = self.layout.shape.split_last().expect("a layout has an axis");
        let mut shape = rows.to_vec();
        shape.insert(self.axis, columns);
        shape
    }
}

/// An axis from the start, of an array of `ndim` dimensions.
pub(super) fn normal_axis(axis: isize, ndim: usize) -> Result<usize> {
    let from_start = if axis < 0 { axis.checked_add_unsigned(ndim) } else { Some(axis) };
    match from_start.and_then(|axis| usize::try_from(axis).ok()) {
        Some(axis) if axis < ndim => Ok(axis),
        _ => Err(Error::value("axis", axis.to_string(), format!("an array of {ndim} dimensions takes -{ndim} to {}", ndim - 1))),
    }
}

fn move_to_end(shape: &[usize], axis: usize) -> Vec<usize> {
    let mut shape = shape.to_vec();
    if axis < shape.len() {
        shape[axis..].rotate_left(1);
    }
    shape
}

impl<'py> FromPyObject<'_, 'py> for Tensor {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Tensor> {
        let (format, shape, axis, group_size, scale_dtype): (Bound<'py, PyAny>, Vec<usize>, isize, Bound<'py, PyAny>, Bound<'py, PyAny>) =
            object.extract()?;
        let spec = formats::find(format.extract()?)?.spec();
        let scale_dtype: &str = scale_dtype.extract()?;
        let options = Options {
            group_size: Some(group_size.extract::<GroupSize>()?),
            // Where there is no choice it is no option.
            scale_dtype: (spec.scale_dtypes.len() > 1).then(|| named_scale_dtype(scale_dtype)).transpose()?,
        };
        Ok(Tensor::new(spec, &shape, axis, options)?)
    }
}

impl<'py> IntoPyObject<'py> for Tensor {
    type Target = PyTuple;
    type Output = Bound<'py, PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let shape = PyTuple::new(py, self.shape())?;
        (self.layout.spec.name, shape, self.axis, self.layout.group_size, self.layout.scale_dtype.name()).into_pyobject(py)
    }
}

impl<'py> FromPyObject<'_, 'py> for GroupSize {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<GroupSize> {
        let refuse = |found: String| Error::value("group_size", found, "expected 1 or more, \"row\" or \"tensor\"").into();
        if let Ok(name) = object.extract::<&str>() {
            return match name {
                "row" | "channel" => Ok(GroupSize::Row),
                "tensor" => Ok(GroupSize::Tensor),
                other => Err(refuse(format!("'{other}'"))),
            };
        }
        match object.extract::<i64>() {
            Ok(-1) => Ok(GroupSize::Row),
            Ok(elements @ 1..) => Ok(GroupSize::Elements(elements as usize)),
            Ok(other) => Err(refuse(other.to_string())),
            Err(_) if object.is_instance_of::<PyInt>() => Err(refuse(object.str()?.to_string())),
            Err(_) => {
                let found = object.get_type().name()?;
                Err(PyTypeError::new_err(format!("group_size is of type {found}; expected an integer, \"row\" or \"tensor\"")))
            }
        }
    }
}

impl<'py> IntoPyObject<'py> for GroupSize {
    type Target = PyAny;
    type Output = Bound<'py, PyAny>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(match self {
            GroupSize::Elements(elements) => elements.into_pyobject(py)?.into_any(),
            GroupSize::Row => "row".into_pyobject(py)?.into_any(),
            GroupSize::Tensor => "tensor".into_pyobject(py)?.into_any(),
        })
    }
}

/// A scale dtype by its name.
pub(super) fn named_scale_dtype(name: &str) -> Result<ScaleDtype> {
    [ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32]
        .into_iter()
        .find(|dtype| dtype.name() == name)
        .ok_or_else(|| Error::value("scale_dtype", format!("'{name}'"), "expected float16, bfloat16 or float32"))
}
