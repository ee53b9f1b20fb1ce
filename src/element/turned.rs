//! Tiles of arrays that are stored turned: some rows and columns of a matrix, read and written in its own dtype, row after row.

use super::{Dtype, Sink, Source, Strided, TurnedRows};
use crate::kernels::blocks::{Block, BlockMut};
use crate::kernels::convert::Half;
use crate::kernels::decode::Output;
use crate::kernels::encode::Input;
use crate::kernels::transpose::{Items, ItemsPast, STAGE};
use crate::level::Level;
use bytemuck::cast_slice_mut;
use std::ops::Range;

impl Strided {
    /// Some columns of some rows of one matrix that is stored turned.
    fn tile(&self, rows: Range<usize>, columns: Range<usize>) -> TurnedRows {
        let (n, k) = self.turned().expect("matrices that are stored turned");
        assert!(!rows.is_empty() && rows.end <= self.len() / k && rows.start / n == (rows.end - 1) / n, "rows of one matrix");
        assert!(!columns.is_empty() && columns.end <= k, "columns of a matrix");
        let mut tile = TurnedRows { offset: 0, stride: 0, count: rows.len(), range: 0..rows.len() * columns.len() };
        self.visit(rows.start * k + columns.start, 1, |offset, stride, _| (tile.offset, tile.stride) = (offset, stride as usize));
        tile
    }
}

impl Source<'_> {
    /// Rows of each of the matrices of rows of `columns` elements that the array is, where these are stored turned.
    pub fn turned_rows(&self, columns: usize) -> Option<usize> {
        self.array.turned().filter(|&(_, own)| own == columns).map(|(rows, _)| rows)
    }

    /// Read some columns of some rows of one matrix that is stored turned: row after row, as they are.
    ///
    /// # Panics
    ///
    /// Unless there is such a matrix that has these rows, counted from the first one of the array, and these columns.
    pub fn load_tile<'t>(&self, level: Level, rows: Range<usize>, columns: Range<usize>, room: &'t mut Room) -> Input<'t> {
        let (dtype, width) = (self.array.dtype, columns.len());
        let tile = self.array.tile(rows, columns);
        let (to, from) = (room.bytes(dtype, tile.range.len()), self.block(&tile));
        level.run(Items { size: dtype.size(), from, to: BlockMut::whole(to, width * dtype.size()) });
        match room.floats(dtype, tile.range.len()) {
            Output::F32(x) => Input::F32(x),
            Output::Half(half, halves) => Input::Half(half, halves),
        }
    }
}

impl<'a> Sink<'a> {
    /// As [`Source::turned_rows`].
    pub fn turned_rows(&self, columns: usize) -> Option<usize> {
        self.array.turned().filter(|&(_, own)| own == columns).map(|(rows, _)| rows)
    }

    /// Matrices that are stored turned in tiles: those of the first columns from the first row to the last, then those beside them.
    ///
    /// # Panics
    ///
    /// Unless the array is whole and made of such matrices, the lengths add up to it, and no tile has rows of two matrices.
    pub fn tiles(self, row_lengths: &[usize], column_lengths: &[usize]) -> impl Iterator<Item = SinkTile<'a>> + Send + use<'a> {
        let (rows, columns) = (runs(row_lengths), runs(column_lengths));
        let (height, width): (usize, usize) = (row_lengths.iter().sum(), column_lengths.iter().sum());
        assert!(self.turned_rows(width).is_some() && height * width == self.len && self.len == self.array.len(), "tiles of the array");
        let pairs = columns.into_iter().flat_map(move |columns| rows.clone().into_iter().map(move |rows| (rows, columns.clone())));
        pairs.map(move |(rows, columns)| {
            let (sink, width) = (&self, columns.len());
            let TurnedRows { offset, stride, count, .. } = sink.array.tile(rows, columns);
            let dtype = sink.array.dtype;
            // SAFETY: these are the elements of these rows and columns, which are ours; the runs of rows do not overlap, neither do those
            // of columns, and each pair of them comes once.
            let to = unsafe { BlockMut::from_raw(sink.data.wrapping_offset(offset), width, count * dtype.size(), stride) };
            SinkTile { dtype, to }
        })
    }
}

/// A tile of a turned matrix that is written.
#[derive(Debug)]
pub struct SinkTile<'a> {
    dtype: Dtype,
    /// A row for each column of the tile.
    to: BlockMut<'a>,
}

impl SinkTile<'_> {
    /// Write what `fill` makes of the elements, row after row; past the caches if `past`, where the thread runs
    /// [`crate::kernels::stream::Fence`] before it says that it is done.
    pub fn store(self, level: Level, room: &mut Room, past: bool, fill: impl FnOnce(Output<'_>)) {
        let SinkTile { dtype, to } = self;
        let (size, columns) = (dtype.size(), to.rows());
        let len = columns * to.width() / size;
        fill(room.floats(dtype, len));
        let mut stage = std::mem::take(&mut room.stage);
        let from = Block::whole(room.bytes(dtype, len), columns * size);
        if past {
            stage.resize(STAGE, 0);
            level.run(ItemsPast { size, from, to, stage: &mut stage });
        } else {
            level.run(Items { size, from, to });
        }
        room.stage = stage;
    }
}

/// Lengths as runs that follow each other.
fn runs(lengths: &[usize]) -> Vec<Range<usize>> {
    lengths.iter().scan(0, |end, length| Some((*end, *end += length).0..*end)).collect()
}

/// Memory for tiles of turned matrices, row after row in the dtype of their array.
#[derive(Debug, Default)]
pub struct Room {
    x: Vec<f32>,
    stage: Vec<u8>,
}

impl Room {
    /// So many elements as bytes.
    fn bytes(&mut self, dtype: Dtype, len: usize) -> &mut [u8] {
        self.x.resize((len * dtype.size()).div_ceil(size_of::<f32>()), 0.0);
        &mut cast_slice_mut(&mut self.x)[..len * dtype.size()]
    }

    /// The same as what can be decoded to.
    fn floats(&mut self, dtype: Dtype, len: usize) -> Output<'_> {
        match dtype {
            Dtype::F16 => Output::Half(Half::F16, self.bytes(dtype, len).as_chunks_mut().0),
            Dtype::Bf16 => Output::Half(Half::Bf16, self.bytes(dtype, len).as_chunks_mut().0),
            _ => Output::F32(cast_slice_mut(self.bytes(dtype, len))),
        }
    }
}
