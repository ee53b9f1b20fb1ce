//! The proof of a scale and a minimum: boxes of the plane of s and v in which no error can be small are left out, all others are cut.
//!
//! Over the plane of s and v, which are those of [`super::plane`], the error of fixed codes is a parabola along either axis: of curvature s^2 sum w along v, and sum w (q - v)^2 along s. What is looked for is the smallest error of all, that of
//! the best codes with their own best s and v: there v is the mean of q, and s^2 sum w (q - v)^2 + E = sum w (x - mean)^2, so that for
//! these codes the latter curvature is no more than V = sum w (x - mean)^2 / s2^2 if they are in a box. So what is said in
//! [`super::line`] of one interval holds along both sides of a box: if the smallest error is within it is not smaller than
//!
//! ```text
//! chord(chord(E11, E12; (v2 - v1)^2 s1^2 sum w), chord(E21, E22; (v2 - v1)^2 s2^2 sum w); (s1 - s2)^2 V)
//! ```
//!
//! A box is done with where that is no less than the best error less the tolerance; else it is cut across its longer side. Only errors
//! are needed for that. Codes are fitted now and then, at the best place of a few cuts: each lane at cuts of its own, so that what is
//! found in it does not depend on its neighbours.
//!
//! Ends, with span = max - min: codes that span 7 or less do the same as twice of them with half the scale. From span / 15 up nothing
//! need be clipped, and moving v by 1 moves all codes, so that one unit of v tells everything. Below, what is clipped at a place is clipped
//! more at every smaller scale, until that alone is as much as the best error; v is 0 to 15, for it is the mean of the codes.

use super::groups::lanes;
use super::line::{EXTENDED, LIMITS, ROUNDING, chord};
use super::plane::{Best, Centred, Keep, look, nearest};
use crate::simd::{LANES, Simd};

/// Boxes across one unit of v.
const COLUMNS: usize = 4;
const WIDTH: f32 = 1.0 / COLUMNS as f32;

/// Span / scale of the rows where nothing need be clipped, and where something is.
const WHOLE: [f32; 9] = [7.0, 8.6, 10.2, 11.4, 12.4, 13.2, 13.9, 14.45, 15.0];
const CLIPPED: [f32; 5] = [15.6, 16.3, 17.2, 18.4, 20.0];

/// Cuts of sixteen groups at most, some twenty times what they take. Where weights are many orders of magnitude apart that can be too few,
/// and the best that was found is the answer.
const MOST_CUTS: usize = 2000;

/// Of so many cuts the best place has its codes fitted.
const FITTED: usize = 4;

/// Rounding errors of the error, as a part of sum w (x - mean)^2: squares of those of y, which is up to 16.
const FLOOR: f32 = 1e-12;

impl<S: Simd, K> Best<S, K> {
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
    fn bound(&self, simd: S, group: &Centred<'_, S>) -> S::F32 {
        let dv = simd.sub(self.v2, self.v1);
        let greater = Side::new(simd, group, self.s1, dv, [self.e11, self.e12]);
        let smaller = Side::new(simd, group, self.s2, dv, [self.e21, self.e22]);
        between(simd, greater, smaller, curvature(simd, group, self.s1, self.s2))
    }

    /// Where the lanes of a mask have these, and others elsewhere.
    #[inline(always)]
    fn or(&self, simd: S, mask: S::I32, other: &Self) -> Self {
        Boxes {
            s1: simd.select(mask, self.s1, other.s1),
            s2: simd.select(mask, self.s2, other.s2),
            v1: simd.select(mask, self.v1, other.v1),
            v2: simd.select(mask, self.v2, other.v2),
            e11: simd.select(mask, self.e11, other.e11),
            e12: simd.select(mask, self.e12, other.e12),
            e21: simd.select(mask, self.e21, other.e21),
            e22: simd.select(mask, self.e22, other.e22),
        }
    }

    /// Lane by lane, with their bounds.
    #[inline(always)]
    fn store(&self, simd: S, bound: S::F32, fields: &mut [[f32; LANES]; 9]) {
        let vectors = [self.s1, self.s2, self.v1, self.v2, self.e11, self.e12, self.e21, self.e22, bound];
        for (field, vector) in fields.iter_mut().zip(vectors) {
            simd.store(vector, field);
        }
    }

    #[inline(always)]
    fn load(simd: S, fields: &[[f32; LANES]; 9]) -> Self {
        Boxes {
            s1: simd.load(&fields[0]),
            s2: simd.load(&fields[1]),
            v1: simd.load(&fields[2]),
            v2: simd.load(&fields[3]),
            e11: simd.load(&fields[4]),
            e12: simd.load(&fields[5]),
            e21: simd.load(&fields[6]),
            e22: simd.load(&fields[7]),
        }
    }

    #[inline(always)]
    fn push(&self, simd: S, bound: S::F32, is_open: S::I32, stacks: &mut [Vec<Cut>; LANES]) {
        if !simd.any(is_open) {
            return;
        }
        let (mut fields, mut open) = ([[0.0; LANES]; 9], [0; LANES]);
        self.store(simd, bound, &mut fields);
        simd.store_i32(is_open, &mut open);
        for lane in (0..LANES).filter(|&lane| open[lane] != 0) {
            stacks[lane].push(std::array::from_fn(|field| fields[field][lane]));
        }
    }
}

/// One scale of a box, from one place to the other.
#[derive(Clone, Copy)]
struct Side<S: Simd> {
    /// What no error in between is smaller than.
    bound: S::F32,
    /// The sum of the errors at both ends.
    ends: S::F32,
}

impl<S: Simd> Side<S> {
    #[inline(always)]
    fn new(simd: S, group: &Centred<'_, S>, scale: S::F32, dv: S::F32, [first, second]: [S::F32; 2]) -> Self {
        let width = simd.mul(scale, dv);
        let bound = chord(simd, first, second, simd.mul(group.weight, simd.mul(width, width)));
        Side { bound, ends: simd.add(first, second) }
    }
}

/// Of the error along the scale, times the square of what two scales are apart.
#[inline(always)]
fn curvature<S: Simd>(simd: S, group: &Centred<'_, S>, s1: S::F32, s2: S::F32) -> S::F32 {
    let ratio = simd.div(simd.sub(s1, s2), s2);
    simd.mul(group.energy, simd.mul(ratio, ratio))
}

/// What no error between two sides of a box is smaller than.
#[inline(always)]
fn between<S: Simd>(simd: S, greater: Side<S>, smaller: Side<S>, curvature: S::F32) -> S::F32 {
    let bound = chord(simd, greater.bound, smaller.bound, curvature);
    let bound = simd.sub(bound, simd.mul(simd.add(greater.ends, smaller.ends), simd.splat(ROUNDING)));
    let zero = simd.splat(0.0);
    simd.select(simd.less(bound, zero), zero, bound)
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
    whole::<S, WEIGHTED>(simd, group, span, limit, &mut stacks);
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
    let mut current = [[1.0; LANES]; 9];
    let mut is_cut = [0; LANES];
    let (sides, weights) = (simd.sqrt(group.energy), simd.sqrt(group.weight));
    let (half, none) = (simd.splat(0.5), simd.splat_i32(-1));
    let mut next = Next::none(simd);
    for round in 1..=MOST_CUTS {
        let limits = lanes(simd, best.limit(simd, group, tolerance));
        for (lane, is_cut) in is_cut.iter_mut().enumerate().filter(|(_, is_cut)| **is_cut == 0) {
            while let Some(cut) = stacks[lane].pop() {
                if cut[8] < limits[lane] {
                    for (field, value) in current.iter_mut().zip(cut) {
                        field[lane] = value;
                    }
                    *is_cut = -1;
                    break;
                }
            }
        }
        if !is_cut.contains(&-1) {
            break;
        }
        let whole = Boxes::load(simd, &current);
        let Boxes { s1, s2, v1, v2, e12, e21, .. } = whole;
        let (ds, dv) = (simd.sub(s1, s2), simd.sub(v2, v1));
        let across = simd.less(simd.mul(simd.mul(dv, s1), weights), simd.mul(simd.div(ds, s2), sides));
        let (s, v) = (simd.mul(half, simd.add(s1, s2)), simd.mul(half, simd.add(v1, v2)));
        // Beyond what floats can tell apart there is nothing to be cut.
        let is_wide = simd.or(simd.less(simd.mul(s1, simd.splat(1e-6)), ds), simd.less(simd.splat(1e-5), dv));
        let scales = [simd.select(across, s, s1), simd.select(across, s, s2)];
        let places = [simd.select(across, v1, v), simd.select(across, v2, v)];
        let [first, second] = errors::<S, WEIGHTED>(simd, group, scales, places);
        let is_box = simd.load_i32(&is_cut);
        next.hold(simd, is_box, first, scales[0], places[0]);
        next.hold(simd, is_box, second, scales[1], places[1]);
        if round % FITTED == 0 {
            next.fit::<K, WEIGHTED>(simd, group, best);
        }
        // The halves of greater s, or of smaller v, and the others.
        let left = Boxes {
            s2: scales[1],
            v2: simd.select(across, v2, v),
            e12: simd.select(across, e12, first),
            e21: simd.select(across, first, e21),
            e22: second,
            ..whole
        };
        let right = Boxes {
            s1: scales[0],
            v1: simd.select(across, v1, v),
            e11: first,
            e12: simd.select(across, second, e12),
            e21: simd.select(across, e21, second),
            ..whole
        };
        let may_gain = simd.and(is_box, is_wide);
        let limit = best.limit(simd, group, tolerance);
        let bounds = [left.bound(simd, group), right.bound(simd, group)];
        let is_open = [simd.and(may_gain, simd.less(bounds[0], limit)), simd.and(may_gain, simd.less(bounds[1], limit))];
        // Go on with the half that promises more, and leave the other for later.
        let is_left = simd.and(is_open[0], simd.xor(simd.and(is_open[1], simd.less(bounds[1], bounds[0])), none));
        let later = simd.and(is_open[0], is_open[1]);
        right.or(simd, is_left, &left).push(simd, simd.select(is_left, bounds[1], bounds[0]), later, stacks);
        let is_either = simd.or(is_open[0], is_open[1]);
        left.or(simd, is_left, &right).or(simd, is_either, &whole).store(simd, limit, &mut current);
        simd.store_i32(is_either, &mut is_cut);
    }
    next.fit::<K, WEIGHTED>(simd, group, best);
    stacks.iter_mut().for_each(Vec::clear);
}

/// The best place of a few whose codes have not had their best scale and minimum yet.
struct Next<S: Simd> {
    error: S::F32,
    scale: S::F32,
    v: S::F32,
}

impl<S: Simd> Next<S> {
    /// Nothing is found at a scale that is no number.
    #[inline(always)]
    fn none(simd: S) -> Self {
        Next { error: simd.splat(f32::INFINITY), scale: simd.splat(f32::NAN), v: simd.splat(0.0) }
    }

    /// One more place, in the lanes of a mask.
    #[inline(always)]
    fn hold(&mut self, simd: S, mask: S::I32, error: S::F32, scale: S::F32, v: S::F32) {
        let is_better = simd.and(mask, simd.less(error, self.error));
        self.error = simd.select(is_better, error, self.error);
        self.scale = simd.select(is_better, scale, self.scale);
        self.v = simd.select(is_better, v, self.v);
    }

    #[inline(always)]
    fn fit<K: Keep<S>, const WEIGHTED: bool>(&mut self, simd: S, group: &Centred<'_, S>, best: &mut Best<S, K>) {
        look::<S, K, WEIGHTED>(simd, group, self.scale, self.v, best);
        *self = Next::none(simd);
    }
}

/// The errors at two scales and places, with the nearest codes.
#[inline(always)]
fn errors<S: Simd, const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, scales: [S::F32; 2], places: [S::F32; 2]) -> [S::F32; 2] {
    let one = simd.splat(1.0);
    let (t0, t1) = (simd.div(one, scales[0]), simd.div(one, scales[1]));
    let (mut first, mut second) = (simd.splat(0.0), simd.splat(0.0));
    let weights = if WEIGHTED { &group.tile.weights[..] } else { &group.x[..] };
    for (x, weight) in group.x.iter().zip(weights) {
        let y = simd.add(simd.mul(*x, t0), places[0]);
        let r = simd.sub(y, nearest(simd, y));
        first = simd.add(first, simd.mul(if WEIGHTED { simd.mul(*weight, r) } else { r }, r));
        let y = simd.add(simd.mul(*x, t1), places[1]);
        let r = simd.sub(y, nearest(simd, y));
        second = simd.add(second, simd.mul(if WEIGHTED { simd.mul(*weight, r) } else { r }, r));
    }
    [simd.mul(first, simd.mul(scales[0], scales[0])), simd.mul(second, simd.mul(scales[1], scales[1]))]
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
        self.number(simd, simd.splat(k as f32))
    }

    #[inline(always)]
    fn number(self, simd: S, k: S::F32) -> S::F32 {
        simd.add(self.0, simd.mul(k, simd.splat(WIDTH)))
    }
}

/// The boxes where nothing need be clipped.
#[inline(always)]
fn whole<S: Simd, const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, span: S::F32, limit: S::F32, stacks: &mut [Vec<Cut>; LANES]) {
    let columns = Columns::new(simd, group, span);
    let mut last = None::<(S::F32, [S::F32; COLUMNS], [Side<S>; COLUMNS])>;
    for multiple in WHOLE {
        let scale = simd.div(span, simd.splat(multiple));
        let errors = row::<S, WEIGHTED, false>(simd, group, scale, columns, 0);
        let mut sides = [Side { bound: errors[0], ends: errors[0] }; COLUMNS];
        for (k, side) in sides.iter_mut().enumerate() {
            // A unit further everything is the same.
            *side = Side::new(simd, group, scale, simd.splat(WIDTH), [errors[k], errors[(k + 1) % COLUMNS]]);
        }
        if let Some((s1, greater, of_greater)) = last {
            let curvature = curvature(simd, group, s1, scale);
            for k in 0..COLUMNS {
                let next = (k + 1) % COLUMNS;
                let (e11, e12, e21, e22) = (greater[k], greater[next], errors[k], errors[next]);
                let (v1, v2) = (columns.at(simd, k as i32), columns.at(simd, k as i32 + 1));
                let bound = between(simd, of_greater[k], sides[k], curvature);
                Boxes::<S> { s1, s2: scale, v1, v2, e11, e12, e21, e22 }.push(simd, bound, simd.less(bound, limit), stacks);
            }
        }
        last = Some((scale, errors, sides));
    }
}

/// Errors at one scale of the places across one unit, from one column on; only where something may be clipped are codes kept within
/// their range.
#[inline(always)]
fn row<S: Simd, const WEIGHTED: bool, const CLIPPED: bool>(
    simd: S,
    group: &Centred<'_, S>,
    scale: S::F32,
    columns: Columns<S>,
    first: i32,
) -> [S::F32; COLUMNS] {
    let t = simd.div(simd.splat(1.0), scale);
    let mut places = [simd.splat(0.0); COLUMNS];
    let mut sums = places;
    for (place, k) in places.iter_mut().zip(first..) {
        *place = columns.at(simd, k);
    }
    let weights = if WEIGHTED { &group.tile.weights[..] } else { &group.x[..] };
    for (x, weight) in group.x.iter().zip(weights) {
        let y = simd.mul(*x, t);
        for (sum, v) in sums.iter_mut().zip(places) {
            let y = simd.add(y, v);
            let q = if CLIPPED { nearest(simd, y) } else { simd.to_f32(simd.round(y)) };
            let r = simd.sub(y, q);
            let square = simd.mul(r, r);
            *sum = simd.add(*sum, if WEIGHTED { simd.mul(*weight, square) } else { square });
        }
    }
    for sum in &mut sums {
        *sum = simd.mul(*sum, simd.mul(scale, scale));
    }
    sums
}

/// The columns between which each lane may gain, numbers of them.
#[derive(Clone, Copy)]
struct Reach<S: Simd> {
    first: S::F32,
    last: S::F32,
}

impl<S: Simd> Reach<S> {
    /// Those between which nothing need be clipped, and on both sides more by whole units until nothing can gain.
    #[inline(always)]
    fn new<const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, columns: Columns<S>, scale: S::F32, most: S::F32) -> Self {
        let (zero, unit) = (simd.splat(0.0), simd.splat(COLUMNS as f32));
        let mut reach = Reach { first: zero, last: unit };
        let mut may_gain = [simd.splat_i32(-1); 2];
        while simd.any(simd.or(may_gain[0], may_gain[1])) {
            reach.first = simd.select(may_gain[0], simd.sub(reach.first, unit), reach.first);
            reach.last = simd.select(may_gain[1], simd.add(reach.last, unit), reach.last);
            let still = reach.may_gain::<WEIGHTED>(simd, group, columns, scale, most);
            may_gain = [simd.and(may_gain[0], still[0]), simd.and(may_gain[1], still[1])];
        }
        reach
    }

    /// Leave away what cannot gain at this scale or a smaller one.
    #[inline(always)]
    fn narrow<const WEIGHTED: bool>(&mut self, simd: S, group: &Centred<'_, S>, columns: Columns<S>, scale: S::F32, most: S::F32) {
        let (one, none) = (simd.splat(1.0), simd.splat_i32(-1));
        loop {
            let may_gain = self.may_gain::<WEIGHTED>(simd, group, columns, scale, most);
            let is_open = simd.less(self.first, self.last);
            let first = simd.and(is_open, simd.xor(may_gain[0], none));
            let last = simd.and(is_open, simd.xor(may_gain[1], none));
            if !simd.any(simd.or(first, last)) {
                return;
            }
            self.first = simd.select(first, simd.add(self.first, one), self.first);
            self.last = simd.select(last, simd.sub(self.last, one), self.last);
        }
    }

    /// Whether this scale or a smaller one may gain between the first column and the next, and between the last one and that before.
    #[inline(always)]
    fn may_gain<const WEIGHTED: bool>(
        &self,
        simd: S,
        group: &Centred<'_, S>,
        columns: Columns<S>,
        scale: S::F32,
        most: S::F32,
    ) -> [S::I32; 2] {
        let (zero, one, fifteen) = (simd.splat(0.0), simd.splat(1.0), simd.splat(15.0));
        let t = simd.div(one, scale);
        let starts = [columns.number(simd, self.first), columns.number(simd, simd.sub(self.last, one))];
        let ends = [columns.number(simd, simd.add(self.first, one)), columns.number(simd, self.last)];
        let highs = [simd.sub(starts[0], fifteen), simd.sub(starts[1], fifteen)];
        let lows = [simd.sub(zero, ends[0]), simd.sub(zero, ends[1])];
        let mut sums = [zero; 2];
        let weights = if WEIGHTED { &group.tile.weights[..] } else { &group.x[..] };
        for (x, weight) in group.x.iter().zip(weights) {
            let y = simd.mul(*x, t);
            for side in 0..2 {
                // By how much it is above the codes, or below them.
                let high = positive(simd, simd.add(y, highs[side]));
                let low = positive(simd, simd.sub(lows[side], y));
                let missed = simd.add(simd.mul(high, high), simd.mul(low, low));
                sums[side] = simd.add(sums[side], if WEIGHTED { simd.mul(*weight, missed) } else { missed });
            }
        }
        let square = simd.mul(scale, scale);
        let mut may_gain = [simd.splat_i32(0); 2];
        for side in 0..2 {
            let is_place = simd.and(simd.less(starts[side], fifteen), simd.less(zero, ends[side]));
            may_gain[side] = simd.and(is_place, simd.less(simd.mul(sums[side], square), most));
        }
        may_gain
    }
}

/// v where it is more than 0, else 0.
#[inline(always)]
fn positive<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    simd.as_f32(simd.max_i32(simd.bits(v), simd.splat_i32(0)))
}

/// Errors at one scale from one column on, and what is between them.
struct Row<S: Simd> {
    scale: S::F32,
    first: i32,
    errors: Vec<S::F32>,
    sides: Vec<Side<S>>,
}

impl<S: Simd> Row<S> {
    #[inline(always)]
    fn new<const WEIGHTED: bool>(simd: S, group: &Centred<'_, S>, columns: Columns<S>, scale: S::F32, first: i32, last: i32) -> Self {
        let mut errors = Vec::with_capacity(64);
        for k in (first..=last).step_by(COLUMNS) {
            errors.extend(row::<S, WEIGHTED, true>(simd, group, scale, columns, k));
        }
        let mut sides = Vec::with_capacity(64);
        for at in 1..=(last - first) as usize {
            sides.push(Side::new(simd, group, scale, simd.splat(WIDTH), [errors[at - 1], errors[at]]));
        }
        Row { scale, first, errors, sides }
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
    let full = simd.div(span, simd.splat(WHOLE[WHOLE.len() - 1]));
    let mut reach = Reach::new::<WEIGHTED>(simd, group, columns, full, best.error);
    let mut grid = CLIPPED.iter();
    let (mut scale, mut multiple, mut row) = (full, 0.0, None::<Row<S>>);
    loop {
        reach.narrow::<WEIGHTED>(simd, group, columns, scale, best.error);
        let (mut first, mut last) = (i32::MAX, i32::MIN);
        for (from, to) in lanes(simd, reach.first).into_iter().zip(lanes(simd, reach.last)).filter(|(from, to)| from < to) {
            (first, last) = (first.min(from as i32), last.max(to as i32));
        }
        if first > last || multiple > LIMITS.1 {
            return;
        }
        let greater = match row {
            Some(row) => row,
            None => Row::new::<WEIGHTED>(simd, group, columns, scale, first, last),
        };
        multiple = grid.next().copied().unwrap_or(multiple * EXTENDED.0);
        scale = simd.div(span, simd.splat(multiple));
        let smaller = Row::new::<WEIGHTED>(simd, group, columns, scale, first, last);
        let curvature = curvature(simd, group, greater.scale, scale);
        for k in first..last {
            let (above, below) = ((k - greater.first) as usize, (k - first) as usize);
            let bound = between(simd, greater.sides[above], smaller.sides[below], curvature);
            let column = simd.splat(k as f32 + 0.5);
            let may_gain = simd.and(simd.less(reach.first, column), simd.less(column, reach.last));
            let part = Boxes::<S> {
                s1: greater.scale,
                s2: scale,
                v1: columns.at(simd, k),
                v2: columns.at(simd, k + 1),
                e11: greater.errors[above],
                e12: greater.errors[above + 1],
                e21: smaller.errors[below],
                e22: smaller.errors[below + 1],
            };
            part.push(simd, bound, simd.and(may_gain, simd.less(bound, limit)), stacks);
        }
        row = Some(smaller);
    }
}
