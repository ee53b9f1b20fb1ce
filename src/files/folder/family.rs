//! How quantized weights lie in a folder: the tensors of each, by name, and what the config says of all of them.
//!
//! ```text
//! format                      quant_method         tensors of a module m
//! compressed-tensors          compressed-tensors   m.weight_packed, m.weight_scale, m.weight_shape, asymmetric m.weight_zero_point
//! compressed-tensors:nvfp4    compressed-tensors   m.weight_packed, m.weight_scale, m.weight_global_scale
//! compressed-tensors:mxfp4    compressed-tensors   m.weight_packed, m.weight_scale
//! gptq, gptq:v2               gptq                 m.qweight, m.qzeros, m.scales, m.g_idx
//! awq                         awq                  m.qweight, m.qzeros, m.scales
//! bnb:nf4, bnb:fp4            bitsandbytes         m.weight, m.weight.absmax, m.weight.quant_map, m.weight.quant_state.bitsandbytes__nf4,
//!                                                  nested m.weight.nested_absmax, m.weight.nested_quant_map
//! mlx, mlx:mxfp4, mlx:nvfp4   (key quantization)   m.weight, m.scales, mlx alone m.biases
//! modelopt:nvfp4              modelopt             m.weight, m.weight_scale, m.weight_scale_2
//! ```
//! Sources: what the projects' own writers store (compressed-tensors 0.20.0, bitsandbytes 0.50.2, mlx-lm 0.32.2, nvidia-modelopt 0.47.0,
//! auto-gptq 0.7.1, autoawq 0.2.9) and what transformers 5.24 and vLLM read.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::{buffer, corrupt, modules, shown};
use crate::error::{Error, Index, Result};
use crate::files::checkpoint::{part_name, part_tensors};
use crate::files::{Container, StoredDtype, Tensor, json};
use crate::formats::{self, bnb};
use crate::kernels::codebooks;
use crate::layout::{Layout, Options};
use crate::spec::{Choice, Codebook, GroupSize, NESTED, ScaleDtype, Scheme, Spec};

/// Where readers before the config had a place for it look for what GPTQ did.
pub(super) const GPTQ_CONFIG: &str = "quantize_config.json";

/// Where ModelOpt says what it did.
pub(super) const MODELOPT_CONFIG: &str = "hf_quant_config.json";

/// The keys of `config.json` that say how a model is quantized.
const QUANTIZATION: [&str; 2] = ["quantization_config", "quantization"];

/// The formats that a folder can hold.
const FORMATS: [&str; 12] = [
    "compressed-tensors",
    "compressed-tensors:nvfp4",
    "compressed-tensors:mxfp4",
    "gptq",
    "gptq:v2",
    "awq",
    "bnb:nf4",
    "bnb:fp4",
    "mlx",
    "mlx:mxfp4",
    "mlx:nvfp4",
    "modelopt:nvfp4",
];

/// Refuse a format for which there is no convention.
pub(crate) fn check(spec: &'static Spec) -> Result<()> {
    if !FORMATS.contains(&spec.name) {
        return Err(Error::value("format", spec.name, format!("a Hugging Face folder holds {}", FORMATS.join(", "))));
    }
    Ok(())
}

/// Whether modules of the MLX project are meant, which quantizes embeddings and heads too.
pub(crate) fn is_mlx(spec: &Spec) -> bool {
    spec.name.split(':').next() == Some("mlx")
}

/// What `weight` has in common with those that it is computed together with, where the second level of their scales is one.
pub(crate) fn sharing(weight: &str, layout: &Layout) -> Option<String> {
    let shares = matches!(layout.spec.name, "compressed-tensors:nvfp4" | "modelopt:nvfp4");
    shares.then(|| modules::fused(weight))?
}

/// The module of a weight.
pub(crate) fn module_of(weight: &str) -> Option<&str> {
    weight.strip_suffix(".weight")
}

/// The tensors that `weight` is stored as: one for each part, then one for each of the [`constants`].
pub(crate) fn tensors(weight: &str, layout: &Layout, dtype: StoredDtype) -> Vec<Tensor> {
    let module = module_of(weight).unwrap_or(weight);
    let mut tensors = parts(module, layout);
    if is_bnb(layout.spec) {
        let constant = |name: String, dtype, length| Tensor { name, dtype, shape: vec![length] };
        if is_nested(layout.spec) {
            // In the place of the offset stands the text that has it.
            tensors.pop();
            tensors.push(constant(state_name(weight, layout.spec), StoredDtype::U8, stored(layout, dtype, OFFSET, vec![0; 4]).len()));
        }
        tensors.push(constant(format!("{weight}.quant_map"), StoredDtype::F32, 16));
        match is_nested(layout.spec) {
            true => tensors.push(constant(format!("{weight}.nested_quant_map"), StoredDtype::F32, 256)),
            false => tensors.push(constant(state_name(weight, layout.spec), StoredDtype::U8, quant_state(layout, dtype).len())),
        }
    }
    tensors
}

/// The bytes of part `index` as a folder has them: the offset of scales that are quantized in turn stands in the state of bitsandbytes,
/// whose length must not depend on it, so that spaces follow.
pub(crate) fn stored(layout: &Layout, dtype: StoredDtype, index: usize, part: Vec<u8>) -> Vec<u8> {
    if !is_bnb(layout.spec) || index != OFFSET {
        return part;
    }
    let offset = part.first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
    let mut text = quant_state(layout, dtype);
    let end = text.pop();
    let nested =
        format!(r#", "nested_blocksize": {NESTED}, "nested_dtype": "float32", "nested_offset": {}"#, Value::from(f64::from(offset)));
    text.extend(nested.as_bytes());
    text.extend(end);
    // A number of 64 bits takes up to 24 characters.
    let spaces = 24 - Value::from(f64::from(offset)).to_string().len();
    text.extend(std::iter::repeat_n(b' ', spaces));
    text
}

/// The part, the last, that a folder has in a text.
pub(crate) fn in_text(layout: &Layout) -> Option<usize> {
    is_nested(layout.spec).then_some(OFFSET)
}

/// The part that is the offset of scales that are quantized in turn.
const OFFSET: usize = 3;

fn is_nested(spec: &Spec) -> bool {
    spec.choice == Some(Choice::DoubleQuant(true))
}

/// What a weight has beside its parts, which follows from the layout and the dtype that it had: the bytes of each such tensor.
pub(crate) fn constants(layout: &Layout, dtype: StoredDtype) -> Vec<Vec<u8>> {
    let table = match layout.spec.scheme {
        Scheme::Codebook(Codebook::Nf4) => &codebooks::NF4,
        Scheme::Codebook(Codebook::Fp4) => &codebooks::FP4,
        _ => return Vec::new(),
    };
    let bytes = |numbers: &[f32]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
    let second = if is_nested(layout.spec) { bytes(bnb::nested_numbers()) } else { quant_state(layout, dtype) };
    vec![bytes(table), second]
}

/// The tensors of the parts of a module's weight.
fn parts(module: &str, layout: &Layout) -> Vec<Tensor> {
    let spec = layout.spec;
    let mut tensors = part_tensors(module, layout);
    for (tensor, part) in tensors.iter_mut().zip(spec.parts) {
        match part.name {
            "packed" if is_bnb(spec) => {
                tensor.name = part_name(module, "weight");
                tensor.shape.push(1);
            }
            name if is_bnb(spec) => tensor.name = format!("{module}.weight.{name}"),
            "weight_scale" if layout.scale_dtype == ScaleDtype::E4m3 => tensor.dtype = StoredDtype::F8E4M3,
            _ => {}
        }
    }
    tensors
}

fn is_bnb(spec: &Spec) -> bool {
    spec.name.starts_with("bnb:")
}

/// The state of bitsandbytes: what it needs to decode a weight, as text.
fn quant_state(layout: &Layout, dtype: StoredDtype) -> Vec<u8> {
    let shape = Value::from(layout.shape.clone()).to_string().replace(',', ", ");
    let (kind, blocksize) = (kind(layout.spec), layout.group_elements());
    format!(r#"{{"quant_type": "{kind}", "blocksize": {blocksize}, "dtype": "{}", "shape": {shape}}}"#, dtype.name()).into_bytes()
}

/// `nf4` of `bnb:nf4`.
fn kind(spec: &'static Spec) -> &'static str {
    spec.name.split(':').next_back().expect("a split has a last part")
}

fn state_name(weight: &str, spec: &'static Spec) -> String {
    format!("{weight}.quant_state.bitsandbytes__{}", kind(spec))
}

/// A config for quantized weights: what `config.json` becomes, and other files that readers look for.
pub(crate) struct Texts {
    pub(crate) config: Map<String, Value>,
    pub(crate) files: Vec<(&'static str, Value)>,
}

/// Weights that are quantized alike.
pub(crate) struct Kind {
    pub(crate) spec: &'static Spec,
    pub(crate) group_size: GroupSize,
    /// The modules that they are of.
    pub(crate) modules: Vec<String>,
}

impl Kind {
    fn elements(&self) -> Value {
        match self.group_size {
            GroupSize::Elements(elements) => json!(elements),
            GroupSize::Row | GroupSize::Tensor => json!(-1),
        }
    }

    fn is_symmetric(&self) -> bool {
        self.spec.scheme == Scheme::Symmetric || self.spec.choice == Some(Choice::Symmetric(true))
    }
}

/// The config of a model whose weights are quantized as `kinds`, all of one format and at least one, but for those of the modules `kept`.
/// What the first kind is holds of all weights, what the others are is said of each of their modules.
///
/// # Errors
///
/// [`Error::Value`] for several kinds where the config has no place for them.
pub(crate) fn describe(config: &Map<String, Value>, kinds: &[Kind], kept: &[String]) -> Result<Texts> {
    let [first, others @ ..] = kinds else { unreachable!("a folder has at least the kind that was asked for") };
    let (spec, elements, symmetric) = (first.spec, first.elements(), first.is_symmetric());
    let names_modules = matches!(spec.name, "compressed-tensors" | "mlx");
    if let Some(other) = others.first().filter(|_| !names_modules) {
        let advice = format!("config.json has one place for it with {}: give one, or take compressed-tensors or mlx", spec.name);
        return Err(if other.group_size == first.group_size {
            Error::value("symmetric", "true of some weights and false of others", advice)
        } else {
            Error::value("group_size", format!("{} and {}", first.group_size, other.group_size), advice)
        });
    }
    // The head of a model that shares it with the embedding is a module without a tensor.
    let mut kept = kept.to_vec();
    if !kept.iter().any(|module| module == "lm_head") {
        kept.push("lm_head".into());
    }
    kept.sort_unstable();
    let mut files = Vec::new();
    let mut config = floats(config);
    let quantization = match spec.name.split(':').next().expect("a split has a first part") {
        "compressed-tensors" => compressed_tensors(kinds, &kept),
        "gptq" => {
            let version = if spec.name == "gptq:v2" { "gptq_v2" } else { "gptq" };
            let described = json!({
                "quant_method": "gptq", "bits": 4, "group_size": elements, "desc_act": false, "sym": symmetric,
                "checkpoint_format": version, "lm_head": false,
            });
            files.push((GPTQ_CONFIG, described.clone()));
            described
        }
        "awq" => json!({
            "quant_method": "awq", "bits": 4, "group_size": elements, "zero_point": true, "version": "gemm",
            "modules_to_not_convert": kept,
        }),
        "bnb" => json!({
            "quant_method": "bitsandbytes", "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": kind(spec),
            "bnb_4bit_use_double_quant": is_nested(spec), "bnb_4bit_compute_dtype": dtype_of(&config).unwrap_or(StoredDtype::F32).name(),
            "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": kept,
        }),
        "modelopt" => {
            files.push((
                MODELOPT_CONFIG,
                json!({
                    "producer": {"name": "quantize", "version": env!("CARGO_PKG_VERSION")},
                    "quantization": {
                        "quant_algo": "W4A16_NVFP4", "kv_cache_quant_algo": null, "group_size": 16, "exclude_modules": kept,
                    },
                }),
            ));
            json!({
                "quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", "ignore": kept,
                "config_groups": {"group_0": {
                    "weights": {"dynamic": false, "num_bits": 4, "type": "float", "group_size": 16}, "targets": ["Linear"],
                }},
                "producer": {"name": "quantize", "version": env!("CARGO_PKG_VERSION")},
            })
        }
        _ => {
            let mode = if spec.name == "mlx" { "affine" } else { kind(spec) };
            let mut described = json!({"group_size": elements, "bits": 4, "mode": mode});
            for kind in others {
                let own = json!({"group_size": kind.elements(), "bits": 4, "mode": mode});
                kind.modules.iter().for_each(|module| described[module] = own.clone());
            }
            config.insert("quantization".into(), described.clone());
            described
        }
    };
    config.insert("quantization_config".into(), quantization);
    Ok(Texts { config, files })
}

fn compressed_tensors(kinds: &[Kind], ignore: &[String]) -> Value {
    let format = match kinds[0].spec.name {
        "compressed-tensors:nvfp4" => "nvfp4-pack-quantized",
        "compressed-tensors:mxfp4" => "mxfp4-pack-quantized",
        _ => "pack-quantized",
    };
    let group = |(index, kind): (usize, &Kind)| {
        let targets = if index == 0 { json!(["Linear"]) } else { json!(kind.modules) };
        let group = json!({"targets": targets, "weights": compressed_tensors_weights(kind), "input_activations": null});
        (format!("group_{index}"), group)
    };
    let groups: Map<String, Value> = kinds.iter().enumerate().map(group).collect();
    json!({
        "quant_method": "compressed-tensors", "format": format, "quantization_status": "compressed", "ignore": ignore,
        "config_groups": groups,
    })
}

fn compressed_tensors_weights(kind: &Kind) -> Value {
    match kind.spec.name {
        "compressed-tensors:nvfp4" => {
            json!({"num_bits": 4, "type": "float", "symmetric": true, "strategy": "tensor_group", "group_size": 16})
        }
        "compressed-tensors:mxfp4" => {
            json!({"num_bits": 4, "type": "float", "symmetric": true, "strategy": "group", "group_size": 32})
        }
        _ => {
            let mut weights = json!({"num_bits": 4, "type": "int", "symmetric": kind.is_symmetric()});
            match kind.group_size {
                GroupSize::Elements(elements) => {
                    weights["strategy"] = json!("group");
                    weights["group_size"] = json!(elements);
                }
                GroupSize::Row | GroupSize::Tensor => weights["strategy"] = json!("channel"),
            }
            weights
        }
    }
}

/// The config of the same model with nothing quantized.
pub(crate) fn floats(config: &Map<String, Value>) -> Map<String, Value> {
    let kept = config.iter().filter(|(key, _)| !QUANTIZATION.contains(&key.as_str()));
    kept.map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// How the config says that the model is quantized: the method, and what else it says.
pub(crate) fn method(config: &Map<String, Value>) -> Option<(&str, &Value)> {
    let described = QUANTIZATION.iter().find_map(|key| config.get(*key).filter(|value| !value.is_null()))?;
    Some((described["quant_method"].as_str().unwrap_or("mlx"), described))
}

/// The dtype of the model's floats, if the config says it.
fn dtype_of(config: &Map<String, Value>) -> Option<StoredDtype> {
    let name = ["dtype", "torch_dtype"].iter().find_map(|key| config.get(*key)?.as_str())?;
    StoredDtype::from_name(name).filter(|dtype| dtype.float().is_some())
}

/// A quantized weight that was found.
pub(crate) struct Found {
    /// Its name.
    pub(crate) name: String,
    /// How it is quantized.
    pub(crate) layout: Layout,
    /// The dtype that it had before.
    pub(crate) dtype: StoredDtype,
    /// The tensors of its parts.
    pub(crate) parts: Vec<usize>,
    /// Tensors that repeat what the layout says.
    pub(crate) constants: Vec<usize>,
    /// The last part, where a text has it and no tensor: it is then not among the parts.
    pub(crate) offset: Option<f32>,
}

/// Why quantized weights of a folder are not understood, in one clause.
type Unknown = String;

/// The quantized weights of a folder, or why they cannot be read as such: a method, or a variant of one, that is not among the formats.
///
/// # Errors
///
/// [`Error::Corrupt`] where the tensors contradict the config or each other.
pub(crate) fn recognise(config: &Map<String, Value>, container: &dyn Container) -> Result<std::result::Result<Vec<Found>, Unknown>> {
    let Some((method, described)) = method(config) else { return Ok(Ok(Vec::new())) };
    let reader = match reader_of(method, described) {
        Ok(reader) => reader,
        Err(unknown) => return Ok(Err(unknown)),
    };
    let tensors = container.tensors();
    let places: HashMap<&str, usize> = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    let mut found = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let Some(module) = tensor.name.strip_suffix(reader.mark()).and_then(|rest| rest.strip_suffix('.')) else { continue };
        let module = Module { name: module, config, container, places: &places };
        match module.read(&reader, index)? {
            Some(weight) => found.push(weight),
            None => continue,
        }
    }
    Ok(Ok(found))
}

/// How the weights of a folder are read.
enum Reader {
    /// Parts under the names that the format gives them; the named one marks a module.
    Parts { format: &'static str, mark: &'static str },
    /// A text beside each weight says it all.
    Bnb,
}

impl Reader {
    /// The end of the name of one tensor of each quantized module.
    fn mark(&self) -> &'static str {
        match self {
            Reader::Parts { mark, .. } => mark,
            Reader::Bnb => "weight",
        }
    }
}

fn reader_of(method: &str, described: &Value) -> std::result::Result<Reader, Unknown> {
    let bits = |value: &Value| match value.as_u64() {
        Some(4) => Ok(()),
        _ => Err(format!("{method} with {value} bits")),
    };
    let parts = |format, mark| Ok(Reader::Parts { format, mark });
    match method {
        "compressed-tensors" => {
            let groups = described["config_groups"].as_object().map(|groups| groups.values().collect::<Vec<_>>()).unwrap_or_default();
            groups.iter().try_for_each(|group| bits(&group["weights"]["num_bits"]))?;
            let own = groups.iter().find_map(|group| group["format"].as_str());
            match own.or(described["format"].as_str()) {
                Some("pack-quantized") => parts("compressed-tensors", "weight_packed"),
                Some("nvfp4-pack-quantized") => parts("compressed-tensors:nvfp4", "weight_packed"),
                Some("mxfp4-pack-quantized") => parts("compressed-tensors:mxfp4", "weight_packed"),
                other => Err(format!("compressed-tensors with format {}", shown(other.unwrap_or("none")))),
            }
        }
        "gptq" => {
            bits(&described["bits"])?;
            match described["checkpoint_format"].as_str() {
                None | Some("gptq") => parts("gptq", "qweight"),
                Some("gptq_v2") => parts("gptq:v2", "qweight"),
                Some(other) => Err(format!("gptq with checkpoint_format {}", shown(other))),
            }
        }
        "awq" => {
            bits(if described["bits"].is_null() { &described["w_bit"] } else { &described["bits"] })?;
            match described["version"].as_str() {
                None | Some("gemm" | "GEMM") => parts("awq", "qweight"),
                Some(other) => Err(format!("awq with version {}", shown(other))),
            }
        }
        "bitsandbytes" if described["load_in_4bit"] == true => Ok(Reader::Bnb),
        "modelopt" => match described["quant_algo"].as_str() {
            Some("NVFP4" | "W4A16_NVFP4") => parts("modelopt:nvfp4", "weight_scale"),
            other => Err(format!("modelopt with quant_algo {}", shown(other.unwrap_or("none")))),
        },
        "mlx" => {
            bits(&described["bits"])?;
            match described["mode"].as_str() {
                None | Some("affine") => parts("mlx", "scales"),
                Some("mxfp4") => parts("mlx:mxfp4", "scales"),
                Some("nvfp4") => parts("mlx:nvfp4", "scales"),
                Some(other) => Err(format!("mlx with mode {}", shown(other))),
            }
        }
        other => Err(format!("the method {}", shown(other))),
    }
}

/// See [`Module::state`].
type State = (Layout, StoredDtype, Vec<usize>, Option<f32>);

/// A module of a folder, to be read.
struct Module<'a> {
    name: &'a str,
    config: &'a Map<String, Value>,
    container: &'a dyn Container,
    places: &'a HashMap<&'a str, usize>,
}

impl Module<'_> {
    fn part(&self, part: &str) -> Option<(usize, &Tensor)> {
        let &index = self.places.get(part_name(self.name, part).as_str())?;
        Some((index, &self.container.tensors()[index]))
    }

    fn needed(&self, part: &str) -> Result<&Tensor> {
        self.part(part).map(|(_, tensor)| tensor).ok_or_else(|| self.wrong(format!("{} is missing", part_name(self.name, part))))
    }

    /// The weight of the module, marked by tensor `mark`; `None` where it is not quantized.
    fn read(&self, reader: &Reader, mark: usize) -> Result<Option<Found>> {
        let (layout, dtype, constants, offset) = match reader {
            Reader::Bnb => match self.state()? {
                Some(read) => read,
                None => return Ok(None),
            },
            Reader::Parts { format, .. } => {
                let (layout, dtype) = self.layout(format, &self.container.tensors()[mark])?;
                (layout, dtype, Vec::new(), None)
            }
        };
        let mut expected = parts(self.name, &layout);
        if offset.is_some() {
            expected.truncate(OFFSET);
        }
        let parts = expected.iter().map(|expected| self.place(expected)).collect::<Result<_>>()?;
        Ok(Some(Found { name: part_name(self.name, "weight"), layout, dtype, parts, constants, offset }))
    }

    /// Where a part is; it has the dtype and the shape that the layout gives it.
    fn place(&self, expected: &Tensor) -> Result<usize> {
        let Some(&index) = self.places.get(expected.name.as_str()) else {
            return Err(self.wrong(format!("{} is missing", shown(&expected.name))));
        };
        let found = &self.container.tensors()[index];
        // Floats of 8 bits are also stored as their bits.
        let same_dtype = found.dtype == expected.dtype || (found.dtype, expected.dtype) == (StoredDtype::U8, StoredDtype::F8E4M3);
        if !same_dtype || found.shape != expected.shape {
            let describe = |tensor: &Tensor| format!("{} of shape {}", tensor.dtype.name(), Index(&tensor.shape));
            return Err(self.wrong(format!("{} is {}; expected {}", shown(&expected.name), describe(found), describe(expected))));
        }
        Ok(index)
    }

    /// The layout that the shapes of the parts speak of, and the dtype before.
    fn layout(&self, format: &'static str, mark: &Tensor) -> Result<(Layout, StoredDtype)> {
        let family = format.split(':').next().expect("a split has a first part");
        let matrix = |tensor: &Tensor| match tensor.shape[..] {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(self.wrong(format!("{} has shape {}; expected a matrix", shown(&tensor.name), Index(&tensor.shape)))),
        };
        let by = |(n, k): (usize, usize), words: (usize, usize)| {
            let length = |n: usize, by: usize| n.checked_mul(by).ok_or_else(|| self.wrong("its lengths cannot be counted".into()));
            Ok::<_, Error>((length(n, words.0)?, length(k, words.1)?))
        };
        // N and K, then the groups of a row.
        let (codes, scales) = match family {
            "gptq" | "awq" => (mark, self.needed("scales")?),
            "mlx" => (self.needed("weight")?, mark),
            "modelopt" => (self.needed("weight")?, mark),
            _ => (mark, self.needed("weight_scale")?),
        };
        let (first, second) = matrix(codes)?;
        let groups = matrix(scales)?;
        let ((n, k), groups) = match family {
            "gptq" => (by((second, first), (1, 8))?, groups.0),
            "awq" => (by((second, first), (8, 1))?, groups.0),
            _ if codes.dtype == StoredDtype::U8 => (by((first, second), (1, 2))?, groups.1),
            _ => (by((first, second), (1, 8))?, groups.1),
        };
        for other in ["weight_g_idx", "g_idx"].iter().filter(|_| family == "compressed-tensors") {
            if self.part(other).is_some() {
                return Err(
                    self.wrong("its columns are in another order than its groups, which is not read from compressed-tensors".into())
                );
            }
        }
        if groups == 0 || !k.is_multiple_of(groups) {
            return Err(self.wrong(format!("{k} columns in {groups} groups")));
        }
        let default = formats::find(format)?.spec();
        let choice = match family {
            "compressed-tensors" if default.choice.is_some() => Some(Choice::Symmetric(self.part("weight_zero_point").is_none())),
            _ => None,
        };
        let spec = formats::choose(format, choice)?.spec();
        let size = k / groups;
        let elements = GroupSize::Elements(size);
        let group_size = if groups == 1 && !spec.group_sizes.takes(elements) { GroupSize::Row } else { elements };
        let scale_dtype = spec.scale_dtypes.iter().copied().find(|dtype| dtype.name() == scales.dtype.name());
        let options = Options {
            group_size: Some(group_size),
            scale_dtype: scale_dtype.filter(|_| spec.scale_dtypes.len() > 1),
            ..Options::default()
        };
        let layout = Layout::new(spec, &[n, k], options).map_err(|error| self.wrong(error.to_string()))?;
        let before = dtype_of(self.config).or(scales.dtype.float().map(|_| scales.dtype)).unwrap_or(StoredDtype::F32);
        Ok((layout, before))
    }

    /// What the state of bitsandbytes says: the layout, the dtype before, the tensors that say it, and the offset of scales that are
    /// quantized in turn.
    fn state(&self) -> Result<Option<State>> {
        let weight = part_name(self.name, "weight");
        for format in ["bnb:nf4", "bnb:fp4"] {
            let mut spec = formats::choose(format, Some(Choice::DoubleQuant(false)))?.spec();
            let Some(&index) = self.places.get(state_name(&weight, spec).as_str()) else { continue };
            let bytes = self.container.tensors()[index].bytes();
            let mut text = buffer(bytes, || "the state of bitsandbytes".into())?;
            self.container.read(index, 0, &mut text)?;
            let state = json::read(&text).map_err(|fault| self.wrong(format!("its quant_state {fault}")))?;
            let offset = self.nested_offset(&weight, &state)?;
            if offset.is_some() {
                spec = formats::choose(format, Some(Choice::DoubleQuant(true)))?.spec();
            }
            let length = |value: &Value| value.as_u64().and_then(|value| usize::try_from(value).ok());
            let shape: Option<Vec<usize>> = state["shape"].as_array().and_then(|lengths| lengths.iter().map(length).collect());
            let dtype = state["dtype"].as_str().and_then(StoredDtype::from_name).filter(|dtype| dtype.float().is_some());
            let (Some(shape), Some(blocksize), Some(dtype)) = (shape, length(&state["blocksize"]), dtype) else {
                return Err(self.wrong("its quant_state lacks a shape, a blocksize or a dtype of floats".into()));
            };
            let options = Options { group_size: Some(GroupSize::Elements(blocksize)), ..Options::default() };
            let layout = Layout::new(spec, &shape, options).map_err(|error| self.wrong(error.to_string()))?;
            let maps = ["quant_map", "nested_quant_map"].map(|map| self.places.get(format!("{weight}.{map}").as_str()).copied());
            return Ok(Some((layout, dtype, maps.into_iter().flatten().chain([index]).collect(), offset)));
        }
        Ok(None)
    }

    /// The offset of scales that are quantized in turn, if the state says that they are, by the numbers that all such scales have.
    fn nested_offset(&self, weight: &str, state: &Value) -> Result<Option<f32>> {
        if state["nested_blocksize"].is_null() {
            return Ok(None);
        }
        if state["nested_blocksize"] != NESTED || state["nested_dtype"] != "float32" {
            let found = format!("{} and {}", state["nested_blocksize"], state["nested_dtype"]);
            return Err(
                self.wrong(format!("its quant_state has nested_blocksize and nested_dtype {found}; {NESTED} and \"float32\" are read"))
            );
        }
        let expected = Tensor { name: format!("{weight}.nested_quant_map"), dtype: StoredDtype::F32, shape: vec![256] };
        let mut numbers = [0; 1024];
        self.container.read(self.place(&expected)?, 0, &mut numbers)?;
        let found = numbers.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        // Versions of torch differ in the last places.
        let is_same = found.zip(bnb::nested_numbers()).all(|(found, number)| (found - number).abs() <= 1e-6);
        if !is_same {
            return Err(self.wrong(format!("{} has other numbers than bitsandbytes", shown(&expected.name))));
        }
        let offset = state["nested_offset"].as_f64().map(|offset| offset as f32).filter(|offset| offset.is_finite());
        offset.map(Some).ok_or_else(|| self.wrong("its quant_state lacks the nested_offset".into()))
    }

    fn wrong(&self, reason: String) -> Error {
        corrupt(format!("module {}: {reason}", shown(self.name)))
    }
}
