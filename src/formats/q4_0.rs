//! GGUF `Q4_0`: groups of 32, symmetric, one f16 scale before the codes.
//!
//! ```text
//! byte   0..2      2                    ...            17
//!        scale f16 | x0 low, x16 high | x1, x17 | ... | x15, x31
//!
//! scale = (element of largest magnitude, the first one wins) / -8
//! code  = min(15, trunc(x * (1 / scale) + 8.5)) - 8               x ~ code * scale
//! ```
//!
//! The codes are made with the scale before it is rounded to f16. Source: ggml-org/ggml `src/ggml-quants.c`, `quantize_row_q4_0_ref`.

use super::blocks::{BLOCK, Blocks, Header};
use crate::kernels::encode::{Fit, Rule, reciprocal_or_nan};
use crate::kernels::nibbles::OFFSET;
use crate::kernels::range::{Need, Ranges};
use crate::simd::Simd;
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Blocks<Q40> = Blocks::new(&SPEC);

static SPEC: Spec = Spec {
    name: "gguf:q4_0",
    aliases: &["q4_0"],
    summary: "symmetric blocks of 32, f16 scale",
    scheme: Scheme::Symmetric,
    group_sizes: GroupSizes::Fixed(BLOCK),
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(18) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

#[derive(Clone, Copy, Default)]
pub(super) struct Q40;

impl Header for Q40 {}

impl Rule for Q40 {
    const NEED: Need = Need::Extreme;
    const BIAS: i8 = 8;
    const CODES: [i8; 16] = OFFSET;

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let scale = simd.div(extreme(simd, ranges), simd.splat(-8.0));
        Fit { scale, offset: simd.splat(0.0), factor: reciprocal_or_nan(simd, scale) }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, _: S::F32) -> S::I32 {
        simd.truncate(simd.add(simd.mul(x, inverse), simd.splat(8.5)))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, scale)
    }
}

/// The end of a settled range that has the larger magnitude; +0 where both are 0.
#[inline(always)]
pub(super) fn extreme<S: Simd>(simd: S, ranges: Ranges<S>) -> S::F32 {
    let negated = simd.sub(simd.splat(0.0), ranges.low);
    simd.select(simd.less(ranges.high, negated), ranges.low, ranges.high)
}
