//! The bytes of one member of an archive.

use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use flate2::Crc;
use flate2::read::DeflateDecoder;

use super::directory::Place;
use super::{CONTAINER, corrupt};
use crate::error::{Error, Result};
use crate::files::input::Input;
use crate::files::npy::Bytes;

/// A deflated byte stands for at most so many.
const MOST: u64 = 1032;

/// A member, open for reading.
pub(super) struct Member {
    input: Arc<Input>,
    start: u64,
    packed: u64,
    length: u64,
    crc: u32,
    /// Of a deflated one, the decoder where it was left.
    inflate: Option<Mutex<Inflate>>,
}

impl Member {
    pub(super) fn new(input: Arc<Input>, place: &Place) -> Result<Member> {
        let &Place { deflated, crc, packed, length, start, .. } = place;
        if deflated && length / MOST > packed {
            return Err(corrupt(format!("it claims {length} bytes, more than its {packed} deflated ones can hold")));
        }
        let mut member = Member { input, start, packed, length, crc, inflate: None };
        member.inflate = deflated.then(|| Mutex::new(member.begin()));
        Ok(member)
    }

    /// A decoder at the first byte.
    fn begin(&self) -> Inflate {
        let packed = Packed { input: self.input.clone(), at: self.start, end: self.start + self.packed };
        Inflate { decoder: DeflateDecoder::new(packed), position: 0, crc: Crc::new() }
    }
}

impl Bytes for Member {
    fn length(&self) -> u64 {
        self.length
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<()> {
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > self.length) {
            return Err(corrupt(format!("{} bytes from byte {offset} on are asked for; it has {}", out.len(), self.length)));
        }
        let Some(inflate) = &self.inflate else { return self.input.read(CONTAINER, self.start + offset, out) };
        let mut inflate = inflate.lock().unwrap_or_else(PoisonError::into_inner);
        if offset < inflate.position {
            *inflate = self.begin();
        }
        let mut passed = [0; 16 << 10];
        while inflate.position < offset {
            let left = (offset - inflate.position).min(passed.len() as u64) as usize;
            inflate.read(&mut passed[..left], self)?;
        }
        inflate.read(out, self)
    }
}

/// A deflated member as far as it was read.
struct Inflate {
    decoder: DeflateDecoder<Packed>,
    position: u64,
    crc: Crc,
}

impl Inflate {
    /// The next bytes; with the last of `member` its sum is checked.
    fn read(&mut self, out: &mut [u8], member: &Member) -> Result<()> {
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::UnexpectedEof => corrupt("its deflated bytes end too early".into()),
            io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData => corrupt(format!("its bytes are not deflated: {source}")),
            _ => Error::Io { source, path: member.input.path().to_path_buf() },
        };
        if out.is_empty() {
            return Ok(());
        }
        self.decoder.read_exact(out).map_err(failed)?;
        self.crc.update(out);
        self.position += out.len() as u64;
        if self.position == member.length {
            if self.decoder.read(&mut [0]).map_err(failed)? != 0 {
                return Err(corrupt(format!("it has more than the {} bytes that it claims", member.length)));
            }
            if self.crc.sum() != member.crc {
                return Err(corrupt("its bytes are not those of which it has the sum (CRC-32)".into()));
            }
        }
        Ok(())
    }
}

/// The deflated bytes.
struct Packed {
    input: Arc<Input>,
    at: u64,
    end: u64,
}

impl Read for Packed {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let length = (self.end - self.at).min(out.len() as u64) as usize;
        self.input.read(CONTAINER, self.at, &mut out[..length]).map_err(|error| match error {
            Error::Io { source, .. } => source,
            _ => io::ErrorKind::UnexpectedEof.into(),
        })?;
        self.at += length as u64;
        Ok(length)
    }
}
