//! The tensors that a quantized weight is stored as.

use serde_json::Value;

use super::{is_bnb, is_nested, kind, module_of};
use crate::files::checkpoint::{part_name, part_tensors};
use crate::files::{StoredDtype, Tensor};
use crate::formats::bnb;
use crate::kernels::codebooks;
use crate::layout::Layout;
use crate::spec::{Codebook, NESTED, ScaleDtype, Scheme, Spec};

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
pub(super) const OFFSET: usize = 3;

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
pub(super) fn parts(module: &str, layout: &Layout) -> Vec<Tensor> {
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

/// The state of bitsandbytes: what it needs to decode a weight, as text.
fn quant_state(layout: &Layout, dtype: StoredDtype) -> Vec<u8> {
    let shape = Value::from(layout.shape.clone()).to_string().replace(',', ", ");
    let (kind, blocksize) = (kind(layout.spec), layout.group_elements());
    format!(r#"{{"quant_type": "{kind}", "blocksize": {blocksize}, "dtype": "{}", "shape": {shape}}}"#, dtype.name()).into_bytes()
}

pub(super) fn state_name(weight: &str, spec: &'static Spec) -> String {
    format!("{weight}.quant_state.bitsandbytes__{}", kind(spec))
}
