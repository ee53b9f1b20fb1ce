//! npz: a zip archive of npy files, as `numpy.savez` and `numpy.savez_compressed` write it. A tensor is called as its member is, without
//! `.npy`.
//!
//! Of zip that is read which holds arrays: one disk, members that are stored or deflated, sizes of 32 or 64 bits. All else is refused: a
//! member that is encrypted, or that is no array, as those of torch checkpoints are; names that come twice; members that overlap. A name is
//! a name and never a path. A deflated member is decoded as it is read, from front to back, so that none has to fit in memory.
//!
//! The free text of a file, which says how tensors are quantized, is an array of bytes called `__metadata__`: a JSON object of texts.
//!
//! | module | what |
//! |---|---|
//! | `directory` | the list of members at the end of the archive, and where each lies |
//! | `member` | the bytes of one, stored or deflated |
//! | `writer` | the archive that is written |

mod directory;
mod member;
mod writer;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::input::Input;
use super::json::Texts;
use super::npy::Array;
use super::safetensors::{LONGEST_HEADER, METADATA};
use super::{Container, StoredDtype, Tensor, buffer, shown};
use crate::error::{Error, Result};
use member::Member;
pub(super) use writer::create;

/// The name of the container in messages.
const CONTAINER: &str = "npz";

/// What an archive begins with: a member, or its end where it has none.
pub const MAGIC: [&[u8]; 2] = [b"PK\x03\x04", b"PK\x05\x06"];

/// An npz file, open for reading.
pub struct Npz {
    input: Arc<Input>,
    arrays: Vec<Array<Member>>,
    tensors: Vec<Tensor>,
    metadata: BTreeMap<String, String>,
}

impl Npz {
    /// Read and check the directory of `input` and the description of every array.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with the rule that is broken and the member that breaks it; [`Error::Io`].
    pub fn new(input: Input) -> Result<Npz> {
        let input = Arc::new(input);
        let mut arrays = Vec::new();
        for place in directory::read(&input)? {
            let Some(name) = place.name.strip_suffix(".npy") else { return Err(no_array(&place.name)) };
            let in_member = |error| match error {
                Error::Corrupt { reason, .. } => corrupt(format!("member {}: {reason}", shown(&place.name))),
                error => error,
            };
            let name = name.to_string();
            arrays.push(Member::new(input.clone(), &place).and_then(|member| Array::new(member, name)).map_err(in_member)?);
        }
        let is_metadata = |array: &Array<Member>| *array.tensor() == metadata_tensor(array.tensor().shape.first().copied().unwrap_or(0));
        let metadata = match arrays.iter().position(is_metadata) {
            Some(index) => metadata(&arrays.remove(index))?,
            None => BTreeMap::new(),
        };
        let tensors = arrays.iter().map(|array| array.tensor().clone()).collect();
        Ok(Npz { input, arrays, tensors, metadata })
    }
}

impl Container for Npz {
    fn container(&self) -> &'static str {
        CONTAINER
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn inputs(&self) -> Vec<&Input> {
        vec![&self.input]
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        self.arrays[index].read(offset, out)
    }
}

/// The array that the free text is in.
fn metadata_tensor(length: usize) -> Tensor {
    Tensor { name: METADATA.into(), dtype: StoredDtype::U8, shape: vec![length] }
}

fn metadata(array: &Array<Member>) -> Result<BTreeMap<String, String>> {
    let length = array.tensor().bytes();
    if length > LONGEST_HEADER {
        return Err(corrupt(format!("{METADATA} has {length} bytes; the limit is {LONGEST_HEADER}")));
    }
    let mut text = buffer(length, || METADATA.into())?;
    array.read(0, &mut text)?;
    let texts = serde_json::from_slice::<Texts>(&text);
    texts.map(|texts| texts.0).map_err(|error| corrupt(format!("{METADATA} is wrong: {error}")))
}

fn no_array(name: &str) -> Error {
    let found = format!("member {} is no npy array", shown(name));
    if name.ends_with(".pkl") {
        let advice = "pickles are never loaded: save its tensors with safetensors first";
        return corrupt(format!("{found}: the zip archive looks like a torch checkpoint, and {advice}"));
    }
    corrupt(format!("{found}; an npz file is a zip archive of nothing else"))
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { container: CONTAINER, reason }
}
