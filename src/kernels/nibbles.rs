//! Codes of one byte each to two a byte and back: the even one in the low nibble.

use crate::simd::{Kernel, Simd};

/// Pack codes; an odd last one gets a zero nibble above it.
pub struct Pack<'a> {
    /// The codes, as bytes.
    pub codes: &'a [u8],
    /// What takes the range of the codes to 0..=15: 8 for -8..=7, 0 for 0..=15.
    pub bias: u8,
    /// Half as many bytes, rounded up.
    pub packed: &'a mut [u8],
}

impl Kernel for Pack<'_> {
    /// Whether every code was in its range; where not, the bytes are of no use.
    type Output = bool;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> bool {
        let (blocks, rest) = self.codes.as_chunks::<128>();
        let (packed, packed_rest) = self.packed.split_at_mut(64 * blocks.len());
        let mut in_range = true;
        for (codes, packed) in blocks.iter().zip(packed.as_chunks_mut().0) {
            in_range &= simd.pack_bytes(codes, self.bias, packed);
        }
        if !rest.is_empty() {
            let (mut last, mut last_packed) = ([0; 128], [0; 64]);
            last[..rest.len()].copy_from_slice(rest);
            in_range &= simd.pack_bytes(&last, self.bias, &mut last_packed);
            packed_rest.copy_from_slice(&last_packed[..rest.len().div_ceil(2)]);
        }
        in_range
    }
}

/// Unpack as many codes as `codes` holds, each looked up in `table`.
pub struct Unpack<'a> {
    /// Half as many bytes, rounded up.
    pub packed: &'a [u8],
    /// The code that each nibble stands for.
    pub table: &'a [u8; 16],
    /// The codes, as bytes.
    pub codes: &'a mut [u8],
}

impl Kernel for Unpack<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (blocks, rest) = self.codes.as_chunks_mut::<128>();
        let (packed, packed_rest) = self.packed.split_at(64 * blocks.len());
        for (codes, packed) in blocks.iter_mut().zip(packed.as_chunks().0) {
            simd.unpack_bytes(packed, self.table, codes);
        }
        if !rest.is_empty() {
            let (mut last, mut last_packed) = ([0; 128], [0; 64]);
            last_packed[..packed_rest.len()].copy_from_slice(packed_rest);
            simd.unpack_bytes(&last_packed, self.table, &mut last);
            rest.copy_from_slice(&last[..rest.len()]);
        }
    }
}

/// The nibbles of two's complement: -8..=7.
pub const SIGNED: [i8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, -8, -7, -6, -5, -4, -3, -2, -1];
/// The nibbles of codes with 8 added: -8..=7.
pub const OFFSET: [i8; 16] = [-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7];
/// The nibbles themselves: 0..=15.
pub const UNSIGNED: [i8; 16] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
/// Bytes of the codes of a block of 32.
const HALF: usize = 16;

/// The codes of blocks, two adjacent ones a byte: byte j of the codes of a block holds code j low and code j + 16 high.
pub struct FromHalves<'a> {
    /// Blocks that end with the 16 bytes of their codes.
    pub blocks: &'a [u8],
    /// Bytes of a block.
    pub stride: usize,
    /// 16 bytes a block; fewer are filled from as many blocks.
    pub packed: &'a mut [u8],
}

impl Kernel for FromHalves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (block, packed) in self.blocks.chunks_exact(self.stride).zip(self.packed.as_chunks_mut::<HALF>().0) {
            let codes = block.last_chunk::<HALF>().expect("a block is longer than its codes");
            let (low, high) = packed.split_at_mut(HALF / 2);
            for ((low, high), pair) in low.iter_mut().zip(high).zip(codes.as_chunks::<2>().0) {
                let pair = u16::from_le_bytes(*pair);
                (*low, *high) = (together(pair), together(pair >> 4));
            }
        }
    }
}

/// The way back.
pub struct ToHalves<'a> {
    /// 16 bytes a block.
    pub packed: &'a [u8],
    /// Blocks that end with the 16 bytes of their codes; their first bytes stay.
    pub blocks: &'a mut [u8],
    /// Bytes of a block.
    pub stride: usize,
}

impl Kernel for ToHalves<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        for (block, packed) in self.blocks.chunks_exact_mut(self.stride).zip(self.packed.as_chunks::<HALF>().0) {
            let codes = block.last_chunk_mut::<HALF>().expect("a block is longer than its codes");
            let (low, high) = packed.split_at(HALF / 2);
            for ((low, high), pair) in low.iter().zip(high).zip(codes.as_chunks_mut::<2>().0) {
                *pair = (apart(*low) | apart(*high) << 4).to_le_bytes();
            }
        }
    }
}

/// The nibbles of a byte in the low halves of two.
#[inline(always)]
pub(super) fn apart(byte: u8) -> u16 {
    let wide = u16::from(byte);
    (wide | wide << 4) & 0x0f0f
}

/// The low halves of two bytes as one byte.
#[inline(always)]
pub(super) fn together(pair: u16) -> u8 {
    (pair & 0x0f | pair >> 4 & 0xf0) as u8
}
