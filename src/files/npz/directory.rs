//! The directory of a zip archive, which stands at its end.
//!
//! ```text
//! members     "PK\3\4" ... name, data         one after the other, in any order
//! directory   "PK\1\2" ... name, extra        46 bytes and what follows, for each member
//! [zip64      "PK\6\6" ... 56 bytes, then "PK\6\7" ... 20 bytes that say where they are]
//! end         "PK\5\6" ... 22 bytes and a comment
//! ```
//! A size or place of 32 bits that are all 1 stands in the extra field 1 of the member instead, in 64 bits.
//!
//! Source: PKWARE's APPNOTE.TXT, 4.3 and 4.5.3.

use std::collections::HashSet;

use super::{CONTAINER, corrupt};
use crate::error::Result;
use crate::files::input::Input;
use crate::files::{buffer, looks_like, shown};

/// Longest directory that is read.
const LONGEST: u64 = 256 << 20;

const END: u64 = 22;
const END_64: u64 = 56;
const LOCATOR_64: u64 = 20;
const ENTRY: usize = 46;
const LOCAL: u64 = 30;

/// Where a member lies, and how.
pub(super) struct Place {
    pub(super) name: String,
    pub(super) deflated: bool,
    pub(super) crc: u32,
    /// Bytes in the archive.
    pub(super) packed: u64,
    /// Bytes of the member itself.
    pub(super) length: u64,
    /// Where its bytes begin in the archive.
    pub(super) start: u64,
}

/// The members of an archive, in the order of the directory. No two share a byte, and all lie before the directory.
pub(super) fn read(input: &Input) -> Result<Vec<Place>> {
    let (start, length, count) = find(input)?;
    if length > LONGEST {
        return Err(corrupt(format!("the directory claims {length} bytes; the limit is {LONGEST}")));
    }
    if count > length / ENTRY as u64 {
        return Err(corrupt(format!("the directory claims {count} members of {ENTRY} bytes or more; it has {length}")));
    }
    let mut bytes = buffer(length, || "the directory".into())?;
    input.read(CONTAINER, start, &mut bytes)?;

    let mut rest = bytes.as_slice();
    let mut names = HashSet::new();
    let mut places = Vec::new();
    let mut taken = Vec::new();
    for index in 0..count {
        let (mut place, at) = entry(&mut rest).ok_or_else(|| corrupt(format!("member {index} of the directory is cut short")))??;
        if !names.insert(place.name.clone()) {
            return Err(corrupt(format!("member {} comes twice", shown(&place.name))));
        }
        place.start = data(input, at, &place, start)?;
        taken.push((at, place.start + place.packed));
        places.push(place);
    }
    if !rest.is_empty() {
        return Err(corrupt(format!("{} bytes of the directory belong to no member", rest.len())));
    }
    taken.sort_unstable();
    if let Some(pair) = taken.windows(2).find(|pair| pair[1].0 < pair[0].1) {
        return Err(corrupt(format!("two members overlap at byte {}", pair[1].0)));
    }
    Ok(places)
}

/// Where the directory begins, its bytes, and how many members it has.
fn find(input: &Input) -> Result<(u64, u64, u64)> {
    const LONGEST_COMMENT: u64 = 65_535;
    let tail = input.length().min(END + LONGEST_COMMENT);
    let mut bytes = buffer(tail, || "the end of the archive".into())?;
    input.read(CONTAINER, input.length() - tail, &mut bytes)?;
    // The comment reaches to the end of the file, so that a signature within it is not taken for the end.
    let is_end =
        |at: &usize| bytes[*at..].starts_with(b"PK\x05\x06") && u16_at(&bytes[*at..], 20) as usize == bytes.len() - at - END as usize;
    let Some(at) = (0..=bytes.len().saturating_sub(END as usize)).rev().filter(|at| bytes.len() - at >= END as usize).find(is_end) else {
        let start = input.start()?;
        let fault = if super::MAGIC.iter().any(|magic| start.starts_with(magic)) {
            "the zip archive has no end: the file is cut short"
        } else {
            looks_like(&start).unwrap_or("the file is no zip archive")
        };
        return Err(corrupt(fault.into()));
    };
    let end = &bytes[at..];
    let mut behind = input.length() - tail + at as u64;
    let (mut count, mut length, mut start) = (u64::from(u16_at(end, 10)), u64::from(u32_at(end, 12)), u64::from(u32_at(end, 16)));
    let mut one_disk = u16_at(end, 4) == 0 && u16_at(end, 6) == 0 && u16_at(end, 8) == u16_at(end, 10);

    let mut locator = [0; LOCATOR_64 as usize];
    if let Some(place) = behind.checked_sub(LOCATOR_64) {
        input.read(CONTAINER, place, &mut locator)?;
    }
    if locator.starts_with(b"PK\x06\x07") {
        let at = u64_at(&locator, 8);
        let mut end = [0; END_64 as usize];
        if at.checked_add(END_64 + LOCATOR_64) != Some(behind) {
            return Err(corrupt(format!("the end of 64 bits is said to be at byte {at}, not where the directory ends")));
        }
        input.read(CONTAINER, at, &mut end)?;
        if !end.starts_with(b"PK\x06\x06") {
            return Err(corrupt(format!("there is no end of 64 bits at byte {at}")));
        }
        (count, length, start) = (u64_at(&end, 32), u64_at(&end, 40), u64_at(&end, 48));
        one_disk = u32_at(&end, 16) == 0 && u32_at(&end, 20) == 0 && u64_at(&end, 24) == count;
        behind = at;
    }
    if !one_disk {
        return Err(corrupt("the archive goes over several disks".into()));
    }
    if start.checked_add(length) != Some(behind) {
        return Err(corrupt(format!("the directory claims {length} bytes from byte {start} on; its end is at byte {behind}")));
    }
    Ok((start, length, count))
}

/// The next entry of the directory, and where its member begins; `None` where it is cut short.
fn entry(rest: &mut &[u8]) -> Option<Result<(Place, u64)>> {
    let fixed = rest.split_off(..ENTRY)?;
    let lengths = [28, 30, 32].map(|at| u16_at(fixed, at) as usize);
    let [name, extra, _comment] = lengths.map(|length| rest.split_off(..length));
    let (name, extra) = (name?, extra?);
    _comment?;
    Some(place(fixed, name, extra))
}

fn place(fixed: &[u8], name: &[u8], mut extra: &[u8]) -> Result<(Place, u64)> {
    const ENCRYPTED: u16 = 1;
    if !fixed.starts_with(b"PK\x01\x02") {
        return Err(corrupt("the directory has something else in the place of a member".into()));
    }
    let name = String::from_utf8(name.to_vec()).map_err(|_| corrupt("the name of a member is not UTF-8".into()))?;
    let wrong = |fault: String| corrupt(format!("member {} {fault}", shown(&name)));
    if u16_at(fixed, 8) & ENCRYPTED != 0 {
        return Err(wrong("is encrypted".into()));
    }
    let deflated = match u16_at(fixed, 10) {
        0 => false,
        8 => true,
        method => {
            return Err(wrong(format!("is packed by method {method}; 0 (stored) and 8 (deflated) are read, as numpy.savez writes them")));
        }
    };
    let [mut packed, mut length, mut at] = [20, 24, 42].map(|at| u64::from(u32_at(fixed, at)));
    let mut large = None;
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let Some((field, rest)) = rest.split_at_checked(u16_at(head, 2) as usize) else {
            return Err(wrong("has an extra field that is cut short".into()));
        };
        if u16_at(head, 0) == 1 {
            large = Some(field);
        }
        extra = rest;
    }
    // In this order; each is there if the place for 32 bits says so.
    let mut field = large.unwrap_or_default();
    for value in [&mut length, &mut packed, &mut at].into_iter().filter(|value| **value == u64::from(u32::MAX)) {
        let Some(bytes) = field.split_off(..8) else {
            return Err(wrong("lacks a size of 64 bits".into()));
        };
        *value = u64_at(bytes, 0);
    }
    if !deflated && packed != length {
        return Err(wrong(format!("is stored in {packed} bytes and claims {length}")));
    }
    Ok((Place { name, deflated, crc: u32_at(fixed, 16), packed, length, start: 0 }, at))
}

/// Where the bytes of a member begin whose header is at `at`, in front of the directory.
fn data(input: &Input, at: u64, place: &Place, directory: u64) -> Result<u64> {
    let wrong = |fault: String| corrupt(format!("member {} {fault}", shown(&place.name)));
    let beyond = || wrong(format!("claims {} bytes from byte {at} on, and the directory is at byte {directory}", place.packed));
    let header = at.checked_add(LOCAL).filter(|&end| end <= directory).ok_or_else(beyond)?;
    let mut fixed = [0; LOCAL as usize];
    input.read(CONTAINER, at, &mut fixed)?;
    if !fixed.starts_with(b"PK\x03\x04") {
        return Err(wrong(format!("is not where the directory says, at byte {at}")));
    }
    let (name, extra) = (u64::from(u16_at(&fixed, 26)), u64::from(u16_at(&fixed, 28)));
    let start = header + name + extra;
    start.checked_add(place.packed).filter(|&end| end <= directory).ok_or_else(beyond)?;
    let mut own = buffer(name, || "the name of a member".into())?;
    input.read(CONTAINER, header, &mut own)?;
    if own != place.name.as_bytes() {
        return Err(wrong("has another name in front of its bytes".into()));
    }
    Ok(start)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
