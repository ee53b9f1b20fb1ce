//! Blocks of eight groups whose scales, and minimums, are multiples of numbers that the block shares: its units.
//!
//! ```text
//! scale = units[0] * factors[0]         units: any floats of the dtype, one a block
//! minimum = units[1] * factors[1]       factors: integers of six bits, one a group
//! ```
//!
//! A look at a group leads to codes, and the error of some codes is a parabola in the scale and the minimum: that of the nearest codes
//! is nowhere larger. Each group keeps the parabolas of the best codes that it has seen. By them the error of a block under any units is
//! estimated from above without its elements, with the factors that are the best for each group; so hundreds of units cost no more than
//! a few looks.
//!
//! 1. A grid of units is estimated.
//! 2. The best few are looked at with the factors of the estimate, which adds parabolas.
//! 3. For the codes so found the best units are those of least squares; rounded to the dtype they are looked at again.
//!
//! The best that was looked at is the answer. It is no proof: other units and factors may be better.

use super::groups::{Found, lanes};
use super::tile::Tile;
use crate::kernels::lanes::magnitude;
use crate::simd::{LANES, Simd};

/// Groups of a block.
pub(super) const GROUPS: usize = 8;

/// Blocks of sixteen groups.
const BLOCKS: usize = LANES / GROUPS;

/// Units, or factors, of scales and minimums; zeros where there are no minimums.
pub(super) type Pair<S> = [<S as Simd>::F32; 2];

/// Sixteen groups with the parabolas that they have seen.
pub(super) trait Grouped<S: Simd> {
    /// What the first unit alone says.
    type Row;

    /// Of a first unit: its best factor by each of the parabolas.
    fn row(&self, simd: S, unit: S::F32) -> Self::Row;

    /// The best factors by the parabolas with a second unit as well, and the error there.
    fn estimate(&self, simd: S, row: &Self::Row, unit: S::F32) -> (S::F32, Pair<S>);

    /// The error, and the equations of the best units for the codes of the look.
    fn look(&mut self, simd: S, units: Pair<S>, factors: Pair<S>) -> (S::F32, Normal<S>);
}

/// The part of a group in the equations of least squares: products of factors, `[[a, b], [b, c]] units = right`.
pub(super) struct Normal<S: Simd> {
    pub(super) a: S::F32,
    pub(super) b: S::F32,
    pub(super) c: S::F32,
    pub(super) right: Pair<S>,
}

/// How much is looked at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Effort {
    /// Units of the grid that are looked at.
    pub(super) ranks: usize,
    /// Looks at each, with the best units of the one before.
    pub(super) rounds: usize,
}

/// The best units and factors; `grid` has first and second units, in the size of the lanes and as they are stored.
#[inline(always)]
pub(super) fn settle<S: Simd, G: Grouped<S>>(simd: S, tile: &Tile<S>, groups: &mut G, grid: [&[S::F32]; 2], effort: Effort) -> Found<S> {
    let zeros = [simd.splat(0.0); 2];
    let ranking = rank(simd, groups, grid, effort.ranks);
    // Of nothing but zeros.
    let mut least = sums(simd, tile.energy);
    let (mut best, mut best_factors) = (zeros, zeros);
    for place in 0..effort.ranks {
        let mut units = zeros;
        for (block, ranking) in ranking.iter().enumerate() {
            if let Some(&(_, at)) = ranking.get(place) {
                let mut is_set = [false; BLOCKS];
                is_set[block] = true;
                let of_grid = [grid[0][at / grid[1].len()], grid[1][at % grid[1].len()]];
                units = choose(simd, mask(simd, is_set), of_grid, units);
            }
        }
        for _ in 0..effort.rounds {
            let (_, factors) = groups.estimate(simd, &groups.row(simd, units[0]), units[1]);
            let (errors, normal) = groups.look(simd, units, factors);
            let errors = sums(simd, errors);
            let mut is_better = [false; BLOCKS];
            for ((is_better, error), least) in is_better.iter_mut().zip(errors).zip(&mut least) {
                *is_better = error < *least;
                *least = least.min(error);
            }
            let is_better = mask(simd, is_better);
            best = choose(simd, is_better, units, best);
            best_factors = choose(simd, is_better, factors, best_factors);
            units = refit(simd, tile, normal, units);
        }
    }
    let units = [stored(simd, tile, best[0]), stored(simd, tile, best[1])];
    Found { scale: simd.mul(units[0], best_factors[0]), offset: simd.mul(units[1], best_factors[1]), units }
}

/// The places in the grid, row by row, of the units with the smallest estimates, of each block.
#[inline(always)]
fn rank<S: Simd, G: Grouped<S>>(simd: S, groups: &G, grid: [&[S::F32]; 2], count: usize) -> [Vec<(f32, usize)>; BLOCKS] {
    let mut ranking: [Vec<(f32, usize)>; BLOCKS] = std::array::from_fn(|_| Vec::with_capacity(count + 1));
    let mut errors = [simd.splat(f32::INFINITY); LANES];
    let mut place = 0;
    for &first in grid[0] {
        let row = groups.row(simd, first);
        for &second in grid[1] {
            (errors[place % LANES], _) = groups.estimate(simd, &row, second);
            place += 1;
            if place % LANES == 0 {
                rank_some(simd, &errors, place - LANES, count, &mut ranking);
            }
        }
    }
    errors[place % LANES..].fill(simd.splat(f32::INFINITY));
    rank_some(simd, &errors, place - place % LANES, count, &mut ranking);
    ranking
}

/// Add the sixteen places from `first` on.
#[inline(always)]
fn rank_some<S: Simd>(simd: S, errors: &[S::F32; LANES], first: usize, count: usize, ranking: &mut [Vec<(f32, usize)>; BLOCKS]) {
    // Now a lane is a place.
    let of_groups = simd.transpose(errors);
    for (ranking, of_groups) in ranking.iter_mut().zip(of_groups.as_chunks::<GROUPS>().0) {
        let mut sum = of_groups[0];
        for error in &of_groups[1..] {
            sum = simd.add(sum, *error);
        }
        for (lane, error) in lanes(simd, sum).into_iter().enumerate() {
            let rank = ranking.partition_point(|&(other, _)| other <= error);
            if rank < count && error < f32::INFINITY {
                ranking.insert(rank, (error, first + lane));
                ranking.truncate(count);
            }
        }
    }
}

/// The units of least squares; those that there are where the equations have no solution.
#[inline(always)]
fn refit<S: Simd>(simd: S, tile: &Tile<S>, normal: Normal<S>, units: Pair<S>) -> Pair<S> {
    let Normal { a, b, c, right: [first, second] } = normal;
    let [a, b, c, first, second] = [sums(simd, a), sums(simd, b), sums(simd, c), sums(simd, first), sums(simd, second)];
    let mut solved = [lanes(simd, units[0]), lanes(simd, units[1])];
    for block in 0..BLOCKS {
        let [a, b, c, first, second] = [a, b, c, first, second].map(|of| f64::from(of[block]));
        let determinant = a * c - b * b;
        let solution = if determinant > 1e-6 * a * c {
            [(first * c - second * b) / determinant, (a * second - b * first) / determinant]
        } else {
            [first / a, f64::NAN]
        };
        for (solved, unit) in solved.iter_mut().zip(solution).filter(|(_, unit)| unit.is_finite()) {
            solved[block * GROUPS..][..GROUPS].fill(unit as f32);
        }
    }
    [in_lanes(simd, tile, simd.load(&solved[0])), in_lanes(simd, tile, simd.load(&solved[1]))]
}

/// A unit rounded to what can be stored.
#[inline(always)]
fn stored<S: Simd>(simd: S, tile: &Tile<S>, unit: S::F32) -> S::F32 {
    let size = tile.stored(simd, magnitude(simd, unit));
    simd.select(simd.less(unit, simd.splat(0.0)), simd.sub(simd.splat(0.0), size), size)
}

/// The same in the size of the lanes.
#[inline(always)]
pub(super) fn in_lanes<S: Simd>(simd: S, tile: &Tile<S>, unit: S::F32) -> S::F32 {
    tile.of_lane(simd, stored(simd, tile, unit))
}

/// 1 / unit, and 0 where it is 0: whatever is a multiple of it has the factor 0.
#[inline(always)]
pub(super) fn reciprocal<S: Simd>(simd: S, unit: S::F32) -> S::F32 {
    let zero = simd.splat(0.0);
    simd.select(simd.equal(unit, zero), zero, simd.div(simd.splat(1.0), unit))
}

/// The lane of the largest magnitude of each block, in all its lanes, negative where two are as large.
#[inline(always)]
pub(super) fn extreme<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    let zero = simd.splat(0.0);
    let size = magnitude(simd, v);
    let largest = simd.as_f32(simd.max_of_runs(simd.bits(size), GROUPS));
    let is_it = simd.and(simd.equal(size, largest), simd.less(v, zero));
    let is_negative = simd.max_of_runs(simd.and(is_it, simd.splat_i32(1)), GROUPS);
    simd.select(simd.equal(simd.to_f32(is_negative), zero), largest, simd.sub(zero, largest))
}

/// The sum over each block, from its first lane to its last.
#[inline(always)]
fn sums<S: Simd>(simd: S, v: S::F32) -> [f32; BLOCKS] {
    let lanes = lanes(simd, v);
    std::array::from_fn(|block| lanes[block * GROUPS..][..GROUPS].iter().sum())
}

/// The lanes of some blocks.
#[inline(always)]
fn mask<S: Simd>(simd: S, is_set: [bool; BLOCKS]) -> S::I32 {
    simd.load_i32(&std::array::from_fn(|lane| -i32::from(is_set[lane / GROUPS])))
}

/// `a` where the mask is set, else `b`.
#[inline(always)]
fn choose<S: Simd>(simd: S, mask: S::I32, a: Pair<S>, b: Pair<S>) -> Pair<S> {
    [simd.select(mask, a[0], b[0]), simd.select(mask, a[1], b[1])]
}
