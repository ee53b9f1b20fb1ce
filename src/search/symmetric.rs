//! The codes -8..=7, which are their own numbers.

use super::line::{Branches, Line};
use super::sums::Levels;
use crate::kernels::lanes::{clamp, magnitude};
use crate::simd::Simd;

#[derive(Clone, Copy, Debug)]
pub(super) struct Symmetric;

impl<S: Simd> Levels<S> for Symmetric {
    #[inline(always)]
    fn lowest(self, simd: S) -> S::F32 {
        simd.splat(-8.0)
    }

    #[inline(always)]
    fn highest(self, simd: S) -> S::F32 {
        simd.splat(7.0)
    }

    fn least(self) -> f32 {
        0.0
    }

    #[inline(always)]
    fn nearest(self, simd: S, y: S::F32) -> (S::F32, S::F32) {
        let code = simd.min_i32(simd.max_i32(simd.round(y), simd.splat_i32(-8)), simd.splat_i32(7));
        let q = simd.to_f32(code);
        (q, magnitude(simd, q))
    }
}

impl Branches for Symmetric {
    type Levels<S: Simd> = Self;

    #[inline(always)]
    fn branch<S: Simd>(self, _: S, sign: S::F32) -> (Self, S::F32) {
        (self, sign)
    }
}

impl Line for Symmetric {
    fn greatest(self) -> f32 {
        8.0
    }

    #[inline(always)]
    fn code<S: Simd>(self, simd: S, y: S::F32) -> S::I32 {
        simd.round(clamp(simd, y, simd.splat(-8.0), simd.splat(7.0)))
    }

    fn doubles(self) -> bool {
        true
    }

    fn mirrored(self) -> f32 {
        7.5
    }

    fn full(self) -> f32 {
        8.0
    }

    /// Codes within -4..=3 are half of others, so that some optimum has one beyond: the largest magnitude is 3.5 steps or more.
    /// Most optima are between 6 and 9.
    fn grid(self) -> &'static [f32] {
        &[3.5, 4.55, 5.3, 5.85, 6.3, 6.7, 7.08, 7.48, 7.85, 8.25, 8.7, 9.25, 9.95, 10.9, 12.2]
    }

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, highest: S::F32, lowest: S::F32) -> S::F32 {
        simd.div(simd.splat(1.0), simd.select(simd.less(highest, lowest), lowest, highest))
    }
}
