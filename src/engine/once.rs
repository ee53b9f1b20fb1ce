//! Parts that a tensor has once: the second level of its scales, the group of each column, the lengths of its axes.

use crate::error::{Error, Index, Result};
use crate::layout::Layout;
use crate::simd::ieee::Ieee;
use crate::spec::{Extent, Global};

/// The group of each column, where the columns of a tensor are in another order than its groups; `None` where they are in order.
///
/// # Errors
///
/// [`Error::Value`] for a group that there is not.
pub(super) fn group_of_columns(layout: &Layout, parts: &[&[u8]]) -> Result<Option<Vec<usize>>> {
    let Some(index) = layout.spec.parts.iter().position(|part| part.extent == Extent::GroupOfColumn) else { return Ok(None) };
    let (groups, group) = (layout.groups_per_row(), layout.group_elements());
    let stored = parts[index].as_chunks::<4>().0.iter().map(|bytes| i32::from_le_bytes(*bytes));
    if stored.clone().enumerate().all(|(column, stored)| usize::try_from(stored) == Ok(column / group)) {
        return Ok(None);
    }
    let name = layout.spec.parts[index].name;
    let check = |(column, stored): (usize, i32)| {
        let found = usize::try_from(stored).ok().filter(|&stored| stored < groups);
        found.ok_or_else(|| {
            Error::value(format!("parts['{name}']"), format!("{stored} at {column}"), format!("expected groups 0 to {}", groups - 1))
        })
    };
    stored.enumerate().map(check).collect::<Result<Vec<_>>>().map(Some)
}

/// Write the parts that a tensor has once.
pub(super) fn write(layout: &Layout, global: f32, parts: &mut [&mut [u8]]) {
    for (part, to) in layout.spec.parts.iter().zip(parts) {
        match part.extent {
            Extent::Scalar | Extent::One if layout.spec.global.is_some() => to.copy_from_slice(&global.to_le_bytes()),
            Extent::GroupOfColumn => write_order(layout, to),
            Extent::Lengths => {
                for (length, to) in layout.shape.iter().zip(to.as_chunks_mut::<8>().0) {
                    *to = (*length as i64).to_le_bytes();
                }
            }
            _ => {}
        }
    }
}

/// The second level of the scales of a tensor: from its part, or from the layout; 1 where there is none.
pub fn global_of(layout: &Layout, parts: &[&[u8]]) -> f32 {
    let stored = layout.spec.global_part().and_then(|index| parts[index].first_chunk());
    stored.map_or_else(|| unstored_global(layout), |bytes| f32::from_le_bytes(*bytes))
}

/// The same where no part keeps it. The largest magnitude that makes no difference stands for one that was not given.
pub(super) fn unstored_global(layout: &Layout) -> f32 {
    layout.global_scale.unwrap_or(if layout.spec.global == Some(Global::Largest) { Global::LARGEST } else { 1.0 })
}

/// Whether the numbers that a tensor has once are finite.
///
/// # Errors
///
/// [`Error::ScaleOverflow`] with the name of the part.
pub(super) fn check_finite(layout: &Layout, parts: &[&mut [u8]]) -> Result<()> {
    let scalars = layout.spec.parts.iter().zip(parts).filter(|(part, _)| part.extent == Extent::Scalar);
    for (part, bytes) in scalars {
        if !bytes.first_chunk().is_some_and(|bytes| f32::from_le_bytes(*bytes).is_finite()) {
            return Err(Error::ScaleOverflow { part: part.name, dtype: "float32", group: Vec::new() });
        }
    }
    Ok(())
}

/// Turn scales as they are stored into those that elements are multiples of.
pub fn make_effective(layout: &Layout, parts: &[&[u8]], scales: &mut [f32]) {
    let _ieee = Ieee::enter();
    if let Some(global) = layout.spec.global {
        let stored = global_of(layout, parts);
        scales.iter_mut().for_each(|scale| *scale = global.effective(*scale, stored));
    }
}

/// Write the group of each column, in order.
pub fn write_order(layout: &Layout, part: &mut [u8]) {
    let group = layout.group_elements();
    for (column, to) in part.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *to = ((column / group) as i32).to_le_bytes();
    }
}

/// Whether the parts that the tensor has once agree with the layout.
///
/// # Errors
///
/// [`Error::Value`] for a group that there is not, or lengths that are not those of the tensor.
pub fn check(layout: &Layout, parts: &[&[u8]]) -> Result<()> {
    group_of_columns(layout, parts)?;
    for (part, bytes) in layout.spec.parts.iter().zip(parts).filter(|(part, _)| part.extent == Extent::Lengths) {
        let stored: Vec<i64> = bytes.as_chunks::<8>().0.iter().map(|bytes| i64::from_le_bytes(*bytes)).collect();
        if !stored.iter().map(|&length| usize::try_from(length).ok()).eq(layout.shape.iter().map(|&length| Some(length))) {
            let expected = format!("the array has shape {}", Index(&layout.shape));
            return Err(Error::value(format!("parts['{}']", part.name), format!("{stored:?}"), expected));
        }
    }
    Ok(())
}
