//! The tasks of a call: ranges of elements, and of every part the bytes that belong to them.
//!
//! A cut falls between whole groups and between whole bytes of every part. Where rows follow each other without padding in
//! every part, the tensor is one long row.

use crate::layout::Layout;
use crate::spec::{Extent, GroupSize};

/// As many parts as any format has.
pub(super) const MAX_PARTS: usize = 4;

/// Mutable shares of the parts; those beyond the format's are empty.
pub(super) type PartsMut<'a> = [&'a mut [u8]; MAX_PARTS];

/// Shares of the parts; those beyond the format's are empty.
pub(super) type Parts<'a> = [&'a [u8]; MAX_PARTS];

/// Elements of a task at least: 256 KiB of f32, so that taking it costs nothing beside doing it.
const TASK: usize = 64 * 1024;

/// Elements of a task at most, so that an interrupt is seen soon and the last tasks end together.
pub(super) const LARGEST_TASK: usize = 1024 * 1024;

/// Elements of a group up to which it is coded in one piece: 256 KiB of f32, which stay in a core's own cache between the pass
/// that finds the range and the pass that codes.
pub(super) const LONG: usize = 64 * 1024;

/// Elements of a span, where a group is not longer: 16 KiB of f32, which stay in the first cache.
pub(super) const SPAN: usize = 4096;

/// The same where nothing but the formats sees the floats, and the least whose codes leave past the caches from within a kernel, which begins with
/// a room to clear: 256 KiB.
pub(super) const STREAMED_SPAN: usize = 64 * 1024;

/// Elements of a run that is decoded past the caches at least: its ends are no whole cache lines.
pub(super) const STREAMED_RUN: usize = 1024;

/// How a tensor is cut.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    pub rows: usize,
    pub columns: usize,
    /// Elements of a group along a row.
    pub group: usize,
    /// Elements that are coded together: one group, or a block of several.
    pub block: usize,
    /// Elements of the smallest piece of a row that may be cut off.
    pub unit: usize,
    /// Whether groups are coded in several pieces, with a range that is found before.
    pub long: bool,
    /// Whether all rows are in one group.
    pub shared: bool,
    /// Elements of a task.
    task: usize,
}

/// A range of elements of one call: whole rows, or a piece of one.
pub(super) struct Task<P> {
    pub start: usize,
    pub len: usize,
    pub parts: P,
}

impl Grid {
    pub(super) fn new(layout: &Layout, threads: usize) -> Self {
        let (rows, columns) = (layout.rows(), layout.columns());
        let has = |extent: Extent| layout.spec.parts.iter().any(|part| part.extent == extent);
        // A flat format must know a short group from a whole one.
        let group = layout.group_elements().min(if layout.spec.is_flat() { usize::MAX } else { columns.max(1) });
        let shared = layout.group_size == GroupSize::Tensor;
        let whole_codes = (!has(Extent::Codes) || columns.is_multiple_of(2))
            && (!has(Extent::GroupCodes) || columns.is_multiple_of(layout.group_elements()));
        let whole_groups = columns.is_multiple_of(group) && (!has(Extent::GroupPairs) || layout.groups_per_row().is_multiple_of(2));
        let one_row = whole_codes && (shared || whole_groups);
        let (rows, columns) = if one_row { (rows.min(1), rows * columns) } else { (rows, columns) };
        // A group never reaches beyond its row.
        let group = if shared { columns.max(1) } else { group };
        let pairs = if group.is_multiple_of(2) && !has(Extent::GroupPairs) { 1 } else { 2 };
        // A long group of odd length that another follows in its row cannot be cut off at a whole byte.
        let long = group > LONG && (group.is_multiple_of(2) || group >= columns) || shared && rows > 1;
        let block = layout.spec.block(group);
        let unit = if long { 2 } else { block * pairs };
        // Many, as helpers may begin late.
        let share = rows * columns / (16 * threads.max(1));
        let task = share.clamp(TASK, LARGEST_TASK) / SPAN * SPAN;
        Grid { rows, columns, group, block, unit, long, shared, task }
    }

    /// The same with tasks that do not cut rows of `columns` elements, where those are not longer than a task.
    pub(super) fn by_rows(self, columns: usize) -> Self {
        let task = if (1..=self.task).contains(&columns) { self.task / columns * columns } else { self.task };
        Grid { task, ..self }
    }

    pub(super) fn elements(&self) -> usize {
        self.rows * self.columns
    }

    pub(super) fn groups_per_row(&self) -> usize {
        self.columns.div_ceil(self.group)
    }

    /// The lengths of the tasks, in order: pieces of long rows, or several short rows at once.
    pub(super) fn tasks(&self) -> impl Iterator<Item = (usize, usize)> + Send + use<> {
        let grid = self.clone();
        let mut start = 0;
        std::iter::from_fn(move || {
            let rest = grid.elements() - start;
            if rest == 0 {
                return None;
            }
            let column = start % grid.columns;
            let len = if grid.columns <= grid.task {
                (grid.task / grid.columns * grid.columns).min(rest)
            } else {
                grid.task.next_multiple_of(grid.unit).min(grid.columns - column)
            };
            start += len;
            Some((start - len, len))
        })
    }

    /// The pieces of a task that lie in one row each: start and length.
    pub(super) fn segments(&self, start: usize, len: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let columns = self.columns;
        (start..start + len).step_by(columns.max(1)).map(move |at| (at, columns.min(start + len - at)))
    }

    /// The spans of a segment, what is worked on at once: whole units, or within one long group.
    pub(super) fn spans(&self, start: usize, len: usize, span: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (columns, group, long) = (self.columns, self.group, self.long);
        let span = if long { span } else { (span / self.unit).max(1) * self.unit };
        let (mut at, end) = (start, start + len);
        std::iter::from_fn(move || {
            let in_group = if long { group - at % columns % group } else { span };
            let len = span.min(in_group).min(end - at);
            at += len;
            (len > 0).then_some((at - len, len))
        })
    }

    /// Rows of everything that has one element a group.
    pub(super) fn rows_of_groups(&self) -> usize {
        if self.shared { 1 } else { self.rows }
    }

    /// Groups in each of them.
    pub(super) fn groups_of_a_row(&self) -> usize {
        if self.shared { 1 } else { self.groups_per_row() }
    }

    /// Groups of a piece of a row, or of whole rows.
    pub(super) fn groups_of(&self, len: usize) -> usize {
        if len > self.columns { len / self.columns * self.groups_per_row() } else { len.div_ceil(self.group) }
    }

    /// The group that element `start` belongs to.
    pub(super) fn group_of(&self, start: usize) -> usize {
        if self.shared { 0 } else { start / self.columns * self.groups_per_row() + start % self.columns / self.group }
    }

    /// Bytes that one row of groups takes of the parts that hold one element a group.
    pub(super) fn group_bytes(&self, layout: &Layout) -> [usize; MAX_PARTS] {
        let groups = self.groups_of_a_row();
        std::array::from_fn(|index| match layout.spec.parts.get(index).map(|part| part.extent) {
            Some(Extent::Groups) => groups * layout.part_item_size(index),
            Some(Extent::GroupPairs) => groups.div_ceil(2),
            _ => 0,
        })
    }

    /// Bytes of each part for `len` elements of one row, and for whole rows if there are several. Long groups have their
    /// scales and offsets written before, all at once.
    pub(super) fn bytes(&self, layout: &Layout, len: usize) -> [usize; MAX_PARTS] {
        let (rows, len) = if len > self.columns { (len / self.columns, self.columns) } else { (1, len) };
        let groups = len.div_ceil(self.group);
        std::array::from_fn(|index| {
            let Some(part) = layout.spec.parts.get(index) else { return 0 };
            let bytes = match part.extent {
                Extent::Codes => len.div_ceil(2),
                Extent::GroupCodes => groups * layout.group_elements().div_ceil(2),
                Extent::Blocks(bytes) => len.div_ceil(self.block) * bytes,
                Extent::Groups if !self.long => groups * layout.part_item_size(index),
                Extent::GroupPairs if !self.long => groups.div_ceil(2),
                // Written before, all at once, or what the tensor has once.
                _ => 0,
            };
            bytes * rows
        })
    }
}

/// Cut the first `sizes` bytes off each part.
pub(super) fn split_mut<'a>(parts: &mut PartsMut<'a>, sizes: [usize; MAX_PARTS]) -> PartsMut<'a> {
    std::array::from_fn(|index| {
        let (first, rest) = std::mem::take(&mut parts[index]).split_at_mut(sizes[index]);
        parts[index] = rest;
        first
    })
}

/// Cut the first `sizes` bytes off each part.
pub(super) fn split<'a>(parts: &mut Parts<'a>, sizes: [usize; MAX_PARTS]) -> Parts<'a> {
    std::array::from_fn(|index| {
        let (first, rest) = parts[index].split_at(sizes[index]);
        parts[index] = rest;
        first
    })
}

/// Borrow the caller's parts, which [`check`] has seen.
pub(super) fn borrow_mut<'a>(parts: &'a mut [&mut [u8]]) -> PartsMut<'a> {
    let mut borrowed = PartsMut::default();
    for (to, part) in borrowed.iter_mut().zip(parts) {
        *to = part;
    }
    borrowed
}

/// Borrow the caller's parts, which [`check`] has seen.
pub(super) fn borrow<'a>(parts: &[&'a [u8]]) -> Parts<'a> {
    let mut borrowed = Parts::default();
    borrowed[..parts.len()].copy_from_slice(parts);
    borrowed
}

/// Look at the lengths of the caller's parts.
///
/// # Panics
///
/// Unless there are as many parts, and of each as many bytes, as the layout says.
pub(super) fn check(layout: &Layout, lengths: impl ExactSizeIterator<Item = usize>) {
    assert_eq!(lengths.len(), layout.spec.parts.len(), "the parts of {}", layout.spec.name);
    for (index, length) in lengths.enumerate() {
        assert_eq!(length, layout.part_bytes(index), "bytes of part '{}'", layout.spec.parts[index].name);
    }
}
