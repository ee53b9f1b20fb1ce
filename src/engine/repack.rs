//! From the parts of one format to those of another, every value the same number; refused where that cannot be. Only a zero can
//! lose its sign: with a minimum, -0.0 is not among the values.
//!
//! Codes travel through [`Groups`]. Between schemes they are shifted, which changes no value:
//!
//! ```text
//! symmetric code * scale  =  (code + 8 - 8) * scale           affine, zero point 8
//! (code - zero_point) * scale  =  code * scale + minimum       minimum = -zero_point * scale, where all products are exact
//! ```

use super::groups::{Codes, pack_codes, unpack};
use super::{Outcome, Run};
use crate::error::{Error, Result};
use crate::formats::Groups;
use crate::kernels::scales::{e4m3, e4m3_bits};
use crate::simd::ieee::Ieee;
use crate::spec::{Layout, ScaleDtype, Scheme};
use half::{bf16, f16};

/// Convert parts of `from` to parts of `to`, two layouts of one tensor.
///
/// # Errors
///
/// [`Error::Lossy`] names the fact that differs: the group size, a zero point, a scale that the target cannot hold.
/// [`Error::Cancelled`]. On an error `out` holds nothing of use.
///
/// # Panics
///
/// Where the shapes differ, or the length of a part is not its layout's.
pub fn repack(from: &Layout, parts: &[&[u8]], to: &Layout, out: &mut [&mut [u8]], run: &Run<'_>) -> Result<Outcome> {
    let _ieee = Ieee::enter();
    assert_eq!(from.shape, to.shape, "two layouts of one tensor");
    let lossy = |reason: String| Error::Lossy { from: from.spec.name.into(), to: to.spec.name.into(), reason };
    if from.elements() == 0 {
        return Ok(Outcome::default());
    }
    if (from.group_elements(), from.groups_shape()) != (to.group_elements(), to.groups_shape()) {
        return Err(lossy(format!("group sizes differ ({}, {})", from.group_size, to.group_size)));
    }
    let headers = to.spec.header_bytes(to.elements());
    if headers > 0 && !std::ptr::eq(from.spec, to.spec) {
        let block = to.spec.block(to.group_elements());
        return Err(lossy(format!("the scales of {} are multiples of one for each {block} elements", to.spec.name)));
    }
    let groups = from.groups_shape().iter().product();
    let mut all = Groups { codes: Vec::new(), scales: vec![0.0; groups], offsets: Vec::new(), headers: vec![0; headers] };
    all.offsets.resize(if from.spec.has_offsets() { groups } else { 0 }, 0.0);
    unpack(from, parts, &mut [], &mut all.scales, &mut all.offsets, &mut all.headers, run)?;
    let shift = if headers > 0 { 0 } else { shift_between(from.spec.scheme, to, &mut all).map_err(lossy)? };
    let codes = Codes::new(from, parts, run.level)?;
    let read = |start: usize, tile: &mut [i8]| {
        codes.read(start, tile);
        tile.iter_mut().for_each(|code| *code += shift);
    };
    pack_codes(to, &all, read, out, run)
}

/// What is added to every code, with the offsets of `all` turned into those of the target; or why that cannot be.
fn shift_between(scheme: Scheme, to: &Layout, all: &mut Groups) -> std::result::Result<i8, String> {
    let differ = scheme != to.spec.scheme;
    let either = |is: fn(Scheme) -> bool| is(scheme) || is(to.spec.scheme);
    if differ && either(|scheme| matches!(scheme, Scheme::Codebook(_))) {
        return Err("the codes have different meanings".into());
    }
    if let Some((group, scale)) = all.scales.iter().enumerate().find(|(_, scale)| !holds(to.scale_dtype, **scale)) {
        return Err(format!("scale {scale} of group {group} is not a {} number", to.scale_dtype.name()));
    }
    if differ
        && either(|scheme| scheme == Scheme::Minimum)
        && let Some((group, scale)) = all.scales.iter().enumerate().find(|(_, scale)| !has_exact_multiples(**scale))
    {
        return Err(format!("15 times the scale {scale} of group {group} is not a float32 number, so that values would round differently"));
    }
    let name = to.spec.name;
    let zero_points = all.scales.iter().zip(all.offsets.iter().chain(std::iter::repeat(&8.0))).enumerate();
    let shift = match (scheme, to.spec.scheme) {
        (Scheme::Affine, Scheme::Symmetric) => {
            if let Some((group, zero_point)) = all.offsets.iter().enumerate().find(|(_, zero_point)| **zero_point != 8.0) {
                return Err(format!("group {group} has zero point {zero_point}; {name} has none, which means 8"));
            }
            -8
        }
        (Scheme::Symmetric | Scheme::Affine, Scheme::Minimum) => {
            let mut minimums = Vec::with_capacity(all.scales.len());
            for (group, (&scale, &zero_point)) in zero_points {
                let minimum = -zero_point * scale;
                if !holds(to.scale_dtype, minimum) {
                    return Err(format!("the minimum {minimum} of group {group} is not a {} number", to.scale_dtype.name()));
                }
                minimums.push(minimum);
            }
            all.offsets = minimums;
            if scheme == Scheme::Symmetric { 8 } else { 0 }
        }
        (Scheme::Symmetric, Scheme::Affine) => {
            all.offsets = vec![8.0; all.scales.len()];
            8
        }
        (Scheme::Minimum, target @ (Scheme::Symmetric | Scheme::Affine)) => {
            for (group, (&scale, offset)) in all.scales.iter().zip(&mut all.offsets).enumerate() {
                // A group of one value has any zero point.
                let any = if target == Scheme::Symmetric { 8.0 } else { 0.0 };
                let zero_point = if scale == 0.0 { any } else { -*offset / scale };
                let is_exact = (0.0..=15.0).contains(&zero_point) && zero_point.fract() == 0.0 && -zero_point * scale == *offset;
                if !is_exact || target == Scheme::Symmetric && zero_point != 8.0 {
                    return Err(format!(
                        "group {group} has minimum {offset} at scale {scale}; {name} would need a zero point of {zero_point}"
                    ));
                }
                *offset = zero_point;
            }
            if target == Scheme::Symmetric { -8 } else { 0 }
        }
        (Scheme::Symmetric, Scheme::Symmetric)
        | (Scheme::Affine, Scheme::Affine)
        | (Scheme::Minimum, Scheme::Minimum)
        | (Scheme::Codebook(_), _)
        | (_, Scheme::Codebook(_)) => 0,
    };
    if !to.spec.has_offsets() {
        all.offsets.clear();
    }
    Ok(shift)
}

/// Whether the products of all codes and `scale` are exact: code * scale + minimum rounds twice, (code - zero_point) * scale once.
fn has_exact_multiples(scale: f32) -> bool {
    f64::from(15.0 * scale) == 15.0 * f64::from(scale)
}

/// Whether a number is one of `dtype`, so that storing it changes nothing. A number that is not finite is none.
fn holds(dtype: ScaleDtype, value: f32) -> bool {
    let stored = match dtype {
        ScaleDtype::F16 => f16::from_f32(value).to_f32(),
        ScaleDtype::Bf16 => bf16::from_f32(value).to_f32(),
        ScaleDtype::F32 => value,
        ScaleDtype::E8m0
            if value.to_bits() == 0x0040_0000 || value.is_normal() && value > 0.0 && value.to_bits().trailing_zeros() >= 23 =>
        {
            value
        }
        ScaleDtype::E8m0 => f32::NAN,
        ScaleDtype::E4m3 => e4m3(e4m3_bits(value)),
    };
    value.is_finite() && stored == value
}
