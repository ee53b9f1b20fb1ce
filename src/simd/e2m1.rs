//! The rounding to E2M1, the 4-bit float of the OCP microscaling formats.
//!
//! ```text
//! code 0..=7   0  0.5  1  1.5  2  3  4  6        bit 3 is the sign
//! ```
//!
//! Beyond 6 a number becomes 6. Encoders differ in what they do with ties and with the sign of what rounds to zero.

use super::Simd;

/// How a number is rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// The nearest, a tie toward zero; what rounds to zero has no sign. This is what a search for the first nearest entry gives.
    TowardZero,
    /// The nearest, a tie to the even code; a negative number that rounds to zero keeps its sign, -0.0 itself has none.
    HalfToEven,
    /// As [`Rounding::HalfToEven`], and what becomes zero has the sign of the number, a zero too.
    WithSign,
}

/// The codes of numbers.
#[inline(always)]
pub fn codes<S: Simd>(simd: S, x: S::F32, rounding: Rounding) -> S::I32 {
    match rounding {
        Rounding::TowardZero => {
            let code = toward_zero(simd, x);
            let not_zero = simd.less(simd.splat(0.0), simd.to_f32(code));
            simd.or(code, simd.and(simd.and(negative(simd, x), not_zero), simd.splat_i32(8)))
        }
        Rounding::HalfToEven => simd.or(even(simd, x), simd.and(negative(simd, x), simd.splat_i32(8))),
        Rounding::WithSign => simd.or(even(simd, x), simd.and(simd.shift_right(simd.bits(x), 28), simd.splat_i32(8))),
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

/// The code of |x|, a tie to the lower one.
#[inline(always)]
fn toward_zero<S: Simd>(simd: S, x: S::F32) -> S::I32 {
    let bits = magnitude(simd, x);
    // From 1 on a code is one step of exponent and first mantissa bit, and 1.0 is code 2. Below, these steps are finer than
    // those of 0.5 and give no more than the thresholds do.
    let (size, one) = (simd.as_f32(bits), simd.splat_i32(1));
    let from_quarter = simd.and(simd.less(simd.splat(0.25), size), one);
    let from_three_quarters = simd.and(simd.less(simd.splat(0.75), size), one);
    let below = simd.add_i32(from_quarter, from_three_quarters);
    let from_one = simd.add_i32(simd.shift_right(simd.add_i32(bits, simd.splat_i32(0x1f_ffff)), 22), simd.splat_i32(2 - (ONE >> 22)));
    simd.max_i32(below, from_one)
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

/// Quarters of an octave, for levels that do better with bytes: the bits of a number as an integer, with this many fewer.
///
/// All midpoints between codes are at the end of a cell. A number is in the cell that ends at it, unless it is a tie to the upper code,
/// which is in the next one; its cell tells its code.
#[cfg(target_arch = "x86_64")]
pub(super) mod cells {
    use super::Rounding;

    /// Bits below those of a cell.
    pub(crate) const SHIFT: u32 = 21;

    /// What is added to the bits before they are shifted, so that a cell is rounded up.
    pub(crate) const UP: i32 = (1 << SHIFT) - 1;

    /// What a number is multiplied by before that where ties go to the even code; then one less is added. Of a midpoint whose mantissa is
    /// 1 or 1.25, and which has an even code below it, the product is one unit in the last place above the double, of one with 1.5 or 1.75
    /// two; of a number above a midpoint it is two at least, of one below it one at most. The least number is doubled, so that one less
    /// makes no zero of it.
    pub(crate) const NUDGE: f32 = 2.0 + 2.0 * f32::EPSILON;

    /// The bits of a cell without its sign.
    pub(crate) const SIZE: i16 = 0x3ff;

    /// The cell that ends at 0.25, or at the double of it: to it and those before belongs code 0.
    pub(crate) const fn last_of_zero(rounding: Rounding) -> i16 {
        match rounding {
            Rounding::TowardZero => LAST_OF_ZERO,
            Rounding::HalfToEven | Rounding::WithSign => LAST_OF_ZERO + 4,
        }
    }

    const LAST_OF_ZERO: i16 = (0.25f32.to_bits() >> SHIFT) as i16;

    /// How far the first cell of the table is from that one. Those between belong to code 1 as it does.
    pub(crate) const FIRST: i16 = 3;

    /// The codes of 16 cells; all that follow belong to the last one.
    pub(crate) const CODES: [i8; 16] = {
        let midpoints: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];
        let mut codes = [0; 16];
        let mut i = 0;
        while i < 16 {
            let end = ((LAST_OF_ZERO + FIRST) as i32 + i as i32) << SHIFT;
            let mut code = 0;
            while code < 7 && (midpoints[code].to_bits() as i32) < end {
                code += 1;
            }
            codes[i] = code as i8;
            i += 1;
        }
        codes
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;
    use crate::simd::{Kernel, LANES};
    use proptest::prelude::*;

    const NUMBERS: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

    /// By distances, which f64 holds exactly.
    fn nearest(x: f32, rounding: Rounding) -> u8 {
        let distance = |code: u8| (f64::from(NUMBERS[usize::from(code)]) - f64::from(x.abs().min(8.0))).abs();
        let mut code = 0;
        for other in 1..8 {
            let is_even = rounding != Rounding::TowardZero && other % 2 == 0;
            if distance(other) < distance(code) || is_even && distance(other) == distance(code) {
                code = other;
            }
        }
        let is_negative = match rounding {
            Rounding::TowardZero => x < 0.0 && code > 0,
            Rounding::HalfToEven => x < 0.0,
            Rounding::WithSign => x.is_sign_negative(),
        };
        code | u8::from(is_negative) << 3
    }

    struct Pack<'a> {
        x: &'a [f32; 128],
        rounding: Rounding,
    }

    impl Kernel for Pack<'_> {
        type Output = [[u8; 64]; 2];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> Self::Output {
            let mut bits = [simd.splat_i32(0); 8];
            for (bits, x) in bits.iter_mut().zip(self.x.as_chunks::<LANES>().0) {
                *bits = simd.bits(simd.load(x));
            }
            let mut packed = [[0; 64]; 2];
            simd.pack_e2m1_pairs(&bits, self.rounding, &mut packed[0]);
            simd.pack_e2m1_halves(&bits, self.rounding, &mut packed[1]);
            packed
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 256 }))]

        #[test]
        fn codes_are_the_nearest(numbers in prop::collection::vec((any::<u32>(), 0..40usize, -2i32..3), 128)) {
            // Ends and middles of the numbers and their neighbours, ordinary numbers, and any.
            let x = std::array::from_fn(|i| {
                let (bits, place, off) = numbers[i];
                let near = [0.0f32, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0];
                let x = match place {
                    0..16 => f32::from_bits(near[place].to_bits().saturating_add_signed(off) | bits & 1 << 31),
                    16..32 => (bits as f32 / u32::MAX as f32 - 0.5) * 16.0,
                    _ => f32::from_bits(bits),
                };
                if x.is_nan() { -0.0 } else { x }
            });
            for rounding in [Rounding::TowardZero, Rounding::HalfToEven, Rounding::WithSign] {
                let codes = x.map(|x| nearest(x, rounding));
                let pairs: [u8; 64] = std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4);
                let halves: [u8; 64] = std::array::from_fn(|i| codes[i / 16 * 32 + i % 16] | codes[i / 16 * 32 + i % 16 + 16] << 4);
                for level in Level::available() {
                    prop_assert!(level.run(Pack { x: &x, rounding }) == [pairs, halves], "{:?} {} {:?}", rounding, level.name(), x);
                }
            }
        }
    }
}
