//! What one scale does to sixteen groups.
//!
//! ```text
//! y = x / s, q the number nearest to y, r = y - q
//! E(s)       = s^2 sum w r^2
//! best of q  = s + s sum w r q / sum w q^2;   with s + d:   E = s^2 sum w r^2 - 2 s d sum w r q + d^2 sum w q^2
//! ```
//!
//! Sums of residuals do not cancel, as those of x^2, x q and q^2 would.

use super::tile::Tile;
use crate::kernels::lanes::magnitude;
use crate::simd::Simd;

/// The numbers that codes stand for.
pub(super) trait Levels<S: Simd>: Copy {
    /// The least number.
    fn lowest(self, simd: S) -> S::F32;
    /// The greatest number.
    fn highest(self, simd: S) -> S::F32;
    /// The number of smallest magnitude, 0 or more.
    fn least(self) -> f32;

    /// The number nearest to `y`, and how many numbers lie between it and the one of smallest magnitude.
    fn nearest(self, simd: S, y: S::F32) -> (S::F32, S::F32);
}

/// The sums of sixteen groups at one scale each.
#[derive(Clone, Copy)]
pub(super) struct Sums<S: Simd> {
    /// sum w r^2
    pub(super) rr: S::F32,
    /// sum w r q
    pub(super) rq: S::F32,
    /// sum w q^2
    pub(super) qq: S::F32,
    /// Steps from the number of smallest magnitude, of all elements: 1 more for every code that changes as the scale shrinks.
    pub(super) steps: S::F32,
    /// sum w r^2 over elements more than half a step beyond the numbers, where that is asked for: as the scale shrinks they stay
    /// there, and what they miss grows.
    pub(super) beyond: S::F32,
}

/// Sums over a part of the elements, which bound the error of all scales on one side.
#[derive(Clone, Copy)]
pub(super) struct Ends<S: Simd> {
    /// sum w r^2 over the elements beyond the numbers: as the scale shrinks they stay there, and what they miss grows.
    pub(super) beyond: S::F32,
    /// sum w r^2 over the elements of the number of smallest magnitude: as the scale grows they stay there.
    pub(super) least: S::F32,
    /// sum w r over the same: unless it is positive, what they miss grows too.
    pub(super) least_sum: S::F32,
}

/// The sums at the reciprocal scales `t`.
#[inline(always)]
pub(super) fn sums<S: Simd, L: Levels<S>, const WEIGHTED: bool, const BEYOND: bool>(
    simd: S,
    levels: L,
    tile: &Tile<S>,
    t: S::F32,
) -> Sums<S> {
    let (zero, half) = (simd.splat(0.0), simd.splat(0.5));
    let mut sums = Sums::<S> { rr: zero, rq: zero, qq: zero, steps: zero, beyond: zero };
    let weights = if WEIGHTED { &tile.weights[..] } else { &tile.x[..] };
    for (x, weight) in tile.x.iter().zip(weights) {
        let y = simd.mul(*x, t);
        let (q, steps) = levels.nearest(simd, y);
        let r = simd.sub(y, q);
        let (wr, wq) = if WEIGHTED { (simd.mul(*weight, r), simd.mul(*weight, q)) } else { (r, q) };
        let square = simd.mul(wr, r);
        sums.rr = simd.add(sums.rr, square);
        if BEYOND {
            let is_beyond = simd.less(half, magnitude(simd, r));
            sums.beyond = simd.add(sums.beyond, simd.as_f32(simd.and(is_beyond, simd.bits(square))));
        }
        sums.rq = simd.add(sums.rq, simd.mul(wr, q));
        sums.qq = simd.add(sums.qq, simd.mul(wq, q));
        sums.steps = simd.add(sums.steps, steps);
    }
    sums
}

/// The sums over the ends at the reciprocal scales `t`.
#[inline(always)]
pub(super) fn ends<S: Simd, L: Levels<S>, const WEIGHTED: bool>(simd: S, levels: L, tile: &Tile<S>, t: S::F32) -> Ends<S> {
    let zero = simd.splat(0.0);
    let mut ends = Ends::<S> { beyond: zero, least: zero, least_sum: zero };
    let weights = if WEIGHTED { &tile.weights[..] } else { &tile.x[..] };
    for (x, weight) in tile.x.iter().zip(weights) {
        let y = simd.mul(*x, t);
        let (q, _) = levels.nearest(simd, y);
        let r = simd.sub(y, q);
        let wr = if WEIGHTED { simd.mul(*weight, r) } else { r };
        let square = simd.mul(wr, r);
        let is_beyond = simd.or(simd.less(y, levels.lowest(simd)), simd.less(levels.highest(simd), y));
        let is_least = simd.equal(magnitude(simd, q), simd.splat(levels.least()));
        ends.beyond = simd.add(ends.beyond, simd.select(is_beyond, square, zero));
        ends.least = simd.add(ends.least, simd.select(is_least, square, zero));
        ends.least_sum = simd.add(ends.least_sum, simd.select(is_least, wr, zero));
    }
    ends
}

/// sum w r^2 over all elements, and over those beyond the numbers.
#[inline(always)]
pub(super) fn sums_beyond<S: Simd, L: Levels<S>, const WEIGHTED: bool>(simd: S, levels: L, tile: &Tile<S>, t: S::F32) -> (S::F32, S::F32) {
    let zero = simd.splat(0.0);
    let (mut all, mut beyond) = (zero, zero);
    let weights = if WEIGHTED { &tile.weights[..] } else { &tile.x[..] };
    for (x, weight) in tile.x.iter().zip(weights) {
        let y = simd.mul(*x, t);
        let (q, _) = levels.nearest(simd, y);
        let r = simd.sub(y, q);
        let square = simd.mul(if WEIGHTED { simd.mul(*weight, r) } else { r }, r);
        let is_beyond = simd.or(simd.less(y, levels.lowest(simd)), simd.less(levels.highest(simd), y));
        all = simd.add(all, square);
        beyond = simd.add(beyond, simd.select(is_beyond, square, zero));
    }
    (all, beyond)
}
