//! Blocks of 32 nibbles after a header, as ggml keeps them, to nibbles that follow each other, and back.
//!
//! ```text
//! block    header | byte j = nibble j low, nibble j + 16 high
//! packed            byte i = nibble 2i low, nibble 2i + 1 high
//! ```

use crate::simd::{Kernel, LANES, Simd};

/// Codes of a block.
pub const CODES: usize = 32;

/// Bytes of the nibbles of a block.
pub const BYTES: usize = CODES / 2;

/// Blocks that are done at once.
const AT_ONCE: usize = 4;
/// Their codes as vectors.
const VECTORS: usize = AT_ONCE * CODES / LANES;

/// The nibbles of blocks in order.
pub struct FromBlocks<'a> {
    /// Blocks that follow each other.
    pub blocks: &'a [u8],
    /// Bytes before the nibbles of each.
    pub header: usize,
    /// What every nibble is combined with by exclusive or.
    pub flip: u8,
    /// [`BYTES`] for each block.
    pub packed: &'a mut [u8],
}

impl Kernel for FromBlocks<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the lengths match.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let FromBlocks { blocks, header, flip, packed } = self;
        check(blocks, header, packed);
        let (flip, size) = (simd.splat_i32(i32::from(flip)), header + BYTES);
        let (whole, rest) = packed.as_chunks_mut::<{ AT_ONCE * BYTES }>();
        let (whole_blocks, rest_blocks) = blocks.split_at(whole.len() * AT_ONCE * size);
        for (blocks, packed) in whole_blocks.chunks_exact(AT_ONCE * size).zip(whole) {
            let mut codes = [flip; VECTORS];
            for i in 0..AT_ONCE {
                let [low, high] = simd.unpack_halves(nibbles_of(&blocks[i * size..][..size]));
                (codes[2 * i], codes[2 * i + 1]) = (nibble(simd, low, flip), nibble(simd, high, flip));
            }
            simd.pack_pairs(&codes, packed);
        }
        for (block, packed) in rest_blocks.chunks_exact(size).zip(rest.as_chunks_mut::<BYTES>().0) {
            let (mut codes, mut all) = ([flip; VECTORS], [0; AT_ONCE * BYTES]);
            let [low, high] = simd.unpack_halves(nibbles_of(block));
            (codes[0], codes[1]) = (nibble(simd, low, flip), nibble(simd, high, flip));
            simd.pack_pairs(&codes, &mut all);
            packed.copy_from_slice(&all[..BYTES]);
        }
    }
}

/// The same back; the headers are left as they are.
pub struct ToBlocks<'a> {
    /// [`BYTES`] for each block.
    pub packed: &'a [u8],
    /// What every nibble is combined with by exclusive or.
    pub flip: u8,
    /// Bytes before the nibbles of each block.
    pub header: usize,
    /// Blocks that follow each other.
    pub blocks: &'a mut [u8],
}

impl Kernel for ToBlocks<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the lengths match.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ToBlocks { packed, flip, header, blocks } = self;
        check(blocks, header, packed);
        let (flip, size) = (simd.splat_i32(i32::from(flip)), header + BYTES);
        let (whole, rest) = packed.as_chunks::<{ AT_ONCE * BYTES }>();
        let (whole_blocks, rest_blocks) = blocks.split_at_mut(whole.len() * AT_ONCE * size);
        for (packed, blocks) in whole.iter().zip(whole_blocks.chunks_exact_mut(AT_ONCE * size)) {
            let (mut codes, mut all) = ([flip; VECTORS], [0; AT_ONCE * BYTES]);
            for (codes, packed) in codes.iter_mut().zip(packed.as_chunks().0) {
                *codes = nibble(simd, simd.unpack_pairs(packed), flip);
            }
            simd.pack_halves(&codes, &mut all);
            for i in 0..AT_ONCE {
                blocks[i * size + header..][..BYTES].copy_from_slice(&all.as_chunks::<BYTES>().0[i]);
            }
        }
        for (packed, block) in rest.as_chunks::<BYTES>().0.iter().zip(rest_blocks.chunks_exact_mut(size)) {
            let (mut codes, mut all) = ([flip; VECTORS], [0; AT_ONCE * BYTES]);
            for (codes, packed) in codes.iter_mut().zip(packed.as_chunks().0) {
                *codes = nibble(simd, simd.unpack_pairs(packed), flip);
            }
            simd.pack_halves(&codes, &mut all);
            block[header..].copy_from_slice(&all[..BYTES]);
        }
    }
}

/// What a block ends with.
#[inline(always)]
fn nibbles_of(block: &[u8]) -> &[u8; BYTES] {
    block.last_chunk().expect("a block ends with its nibbles")
}

/// The code in the low four bits, combined with `flip`.
#[inline(always)]
fn nibble<S: Simd>(simd: S, code: S::I32, flip: S::I32) -> S::I32 {
    simd.xor(simd.and(code, simd.splat_i32(15)), flip)
}

#[inline(always)]
fn check(blocks: &[u8], header: usize, packed: &[u8]) {
    assert!(
        blocks.len().is_multiple_of(header + BYTES) && blocks.len() / (header + BYTES) * BYTES == packed.len(),
        "{BYTES} bytes for each block"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;

    #[test]
    fn nibbles_of_blocks_follow_each_other() {
        let nibble = |block: usize, i: usize| (7 * block + 5 * i + i / 3) as u8 & 15;
        for (header, count) in [(1, 0), (1, 5), (2, 1), (2, 33), (4, 7)] {
            let (mut blocks, mut packed) = (vec![0xee; count * (header + BYTES)], vec![0; count * BYTES]);
            for (block, (bytes, packed)) in blocks.chunks_exact_mut(header + BYTES).zip(packed.chunks_exact_mut(BYTES)).enumerate() {
                for j in 0..BYTES {
                    bytes[header + j] = nibble(block, j) | nibble(block, j + 16) << 4;
                    packed[j] = (nibble(block, 2 * j) | nibble(block, 2 * j + 1) << 4) ^ 0x99;
                }
            }
            for level in Level::available() {
                let (mut there, mut back) = (vec![0; packed.len()], vec![0xee; blocks.len()]);
                level.run(FromBlocks { blocks: &blocks, header, flip: 9, packed: &mut there });
                assert_eq!(there, packed, "{}", level.name());
                level.run(ToBlocks { packed: &packed, flip: 9, header, blocks: &mut back });
                assert_eq!(back, blocks, "{}", level.name());
            }
        }
    }
}
