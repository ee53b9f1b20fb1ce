//! The parts of a tensor as a dict of arrays: one for each name, in the order of the format.

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::arrays::{self, Array, Item, Wanted};
use crate::element::Dtype;
use crate::error::Error;
use crate::layout::Layout;
use crate::spec::{Part, PartDtype, ScaleDtype, Spec};

/// Arrays by the names of their parts.
pub(super) type Parts<'py> = Bound<'py, PyDict>;

/// What a part holds; `None` where the scale dtype decides.
pub(super) fn fixed_item(part: &Part) -> Option<Item> {
    match part.dtype {
        PartDtype::U8 => Some(Item::U8),
        PartDtype::U32 => Some(Item::U32),
        PartDtype::I32 => Some(Item::I32),
        PartDtype::I64 => Some(Item::I64),
        PartDtype::F32 => Some(Item::Float(Dtype::F32)),
        PartDtype::Scale => None,
    }
}

fn scale_item(dtype: ScaleDtype) -> Item {
    match dtype {
        ScaleDtype::F16 => Item::Float(Dtype::F16),
        ScaleDtype::Bf16 => Item::Float(Dtype::Bf16),
        ScaleDtype::F32 => Item::Float(Dtype::F32),
        ScaleDtype::E8m0 | ScaleDtype::E4m3 | ScaleDtype::Ue4m3 => Item::U8,
    }
}

/// The arrays of a layout; messages call them parts of `argument`.
pub(super) fn wanted_parts(layout: &Layout, argument: &str) -> Vec<Wanted> {
    let wanted = |(index, part): (usize, &Part)| Wanted {
        argument: format!("{argument}['{}']", part.name),
        item: fixed_item(part).unwrap_or_else(|| scale_item(layout.scale_dtype)),
        shape: layout.part_shape(index),
    };
    layout.spec.parts.iter().enumerate().map(wanted).collect()
}

/// The parts in the order of the format, as arrays that fit the layout.
pub(super) fn borrow_parts<'py>(layout: &Layout, parts: &Parts<'py>) -> PyResult<Vec<Array<'py>>> {
    let given = named_parts(layout.spec, parts, "parts")?;
    let wanted = wanted_parts(layout, "parts");
    given.iter().zip(&wanted).map(|(part, wanted)| arrays::part(part, &wanted.argument, wanted.item, &wanted.shape)).collect()
}

/// The values of a dict that has exactly the names of the parts, in the order of the format.
pub(super) fn named_parts<'py>(spec: &Spec, parts: &Parts<'py>, argument: &str) -> PyResult<Vec<Bound<'py, PyAny>>> {
    let names = || spec.parts.iter().map(|part| part.name).collect::<Vec<_>>().join(", ");
    let given: Vec<_> = spec.parts.iter().map_while(|part| parts.get_item(part.name).transpose()).collect::<PyResult<_>>()?;
    if given.len() != spec.parts.len() || parts.len() != given.len() {
        let found: Vec<String> = parts.keys().iter().map(|name| Ok(name.str()?.to_string())).collect::<PyResult<_>>()?;
        let found = format!("a mapping of {}", if found.is_empty() { "nothing".into() } else { found.join(", ") });
        return Err(Error::value(argument, found, format!("{} has {}", spec.name, names())).into());
    }
    Ok(given)
}

/// The dict of arrays in the order of the format.
pub(super) fn dict<'py>(py: Python<'py>, spec: &Spec, arrays: Vec<Array<'py>>) -> PyResult<Parts<'py>> {
    let dict = PyDict::new(py);
    for (part, array) in spec.parts.iter().zip(arrays) {
        dict.set_item(part.name, array)?;
    }
    Ok(dict)
}
