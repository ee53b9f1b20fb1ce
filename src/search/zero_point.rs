//! A scale and an integer zero point: the codes 0..=15 less the zero point are the numbers.
//!
//! Scales from span / 15 up leave no element beyond the codes of the zero point that the smallest element asks for. Other zero points
//! clip the same numbers or do as well, so that there the search is one over a scale, the same for all of them. As with symmetric
//! codes it begins at span / 7: numbers that span less are half of others.
//!
//! Below span / 15 something is clipped, and every zero point has a branch of its own. What it clips at span / 15 it clips at every
//! smaller scale: if that alone is as much as the best error the branch is done with, and so are all zero points beyond it, which
//! clip more on the same side. A few next to the middle remain.
//!
//! Scales are positive: a negative one with the zero point 15 - z has the same numbers. Where 0 is no zero point that is how it is
//! stored.

use super::groups::{Found, Solver};
use super::line::{Best, Branches, EXTENDED, Gap, LIMITS, Open, Point, grow, look, settle};
use super::sums::Levels;
use super::tile::Tile;
use crate::kernels::lanes::{clamp, magnitude};
use crate::simd::Simd;

/// The search for a scale and one of the zero points from `first` to 15; `first` is 0 or 1.
#[derive(Clone, Copy, Debug)]
pub(super) struct ZeroPoint {
    pub(super) first: f32,
}

/// In place of a zero point: whichever leaves nothing beyond the codes.
const ANY: f32 = -1.0;

/// Span / scale where nothing need be clipped. Most of the best scales are near the end.
const WHOLE: [f32; 9] = [7.0, 8.6, 10.2, 11.4, 12.4, 13.2, 13.9, 14.45, 15.0];

/// Span / scale from where on something is.
const CLIPPED: [f32; 6] = [15.0, 15.6, 16.3, 17.2, 18.4, 20.0];

/// The integers from -z to 15 - z.
#[derive(Clone, Copy)]
pub(super) struct Shifted<S: Simd> {
    lowest: S::I32,
    highest: S::I32,
}

impl<S: Simd> Levels<S> for Shifted<S> {
    #[inline(always)]
    fn lowest(self, simd: S) -> S::F32 {
        simd.to_f32(self.lowest)
    }

    #[inline(always)]
    fn highest(self, simd: S) -> S::F32 {
        simd.to_f32(self.highest)
    }

    fn least(self) -> f32 {
        0.0
    }

    #[inline(always)]
    fn nearest(self, simd: S, y: S::F32) -> (S::F32, S::F32) {
        let q = simd.to_f32(simd.min_i32(simd.max_i32(simd.round(y), self.lowest), self.highest));
        (q, magnitude(simd, q))
    }
}

impl Branches for ZeroPoint {
    type Levels<S: Simd> = Shifted<S>;

    #[inline(always)]
    fn branch<S: Simd>(self, simd: S, zero_point: S::F32) -> (Shifted<S>, S::F32) {
        let lowest = simd.round(simd.sub(simd.splat(0.0), zero_point));
        (Shifted { lowest, highest: simd.add_i32(lowest, simd.splat_i32(15)) }, simd.splat(1.0))
    }

    #[inline(always)]
    fn at<S: Simd>(self, simd: S, tile: &Tile<S>, zero_point: S::F32, scale: S::F32) -> S::F32 {
        let nearest = simd.to_f32(simd.round(simd.div(tile.lowest, scale)));
        simd.select(simd.less(zero_point, simd.splat(0.0)), nearest, zero_point)
    }
}

impl Solver for ZeroPoint {
    fn greatest(self) -> f32 {
        15.0
    }

    #[inline(always)]
    fn solve<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, open: &mut Open) -> Found<S> {
        let (zero, one, any) = (simd.splat(0.0), simd.splat(1.0), simd.splat(ANY));
        let first = simd.splat(self.first);
        let mut best = Best::<S> { error: tile.energy, scale: zero, branch: first, least: [zero; 2] };
        let span = simd.add(tile.highest, tile.lowest);
        let span = simd.select(simd.equal(span, zero), one, span);
        let mut gaps = Vec::with_capacity(64);
        let (mut greatest, mut last) = (None, None);
        for multiple in WHOLE {
            let scale = simd.div(span, simd.splat(multiple));
            let next = look::<S, _, WEIGHTED, false>(simd, self, tile, scale, any, &mut best);
            greatest = greatest.or(Some(next));
            if let Some(greater) = last {
                gaps.push(Gap { branch: any, greater, smaller: next, may_gain: simd.splat_i32(-1) });
            }
            last = Some(next);
        }
        // Not every half of a scale can be stored.
        if let Some(point) = greatest {
            let may_gain = tile.is_subnormal(simd, point.scale);
            grow::<S, _, WEIGHTED>(simd, self, tile, any, (point, span, WHOLE[0]), may_gain, &mut best, &mut gaps);
        }
        self.clip::<S, WEIGHTED>(simd, tile, span, &mut best, &mut gaps);
        settle::<S, _, WEIGHTED>(simd, self, tile, &gaps, open, &mut best);

        let is_mirrored = simd.less(best.branch, first);
        let scale = simd.select(is_mirrored, simd.sub(zero, best.scale), best.scale);
        let offset = simd.select(is_mirrored, simd.sub(simd.splat(15.0), best.branch), best.branch);
        let full = simd.div(span, simd.splat(15.0));
        Found::alone(simd, simd.select(tile.overflows(simd, full), simd.splat(f32::INFINITY), scale), offset)
    }

    #[inline(always)]
    fn code<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, zero_point: S::F32) -> S::I32 {
        let (zero, fifteen) = (simd.splat(0.0), simd.splat(15.0));
        let number = clamp(simd, simd.div(x, scale), simd.sub(zero, zero_point), simd.sub(fifteen, zero_point));
        simd.add_i32(simd.round(number), simd.round(zero_point))
    }
}

impl ZeroPoint {
    /// The grid where something is clipped, one zero point after the other from the middle outwards.
    #[inline(always)]
    fn clip<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, span: S::F32, best: &mut Best<S>, gaps: &mut Vec<Gap<S>>) {
        let (zero, fifteen) = (simd.splat(0.0), simd.splat(15.0));
        let middle = simd.mul(simd.div(tile.lowest, span), fifteen);
        let nearest = simd.to_f32(simd.round(middle));
        // On which side of the nearest one the next one is.
        let side = simd.select(simd.less(nearest, middle), simd.splat(1.0), simd.splat(-1.0));
        let mut may_gain_on = [simd.splat_i32(-1); 2];
        for rank in 0..32 {
            let steps = if rank % 2 == 1 { (rank + 1) / 2 } else { -rank / 2 };
            let on_side = &mut may_gain_on[rank as usize % 2];
            let zero_point = simd.add(nearest, simd.mul(side, simd.splat(steps as f32)));
            let is_one = simd.equal(zero_point, clamp(simd, zero_point, zero, fifteen));
            *on_side = simd.and(*on_side, is_one);
            if rank > 0 && !simd.any(*on_side) {
                continue;
            }
            let zero_point = clamp(simd, zero_point, zero, fifteen);
            let mut may_gain = *on_side;
            let (mut grid, mut multiple, mut last) = (CLIPPED.iter(), 0.0, None::<Point<S>>);
            loop {
                multiple = grid.next().copied().unwrap_or(multiple * EXTENDED.0);
                if multiple > LIMITS.1 {
                    break;
                }
                let scale = simd.div(span, simd.splat(multiple));
                let next = look::<S, _, WEIGHTED, true>(simd, self, tile, scale, zero_point, best);
                if let Some(greater) = last {
                    gaps.push(Gap { branch: zero_point, greater, smaller: next, may_gain });
                }
                may_gain = simd.and(may_gain, simd.less(next.beyond, best.error));
                if last.is_none() {
                    *on_side = simd.and(*on_side, may_gain);
                }
                if !simd.any(may_gain) {
                    break;
                }
                last = Some(next);
            }
        }
    }
}
