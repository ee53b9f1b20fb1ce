//! GGUF `Q6_K`: groups of 16, symmetric, codes of 6 bits, each group with a signed 8-bit factor, sixteen under one f16 scale. A companion:
//! in mixtures of llama.cpp the output matrix and some tensors beside those of 4 bits.
//!
//! ```text
//! byte   0..128            128..192        192..208                 208..210
//!        lower four bits | upper two bits | factors, 8 bits signed | scale f16
//!
//! byte 64 h + l        lower bits of element 128 h + l low, of element 128 h + l + 64 high       h = 0, 1, l = 0..64
//! byte 128 + 32 h + l  upper bits of elements 128 h + l + 0, + 32, + 64, + 96, the first in bits 0..2     l = 0..32
//!
//! scale = (the scale of largest magnitude that the search finds for the groups, the first one wins) / -128
//! f_i   = min(127, round(scale of group i / scale))
//! code  = clamp(round(x / (scale * f_i)), -32, 31)                x ~ code * (scale * f_i)
//! ```
//!
//! A code is stored with 32 added. The scale of a group is searched: codes for `1 / scale = -(32 + t) / (element of largest magnitude)`,
//! t = -0.9, -0.8, ... 0.9, then the scale that fits x best for these codes, with the weights x^2. Where the stored scale of a group is
//! 0, its codes are those of the search. The sums are taken from the first element to the last. Source: ggml-org/ggml
//! `src/ggml-quants.c`, `quantize_row_q6_K_ref` and `make_qx_quants`.

use super::lines::{MAGIC, nearest};
use super::{Context, Faults, Groups, Need, Range, Rows, wide};
use crate::kernels::lanes::{any_not_finite, clamp, magnitude};
use crate::simd::{Kernel, LANES, Simd};
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};
use half::f16;

pub(super) static FORMAT: Q6K = Q6K;

static SPEC: Spec = Spec {
    name: "gguf:q6_k",
    aliases: &["q6_k"],
    summary: "companion: symmetric groups of 16 with 8-bit scale, codes of 6 bits, blocks of 256",
    scheme: Scheme::Symmetric,
    bits: 6,
    group_sizes: GroupSizes::InBlocks { size: GROUP, block: BLOCK, header: HEADER },
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(BYTES) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

/// Elements of a group.
const GROUP: usize = 16;

/// Groups of a block: a lane each.
const GROUPS: usize = LANES;

/// Elements of a block.
const BLOCK: usize = GROUPS * GROUP;

/// Bytes of factors and scale.
const HEADER: usize = GROUPS + 2;

/// Bytes of the codes of a block.
const CODES: usize = BLOCK / 4 * 3;

/// Bytes of a block.
const BYTES: usize = CODES + HEADER;

/// What is added to a code that is stored.
const BIAS: i8 = 32;

/// The largest magnitude of a group, or of the scales of a block, that counts as 0 is below it.
const LEAST: f32 = 1e-15;

pub(super) struct Q6K;

impl Rows for Q6K {
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
        let stored = groups.headers.as_chunks::<HEADER>().0.iter().zip(groups.codes.as_chunks::<BLOCK>().0);
        for (block, (header, codes)) in blocks.as_chunks_mut::<BYTES>().0.iter_mut().zip(stored) {
            let (packed, to) = block.split_at_mut(CODES);
            to.copy_from_slice(header);
            let (low, high) = packed.split_at_mut(BLOCK / 2);
            for (half, codes) in codes.chunks_exact(BLOCK / 2).enumerate() {
                let code = |at: usize| codes[at].wrapping_add(BIAS).cast_unsigned();
                for (l, byte) in low[64 * half..][..64].iter_mut().enumerate() {
                    *byte = code(l) & 15 | code(l + 64) << 4;
                }
                for (l, byte) in high[32 * half..][..32].iter_mut().enumerate() {
                    *byte = (0..4).fold(0, |bits, quarter| bits | (code(l + 32 * quarter) >> 4 & 3) << (2 * quarter));
                }
            }
        }
    }

    fn unpack(&self, _: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let Groups { codes, scales, headers, .. } = groups;
        let mut codes = codes.as_chunks_mut::<BLOCK>().0.iter_mut();
        let stored = headers.as_chunks_mut::<HEADER>().0.iter_mut().zip(scales.as_chunks_mut::<GROUPS>().0);
        for (block, (header, scales)) in blocks.as_chunks::<BYTES>().0.iter().zip(stored) {
            let (packed, from) = block.split_at(CODES);
            header.copy_from_slice(from);
            *scales = scales_of(header);
            let (low, high) = packed.split_at(BLOCK / 2);
            for (half, codes) in codes.next().into_iter().flat_map(|codes| codes.chunks_exact_mut(BLOCK / 2)).enumerate() {
                for (at, code) in codes.iter_mut().enumerate() {
                    let low = low[64 * half + at % 64] >> (4 * (at / 64)) & 15;
                    let high = high[32 * half + at % 32] >> (2 * (at / 32)) & 3;
                    *code = (low | high << 4).cast_signed() - BIAS;
                }
            }
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        wide::values(context, groups, x);
    }
}

/// The scales of the groups of a block: products that are exact in f32.
fn scales_of(header: &[u8; HEADER]) -> [f32; GROUPS] {
    let scale = f16::from_le_bytes([header[GROUPS], header[GROUPS + 1]]).to_f32();
    std::array::from_fn(|group| scale * f32::from(header[group].cast_signed()))
}

/// Factors and scale of a block, from the scales of its groups.
fn header_of(fitted: &[f32; GROUPS]) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    let largest = wide::extreme(fitted);
    if largest.abs() < LEAST {
        return header;
    }
    let inverse = -128.0 / largest;
    for (factor, fitted) in header.iter_mut().zip(fitted) {
        *factor = (nearest(inverse * fitted).min(127) as i8).cast_unsigned();
    }
    header[GROUPS..].copy_from_slice(&f16::from_f32(1.0 / inverse).to_le_bytes());
    header
}

struct Quantize<'a> {
    x: &'a [f32],
    groups: &'a mut Groups,
}

impl Kernel for Quantize<'_> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Faults {
        let Groups { codes, scales, headers, .. } = self.groups;
        let mut faults = Faults::default();
        let blocks = self.x.as_chunks::<BLOCK>().0.iter().zip(codes.as_chunks_mut::<BLOCK>().0);
        let stored = headers.as_chunks_mut::<HEADER>().0.iter_mut().zip(scales.as_chunks_mut::<GROUPS>().0);
        for ((x, codes), (header, scales)) in blocks.zip(stored) {
            let mut rows = [simd.splat(0.0); LANES];
            for (row, x) in rows.iter_mut().zip(x.as_chunks::<GROUP>().0) {
                *row = simd.load(x);
            }
            let x = simd.transpose(&rows);
            let found = search(simd, &x);
            faults.element |= any_not_finite(simd, found.largest);
            let mut fitted = [0.0; GROUPS];
            simd.store(found.scale, &mut fitted);
            *header = header_of(&fitted);
            *scales = scales_of(header);
            // Sums that overflow leave no scale; ggml goes on without the group.
            for (scale, fitted) in scales.iter_mut().zip(fitted) {
                *scale = if fitted.is_finite() { *scale } else { fitted };
            }
            faults.scale |= scales.iter().any(|scale| !scale.is_finite());
            let scale = simd.load(scales);
            let is_zero = simd.equal(scale, simd.splat(0.0));
            for ((code, &x), &searched) in rows.iter_mut().zip(&x).zip(&found.codes) {
                // Beyond 2^22 this is not the nearest integer, but what ggml takes for it.
                let sum = simd.add(simd.div(x, scale), simd.splat(MAGIC));
                let nearest = simd.add_i32(simd.and(simd.bits(sum), simd.splat_i32(0x7f_ffff)), simd.splat_i32(-0x40_0000));
                *code = simd.select(is_zero, searched, within(simd, simd.to_f32(nearest)));
            }
            for (codes, row) in codes.as_chunks_mut::<GROUP>().0.iter_mut().zip(simd.transpose(&rows)) {
                let mut lanes = [0; LANES];
                simd.store_i32(simd.round(row), &mut lanes);
                *codes = lanes.map(|code| code as i8);
            }
        }
        faults
    }
}

/// What the search finds in 16 groups.
struct Found<S: Simd> {
    scale: S::F32,
    codes: [S::F32; GROUP],
    /// The largest magnitudes, NaN above all.
    largest: S::F32,
}

#[inline(always)]
fn search<S: Simd>(simd: S, x: &[S::F32; GROUP]) -> Found<S> {
    let zero = simd.splat(0.0);
    let (mut magnitudes, mut extreme, mut worst) = (zero, zero, simd.splat_i32(0));
    for &x in x {
        let is_larger = simd.less(magnitudes, magnitude(simd, x));
        magnitudes = simd.select(is_larger, magnitude(simd, x), magnitudes);
        extreme = simd.select(is_larger, x, extreme);
        worst = simd.max_i32(worst, simd.bits(magnitude(simd, x)));
    }
    let mut codes = [zero; GROUP];
    let (products, squares) = fit(simd, x, simd.div(simd.splat(-32.0), extreme), &mut codes);
    let mut scale = simd.select(simd.equal(squares, zero), zero, simd.div(products, squares));
    let mut best = simd.mul(scale, products);
    for step in (-9i8..=9).filter(|&step| step != 0) {
        let numerator = -(32.0 + 0.1 * f32::from(step));
        let mut tried = [zero; GROUP];
        let (products, squares) = fit(simd, x, simd.div(simd.splat(numerator), extreme), &mut tried);
        let is_better = simd.less(simd.mul(best, squares), simd.mul(products, products));
        let is_better = simd.and(simd.less(zero, squares), is_better);
        let fitted = simd.div(products, squares);
        scale = simd.select(is_better, fitted, scale);
        best = simd.select(is_better, simd.mul(fitted, products), best);
        for (code, &tried) in codes.iter_mut().zip(&tried) {
            *code = simd.select(is_better, tried, *code);
        }
    }
    let is_zero = simd.less(magnitudes, simd.splat(LEAST));
    for code in &mut codes {
        *code = simd.select(is_zero, simd.splat(f32::from(-BIAS)), *code);
    }
    Found { scale: simd.select(is_zero, zero, scale), codes, largest: simd.as_f32(worst) }
}

/// The codes for 1 / scale, and the sums of w * x * code and of w * code * code.
#[inline(always)]
fn fit<S: Simd>(simd: S, x: &[S::F32; GROUP], inverse: S::F32, codes: &mut [S::F32; GROUP]) -> (S::F32, S::F32) {
    let (mut products, mut squares) = (simd.splat(0.0), simd.splat(0.0));
    let magic = simd.splat(MAGIC);
    for (code, &x) in codes.iter_mut().zip(x) {
        *code = within(simd, simd.sub(simd.add(simd.mul(inverse, x), magic), magic));
        let weight = simd.mul(x, x);
        products = simd.add(products, simd.mul(simd.mul(weight, x), *code));
        squares = simd.add(squares, simd.mul(simd.mul(weight, *code), *code));
    }
    (products, squares)
}

#[inline(always)]
fn within<S: Simd>(simd: S, code: S::F32) -> S::F32 {
    clamp(simd, code, simd.splat(-32.0), simd.splat(31.0))
}
