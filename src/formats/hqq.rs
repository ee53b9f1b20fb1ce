//! `hqq`: a scale and a zero point a group, both numbers of the scale dtype; the groups are the rows of a matrix of codes (R, g).
//!
//! ```text
//! packed       u8 (R / 2, g): byte (i, j) = code (i, j) high, code (i + R / 2, j) low
//! scales       one a group
//! zero_points  one a group
//!
//! scale      = (max - min) / 15, rounded to the scale dtype; where that is below 2^-126 it is 1
//! zero_point = 0 - min / scale, rounded to the scale dtype
//! code       = clamp(round_half_even(x / scale + zero_point), 0, 15)
//! x ~ (code - zero_point) * scale
//! ```
//!
//! The rule is ours: HQQ starts from the extremes too, and then searches. Source of the layout: mobiusml/hqq `hqq/core/bitpack.py`,
//! `hqq/core/quantize.py`.

use super::planar::{Planar, rows};
use super::{Context, Need, Rows, Tile, Weave};
use crate::kernels::blocks::{Block, BlockMut};
use crate::kernels::encode::{Fit, Rule};
use crate::kernels::lanes::clamp;
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::Ranges;
use crate::kernels::scales::round_to;
use crate::kernels::transpose::{Deinterleave, Interleave};
use crate::simd::Simd;
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec, ZeroPoints};

pub(super) static FORMAT: Hqq = Hqq;

static SPEC: Spec = Spec {
    name: "hqq",
    summary: "HQQ: a scale and a zero point that is a float a group, the first half of the groups beside the second",
    scheme: Scheme::Affine,
    group_sizes: GroupSizes::Divides { default: 64 },
    scale_dtypes: &[ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32],
    zero_points: ZeroPoints::Numbers,
    parts: &[
        Part { name: "packed", dtype: PartDtype::U8, extent: Extent::HalfRows },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
        Part { name: "zero_points", dtype: PartDtype::Scale, extent: Extent::Groups },
    ],
    home: "hqq 0.2.8.post1",
    exact: false,
    ..Spec::BASE
};

static ROWS_SPEC: Spec = rows(&SPEC);
static ROWS: Planar<MinMax> = Planar::new(&ROWS_SPEC);

#[derive(Clone, Copy, Default)]
pub(super) struct MinMax;

impl Rule for MinMax {
    const NEED: Need = Need::Itself;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const MINIMUM: bool = true;

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, dtype: ScaleDtype) -> Fit<S> {
        let scale = round_to(simd, simd.div(simd.sub(ranges.high, ranges.low), simd.splat(15.0)), dtype);
        let scale = simd.select(simd.less(scale, simd.splat(f32::MIN_POSITIVE)), simd.splat(1.0), scale);
        let zero_point = round_to(simd, simd.sub(simd.splat(0.0), simd.div(ranges.low, scale)), dtype);
        Fit { scale, offset: zero_point, factor: scale }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, zero_point: S::F32) -> S::I32 {
        // A zero point that was rounded can be far off.
        let code = simd.add(simd.div(x, scale), zero_point);
        simd.round(clamp(simd, code, simd.splat(0.0), simd.splat(15.0)))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, zero_point: S::F32) -> S::F32 {
        simd.mul(simd.sub(numbers, zero_point), scale)
    }
}

pub(super) struct Hqq;

impl Weave for Hqq {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn rows(&self) -> &'static dyn Rows {
        &ROWS
    }

    /// The tile has two rows: a piece of the first half of the codes and the same piece of the second.
    fn weave(&self, context: Context, _: Tile, rows: &[&[u8]], parts: &mut [BlockMut<'_>]) {
        let (high, low) = rows[0].split_at(rows[0].len() / 2);
        let bytes = parts[0].bytes().expect("rows of one byte follow each other");
        context.level.run(Interleave { low, high, bytes });
        rows.iter().zip(parts).skip(1).for_each(|(from, to)| to.copy_from(from));
    }

    fn unweave(&self, context: Context, _: Tile, parts: &[Block<'_>], rows: &mut [&mut [u8]]) {
        if !rows[0].is_empty() {
            let bytes = parts[0].bytes().expect("rows of one byte follow each other");
            let half = rows[0].len() / 2;
            let (high, low) = rows[0].split_at_mut(half);
            context.level.run(Deinterleave { bytes, low, high });
        }
        parts.iter().zip(rows).skip(1).for_each(|(from, to)| from.copy_to(to));
    }
}
