//! Formats whose rows lie side by side: tiles of some rows and columns, as rows in scratch memory and as blocks in the parts.
//!
//! A tile is small enough for its rows to stay in a core's own cache between the two steps, and wide enough for the blocks to be
//! written in whole cache lines.

use super::Run;
use super::cut::{self, Grid, LARGEST_TASK, Parts, PartsMut, SPAN};
use crate::element::{Sink, SinkTile};
use crate::error::Result;
use crate::formats::{Context, Tile, Weave};
use crate::kernels::blocks::{Block, BlockMut, Blocks, BlocksMut, Walk};
use crate::kernels::encode;
use crate::layout::Layout;
use crate::pool;
use crate::simd::LANES;
use crate::spec::{Extent, GroupSize};
use crate::tensor::Quantized;
use std::cell::RefCell;
use std::ops::Range;

/// Elements of a tile, about: 256 KiB of codes.
const TILE: usize = 512 * 1024;

/// Rows of a tile at most: 128 codes are a cache line.
const MOST_ROWS: usize = 128;

/// Rows of a tile of codes that are turned as they lie, or are written in runs of such a tile: four cache lines.
const TALL: usize = 512;

/// Rows of a tile at least, where the tensor has them: 16 words are a cache line.
const LEAST_ROWS: usize = 16;

/// Elements of a tile of a turned array, about: 256 KiB of f32, half of the second cache of a small core.
const TURNED: usize = 64 * 1024;

/// Columns of such a tile at least, where it has them: two cache lines of codes. Then it has as many rows, a KiB of f32 of each line.
const WIDE: usize = 256;

/// Elements of a run of a turned matrix at least, where it has them: eight cache lines of codes.
const LEAST_RUN: usize = 1024;

/// The layout of the same tensor as the rows that a weave is made of.
pub(super) fn rows_of(layout: &Layout, weave: &dyn Weave) -> Layout {
    let halves = layout.spec.parts.iter().any(|part| part.extent == Extent::HalfRows);
    Layout {
        spec: weave.rows().spec(),
        shape: if halves { vec![2, layout.elements() / 2] } else { layout.shape.clone() },
        // No larger than a row, so that multiples of it can be counted.
        group_size: GroupSize::Elements(layout.group_elements().min(layout.columns().max(1))),
        ..layout.clone()
    }
}

/// How a tensor is cut into tiles.
pub(super) struct Tiles<'a> {
    layout: &'a Layout,
    /// The tensor as rows.
    pub(super) rows: Layout,
    /// Rows of the tiles, from the first to the last.
    row_lengths: Vec<usize>,
    /// Columns of the tiles.
    column_lengths: Vec<usize>,
}

/// A tile, and where it is in the tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) first_row: usize,
    pub(super) first_column: usize,
    pub(super) tile: Tile,
}

impl<'a> Tiles<'a> {
    /// Cut for this many threads; `whole_rows` says that no row may be cut.
    pub(super) fn new(layout: &'a Layout, weave: &dyn Weave, threads: usize, whole_rows: bool) -> Self {
        Tiles::of_rows(layout, rows_of(layout, weave), threads, whole_rows)
    }

    /// The same of a layout whose rows are known.
    pub(super) fn of_rows(layout: &'a Layout, rows: Layout, threads: usize, whole_rows: bool) -> Self {
        let height = height_of(&rows);
        Tiles::of_height(layout, rows, threads, whole_rows, height, 0)
    }

    /// Cut so that the runs of a tile in the turned matrix begin at cache lines of `codes`, the part of the codes.
    pub(super) fn lined(layout: &'a Layout, rows: Layout, threads: usize, whole_rows: bool, codes: &[u8]) -> Self {
        let (height, lead) = (height_of(&rows), lead_of(layout, &rows, codes));
        Tiles::of_height(layout, rows, threads, whole_rows, height, lead)
    }

    /// The same with runs that are long.
    pub(super) fn tall(layout: &'a Layout, rows: Layout, threads: usize, whole_rows: bool, codes: &[u8]) -> Self {
        let lead = lead_of(layout, &rows, codes);
        Tiles::of_height(layout, rows, threads, whole_rows, TALL, lead)
    }

    /// Cut into tiles of about `height` rows, after a first one of `lead` rows.
    fn of_height(layout: &'a Layout, rows: Layout, threads: usize, whole_rows: bool, height: usize, lead: usize) -> Self {
        let (n, k) = (rows.rows(), rows.columns());
        let group = rows.group_elements();
        // Where bytes hold codes of two rows, an odd number of rows is not cut, and only two columns together are whole bytes.
        let has = |extent: Extent| layout.spec.parts.iter().any(|part| part.extent == extent);
        let odd = n % 2 == 1 && (has(Extent::Transposed) || has(Extent::GroupPairsTransposed));
        let share = (n / (4 * threads)).max(LEAST_ROWS);
        let height = height.min(share).next_multiple_of(8).min(n.max(1));
        let height = if odd { n } else { height };
        let groups = if odd { 2 * group } else { group };
        let unit = groups / gcd(groups, 8) * 8;
        let width = if n > height { TILE / height } else { (TILE / height).min(k / (4 * threads)) };
        let width = if whole_rows || n > height && k <= 2 * width { k } else { (width / unit).max(1) * unit };
        let mut row_lengths = lengths(lead, lead);
        row_lengths.extend(lengths(n - lead, height));
        Tiles { layout, rows, row_lengths, column_lengths: lengths(k, width) }
    }

    /// Cut for matrices that stay turned: into bands of columns, whose parts are runs of the turned matrix.
    pub(super) fn bands(layout: &'a Layout, rows: Layout, threads: usize) -> Self {
        let (n, k) = (rows.rows(), rows.columns());
        let group = rows.group_elements();
        let unit = group / gcd(group, 8) * 8;
        let height = (TILE / unit).max(LEAST_RUN).min(n);
        let width = ((TILE / height).min(k / (4 * threads)) / unit).max(1) * unit;
        Tiles { layout, rows, row_lengths: lengths(n, height), column_lengths: lengths(k, width) }
    }

    /// Cut an array of matrices of `height` rows that are stored turned, where tiles of them are worth their cost: lines of memory are read
    /// and written in runs of tiles, and what a tile touches stays in a core's own cache.
    pub(super) fn turned(layout: &'a Layout, grid: &Grid, height: Option<usize>) -> Option<Self> {
        let (height, k) = (height?, layout.columns());
        let small = height < LANES || height * k <= TURNED;
        if small || grid.long || grid.group > encode::TILE || layout.spec.is_flat() {
            return None;
        }
        let width = ((TURNED / height).max(WIDE) / grid.unit).max(1) * grid.unit;
        let width = width.min(k);
        let row_lengths = lengths(height, (TURNED / width / 64).max(1) * 64).repeat(layout.rows() / height);
        Some(Tiles { layout, rows: layout.clone(), row_lengths, column_lengths: lengths(k, width) })
    }

    /// The tiles with what `share` gives for each of them, in turn: several for a task, which is as long as one of rows that follow each other.
    pub(super) fn tasks<S>(&self, threads: usize, mut share: impl FnMut(Place) -> S) -> impl Iterator<Item = Vec<(Place, S)>> {
        let count = self.row_lengths.len() * self.column_lengths.len();
        let most = (count / (16 * threads.max(1))).clamp(1, LARGEST_TASK / TURNED);
        let mut places = self.places();
        std::iter::from_fn(move || {
            let task: Vec<_> = places.by_ref().take(most).map(|place| (place, share(place))).collect();
            (!task.is_empty()).then_some(task)
        })
    }

    /// The elements of a tile of a turned array in pieces of about a span: those of whole units, row after row, as if they were one row.
    pub(super) fn pieces(&self, grid: &Grid, tile: Tile) -> impl Iterator<Item = Range<usize>> + use<> {
        let len = tile.rows * tile.columns;
        let row = if tile.columns.is_multiple_of(grid.unit) { len } else { tile.columns };
        let grid = grid.clone();
        (0..len).step_by(row).flat_map(move |start| grid.spans(start, row, SPAN)).map(|(start, len)| start..start + len)
    }

    /// The tiles of a turned array, in the order of [`Tiles::places`].
    pub(super) fn sinks<'s>(&self, sink: Sink<'s>) -> impl Iterator<Item = SinkTile<'s>> + Send + use<'s> {
        sink.tiles(&self.row_lengths, &self.column_lengths)
    }

    pub(super) fn context(&self, run: &Run<'_>) -> Context {
        let (group, scale_dtype) = (self.rows.group_elements(), self.rows.scale_dtype);
        Context { level: run.level, group, scale_dtype, global: 1.0, stream: false }
    }

    /// Whether no row is cut.
    pub(super) fn has_whole_rows(&self) -> bool {
        self.column_lengths.len() == 1
    }

    /// All tiles: those of the first columns from the first row to the last, then those beside them.
    pub(super) fn places(&self) -> impl Iterator<Item = Place> + Send + use<> {
        let (rows, columns) = (self.row_lengths.clone(), self.column_lengths.clone());
        let starts = |lengths: Vec<usize>| {
            lengths.into_iter().scan(0, |start, length| {
                *start += length;
                Some((*start - length, length))
            })
        };
        starts(columns).flat_map(move |(first_column, columns)| {
            starts(rows.clone()).map(move |(first_row, rows)| Place { first_row, first_column, tile: Tile { rows, columns } })
        })
    }

    /// The elements of a tile as runs that follow each other in the tensor and in the rows: one for each row, or one alone.
    pub(super) fn runs(&self, place: Place) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Place { first_row, first_column, tile } = place;
        let columns = self.rows.columns();
        let in_one = tile.columns == columns && columns.is_multiple_of(2) && columns.is_multiple_of(self.rows.group_elements());
        let (count, len) = if in_one { (1, tile.rows * columns) } else { (tile.rows, tile.columns) };
        (0..count).map(move |row| ((first_row + row) * columns + first_column, len))
    }

    /// A run of `len` elements in pieces of about `span`: whole groups, and whole bytes of codes.
    pub(super) fn spans(&self, len: usize, span: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let group = self.rows.group_elements();
        let unit = if group.is_multiple_of(2) { group } else { 2 * group };
        let span = (span / unit).max(1) * unit;
        (0..len).step_by(span).map(move |start| start..len.min(start + span))
    }

    /// Bytes that so many elements of a row take of part `index` of the rows.
    pub(super) fn row_bytes(&self, index: usize, columns: usize) -> usize {
        row_bytes(&self.rows, index, columns)
    }

    /// Cut what so many elements of a row take off each part of the rows.
    pub(super) fn split_mut<'p>(&self, rest: &mut [&'p mut [u8]], columns: usize) -> PartsMut<'p> {
        let mut parts = PartsMut::default();
        for (index, (part, rest)) in parts.iter_mut().zip(rest).enumerate() {
            let (first, others) = std::mem::take(rest).split_at_mut(self.row_bytes(index, columns));
            (*part, *rest) = (first, others);
        }
        parts
    }

    /// The same of parts that are read.
    pub(super) fn split<'p>(&self, rest: &mut Parts<'p>, columns: usize) -> Parts<'p> {
        let count = self.rows.spec.parts.len();
        cut::split(rest, std::array::from_fn(|index| if index < count { self.row_bytes(index, columns) } else { 0 }))
    }

    /// The blocks of every part, one for each tile in the order of [`Tiles::places`].
    pub(super) fn blocks_mut<'p>(&self, parts: &'p mut [&mut [u8]]) -> Vec<Option<BlocksMut<'p>>> {
        self.cut_mut(self.layout, parts)
    }

    /// The same of another layout of the tensor.
    pub(super) fn cut_mut<'p>(&self, layout: &Layout, parts: &'p mut [&mut [u8]]) -> Vec<Option<BlocksMut<'p>>> {
        let cut = |(index, part): (usize, &'p mut &mut [u8])| {
            let (stride, rows, columns, walk) = self.cuts(layout, index)?;
            Some(BlocksMut::new(part, stride, &rows, &columns, walk))
        };
        parts.iter_mut().enumerate().map(cut).collect()
    }

    /// The same to read.
    pub(super) fn blocks<'p>(&self, parts: &[&'p [u8]]) -> Vec<Option<Blocks<'p>>> {
        self.cut(self.layout, parts)
    }

    /// The same of another layout of the tensor.
    pub(super) fn cut<'p>(&self, layout: &Layout, parts: &[&'p [u8]]) -> Vec<Option<Blocks<'p>>> {
        let mut cut = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter().enumerate() {
            let cuts = self.cuts(layout, index);
            cut.push(cuts.map(|(stride, rows, columns, walk)| Blocks::new(part, stride, &rows, &columns, walk)));
        }
        cut
    }

    /// The blocks of the parts of the rows; none of one that is empty.
    fn row_blocks_mut<'p>(&self, parts: &'p mut [Vec<u8>]) -> Vec<Option<BlocksMut<'p>>> {
        let mut cut = Vec::with_capacity(parts.len());
        for (index, part) in parts.iter_mut().enumerate() {
            let cuts = self.cuts(&self.rows, index).filter(|_| !part.is_empty());
            cut.push(cuts.map(|(stride, rows, columns, walk)| BlocksMut::new(part, stride, &rows, &columns, walk)));
        }
        cut
    }

    /// How part `index` of a layout is cut: bytes of a row of it, its rows and the bytes of its rows in each tile, and the order.
    fn cuts(&self, layout: &Layout, index: usize) -> Option<(usize, Vec<usize>, Vec<usize>, Walk)> {
        let (rows, columns) = (&self.row_lengths, &self.column_lengths);
        let group = self.rows.group_elements();
        let size = layout.part_item_size(index);
        let each = |lengths: &[usize], of: &dyn Fn(usize) -> usize| lengths.iter().map(|&length| of(length)).collect::<Vec<_>>();
        let n = self.rows.rows();
        let (down, across, walk) = match layout.spec.parts[index].extent {
            // The rows of the turned matrix do not begin at whole bytes, but its tiles do.
            Extent::Transposed if n % 2 == 1 => (vec![1], each(columns, &|k| (k * n).div_ceil(2)), Walk::RowMajor),
            Extent::GroupPairsTransposed if n % 2 == 1 => {
                (vec![1], each(columns, &|k| (k.div_ceil(group) * n).div_ceil(2)), Walk::RowMajor)
            }
            Extent::WordsAlongColumns => (each(columns, &|k| k / 8), each(rows, &|n| 4 * n), Walk::RowMajor),
            Extent::WordsAcrossRows | Extent::Transposed | Extent::HalfRows => (columns.clone(), each(rows, &|n| n / 2), Walk::RowMajor),
            Extent::GroupsTransposed => (each(columns, &|k| k.div_ceil(group)), each(rows, &|n| n * size), Walk::RowMajor),
            Extent::GroupWordsTransposed | Extent::GroupPairsTransposed => {
                (each(columns, &|k| k.div_ceil(group)), each(rows, &|n| n / 2), Walk::RowMajor)
            }
            Extent::GroupWordsAcrossRows => {
                (each(rows, &|n| n.div_ceil(8)), each(columns, &|k| k.div_ceil(group) * size), Walk::ColumnMajor)
            }
            Extent::Codes => {
                let mut across = each(columns, &|k| k.div_ceil(2));
                // The last tile has the padding.
                let row = self.rows.columns().div_ceil(2).div_ceil(size) * size;
                let others: usize = across.iter().rev().skip(1).sum();
                *across.last_mut()? = row - others;
                (rows.clone(), across, Walk::ColumnMajor)
            }
            Extent::Groups | Extent::GroupPairs | Extent::GroupCodes | Extent::Blocks(_) => {
                (rows.clone(), each(columns, &|k| row_bytes(layout, index, k)), Walk::ColumnMajor)
            }
            _ => return None,
        };
        Some((across.iter().sum(), down, across, walk))
    }
}

/// Rows of a tile whose runs need not be long.
fn height_of(rows: &Layout) -> usize {
    (TILE / rows.columns().max(1)).clamp(LEAST_ROWS, MOST_ROWS)
}

/// Rows before the first one whose codes begin at a cache line in every row of the turned matrix; 0 where there is none.
fn lead_of(layout: &Layout, rows: &Layout, codes: &[u8]) -> usize {
    let n = rows.rows();
    let has_rows_of_lines = matches!(layout.spec.parts[0].extent, Extent::WordsAcrossRows | Extent::Transposed) && n.is_multiple_of(128);
    let lead = 2 * (codes.as_ptr().addr().wrapping_neg() % 64);
    if has_rows_of_lines && lead < n { lead / 8 * 8 } else { 0 }
}

/// The next block of every part; parts that the tensor has once have none.
pub(super) fn next_mut<'p>(blocks: &mut [Option<BlocksMut<'p>>]) -> Vec<BlockMut<'p>> {
    let next = |blocks: &mut Option<BlocksMut<'p>>| blocks.as_mut().and_then(Iterator::next).unwrap_or_else(|| BlockMut::whole(&mut [], 0));
    blocks.iter_mut().map(next).collect()
}

/// The next block of every part, to read.
pub(super) fn next<'p>(blocks: &mut [Option<Blocks<'p>>]) -> Vec<Block<'p>> {
    let next = |blocks: &mut Option<Blocks<'p>>| blocks.as_mut().and_then(Iterator::next).unwrap_or_else(|| Block::whole(&[], 0));
    blocks.iter_mut().map(next).collect()
}

/// Bytes that so many elements of a row take of part `index` of rows.
pub(super) fn row_bytes(rows: &Layout, index: usize, columns: usize) -> usize {
    let groups = columns.div_ceil(rows.group_elements());
    match rows.spec.parts[index].extent {
        Extent::Groups => groups * rows.part_item_size(index),
        Extent::GroupPairs => groups.div_ceil(2),
        _ => rows.code_bytes(index, columns),
    }
}

thread_local! {
    /// Memory for tiles as rows that this thread used before. A tile fills its share, so that nothing is cleared between two.
    static USED: RefCell<Vec<Vec<Vec<u8>>>> = const { RefCell::new(Vec::new()) };
}

/// Bytes of a tile as rows up to which a thread keeps them for the next one.
const KEPT: usize = 4 << 20;

/// Memory for a tile as rows, to be filled; no codes where only the scales are wanted.
pub(super) struct Scratch(Vec<Vec<u8>>);

impl Scratch {
    pub(super) fn new(rows: &Layout, tile: Tile, codes: bool) -> Self {
        let mut buffers = USED.with_borrow_mut(Vec::pop).unwrap_or_default();
        buffers.resize(rows.spec.parts.len(), Vec::new());
        for (index, buffer) in buffers.iter_mut().enumerate() {
            buffer.resize(if index == 0 && !codes { 0 } else { tile.rows * row_bytes(rows, index, tile.columns) }, 0);
        }
        Scratch(buffers)
    }

    pub(super) fn slices(&mut self) -> Vec<&mut [u8]> {
        slices(&mut self.0)
    }

    pub(super) fn views(&self) -> Vec<&[u8]> {
        self.0.iter().map(Vec::as_slice).collect()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if self.0.iter().map(Vec::capacity).sum::<usize>() <= KEPT {
            USED.with_borrow_mut(|used| used.push(std::mem::take(&mut self.0)));
        }
    }
}

/// Mutable slices of buffers.
pub(super) fn slices(buffers: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    buffers.iter_mut().map(Vec::as_mut_slice).collect()
}

/// The whole tensor as rows; without its codes where only the scales are wanted.
pub(super) fn unweave(layout: &Layout, weave: &dyn Weave, parts: &[&[u8]], codes: bool, run: &Run<'_>) -> Result<Quantized> {
    let tiles = Tiles::new(layout, weave, run.threads, false);
    let context = tiles.context(run);
    let mut whole = Quantized::zeroed(tiles.rows.clone())?;
    if !codes {
        whole.parts[0] = Vec::new();
    }
    {
        let mut from = tiles.blocks(parts);
        let mut to = tiles.row_blocks_mut(&mut whole.parts);
        let tasks = tiles.places().map(|place| (place.tile, next(&mut from), next_mut(&mut to)));
        pool::for_each(tasks, run.threads, run.interrupted, |(tile, parts, mut to)| {
            let mut rows = Scratch::new(&tiles.rows, tile, codes);
            weave.unweave(context, tile, &parts, &mut rows.slices());
            to.iter_mut().zip(rows.views()).for_each(|(to, from)| to.copy_from(from));
        })?;
    }
    Ok(whole)
}

/// Parts from the whole tensor as rows.
pub(super) fn weave_all(layout: &Layout, weave: &dyn Weave, whole: &[&[u8]], parts: &mut [&mut [u8]], run: &Run<'_>) -> Result<()> {
    let tiles = Tiles::new(layout, weave, run.threads, false);
    let context = tiles.context(run);
    let mut to = tiles.blocks_mut(parts);
    let mut from = tiles.cut(&tiles.rows, whole);
    let tasks = tiles.places().map(|place| (place.tile, next(&mut from), next_mut(&mut to)));
    pool::for_each(tasks, run.threads, run.interrupted, |(tile, from, mut to)| {
        let mut rows = Scratch::new(&tiles.rows, tile, true);
        rows.slices().into_iter().zip(&from).for_each(|(to, from)| from.copy_to(to));
        weave.weave(context, tile, &rows.views(), &mut to);
    })?;
    Ok(())
}

fn lengths(whole: usize, most: usize) -> Vec<usize> {
    let most = most.max(1);
    (0..whole).step_by(most).map(|start| most.min(whole - start)).collect()
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
