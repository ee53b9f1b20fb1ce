//! The layout of ggml's simple blocks: groups of 32, each a header and 16 bytes of codes, back to back.
//!
//! ```text
//! scale f16 | minimum f16, where there is one | x0 low, x16 high | x1, x17 | ... | x15, x31
//! ```

use super::{Context, Faults, Format, Groups, Need, Range};
use crate::kernels::decode::{Shelf, Tables, Values};
use crate::kernels::encode::{Fit, Pieces, Place, Rule, TILE, Tiles};
use crate::simd::Simd;
use crate::spec::{ScaleDtype, Spec};
use half::f16;
use std::marker::PhantomData;

/// Elements of a block.
pub(super) const BLOCK: usize = 32;

/// A format of this layout: its facts and its numerics.
pub(super) struct Blocks<R> {
    spec: &'static Spec,
    rule: PhantomData<R>,
}

impl<R: Rule> Blocks<R> {
    pub(super) const fn new(spec: &'static Spec) -> Self {
        Blocks { spec, rule: PhantomData }
    }

    const HEADER: usize = if R::MINIMUM { 4 } else { 2 };
    const BYTES: usize = Self::HEADER + BLOCK / 2;
}

impl<R: Rule + Default> Format for Blocks<R> {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn need(&self) -> Need {
        R::NEED
    }

    fn quantize(&self, context: Context, x: &[f32], range: Option<Range>, groups: &mut Groups) -> Faults {
        let Groups { codes, scales, offsets } = groups;
        context.level.run(Pieces { rule: R::default(), x, group: BLOCK, range, dtype: ScaleDtype::F16, codes, scales, offsets })
    }

    fn pack(&self, _: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        for (group, (block, codes)) in blocks.chunks_exact_mut(Self::BYTES).zip(groups.codes.chunks_exact(BLOCK)).enumerate() {
            let (header, packed) = block.split_at_mut(Self::HEADER);
            header[..2].copy_from_slice(&f16::from_f32(groups.scales[group]).to_le_bytes());
            if R::MINIMUM {
                header[2..].copy_from_slice(&f16::from_f32(groups.offsets[group]).to_le_bytes());
            }
            let (low, high) = codes.split_at(BLOCK / 2);
            for ((byte, low), high) in packed.iter_mut().zip(low).zip(high) {
                *byte = (low + R::BIAS) as u8 | ((high + R::BIAS) as u8) << 4;
            }
        }
    }

    fn unpack(&self, _: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        for (group, (block, codes)) in blocks.chunks_exact(Self::BYTES).zip(groups.codes.chunks_exact_mut(BLOCK)).enumerate() {
            let (header, packed) = block.split_at(Self::HEADER);
            let stored = |at: usize| f16::from_le_bytes([header[at], header[at + 1]]).to_f32();
            groups.scales[group] = stored(0);
            if R::MINIMUM {
                groups.offsets[group] = stored(2);
            }
            let (low, high) = codes.split_at_mut(BLOCK / 2);
            for ((byte, low), high) in packed.iter().zip(low).zip(high) {
                (*low, *high) = (R::CODES[usize::from(byte & 15)], R::CODES[usize::from(byte >> 4)]);
            }
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        let Groups { codes, scales, offsets } = groups;
        context.level.run(Values { rule: R::default(), codes, group: BLOCK, scales, offsets, x });
    }

    fn encode(&self, context: Context, x: &[f32], groups: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let (tiles, rest) = x.split_at(x.len() / TILE * TILE);
        let (blocks, rest_blocks) = blocks.split_at_mut(tiles.len() / BLOCK * Self::BYTES);
        let place = Header { blocks, rule: PhantomData::<R> };
        let mut faults = context.level.run(Tiles::<_, _, 1> { rule: R::default(), place, x: tiles, dtype: ScaleDtype::F16 });
        if !rest.is_empty() {
            groups.resize(self.spec, context, rest.len());
            faults |= self.quantize(context, rest, None, groups);
            self.pack(context, groups, &mut [rest_blocks]);
        }
        faults
    }

    fn decode(&self, context: Context, parts: &[&[u8]], _: &mut Groups, x: &mut [f32]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        context.level.run(Tables {
            rule: R::default(),
            shelf: Stride { blocks, rule: PhantomData::<R> },
            group: BLOCK,
            x,
            stream: context.stream,
        });
    }
}

/// Where the fused kernel writes.
struct Header<'a, R> {
    blocks: &'a mut [u8],
    rule: PhantomData<R>,
}

impl<R: Rule> Place for Header<'_, R> {
    #[inline(always)]
    fn fit<S: Simd>(&mut self, simd: S, tile: usize, fit: &Fit<S>, _: usize) {
        let (mut scales, mut minimums) = ([0; 16], [0; 16]);
        simd.store_f16(fit.scale, &mut scales);
        if R::MINIMUM {
            simd.store_f16(fit.offset, &mut minimums);
        }
        let bytes = 16 * Blocks::<R>::BYTES;
        for (group, block) in self.blocks[tile * bytes..][..bytes].chunks_exact_mut(Blocks::<R>::BYTES).enumerate() {
            block[..2].copy_from_slice(&scales[group].to_le_bytes());
            if R::MINIMUM {
                block[2..4].copy_from_slice(&minimums[group].to_le_bytes());
            }
        }
    }

    #[inline(always)]
    fn codes<S: Simd>(&mut self, simd: S, line: usize, codes: &[S::I32; 8]) {
        let mut packed = [0; 64];
        simd.pack_halves(codes, &mut packed);
        let bytes = 4 * Blocks::<R>::BYTES;
        let blocks = self.blocks[line * bytes..][..bytes].chunks_exact_mut(Blocks::<R>::BYTES);
        for (block, packed) in blocks.zip(packed.as_chunks::<{ BLOCK / 2 }>().0) {
            block[Blocks::<R>::HEADER..].copy_from_slice(packed);
        }
    }
}

/// Where the fused decoder reads.
#[derive(Clone, Copy)]
struct Stride<'a, R> {
    blocks: &'a [u8],
    rule: PhantomData<R>,
}

impl<R: Rule> Stride<'_, R> {
    /// The halves at byte `at` of up to 16 blocks.
    #[inline(always)]
    fn halves<S: Simd>(self, simd: S, first: usize, count: usize, at: usize) -> S::F32 {
        let mut halves = [0; 16];
        let blocks = self.blocks[first * Blocks::<R>::BYTES..].chunks_exact(Blocks::<R>::BYTES);
        for (half, block) in halves.iter_mut().zip(blocks.take(count)) {
            *half = u16::from_le_bytes([block[at], block[at + 1]]);
        }
        simd.load_f16(&halves)
    }
}

impl<R: Rule> Shelf for Stride<'_, R> {
    const HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        self.halves(simd, first, count, 0)
    }

    #[inline(always)]
    fn offsets<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        if R::MINIMUM { self.halves(simd, first, count, 2) } else { simd.splat(0.0) }
    }

    #[inline(always)]
    fn packed(&self, group: usize) -> &[u8] {
        &self.blocks[group * Blocks::<R>::BYTES..][Blocks::<R>::HEADER..Blocks::<R>::BYTES]
    }
}
