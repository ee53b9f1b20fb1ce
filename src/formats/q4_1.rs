//! GGUF `Q4_1`: groups of 32, an f16 scale and an f16 minimum before the codes.
//!
//! ```text
//! byte   0..2        2..4          4                    ...            19
//!        scale f16 | minimum f16 | x0 low, x16 high | x1, x17 | ... | x15, x31
//!
//! scale = (max - min) / 15
//! code  = min(15, trunc((x - min) * (1 / scale) + 0.5))           x ~ code * scale + minimum
//! ```
//!
//! The codes are made with scale and minimum before they are rounded to f16; a minimum of zero has the sign of the first zero.
//! Source: ggml-org/ggml `src/ggml-quants.c`, `quantize_row_q4_1_ref`.

use super::blocks::{BLOCK, Blocks, Header};
use crate::kernels::encode::{Fit, Rule, reciprocal_or_nan};
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::{Need, Ranges};
use crate::simd::Simd;
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Blocks<Q41> = Blocks::new(&SPEC);

static SPEC: Spec = Spec {
    name: "gguf:q4_1",
    aliases: &["q4_1"],
    summary: "blocks of 32 with f16 scale and f16 minimum",
    scheme: Scheme::Minimum,
    group_sizes: GroupSizes::Fixed(BLOCK),
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(20) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

#[derive(Clone, Copy, Default)]
pub(super) struct Q41;

impl Header for Q41 {}

impl Rule for Q41 {
    const NEED: Need = Need::Itself;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let scale = simd.div(simd.sub(ranges.high, ranges.low), simd.splat(15.0));
        Fit { scale, offset: ranges.low, factor: reciprocal_or_nan(simd, scale) }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, offset: S::F32) -> S::I32 {
        simd.truncate(simd.add(simd.mul(simd.sub(x, offset), inverse), simd.splat(0.5)))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, offset: S::F32) -> S::F32 {
        simd.add(simd.mul(numbers, scale), offset)
    }
}
