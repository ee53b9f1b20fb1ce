//! A file that appears under its name whole or not at all.
//!
//! Bytes go to a temporary file beside the target; [`Output::finish`] syncs it, renames it and syncs the folder. Dropping an
//! unfinished [`Output`] removes the temporary file. A file that is replaced leaves its permissions to the new one; its owner,
//! its other hard links and its extended attributes are not carried over. A symbolic link is followed, not replaced.
//!
//! A container begins the file with its header and hands it on as a [`Writer`], which knows the place of every tensor.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempPath};

use super::Tensor;
use crate::error::{Error, Result};

/// A file in the making.
pub struct Output {
    file: NamedTempFile,
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
        let failed = |source| Error::Io { source, path: path.to_path_buf() };
        let existing = match fs::metadata(path) {
            Ok(existing) => Some(existing),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed(error)),
        };
        if let Some(existing) = &existing {
            if existing.is_dir() {
                return Err(failed(io::ErrorKind::IsADirectory.into()));
            }
            if !overwrite {
                return Err(failed(io::ErrorKind::AlreadyExists.into()));
            }
        }
        let target = if existing.is_some() { fs::canonicalize(path).map_err(failed)? } else { path.to_path_buf() };
        let folder = folder_of(&target);
        let mut builder = tempfile::Builder::new();
        builder.prefix(".quantize-").suffix(".tmp");
        // Without this the file would keep the private mode of a temporary one; the umask still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = builder.tempfile_in(folder).map_err(failed)?;
        if let Some(existing) = existing {
            file.as_file().set_permissions(existing.permissions()).map_err(failed)?;
        }
        Ok(Output { file, target, overwrite })
    }

    /// Write `bytes` at byte `offset` of the file.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let file = self.file.as_file_mut();
        let done = file.seek(SeekFrom::Start(offset)).and_then(|_| file.write_all(bytes));
        done.map_err(|source| self.failed(source))
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
        self.file.as_file().sync_all().map_err(|source| self.failed(source))?;
        let Output { file, target, overwrite } = self;
        Ok(Ready { file: file.into_temp_path(), target, overwrite })
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { source, path: self.target.clone() }
    }
}

/// A file that is whole and synced, but has not its name yet. Dropping it removes it.
pub(super) struct Ready {
    file: TempPath,
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
        let Ready { file, target, overwrite } = self;
        let persisted = if overwrite { file.persist(&target) } else { file.persist_noclobber(&target) };
        persisted.map_err(|error| Error::Io { source: error.error, path: target.clone() })?;
        sync_folder(&target)
    }
}

/// A file whose header is written and whose tensors have their places; their bytes may come in any order.
pub struct Writer {
    output: Output,
    /// Where the bytes of each tensor begin, from the start of the file.
    starts: Vec<u64>,
    /// Bytes of each tensor that have not been written.
    missing: Vec<u64>,
}

impl Writer {
    /// The bytes of each of `tensors` begin where `starts` says.
    pub(super) fn new(output: Output, starts: Vec<u64>, tensors: &[Tensor]) -> Writer {
        Writer { output, starts, missing: tensors.iter().map(Tensor::bytes).collect() }
    }

    /// See `TensorWriter::write`.
    ///
    /// # Errors
    ///
    /// As there.
    pub fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let missing = self.missing[index].checked_sub(bytes.len() as u64);
        self.missing[index] = missing.expect("no more bytes are written than the header names");
        self.output.write(self.starts[index] + offset, bytes)
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

    fn finish(self: Box<Self>) -> Result<()> {
        Writer::finish(*self)
    }
}

/// Where the tensors of a conversion go: one file, or the shards of a folder.
pub(crate) trait TensorWriter {
    /// Write `bytes` of tensor `index` from byte `offset` of it on; each byte once, a shard after the other.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()>;

    /// Whether tensor `index` was written by an earlier job, so that it need not be written again.
    fn has(&self, _index: usize) -> bool {
        false
    }

    /// Put everything under its name, durably.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    fn finish(self: Box<Self>) -> Result<()>;
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
