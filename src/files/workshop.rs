//! Where a job works that can be taken up if it ends early: the folder `.NAME.partial` beside the target.
//!
//! It holds the job's fingerprint: what another job left there is not taken up. A lock keeps a second process out, but for those that
//! share the work.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::convert::Work;
use super::output::{folder_of, sync_folder, write_text};
use crate::error::{Error, Result};

/// What job the folder is of.
const FINGERPRINT: &str = "fingerprint";

/// The file that is locked by the process which works here.
const LOCK: &str = "lock";

/// The folder of a job; the lock is held as long as it is open.
pub(super) struct Workshop {
    path: PathBuf,
    #[expect(dead_code, reason = "it is held, not used")]
    lock: File,
}

impl Workshop {
    /// The workshop of a job with this fingerprint that will be `target`: with what it has done before, which are the files that `stay`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: the folder of `target` is missing or cannot be written, or another process is at work; [`Error::Value`]: what was begun is
    /// of another job, of which others have a share.
    pub(super) fn open(target: &Path, fingerprint: &str, work: &Work, stay: impl Fn(&Path) -> bool) -> Result<Workshop> {
        let mut name = OsString::from(".");
        name.push(target.file_name().unwrap_or_default());
        name.push(".partial");
        let folder = folder_of(target).join(name);
        let failed = |source| Error::Io { source, path: folder.clone() };
        match fs::create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        let lock = File::options().create(true).truncate(false).write(true).open(folder.join(LOCK)).map_err(failed)?;
        let is_shared = matches!(work, Work::Shards(_));
        let locked = if is_shared { lock.try_lock_shared() } else { lock.try_lock() };
        locked.map_err(|error| match error {
            fs::TryLockError::WouldBlock => failed(io::Error::new(io::ErrorKind::ResourceBusy, "another process is at work here")),
            fs::TryLockError::Error(error) => failed(error),
        })?;
        if is_shared && !folder.join(FINGERPRINT).exists() {
            // Another job may be the first.
            match write_text(&folder.join(FINGERPRINT), fingerprint, false) {
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
                done => done?,
            }
        }
        let is_same = fs::read(folder.join(FINGERPRINT)).ok().as_deref() == Some(fingerprint.as_bytes());
        if !is_same && *work != Work::Rest {
            let expected = "that of the plan: remove the folder, or take the plan that it was begun with";
            return Err(Error::value(format!("the job of {}", folder.display()), "another one", expected));
        }
        for entry in fs::read_dir(&folder).map_err(failed)?.take_while(|_| !is_shared) {
            let path = entry.map_err(failed)?.path();
            let is_named = |name: &str| path.file_name().is_some_and(|found| found == name);
            let stays = is_same && (is_named(FINGERPRINT) || stay(&path));
            if path.is_dir() {
                fs::remove_dir_all(path).map_err(failed)?;
            } else if !stays && !is_named(LOCK) {
                fs::remove_file(path).map_err(failed)?;
            }
        }
        if !is_same {
            write_text(&folder.join(FINGERPRINT), fingerprint, true)?;
        }
        sync_folder(&folder)?;
        Ok(Workshop { path: folder, lock })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Give the folder itself the name `target`: all that is in it is what was to be made.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub(super) fn name(self, target: &Path) -> Result<()> {
        let failed = |source| Error::Io { source, path: target.to_path_buf() };
        fs::rename(&self.path, target).map_err(failed)?;
        // Not before: without the lock a second process would begin in this folder, without the fingerprint none could end it.
        [FINGERPRINT, LOCK].iter().try_for_each(|name| fs::remove_file(target.join(name))).map_err(failed)?;
        sync_folder(target)
    }

    /// Remove the folder: what was made in it has its name elsewhere.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub(super) fn remove(self) -> Result<()> {
        fs::remove_dir_all(&self.path).map_err(|source| Error::Io { source, path: self.path.clone() })
    }
}
