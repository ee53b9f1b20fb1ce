//! Whole arrays: cut into tiles, worked on by threads, stopped when asked. It writes into slices that the caller gives.
//!
//! | module | what |
//! |---|---|
//! | `cut` | the tasks of a call and their shares of every part |
//! | `encode`, `decode` | from an array to parts and back |
//! | `search`, `importance` | encoding with the scales of the smallest error, and the weights of errors |
//! | `woven` | tiles of formats whose rows lie side by side |
//! | `once` | the parts that a tensor has once |
//! | `groups` | the codes, scales and offsets of whole tensors |
//! | `repack` | from the parts of one format to those of another, values untouched |
//! | `reweave` | the same tile by tile, where tiles can be converted one by one |
//! | `nibbles` | codes of one byte each to two a byte and back |
//! | `compare` | the sums that errors are made of |
//! | `nearest` | whether codes are the nearest that scales allow |
//! | `stage` | output past the caches |

mod compare;
mod cut;
mod decode;
mod encode;
mod groups;
mod importance;
mod nearest;
mod nibbles;
mod once;
mod repack;
mod reweave;
mod search;
mod stage;
mod woven;

pub use compare::compare;
pub use decode::{dequantize, dequantize_owned};
pub use encode::{NonFinite, largest, quantize, quantize_by, quantize_owned, quantize_sharing};
pub use groups::{pack_groups, unpack};
pub use importance::Importance;
pub use nearest::misplaced;
pub use nibbles::{pack, unpack as unpack_nibbles};
pub use once::{check as check_once, global_of, make_effective, write_order};
pub use repack::{check_repack, kept_options, repack};
pub use search::Method;
pub(crate) use search::Search;

pub use crate::kernels::sums::Sums;

use crate::level::Level;

/// Elements below which a call stays on the calling thread: 2 MiB of f32. What the cache of one core holds a second one would have to fetch.
pub const SERIAL: usize = 512 * 1024;

/// Bytes of input (encode) or output (decode) from which output is streamed past the caches: more than they hold.
const STREAM: usize = 32 << 20;

/// How a call runs.
#[derive(Clone, Copy)]
pub struct Run<'a> {
    /// The instruction set.
    pub level: Level,
    /// Threads, the calling one included. Small calls use one whatever this says.
    pub threads: usize,
    /// Whether the caller wants to stop; asked on the calling thread only, at least every 50 ms.
    pub interrupted: &'a (dyn Fn() -> bool + Sync),
    /// Whether the output was written to before. Fresh pages are zeroed into the caches by the system, so that streaming past
    /// them would lose.
    pub reused: bool,
}

impl Run<'static> {
    /// On the calling thread, to its end.
    pub fn serial(level: Level) -> Self {
        Run { level, threads: 1, interrupted: &|| false, reused: true }
    }
}

/// What a call says beside its output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Elements that were not finite and were replaced by the policy that the caller chose.
    pub replaced: u64,
    /// Whether threads were wanted but could not be started; the work was done all the same.
    pub pool_failed: bool,
}
