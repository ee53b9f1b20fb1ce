//! A file, or several, that can be taken up where an earlier job left them: what is made lies in a [`Workshop`], with a journal of it.
//!
//! The journal has a line for each step of the plan that is done, in their order: the hash of the bytes of its tensors. A line is written
//! when the bytes are durable. Whoever takes the job up hashes what is there: the steps up to the first that differs are kept, and all after
//! it are done anew. A last line is written before the files get their names.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::output::{FileWriter, Hash, TensorWriter, hex, sync_folder};
use super::workshop::Workshop;
use crate::error::{Error, Result};

/// The file in the workshop.
const JOURNAL: &str = "journal";

/// The line which says that the files are about to get their names.
const NAMED: &str = "named";

/// Bytes of the line of a step.
const LINE: usize = 2 * size_of::<Hash>() + 1;

/// How many times longer than the last sync took the next one waits, so that most of the time is work.
const PATIENCE: u32 = 10;

/// What earlier jobs wrote into the journal of a workshop.
pub(super) struct Past {
    text: String,
}

impl Past {
    pub(super) fn read(workshop: &Workshop) -> Result<Past> {
        let path = workshop.path().join(JOURNAL);
        match fs::read(&path) {
            Ok(text) => Ok(Past { text: String::from_utf8_lossy(&text).into_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Past { text: String::new() }),
            Err(source) => Err(Error::Io { source, path }),
        }
    }

    /// Whether files may have their names that the job has made.
    pub(super) fn is_named(&self) -> bool {
        self.text.lines().any(|line| line == NAMED)
    }
}

/// A writer whose files can be taken up.
pub(super) struct Journaled<'w> {
    writer: Box<dyn FileWriter + Send + 'w>,
    journal: File,
    path: PathBuf,
    /// What an earlier job wrote: the tensors of its steps, and their hashes.
    kept: Vec<(Range<usize>, Hash)>,
    /// Lines of steps whose bytes may not be durable yet.
    pending: String,
    /// When the last sync ended, and how long it took.
    synced: (Instant, Duration),
}

impl<'w> Journaled<'w> {
    /// Take up what `past` says of the `steps`, which are the tensors of each. `look` is asked before each whether to go on.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; those of `look`.
    pub(super) fn new(
        mut writer: Box<dyn FileWriter + Send + 'w>,
        workshop: &Workshop,
        past: &Past,
        steps: impl Iterator<Item = Range<usize>>,
        mut look: impl FnMut() -> Result<()>,
    ) -> Result<Journaled<'w>> {
        let path = workshop.path().join(JOURNAL);
        let failed = |source| Error::Io { source, path: path.clone() };
        let mut kept = Vec::new();
        for (line, tensors) in past.text.split_inclusive('\n').zip(steps) {
            look()?;
            match writer.whole(tensors.clone(), &[]) {
                Ok(hash) if line_of(&hash) == line => {
                    writer.keep(tensors.clone())?;
                    kept.push((tensors, hash));
                }
                Ok(_) => break,
                // The file ends before them.
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::UnexpectedEof => break,
                Err(error) => return Err(error),
            }
        }
        let mut journal = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        let end = (kept.len() * LINE) as u64;
        journal.set_len(end).and_then(|()| journal.seek(SeekFrom::Start(end))).map_err(failed)?;
        sync_folder(&path)?;
        Ok(Journaled { writer, journal, path, kept, pending: String::new(), synced: (Instant::now(), Duration::ZERO) })
    }

    /// Make the bytes of all steps durable, then say so.
    fn commit(&mut self) -> Result<()> {
        let begun = Instant::now();
        self.writer.sync()?;
        let written = self.journal.write_all(self.pending.as_bytes()).and_then(|()| self.journal.sync_data());
        written.map_err(|source| Error::Io { source, path: self.path.clone() })?;
        self.pending.clear();
        self.synced = (Instant::now(), begun.elapsed());
        Ok(())
    }
}

impl TensorWriter for Journaled<'_> {
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        self.writer.write(index, offset, bytes)
    }

    fn has(&self, tensors: Range<usize>) -> bool {
        self.kept.last().is_some_and(|(last, _)| tensors.end <= last.end)
    }

    fn hash_of(&self, tensors: Range<usize>) -> Option<Hash> {
        self.kept.iter().find(|(kept, _)| *kept == tensors).map(|(_, hash)| *hash)
    }

    fn whole(&mut self, tensors: Range<usize>, tail: &[u8]) -> Result<Hash> {
        let hash = self.writer.whole(tensors, tail)?;
        self.pending += &line_of(&hash);
        let (ended, took) = self.synced;
        if ended.elapsed() >= PATIENCE * took {
            self.commit()?;
        }
        Ok(hash)
    }

    fn leave(&mut self) {
        // Where it fails, less is taken up.
        let _ = self.commit();
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        self.pending += &format!("{NAMED}\n");
        self.commit()?;
        self.writer.finish()
    }
}

fn line_of(hash: &Hash) -> String {
    hex(hash) + "\n"
}
