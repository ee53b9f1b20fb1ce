//! GGUF `IQ4_XS`: groups of 32 under a table of 16 numbers with a signed 6-bit scale, eight of them under one f16 scale.
//!
//! ```text
//! byte   0..2        2..4           4..8          8                    ...             136
//!        scale f16 | upper factors | lower factors | x0 low, x16 high | x1, x17 | ... | x239, x255
//!
//! upper factors  bits 2 i and 2 i + 1 of the word: (factor i + 32) >> 4
//! lower factors  byte i: (factor 2 i + 32) % 16 low, (factor 2 i + 1 + 32) % 16 high
//! codes          byte 16 i + j: element 32 i + j low, 32 i + j + 16 high
//!
//! scale of each group by search (see `iq4`), scale = (the one of largest magnitude, the first one wins) / -32
//! factor = clamp(round_half_even(scale of the group / scale), -32, 31)
//! code   = nearest(x * (1 / (scale * factor))), a tie to the larger number       x ~ table[code] * (scale * factor)
//! ```
//!
//! Factors and codes are made with the scale before it is rounded to f16. Source: ggml-org/ggml `src/ggml-quants.c`,
//! `quantize_row_iq4_nl_impl`.

use super::iq4::{self, Iq4, Nearest, reciprocal_or_zero, search};
use super::{Context, Faults, Groups, Need, Range, Rows};
use crate::kernels::decode::{Output, Shelf, Tables, Values};
use crate::kernels::lanes::{self, GROUP, TILE, any_not_finite};
use crate::simd::{Kernel, LANES, Simd};
use crate::spec::{Codebook, Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};
use half::f16;

pub(super) static FORMAT: Iq4Xs = Iq4Xs;

static SPEC: Spec = Spec {
    name: "gguf:iq4_xs",
    aliases: &["iq4_xs"],
    summary: "groups of 32 codes of a table of 16 with 6-bit scale, blocks of 256",
    scheme: Scheme::Codebook(Codebook::Iq4),
    group_sizes: GroupSizes::InBlocks { size: GROUP, block: BLOCK, header: HEADER },
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(BYTES) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

/// Groups of a block.
const GROUPS: usize = 8;

/// Elements of a block.
const BLOCK: usize = GROUPS * GROUP;

/// Bytes of scale and factors.
const HEADER: usize = 8;

/// Bytes of a block.
const BYTES: usize = HEADER + BLOCK / 2;

pub(super) struct Iq4Xs;

impl Rows for Iq4Xs {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn need(&self) -> Need {
        Need::Magnitude
    }

    fn quantize(&self, context: Context, x: &[f32], _: Option<Range>, groups: &mut Groups) -> Faults {
        context.level.run(Quantize { x, groups })
    }

    fn write_headers(&self, units: &[[f32; 2]], groups: &mut Groups) {
        let scales = groups.scales.as_chunks::<GROUPS>().0;
        for ((header, &[unit, _]), scales) in groups.headers.as_chunks_mut().0.iter_mut().zip(units).zip(scales) {
            *header = pack_header(unit, scales.map(|scale| if unit == 0.0 { 0.0 } else { scale / unit }));
        }
    }

    fn pack(&self, _: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let codes = groups.codes.as_chunks::<BLOCK>().0;
        for ((block, header), codes) in blocks.as_chunks_mut::<BYTES>().0.iter_mut().zip(groups.headers.as_chunks::<HEADER>().0).zip(codes)
        {
            let (to, packed) = block.split_at_mut(HEADER);
            to.copy_from_slice(header);
            for (packed, codes) in packed.chunks_exact_mut(GROUP / 2).zip(codes.chunks_exact(GROUP)) {
                iq4::pack(codes, packed);
            }
        }
    }

    fn unpack(&self, _: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let Groups { codes, scales, headers, .. } = groups;
        let headers = headers.as_chunks_mut::<HEADER>().0.iter_mut().zip(scales.as_chunks_mut::<GROUPS>().0);
        for (block, (codes, (header, scales))) in
            blocks.as_chunks::<BYTES>().0.iter().zip(codes.as_chunks_mut::<BLOCK>().0.iter_mut().zip(headers))
        {
            let (from, packed) = block.split_at(HEADER);
            header.copy_from_slice(from);
            *scales = scales_of(header);
            for (packed, codes) in packed.chunks_exact(GROUP / 2).zip(codes.chunks_exact_mut(GROUP)) {
                iq4::unpack(packed, codes);
            }
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        let Groups { codes, scales, .. } = groups;
        context.level.run(Values { rule: Iq4, codes, group: GROUP, scales, offsets: &[], x });
    }

    fn decode(&self, context: Context, parts: &[&[u8]], _: &mut Groups, x: Output<'_>) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let shelf = Blocks(blocks.as_chunks().0);
        context.level.run(Tables { rule: Iq4, shelf, group: GROUP, x, stream: context.stream });
    }
}

/// The scales of the groups of a block: products of two numbers, all of them exact in f32.
#[inline(always)]
fn scales_of(header: &[u8; HEADER]) -> [f32; GROUPS] {
    let scale = f16::from_le_bytes([header[0], header[1]]).to_f32();
    let upper = u16::from_le_bytes([header[2], header[3]]);
    let lower = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let mut scales = [0.0; GROUPS];
    for (scales, i) in scales.iter_mut().zip(0..) {
        let factor = (lower >> (4 * i) & 15) as i32 | i32::from(upper >> (2 * i) & 3) << 4;
        *scales = scale * (factor - 32) as f32;
    }
    scales
}

/// The header of a block, and what its codes are made with: the scales of its groups before the shared one is rounded.
fn header_of(found: &[f32; GROUPS]) -> ([u8; HEADER], [f32; GROUPS]) {
    let extreme = found.iter().fold(0.0f32, |extreme, &scale| if scale.abs() > extreme.abs() { scale } else { extreme });
    let scale = -extreme / 32.0;
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let factors = found.map(|found| (inverse * found).round_ties_even().clamp(-32.0, 31.0));
    (pack_header(scale, factors), factors.map(|factor| scale * factor))
}

/// The way back from [`scales_of`].
fn pack_header(scale: f32, factors: [f32; GROUPS]) -> [u8; HEADER] {
    let (mut upper, mut lower) = (0, 0);
    for (i, factor) in factors.into_iter().enumerate() {
        let stored = (factor + 32.0) as u16;
        upper |= stored >> 4 << (2 * i);
        lower |= u32::from(stored & 15) << (4 * i);
    }
    let mut header = [0; HEADER];
    header[..2].copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    header[2..4].copy_from_slice(&u16::to_le_bytes(upper));
    header[4..].copy_from_slice(&u32::to_le_bytes(lower));
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
        let nearest = Nearest::new(simd);
        let mut faults = Faults::default();
        let stored = headers.chunks_mut(LANES / GROUPS * HEADER).zip(scales.chunks_mut(LANES));
        for ((x, codes), (headers, scales)) in self.x.chunks(TILE).zip(codes.chunks_mut(TILE)).zip(stored) {
            let x = lanes::load(simd, x);
            let found = search(simd, nearest, &x);
            faults.element |= any_not_finite(simd, found.largest);
            let (mut searched, mut exact) = ([0.0; LANES], [0.0; LANES]);
            simd.store(found.scale, &mut searched);
            let blocks = headers.as_chunks_mut::<HEADER>().0.iter_mut().zip(scales.as_chunks_mut::<GROUPS>().0);
            let groups = searched.as_chunks::<GROUPS>().0.iter().zip(exact.as_chunks_mut::<GROUPS>().0);
            for ((header, scales), (searched, exact)) in blocks.zip(groups) {
                (*header, *exact) = header_of(searched);
                *scales = scales_of(header);
                // A scale that the search could not find has no factor: it is beyond what can be stored.
                for (scale, &searched) in scales.iter_mut().zip(searched) {
                    if !searched.is_finite() {
                        *scale = searched;
                    }
                    faults.scale |= !scale.is_finite();
                }
            }
            let inverse = reciprocal_or_zero(simd, simd.load(&exact));
            lanes::store_codes(simd, &x.map(|x| nearest.code(simd, simd.mul(inverse, x))), codes);
        }
        faults
    }
}

/// Where the decoder reads.
#[derive(Clone, Copy)]
struct Blocks<'a>(&'a [[u8; BYTES]]);

impl Shelf for Blocks<'_> {
    const HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        let mut scales = [0.0; LANES];
        for (scales, block) in scales.as_chunks_mut().0.iter_mut().zip(&self.0[first / GROUPS..(first + count) / GROUPS]) {
            *scales = scales_of(block.first_chunk().expect("a block is longer than its header"));
        }
        simd.load(&scales)
    }

    #[inline(always)]
    fn offsets<S: Simd>(self, simd: S, _: usize, _: usize) -> S::F32 {
        simd.splat(0.0)
    }

    #[inline(always)]
    fn packed(&self, group: usize) -> &[u8] {
        &self.0[group / GROUPS][HEADER + group % GROUPS * GROUP / 2..][..GROUP / 2]
    }
}
