//! A key of a GGUF file: its name, its type, and its value as the bytes that the file has.
//!
//! ```text
//! number   size of its type          bool   1 byte
//! text     u64 length, bytes         array  u32 type of its elements, u64 count, the elements
//! ```

use std::fmt;

/// The numbers of the types: 0 to 12.
pub(super) mod kind {
    pub(in super::super) const U8: u32 = 0;
    pub(in super::super) const I8: u32 = 1;
    pub(in super::super) const U16: u32 = 2;
    pub(in super::super) const I16: u32 = 3;
    pub(in super::super) const U32: u32 = 4;
    pub(in super::super) const I32: u32 = 5;
    pub(in super::super) const F32: u32 = 6;
    pub(in super::super) const BOOL: u32 = 7;
    pub(in super::super) const TEXT: u32 = 8;
    pub(in super::super) const ARRAY: u32 = 9;
    pub(in super::super) const U64: u32 = 10;
    pub(in super::super) const I64: u32 = 11;
    pub(in super::super) const F64: u32 = 12;
}

/// Bytes of a value of this type, where all of the type have as many.
pub(super) fn size(kind: u32) -> Option<u64> {
    match kind {
        kind::U8 | kind::I8 | kind::BOOL => Some(1),
        kind::U16 | kind::I16 => Some(2),
        kind::U32 | kind::I32 | kind::F32 => Some(4),
        kind::U64 | kind::I64 | kind::F64 => Some(8),
        _ => None,
    }
}

/// A name and a value. The value is kept as the file has it, so that it is written as it was read.
#[derive(Clone, PartialEq, Eq)]
pub struct Key {
    /// The name: `general.architecture`.
    pub name: String,
    kind: u32,
    bytes: Vec<u8>,
}

/// What a key says.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A number of an unsigned type.
    Unsigned(u64),
    /// A number of a signed type.
    Signed(i64),
    /// A number of a floating type; every float32 is a float64.
    Float(f64),
    /// Yes or no.
    Bool(bool),
    /// Text; what is not UTF-8 in it is replaced.
    Text(String),
    /// Several of one type.
    List(Vec<Value>),
}

impl Key {
    /// `bytes` are a value of type `kind`, as the reader has checked.
    pub(super) fn new(name: String, kind: u32, bytes: Vec<u8>) -> Key {
        Key { name, kind, bytes }
    }

    /// A key of type u32: that of every number that llama.cpp looks for.
    pub fn u32(name: &str, value: u32) -> Key {
        Key { name: name.into(), kind: kind::U32, bytes: value.to_le_bytes().into() }
    }

    /// A key that is text.
    pub(super) fn text(name: &str, value: &str) -> Key {
        let mut bytes = Vec::new();
        write_text(&mut bytes, value.as_bytes());
        Key { name: name.into(), kind: kind::TEXT, bytes }
    }

    /// A key of type u16.
    pub(super) fn u16(name: &str, value: u16) -> Key {
        Key { name: name.into(), kind: kind::U16, bytes: value.to_le_bytes().into() }
    }

    /// A key of type i32.
    pub(super) fn i32(name: &str, value: i32) -> Key {
        Key { name: name.into(), kind: kind::I32, bytes: value.to_le_bytes().into() }
    }

    /// The value.
    pub fn value(&self) -> Value {
        decode(self.kind, &mut self.bytes.as_slice())
    }

    /// The value, of a key of type u32.
    pub(super) fn as_u32(&self) -> Option<u32> {
        if let (kind::U32, Value::Unsigned(value)) = (self.kind, self.value()) { u32::try_from(value).ok() } else { None }
    }

    /// Append the key as a file has it.
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        write_text(out, self.name.as_bytes());
        out.extend(self.kind.to_le_bytes());
        out.extend(&self.bytes);
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} = {:?}", self.name, self.value())
    }
}

/// Append a length and the bytes.
pub(super) fn write_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text);
}

/// The value of type `kind` that `bytes` begin with; they move on to what follows.
fn decode(kind: u32, bytes: &mut &[u8]) -> Value {
    match kind {
        kind::U8 => Value::Unsigned(u8::from_le_bytes(take(bytes)).into()),
        kind::I8 => Value::Signed(i8::from_le_bytes(take(bytes)).into()),
        kind::U16 => Value::Unsigned(u16::from_le_bytes(take(bytes)).into()),
        kind::I16 => Value::Signed(i16::from_le_bytes(take(bytes)).into()),
        kind::U32 => Value::Unsigned(u32::from_le_bytes(take(bytes)).into()),
        kind::I32 => Value::Signed(i32::from_le_bytes(take(bytes)).into()),
        kind::F32 => Value::Float(f32::from_le_bytes(take(bytes)).into()),
        kind::BOOL => Value::Bool(take(bytes) != [0]),
        kind::U64 => Value::Unsigned(u64::from_le_bytes(take(bytes))),
        kind::I64 => Value::Signed(i64::from_le_bytes(take(bytes))),
        kind::F64 => Value::Float(f64::from_le_bytes(take(bytes))),
        kind::TEXT => {
            let length = u64::from_le_bytes(take(bytes)) as usize;
            let text = bytes.split_off(..length).expect(CHECKED);
            Value::Text(String::from_utf8_lossy(text).into_owned())
        }
        kind::ARRAY => {
            let kind = u32::from_le_bytes(take(bytes));
            let count = u64::from_le_bytes(take(bytes));
            Value::List((0..count).map(|_| decode(kind, bytes)).collect())
        }
        _ => unreachable!("{CHECKED}"),
    }
}

const CHECKED: &str = "the reader has checked the value";

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    *bytes.split_off(..N).and_then(|taken| taken.first_chunk()).expect(CHECKED)
}
