//! The layout of ggml's simple blocks: groups of 32, each a header and 16 bytes of codes, back to back.
//!
//! ```text
//! scale | minimum, where there is one | x0 low, x16 high | x1, x17 | ... | x15, x31
//! ```

use super::{Context, Faults, Groups, Need, Range, Rows};
use crate::kernels::decode::{Output, Shelf, Tables, Values};
use crate::kernels::encode::{Fit, Input, Lanes, Pieces, Place, Rule, TILE, Tiles};
use crate::kernels::pace::Pace;
use crate::kernels::scales::{self, Load, Store};
use crate::kernels::stream::Front;
use crate::simd::Simd;
use crate::spec::{ScaleDtype, Spec};
use std::marker::PhantomData;

/// Elements of a block.
pub(super) const BLOCK: usize = 32;

/// The numerics of a format of this layout, and what its header is made of.
pub(super) trait Header: Rule {
    /// The dtype of the scale, and of the minimum if there is one.
    const DTYPE: ScaleDtype = ScaleDtype::F16;
    /// Bytes of the scale.
    const SCALE: usize = if matches!(Self::DTYPE, ScaleDtype::E8m0) { 1 } else { 2 };
    /// Bytes of the header.
    const BYTES: usize = if Self::MINIMUM { 2 * Self::SCALE } else { Self::SCALE };
}

/// A format of this layout: its facts and its numerics.
pub(super) struct Blocks<R> {
    spec: &'static Spec,
    rule: PhantomData<R>,
}

impl<R: Header> Blocks<R> {
    pub(super) const fn new(spec: &'static Spec) -> Self {
        Blocks { spec, rule: PhantomData }
    }

    const BYTES: usize = R::BYTES + BLOCK / 2;
}

impl<R: Header> Rows for Blocks<R> {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn need(&self) -> Need {
        R::NEED
    }

    fn halves_after(&self) -> Option<usize> {
        Some(R::BYTES)
    }

    fn quantize(&self, context: Context, x: &[f32], range: Option<Range>, groups: &mut Groups) -> Faults {
        let Groups { codes, scales, offsets, .. } = groups;
        context.level.run(Pieces { rule: R::of(context.global), x, group: BLOCK, range, dtype: R::DTYPE, codes, scales, offsets })
    }

    fn pack(&self, context: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let (mut scales, mut minimums) = (vec![0; R::SCALE * groups.scales.len()], vec![0; R::SCALE * groups.offsets.len()]);
        context.level.run(Store { values: &groups.scales, dtype: R::DTYPE, bytes: &mut scales });
        context.level.run(Store { values: &groups.offsets, dtype: R::DTYPE, bytes: &mut minimums });
        for (block, stored) in blocks.chunks_exact_mut(Self::BYTES).zip(scales.chunks_exact(R::SCALE)) {
            block[..R::SCALE].copy_from_slice(stored);
        }
        for (block, stored) in blocks.chunks_exact_mut(Self::BYTES).zip(minimums.chunks_exact(R::SCALE)) {
            block[R::SCALE..R::BYTES].copy_from_slice(stored);
        }
        for (block, codes) in blocks.chunks_exact_mut(Self::BYTES).zip(groups.codes.as_chunks::<BLOCK>().0) {
            // Arrays by value, and no checked addition: then this is done 16 at a time.
            let ([low, high], _) = codes.as_chunks::<{ BLOCK / 2 }>() else { unreachable!("a block is two halves") };
            let nibbles = |half: &[i8; BLOCK / 2]| half.map(|code| code.wrapping_add(R::BIAS).cast_unsigned());
            let (low, high) = (nibbles(low), nibbles(high));
            block[R::BYTES..].copy_from_slice(&std::array::from_fn::<u8, { BLOCK / 2 }, _>(|j| low[j] | high[j] << 4));
        }
    }

    fn unpack(&self, context: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let headers = || blocks.chunks_exact(Self::BYTES);
        let count = groups.scales.len();
        let numbers = |at: usize| {
            let mut bytes = vec![0; R::SCALE * count];
            for (bytes, block) in bytes.chunks_exact_mut(R::SCALE).zip(headers()) {
                bytes.copy_from_slice(&block[at..at + R::SCALE]);
            }
            bytes
        };
        let scales = numbers(0);
        context.level.run(Load { bytes: &scales, dtype: R::DTYPE, values: &mut groups.scales });
        if R::MINIMUM {
            let minimums = numbers(R::SCALE);
            context.level.run(Load { bytes: &minimums, dtype: R::DTYPE, values: &mut groups.offsets });
        }
        let code = |nibble: u8| nibble.cast_signed().wrapping_sub(R::BIAS);
        for (block, codes) in headers().zip(groups.codes.as_chunks_mut::<BLOCK>().0) {
            let packed = *block.last_chunk::<{ BLOCK / 2 }>().expect("half a byte for a code");
            let (low, high) = codes.split_at_mut(BLOCK / 2);
            low.copy_from_slice(&packed.map(|byte| code(byte & 15)));
            high.copy_from_slice(&packed.map(|byte| code(byte >> 4)));
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        let Groups { codes, scales, offsets, .. } = groups;
        context.level.run(Values { rule: R::of(context.global), codes, group: BLOCK, scales, offsets, x });
    }

    fn streams(&self, _: usize) -> bool {
        true
    }

    fn encode(&self, context: Context, x: Input<'_>, groups: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let whole = x.len() / TILE * TILE;
        let (tiles, rest) = (x.part(0..whole), x.part(whole..x.len()));
        let (blocks, rest_blocks) = blocks.split_at_mut(tiles.len() / BLOCK * Self::BYTES);
        let mut lines = None;
        let place = Slots { blocks: Front::new(blocks, context.stream, Pace::of_this_cpu(), &mut lines), rule: PhantomData::<R> };
        let mut faults = context.level.run(Tiles::<_, _> { rule: R::of(context.global), place, x: tiles, run: 1, dtype: R::DTYPE });
        if rest.len() > 0 {
            groups.resize(self.spec, context, rest.len());
            faults |= self.quantize(context, &rest.floats(context.level), None, groups);
            self.pack(context, groups, &mut [rest_blocks]);
        }
        faults
    }

    fn decode(&self, context: Context, parts: &[&[u8]], _: &mut Groups, x: Output<'_>) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        context.level.run(Tables {
            rule: R::of(context.global),
            shelf: Stride { blocks, rule: PhantomData::<R> },
            group: BLOCK,
            x,
            stream: context.stream,
        });
    }
}

/// Where the fused kernel writes.
struct Slots<'a, R> {
    blocks: Front<'a>,
    rule: PhantomData<R>,
}

impl<R: Header> Place for Slots<'_, R> {
    #[inline(always)]
    fn fit<S: Simd>(&mut self, simd: S, _: usize, fit: &Fit<S>, _: usize) {
        let (mut scales, mut minimums) = ([0; 32], [0; 32]);
        scales::store(simd, fit.scale, R::DTYPE, 1, &mut scales[..16 * R::SCALE]);
        if R::MINIMUM {
            scales::store(simd, fit.offset, R::DTYPE, 1, &mut minimums[..16 * R::SCALE]);
        }
        let blocks = self.blocks.next(simd, 16 * Blocks::<R>::BYTES);
        for (group, block) in blocks.chunks_exact_mut(Blocks::<R>::BYTES).enumerate() {
            block[..R::SCALE].copy_from_slice(&scales[R::SCALE * group..][..R::SCALE]);
            if R::MINIMUM {
                block[R::SCALE..R::BYTES].copy_from_slice(&minimums[R::SCALE * group..][..R::SCALE]);
            }
        }
    }

    #[inline(always)]
    fn codes<S: Simd>(&mut self, simd: S, line: usize, lanes: &[S::I32; 8]) {
        let mut packed = [0; 64];
        match R::LANES {
            Lanes::E2m1(rounding) => simd.pack_e2m1_halves(lanes, rounding, &mut packed),
            Lanes::Codes => simd.pack_halves(lanes, &mut packed),
            Lanes::Ranked(_) => unreachable!("no format of ggml's blocks has numbers between steps"),
        }
        let blocks = self.blocks.last(16 * Blocks::<R>::BYTES).chunks_exact_mut(Blocks::<R>::BYTES).skip(line % 4 * 4);
        for (block, packed) in blocks.zip(packed.as_chunks::<{ BLOCK / 2 }>().0) {
            block[R::BYTES..].copy_from_slice(packed);
        }
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S) {
        self.blocks.finish(simd);
    }
}

/// Where the fused decoder reads.
#[derive(Clone, Copy)]
struct Stride<'a, R> {
    blocks: &'a [u8],
    rule: PhantomData<R>,
}

impl<R: Header> Stride<'_, R> {
    /// The numbers at byte `at` of up to 16 blocks.
    #[inline(always)]
    fn numbers<S: Simd>(self, simd: S, first: usize, count: usize, at: usize) -> S::F32 {
        let mut bytes = [0; 32];
        let blocks = self.blocks[first * Blocks::<R>::BYTES..].chunks_exact(Blocks::<R>::BYTES);
        for (bytes, block) in bytes.chunks_exact_mut(R::SCALE).zip(blocks.take(count)) {
            bytes.copy_from_slice(&block[at..at + R::SCALE]);
        }
        scales::load(simd, R::DTYPE, &bytes[..count * R::SCALE])
    }
}

impl<R: Header> Shelf for Stride<'_, R> {
    const HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        self.numbers(simd, first, count, 0)
    }

    #[inline(always)]
    fn offsets<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        if R::MINIMUM { self.numbers(simd, first, count, R::SCALE) } else { simd.splat(0.0) }
    }

    #[inline(always)]
    fn packed(&self, group: usize) -> &[u8] {
        &self.blocks[group * Blocks::<R>::BYTES..][R::BYTES..Blocks::<R>::BYTES]
    }
}
