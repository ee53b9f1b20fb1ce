//! What the config says of quantized weights, and other files that readers look for.

use serde_json::{Map, Value, json};

use super::{is_nested, kind};
use crate::error::{Error, Result};
use crate::files::StoredDtype;
use crate::spec::{Choice, GroupSize, Scheme, Spec};

/// Where readers before the config had a place for it look for what GPTQ did.
pub(in crate::files::folder) const GPTQ_CONFIG: &str = "quantize_config.json";

/// Where ModelOpt says what it did.
pub(in crate::files::folder) const MODELOPT_CONFIG: &str = "hf_quant_config.json";

/// The keys of `config.json` that say how a model is quantized.
const QUANTIZATION: [&str; 2] = ["quantization_config", "quantization"];

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
    let group = |targets, kind| json!({"targets": targets, "weights": compressed_tensors_weights(kind), "input_activations": null});
    // Where the group of all others comes first, its readers warn that they find no module for the names of the next.
    let of_modules = kinds[1..].iter().map(|kind| group(json!(kind.modules), kind));
    let groups = of_modules.chain([group(json!(["Linear"]), &kinds[0])]).enumerate();
    let groups: Map<String, Value> = groups.map(|(index, group)| (format!("group_{index}"), group)).collect();
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
pub(super) fn dtype_of(config: &Map<String, Value>) -> Option<StoredDtype> {
    let name = ["dtype", "torch_dtype"].iter().find_map(|key| config.get(*key)?.as_str())?;
    StoredDtype::from_name(name).filter(|dtype| dtype.float().is_some())
}
