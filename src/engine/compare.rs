//! The sums that errors are made of, row by row, the same at any thread count.

use super::{Run, SERIAL};
use crate::element::Source;
use crate::error::Result;
use crate::kernels::sums::{Sums, SumsOf};
use crate::pool;
use crate::simd::ieee::Ieee;

/// Elements whose sums are taken at once.
const SPAN: usize = 4096;

/// Elements of a task at least.
const TASK: usize = 64 * 1024;

/// The sums of `reference` (x) and `other` (y), one for every row along the last axis; a row's spans are added in order.
///
/// # Errors
///
/// [`crate::error::Error::Cancelled`].
///
/// # Panics
///
/// Where the shapes differ.
pub fn compare(reference: &Source<'_>, other: &Source<'_>, run: &Run<'_>) -> Result<Vec<Sums>> {
    let _ieee = Ieee::enter();
    assert_eq!(reference.shape(), other.shape(), "arrays of one shape");
    let columns = reference.shape().last().copied().unwrap_or(1);
    let rows = reference.shape().iter().rev().skip(1).product::<usize>();
    let mut sums = vec![Sums::default(); rows];
    if columns == 0 || rows == 0 {
        return Ok(sums);
    }
    // A long row is cut into parts that end at spans; the parts of a row are added in order afterwards.
    let parts_per_row = columns.div_ceil(TASK);
    let mut parts = vec![Sums::default(); rows * parts_per_row];
    let parts_per_task = (TASK / columns).max(1);
    let threads = if reference.len() < SERIAL { 1 } else { run.threads };
    pool::for_each(parts.chunks_mut(parts_per_task).enumerate(), threads, run.interrupted, |(task, parts)| {
        let (mut x, mut y) = ([0.0; SPAN], [0.0; SPAN]);
        for (index, part) in parts.iter_mut().enumerate() {
            let (row, piece) = ((task * parts_per_task + index) / parts_per_row, (task * parts_per_task + index) % parts_per_row);
            let (start, end) = (row * columns + piece * TASK, row * columns + columns.min((piece + 1) * TASK));
            for at in (start..end).step_by(SPAN) {
                let len = SPAN.min(end - at);
                reference.load(run.level, at, &mut x[..len]);
                other.load(run.level, at, &mut y[..len]);
                *part = part.then(run.level.run(SumsOf { x: &x[..len], y: &y[..len] }));
            }
        }
    })?;
    for (sums, parts) in sums.iter_mut().zip(parts.chunks(parts_per_row)) {
        *sums = parts.iter().fold(Sums::default(), |all, &part| all.then(part));
    }
    Ok(sums)
}
