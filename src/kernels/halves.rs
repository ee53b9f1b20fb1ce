//! Blocks of 32 nibbles after a header, as ggml keeps them, to nibbles that follow each other, and back.
//!
//! ```text
//! block    header | byte j = nibble j low, nibble j + 16 high
//! packed            byte i = nibble 2i low, nibble 2i + 1 high
//! ```

use super::transpose::{apart, together};
use crate::simd::{Kernel, Simd};

/// Codes of a block.
pub const CODES: usize = 32;

/// Bytes of the nibbles of a block.
pub const BYTES: usize = CODES / 2;

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
    fn run<S: Simd>(self, _: S) {
        let FromBlocks { blocks, header, flip, packed } = self;
        check(blocks, header, packed);
        for (block, packed) in blocks.chunks_exact(header + BYTES).zip(packed.as_chunks_mut::<BYTES>().0) {
            let nibbles: &[u8; BYTES] = block.last_chunk().expect("a block ends with them");
            // Arrays by value: then this is done eight words at a time.
            let words: [u16; BYTES / 2] = bytemuck::cast(*nibbles);
            let words = words.map(|word| u16::from_le(word) ^ (u16::from(flip) * 0x1111));
            let (low, high) = (words.map(together), words.map(|word| together(word >> 4)));
            *packed = bytemuck::cast([low, high]);
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
    fn run<S: Simd>(self, _: S) {
        let ToBlocks { packed, flip, header, blocks } = self;
        check(blocks, header, packed);
        for (block, packed) in blocks.chunks_exact_mut(header + BYTES).zip(packed.as_chunks::<BYTES>().0) {
            let [low, high]: [[u8; BYTES / 2]; 2] = bytemuck::cast(packed.map(|byte| byte ^ (flip * 0x11)));
            let (low, high) = (low.map(apart), high.map(apart));
            let words: [u16; BYTES / 2] = std::array::from_fn(|i| (low[i] | high[i] << 4).to_le());
            let nibbles: &mut [u8; BYTES] = block.last_chunk_mut().expect("a block ends with them");
            *nibbles = bytemuck::cast(words);
        }
    }
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
