//! An archive in the making: members are stored, as `numpy.savez` does it, and have 64-bit sizes where 32 bits do not reach.
//!
//! The places of all members are known before the first byte. Their sums (CRC-32) are not, so that what stands in front of a member is written
//! at the end, with the directory.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;

use flate2::Crc;

use super::METADATA;
use crate::error::{Error, Result};
use crate::files::output::{FileWriter, Hash, Output, TensorWriter, Writer};
use crate::files::{Tensor, npy, shown};

/// The version of zip that is needed: 4.5, which has sizes of 64 bits.
const VERSION: u16 = 45;

/// Names are UTF-8.
const UTF8: u16 = 1 << 11;

/// The first day that zip knows, 1 January 1980, so that the same arrays are the same bytes.
const DATE: u16 = 1 << 5 | 1;

/// In the place of a number that stands in the extra field.
const BEYOND: u32 = u32::MAX;

/// A member: an array, whose description is made at once and whose elements come later.
struct Member {
    /// With `.npy`.
    name: String,
    /// Where its header begins.
    at: u64,
    description: Vec<u8>,
    /// Bytes of the description and of the elements.
    length: u64,
    /// The sum of those that are known.
    sum: Crc,
}

impl Member {
    fn new(tensor: &Tensor, at: u64) -> Result<Member> {
        let name = format!("{}.npy", tensor.name);
        let wrong =
            |found: String, expected: &str| Err(Error::value(format!("the name of tensor {}", shown(&tensor.name)), found, expected));
        if name.len() > usize::from(u16::MAX) {
            return wrong(format!("{} bytes long", tensor.name.len()), "an npz file takes up to 65531");
        }
        if name.contains('\0') {
            return wrong("with a NUL in it".into(), "numpy reads a name up to there: write a safetensors file");
        }
        let description = npy::description(tensor)?;
        let length = description.len() as u64 + tensor.bytes();
        Ok(Member { name, at, sum: sum(&description), description, length })
    }

    fn is_large(&self) -> bool {
        self.length >= u64::from(BEYOND)
    }

    /// What stands in front of it: its header, without the description.
    fn header(&self) -> Vec<u8> {
        let mut bytes = b"PK\x03\x04".to_vec();
        bytes.extend(self.facts());
        let extra = if self.is_large() { extra(&[self.length, self.length]) } else { Vec::new() };
        bytes.extend((extra.len() as u16).to_le_bytes());
        bytes.extend(self.name.as_bytes());
        bytes.extend(extra);
        bytes
    }

    /// Its entry in the directory.
    fn entry(&self) -> Vec<u8> {
        let mut bytes = b"PK\x01\x02".to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(self.facts());
        let mut large = if self.is_large() { vec![self.length, self.length] } else { Vec::new() };
        if self.at >= u64::from(BEYOND) {
            large.push(self.at);
        }
        let extra = if large.is_empty() { Vec::new() } else { extra(&large) };
        bytes.extend((extra.len() as u16).to_le_bytes());
        // No comment, the first disk, no attributes.
        bytes.extend([0; 10]);
        bytes.extend(short(self.at).to_le_bytes());
        bytes.extend(self.name.as_bytes());
        bytes.extend(extra);
        bytes
    }

    /// What the header and the entry both say: how it is packed, its sum, its sizes, and the length of its name.
    fn facts(&self) -> Vec<u8> {
        let flags = if self.name.is_ascii() { 0 } else { UTF8 };
        let mut bytes = Vec::new();
        // Stored, at midnight.
        [VERSION, flags, 0, 0, DATE].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend(self.sum.sum().to_le_bytes());
        let length = short(self.length);
        [length, length].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend((self.name.len() as u16).to_le_bytes());
        bytes
    }

    /// Where its description begins.
    fn start(&self) -> u64 {
        const HEADER: u64 = 30;
        const EXTRA: u64 = 20;
        self.at + HEADER + self.name.len() as u64 + if self.is_large() { EXTRA } else { 0 }
    }
}

/// A number as it stands in 32 bits.
fn short(number: u64) -> u32 {
    u32::try_from(number).unwrap_or(BEYOND)
}

/// The extra field of numbers of 64 bits.
fn extra(numbers: &[u64]) -> Vec<u8> {
    let mut bytes = [1u16.to_le_bytes(), (8 * numbers.len() as u16).to_le_bytes()].concat();
    numbers.iter().for_each(|number| bytes.extend(number.to_le_bytes()));
    bytes
}

/// An npz file whose members have their places.
pub(crate) struct NpzWriter {
    writer: Writer,
    /// Those of the tensors, and then that of the free text.
    members: Vec<Member>,
    /// Where the directory begins.
    end: u64,
}

/// Begin an npz file of `tensors`, and of `metadata` if there is any. A tensor is later named by its place in `tensors`.
///
/// # Errors
///
/// [`Error::Value`]: a name that comes twice, is longer than zip takes or is that of the free text; a dtype that numpy lacks; [`Error::Io`].
pub(crate) fn create(mut output: Output, tensors: &[Tensor], metadata: &BTreeMap<String, String>) -> Result<NpzWriter> {
    let (mut members, mut starts): (Vec<Member>, Vec<u64>) = (Vec::with_capacity(tensors.len() + 1), Vec::with_capacity(tensors.len()));
    let mut names = HashSet::from([METADATA]);
    let mut end = 0;
    for tensor in tensors {
        if !names.insert(&tensor.name) {
            return Err(Error::value("the name of a tensor", shown(&tensor.name), "an npz file can hold that name only once"));
        }
        let member = Member::new(tensor, end)?;
        starts.push(member.start() + member.description.len() as u64);
        end = member.start() + member.length;
        members.push(member);
    }
    if !metadata.is_empty() {
        let text = serde_json::to_vec(metadata).expect("texts have a JSON form");
        let mut member = Member::new(&super::metadata_tensor(text.len()), end)?;
        member.sum.update(&text);
        output.write(member.start() + member.description.len() as u64, &text)?;
        end = member.start() + member.length;
        members.push(member);
    }
    for member in &members {
        output.write(member.start(), &member.description)?;
    }
    Ok(NpzWriter { writer: Writer::new(output, starts, tensors), members, end })
}

fn sum(bytes: &[u8]) -> Crc {
    let mut sum = Crc::new();
    sum.update(bytes);
    sum
}

impl TensorWriter for NpzWriter {
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writer.write(index, offset, bytes)
    }

    fn whole(&mut self, tensors: Range<usize>, tail: &[u8]) -> Result<Hash> {
        for index in tensors.clone() {
            let mut sum = sum(&self.members[index].description);
            self.writer.read_back(index, 0, |bytes| sum.update(bytes))?;
            self.members[index].sum = sum;
        }
        self.writer.whole(tensors, tail)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        let mut at = self.end;
        for member in &self.members {
            self.writer.output().write(member.at, &member.header())?;
            let entry = member.entry();
            self.writer.output().write(at, &entry)?;
            at += entry.len() as u64;
        }
        let (count, length) = (self.members.len() as u64, at - self.end);
        let count_16 = u16::try_from(count).unwrap_or(u16::MAX);
        let mut bytes = Vec::new();
        if count_16 == u16::MAX || short(length) == BEYOND || short(self.end) == BEYOND {
            // The end of 64 bits: its own length from here on, the versions, the first disk; then where it is.
            bytes.extend(b"PK\x06\x06");
            bytes.extend(44u64.to_le_bytes());
            bytes.extend([VERSION.to_le_bytes(), VERSION.to_le_bytes()].concat());
            bytes.extend([0; 8]);
            [count, count, length, self.end].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
            bytes.extend(b"PK\x06\x07");
            bytes.extend([0; 4]);
            bytes.extend(at.to_le_bytes());
            bytes.extend(1u32.to_le_bytes());
        }
        bytes.extend(b"PK\x05\x06");
        bytes.extend([0; 4]);
        [count_16, count_16].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        [short(length), short(self.end)].iter().for_each(|number| bytes.extend(number.to_le_bytes()));
        bytes.extend([0; 2]);
        self.writer.output().write(at, &bytes)?;
        self.writer.finish()
    }
}

impl FileWriter for NpzWriter {
    fn keep(&mut self, tensors: Range<usize>) -> Result<()> {
        self.writer.keep(tensors)
    }

    fn sync(&mut self) -> Result<()> {
        self.writer.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::input::Input;
    use crate::files::npz::Npz;
    use crate::files::{Container, StoredDtype};

    #[test]
    fn sizes_and_places_beyond_32_bits_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.npz");
        let tensor = |name: &str, length| Tensor { name: name.into(), dtype: StoredDtype::U8, shape: vec![length] };
        // Around the length from which on 32 bits do not do: of the first member, and then of where the second begins.
        let edge = BEYOND as usize - 128;
        for length in [edge - 200, edge - 1, edge, edge + 1, 5 << 30] {
            let tensors = [tensor("large", length), tensor("next", 3)];
            let mut writer = create(Output::create(&path, true).unwrap(), &tensors, &BTreeMap::new()).unwrap();
            assert_eq!(writer.members[0].is_large(), length >= edge);
            // A hole in the file, which takes no room on the disk.
            writer.keep(0..1).unwrap();
            writer.write(1, 0, b"end").unwrap();
            Box::new(writer).finish().unwrap();
            let file = Npz::new(Input::open(&path).unwrap()).unwrap();
            assert_eq!(file.tensors(), tensors);
            let mut end = [0; 3];
            file.read(1, 0, &mut end).unwrap();
            assert_eq!(&end, b"end");
        }
    }
}
