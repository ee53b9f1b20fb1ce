//! Arrays that lie turned: in tiles, whose runs of memory are long and whose floats stay in a core's own cache.

use super::super::cut::PartsMut;
use super::super::woven::{self, Place, Tiles};
use super::Job;
use crate::element::Room;
use crate::error::Result;
use crate::formats::{Faults, Groups};
use crate::kernels::stream::{Fence, StreamRows};
use crate::pool;
use std::sync::Mutex;

impl Job<'_> {
    pub(super) fn encode_turned(&self, tiles: &Tiles<'_>, mut parts: PartsMut<'_>) -> Result<(Faults, bool)> {
        let (count, stream, level) = (self.rows.spec.parts.len(), self.is_streamed(), self.run.level);
        let mut blocks = tiles.blocks_mut(&mut parts[..count]);
        let all = Mutex::new(Faults::default());
        let tasks = tiles.tasks(self.run.threads, |_| woven::next_mut(&mut blocks));
        let pool_failed = pool::for_each(tasks, self.run.threads, self.run.interrupted, |task| {
            let (mut room, mut groups, mut faults) = (Room::default(), Groups::default(), Faults::default());
            for (Place { first_row, first_column, tile }, blocks) in task {
                let (rows, columns) = (first_row..first_row + tile.rows, first_column..first_column + tile.columns);
                let input = self.source.load_tile(level, rows, columns, &mut room);
                let mut rows = woven::Scratch::new(&tiles.rows, tile, true);
                let mut rest = rows.slices();
                for at in tiles.pieces(&self.grid, tile) {
                    let mut parts = tiles.split_mut(&mut rest, at.len());
                    faults |= self.format.encode(self.context(), input.part(at), &mut groups, &mut parts[..count]);
                }
                for (mut to, from) in blocks.into_iter().zip(rows.views()) {
                    if stream { level.run(StreamRows { from, to }) } else { to.copy_from(from) }
                }
            }
            level.run(Fence);
            if faults.any() {
                *all.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) |= faults;
            }
        })?;
        Ok((all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()), pool_failed))
    }
}
