//! Reading ahead and writing behind: while a block is computed the next one is read, and the last ones are written.
//!
//! ```text
//! reader            block 4
//! caller      block 3          computes, tells of progress, is interrupted
//! waiting   block 2
//! writer  block 1
//! ```
//! Each is one thread, so that blocks are read in the order of the plan and written in the order in which they were made, and no more of
//! them are in memory than the picture has. A caller that may use one thread alone does all of it in turn.

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, Scope, ScopedJoinHandle};

use super::assembly::Assembly;
use crate::error::{Error, Result};
use crate::files::checkpoint::{BLOCK, Checkpoint, Entry};
use crate::files::output::{Hash, TensorWriter};
use crate::files::rows::{Cut, Share};

/// What of a tensor is read at a time.
#[derive(Clone, Copy, Debug)]
pub(super) enum Piece {
    /// The first of some rows, and how many.
    Rows(usize, usize),
    /// Bytes of one of the tensors that it lies in: which, from which byte on, how many.
    Bytes(usize, u64, usize),
}

/// The pieces of a tensor that is copied, in the order in which they are read.
pub(super) fn bytes(file: &Checkpoint, entry: &Entry) -> impl Iterator<Item = Piece> {
    let tensors: Vec<u64> = file.stored(entry).map(|(_, tensor)| tensor.bytes()).collect();
    tensors.into_iter().enumerate().flat_map(|(part, bytes)| {
        let piece = move |offset: u64| Piece::Bytes(part, offset, (bytes - offset).min(BLOCK as u64) as usize);
        (0..bytes).step_by(BLOCK).map(piece)
    })
}

/// The pieces of a tensor that is cut so, of about `elements` each.
pub(super) fn rows(cut: Cut, entry: &Entry, elements: usize) -> impl Iterator<Item = Piece> {
    cut.blocks(&entry.shape, elements).map(|(first, count)| Piece::Rows(first, count))
}

/// A piece that was read.
#[derive(Default)]
pub(super) struct Block {
    /// What each of the tensors has of it; of bytes one buffer.
    pub(super) parts: Vec<Vec<u8>>,
    /// How many bytes were read.
    pub(super) read: u64,
}

impl Block {
    fn fill(&mut self, file: &Checkpoint, entry: &Entry, piece: Piece) -> Result<()> {
        match piece {
            Piece::Rows(first, count) => self.read = file.read_rows(entry, first, count, &mut self.parts)?,
            Piece::Bytes(part, offset, len) => {
                let (index, _) = file.stored(entry).nth(part).expect("a piece is of a tensor that is there");
                self.parts.resize_with(1, Vec::new);
                self.parts[0].resize(len, 0);
                file.container().read(index, offset, &mut self.parts[0])?;
                self.read = len as u64;
            }
        }
        Ok(())
    }
}

/// Bytes to be written: of which tensor of the new file, where in it, and the bytes.
pub(super) type Made = (usize, Share, Vec<u8>);

/// What is told to the writer, in this order.
enum News {
    /// What a block has become.
    Made(Vec<Made>),
    /// All of these tensors of the new file, which a step makes, has been told; they are hashed with these bytes after theirs.
    Whole(usize, Range<usize>, Vec<u8>),
}

/// What a job reads from and writes to.
pub(super) struct Flow<'a> {
    file: &'a Checkpoint,
    writer: Mutex<(&'a mut (dyn TensorWriter + Send), Assembly)>,
    /// Blocks that were computed, whose buffers are used again.
    spare_blocks: Mutex<Vec<Block>>,
    /// Buffers that were written, likewise.
    spare: Mutex<Vec<Vec<u8>>>,
    /// What steps have made, and its hash.
    hashes: Mutex<Vec<(usize, Hash)>>,
    /// Why the writer ended.
    failed: Mutex<Option<Error>>,
}

/// Most buffers that are kept to be used again.
const SPARE: usize = 4;

impl<'a> Flow<'a> {
    /// From `file` to `writer`, with so many bytes of room to put parts together in.
    pub(super) fn new(file: &'a Checkpoint, writer: &'a mut (dyn TensorWriter + Send), room: usize) -> Flow<'a> {
        let (spare_blocks, spare, hashes, failed) = (Mutex::default(), Mutex::default(), Mutex::default(), Mutex::default());
        Flow { file, writer: Mutex::new((writer, Assembly::new(room))), spare_blocks, spare, hashes, failed }
    }

    /// Begin to read `pieces` and to write: with threads of their own if there may be several and they can be had.
    pub(super) fn ends<'scope>(
        &'scope self,
        scope: &'scope Scope<'scope, '_>,
        threads: usize,
        pieces: impl Iterator<Item = (&'scope Entry, Piece)> + Send + 'scope,
    ) -> Ends<'scope, 'a> {
        let in_turn = Ends { flow: self, blocks: None, made: None };
        if threads < 2 {
            return in_turn;
        }
        // A block that was read waits in the hands of the reader, one that was made in the channel.
        let (to_caller, blocks) = sync_channel(0);
        let (made, to_writer) = sync_channel(1);
        let reader = Builder::new().name("quantize-read".into()).spawn_scoped(scope, move || self.read(pieces, &to_caller));
        let writer = Builder::new().name("quantize-write".into()).spawn_scoped(scope, move || self.write(&to_writer));
        match (reader, writer) {
            (Ok(_), Ok(writer)) => Ends { flow: self, blocks: Some(blocks), made: Some((made, writer)) },
            _ => in_turn,
        }
    }

    fn read<'e>(&self, pieces: impl Iterator<Item = (&'e Entry, Piece)>, to: &SyncSender<Result<Block>>) {
        for (entry, piece) in pieces {
            let mut block = lock(&self.spare_blocks).pop().unwrap_or_default();
            let read = block.fill(self.file, entry, piece).map(|()| block);
            let failed = read.is_err();
            // Whoever computes may have stopped.
            if to.send(read).is_err() || failed {
                return;
            }
        }
    }

    fn write(&self, from: &Receiver<News>) {
        for news in from {
            if let Err(error) = self.heed(news) {
                *lock(&self.failed) = Some(error);
                return;
            }
        }
    }

    fn heed(&self, news: News) -> Result<()> {
        let (writer, assembly) = &mut *lock(&self.writer);
        let made = match news {
            News::Made(made) => made,
            News::Whole(step, tensors, tail) => {
                assembly.write(*writer)?;
                let hash = writer.whole(tensors, &tail)?;
                lock(&self.hashes).push((step, hash));
                return Ok(());
            }
        };
        for (tensor, share, bytes) in made {
            if !assembly.take(tensor, share, &bytes) {
                share.places().try_for_each(|(at, place)| writer.write(tensor, at, &bytes[place]))?;
            }
            let mut spare = lock(&self.spare);
            if spare.len() < SPARE {
                spare.push(bytes);
            }
        }
        Ok(())
    }
}

/// The two ends of a flow, in the hands of whoever computes.
pub(super) struct Ends<'scope, 'a> {
    flow: &'scope Flow<'a>,
    /// What the reader has read, if it is a thread.
    blocks: Option<Receiver<Result<Block>>>,
    /// To the writer, if it is a thread.
    made: Option<(SyncSender<News>, ScopedJoinHandle<'scope, ()>)>,
}

impl Ends<'_, '_> {
    /// The next piece, which the reader must have had in the same place.
    pub(super) fn next(&self, entry: &Entry, piece: Piece) -> Result<Block> {
        match &self.blocks {
            // A reader that ended without a word has panicked, which the scope tells.
            Some(blocks) => blocks.recv().unwrap_or(Err(Error::Cancelled)),
            None => {
                let mut block = lock(&self.flow.spare_blocks).pop().unwrap_or_default();
                block.fill(self.flow.file, entry, piece).map(|()| block)
            }
        }
    }

    /// Give the buffers of a block back.
    pub(super) fn done(&self, block: Block) {
        lock(&self.flow.spare_blocks).push(block);
    }

    /// A buffer of `len` bytes of any content.
    pub(super) fn buffer(&self, len: usize) -> Vec<u8> {
        let mut buffer = lock(&self.flow.spare).pop().unwrap_or_default();
        buffer.resize(len, 0);
        buffer
    }

    /// Write what a block has become.
    pub(super) fn write(&self, made: Vec<Made>) -> Result<()> {
        self.tell(News::Made(made))
    }

    /// All of `tensors`, which a step makes, is written.
    pub(super) fn whole(&self, step: usize, tensors: Range<usize>, tail: Vec<u8>) -> Result<()> {
        self.tell(News::Whole(step, tensors, tail))
    }

    fn tell(&self, news: News) -> Result<()> {
        match &self.made {
            Some((to_writer, _)) => to_writer.send(news).map_err(|_| self.failure()),
            None => self.flow.heed(news),
        }
    }

    /// Wait until all is written. The answer is what each step has made, and its hash.
    pub(super) fn finish(mut self) -> Result<Vec<(usize, Hash)>> {
        if let Some((to_writer, writer)) = self.made.take() {
            drop(to_writer);
            if let Err(panic) = writer.join() {
                resume_unwind(panic);
            }
        }
        match lock(&self.flow.failed).take() {
            Some(error) => Err(error),
            None => Ok(std::mem::take(&mut *lock(&self.flow.hashes))),
        }
    }

    /// Why the writer takes no more; if it panicked the scope tells.
    fn failure(&self) -> Error {
        lock(&self.flow.failed).take().unwrap_or(Error::Cancelled)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
