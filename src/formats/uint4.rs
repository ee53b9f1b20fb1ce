//! `uint4`: affine with a 4-bit zero point, any group size, unsigned codes.
//!
//! ```text
//! low = min(x, 0), high = max(x, 0)
//! scale      = high / 15 - low / 15, rounded to the scale dtype
//! zero_point = clamp(round_half_even(-low * (1 / scale)), 0, 15)
//! code       = clamp(round_half_even(x * (1 / scale)) + zero_point, 0, 15)      x ~ (code - zero_point) * scale
//! ```
//!
//! A group whose rounded scale is below 2^-126 has scale +0, zero point 0 and codes 0.

use super::planar::Planar;
use crate::kernels::encode::{Fit, Rule, scale_and_reciprocal};
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::{Need, Ranges};
use crate::kernels::scales::round_to;
use crate::simd::Simd;
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Planar<Uint4> = Planar::new(&SPEC);

static SPEC: Spec = Spec {
    name: "uint4",
    aliases: &[],
    summary: "affine with a 4-bit zero point, any group size",
    scheme: Scheme::Affine,
    group_sizes: GroupSizes::Any { default: 32, tensor: true },
    scale_dtypes: &[ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32],
    parts: &[
        Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Codes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
        Part { name: "zero_points", dtype: PartDtype::U8, extent: Extent::GroupPairs },
    ],
    home: "quantize",
    ..Spec::BASE
};

#[derive(Clone, Copy, Default)]
pub(super) struct Uint4;

impl Rule for Uint4 {
    const NEED: Need = Need::WithZero;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, dtype: ScaleDtype) -> Fit<S> {
        let fifteen = simd.splat(15.0);
        let scale = simd.sub(simd.div(ranges.high, fifteen), simd.div(ranges.low, fifteen));
        let (scale, inverse) = scale_and_reciprocal(simd, round_to(simd, scale, dtype));
        let zero_point = simd.to_f32(simd.round(simd.mul(simd.sub(simd.splat(0.0), ranges.low), inverse)));
        let zero_point = simd.select(simd.less(fifteen, zero_point), fifteen, zero_point);
        Fit { scale, offset: zero_point, factor: inverse }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, offset: S::F32) -> S::I32 {
        simd.add_i32(simd.round(simd.mul(x, inverse)), simd.round(offset))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, offset: S::F32) -> S::F32 {
        simd.mul(simd.sub(numbers, offset), scale)
    }
}
