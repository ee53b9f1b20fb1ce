//! Copy to memory past the caches: for output that is larger than they are and is not read again soon.

use super::blocks::BlockMut;
use super::pace::Pace;
use crate::simd::{Kernel, Simd};

/// Bytes of a cache line.
pub(crate) const LINE: usize = 64;

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

/// The same of rows that lie apart.
pub struct StreamRows<'a> {
    /// The bytes of the rows, one after the other.
    pub from: &'a [u8],
    /// As many bytes.
    pub to: BlockMut<'a>,
}

impl Kernel for StreamRows<'_> {
    type Output = ();

    /// # Panics
    ///
    /// Unless there are as many bytes.
    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let StreamRows { from, mut to } = self;
        let width = to.width();
        assert_eq!(from.len(), to.rows() * width, "as many bytes");
        for row in 0..to.rows() {
            stream(simd, &from[row * width..][..width], to.row(row));
        }
    }
}

/// The same inside a kernel.
#[inline(always)]
pub(super) fn stream<S: Simd>(simd: S, from: &[u8], to: &mut [u8]) {
    let head = to.as_ptr().align_offset(LINE).min(to.len());
    let (to_head, to) = to.split_at_mut(head);
    let (from_head, from) = from.split_at(head);
    copy_end(from_head, to_head);
    let lines = to.len() / LINE * LINE;
    let (to, to_tail) = to.split_at_mut(lines);
    let (from, from_tail) = from.split_at(lines);
    if lines > 0 {
        simd.stream(from, to);
    }
    copy_end(from_tail, to_tail);
}

/// Copy what is no whole line: mostly nothing, for which a call is dear where a few lines leave at once.
#[inline(always)]
fn copy_end(from: &[u8], to: &mut [u8]) {
    if !from.is_empty() {
        to.copy_from_slice(from);
    }
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

/// Bytes that a kernel writes from front to back, in small pieces that leave in whole cache lines soon after: the processor works on
/// the next piece while the lines of the last one are on their way. The thread runs [`Fence`] before it says that it is done.
pub(crate) struct Lines<'a> {
    rest: &'a mut [u8],
    buffer: Buffer,
    filled: usize,
    burst: usize,
}

/// What has not left yet.
#[repr(align(64))]
struct Buffer([u8; Lines::ROOM]);

impl<'a> Lines<'a> {
    /// What leaves at once where nothing is read from memory meanwhile, and the most that does.
    pub(crate) const BURST: usize = 2048;
    const ROOM: usize = 2 * Lines::BURST + LINE;

    /// To `to`, some `burst` bytes at once, at least a line and at most [`Lines::BURST`].
    #[inline(always)]
    pub(crate) fn new(to: &'a mut [u8], burst: usize) -> Self {
        Lines { rest: to, buffer: Buffer([0; Lines::ROOM]), filled: 0, burst }
    }

    /// The next `len` bytes, at most [`Lines::BURST`], to be written in full.
    #[inline(always)]
    pub(crate) fn next<S: Simd>(&mut self, simd: S, len: usize) -> &mut [u8] {
        if self.filled >= self.burst {
            // Up to the last byte that ends a line of the destination.
            let beyond = self.rest.as_ptr().addr().wrapping_add(self.filled) % LINE;
            self.send(simd, self.filled - beyond);
        }
        self.filled += len;
        self.last(len)
    }

    /// The last `len` bytes once more, of those that [`Lines::next`] gave last.
    #[inline(always)]
    fn last(&mut self, len: usize) -> &mut [u8] {
        &mut self.buffer.0[self.filled - len..self.filled]
    }

    /// Everything that is left.
    #[inline(always)]
    pub(crate) fn finish<S: Simd>(&mut self, simd: S) {
        self.send(simd, self.filled);
    }

    #[inline(always)]
    fn send<S: Simd>(&mut self, simd: S, len: usize) {
        let (to, rest) = std::mem::take(&mut self.rest).split_at_mut(len);
        self.rest = rest;
        let buffer = &mut self.buffer.0;
        stream(simd, &buffer[..len], to);
        self.filled -= len;
        if self.filled > 0 {
            // Less than a line; as a whole one it takes no call.
            buffer.copy_within(len..len + LINE, 0);
        }
    }
}

/// Where a kernel writes bytes from front to back.
pub(crate) enum Front<'a> {
    /// Straight to memory, of which so much is written.
    Direct(&'a mut [u8], usize),
    /// Past the caches.
    Lines(&'a mut Lines<'a>),
}

impl<'a> Front<'a> {
    /// To `bytes`; past the caches at this pace, by way of `lines`.
    #[inline(always)]
    pub(crate) fn new(bytes: &'a mut [u8], stream: bool, pace: Pace, lines: &'a mut Option<Lines<'a>>) -> Self {
        if stream { Front::Lines(lines.insert(Lines::new(bytes, pace.burst))) } else { Front::Direct(bytes, 0) }
    }

    /// The next `len` bytes, at most [`Lines::BURST`], to be written in full.
    #[inline(always)]
    pub(crate) fn next<S: Simd>(&mut self, simd: S, len: usize) -> &mut [u8] {
        match self {
            Front::Direct(_, written) => {
                *written += len;
                self.last(len)
            }
            Front::Lines(lines) => lines.next(simd, len),
        }
    }

    /// The last `len` bytes once more, of those that [`Front::next`] gave last.
    #[inline(always)]
    pub(crate) fn last(&mut self, len: usize) -> &mut [u8] {
        match self {
            Front::Direct(bytes, written) => &mut bytes[*written - len..*written],
            Front::Lines(lines) => lines.last(len),
        }
    }

    /// Everything that is left.
    #[inline(always)]
    pub(crate) fn finish<S: Simd>(&mut self, simd: S) {
        if let Front::Lines(lines) = self {
            lines.finish(simd);
        }
    }
}
