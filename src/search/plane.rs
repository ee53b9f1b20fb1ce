//! A scale and a minimum, or a zero point that is a number: the codes 0..=15 and two numbers a group.
//!
//! ```text
//! y = (x - mean) / s + v, q the code nearest to y, r = y - q        v: where the mean lies among the codes
//! E(s, v) = s^2 sum w r^2                                           the minimum is mean - s v
//! ```
//!
//! For fixed codes the best scale and minimum are a regression of x on q. The quick search looks at places around where the best ones are;
//! [`super::plane_proof`] leaves out where no better ones can be.

use super::TOLERANCE;
use super::groups::{Found, Solver};
use super::line::Open;
use super::plane_proof::prove;
use super::tile::Tile;
use crate::kernels::lanes::{clamp, larger, magnitude};
use crate::simd::Simd;

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

/// Steps between stored scales from the one nearest to the best, where others may be better as they are stored.
const STORED_STEPS: [i32; 4] = [-1, 1, -2, 2];

/// How all codes of the best pair are shifted, which changes nothing where they are within the range but how the minimum is rounded.
const SHIFTS: &[f32] = &[0.0, -1.0, 1.0, -2.0, 2.0];

/// Sixteen groups around their means.
pub(super) struct Centred<'a, S: Simd> {
    pub(super) tile: &'a Tile<S>,
    pub(super) x: Vec<S::F32>,
    pub(super) mean: S::F32,
    /// Smallest and largest, the former negated.
    pub(super) below: S::F32,
    above: S::F32,
    /// sum w x^2
    pub(super) energy: S::F32,
    /// sum w
    pub(super) weight: S::F32,
    /// Its reciprocal.
    inverse: S::F32,
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
            above = larger(simd, above, x);
            below = larger(simd, below, simd.sub(zero, x));
            energy = simd.add(energy, simd.mul(simd.mul(w, x), x));
            centred.push(x);
        }
        let inverse = simd.div(one, weight);
        Centred { tile, x: centred, mean, below, above, energy, weight, inverse }
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
}

/// What is made of the fits that a search comes by.
pub(super) trait Keep<S: Simd> {
    /// One more.
    fn keep(&mut self, simd: S, group: &Centred<'_, S>, fit: &Fit<S>);
}

impl<S: Simd> Keep<S> for () {
    #[inline(always)]
    fn keep(&mut self, _: S, _: &Centred<'_, S>, _: &Fit<S>) {}
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

    /// Where it is: v.
    #[inline(always)]
    fn place(&self, simd: S) -> S::F32 {
        simd.div(simd.sub(simd.splat(0.0), self.minimum), self.scale)
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
        let mut best = Best::new(simd, &group, full, ());
        quick::<S, _, WEIGHTED>(simd, &group, span, &mut best);
        let Best { error, scale, minimum, .. } = best;
        let mut best = Best { error, scale, minimum, kept: Stored::mean(simd, self.offset, &group) };
        if let Some(tolerance) = self.tolerance {
            prove::<S, _, WEIGHTED>(simd, &group, span, tolerance, &mut best);
        }
        let (scale, v) = (best.scale, best.place(simd));
        for shift in if self.tolerance.is_some() { SHIFTS } else { &SHIFTS[..1] } {
            look::<S, _, WEIGHTED>(simd, &group, scale, simd.add(v, simd.splat(*shift)), &mut best);
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
    /// Round it to what can be stored. How the minimum happens to be rounded counts for as much as a step of the scale, so that scales
    /// near the best one are tried too, each with the best minimum.
    #[inline(always)]
    fn keep(&mut self, simd: S, group: &Centred<'_, S>, fit: &Fit<S>) {
        if !simd.any(simd.less(fit.error, self.error)) {
            return;
        }
        let nearest = group.tile.stored(simd, fit.scale);
        self.try_scale(simd, group, fit, nearest);
        for steps in STORED_STEPS {
            if let Some(scale) = group.tile.neighbour(simd, nearest, steps) {
                self.try_scale(simd, group, fit, scale);
            }
        }
    }
}

impl<S: Simd> Stored<S> {
    /// A scale as it is stored with the codes of a fit, and the best minimum for them.
    #[inline(always)]
    fn try_scale(&mut self, simd: S, group: &Centred<'_, S>, fit: &Fit<S>, stored_scale: S::F32) {
        let (zero, tile) = (simd.splat(0.0), group.tile);
        let scale = tile.of_lane(simd, stored_scale);
        // Around the mean of the codes the scale and what is left of the minimum are independent.
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
        let off = simd.sub(wanted, effective);
        let of_scale = simd.mul(simd.mul(ds, ds), fit.variance);
        let more = simd.add(of_scale, simd.mul(group.weight, simd.mul(off, off)));
        let error = simd.add(fit.error, more);
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
    let (r_mean, q_mean) = (simd.mul(r1, group.inverse), simd.mul(q1, group.inverse));
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
    best.kept.keep(simd, group, &Fit { error, scale: free, minimum, q_mean, variance });
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
    let v = simd.add(best.place(simd), simd.splat(of_v));
    let scale = simd.div(best.scale, simd.splat(1.0 + of_scale));
    look::<S, K, WEIGHTED>(simd, group, scale, v, best);
}

/// The code nearest to `y`.
#[inline(always)]
pub(super) fn nearest<S: Simd>(simd: S, y: S::F32) -> S::F32 {
    simd.to_f32(simd.min_i32(simd.max_i32(simd.round(y), simd.splat_i32(0)), simd.splat_i32(15)))
}
