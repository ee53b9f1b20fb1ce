//! What llama.cpp's quantizer does with a model, as rules: which tensors it leaves alone, where it puts them, what it says of the file.
//!
//! Source: ggml-org/llama.cpp `src/llama-quant.cpp`, build b11739.

use super::{ALIGNMENT_KEY, Key, split};
use crate::files::StoredDtype;

/// Parts of names that mark a tensor as one of those that stay floats, and what such tensors are.
const SPARED: [(&str, &str); 33] = [
    ("_norm.weight", "a norm"),
    ("ffn_gate_inp.weight", "a router of experts"),
    ("ffn_gate_tid2eid.weight", "a table of experts"),
    ("altup", "very small"),
    ("laurel", "very small"),
    ("per_layer_model_proj", "small"),
    ("ssm_conv1d", "a small convolution"),
    ("shortconv.conv.weight", "a small convolution"),
    ("indexer.k_proj.weight", "a small projection"),
    ("indexer.q_proj.weight", "a small projection"),
    ("time_mix_first.weight", RWKV),
    ("time_mix_w0.weight", RWKV),
    ("time_mix_w1.weight", RWKV),
    ("time_mix_w2.weight", RWKV),
    ("time_mix_v0.weight", RWKV),
    ("time_mix_v1.weight", RWKV),
    ("time_mix_v2.weight", RWKV),
    ("time_mix_a0.weight", RWKV),
    ("time_mix_a1.weight", RWKV),
    ("time_mix_a2.weight", RWKV),
    ("time_mix_g1.weight", RWKV),
    ("time_mix_g2.weight", RWKV),
    ("time_mix_decay_w1.weight", RWKV),
    ("time_mix_decay_w2.weight", RWKV),
    ("time_mix_lerp_fused.weight", RWKV),
    ("attn_rel_b.weight", "a bias of positions"),
    (".position_embd", "an embedding of positions"),
    (".rel_pos", "an embedding of positions"),
    (".patch_embd", "an embedding of patches"),
    (".patch_merger", "a merger of patches"),
    ("sam.pos_embd", "an embedding of positions"),
    ("sam.neck.", "a convolution"),
    ("sam.net_", "a convolution"),
];

const RWKV: &str = "a small matrix of RWKV";

/// Whole names of tensors that stay floats.
const SPARED_NAMES: [(&str, &str); 2] =
    [("position_embd.weight", "an embedding of positions"), ("token_types.weight", "an embedding of token types")];

/// Why the quantizer leaves a tensor alone whatever the format, if it does. An axis of one row counts for none.
pub(crate) fn spares(name: &str, shape: &[usize]) -> Option<String> {
    if !name.ends_with("weight") {
        return Some("its name does not end in weight".into());
    }
    if shape.iter().skip_while(|&&length| length == 1).count() < 2 {
        return Some("one row; a matrix has more".into());
    }
    let part = SPARED.iter().find(|row| name.contains(row.0));
    let found = part.or_else(|| SPARED_NAMES.iter().find(|row| name == row.0))?;
    Some(format!("{}, which llama.cpp keeps", found.1))
}

/// What tensors are sorted by: those of no layer come first, then layer by layer, by the bytes of the name.
pub(super) fn place(name: &str) -> (Option<u64>, &str) {
    let layer = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')).and_then(|(layer, _)| layer.parse().ok());
    (layer, name)
}

pub(super) const FILE_TYPE: &str = "general.file_type";
pub(super) const QUANTIZATION_VERSION: &str = "general.quantization_version";

/// The keys of a file that is made from one with `keys`: all, in their order, but those that speak of how the old file was laid out.
/// Where its weights became something else, the keys that tell of it come last, with the number that stands for what they became.
pub(crate) fn keys(keys: &[Key], file_type: Option<u32>) -> Vec<Key> {
    let speaks_of_layout = |key: &&Key| key.name == ALIGNMENT_KEY || key.name.starts_with(split::KEYS);
    let kept = keys.iter().filter(|key| !speaks_of_layout(key));
    let Some(file_type) = file_type else { return kept.cloned().collect() };
    let kept = kept.filter(|key| key.name != FILE_TYPE && key.name != QUANTIZATION_VERSION);
    kept.cloned().chain([Key::u32(QUANTIZATION_VERSION, 2), Key::u32(FILE_TYPE, file_type)]).collect()
}

/// The number by which [`FILE_TYPE`] says that all weights have this dtype. Of two that mean Q4_K or Q5_K it is that of Q4_K_S or Q5_K_S,
/// whose weights are so but for a few.
pub(crate) fn file_type(dtype: StoredDtype) -> u32 {
    match dtype {
        StoredDtype::F32 => 0,
        StoredDtype::Q40 => 2,
        StoredDtype::Q41 => 3,
        StoredDtype::Q80 => 7,
        StoredDtype::Q50 => 8,
        StoredDtype::Q51 => 9,
        StoredDtype::Q4K => 14,
        StoredDtype::Q5K => 16,
        StoredDtype::Q6K => 18,
        StoredDtype::Iq4Nl => 25,
        StoredDtype::Iq4Xs => 30,
        StoredDtype::Mxfp4 => 38,
        StoredDtype::Nvfp4 => 39,
        other => unreachable!("weights do not become {other:?}"),
    }
}
