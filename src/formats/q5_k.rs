//! GGUF `Q5_K`: groups of 32 with a 6-bit scale and a 6-bit minimum, eight of them under one f16 scale and one f16 minimum; codes of
//! 5 bits. A companion: in mixtures of llama.cpp some tensors beside those of Q4_K.
//!
//! ```text
//! byte   0..16                     16..48       48                   ...            176
//!        as those of a Q4_K block | fifth bits | x0 low, x32 high | x1, x33 | ... | x223, x255
//!
//! byte 16 + l         bit g is the fifth of element 32 g + l
//! byte 48 + 32 i + l  element 64 i + l low, element 64 i + 32 + l high
//!
//! x ~ code * (scale * s) - minimum * m
//! ```
//!
//! The search is that of Q4_K with `1 / scale = (t + 30.5) / (max - min)`, t = 0, 0.1, ... 1.5. Source: ggml-org/ggml
//! `src/ggml-quants.c`, `quantize_row_q5_K_ref`.

use super::lines::{BLOCK, GROUPS, HEADER, Quantize, Scan, lines_of};
use super::{Context, Faults, Groups, Need, Range, Rows, wide};
use crate::kernels::lanes::GROUP;
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Q5K = Q5K;

static SPEC: Spec = Spec {
    name: "gguf:q5_k",
    aliases: &["q5_k"],
    summary: "companion: groups of 32 with 6-bit scale and minimum, codes of 5 bits, blocks of 256",
    scheme: Scheme::Minimum,
    bits: 5,
    group_sizes: GroupSizes::InBlocks { size: GROUP, block: BLOCK, header: HEADER },
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(BYTES) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

/// Bytes of a block.
const BYTES: usize = HEADER + GROUP + BLOCK / 2;

#[derive(Clone, Copy)]
pub(super) struct Q5K;

impl Scan for Q5K {
    const LARGEST: f32 = 31.0;
    const FIRST: f32 = -0.5;
    const LAST: u8 = 15;
}

impl Rows for Q5K {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn need(&self) -> Need {
        Need::Itself
    }

    fn quantize(&self, context: Context, x: &[f32], _: Option<Range>, groups: &mut Groups) -> Faults {
        context.level.run(Quantize::<Q5K>::new(x, groups))
    }

    fn pack(&self, _: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let stored = groups.headers.as_chunks::<HEADER>().0.iter().zip(groups.codes.as_chunks::<BLOCK>().0);
        for (block, (header, codes)) in blocks.as_chunks_mut::<BYTES>().0.iter_mut().zip(stored) {
            block[..HEADER].copy_from_slice(header);
            let (fifth, low) = block[HEADER..].split_at_mut(GROUP);
            let code = |group: usize, l: usize| codes[GROUP * group + l].cast_unsigned();
            for (l, byte) in fifth.iter_mut().enumerate() {
                *byte = (0..GROUPS).fold(0, |bits, group| bits | (code(group, l) >> 4 & 1) << group);
            }
            for (i, pair) in low.chunks_exact_mut(GROUP).enumerate() {
                for (l, byte) in pair.iter_mut().enumerate() {
                    *byte = code(2 * i, l) & 15 | code(2 * i + 1, l) << 4;
                }
            }
        }
    }

    fn unpack(&self, _: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let Groups { codes, scales, offsets, headers } = groups;
        let mut codes = codes.as_chunks_mut::<BLOCK>().0.iter_mut();
        let lines = scales.as_chunks_mut::<GROUPS>().0.iter_mut().zip(offsets.as_chunks_mut::<GROUPS>().0);
        let stored = headers.as_chunks_mut::<HEADER>().0.iter_mut().zip(lines);
        for (block, (header, (scales, minimums))) in blocks.as_chunks::<BYTES>().0.iter().zip(stored) {
            header.copy_from_slice(&block[..HEADER]);
            lines_of(header, scales, minimums);
            let (fifth, low) = block[HEADER..].split_at(GROUP);
            for (group, codes) in codes.next().into_iter().flat_map(|codes| codes.chunks_exact_mut(GROUP)).enumerate() {
                let low = &low[group / 2 * GROUP..][..GROUP];
                for ((code, low), fifth) in codes.iter_mut().zip(low).zip(fifth) {
                    *code = (low >> (4 * (group % 2)) & 15 | (fifth >> group & 1) << 4).cast_signed();
                }
            }
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        wide::values(context, groups, x);
    }
}
