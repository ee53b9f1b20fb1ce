//! Parts that are stored turned, `[in, out]`: the rows of a block lie in them in pieces that are far apart, of two hundred bytes or two
//! thousand. Where there is room such a part is put together in memory and written from its first byte to its last.

use std::collections::BTreeMap;
use std::mem;

use crate::error::Result;
use crate::files::output::TensorWriter;
use crate::files::rows::Share;

/// Bytes that are written at once: as many as of other parts. A system that keeps larger writes in larger pages takes new memory for them.
const PIECE: usize = 1 << 20;

/// The parts of one step that are put together.
pub(super) struct Assembly {
    /// Bytes that they may take.
    room: usize,
    parts: BTreeMap<usize, Vec<u8>>,
}

impl Assembly {
    pub(super) fn new(room: usize) -> Assembly {
        Assembly { room, parts: BTreeMap::new() }
    }

    /// Keep the `share` of part `index` that these bytes are, if the part is put together; the first block of a part decides.
    pub(super) fn take(&mut self, index: usize, share: Share, bytes: &[u8]) -> bool {
        let used: usize = self.parts.values().map(Vec::len).sum();
        if share.start == 0 && share.pieces > 1 && share.span() <= self.room.saturating_sub(used) {
            self.parts.insert(index, vec![0; share.span()]);
        }
        let Some(part) = self.parts.get_mut(&index) else { return false };
        for (at, place) in share.places() {
            part[at as usize..][..place.len()].copy_from_slice(&bytes[place]);
        }
        true
    }

    /// Write what was put together.
    pub(super) fn write(&mut self, writer: &mut dyn TensorWriter) -> Result<()> {
        for (index, part) in mem::take(&mut self.parts) {
            for (number, bytes) in part.chunks(PIECE).enumerate() {
                writer.write(index, (number * PIECE) as u64, bytes)?;
            }
        }
        Ok(())
    }
}
