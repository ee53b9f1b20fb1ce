//! Rows of a tensor: how it is cut between them, and where their share of each part lies. So a tensor of any size is read, converted,
//! measured and written a block of rows at a time.

use crate::layout::Layout;
use crate::spec::{Extent, GroupSize};

/// Elements of a block where nothing else is asked for: 8 MiB of f32, enough for all threads to have work.
pub const BLOCK_ELEMENTS: usize = 2 << 20;

/// Bytes of memory for an element of a block at most: the element and what it becomes, each also of the blocks that are read ahead and wait
/// to be written, and both as floats to measure the error.
pub const ELEMENT_BYTES: u64 = 32;

/// How a tensor is cut: a block has a multiple of so many rows, or all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    Rows(usize),
    Whole,
}

impl Cut {
    /// Of a tensor that is stored so: between its blocks no part is shared but those that the tensor has once.
    pub(super) fn of(layout: &Layout) -> Cut {
        let spec = layout.spec;
        let by_extent = |extent: Extent| match extent {
            Extent::Groups if layout.group_size == GroupSize::Tensor => Cut::Whole,
            Extent::Transposed | Extent::GroupPairsTransposed if !layout.rows().is_multiple_of(2) => Cut::Whole,
            Extent::WordsAlongColumns
            | Extent::WordsAcrossRows
            | Extent::Transposed
            | Extent::GroupsTransposed
            | Extent::GroupWordsTransposed
            | Extent::GroupPairsTransposed
            | Extent::GroupWordsAcrossRows => Cut::Rows(8),
            Extent::HalfRows | Extent::Nested => Cut::Whole,
            _ => Cut::Rows(1),
        };
        let extents = spec.parts.iter().map(|part| by_extent(part.extent)).fold(Cut::Rows(1), Cut::and);
        // Groups that run across the ends of rows begin at the first element of a block only.
        let (group, columns) = (layout.group_elements(), layout.shape.last().copied().unwrap_or(1));
        let flat = if spec.is_flat() { Cut::Rows(group / divisor(group, columns)) } else { Cut::Rows(1) };
        extents.and(flat)
    }

    /// What suits both.
    pub(super) fn and(self, other: Cut) -> Cut {
        match (self, other) {
            (Cut::Rows(a), Cut::Rows(b)) => Cut::Rows(a / divisor(a, b) * b),
            _ => Cut::Whole,
        }
    }

    /// The blocks of a tensor of about so many elements each: first row, number of rows.
    pub(super) fn blocks(self, shape: &[usize], elements: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (columns, rows) = lengths(shape);
        let count = match self {
            Cut::Rows(step) => (elements / columns.max(1) / step).max(1).saturating_mul(step),
            Cut::Whole => rows.max(1),
        };
        (0..rows).step_by(count).map(move |first| (first, count.min(rows - first)))
    }

    /// Elements of the largest of these blocks.
    pub(super) fn largest(self, shape: &[usize], elements: usize) -> usize {
        self.blocks(shape, elements).next().map_or(0, |(_, count)| count * lengths(shape).0)
    }
}

fn divisor(a: usize, b: usize) -> usize {
    if b == 0 { a.max(1) } else { divisor(b, a % b) }
}

/// The last axis, and the product of the others; without elements there are no rows.
pub(super) fn lengths(shape: &[usize]) -> (usize, usize) {
    let (columns, rows) = match shape.split_last() {
        Some((&columns, rows)) => (columns, rows.iter().product()),
        None => (1, 1),
    };
    (columns, if columns == 0 { 0 } else { rows })
}

/// The layout of `count` rows of a tensor as a matrix.
pub(super) fn layout_of(layout: &Layout, count: usize) -> Layout {
    Layout { shape: vec![count, lengths(&layout.shape).0], ..layout.clone() }
}

/// Where something lies in a part: pieces of `len` bytes, `stride` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Share {
    pub(super) start: u64,
    pub(super) len: usize,
    pub(super) stride: u64,
    pub(super) pieces: usize,
}

impl Share {
    /// `len` bytes from `start` on.
    pub(super) fn piece(start: u64, len: usize) -> Share {
        Share { start, len, stride: 0, pieces: 1 }
    }

    /// Where each piece begins in the part, and its place in the bytes of all pieces.
    pub(super) fn places(self) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        (0..self.pieces).map(move |piece| (self.start + piece as u64 * self.stride, piece * self.len..(piece + 1) * self.len))
    }

    /// Bytes of all pieces.
    pub(super) fn bytes(self) -> usize {
        self.len * self.pieces
    }

    /// Bytes of a part whose pieces are all so far apart.
    pub(super) fn span(self) -> usize {
        self.stride as usize * self.pieces
    }
}

/// Where the share of rows `first..first + count` lies in part `index`; `None` for a part that the tensor has once.
///
/// The rows are such as [`Cut::of`] allows.
pub(super) fn share(layout: &Layout, index: usize, first: usize, count: usize) -> Option<Share> {
    let (columns, rows) = lengths(&layout.shape);
    let (groups, item) = (layout.groups_per_row(), layout.part_item_size(index));
    // So many lines across all rows, each with `bytes` for eight rows.
    let across = |pieces: usize, bytes: usize| {
        let at = |rows: usize| rows * bytes / 8;
        if count == rows {
            return Some(Share::piece(0, pieces * at(rows)));
        }
        Some(Share { start: at(first) as u64, len: at(count), stride: at(rows) as u64, pieces })
    };
    match layout.spec.parts[index].extent {
        Extent::Scalar | Extent::One | Extent::GroupOfColumn | Extent::Lengths => None,
        Extent::WordsAlongColumns => across(columns / 8, 8 * item),
        Extent::WordsAcrossRows => across(columns, item),
        Extent::Transposed if count < rows => across(columns, 4),
        Extent::GroupsTransposed => across(groups, 8 * item),
        Extent::GroupWordsTransposed => across(groups, item),
        Extent::GroupPairsTransposed if count < rows => across(groups, 4),
        Extent::GroupWordsAcrossRows => {
            let word = groups * item;
            Some(Share::piece((first / 8 * word) as u64, count.div_ceil(8) * word))
        }
        _ => {
            let bytes = layout.part_bytes(index);
            let at = |row: usize| if row == rows { bytes } else { bytes_before(layout, index, row) };
            Some(Share::piece(at(first) as u64, at(first + count) - at(first)))
        }
    }
}

/// The bytes of a part whose rows follow each other that lie before `row`.
fn bytes_before(layout: &Layout, index: usize, row: usize) -> usize {
    if row == 0 { 0 } else { layout_of(layout, row).part_bytes(index) }
}
