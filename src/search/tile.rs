//! Sixteen groups side by side: vector i holds element i of each, a lane a group.
//!
//! ```text
//! x' = x 2^-k      the largest magnitude of the lane in 1..2, so that squares neither overflow nor vanish
//! w' = w 2^-j      likewise
//! ```
//!
//! An element of weight 0 is 0 here: it has no part in the search.

use super::Nested;
use crate::kernels::lanes::{larger, magnitude};
use crate::kernels::scales::round_to;
use crate::simd::{LANES, Simd};
use crate::spec::ScaleDtype;
use half::f16;
use std::sync::Arc;

/// Sixteen groups.
pub(super) struct Tile<S: Simd> {
    /// The elements; zeros after the end of a shorter group, and in lanes that have none.
    pub(super) x: Vec<S::F32>,
    /// Their weights; empty where they are equal.
    pub(super) weights: Vec<S::F32>,
    /// The largest and the smallest element together with 0, the latter negated.
    pub(super) highest: S::F32,
    /// See `highest`.
    pub(super) lowest: S::F32,
    /// sum w x^2: the error where everything is 0.
    pub(super) energy: S::F32,
    /// 2^k: what a scale of the lane is multiplied by.
    up: S::F32,
    /// 2^-k.
    down: S::F32,
    /// The dtype of the scales.
    dtype: ScaleDtype,
    /// The greatest scale that can be stored and whose products with the numbers are finite.
    most: f32,
    /// The scales that there are, where they are quantized in turn, and the number of the group of the first lane.
    nested: Option<(Arc<Nested>, usize)>,
}

impl<S: Simd> Tile<S> {
    #[inline(always)]
    pub(super) fn new(simd: S, dtype: ScaleDtype, greatest_number: f32, nested: Option<(Arc<Nested>, usize)>) -> Self {
        let (zero, one) = (simd.splat(0.0), simd.splat(1.0));
        let most = f32::MAX / greatest_number;
        let most = match dtype {
            ScaleDtype::F16 => most.min(f16::MAX.to_f32()),
            ScaleDtype::Bf16 => f32::from_bits(most.to_bits() & 0xffff_0000),
            _ => most,
        };
        Tile { x: Vec::new(), weights: Vec::new(), highest: zero, lowest: zero, energy: zero, up: one, down: one, dtype, most, nested }
    }

    /// Go on with the next sixteen groups.
    pub(super) fn advance(&mut self) {
        if let Some((_, first)) = &mut self.nested {
            *first += LANES;
        }
    }

    /// Fill it with groups of `group` elements, 16 of them or fewer; `block` of them are brought to one size. The answer is the largest
    /// magnitude of each lane, as bits.
    #[inline(always)]
    pub(super) fn load(&mut self, simd: S, x: &[f32], weights: Option<&[f32]>, group: usize, block: usize) -> S::I32 {
        transpose(simd, x, group, &mut self.x);
        self.weights.clear();
        if let Some(weights) = weights {
            transpose(simd, weights, group, &mut self.weights);
        }
        self.settle(simd, block)
    }

    /// Fill it with sixteen groups, column by column, each with one weight. The answer is that of [`Tile::load`].
    #[inline(always)]
    pub(super) fn fill(&mut self, simd: S, columns: &[[f32; LANES]], weights: Option<&[f32]>) -> S::I32 {
        let zero = simd.splat(0.0);
        self.x.clear();
        self.x.resize(columns.len(), zero);
        for (x, column) in self.x.iter_mut().zip(columns) {
            *x = simd.load(column);
        }
        let weights = weights.unwrap_or_default();
        self.weights.clear();
        self.weights.resize(weights.len(), zero);
        for (to, &weight) in self.weights.iter_mut().zip(weights) {
            *to = simd.splat(weight);
        }
        self.settle(simd, 1)
    }

    /// Bring what it was filled with to one size.
    #[inline(always)]
    fn settle(&mut self, simd: S, block: usize) -> S::I32 {
        let zero = simd.splat(0.0);
        if !self.weights.is_empty() {
            self.settle_weights(simd, block);
        }
        let mut worst = simd.splat_i32(0);
        for x in &self.x {
            worst = simd.max_i32(worst, simd.bits(magnitude(simd, *x)));
        }
        let mut largest = worst;
        if !self.weights.is_empty() {
            largest = simd.splat_i32(0);
            for (x, weight) in self.x.iter().zip(&self.weights) {
                largest = simd.max_i32(largest, simd.bits(magnitude(simd, counted(simd, *x, *weight))));
            }
        }
        (self.up, self.down) = powers(simd, simd.max_of_runs(largest, block));
        let (down, mut highest, mut lowest, mut energy) = (self.down, simd.splat_i32(0), simd.splat_i32(0), zero);
        if self.weights.is_empty() {
            for x in &mut self.x {
                *x = simd.mul(*x, down);
                energy = simd.add(energy, simd.mul(*x, *x));
            }
        }
        for (x, weight) in self.x.iter_mut().zip(&self.weights) {
            *x = simd.mul(counted(simd, *x, *weight), down);
            energy = simd.add(energy, simd.mul(simd.mul(*weight, *x), *x));
        }
        for x in &self.x {
            // As integers negative floats are less than 0.
            highest = simd.max_i32(highest, simd.bits(*x));
            lowest = simd.max_i32(lowest, simd.bits(simd.sub(zero, *x)));
        }
        (self.highest, self.lowest, self.energy) = (simd.as_f32(highest), simd.as_f32(lowest), energy);
        worst
    }

    /// Weights of one size; equal ones in lanes where all are 0, which count for nothing beside others of a block.
    #[inline(always)]
    fn settle_weights(&mut self, simd: S, block: usize) {
        let zero = simd.splat(0.0);
        let mut largest = simd.splat_i32(0);
        for weight in &self.weights {
            largest = simd.max_i32(largest, simd.bits(*weight));
        }
        let (_, down) = powers(simd, simd.max_of_runs(largest, block));
        let all_zero = simd.equal(simd.mul(simd.as_f32(largest), down), zero);
        let equal = simd.splat(if block > 1 { 1.0 / (1 << 30) as f32 } else { 1.0 });
        for weight in &mut self.weights {
            *weight = simd.select(all_zero, equal, simd.mul(*weight, down));
        }
    }

    /// The larger of the two ends of the range.
    #[inline(always)]
    pub(super) fn largest(&self, simd: S) -> S::F32 {
        simd.select(simd.less(self.highest, self.lowest), self.lowest, self.highest)
    }

    /// The scale nearest to a scale of the lane that can be stored, and whose products with the numbers are finite. Below the normal
    /// numbers of f32 there is only 0.
    #[inline(always)]
    pub(super) fn stored(&self, simd: S, scale: S::F32) -> S::F32 {
        if let Some((nested, first)) = &self.nested {
            let mut lanes = [0.0; LANES];
            simd.store(simd.mul(scale, self.up), &mut lanes);
            nested.round(&mut lanes, *first);
            return simd.load(&lanes);
        }
        let (zero, least, most) = (simd.splat(0.0), simd.splat(f32::MIN_POSITIVE), simd.splat(self.most));
        let stored = round_to(simd, simd.mul(scale, self.up), self.dtype);
        let size = magnitude(simd, stored);
        let nearest = simd.select(simd.less(size, simd.splat(0.5 * f32::MIN_POSITIVE)), zero, least);
        let stored = simd.select(simd.less(size, least), nearest, stored);
        simd.select(simd.less(most, size), most, stored)
    }

    /// The scale so many steps from one that is stored; none where scales are float32, whose steps are no larger than rounding errors.
    #[inline(always)]
    pub(super) fn neighbour(&self, simd: S, stored: S::F32, steps: i32) -> Option<S::F32> {
        let step = match self.dtype {
            ScaleDtype::F16 => 1 << 13,
            ScaleDtype::Bf16 => 1 << 16,
            _ => return None,
        };
        let next = simd.as_f32(simd.add_i32(simd.bits(stored), simd.splat_i32(steps * step)));
        Some(self.stored(simd, self.of_lane(simd, next)))
    }

    /// The least scale that can be stored and is no smaller than a scale of the lane, 0 or more, in the lane's size; infinite where there
    /// is none.
    #[inline(always)]
    pub(super) fn no_smaller(&self, simd: S, scale: S::F32) -> S::F32 {
        let stored = self.stored(simd, scale);
        let after = |bits: i32| simd.as_f32(simd.add_i32(simd.bits(stored), simd.splat_i32(bits)));
        let next = match self.dtype {
            // Subnormal halves are 2^-24 apart, and all others no less.
            ScaleDtype::F16 => larger(simd, after(1 << 13), simd.add(stored, simd.splat(1.0 / (1 << 24) as f32))),
            ScaleDtype::Bf16 => after(1 << 16),
            _ => after(1),
        };
        let next = larger(simd, next, simd.splat(f32::MIN_POSITIVE));
        let next = simd.select(simd.less(simd.splat(self.most), next), simd.splat(f32::INFINITY), next);
        let is_smaller = simd.less(self.of_lane(simd, stored), scale);
        self.of_lane(simd, simd.select(is_smaller, next, stored))
    }

    /// A minimum of the lane in the array's own size, rounded as it is stored.
    #[inline(always)]
    pub(super) fn rounded(&self, simd: S, minimum: S::F32) -> S::F32 {
        self.plain(simd, simd.mul(minimum, self.up))
    }

    /// A number that is no multiple of elements, rounded as it is stored.
    #[inline(always)]
    pub(super) fn plain(&self, simd: S, v: S::F32) -> S::F32 {
        round_to(simd, v, self.dtype)
    }

    /// Where a scale of the lane is beyond the dtype.
    #[inline(always)]
    pub(super) fn overflows(&self, simd: S, scale: S::F32) -> S::I32 {
        simd.equal(round_to(simd, simd.mul(scale, self.up), self.dtype), simd.splat(f32::INFINITY))
    }

    /// The scale of the lane that a stored one is.
    #[inline(always)]
    pub(super) fn of_lane(&self, simd: S, stored: S::F32) -> S::F32 {
        simd.mul(stored, self.down)
    }

    /// A number of the lane in the array's own size.
    #[inline(always)]
    pub(super) fn of_array(&self, simd: S, v: S::F32) -> S::F32 {
        simd.mul(v, self.up)
    }

    /// The lanes where half a scale of the size of `scale` or more may not be one that can be stored.
    #[inline(always)]
    pub(super) fn is_subnormal(&self, simd: S, scale: S::F32) -> S::I32 {
        let least = if self.dtype == ScaleDtype::F16 { 1.0 / 8192.0 } else { 2.0 * f32::MIN_POSITIVE };
        simd.less(simd.mul(scale, self.up), simd.splat(least))
    }
}

/// An element, or 0 where its weight is 0.
#[inline(always)]
fn counted<S: Simd>(simd: S, x: S::F32, weight: S::F32) -> S::F32 {
    let zero = simd.splat(0.0);
    simd.select(simd.equal(weight, zero), zero, x)
}

/// The power of two of the exponent of a magnitude, and its reciprocal; both are normal numbers.
#[inline(always)]
fn powers<S: Simd>(simd: S, magnitude: S::I32) -> (S::F32, S::F32) {
    let field = simd.shift_right(magnitude, 23);
    let field = simd.min_i32(simd.max_i32(field, simd.splat_i32(1)), simd.splat_i32(253));
    let is_zero = simd.equal(simd.as_f32(magnitude), simd.splat(0.0));
    let one = simd.splat(1.0);
    let up = simd.shift_left(field, 23);
    // 254 - field.
    let opposite = simd.add_i32(simd.xor(field, simd.splat_i32(-1)), simd.splat_i32(255));
    let down = simd.shift_left(opposite, 23);
    (simd.select(is_zero, one, simd.as_f32(up)), simd.select(is_zero, one, simd.as_f32(down)))
}

/// Vector i gets element i of each group.
#[inline(always)]
fn transpose<S: Simd>(simd: S, x: &[f32], group: usize, out: &mut Vec<S::F32>) {
    let zero = simd.splat(0.0);
    out.clear();
    out.resize(group, zero);
    for (at, out) in out.chunks_mut(LANES).enumerate() {
        let mut rows = [zero; LANES];
        for (row, x) in rows.iter_mut().zip(x.chunks(group)) {
            let x = &x[x.len().min(at * LANES)..];
            *row = if let Some(whole) = x.first_chunk() {
                simd.load(whole)
            } else {
                let mut padded = [0.0; LANES];
                padded[..x.len()].copy_from_slice(x);
                simd.load(&padded)
            };
        }
        out.copy_from_slice(&simd.transpose(&rows)[..out.len()]);
    }
}
