//! Copy to memory past the caches: for output that is larger than they are and is not read again soon.

use crate::simd::{Kernel, LANES, Simd};
use bytemuck::{cast_slice, cast_slice_mut};

/// Copy `from` to `to`, whole cache lines streamed, the ends of `to` that are not whole lines stored. The thread runs [`Fence`]
/// before it says that it is done; once for many copies, since it waits for memory.
pub struct Stream<'a> {
    /// The bytes.
    pub from: &'a [u8],
    /// As many bytes.
    pub to: &'a mut [u8],
}

impl Kernel for Stream<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        stream(simd, self.from, self.to);
    }
}

/// The same inside a kernel.
#[inline(always)]
pub(super) fn stream<S: Simd>(simd: S, from: &[u8], to: &mut [u8]) {
    let head = to.as_ptr().align_offset(64).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    to_head.copy_from_slice(from_head);
    let lines = to.len() / 64 * 64;
    let (to, to_tail) = to.split_at_mut(lines);
    let (from, from_tail) = from.split_at(lines);
    if lines > 0 {
        simd.stream(from, to);
    }
    to_tail.copy_from_slice(from_tail);
}

/// What was streamed before is visible to other threads before anything that follows.
pub struct Fence;

impl Kernel for Fence {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        simd.fence();
    }
}

/// Floats that a kernel writes from front to back, in small pieces that leave in whole cache lines soon after: the processor
/// works on the next piece while the lines of the last one are on their way.
pub(crate) struct Lines<'a> {
    rest: &'a mut [f32],
    buffer: [f32; Lines::ROOM],
    filled: usize,
}

impl<'a> Lines<'a> {
    /// Floats that are collected before they leave.
    const ENOUGH: usize = 512;
    const ROOM: usize = 2 * Lines::ENOUGH;

    #[inline(always)]
    pub(crate) fn new(to: &'a mut [f32]) -> Self {
        Lines { rest: to, buffer: [0.0; Lines::ROOM], filled: 0 }
    }

    /// The next `len` floats, at most [`Lines::ENOUGH`], to be written in full.
    #[inline(always)]
    pub(crate) fn next<S: Simd>(&mut self, simd: S, len: usize) -> &mut [f32] {
        if self.filled >= Lines::ENOUGH {
            // Up to the last float that ends a line of the destination.
            let beyond = (self.rest.as_ptr().addr() / size_of::<f32>()).wrapping_add(self.filled) % LANES;
            self.send(simd, self.filled - beyond);
        }
        let start = self.filled;
        self.filled += len;
        &mut self.buffer[start..self.filled]
    }

    /// Everything that is left.
    #[inline(always)]
    pub(crate) fn finish<S: Simd>(mut self, simd: S) {
        self.send(simd, self.filled);
        simd.fence();
    }

    #[inline(always)]
    fn send<S: Simd>(&mut self, simd: S, len: usize) {
        let (to, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        let head = to.as_ptr().align_offset(64).min(len);
        let lines = (len - head) / LANES * LANES;
        to[..head].copy_from_slice(&self.buffer[..head]);
        if lines > 0 {
            simd.stream(cast_slice(&self.buffer[head..head + lines]), cast_slice_mut(&mut to[head..head + lines]));
        }
        to[head + lines..].copy_from_slice(&self.buffer[head + lines..len]);
        self.buffer.copy_within(len..self.filled, 0);
        self.filled -= len;
    }
}
