//! GGUF `Q5_1`: groups of 32, an f16 scale and an f16 minimum before codes of 5 bits. A companion: llama.cpp falls back to it where
//! rows do not divide into blocks of Q5_K.
//!
//! ```text
//! byte   0..2        2..4          4..8             8                    ...            23
//!        scale f16 | minimum f16 | fifth bits u32 | x0 low, x16 high | x1, x17 | ... | x15, x31
//!
//! scale = (max - min) / 31
//! code  = trunc((x - min) * (1 / scale) + 0.5)                    x ~ code * scale + minimum
//! ```
//!
//! Bit j of the word is the fifth of element j. The codes are made with scale and minimum before they are rounded to f16; a minimum of
//! zero has the sign of the first zero. Source: ggml-org/ggml `src/ggml-quants.c`, `quantize_row_q5_1_ref`.

use super::wide::{BLOCK, Blocks, Wide, five, reciprocal};
use crate::spec::{Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static FORMAT: Blocks<Q51> = Blocks::new(&SPEC);

static SPEC: Spec = Spec {
    name: "gguf:q5_1",
    aliases: &["q5_1"],
    summary: "companion: blocks of 32, codes of 5 bits, f16 scale and f16 minimum",
    scheme: Scheme::Minimum,
    bits: 5,
    group_sizes: GroupSizes::Fixed(BLOCK),
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(4 + five::BYTES) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

pub(super) struct Q51;

impl Wide for Q51 {
    const MINIMUM: bool = true;
    const CODES: usize = five::BYTES;

    fn encode(x: &[f32; BLOCK]) -> (f32, f32, [i8; BLOCK]) {
        let (low, high) =
            x.iter().fold((f32::MAX, -f32::MAX), |(low, high), &x| (if x < low { x } else { low }, if x > high { x } else { high }));
        let scale = (high - low) / 31.0;
        // There is no least of 31: where a subnormal scale makes a code of 32, ggml keeps five bits of it.
        let codes = reciprocal(scale).map_or([0; BLOCK], |inverse| x.map(|x| ((x - low) * inverse + 0.5) as i8 & 31));
        (scale, low, codes)
    }

    fn pack(codes: &[i8; BLOCK], bytes: &mut [u8]) {
        five::pack(codes.map(i8::cast_unsigned), bytes);
    }

    fn unpack(bytes: &[u8]) -> [i8; BLOCK] {
        five::unpack(bytes).map(u8::cast_signed)
    }
}
