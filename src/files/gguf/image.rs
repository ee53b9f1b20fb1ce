//! Models of images in GGUF, as ComfyUI-GGUF and stable-diffusion.cpp read them: the tensors keep their names, and one key says what the
//! model is. What llama.cpp runs needs keys and a vocabulary that no such file has.
//!
//! Source: city96/ComfyUI-GGUF `loader.py`, `tools/convert.py`.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::llama::{FILE_TYPE, QUANTIZATION_VERSION};
use super::{Key, Value};
use crate::error::{Error, Result};
use crate::files::checkpoint::{Checkpoint, Entry};
use crate::files::{json, shown};

/// The key that says what a model is.
const ARCHITECTURE: &str = "general.architecture";

/// What the readers know.
const ARCHITECTURES: [&str; 12] =
    ["flux", "sd1", "sdxl", "sd3", "aura", "hidream", "cosmos", "ltxv", "hyvid", "wan", "lumina2", "qwen_image"];

/// Parts of names of tensors whose precision counts.
const PRECISE: [&str; 5] = [".modulation", "scale_shift_table", ".ff_i.gate.weight", "img_emb.emb_pos", "pos_embedder"];

/// Most elements of a tensor that is too small to be worth less than float32.
const SMALL: u64 = 1024;

/// A GGUF file that is made of another file.
#[derive(Clone, Debug)]
pub struct Image {
    architecture: String,
    /// The new names of tensors that do not keep theirs.
    names: BTreeMap<String, String>,
}

impl Image {
    /// A model of this architecture, whose tensors keep their names but for those in `names`.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for an architecture that is none of those of images, unless names are given: whoever knows the names of another kind
    /// knows what it needs. And for two tensors that would get one name.
    pub fn new(architecture: &str, names: BTreeMap<String, String>) -> Result<Image> {
        if names.is_empty() && !ARCHITECTURES.contains(&architecture) {
            let known = format!("tensors keep their names in the models of images: {}", ARCHITECTURES.join(", "));
            return Err(Error::value("arch", shown(architecture), format!("{known}; {LANGUAGE}")));
        }
        let mut olds = HashMap::new();
        for (old, new) in &names {
            if let Some(other) = olds.insert(new, old) {
                let both = format!("{} and {}", shown(other), shown(old));
                return Err(Error::value("names", format!("{} for both {both}", shown(new)), "two tensors would have that name"));
            }
        }
        Ok(Image { architecture: architecture.into(), names })
    }

    /// The name of a tensor in the new file.
    pub(crate) fn name<'a>(&'a self, name: &'a str) -> &'a str {
        self.names.get(name).map_or(name, String::as_str)
    }

    /// Every name of the map is that of a tensor.
    pub(crate) fn check(&self, file: &Checkpoint) -> Result<()> {
        let found: HashSet<&str> = file.entries().iter().map(|entry| entry.name.as_str()).collect();
        match self.names.keys().find(|name| !found.contains(name.as_str())) {
            Some(name) => Err(Error::value("names", shown(name), "no tensor of the file has that name")),
            None => Ok(()),
        }
    }

    /// The keys of the file; with the number of what its weights became, if they became something.
    pub(crate) fn keys(&self, file_type: Option<u32>) -> Vec<Key> {
        let mut keys = vec![Key::text(ARCHITECTURE, &self.architecture)];
        if let Some(file_type) = file_type {
            keys.extend([Key::u32(QUANTIZATION_VERSION, 2), Key::u32(FILE_TYPE, file_type)]);
        }
        keys
    }
}

/// The names of a map, the old one to the new one, as a JSON object has them; or what is wrong with it, in words that follow its name.
pub fn names(text: &[u8]) -> std::result::Result<BTreeMap<String, String>, String> {
    let found = json::read(text)?;
    let name = |(old, new): (&String, &serde_json::Value)| Some((old.clone(), new.as_str()?.to_string()));
    let names = found.as_object().and_then(|object| object.iter().map(name).collect());
    names.ok_or_else(|| "holds no JSON object of names: the old one to the new one".into())
}

/// Whether a key says that the file is a model of images.
pub(super) fn is_known(key: &Key) -> bool {
    key.name == ARCHITECTURE && matches!(key.value(), Value::Text(name) if ARCHITECTURES.contains(&name.as_str()))
}

/// What to do with a language model.
pub(crate) const LANGUAGE: &str = "a language model needs keys and a vocabulary that its tensors do not have: make a float GGUF file of it first, \
     with convert_hf_to_gguf.py of llama.cpp, and convert that";

/// Whether a tensor is float32 in such files.
pub(crate) fn is_precise(entry: &Entry) -> bool {
    entry.shape.len() < 2 || entry.elements() <= SMALL || PRECISE.iter().any(|part| entry.name.contains(part))
}

/// Why a matrix stays as it is, if it does.
pub(crate) fn spares(entry: &Entry) -> Option<String> {
    if !entry.name.ends_with("weight") {
        Some("its name does not end in weight".into())
    } else if entry.shape.len() != 2 {
        Some(format!("{}-d; only matrices are quantized", entry.shape.len()))
    } else {
        is_precise(entry).then(|| "small, or one whose precision counts".into())
    }
}
