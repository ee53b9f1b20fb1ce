//! A file to read: plain reads, every one checked against the length first.

use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use crate::error::{Error, Result};

/// What can be read at any position.
trait Stream: Read + Seek + Send {}
impl<T: Read + Seek + Send> Stream for T {}

/// An open file, or bytes that stand for one, of a known length.
pub struct Input {
    // Several Python threads may read from one open file; seek and read belong together.
    stream: Mutex<Box<dyn Stream>>,
    path: PathBuf,
    length: u64,
    changed: Option<SystemTime>,
}

impl Input {
    /// Open a regular file. Anything else (a directory, a pipe that would block) is refused before it is opened.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn open(path: &Path) -> Result<Input> {
        let failed = |source| Error::Io { source, path: path.to_path_buf() };
        let kind = std::fs::metadata(path).map_err(failed)?;
        if kind.is_dir() {
            return Err(failed(io::ErrorKind::IsADirectory.into()));
        }
        if !kind.is_file() {
            return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
        }
        let file = File::open(path).map_err(failed)?;
        let facts = file.metadata().map_err(failed)?;
        let (length, changed) = (facts.len(), facts.modified().ok());
        Ok(Input { stream: Mutex::new(Box::new(file)), path: path.to_path_buf(), length, changed })
    }

    /// The bytes of a file that is in memory.
    pub fn from_bytes(bytes: Vec<u8>) -> Input {
        let length = bytes.len() as u64;
        Input { stream: Mutex::new(Box::new(Cursor::new(bytes))), path: PathBuf::new(), length, changed: None }
    }

    /// Where the file is; empty for bytes in memory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How many bytes the file had when it was opened.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// When it was changed last before it was opened, where the system tells.
    pub(super) fn changed(&self) -> Option<SystemTime> {
        self.changed
    }

    /// The first bytes, at most 64: enough to tell what the file is.
    pub fn start(&self) -> Result<Vec<u8>> {
        let mut start = vec![0; self.length.min(64) as usize];
        self.read("file", 0, &mut start)?;
        Ok(start)
    }

    /// Read `out.len()` bytes from `offset` on. `container` names what is read in an error.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Corrupt`] where the bytes are not there.
    pub fn read(&self, container: &'static str, offset: u64, out: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(out.len() as u64);
        if end.is_none_or(|end| end > self.length) {
            let reason = format!("{} bytes from byte {offset} on are asked for; the file has {}", out.len(), self.length);
            return Err(Error::Corrupt { container, reason });
        }
        // A panic while the lock was held cannot have left a stream in a state that the seek does not repair.
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let done = stream.seek(SeekFrom::Start(offset)).and_then(|_| stream.read_exact(out));
        done.map_err(|source| match source.kind() {
            io::ErrorKind::UnexpectedEof => Error::Corrupt { container, reason: "the file became shorter while it was read".into() },
            _ => Error::Io { source, path: self.path.clone() },
        })
    }
}
