//! Sixteen groups of 32 at once, a lane each: sums over a group then run from its first element to its last, in an order that
//! the width of the registers does not change.

use super::range::INFINITE;
use crate::simd::{LANES, Simd};

/// Elements of a group.
pub const GROUP: usize = 32;

/// Elements of 16 groups.
pub const TILE: usize = LANES * GROUP;

/// Vector j holds element j of each of 16 groups: those of `x`, and zeros after them.
#[inline(always)]
pub fn load<S: Simd>(simd: S, x: &[f32]) -> [S::F32; GROUP] {
    let mut padded = [0.0; TILE];
    let x = x.first_chunk().unwrap_or_else(|| {
        padded[..x.len()].copy_from_slice(x);
        &padded
    });
    let mut halves = [[simd.splat(0.0); LANES]; 2];
    for (i, group) in x.as_chunks::<GROUP>().0.iter().enumerate() {
        for (half, x) in halves.iter_mut().zip(group.as_chunks::<LANES>().0) {
            half[i] = simd.load(x);
        }
    }
    let mut lanes = [simd.splat(0.0); GROUP];
    for (lanes, half) in lanes.as_chunks_mut::<LANES>().0.iter_mut().zip(&halves) {
        *lanes = simd.transpose(half);
    }
    lanes
}

/// The way back, for codes: as many whole groups as `out` holds.
#[inline(always)]
pub fn store_codes<S: Simd>(simd: S, lanes: &[S::I32; GROUP], out: &mut [i8]) {
    let mut halves = [[simd.splat(0.0); LANES]; 2];
    for (half, lanes) in halves.iter_mut().zip(lanes.as_chunks::<LANES>().0) {
        *half = simd.transpose(&lanes.map(|lane| simd.as_f32(lane)));
    }
    for (i, group) in out.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
        for (half, out) in halves.iter().zip(group.as_chunks_mut::<LANES>().0) {
            let mut codes = [0; LANES];
            simd.store_i32(simd.bits(half[i]), &mut codes);
            *out = codes.map(|code| code as i8);
        }
    }
}

/// |v|
#[inline(always)]
pub fn magnitude<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    simd.as_f32(simd.and(simd.bits(v), simd.splat_i32(i32::MAX)))
}

/// The larger of both; `v` where it is NaN.
#[inline(always)]
pub fn larger<S: Simd>(simd: S, v: S::F32, other: S::F32) -> S::F32 {
    simd.select(simd.less(v, other), other, v)
}

/// Whether a lane of `v` is NaN or infinite.
#[inline(always)]
pub fn any_not_finite<S: Simd>(simd: S, v: S::F32) -> bool {
    let mut lanes = [0; LANES];
    simd.store_i32(simd.bits(magnitude(simd, v)), &mut lanes);
    lanes.iter().any(|&bits| bits >= INFINITE)
}

/// v, but at least `low` and at most `high`; `low` where it is NaN.
#[inline(always)]
pub fn clamp<S: Simd>(simd: S, v: S::F32, low: S::F32, high: S::F32) -> S::F32 {
    let v = simd.select(simd.less(low, v), v, low);
    simd.select(simd.less(v, high), v, high)
}
