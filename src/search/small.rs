//! E2M1 codes under scales of eight bits: few enough to look at each that can be the best.
//!
//! The numbers up to 3 are half of others, so that with half the scale some optimum has one of 4 or more: scales are not greater than
//! largest / 3.5, the least ones apart, whose halves cannot be stored. From there on they are looked at one after the other, until
//! what the elements beyond 6 miss is as much as the best error.

use super::codebook::Codebook;
use super::groups::{Found, Solver};
use super::line::Open;
use super::tile::Tile;
use crate::kernels::lanes::magnitude;
use crate::kernels::scales::{e4m3_magnitudes, floor_to_e4m3};
use crate::simd::Simd;
use crate::spec::Global;

/// The numbers of E2M1 by their codes; what rounds to zero has code 0.
static BY_CODE: Codebook = Codebook::new(
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0],
    [15, 14, 13, 12, 11, 10, 9, 0, 0, 1, 2, 3, 4, 5, 6, 7],
    7,
    true,
);

/// The greatest of them.
const GREATEST: f32 = 6.0;

/// The number nearest to a magnitude.
///
/// Numbers are 2^(e - 1) apart from 2^e on, and below 1 as from there on (e = 0): added to 2^(22 + e), whose neighbours are as far apart,
/// it is rounded to one of them.
#[inline(always)]
fn nearest<S: Simd>(simd: S, size: S::F32) -> S::F32 {
    let size = simd.min_i32(simd.bits(size), simd.splat_i32(GREATEST.to_bits().cast_signed()));
    let power = simd.and(simd.max_i32(size, simd.splat_i32(1.0f32.to_bits().cast_signed())), simd.splat_i32(0xff << 23));
    let apart = simd.as_f32(simd.add_i32(power, simd.splat_i32(22 << 23)));
    simd.sub(simd.add(simd.as_f32(size), apart), apart)
}

/// sum w r^2 over all elements at the reciprocal scales `t`, and over those beyond the numbers.
#[inline(always)]
fn sums<S: Simd, const WEIGHTED: bool>(simd: S, tile: &Tile<S>, t: S::F32) -> (S::F32, S::F32) {
    let (zero, greatest) = (simd.splat(0.0), simd.splat(GREATEST));
    let (mut all, mut beyond) = (zero, zero);
    let weights = if WEIGHTED { &tile.weights[..] } else { &tile.x[..] };
    for (x, weight) in tile.x.iter().zip(weights) {
        // Every number has its negative.
        let size = magnitude(simd, simd.mul(*x, t));
        let r = simd.sub(size, nearest(simd, size));
        let square = simd.mul(if WEIGHTED { simd.mul(*weight, r) } else { r }, r);
        all = simd.add(all, square);
        beyond = simd.add(beyond, simd.as_f32(simd.and(simd.less(greatest, size), simd.bits(square))));
    }
    (all, beyond)
}

/// The scales of eight bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Set {
    /// 2^(byte - 127).
    E8m0,
    /// 8-bit floats, 0 to 448.
    E4m3,
}

/// E2M1 under such a scale, and the second level of the tensor if there is one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Small {
    pub(super) set: Set,
    pub(super) global: Option<(Global, f32)>,
}

impl Small {
    /// The scale of a byte, as it is stored and as elements are multiples of it.
    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, byte: S::I32) -> (S::F32, S::F32) {
        let stored = match self.set {
            Set::E8m0 => {
                // 2^-127 has no exponent field of its own.
                let least = simd.and(simd.equal(simd.as_f32(byte), simd.splat(0.0)), simd.splat_i32(0x0040_0000));
                simd.as_f32(simd.or(simd.shift_left(byte, 23), least))
            }
            Set::E4m3 => e4m3_magnitudes(simd, byte),
        };
        let effective = match self.global {
            None => stored,
            Some((Global::Multiplies, global)) => simd.mul(stored, simd.splat(global)),
            Some((Global::Divides, global)) => simd.div(stored, simd.splat(global)),
            Some((Global::Largest, global)) => simd.mul(stored, simd.splat(global / Global::LARGEST)),
        };
        (stored, effective)
    }

    /// The byte of the first scale to look at, for a scale above which there is none to look at unless it is among the least.
    #[inline(always)]
    fn first<S: Simd>(self, simd: S, scale: S::F32) -> S::I32 {
        match self.set {
            Set::E8m0 => simd.shift_right(simd.bits(scale), 23),
            Set::E4m3 => {
                let ratio = simd.div(scale, simd.splat(self.effective(1.0)));
                // Below 2^-5 not every half can be stored; beyond four times the largest magnitude everything is 0.
                let least = simd.splat(1.0 / 32.0);
                let most = simd.mul(ratio, simd.splat(14.0));
                let most = simd.select(simd.less(most, least), most, least);
                floor_to_e4m3(simd, simd.select(simd.less(ratio, least), most, ratio))
            }
        }
    }
}

impl Solver for Small {
    fn greatest(self) -> f32 {
        GREATEST
    }

    #[inline(always)]
    fn solve<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, _: &mut Open) -> Found<S> {
        let zero = simd.splat(0.0);
        let (mut best_error, mut best) = (tile.energy, zero);
        let limit = simd.div(tile.of_array(simd, tile.largest(simd)), simd.splat(3.5));
        let mut byte = self.first(simd, limit);
        loop {
            let (stored, effective) = self.scales(simd, byte);
            let is_scale = simd.and(simd.less(zero, effective), simd.less(effective, simd.splat(f32::MAX / GREATEST)));
            let scale = simd.select(is_scale, tile.of_lane(simd, effective), simd.splat(1.0));
            let (rr, beyond) = sums::<S, WEIGHTED>(simd, tile, simd.div(simd.splat(1.0), scale));
            let square = simd.mul(scale, scale);
            let error = simd.mul(square, rr);
            let is_better = simd.and(is_scale, simd.less(error, best_error));
            best_error = simd.select(is_better, error, best_error);
            best = simd.select(is_better, stored, best);
            let may_gain = simd.less(simd.mul(square, beyond), best_error);
            let is_last = simd.equal(simd.to_f32(byte), zero);
            // All ones where it is the last one.
            let is_open = simd.and(may_gain, simd.xor(is_last, simd.splat_i32(-1)));
            if !simd.any(is_open) {
                return Found::alone(simd, best, zero);
            }
            byte = simd.max_i32(simd.add_i32(byte, simd.splat_i32(-1)), simd.splat_i32(0));
        }
    }

    fn effective(self, scale: f32) -> f32 {
        self.global.map_or(scale, |(global, value)| global.effective(scale, value))
    }

    #[inline(always)]
    fn code<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, _: S::F32) -> S::I32 {
        BY_CODE.code(simd, simd.div(x, scale))
    }
}
