//! The two blocked formats of ONNX Runtime: a scale a group along K, and a 4-bit zero point or none. W is (N, K), the transpose of
//! the weight B (K, N) of a MatMul.
//!
//! ```text
//! onnx:matmulnbits   packed u8 (N, G, g / 2)   the even element low; the last group filled up with codes 0
//!                    scales (N, G), zero_points u8 (N, ceil(G / 2)): the even group low, an odd row filled up with 8
//! onnx:qdq           packed u8, the codes of B in its order, the even one low
//!                    scales (G, N), zero_points u8, packed as the codes are; an odd number of either ends with a nibble 0
//!
//! symmetric:   extreme = max if |max| > |min|, else min; in a group of zeros the first element
//!              scale   = -extreme / 8, rounded to the scale dtype; it may be negative
//! asymmetric:  low = min(x, 0), high = max(x, 0)
//!              exact = (high - low) / 15; scale = exact, rounded to the scale dtype
//!              zero_point = round(clamp(-low / exact, 0, 15)), 0 where exact is 0
//!
//! product = x * (1 / scale); 1 / 0 is 0 here
//! onnx:matmulnbits   code = clamp(round(product + zero_point), 0, 15); 8 is the zero point of symmetric codes
//! onnx:qdq           code = clamp(round(product) + zero_point, 0, 15); symmetric: clamp(round(product), -8, 7), two's complement
//! x ~ (code - zero_point) * scale
//! ```
//!
//! A tie is rounded away from zero. A scale below 2^-128 has an infinite reciprocal: `onnx:matmulnbits` makes 0 * infinity code 0,
//! `onnx:qdq` every product that is not finite its lowest code. Sources: microsoft/onnxruntime `onnxruntime/core/mlas/lib/q4_dq.cpp`
//! and `onnxruntime/python/tools/quantization/matmul_nbits_quantizer.py`.

use super::planar::{Planar, rows};
use super::transposed::Transposed;
use crate::kernels::encode::{Fit, Rule};
use crate::kernels::lanes::{clamp, magnitude};
use crate::kernels::nibbles::{OFFSET, SIGNED, UNSIGNED};
use crate::kernels::range::{Need, Ranges};
use crate::kernels::scales::round_to;
use crate::simd::Simd;
use crate::spec::{Choice, Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Shapes, Spec};

pub(super) static MATMUL_SYMMETRIC: Planar<MatMulNBits<true>> = Planar::new(&MATMUL_SYMMETRIC_SPEC);
pub(super) static MATMUL_ASYMMETRIC: Planar<MatMulNBits<false>> = Planar::new(&MATMUL_ASYMMETRIC_SPEC);
pub(super) static QDQ_SYMMETRIC: Transposed<Qdq<true>> = Transposed::new(&QDQ_SYMMETRIC_SPEC, &QDQ_SYMMETRIC_ROWS);
pub(super) static QDQ_ASYMMETRIC: Transposed<Qdq<false>> = Transposed::new(&QDQ_ASYMMETRIC_SPEC, &QDQ_ASYMMETRIC_ROWS);

static MATMUL_SYMMETRIC_SPEC: Spec = matmul(true);
static MATMUL_ASYMMETRIC_SPEC: Spec = matmul(false);
static QDQ_SYMMETRIC_SPEC: Spec = qdq(true);
static QDQ_ASYMMETRIC_SPEC: Spec = qdq(false);
static QDQ_SYMMETRIC_ROWS_SPEC: Spec = rows(&QDQ_SYMMETRIC_SPEC);
static QDQ_ASYMMETRIC_ROWS_SPEC: Spec = rows(&QDQ_ASYMMETRIC_SPEC);

const fn matmul(symmetric: bool) -> Spec {
    const PARTS: &[Part] = &[
        Part { name: "packed", dtype: PartDtype::U8, extent: Extent::GroupCodes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
        Part { name: "zero_points", dtype: PartDtype::U8, extent: Extent::GroupPairs },
    ];
    Spec {
        name: "onnx:matmulnbits",
        summary: "ONNX Runtime's MatMulNBits: a scale a group, and a zero point if asymmetric",
        group_sizes: GroupSizes::OneOf { sizes: &[16, 32, 64, 128, 256], default: 32, row: false, short: true },
        ..variant(symmetric, PARTS)
    }
}

const fn qdq(symmetric: bool) -> Spec {
    const PARTS: &[Part] = &[
        Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Transposed },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::GroupsTransposed },
        Part { name: "zero_points", dtype: PartDtype::U8, extent: Extent::GroupPairsTransposed },
    ];
    Spec {
        name: "onnx:qdq",
        summary: "ONNX DequantizeLinear in blocks along K: codes in the order of the weight (K, N), any group size",
        group_sizes: GroupSizes::Any { default: 32, tensor: false },
        ..variant(symmetric, PARTS)
    }
}

/// What the formats share; the last part is that of zero points.
const fn variant(symmetric: bool, parts: &'static [Part]) -> Spec {
    Spec {
        scheme: if symmetric { Scheme::Symmetric } else { Scheme::Affine },
        shapes: Shapes::Matrix { rows: 1, columns: 1 },
        scale_dtypes: &[ScaleDtype::F32, ScaleDtype::F16],
        scales_follow_array: true,
        parts: if symmetric { parts.split_at(parts.len() - 1).0 } else { parts },
        choice: Some(Choice::Symmetric(symmetric)),
        home: "onnxruntime 1.32.0",
        ..Spec::BASE
    }
}

static QDQ_SYMMETRIC_ROWS: Planar<Qdq<true>> = Planar::new(&QDQ_SYMMETRIC_ROWS_SPEC);
static QDQ_ASYMMETRIC_ROWS: Planar<Qdq<false>> = Planar::new(&QDQ_ASYMMETRIC_ROWS_SPEC);

#[derive(Clone, Copy, Default)]
pub(super) struct MatMulNBits<const SYMMETRIC: bool>;

impl<const SYMMETRIC: bool> Rule for MatMulNBits<SYMMETRIC> {
    const NEED: Need = need(SYMMETRIC);
    const BIAS: i8 = if SYMMETRIC { 8 } else { 0 };
    const CODES: [i8; 16] = if SYMMETRIC { OFFSET } else { UNSIGNED };

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, dtype: ScaleDtype) -> Fit<S> {
        fit(simd, SYMMETRIC, ranges, dtype)
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, zero_point: S::F32) -> S::I32 {
        round_positive(simd, simd.add(simd.mul(x, inverse), zero_point))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, zero_point: S::F32) -> S::F32 {
        values(simd, SYMMETRIC, numbers, scale, zero_point)
    }
}

#[derive(Clone, Copy, Default)]
pub(super) struct Qdq<const SYMMETRIC: bool>;

impl<const SYMMETRIC: bool> Rule for Qdq<SYMMETRIC> {
    const NEED: Need = need(SYMMETRIC);
    const BIAS: i8 = if SYMMETRIC { 8 } else { 0 };
    const CODES: [i8; 16] = if SYMMETRIC { SIGNED } else { UNSIGNED };

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, dtype: ScaleDtype) -> Fit<S> {
        fit(simd, SYMMETRIC, ranges, dtype)
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, zero_point: S::F32) -> S::I32 {
        // A finite product is at most twice 15: by so much can the rounding of a scale change it.
        let most = simd.splat(64.0);
        let product = simd.mul(x, inverse);
        let product = simd.select(simd.less(magnitude(simd, product), most), product, simd.splat(-64.0));
        let sign = simd.and(simd.bits(product), simd.splat_i32(i32::MIN));
        let half = simd.as_f32(simd.or(sign, simd.bits(simd.splat(BELOW_HALF))));
        simd.add_i32(simd.truncate(simd.add(product, half)), simd.round(zero_point))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, zero_point: S::F32) -> S::F32 {
        values(simd, SYMMETRIC, numbers, scale, zero_point)
    }
}

/// Symmetric codes need the sign of a zero too.
const fn need(symmetric: bool) -> Need {
    if symmetric { Need::Itself } else { Need::WithZero }
}

/// Scale, zero point and reciprocal; the zero point of symmetric codes is their bias.
#[inline(always)]
fn fit<S: Simd>(simd: S, symmetric: bool, ranges: Ranges<S>, dtype: ScaleDtype) -> Fit<S> {
    let zero = simd.splat(0.0);
    let Ranges { high, low } = ranges;
    let (scale, zero_point) = if symmetric {
        let extreme = simd.select(simd.less(magnitude(simd, low), magnitude(simd, high)), high, low);
        (simd.mul(extreme, simd.splat(-0.125)), simd.splat(8.0))
    } else {
        let exact = simd.div(simd.sub(high, low), simd.splat(15.0));
        let zero_point = round_positive(simd, simd.div(simd.sub(zero, low), exact));
        (exact, simd.select(simd.equal(exact, zero), zero, simd.to_f32(zero_point)))
    };
    let scale = round_to(simd, scale, dtype);
    let inverse = simd.select(simd.equal(scale, zero), zero, simd.div(simd.splat(1.0), scale));
    Fit { scale, offset: zero_point, factor: inverse }
}

/// The largest number below 0.5: with 0.5 itself 0.49999997 would be rounded up.
const BELOW_HALF: f32 = f32::from_bits(0x3eff_ffff);

/// To the nearest integer of 0..=15, a tie up; 0 where `v` is NaN.
#[inline(always)]
fn round_positive<S: Simd>(simd: S, v: S::F32) -> S::I32 {
    simd.truncate(simd.add(clamp(simd, v, simd.splat(0.0), simd.splat(15.0)), simd.splat(BELOW_HALF)))
}

#[inline(always)]
fn values<S: Simd>(simd: S, symmetric: bool, numbers: S::F32, scale: S::F32, zero_point: S::F32) -> S::F32 {
    let numbers = if symmetric { numbers } else { simd.sub(numbers, zero_point) };
    simd.mul(numbers, scale)
}
