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

use super::lines::{BLOCK, GROUPS, HEADER, Quantize, Scan, header_in_units, lines_of};
use super::{Context, Faults, Groups, Need, Range, Rows};
use crate::kernels::decode::{Floats, Meaning, Output, Shelf, Tables, Values};
use crate::kernels::lanes::GROUP;
use crate::kernels::nibbles::UNSIGNED;
use crate::simd::{LANES, Simd};
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Q4K = Q4K;

static SPEC: Spec = Spec {
    name: "gguf:q4_k",
    aliases: &["q4_k"],
    summary: "groups of 32 with 6-bit scale and minimum, blocks of 256",
    scheme: Scheme::Minimum,
    group_sizes: GroupSizes::InBlocks { size: GROUP, block: BLOCK, header: HEADER },
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(BYTES) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

/// Bytes of a block.
const BYTES: usize = HEADER + BLOCK / 2;

#[derive(Clone, Copy)]
pub(super) struct Q4K;

impl Scan for Q4K {
    const LARGEST: f32 = 15.0;
    const FIRST: f32 = -1.0;
    const LAST: u8 = 20;
}

impl Rows for Q4K {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn need(&self) -> Need {
        Need::Itself
    }

    fn quantize(&self, context: Context, x: &[f32], _: Option<Range>, groups: &mut Groups) -> Faults {
        context.level.run(Quantize::<Q4K>::new(x, groups))
    }

    fn write_headers(&self, units: &[[f32; 2]], groups: &mut Groups) {
        let lines = groups.scales.as_chunks::<GROUPS>().0.iter().zip(groups.offsets.as_chunks::<GROUPS>().0);
        for ((header, units), (scales, minimums)) in groups.headers.as_chunks_mut().0.iter_mut().zip(units).zip(lines) {
            *header = header_in_units(*units, scales, minimums);
        }
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
    const BY_VECTORS: bool = true;

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
