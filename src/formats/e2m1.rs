//! The 4-bit float E2M1 of the OCP microscaling formats: its numbers, and the rules by which encoders round to it.
//!
//! ```text
//! code 0..=7   0  0.5  1  1.5  2  3  4  6        bit 3 is the sign
//! ```
//!
//! Encoders differ in what they do with ties and with the sign of what rounds to zero; see [`Rounding`].

use crate::simd::Simd;

/// The number of each code.
pub(super) const NUMBERS: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The same as readers have it that know no negative zero.
pub(super) const NUMBERS_WITHOUT_NEGATIVE_ZERO: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// How a number that was divided by its scale is rounded; beyond 6 it becomes 6.
pub(super) trait Rounding: Copy + Default + Send + Sync + 'static {
    /// Codes of `x`.
    fn codes<S: Simd>(simd: S, x: S::F32) -> S::I32;
}

/// The nearest, a tie toward zero; what rounds to zero has no sign. This is what a search for the first nearest entry gives.
#[derive(Clone, Copy, Default)]
pub(super) struct TowardZero;

impl Rounding for TowardZero {
    #[inline(always)]
    fn codes<S: Simd>(simd: S, x: S::F32) -> S::I32 {
        let magnitude = magnitude(simd, x);
        let one = simd.splat_i32(1);
        let above = |threshold: f32| simd.and(simd.less(simd.splat(threshold), magnitude), one);
        let small = simd.add_i32(above(0.25), above(0.75));
        let code = by_size(simd, magnitude, small, step(simd, simd.add_i32(simd.bits(magnitude), simd.splat_i32(0x1f_ffff))));
        let not_zero = simd.less(simd.splat(0.0), simd.to_f32(code));
        simd.or(code, simd.and(simd.and(negative(simd, x), not_zero), simd.splat_i32(8)))
    }
}

/// The nearest, a tie to the even code; a negative number that rounds to zero keeps its sign, -0.0 itself has none.
#[derive(Clone, Copy, Default)]
pub(super) struct HalfToEven;

impl Rounding for HalfToEven {
    #[inline(always)]
    fn codes<S: Simd>(simd: S, x: S::F32) -> S::I32 {
        let magnitude = magnitude(simd, x);
        let bits = simd.bits(magnitude);
        let odd = simd.and(simd.shift_right(bits, 22), simd.splat_i32(1));
        let small = simd.round(simd.add(magnitude, magnitude));
        let code = by_size(simd, magnitude, small, step(simd, simd.add_i32(bits, simd.add_i32(odd, simd.splat_i32(0x1f_ffff)))));
        simd.or(code, simd.and(negative(simd, x), simd.splat_i32(8)))
    }
}

/// As [`HalfToEven`], and what becomes zero has the sign of `x`, a zero too.
#[derive(Clone, Copy, Default)]
pub(super) struct WithSign;

impl Rounding for WithSign {
    #[inline(always)]
    fn codes<S: Simd>(simd: S, x: S::F32) -> S::I32 {
        let code = HalfToEven::codes(simd, simd.as_f32(simd.and(simd.bits(x), simd.splat_i32(i32::MAX))));
        simd.or(code, simd.and(simd.shift_right(simd.bits(x), 28), simd.splat_i32(8)))
    }
}

/// |x|, at most 6.
#[inline(always)]
fn magnitude<S: Simd>(simd: S, x: S::F32) -> S::F32 {
    let (magnitude, six) = (simd.as_f32(simd.and(simd.bits(x), simd.splat_i32(i32::MAX))), simd.splat(6.0));
    simd.select(simd.less(six, magnitude), six, magnitude)
}

#[inline(always)]
fn negative<S: Simd>(simd: S, x: S::F32) -> S::I32 {
    simd.less(x, simd.splat(0.0))
}

/// From 1 on a code is one step of exponent and first mantissa bit; `bits` has half a step added already. 1.0 is code 2.
#[inline(always)]
fn step<S: Simd>(simd: S, bits: S::I32) -> S::I32 {
    simd.add_i32(simd.shift_right(bits, 22), simd.splat_i32(2 - (0x3f80_0000 >> 22)))
}

/// Below 1 the steps are of 0.5.
#[inline(always)]
fn by_size<S: Simd>(simd: S, magnitude: S::F32, small: S::I32, large: S::I32) -> S::I32 {
    simd.bits(simd.select(simd.less(magnitude, simd.splat(1.0)), simd.as_f32(small), simd.as_f32(large)))
}
