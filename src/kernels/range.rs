//! The range of a group: its largest and smallest element, and which of two equals came first.
//!
//! Floats are compared as integers: `key(x) = bits ^ ((bits >> 31) & 0x7fff_ffff)` orders them, with NaN beyond the infinities
//! of its sign, so that NaN is carried to the end and one test a group finds it (`f32::max` would drop it).
//! The smallest key is reduced as the largest of `!key(x)`, so that one reduction serves both.
//!
//! Where zero belongs to the range two instructions a vector suffice: of floats as signed integers the largest is the largest
//! element, of floats as unsigned integers it is the smallest, unless none is negative.

use crate::simd::Simd;

/// Bits of infinity: a key from here on is not a finite number.
pub const INFINITE: i32 = 0x7f80_0000;

/// The least magnitude that becomes infinite as binary16: halfway between its largest number and what would be the next.
pub const BEYOND_HALF: f32 = 65520.0;

/// The largest and the smallest element of each of 16 groups.
#[derive(Clone, Copy)]
pub struct Ranges<S: Simd> {
    /// The largest element.
    pub high: S::F32,
    /// The smallest element.
    pub low: S::F32,
}

/// The largest and the smallest element of one group, or of a piece of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Range {
    /// The largest element.
    pub high: f32,
    /// The smallest element.
    pub low: f32,
}

/// What a scheme needs to know of a group beyond its largest and smallest element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The range together with zero, and of its two ends only the one of larger magnitude, the first one where both have it;
    /// the other end may be 0.
    Extreme,
    /// The range together with zero. The sign of a zero does not matter.
    WithZero,
    /// The largest magnitude alone: `high`; `low` is 0.
    Magnitude,
    /// The range itself. A smallest element of 0 has the sign of the first zero.
    Itself,
}

/// The largest and the smallest `key(x)` so far, or running maxima: of the bits as signed and as unsigned integers where zero belongs to the range, or of the bits
/// without their sign.
#[derive(Clone, Copy)]
pub(crate) struct Running<S: Simd> {
    high: S::I32,
    low: S::I32,
}

impl<S: Simd> Running<S> {
    /// Those of one vector.
    #[inline(always)]
    pub(crate) fn of(simd: S, need: Need, x: S::F32) -> Self {
        let bits = simd.bits(x);
        match need {
            Need::Itself => {
                let key = order(simd, bits);
                Running { high: key, low: key }
            }
            Need::Magnitude => Running { high: simd.and(bits, simd.splat_i32(i32::MAX)), low: simd.splat_i32(0) },
            Need::Extreme | Need::WithZero => Running { high: bits, low: bits },
        }
    }

    #[inline(always)]
    pub(crate) fn take(&mut self, simd: S, need: Need, x: S::F32) {
        self.join(simd, need, Running::of(simd, need, x));
    }

    #[inline(always)]
    pub(crate) fn join(&mut self, simd: S, need: Need, Running { high, low }: Self) {
        self.high = simd.max_i32(self.high, high);
        self.low = match need {
            Need::Itself => simd.min_i32(self.low, low),
            Need::Magnitude => low,
            Need::Extreme | Need::WithZero => simd.max_u32(self.low, low),
        };
    }

    #[inline(always)]
    pub(crate) fn keys(self, simd: S, need: Need) -> Keys<S> {
        let low = match need {
            Need::Itself => simd.xor(self.low, simd.splat_i32(-1)),
            Need::Magnitude => self.low,
            Need::Extreme | Need::WithZero => simd.xor(self.low, simd.splat_i32(i32::MIN)),
        };
        Keys { high: self.high, low }
    }
}

/// Maxima of `key(x)` and `!key(x)`; with zero in the range a negative one stands for 0.
#[derive(Clone, Copy)]
pub(crate) struct Keys<S: Simd> {
    high: S::I32,
    low: S::I32,
}

impl<S: Simd> Keys<S> {
    /// Lane i is the range of the i-th of 16 folded keys.
    #[inline(always)]
    pub(crate) fn transpose(simd: S, need: Need, high: &[S::Folded; 16], low: &[S::Folded; 16]) -> Self {
        let low = if need == Need::Magnitude { simd.splat_i32(0) } else { simd.max_of_each(low) };
        Keys { high: simd.max_of_each(high), low }
    }

    /// Every run of lanes gets the range of the run.
    #[inline(always)]
    pub(crate) fn fold(self, simd: S, run: usize) -> Self {
        Keys { high: simd.max_of_runs(self.high, run), low: simd.max_of_runs(self.low, run) }
    }

    /// Both ends folded.
    #[inline(always)]
    pub(crate) fn folded(self, simd: S) -> (S::Folded, S::Folded) {
        (simd.fold_max(self.high), simd.fold_max(self.low))
    }

    /// The larger key of both ends: at least [`INFINITE`] where the group holds something that is not finite.
    #[inline(always)]
    pub(crate) fn worst(self, simd: S) -> S::I32 {
        simd.max_i32(self.high, self.low)
    }

    /// The ends as floats.
    #[inline(always)]
    pub(crate) fn ranges(self, simd: S, need: Need) -> Ranges<S> {
        if need == Need::Itself {
            let low = simd.xor(self.low, simd.splat_i32(-1));
            Ranges { high: simd.as_f32(order(simd, self.high)), low: simd.as_f32(order(simd, low)) }
        } else {
            let zero = simd.splat_i32(0);
            let low = simd.xor(simd.max_i32(self.low, zero), simd.splat_i32(i32::MIN));
            Ranges { high: simd.as_f32(simd.max_i32(self.high, zero)), low: simd.as_f32(low) }
        }
    }
}

/// key(x); the same step leads back.
#[inline(always)]
fn order<S: Simd>(simd: S, bits: S::I32) -> S::I32 {
    simd.xor(bits, simd.and(simd.shift_right(bits, 31), simd.splat_i32(i32::MAX)))
}

impl<S: Simd> Ranges<S> {
    /// The same range in all lanes.
    #[inline(always)]
    pub(crate) fn splat(simd: S, range: Range) -> Self {
        Ranges { high: simd.splat(range.high), low: simd.splat(range.low) }
    }

    /// Settle what the order of the elements decides; `run` lanes are one group of `tile`. Rare, so it looks at the elements again.
    #[inline(always)]
    pub(crate) fn settle(self, simd: S, need: Need, tile: &[f32], run: usize) -> Self {
        if !self.unsettled(simd, need) {
            return self;
        }
        let (mut high, mut low) = ([0.0; 16], [0.0; 16]);
        simd.store(self.high, &mut high);
        simd.store(self.low, &mut low);
        settle_lanes(&mut high, &mut low, need, tile, run);
        Ranges { high: simd.load(&high), low: simd.load(&low) }
    }

    #[inline(always)]
    fn unsettled(self, simd: S, need: Need) -> bool {
        let zero = simd.splat(0.0);
        match need {
            Need::WithZero | Need::Magnitude => false,
            Need::Itself => simd.any(simd.equal(self.low, zero)),
            Need::Extreme => {
                let tie = simd.equal(self.high, simd.sub(zero, self.low));
                simd.any(simd.and(tie, simd.less(zero, self.high)))
            }
        }
    }
}

/// Out of the way of the loop that calls it.
#[cold]
#[inline(never)]
fn settle_lanes(high: &mut [f32; 16], low: &mut [f32; 16], need: Need, tile: &[f32], run: usize) {
    let groups = tile.chunks_exact(tile.len() / 16 * run);
    for ((high, low), group) in high.chunks_exact_mut(run).zip(low.chunks_exact_mut(run)).zip(groups) {
        let settled = Range { high: high[0], low: low[0] }.settle(need, group);
        high.fill(settled.high);
        low.fill(settled.low);
    }
}

impl Range {
    /// Settle what the order of `group`'s elements decides.
    pub(crate) fn settle(self, need: Need, group: &[f32]) -> Self {
        match need {
            Need::Extreme if self.high == -self.low && self.high > 0.0 => {
                let first = group.iter().find(|x| x.abs() == self.high).copied().unwrap_or(self.high);
                Range { high: first.max(0.0), low: first.min(0.0) }
            }
            Need::Itself if self.low == 0.0 => {
                let first = group.iter().find(|&&x| x == 0.0).copied().unwrap_or(self.low);
                Range { low: first, ..self }
            }
            _ => self,
        }
    }

    /// The range of a piece followed by the next piece.
    pub fn then(self, next: Range, need: Need) -> Range {
        match need {
            Need::Extreme if next.magnitude() > self.magnitude() => next,
            Need::Extreme => self,
            Need::WithZero | Need::Magnitude | Need::Itself => Range {
                high: if next.high > self.high { next.high } else { self.high },
                low: if next.low < self.low { next.low } else { self.low },
            },
        }
    }

    fn magnitude(self) -> f32 {
        self.high.max(-self.low)
    }
}
