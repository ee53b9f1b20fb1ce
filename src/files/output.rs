//! A file that appears under its name whole or not at all.
//!
//! Bytes go to a temporary file beside the target; [`Output::finish`] syncs it, renames it and syncs the folder. Dropping an
//! unfinished [`Output`] removes the temporary file, but for that of a job that can be taken up, which lies in its `workshop`. A file that is
//! replaced leaves its permissions to the new one; its owner, its other hard links and its extended attributes are not carried over. A
//! symbolic link is followed, not replaced.
//!
//! A container begins the file with its header and hands it on as a [`Writer`], which knows the place of every tensor.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};
use tempfile::TempPath;

use super::Tensor;
use crate::error::{Error, Result};

/// A file in the making.
pub struct Output {
    file: File,
    place: TempPath,
    target: PathBuf,
    overwrite: bool,
}

impl Output {
    /// Begin a file that will be `path`. Nothing appears under that name before [`Self::finish`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: `path` exists and `overwrite` is false, or its folder is missing or cannot be written.
    pub fn create(path: &Path, overwrite: bool) -> Result<Output> {
        Output::begin(path, overwrite, None)
    }

    /// Begin a file that will be `path`: a temporary one, or in a `workshop` on the same disk, where it stays, what an earlier job left of it.
    ///
    /// # Errors
    ///
    /// As for [`Self::create`].
    pub(super) fn begin(path: &Path, overwrite: bool, workshop: Option<&Path>) -> Result<Output> {
        let failed = |source| Error::Io { source, path: path.to_path_buf() };
        let target = Output::target(path, overwrite)?;
        let (file, place) = match workshop {
            Some(folder) => {
                // Whatever the target is called, this is not what a workshop has besides.
                let mut name = target.file_name().unwrap_or_default().to_os_string();
                name.push(".new");
                let place = folder.join(name);
                let file = File::options().read(true).write(true).create(true).truncate(false).open(&place).map_err(failed)?;
                let mut place = TempPath::try_from_path(place).map_err(failed)?;
                place.disable_cleanup(true);
                (file, place)
            }
            None => {
                let mut builder = tempfile::Builder::new();
                builder.prefix(".quantize-").suffix(".tmp");
                // Without this the file would keep the private mode of a temporary one; the umask still applies.
                #[cfg(unix)]
                builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
                builder.tempfile_in(folder_of(&target)).map_err(failed)?.into_parts()
            }
        };
        if let Ok(existing) = fs::metadata(&target) {
            file.set_permissions(existing.permissions()).map_err(failed)?;
        }
        Ok(Output { file, place, target, overwrite })
    }

    /// What will be replaced or made where `path` is to be: the file itself where it is a link.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: it exists and `overwrite` is false, or it is a folder.
    pub(super) fn target(path: &Path, overwrite: bool) -> Result<PathBuf> {
        let failed = |source| Error::Io { source, path: path.to_path_buf() };
        let existing = match fs::metadata(path) {
            Ok(existing) => Some(existing),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        match existing {
            None => Ok(path.to_path_buf()),
            Some(existing) if existing.is_dir() => Err(failed(io::ErrorKind::IsADirectory.into())),
            Some(_) if !overwrite => Err(failed(io::ErrorKind::AlreadyExists.into())),
            Some(_) => fs::canonicalize(path).map_err(failed),
        }
    }

    /// Write `bytes` at byte `offset` of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let done = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.write_all(bytes));
        done.map_err(|source| self.failed(source))
    }

    /// Read what was written.
    fn read(&mut self, offset: u64, out: &mut [u8]) -> Result<()> {
        let done = self.file.seek(SeekFrom::Start(offset)).and_then(|_| self.file.read_exact(out));
        done.map_err(|source| self.failed(source))
    }

    /// Make durable what was written.
    fn sync(&self) -> Result<()> {
        self.file.sync_data().map_err(|source| self.failed(source))
    }

    /// Put the file under its name, durably.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; the target is then as it was.
    pub fn finish(self) -> Result<()> {
        self.ready()?.name()
    }

    /// Sync the file, which has all its bytes.
    fn ready(self) -> Result<Ready> {
        self.file.sync_all().map_err(|source| self.failed(source))?;
        let Output { place, target, overwrite, .. } = self;
        Ok(Ready { place, target, overwrite })
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { source, path: self.target.clone() }
    }
}

/// A file that is whole and synced, but has not its name yet. Dropping it does what dropping the [`Output`] does.
pub(super) struct Ready {
    place: TempPath,
    target: PathBuf,
    overwrite: bool,
}

impl Ready {
    /// Put the file under its name, durably.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; the target is then as it was.
    pub(super) fn name(self) -> Result<()> {
        let Ready { place, target, overwrite } = self;
        let persisted = if overwrite { place.persist(&target) } else { place.persist_noclobber(&target) };
        persisted.map_err(|error| Error::Io { source: error.error, path: target.clone() })?;
        sync_folder(&target)
    }
}

/// A file whose header is written and whose tensors have their places; their bytes may come in any order.
pub struct Writer {
    output: Output,
    /// Where the bytes of each tensor begin, from the start of the file.
    starts: Vec<u64>,
    /// Bytes of each tensor.
    sizes: Vec<u64>,
    /// Those that have not been written.
    missing: Vec<u64>,
    /// What of the step at hand was written in order.
    running: Option<Running>,
}

/// The hash of tensors that follow each other, of which each byte comes after the one before it.
struct Running {
    hash: Sha256,
    /// The first of them.
    first: usize,
    /// The tensor and the byte of it that come next.
    next: (usize, u64),
}

impl Running {
    fn new(first: usize) -> Running {
        Running { hash: Sha256::new(), first, next: (first, 0) }
    }
}

impl Writer {
    /// The bytes of each of `tensors` begin where `starts` says.
    pub(super) fn new(output: Output, starts: Vec<u64>, tensors: &[Tensor]) -> Writer {
        let sizes: Vec<u64> = tensors.iter().map(Tensor::bytes).collect();
        Writer { output, starts, missing: sizes.clone(), sizes, running: None }
    }

    /// See `TensorWriter::write`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let missing = self.missing[index].checked_sub(bytes.len() as u64);
        self.missing[index] = missing.expect("no more bytes are written than the header names");
        self.output.write(self.starts[index] + offset, bytes)?;
        let running = self.running.get_or_insert_with(|| Running::new(index));
        if running.next == (index, offset) {
            running.hash.update(bytes);
            let end = offset + bytes.len() as u64;
            running.next = if end == self.sizes[index] { (index + 1, 0) } else { (index, end) };
        }
        Ok(())
    }

    /// See `TensorWriter::finish`.
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Panics
    ///
    /// Where bytes of a tensor have not been written.
    pub fn finish(self) -> Result<()> {
        self.ready()?.name()
    }

    /// Hash the bytes of `tensors`, which are those of a step, one after the other, and then `tail`. What was not written in this order is
    /// read back.
    fn hash(&mut self, tensors: Range<usize>, tail: &[u8]) -> Result<Hash> {
        // A step may have written tensors beyond these, which are not hashed.
        let is_of = |running: &Running| running.first == tensors.start && running.next <= (tensors.end, 0);
        let Running { mut hash, next, .. } = self.running.take().filter(is_of).unwrap_or_else(|| Running::new(tensors.start));
        for index in next.0..tensors.end {
            let from = if index == next.0 { next.1 } else { 0 };
            self.read_back(index, from, |bytes| hash.update(bytes))?;
        }
        hash.update(tail);
        Ok(hash.finalize().into())
    }

    /// Hear the bytes of a tensor as they were written, from byte `from` on.
    pub(super) fn read_back(&mut self, index: usize, from: u64, mut hear: impl FnMut(&[u8])) -> Result<()> {
        let (mut at, end) = (self.starts[index] + from, self.starts[index] + self.sizes[index]);
        let mut bytes = Vec::new();
        while at < end {
            bytes.resize((end - at).min(READ_BACK as u64) as usize, 0);
            self.output.read(at, &mut bytes)?;
            hear(&bytes);
            at += bytes.len() as u64;
        }
        Ok(())
    }

    /// The file, for what is not of a tensor.
    pub(super) fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Sync the file, of which all bytes have been written.
    pub(super) fn ready(self) -> Result<Ready> {
        assert!(self.missing.iter().all(|&bytes| bytes == 0), "every tensor of the header has been written");
        self.output.ready()
    }
}

impl TensorWriter for Writer {
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        Writer::write(self, index, offset, bytes)
    }

    fn whole(&mut self, tensors: Range<usize>, tail: &[u8]) -> Result<Hash> {
        self.hash(tensors, tail)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        Writer::finish(*self)
    }
}

impl FileWriter for Writer {
    fn keep(&mut self, tensors: Range<usize>) -> Result<()> {
        self.missing[tensors].fill(0);
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        self.output.sync()
    }
}

/// Bytes that are read at a time to be hashed: few, so that they are in the second cache.
const READ_BACK: usize = 256 << 10;

/// SHA-256.
pub type Hash = [u8; 32];

/// A hash as it is shown.
pub fn hex(hash: &Hash) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Where the tensors of a conversion go: one file, or the shards of a folder.
pub(crate) trait TensorWriter {
    /// Write `bytes` of tensor `index` from byte `offset` of it on; each byte once, a shard after the other.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Whether `tensors` were written by an earlier job, so that they need not be written again.
    fn has(&self, _tensors: Range<usize>) -> bool {
        false
    }

    /// The hash of `tensors` that an earlier job wrote, where it is known.
    fn hash_of(&self, _tensors: Range<usize>) -> Option<Hash> {
        None
    }

    /// Hear that all of `tensors` are written, which are in one shard, and give the hash of their bytes, one after the other, and of `tail`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn whole(&mut self, tensors: Range<usize>, tail: &[u8]) -> Result<Hash>;

    /// Hear that the work ends early, and why is told elsewhere: what can be taken up is made durable.
    fn leave(&mut self) {}

    /// Put everything under its name, durably.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn finish(self: Box<Self>) -> Result<()>;
}

/// What is made of files that can be taken up where an earlier job left them.
pub(super) trait FileWriter: TensorWriter {
    /// `tensors` are there, written by an earlier job.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn keep(&mut self, tensors: Range<usize>) -> Result<()>;

    /// Make durable what was written.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn sync(&mut self) -> Result<()>;
}

/// Write a file of this text, which appears whole and durably.
pub(super) fn write_text(path: &Path, text: &str, overwrite: bool) -> Result<()> {
    let mut output = Output::create(path, overwrite)?;
    output.write(0, text.as_bytes())?;
    output.finish()
}

/// The folder that `path` is in.
pub(super) fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

/// Make durable that `path` now has this name. Windows has no such call.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    #[cfg(unix)]
    fs::File::open(folder_of(path))
        .and_then(|folder| folder.sync_all())
        .map_err(|source| Error::Io { source, path: path.to_path_buf() })?;
    Ok(())
}
