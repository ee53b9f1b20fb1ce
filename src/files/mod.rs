//! Containers: files of named tensors, read and written as bytes, and conversion between them. Never numerics.
//!
//! | file | what it is |
//! |---|---|
//! | [`safetensors`], [`npy`] | one container each: a [`Container`] to read, for safetensors a writer too |
//! | [`checkpoint`] | the tensors of a file as its user sees them: the parts of a quantized tensor are one entry |
//! | [`convert`] | plan (from headers alone), then stream every tensor from one file into another |
//! | [`compare`] | two files, tensor by tensor |
//! | [`input`], [`output`] | plain reads with every length checked; a file that appears whole or not at all |

pub mod checkpoint;
pub mod compare;
pub mod convert;
mod glob;
pub mod input;
pub mod npy;
pub mod output;
pub mod safetensors;

use std::collections::BTreeMap;
use std::path::Path;

use crate::element::Dtype;
use crate::error::{Error, Result};
use input::Input;

/// A file of named tensors, open for reading; its header is known to agree with its length.
pub trait Container: Send + Sync {
    /// The name of the container: `safetensors`, `npy`.
    fn container(&self) -> &'static str;

    /// Free text that the file carries, by key.
    fn metadata(&self) -> &BTreeMap<String, String>;

    /// The tensors, in the order of their data.
    fn tensors(&self) -> &[Tensor];

    /// Read `out.len()` bytes of tensor `index` from byte `offset` of it on: little-endian elements in C order.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and [`Error::Corrupt`] where the file has become shorter since it was opened.
    fn read(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<()>;
}

/// Open `path`: an npy file by its magic bytes or its ending, anything else as safetensors.
///
/// # Errors
///
/// [`Error::Io`] where it cannot be opened, [`Error::Corrupt`] where it breaks the rules of its container.
pub fn open(path: &Path) -> Result<Box<dyn Container>> {
    let input = Input::open(path)?;
    let named_npy = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("npy"));
    if named_npy || input.start()?.starts_with(npy::MAGIC) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Box::new(npy::Npy::new(input, name)?));
    }
    Ok(Box::new(safetensors::Safetensors::new(input)?))
}

/// One stored array: what a header says of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name in the file.
    pub name: String,
    /// What its elements are.
    pub dtype: StoredDtype,
    /// Its shape, in elements.
    pub shape: Vec<usize>,
}

impl Tensor {
    /// The bytes that it takes, if its elements can be counted and fill whole bytes.
    pub fn checked_bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64))?;
        let bits = elements.checked_mul(self.dtype.bits())?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    /// The bytes that it takes.
    ///
    /// # Panics
    ///
    /// For a tensor that [`Self::checked_bytes`] refuses; no reader hands one out.
    pub fn bytes(&self) -> u64 {
        self.checked_bytes().expect("a reader or a plan has checked the size")
    }
}

/// A dtype that containers store, in the order of the safetensors reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "the table below names and sizes each")]
pub enum StoredDtype {
    Bool,
    F4,
    F6E2M3,
    F6E3M2,
    U8,
    I8,
    F8E5M2,
    F8E4M3,
    F8E8M0,
    F8E4M3Fnuz,
    F8E5M2Fnuz,
    I16,
    U16,
    F16,
    Bf16,
    I32,
    U32,
    F32,
    C64,
    F64,
    I64,
    U64,
}

/// Dtype, name in safetensors, name in numpy or in ml_dtypes, bits; in the order of the enum.
const DTYPES: [(StoredDtype, &str, &str, u64); 22] = [
    (StoredDtype::Bool, "BOOL", "bool", 8),
    (StoredDtype::F4, "F4", "float4_e2m1fn", 4),
    (StoredDtype::F6E2M3, "F6_E2M3", "float6_e2m3fn", 6),
    (StoredDtype::F6E3M2, "F6_E3M2", "float6_e3m2fn", 6),
    (StoredDtype::U8, "U8", "uint8", 8),
    (StoredDtype::I8, "I8", "int8", 8),
    (StoredDtype::F8E5M2, "F8_E5M2", "float8_e5m2", 8),
    (StoredDtype::F8E4M3, "F8_E4M3", "float8_e4m3fn", 8),
    (StoredDtype::F8E8M0, "F8_E8M0", "float8_e8m0fnu", 8),
    (StoredDtype::F8E4M3Fnuz, "F8_E4M3FNUZ", "float8_e4m3fnuz", 8),
    (StoredDtype::F8E5M2Fnuz, "F8_E5M2FNUZ", "float8_e5m2fnuz", 8),
    (StoredDtype::I16, "I16", "int16", 16),
    (StoredDtype::U16, "U16", "uint16", 16),
    (StoredDtype::F16, "F16", "float16", 16),
    (StoredDtype::Bf16, "BF16", "bfloat16", 16),
    (StoredDtype::I32, "I32", "int32", 32),
    (StoredDtype::U32, "U32", "uint32", 32),
    (StoredDtype::F32, "F32", "float32", 32),
    (StoredDtype::C64, "C64", "complex64", 64),
    (StoredDtype::F64, "F64", "float64", 64),
    (StoredDtype::I64, "I64", "int64", 64),
    (StoredDtype::U64, "U64", "uint64", 64),
];

impl StoredDtype {
    /// The name that safetensors gives it: `BF16`.
    pub fn safetensors_name(self) -> &'static str {
        DTYPES[self as usize].1
    }

    /// The name that numpy, or ml_dtypes where numpy lacks it, gives it: `bfloat16`.
    pub fn name(self) -> &'static str {
        DTYPES[self as usize].2
    }

    /// Bits of one element.
    pub fn bits(self) -> u64 {
        DTYPES[self as usize].3
    }

    /// By the name that safetensors gives it.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// By the name that numpy or ml_dtypes gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.2 == name).map(|row| row.0)
    }

    /// The dtype to compute with, for the four that are quantized.
    pub fn float(self) -> Option<Dtype> {
        match self {
            StoredDtype::F16 => Some(Dtype::F16),
            StoredDtype::Bf16 => Some(Dtype::Bf16),
            StoredDtype::F32 => Some(Dtype::F32),
            StoredDtype::F64 => Some(Dtype::F64),
            _ => None,
        }
    }
}

/// A name from a file as a message shows it: quoted, control and invisible characters escaped, cut at 100 characters.
pub(crate) fn shown(name: &str) -> String {
    const LONGEST: usize = 100;
    let cut = if name.chars().nth(LONGEST).is_some() { "..." } else { "" };
    format!("'{}{cut}'", name.chars().take(LONGEST).collect::<String>().escape_debug())
}

/// A buffer of `bytes` zeros, or an error that says what it was for.
pub(crate) fn buffer(bytes: u64, what: impl FnOnce() -> String) -> Result<Vec<u8>> {
    let mut buffer = Vec::new();
    let reserved = usize::try_from(bytes).is_ok_and(|length| buffer.try_reserve_exact(length).is_ok());
    if !reserved {
        return Err(Error::Memory { what: what(), bytes });
    }
    buffer.resize(bytes as usize, 0);
    Ok(buffer)
}

/// What the first bytes of a file that is not what it should be look like, and what to do about it.
fn looks_like(start: &[u8]) -> Option<&'static str> {
    let text = start.trim_ascii_start();
    let is_html = |word: &str| text.get(..word.len()).is_some_and(|t| t.eq_ignore_ascii_case(word.as_bytes()));
    if start.is_empty() {
        Some("it is empty")
    } else if start.starts_with(b"PK\x03\x04") {
        Some("it looks like a zip archive (a torch checkpoint or npz): save its tensors with safetensors first; pickles are never loaded")
    } else if matches!(start, [0x80, 2..=5, 1..=255, ..]) {
        Some("it looks like a Python pickle, which is never loaded: save its tensors with safetensors first")
    } else if is_html("<!doctype") || is_html("<html") {
        Some("it looks like an HTML page, probably the error page of a download")
    } else if start.starts_with(b"version https://git-lfs") {
        Some("it is a Git LFS pointer, not the file itself: fetch it with 'git lfs pull'")
    } else if start.starts_with(b"GGUF") {
        Some("it looks like a GGUF file")
    } else if start.starts_with(npy::MAGIC) {
        Some("it looks like an npy file")
    } else if start.starts_with(b"\x1f\x8b") {
        Some("it looks like a gzip archive: unpack it first")
    } else if matches!(text, [b'{', b'"' | b' ' | b'\r' | b'\n' | b'\t', ..]) {
        Some("it looks like plain JSON, perhaps the index of a sharded checkpoint")
    } else {
        None
    }
}
