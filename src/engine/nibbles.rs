//! Codes of one byte each to two a byte and back, row by row: each row is padded with a zero nibble to a whole byte.

use super::stage::Stage;
use super::{Outcome, Run, SERIAL, STREAM};
use crate::error::Result;
use crate::kernels::nibbles::{Pack, SIGNED, UNSIGNED, Unpack};
use crate::kernels::pace::Pace;
use crate::pool;
use std::sync::atomic::{AtomicBool, Ordering};

/// Codes of a task at least.
const TASK: usize = 256 * 1024;

/// The same where each task ends with a wait for memory.
const STREAMED_TASK: usize = 1024 * 1024;

/// Codes that are packed or unpacked in the first cache before they go past the others.
const PIECE: usize = 4096;

/// Pack rows of `columns` codes: -8..=7 where `signed`, else 0..=15. Whether all of them were in that range; where not,
/// `packed` holds nothing of use.
///
/// # Errors
///
/// [`crate::error::Error::Cancelled`].
///
/// # Panics
///
/// Unless `codes` is whole rows and `packed` as many rows of `ceil(columns / 2)` bytes.
pub fn pack(codes: &[u8], columns: usize, signed: bool, packed: &mut [u8], run: &Run<'_>) -> Result<(bool, Outcome)> {
    let cut = Cut::new(codes.len(), packed.len(), columns, run);
    let bias = if signed { 8 } else { 0 };
    let in_range = AtomicBool::new(true);
    let tasks = codes.chunks(cut.task).zip(packed.chunks_mut(cut.task_bytes));
    let pool_failed = pool::for_each(tasks, cut.threads(run), run.interrupted, |(codes, packed)| {
        if cut.past {
            let mut stage = Stage::new(run.level, packed);
            for codes in codes.chunks(PIECE) {
                if !run.level.run(Pack { codes, bias, packed: stage.next(codes.len().div_ceil(2)) }) {
                    in_range.store(false, Ordering::Relaxed);
                }
            }
            return stage.finish();
        }
        for (codes, packed) in codes.chunks(cut.row).zip(packed.chunks_mut(cut.row.div_ceil(2))) {
            if !run.level.run(Pack { codes, bias, packed }) {
                in_range.store(false, Ordering::Relaxed);
            }
        }
    })?;
    Ok((in_range.into_inner(), Outcome { replaced: 0, pool_failed }))
}

/// Unpack rows of `columns` codes: two's complement where `signed`.
///
/// # Errors
///
/// [`crate::error::Error::Cancelled`].
///
/// # Panics
///
/// As [`pack`].
pub fn unpack(packed: &[u8], columns: usize, signed: bool, codes: &mut [u8], run: &Run<'_>) -> Result<Outcome> {
    let cut = Cut::new(codes.len(), packed.len(), columns, run);
    let table = &if signed { SIGNED } else { UNSIGNED }.map(i8::cast_unsigned);
    let tasks = packed.chunks(cut.task_bytes).zip(codes.chunks_mut(cut.task));
    let pool_failed = pool::for_each(tasks, cut.threads(run), run.interrupted, |(packed, codes)| {
        if cut.past {
            let mut rest = codes.len();
            let mut stage = Stage::new(run.level, codes);
            for packed in packed.chunks(PIECE / 2) {
                let len = rest.min(PIECE);
                run.level.run(Unpack { packed, table, codes: stage.next(len) });
                rest -= len;
            }
            return stage.finish();
        }
        for (packed, codes) in packed.chunks(cut.row.div_ceil(2)).zip(codes.chunks_mut(cut.row)) {
            run.level.run(Unpack { packed, table, codes });
        }
    })?;
    Ok(Outcome { replaced: 0, pool_failed })
}

/// Rows of an even length follow each other without padding and are cut anywhere, as is a row alone; others only between rows.
struct Cut {
    codes: usize,
    row: usize,
    task: usize,
    task_bytes: usize,
    /// Whether output goes past the caches: where it is large, the caller's, and one row.
    past: bool,
}

impl Cut {
    fn new(codes: usize, bytes: usize, columns: usize, run: &Run<'_>) -> Self {
        let columns = columns.max(1);
        assert!(codes.is_multiple_of(columns) && bytes == codes / columns * columns.div_ceil(2), "whole rows on both sides");
        let one_row = columns.is_multiple_of(2) || columns == codes;
        let past = one_row && run.reused && codes > STREAM && Pace::of_this_cpu().bytes;
        let task = if past { STREAMED_TASK } else { TASK };
        let (row, rows) = if one_row { (task, 1) } else { (columns, (task / columns).max(1)) };
        Cut { codes, row, task: rows * row, task_bytes: rows * row.div_ceil(2), past }
    }

    fn threads(&self, run: &Run<'_>) -> usize {
        if self.codes < SERIAL { 1 } else { run.threads }
    }
}
