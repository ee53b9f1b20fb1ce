//! A scale and a minimum that are multiples of shared ones: the codes 0..=15, and factors 0..=63 of both.
//!
//! ```text
//! q the codes of a look, s0 and m0 the best scale and minimum for them, e the error there
//! E(s, m) = e + (s - s0)^2 sum w (q - mean of q)^2 + (m - m0 + (s - s0) mean of q)^2 sum w
//! ```
//!
//! So the best minimum with a scale s is m0 - (s - s0) mean of q. The unit of the minimums has the sign of the minimum of largest
//! magnitude.

use super::blocks::{self, Effort, GROUPS, Grouped, Normal, Pair, extreme, in_lanes, reciprocal};
use super::groups::{Found, Solver};
use super::line::Open;
use super::plane::{self, Best, Centred, Fit, Keep, Offset, Plane};
use super::plane_proof;
use super::tile::Tile;
use crate::kernels::lanes::{clamp, magnitude};
use crate::simd::Simd;

/// The search for scales and minimums that are such multiples.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct BlockPlanes {
    /// Of the search of each group, as if its scale and minimum could be any; none for the quick one.
    pub(super) tolerance: Option<f32>,
}

/// The greatest factor.
const MOST: f32 = 63.0;

/// Parabolas that a group keeps.
const KEPT: usize = 6;

impl Solver for BlockPlanes {
    const BLOCK: usize = GROUPS;

    fn greatest(self) -> f32 {
        15.0 * MOST
    }

    #[inline(always)]
    fn solve<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, _: &mut Open) -> Found<S> {
        let zero = simd.splat(0.0);
        let group = Centred::new(simd, tile);
        let span = group.span(simd);
        let full = simd.div(span, simd.splat(15.0));
        let mut best = Best::new(simd, &group, full, Parabolas::new(simd, &group));
        plane::quick::<S, _, WEIGHTED>(simd, &group, span, &mut best);
        // Codes next to the best ones are as good under some units: the more of them are seen the better.
        plane::spread::<S, _, WEIGHTED>(simd, &group, span, 16, &mut best);
        if let Some(tolerance) = self.tolerance {
            plane_proof::prove::<S, _, WEIGHTED>(simd, &group, span, tolerance, &mut best);
        }
        let is_flat = simd.equal(best.error, group.energy);
        let largest = extreme(simd, simd.select(is_flat, zero, best.scale));
        let lowest = extreme(simd, simd.add(best.minimum, group.mean));
        let (mut scales, mut minimums) = (Vec::with_capacity(8), Vec::with_capacity(48));
        // Which factors the largest have.
        for step in 0..8u8 {
            let factor = simd.splat(58.6 + 4.4 / 7.0 * f32::from(step));
            scales.push(in_lanes(simd, tile, simd.div(largest, factor)));
        }
        let steps = if self.tolerance.is_some() { 32u8 } else { 16 };
        for step in 0..steps {
            let factor = simd.splat(54.0 + 14.0 / f32::from(steps) * f32::from(step));
            minimums.push(in_lanes(simd, tile, simd.div(lowest, factor)));
        }
        let effort = if self.tolerance.is_some() { Effort { ranks: 6, rounds: 3 } } else { Effort { ranks: 4, rounds: 2 } };
        let mut found = blocks::settle(simd, tile, &mut Groups::<S, WEIGHTED> { group, best }, [&scales, &minimums], effort);
        let most = simd.splat(MOST);
        let infinite = simd.splat(f32::INFINITY);
        found.scale = simd.select(tile.overflows(simd, simd.div(full, most)), infinite, found.scale);
        found.offset = simd.select(tile.overflows(simd, simd.div(tile.lowest, most)), infinite, found.offset);
        found
    }

    #[inline(always)]
    fn code<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, minimum: S::F32) -> S::I32 {
        Plane::new(Offset::Minimum).code(simd, x, scale, minimum)
    }
}

/// The nearest factor.
#[inline(always)]
fn factor<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    simd.to_f32(simd.round(clamp(simd, v, simd.splat(0.0), simd.splat(MOST))))
}

/// The error of some codes with any scale and minimum.
#[derive(Clone, Copy)]
struct Parabola<S: Simd> {
    error: S::F32,
    scale: S::F32,
    minimum: S::F32,
    q_mean: S::F32,
    variance: S::F32,
}

/// A parabola with the best factor of a unit of scales.
#[derive(Clone, Copy)]
struct Step<S: Simd> {
    factor: S::F32,
    /// With the best minimum, and that.
    error: S::F32,
    minimum: S::F32,
}

/// Those of the best codes, ascending.
struct Parabolas<S: Simd> {
    all: [Parabola<S>; KEPT],
    /// That of the last look.
    last: Parabola<S>,
}

impl<S: Simd> Parabolas<S> {
    /// That of codes that are all 0.
    #[inline(always)]
    fn new(simd: S, group: &Centred<'_, S>) -> Self {
        let zero = simd.splat(0.0);
        let flat = Parabola { error: group.energy, scale: zero, minimum: group.mean, q_mean: zero, variance: zero };
        let mut all = [Parabola { error: simd.splat(f32::MAX), ..flat }; KEPT];
        all[0] = flat;
        Parabolas { all, last: flat }
    }
}

impl<S: Simd> Keep<S> for Parabolas<S> {
    #[inline(always)]
    fn keep(&mut self, simd: S, group: &Centred<'_, S>, fit: &Fit<S>) {
        let (zero, near) = (simd.splat(0.0), simd.splat(1e-6));
        let minimum = simd.add(fit.minimum, group.mean);
        let mut next = Parabola { error: fit.error, scale: fit.scale, minimum, q_mean: fit.q_mean, variance: fit.variance };
        self.last = next;
        let mut is_new = simd.less(zero, fit.variance);
        if !simd.any(simd.and(is_new, simd.less(next.error, self.all[KEPT - 1].error))) {
            return;
        }
        for kept in &self.all {
            // The same codes were seen before.
            let off = magnitude(simd, simd.sub(kept.scale, next.scale));
            let is_other = simd.less(simd.mul(near, next.scale), off);
            is_new = simd.and(is_new, is_other);
        }
        for kept in &mut self.all {
            let moves = simd.and(is_new, simd.less(next.error, kept.error));
            for (kept, next) in [
                (&mut kept.error, &mut next.error),
                (&mut kept.scale, &mut next.scale),
                (&mut kept.minimum, &mut next.minimum),
                (&mut kept.q_mean, &mut next.q_mean),
                (&mut kept.variance, &mut next.variance),
            ] {
                (*kept, *next) = (simd.select(moves, *next, *kept), simd.select(moves, *kept, *next));
            }
        }
    }
}

/// Sixteen groups and what they have seen.
struct Groups<'a, S: Simd, const WEIGHTED: bool> {
    group: Centred<'a, S>,
    best: Best<S, Parabolas<S>>,
}

impl<S: Simd, const WEIGHTED: bool> Grouped<S> for Groups<'_, S, WEIGHTED> {
    type Row = [Step<S>; KEPT];

    #[inline(always)]
    fn row(&self, simd: S, unit: S::F32) -> Self::Row {
        let zero = simd.splat(0.0);
        let inverse = reciprocal(simd, unit);
        let mut steps = [Step { factor: zero, error: zero, minimum: zero }; KEPT];
        for (step, of) in steps.iter_mut().zip(&self.best.kept.all) {
            let factor = factor(simd, simd.mul(of.scale, inverse));
            let off = simd.sub(simd.mul(factor, unit), of.scale);
            let error = simd.add(of.error, simd.mul(simd.mul(off, off), of.variance));
            *step = Step { factor, error, minimum: simd.sub(of.minimum, simd.mul(off, of.q_mean)) };
        }
        steps
    }

    #[inline(always)]
    fn estimate(&self, simd: S, steps: &Self::Row, unit: S::F32) -> (S::F32, Pair<S>) {
        let inverse = reciprocal(simd, unit);
        let (mut least, mut best) = (simd.splat(f32::INFINITY), [simd.splat(0.0); 2]);
        for of in steps {
            let minimum = factor(simd, simd.mul(of.minimum, inverse));
            let off = simd.sub(simd.mul(minimum, unit), of.minimum);
            let error = simd.add(of.error, simd.mul(simd.mul(off, off), self.group.weight));
            let is_better = simd.less(error, least);
            least = simd.select(is_better, error, least);
            best = [simd.select(is_better, of.factor, best[0]), simd.select(is_better, minimum, best[1])];
        }
        (least, best)
    }

    #[inline(always)]
    fn look(&mut self, simd: S, units: Pair<S>, factors: Pair<S>) -> (S::F32, Normal<S>) {
        let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
        let Groups { group, best } = self;
        let (scale, minimum) = (simd.mul(units[0], factors[0]), simd.mul(units[1], factors[1]));
        let off = simd.sub(group.mean, minimum);
        let is_flat = simd.equal(scale, zero);
        let of_codes = simd.select(is_flat, one, scale);
        let error = plane::look::<S, _, WEIGHTED>(simd, group, of_codes, simd.div(off, of_codes), best);
        let flat = simd.add(group.energy, simd.mul(group.weight, simd.mul(off, off)));
        let error = simd.select(is_flat, flat, error);

        let of = best.kept.last;
        let q_mean = simd.select(is_flat, zero, of.q_mean);
        let lowest = simd.select(is_flat, group.mean, simd.add(of.minimum, simd.mul(q_mean, of.scale)));
        let weighted = simd.mul(group.weight, q_mean);
        let normal = Normal {
            a: simd.mul(simd.mul(factors[0], factors[0]), simd.add(of.variance, simd.mul(weighted, q_mean))),
            b: simd.mul(simd.mul(factors[0], factors[1]), weighted),
            c: simd.mul(simd.mul(factors[1], factors[1]), group.weight),
            right: [
                simd.mul(factors[0], simd.add(simd.mul(of.variance, of.scale), simd.mul(weighted, lowest))),
                simd.mul(factors[1], simd.mul(group.weight, lowest)),
            ],
        };
        (error, normal)
    }
}
