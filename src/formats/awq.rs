//! `awq`, the GEMM version: a 16-bit scale and a 4-bit zero point a group, words of 8 codes along N. The parts of W (N, K):
//!
//! ```text
//! qweight  i32 (K, N / 8)   from the lowest bits of word (k, j) up: W[8j + 0, 2, 4, 6, 1, 3, 5, 7, k]
//! qzeros   i32 (G, N / 8)   the zero points of the same rows in the same order
//! scales   f16 (G, N)
//! ```
//!
//! The arithmetic is float16: h(...) is a float32 operation on float16 numbers whose result is rounded.
//!
//! ```text
//! low = min(h(x)), high = max(h(x))                the range need not take in 0
//! scale      = h(max(h(high - low), h(1e-5)) / 15)
//! zero_point = clamp(-round_half_even(h(low / scale)), 0, 15)
//! code       = clamp(round_half_even(h(h(x) / scale)) + zero_point, 0, 15)     x ~ (code - zero_point) * scale
//! ```
//!
//! At home (code - zero_point) * scale is the weight that is packed, which leads back to the same code as long as
//! zero_point * scale is a number of float16. Source: casper-hansen/AutoAWQ `awq/quantize/quantizer.py`,
//! `awq/modules/linear/gemm.py`; its search for better scales comes before all this.

use super::planar::{Planar, rows};
use super::transposed::Transposed;
use crate::kernels::encode::{Fit, Rule};
use crate::kernels::lanes::{clamp, larger, magnitude};
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::{BEYOND_HALF, Need, Ranges};
use crate::kernels::scales::round_to;
use crate::simd::Simd;
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Shapes, Spec};

pub(super) static FORMAT: Transposed<Awq> = Transposed::new(&SPEC, &ROWS);

static SPEC: Spec = Spec {
    name: "awq",
    summary: "AWQ, the GEMM version: words of 8 codes along N, in an order of their own",
    scheme: Scheme::Affine,
    group_sizes: GroupSizes::OneOf { sizes: &[32, 64, 128], default: 128, row: true, short: false },
    shapes: Shapes::Matrix { rows: 8, columns: 8 },
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[
        Part { name: "qweight", dtype: PartDtype::I32, extent: Extent::WordsAcrossRows },
        Part { name: "qzeros", dtype: PartDtype::I32, extent: Extent::GroupWordsTransposed },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::GroupsTransposed },
    ],
    home: "autoawq 0.2.9",
    half: true,
    ..Spec::BASE
};

static ROWS_SPEC: Spec = rows(&SPEC);
static ROWS: Planar<Awq> = Planar::new(&ROWS_SPEC);

/// 1e-5 as float16.
const LEAST: f32 = 168.0 / 16_777_216.0;

/// Magnitude of a quotient at most: far beyond all codes, and well within i32.
const MOST: f32 = 268_435_456.0;

#[derive(Clone, Copy, Default)]
pub(super) struct Awq;

impl Rule for Awq {
    const NEED: Need = Need::Itself;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const BEYOND: i32 = BEYOND_HALF.to_bits().cast_signed();

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let (high, low) = (half(simd, ranges.high), half(simd, ranges.low));
        let (range, least) = (half(simd, simd.sub(high, low)), simd.splat(LEAST));
        let range = simd.select(simd.less(range, least), least, range);
        let scale = half(simd, simd.div(range, simd.splat(15.0)));
        let quotient = half(simd, simd.div(low, scale));
        let zero_point = simd.round(clamp(simd, quotient, simd.splat(-15.0), simd.splat(0.0)));
        // Where quotients would be beyond i32 all of them are, on one side: there the code is the first or the last, whatever they are.
        let (inverse, farthest) = (simd.div(simd.splat(1.0), scale), larger(simd, magnitude(simd, low), magnitude(simd, high)));
        let most = simd.div(simd.splat(MOST), farthest);
        let factor = simd.select(simd.less(most, inverse), most, inverse);
        Fit { scale, offset: simd.sub(simd.splat(0.0), simd.to_f32(zero_point)), factor }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, zero_point: S::F32) -> S::I32 {
        let quotient = rounded_quotient(simd, simd.mul(half(simd, x), inverse));
        simd.add_i32(simd.round(quotient), simd.round(zero_point))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, zero_point: S::F32) -> S::F32 {
        simd.mul(simd.sub(numbers, zero_point), scale)
    }
}

/// h(x / scale) of `quotient` = x * (1 / scale), where x and the scale are numbers of float16; in place of what is below 2^-14, which
/// has code 0, something below that too.
///
/// float16 has 11 bits, and a quotient of two such numbers is no number of 12 bits that ends in 1: it would times the scale need more
/// than 11. So it lies between two that h(...) parts, by more than two roundings of float32 move it, and which way a tie goes does
/// not matter. Dekker's way to the upper bits is as good as a conversion to float16 and back, and takes a third of the time.
#[inline(always)]
fn rounded_quotient<S: Simd>(simd: S, quotient: S::F32) -> S::F32 {
    let shifted = simd.mul(quotient, simd.splat(8193.0));
    simd.sub(shifted, simd.sub(shifted, quotient))
}

/// h(...)
#[inline(always)]
fn half<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    round_to(simd, v, ScaleDtype::F16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;
    use crate::simd::{Kernel, LANES};
    use half::f16;

    struct Quotients<'a>(&'a [f32; LANES], f32);

    impl Kernel for Quotients<'_> {
        type Output = [f32; LANES];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [f32; LANES] {
            let inverse = simd.div(simd.splat(1.0), simd.splat(self.1));
            let mut quotients = [0.0; LANES];
            simd.store(rounded_quotient(simd, simd.mul(simd.load(self.0), inverse)), &mut quotients);
            quotients
        }
    }

    /// All significands of both; powers of two change none of the roundings.
    #[test]
    #[cfg_attr(miri, ignore = "a million quotients")]
    fn the_product_with_the_reciprocal_rounds_as_the_quotient_does() {
        for scale in 1024..2048u16 {
            for x in (1024..2048u16).step_by(LANES) {
                let x = std::array::from_fn(|lane| f32::from(x + lane as u16));
                let expected = x.map(|x| f16::from_f32(x / f32::from(scale)).to_f32());
                for level in Level::available() {
                    assert_eq!(level.run(Quotients(&x, f32::from(scale))), expected, "{x:?} / {scale}, {}", level.name());
                }
            }
        }
    }
}
