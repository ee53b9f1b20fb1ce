//! The layout of the companions that ggml keeps in blocks of 32: a header, then codes of more than 4 bits. Written for plainness:
//! a few tensors of a file are in these formats.
//!
//! ```text
//! scale f16 | minimum f16, where there is one | codes, as the format packs them
//! ```

use super::{Context, Faults, Groups, Need, Range, Rows};
use crate::spec::Spec;
use half::f16;
use std::marker::PhantomData;

/// Elements of a block.
pub(super) const BLOCK: usize = 32;

/// The numerics of a format of this layout, and how its codes are packed.
pub(super) trait Wide: Sync + 'static {
    /// Whether a minimum follows the scale.
    const MINIMUM: bool = false;
    /// Bytes of the codes of a block.
    const CODES: usize;

    /// Scale, minimum (0 where there is none) and codes of a block, the first two before they are rounded to f16.
    fn encode(x: &[f32; BLOCK]) -> (f32, f32, [i8; BLOCK]);
    /// Codes to bytes.
    fn pack(codes: &[i8; BLOCK], bytes: &mut [u8]);
    /// Bytes to codes.
    fn unpack(bytes: &[u8]) -> [i8; BLOCK];
}

/// A format of this layout: its facts and its numerics.
pub(super) struct Blocks<R> {
    spec: &'static Spec,
    rule: PhantomData<R>,
}

impl<R: Wide> Blocks<R> {
    pub(super) const fn new(spec: &'static Spec) -> Self {
        Blocks { spec, rule: PhantomData }
    }

    const HEADER: usize = if R::MINIMUM { 4 } else { 2 };
    const BYTES: usize = Self::HEADER + R::CODES;
}

impl<R: Wide> Rows for Blocks<R> {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn need(&self) -> Need {
        Need::Itself
    }

    fn quantize(&self, _: Context, x: &[f32], _: Option<Range>, groups: &mut Groups) -> Faults {
        let mut faults = Faults::default();
        let blocks = x.as_chunks::<BLOCK>().0.iter().zip(groups.codes.as_chunks_mut::<BLOCK>().0);
        for (index, (x, codes)) in blocks.enumerate() {
            faults.element |= x.iter().any(|x| !x.is_finite());
            let (scale, minimum, found) = R::encode(x);
            *codes = found;
            let stored = |value: f32| f16::from_f32(value).to_f32();
            groups.scales[index] = stored(scale);
            faults.scale |= !stored(scale).is_finite();
            if let Some(offset) = groups.offsets.get_mut(index) {
                *offset = stored(minimum);
                faults.scale |= !offset.is_finite();
            }
        }
        faults
    }

    fn pack(&self, _: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let codes = groups.codes.as_chunks::<BLOCK>().0;
        for (index, (block, codes)) in blocks.chunks_exact_mut(Self::BYTES).zip(codes).enumerate() {
            block[..2].copy_from_slice(&f16::from_f32(groups.scales[index]).to_le_bytes());
            if R::MINIMUM {
                block[2..4].copy_from_slice(&f16::from_f32(groups.offsets[index]).to_le_bytes());
            }
            R::pack(codes, &mut block[Self::HEADER..]);
        }
    }

    fn unpack(&self, _: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let half = |bytes: &[u8]| f16::from_le_bytes([bytes[0], bytes[1]]).to_f32();
        for (index, block) in blocks.chunks_exact(Self::BYTES).enumerate() {
            groups.scales[index] = half(block);
            if R::MINIMUM {
                groups.offsets[index] = half(&block[2..]);
            }
            if let Some(codes) = groups.codes.as_chunks_mut::<BLOCK>().0.get_mut(index) {
                *codes = R::unpack(&block[Self::HEADER..]);
            }
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        values(context, groups, x);
    }
}

/// x ~ code * scale, or code * scale + minimum where there are minimums.
pub(super) fn values(context: Context, groups: &Groups, x: &mut [f32]) {
    let pieces = x.chunks_mut(context.group).zip(groups.codes.chunks(context.group)).zip(&groups.scales);
    for (group, ((x, codes), scale)) in pieces.enumerate() {
        let minimum = groups.offsets.get(group);
        for (x, &code) in x.iter_mut().zip(codes) {
            let product = f32::from(code) * scale;
            *x = minimum.map_or(product, |minimum| product + minimum);
        }
    }
}

/// The first element of largest magnitude; +0 where all are 0.
pub(super) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0f32, |largest, &x| if largest.abs() < x.abs() { x } else { largest })
}

/// 1 / scale, 0 where the scale is 0; none where it would be infinite: then every stored code is 0, as ggml has it on x86.
pub(super) fn reciprocal(scale: f32) -> Option<f32> {
    let inverse = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    inverse.is_finite().then_some(inverse)
}

/// Five bits a code: 32 fifth bits, then the lower four, element j low with element j + 16 high.
pub(super) mod five {
    use super::BLOCK;

    /// Bytes of a block.
    pub(in super::super) const BYTES: usize = 4 + BLOCK / 2;

    /// Codes 0..=31 to bytes.
    pub(in super::super) fn pack(codes: [u8; BLOCK], bytes: &mut [u8]) {
        let fifth = codes.iter().enumerate().fold(0u32, |bits, (j, &code)| bits | u32::from(code >> 4 & 1) << j);
        let (high, low) = bytes.split_at_mut(4);
        high.copy_from_slice(&fifth.to_le_bytes());
        for (j, byte) in low.iter_mut().enumerate() {
            *byte = codes[j] & 15 | codes[j + BLOCK / 2] << 4;
        }
    }

    /// Bytes to codes 0..=31.
    pub(in super::super) fn unpack(bytes: &[u8]) -> [u8; BLOCK] {
        let fifth = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        std::array::from_fn(|j| {
            let byte = bytes[4 + j % (BLOCK / 2)];
            let low = if j < BLOCK / 2 { byte & 15 } else { byte >> 4 };
            low | ((fifth >> j & 1) as u8) << 4
        })
    }
}
