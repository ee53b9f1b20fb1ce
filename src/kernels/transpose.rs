//! Matrices of small items, turned: layouts that are stored `[in, out]` from rows of `[out, in]`, and back.
//!
//! ```text
//! to[j, i] = from[i, j]        items of 4, 8, 16 or 32 bits
//! ```
//!
//! A 32-bit word holds PER = 8, 4, 2 or 1 items. A tile is 16 PER rows of 16 words, a cache line each, and turns in two steps:
//!
//! ```text
//! 1. PER rows below each other: item p of word j of row i  ->  item i of word j of row p      (halves change places, then their halves, ...)
//! 2. 16 such rows p, PER apart: word j of the c-th of them  ->  word c of row PER j + p       (16 x 16 words)
//! ```

use super::blocks::{Block, BlockMut};
use super::stream::stream;
use crate::simd::{Kernel, LANES, Simd};

/// Turn a matrix of items of 1, 2 or 4 bytes.
pub struct Items<'a> {
    /// Bytes of an item.
    pub size: usize,
    /// n rows of m items.
    pub from: Block<'a>,
    /// m rows of n items.
    pub to: BlockMut<'a>,
}

impl Kernel for Items<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the shapes match.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        match self.size {
            1 => turn(Tiles { simd, from_order: [0, 1, 2, 3], to_order: [0, 1, 2, 3], flip: 0 }, self.from, self.to),
            2 => turn(Tiles { simd, from_order: [0, 1], to_order: [0, 1], flip: 0 }, self.from, self.to),
            4 => turn(Tiles { simd, from_order: [0], to_order: [0], flip: 0 }, self.from, self.to),
            size => panic!("items have 1, 2 or 4 bytes, not {size}"),
        }
    }
}

/// The same of items of 2 or 4 bytes past the caches: runs of the rows that are written are collected first, as those lie far apart.
/// The thread runs [`super::stream::Fence`] before it says that it is done.
pub struct ItemsPast<'a> {
    /// Bytes of an item.
    pub size: usize,
    /// n rows of m items.
    pub from: Block<'a>,
    /// m rows of n items.
    pub to: BlockMut<'a>,
    /// Room for [`STAGE`] bytes.
    pub stage: &'a mut [u8],
}

impl Kernel for ItemsPast<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the shapes match and the stage has its size.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let ItemsPast { size, from, to, stage } = self;
        match size {
            2 => turn_staged(Tiles { simd, from_order: [0, 1], to_order: [0, 1], flip: 0 }, from, to, true, stage),
            4 => turn_staged(Tiles { simd, from_order: [0], to_order: [0], flip: 0 }, from, to, true, stage),
            size => panic!("items have 2 or 4 bytes, not {size}"),
        }
    }
}

/// In which nibbles of a 32-bit word, the lowest first, a row keeps eight neighbours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// 0 1 2 3 4 5 6 7.
    Natural,
    /// 0 2 4 6 1 3 5 7. Rows have whole words.
    Awq,
}

impl Order {
    /// Which of eight neighbours each nibble holds.
    pub(super) const fn neighbours(self) -> [usize; 8] {
        match self {
            Order::Natural => [0, 1, 2, 3, 4, 5, 6, 7],
            Order::Awq => [0, 2, 4, 6, 1, 3, 5, 7],
        }
    }
}

/// Turn a matrix of nibbles. An odd number of them in a row ends in half a byte, which is written as 0 and not read.
pub struct Nibbles<'a> {
    /// n rows of m nibbles.
    pub from: Block<'a>,
    /// How these rows keep them.
    pub from_order: Order,
    /// m rows of n nibbles.
    pub to: BlockMut<'a>,
    /// How these rows keep them.
    pub to_order: Order,
}

impl Kernel for Nibbles<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the shapes match and rows in the order of AWQ have whole words.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Nibbles { from, from_order, to, to_order } = self;
        assert!(whole_words(from_order, from.width()) && whole_words(to_order, to.width()), "rows in the order of AWQ have whole words");
        turn(Tiles { simd, from_order: from_order.neighbours(), to_order: to_order.neighbours(), flip: 0 }, from, to);
    }
}

/// Turn a large matrix of codes: runs of its rows are collected first, as lines far apart in memory cost more than those beside each
/// other. Where they go past the caches the thread runs [`super::stream::Fence`] before it says that it is done.
pub struct Codes<'a> {
    /// n rows of m codes.
    pub from: Block<'a>,
    /// m rows of n codes.
    pub to: BlockMut<'a>,
    /// What is turned of them.
    pub unit: Unit,
    /// What every nibble is combined with by exclusive or.
    pub flip: u8,
    /// Whether runs go past the caches.
    pub stream: bool,
    /// Room for [`STAGE`] bytes.
    pub stage: &'a mut [u8],
}

/// What of a matrix of codes is turned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Words of eight codes: the matrix is one of words.
    Words,
    /// Codes, in these orders of the rows that are read and of those that are written.
    Nibbles([Order; 2]),
}

impl Kernel for Codes<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the shapes match, rows in the order of AWQ have whole words, and the stage has its size.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Codes { from, to, unit, flip, stream, stage } = self;
        match unit {
            Unit::Words => turn_staged(Tiles { simd, from_order: [0], to_order: [0], flip }, from, to, stream, stage),
            Unit::Nibbles([of, wanted]) => {
                assert!(whole_words(of, from.width()) && whole_words(wanted, to.width()), "rows in the order of AWQ have whole words");
                turn_staged(Tiles { simd, from_order: of.neighbours(), to_order: wanted.neighbours(), flip }, from, to, stream, stage);
            }
        }
    }
}

/// Turn two rows of nibbles: a byte holds nibble i of one row low and of the other high.
pub struct Interleave<'a> {
    /// The row of the low nibbles.
    pub low: &'a [u8],
    /// The row of the high nibbles.
    pub high: &'a [u8],
    /// A byte for each nibble of a row; one less where the rows end in half a byte.
    pub bytes: &'a mut [u8],
}

impl Kernel for Interleave<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the lengths match.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Interleave { low, high, bytes } = self;
        assert_eq!((low.len(), high.len()), (bytes.len().div_ceil(2), bytes.len().div_ceil(2)), "half a byte of each row for a byte");
        let (pairs, last) = bytes.as_chunks_mut::<2>();
        for ((low, high), pair) in low.iter().zip(high).zip(pairs) {
            *pair = (apart(*low) | apart(*high) << 4).to_le_bytes();
        }
        if let ([byte], Some(low), Some(high)) = (last, low.last(), high.last()) {
            *byte = low & 15 | high << 4;
        }
    }
}

/// The same back; half a byte at the end of a row is written as 0.
pub struct Deinterleave<'a> {
    /// A byte for each nibble of a row.
    pub bytes: &'a [u8],
    /// The row of the low nibbles.
    pub low: &'a mut [u8],
    /// The row of the high nibbles.
    pub high: &'a mut [u8],
}

impl Kernel for Deinterleave<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless the lengths match.
    #[inline(always)]
    fn run<S: Simd>(self, _: S) {
        let Deinterleave { bytes, low, high } = self;
        assert_eq!((low.len(), high.len()), (bytes.len().div_ceil(2), bytes.len().div_ceil(2)), "half a byte of each row for a byte");
        let (pairs, last) = bytes.as_chunks::<2>();
        for ((low, high), pair) in low.iter_mut().zip(high.iter_mut()).zip(pairs) {
            let pair = u16::from_le_bytes(*pair);
            (*low, *high) = (together(pair), together(pair >> 4));
        }
        if let ([byte], Some(low), Some(high)) = (last, low.last_mut(), high.last_mut()) {
            (*low, *high) = (byte & 15, byte >> 4);
        }
    }
}

/// The nibbles of a byte in the low halves of two.
#[inline(always)]
fn apart(byte: u8) -> u16 {
    let wide = u16::from(byte);
    (wide | wide << 4) & 0x0f0f
}

/// The low halves of two bytes as one byte.
#[inline(always)]
fn together(pair: u16) -> u8 {
    (pair & 0x0f | pair >> 4 & 0xf0) as u8
}

#[inline(always)]
fn whole_words(order: Order, width: usize) -> bool {
    order != Order::Awq || width.is_multiple_of(4)
}

/// Bytes of a row of a tile.
const LINE: usize = 64;
/// Bytes of the largest tile.
const TILE: usize = 8 * LANES * LINE;
/// Bytes that are collected before they leave: a quarter of a core's second cache.
pub const STAGE: usize = 128 * 1024;

/// Bytes of so many items.
#[inline(always)]
const fn bytes<const PER: usize>(items: usize) -> usize {
    (4 * items).div_ceil(PER)
}

/// Bytes of a row that are collected at most: where the same number of bytes are read and written of a row, or more written where they
/// are words, since the ends of a run are no whole lines.
#[inline(always)]
const fn longest_run<const PER: usize>() -> usize {
    if PER == 1 { 16 * LINE } else { 4 * LINE }
}

/// Bytes from a row to the one that is asked for with it. Lines that lie apart are no stream that a processor follows by itself.
#[inline(always)]
fn ahead_of(from: &Block<'_>) -> usize {
    if from.stride() > from.width() { AHEAD * from.stride() } else { 0 }
}

/// Whether two matrices of which one is the other turned have any items.
///
/// # Panics
///
/// Unless the shapes match.
#[inline(always)]
fn has_items<const PER: usize>(from: &Block<'_>, to: &BlockMut<'_>) -> bool {
    let (rows, columns) = (from.rows(), to.rows());
    if rows * from.width() == 0 && columns * to.width() == 0 {
        return false;
    }
    let widths = (bytes::<PER>(columns), bytes::<PER>(rows));
    assert_eq!((from.width(), to.width()), widths, "the shapes of two matrices of which one is the other turned");
    true
}

/// Tile by tile.
#[inline(always)]
fn turn<S: Simd, const PER: usize>(tiles: Tiles<S, PER>, from: Block<'_>, mut to: BlockMut<'_>) {
    if !has_items::<PER>(&from, &to) {
        return;
    }
    let (side, rows, columns) = (PER * LANES, from.rows(), to.rows());
    let mut room = [[0; TILE]; 2];
    // The inner loop goes along the rows that lie farther apart: they are on a page each.
    let down = to.stride() > from.stride();
    let ahead = ahead_of(&from);
    // Where items are words a tile is too small to gain by it.
    let to_apart = PER > 1 && to.stride() > to.width();
    let (below, beside) = (rows.div_ceil(side), columns.div_ceil(side));
    let (outer, inner) = if down { (beside, below) } else { (below, beside) };
    for i in 0..outer {
        for j in 0..inner {
            let (top, left) = if down { (j * side, i * side) } else { (i * side, j * side) };
            let (bottom, right) = (rows.min(top + side), columns.min(left + side));
            let part = from.part(top..bottom, bytes::<PER>(left)..bytes::<PER>(right));
            let mut target = to.part(left..right, bytes::<PER>(top)..bytes::<PER>(bottom));
            if to_apart {
                for row in 0..target.rows() {
                    ask(tiles.simd, target.row(row), 0);
                }
            }
            tiles.turn(part, ahead, target, &mut room);
        }
    }
}

/// The same by way of a stage.
#[inline(always)]
fn turn_staged<S: Simd, const PER: usize>(tiles: Tiles<S, PER>, from: Block<'_>, mut to: BlockMut<'_>, past: bool, stage: &mut [u8]) {
    if !has_items::<PER>(&from, &to) {
        return;
    }
    let (side, rows, columns) = (PER * LANES, from.rows(), to.rows());
    let mut room = [[0; TILE]; 2];
    let ahead = ahead_of(&from);
    let longest = longest_run::<PER>();
    let (height, width) = (longest / 4 * PER, STAGE / longest);
    for (top, left) in (0..rows).step_by(height).flat_map(|top| (0..columns).step_by(width).map(move |left| (top, left))) {
        let (bottom, right) = (rows.min(top + height), columns.min(left + width));
        let run = bytes::<PER>(top)..bytes::<PER>(bottom);
        let mut staged = BlockMut::whole(stage, longest);
        for (i, j) in (top..bottom).step_by(side).flat_map(|i| (left..right).step_by(side).map(move |j| (i, j))) {
            let (i_end, j_end) = (bottom.min(i + side), right.min(j + side));
            let part = from.part(i..i_end, bytes::<PER>(j)..bytes::<PER>(j_end));
            let target = staged.part(j - left..j_end - left, bytes::<PER>(i) - run.start..bytes::<PER>(i_end) - run.start);
            tiles.turn(part, ahead, target, &mut room);
        }
        for row in left..right {
            let from = &staged.row(row - left)[..run.len()];
            let to = &mut to.row(row)[run.clone()];
            if past { stream(tiles.simd, from, to) } else { to.copy_from_slice(from) }
        }
    }
}

/// How tiles are turned.
#[derive(Clone, Copy)]
struct Tiles<S: Simd, const PER: usize> {
    simd: S,
    /// Item p of a word read belongs to this one of its PER columns.
    from_order: [usize; PER],
    /// Item i of a word written belongs to this one of its PER rows.
    to_order: [usize; PER],
    /// What every nibble is combined with by exclusive or.
    flip: u8,
}

impl<S: Simd, const PER: usize> Tiles<S, PER> {
    /// Turn one; at the edges by way of `room`, filled up with zeros. With each row what lies `ahead` bytes after it is asked for.
    #[inline(always)]
    fn turn(self, from: Block<'_>, ahead: usize, mut to: BlockMut<'_>, [padded, turned]: &mut [[u8; TILE]; 2]) {
        let side = PER * LANES;
        if (from.rows(), to.rows()) == (side, side) {
            return self.turn_whole(from, ahead, to);
        }
        let (padded, turned) = (&mut padded[..side * LINE], &mut turned[..side * LINE]);
        padded.fill(0);
        for row in 0..from.rows() {
            let bytes = padded[row * LINE..].iter_mut().zip(from.row(row));
            bytes.for_each(|(to, from)| *to = from ^ (self.flip * 0x11));
        }
        Tiles { flip: 0, ..self }.turn_whole(Block::whole(padded, LINE), 0, BlockMut::whole(turned, LINE));
        for row in 0..to.rows() {
            let width = to.width();
            to.row(row).copy_from_slice(&turned[row * LINE..][..width]);
        }
    }

    /// Both steps.
    #[inline(always)]
    fn turn_whole(self, from: Block<'_>, ahead: usize, mut to: BlockMut<'_>) {
        let simd = self.simd;
        let flip = simd.splat_i32((u32::from(self.flip) * 0x1111_1111).cast_signed());
        let mut words = [[simd.splat(0.0); LANES]; PER];
        for c in 0..LANES {
            let mut rows = [simd.splat_i32(0); PER];
            for (row, &place) in rows.iter_mut().zip(&self.to_order) {
                let line = from.row(PER * c + place);
                ask(simd, line, ahead);
                *row = simd.xor(load(simd, line), flip);
            }
            exchange(simd, &mut rows);
            for (words, row) in words.iter_mut().zip(&rows) {
                words[c] = simd.as_f32(*row);
            }
        }
        for (words, &place) in words.iter().zip(&self.from_order) {
            for (j, column) in (0..LANES).zip(&simd.transpose(words)) {
                store(simd, simd.bits(*column), to.row(PER * j + place));
            }
        }
    }
}

/// Rows that are asked for ahead.
const AHEAD: usize = 16;

/// Ask for the line `ahead` bytes after this one, which can lie in two cache lines.
#[inline(always)]
fn ask<S: Simd>(simd: S, line: &[u8], ahead: usize) {
    if let [first, .., last] = line {
        simd.prefetch(first, ahead);
        if !line.as_ptr().addr().is_multiple_of(LINE) {
            simd.prefetch(last, ahead);
        }
    }
}

/// Item p of each word of row i becomes item i of that word of row p.
#[inline(always)]
pub(super) fn exchange<S: Simd, const PER: usize>(simd: S, rows: &mut [S::I32; PER]) {
    swap(simd, rows, PER / 2, 16, 0x0000_ffff);
    swap(simd, rows, PER / 4, 8, 0x00ff_00ff);
    swap(simd, rows, PER / 8, 4, 0x0f0f_0f0f);
}

/// The upper fields of `bits` bits of each row and the lower ones of the row `distance` below it change places.
#[inline(always)]
fn swap<S: Simd, const PER: usize>(simd: S, rows: &mut [S::I32; PER], distance: usize, bits: u32, lower: i32) {
    for i in 0..PER {
        if i & distance != 0 {
            let (above, below) = (rows[i - distance], rows[i]);
            // The mask takes off the sign that the shift brings in.
            let change = simd.and(simd.xor(simd.shift_right(above, bits), below), simd.splat_i32(lower));
            rows[i - distance] = simd.xor(above, simd.shift_left(change, bits));
            rows[i] = simd.xor(below, change);
        }
    }
}

#[inline(always)]
pub(super) fn load<S: Simd>(simd: S, line: &[u8]) -> S::I32 {
    simd.load_i32(&bytemuck::pod_read_unaligned(line))
}

#[inline(always)]
pub(super) fn store<S: Simd>(simd: S, v: S::I32, line: &mut [u8]) {
    let mut words = [0; LANES];
    simd.store_i32(v, &mut words);
    line.copy_from_slice(bytemuck::bytes_of(&words));
}

#[cfg(test)]
mod tests {
    use super::super::blocks::{Blocks, BlocksMut, Walk};
    use super::*;
    use crate::level::Level;
    use proptest::prelude::*;

    /// Bytes without a pattern.
    fn noise(len: usize, seed: u64) -> Vec<u8> {
        let mut state = seed;
        let mut byte = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        (0..len).map(|_| byte()).collect()
    }

    /// A matrix with bytes to the left and right of its columns.
    #[derive(Clone, Debug, PartialEq)]
    struct Matrix {
        bytes: Vec<u8>,
        rows: usize,
        columns: [usize; 3],
    }

    impl Matrix {
        fn new(rows: usize, width: usize, around: [usize; 2], seed: u64) -> Matrix {
            let columns = [around[0], width, around[1]];
            Matrix { bytes: noise(rows * columns.iter().sum::<usize>(), seed), rows, columns }
        }

        fn stride(&self) -> usize {
            self.columns.iter().sum()
        }

        fn block(&self) -> Block<'_> {
            Blocks::new(&self.bytes, self.stride(), &[self.rows], &self.columns, Walk::RowMajor).nth(1).unwrap()
        }

        fn block_mut(&mut self) -> BlockMut<'_> {
            let stride = self.stride();
            BlocksMut::new(&mut self.bytes, stride, &[self.rows], &self.columns, Walk::RowMajor).nth(1).unwrap()
        }

        fn clear(&mut self) {
            let mut block = self.block_mut();
            (0..block.rows()).for_each(|row| block.row(row).fill(0));
        }

        fn at(&mut self, row: usize, byte: usize) -> &mut u8 {
            let at = row * self.stride() + self.columns[0] + byte;
            &mut self.bytes[at]
        }

        fn nibble(&mut self, order: Order, row: usize, column: usize) -> u8 {
            let (byte, shift) = place(order, column);
            *self.at(row, byte) >> shift & 15
        }

        fn set_nibble(&mut self, order: Order, row: usize, column: usize, nibble: u8) {
            let (byte, shift) = place(order, column);
            let at = self.at(row, byte);
            *at = *at & !(15 << shift) | nibble << shift;
        }
    }

    /// Byte and shift of a nibble of a row.
    fn place(order: Order, column: usize) -> (usize, usize) {
        let nibble = match order {
            Order::Natural => column % 8,
            Order::Awq => [0, 4, 1, 5, 2, 6, 3, 7][column % 8],
        };
        (column / 8 * 4 + nibble / 2, nibble % 2 * 4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 64 }))]

        #[test]
        fn items_are_turned(n in 0usize..150, m in 0usize..150, around in [0usize..70, 0usize..70], seed: u64) {
            for size in [1, 2, 4] {
                let mut from = Matrix::new(n, m * size, around, seed);
                let blank = Matrix::new(m, n * size, [around[1], around[0]], !seed);
                let mut expected = blank.clone();
                for (i, j, byte) in (0..n * m * size).map(|at| (at / size / m, at / size % m, at % size)) {
                    *expected.at(j, i * size + byte) = *from.at(i, j * size + byte);
                }
                for level in Level::available() {
                    let mut to = blank.clone();
                    level.run(Items { size, from: from.block(), to: to.block_mut() });
                    prop_assert!(to == expected, "{} bytes, {} x {}, {}", size, n, m, level.name());
                    let mut back = from.clone();
                    back.clear();
                    level.run(Items { size, from: to.block(), to: back.block_mut() });
                    prop_assert!(back == from, "{} bytes, {} x {} back, {}", size, n, m, level.name());
                }
            }
        }

        #[test]
        fn nibbles_are_turned(n in 0usize..300, m in 0usize..300, around in [0usize..70, 0usize..70], seed: u64) {
            for (from_order, to_order) in [(Order::Natural, Order::Natural), (Order::Natural, Order::Awq), (Order::Awq, Order::Natural), (Order::Awq, Order::Awq)] {
                // Rows of `from` hold m nibbles, rows of `to` n.
                let fitting = |count: usize, order| if order == Order::Awq { count / 8 * 8 } else { count };
                let (n, m) = (fitting(n, to_order), fitting(m, from_order));
                let mut from = Matrix::new(n, m.div_ceil(2), around, seed);
                let blank = Matrix::new(m, n.div_ceil(2), [around[1], around[0]], !seed);
                let mut expected = blank.clone();
                expected.clear();
                for (i, j) in (0..n * m).map(|at| (at / m, at % m)) {
                    let nibble = from.nibble(from_order, i, j);
                    expected.set_nibble(to_order, j, i, nibble);
                }
                for level in Level::available() {
                    let mut to = blank.clone();
                    level.run(Nibbles { from: from.block(), from_order, to: to.block_mut(), to_order });
                    prop_assert!(to == expected, "{:?} to {:?}, {} x {}, {}", from_order, to_order, n, m, level.name());
                    let mut back = from.clone();
                    level.run(Nibbles { from: to.block(), from_order: to_order, to: back.block_mut(), to_order: from_order });
                    if m % 2 == 1 {
                        (0..n).for_each(|row| from.set_nibble(from_order, row, m, 0));
                    }
                    prop_assert!(back == from, "{:?} to {:?}, {} x {} back, {}", from_order, to_order, n, m, level.name());
                }
            }
        }

        #[test]
        fn two_rows_are_interleaved(count in 0usize..400, seed: u64) {
            let mut rows = Matrix::new(2, count.div_ceil(2), [0, 0], seed);
            let expected: Vec<u8> = (0..count).map(|i| rows.nibble(Order::Natural, 0, i) | rows.nibble(Order::Natural, 1, i) << 4).collect();
            for level in Level::available() {
                let mut bytes = vec![0; count];
                level.run(Interleave { low: rows.block().row(0), high: rows.block().row(1), bytes: &mut bytes });
                prop_assert!(bytes == expected, "{} nibbles, {}", count, level.name());
                let (mut low, mut high) = (vec![0xff; count.div_ceil(2)], vec![0xff; count.div_ceil(2)]);
                level.run(Deinterleave { bytes: &bytes, low: &mut low, high: &mut high });
                if count % 2 == 1 {
                    (0..2).for_each(|row| rows.set_nibble(Order::Natural, row, count, 0));
                }
                prop_assert!([low, high] == [rows.block().row(0), rows.block().row(1)], "{} nibbles back, {}", count, level.name());
            }
        }
    }

    /// By way of a stage and with another nibble for each, as it is directly and nibble for nibble.
    #[test]
    fn codes_are_turned_past_the_caches() {
        let sizes = if cfg!(miri) { [(8, 16); 2] } else { [(264, 1040), (1032, 552)] };
        let orders = [Order::Natural, Order::Awq];
        let units = orders.into_iter().flat_map(|of| orders.map(|wanted| Unit::Nibbles([of, wanted])));
        for ((n, m), unit) in sizes.into_iter().flat_map(|size| units.clone().chain([Unit::Words]).map(move |unit| (size, unit))) {
            let bytes = |items: usize| if unit == Unit::Words { 4 * items } else { items / 2 };
            let (n, m) = if unit == Unit::Words { (n / 4, m / 8) } else { (n, m) };
            let from = Matrix::new(n, bytes(m), [16, 0], 1);
            let mut flipped = from.clone();
            flipped.bytes.iter_mut().for_each(|byte| *byte ^= 0x55);
            let blank = Matrix::new(m, bytes(n), [5, 11], 2);
            let mut expected = blank.clone();
            let (of, to) = (flipped.block(), expected.block_mut());
            match unit {
                Unit::Words => Level::detect().run(Items { size: 4, from: of, to }),
                Unit::Nibbles([from_order, to_order]) => Level::detect().run(Nibbles { from: of, from_order, to, to_order }),
            }
            for (level, stream) in Level::available().into_iter().flat_map(|level| [(level, false), (level, true)]) {
                let mut to = blank.clone();
                level.run(Codes { from: from.block(), to: to.block_mut(), unit, flip: 5, stream, stage: &mut vec![0; STAGE] });
                assert!(to == expected, "{unit:?}, {n} x {m}, {}", level.name());
            }
        }
    }

    #[test]
    fn whole_tiles_of_a_contiguous_matrix() {
        let codes: Vec<u8> = noise(128 * 64, 1);
        for level in Level::available() {
            let (mut turned, mut back) = (vec![0; 128 * 64], vec![0; 128 * 64]);
            let turn = |from: &[u8], to: &mut [u8]| {
                let (from, to) = (Block::whole(from, 64), BlockMut::whole(to, 64));
                level.run(Nibbles { from, from_order: Order::Natural, to, to_order: Order::Natural });
            };
            turn(&codes, &mut turned);
            assert_eq!(turned[64] & 15, codes[0] >> 4, "row 1, column 0");
            assert_eq!(turned[0] >> 4, codes[64] & 15, "row 0, column 1");
            turn(&turned, &mut back);
            assert_eq!(back, codes);
        }
    }

    #[test]
    #[should_panic(expected = "one is the other turned")]
    fn shapes_that_do_not_match_panic() {
        Level::detect().run(Items { size: 4, from: Block::whole(&[0; 24], 8), to: BlockMut::whole(&mut [0; 24], 8) });
    }

    #[test]
    #[should_panic(expected = "whole words")]
    fn half_a_word_in_the_order_of_awq_panics() {
        let (from, mut to) = ([0; 4], [0; 4]);
        let (from, to) = (Block::whole(&from, 1), BlockMut::whole(&mut to, 2));
        Level::detect().run(Nibbles { from, from_order: Order::Natural, to, to_order: Order::Awq });
    }
}
