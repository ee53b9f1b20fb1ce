//! What Q4_K and Q5_K share: eight groups of 32 under one f16 scale and one f16 minimum, each with a 6-bit scale and a 6-bit minimum,
//! and the search for them. They differ in the largest code and in the steps of the search.
//!
//! ```text
//! byte   0..2       2..4         4..16
//!        scale f16 | minimum f16 | factors, 6 bits each
//!
//! factors  byte j = s_j + 64 * (s_(j+4) >> 4), byte j + 4 = m_j + 64 * (m_(j+4) >> 4),
//!          byte j + 8 = s_(j+4) % 16 + 16 * (m_(j+4) % 16), for j = 0..4
//!
//! x ~ code * (scale * s) - minimum * m
//! ```
//!
//! For each group a scale and a minimum are searched: codes for `1 / scale = (largest code + first + t) / (max - min)`, t = 0, 0.1, ...,
//! then the line that fits x best for these codes, with the weights sqrt(mean of x^2) + |x|; a better line moves min as well. Then s
//! and m are rounded against the largest of eight, and the codes made anew: `code = round((x + minimum * m) / (scale * s))`. The sums
//! are taken from the first element to the last. Source: ggml-org/ggml `src/ggml-quants.c`, `make_qkx2_quants`.

use super::{Faults, Groups};
use crate::kernels::lanes::{self, GROUP, TILE, any_not_finite, clamp, magnitude};
use crate::simd::{Kernel, LANES, Simd};
use half::f16;
use std::marker::PhantomData;

/// Groups of a block.
pub(super) const GROUPS: usize = 8;

/// Elements of a block.
pub(super) const BLOCK: usize = GROUPS * GROUP;

/// Bytes of scale, minimum and factors.
pub(super) const HEADER: usize = 16;

/// What sets the formats apart.
pub(super) trait Scan: Copy {
    /// The largest code.
    const LARGEST: f32;
    /// What is added to it in the first step of the search.
    const FIRST: f32;
    /// The number of the last step.
    const LAST: u8;
}

/// The scales and minimums of the groups of a block: products of two numbers, all of them exact in f32.
#[inline(always)]
pub(super) fn lines_of(header: &[u8; HEADER], scales: &mut [f32; GROUPS], minimums: &mut [f32; GROUPS]) {
    let half = |at: usize| f16::from_le_bytes([header[at], header[at + 1]]).to_f32();
    let (scale, minimum) = (half(0), half(2));
    let word = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let (first, second, third) = (word(4), word(8), word(12));
    let upper = |word: u32| word >> 2 & 0x3030_3030;
    let words = [first & 0x3f3f_3f3f, third & 0x0f0f_0f0f | upper(first), second & 0x3f3f_3f3f, third >> 4 & 0x0f0f_0f0f | upper(second)];
    let factors: [u8; 16] = bytemuck::cast(words.map(u32::to_le_bytes));
    for ((scales, minimums), i) in scales.iter_mut().zip(minimums).zip(0..GROUPS) {
        *scales = scale * f32::from(factors[i]);
        *minimums = -(minimum * f32::from(factors[GROUPS + i]));
    }
}

/// Scale, minimum and factors of a block, from the scale of each group and what its minimum is below zero.
fn header_of(scales: &[f32], depths: &[f32]) -> [u8; HEADER] {
    let largest = |values: &[f32]| values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest });
    let (scale, depth) = (largest(scales), largest(depths));
    let factor = |largest: f32, value: f32| {
        let unit = if largest > 0.0 { 63.0 / largest } else { 0.0 };
        // A negative factor wraps, and is then the largest.
        (nearest(unit * value) as u8).min(63)
    };
    let factors = |largest: f32, values: &[f32]| std::array::from_fn(|i| factor(largest, values[i]));
    pack_header(scale / 63.0, depth / 63.0, factors(scale, scales), factors(depth, depths))
}

/// The header of a block from its units, and the scales and minimums that are multiples of them.
pub(super) fn header_in_units([scale, minimum]: [f32; 2], scales: &[f32], minimums: &[f32]) -> [u8; HEADER] {
    let factors = |unit: f32, values: &[f32]| std::array::from_fn(|i| (values[i] / unit) as u8);
    pack_header(scale, 0.0 - minimum, factors(scale, scales), factors(minimum, minimums))
}

/// The way back from [`lines_of`].
fn pack_header(scale: f32, minimum: f32, scales: [u8; GROUPS], minimums: [u8; GROUPS]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    header[2..4].copy_from_slice(&f16::from_f32(minimum).to_le_bytes());
    for j in 0..4 {
        header[4 + j] = scales[j] | scales[j + 4] >> 4 << 6;
        header[8 + j] = minimums[j] | minimums[j + 4] >> 4 << 6;
        header[12 + j] = scales[j + 4] & 15 | minimums[j + 4] << 4;
    }
    header
}

/// 1.5 * 2^23: a number below 2^22 that is added to it is rounded to an integer, in the lower bits.
pub(super) const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, half to even, as ggml finds it: beyond 2^22 and for what is not finite it is something else.
pub(super) fn nearest(v: f32) -> i32 {
    ((v + MAGIC).to_bits().cast_signed() & 0x7f_ffff) - 0x40_0000
}

/// Encodes whole blocks.
pub(super) struct Quantize<'a, C> {
    x: &'a [f32],
    groups: &'a mut Groups,
    scan: PhantomData<C>,
}

impl<'a, C: Scan> Quantize<'a, C> {
    pub(super) fn new(x: &'a [f32], groups: &'a mut Groups) -> Self {
        Quantize { x, groups, scan: PhantomData }
    }
}

impl<C: Scan> Kernel for Quantize<'_, C> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Faults {
        let Groups { codes, scales, offsets, headers } = self.groups;
        let mut faults = Faults::default();
        let lines = scales.chunks_mut(LANES).zip(offsets.chunks_mut(LANES));
        let stored = headers.chunks_mut(LANES / GROUPS * HEADER).zip(lines);
        for ((x, codes), (headers, (scales, minimums))) in self.x.chunks(TILE).zip(codes.chunks_mut(TILE)).zip(stored) {
            let x = lanes::load(simd, x);
            let found = search::<S, C>(simd, &x);
            faults.element |= any_not_finite(simd, found.largest);
            let (mut fitted, mut depths) = ([0.0; LANES], [0.0; LANES]);
            simd.store(found.scale, &mut fitted);
            simd.store(simd.sub(simd.splat(0.0), found.minimum), &mut depths);
            let (mut all_scales, mut all_minimums) = ([0.0; LANES], [0.0; LANES]);
            let fitted = fitted.as_chunks::<GROUPS>().0.iter().zip(depths.as_chunks::<GROUPS>().0);
            let lines = all_scales.as_chunks_mut::<GROUPS>().0.iter_mut().zip(all_minimums.as_chunks_mut::<GROUPS>().0);
            for ((header, (fitted, depths)), (scales, minimums)) in headers.as_chunks_mut::<HEADER>().0.iter_mut().zip(fitted).zip(lines) {
                *header = header_of(fitted, depths);
                lines_of(header, scales, minimums);
            }
            let (scale, minimum) = (simd.load(&all_scales), simd.load(&all_minimums));
            faults.scale |= any_not_finite(simd, scale) || any_not_finite(simd, minimum);
            lanes::store_codes(simd, &codes_of::<S, C>(simd, &x, &found, scale, minimum), codes);
            scales.copy_from_slice(&all_scales[..scales.len()]);
            minimums.copy_from_slice(&all_minimums[..minimums.len()]);
        }
        faults
    }
}

/// What the search finds in 16 groups.
struct Found<S: Simd, C> {
    scale: S::F32,
    minimum: S::F32,
    /// What the codes of the best line were made with.
    steps: Steps<S, C>,
    /// The largest magnitudes, NaN above all.
    largest: S::F32,
}

/// code = clamp(round((x - minimum) * inverse), 0, largest), as a float
#[derive(Clone, Copy)]
struct Steps<S: Simd, C> {
    inverse: S::F32,
    minimum: S::F32,
    scan: PhantomData<C>,
}

impl<S: Simd, C: Scan> Steps<S, C> {
    #[inline(always)]
    fn new(simd: S, inverse: S::F32, minimum: S::F32) -> Self {
        Steps { inverse: finite_or_nan(simd, inverse), minimum, scan: PhantomData }
    }

    #[inline(always)]
    fn code(self, simd: S, x: S::F32) -> S::F32 {
        let step = simd.mul(self.inverse, simd.sub(x, self.minimum));
        let magic = simd.splat(MAGIC);
        simd.sub(simd.add(clamp(simd, step, simd.splat(0.0), simd.splat(C::LARGEST)), magic), magic)
    }
}

#[inline(always)]
fn search<S: Simd, C: Scan>(simd: S, x: &[S::F32; GROUP]) -> Found<S, C> {
    let zero = simd.splat(0.0);
    let (mut squares, mut worst) = (zero, simd.splat_i32(0));
    for &x in x {
        squares = simd.add(squares, simd.mul(x, x));
        worst = simd.max_i32(worst, simd.bits(magnitude(simd, x)));
    }
    let average = simd.sqrt(simd.div(squares, simd.splat(32.0)));
    let mut weights = [zero; GROUP];
    for (weight, &x) in weights.iter_mut().zip(x) {
        *weight = simd.add(average, magnitude(simd, x));
    }
    let (mut low, mut high) = (x[0], x[0]);
    let (mut sum, mut sum_x) = (weights[0], simd.mul(weights[0], x[0]));
    for (&x, &weight) in x.iter().zip(&weights).skip(1) {
        low = simd.select(simd.less(x, low), x, low);
        high = simd.select(simd.less(high, x), x, high);
        sum = simd.add(sum, weight);
        sum_x = simd.add(sum_x, simd.mul(weight, x));
    }
    let mut minimum = simd.select(simd.less(zero, low), zero, low);
    let inverse = simd.div(simd.splat(C::LARGEST), simd.sub(high, minimum));
    let mut scale = simd.div(simd.splat(1.0), inverse);
    let mut best_steps = Steps::<S, C>::new(simd, inverse, minimum);
    let mut codes = [zero; GROUP];
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = best_steps.code(simd, x);
    }
    let mut least = error(simd, x, &weights, &codes, scale, minimum);
    for step in 0..=C::LAST {
        let numerator = C::FIRST + 0.1 * f32::from(step) + C::LARGEST;
        let inverse = simd.div(simd.splat(numerator), simd.sub(high, minimum));
        let steps = Steps::<S, C>::new(simd, inverse, minimum);
        let (mut sum_code, mut sum_squares, mut sum_products) = (zero, zero, zero);
        for ((code, &x), &weight) in codes.iter_mut().zip(x).zip(&weights) {
            *code = steps.code(simd, x);
            let weighted = simd.mul(weight, *code);
            sum_code = simd.add(sum_code, weighted);
            sum_squares = simd.add(sum_squares, simd.mul(weighted, *code));
            sum_products = simd.add(sum_products, simd.mul(weighted, x));
        }
        let determinant = simd.sub(simd.mul(sum, sum_squares), simd.mul(sum_code, sum_code));
        let fitted = simd.div(simd.sub(simd.mul(sum, sum_products), simd.mul(sum_x, sum_code)), determinant);
        let lowest = simd.div(simd.sub(simd.mul(sum_squares, sum_x), simd.mul(sum_code, sum_products)), determinant);
        let is_above = simd.less(zero, lowest);
        let fitted = simd.select(is_above, simd.div(sum_products, sum_squares), fitted);
        let lowest = simd.select(is_above, zero, lowest);
        let distance = error(simd, x, &weights, &codes, fitted, lowest);
        let is_better = simd.and(simd.less(zero, determinant), simd.less(distance, least));
        least = simd.select(is_better, distance, least);
        scale = simd.select(is_better, fitted, scale);
        minimum = simd.select(is_better, lowest, minimum);
        best_steps.inverse = simd.select(is_better, steps.inverse, best_steps.inverse);
        best_steps.minimum = simd.select(is_better, steps.minimum, best_steps.minimum);
    }
    Found { scale, minimum, steps: best_steps, largest: simd.as_f32(worst) }
}

/// The weighted sum of squared errors.
#[inline(always)]
fn error<S: Simd>(
    simd: S,
    x: &[S::F32; GROUP],
    weights: &[S::F32; GROUP],
    codes: &[S::F32; GROUP],
    scale: S::F32,
    minimum: S::F32,
) -> S::F32 {
    let mut sum = simd.splat(0.0);
    for ((&x, &weight), &code) in x.iter().zip(weights).zip(codes) {
        let difference = simd.sub(simd.add(simd.mul(scale, code), minimum), x);
        sum = simd.add(sum, simd.mul(weight, simd.mul(difference, difference)));
    }
    sum
}

/// NaN in place of an infinity: every code that is made with it is 0, as ggml has it on x86.
#[inline(always)]
fn finite_or_nan<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    simd.add(v, simd.sub(v, v))
}

/// The codes for the stored scale and minimum, and those of the search where that scale is 0.
#[inline(always)]
fn codes_of<S: Simd, C: Scan>(simd: S, x: &[S::F32; GROUP], found: &Found<S, C>, scale: S::F32, minimum: S::F32) -> [S::I32; GROUP] {
    let zero = simd.splat(0.0);
    let is_zero = simd.equal(scale, zero);
    let mut codes = [simd.splat_i32(0); GROUP];
    for (code, &x) in codes.iter_mut().zip(x) {
        // Beyond 2^22 this is not the nearest integer, but what ggml takes for it.
        let sum = simd.add(simd.div(simd.sub(x, minimum), scale), simd.splat(MAGIC));
        let nearest = simd.add_i32(simd.and(simd.bits(sum), simd.splat_i32(0x7f_ffff)), simd.splat_i32(-0x40_0000));
        let nearest = clamp(simd, simd.to_f32(nearest), zero, simd.splat(C::LARGEST));
        *code = simd.round(simd.select(is_zero, found.steps.code(simd, x), nearest));
    }
    codes
}
