//! GGUF `NVFP4`: groups of 16 E2M1 codes under an 8-bit float, four of them to a block. A block has no scale for the tensor.
//!
//! ```text
//! byte   0  1  2  3   4                  ...            12 ...     ... 36
//!        four scales | x0 low, x8 high | ... | x7, x15 | the next group ...
//!
//! scale = largest / 6 as an 8-bit float without sign, its mantissa rounded half up;
//!         below 2^-6 at most 7 * 2^-9; from 256 on 448
//! code  = that of the first of the sixteen numbers whose number * scale is nearest to x: a tie is toward zero, never code 8
//! x ~ number(code) * scale
//! ```
//!
//! Where an element is many times the largest number, the distances to all numbers are the same in f32 and the first one, 0, is
//! its code, as at home. Source: ggml-org/ggml `src/ggml-quants.c`, `quantize_row_nvfp4_ref`.

use super::e2m1::NUMBERS_WITHOUT_NEGATIVE_ZERO;
use super::{Context, Faults, Groups, Need, Range, Rows};
use crate::kernels::decode::{Floats, Meaning, Output, Shelf, Tables, Values};
use crate::kernels::encode::Input;
use crate::kernels::lanes::magnitude;
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::INFINITE;
use crate::kernels::scales::{e4m3, e4m3_bits, e4m3_magnitudes};
use crate::simd::e2m1::Rounding;
use crate::simd::{Kernel, LANES, Simd};
use crate::spec::{Codebook, Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Nvfp4 = Nvfp4;

static SPEC: Spec = Spec {
    name: "gguf:nvfp4",
    aliases: &[],
    summary: "groups of 16 E2M1 codes with an 8-bit float scale, blocks of 64",
    scheme: Scheme::Codebook(Codebook::E2m1),
    group_sizes: GroupSizes::InBlocks { size: GROUP, block: GROUPS * GROUP, header: 0 },
    scale_dtypes: &[ScaleDtype::Ue4m3],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(BYTES) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

/// Elements of a group.
const GROUP: usize = 16;

/// Groups of a block.
const GROUPS: usize = 4;

/// Bytes of the codes of a group.
const CODES: usize = GROUP / 2;

/// Bytes of a block.
const BYTES: usize = GROUPS + GROUPS * CODES;

/// Elements of 16 groups.
const TILE: usize = LANES * GROUP;

/// Bytes of their blocks.
const TILE_BYTES: usize = LANES / GROUPS * BYTES;

/// The low nibble of each of eight bytes.
const LOW: u64 = 0x0f0f_0f0f_0f0f_0f0f;

pub(super) struct Nvfp4;

impl Rows for Nvfp4 {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn need(&self) -> Need {
        Need::Magnitude
    }

    fn quantize(&self, context: Context, x: &[f32], _: Option<Range>, groups: &mut Groups) -> Faults {
        let mut blocks = vec![0; x.len() / (GROUPS * GROUP) * BYTES];
        let faults = context.level.run(Encode { x, blocks: &mut blocks });
        self.unpack(context, &[&blocks], groups);
        faults
    }

    fn pack(&self, _: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let codes = groups.codes.as_chunks::<{ GROUPS * GROUP }>().0.iter().zip(groups.scales.as_chunks::<GROUPS>().0);
        for (block, (codes, scales)) in blocks.as_chunks_mut::<BYTES>().0.iter_mut().zip(codes) {
            let (bytes, packed) = block.split_at_mut(GROUPS);
            bytes.copy_from_slice(&scales.map(|scale| if scale == BEYOND_NAN { 0xff } else { e4m3_bits(scale) }));
            for (packed, codes) in packed.chunks_exact_mut(CODES).zip(codes.as_chunks::<GROUP>().0) {
                let (low, high) = codes.split_at(CODES);
                for ((byte, &low), &high) in packed.iter_mut().zip(low).zip(high) {
                    *byte = low.cast_unsigned() | high.cast_unsigned() << 4;
                }
            }
        }
    }

    fn unpack(&self, _: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let scales = groups.scales.as_chunks_mut::<GROUPS>().0;
        let groups = groups.codes.as_chunks_mut::<{ GROUPS * GROUP }>().0.iter_mut().zip(scales);
        for (block, (codes, scales)) in blocks.as_chunks::<BYTES>().0.iter().zip(groups) {
            *scales = scales_of(block);
            for (packed, codes) in block[GROUPS..].chunks_exact(CODES).zip(codes.as_chunks_mut::<GROUP>().0) {
                let (low, high) = codes.split_at_mut(CODES);
                for ((byte, low), high) in packed.iter().zip(low).zip(high) {
                    (*low, *high) = ((byte & 15).cast_signed(), (byte >> 4).cast_signed());
                }
            }
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        let Groups { codes, scales, .. } = groups;
        context.level.run(Values { rule: E2m1, codes, group: GROUP, scales, offsets: &[], x });
    }

    fn encode(&self, context: Context, x: Input<'_>, _: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        context.level.run(Encode { x: &x.floats(context.level), blocks })
    }

    fn decode(&self, context: Context, parts: &[&[u8]], _: &mut Groups, x: Output<'_>) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let shelf = Blocks(blocks.as_chunks().0);
        context.level.run(Tables { rule: E2m1, shelf, group: GROUP, x, stream: context.stream });
    }
}

/// What the nibbles stand for.
#[derive(Clone, Copy)]
struct E2m1;

impl Meaning for E2m1 {
    const NUMBERS: [f32; 16] = NUMBERS_WITHOUT_NEGATIVE_ZERO;
    const CODES: [i8; 16] = UNSIGNED;

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, scale)
    }
}

/// What 0xff stands for at home; the encoder never writes it.
const BEYOND_NAN: f32 = 480.0;

/// The scales of a block. The sign bit means nothing, except that what would be NaN is 0 without it and 480 with it.
#[inline(always)]
fn scales_of(block: &[u8; BYTES]) -> [f32; GROUPS] {
    let mut scales = [0.0; GROUPS];
    for (scale, &byte) in scales.iter_mut().zip(block) {
        *scale = match byte {
            0x7f => 0.0,
            0xff => BEYOND_NAN,
            byte => e4m3(byte & 0x7f),
        };
    }
    scales
}

/// The scales of 16 groups from their bytes, as [`scales_of`] a block.
#[inline(always)]
fn load_scales<S: Simd>(simd: S, bytes: &[u8; LANES]) -> S::F32 {
    let bytes = simd.load_i32(&bytes.map(i32::from));
    let scales = e4m3_magnitudes(simd, simd.and(bytes, simd.splat_i32(0x7f)));
    simd.select(simd.equal(simd.to_f32(bytes), simd.splat(127.0)), simd.splat(0.0), scales)
}

/// The bytes of the scales of 16 groups.
#[inline(always)]
fn scale_bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32 {
    let scale = simd.div(largest, simd.splat(6.0));
    let small = simd.truncate(at_most(simd, simd.add(simd.mul(scale, simd.splat(512.0)), simd.splat(0.5)), 7.0));
    // Exponent and mantissa of the byte, the bit below added.
    let rounded = simd.shift_right(simd.add_i32(simd.bits(at_most(simd, scale, 448.0)), simd.splat_i32(1 << 19)), 20);
    let normal = simd.to_f32(simd.add_i32(rounded, simd.splat_i32(-120 << 3)));
    let normal = simd.select(simd.less(normal, simd.splat(120.0)), normal, simd.splat(126.0));
    simd.truncate(simd.select(simd.less(scale, simd.splat(1.0 / 64.0)), simd.to_f32(small), normal))
}

#[inline(always)]
fn at_most<S: Simd>(simd: S, v: S::F32, most: f32) -> S::F32 {
    let most = simd.splat(most);
    simd.select(simd.less(v, most), v, most)
}

/// Halfway between neighbouring numbers: above it the next code is nearer.
const MIDPOINTS: [f32; 7] = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0];

/// The magnitudes of numbers fall into cells of a quarter of an octave, of which each holds one midpoint at most and has none near
/// its ends. The cell is the exponent and two bits of the mantissa, rounded; it is at least the one below 0.5, which holds
/// everything smaller too, and at most that of 6.
const CELLS: std::ops::RangeInclusive<i32> = 503..=518;

/// Of each cell the midpoint that is in it or next above it, and the number of those below, as bits. The index is the low
/// four bits of `!cell`.
const TABLES: ([f32; 16], [f32; 16]) = {
    let (mut midpoints, mut below) = ([f32::INFINITY; 16], [0.0; 16]);
    let mut cell = *CELLS.start();
    while cell <= *CELLS.end() {
        let start = f32::from_bits(((cell as u32) << 21) - (1 << 20));
        let mut count = 0;
        while cell > *CELLS.start() && count < 7 && MIDPOINTS[count] < start {
            count += 1;
        }
        let index = (!cell & 15) as usize;
        if count < 7 {
            midpoints[index] = MIDPOINTS[count];
        }
        below[index] = f32::from_bits(count as u32);
        cell += 1;
    }
    (midpoints, below)
};

/// Codes of 16 elements, where looking up is cheaper than dividing: how many midpoints are below. The product of scale and midpoint is
/// exact; that of an element and the reciprocal of the scale is near the quotient and tells which midpoint to ask for.
#[inline(always)]
fn codes_of<S: Simd>(simd: S, x: S::F32, scale: S::F32, inverse: S::F32) -> S::I32 {
    let size = magnitude(simd, x);
    let (midpoint, below) = by_cell(simd, simd.mul(size, inverse));
    let is_above = simd.less(simd.mul(scale, midpoint), size);
    let code = simd.add_i32(below, simd.and(is_above, simd.splat_i32(1)));
    // What rounds to zero has no sign: bit 3 of the sum is set from code 1 on.
    let sign = simd.and(simd.shift_right(simd.bits(x), 28), simd.splat_i32(8));
    simd.or(code, simd.and(sign, simd.add_i32(code, simd.splat_i32(7))))
}

/// The midpoint in the cell of a quotient or next above it, and how many midpoints are below that.
#[inline(always)]
fn by_cell<S: Simd>(simd: S, quotient: S::F32) -> (S::F32, S::I32) {
    let (midpoints, below) = (simd.load(&TABLES.0), simd.load(&TABLES.1));
    let cell = simd.add_i32(simd.bits(quotient), simd.splat_i32(1 << 20));
    let cell = simd.max_i32(simd.shift_right(cell, 21), simd.splat_i32(*CELLS.start()));
    let index = simd.max_i32(simd.xor(cell, simd.splat_i32(-1)), simd.splat_i32(!*CELLS.end()));
    (simd.look_up(midpoints, index), simd.bits(simd.look_up(below, index)))
}

struct Encode<'a> {
    x: &'a [f32],
    blocks: &'a mut [u8],
}

impl Kernel for Encode<'_> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Faults {
        let mut worst = simd.splat_i32(0);
        let (tiles, rest) = self.x.as_chunks();
        let (blocks, rest_blocks) = self.blocks.split_at_mut(tiles.len() * TILE_BYTES);
        for (x, blocks) in tiles.iter().zip(blocks.chunks_exact_mut(TILE_BYTES)) {
            worst = simd.max_i32(worst, encode_tile(simd, x, blocks.as_chunks_mut().0));
        }
        if !rest.is_empty() {
            let mut padded = [0.0; TILE];
            padded[..rest.len()].copy_from_slice(rest);
            worst = simd.max_i32(worst, encode_tile(simd, &padded, rest_blocks.as_chunks_mut().0));
        }
        let mut lanes = [0; LANES];
        simd.store_i32(worst, &mut lanes);
        Faults { element: lanes.iter().any(|&bits| bits >= INFINITE), scale: false }
    }
}

/// Encode 16 groups, as many of them as there are blocks for; the bits of their largest magnitudes.
#[inline(always)]
fn encode_tile<S: Simd>(simd: S, x: &[f32; TILE], blocks: &mut [[u8; BYTES]]) -> S::I32 {
    let groups = x.as_chunks::<GROUP>().0;
    let mut magnitudes = [simd.fold_max(simd.splat_i32(0)); LANES];
    for (bits, x) in magnitudes.iter_mut().zip(groups) {
        *bits = simd.fold_max(simd.bits(magnitude(simd, simd.load(x))));
    }
    let worst = simd.max_of_each(&magnitudes);
    let mut largest = [0.0; LANES];
    simd.store(simd.as_f32(worst), &mut largest);
    let scale_bytes = scale_bytes(simd, simd.as_f32(worst));
    let mut bytes = [0; LANES];
    simd.store_u8(scale_bytes, &mut bytes);
    let scales = e4m3_magnitudes(simd, scale_bytes);
    // Under a scale of 0 every number is as near as the first one.
    let scales = simd.select(simd.less(simd.splat(0.0), scales), scales, simd.splat(f32::INFINITY));
    let (mut all, mut inverses) = ([0.0; LANES], [0.0; LANES]);
    simd.store(scales, &mut all);
    if S::HAS_TABLES {
        simd.store(simd.div(simd.splat(1.0), scales), &mut inverses);
    }
    // Codes, or the bits of the quotients. An element that is above a midpoint, if only by its last bit, has a quotient above it too:
    // a scale has four bits, and the gap between the two is more than half the distance between floats there.
    let mut lanes = [simd.splat_i32(0); LANES];
    for ((lanes, x), (&scale, &inverse)) in lanes.iter_mut().zip(groups).zip(all.iter().zip(&inverses)) {
        let (x, scale) = (simd.load(x), simd.splat(scale));
        *lanes = if S::HAS_TABLES { codes_of(simd, x, scale, simd.splat(inverse)) } else { simd.bits(simd.div(x, scale)) };
    }
    if largest.iter().any(|&largest| largest > LARGEST) {
        for ((lanes, x), (&largest, &byte)) in lanes.iter_mut().zip(groups).zip(largest.iter().zip(&bytes)) {
            if largest > LARGEST {
                let codes = x.map(|x| nearest(x, e4m3(byte)));
                *lanes = if S::HAS_TABLES {
                    simd.load_i32(&codes)
                } else {
                    simd.bits(simd.load(&codes.map(|code| E2m1::NUMBERS[code as usize])))
                };
            }
        }
    }
    let mut packed = [0; LANES * CODES];
    for (packed, lanes) in packed.as_chunks_mut::<64>().0.iter_mut().zip(lanes.as_chunks::<8>().0) {
        if S::HAS_TABLES {
            simd.pack_halves(lanes, packed);
        } else {
            simd.pack_e2m1_halves(lanes, Rounding::TowardZero, packed);
        }
    }
    // Two groups share these bytes, one in the low nibbles; each gets bytes of its own.
    for pair in packed.as_chunks_mut::<{ 2 * CODES }>().0 {
        let (first, second) = halves(pair);
        let even = first & LOW | (second & LOW) << 4;
        let odd = first >> 4 & LOW | second & !LOW;
        pair[..CODES].copy_from_slice(&even.to_le_bytes());
        pair[CODES..].copy_from_slice(&odd.to_le_bytes());
    }
    let packed = packed.as_chunks::<{ GROUPS * CODES }>().0.iter().zip(bytes.as_chunks::<GROUPS>().0);
    for (block, (packed, bytes)) in blocks.iter_mut().zip(packed) {
        block[..GROUPS].copy_from_slice(bytes);
        block[GROUPS..].copy_from_slice(packed);
    }
    worst
}

/// 6 * 448: the scale of a group beyond it is too small for its largest element.
const LARGEST: f32 = 2688.0;

/// The code of the first number that is nearest in f32.
#[cold]
#[inline(never)]
fn nearest(x: f32, scale: f32) -> i32 {
    let distance = |code: i32| (E2m1::NUMBERS[code as usize] * scale - x).abs();
    (1..16).fold(0, |best, code| if distance(code) < distance(best) { code } else { best })
}

/// The first and the last eight bytes.
#[inline(always)]
fn halves(bytes: &[u8; 2 * CODES]) -> (u64, u64) {
    let word = u128::from_le_bytes(*bytes);
    (word as u64, (word >> 64) as u64)
}

/// Where the decoder reads.
#[derive(Clone, Copy)]
struct Blocks<'a>(&'a [[u8; BYTES]]);

impl Shelf for Blocks<'_> {
    const HALVES: bool = true;
    const BY_VECTORS: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        let mut bytes = [0; LANES];
        for (bytes, block) in bytes.as_chunks_mut().0.iter_mut().zip(&self.0[first / GROUPS..(first + count) / GROUPS]) {
            *bytes = *block.first_chunk::<GROUPS>().expect("a block begins with its scales");
        }
        load_scales(simd, &bytes)
    }

    #[inline(always)]
    fn offsets<S: Simd>(self, simd: S, _: usize, _: usize) -> S::F32 {
        simd.splat(0.0)
    }

    #[inline(always)]
    fn packed(&self, group: usize) -> &[u8] {
        &self.0[group / GROUPS][GROUPS + group % GROUPS * CODES..][..CODES]
    }

    #[inline(always)]
    fn decode<S: Simd, F: Floats<S>>(self, simd: S, floats: F, group: usize, x: &mut [F::Float]) {
        for (packed, x) in self.packed(group).as_chunks().0.iter().zip(x.as_chunks_mut().0) {
            floats.of(simd, simd.unpack_eights(packed), x);
        }
    }
}
