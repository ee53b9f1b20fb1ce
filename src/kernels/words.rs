//! Nibbles of a matrix that is stored turned, from one kind of words to another: the matrix stays turned, and each nibble near its place.
//!
//! ```text
//! down      word (j, n) = nibbles (8j..8j + 8, n)      K / 8 rows of N words
//! across    word (k, j) = nibbles (k, 8j..8j + 8)      K rows of N / 8 words, the eight in an order
//! ```
//!
//! Between the two a tile is two rows of 128 words down and 16 rows of 16 words across, each of them a cache line.

use super::blocks::{Block, BlockMut};
use super::transpose::{Order, exchange, load, store};
use crate::simd::{Kernel, LANES, Simd};

/// Which eight nibbles a word holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// Those of eight rows.
    Down,
    /// Those of eight columns.
    Across(Order),
}

/// From one kind of words to another.
pub struct Words<'a> {
    /// The words; those of `Down` are of whole rows.
    pub from: Block<'a>,
    /// What they hold.
    pub from_kept: Kept,
    /// The words, to be written.
    pub to: BlockMut<'a>,
    /// What they hold.
    pub to_kept: Kept,
    /// What every nibble is combined with by exclusive or.
    pub flip: u8,
}

impl Kernel for Words<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the shapes match and rows have whole words.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Words { from, from_kept, to, to_kept, flip } = self;
        let shape = |kept, rows, width: usize| {
            assert!(width.is_multiple_of(4), "rows have whole words");
            if kept == Kept::Down { (8 * rows, width / 4) } else { (rows, 2 * width) }
        };
        let (of, wanted) = (shape(from_kept, from.rows(), from.width()), shape(to_kept, to.rows(), to.width()));
        assert_eq!(of, wanted, "two matrices of the same nibbles");
        let flip = simd.splat_i32((u32::from(flip) * 0x1111_1111).cast_signed());
        match (from_kept, to_kept) {
            (Kept::Down, Kept::Across(order)) => in_tiles(simd, from, to, ToAcross { order, flip }),
            (Kept::Across(order), Kept::Down) => in_tiles(simd, from, to, ToDown { order, flip }),
            (Kept::Down, Kept::Down) => reorder(simd, from, to, Order::Natural, Order::Natural, flip),
            (Kept::Across(of), Kept::Across(wanted)) => reorder(simd, from, to, of, wanted, flip),
        }
    }
}

/// Words across in another order.
#[inline(always)]
fn reorder<S: Simd>(simd: S, from: Block<'_>, mut to: BlockMut<'_>, of: Order, wanted: Order, flip: S::I32) {
    for row in 0..from.rows() {
        let (lines, rest) = from.row(row).as_chunks::<LINE>();
        let (lines_to, rest_to) = to.row(row).as_chunks_mut::<LINE>();
        for (line, line_to) in lines.iter().zip(lines_to) {
            store(simd, in_order(simd, simd.xor(load(simd, line), flip), of, wanted), line_to);
        }
        if !rest.is_empty() {
            let (mut last, mut last_to) = ([0; LINE], [0; LINE]);
            last[..rest.len()].copy_from_slice(rest);
            store(simd, in_order(simd, simd.xor(load(simd, &last), flip), of, wanted), &mut last_to);
            rest_to.copy_from_slice(&last_to[..rest.len()]);
        }
    }
}

/// 0 1 2 3 4 5 6 7 becomes 0 2 1 3 4 6 5 7 and that 0 2 4 6 1 3 5 7; the same steps lead back.
#[inline(always)]
fn in_order<S: Simd>(simd: S, words: S::I32, of: Order, wanted: Order) -> S::I32 {
    match (of, wanted) {
        (Order::Natural, Order::Awq) => neighbours(simd, neighbours(simd, words, 4, 0x00f0_00f0), 8, 0x0000_ff00),
        (Order::Awq, Order::Natural) => neighbours(simd, neighbours(simd, words, 8, 0x0000_ff00), 4, 0x00f0_00f0),
        _ => words,
    }
}

/// The fields of `bits` bits under the mask change places with those above them.
#[inline(always)]
fn neighbours<S: Simd>(simd: S, words: S::I32, bits: u32, lower: i32) -> S::I32 {
    let change = simd.and(simd.xor(simd.shift_right(words, bits), words), simd.splat_i32(lower));
    simd.xor(words, simd.xor(change, simd.shift_left(change, bits)))
}

/// A cache line.
const LINE: usize = 64;
/// Rows and bytes of a row of a tile down.
const DOWN: [usize; 2] = [2, 8 * LINE];
/// The same across.
const ACROSS: [usize; 2] = [8 * DOWN[0], LINE];
/// Bytes of a tile.
const TILE: usize = DOWN[0] * DOWN[1];

/// What is done with a whole tile.
trait Step<S: Simd>: Copy {
    /// Rows and bytes of a row that are read.
    const FROM: [usize; 2];
    /// Rows and bytes of a row that are written.
    const TO: [usize; 2];

    fn apply(self, simd: S, from: Block<'_>, to: BlockMut<'_>);
}

/// Tile by tile; those at the edges through tiles of their own, filled up with zeros.
#[inline(always)]
fn in_tiles<S: Simd, P: Step<S>>(simd: S, from: Block<'_>, mut to: BlockMut<'_>, step: P) {
    let ([height, width], [height_to, width_to]) = (P::FROM, P::TO);
    let (below, beside) = (from.rows().div_ceil(height), from.width().div_ceil(width));
    for (i, j) in (0..below).flat_map(|i| (0..beside).map(move |j| (i, j))) {
        let cut = |at: usize, length: usize, end: usize| at * length..end.min((at + 1) * length);
        let part = from.part(cut(i, height, from.rows()), cut(j, width, from.width()));
        let (rows, columns) = (to.rows(), to.width());
        let mut target = to.part(cut(i, height_to, rows), cut(j, width_to, columns));
        if [part.rows(), part.width()] == P::FROM {
            step.apply(simd, part, target);
        } else {
            let (mut whole, mut whole_to) = ([0; TILE], [0; TILE]);
            for (row, whole) in (0..part.rows()).zip(whole.chunks_exact_mut(width)) {
                whole[..part.width()].copy_from_slice(part.row(row));
            }
            step.apply(simd, Block::whole(&whole, width), BlockMut::whole(&mut whole_to, width_to));
            for (row, whole) in (0..target.rows()).zip(whole_to.chunks_exact(width_to)) {
                let width = target.width();
                target.row(row).copy_from_slice(&whole[..width]);
            }
        }
    }
}

/// From words down to words across.
#[derive(Clone, Copy)]
struct ToAcross<S: Simd> {
    order: Order,
    flip: S::I32,
}

impl<S: Simd> Step<S> for ToAcross<S> {
    const FROM: [usize; 2] = DOWN;
    const TO: [usize; 2] = ACROSS;

    #[inline(always)]
    fn apply(self, simd: S, from: Block<'_>, mut to: BlockMut<'_>) {
        let places = self.order.neighbours();
        // Eight words of each of the two rows.
        let mut words = [simd.splat(0.0); LANES];
        let rows = [0, 1].map(|row| from.row(row).as_chunks::<{ LINE / 2 }>().0);
        for (j, words) in words.iter_mut().enumerate() {
            let line = [rows[0][j], rows[1][j]];
            *words = simd.as_f32(simd.xor(load(simd, line.as_flattened()), self.flip));
        }
        // Word j of column i: the i-th of eight neighbours, first of the one row and then of the other.
        let columns = simd.transpose(&words);
        for (row, columns) in columns.as_chunks::<8>().0.iter().enumerate() {
            let mut lines = [self.flip; 8];
            for (line, place) in lines.iter_mut().zip(places) {
                *line = simd.bits(columns[place]);
            }
            exchange(simd, &mut lines);
            for (line, at) in lines.into_iter().zip(8 * row..) {
                store(simd, line, to.row(at));
            }
        }
    }
}

/// From words across to words down.
#[derive(Clone, Copy)]
struct ToDown<S: Simd> {
    order: Order,
    flip: S::I32,
}

impl<S: Simd> Step<S> for ToDown<S> {
    const FROM: [usize; 2] = ACROSS;
    const TO: [usize; 2] = DOWN;

    #[inline(always)]
    fn apply(self, simd: S, from: Block<'_>, mut to: BlockMut<'_>) {
        let places = self.order.neighbours();
        let mut columns = [simd.splat(0.0); LANES];
        for (row, columns) in columns.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let mut lines = [self.flip; 8];
            for (line, at) in lines.iter_mut().zip(8 * row..) {
                *line = simd.xor(load(simd, from.row(at)), self.flip);
            }
            exchange(simd, &mut lines);
            for (line, place) in lines.into_iter().zip(places) {
                columns[place] = simd.as_f32(line);
            }
        }
        for (j, words) in (0..LANES).zip(&simd.transpose(&columns)) {
            let mut line = [0; LINE];
            store(simd, simd.bits(*words), &mut line);
            for (row, half) in line.as_chunks::<{ LINE / 2 }>().0.iter().enumerate() {
                to.row(row).as_chunks_mut::<{ LINE / 2 }>().0[j] = *half;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;
    use proptest::prelude::*;

    const ALL: [Kept; 3] = [Kept::Down, Kept::Across(Order::Natural), Kept::Across(Order::Awq)];

    /// The bytes of a matrix of 8j rows and 8i columns, and where nibble (k, n) of it is.
    fn place(kept: Kept, columns: usize, k: usize, n: usize) -> (usize, usize) {
        let (word, nibble) = match kept {
            Kept::Down => (k / 8 * columns + n, k % 8),
            Kept::Across(Order::Natural) => ((k * columns + n) / 8, n % 8),
            Kept::Across(Order::Awq) => ((k * columns + n) / 8, [0, 4, 1, 5, 2, 6, 3, 7][n % 8]),
        };
        (4 * word + nibble / 2, nibble % 2 * 4)
    }

    fn width(kept: Kept, columns: usize) -> usize {
        if kept == Kept::Down { 4 * columns } else { columns / 2 }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

        #[test]
        fn every_nibble_keeps_its_row_and_column(j in 0usize..7, i in 0usize..40, flip in 0u8..16, seed: u64) {
            let (rows, columns) = (8 * j, 8 * i);
            let nibble = |k: usize, n: usize| (seed.wrapping_mul(((k * columns + n) as u64) << 1 | 1) >> 60) as u8;
            let whole = |kept, flip| {
                let mut bytes = vec![0u8; rows * columns / 2];
                for (k, n) in (0..rows).flat_map(|k| (0..columns).map(move |n| (k, n))) {
                    let (byte, shift) = place(kept, columns, k, n);
                    bytes[byte] |= (nibble(k, n) ^ flip) << shift;
                }
                bytes
            };
            for (from_kept, to_kept) in ALL.into_iter().flat_map(|from| ALL.map(|to| (from, to))) {
                let (from, expected) = (whole(from_kept, 0), whole(to_kept, flip));
                for level in Level::available() {
                    let mut bytes = vec![0xa5; expected.len()];
                    let to = BlockMut::whole(&mut bytes, width(to_kept, columns));
                    level.run(Words { from: Block::whole(&from, width(from_kept, columns)), from_kept, to, to_kept, flip });
                    prop_assert!(bytes == expected, "{:?} to {:?}, {} x {}, {}", from_kept, to_kept, rows, columns, level.name());
                }
            }
        }
    }
}
