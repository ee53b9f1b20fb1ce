//! GGUF `Q5_0`: groups of 32, symmetric, an f16 scale before codes of 5 bits. A companion: llama.cpp falls back to it where rows do
//! not divide into blocks of Q4_K.
//!
//! ```text
//! byte   0..2        2..6             6                    ...            21
//!        scale f16 | fifth bits u32 | x0 low, x16 high | x1, x17 | ... | x15, x31
//!
//! scale = (element of largest magnitude, the first one wins) / -16
//! code  = min(31, trunc(x * (1 / scale) + 16.5)) - 16             x ~ code * scale
//! ```
//!
//! Bit j of the word is the fifth of element j. The codes are made with the scale before it is rounded to f16. Source: ggml-org/ggml
//! `src/ggml-quants.c`, `quantize_row_q5_0_ref`.

use super::wide::{BLOCK, Blocks, Wide, extreme, five, reciprocal};
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Blocks<Q50> = Blocks::new(&SPEC);

static SPEC: Spec = Spec {
    name: "gguf:q5_0",
    aliases: &["q5_0"],
    summary: "companion: symmetric blocks of 32, codes of 5 bits, f16 scale",
    scheme: Scheme::Symmetric,
    bits: 5,
    group_sizes: GroupSizes::Fixed(BLOCK),
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(2 + five::BYTES) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

pub(super) struct Q50;

impl Wide for Q50 {
    const CODES: usize = five::BYTES;

    fn encode(x: &[f32; BLOCK]) -> (f32, f32, [i8; BLOCK]) {
        let scale = extreme(x) / -16.0;
        let codes = reciprocal(scale).map_or([-16; BLOCK], |inverse| x.map(|x| ((x * inverse + 16.5) as i8).min(31) - 16));
        (scale, 0.0, codes)
    }

    fn pack(codes: &[i8; BLOCK], bytes: &mut [u8]) {
        five::pack(codes.map(|code| code.wrapping_add(16).cast_unsigned()), bytes);
    }

    fn unpack(bytes: &[u8]) -> [i8; BLOCK] {
        five::unpack(bytes).map(|code| code.cast_signed() - 16)
    }
}
