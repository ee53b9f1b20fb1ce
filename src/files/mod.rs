//! Containers: files of named tensors, read and written as bytes, and conversion between them. Never numerics.
//!
//! | file | what it is |
//! |---|---|
//! | [`safetensors`], [`gguf`], [`npy`], [`npz`] | one container each: a [`Container`] to read, and `create`, which begins a file, but for npy |
//! | [`imatrix`] | the mean squares of the inputs of layers, as llama.cpp has them |
//! | [`folder`] | a model as Hugging Face lays it out: safetensors in shards, an index, a config |
//! | [`checkpoint`] | the tensors of a file as its user sees them: the parts of a quantized tensor are one entry |
//! | [`convert`] | plan (from headers alone), then stream every tensor from one file into another |
//! | [`compare`] | two files, tensor by tensor |
//! | [`verify`] | whether a file is whole, and what a conversion makes of another |
//! | [`rows`] | a tensor in blocks of rows: where their share of each part lies |
//! | `workshop`, `journal` | what a job leaves that can be taken up, and how much of it is whole |
//! | [`input`], [`output`] | plain reads with every length checked; a file that appears whole or not at all, and tensors at their places in it |

pub mod checkpoint;
pub mod compare;
pub mod convert;
pub mod folder;
pub mod gguf;
mod glob;
pub mod imatrix;
pub mod input;
mod journal;
mod json;
pub mod npy;
pub mod npz;
pub mod output;
pub mod rows;
pub mod safetensors;
pub mod verify;
mod workshop;

use std::collections::BTreeMap;
use std::path::Path;

use crate::element::Dtype;
use crate::error::{Error, Result};
use input::Input;

/// A file of named tensors, open for reading; its header is known to agree with its length.
pub trait Container: Send + Sync {
    /// The name of the container: `safetensors`, `gguf`, `npy`, `npz`, `imatrix`, `huggingface`.
    fn container(&self) -> &'static str;

    /// Free text that the file carries, by key.
    fn metadata(&self) -> &BTreeMap<String, String>;

    /// Typed values that the file carries, in their order: those of a GGUF file, whose free text is among them.
    fn keys(&self) -> &[gguf::Key] {
        &[]
    }

    /// The folder, where it is one.
    fn folder(&self) -> Option<&folder::Folder> {
        None
    }

    /// The files that it is read from.
    fn inputs(&self) -> Vec<&Input>;

    /// The tensors, in the order of their data.
    fn tensors(&self) -> &[Tensor];

    /// Read `out.len()` bytes of tensor `index` from byte `offset` of it on: little-endian elements, or blocks of them, in C order.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], and [`Error::Corrupt`] where the file has become shorter since it was opened.
    fn read(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<()>;
}

/// Open `path`: a folder as a model of Hugging Face, a GGUF, npy or npz file by its magic bytes or its ending, `imatrix.dat` by
/// its ending, anything else as safetensors.
///
/// # Errors
///
/// [`Error::Io`] where it cannot be opened, [`Error::Corrupt`] where it breaks the rules of its container.
pub fn open(path: &Path) -> Result<Box<dyn Container>> {
    if path.is_dir() {
        return Ok(Box::new(folder::Folder::open(path)?));
    }
    let input = Input::open(path)?;
    let start = input.start()?;
    if start.starts_with(gguf::MAGIC) || is_named(path, "gguf") {
        return Ok(Box::new(gguf::Gguf::open(input, path)?));
    }
    if start.starts_with(npy::MAGIC) || is_named(path, "npy") {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        return Ok(Box::new(npy::Npy::new(input, name)?));
    }
    if is_named(path, "dat") || is_named(path, "imatrix") {
        return Ok(Box::new(imatrix::Imatrix::new(input)?));
    }
    if npz::MAGIC.iter().any(|magic| start.starts_with(magic)) || is_named(path, "npz") {
        return Ok(Box::new(npz::Npz::new(input)?));
    }
    Ok(Box::new(safetensors::Safetensors::new(input)?))
}

/// Whether the name of a file ends in a dot and `ending`.
fn is_named(path: &Path, ending: &str) -> bool {
    path.extension().is_some_and(|found| found.eq_ignore_ascii_case(ending))
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
    /// The bytes that it takes, if its elements can be counted and fill whole bytes or blocks.
    pub fn checked_bytes(&self) -> Option<u64> {
        let elements = self.shape.iter().try_fold(1u64, |product, &n| product.checked_mul(n as u64))?;
        let block = self.dtype.block();
        let blocks = elements.is_multiple_of(block.elements).then_some(elements / block.elements)?;
        blocks.checked_mul(block.bytes)
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

/// A dtype that containers store: numbers, in the order of the safetensors reference, then the blocks of GGUF, in the order of their numbers.
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
    Q40,
    Q41,
    Q50,
    Q51,
    Q80,
    Q81,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    Q8K,
    Iq2Xxs,
    Iq2Xs,
    Iq3Xxs,
    Iq1S,
    Iq4Nl,
    Iq3S,
    Iq2S,
    Iq4Xs,
    Iq1M,
    Tq10,
    Tq20,
    Mxfp4,
    Nvfp4,
    Q10,
    Q20,
}

/// The least that can be stored of a dtype.
#[derive(Clone, Copy, Debug)]
pub struct Block {
    /// Elements in it: 1 of most dtypes.
    pub elements: u64,
    /// Bytes that it takes.
    pub bytes: u64,
}

/// Dtype, name in safetensors, name in numpy, in ml_dtypes or in ggml, elements and bytes of a block; in the order of the enum.
#[rustfmt::skip]
const DTYPES: [(StoredDtype, Option<&str>, &str, u64, u64); 49] = [
    (StoredDtype::Bool, Some("BOOL"), "bool", 1, 1),
    (StoredDtype::F4, Some("F4"), "float4_e2m1fn", 2, 1),
    (StoredDtype::F6E2M3, Some("F6_E2M3"), "float6_e2m3fn", 4, 3),
    (StoredDtype::F6E3M2, Some("F6_E3M2"), "float6_e3m2fn", 4, 3),
    (StoredDtype::U8, Some("U8"), "uint8", 1, 1),
    (StoredDtype::I8, Some("I8"), "int8", 1, 1),
    (StoredDtype::F8E5M2, Some("F8_E5M2"), "float8_e5m2", 1, 1),
    (StoredDtype::F8E4M3, Some("F8_E4M3"), "float8_e4m3fn", 1, 1),
    (StoredDtype::F8E8M0, Some("F8_E8M0"), "float8_e8m0fnu", 1, 1),
    (StoredDtype::F8E4M3Fnuz, Some("F8_E4M3FNUZ"), "float8_e4m3fnuz", 1, 1),
    (StoredDtype::F8E5M2Fnuz, Some("F8_E5M2FNUZ"), "float8_e5m2fnuz", 1, 1),
    (StoredDtype::I16, Some("I16"), "int16", 1, 2),
    (StoredDtype::U16, Some("U16"), "uint16", 1, 2),
    (StoredDtype::F16, Some("F16"), "float16", 1, 2),
    (StoredDtype::Bf16, Some("BF16"), "bfloat16", 1, 2),
    (StoredDtype::I32, Some("I32"), "int32", 1, 4),
    (StoredDtype::U32, Some("U32"), "uint32", 1, 4),
    (StoredDtype::F32, Some("F32"), "float32", 1, 4),
    (StoredDtype::C64, Some("C64"), "complex64", 1, 8),
    (StoredDtype::F64, Some("F64"), "float64", 1, 8),
    (StoredDtype::I64, Some("I64"), "int64", 1, 8),
    (StoredDtype::U64, Some("U64"), "uint64", 1, 8),
    (StoredDtype::Q40, None, "Q4_0", 32, 18),
    (StoredDtype::Q41, None, "Q4_1", 32, 20),
    (StoredDtype::Q50, None, "Q5_0", 32, 22),
    (StoredDtype::Q51, None, "Q5_1", 32, 24),
    (StoredDtype::Q80, None, "Q8_0", 32, 34),
    (StoredDtype::Q81, None, "Q8_1", 32, 36),
    (StoredDtype::Q2K, None, "Q2_K", 256, 84),
    (StoredDtype::Q3K, None, "Q3_K", 256, 110),
    (StoredDtype::Q4K, None, "Q4_K", 256, 144),
    (StoredDtype::Q5K, None, "Q5_K", 256, 176),
    (StoredDtype::Q6K, None, "Q6_K", 256, 210),
    (StoredDtype::Q8K, None, "Q8_K", 256, 292),
    (StoredDtype::Iq2Xxs, None, "IQ2_XXS", 256, 66),
    (StoredDtype::Iq2Xs, None, "IQ2_XS", 256, 74),
    (StoredDtype::Iq3Xxs, None, "IQ3_XXS", 256, 98),
    (StoredDtype::Iq1S, None, "IQ1_S", 256, 50),
    (StoredDtype::Iq4Nl, None, "IQ4_NL", 32, 18),
    (StoredDtype::Iq3S, None, "IQ3_S", 256, 110),
    (StoredDtype::Iq2S, None, "IQ2_S", 256, 82),
    (StoredDtype::Iq4Xs, None, "IQ4_XS", 256, 136),
    (StoredDtype::Iq1M, None, "IQ1_M", 256, 56),
    (StoredDtype::Tq10, None, "TQ1_0", 256, 54),
    (StoredDtype::Tq20, None, "TQ2_0", 256, 66),
    (StoredDtype::Mxfp4, None, "MXFP4", 32, 17),
    (StoredDtype::Nvfp4, None, "NVFP4", 64, 36),
    (StoredDtype::Q10, None, "Q1_0", 128, 18),
    (StoredDtype::Q20, None, "Q2_0", 64, 18),
];

impl StoredDtype {
    /// The name that safetensors gives it: `BF16`. A block of GGUF has none.
    pub fn safetensors_name(self) -> Option<&'static str> {
        DTYPES[self as usize].1
    }

    /// The name that numpy, ml_dtypes where numpy lacks it, or ggml gives it: `bfloat16`, `Q6_K`.
    pub fn name(self) -> &'static str {
        DTYPES[self as usize].2
    }

    /// The least that is stored of it.
    pub fn block(self) -> Block {
        let (.., elements, bytes) = DTYPES[self as usize];
        Block { elements, bytes }
    }

    /// By the name that safetensors gives it.
    pub fn from_safetensors_name(name: &str) -> Option<Self> {
        DTYPES.iter().find(|row| row.1 == Some(name)).map(|row| row.0)
    }

    /// By the name that numpy, ml_dtypes or ggml gives it.
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
