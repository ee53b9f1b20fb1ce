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
//!
//! | module | what |
//! |---|---|
//! | `stored` | the tensors that a quantized weight is stored as |
//! | `config` | what the config says |
//! | `found` | the quantized weights of a folder, by both |

mod config;
mod found;
mod stored;

use super::{buffer, corrupt, modules, shown};
use crate::error::{Error, Result};
use crate::layout::Layout;
use crate::spec::{Choice, Spec};

pub(super) use config::{GPTQ_CONFIG, MODELOPT_CONFIG};
pub(crate) use config::{Kind, describe, floats, method};
pub(crate) use found::{Found, recognise};
pub(crate) use stored::{constants, in_text, stored, tensors};

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

fn is_bnb(spec: &Spec) -> bool {
    spec.name.starts_with("bnb:")
}

fn is_nested(spec: &Spec) -> bool {
    spec.choice == Some(Choice::DoubleQuant(true))
}

/// `nf4` of `bnb:nf4`.
fn kind(spec: &'static Spec) -> &'static str {
    spec.name.split(':').next_back().expect("a split has a last part")
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
