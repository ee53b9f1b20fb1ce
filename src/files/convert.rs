//! From one file to another: which tensors are quantized is planned from the header alone, then every tensor is streamed.
//!
//! A tensor is quantized if it is of float16, bfloat16, float32 or float64, has two axes or more, and a last axis that holds at
//! least one group (whole ones only, where the format needs that). Everything else is copied byte for byte, and the plan says why.
//! Tensors are read, converted and written a block of rows at a time, each while the blocks beside it are. The parts of a tensor are stored as [`super::checkpoint`] describes.
//!
//! A GGUF file becomes a GGUF file, a folder of Hugging Face a folder, anything else a safetensors file, or an npz file if it is called
//! so. The readers of GGUF expect some tensors to stay floats and all others to be of the type that was asked for: there `gguf::llama` says which are kept, vectors become
//! float32, and a tensor that its format does not take refuses the job, unless a [`Fallback`] was asked for. A mixture asks for several
//! formats. In a folder `folder::modules` says which are quantized, `folder::family` how they are stored, and a weight that the format
//! does not take refuses the job too.
//!
//! | module | what |
//! |---|---|
//! | `selection` | which tensors are selected |
//! | `plan` | what will be done, from the header alone |
//! | `choice` | what happens to one tensor |
//! | `job` | carrying the plan out: where the new file is made, what tells the job |
//! | `work` | doing it, tensor by tensor |
//! | `importance` | what errors are weighted with, where scales are searched for |
//! | `flow` | reading ahead of the work, and writing behind it |
//! | `assembly` | putting parts together whose rows lie in many pieces |

mod assembly;
mod choice;
mod flow;
mod importance;
mod job;
mod plan;
mod selection;
mod work;

use super::StoredDtype;
use super::checkpoint::Checkpoint;
use super::gguf::mixture::Mixture;
use crate::layout::Options;
use crate::spec::Spec;
pub use job::{Effect, Failure, How, Memory, Work};
pub use plan::{Action, Plan, Step};
pub use selection::{Rule, Selection};
pub(super) use work::largest;

/// What is wanted of the tensors that are selected.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// This format.
    Format(&'static Spec, Options),
    /// The formats that llama.cpp's quantizer chooses for this, in a GGUF file.
    Mixture(&'static Mixture),
    /// Floats: of this dtype, or of that which a quantized tensor had before.
    Floats(Option<StoredDtype>),
}

/// What a matrix of a GGUF file becomes whose rows the blocks of its format do not divide.
#[derive(Clone, Copy, Debug)]
pub enum Fallback {
    /// What llama.cpp's quantizer makes of it: another format, or float16.
    Llama,
    /// This format.
    Format(&'static Spec),
}

/// How scales are chosen.
#[derive(Default)]
pub enum Scales {
    /// By the rule of the format's home project.
    #[default]
    Nearest,
    /// Those of the smallest error, or of a small one that is found `fast`. The errors of a tensor are weighted by what the file of
    /// importance, if there is one, has under its name: one number for each of its columns, or for each of its elements. Where there is
    /// none they are weighted by magnitude.
    Searched {
        /// What weights errors.
        importance: Option<Checkpoint>,
        /// Whether it is enough that the error is small.
        fast: bool,
        /// How far elements may be cut, as a part of the largest magnitude of their group, where it is not enough.
        clip_limit: Option<f32>,
    },
}

/// Bytes of a shard of a folder where nothing else is asked for, as huggingface_hub has it.
pub const SHARD_SIZE: u64 = 5_000_000_000;
