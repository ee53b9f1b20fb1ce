//! A scale that is a multiple of a shared one: the numbers of a table, and factors -32..=31.
//!
//! ```text
//! q the numbers of a look, s0 the best scale for them, e the error there
//! E(s) = e + (s - s0)^2 sum w q^2
//! ```
//!
//! Scales have either sign, and so has their unit: there is one more factor on one side.

use super::blocks::{self, Effort, GROUPS, Grouped, Normal, Pair, extreme, in_lanes, reciprocal};
use super::codebook::OF_IQ4;
use super::groups::{Found, Solver};
use super::line::{Line, OfLine, Open};
use super::sums::{Sums, sums};
use super::tile::Tile;
use crate::kernels::lanes::{clamp, magnitude};
use crate::simd::Simd;

/// The search for scales that are such multiples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BlockScales {
    /// Whether the best scale of each group, as if it could be any, is among those that are looked at.
    pub(super) is_exact: bool,
}

/// The least and the greatest factor.
const FACTORS: (f32, f32) = (-32.0, 31.0);

/// Parabolas that a group keeps.
const KEPT: usize = 4;

/// Where every group is looked at, with either sign: multiples of [`Line::unit`].
const STARTS: [f32; 12] = [0.655, 0.71, 0.76, 0.81, 0.855, 0.9, 0.945, 0.99, 1.04, 1.10, 1.17, 1.26];

/// And next to the best of those.
const NEAR: [f32; 5] = [1.0, 1.01, 0.99, 1.02, 0.98];

/// Units of the grid with either sign.
const UNITS: u8 = 32;

impl Solver for BlockScales {
    const BLOCK: usize = GROUPS;

    fn greatest(self) -> f32 {
        -FACTORS.0 * (&OF_IQ4).greatest()
    }

    #[inline(always)]
    fn solve<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, open: &mut Open) -> Found<S> {
        let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
        let is_empty = simd.equal(tile.largest(simd), zero);
        let mut groups = Groups::<S, WEIGHTED>::new(simd, tile);
        for (sign, highest, lowest) in [(1.0, tile.highest, tile.lowest), (-1.0, tile.lowest, tile.highest)] {
            let unit = simd.select(is_empty, one, (&OF_IQ4).unit(simd, highest, lowest));
            for multiple in STARTS {
                groups.see(simd, simd.div(simd.splat(sign), simd.mul(unit, simd.splat(multiple))));
            }
        }
        if self.is_exact {
            let exact = tile.of_lane(simd, OfLine { levels: &OF_IQ4, clip_limit: None }.scales::<S, WEIGHTED>(simd, tile, open));
            groups.see(simd, simd.select(simd.less(zero, magnitude(simd, exact)), exact, one));
        }
        for factor in NEAR {
            let best = groups.kept[0].scale;
            groups.see(simd, simd.mul(simd.select(simd.equal(best, zero), one, best), simd.splat(factor)));
        }
        let largest = magnitude(simd, extreme(simd, groups.kept[0].scale));
        let mut units = Vec::with_capacity(2 * usize::from(UNITS));
        for unit in 0..UNITS {
            // Which factor the largest has.
            let factor = 27.2 + 0.19 * f32::from(unit);
            for factor in [factor, -factor] {
                units.push(in_lanes(simd, tile, simd.div(largest, simd.splat(factor))));
            }
        }
        let mut found = blocks::settle(simd, tile, &mut groups, [&units, &[zero]], Effort { ranks: 4, rounds: 2 });
        let unit = (&OF_IQ4).unit(simd, tile.highest, tile.lowest);
        let full = simd.div(simd.splat(-1.0 / FACTORS.0), simd.select(is_empty, one, unit));
        found.scale = simd.select(tile.overflows(simd, full), simd.splat(f32::INFINITY), found.scale);
        found
    }

    #[inline(always)]
    fn code<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, _: S::F32) -> S::I32 {
        OF_IQ4.code(simd, simd.div(x, scale))
    }
}

/// The error of some codes with any scale.
#[derive(Clone, Copy)]
struct Parabola<S: Simd> {
    error: S::F32,
    scale: S::F32,
    curvature: S::F32,
}

/// Sixteen groups and the parabolas of the best codes they have seen, ascending.
struct Groups<'a, S: Simd, const WEIGHTED: bool> {
    tile: &'a Tile<S>,
    kept: [Parabola<S>; KEPT],
}

impl<'a, S: Simd, const WEIGHTED: bool> Groups<'a, S, WEIGHTED> {
    #[inline(always)]
    fn new(simd: S, tile: &'a Tile<S>) -> Self {
        let zero = simd.splat(0.0);
        let mut kept = [Parabola { error: simd.splat(f32::MAX), scale: zero, curvature: zero }; KEPT];
        // With a scale of 0 no codes matter.
        kept[0].error = tile.energy;
        Groups { tile, kept }
    }

    /// Look at a scale: the error there, and the parabola of the codes, which is kept if it is among the best.
    #[inline(always)]
    fn see(&mut self, simd: S, scale: S::F32) -> (S::F32, Parabola<S>) {
        let zero = simd.splat(0.0);
        let Sums { rr, rq, qq, .. } = sums::<S, _, WEIGHTED, false>(simd, &OF_IQ4, self.tile, simd.div(simd.splat(1.0), scale));
        let square = simd.mul(scale, scale);
        let moved = simd.div(rq, qq);
        let error = simd.mul(square, simd.sub(rr, simd.mul(moved, rq)));
        let error = simd.select(simd.less(error, zero), zero, error);
        let seen = Parabola { error, scale: simd.add(scale, simd.mul(scale, moved)), curvature: qq };
        let mut next = seen;
        let mut is_new = simd.less(zero, qq);
        for kept in &self.kept {
            // The same codes were seen before.
            let off = magnitude(simd, simd.sub(kept.scale, next.scale));
            is_new = simd.and(is_new, simd.less(simd.mul(simd.splat(1e-6), magnitude(simd, next.scale)), off));
        }
        for kept in &mut self.kept {
            let moves = simd.and(is_new, simd.less(next.error, kept.error));
            for (kept, next) in
                [(&mut kept.error, &mut next.error), (&mut kept.scale, &mut next.scale), (&mut kept.curvature, &mut next.curvature)]
            {
                (*kept, *next) = (simd.select(moves, *next, *kept), simd.select(moves, *kept, *next));
            }
        }
        (simd.mul(square, rr), seen)
    }
}

impl<S: Simd, const WEIGHTED: bool> Grouped<S> for Groups<'_, S, WEIGHTED> {
    /// The best factor and the error there.
    type Row = (S::F32, S::F32);

    #[inline(always)]
    fn row(&self, simd: S, unit: S::F32) -> Self::Row {
        let inverse = reciprocal(simd, unit);
        let (mut least, mut best) = (simd.splat(f32::INFINITY), simd.splat(0.0));
        for of in &self.kept {
            let factor = clamp(simd, simd.mul(of.scale, inverse), simd.splat(FACTORS.0), simd.splat(FACTORS.1));
            let factor = simd.to_f32(simd.round(factor));
            let off = simd.sub(simd.mul(factor, unit), of.scale);
            let error = simd.add(of.error, simd.mul(simd.mul(off, off), of.curvature));
            let is_better = simd.less(error, least);
            least = simd.select(is_better, error, least);
            best = simd.select(is_better, factor, best);
        }
        (best, least)
    }

    #[inline(always)]
    fn estimate(&self, _: S, &(factor, error): &Self::Row, none: S::F32) -> (S::F32, Pair<S>) {
        (error, [factor, none])
    }

    #[inline(always)]
    fn look(&mut self, simd: S, [unit, none]: Pair<S>, [factor, _]: Pair<S>) -> (S::F32, Normal<S>) {
        let scale = simd.mul(unit, factor);
        let is_zero = simd.equal(scale, none);
        let (error, of) = self.see(simd, simd.select(is_zero, simd.splat(1.0), scale));
        let error = simd.select(is_zero, self.tile.energy, error);
        let curvature = simd.select(is_zero, none, of.curvature);
        let normal = Normal {
            a: simd.mul(simd.mul(factor, factor), curvature),
            b: none,
            c: none,
            right: [simd.mul(factor, simd.mul(curvature, of.scale)), none],
        };
        (error, normal)
    }
}
