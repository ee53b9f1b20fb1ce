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
    /// sum w r^2 over the elements beyond the numbers, where that is asked for: as the scale shrinks they stay there, and what they
    /// miss grows.
    pub(super) beyond: S::F32,
}

/// Sums over the elements of the number of smallest magnitude: as the scale grows they stay there.
#[derive(Clone, Copy)]
pub(super) struct Least<S: Simd> {
    /// sum w r^2
    pub(super) squares: S::F32,
    /// sum w r: unless it is positive, what they miss grows.
    pub(super) residuals: S::F32,
}

/// The sums at the reciprocal scales `t`.
#[inline(always)]
pub(super) fn sums<S: Simd, L: Levels<S>, const WEIGHTED: bool, const BEYOND: bool>(
    simd: S,
    levels: L,
    tile: &Tile<S>,
    t: S::F32,
) -> Sums<S> {
    let zero = simd.splat(0.0);
    let (lowest, highest) = (levels.lowest(simd), levels.highest(simd));
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
            let is_beyond = simd.or(simd.less(y, lowest), simd.less(highest, y));
            sums.beyond = simd.add(sums.beyond, simd.as_f32(simd.and(is_beyond, simd.bits(square))));
        }
        sums.rq = simd.add(sums.rq, simd.mul(wr, q));
        sums.qq = simd.add(sums.qq, simd.mul(wq, q));
        sums.steps = simd.add(sums.steps, steps);
    }
    sums
}

/// The sums over the elements of the number of smallest magnitude at the reciprocal scales `t`.
#[inline(always)]
pub(super) fn least<S: Simd, L: Levels<S>, const WEIGHTED: bool>(simd: S, levels: L, tile: &Tile<S>, t: S::F32) -> Least<S> {
    let zero = simd.splat(0.0);
    let mut least = Least::<S> { squares: zero, residuals: zero };
    let weights = if WEIGHTED { &tile.weights[..] } else { &tile.x[..] };
    for (x, weight) in tile.x.iter().zip(weights) {
        let y = simd.mul(*x, t);
        let (q, _) = levels.nearest(simd, y);
        let r = simd.sub(y, q);
        let wr = if WEIGHTED { simd.mul(*weight, r) } else { r };
        let is_least = simd.equal(magnitude(simd, q), simd.splat(levels.least()));
        least.squares = simd.add(least.squares, simd.select(is_least, simd.mul(wr, r), zero));
        least.residuals = simd.add(least.residuals, simd.select(is_least, wr, zero));
    }
    least
}
