//! From the parts of one format to those of another, every value the same number; refused where that cannot be. Only a zero can
//! lose its sign: with a minimum, -0.0 is not among the values.
//!
//! Codes travel through [`Groups`]. Between schemes they are shifted, which changes no value:
//!
//! ```text
//! symmetric code * scale  =  (code + 8 - 8) * scale           affine, zero point 8; 16 where codes have 5 bits
//! (code - zero_point) * scale  =  code * scale + minimum       minimum = -zero_point * scale, where all products are exact
//! ```

use super::groups::{AsRows, Codes, pack_codes, unpack};
use super::reweave::{Side, reweave};
use super::{Outcome, Run, cut, once};
use crate::error::{Error, Result};
use crate::formats::{self, Format, Groups};
use crate::kernels::scales::{FromMinimums, Hold, Storage, e4m3, e4m3_bits};
use crate::layout::{Layout, Options};
use crate::level::Level;
use crate::simd::ieee::Ieee;
use crate::simd::scalar::Scalar;
use crate::spec::{Global, GroupSize, ScaleDtype, Scheme, Spec, ZeroPoints};
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
    cut::check(from, parts.iter().map(|part| part.len()));
    check_repack(from, to)?;
    let lossy = |reason: String| lossy(from, to, reason);
    if from.elements() == 0 {
        once::write(to, 1.0, out);
        return Ok(Outcome::default());
    }
    if once::group_of_columns(from, parts)?.is_some() {
        return Err(lossy("the groups of the columns are not in order".into()));
    }
    if let (Some(source), Some(target)) = (Side::new(from), Side::new(to)) {
        let convert = |groups: &mut Groups| shift_between(from.spec, to, groups, run.level).is_ok();
        let shift = shift_of(from.spec, to.spec);
        if let Some(outcome) = reweave((&source, parts), (&target, &mut *out), shift, convert, run)? {
            once::write(to, 1.0, out);
            return Ok(outcome);
        }
        // Some group is not one of the target's: which is the first one is found below.
    }
    let groups = from.groups_shape().iter().product();
    let headers = to.spec.header_bytes(to.elements());
    let mut all = Groups { codes: Vec::new(), scales: vec![0.0; groups], offsets: Vec::new(), headers: vec![0; headers] };
    all.offsets.resize(if from.spec.has_offsets() { groups } else { 0 }, 0.0);
    unpack(from, parts, &mut [], &mut all.scales, &mut all.offsets, &mut all.headers, run)?;
    let global = carry_global(from, once::global_of(from, parts), to, &mut all.scales).map_err(lossy)?;
    let mut shift = 0;
    if headers == 0 {
        shift_between(from.spec, to, &mut all, run.level).map_err(lossy)?;
        shift = shift_of(from.spec, to.spec);
    }
    let rows = AsRows::new(from, parts, true, run)?;
    let row_parts = rows.parts(parts);
    let codes = Codes::new(&rows.layout, rows.format, &row_parts, run.level);
    let read = |start: usize, tile: &mut [i8]| {
        codes.read(start, tile);
        tile.iter_mut().for_each(|code| *code += shift);
    };
    let outcome = pack_codes(to, &all, global, read, out, run)?;
    if let Format::Nested(nest) = formats::of(to.spec) {
        let mut stored = vec![0.0; groups];
        let nested: Vec<&[u8]> = out[1..].iter().map(|part| &**part).collect();
        nest.unnest(run.level, &nested, &mut stored);
        if stored != all.scales {
            return Err(lossy(format!("the scales of {} are quantized in turn", to.spec.name)));
        }
    }
    Ok(outcome)
}

/// Whether parts of `from` can become parts of `to` at all, whatever they hold.
///
/// # Errors
///
/// [`Error::Lossy`].
///
/// # Panics
///
/// Where the shapes differ.
pub fn check_repack(from: &Layout, to: &Layout) -> Result<()> {
    assert_eq!(from.shape, to.shape, "two layouts of one tensor");
    if from.elements() == 0 {
        return Ok(());
    }
    if from.spec.is_flat() != to.spec.is_flat() && !from.columns().is_multiple_of(from.group_elements()) {
        return Err(lossy(from, to, "groups reach across the ends of rows".into()));
    }
    let (of, wanted) = (from.groups_shape(), to.groups_shape());
    if from.group_elements() != to.group_elements() || of.iter().product::<usize>() != wanted.iter().product::<usize>() {
        return Err(lossy(from, to, format!("group sizes differ ({}, {})", from.group_size, to.group_size)));
    }
    if from.spec.bits != to.spec.bits {
        let reason = format!("its codes have {} bits, those of {} have {}", from.spec.bits, to.spec.name, to.spec.bits);
        return Err(lossy(from, to, reason));
    }
    if to.spec.header_bytes(to.elements()) > 0 && !std::ptr::eq(from.spec, to.spec) {
        let block = to.spec.block(to.group_elements());
        return Err(lossy(from, to, format!("the scales of {} are multiples of one for each {block} elements", to.spec.name)));
    }
    shift_between(from.spec, to, &mut Groups::default(), Level::Scalar(Scalar)).map_err(|reason| lossy(from, to, reason))
}

/// The options of `spec` for the tensor of `from`: those that are given, and for the others what the tensor has, where `spec` has it too.
pub fn kept_options(from: &Layout, spec: &Spec, given: Options) -> Options {
    let choice = spec.scale_dtypes.len() > 1;
    let dtypes = [from.scale_dtype, ScaleDtype::F32];
    let scale_dtype = dtypes.into_iter().find(|dtype| choice && spec.scale_dtypes.contains(dtype));
    let elements = GroupSize::Elements(from.group_elements());
    let group_size = [from.group_size, elements].into_iter().find(|&size| spec.group_sizes.takes(size)).or_else(|| {
        let is_row = from.group_elements() == from.columns() && from.group_size != GroupSize::Tensor;
        (is_row && spec.group_sizes.takes(GroupSize::Row)).then_some(GroupSize::Row)
    });
    Options { group_size: given.group_size.or(group_size), scale_dtype: given.scale_dtype.or(scale_dtype), ..given }
}

fn lossy(from: &Layout, to: &Layout, reason: String) -> Error {
    Error::Lossy { from: from.spec.name.into(), to: to.spec.name.into(), reason }
}

/// The second level of the scales in the target, with the scales of the first level turned into its; or why that cannot be.
///
/// Between a factor and a divisor the reciprocal rounds once, so that values may differ by two units in the last place; all else
/// is exact.
fn carry_global(from: &Layout, stored: f32, to: &Layout, scales: &mut [f32]) -> std::result::Result<f32, String> {
    let (source, target) = (from.spec.global, to.spec.global);
    let Some(target) = target else {
        if let Some(source) = source {
            scales.iter_mut().for_each(|scale| *scale = source.effective(*scale, stored));
        }
        return Ok(1.0);
    };
    let global = match (source, target) {
        (_, Global::Largest) => once::unstored_global(to),
        (None, _) => 1.0,
        (Some(Global::Largest), Global::Multiplies) => stored / Global::LARGEST,
        (Some(Global::Largest), Global::Divides) => 1.0 / (stored / Global::LARGEST),
        (Some(source), _) if source == target => stored,
        (Some(_), _) => 1.0 / stored,
    };
    let reciprocal = matches!((source, target), (Some(Global::Multiplies), Global::Divides) | (Some(Global::Divides), Global::Multiplies));
    let agree = |scale: f32| {
        let (before, after) = (source.map_or(scale, |source| source.effective(scale, stored)), target.effective(scale, global));
        let apart = before.to_bits().abs_diff(after.to_bits());
        before == after || reciprocal && before.is_finite() && after.is_finite() && apart <= 2
    };
    match scales.iter().find(|&&scale| !agree(scale)) {
        Some(scale) => Err(format!("the second level of its scales, {stored}, would give the scale {scale} another value")),
        None => Ok(global),
    }
}

/// What is added to every code.
fn shift_of(from: &Spec, to: &Spec) -> i8 {
    (to.codes().0 - from.codes().0) as i8
}

/// Turn the offsets of `all` into those of the target; or why that cannot be.
fn shift_between(from: &Spec, to: &Layout, all: &mut Groups, level: Level) -> std::result::Result<(), String> {
    let scheme = from.scheme;
    let differ = scheme != to.spec.scheme;
    let either = |is: fn(Scheme) -> bool| is(scheme) || is(to.spec.scheme);
    // The largest code where the smallest is 0, and the zero point that a symmetric scheme has then.
    let largest = ((1 << from.bits) - 1) as f32;
    let middle = ((1 << from.bits) / 2) as f32;
    if differ && either(|scheme| matches!(scheme, Scheme::Codebook(_))) {
        return Err("the codes have different meanings".into());
    }
    if !hold(level, to.scale_dtype, &all.scales)
        && let Some((group, scale)) = all.scales.iter().enumerate().find(|(_, scale)| !holds(to.scale_dtype, **scale))
    {
        return Err(format!("scale {scale} of group {group} is not a {} number", to.scale_dtype.name()));
    }
    if differ
        && either(|scheme| scheme == Scheme::Minimum)
        && !all.scales.iter().fold(true, |all, &scale| all & has_exact_multiples(scale, largest))
        && let Some((group, scale)) = all.scales.iter().enumerate().find(|(_, scale)| !has_exact_multiples(**scale, largest))
    {
        let product = format!("{largest} times the scale {scale} of group {group}");
        return Err(format!("{product} is not a float32 number, so that values would round differently"));
    }
    let name = to.spec.name;
    let hold_minimums = |minimums: &[f32]| {
        let first = || minimums.iter().enumerate().find(|(_, minimum)| !holds(to.scale_dtype, **minimum));
        match (!hold(level, to.scale_dtype, minimums)).then(first).flatten() {
            Some((group, minimum)) => Err(format!("the minimum {minimum} of group {group} is not a {} number", to.scale_dtype.name())),
            None => Ok(()),
        }
    };
    match (scheme, to.spec.scheme) {
        (Scheme::Affine, Scheme::Symmetric) => {
            if let Some((group, zero_point)) = all.offsets.iter().enumerate().find(|(_, zero_point)| **zero_point != middle) {
                return Err(format!("group {group} has zero point {zero_point}; {name} has none, which means {middle}"));
            }
        }
        (Scheme::Affine, Scheme::Affine) => {
            let fits = |zero_point: f32| match to.spec.zero_points {
                ZeroPoints::Integers(low, high) => zero_point.fract() == 0.0 && (f32::from(low)..=f32::from(high)).contains(&zero_point),
                ZeroPoints::Numbers => holds(to.scale_dtype, zero_point),
            };
            let all_fit = match to.spec.zero_points {
                ZeroPoints::Integers(low, high) => level.run(Hold { values: &all.offsets, by: Storage::Integers(low, high) }),
                ZeroPoints::Numbers => hold(level, to.scale_dtype, &all.offsets),
            };
            if !all_fit && let Some((group, zero_point)) = all.offsets.iter().enumerate().find(|(_, zero_point)| !fits(**zero_point)) {
                return Err(format!("group {group} has zero point {zero_point}, which {name} cannot store"));
            }
        }
        (Scheme::Symmetric | Scheme::Affine, Scheme::Minimum) => {
            if scheme == Scheme::Symmetric {
                all.offsets = vec![middle; all.scales.len()];
            }
            all.offsets.iter_mut().zip(&all.scales).for_each(|(offset, scale)| *offset *= -scale);
            hold_minimums(&all.offsets)?;
        }
        (Scheme::Symmetric, Scheme::Affine) => {
            all.offsets = vec![middle; all.scales.len()];
        }
        (Scheme::Minimum, target @ (Scheme::Symmetric | Scheme::Affine)) => {
            // A group of one value has any zero point.
            let any = if target == Scheme::Symmetric { middle } else { 0.0 };
            let ZeroPoints::Integers(low, high) = to.spec.zero_points else {
                return Err(format!("{name} has zero points in place of minimums"));
            };
            let (low, high) = if target == Scheme::Symmetric { (middle as u8, middle as u8) } else { (low, high) };
            let pairs = || all.scales.iter().copied().zip(all.offsets.iter().copied());
            let mut zero_points = vec![0.0; all.scales.len()];
            let back = FromMinimums { scales: &all.scales, minimums: &all.offsets, any, zero_points: &mut zero_points };
            if !level.run(back) || !level.run(Hold { values: &zero_points, by: Storage::Integers(low, high) }) {
                let is_exact = |scale: f32, minimum: f32, zero_point: f32| {
                    let is_stored = (f32::from(low)..=f32::from(high)).contains(&zero_point) && zero_point.fract() == 0.0;
                    is_stored && -zero_point * scale == minimum
                };
                let mut groups = pairs().zip(&zero_points).enumerate();
                if let Some((group, ((scale, minimum), zero_point))) = groups.find(|&(_, ((s, m), &z))| !is_exact(s, m, z)) {
                    return Err(format!(
                        "group {group} has minimum {minimum} at scale {scale}; {name} would need a zero point of {zero_point}"
                    ));
                }
            }
            all.offsets = zero_points;
        }
        (Scheme::Minimum, Scheme::Minimum) => hold_minimums(&all.offsets)?,
        (Scheme::Symmetric, Scheme::Symmetric) | (Scheme::Codebook(_), _) | (_, Scheme::Codebook(_)) => {}
    }
    if !to.spec.has_offsets() {
        all.offsets.clear();
    }
    Ok(())
}

/// Whether all values are numbers of `dtype`.
fn hold(level: Level, dtype: ScaleDtype, values: &[f32]) -> bool {
    match dtype {
        ScaleDtype::F16 | ScaleDtype::Bf16 | ScaleDtype::F32 => level.run(Hold { values, by: Storage::Floats(dtype) }),
        _ => values.iter().all(|&value| holds(dtype, value)),
    }
}

/// Whether the products of all codes and `scale` are exact: code * scale + minimum rounds twice, (code - zero_point) * scale once.
fn has_exact_multiples(scale: f32, largest: f32) -> bool {
    f64::from(largest * scale) == f64::from(largest) * f64::from(scale)
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
        ScaleDtype::Ue4m3 if value < 0.0 => f32::NAN,
        ScaleDtype::E4m3 | ScaleDtype::Ue4m3 => e4m3(e4m3_bits(value)),
    };
    value.is_finite() && stored == value
}
