//! A folder as Hugging Face lays out a model: `config.json`, and the tensors in one safetensors file or in shards with an index.
//!
//! ```text
//! config.json                          what the model is; how it is quantized stands under quantization_config
//! model.safetensors                    all tensors, or
//! model-00001-of-00005.safetensors     some of them, and
//! model.safetensors.index.json         {"metadata": {"total_size": bytes}, "weight_map": {"tensor": "file"}}
//! ```
//! The reader is stricter than those that it was compared with: a file that the index names is a plain name in the folder and is
//! there, a tensor lies in one shard only, and the index and the shards name the same tensors.
//!
//! | module | what |
//! |---|---|
//! | `family` | which tensors a quantized weight is stored as, and what the config says of it |
//! | `modules` | which weights are quantized, and which share a second level of scales |
//! | `output` | the folder that is written |

pub(super) mod family;
pub(super) mod modules;
pub(super) mod output;

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use serde_json::{Map, Value};

use super::input::Input;
use super::safetensors::Safetensors;
use super::{Container, Tensor, buffer, json, shown};
use crate::error::{Error, Result};

/// The name of the container in messages.
pub(super) const CONTAINER: &str = "huggingface";

/// What the model is.
pub(super) const CONFIG: &str = "config.json";

/// Which shard each tensor lies in.
pub(super) const INDEX: &str = "model.safetensors.index.json";

/// The file of a model that has no shards.
pub(super) const SINGLE: &str = "model.safetensors";

/// Longest text that is read as JSON: as long as a header may be.
const LONGEST_TEXT: u64 = super::safetensors::LONGEST_HEADER;

/// A folder, open for reading.
pub struct Folder {
    path: PathBuf,
    config: Map<String, Value>,
    shards: Vec<Safetensors>,
    tensors: Vec<Tensor>,
    /// The shard of each tensor, and its place in it.
    places: Vec<(usize, usize)>,
}

impl Folder {
    /// Open the folder `path`: read its config, its index and the headers of its shards.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] where a file is missing or cannot be read, [`Error::Corrupt`] where the config, the index and the shards contradict
    /// each other or a shard breaks the rules of safetensors.
    pub fn open(path: &Path) -> Result<Folder> {
        let config = read_json(&path.join(CONFIG))?;
        let index = path.join(INDEX);
        let map = if index.exists() { Some(weight_map(&index)?) } else { None };
        let names: Vec<String> = match &map {
            Some(map) => {
                let mut names: Vec<String> = map.values().cloned().collect();
                names.sort_unstable();
                names.dedup();
                names
            }
            None => vec![SINGLE.into()],
        };
        let mut shards = Vec::with_capacity(names.len());
        let mut tensors = Vec::new();
        let mut places = Vec::new();
        let mut shard_of: HashMap<String, usize> = HashMap::new();
        for (number, name) in names.iter().enumerate() {
            let shard = Input::open(&path.join(name)).and_then(Safetensors::new).map_err(|error| match error {
                Error::Corrupt { reason, .. } => corrupt(format!("{}: {reason}", shown(name))),
                error => error,
            })?;
            for (place, tensor) in shard.tensors().iter().enumerate() {
                if let Some(other) = shard_of.insert(tensor.name.clone(), number) {
                    let both = format!("{} and in {}", shown(&names[other]), shown(name));
                    return Err(corrupt(format!("tensor {} lies in {both}", shown(&tensor.name))));
                }
                if let Some(map) = &map
                    && map.get(&tensor.name) != Some(name)
                {
                    let says = map.get(&tensor.name).map_or("nowhere".into(), |other| format!("in {}", shown(other)));
                    return Err(corrupt(format!("tensor {} lies in {}; the index has it {says}", shown(&tensor.name), shown(name))));
                }
                tensors.push(tensor.clone());
                places.push((number, place));
            }
            shards.push(shard);
        }
        if let Some(name) = map.iter().flat_map(BTreeMap::keys).find(|name| !shard_of.contains_key(*name)) {
            return Err(corrupt(format!("tensor {} of the index lies in no shard", shown(name))));
        }
        Ok(Folder { path: path.to_path_buf(), config, shards, tensors, places })
    }

    /// What `config.json` says.
    pub fn config(&self) -> &Map<String, Value> {
        &self.config
    }

    /// Files that are neither tensors nor what is written anew, to be copied beside new tensors: paths within the folder.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub(super) fn side_files(&self) -> Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        side_files(&self.path, Path::new(""), &mut found)?;
        found.sort_unstable();
        Ok(found)
    }

    /// Where the folder is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Container for Folder {
    fn container(&self) -> &'static str {
        CONTAINER
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        static NONE: BTreeMap<String, String> = BTreeMap::new();
        self.shards.first().map_or(&NONE, |shard| shard.metadata())
    }

    fn folder(&self) -> Option<&Folder> {
        Some(self)
    }

    fn inputs(&self) -> Vec<&Input> {
        self.shards.iter().flat_map(Safetensors::inputs).collect()
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        let (shard, place) = self.places[index];
        self.shards[shard].read(place, offset, out)
    }
}

/// The endings of files that hold weights: those of another container would no longer be the model's.
const WEIGHTS: [&str; 11] = ["safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "onnx_data", "gguf", "ot"];

/// Files that say how the old tensors were laid out or quantized.
const WRITTEN_ANEW: [&str; 4] = [CONFIG, INDEX, family::GPTQ_CONFIG, family::MODELOPT_CONFIG];

fn side_files(root: &Path, within: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    let folder = root.join(within);
    let failed = |source| Error::Io { source, path: folder.clone() };
    for entry in fs::read_dir(&folder).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = within.join(entry.file_name());
        // Those of version control and of downloaders.
        let is_hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        // A link to a folder could lead around in circles; a link to a file is how caches hold models.
        if is_hidden && entry.path().is_dir() {
            continue;
        }
        if entry.file_type().map_err(failed)?.is_dir() {
            side_files(root, &path, found)?;
            continue;
        }
        let is_weights = WEIGHTS.iter().any(|ending| super::is_named(&path, ending)) || path.to_string_lossy().ends_with(".index.json");
        let is_new = within.as_os_str().is_empty() && WRITTEN_ANEW.iter().any(|name| path == Path::new(name));
        if !is_weights && !is_new && root.join(&path).is_file() {
            found.push(path);
        }
    }
    Ok(())
}

/// The object that a file of JSON holds.
fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let input = Input::open(path)?;
    if input.length() > LONGEST_TEXT {
        return Err(corrupt(format!("{} has {} bytes; at most {LONGEST_TEXT} are read", shown(&name), input.length())));
    }
    let mut text = buffer(input.length(), || shown(&name))?;
    input.read(CONTAINER, 0, &mut text)?;
    match json::read(&text).map_err(|fault| corrupt(format!("{} {fault}", shown(&name))))? {
        Value::Object(object) => Ok(object),
        _ => Err(corrupt(format!("{} holds no JSON object", shown(&name)))),
    }
}

/// The file of each tensor, as the index has it.
fn weight_map(path: &Path) -> Result<BTreeMap<String, String>> {
    let index = read_json(path)?;
    let map = index.get("weight_map").and_then(Value::as_object).ok_or_else(|| corrupt(format!("{INDEX} has no weight_map")))?;
    let read = |(name, file): (&String, &Value)| match file.as_str() {
        Some(file) if is_plain_name(file) => Ok((name.clone(), file.to_string())),
        _ => {
            let found = format!("{INDEX} has tensor {} in {}", shown(name), shown(&file.to_string()));
            Err(corrupt(format!("{found}; a shard is a file of the folder itself")))
        }
    };
    map.iter().map(read).collect()
}

/// Whether a name is one component of a path, so that it cannot lead out of the folder.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    matches!((components.next(), components.next()), (Some(Component::Normal(only)), None) if only == name)
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { container: CONTAINER, reason }
}
