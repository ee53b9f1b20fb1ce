//! Output past the caches: tiles are written to a small buffer that stays in the first cache, and leave it in whole lines.

use crate::kernels::stream::{Fence, Stream};
use crate::level::Level;

/// Bytes that are collected before they leave.
const ENOUGH: usize = 8192;

/// A destination that is written from front to back.
pub(super) struct Stage<'a> {
    level: Level,
    rest: &'a mut [u8],
    buffer: Vec<u8>,
    filled: usize,
}

impl<'a> Stage<'a> {
    pub(super) fn new(level: Level, destination: &'a mut [u8]) -> Self {
        Stage { level, rest: destination, buffer: Vec::new(), filled: 0 }
    }

    /// The next `len` bytes, to be written in full.
    pub(super) fn next(&mut self, len: usize) -> &mut [u8] {
        if self.filled >= ENOUGH {
            // Up to the last byte that ends a line of the destination.
            let beyond = self.rest.as_ptr().addr().wrapping_add(self.filled) % 64;
            self.send(self.filled - beyond.min(self.filled));
        }
        if self.buffer.len() < self.filled + len {
            self.buffer.resize(self.filled + len, 0);
        }
        self.filled += len;
        &mut self.buffer[self.filled - len..self.filled]
    }

    /// Everything that is left.
    pub(super) fn finish(mut self) {
        self.send(self.filled);
        self.level.run(Fence);
    }

    fn send(&mut self, len: usize) {
        let (to, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        self.level.run(Stream { from: &self.buffer[..len], to });
        self.buffer.copy_within(len..self.filled, 0);
        self.filled -= len;
    }
}
