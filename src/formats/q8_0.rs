//! GGUF `Q8_0`: groups of 32, symmetric, an f16 scale before codes of a byte. A companion: mixtures of llama.cpp store a few tensors so.
//!
//! ```text
//! byte   0..2        2    3    ...  33
//!        scale f16 | x0 | x1 | ... | x31
//!
//! scale = largest magnitude / 127
//! code  = round(x * (1 / scale)), halves away from zero           x ~ code * scale
//! ```
//!
//! The codes are made with the scale before it is rounded to f16. Source: ggml-org/ggml `src/ggml-quants.c`, `quantize_row_q8_0_ref`.

use super::wide::{BLOCK, Blocks, Wide, extreme, reciprocal};
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Blocks<Q80> = Blocks::new(&SPEC);

static SPEC: Spec = Spec {
    name: "gguf:q8_0",
    aliases: &["q8_0"],
    summary: "companion: symmetric blocks of 32, codes of 8 bits, f16 scale",
    scheme: Scheme::Symmetric,
    bits: 8,
    group_sizes: GroupSizes::Fixed(BLOCK),
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(2 + BLOCK) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

pub(super) struct Q80;

impl Wide for Q80 {
    const CODES: usize = BLOCK;

    fn encode(x: &[f32; BLOCK]) -> (f32, f32, [i8; BLOCK]) {
        let scale = extreme(x).abs() / 127.0;
        let codes = reciprocal(scale).map_or([0; BLOCK], |inverse| x.map(|x| (x * inverse).round() as i8));
        (scale, 0.0, codes)
    }

    fn pack(codes: &[i8; BLOCK], bytes: &mut [u8]) {
        bytes.copy_from_slice(&codes.map(i8::cast_unsigned));
    }

    fn unpack(bytes: &[u8]) -> [i8; BLOCK] {
        std::array::from_fn(|j| bytes[j].cast_signed())
    }
}
