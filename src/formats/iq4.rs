//! What ggml's IQ4 formats share: their table, the nearest entry, and the search for the scale of a group of 32.
//!
//! ```text
//! x ~ table[code] * scale        weight of an element in the search: x^2
//!
//! m = the element of largest magnitude, the first one wins; where |m| < 1e-15 the scale is 0
//! candidates: 1 / scale = 1 / (m / 127), then (t - 127) / m for t = -7..=7
//! of each: code = nearest(x * (1 / scale)), the best scale for these codes = sum(x^2 * table * x) / sum(x^2 * table^2)
//! ```
//!
//! The sums are taken from the first element to the last. Source: ggml-org/ggml `src/ggml-quants.c`, `quantize_row_iq4_nl_impl`.

use crate::kernels::decode::Meaning;
use crate::kernels::lanes::{GROUP, clamp, magnitude};
use crate::kernels::nibbles::UNSIGNED;
use crate::simd::Simd;

pub(super) use crate::kernels::codebooks::IQ4 as TABLE;

/// What the nibbles stand for.
#[derive(Clone, Copy)]
pub(super) struct Iq4;

impl Meaning for Iq4 {
    const NUMBERS: [f32; 16] = TABLE;
    const CODES: [i8; 16] = UNSIGNED;

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, scale)
    }
}

/// Numbers of this size hold at most one midpoint between neighbours of the table, and sixteen hold all of them.
const BUCKET: f32 = 13.5;

/// The number of the bucket that ends at 0 is this less a half.
const FIRST: f32 = 40.0 / BUCKET + 4.5;

/// The midpoint in each bucket; from there on the upper neighbour is nearest. The last but one holds none.
const MIDPOINTS: [f32; 16] =
    [-115.5, -93.5, -74.0, -57.0, -42.0, -28.5, -16.0, -4.5, 7.0, 19.0, 31.5, 45.5, 61.0, 79.0, f32::INFINITY, 101.0];

/// The code below each midpoint.
const BELOW: [i32; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 14];

/// The entries of the table on either side of each midpoint.
const NEIGHBOURS: [[f32; 16]; 2] = {
    let mut neighbours = [[0.0; 16]; 2];
    let mut bucket = 0;
    while bucket < 16 {
        let below = BELOW[bucket] as usize;
        neighbours[0][bucket] = TABLE[below];
        neighbours[1][bucket] = TABLE[below + 1];
        bucket += 1;
    }
    neighbours
};

/// The search for the nearest entry of the table, ties up: one midpoint is looked up and compared.
#[derive(Clone, Copy)]
pub(super) struct Nearest<S: Simd> {
    midpoints: S::F32,
    lower: S::F32,
    upper: S::F32,
    below: S::F32,
}

impl<S: Simd> Nearest<S> {
    #[inline(always)]
    pub(super) fn new(simd: S) -> Self {
        Nearest {
            midpoints: simd.load(&MIDPOINTS),
            lower: simd.load(&NEIGHBOURS[0]),
            upper: simd.load(&NEIGHBOURS[1]),
            below: simd.as_f32(simd.load_i32(&BELOW)),
        }
    }

    /// The bucket of `v`, and the mask of being below its midpoint.
    #[inline(always)]
    fn bucket(self, simd: S, v: S::F32) -> (S::I32, S::I32) {
        let number = simd.add(simd.mul(v, simd.splat(1.0 / BUCKET)), simd.splat(FIRST));
        let bucket = simd.round(clamp(simd, number, simd.splat(0.0), simd.splat(15.0)));
        (bucket, simd.less(v, simd.look_up(self.midpoints, bucket)))
    }

    /// The nearest number.
    #[inline(always)]
    fn number(self, simd: S, v: S::F32) -> S::F32 {
        let (bucket, is_below) = self.bucket(simd, v);
        simd.select(is_below, simd.look_up(self.lower, bucket), simd.look_up(self.upper, bucket))
    }

    /// Its code.
    #[inline(always)]
    pub(super) fn code(self, simd: S, v: S::F32) -> S::I32 {
        let (bucket, is_below) = self.bucket(simd, v);
        let above = simd.add_i32(simd.bits(simd.look_up(self.below, bucket)), simd.splat_i32(1));
        simd.add_i32(above, is_below)
    }
}

/// 1 / scale, and 0 where the scale is 0.
#[inline(always)]
pub(super) fn reciprocal_or_zero<S: Simd>(simd: S, scale: S::F32) -> S::F32 {
    let zero = simd.splat(0.0);
    simd.select(simd.equal(scale, zero), zero, simd.div(simd.splat(1.0), scale))
}

/// What the search finds in 16 groups.
pub(super) struct Found<S: Simd> {
    /// The scales, not yet rounded. NaN or infinite where the sums are beyond f32.
    pub(super) scale: S::F32,
    /// The largest magnitudes, NaN above all.
    pub(super) largest: S::F32,
}

/// The scales of 16 groups, a lane each.
#[inline(always)]
pub(super) fn search<S: Simd>(simd: S, nearest: Nearest<S>, x: &[S::F32; GROUP]) -> Found<S> {
    let zero = simd.splat(0.0);
    let (mut largest, mut extreme, mut worst) = (zero, zero, simd.splat_i32(0));
    for &x in x {
        let size = magnitude(simd, x);
        worst = simd.max_i32(worst, simd.bits(size));
        let is_larger = simd.less(largest, size);
        largest = simd.select(is_larger, size, largest);
        extreme = simd.select(is_larger, x, extreme);
    }
    let inverse = simd.div(simd.splat(1.0), simd.div(extreme, simd.splat(-TABLE[0])));
    let (sum_x, sum_squares) = sums(simd, nearest, x, inverse);
    let mut scale = simd.select(simd.less(zero, sum_squares), simd.div(sum_x, sum_squares), zero);
    let mut best = simd.mul(scale, sum_x);
    for step in -7i8..=7 {
        let inverse = simd.div(simd.splat(f32::from(step) + TABLE[0]), extreme);
        let (sum_x, sum_squares) = sums(simd, nearest, x, inverse);
        let is_better = simd.less(simd.mul(best, sum_squares), simd.mul(sum_x, sum_x));
        let is_better = simd.and(is_better, simd.less(zero, sum_squares));
        let candidate = simd.div(sum_x, sum_squares);
        scale = simd.select(is_better, candidate, scale);
        best = simd.select(is_better, simd.mul(candidate, sum_x), best);
    }
    let scale = simd.select(simd.less(largest, simd.splat(1e-15)), zero, scale);
    Found { scale, largest: simd.as_f32(worst) }
}

/// The sums of x^2 * number * x and of x^2 * number^2 over the elements of each group.
#[inline(always)]
fn sums<S: Simd>(simd: S, nearest: Nearest<S>, x: &[S::F32; GROUP], inverse: S::F32) -> (S::F32, S::F32) {
    let (mut sum_x, mut sum_squares) = (simd.splat(0.0), simd.splat(0.0));
    for &x in x {
        let number = nearest.number(simd, simd.mul(inverse, x));
        let weighted = simd.mul(simd.mul(x, x), number);
        sum_x = simd.add(sum_x, simd.mul(weighted, x));
        sum_squares = simd.add(sum_squares, simd.mul(weighted, number));
    }
    (sum_x, sum_squares)
}

/// 32 codes to 16 bytes: byte j holds code j low and code j + 16 high.
pub(super) fn pack(codes: &[i8], packed: &mut [u8]) {
    let (low, high) = codes.split_at(GROUP / 2);
    for ((byte, &low), &high) in packed.iter_mut().zip(low).zip(high) {
        *byte = low.cast_unsigned() | high.cast_unsigned() << 4;
    }
}

/// The way back.
pub(super) fn unpack(packed: &[u8], codes: &mut [i8]) {
    let (low, high) = codes.split_at_mut(GROUP / 2);
    for ((byte, low), high) in packed.iter().zip(low).zip(high) {
        (*low, *high) = ((byte & 15).cast_signed(), (byte >> 4).cast_signed());
    }
}
