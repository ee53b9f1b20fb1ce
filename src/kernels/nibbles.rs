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
