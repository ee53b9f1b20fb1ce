//! A folder that appears under its name whole or not at all.
//!
//! Everything is written to a temporary folder beside the target, which is renamed when the last file is in it. A folder that exists
//! is never written into, unless it is empty: shards of two models in one folder are one broken model.
//!
//! A job that can be resumed writes to a [`Workshop`], which stays when the job ends early; what has the name of a shard there is whole.
//! Processes that share the work write shards of their own there, and two that write the same one write the same bytes.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{CONFIG, INDEX, SINGLE};
use crate::error::{Error, Result};
use crate::files::convert::Work;
use crate::files::output::{Hash, Output, TensorWriter, Writer, folder_of, sync_folder, write_text};
use crate::files::workshop::Workshop;
use crate::files::{Tensor, is_named, safetensors, shown};

/// What is in a new folder besides the tensors' bytes.
#[derive(Debug)]
pub(crate) struct Contents {
    /// The tensors of each shard, in the order in which they are written.
    pub(crate) shards: Vec<Vec<Tensor>>,
    /// Free text in the header of each shard.
    pub(crate) metadata: BTreeMap<String, String>,
    /// `config.json` and others, by name.
    pub(crate) texts: Vec<(&'static str, Value)>,
    /// The folder that side files are copied from, and their paths in it.
    pub(crate) source: PathBuf,
    /// See [`Contents::source`].
    pub(crate) side_files: Vec<PathBuf>,
}

impl Contents {
    /// The file of a shard.
    pub(crate) fn shard_name(&self, shard: usize) -> String {
        match self.shards.len() {
            1 => SINGLE.into(),
            count => format!("model-{:05}-of-{count:05}.safetensors", shard + 1),
        }
    }
}

/// The shard of each step: a new one where the last would grow beyond `limit` bytes. All tensors of a step are in one.
pub(crate) fn shards(steps: impl Iterator<Item = u64>, limit: u64) -> Vec<usize> {
    let (mut shard, mut filled) = (0, 0u64);
    let mut place = |bytes: u64| {
        if filled > 0 && filled.saturating_add(bytes) > limit {
            shard += 1;
            filled = 0;
        }
        filled = filled.saturating_add(bytes);
        shard
    };
    steps.map(&mut place).collect()
}

/// Where a folder is made.
enum Place {
    /// Gone with the job.
    Temporary(TempDir),
    /// Kept for another one.
    Kept(Workshop),
}

impl Place {
    fn path(&self) -> &Path {
        match self {
            Place::Temporary(folder) => folder.path(),
            Place::Kept(workshop) => workshop.path(),
        }
    }

    /// Give the folder its name.
    fn finish(self, target: &Path) -> Result<()> {
        match self {
            Place::Kept(workshop) => return workshop.name(target),
            Place::Temporary(folder) => {
                fs::rename(folder.path(), target).map_err(|source| Error::Io { source, path: target.to_path_buf() })?;
                // It is no longer there to be removed.
                drop(folder.keep());
            }
        }
        sync_folder(target)
    }
}

/// A folder in the making; its tensors are written in their order, shard after shard.
pub(crate) struct FolderWriter<'a> {
    folder: Place,
    target: PathBuf,
    contents: &'a Contents,
    work: &'a Work,
    /// The shard and the place in it of each tensor.
    places: Vec<(usize, usize)>,
    /// The shard that is being written.
    open: Option<(usize, Writer)>,
}

impl<'a> FolderWriter<'a> {
    /// Begin a folder that will be `path`, or take it up where other jobs with the same fingerprint ended.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: `path` exists and is no empty folder, its parent is missing or cannot be written, or another process is at work;
    /// [`Error::Value`]: it lies in the folder that is read, what was begun is of another job, or a shard is missing that is not this one's
    /// to do.
    pub(crate) fn create(path: &Path, contents: &'a Contents, work: &'a Work, fingerprint: &str) -> Result<FolderWriter<'a>> {
        let failed = |source| Error::Io { source, path: path.to_path_buf() };
        match fs::read_dir(path).map(|mut entries| entries.next().is_some()) {
            Ok(true) => return Err(failed(io::ErrorKind::AlreadyExists.into())),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        let (source, parent) = (fs::canonicalize(&contents.source).map_err(failed)?, fs::canonicalize(folder_of(path)).map_err(failed)?);
        if parent.starts_with(source) {
            return Err(Error::value(
                "the target",
                shown(&path.to_string_lossy()),
                "it lies in the folder that is read: choose another place",
            ));
        }
        let mut builder = tempfile::Builder::new();
        builder.prefix(".quantize-").suffix(".tmp");
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o777));
        let folder = match work {
            Work::Once => Place::Temporary(builder.tempdir_in(folder_of(path)).map_err(failed)?),
            // A shard has its name once it is whole; what else an earlier job left, such as a file that it had begun, is made anew.
            _ => Place::Kept(Workshop::open(path, fingerprint, work, |path| is_named(path, "safetensors"))?),
        };
        let places = contents.shards.iter().enumerate().flat_map(|(shard, tensors)| (0..tensors.len()).map(move |place| (shard, place)));
        let writer = FolderWriter { folder, target: path.to_path_buf(), contents, work, places: places.collect(), open: None };
        let missing = (0..contents.shards.len()).find(|&shard| *work == Work::Finish && !writer.is_done(shard));
        match missing {
            Some(shard) => {
                Err(Error::value("the plan", format!("not done: {} is missing", contents.shard_name(shard)), "run its part first"))
            }
            None => Ok(writer),
        }
    }

    fn shard_path(&self, shard: usize) -> PathBuf {
        self.folder.path().join(self.contents.shard_name(shard))
    }

    fn is_done(&self, shard: usize) -> bool {
        self.shard_path(shard).exists()
    }

    fn is_mine(&self, shard: usize) -> bool {
        match self.work {
            Work::Once | Work::Rest => true,
            Work::Shards(shards) => shards.contains(&shard),
            Work::Finish => false,
        }
    }

    fn finish_shard(&mut self) -> Result<()> {
        self.open.take().map_or(Ok(()), |(_, writer)| writer.finish())
    }

    /// Open a shard, after the one before is done.
    fn open(&mut self, shard: usize) -> Result<&mut Writer> {
        if self.open.as_ref().is_none_or(|(open, _)| *open != shard) {
            self.finish_shard()?;
            // Another job may do the same at the same time.
            let output = Output::create(&self.shard_path(shard), true)?;
            let writer = safetensors::create(output, &self.contents.shards[shard], &self.contents.metadata)?;
            self.open = Some((shard, writer));
        }
        Ok(&mut self.open.as_mut().expect("it was opened").1)
    }

    fn text(&self, name: &str, value: &Value) -> Result<()> {
        let text = serde_json::to_string_pretty(value).expect("a value of JSON has a text") + "\n";
        // A job that ended here may have written it.
        write_text(&self.folder.path().join(name), &text, true)
    }

    /// Which shard each tensor lies in, where there are several.
    fn index(&self) -> Option<Value> {
        let shards = &self.contents.shards;
        let total: u64 = shards.iter().flatten().map(Tensor::bytes).sum();
        let map: BTreeMap<&str, String> = shards
            .iter()
            .enumerate()
            .flat_map(|(shard, tensors)| tensors.iter().map(move |tensor| (tensor.name.as_str(), self.contents.shard_name(shard))))
            .collect();
        (shards.len() > 1).then(|| json!({"metadata": {"total_size": total}, "weight_map": map}))
    }
}

impl TensorWriter for FolderWriter<'_> {
    fn has(&self, tensors: Range<usize>) -> bool {
        let (shard, _) = self.places[tensors.start];
        let is_open = self.open.as_ref().is_some_and(|(open, _)| *open == shard);
        !self.is_mine(shard) || !is_open && self.is_done(shard)
    }

    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (shard, place) = self.places[index];
        self.open(shard)?.write(place, offset, bytes)
    }

    fn whole(&mut self, tensors: Range<usize>, tail: &[u8]) -> Result<Hash> {
        let (shard, place) = self.places[tensors.start];
        self.open(shard)?.whole(place..place + tensors.len(), tail)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        // Tensors without elements are never written: a shard of such alone has not been opened.
        for shard in 0..self.contents.shards.len() {
            if self.is_mine(shard) && !self.is_done(shard) {
                self.open(shard)?;
            }
        }
        self.finish_shard()?;
        if matches!(self.work, Work::Shards(_)) {
            return Ok(());
        }
        for path in &self.contents.side_files {
            let (from, to) = (self.contents.source.join(path), self.folder.path().join(path));
            let failed = |source| Error::Io { source, path: from.clone() };
            fs::create_dir_all(folder_of(&to)).map_err(failed)?;
            fs::copy(&from, &to).and_then(|_| fs::File::open(&to)?.sync_all()).map_err(failed)?;
        }
        // Last come the texts without which no reader takes the folder for a model.
        if let Some(index) = self.index() {
            self.text(INDEX, &index)?;
        }
        let (config, others): (Vec<_>, Vec<_>) = self.contents.texts.iter().partition(|(name, _)| *name == CONFIG);
        for (name, value) in others.into_iter().chain(config) {
            self.text(name, value)?;
        }
        let FolderWriter { folder, target, .. } = *self;
        folder.finish(&target)
    }
}

#[cfg(test)]
mod tests {
    use super::shards;

    #[test]
    fn a_shard_ends_before_it_grows_beyond_the_limit() {
        assert_eq!(shards([4, 4, 2, 9, 20, 1].into_iter(), 10), [0, 0, 0, 1, 2, 3]);
        assert_eq!(shards([4, 4].into_iter(), 0), [0, 1]);
        assert_eq!(shards([].into_iter(), 10), [0; 0]);
    }
}
