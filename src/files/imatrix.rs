//! The importance matrix of llama.cpp in its first form, `imatrix.dat`: of each tensor the mean squares of the inputs of its layer. (The
//! newer form is a GGUF file.)
//!
//! ```text
//! i32  number of entries; of each:
//!      i32  length of the name, the name      i32  n, number of calls      i32  number of values, as many f32: means times n
//! then, in newer files:  i32  number of chunks, i32 length of the name of the text, the name
//! ```
//! A stack of experts has the values of all its matrices one after the other. All is little-endian. The entries are tensors of float32, as
//! they are stored.
//!
//! Source: ggml-org/llama.cpp `tools/imatrix/imatrix.cpp`, `tools/quantize/quantize.cpp`.

use std::collections::{BTreeMap, HashSet};

use super::input::Input;
use super::{Container, StoredDtype, Tensor, buffer, looks_like, shown};
use crate::error::{Error, Result};

const CONTAINER: &str = "imatrix";

/// Longest name of an entry, in bytes.
const LONGEST_NAME: u64 = 65_535;

/// Most entries.
const MOST: u64 = 1_000_000;

/// An importance matrix, open for reading.
pub struct Imatrix {
    input: Input,
    tensors: Vec<Tensor>,
    /// Where the values of each begin.
    starts: Vec<u64>,
    metadata: BTreeMap<String, String>,
}

impl Imatrix {
    /// Read and check the entries of `input`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with the rule that is broken and the entry that breaks it; [`Error::Io`].
    pub fn new(input: Input) -> Result<Imatrix> {
        let mut at = 0;
        let count = length(&input, &mut at, "the number of entries")?;
        if count == 0 || count > MOST {
            let start = input.start()?;
            let claim = format!("the file claims {count} entries; expected 1 to {MOST}");
            return Err(corrupt(looks_like(&start).map_or(claim, String::from)));
        }
        let (mut tensors, mut starts, mut names) = (Vec::new(), Vec::new(), HashSet::new());
        for index in 0..count {
            let name = text(&input, &mut at, &format!("the name of entry {index}"))?;
            let what = format!("entry {}", shown(&name));
            if !names.insert(name.clone()) {
                return Err(corrupt(format!("{what} comes twice")));
            }
            length(&input, &mut at, &what)?;
            let values = length(&input, &mut at, &what)?;
            starts.push(at);
            // 32 bits, so that it cannot be too large.
            pass(&input, &mut at, values * 4, &what)?;
            tensors.push(Tensor { name, dtype: StoredDtype::F32, shape: vec![values as usize] });
        }
        let mut metadata = BTreeMap::new();
        if at < input.length() {
            metadata.insert("chunks".into(), length(&input, &mut at, "the number of chunks")?.to_string());
            metadata.insert("dataset".into(), text(&input, &mut at, "the name of the text")?);
        }
        if at < input.length() {
            return Err(corrupt(format!("{} bytes follow its last entry", input.length() - at)));
        }
        Ok(Imatrix { input, tensors, starts, metadata })
    }
}

impl Container for Imatrix {
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
        self.input.read(CONTAINER, self.starts[index] + offset, out)
    }
}

/// Go on by `bytes` that are there.
fn pass(input: &Input, at: &mut u64, bytes: u64, what: &str) -> Result<u64> {
    let left = input.length() - *at;
    if bytes > left {
        return Err(corrupt(format!("{what} takes {bytes} bytes; {left} are left: the file is cut short, or is no imatrix.dat")));
    }
    *at += bytes;
    Ok(*at - bytes)
}

/// A number of things.
fn length(input: &Input, at: &mut u64, what: &str) -> Result<u64> {
    let start = pass(input, at, 4, what)?;
    let mut bytes = [0; 4];
    input.read(CONTAINER, start, &mut bytes)?;
    let number = i32::from_le_bytes(bytes);
    u64::try_from(number).map_err(|_| corrupt(format!("{what} has the length {number}")))
}

fn text(input: &Input, at: &mut u64, what: &str) -> Result<String> {
    let length = length(input, at, what)?;
    if length > LONGEST_NAME {
        return Err(corrupt(format!("{what} claims {length} bytes; the limit is {LONGEST_NAME}: it is no imatrix.dat")));
    }
    let start = pass(input, at, length, what)?;
    let mut bytes = buffer(length, || what.into())?;
    input.read(CONTAINER, start, &mut bytes)?;
    String::from_utf8(bytes).map_err(|_| corrupt(format!("{what} is not UTF-8")))
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { container: CONTAINER, reason }
}
