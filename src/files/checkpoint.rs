//! The tensors of a file as its user sees them: the parts of a quantized tensor are one entry under the tensor's own name.
//!
//! In a GGUF file the type of a tensor says what it is: those of 4 bits are entries of the format, which were float32 before as far as
//! the file knows. Other files say it by a scheme.
//!
//! The scheme, version 1: part `packed` of tensor `w` is stored as the tensor `w.packed`, and the metadata of the file has under
//! the key `quantize` this JSON text, which is all that is needed to find and decode the tensor:
//!
//! ```json
//! {"version": 1, "tensors": {"w": {"format": "int4", "shape": [4096, 4096], "axis": -1, "group_size": 32,
//!                                  "scale_dtype": "float16", "dtype": "bfloat16"}}}
//! ```
//! A variant of a format that is not its default has its option too (`"symmetric": false`), and `mlx:nvfp4` its `global_scale`.
//! `dtype` is what the tensor was before; `group_size` is a number, `"row"` or `"tensor"`; `axis` is the last one.

use std::collections::{BTreeMap, HashMap};

use serde_json::{Value, json};

use super::folder::Folder;
use super::folder::family::{self, Found};
use super::input::Input;
use super::rows::{self, Cut, Share};
use super::{Container, StoredDtype, Tensor, buffer, gguf, json, shown};
use crate::engine;
use crate::error::{Error, Index, Result};
use crate::formats;
use crate::layout::{Layout, Options};
use crate::spec::{Choice, GroupSize, PartDtype, ScaleDtype};

/// The key of the scheme in the metadata of a file.
pub const KEY: &str = "quantize";

/// The version of the scheme that is written and read.
const VERSION: u64 = 1;

/// A file, entry by entry.
pub struct Checkpoint {
    container: Box<dyn Container>,
    entries: Vec<Entry>,
    unread: Option<String>,
}

/// One tensor.
#[derive(Debug)]
pub struct Entry {
    /// Its name.
    pub name: String,
    /// Its dtype; of a quantized tensor the one that it had before.
    pub dtype: StoredDtype,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Where it lies in the file.
    pub content: Content,
}

/// Where a tensor lies in the file.
#[derive(Debug)]
pub enum Content {
    /// As it is, in the container's tensor of this index.
    Plain(usize),
    /// As parts.
    Quantized {
        /// How the parts are made.
        layout: Layout,
        /// The container's tensors that hold them, in the order of the format.
        parts: Vec<usize>,
    },
}

impl Checkpoint {
    /// The entries of `container`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] where its scheme cannot be read or disagrees with its tensors.
    pub fn new(container: Box<dyn Container>) -> Result<Checkpoint> {
        let corrupt = |reason| Error::Corrupt { container: container.container(), reason };
        let scheme = match container.metadata().get(KEY) {
            Some(text) => read_scheme(text).map_err(corrupt)?,
            None => HashMap::new(),
        };
        let tensors = container.tensors();
        let places: HashMap<&str, usize> = tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.as_str(), i)).collect();

        let mut entries = Vec::with_capacity(tensors.len());
        let mut is_part = vec![false; tensors.len()];
        // An entry stands where the first of its parts does, so that files are read from front to back.
        let mut order = Vec::with_capacity(tensors.len());
        for (name, (layout, dtype)) in scheme {
            if places.contains_key(name.as_str()) {
                return Err(corrupt(format!("tensor {} is stored both plainly and quantized", shown(&name))));
            }
            let parts = find_parts(&name, &layout, tensors, &places).map_err(corrupt)?;
            parts.iter().for_each(|&part| is_part[part] = true);
            order.push(parts.iter().min().copied());
            let shape = layout.shape.clone();
            entries.push(Entry { name, dtype, shape, content: Content::Quantized { layout, parts } });
        }
        let mut unread = None;
        let mut texts = Vec::new();
        if let Some(folder) = container.folder() {
            match family::recognise(folder.config(), &*container)? {
                Err(method) => unread = Some(method),
                Ok(found) => {
                    for Found { name, layout, dtype, mut parts, constants, offset } in found {
                        parts.iter().chain(&constants).for_each(|&part| is_part[part] = true);
                        order.push(parts.iter().min().copied());
                        if let Some(offset) = offset {
                            parts.push(tensors.len() + texts.len());
                            texts.push((part_name(&name, "offset"), offset));
                        }
                        let shape = layout.shape.clone();
                        entries.push(Entry { name, dtype, shape, content: Content::Quantized { layout, parts } });
                    }
                }
            }
        }
        for (index, tensor) in tensors.iter().enumerate().filter(|(index, _)| !is_part[*index]) {
            let Tensor { name, dtype, shape } = tensor.clone();
            order.push(Some(index));
            entries.push(match gguf::format(dtype) {
                None => Entry { name, dtype, shape, content: Content::Plain(index) },
                Some(format) => {
                    let settle = || Layout::new(formats::find(format)?.spec(), &shape, Options::default());
                    let layout = settle().map_err(|error| corrupt(format!("tensor {}: {error}", shown(&name))))?;
                    Entry { name, dtype: StoredDtype::F32, shape, content: Content::Quantized { layout, parts: vec![index] } }
                }
            });
        }
        let mut entries: Vec<_> = order.into_iter().zip(entries).collect();
        entries.sort_by_key(|(place, _)| *place);
        let entries = entries.into_iter().map(|(_, entry)| entry).collect();
        let container = if texts.is_empty() { container } else { Box::new(WithNumbers::new(container, texts)) };
        Ok(Checkpoint { container, entries, unread })
    }

    /// The file itself.
    pub fn container(&self) -> &dyn Container {
        &*self.container
    }

    /// How its tensors are quantized, where a folder says so and it is none of the ways that are read.
    pub fn unread(&self) -> Option<&str> {
        self.unread.as_deref()
    }

    /// The tensors.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The container's tensors that an entry lies in.
    pub fn stored(&self, entry: &Entry) -> impl Iterator<Item = (usize, &Tensor)> {
        let indices = match &entry.content {
            Content::Plain(index) => std::slice::from_ref(index),
            Content::Quantized { parts, .. } => parts,
        };
        indices.iter().map(|&index| (index, &self.container.tensors()[index]))
    }

    /// The bytes that an entry takes in the file.
    pub fn bytes(&self, entry: &Entry) -> u64 {
        self.stored(entry).map(|(_, tensor)| tensor.bytes()).sum()
    }

    /// Read all that an entry lies in, each of its tensors into the slice of its place. `advance` hears of every few MiB and
    /// can stop the reading.
    ///
    /// # Errors
    ///
    /// Those of [`Container::read`] and of `advance`, and [`Error::Corrupt`] where a part contradicts the layout.
    pub fn read(&self, entry: &Entry, outs: &mut [&mut [u8]], advance: Advance) -> Result<()> {
        for ((index, _), out) in self.stored(entry).zip(outs.iter_mut()) {
            for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                self.container.read(index, (block * BLOCK) as u64, out)?;
                advance(out.len() as u64)?;
            }
        }
        let Some(layout) = entry.layout() else { return Ok(()) };
        self.checked(entry, layout, &outs.iter().map(|out| &**out).collect::<Vec<_>>())
    }

    fn checked(&self, entry: &Entry, layout: &Layout, parts: &[&[u8]]) -> Result<()> {
        engine::check_once(layout, parts).map_err(|error| Error::Corrupt {
            container: self.container.container(),
            reason: format!("tensor {}: {error}", shown(&entry.name)),
        })
    }

    /// Whether the parts that a tensor has once agree with its layout.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`].
    pub(super) fn check_once(&self, entry: &Entry) -> Result<()> {
        let Some(layout) = entry.layout() else { return Ok(()) };
        let once = |(index, (stored, tensor)): (usize, (usize, &Tensor))| {
            if rows::share(layout, index, 0, 0).is_some() {
                return Ok(Vec::new());
            }
            let mut part = buffer(tensor.bytes(), || format!("tensor {}", shown(&tensor.name)))?;
            self.container.read(stored, 0, &mut part).map(|()| part)
        };
        let parts = self.stored(entry).enumerate().map(once).collect::<Result<Vec<_>>>()?;
        self.checked(entry, layout, &parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// Read all that an entry lies in.
    ///
    /// # Errors
    ///
    /// As for [`Self::read`], and [`Error::Memory`].
    pub fn load(&self, entry: &Entry) -> Result<Vec<Vec<u8>>> {
        let room = |(_, tensor): (usize, &Tensor)| buffer(tensor.bytes(), || format!("tensor {}", shown(&tensor.name)));
        let mut loaded = self.stored(entry).map(room).collect::<Result<Vec<_>>>()?;
        let mut outs: Vec<&mut [u8]> = loaded.iter_mut().map(Vec::as_mut_slice).collect();
        self.read(entry, &mut outs, &mut |_| Ok(()))?;
        Ok(loaded)
    }

    /// The blocks of about so many elements that a tensor can be read in: first row, number of rows.
    pub fn blocks(&self, entry: &Entry, elements: usize) -> Vec<(usize, usize)> {
        self.cut(entry).blocks(&entry.shape, elements).collect()
    }

    /// The rows between which a tensor can be cut: each block but the last has a multiple of so many.
    pub fn step(&self, entry: &Entry) -> usize {
        match self.cut(entry) {
            Cut::Rows(step) => step,
            Cut::Whole => rows::lengths(&entry.shape).1.max(1),
        }
    }

    fn cut(&self, entry: &Entry) -> Cut {
        match entry.layout() {
            Some(layout) => Cut::of(layout),
            // Where a row of elements below a byte is no whole number of bytes.
            None if !self.bytes(entry).is_multiple_of(rows::lengths(&entry.shape).1.max(1) as u64) => Cut::Whole,
            None => Cut::Rows(1),
        }
    }

    /// Read `count` rows from row `first` on, those of each part into the buffer of its place; a part that the tensor has once is read
    /// whole. The answer is how many bytes were read.
    ///
    /// # Errors
    ///
    /// Those of [`Container::read`], and [`Error::Memory`].
    pub fn read_rows(&self, entry: &Entry, first: usize, count: usize, parts: &mut Vec<Vec<u8>>) -> Result<u64> {
        parts.resize_with(self.stored(entry).count(), Vec::new);
        let mut read = 0;
        for (part, ((index, tensor), out)) in self.stored(entry).zip(parts).enumerate() {
            let share = match entry.layout() {
                Some(layout) => rows::share(layout, part, first, count),
                None => {
                    let (bytes, rows) = (tensor.bytes(), rows::lengths(&tensor.shape).1);
                    let at = |row: usize| if row == rows { bytes } else { row as u64 * (bytes / rows as u64) };
                    Some(Share::piece(at(first), (at(first + count) - at(first)) as usize))
                }
            };
            let share = share.unwrap_or(Share::piece(0, tensor.bytes() as usize));
            if out.len() != share.bytes() {
                *out = buffer(share.bytes() as u64, || format!("tensor {}", shown(&tensor.name)))?;
            }
            for (at, place) in share.places() {
                self.container.read(index, at, &mut out[place])?;
            }
            read += share.bytes() as u64;
        }
        Ok(read)
    }
}

/// A container whose tensors are followed by numbers that it has in texts.
struct WithNumbers {
    container: Box<dyn Container>,
    tensors: Vec<Tensor>,
    numbers: Vec<f32>,
}

impl WithNumbers {
    fn new(container: Box<dyn Container>, named: Vec<(String, f32)>) -> WithNumbers {
        let numbers = named.iter().map(|(_, number)| *number).collect();
        let number = |(name, _)| Tensor { name, dtype: StoredDtype::F32, shape: Vec::new() };
        let tensors = container.tensors().iter().cloned().chain(named.into_iter().map(number)).collect();
        WithNumbers { container, tensors, numbers }
    }
}

impl Container for WithNumbers {
    fn container(&self) -> &'static str {
        self.container.container()
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        self.container.metadata()
    }

    fn keys(&self) -> &[gguf::Key] {
        self.container.keys()
    }

    fn folder(&self) -> Option<&Folder> {
        self.container.folder()
    }

    fn inputs(&self) -> Vec<&Input> {
        self.container.inputs()
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        match index.checked_sub(self.tensors.len() - self.numbers.len()) {
            None => self.container.read(index, offset, out),
            Some(number) => {
                out.copy_from_slice(&self.numbers[number].to_le_bytes()[offset as usize..][..out.len()]);
                Ok(())
            }
        }
    }
}

/// Hears of bytes that are done, and can stop the work.
pub type Advance<'a> = &'a mut dyn FnMut(u64) -> Result<()>;

/// Bytes that are read or copied between two looks at the caller's wish to stop.
pub(crate) const BLOCK: usize = 4 << 20;

impl Entry {
    /// How it is quantized, if it is.
    pub fn layout(&self) -> Option<&Layout> {
        match &self.content {
            Content::Plain(_) => None,
            Content::Quantized { layout, .. } => Some(layout),
        }
    }

    /// How `count` rows of it are quantized, as a matrix of their own.
    pub fn layout_of_rows(&self, count: usize) -> Option<Layout> {
        self.layout().map(|layout| rows::layout_of(layout, count))
    }

    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

/// The name under which a part of a tensor is stored.
pub fn part_name(tensor: &str, part: &str) -> String {
    format!("{tensor}.{part}")
}

/// The container's tensors that the parts of `layout` are: names, dtypes and shapes.
pub fn part_tensors(name: &str, layout: &Layout) -> Vec<Tensor> {
    let parts = layout.spec.parts.iter().enumerate();
    parts
        .map(|(index, part)| {
            let dtype = match part.dtype {
                PartDtype::U8 => StoredDtype::U8,
                PartDtype::U32 => StoredDtype::U32,
                PartDtype::I32 => StoredDtype::I32,
                PartDtype::I64 => StoredDtype::I64,
                PartDtype::F32 => StoredDtype::F32,
                PartDtype::Scale => match layout.scale_dtype {
                    ScaleDtype::F16 => StoredDtype::F16,
                    ScaleDtype::Bf16 => StoredDtype::Bf16,
                    ScaleDtype::F32 => StoredDtype::F32,
                    ScaleDtype::E8m0 | ScaleDtype::E4m3 | ScaleDtype::Ue4m3 => StoredDtype::U8,
                },
            };
            Tensor { name: part_name(name, part.name), dtype, shape: layout.part_shape(index) }
        })
        .collect()
}

/// The text of the scheme for these tensors: name, layout, dtype before.
pub fn write_scheme<'a>(tensors: impl Iterator<Item = (&'a str, &'a Layout, StoredDtype)>) -> String {
    let describe = |(name, layout, dtype): (&str, &Layout, StoredDtype)| {
        let group_size = match layout.group_size {
            GroupSize::Elements(elements) => json!(elements),
            GroupSize::Row => json!("row"),
            GroupSize::Tensor => json!("tensor"),
        };
        let mut facts = json!({
            "format": layout.spec.name,
            "shape": layout.shape,
            "axis": -1,
            "group_size": group_size,
            "scale_dtype": layout.scale_dtype.name(),
            "dtype": dtype.name(),
        });
        let is_default = formats::find(layout.spec.name).is_ok_and(|format| std::ptr::eq(format.spec(), layout.spec));
        if let Some(choice) = layout.spec.choice.filter(|_| !is_default)
            && let Some(on) = choice.is_on()
        {
            facts[choice.option()] = json!(on);
        }
        if let Some(global_scale) = layout.global_scale {
            facts["global_scale"] = json!(global_scale);
        }
        (name.to_string(), facts)
    };
    let tensors: serde_json::Map<String, Value> = tensors.map(describe).collect();
    json!({ "version": VERSION, "tensors": tensors }).to_string()
}

/// The layout and the dtype before of every tensor of a scheme, or what is wrong with it.
fn read_scheme(text: &str) -> std::result::Result<HashMap<String, (Layout, StoredDtype)>, String> {
    let scheme = json::read(text.as_bytes()).map_err(|fault| format!("the metadata '{KEY}' {fault}"))?;
    if scheme["version"] != VERSION {
        return Err(format!("the metadata '{KEY}' has version {}; this release reads {VERSION}", scheme["version"]));
    }
    let tensors = scheme["tensors"].as_object().ok_or_else(|| format!("the metadata '{KEY}' lacks its tensors"))?;
    let read = |(name, facts): (&String, &Value)| match read_layout(facts) {
        Ok(found) => Ok((name.clone(), found)),
        Err(reason) => Err(format!("the metadata '{KEY}' of tensor {}: {reason}", shown(name))),
    };
    tensors.iter().map(read).collect()
}

fn read_layout(facts: &Value) -> std::result::Result<(Layout, StoredDtype), String> {
    let text = |key: &str| facts[key].as_str().ok_or_else(|| format!("{key} is missing or no text"));
    let default = formats::find(text("format")?).map_err(|error| error.to_string())?.spec();
    let given = default.choice.map(Choice::option).and_then(|option| Choice::switch(option, facts[option].as_bool()?));
    let spec = formats::choose(default.name, given).map_err(|error| error.to_string())?.spec();
    // An f32 is written as the f64 that it is.
    let global_scale = facts["global_scale"].as_f64().map(|number| number as f32);
    let lengths = facts["shape"].as_array().ok_or("shape is missing or no list")?;
    let length = |n: &Value| n.as_u64().and_then(|n| usize::try_from(n).ok());
    let shape: Vec<usize> = lengths.iter().map(length).collect::<Option<_>>().ok_or("shape holds something that is no length")?;
    if facts["axis"] != -1 {
        return Err(format!("axis is {}; this release reads -1", facts["axis"]));
    }
    let group_size = match &facts["group_size"] {
        Value::String(name) if name == "row" => GroupSize::Row,
        Value::String(name) if name == "tensor" => GroupSize::Tensor,
        number => GroupSize::Elements(length(number).ok_or("group_size is missing or neither a number, \"row\" nor \"tensor\"")?),
    };
    let scale_dtype = text("scale_dtype")?;
    let scale_dtype = spec.scale_dtypes.iter().copied().find(|dtype| dtype.name() == scale_dtype);
    let scale_dtype = scale_dtype.ok_or_else(|| format!("scale_dtype is none of those that {} has", spec.name))?;
    // Where a format has one scale dtype it is no option.
    let scale_dtype = (spec.scale_dtypes.len() > 1).then_some(scale_dtype);
    let options = Options { group_size: Some(group_size), scale_dtype, choice: None, global_scale };
    let layout = Layout::new(spec, &shape, options).map_err(|error| error.to_string())?;
    let dtype = StoredDtype::from_name(text("dtype")?).filter(|dtype| dtype.float().is_some());
    let dtype = dtype.ok_or("dtype is none of float16, bfloat16, float32 and float64")?;
    Ok((layout, dtype))
}

/// Where the parts of a tensor are, each with the dtype and shape that the layout gives it.
fn find_parts(name: &str, layout: &Layout, tensors: &[Tensor], places: &HashMap<&str, usize>) -> std::result::Result<Vec<usize>, String> {
    let find = |expected: Tensor| {
        let missing = || format!("tensor {} is missing: the metadata '{KEY}' of {} needs it", shown(&expected.name), shown(name));
        let &place = places.get(expected.name.as_str()).ok_or_else(missing)?;
        if tensors[place] != expected {
            let dtype = |tensor: &Tensor| tensor.dtype.safetensors_name().expect("only safetensors files have a scheme");
            let describe = |tensor: &Tensor| format!("{} of shape {}", dtype(tensor), Index(&tensor.shape));
            let (found, wanted) = (describe(&tensors[place]), describe(&expected));
            return Err(format!("tensor {} is {found}; the metadata '{KEY}' needs {wanted}", shown(&expected.name)));
        }
        Ok(place)
    };
    part_tensors(name, layout).into_iter().map(find).collect()
}
