//! Copy to memory past the caches: for output that is larger than they are and is not read again soon.

use crate::simd::{Kernel, Simd};

/// Copy `from` to `to`, whole cache lines streamed, the ends of `to` that are not whole lines stored.
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
        let head = self.to.as_ptr().align_offset(64).min(self.to.len());
        let (to_head, to) = self.to.split_at_mut(head);
        let (from_head, from) = self.from.split_at(head);
        to_head.copy_from_slice(from_head);
        let lines = to.len() / 64 * 64;
        let (to, to_tail) = to.split_at_mut(lines);
        let (from, from_tail) = from.split_at(lines);
        if lines > 0 {
            simd.stream(from, to);
        }
        to_tail.copy_from_slice(from_tail);
    }
}
