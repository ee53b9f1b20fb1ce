//! GPTQ's checkpoints: a 16-bit scale and a 4-bit zero point a group, words of 8 codes along K. The parts of W (N, K):
//!
//! ```text
//! qweight  i32 (K / 8, N)   W[n, 8i] in the lowest bits of word (i, n), W[n, 8i + 7] in the highest
//! qzeros   i32 (G, N / 8)   the zero point of row 8j in the lowest bits of word (g, j); version 1 stores it less 1
//! scales   f16 (G, N)
//! g_idx    i32 (K)          the group of each column
//!
//! low = min(x, 0), high = max(x, 0);   symmetric: high = max(-low, high), and low = -high where low < 0
//! scale      = (high - low) / 15; where it is 0, in version 1 as float16: low = -1, high = 1 and again
//! zero_point = clamp(round_half_even(-low / scale), 0, 15), in version 1 from 1 on; symmetric: 8
//! code       = clamp(round_half_even(x / scale) + zero_point, 0, 15)      x ~ (code - zero_point) * float16(scale)
//! ```
//!
//! Codes are made with the scale before it is rounded. Version 1 keeps (code - zero_point) * scale as a float16 weight in between:
//!
//! ```text
//! weight = float16((code - zero_point) * scale)
//! code   = clamp(round_half_even((weight + zero_point * scale) / float16(scale)), 0, 15)
//! ```
//!
//! Its reader takes a stored 15 for the zero point 16. Sources: AutoGPTQ/AutoGPTQ `auto_gptq/quantization/quantizer.py` and
//! `auto_gptq/nn_modules/qlinear/qlinear_cuda.py`; ModelCloud/GPTQModel `gptqmodel/nn_modules/qlinear/__init__.py`.

use super::planar::{Planar, rows};
use super::transposed::Transposed;
use crate::kernels::encode::{Fit, Rule};
use crate::kernels::lanes::clamp;
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::{BEYOND_HALF, INFINITE, Need, Ranges};
use crate::kernels::scales::round_to;
use crate::simd::Simd;
use crate::spec::{Choice, Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Shapes, Spec, ZeroPoints};

pub(super) static SYMMETRIC: Transposed<Gptq<true, true>, 1> = Transposed::new(&SYMMETRIC_SPEC, &SYMMETRIC_ROWS);
pub(super) static ASYMMETRIC: Transposed<Gptq<true, false>, 1> = Transposed::new(&ASYMMETRIC_SPEC, &ASYMMETRIC_ROWS);
pub(super) static V2_SYMMETRIC: Transposed<Gptq<false, true>> = Transposed::new(&V2_SYMMETRIC_SPEC, &V2_SYMMETRIC_ROWS);
pub(super) static V2_ASYMMETRIC: Transposed<Gptq<false, false>> = Transposed::new(&V2_ASYMMETRIC_SPEC, &V2_ASYMMETRIC_ROWS);

static SYMMETRIC_SPEC: Spec = spec(true);
static ASYMMETRIC_SPEC: Spec = spec(false);
static V2_SYMMETRIC_SPEC: Spec = v2(true);
static V2_ASYMMETRIC_SPEC: Spec = v2(false);

static SYMMETRIC_ROWS: Planar<Gptq<true, true>> = Planar::new(&ROWS_SPEC);
static ASYMMETRIC_ROWS: Planar<Gptq<true, false>> = Planar::new(&ROWS_SPEC);
static V2_SYMMETRIC_ROWS: Planar<Gptq<false, true>> = Planar::new(&V2_ROWS_SPEC);
static V2_ASYMMETRIC_ROWS: Planar<Gptq<false, false>> = Planar::new(&V2_ROWS_SPEC);

/// Version 1.
const fn spec(symmetric: bool) -> Spec {
    Spec {
        name: "gptq",
        summary: "GPTQ version 1: zero points stored less 1, words of 8 codes along K",
        zero_points: ZeroPoints::Integers(1, 15),
        home: "auto-gptq 0.7.1",
        half: true,
        ..v2(symmetric)
    }
}

/// Version 2.
const fn v2(symmetric: bool) -> Spec {
    Spec {
        name: "gptq:v2",
        summary: "GPTQ version 2: zero points as they are, words of 8 codes along K",
        scheme: Scheme::Affine,
        group_sizes: GroupSizes::OneOf { sizes: &[32, 64, 128], default: 128, row: true, short: false },
        shapes: Shapes::Matrix { rows: 8, columns: 32 },
        scale_dtypes: &[ScaleDtype::F16],
        parts: &[
            Part { name: "qweight", dtype: PartDtype::I32, extent: Extent::WordsAlongColumns },
            Part { name: "qzeros", dtype: PartDtype::I32, extent: Extent::GroupWordsTransposed },
            Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::GroupsTransposed },
            Part { name: "g_idx", dtype: PartDtype::I32, extent: Extent::GroupOfColumn },
        ],
        choice: Some(Choice::Symmetric(symmetric)),
        home: "gptqmodel 7.7.0",
        ..Spec::BASE
    }
}

static ROWS_SPEC: Spec = rows(&SYMMETRIC_SPEC);
static V2_ROWS_SPEC: Spec = rows(&V2_SYMMETRIC_SPEC);

#[derive(Clone, Copy, Default)]
pub(super) struct Gptq<const V1: bool, const SYMMETRIC: bool>;

impl<const V1: bool, const SYMMETRIC: bool> Rule for Gptq<V1, SYMMETRIC> {
    const NEED: Need = Need::WithZero;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const BEYOND: i32 = if V1 { BEYOND_HALF.to_bits().cast_signed() } else { INFINITE };

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, dtype: ScaleDtype) -> Fit<S> {
        let (zero, fifteen) = (simd.splat(0.0), simd.splat(15.0));
        let Ranges { mut high, mut low } = ranges;
        if SYMMETRIC {
            let negated = simd.sub(zero, low);
            high = simd.select(simd.less(high, negated), negated, high);
            low = simd.select(simd.less(low, zero), simd.sub(zero, high), low);
        }
        let scale = simd.div(simd.sub(high, low), fifteen);
        let divisor = if V1 { round_to(simd, scale, dtype) } else { scale };
        let empty = simd.equal(divisor, zero);
        let scale = simd.select(empty, simd.splat(2.0 / 15.0), scale);
        let zero_point = if SYMMETRIC {
            simd.splat(8.0)
        } else {
            let low = simd.select(empty, simd.splat(-1.0), low);
            let zero_point = simd.to_f32(simd.round(simd.div(simd.sub(zero, low), scale)));
            clamp(simd, zero_point, simd.splat(if V1 { 1.0 } else { 0.0 }), fifteen)
        };
        Fit { scale, offset: zero_point, factor: scale }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, zero_point: S::F32) -> S::I32 {
        let count = simd.round(simd.div(x, scale));
        if V1 && simd.any(simd.or(simd.less(scale, simd.splat(LEAST)), simd.less(simd.splat(MOST), scale))) {
            return through_weights(simd, simd.to_f32(count), scale, zero_point);
        }
        simd.add_i32(count, simd.round(zero_point))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, zero_point: S::F32) -> S::F32 {
        simd.mul(simd.sub(numbers, zero_point), scale)
    }
}

/// From here on a scale, and a weight that is not 0, are normal numbers of float16.
const LEAST: f32 = f32::from_bits((127 - 14) << 23);

/// Up to here 15 times a scale is a number of float16.
const MOST: f32 = 4096.0;

/// The codes of the float16 weights. Scales from [`LEAST`] to [`MOST`] need not come here: weight and scale are each rounded by at
/// most 2^-11 of themselves, which moves the quotient, 15 at most, by less than 0.02 from the integer that it was.
#[inline(always)]
fn through_weights<S: Simd>(simd: S, count: S::F32, scale: S::F32, zero_point: S::F32) -> S::I32 {
    let (zero, fifteen) = (simd.splat(0.0), simd.splat(15.0));
    let half = |v: S::F32| round_to(simd, v, ScaleDtype::F16);
    let first = clamp(simd, simd.add(count, zero_point), zero, fifteen);
    let weight = half(simd.mul(simd.sub(first, zero_point), scale));
    let code = simd.div(simd.add(weight, simd.mul(zero_point, scale)), half(scale));
    simd.round(clamp(simd, code, zero, fifteen))
}
