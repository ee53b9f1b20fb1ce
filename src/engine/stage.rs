//! Output past the caches: tiles are written to a small buffer that stays in the first cache, and leave it in whole lines.

use crate::kernels::stream::Stream;
use crate::level::Level;
use bytemuck::{Pod, cast_slice, cast_slice_mut};

/// Bytes that are collected before they leave.
const ENOUGH: usize = 8192;

/// A destination that is written from front to back.
pub(super) struct Stage<'a, T> {
    level: Level,
    rest: &'a mut [T],
    buffer: Vec<T>,
    filled: usize,
}

impl<'a, T: Pod + Default> Stage<'a, T> {
    pub(super) fn new(level: Level, destination: &'a mut [T]) -> Self {
        Stage { level, rest: destination, buffer: Vec::new(), filled: 0 }
    }

    /// The next `len` elements, to be written in full.
    pub(super) fn next(&mut self, len: usize) -> &mut [T] {
        if self.filled * size_of::<T>() >= ENOUGH {
            // Up to the last element that ends a line of the destination.
            let beyond = (self.rest.as_ptr().addr() / size_of::<T>() + self.filled) % (64 / size_of::<T>());
            self.send(self.filled - beyond.min(self.filled));
        }
        if self.buffer.len() < self.filled + len {
            self.buffer.resize(self.filled + len, T::default());
        }
        self.filled += len;
        &mut self.buffer[self.filled - len..self.filled]
    }

    /// Everything that is left.
    pub(super) fn finish(mut self) {
        self.send(self.filled);
    }

    fn send(&mut self, len: usize) {
        let (to, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        self.level.run(Stream { from: cast_slice(&self.buffer[..len]), to: cast_slice_mut(to) });
        self.buffer.copy_within(len..self.filled, 0);
        self.filled -= len;
    }
}
