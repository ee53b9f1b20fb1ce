//! A settled format as Python holds it: the tuple `(format, shape, axis, group_size, scale_dtype, options)`, where `options` holds what
//! else is needed to read the parts.

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PyTuple};

use crate::error::{Error, Result};
use crate::formats::{self, Format};
use crate::layout::{Layout, Options};
use crate::spec::{Choice, GroupSize, ScaleDtype, ScaleRule, Spec};

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
        if spec.is_flat() && axis + 1 < shape.len() {
            let expected = format!("the groups of {} run over all elements: it takes the last axis", spec.name);
            return Err(Error::value("axis", axis.to_string(), expected));
        }
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
        type Fields<'py> = (Bound<'py, PyAny>, Vec<usize>, isize, Bound<'py, PyAny>, Bound<'py, PyAny>, Bound<'py, PyDict>);
        let (format, shape, axis, group_size, scale_dtype, options): Fields<'py> = object.extract()?;
        let (format, mut options) = chosen(format.extract()?, Some(&options))?;
        let spec = format.spec();
        let scale_dtype: &str = scale_dtype.extract()?;
        options.group_size = Some(group_size.extract::<GroupSize>()?);
        // Where there is no choice it is no option.
        options.scale_dtype = (spec.scale_dtypes.len() > 1).then(|| named_scale_dtype(scale_dtype)).transpose()?;
        Ok(Tensor::new(spec, &shape, axis, options)?)
    }
}

impl<'py> IntoPyObject<'py> for Tensor {
    type Target = PyTuple;
    type Output = Bound<'py, PyTuple>;
    type Error = PyErr;

    fn into_pyobject(self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        let shape = PyTuple::new(py, self.shape())?;
        let Layout { spec, group_size, scale_dtype, global_scale, .. } = self.layout;
        let options = PyDict::new(py);
        let variants = formats::variants(spec).filter(|variant| variant.spec().parts.len() != spec.parts.len()).count();
        if let Some(choice) = spec.choice.filter(|_| variants > 0)
            && let Some(on) = choice.is_on()
        {
            options.set_item(choice.option(), on)?;
        }
        if let Some(global_scale) = global_scale {
            options.set_item("global_scale", global_scale)?;
        }
        (spec.name, shape, self.axis, group_size, scale_dtype.name(), options).into_pyobject(py)
    }
}

/// The variant of a format that options beside the group size and the scale dtype select, and those options.
pub(super) fn chosen(name: &str, given: Option<&Bound<'_, PyDict>>) -> PyResult<(Format, Options)> {
    let spec = formats::find(name)?.spec();
    let mut options = Options::default();
    for (option, value) in given.into_iter().flatten() {
        let option: String = option.extract()?;
        let names = spec.options();
        if !names.contains(&option.as_str()) || option == "group_size" || option == "scale_dtype" {
            return Err(Error::Option { option, format: spec.name.into(), options: names }.into());
        }
        let wrong = |expected: &str| -> PyErr {
            let found = value.repr().map_or_else(|_| "?".into(), |found| found.to_string());
            Error::value(option.clone(), found, expected).into()
        };
        if option == "global_scale" {
            options.global_scale =
                if value.is_none() { None } else { Some(value.extract::<f32>().map_err(|_| wrong("expected a number"))?) };
        } else if option == "scale_rule" {
            let names = ScaleRule::ALL.map(|rule| format!("\"{}\"", rule.name())).join(", ");
            let rule = value.extract::<String>().ok().and_then(|name| ScaleRule::ALL.into_iter().find(|rule| rule.name() == name));
            options.choice = Some(Choice::ScaleRule(rule.ok_or_else(|| wrong(&format!("expected one of {names}")))?));
        } else {
            let on = value.extract::<bool>().map_err(|_| wrong("expected True or False"))?;
            options.choice = Choice::switch(&option, on);
        }
    }
    Ok((formats::choose(name, options.choice)?, options))
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
