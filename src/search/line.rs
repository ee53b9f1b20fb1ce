//! Branch and bound over one scale.
//!
//! For fixed codes q the error is a parabola in s of curvature B(q) = sum w q^2. As s shrinks |q| grows, so that between s1 > s2
//! no codes that matter have more than B2, that of the codes nearest at s2; less its parabola E is concave. With
//! c = (s1 - s2)^2 B2 and d = E(s2) - E(s1), for every s in between
//!
//! ```text
//! E(s) >= E(s1)                     where d >= c
//!         E(s2)                     where -d >= c
//!         E(s1) - (c - d)^2 / (4 c) otherwise
//! ```
//!
//! One look at a scale so says something about all scales around it. An interval is done with where this bound is no less than
//! the best error found, where at most one code changes within it (the codes on both sides were seen, and each had its best
//! scale), or where no scale within it can be stored. All others are halved.
//!
//! Ends: beyond the greatest number an element misses the more the smaller the scale, and below the least one the more the
//! greater it is; where that alone is as much as the best error, nothing further out is better. Where half of a scale does the
//! same with twice the codes, scales need not be looked at from there on.

use super::groups::{Found, Solver, lanes};
use super::sums::{self, Levels, Sums};
use super::tile::Tile;
use crate::kernels::lanes::larger;
use crate::simd::{LANES, Simd};

/// What a bound may be less than the best error, relatively: about what sums in f32 are good to.
const TOLERANCE: f32 = 4.8e-7;

/// Rounding errors of a sum in f32, relatively.
pub(super) const ROUNDING: f32 = 2.4e-7;

/// How far the grid is extended, upwards and downwards, where an end stays open.
pub(super) const EXTENDED: (f32, f32) = (1.15, 0.75);

/// Multiples of [`Line::unit`] beyond which sums in f32 tell nothing: only weights 12 orders of magnitude apart lead there.
pub(super) const LIMITS: (f32, f32) = (1.0 / (1 << 24) as f32, (1 << 24) as f32);

/// What is searched over one scale, once or several times: each time is a branch, which has a number.
pub(super) trait Branches: Copy + Send + Sync + 'static {
    /// The numbers.
    type Levels<S: Simd>: Levels<S>;

    /// The numbers of a branch, and the sign of its scales.
    fn branch<S: Simd>(self, simd: S, branch: S::F32) -> (Self::Levels<S>, S::F32);

    /// The branch that a branch is at this scale.
    #[inline(always)]
    fn at<S: Simd>(self, _: S, _: &Tile<S>, branch: S::F32, _: S::F32) -> S::F32 {
        branch
    }
}

/// Numbers with any scale that a dtype of floats can store. The branches are the signs of the scale, 1 and -1.
pub(super) trait Line: Branches {
    /// The greatest magnitude of the numbers.
    fn greatest(self) -> f32;
    /// The code nearest to `y`, which may be anything.
    fn code<S: Simd>(self, simd: S, y: S::F32) -> S::I32;
    /// Whether every number up to half of the greatest is half of another.
    fn doubles(self) -> bool;
    /// At less than this multiple of [`Line::unit`] a scale of the other sign does the same.
    fn mirrored(self) -> f32;
    /// The multiple of [`Line::unit`] from which on elements are beyond the numbers.
    fn full(self) -> f32;
    /// Where the search begins to look: multiples of [`Line::unit`], ascending.
    fn grid(self) -> &'static [f32];

    /// The reciprocal of a scale, for the greatest element and the smallest one, negated.
    fn unit<S: Simd>(self, simd: S, highest: S::F32, lowest: S::F32) -> S::F32;
}

/// The best that was found.
pub(super) struct Best<S: Simd> {
    pub(super) error: S::F32,
    /// As it is stored, with its sign.
    pub(super) scale: S::F32,
    pub(super) branch: S::F32,
    /// The smallest scales that are allowed, of positive and of negative sign.
    pub(super) least: [S::F32; 2],
}

/// A scale that was looked at.
#[derive(Clone, Copy)]
pub(super) struct Point<S: Simd> {
    pub(super) scale: S::F32,
    error: S::F32,
    curvature: S::F32,
    steps: S::F32,
    /// No smaller scale has a smaller error, where that is asked for.
    pub(super) beyond: S::F32,
}

/// Neighbouring points of the grid.
#[derive(Clone, Copy)]
pub(super) struct Gap<S: Simd> {
    pub(super) branch: S::F32,
    pub(super) greater: Point<S>,
    pub(super) smaller: Point<S>,
    /// The lanes where it may hold a better scale.
    pub(super) may_gain: S::I32,
}

/// Intervals of scales that may hold a better one: of one group, or of sixteen as arrays.
#[derive(Clone, Copy, Default)]
struct Interval<T> {
    branch: T,
    greater_scale: T,
    greater_error: T,
    greater_steps: T,
    smaller_scale: T,
    smaller_error: T,
    smaller_steps: T,
    smaller_curvature: T,
    /// A scale within that can be stored, in the middle or next to it.
    middle: T,
    /// No error within is smaller.
    bound: T,
}

impl Interval<[f32; LANES]> {
    #[inline(always)]
    fn lane(&self, lane: usize) -> Interval<f32> {
        Interval {
            branch: self.branch[lane],
            greater_scale: self.greater_scale[lane],
            greater_error: self.greater_error[lane],
            greater_steps: self.greater_steps[lane],
            smaller_scale: self.smaller_scale[lane],
            smaller_error: self.smaller_error[lane],
            smaller_steps: self.smaller_steps[lane],
            smaller_curvature: self.smaller_curvature[lane],
            middle: self.middle[lane],
            bound: self.bound[lane],
        }
    }

    #[inline(always)]
    fn set(&mut self, lane: usize, interval: Interval<f32>) {
        self.branch[lane] = interval.branch;
        self.greater_scale[lane] = interval.greater_scale;
        self.greater_error[lane] = interval.greater_error;
        self.greater_steps[lane] = interval.greater_steps;
        self.smaller_scale[lane] = interval.smaller_scale;
        self.smaller_error[lane] = interval.smaller_error;
        self.smaller_steps[lane] = interval.smaller_steps;
        self.smaller_curvature[lane] = interval.smaller_curvature;
        self.middle[lane] = interval.middle;
        self.bound[lane] = interval.bound;
    }
}

/// The open intervals of each lane. The last one in is the first one out, so that a stack holds no more than the gaps of the grid
/// and one for each halving.
pub(super) struct Open([Vec<Interval<f32>>; LANES]);

impl Open {
    pub(super) fn new() -> Self {
        Open(std::array::from_fn(|_| Vec::with_capacity(64)))
    }

    /// The part of a gap that may hold a scale better than `limit`.
    #[inline(always)]
    fn push<S: Simd>(&mut self, simd: S, tile: &Tile<S>, gap: &Gap<S>, limit: S::F32) {
        let Gap { branch, greater, smaller, may_gain } = *gap;
        let bound = bound(simd, greater, smaller);
        let changes = simd.less(simd.splat(1.5), simd.sub(smaller.steps, greater.steps));
        let may_gain = simd.and(simd.and(simd.less(bound, limit), changes), may_gain);
        if !simd.any(may_gain) {
            return;
        }
        let half = simd.mul(simd.add(greater.scale, smaller.scale), simd.splat(0.5));
        let middle = tile.of_lane(simd, tile.stored(simd, half));
        let is_within = simd.and(simd.less(smaller.scale, middle), simd.less(middle, greater.scale));
        let mut open = simd.which(simd.and(may_gain, is_within));
        let intervals = Interval {
            branch: lanes(simd, branch),
            greater_scale: lanes(simd, greater.scale),
            greater_error: lanes(simd, greater.error),
            greater_steps: lanes(simd, greater.steps),
            smaller_scale: lanes(simd, smaller.scale),
            smaller_error: lanes(simd, smaller.error),
            smaller_steps: lanes(simd, smaller.steps),
            smaller_curvature: lanes(simd, smaller.curvature),
            middle: lanes(simd, middle),
            bound: lanes(simd, bound),
        };
        while open != 0 {
            let lane = open.trailing_zeros() as usize;
            self.0[lane].push(intervals.lane(lane));
            open &= open - 1;
        }
    }

    /// The next interval of each lane whose bound is below the limit, and the mask of the lanes that have one.
    fn pop(&mut self, limits: &[f32; LANES], next: &mut Interval<[f32; LANES]>) -> [i32; LANES] {
        let mut found = [0; LANES];
        for (lane, stack) in self.0.iter_mut().enumerate() {
            while let Some(interval) = stack.pop() {
                if interval.bound < limits[lane] {
                    next.set(lane, interval);
                    found[lane] = -1;
                    break;
                }
            }
        }
        found
    }
}

/// Look at scales on their branches, and at the best scales of the codes that they lead to.
#[inline(always)]
pub(super) fn look<S: Simd, B: Branches, const WEIGHTED: bool, const BEYOND: bool>(
    simd: S,
    branches: B,
    tile: &Tile<S>,
    scale: S::F32,
    branch: S::F32,
    best: &mut Best<S>,
) -> Point<S> {
    let branch = branches.at(simd, tile, branch, scale);
    let (levels, sign) = branches.branch(simd, branch);
    let Sums { rr, rq, qq, steps, beyond } = sums::sums::<S, _, WEIGHTED, BEYOND>(simd, levels, tile, simd.div(sign, scale));
    let zero = simd.splat(0.0);
    let free = simd.add(scale, simd.mul(scale, simd.div(rq, qq)));
    // The error of fixed codes is a parabola: the nearest scale that is allowed is the best of those.
    let is_negative = simd.less(sign, zero);
    let free = larger(simd, free, simd.select(is_negative, best.least[1], best.least[0]));
    let stored = tile.stored(simd, free);
    let moved = simd.sub(tile.of_lane(simd, stored), scale);
    let twice = simd.mul(simd.add(moved, moved), rq);
    let error = simd.add(simd.mul(scale, simd.sub(simd.mul(scale, rr), twice)), simd.mul(simd.mul(moved, moved), qq));
    let error = simd.select(simd.less(error, zero), zero, error);
    // The best scale of all lies where its codes are the nearest, and so does a look at those. What is far from the look only has
    // its rounding errors.
    let far = simd.splat(8.0);
    let is_near = simd.and(simd.less(scale, simd.mul(far, free)), simd.less(free, simd.mul(far, scale)));
    let is_better = simd.and(is_near, simd.less(error, best.error));
    best.error = simd.select(is_better, error, best.error);
    best.scale = simd.select(is_better, simd.mul(stored, sign), best.scale);
    best.branch = simd.select(is_better, branch, best.branch);
    let square = simd.mul(scale, scale);
    Point { scale, error: simd.mul(square, rr), curvature: qq, steps, beyond: simd.mul(square, beyond) }
}

/// What a function is nowhere below that has these values at the ends of an interval, and is concave less a parabola that is `c` above
/// its own tangent at the other end.
#[inline(always)]
pub(super) fn chord<S: Simd>(simd: S, first: S::F32, second: S::F32, c: S::F32) -> S::F32 {
    let d = simd.sub(second, first);
    let h = simd.sub(c, d);
    let inner = simd.sub(first, simd.div(simd.mul(h, h), simd.mul(c, simd.splat(4.0))));
    let rises = simd.less(d, c);
    let falls = simd.less(simd.sub(simd.splat(0.0), d), c);
    simd.select(rises, simd.select(falls, inner, second), first)
}

/// What no scale between two falls below.
#[inline(always)]
fn bound<S: Simd>(simd: S, greater: Point<S>, smaller: Point<S>) -> S::F32 {
    let width = simd.sub(greater.scale, smaller.scale);
    let bound = chord(simd, greater.error, smaller.error, simd.mul(simd.mul(width, width), smaller.curvature));
    // Where both ends are far above it the difference has their rounding errors.
    simd.sub(bound, simd.mul(simd.add(greater.error, smaller.error), simd.splat(ROUNDING)))
}

/// The search for such numbers.
#[derive(Clone, Copy)]
pub(super) struct OfLine<L> {
    pub(super) levels: L,
    /// How far elements may be beyond the numbers, as a part of the largest magnitude of their group.
    pub(super) clip_limit: Option<f32>,
}

impl<L: Line> Solver for OfLine<L> {
    fn greatest(self) -> f32 {
        self.levels.greatest()
    }

    #[inline(always)]
    fn solve<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, open: &mut Open) -> Found<S> {
        Found::alone(simd, self.scales::<S, WEIGHTED>(simd, tile, open), simd.splat(0.0))
    }

    #[inline(always)]
    fn code<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, _: S::F32) -> S::I32 {
        self.levels.code(simd, simd.div(x, scale))
    }
}

impl<L: Line> OfLine<L> {
    /// The scales of the sixteen groups; infinite where the one that leaves no element beyond the numbers is beyond its dtype, or where
    /// all are that leave none too far beyond.
    #[inline(always)]
    pub(super) fn scales<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, open: &mut Open) -> S::F32 {
        let OfLine { levels, clip_limit } = self;
        let (zero, one, infinity) = (simd.splat(0.0), simd.splat(1.0), simd.splat(f32::INFINITY));
        let least = match clip_limit {
            None => [zero; 2],
            Some(limit) => {
                let negative = simd.splat(-1.0);
                let of_positive = least(simd, levels.branch(simd, one).0, tile, one, limit);
                [of_positive, least(simd, levels.branch(simd, negative).0, tile, negative, limit)]
            }
        };
        let least_of_both = simd.select(simd.less(least[1], least[0]), least[1], least[0]);
        // Zeros miss everything.
        let error = simd.select(simd.less(zero, least_of_both), infinity, tile.energy);
        let mut best = Best::<S> { error, scale: zero, branch: one, least };
        let is_empty = simd.equal(tile.largest(simd), zero);
        let unit = simd.select(is_empty, one, levels.unit(simd, tile.highest, tile.lowest));
        let opposite = simd.select(is_empty, one, levels.unit(simd, tile.lowest, tile.highest));
        let mut gaps = Vec::with_capacity(64);
        let mut mirrored = None;
        for (sign, unit) in [(1.0, unit), (-1.0, opposite)] {
            // Where the sign never matters there is one.
            if sign > 0.0 || levels.mirrored() < f32::INFINITY {
                // With a limit a scale may be allowed with one sign only.
                let seen = mirrored.filter(|_| clip_limit.is_none());
                mirrored = scan::<S, L, WEIGHTED>(simd, levels, tile, sign, simd.div(one, unit), seen, &mut best, &mut gaps);
            }
        }
        settle::<S, L, WEIGHTED>(simd, levels, tile, &gaps, open, &mut best);
        let full = simd.div(one, simd.mul(simd.splat(levels.full()), unit));
        let overflows = simd.or(tile.overflows(simd, full), simd.equal(least_of_both, infinity));
        simd.select(overflows, infinity, best.scale)
    }
}

/// The smallest scale of a sign that leaves no element further beyond the numbers than the limit.
#[inline(always)]
fn least<S: Simd, L: Levels<S>>(simd: S, levels: L, tile: &Tile<S>, sign: S::F32, limit: f32) -> S::F32 {
    let zero = simd.splat(0.0);
    let is_negative = simd.less(sign, zero);
    let (above, below) = (simd.select(is_negative, tile.lowest, tile.highest), simd.select(is_negative, tile.highest, tile.lowest));
    let missed = simd.mul(simd.splat(limit), tile.largest(simd));
    let above = simd.div(simd.sub(above, missed), levels.highest(simd));
    let below = simd.div(simd.sub(below, missed), simd.sub(zero, levels.lowest(simd)));
    tile.no_smaller(simd, larger(simd, larger(simd, above, below), zero))
}

/// Search the gaps until none can hold a better scale.
#[inline(always)]
pub(super) fn settle<S: Simd, B: Branches, const WEIGHTED: bool>(
    simd: S,
    branches: B,
    tile: &Tile<S>,
    gaps: &[Gap<S>],
    open: &mut Open,
    best: &mut Best<S>,
) {
    let limit = simd.mul(best.error, simd.splat(1.0 - TOLERANCE));
    for gap in gaps {
        open.push(simd, tile, gap, limit);
    }
    halve::<S, B, WEIGHTED>(simd, branches, tile, open, best);
}

/// Look along the grid with one sign, from where the scale is too great to where it is too small; `unit` is the scale of multiple 1.
///
/// Where the sign does not matter scales have been looked at before: `mirrored` is the last of those. The answer is the same for
/// the other sign.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "all of the search")]
fn scan<S: Simd, L: Line, const WEIGHTED: bool>(
    simd: S,
    levels: L,
    tile: &Tile<S>,
    sign: f32,
    unit: S::F32,
    mirrored: Option<Point<S>>,
    best: &mut Best<S>,
    gaps: &mut Vec<Gap<S>>,
) -> Option<Point<S>> {
    let signs = simd.splat(sign);
    // Nothing much is beyond the numbers before.
    let clipped = 1.05 * levels.full();
    let least = best.least[usize::from(sign < 0.0)];
    let skipped = if mirrored.is_some() { levels.grid().iter().take_while(|&&multiple| multiple < levels.mirrored()).count() } else { 0 };
    let (mut first, mut last_mirrored) = (None, None);
    let (mut last, mut multiple) = (mirrored, 0.0);
    let mut grid = levels.grid()[skipped..].iter();
    loop {
        if let Some(Point { scale, beyond, .. }) = last.filter(|_| multiple > clipped)
            && !simd.any(simd.and(simd.less(beyond, best.error), simd.less(least, scale)))
        {
            break;
        }
        multiple = grid.next().copied().unwrap_or(multiple * EXTENDED.0);
        if multiple > LIMITS.1 {
            break;
        }
        let scale = larger(simd, simd.div(unit, simd.splat(multiple)), least);
        let next = if multiple > clipped {
            look::<S, L, WEIGHTED, true>(simd, levels, tile, scale, signs, best)
        } else {
            look::<S, L, WEIGHTED, false>(simd, levels, tile, scale, signs, best)
        };
        if let Some(last) = last {
            gaps.push(Gap { branch: signs, greater: last, smaller: next, may_gain: simd.splat_i32(-1) });
        }
        last = Some(next);
        first = first.or(last);
        if multiple < levels.mirrored() {
            last_mirrored = last;
        }
    }
    if let Some(first) = first.filter(|_| skipped == 0) {
        let may_gain = if levels.doubles() { tile.is_subnormal(simd, first.scale) } else { simd.splat_i32(-1) };
        grow::<S, L, WEIGHTED>(simd, levels, tile, signs, (first, unit, levels.grid()[0]), may_gain, best, gaps);
    }
    last_mirrored
}

/// Look at greater and greater scales, from the first one of a grid on, in the lanes where one may be better; `from` is that look, the
/// scale of multiple 1, and the multiple of the look.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "all of the search")]
pub(super) fn grow<S: Simd, B: Branches, const WEIGHTED: bool>(
    simd: S,
    branches: B,
    tile: &Tile<S>,
    branch: S::F32,
    from: (Point<S>, S::F32, f32),
    may_gain: S::I32,
    best: &mut Best<S>,
    gaps: &mut Vec<Gap<S>>,
) {
    let zero = simd.splat(0.0);
    let (mut smaller, unit, mut multiple) = from;
    while simd.any(may_gain) {
        let (numbers, sign) = branches.branch(simd, branches.at(simd, tile, branch, smaller.scale));
        let least = sums::least::<S, _, WEIGHTED>(simd, numbers, tile, simd.div(sign, smaller.scale));
        let mut is_open = simd.less(simd.mul(simd.mul(smaller.scale, smaller.scale), least.squares), best.error);
        if numbers.least() > 0.0 {
            is_open = simd.or(is_open, simd.less(zero, least.residuals));
        }
        is_open = simd.and(is_open, simd.less(zero, smaller.steps));
        multiple *= EXTENDED.1;
        if !simd.any(simd.and(is_open, may_gain)) || multiple < LIMITS.0 {
            return;
        }
        let greater = look::<S, B, WEIGHTED, false>(simd, branches, tile, simd.div(unit, simd.splat(multiple)), branch, best);
        gaps.push(Gap { branch, greater, smaller, may_gain: simd.splat_i32(-1) });
        smaller = greater;
    }
}

/// Halve what is open until nothing is.
#[inline(always)]
fn halve<S: Simd, B: Branches, const WEIGHTED: bool>(simd: S, branches: B, tile: &Tile<S>, open: &mut Open, best: &mut Best<S>) {
    // A lane without an interval looks at what it looked at before, which does no harm.
    let one = [1.0; LANES];
    let mut current = Interval { branch: one, middle: one, ..Interval::default() };
    loop {
        let limit = simd.mul(best.error, simd.splat(1.0 - TOLERANCE));
        let found = open.pop(&lanes(simd, limit), &mut current);
        let may_gain = simd.load_i32(&found);
        if !simd.any(may_gain) {
            return;
        }
        let (branch, zero) = (simd.load(&current.branch), simd.splat(0.0));
        let middle = look::<S, B, WEIGHTED, false>(simd, branches, tile, simd.load(&current.middle), branch, best);
        let greater = Point::<S> {
            scale: simd.load(&current.greater_scale),
            error: simd.load(&current.greater_error),
            curvature: zero,
            steps: simd.load(&current.greater_steps),
            beyond: zero,
        };
        let smaller = Point::<S> {
            scale: simd.load(&current.smaller_scale),
            error: simd.load(&current.smaller_error),
            curvature: simd.load(&current.smaller_curvature),
            steps: simd.load(&current.smaller_steps),
            beyond: zero,
        };
        let limit = simd.mul(best.error, simd.splat(1.0 - TOLERANCE));
        for (greater, smaller) in [(greater, middle), (middle, smaller)] {
            open.push(simd, tile, &Gap { branch, greater, smaller, may_gain }, limit);
        }
    }
}
