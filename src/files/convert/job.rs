//! Carrying a plan out: at once, in shards, or what an earlier job has left of it.

use std::ffi::OsStr;
use std::fs;
use std::path::Path;

use super::plan::{Action, Head, Plan, Step};
use super::{Scales, choice, work};
use crate::engine::{NonFinite, Run, Sums};
use crate::error::{Error, Result};
use crate::files::checkpoint::Checkpoint;
use crate::files::folder::output::{Contents, FolderWriter};
use crate::files::gguf::split::SplitWriter;
use crate::files::gguf::{self, image};
use crate::files::input::Input;
use crate::files::journal::{Journaled, Past};
use crate::files::output::{FileWriter, Hash, Output, TensorWriter};
use crate::files::rows::BLOCK_ELEMENTS;
use crate::files::workshop::Workshop;
use crate::files::{is_named, npz, safetensors, shown};
use crate::layout::Layout;

/// How weights are quantized.
pub struct How {
    /// What becomes of elements that are not finite.
    pub nonfinite: NonFinite,
    /// How scales are chosen.
    pub scales: Scales,
    /// What of the work is done.
    pub work: Work,
    /// Elements that are in memory at a time, if the tensor can be cut between rows: not those of the layouts that pair rows far apart or
    /// have one group.
    pub block: usize,
    /// Bytes in memory to put parts together in that are stored `[in, out]`; those that do not fit are written piece by piece.
    pub room: usize,
}

impl Default for How {
    fn default() -> How {
        How { nonfinite: NonFinite::Raise, scales: Scales::Nearest, work: Work::Once, block: BLOCK_ELEMENTS, room: 0 }
    }
}

/// What of a job is in memory at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// See [`How::block`].
    pub block: usize,
    /// See [`How::room`].
    pub room: usize,
    /// The bytes that tensors then take.
    pub peak: u64,
}

/// What of its work a job does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Work {
    /// All; where it ends early nothing is left.
    #[default]
    Once,
    /// All but what an earlier job of the same fingerprint has left, shards of a folder and tensors of a file; what is done stays where it
    /// ends early.
    Rest,
    /// These shards of a folder, beside other jobs that do others.
    Shards(Vec<usize>),
    /// What a folder needs when all its shards are done: index, config, side files and its name.
    Finish,
}

/// What a step did to the values of its tensor.
#[derive(Clone, Copy, Debug, Default)]
pub struct Effect {
    /// Errors of the quantized values against the original ones; `None` where nothing was quantized.
    pub errors: Option<Sums>,
    /// Elements that were not finite and were replaced.
    pub replaced: u64,
    /// What errors were weighted with in the search for scales, if there was one: `magnitude` or `importance`.
    pub weights: Option<&'static str>,
    /// Hash of the bytes that the tensor has in the new file, part after part; `None` in shards that an earlier job wrote, or another does.
    pub sha256: Option<Hash>,
    /// How long it took.
    pub seconds: f64,
}

/// An error, and the tensor at hand when it came.
#[derive(Debug)]
pub struct Failure {
    /// The tensor, where the error is one of its values and not of the file.
    pub tensor: Option<String>,
    /// The error.
    pub error: Error,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { tensor: None, error }
    }
}

impl Plan {
    /// Carry the plan out: write the file `path`, which appears when it is whole.
    ///
    /// `advance` hears of every few MiB of `file` that are done and of the tensor at hand, and can stop the work. The answer
    /// has one effect for each step.
    ///
    /// # Errors
    ///
    /// Those of reading and writing, of the engine and of `advance`; that of the first step that refuses; [`Error::Value`] for a path
    /// that ends as a file of another container. Nothing is then left of the new file.
    pub fn run(
        &self,
        file: Checkpoint,
        path: &Path,
        overwrite: bool,
        how: &How,
        run: &Run,
        advance: &mut dyn FnMut(u64, &str) -> Result<()>,
    ) -> std::result::Result<Vec<Effect>, Failure> {
        let mut steps = file.entries().iter().zip(&self.steps);
        if let Some((entry, step)) = steps.find(|(_, step)| matches!(step.action, Action::Refuse(_))) {
            return Err(choice::refusal(entry, step));
        }
        self.check_name(path)?;
        let workshop = match self.head {
            Head::Folder(_) => None,
            _ => self.workshop(&file, path, overwrite, how)?,
        };
        let mut writer: Box<dyn TensorWriter + Send + '_> = match (&self.head, &workshop) {
            (Head::Folder(contents), _) => {
                let fingerprint = if how.work == Work::Once { String::new() } else { self.fingerprint(&file, how) };
                Box::new(FolderWriter::create(path, contents, &how.work, &fingerprint)?)
            }
            (_, Some(workshop)) => {
                let past = Past::read(workshop)?;
                let writer = self.file_writer(path, overwrite || past.is_named(), Some(workshop.path()))?;
                let steps = (0..self.steps.len()).map(|step| self.tensors_of(step));
                Box::new(Journaled::new(writer, workshop, &past, steps, || advance(0, "what an earlier job left"))?)
            }
            (_, None) => self.file_writer(path, overwrite, None)?,
        };
        let done = work::convert(self, &file, &mut *writer, how, run, advance);
        let effects = done.inspect_err(|_| writer.leave())?;
        // On some systems a file that is open cannot be replaced, and the new file may take the old one's name.
        drop(file);
        writer.finish()?;
        workshop.map_or(Ok(()), Workshop::remove)?;
        Ok(effects)
    }

    /// Where a file is made, or several, if that can be taken up.
    fn workshop(&self, file: &Checkpoint, path: &Path, overwrite: bool, how: &How) -> Result<Option<Workshop>> {
        match how.work {
            Work::Once => Ok(None),
            Work::Rest => {
                Output::target(&self.made(path), overwrite)?;
                // Beside the file itself where `path` is a link to it, on the same disk.
                let target = fs::canonicalize(path).unwrap_or(path.to_path_buf());
                Workshop::open(&target, &self.fingerprint(file, how), &how.work, |_| true).map(Some)
            }
            Work::Shards(_) | Work::Finish => {
                Err(Error::value("the new file", "one file", "a folder can be made in parts: a file is made at once"))
            }
        }
    }

    /// Begin the file, or several; see [`Output::begin`].
    fn file_writer<'a>(&'a self, path: &Path, overwrite: bool, workshop: Option<&'a Path>) -> Result<Box<dyn FileWriter + Send + 'a>> {
        let output = || Output::begin(path, overwrite, workshop);
        Ok(match &self.head {
            Head::Named(metadata) if is_named(path, "npz") => Box::new(npz::create(output()?, &self.tensors, metadata)?),
            Head::Named(metadata) => Box::new(safetensors::create(output()?, &self.tensors, metadata)?),
            Head::Gguf(keys, Some(parts)) => Box::new(SplitWriter::create(path, overwrite, workshop, parts, keys)?),
            Head::Gguf(keys, None) => Box::new(gguf::create(output()?, &self.tensors, keys)?),
            Head::Folder(_) => unreachable!("a folder is no file"),
        })
    }

    /// What a job is told by: what it reads, what it makes of it, how, and who does it. Machines that share a job may see the files under
    /// other paths and times.
    pub fn fingerprint(&self, file: &Checkpoint, how: &How) -> String {
        let is_shared = matches!(how.work, Work::Shards(_) | Work::Finish);
        let read = |file: &Checkpoint| {
            let stamp =
                |input: &&Input| (input.path().file_name().map(OsStr::to_owned), input.length(), input.changed().filter(|_| !is_shared));
            let stamps: Vec<_> = file.container().inputs().iter().map(stamp).collect();
            format!("{stamps:?}\n{:?}", file.container().tensors())
        };
        let scales = match &how.scales {
            Scales::Nearest => "nearest".to_string(),
            Scales::Searched { importance, fast, clip_limit } => {
                format!("searched {fast} {clip_limit:?} {:?}", importance.as_ref().map(read))
            }
        };
        let version = env!("CARGO_PKG_VERSION");
        let Plan { steps, tensors, head } = self;
        let head = match head {
            Head::Folder(Contents { shards, metadata, texts, side_files, source: _ }) => {
                let shards: Vec<usize> = shards.iter().map(Vec::len).collect();
                format!("{shards:?} {metadata:?} {texts:?} {side_files:?}")
            }
            head => format!("{head:?}"),
        };
        let step = |Step { name, dtype, action, layout, .. }: &Step| {
            let layout = layout.as_ref().map(|layout| {
                let Layout { spec, shape, group_size, scale_dtype, global_scale } = layout;
                format!("{} {:?} {shape:?} {group_size:?} {scale_dtype:?} {global_scale:?}", spec.name, spec.choice)
            });
            format!("{name:?} {dtype:?} {action:?} {layout:?}\n")
        };
        let steps: String = steps.iter().map(step).collect();
        let (read, nonfinite) = (read(file), how.nonfinite);
        format!("{version}\n{read}\n{steps}{tensors:?}\n{head}\n{nonfinite:?} {scales}\n")
    }

    /// The name of the new file must not promise another container.
    fn check_name(&self, path: &Path) -> Result<()> {
        let (others, is): (&[&str], _) = match self.head {
            Head::Named(_) => (&["gguf", "npy"], "one that ends in .safetensors or .npz"),
            Head::Gguf(..) => (&["safetensors", "npy", "npz"], "one that ends in .gguf"),
            Head::Folder(_) => (&["safetensors", "gguf", "npy", "npz"], "that of a folder"),
        };
        if matches!(self.head, Head::Folder(_)) && is_named(path, "gguf") {
            return Err(Error::value("the name of the new file", shown(&path.to_string_lossy()), image::LANGUAGE));
        }
        if others.iter().any(|other| is_named(path, other)) {
            let expected = format!(
                "expected {is}: safetensors, npy and npz files become safetensors or npz, models of images GGUF with arch; others stay what they are"
            );
            return Err(Error::value("the name of the new file", shown(&path.to_string_lossy()), expected));
        }
        Ok(())
    }
}
