//! GGUF, versions 2 and 3: typed keys, a list of tensors, then their bytes. Version 3 is written.
//!
//! ```text
//! byte  0..4   "GGUF"            4..8   version, u32
//!       8..16  number of tensors        16..24  number of keys, u64 both
//!       24..   keys: name, u32 type, value
//!              tensors: name, u32 axes, u64 each (innermost first), u32 type, u64 offset
//!              zeros up to a multiple of the alignment (`general.alignment`, by default 32)
//!       then   data; the offsets count from here; every tensor is followed by zeros up to a multiple of the alignment
//! ```
//! A name is a u64 length and its bytes. All is little-endian. The reader enforces the rules of the reference implementation
//! (ggml-org/llama.cpp `ggml/src/gguf.cpp`): tensors lie in the order of the list without hole or overlap, no name comes twice, arrays
//! hold no arrays. It differs in three: names of tensors have up to 127 bytes, as those of image models, where the reference takes 63;
//! names are UTF-8; the alignment is at least 8 and at most 1 MiB. The zeros after the last tensor may be missing.
//!
//! A count or length is compared with what the file has before anything is allocated or repeated by it.

mod header;
pub mod image;
mod key;
pub(crate) mod llama;
pub mod mixture;
pub(crate) mod split;

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

pub use key::{Key, Value};

use super::input::Input;
use super::output::{Output, Writer};
use super::{Container, StoredDtype, Tensor, shown};
use crate::error::{Error, Result};
use crate::spec::Spec;

/// The first bytes of every GGUF file.
pub const MAGIC: &[u8] = b"GGUF";

/// What tensors are aligned to in a file that does not say otherwise, and in those that are written.
const ALIGNMENT: u64 = 32;

/// The key that says otherwise.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// Longest name of a tensor that the reference reads, in bytes; and longest that the readers of models of images do.
const LONGEST_NAMES: [usize; 2] = [63, 127];

/// Most axes of a tensor.
const MOST_AXES: usize = 4;

/// The number of each type that a tensor can have. Those that are missing between them were removed from ggml.
const TYPES: [(StoredDtype, u32); 35] = [
    (StoredDtype::F32, 0),
    (StoredDtype::F16, 1),
    (StoredDtype::Q40, 2),
    (StoredDtype::Q41, 3),
    (StoredDtype::Q50, 6),
    (StoredDtype::Q51, 7),
    (StoredDtype::Q80, 8),
    (StoredDtype::Q81, 9),
    (StoredDtype::Q2K, 10),
    (StoredDtype::Q3K, 11),
    (StoredDtype::Q4K, 12),
    (StoredDtype::Q5K, 13),
    (StoredDtype::Q6K, 14),
    (StoredDtype::Q8K, 15),
    (StoredDtype::Iq2Xxs, 16),
    (StoredDtype::Iq2Xs, 17),
    (StoredDtype::Iq3Xxs, 18),
    (StoredDtype::Iq1S, 19),
    (StoredDtype::Iq4Nl, 20),
    (StoredDtype::Iq3S, 21),
    (StoredDtype::Iq2S, 22),
    (StoredDtype::Iq4Xs, 23),
    (StoredDtype::I8, 24),
    (StoredDtype::I16, 25),
    (StoredDtype::I32, 26),
    (StoredDtype::I64, 27),
    (StoredDtype::F64, 28),
    (StoredDtype::Iq1M, 29),
    (StoredDtype::Bf16, 30),
    (StoredDtype::Tq10, 34),
    (StoredDtype::Tq20, 35),
    (StoredDtype::Mxfp4, 39),
    (StoredDtype::Nvfp4, 40),
    (StoredDtype::Q10, 41),
    (StoredDtype::Q20, 42),
];

/// The 4-bit types and their companions, and the formats that they are.
const FORMATS: [(StoredDtype, &str); 12] = [
    (StoredDtype::Q40, "gguf:q4_0"),
    (StoredDtype::Q41, "gguf:q4_1"),
    (StoredDtype::Q4K, "gguf:q4_k"),
    (StoredDtype::Iq4Nl, "gguf:iq4_nl"),
    (StoredDtype::Iq4Xs, "gguf:iq4_xs"),
    (StoredDtype::Mxfp4, "gguf:mxfp4"),
    (StoredDtype::Nvfp4, "gguf:nvfp4"),
    (StoredDtype::Q80, "gguf:q8_0"),
    (StoredDtype::Q50, "gguf:q5_0"),
    (StoredDtype::Q51, "gguf:q5_1"),
    (StoredDtype::Q5K, "gguf:q5_k"),
    (StoredDtype::Q6K, "gguf:q6_k"),
];

/// The name of the format that tensors of this type are in, for the 4-bit types and their companions.
pub(crate) fn format(dtype: StoredDtype) -> Option<&'static str> {
    FORMATS.iter().find(|row| row.0 == dtype).map(|row| row.1)
}

/// The type that tensors in this format have.
///
/// # Errors
///
/// [`Error::Value`] for a format that GGUF has no type for.
pub(crate) fn dtype(spec: &Spec) -> Result<StoredDtype> {
    FORMATS.iter().find(|row| row.1 == spec.name).map(|row| row.0).ok_or_else(|| {
        let names: Vec<&str> = FORMATS.iter().map(|row| row.1).collect();
        Error::value("format", spec.name, format!("a GGUF file takes {}", names.join(", ")))
    })
}

/// A GGUF file, open for reading; or several that are one model.
pub struct Gguf {
    inputs: Vec<Input>,
    keys: Vec<Key>,
    tensors: Vec<Tensor>,
    /// The file of each tensor, and where its bytes begin, from the start of the file.
    starts: Vec<(usize, u64)>,
}

impl Gguf {
    /// Read and check the keys and the list of tensors of `input`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with the rule that is broken and the key or tensor that breaks it, and for one file of several; [`Error::Io`].
    pub fn new(input: Input) -> Result<Gguf> {
        Gguf::of(input, None)
    }

    /// The same of the file `path`; of the first file of a model in several, with all others.
    ///
    /// # Errors
    ///
    /// As for [`Self::new`], and for files that contradict each other.
    pub(super) fn open(input: Input, path: &Path) -> Result<Gguf> {
        Gguf::of(input, Some(path))
    }

    fn of(input: Input, path: Option<&Path>) -> Result<Gguf> {
        let mut first = header::read(&input)?;
        let others = match (split::count(&first.keys), path) {
            (0 | 1, _) => Vec::new(),
            (_, Some(path)) => split::rest(path, &mut first)?,
            (count, None) => {
                return Err(Error::Corrupt {
                    container: "gguf",
                    reason: format!("it is one of {count} files of a model, without the others"),
                });
            }
        };
        let mut gguf = Gguf { inputs: Vec::new(), keys: Vec::new(), tensors: Vec::new(), starts: Vec::new() };
        gguf.keys = std::mem::take(&mut first.keys);
        let inputs = std::iter::once((input, first)).chain(others);
        for (input, header::Header { tensors, starts, .. }) in inputs {
            gguf.starts.extend(starts.into_iter().map(|start| (gguf.inputs.len(), start)));
            gguf.tensors.extend(tensors);
            gguf.inputs.push(input);
        }
        Ok(gguf)
    }
}

impl Container for Gguf {
    fn container(&self) -> &'static str {
        "gguf"
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        &NONE
    }

    fn keys(&self) -> &[Key] {
        &self.keys
    }

    fn inputs(&self) -> Vec<&Input> {
        self.inputs.iter().collect()
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let (input, start) = self.starts[index];
        self.inputs[input].read("gguf", start + offset, out)
    }
}

/// Begin a GGUF file of version 3: write its keys and the list of `tensors` to `output`, and the zeros between them. A tensor is later
/// named by its place in `tensors`. That of a model of images, as [`image`] has them, may have longer names.
///
/// Tensors lie as llama.cpp's quantizer lays them: those of no layer first, then layer by layer, by name.
///
/// # Errors
///
/// [`Error::Value`]: a name that comes twice or is longer than readers take, a dtype that GGUF lacks, more than four axes; [`Error::Io`].
///
/// # Panics
///
/// For keys that state an alignment; that of the file is 32.
pub fn create(mut output: Output, tensors: &[Tensor], keys: &[Key]) -> Result<Writer> {
    let of_images = keys.iter().any(image::is_known);
    assert!(keys.iter().all(|key| key.name != ALIGNMENT_KEY), "the alignment is the writer's own");
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by_key(|&index| llama::place(&tensors[index].name));

    let mut header = [MAGIC, &3u32.to_le_bytes()].concat();
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((keys.len() as u64).to_le_bytes());
    keys.iter().for_each(|key| key.write(&mut header));

    let mut names = HashSet::new();
    let mut starts = vec![0; tensors.len()];
    let mut end = 0u64;
    for &index in &order {
        let tensor = &tensors[index];
        let number = check(tensor, LONGEST_NAMES[usize::from(of_images)])?;
        if !names.insert(&tensor.name) {
            return Err(Error::value("the name of a tensor", shown(&tensor.name), "a GGUF file can hold that name only once"));
        }
        starts[index] = end;
        key::write_text(&mut header, tensor.name.as_bytes());
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        tensor.shape.iter().rev().for_each(|&length| header.extend((length as u64).to_le_bytes()));
        header.extend(number.to_le_bytes());
        header.extend(end.to_le_bytes());
        let padded = end.checked_add(tensor.bytes()).and_then(|end| end.checked_next_multiple_of(ALIGNMENT));
        end = padded.expect("a plan has checked the sizes");
    }
    header.resize(header.len().next_multiple_of(ALIGNMENT as usize), 0);

    output.write(0, &header)?;
    let data = header.len() as u64;
    starts.iter_mut().for_each(|start| *start += data);
    for index in order {
        let end = starts[index] + tensors[index].bytes();
        let padding = end.next_multiple_of(ALIGNMENT) - end;
        output.write(end, &[0; ALIGNMENT as usize][..padding as usize])?;
    }
    Ok(Writer::new(output, starts, tensors))
}

/// The number of the type of a tensor that a GGUF file can hold.
fn check(tensor: &Tensor, longest: usize) -> Result<u32> {
    let named = |what: &str| format!("the {what} of tensor {}", shown(&tensor.name));
    if tensor.name.len() > longest {
        let expected = format!("readers take up to {longest}");
        return Err(Error::value(named("name"), format!("{} bytes long", tensor.name.len()), expected));
    }
    if tensor.shape.len() > MOST_AXES {
        let found = tensor.shape.len().to_string();
        return Err(Error::value(named("number of axes"), found, format!("a GGUF file takes up to {MOST_AXES}")));
    }
    let number = TYPES.iter().find(|row| row.0 == tensor.dtype).map(|row| row.1);
    number.ok_or_else(|| Error::value(named("dtype"), tensor.dtype.name(), "a GGUF file has no such type"))
}
