//! MLX affine quantization: groups of 32, 64 or 128 with a scale of either sign and an additive bias, both in the array's dtype.
//!
//! ```text
//! weight  u32 words of 8 codes, the first in the lowest bits
//!
//! scale = max((max - min) / 15, 1e-7), negative unless |min| > |max|
//! edge  = min if |min| > |max|, else max;  n = round_half_even(edge / scale)
//! where n is not 0: scale = edge / n, bias = edge; else bias = 0
//! code  = clamp(round_half_even((x - bias) / scale), 0, 15)       x ~ code * scale + bias
//! ```
//!
//! The codes are made with scale and bias before they are rounded. This is the CPU encoder; the one for GPUs differs in ties.
//! Source: ml-explore/mlx `mlx/backend/cpu/quantized.cpp`.

use super::planar::Planar;
use crate::kernels::encode::{Fit, Rule};
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::{Need, Ranges};
use crate::simd::Simd;
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Planar<Mlx> = Planar::new(&SPEC);

static SPEC: Spec = Spec {
    name: "mlx",
    aliases: &["mlx:affine"],
    summary: "scale and bias, words of 8 codes",
    scheme: Scheme::Minimum,
    group_sizes: GroupSizes::OneOf { sizes: &[32, 64, 128], default: 64, row: false, short: false },
    scale_dtypes: &[ScaleDtype::F32, ScaleDtype::F16, ScaleDtype::Bf16],
    scales_follow_array: true,
    parts: &[
        Part { name: "weight", dtype: PartDtype::U32, extent: Extent::Codes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
        Part { name: "biases", dtype: PartDtype::Scale, extent: Extent::Groups },
    ],
    home: "mlx 0.32.4",
    ..Spec::BASE
};

#[derive(Clone, Copy, Default)]
pub(super) struct Mlx;

impl Rule for Mlx {
    const NEED: Need = Need::Itself;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let (zero, least) = (simd.splat(0.0), simd.splat(1e-7));
        let magnitude = |v: S::F32| simd.as_f32(simd.and(simd.bits(v), simd.splat_i32(i32::MAX)));
        let low_is_larger = simd.less(magnitude(ranges.high), magnitude(ranges.low));
        let step = simd.div(simd.sub(ranges.high, ranges.low), simd.splat(15.0));
        let step = simd.select(simd.less(step, least), least, step);
        let step = simd.select(low_is_larger, step, simd.sub(zero, step));
        let edge = simd.select(low_is_larger, ranges.low, ranges.high);
        let quotient = simd.div(edge, step);
        // From 2^23 on a float is an integer already, and may be too large for one.
        let count = simd.select(simd.less(magnitude(quotient), simd.splat(8_388_608.0)), simd.to_f32(simd.round(quotient)), quotient);
        let none = simd.equal(count, zero);
        let scale = simd.select(none, step, simd.div(edge, count));
        Fit { scale, offset: simd.select(none, zero, edge), factor: scale }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, bias: S::F32) -> S::I32 {
        simd.round(simd.div(simd.sub(x, bias), scale))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, bias: S::F32) -> S::F32 {
        simd.add(simd.mul(numbers, scale), bias)
    }
}
