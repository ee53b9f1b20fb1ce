//! `int4`: symmetric, any group size, signed codes in two's complement.
//!
//! ```text
//! scale = (element of largest magnitude, the first one wins) / -8, rounded to the scale dtype
//! code  = clamp(round_half_even(x * (1 / scale)), -8, 7)          x ~ code * scale
//! ```
//!
//! The extreme element gets code -8, so that all 16 codes are in use; scales are negative where it is positive.
//! A group whose rounded scale is below 2^-126 in magnitude has scale +0 and codes 0.

use super::planar::Planar;
use super::q4_0::extreme;
use crate::kernels::encode::{Fit, Rule, scale_and_reciprocal};
use crate::kernels::nibbles::SIGNED;
use crate::kernels::range::{Need, Ranges};
use crate::kernels::scales::round_to;
use crate::simd::Simd;
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Planar<Int4> = Planar::new(&SPEC);

static SPEC: Spec = Spec {
    name: "int4",
    aliases: &[],
    summary: "symmetric, any group size, two's complement",
    scheme: Scheme::Symmetric,
    group_sizes: GroupSizes::Any { default: 32, tensor: true },
    scale_dtypes: &[ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32],
    parts: &[
        Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Codes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
    ],
    home: "quantize",
    ..Spec::BASE
};

#[derive(Clone, Copy, Default)]
pub(super) struct Int4;

impl Rule for Int4 {
    const NEED: Need = Need::Extreme;
    const BIAS: i8 = 8;
    const CODES: [i8; 16] = SIGNED;

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, dtype: ScaleDtype) -> Fit<S> {
        let scale = round_to(simd, simd.div(extreme(simd, ranges), simd.splat(-8.0)), dtype);
        let (scale, inverse) = scale_and_reciprocal(simd, scale);
        Fit { scale, offset: simd.splat(0.0), factor: inverse }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, _: S::F32) -> S::I32 {
        simd.add_i32(simd.round(simd.mul(x, inverse)), simd.splat_i32(8))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, scale)
    }
}
