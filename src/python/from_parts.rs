//! `from_parts`: a tensor from arrays that somebody else stored. What they do not say is inferred, what they say is checked.

use numpy::{PyUntypedArray, PyUntypedArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::arrays::{self, Array, Item, Outputs, Wanted};
use super::errors::guarded;
use super::parts::{Parts, borrow_parts, dict, fixed_item, named_parts};
use super::tensor::{Tensor, chosen, named_scale_dtype, normal_axis};
use crate::engine;
use crate::error::{Error, Result};
use crate::formats;
use crate::layout::Options;
use crate::spec::{Choice, Extent, GroupSize, GroupSizes, Part, PartDtype, ScaleDtype, Spec};

/// `from_parts(format, parts, shape, axis, group_size, scale_dtype, options)` gives `(tensor, parts)`, all checked; without a
/// shape the largest that the parts allow. The parts that are there select the variant of the format.
#[pyfunction]
#[expect(clippy::too_many_arguments, reason = "the options of the public function, one each")]
pub(super) fn from_parts<'py>(
    py: Python<'py>,
    format: &str,
    parts: &Parts<'py>,
    shape: Option<Vec<isize>>,
    axis: isize,
    group_size: Option<GroupSize>,
    scale_dtype: Option<&str>,
    options: Option<&Bound<'py, PyDict>>,
) -> PyResult<(Tensor, Parts<'py>)> {
    guarded(|| {
        let (format, options) = chosen(format, options)?;
        let spec = with_parts(format.spec(), parts, options.choice)?;
        let stored = stored_arrays(spec, parts)?;
        let scale_dtype = stored_scale_dtype(spec, &stored, scale_dtype.map(named_scale_dtype).transpose()?)?;
        let shape = match shape {
            Some(shape) => lengths(&shape)?,
            None => {
                let mut shape = widest(spec, group_size, &stored)?;
                let columns = shape.pop().expect("it has an axis");
                shape.insert(normal_axis(axis, shape.len() + 1)?, columns);
                shape
            }
        };
        let group_size = match group_size {
            None if spec.is_flat() => shown_group_size(spec, shape.iter().fold(1, |size, &n| size.saturating_mul(n)), &stored),
            None if !shape.is_empty() => shown_group_size(spec, shape[normal_axis(axis, shape.len())?], &stored),
            given => given,
        };
        let tensor = Tensor::new(spec, &shape, axis, Options { group_size, scale_dtype, choice: None, ..options })?;
        let parts = whole(py, &tensor, parts)?;
        let arrays = borrow_parts(&tensor.layout, &parts)?;
        engine::check_once(&tensor.layout, &arrays.iter().map(arrays::bytes).collect::<Vec<_>>())?;
        Ok((tensor, dict(py, spec, arrays)?))
    })
}

/// The variant of a format that has these parts; the number of each column's group may be missing.
fn with_parts(spec: &'static Spec, parts: &Parts<'_>, choice: Option<Choice>) -> PyResult<&'static Spec> {
    let fits = |spec: &Spec| -> PyResult<bool> {
        let mut found = 0;
        for part in spec.parts {
            let is_there = parts.contains(part.name)?;
            if !is_there && part.extent != Extent::GroupOfColumn {
                return Ok(false);
            }
            found += usize::from(is_there);
        }
        Ok(found == parts.len())
    };
    for variant in formats::variants(spec) {
        let fitting = variant.spec();
        if !fits(fitting)? {
            continue;
        }
        return match choice {
            Some(given) if !std::ptr::eq(formats::stored(spec).spec(), fitting) => {
                let names = |on| if on { "True" } else { "False" };
                let on = given.is_on().expect("only options that are on or off show in the parts");
                let expected = format!("the parts are those of {}={}", given.option(), names(!on));
                Err(Error::value(given.option(), names(on), expected).into())
            }
            _ => Ok(fitting),
        };
    }
    named_parts(spec, parts, "parts").map(|_| spec)
}

/// The arrays that are there, of the dtypes of their parts.
fn stored_arrays<'py>(spec: &'static Spec, parts: &Parts<'py>) -> PyResult<Vec<(&'static Part, Array<'py>)>> {
    let mut stored = Vec::with_capacity(spec.parts.len());
    for part in spec.parts {
        let Some(array) = parts.get_item(part.name)? else { continue };
        let array = array.cast_into().map_err(PyErr::from)?;
        if let Some(item) = fixed_item(part) {
            arrays::check_dtype(&array, &named(part), item)?;
        }
        stored.push((part, array));
    }
    Ok(stored)
}

/// What messages call a part.
fn named(part: &Part) -> String {
    format!("parts['{}']", part.name)
}

/// The scale dtype that the parts are stored in; None where the format leaves no choice.
fn stored_scale_dtype(spec: &Spec, parts: &[(&Part, Array<'_>)], given: Option<ScaleDtype>) -> PyResult<Option<ScaleDtype>> {
    if spec.scale_dtypes.len() < 2 {
        return Ok(given); // the layout refuses an option that the format lacks
    }
    let Some((part, array)) = parts.iter().find(|(part, _)| part.dtype == PartDtype::Scale) else {
        return Ok(given);
    };
    let found = arrays::dtype_name(array)?;
    let name = if found == "uint16" { "bfloat16" } else { &found };
    let Some(&stored) = spec.scale_dtypes.iter().find(|dtype| dtype.name() == name) else {
        let names: Vec<_> = spec.scale_dtypes.iter().map(|dtype| dtype.name()).collect();
        return Err(Error::dtype(named(part), found, names.join(", ")).into());
    };
    match given {
        Some(given) if given != stored => {
            let expected = format!("{} has dtype {found}", named(part));
            Err(Error::value("scale_dtype", given.name(), expected).into())
        }
        _ => Ok(Some(stored)),
    }
}

fn lengths(shape: &[isize]) -> Result<Vec<usize>> {
    let length = |&n: &isize| usize::try_from(n).map_err(|_| Error::value("shape", format!("{shape:?}"), "expected lengths of 0 or more"));
    shape.iter().map(length).collect()
}

/// The shape, group axis last, of the longest rows that all parts allow, or that a part says.
fn widest(spec: &Spec, group_size: Option<GroupSize>, parts: &[(&Part, Array<'_>)]) -> PyResult<Vec<usize>> {
    if let Some((part, array)) = parts.iter().find(|(part, _)| part.extent == Extent::Lengths) {
        return stored_lengths(part, array);
    }
    let group = match group_size {
        Some(GroupSize::Elements(size)) => Some(size),
        Some(GroupSize::Row | GroupSize::Tensor) => None,
        None => Some(spec.group_sizes.default()),
    };
    // Where the group size follows from the parts, only the codes tell the length.
    let is_shown = group_size.is_none() && is_shown(spec);
    let mut shape = Vec::new();
    let mut columns = usize::MAX;
    for (part, array) in parts {
        let lengths = array.shape();
        let axes = |count: usize| match lengths.len().checked_sub(count) {
            Some(_) => Ok(()),
            None => {
                let found = format!("has {} axes", lengths.len());
                Err(Error::shape(named(part), found, format!("expected {count} or more")))
            }
        };
        let (length, rows) = match lengths.split_last() {
            Some((&length, rows)) => (length, rows),
            None if matches!(part.extent, Extent::Scalar | Extent::One) => continue,
            None => return Err(Error::shape(named(part), "is 0-d", "expected at least one axis").into()),
        };
        let (of_part, fits) = match part.extent {
            Extent::Codes if spec.is_flat() => return Err(needs_shape(spec).into()),
            Extent::Codes => (Some(rows.to_vec()), Some(length.saturating_mul(if part.dtype == PartDtype::U8 { 2 } else { 8 }))),
            Extent::GroupCodes => {
                axes(2)?;
                let (groups, rows) = rows.split_last().expect("two axes");
                let group = if is_shown { length.saturating_mul(2) } else { group.unwrap_or(1) };
                (Some(rows.to_vec()), Some(groups.saturating_mul(group)))
            }
            Extent::Groups if !is_shown => (None, group.map(|group| length.saturating_mul(group))),
            Extent::GroupPairs if !is_shown => (None, group.map(|group| length.saturating_mul(2).saturating_mul(group))),
            Extent::Blocks(bytes) => (Some(rows.to_vec()), Some((length / bytes).saturating_mul(spec.block(group.unwrap_or(1))))),
            Extent::WordsAlongColumns => {
                axes(2)?;
                (Some(vec![length]), Some(rows[0].saturating_mul(8)))
            }
            Extent::WordsAcrossRows => {
                axes(2)?;
                (Some(vec![length.saturating_mul(8)]), Some(rows[0]))
            }
            Extent::HalfRows => {
                // Two groups lie beside each other in it, of any two rows: the scales say how many a row has.
                let scales = parts.iter().find(|(part, _)| part.extent == Extent::Groups).map_or(&[][..], |(_, scales)| scales.shape());
                let (groups, rows) = scales.split_last().ok_or_else(|| needs_shape(spec))?;
                (Some(rows.to_vec()), Some(groups.saturating_mul(length)))
            }
            Extent::Transposed => return Err(needs_shape(spec).into()),
            _ => (None, None),
        };
        shape = of_part.unwrap_or(shape);
        columns = fits.map_or(columns, |fits| columns.min(fits));
    }
    shape.push(columns);
    Ok(shape)
}

/// The lengths of the axes of a matrix, as a part has them.
fn stored_lengths(part: &Part, array: &Array<'_>) -> PyResult<Vec<usize>> {
    let array = arrays::part(array, &named(part), Item::I64, &[2])?;
    let stored = arrays::bytes(&array).as_chunks::<8>().0.iter().map(|bytes| usize::try_from(i64::from_le_bytes(*bytes)).ok());
    let lengths: Option<Vec<usize>> = stored.collect();
    Ok(lengths.ok_or_else(|| Error::value(named(part), "negative", "expected lengths of 0 or more"))?)
}

fn needs_shape(spec: &Spec) -> Error {
    Error::value("shape", "missing", format!("the parts of {} do not tell it: give the shape of the array", spec.name))
}

/// Whether the parts show the group size: the format takes few, or only those that divide a row.
fn is_shown(spec: &Spec) -> bool {
    matches!(spec.group_sizes, GroupSizes::OneOf { .. } | GroupSizes::Divides { .. })
}

/// The group size that the parts show.
fn shown_group_size(spec: &Spec, columns: usize, parts: &[(&Part, Array<'_>)]) -> Option<GroupSize> {
    if !is_shown(spec) {
        return None;
    }
    let elements = |elements: usize| Some(GroupSize::Elements(elements)).filter(|&size| spec.group_sizes.takes(size));
    let shown = parts.iter().find_map(|(part, array)| match (part.extent, array.shape()) {
        (Extent::GroupCodes, [.., bytes]) => elements(bytes.saturating_mul(2)),
        (Extent::HalfRows, [.., size]) => elements(*size),
        _ => None,
    });
    let mut counts = parts.iter().filter_map(|(part, array)| match (part.extent, array.shape()) {
        (Extent::Groups, [.., groups]) | (Extent::GroupsTransposed, [groups, ..]) => Some(*groups),
        _ => None,
    });
    // Parts that disagree show nothing.
    let groups = counts.next().filter(|first| counts.all(|other| other == *first));
    shown.or_else(|| {
        let groups = groups?;
        let whole = || {
            if spec.group_sizes.may_be_short() {
                columns.div_ceil(groups.max(1)).checked_next_power_of_two()
            } else {
                columns.checked_div(groups)
            }
        };
        elements(whole()?).or_else(|| (groups == 1 && spec.group_sizes.takes(GroupSize::Row)).then_some(GroupSize::Row))
    })
}

/// The parts with those that files leave out or have in another shape: a missing order of the columns is the order itself, and a
/// scalar may have an axis or none.
fn whole<'py>(py: Python<'py>, tensor: &Tensor, parts: &Parts<'py>) -> PyResult<Parts<'py>> {
    let whole = parts.copy()?;
    for (index, part) in tensor.layout.spec.parts.iter().enumerate() {
        let shape = tensor.layout.part_shape(index);
        match (part.extent, parts.get_item(part.name)?) {
            (Extent::GroupOfColumn, None) => {
                let mut outputs = Outputs::new(py, &[Wanted { argument: named(part), item: Item::I32, shape }])?;
                engine::write_order(&tensor.layout, outputs.slices().remove(0));
                whole.set_item(part.name, outputs.into_arrays().remove(0))?;
            }
            (Extent::Scalar | Extent::One, Some(array)) if array.cast::<PyUntypedArray>()?.len() == 1 => {
                whole.set_item(part.name, array.call_method1("reshape", (PyTuple::new(py, shape)?,))?)?;
            }
            _ => {}
        }
    }
    Ok(whole)
}
