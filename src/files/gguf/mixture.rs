//! What `Q4_K_M` and its like mean: for every tensor of a model a type, chosen by name, layer and the shape of the model; and what a
//! tensor is stored as whose rows the blocks of its type do not divide.
//!
//! Source: ggml-org/llama.cpp `src/llama-quant.cpp`, build b11739.

use super::llama::place;
use super::{Key, Value};
use crate::error::{Error, Result};
use crate::files::{StoredDtype, Tensor, shown};

/// A mixture, by the name that llama.cpp gives it.
#[derive(Debug, PartialEq, Eq)]
pub struct Mixture {
    /// Its name in lower case.
    pub name: &'static str,
    /// What most tensors become.
    pub(crate) default: StoredDtype,
    /// The number by which a file says that it is one.
    pub(crate) file_type: u32,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Plain,
    Small,
    Medium,
    Codebook,
    Experts,
}

/// All of them.
pub(crate) static MIXTURES: [Mixture; 7] = [
    Mixture { name: "q4_0", default: StoredDtype::Q40, file_type: 2, kind: Kind::Plain },
    Mixture { name: "q4_1", default: StoredDtype::Q41, file_type: 3, kind: Kind::Plain },
    Mixture { name: "q4_k_s", default: StoredDtype::Q4K, file_type: 14, kind: Kind::Small },
    Mixture { name: "q4_k_m", default: StoredDtype::Q4K, file_type: 15, kind: Kind::Medium },
    Mixture { name: "iq4_nl", default: StoredDtype::Iq4Nl, file_type: 25, kind: Kind::Codebook },
    Mixture { name: "iq4_xs", default: StoredDtype::Iq4Xs, file_type: 30, kind: Kind::Codebook },
    Mixture { name: "mxfp4_moe", default: StoredDtype::Mxfp4, file_type: 38, kind: Kind::Experts },
];

/// The mixture of this name, in lower or upper case.
pub fn find(name: &str) -> Option<&'static Mixture> {
    MIXTURES.iter().find(|mixture| mixture.name.eq_ignore_ascii_case(name))
}

/// What a tensor becomes in a mixture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) dtype: StoredDtype,
    /// Why, where it is not what most become.
    pub(crate) why: Option<&'static str>,
}

impl Mixture {
    /// What each of `tensors` becomes: all that the quantizer would take, of a model with these `keys`.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] where the keys do not say what the rules ask for.
    pub(crate) fn parts(&self, keys: &[Key], tensors: &[Tensor]) -> Result<Vec<Part>> {
        let model = Model::new(keys, tensors);
        let mut order: Vec<usize> = (0..tensors.len()).collect();
        order.sort_by_key(|&index| place(&tensors[index].name));
        let mut counts = Counts::default();
        let mut parts = vec![Part { dtype: self.default, why: None }; tensors.len()];
        for index in order {
            if let Some((dtype, why)) = self.special(&model, &tensors[index], &mut counts)? {
                parts[index] = Part { dtype, why: Some(why) };
            }
        }
        Ok(parts)
    }

    /// What a tensor becomes where it is not what most do, and why.
    fn special(&self, model: &Model, tensor: &Tensor, counts: &mut Counts) -> Result<Option<(StoredDtype, &'static str)>> {
        let name = tensor.name.as_str();
        let is_experts = self.kind == Kind::Experts;
        if name == OUTPUT || name == EMBEDDING && !model.has_output {
            let why = if name == OUTPUT { "the output" } else { "the embedding, which is the output too" };
            let eight_bits = is_experts || model.is_falcon();
            return Ok(Some((if eight_bits { StoredDtype::Q80 } else { StoredDtype::Q6K }, why)));
        }
        if is_experts {
            let is_stack = tensor.shape.len() > 2 && tensor.shape[tensor.shape.len() - 3] > 1;
            return Ok((!is_stack).then_some((StoredDtype::Q80, "no stack of experts")));
        }
        let eight_experts = model.has_eight_experts();
        if is_value(name) {
            let count = counts.values;
            counts.values += 1;
            if eight_experts {
                return Ok(Some((StoredDtype::Q80, "values of a model of 8 experts")));
            }
            return Ok(match self.kind {
                Kind::Medium if takes_more(count, model.values) => Some((StoredDtype::Q6K, "values of a layer of more bits")),
                Kind::Small if count < 4 => Some((StoredDtype::Q5K, "values of the first four layers")),
                Kind::Codebook if model.heads_per_value()? >= 4 => Some((StoredDtype::Q5K, "values that four heads or more share")),
                Kind::Small | Kind::Medium if model.is_70b() => Some((StoredDtype::Q5K, "values of a model of 70B")),
                _ => None,
            });
        }
        if name.contains("attn_k.weight") {
            return Ok(eight_experts.then_some((StoredDtype::Q80, "keys of a model of 8 experts")));
        }
        if name.contains("ffn_down") {
            let count = counts.downs;
            counts.downs += 1;
            if self.kind == Kind::Plain {
                return Ok(None);
            }
            let layers = model.stated(model.layers, "block_count")?;
            // Where several tensors of a layer are counted, its own number says which it is.
            let layer = place(name).0.filter(|_| model.experts.is_some_and(|experts| experts > 1)).unwrap_or(count);
            let is_falcon = model.is_falcon();
            return Ok(match self.kind {
                Kind::Medium if is_falcon && layer < layers / 16 => {
                    Some((StoredDtype::Q6K, "ffn_down of the first sixteenth of the layers"))
                }
                Kind::Medium if is_falcon => takes_more(layer, layers).then_some((StoredDtype::Q5K, "ffn_down of a layer of more bits")),
                Kind::Medium => takes_more(layer, layers).then_some((StoredDtype::Q6K, "ffn_down of a layer of more bits")),
                Kind::Small if is_falcon => None,
                _ => (layer < layers / 8).then_some((StoredDtype::Q5K, "ffn_down of the first eighth of the layers")),
            });
        }
        let is_output = name.contains("attn_output.weight") && !model.is_falcon();
        let takes_five = is_output && eight_experts && self.kind != Kind::Plain;
        Ok(takes_five.then_some((StoredDtype::Q5K, "the output of attention of a model of 8 experts")))
    }
}

const OUTPUT: &str = "output.weight";
const EMBEDDING: &str = "token_embd.weight";

/// Of what is counted, how many there were before.
#[derive(Default)]
struct Counts {
    values: u64,
    downs: u64,
}

/// Whether a tensor makes the values of attention, alone or with others.
fn is_value(name: &str) -> bool {
    ["attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight"].iter().any(|part| name.contains(part))
}

/// Whether layer `layer` of `layers` is one of those that get more bits: the first and last eighth, and every third between.
fn takes_more(layer: u64, layers: u64) -> bool {
    layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2
}

/// What the rules ask of a model. A number is missing where the keys do not say it.
struct Model {
    architecture: String,
    /// Whether a matrix of its own makes the output.
    has_output: bool,
    /// How many tensors make values.
    values: u64,
    layers: Option<u64>,
    heads: Option<u64>,
    value_heads: Option<u64>,
    experts: Option<u64>,
}

impl Model {
    fn new(keys: &[Key], tensors: &[Tensor]) -> Model {
        let value = |name: &str| keys.iter().find(|key| key.name == name).map(Key::value);
        let architecture = if let Some(Value::Text(name)) = value("general.architecture") { name } else { String::new() };
        // Of a list, one number for each layer, the first.
        let number = |name: &str| match value(&format!("{architecture}.{name}"))? {
            Value::List(values) => values.into_iter().next().and_then(small),
            value => small(value),
        };
        Model {
            has_output: tensors.iter().any(|tensor| tensor.name == OUTPUT),
            values: tensors.iter().filter(|tensor| is_value(&tensor.name)).count() as u64,
            layers: number("block_count"),
            heads: number("attention.head_count"),
            value_heads: number("attention.head_count_kv"),
            experts: number("expert_count"),
            architecture,
        }
    }

    /// A number that must be there.
    fn stated(&self, number: Option<u64>, name: &str) -> Result<u64> {
        let missing = || {
            let expected = "the mixture goes by it; a format such as gguf:q4_k needs no such key";
            Error::value(format!("key {}", shown(&format!("{}.{name}", self.architecture))), "missing, or no number", expected)
        };
        number.ok_or_else(missing)
    }

    fn is_falcon(&self) -> bool {
        self.architecture == "falcon"
    }

    fn has_eight_experts(&self) -> bool {
        self.experts == Some(8)
    }

    fn heads_per_value(&self) -> Result<u64> {
        let heads = self.stated(self.heads, "attention.head_count")?;
        Ok(self.value_heads.map_or(1, |values| heads.checked_div(values).unwrap_or(0)))
    }

    /// Whether llama.cpp takes it for a model of 70 billion weights whose heads share values.
    fn is_70b(&self) -> bool {
        match (self.architecture.as_str(), self.layers) {
            ("llama" | "llama-embed", Some(80)) => self.value_heads.is_some() && self.heads != self.value_heads,
            ("qwen2" | "deci", Some(80)) | ("jais2", Some(68)) => true,
            _ => false,
        }
    }
}

/// A number of at most 32 bits, as those are that llama.cpp looks for.
fn small(value: Value) -> Option<u64> {
    match value {
        Value::Unsigned(number) => u32::try_from(number).ok().map(u64::from),
        Value::Signed(number) => u32::try_from(number).ok().map(u64::from),
        _ => None,
    }
}

/// What llama.cpp stores a tensor as whose rows of `columns` the blocks of `dtype` do not divide; `None` where it has no rule.
pub(crate) fn fallback(dtype: StoredDtype, columns: u64) -> Option<StoredDtype> {
    let next = match dtype {
        StoredDtype::Q4K => StoredDtype::Q50,
        StoredDtype::Q5K => StoredDtype::Q51,
        StoredDtype::Q6K => StoredDtype::Q80,
        StoredDtype::Iq4Xs => StoredDtype::Iq4Nl,
        StoredDtype::Nvfp4 => return None,
        other => other,
    };
    Some(if columns.is_multiple_of(next.block().elements) { next } else { StoredDtype::F16 })
}
