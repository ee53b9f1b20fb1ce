//! Which weights of a model are quantized by convention, told by their names: the linear layers inside the blocks of the decoder or
//! encoder. Names do not tell the class of a module, so everything else stays as it is, and the plan says why.

use super::family::module_of;
use crate::files::checkpoint::Entry;

/// Components of names that number the blocks of a model: `model.layers.0.mlp.up_proj.weight`.
const BLOCKS: [&str; 5] = ["layers", "layer", "h", "blocks", "block"];

/// Last components of modules that choose among experts.
const ROUTERS: [&str; 4] = ["gate", "router", "shared_expert_gate", "wg"];

/// Last components of the modules of GPT-2 that store a matrix the other way round.
const TRANSPOSED: [&str; 3] = ["c_attn", "c_proj", "c_fc"];

/// Last components of embeddings and heads, which MLX quantizes too.
const EMBEDDINGS: [&str; 4] = ["embed_tokens", "wte", "lm_head", "embed_out"];

/// Weights that are computed together, as readers fuse them: last components of the modules.
const FUSED: [&[&str]; 5] = [
    &["q_proj", "k_proj", "v_proj"],
    &["gate_proj", "up_proj"],
    &["w1", "w3"],
    &["wq_a", "wkv_a_with_mqa"],
    &["q_a_proj", "kv_a_proj_with_mqa"],
];

/// Why a matrix of floats is not quantized, if it is not.
pub(crate) fn spares(entry: &Entry, model_type: Option<&str>, embeddings: bool) -> Option<String> {
    let Some(module) = module_of(&entry.name) else { return Some("its name does not end in .weight".into()) };
    let components: Vec<&str> = module.split('.').collect();
    let last = components.last().copied().unwrap_or_default();
    if entry.shape.len() != 2 {
        return Some(format!("{}-d; the weight of a linear layer has 2 axes", entry.shape.len()));
    }
    if EMBEDDINGS.contains(&last) {
        return (!embeddings).then(|| "an embedding or a head".into());
    }
    let numbered = |pair: &[&str]| BLOCKS.contains(&pair[0]) && pair[1].bytes().all(|byte| byte.is_ascii_digit());
    if !components.windows(2).any(numbered) {
        return Some("outside the blocks of the model".into());
    }
    if ROUTERS.contains(&last) {
        return Some("a router of experts".into());
    }
    if model_type == Some("gpt2") && TRANSPOSED.contains(&last) {
        return Some("stored the other way round (Conv1D), which readers of packed weights lack".into());
    }
    None
}

/// What the weights that are computed together with `weight` have in common.
pub(crate) fn fused(weight: &str) -> Option<String> {
    let (parent, last) = module_of(weight)?.rsplit_once('.')?;
    let group = FUSED.iter().position(|group| group.contains(&last))?;
    Some(format!("{parent}.{}", FUSED[group].join("/")))
}

#[cfg(test)]
mod tests {
    use super::fused;

    #[test]
    fn weights_that_are_computed_together() {
        let of = |name: &str| fused(&format!("model.layers.3.{name}.weight"));
        assert_eq!(of("self_attn.q_proj"), of("self_attn.v_proj"));
        assert_eq!(of("mlp.gate_proj"), of("mlp.up_proj"));
        assert_ne!(of("mlp.experts.0.w1"), of("mlp.experts.1.w3"));
        assert_eq!(of("self_attn.o_proj"), None);
        assert_eq!(of("mlp.down_proj"), None);
    }
}
