//! Blocks of a matrix of bytes: threads read and write the columns of one matrix side by side.
//!
//! ```text
//!                       columns
//!              lengths 3     3     2
//!                   +-----+-----+---+
//!         lengths 2 |     |     |   |    a block: `rows` runs of `width` bytes,
//!   rows            +-----+-----+---+    each `stride` bytes after the one above it
//!                 1 |     |     |   |
//!                   +-----+-----+---+
//! ```
//!
//! [`BlocksMut`] hands every block of such a grid out once, so that no byte has two writers.

use std::marker::PhantomData;
use std::ops::Range;

/// A block to read.
#[derive(Clone, Copy, Debug)]
pub struct Block<'a> {
    /// From the first byte of the first row to the last of the last one.
    bytes: &'a [u8],
    rows: usize,
    width: usize,
    stride: usize,
}

impl<'a> Block<'a> {
    /// All of a matrix with rows of `width` bytes.
    ///
    /// # Panics
    ///
    /// Unless the bytes are whole rows.
    pub fn whole(matrix: &'a [u8], width: usize) -> Self {
        Block { bytes: matrix, rows: whole_rows(matrix.len(), width), width, stride: width }
    }

    /// `rows` rows of `width` bytes, each `stride` bytes after the one above it.
    ///
    /// # Panics
    ///
    /// Unless the bytes end with the last row.
    pub fn new(bytes: &'a [u8], rows: usize, width: usize, stride: usize) -> Self {
        assert!(width <= stride && bytes.len() == rows.saturating_sub(1) * stride + width, "bytes from the first row to the last");
        Block { bytes, rows, width, stride }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes from the start of a row to the start of the next one.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// A row.
    ///
    /// # Panics
    ///
    /// Where there is no such row.
    #[inline(always)]
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows, "a block has only its rows");
        &self.bytes[row * self.stride..][..self.width]
    }

    /// All bytes, where the rows follow each other without a gap.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        (self.width == self.stride).then(|| &self.bytes[..self.rows * self.width])
    }

    /// Write the rows one after the other; what they have beyond their share of `rows` is padding.
    ///
    /// # Panics
    ///
    /// Where the block has fewer bytes than `rows`.
    pub fn copy_to(&self, rows: &mut [u8]) {
        let width = rows.len() / self.rows.max(1);
        for (row, to) in (0..self.rows).zip(rows.chunks_exact_mut(width.max(1))) {
            to.copy_from_slice(&self.row(row)[..width]);
        }
    }

    /// These rows of these columns (bytes of a row).
    ///
    /// # Panics
    ///
    /// Unless they lie in the block.
    #[inline(always)]
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> Block<'a> {
        check_part(&rows, &columns, self.rows, self.width);
        let bytes = match rows.end.checked_sub(1) {
            Some(last) if rows.start <= last => &self.bytes[rows.start * self.stride + columns.start..last * self.stride + columns.end],
            _ => &[],
        };
        Block { bytes, rows: rows.len(), width: columns.len(), stride: self.stride }
    }
}

/// A block to write: the bytes of it are its own while it lives.
#[derive(Debug)]
pub struct BlockMut<'a> {
    /// The first byte of the first row. Every byte of every row lies in the matrix that is borrowed for `'a`, where the block has any.
    start: *mut u8,
    rows: usize,
    width: usize,
    stride: usize,
    matrix: PhantomData<&'a mut [u8]>,
}

#[allow(unsafe_code, reason = "a pointer in place of a slice that cannot be written")]
// SAFETY: a block is what a `&mut [u8]` for each of its rows would be, and those are Send.
unsafe impl Send for BlockMut<'_> {}

impl<'a> BlockMut<'a> {
    /// All of a matrix with rows of `width` bytes.
    ///
    /// # Panics
    ///
    /// Unless the bytes are whole rows.
    pub fn whole(matrix: &'a mut [u8], width: usize) -> Self {
        let rows = whole_rows(matrix.len(), width);
        BlockMut { start: matrix.as_mut_ptr(), rows, width, stride: width, matrix: PhantomData }
    }

    /// `rows` rows of `width` bytes, each `stride` bytes after the one above it.
    ///
    /// # Safety
    ///
    /// For the lifetime `'a` all of their bytes are writable, and nothing else reads or writes them.
    #[allow(unsafe_code, reason = "rows of which others own what is between them")]
    pub unsafe fn from_raw(start: *mut u8, rows: usize, width: usize, stride: usize) -> Self {
        BlockMut { start, rows, width, stride, matrix: PhantomData }
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes of a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Bytes from the start of a row to the start of the next one.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// A row.
    ///
    /// # Panics
    ///
    /// Where there is no such row.
    #[inline(always)]
    #[allow(unsafe_code, reason = "the rows of a block are no slice")]
    pub fn row(&mut self, row: usize) -> &mut [u8] {
        assert!(row < self.rows, "a block has only its rows");
        // SAFETY: `row` is a row of the block, whose bytes lie in the matrix and belong to this block alone; the result borrows
        // the block, so that there is no second reference to them.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride), self.width) }
    }

    /// All bytes, where the rows follow each other without a gap.
    #[allow(unsafe_code, reason = "as for a row")]
    pub fn bytes(&mut self) -> Option<&mut [u8]> {
        // SAFETY: without gaps the rows are one run of bytes that belong to this block alone; the result borrows the block, so that
        // there is no second reference to them.
        (self.width == self.stride).then(|| unsafe { std::slice::from_raw_parts_mut(self.start, self.rows * self.width) })
    }

    /// Fill the rows from bytes that follow each other; what they have beyond their share of `rows` is padding, 0.
    ///
    /// # Panics
    ///
    /// Where the block has fewer bytes than `rows`.
    pub fn copy_from(&mut self, rows: &[u8]) {
        let width = rows.len() / self.rows.max(1);
        for (row, from) in (0..self.rows).zip(rows.chunks_exact(width.max(1))) {
            let (to, padding) = self.row(row).split_at_mut(width);
            to.copy_from_slice(from);
            padding.fill(0);
        }
    }

    /// These rows of these columns (bytes of a row).
    ///
    /// # Panics
    ///
    /// Unless they lie in the block.
    #[inline(always)]
    #[allow(unsafe_code, reason = "the part borrows the block")]
    pub fn part(&mut self, rows: Range<usize>, columns: Range<usize>) -> BlockMut<'_> {
        // SAFETY: the result borrows the block, which gives nothing else out meanwhile.
        unsafe { self.cut(rows, columns) }
    }

    /// As [`BlockMut::part`], for as long as the matrix is borrowed.
    ///
    /// # Safety
    ///
    /// Nothing else may reach the bytes of the part while it lives: neither this block nor another part.
    #[inline(always)]
    #[allow(unsafe_code, reason = "the caller keeps the parts apart")]
    unsafe fn cut(&self, rows: Range<usize>, columns: Range<usize>) -> BlockMut<'a> {
        check_part(&rows, &columns, self.rows, self.width);
        // A part without bytes may begin past the end of the matrix.
        let start = self.start.wrapping_add(rows.start * self.stride + columns.start);
        BlockMut { start, rows: rows.len(), width: columns.len(), stride: self.stride, matrix: PhantomData }
    }
}

fn whole_rows(bytes: usize, width: usize) -> usize {
    let rows = bytes.checked_div(width).unwrap_or(0);
    assert_eq!(rows * width, bytes, "a matrix has whole rows");
    rows
}

#[inline(always)]
fn check_part(rows: &Range<usize>, columns: &Range<usize>, most_rows: usize, width: usize) {
    assert!(rows.start <= rows.end && rows.end <= most_rows, "the rows of a part are rows of the block");
    assert!(columns.start <= columns.end && columns.end <= width, "the columns of a part are columns of the block");
}

/// In which order a grid hands out its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Walk {
    /// All blocks of the first rows, from left to right, then those below.
    RowMajor,
    /// All blocks of the first columns, from top to bottom, then those to the right.
    ColumnMajor,
}

/// A matrix cut into blocks to read.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    whole: Block<'a>,
    cuts: Cuts,
}

impl<'a> Blocks<'a> {
    /// Cut a matrix with rows of `stride` bytes: its rows into runs of `row_lengths`, the bytes of a row into runs of `column_lengths`.
    ///
    /// # Panics
    ///
    /// Unless the lengths add up to the matrix.
    pub fn new(matrix: &'a [u8], stride: usize, row_lengths: &[usize], column_lengths: &[usize], walk: Walk) -> Self {
        let (rows, cuts) = Cuts::new(matrix.len(), stride, row_lengths, column_lengths, walk);
        Blocks { whole: Block { bytes: matrix, rows, width: stride, stride }, cuts }
    }
}

impl<'a> Iterator for Blocks<'a> {
    type Item = Block<'a>;

    fn next(&mut self) -> Option<Block<'a>> {
        let (rows, columns) = self.cuts.next()?;
        Some(self.whole.part(rows, columns))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.cuts.size_hint()
    }
}

impl ExactSizeIterator for Blocks<'_> {}

/// A matrix cut into blocks to write.
#[derive(Debug)]
pub struct BlocksMut<'a> {
    whole: BlockMut<'a>,
    cuts: Cuts,
}

impl<'a> BlocksMut<'a> {
    /// Cut a matrix with rows of `stride` bytes: its rows into runs of `row_lengths`, the bytes of a row into runs of `column_lengths`.
    ///
    /// # Panics
    ///
    /// Unless the lengths add up to the matrix.
    pub fn new(matrix: &'a mut [u8], stride: usize, row_lengths: &[usize], column_lengths: &[usize], walk: Walk) -> Self {
        let (rows, cuts) = Cuts::new(matrix.len(), stride, row_lengths, column_lengths, walk);
        BlocksMut { whole: BlockMut { start: matrix.as_mut_ptr(), rows, width: stride, stride, matrix: PhantomData }, cuts }
    }
}

impl<'a> Iterator for BlocksMut<'a> {
    type Item = BlockMut<'a>;

    #[allow(unsafe_code, reason = "disjoint blocks of one matrix")]
    fn next(&mut self) -> Option<BlockMut<'a>> {
        let (rows, columns) = self.cuts.next()?;
        // SAFETY: the runs of rows do not overlap, neither do those of columns, and `cuts` gives each pair of them once; nothing
        // is read or written through `whole` itself.
        Some(unsafe { self.whole.cut(rows, columns) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.cuts.size_hint()
    }
}

impl ExactSizeIterator for BlocksMut<'_> {}

/// The pairs of a run of rows and a run of columns, each once.
#[derive(Clone, Debug)]
struct Cuts {
    rows: Vec<Range<usize>>,
    columns: Vec<Range<usize>>,
    walk: Walk,
    /// How many were given.
    given: usize,
}

impl Cuts {
    /// And the number of rows.
    fn new(bytes: usize, stride: usize, row_lengths: &[usize], column_lengths: &[usize], walk: Walk) -> (usize, Cuts) {
        let (height, rows) = runs(row_lengths);
        let (width, columns) = runs(column_lengths);
        assert!(width == stride && height.checked_mul(stride) == Some(bytes), "the lengths add up to the matrix");
        (height, Cuts { rows, columns, walk, given: 0 })
    }
}

impl Iterator for Cuts {
    type Item = (Range<usize>, Range<usize>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.given == self.rows.len() * self.columns.len() {
            return None;
        }
        let (row, column) = match self.walk {
            Walk::RowMajor => (self.given / self.columns.len(), self.given % self.columns.len()),
            Walk::ColumnMajor => (self.given % self.rows.len(), self.given / self.rows.len()),
        };
        self.given += 1;
        Some((self.rows[row].clone(), self.columns[column].clone()))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = self.rows.len() * self.columns.len() - self.given;
        (left, Some(left))
    }
}

/// Their sum, and lengths as runs that follow each other.
fn runs(lengths: &[usize]) -> (usize, Vec<Range<usize>>) {
    let mut end = 0usize;
    let runs = lengths.iter().map(|&length| {
        let start = end;
        end = start.checked_add(length).expect("the lengths add up to the matrix");
        start..end
    });
    let runs = runs.collect();
    (end, runs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    const WALKS: [Walk; 2] = [Walk::RowMajor, Walk::ColumnMajor];

    proptest! {
        #[test]
        fn a_grid_hands_out_every_byte_once(row_lengths in vec(0usize..5, 0..6), column_lengths in vec(0usize..9, 0..6)) {
            let (rows, stride): (usize, usize) = (row_lengths.iter().sum(), column_lengths.iter().sum());
            for walk in WALKS {
                let mut matrix = vec![0u8; rows * stride];
                // All blocks live at once, and each adds one to its bytes.
                let mut blocks: Vec<BlockMut> = BlocksMut::new(&mut matrix, stride, &row_lengths, &column_lengths, walk).collect();
                prop_assert_eq!(blocks.len(), row_lengths.len() * column_lengths.len());
                for block in &mut blocks {
                    for row in 0..block.rows() {
                        block.row(row).iter_mut().for_each(|byte| *byte += 1);
                    }
                }
                prop_assert!(matrix.iter().all(|&count| count == 1));
            }
        }

        #[test]
        fn both_grids_follow_the_walk(row_lengths in vec(1usize..5, 1..6), column_lengths in vec(1usize..9, 1..6)) {
            let (rows, stride): (usize, usize) = (row_lengths.iter().sum(), column_lengths.iter().sum());
            let numbers: Vec<u8> = (0..rows * stride).map(|at| at as u8).collect();
            let starts = |lengths: &[usize]| (0..lengths.len()).map(|i| lengths[..i].iter().sum()).collect::<Vec<usize>>();
            let (tops, lefts) = (starts(&row_lengths), starts(&column_lengths));
            for walk in WALKS {
                let mut expected = Vec::new();
                match walk {
                    Walk::RowMajor => (0..tops.len()).for_each(|r| expected.extend((0..lefts.len()).map(|c| (r, c)))),
                    Walk::ColumnMajor => (0..lefts.len()).for_each(|c| expected.extend((0..tops.len()).map(|r| (r, c)))),
                }
                let mut copy = numbers.clone();
                let shared = Blocks::new(&numbers, stride, &row_lengths, &column_lengths, walk);
                let mutable = BlocksMut::new(&mut copy, stride, &row_lengths, &column_lengths, walk);
                prop_assert_eq!((shared.len(), mutable.len()), (expected.len(), expected.len()));
                for (((r, c), block), mut other) in expected.into_iter().zip(shared).zip(mutable) {
                    let shape = (row_lengths[r], column_lengths[c], stride);
                    prop_assert_eq!((block.rows(), block.width(), block.stride()), shape);
                    prop_assert_eq!((other.rows(), other.width(), other.stride()), shape);
                    for row in 0..row_lengths[r] {
                        let start = (tops[r] + row) * stride + lefts[c];
                        prop_assert_eq!(block.row(row), &numbers[start..start + column_lengths[c]]);
                        prop_assert_eq!(&*other.row(row), block.row(row));
                    }
                }
            }
        }
    }

    #[test]
    fn threads_write_columns_of_one_matrix() {
        let mut matrix = [0u8; 6 * 10];
        std::thread::scope(|scope| {
            for (value, mut block) in (1..).zip(BlocksMut::new(&mut matrix, 10, &[6], &[3, 3, 4], Walk::RowMajor)) {
                scope.spawn(move || (0..block.rows()).for_each(|row| block.row(row).fill(value)));
            }
        });
        assert_eq!(matrix, [1, 1, 1, 2, 2, 2, 3, 3, 3, 3].repeat(6)[..]);
    }

    #[test]
    fn parts_are_parts() {
        let numbers: Vec<u8> = (0..5 * 8).collect();
        let mut copy = numbers.clone();
        let (block, mut other) = (Block::whole(&numbers, 8), BlockMut::whole(&mut copy, 8));
        let (part, mut other) = (block.part(1..4, 2..7), other.part(1..4, 2..7));
        let (part, mut other) = (part.part(1..3, 1..3), other.part(1..3, 1..3));
        assert_eq!((part.rows(), part.width(), part.row(1)), (2, 2, &[27, 28][..]));
        assert_eq!((other.rows(), other.width(), &*other.row(1)), (2, 2, &[27, 28][..]));
        let empty = block.part(5..5, 8..8);
        assert_eq!((empty.rows(), empty.width()), (0, 0));
    }

    #[test]
    #[should_panic(expected = "only its rows")]
    fn a_row_past_the_end_panics() {
        BlockMut::whole(&mut [0; 6], 3).row(2);
    }

    #[test]
    #[should_panic(expected = "columns of the block")]
    fn a_part_outside_panics() {
        BlockMut::whole(&mut [0; 6], 3).part(0..1, 2..4);
    }

    #[test]
    #[should_panic(expected = "add up")]
    fn lengths_that_overflow_panic() {
        BlocksMut::new(&mut [0; 6], 3, &[2], &[usize::MAX, 4], Walk::RowMajor);
    }

    #[test]
    #[should_panic(expected = "add up")]
    fn lengths_that_leave_bytes_out_panic() {
        BlocksMut::new(&mut [0; 6], 3, &[1], &[3], Walk::RowMajor);
    }
}
