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
        let bits = magnitude(simd, x);
        // From 1 on a code is one step of exponent and first mantissa bit, and 1.0 is code 2. Below, these steps are finer than
        // those of 0.5 and give no more than the thresholds do.
        let (size, one) = (simd.as_f32(bits), simd.splat_i32(1));
        let from_quarter = simd.and(simd.less(simd.splat(0.25), size), one);
        let from_three_quarters = simd.and(simd.less(simd.splat(0.75), size), one);
        let below = simd.add_i32(from_quarter, from_three_quarters);
        let from_one = simd.add_i32(simd.shift_right(simd.add_i32(bits, simd.splat_i32(0x1f_ffff)), 22), simd.splat_i32(2 - (ONE >> 22)));
        let code = simd.max_i32(below, from_one);
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
        simd.or(even(simd, x), simd.and(negative(simd, x), simd.splat_i32(8)))
    }
}

/// As [`HalfToEven`], and what becomes zero has the sign of `x`, a zero too.
#[derive(Clone, Copy, Default)]
pub(super) struct WithSign;

impl Rounding for WithSign {
    #[inline(always)]
    fn codes<S: Simd>(simd: S, x: S::F32) -> S::I32 {
        simd.or(even(simd, x), simd.and(simd.shift_right(simd.bits(x), 28), simd.splat_i32(8)))
    }
}

/// The bits of 1.0.
const ONE: i32 = 127 << 23;

/// The bits of |x|, at most 6.
#[inline(always)]
fn magnitude<S: Simd>(simd: S, x: S::F32) -> S::I32 {
    simd.min_i32(simd.and(simd.bits(x), simd.splat_i32(i32::MAX)), simd.splat_i32(6.0f32.to_bits().cast_signed()))
}

#[inline(always)]
fn negative<S: Simd>(simd: S, x: S::F32) -> S::I32 {
    simd.less(x, simd.splat(0.0))
}

/// The code of |x|, a tie to the even one.
///
/// Numbers are 2^(e - 1) apart between 2^e and 2^(e + 1), and below 1 as from there on (e = 0). Added to 2^(22 + e), whose
/// neighbours are as far apart, |x| is rounded to a number n of these steps, which are the lowest bits of the sum: code n + 2 e.
#[inline(always)]
fn even<S: Simd>(simd: S, x: S::F32) -> S::I32 {
    let bits = magnitude(simd, x);
    let power = simd.and(simd.max_i32(bits, simd.splat_i32(ONE)), simd.splat_i32(0xff << 23));
    let steps = simd.add_i32(power, simd.splat_i32(22 << 23));
    let sum = simd.bits(simd.add(simd.as_f32(bits), simd.as_f32(steps)));
    // Of equal exponents; what is left of the difference is below 8.
    let n = simd.xor(sum, steps);
    simd.add_i32(simd.add_i32(n, simd.shift_right(power, 22)), simd.splat_i32(-(ONE >> 22)))
}
