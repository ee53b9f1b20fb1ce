//! A model in several files: `PREFIX-00001-of-00003.gguf` and its like. Each is a GGUF file of its own, with the keys `split.no` (from 0),
//! `split.count` and `split.tensors.count` (of all of them); the keys of the model stand in the first.
//!
//! Source: ggml-org/llama.cpp `src/llama-model-loader.cpp` and `tools/gguf-split`, build b11739.

use std::collections::HashSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header::{self, Header};
use super::{ALIGNMENT_KEY, Key, Value, create};
use crate::error::{Error, Result};
use crate::files::input::Input;
use crate::files::output::{FileWriter, Hash, Output, Ready, TensorWriter, Writer};
use crate::files::{Tensor, shown};

const NUMBER: &str = "split.no";
const COUNT: &str = "split.count";
const TENSORS: &str = "split.tensors.count";

/// The beginning of the name of every key that speaks of the files and not of the model.
pub(super) const KEYS: &str = "split.";

/// Most files of one model: as many as five digits count.
const MOST: u64 = 99_999;

/// The number that a key has, if it has one.
fn number(keys: &[Key], name: &str) -> Option<u64> {
    match keys.iter().find(|key| key.name == name)?.value() {
        Value::Unsigned(number) => Some(number),
        Value::Signed(number) => u64::try_from(number).ok(),
        _ => None,
    }
}

/// How many files the model has that these keys are of.
pub(super) fn count(keys: &[Key]) -> u64 {
    number(keys, COUNT).unwrap_or(1)
}

/// The name of part `index` of `count`.
fn name(prefix: &str, index: usize, count: usize) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", index + 1)
}

/// The other parts of the model whose first is `path` and has this header: each with what its own header says. The keys of the first are
/// then those of all.
pub(super) fn rest(path: &Path, first: &mut Header) -> Result<Vec<(Input, Header)>> {
    let count = count(&first.keys);
    let own = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let number = number(&first.keys, NUMBER).ok_or_else(|| corrupt(format!("key {NUMBER} is missing or no number")))?;
    if count > MOST || number >= count {
        return Err(corrupt(format!("the file says that it is part {number} (from 0) of {count}")));
    }
    let (number, count) = (number as usize, count as usize);
    let Some(prefix) = own.strip_suffix(&name("", number, count)) else {
        let expected = format!("PREFIX{}", name("", number, count));
        return Err(corrupt(format!("the file says that it is part {} of {count}; it would be called {expected}", number + 1)));
    };
    if number > 0 {
        return Err(corrupt(format!(
            "it is part {} of {count} of a split model: open the first, {}",
            number + 1,
            shown(&name(prefix, 0, count))
        )));
    }
    let mut parts = Vec::new();
    for index in 1..count {
        let name = name(prefix, index, count);
        let input = Input::open(&path.with_file_name(&name))?;
        let in_part = |error| match error {
            Error::Corrupt { reason, .. } => corrupt(format!("{}: {reason}", shown(&name))),
            error => error,
        };
        let header = header::read(&input).map_err(in_part)?;
        join(first, &header, index, count).map_err(in_part)?;
        parts.push((input, header));
    }
    let tensors = || parts.iter().map(|(_, header)| header).chain([&*first]).flat_map(|header| &header.tensors);
    let mut names = HashSet::new();
    if let Some(twice) = tensors().find(|tensor| !names.insert(tensor.name.as_str())) {
        return Err(corrupt(format!("tensor {} lies in two parts", shown(&twice.name))));
    }
    let (claimed, found) = (self::number(&first.keys, TENSORS), names.len() as u64);
    if claimed != Some(found) {
        let claimed = claimed.map_or("no number".into(), |claimed| claimed.to_string());
        return Err(corrupt(format!("key {TENSORS} is {claimed}; the {count} parts have {found} tensors")));
    }
    Ok(parts)
}

/// Check that a header is that of part `index`, and take the keys that only it has.
fn join(first: &mut Header, part: &Header, index: usize, count: usize) -> Result<()> {
    let says = |name| number(&part.keys, name);
    if (says(NUMBER), says(COUNT)) != (Some(index as u64), Some(count as u64)) {
        let shown = |number: Option<u64>| number.map_or("none".into(), |number| number.to_string());
        let found = format!("{NUMBER} is {} and {COUNT} {}", shown(says(NUMBER)), shown(says(COUNT)));
        return Err(corrupt(format!("{found}; expected {index} and {count}")));
    }
    if says(TENSORS) != number(&first.keys, TENSORS) {
        return Err(corrupt(format!("{TENSORS} is another than in the first part")));
    }
    for key in part.keys.iter().filter(|key| !key.name.starts_with(KEYS) && key.name != ALIGNMENT_KEY) {
        match first.keys.iter().find(|other| other.name == key.name) {
            None => first.keys.push(key.clone()),
            Some(other) if other == key => {}
            Some(_) => return Err(corrupt(format!("key {} has another value than in the first part", shown(&key.name)))),
        }
    }
    Ok(())
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { container: "gguf", reason }
}

/// The keys of part `index`.
fn keys_of(keys: &[Key], tensors: usize, index: usize, count: usize) -> Vec<Key> {
    let own = [Key::u16(NUMBER, index as u16), Key::u16(COUNT, count as u16), Key::i32(TENSORS, tensors as i32)];
    let kept = keys.iter().filter(|_| index == 0).cloned();
    kept.chain(own).collect()
}

/// A model in the making, part after part.
pub(crate) struct SplitWriter<'a> {
    target: PathBuf,
    overwrite: bool,
    /// Where the files are begun, if not beside the target.
    workshop: Option<&'a Path>,
    parts: &'a [Vec<Tensor>],
    keys: &'a [Key],
    /// The part and the place in it of each tensor.
    places: Vec<(usize, usize)>,
    /// The part that is being written.
    open: Option<(usize, Writer)>,
    /// Those that are whole, and have their names when all are.
    ready: Vec<Ready>,
}

impl<'a> SplitWriter<'a> {
    /// Begin the files of a model that is called `path`, which ends in `.gguf`: the tensors of each part, in their order. See [`Output::begin`].
    ///
    /// # Errors
    ///
    /// [`Error::Io`]: one of them exists and `overwrite` is false, or their folder is missing or cannot be written; [`Error::Value`] for
    /// more parts than five digits count.
    pub(crate) fn create(
        path: &Path,
        overwrite: bool,
        workshop: Option<&'a Path>,
        parts: &'a [Vec<Tensor>],
        keys: &'a [Key],
    ) -> Result<SplitWriter<'a>> {
        if parts.len() as u64 > u64::from(u16::MAX) {
            return Err(Error::value(
                "shard_size",
                format!("so small that there are {} parts", parts.len()),
                "a GGUF model has up to 65535",
            ));
        }
        let places = parts.iter().enumerate().flat_map(|(part, tensors)| (0..tensors.len()).map(move |place| (part, place))).collect();
        let writer = SplitWriter { target: path.to_path_buf(), overwrite, workshop, parts, keys, places, open: None, ready: Vec::new() };
        // Whether they can be written is known before the work begins.
        for index in 0..parts.len() {
            drop(Output::create(&writer.path(index), overwrite)?);
        }
        Ok(writer)
    }

    /// Where part `index` of `count` parts of a model called `path` is.
    pub(crate) fn path_of(path: &Path, index: usize, count: usize) -> PathBuf {
        let prefix = path.file_stem().unwrap_or_default().to_string_lossy();
        path.with_file_name(name(&prefix, index, count))
    }

    fn path(&self, index: usize) -> PathBuf {
        SplitWriter::path_of(&self.target, index, self.parts.len())
    }

    /// Open the parts up to `part`, after those before are done.
    fn open(&mut self, part: usize) -> Result<&mut Writer> {
        while self.open.as_ref().is_none_or(|(open, _)| *open < part) {
            self.finish_part()?;
            let index = self.ready.len();
            let count: usize = self.parts.iter().map(Vec::len).sum();
            let keys = keys_of(self.keys, count, index, self.parts.len());
            let output = Output::begin(&self.path(index), self.overwrite, self.workshop)?;
            self.open = Some((index, create(output, &self.parts[index], &keys)?));
        }
        Ok(&mut self.open.as_mut().expect("it was opened").1)
    }

    /// The part that `tensors` are in, and their places there.
    fn in_part(&self, tensors: Range<usize>) -> (usize, Range<usize>) {
        let (part, place) = self.places[tensors.start];
        (part, place..place + tensors.len())
    }

    fn finish_part(&mut self) -> Result<()> {
        if let Some((_, writer)) = self.open.take() {
            self.ready.push(writer.ready()?);
        }
        Ok(())
    }
}

impl FileWriter for SplitWriter<'_> {
    fn keep(&mut self, tensors: Range<usize>) -> Result<()> {
        let (part, tensors) = self.in_part(tensors);
        self.open(part)?.keep(tensors)
    }

    fn sync(&mut self) -> Result<()> {
        // Those before it were synced when they became whole.
        self.open.as_mut().map_or(Ok(()), |(_, writer)| writer.sync())
    }
}

impl TensorWriter for SplitWriter<'_> {
    fn write(&mut self, index: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let (part, place) = self.places[index];
        self.open(part)?.write(place, offset, bytes)
    }

    fn whole(&mut self, tensors: Range<usize>, tail: &[u8]) -> Result<Hash> {
        let (part, tensors) = self.in_part(tensors);
        self.open(part)?.whole(tensors, tail)
    }

    fn finish(mut self: Box<Self>) -> Result<()> {
        // Tensors without elements are never written: parts of such alone have not been opened.
        self.open(self.parts.len() - 1)?;
        self.finish_part()?;
        // Last comes the first, without which no reader takes the others for a model.
        self.ready.into_iter().rev().try_for_each(Ready::name)
    }
}
