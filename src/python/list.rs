//! The table of formats, as data.

use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::errors::guarded;
use super::parts::fixed_item;
use crate::formats::{self, Format};
use crate::search::Problem;
use crate::spec::{GroupSizes, Part, Scheme, Spec};

/// `formats()` gives one tuple a format, in the order of the fields of `FormatInfo`.
#[pyfunction]
#[pyo3(name = "formats")]
pub(super) fn list_formats<'py>(py: Python<'py>) -> PyResult<Vec<Bound<'py, PyTuple>>> {
    guarded(|| {
        let is_default = |format: &&Format| formats::find(format.spec().name).is_ok_and(|first| std::ptr::eq(first.spec(), format.spec()));
        formats::FORMATS.iter().filter(is_default).map(|format| describe(py, format.spec())).collect()
    })
}

fn describe<'py>(py: Python<'py>, spec: &'static Spec) -> PyResult<Bound<'py, PyTuple>> {
    let scheme = match spec.scheme {
        Scheme::Symmetric => "symmetric",
        Scheme::Affine => "affine",
        Scheme::Minimum => "minimum",
        Scheme::Codebook(_) => "codebook",
    };
    let (group_size, sizes) = match spec.group_sizes {
        GroupSizes::Fixed(size) | GroupSizes::InBlocks { size, .. } => (size, vec![size]),
        GroupSizes::OneOf { sizes, default, .. } => (default, sizes.to_vec()),
        GroupSizes::Divides { default } | GroupSizes::Any { default, .. } => (default, Vec::new()),
    };
    let (any, sizes) = (sizes.is_empty(), PyTuple::new(py, sizes)?);
    let scale_dtypes = PyTuple::new(py, spec.scale_dtypes.iter().map(|dtype| dtype.name()))?;
    let listed = listed_parts(spec);
    let shapes = PyTuple::new(py, listed.iter().map(|part| (part.name, &part.shape)).collect::<Vec<_>>())?;
    let parts = PyTuple::new(py, listed.iter().map(|part| (part.name, part.dtype)).collect::<Vec<_>>())?;
    let bits = spec.bits_per_weight(group_size, spec.scale_dtypes[0]);
    let (aliases, options) = (PyTuple::new(py, spec.aliases)?, PyTuple::new(py, spec.options())?);
    let fields = [
        spec.name.into_pyobject(py)?.into_any(),
        aliases.into_any(),
        spec.summary.into_pyobject(py)?.into_any(),
        scheme.into_pyobject(py)?.into_any(),
        spec.codes().into_pyobject(py)?.into_any(),
        group_size.into_pyobject(py)?.into_any(),
        sizes.into_any(),
        any.into_pyobject(py)?.to_owned().into_any(),
        scale_dtypes.into_any(),
        spec.scales_follow_array.into_pyobject(py)?.to_owned().into_any(),
        options.into_any(),
        parts.into_any(),
        bits.into_pyobject(py)?.into_any(),
        spec.home.into_pyobject(py)?.into_any(),
        shapes.into_any(),
        spec.exact.into_pyobject(py)?.to_owned().into_any(),
        spec.is_flat().into_pyobject(py)?.to_owned().into_any(),
        PyTuple::new(py, methods(spec))?.into_any(),
        spec.is_companion().into_pyobject(py)?.to_owned().into_any(),
    ];
    PyTuple::new(py, fields)
}

/// The methods that a variant has.
fn methods(spec: &'static Spec) -> Vec<&'static str> {
    let problems = || formats::variants(spec).filter_map(|variant| Problem::of(variant.spec()));
    let mut methods = vec!["nearest"];
    methods.extend(problems().next().map(|_| "optimal"));
    methods.extend(problems().find_map(Problem::fast).map(|_| "fast"));
    methods
}

/// A part as the table has it.
struct Listed {
    name: &'static str,
    /// As a formula, with the option that it is there for.
    shape: String,
    dtype: &'static str,
}

/// The parts of all variants: one that the default lacks comes after the part that it follows in its variant.
fn listed_parts(spec: &'static Spec) -> Vec<Listed> {
    let mut listed: Vec<Listed> = Vec::new();
    for variant in formats::variants(spec).map(Format::spec) {
        let mut next = 0;
        for part in variant.parts {
            let known = listed.iter().position(|listed| listed.name == part.name);
            if known.is_none() {
                listed.insert(next, Listed { name: part.name, shape: shape_of(part, variant, spec), dtype: dtype_of(part, spec) });
            }
            next = known.unwrap_or(next) + 1;
        }
    }
    listed
}

fn shape_of(part: &Part, variant: &Spec, default: &Spec) -> String {
    let group = variant.group_sizes.default();
    let shape = part.extent.shape(variant.block(group) / group);
    match variant.choice.filter(|_| !std::ptr::eq(variant, default)).and_then(|choice| Some((choice.option(), choice.is_on()?))) {
        Some((option, on)) => format!("{shape} if {option}={}", if on { "True" } else { "False" }),
        None => shape,
    }
}

fn dtype_of(part: &Part, spec: &Spec) -> &'static str {
    match fixed_item(part) {
        Some(item) => item.name(),
        None if spec.scale_dtypes[0].size() == 1 => "uint8",
        None => spec.scale_dtypes[0].name(),
    }
}
