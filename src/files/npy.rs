//! npy: one array, its description written as a Python dict, then its bytes.
//!
//! ```text
//! byte  0..6   "\x93NUMPY"       6, 7   version 1.0, 2.0 or 3.0
//!       8..    length of the description: u16 in version 1, u32 after, little-endian
//!       then   {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }   padded with spaces, ends in a newline
//!       then   the elements
//! ```
//! Arrays of Python objects are pickles and are refused.

use std::collections::BTreeMap;
use std::slice;
use std::sync::OnceLock;

use super::input::Input;
use super::{Container, StoredDtype, Tensor, buffer, looks_like, shown};
use crate::error::{Error, Index, Result};

/// The first bytes of every npy file.
pub const MAGIC: &[u8] = b"\x93NUMPY";

/// Longest description that is read; numpy itself warns above 10 000 characters.
const LONGEST_DESCRIPTION: u64 = 1 << 20;

/// Bytes that an array is read from: a file, or the member of an archive.
pub(super) trait Bytes {
    /// How many there are.
    fn length(&self) -> u64;

    /// Read `out.len()` bytes from `offset` on.
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()>;
}

impl Bytes for Input {
    fn length(&self) -> u64 {
        Input::length(self)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        Input::read(self, CONTAINER, offset, out)
    }
}

/// The name of the container in messages.
const CONTAINER: &str = "npy";

/// An npy file, open for reading: a container of one tensor.
pub struct Npy {
    array: Array<Input>,
    metadata: BTreeMap<String, String>,
}

/// An array in the form of npy.
pub(super) struct Array<B> {
    bytes: B,
    tensor: Tensor,
    /// Where its elements begin.
    data: u64,
    big_endian: bool,
    fortran_order: bool,
    /// The whole array in little-endian C order, made once where the file has another order.
    ordered: OnceLock<Vec<u8>>,
}

impl Npy {
    /// Read and check the description of `input`; the array will be called `name`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with the rule that is broken; [`Error::Io`].
    pub fn new(input: Input, name: String) -> Result<Npy> {
        Ok(Npy { array: Array::new(input, name)?, metadata: BTreeMap::new() })
    }
}

impl<B: Bytes> Array<B> {
    /// Read and check the description.
    pub(super) fn new(bytes: B, name: String) -> Result<Array<B>> {
        let mut start = vec![0; bytes.length().min(64) as usize];
        bytes.read(0, &mut start)?;
        let Some(&[major, _]) = start.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk::<2>()) else {
            return Err(corrupt(looks_like(&start).unwrap_or("the file does not begin as one").into()));
        };
        let (length, data) = match (major, &start[8..]) {
            (1, &[a, b, ..]) => (u64::from(u16::from_le_bytes([a, b])), 10),
            (2 | 3, &[a, b, c, d, ..]) => (u64::from(u32::from_le_bytes([a, b, c, d])), 12),
            (1..=3, _) => return Err(corrupt("the file ends before its description".into())),
            _ => return Err(corrupt(format!("version {major} is not known; 1, 2 and 3 are"))),
        };
        if length > LONGEST_DESCRIPTION {
            return Err(corrupt(format!("the description claims {length} bytes; the limit is {LONGEST_DESCRIPTION}")));
        }
        if length > bytes.length() - data {
            let follow = bytes.length() - data;
            return Err(corrupt(format!("the description claims {length} bytes; {follow} follow: the file is cut short")));
        }
        let mut description = buffer(length, || "the description".into())?;
        bytes.read(data, &mut description)?;
        let data = data + length;

        let Description { descr, fortran_order, shape } = Parser::new(&description).description()?;
        let (dtype, big_endian) = dtype(&descr)?;
        let tensor = Tensor { name, dtype, shape };
        let Some(needed) = tensor.checked_bytes() else {
            return Err(corrupt(format!("the shape {} is more than 64 bits can count", Index(&tensor.shape))));
        };
        let found = bytes.length() - data;
        if found != needed {
            let claim = format!("{descr} of shape {} takes {needed} bytes", Index(&tensor.shape));
            return Err(corrupt(format!("{claim}, but {found} follow the description")));
        }
        // An array of one axis lies alike in both orders.
        let fortran_order = fortran_order && tensor.shape.len() > 1;
        Ok(Array { bytes, tensor, data, big_endian, fortran_order, ordered: OnceLock::new() })
    }

    /// The array in little-endian C order.
    fn ordered(&self) -> Result<&[u8]> {
        if let Some(ordered) = self.ordered.get() {
            return Ok(ordered);
        }
        let mut bytes = buffer(self.tensor.bytes(), || "the array".into())?;
        self.bytes.read(self.data, &mut bytes)?;
        let item = self.tensor.dtype.block().bytes as usize;
        if self.big_endian {
            // A complex number is two numbers, each with its own order of bytes.
            let number = if self.tensor.dtype == StoredDtype::C64 { item / 2 } else { item };
            bytes.chunks_exact_mut(number).for_each(<[u8]>::reverse);
        }
        if self.fortran_order {
            let mut transposed = buffer(self.tensor.bytes(), || "the array in C order".into())?;
            transpose(&bytes, &mut transposed, &self.tensor.shape, item);
            bytes = transposed;
        }
        // Two threads may both have come here; their bytes are the same.
        Ok(self.ordered.get_or_init(|| bytes))
    }

    /// What it is.
    pub(super) fn tensor(&self) -> &Tensor {
        &self.tensor
    }

    /// Read `out.len()` bytes of the elements, in little-endian C order, from byte `offset` of them on.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if self.big_endian || self.fortran_order {
            let start = offset as usize;
            out.copy_from_slice(&self.ordered()?[start..start + out.len()]);
            return Ok(());
        }
        self.bytes.read(self.data + offset, out)
    }
}

impl Container for Npy {
    fn container(&self) -> &'static str {
        CONTAINER
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn inputs(&self) -> Vec<&Input> {
        vec![&self.array.bytes]
    }

    fn tensors(&self) -> &[Tensor] {
        slice::from_ref(&self.array.tensor)
    }

    fn read(&self, _index: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        self.array.read(offset, out)
    }
}

/// Copy an array of `shape` from Fortran order (first axis fastest) to C order (last axis fastest).
fn transpose(from: &[u8], to: &mut [u8], shape: &[usize], item: usize) {
    let mut index = vec![0; shape.len()];
    for out in to.chunks_exact_mut(item) {
        let flat = index.iter().zip(shape).rev().fold(0, |flat, (&i, &n)| flat * n + i);
        out.copy_from_slice(&from[flat * item..][..item]);
        for (i, &n) in index.iter_mut().zip(shape).rev() {
            *i += 1;
            if *i < n {
                break;
            }
            *i = 0;
        }
    }
}

/// The dtype of a numpy type string such as `<f4`, and whether its bytes are big-endian.
fn dtype(descr: &str) -> Result<(StoredDtype, bool)> {
    let (big_endian, kind) = match descr.split_at_checked(1) {
        Some((">", kind)) => (true, kind),
        Some(("<" | "|" | "=", kind)) => (false, kind),
        _ => (false, descr),
    };
    if let Some((dtype, _)) = DESCRS.iter().find(|(_, descr)| &descr[1..] == kind) {
        return Ok((*dtype, big_endian));
    }
    Err(match kind {
        "O" => corrupt("the array holds Python objects; those are pickles and never loaded".into()),
        "V2" => {
            let advice = "if they are bfloat16, store the array as BF16 in a safetensors file";
            corrupt(format!("the array holds untyped pairs of bytes; {advice}"))
        }
        _ => corrupt(format!("the dtype '{}' is not a plain number", descr.escape_debug())),
    })
}

/// The type strings of numpy, little-endian.
const DESCRS: [(StoredDtype, &str); 13] = [
    (StoredDtype::Bool, "|b1"),
    (StoredDtype::I8, "|i1"),
    (StoredDtype::U8, "|u1"),
    (StoredDtype::I16, "<i2"),
    (StoredDtype::U16, "<u2"),
    (StoredDtype::F16, "<f2"),
    (StoredDtype::I32, "<i4"),
    (StoredDtype::U32, "<u4"),
    (StoredDtype::F32, "<f4"),
    (StoredDtype::C64, "<c8"),
    (StoredDtype::I64, "<i8"),
    (StoredDtype::U64, "<u8"),
    (StoredDtype::F64, "<f8"),
];

/// Most axes of an array of numpy.
const MOST_AXES: usize = 64;

/// What stands in front of the elements of an array, version 1.0, of a multiple of 64 bytes as numpy has it.
pub(super) fn description(tensor: &Tensor) -> Result<Vec<u8>> {
    let named = |what: &str| format!("the {what} of tensor {}", shown(&tensor.name));
    let Some((_, descr)) = DESCRS.iter().find(|row| row.0 == tensor.dtype) else {
        let expected = "an npz file has no such dtype: write a safetensors file, or decode with a dtype that numpy has";
        return Err(Error::value(named("dtype"), tensor.dtype.name(), expected));
    };
    if tensor.shape.len() > MOST_AXES {
        return Err(Error::value(named("number of axes"), tensor.shape.len().to_string(), format!("numpy takes up to {MOST_AXES}")));
    }
    let shape: String = match tensor.shape[..] {
        [length] => format!("{length},"),
        _ => tensor.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "),
    };
    let text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({shape}), }}");
    const BEFORE: usize = 10;
    let length = (BEFORE + text.len() + 1).next_multiple_of(64) - BEFORE;
    let mut bytes = [MAGIC, &[1, 0]].concat();
    bytes.extend((length as u16).to_le_bytes());
    bytes.extend(format!("{text:<0$}\n", length - 1).as_bytes());
    Ok(bytes)
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { container: CONTAINER, reason }
}

/// What the dict says.
struct Description {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

/// The few Python literals that a description is made of.
struct Parser<'a> {
    rest: &'a [u8],
}

impl<'a> Parser<'a> {
    fn new(text: &'a [u8]) -> Self {
        Parser { rest: text }
    }

    /// `{'descr': text, 'fortran_order': bool, 'shape': tuple}`, the keys in any order, each once.
    fn description(mut self) -> Result<Description> {
        let (mut descr, mut fortran_order, mut shape) = (None, None, None);
        self.expect(b'{')?;
        while !self.take(b'}') {
            let key = self.text()?;
            self.expect(b':')?;
            let twice = match key.as_str() {
                "descr" if self.peek() == Some(b'[') => {
                    return Err(corrupt("the array is structured (it has named fields); save its fields one by one".into()));
                }
                "descr" => descr.replace(self.text()?).is_some(),
                "fortran_order" => fortran_order.replace(self.boolean()?).is_some(),
                "shape" => shape.replace(self.shape()?).is_some(),
                _ => return Err(corrupt(format!("the description has an unknown key '{}'", key.escape_debug()))),
            };
            if twice {
                return Err(corrupt(format!("the description gives {key} twice")));
            }
            if !self.take(b',') {
                self.expect(b'}')?;
                break;
            }
        }
        if self.peek().is_some() {
            return Err(corrupt("the description goes on after its closing brace".into()));
        }
        match (descr, fortran_order, shape) {
            (Some(descr), Some(fortran_order), Some(shape)) => Ok(Description { descr, fortran_order, shape }),
            _ => Err(corrupt("the description lacks one of descr, fortran_order and shape".into())),
        }
    }

    fn peek(&mut self) -> Option<u8> {
        self.rest = self.rest.trim_ascii_start();
        self.rest.first().copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        if found {
            self.rest = &self.rest[1..];
        }
        found
    }

    fn expect(&mut self, byte: u8) -> Result<()> {
        if self.take(byte) { Ok(()) } else { Err(corrupt(format!("the description lacks a '{}'", byte as char))) }
    }

    fn text(&mut self) -> Result<String> {
        let quote = self.peek().filter(|byte| matches!(byte, b'\'' | b'"'));
        let body = quote.and_then(|quote| {
            let end = self.rest[1..].iter().position(|&byte| byte == quote)?;
            let body = std::str::from_utf8(&self.rest[1..=end]).ok()?;
            self.rest = &self.rest[end + 2..];
            Some(body.to_string())
        });
        body.ok_or_else(|| corrupt("the description lacks a quoted text".into()))
    }

    fn boolean(&mut self) -> Result<bool> {
        self.peek();
        for (word, value) in [("True", true), ("False", false)] {
            if let Some(rest) = self.rest.strip_prefix(word.as_bytes()) {
                self.rest = rest;
                return Ok(value);
            }
        }
        Err(corrupt("fortran_order is neither True nor False".into()))
    }

    fn shape(&mut self) -> Result<Vec<usize>> {
        let mut shape = Vec::new();
        self.expect(b'(')?;
        while !self.take(b')') {
            self.peek();
            let digits = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
            let number = std::str::from_utf8(&self.rest[..digits]).ok().and_then(|digits| digits.parse().ok());
            shape.push(number.ok_or_else(|| corrupt("the shape holds something that is no length".into()))?);
            self.rest = &self.rest[digits..];
            if !self.take(b',') {
                self.expect(b')')?;
                break;
            }
        }
        Ok(shape)
    }
}
