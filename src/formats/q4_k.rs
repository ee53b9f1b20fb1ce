//! GGUF `Q4_K`: groups of 32 with a 6-bit scale and a 6-bit minimum, eight of them under one f16 scale and one f16 minimum.
//!
//! ```text
//! byte   0..2       2..4         4..16                 16                   ...            144
//!        scale f16 | minimum f16 | factors, 6 bits each | x0 low, x32 high | x1, x33 | ... | x223, x255
//!
//! factors  byte j = s_j + 64 * (s_(j+4) >> 4), byte j + 4 = m_j + 64 * (m_(j+4) >> 4),
//!          byte j + 8 = s_(j+4) % 16 + 16 * (m_(j+4) % 16), for j = 0..4
//! codes    byte 32 i + l = element 64 i + l low, element 64 i + 32 + l high
//!
//! x ~ code * (scale * s) - minimum * m
//! ```
//!
//! For each group a scale and a minimum are searched: codes for `1 / scale = (t + 14) / (max - min)`, t = 0, 0.1, ... 2, then the
//! line that fits x best for these codes, with the weights sqrt(mean of x^2) + |x|; a better line moves min as well. Then s and m
//! are rounded against the largest of eight, and the codes made anew: `code = clamp(round((x + minimum * m) / (scale * s)), 0, 15)`.
//! The sums are taken from the first element to the last. Source: ggml-org/ggml `src/ggml-quants.c`, `quantize_row_q4_K_ref`.

use super::{Context, Faults, Groups, Need, Range, Rows};
use crate::kernels::decode::{Floats, Meaning, Output, Shelf, Tables, Values};
use crate::kernels::lanes::{self, GROUP, TILE, any_not_finite, clamp, magnitude};
use crate::kernels::nibbles::UNSIGNED;
use crate::simd::{Kernel, LANES, Simd};
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};
use half::f16;

pub(super) static FORMAT: Q4K = Q4K;

static SPEC: Spec = Spec {
    name: "gguf:q4_k",
    aliases: &["q4_k"],
    summary: "groups of 32 with 6-bit scale and minimum, blocks of 256",
    scheme: Scheme::Minimum,
    group_sizes: GroupSizes::InBlocks { size: GROUP, block: BLOCK, header: HEADER },
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(BYTES / GROUPS) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

/// Groups of a block.
const GROUPS: usize = 8;

/// Elements of a block.
const BLOCK: usize = GROUPS * GROUP;

/// Bytes of scale, minimum and factors.
const HEADER: usize = 16;

/// Bytes of a block.
const BYTES: usize = HEADER + BLOCK / 2;

pub(super) struct Q4K;

impl Rows for Q4K {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn need(&self) -> Need {
        Need::Itself
    }

    fn quantize(&self, context: Context, x: &[f32], _: Option<Range>, groups: &mut Groups) -> Faults {
        context.level.run(Quantize { x, groups })
    }

    fn pack(&self, _: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let codes = groups.codes.as_chunks::<BLOCK>().0;
        for ((block, header), codes) in blocks.as_chunks_mut::<BYTES>().0.iter_mut().zip(groups.headers.as_chunks::<HEADER>().0).zip(codes)
        {
            let (to, packed) = block.split_at_mut(HEADER);
            to.copy_from_slice(header);
            for (packed, pair) in packed.chunks_exact_mut(GROUP).zip(codes.chunks_exact(2 * GROUP)) {
                let (low, high) = pair.split_at(GROUP);
                for ((byte, &low), &high) in packed.iter_mut().zip(low).zip(high) {
                    *byte = low.cast_unsigned() | high.cast_unsigned() << 4;
                }
            }
        }
    }

    fn unpack(&self, _: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let Groups { codes, scales, offsets, headers } = groups;
        let lines = scales.as_chunks_mut::<GROUPS>().0.iter_mut().zip(offsets.as_chunks_mut::<GROUPS>().0);
        let groups = codes.as_chunks_mut::<BLOCK>().0.iter_mut().zip(headers.as_chunks_mut::<HEADER>().0).zip(lines);
        for (block, ((codes, header), (scales, minimums))) in blocks.as_chunks::<BYTES>().0.iter().zip(groups) {
            let (from, packed) = block.split_at(HEADER);
            header.copy_from_slice(from);
            lines_of(header, scales, minimums);
            for (packed, pair) in packed.chunks_exact(GROUP).zip(codes.chunks_exact_mut(2 * GROUP)) {
                let (low, high) = pair.split_at_mut(GROUP);
                for ((byte, low), high) in packed.iter().zip(low).zip(high) {
                    (*low, *high) = ((byte & 15).cast_signed(), (byte >> 4).cast_signed());
                }
            }
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        let Groups { codes, scales, offsets, .. } = groups;
        context.level.run(Values { rule: Line, codes, group: GROUP, scales, offsets, x });
    }

    fn decode(&self, context: Context, parts: &[&[u8]], _: &mut Groups, x: Output<'_>) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let shelf = Blocks(blocks.as_chunks().0);
        context.level.run(Tables { rule: Line, shelf, group: GROUP, x, stream: context.stream });
    }
}

/// x ~ code * scale + minimum
#[derive(Clone, Copy)]
struct Line;

impl Meaning for Line {
    const NUMBERS: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];
    const CODES: [i8; 16] = UNSIGNED;

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, offset: S::F32) -> S::F32 {
        simd.add(simd.mul(numbers, scale), offset)
    }
}

/// The scales and minimums of the groups of a block: products of two numbers, all of them exact in f32.
#[inline(always)]
fn lines_of(header: &[u8; HEADER], scales: &mut [f32; GROUPS], minimums: &mut [f32; GROUPS]) {
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
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&f16::from_f32(scale / 63.0).to_le_bytes());
    header[2..4].copy_from_slice(&f16::from_f32(depth / 63.0).to_le_bytes());
    for j in 0..4 {
        let (low_scale, low_depth) = (factor(scale, scales[j]), factor(depth, depths[j]));
        let (high_scale, high_depth) = (factor(scale, scales[j + 4]), factor(depth, depths[j + 4]));
        header[4 + j] = low_scale | high_scale >> 4 << 6;
        header[8 + j] = low_depth | high_depth >> 4 << 6;
        header[12 + j] = high_scale & 15 | high_depth << 4;
    }
    header
}

/// 1.5 * 2^23: a number below 2^22 that is added to it is rounded to an integer, in the lower bits.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, half to even, as ggml finds it: beyond 2^22 and for what is not finite it is something else.
fn nearest(v: f32) -> i32 {
    ((v + MAGIC).to_bits().cast_signed() & 0x7f_ffff) - 0x40_0000
}

struct Quantize<'a> {
    x: &'a [f32],
    groups: &'a mut Groups,
}

impl Kernel for Quantize<'_> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Faults {
        let Groups { codes, scales, offsets, headers } = self.groups;
        let mut faults = Faults::default();
        let lines = scales.chunks_mut(LANES).zip(offsets.chunks_mut(LANES));
        let stored = headers.chunks_mut(LANES / GROUPS * HEADER).zip(lines);
        for ((x, codes), (headers, (scales, minimums))) in self.x.chunks(TILE).zip(codes.chunks_mut(TILE)).zip(stored) {
            let x = lanes::load(simd, x);
            let found = search(simd, &x);
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
            lanes::store_codes(simd, &codes_of(simd, &x, &found, scale, minimum), codes);
            scales.copy_from_slice(&all_scales[..scales.len()]);
            minimums.copy_from_slice(&all_minimums[..minimums.len()]);
        }
        faults
    }
}

/// What the search finds in 16 groups.
struct Found<S: Simd> {
    scale: S::F32,
    minimum: S::F32,
    /// What the codes of the best line were made with.
    steps: Steps<S>,
    /// The largest magnitudes, NaN above all.
    largest: S::F32,
}

/// code = clamp(round((x - minimum) * inverse), 0, 15), as a float
#[derive(Clone, Copy)]
struct Steps<S: Simd> {
    inverse: S::F32,
    minimum: S::F32,
}

impl<S: Simd> Steps<S> {
    #[inline(always)]
    fn code(self, simd: S, x: S::F32) -> S::F32 {
        let step = simd.mul(self.inverse, simd.sub(x, self.minimum));
        let magic = simd.splat(MAGIC);
        simd.sub(simd.add(clamp(simd, step, simd.splat(0.0), simd.splat(15.0)), magic), magic)
    }
}

#[inline(always)]
fn search<S: Simd>(simd: S, x: &[S::F32; GROUP]) -> Found<S> {
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
    let inverse = simd.div(simd.splat(15.0), simd.sub(high, minimum));
    let mut scale = simd.div(simd.splat(1.0), inverse);
    let mut best_steps = Steps { inverse: finite_or_nan(simd, inverse), minimum };
    let mut codes = [zero; GROUP];
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = best_steps.code(simd, x);
    }
    let mut least = error(simd, x, &weights, &codes, scale, minimum);
    for step in 0u8..=20 {
        let numerator = -1.0 + 0.1 * f32::from(step) + 15.0;
        let inverse = simd.div(simd.splat(numerator), simd.sub(high, minimum));
        let steps = Steps { inverse: finite_or_nan(simd, inverse), minimum };
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
fn codes_of<S: Simd>(simd: S, x: &[S::F32; GROUP], found: &Found<S>, scale: S::F32, minimum: S::F32) -> [S::I32; GROUP] {
    let zero = simd.splat(0.0);
    let is_zero = simd.equal(scale, zero);
    let mut codes = [simd.splat_i32(0); GROUP];
    for (code, &x) in codes.iter_mut().zip(x) {
        // Beyond 2^22 this is not the nearest integer, but what ggml takes for it.
        let sum = simd.add(simd.div(simd.sub(x, minimum), scale), simd.splat(MAGIC));
        let nearest = simd.add_i32(simd.and(simd.bits(sum), simd.splat_i32(0x7f_ffff)), simd.splat_i32(-0x40_0000));
        let nearest = clamp(simd, simd.to_f32(nearest), zero, simd.splat(15.0));
        *code = simd.round(simd.select(is_zero, found.steps.code(simd, x), nearest));
    }
    codes
}

/// Where the decoder reads.
#[derive(Clone, Copy)]
struct Blocks<'a>(&'a [[u8; BYTES]]);

impl Blocks<'_> {
    /// Scales and minimums of up to 16 groups, whole blocks.
    #[inline(always)]
    fn lines(self, first: usize, count: usize) -> [[f32; LANES]; 2] {
        let (mut scales, mut minimums) = ([0.0; LANES], [0.0; LANES]);
        let lines = scales.as_chunks_mut::<GROUPS>().0.iter_mut().zip(minimums.as_chunks_mut::<GROUPS>().0);
        for (block, (scales, minimums)) in self.0[first / GROUPS..(first + count) / GROUPS].iter().zip(lines) {
            lines_of(block.first_chunk().expect("a block is longer than its header"), scales, minimums);
        }
        [scales, minimums]
    }
}

impl Shelf for Blocks<'_> {
    const HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        simd.load(&self.lines(first, count)[0])
    }

    #[inline(always)]
    fn offsets<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        simd.load(&self.lines(first, count)[1])
    }

    /// Of this group and its neighbour: the low nibbles are the even one.
    #[inline(always)]
    fn packed(&self, group: usize) -> &[u8] {
        &self.0[group / GROUPS][HEADER + group % GROUPS / 2 * GROUP..][..GROUP]
    }

    #[inline(always)]
    fn decode<S: Simd, F: Floats<S>>(self, simd: S, floats: F, group: usize, x: &mut [F::Float]) {
        for (packed, x) in self.packed(group).as_chunks().0.iter().zip(x.as_chunks_mut().0) {
            let [low, high] = simd.unpack_halves(packed);
            floats.of(simd, if group.is_multiple_of(2) { low } else { high }, x);
        }
    }
}
