//! A scale and a minimum, or a zero point that is a number: the codes 0..=15 and two numbers a group.
//!
//! ```text
//! y = (x - mean) / s + v, q the code nearest to y, r = y - q        v: where the mean lies among the codes
//! E(s, v) = s^2 sum w r^2                                           the minimum is mean - s v
//! ```
//!
//! For fixed codes the best scale and minimum are a regression of x on q. Over the plane of s and v the error is a parabola along
//! either axis: of curvature s^2 sum w along v, and along s of curvature sum w (q - v)^2, which is no more than
//! V = (sqrt(sum w (x - mean)^2) + sqrt(best))^2 / s2^2 wherever the error is less than the best one. So what is said in
//! [`super::line`] of one interval holds along both sides of a box: no error within it is smaller than
//!
//! ```text
//! chord(chord(E11, E12; (v2 - v1)^2 s1^2 sum w), chord(E21, E22; (v2 - v1)^2 s2^2 sum w); (s1 - s2)^2 V)
//! ```
//!
//! A box is done with where that is no less than the best error less the tolerance; else it is cut across its longer side.
//!
//! Ends, with span = max - min: codes that span 7 or less do the same as twice of them with half the scale. From span / 15 up nothing
//! need be clipped, and moving v by 1 moves all codes, so that one unit of v tells everything. Below, what is clipped at a place is clipped
//! more at every smaller scale, until that alone is as much as the best error; v is 0 to 15, for it is the mean of the codes.

use super::TOLERANCE;
use super::groups::{Found, Solver, lanes};
use super::line::{EXTENDED, LIMITS, Open, ROUNDING, chord};
use super::tile::Tile;
use crate::kernels::lanes::{clamp, magnitude};
use crate::simd::{LANES, Simd};
use std::collections::VecDeque;

/// What is stored beside the scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Offset {
    /// x ~ code * scale + minimum
    Minimum,
    /// x ~ (code - zero_point) * scale
    ZeroPoint,
}

/// The search for a scale and an offset.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Plane {
    pub(super) offset: Offset,
    /// By how much of itself the error may be larger than the smallest one; none for the quick search, which proves nothing.
    pub(super) tolerance: Option<f32>,
}

impl Plane {
    /// To the usual tolerance.
    pub(super) const fn new(offset: Offset) -> Self {
        Plane { offset, tolerance: Some(TOLERANCE) }
    }
}

/// Boxes across one unit of v.
const COLUMNS: usize = 4;

/// Span / scale of the rows where nothing need be clipped, and where something is.
const WHOLE: [f32; 9] = [7.0, 8.6, 10.2, 11.4, 12.4, 13.2, 13.9, 14.45, 15.0];
const CLIPPED: [f32; 5] = [15.6, 16.3, 17.2, 18.4, 20.0];

/// Where the quick search begins: span / scale, and how far through the range of places that clip least.
const STARTS: [(f32, f32); 13] = [
    (15.03, 0.58),
    (15.97, 0.32),
    (13.94, 0.19),
    (14.5, 0.22),
    (16.75, 0.74),
    (16.46, 0.25),
    (16.1, 0.65),
    (14.16, 0.35),
    (15.32, 0.41),
    (15.25, 0.73),
    (16.67, 0.5),
    (13.33, 0.5),
    (17.81, 0.22),
];

/// Its steps from the best so far, one after the other: of the scale, relatively, and of v. Both tables were found by trying changes on
/// groups of 32 and 128 random numbers and weights of a model, weighted and not (`benches/record/notes.md`).
const STEPS: [(f32, f32); 11] = [
    (0.0229, -0.192),
    (-0.0201, -0.023),
    (0.0337, -0.062),
    (0.0252, 0.074),
    (0.0502, 0.145),
    (-0.044, 0.124),
    (-0.0106, 0.072),
    (-0.0006, -0.048),
    (0.094, 0.408),
    (-0.0503, -0.189),
    (0.0008, 0.023),
];

/// Cuts of sixteen groups at most, some twenty times what they take. Where weights are many orders of magnitude apart that can be too few,
/// and the best that was found is the answer.
const MOST_CUTS: usize = 2000;

/// Rounding errors of the error, as a part of sum w (x - mean)^2: squares of those of y, which is up to 16.
const FLOOR: f32 = 1e-12;

/// Sixteen groups around their means.
pub(super) struct Centred<'a, S: Simd> {
    pub(super) tile: &'a Tile<S>,
    x: Vec<S::F32>,
    pub(super) mean: S::F32,
    /// Smallest and largest, the former negated.
    below: S::F32,
    above: S::F32,
    /// sum w x^2
    pub(super) energy: S::F32,
    /// sum w
    pub(super) weight: S::F32,
}

impl<'a, S: Simd> Centred<'a, S> {
    #[inline(always)]
    pub(super) fn new(simd: S, tile: &'a Tile<S>) -> Self {
        let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
        let (mut sum, mut weight) = (zero, zero);
        for (i, x) in tile.x.iter().enumerate() {
            let w = tile.weights.get(i).copied().unwrap_or(one);
            sum = simd.add(sum, simd.mul(w, *x));
            weight = simd.add(weight, w);
        }
        let mean = simd.div(sum, weight);
        let (mut below, mut above, mut energy) = (zero, zero, zero);
        let mut centred = Vec::with_capacity(tile.x.len());
        for (i, x) in tile.x.iter().enumerate() {
            let w = tile.weights.get(i).copied().unwrap_or(one);
            let x = simd.select(simd.equal(w, zero), zero, simd.sub(*x, mean));
            let negated = simd.sub(zero, x);
            above = simd.select(simd.less(above, x), x, above);
            below = simd.select(simd.less(below, negated), negated, below);
            energy = simd.add(energy, simd.mul(simd.mul(w, x), x));
            centred.push(x);
        }
        Centred { tile, x: centred, mean, below, above, energy, weight }
    }

    /// Largest less smallest; 1 where all are the same.
    #[inline(always)]
    pub(super) fn span(&self, simd: S) -> S::F32 {
        let span = simd.add(self.below, self.above);
        simd.select(simd.equal(span, simd.splat(0.0)), simd.splat(1.0), span)
    }

    /// The magnitude of the smallest.
    #[inline(always)]
    pub(super) fn lowest(&self, simd: S) -> S::F32 {
        magnitude(simd, simd.sub(self.mean, self.below))
    }
}

/// The scale and the minimum that are the best for some codes.
pub(super) struct Fit<S: Simd> {
    pub(super) error: S::F32,
    pub(super) scale: S::F32,
    /// Less the mean.
    pub(super) minimum: S::F32,
    /// The mean of the codes, and sum w (q - mean)^2.
    pub(super) q_mean: S::F32,
    pub(super) variance: S::F32,
    /// sum w q
    q1: S::F32,
    /// sum w q^2
    qq: S::F32,
}

/// What is made of the fits that a search comes by.
pub(super) trait Keep<S: Simd> {
    /// One more.
    fn keep(&mut self, simd: S, group: &Centred<'_, S>, fit: &Fit<S>);
}

/// The smallest error of any scale and minimum, and these.
pub(super) struct Best<S: Simd, K> {
    pub(super) error: S::F32,
    pub(super) scale: S::F32,
    /// Less the mean.
    pub(super) minimum: S::F32,
    pub(super) kept: K,
}

impl<S: Simd, K> Best<S, K> {
    /// Every element the mean, and the scale where a search begins if nothing is better.
    #[inline(always)]
    pub(super) fn new(simd: S, group: &Centred<'_, S>, scale: S::F32, kept: K) -> Self {
        Best { error: group.energy, scale, minimum: simd.splat(0.0), kept }
    }

    /// What a bound must be below for a box to be worth a look.
    #[inline(always)]
    fn limit(&self, simd: S, group: &Centred<'_, S>, tolerance: f32) -> S::F32 {
        let floor = simd.mul(group.energy, simd.splat(FLOOR));
        simd.sub(simd.mul(self.error, simd.splat(1.0 - tolerance)), floor)
    }
}

/// A box in each lane. `e12` is the error at s1 and v2.
#[derive(Clone, Copy)]
struct Boxes<S: Simd> {
    s1: S::F32,
    s2: S::F32,
    v1: S::F32,
    v2: S::F32,
    e11: S::F32,
    e12: S::F32,
    e21: S::F32,
    e22: S::F32,
}

/// The same of one lane, and its bound.
type Cut = [f32; 9];

impl<S: Simd> Boxes<S> {
    /// What no error within is smaller than.
    #[inline(always)]
    fn bound<K>(&self, simd: S, group: &Centred<'_, S>, best: &Best<S, K>) -> S::F32 {
        let (ds, dv) = (simd.sub(self.s1, self.s2), simd.sub(self.v2, self.v1));
        let (width1, width2) = (simd.mul(self.s1, dv), simd.mul(self.s2, dv));
        let greater = chord(simd, self.e11, self.e12, simd.mul(group.weight, simd.mul(width1, width1)));
        let smaller = chord(simd, self.e21, self.e22, simd.mul(group.weight, simd.mul(width2, width2)));
        let ratio = simd.div(ds, self.s2);
        let size = simd.mul(ratio, simd.add(simd.sqrt(group.energy), simd.sqrt(best.error)));
        let bound = chord(simd, greater, smaller, simd.mul(size, size));
        let corners = simd.add(simd.add(self.e11, self.e12), simd.add(self.e21, self.e22));
        let bound = simd.sub(bound, simd.mul(corners, simd.splat(ROUNDING)));
        let zero = simd.splat(0.0);
        simd.select(simd.less(bound, zero), zero, bound)
    }

    #[inline(always)]
    fn push(&self, simd: S, bound: S::F32, is_open: S::I32, stacks: &mut [Vec<Cut>; LANES]) {
        if !simd.any(is_open) {
            return;
        }
        let mut fields = [[0.0; LANES]; 9];
        let vectors = [self.s1, self.s2, self.v1, self.v2, self.e11, self.e12, self.e21, self.e22, bound];
        for (field, vector) in fields.iter_mut().zip(vectors) {
            simd.store(vector, field);
        }
        let mut open = [0; LANES];
        simd.store_i32(is_open, &mut open);
        for lane in (0..LANES).filter(|&lane| open[lane] != 0) {
            stacks[lane].push(std::array::from_fn(|field| fields[field][lane]));
        }
    }
}

impl Solver for Plane {
    fn greatest(self) -> f32 {
        15.0
    }

    #[inline(always)]
    fn solve<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, _: &mut Open) -> Found<S> {
        let group = Centred::new(simd, tile);
        let span = group.span(simd);
        let full = simd.div(span, simd.splat(15.0));
        let mut best = Best::new(simd, &group, full, Stored::mean(simd, self.offset, &group));
        quick::<S, _, WEIGHTED>(simd, &group, span, &mut best);
        if let Some(tolerance) = self.tolerance {
            prove::<S, _, WEIGHTED>(simd, &group, span, tolerance, &mut best);
        }
        let infinite = simd.splat(f32::INFINITY);
        let Best { kept: Stored { scale, number, .. }, .. } = best;
        let scale = simd.select(tile.overflows(simd, full), infinite, scale);
        let offset = match self.offset {
            Offset::Minimum => simd.select(tile.overflows(simd, group.lowest(simd)), infinite, number),
            Offset::ZeroPoint => number,
        };
        Found::alone(simd, scale, offset)
    }

    #[inline(always)]
    fn code<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, offset: S::F32) -> S::I32 {
        let y = match self.offset {
            Offset::Minimum => simd.div(simd.sub(x, offset), scale),
            Offset::ZeroPoint => simd.add(simd.div(x, scale), offset),
        };
        simd.round(clamp(simd, y, simd.splat(0.0), simd.splat(15.0)))
    }
}

/// The best of what can be stored: its error, the scale and the minimum or zero point.
struct Stored<S: Simd> {
    offset: Offset,
    error: S::F32,
    scale: S::F32,
    number: S::F32,
}

impl<S: Simd> Stored<S> {
    /// Every element the mean.
    #[inline(always)]
    fn mean(simd: S, offset: Offset, group: &Centred<'_, S>) -> Self {
        let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
        let tile = group.tile;
        let (scale, number, mean) = match offset {
            Offset::Minimum => {
                let minimum = tile.rounded(simd, group.mean);
                (zero, minimum, tile.of_lane(simd, minimum))
            }
            Offset::ZeroPoint => {
                // One step from the zero point.
                let is_negative = simd.less(group.mean, zero);
                let sign = simd.select(is_negative, one, simd.sub(zero, one));
                let size = tile.stored(simd, simd.mul(group.mean, simd.sub(zero, sign)));
                (size, sign, tile.of_lane(simd, simd.mul(size, simd.sub(zero, sign))))
            }
        };
        let off = simd.sub(mean, group.mean);
        let error = simd.add(group.energy, simd.mul(group.weight, simd.mul(off, off)));
        Stored { offset, error, scale, number }
    }
}

impl<S: Simd> Keep<S> for Stored<S> {
    /// Round it to what can be stored: the scale, then the best minimum with it.
    #[inline(always)]
    fn keep(&mut self, simd: S, group: &Centred<'_, S>, fit: &Fit<S>) {
        if !simd.any(simd.less(fit.error, self.error)) {
            return;
        }
        let (zero, tile) = (simd.splat(0.0), group.tile);
        let stored_scale = tile.stored(simd, fit.scale);
        let scale = tile.of_lane(simd, stored_scale);
        let ds = simd.sub(fit.scale, scale);
        let wanted = simd.add(simd.add(fit.minimum, simd.mul(ds, fit.q_mean)), group.mean);
        let (number, effective) = match self.offset {
            Offset::Minimum => {
                let stored = tile.rounded(simd, wanted);
                (stored, tile.of_lane(simd, stored))
            }
            Offset::ZeroPoint => {
                let stored = tile.plain(simd, simd.div(simd.sub(zero, wanted), scale));
                (stored, simd.mul(simd.sub(zero, stored), scale))
            }
        };
        let dm = simd.sub(simd.add(fit.minimum, group.mean), effective);
        let twice = simd.add(dm, dm);
        let of_scale = simd.mul(ds, simd.add(simd.mul(ds, fit.qq), simd.mul(twice, fit.q1)));
        let more = simd.add(of_scale, simd.mul(group.weight, simd.mul(dm, dm)));
        let error = simd.add(fit.error, simd.select(simd.less(more, zero), zero, more));
        let is_better = simd.and(simd.less(error, self.error), simd.less(zero, scale));
        self.error = simd.select(is_better, error, self.error);
        self.scale = simd.select(is_better, stored_scale, self.scale);
        self.number = simd.select(is_better, number, self.number);
    }
}

/// Look at a scale and a place, and at the best scale and minimum of the codes that they lead to. The answer is the error there.
#[inline(always)]
pub(super) fn look<S: Simd, K: Keep<S>, const WEIGHTED: bool>(
    simd: S,
    group: &Centred<'_, S>,
    scale: S::F32,
    v: S::F32,
    best: &mut Best<S, K>,
) -> S::F32 {
    let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
    let t = simd.div(one, scale);
    let (mut rr, mut r1, mut rq, mut q1, mut qq) = (zero, zero, zero, zero, zero);
    let weights = if WEIGHTED { &group.tile.weights[..] } else { &group.x[..] };
    for (x, weight) in group.x.iter().zip(weights) {
        let y = simd.add(simd.mul(*x, t), v);
        let q = nearest(simd, y);
        let r = simd.sub(y, q);
        let (wr, wq) = if WEIGHTED { (simd.mul(*weight, r), simd.mul(*weight, q)) } else { (r, q) };
        rr = simd.add(rr, simd.mul(wr, r));
        r1 = simd.add(r1, wr);
        rq = simd.add(rq, simd.mul(wr, q));
        q1 = simd.add(q1, wq);
        qq = simd.add(qq, simd.mul(wq, q));
    }
    // r ~ a + b q
    let (r_mean, q_mean) = (simd.div(r1, group.weight), simd.div(q1, group.weight));
    let variance = simd.sub(qq, simd.mul(q_mean, q1));
    let covariance = simd.sub(rq, simd.mul(r_mean, q1));
    let b = simd.select(simd.less(zero, variance), simd.div(covariance, variance), zero);
    let a = simd.sub(r_mean, simd.mul(b, q_mean));
    let left = simd.sub(simd.sub(rr, simd.mul(r_mean, r1)), simd.mul(b, covariance));
    let square = simd.mul(scale, scale);
    let error = simd.mul(square, simd.select(simd.less(left, zero), zero, left));
    let free = simd.add(scale, simd.mul(scale, b));
    let minimum = simd.mul(scale, simd.sub(a, v));
    let is_better = simd.and(simd.less(error, best.error), simd.less(zero, free));
    best.error = simd.select(is_better, error, best.error);
    best.scale = simd.select(is_better, free, best.scale);
    best.minimum = simd.select(is_better, minimum, best.minimum);
    best.kept.keep(simd, group, &Fit { error, scale: free, minimum, q_mean, variance, q1, qq });
    simd.mul(square, rr)
}

/// Some two dozen looks around where the best ones are.
#[inline(always)]
pub(super) fn quick<S: Simd, K: Keep<S>, const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, span: S::F32, best: &mut Best<S, K>) {
    for from in STARTS {
        start::<S, K, WEIGHTED>(simd, group, span, from, best);
    }
    for step in STEPS {
        again::<S, K, WEIGHTED>(simd, group, step, best);
    }
}

/// Looks at `count` places all over where the best ones may be, evenly in two dimensions.
#[inline(always)]
pub(super) fn spread<S: Simd, K: Keep<S>, const WEIGHTED: bool>(
    simd: S,
    group: &Centred<'_, S>,
    span: S::F32,
    count: u8,
    best: &mut Best<S, K>,
) {
    for step in 1..=count {
        let [of_scale, of_v] = [0.754_877_7, 0.569_840_3].map(|part: f32| (part * f32::from(step)).fract());
        start::<S, K, WEIGHTED>(simd, group, span, (13.0 + 5.5 * of_scale, of_v), best);
    }
}

/// Look at a start: span / scale, and how far through the range of places that clip least.
#[inline(always)]
fn start<S: Simd, K: Keep<S>, const WEIGHTED: bool>(
    simd: S,
    group: &Centred<'_, S>,
    span: S::F32,
    (multiple, part): (f32, f32),
    best: &mut Best<S, K>,
) {
    // The smallest element is at -0.5 to 15.5 less the span where all fit, else at 0.5 more than 15 less the span to 0.5.
    let (first, last) = if multiple < 15.0 { (-0.499, 15.499 - multiple) } else { (14.5 - multiple, 0.5) };
    let scale = simd.div(span, simd.splat(multiple));
    let v = simd.add(simd.div(group.below, scale), simd.splat(first + (last - first) * part));
    look::<S, K, WEIGHTED>(simd, group, scale, v, best);
}

/// Look near the best one.
#[inline(always)]
fn again<S: Simd, K: Keep<S>, const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, (of_scale, of_v): (f32, f32), best: &mut Best<S, K>) {
    let v = simd.add(simd.div(simd.sub(simd.splat(0.0), best.minimum), best.scale), simd.splat(of_v));
    let scale = simd.div(best.scale, simd.splat(1.0 + of_scale));
    look::<S, K, WEIGHTED>(simd, group, scale, v, best);
}

/// Search all scales and minimums until none can be better by more than the tolerance.
#[inline(always)]
pub(super) fn prove<S: Simd, K: Keep<S>, const WEIGHTED: bool>(
    simd: S,
    group: &Centred<'_, S>,
    span: S::F32,
    tolerance: f32,
    best: &mut Best<S, K>,
) {
    let mut stacks: [Vec<Cut>; LANES] = std::array::from_fn(|_| Vec::with_capacity(64));
    let limit = best.limit(simd, group, tolerance);
    whole::<S, K, WEIGHTED>(simd, group, span, best, limit, &mut stacks);
    clipped::<S, K, WEIGHTED>(simd, group, span, best, limit, &mut stacks);
    cut::<S, K, WEIGHTED>(simd, group, tolerance, &mut stacks, best);
}

/// Cut what is open until nothing is.
#[inline(always)]
fn cut<S: Simd, K: Keep<S>, const WEIGHTED: bool>(
    simd: S,
    group: &Centred<'_, S>,
    tolerance: f32,
    stacks: &mut [Vec<Cut>; LANES],
    best: &mut Best<S, K>,
) {
    // A lane without a box cuts the one that it cut before, which does no harm.
    let mut current = [[1.0; 9]; LANES];
    let (sides, weights) = (simd.sqrt(group.energy), simd.sqrt(group.weight));
    let half = simd.splat(0.5);
    for _ in 0..MOST_CUTS {
        let limits = lanes(simd, best.limit(simd, group, tolerance));
        let mut is_cut = [0; LANES];
        for (lane, stack) in stacks.iter_mut().enumerate() {
            while let Some(cut) = stack.pop() {
                if cut[8] < limits[lane] {
                    current[lane] = cut;
                    is_cut[lane] = -1;
                    break;
                }
            }
        }
        if !is_cut.contains(&-1) {
            return;
        }
        let whole = Boxes::<S> {
            s1: simd.load(&current.map(|cut| cut[0])),
            s2: simd.load(&current.map(|cut| cut[1])),
            v1: simd.load(&current.map(|cut| cut[2])),
            v2: simd.load(&current.map(|cut| cut[3])),
            e11: simd.load(&current.map(|cut| cut[4])),
            e12: simd.load(&current.map(|cut| cut[5])),
            e21: simd.load(&current.map(|cut| cut[6])),
            e22: simd.load(&current.map(|cut| cut[7])),
        };
        let (ds, dv) = (simd.sub(whole.s1, whole.s2), simd.sub(whole.v2, whole.v1));
        let across = simd.less(simd.mul(simd.mul(dv, whole.s1), weights), simd.mul(simd.div(ds, whole.s2), sides));
        let (s, v) = (simd.mul(half, simd.add(whole.s1, whole.s2)), simd.mul(half, simd.add(whole.v1, whole.v2)));
        // Beyond what floats can tell apart there is nothing to be cut.
        let is_wide = simd.or(simd.less(simd.mul(whole.s1, simd.splat(1e-6)), ds), simd.less(simd.splat(1e-5), dv));
        let (first_s, second_s) = (simd.select(across, s, whole.s1), simd.select(across, s, whole.s2));
        let (first_v, second_v) = (simd.select(across, whole.v1, v), simd.select(across, whole.v2, v));
        let first = look::<S, K, WEIGHTED>(simd, group, first_s, first_v, best);
        let second = look::<S, K, WEIGHTED>(simd, group, second_s, second_v, best);
        // The halves of greater s, or of smaller v, and the others.
        let left = Boxes {
            s2: simd.select(across, s, whole.s2),
            v2: simd.select(across, whole.v2, v),
            e12: simd.select(across, whole.e12, first),
            e21: simd.select(across, first, whole.e21),
            e22: second,
            ..whole
        };
        let right = Boxes {
            s1: simd.select(across, s, whole.s1),
            v1: simd.select(across, whole.v1, v),
            e11: first,
            e12: simd.select(across, second, whole.e12),
            e21: simd.select(across, whole.e21, second),
            ..whole
        };
        let is_cut = simd.and(simd.load_i32(&is_cut), is_wide);
        let limit = best.limit(simd, group, tolerance);
        for part in [left, right] {
            let bound = part.bound(simd, group, best);
            part.push(simd, bound, simd.and(is_cut, simd.less(bound, limit)), stacks);
        }
    }
    stacks.iter_mut().for_each(Vec::clear);
}

/// The code nearest to `y`.
#[inline(always)]
fn nearest<S: Simd>(simd: S, y: S::F32) -> S::F32 {
    simd.to_f32(simd.min_i32(simd.max_i32(simd.round(y), simd.splat_i32(0)), simd.splat_i32(15)))
}

/// The columns of the grid: where the places are, as multiples of 1 / COLUMNS.
#[derive(Clone, Copy)]
struct Columns<S: Simd>(S::F32);

impl<S: Simd> Columns<S> {
    /// They begin half a step below the place where the span fills the codes.
    #[inline(always)]
    fn new(simd: S, group: &Centred<'_, S>, span: S::F32) -> Self {
        Columns(simd.sub(simd.div(simd.mul(group.below, simd.splat(15.0)), span), simd.splat(0.5)))
    }

    #[inline(always)]
    fn at(self, simd: S, k: i32) -> S::F32 {
        simd.add(self.0, simd.splat(k as f32 / COLUMNS as f32))
    }
}

/// The boxes where nothing need be clipped.
#[inline(always)]
fn whole<S: Simd, K: Keep<S>, const WEIGHTED: bool>(
    simd: S,
    group: &Centred<'_, S>,
    span: S::F32,
    best: &Best<S, K>,
    limit: S::F32,
    stacks: &mut [Vec<Cut>; LANES],
) {
    let columns = Columns::new(simd, group, span);
    let mut last = None::<(S::F32, [S::F32; COLUMNS])>;
    for multiple in WHOLE {
        let scale = simd.div(span, simd.splat(multiple));
        let errors = row::<S, WEIGHTED>(simd, group, scale, columns);
        if let Some((s1, greater)) = last {
            for k in 0..COLUMNS {
                // A unit further everything is the same.
                let next = (k + 1) % COLUMNS;
                let (e11, e12, e21, e22) = (greater[k], greater[next], errors[k], errors[next]);
                let (v1, v2) = (columns.at(simd, k as i32), columns.at(simd, k as i32 + 1));
                let part = Boxes::<S> { s1, s2: scale, v1, v2, e11, e12, e21, e22 };
                let bound = part.bound(simd, group, best);
                part.push(simd, bound, simd.less(bound, limit), stacks);
            }
        }
        last = Some((scale, errors));
    }
}

/// Errors at one scale where nothing is clipped, of the places across one unit.
#[inline(always)]
fn row<S: Simd, const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, scale: S::F32, columns: Columns<S>) -> [S::F32; COLUMNS] {
    let t = simd.div(simd.splat(1.0), scale);
    let mut places = [simd.splat(0.0); COLUMNS];
    let mut sums = places;
    for (k, place) in places.iter_mut().enumerate() {
        *place = columns.at(simd, k as i32);
    }
    let weights = if WEIGHTED { &group.tile.weights[..] } else { &group.x[..] };
    for (x, weight) in group.x.iter().zip(weights) {
        let y = simd.mul(*x, t);
        for (sum, v) in sums.iter_mut().zip(places) {
            let y = simd.add(y, v);
            let r = simd.sub(y, simd.to_f32(simd.round(y)));
            let square = simd.mul(r, r);
            *sum = simd.add(*sum, if WEIGHTED { simd.mul(*weight, square) } else { square });
        }
    }
    for sum in &mut sums {
        *sum = simd.mul(*sum, simd.mul(scale, scale));
    }
    sums
}

/// What is known of one place where something may be clipped.
#[derive(Clone, Copy)]
struct Vertex<S: Simd> {
    error: S::F32,
    /// What elements below and above the codes miss, those more than half a step beyond.
    low: S::F32,
    high: S::F32,
}

impl<S: Simd> Vertex<S> {
    #[inline(always)]
    fn new<const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, scale: S::F32, v: S::F32) -> Self {
        let (zero, half) = (simd.splat(0.0), simd.splat(0.5));
        let t = simd.div(simd.splat(1.0), scale);
        let (mut all, mut low, mut high) = (zero, zero, zero);
        let weights = if WEIGHTED { &group.tile.weights[..] } else { &group.x[..] };
        for (x, weight) in group.x.iter().zip(weights) {
            let y = simd.add(simd.mul(*x, t), v);
            let r = simd.sub(y, nearest(simd, y));
            let square = simd.mul(if WEIGHTED { simd.mul(*weight, r) } else { r }, r);
            all = simd.add(all, square);
            low = simd.add(low, simd.as_f32(simd.and(simd.less(r, simd.splat(-0.5)), simd.bits(square))));
            high = simd.add(high, simd.as_f32(simd.and(simd.less(half, r), simd.bits(square))));
        }
        let square = simd.mul(scale, scale);
        Vertex { error: simd.mul(all, square), low: simd.mul(low, square), high: simd.mul(high, square) }
    }
}

/// The places at one scale that may be next to a better one.
struct Row<S: Simd> {
    scale: S::F32,
    columns: Columns<S>,
    /// The column of the first one.
    first: i32,
    vertices: VecDeque<Vertex<S>>,
}

impl<S: Simd> Row<S> {
    /// Those from one column on.
    #[inline(always)]
    fn new<const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, columns: Columns<S>, scale: S::F32, first: i32, count: usize) -> Self {
        let mut vertices = VecDeque::with_capacity(64);
        for k in (first..).take(count) {
            vertices.push_back(Vertex::new::<WEIGHTED>(simd, group, scale, columns.at(simd, k)));
        }
        Row { scale, columns, first, vertices }
    }

    /// The lanes where this scale or a smaller one may gain between a place and the next.
    #[inline(always)]
    fn may_gain<K>(&self, simd: S, at: usize, best: &Best<S, K>) -> S::I32 {
        let k = self.first + at as i32;
        let starts_below = simd.less(self.columns.at(simd, k), simd.splat(15.0));
        let ends_above = simd.less(simd.splat(0.0), self.columns.at(simd, k + 1));
        let missed = simd.add(self.vertices[at + 1].low, self.vertices[at].high);
        simd.and(simd.and(starts_below, ends_above), simd.less(missed, best.error))
    }

    /// Add places on both sides until nothing beyond them may gain.
    #[inline(always)]
    fn widen<K, const WEIGHTED: bool>(&mut self, simd: S, group: &Centred<'_, S>, best: &Best<S, K>) {
        while simd.any(self.may_gain(simd, self.vertices.len() - 2, best)) {
            let k = self.first + self.vertices.len() as i32;
            self.vertices.push_back(Vertex::new::<WEIGHTED>(simd, group, self.scale, self.columns.at(simd, k)));
        }
        while simd.any(self.may_gain(simd, 0, best)) {
            self.first -= 1;
            self.vertices.push_front(Vertex::new::<WEIGHTED>(simd, group, self.scale, self.columns.at(simd, self.first)));
        }
    }

    /// Leave places away at both ends next to which nothing may gain.
    #[inline(always)]
    fn narrow<K>(&mut self, simd: S, best: &Best<S, K>) {
        while self.vertices.len() > 1 && !simd.any(self.may_gain(simd, self.vertices.len() - 2, best)) {
            self.vertices.pop_back();
        }
        while self.vertices.len() > 1 && !simd.any(self.may_gain(simd, 0, best)) {
            self.vertices.pop_front();
            self.first += 1;
        }
    }
}

/// The boxes where something is clipped, row by row; a row has the columns of the one before that may still gain.
#[inline(always)]
fn clipped<S: Simd, K: Keep<S>, const WEIGHTED: bool>(
    simd: S,
    group: &Centred<'_, S>,
    span: S::F32,
    best: &Best<S, K>,
    limit: S::F32,
    stacks: &mut [Vec<Cut>; LANES],
) {
    let columns = Columns::new(simd, group, span);
    let mut grid = CLIPPED.iter();
    let mut multiple = WHOLE[WHOLE.len() - 1];
    let mut row = Row::new::<WEIGHTED>(simd, group, columns, simd.div(span, simd.splat(multiple)), 0, COLUMNS + 1);
    row.widen::<K, WEIGHTED>(simd, group, best);
    loop {
        row.narrow(simd, best);
        multiple = grid.next().copied().unwrap_or(multiple * EXTENDED.0);
        if row.vertices.len() < 2 || multiple > LIMITS.1 {
            return;
        }
        let scale = simd.div(span, simd.splat(multiple));
        let next = Row::new::<WEIGHTED>(simd, group, columns, scale, row.first, row.vertices.len());
        for at in 0..row.vertices.len() - 1 {
            let k = row.first + at as i32;
            let part = Boxes::<S> {
                s1: row.scale,
                s2: scale,
                v1: columns.at(simd, k),
                v2: columns.at(simd, k + 1),
                e11: row.vertices[at].error,
                e12: row.vertices[at + 1].error,
                e21: next.vertices[at].error,
                e22: next.vertices[at + 1].error,
            };
            let bound = part.bound(simd, group, best);
            let is_open = simd.and(simd.less(bound, limit), row.may_gain(simd, at, best));
            part.push(simd, bound, is_open, stacks);
        }
        row = next;
    }
}
