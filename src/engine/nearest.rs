//! Whether the codes of a tensor are the nearest that its scales allow.

use super::once;
use super::{Run, SERIAL, unpack};
use crate::error::Result;
use crate::formats::{self, Context, Groups};
use crate::layout::Layout;
use crate::pool;
use crate::simd::ieee::Ieee;
use crate::spec::{GroupSize, Scheme};

/// How far beyond the middle between two values an element may lie that was given the farther one, as a share of the gap between them:
/// a scale is rounded to its dtype after it served to choose codes, and sixteen steps of a bfloat16 that is off by 2^-9 are off by 1/32.
const SLACK: f32 = 1.0 / 16.0;

/// How many elements of `x` have another code than that of the nearest value, and the first of them in C order; `None` where there are
/// none. What is not finite in `x` is passed over, and so are columns in another order than their groups. The parts stand for finite values.
///
/// # Errors
///
/// [`crate::error::Error::Cancelled`]; [`crate::error::Error::Value`] for a group that there is not.
///
/// # Panics
///
/// Where a length is not the layout's.
pub fn misplaced(layout: &Layout, parts: &[&[u8]], x: &[f32], run: &Run<'_>) -> Result<Option<(u64, usize)>> {
    assert_eq!(x.len(), layout.elements(), "the elements of the layout");
    if x.is_empty() || once::group_of_columns(layout, parts)?.is_some() {
        return Ok(None);
    }
    let groups = layout.groups_shape().iter().product();
    let (mut codes, mut scales) = (vec![0; x.len()], vec![0.0; groups]);
    let mut offsets = vec![0.0; if layout.spec.has_offsets() { groups } else { 0 }];
    unpack(layout, parts, &mut codes, &mut scales, &mut offsets, &mut [], run)?;

    let is_one_line = layout.spec.is_flat() || layout.group_size == GroupSize::Tensor;
    let length = if is_one_line { x.len() } else { layout.columns() };
    let context = Context {
        level: run.level,
        group: if layout.group_size == GroupSize::Tensor { length } else { layout.group_elements() },
        scale_dtype: layout.scale_dtype,
        global: once::global_of(layout, parts),
        stream: false,
    };
    let groups = context.groups(length);
    let mut found = vec![(0, 0); x.len() / length];
    let threads = if x.len() < SERIAL { 1 } else { run.threads };
    pool::for_each(found.iter_mut().enumerate(), threads, run.interrupted, |(line, found)| {
        let start = line * length;
        let at = |all: &[f32]| all.get(line * groups..(line + 1) * groups).map(<[f32]>::to_vec).unwrap_or_default();
        let line = Groups { codes: codes[start..start + length].to_vec(), scales: at(&scales), offsets: at(&offsets), headers: Vec::new() };
        let (count, first) = misplaced_of_line(layout, context, line, &x[start..start + length]);
        *found = (count, start + first);
    })?;
    let count = found.iter().map(|(count, _)| count).sum();
    Ok(found.into_iter().find(|(count, _)| *count > 0).map(|(_, first)| (count, first)))
}

fn misplaced_of_line(layout: &Layout, context: Context, mut line: Groups, x: &[f32]) -> (u64, usize) {
    let _ieee = Ieee::enter();
    let format = formats::of(layout.spec).rows();
    let (mut y, mut other) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    format.dequantize(context, &line, &mut y);
    let mut is_misplaced = vec![false; x.len()];
    let codes = line.codes.clone();
    let (lowest, highest) = layout.spec.codes();
    // Of a table any value may be nearer, of even steps those on both sides.
    let others: Vec<Box<dyn Fn(i32) -> i32>> = match layout.spec.scheme {
        Scheme::Codebook(_) => (lowest..=highest).map(|code| Box::new(move |_| code) as Box<dyn Fn(i32) -> i32>).collect(),
        _ => vec![Box::new(move |code| (code - 1).max(lowest)), Box::new(move |code| (code + 1).min(highest))],
    };
    for of in others {
        line.codes.iter_mut().zip(&codes).for_each(|(code, &own)| *code = of(own.into()) as i8);
        format.dequantize(context, &line, &mut other);
        for (((x, y), other), is_misplaced) in x.iter().zip(&y).zip(&other).zip(&mut is_misplaced) {
            let beyond = (x - y).abs() - (x - other).abs();
            // One operation each in float32 leaves both distances off by a rounding of the element.
            let allowed = (y - other).abs() * SLACK + x.abs() * f32::EPSILON;
            *is_misplaced |= x.is_finite() && beyond > allowed;
        }
    }
    let first = is_misplaced.iter().position(|&is| is).unwrap_or(0);
    (is_misplaced.iter().filter(|&&is| is).count() as u64, first)
}
