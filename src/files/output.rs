//! A file that appears under its name whole or not at all.
//!
//! Bytes go to a temporary file beside the target; [`Output::finish`] syncs it, renames it and syncs the folder. Dropping an
//! unfinished [`Output`] removes the temporary file. A file that is replaced leaves its permissions to the new one; its owner,
//! its other hard links and its extended attributes are not carried over. A symbolic link is followed, not replaced.

use std::fs;
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

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
        self.file.as_file().sync_all().map_err(|source| self.failed(source))?;
        let Output { file, target, overwrite } = self;
        let persisted = if overwrite { file.persist(&target) } else { file.persist_noclobber(&target) };
        persisted.map_err(|error| Error::Io { source: error.error, path: target.clone() })?;
        // The rename itself is durable once the folder is. Windows has no such call.
        #[cfg(unix)]
        fs::File::open(folder_of(&target))
            .and_then(|folder| folder.sync_all())
            .map_err(|source| Error::Io { source, path: target.clone() })?;
        Ok(())
    }

    fn failed(&self, source: io::Error) -> Error {
        Error::Io { source, path: self.target.clone() }
    }
}

fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}
