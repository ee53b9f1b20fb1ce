//! MXFP4 in the layouts of five projects: groups of 32 E2M1 codes under one power of two.
//!
//! ```text
//! x ~ number(code) * 2^(byte - 127)
//! ```
//!
//! | format | layout | exponent | ties |
//! |---|---|---|---|
//! | `gguf:mxfp4` | blocks of 17 bytes: exponent, then byte j = x_j low, x_(j+16) high | floor of log2 in f32 | toward zero |
//! | `gptoss:mxfp4` | `blocks` (..., K/32, 16), `scales`: adjacent codes, the even one low | even | to even |
//! | `mlx:mxfp4` | `weight` words of 8 codes, `scales` | round up | toward zero |
//! | `compressed-tensors:mxfp4` | `weight_packed`, `weight_scale`: adjacent codes | even | to even |
//! | `torchao:mxfp4` | `packed`, `scales`: adjacent codes | floor, rceil, ceil or even | to even, zeros keep their sign |
//!
//! Sources: ggml-org/ggml `src/ggml-quants.c`; openai/gpt-oss checkpoints as huggingface/transformers `integrations/mxfp4.py`
//! reads them (the encoder is ours: the even rule); ml-explore/mlx `mlx/backend/cpu/quantized.cpp`; vllm-project/compressed-tensors
//! `compressors/mx_utils.py`; pytorch/ao `torchao/prototype/mx_formats/mx_tensor.py`.

use super::blocks::{BLOCK, Blocks, Header};
use super::e2m1::{NUMBERS, NUMBERS_WITHOUT_NEGATIVE_ZERO};
use super::planar::Planar;
use crate::kernels::encode::{Fit, Lanes, Rule};
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::{Need, Ranges};
use crate::simd::Simd;
use crate::simd::e2m1::{self, Rounding};
use crate::spec::{Choice, Codebook, Extent, GroupSizes, Part, PartDtype, ScaleDtype, ScaleRule, Scheme, Spec};
use std::marker::PhantomData;

pub(super) static GGUF: Blocks<Mxfp4<FloorOfLog2>> = Blocks::new(&GGUF_SPEC);
pub(super) static GPT_OSS: Planar<Mxfp4<Even>> = Planar::new(&GPT_OSS_SPEC);
pub(super) static MLX: Planar<Mxfp4<RoundUp>> = Planar::new(&MLX_SPEC);
pub(super) static COMPRESSED_TENSORS: Planar<Mxfp4<Even>> = Planar::new(&COMPRESSED_TENSORS_SPEC);
pub(super) static TORCHAO_FLOOR: Planar<Mxfp4<Floor>> = Planar::new(&TORCHAO_FLOOR_SPEC);
pub(super) static TORCHAO_RCEIL: Planar<Mxfp4<CeilOfLog2>> = Planar::new(&TORCHAO_RCEIL_SPEC);
pub(super) static TORCHAO_CEIL: Planar<Mxfp4<Ceil>> = Planar::new(&TORCHAO_CEIL_SPEC);
pub(super) static TORCHAO_EVEN: Planar<Mxfp4<EvenNormal>> = Planar::new(&TORCHAO_EVEN_SPEC);

/// What the formats have in common.
const COMMON: Spec = Spec {
    scheme: Scheme::Codebook(Codebook::E2m1),
    group_sizes: GroupSizes::Fixed(BLOCK),
    scale_dtypes: &[ScaleDtype::E8m0],
    ..Spec::BASE
};

static GGUF_SPEC: Spec = Spec {
    name: "gguf:mxfp4",
    aliases: &[],
    summary: "blocks of 32 E2M1 codes, the exponent before them",
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(17) }],
    home: "ggml 0.13.1",
    ..COMMON
};

static GPT_OSS_SPEC: Spec = Spec {
    name: "gptoss:mxfp4",
    summary: "E2M1 codes and exponents apart, an axis for the bytes of a group",
    parts: &[
        Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::GroupCodes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
    ],
    home: "transformers 5.23.0",
    exact: false,
    ..COMMON
};

static MLX_SPEC: Spec = Spec {
    name: "mlx:mxfp4",
    summary: "words of 8 E2M1 codes, exponents apart",
    parts: &[
        Part { name: "weight", dtype: PartDtype::U32, extent: Extent::Codes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
    ],
    home: "mlx 0.32.4",
    ..COMMON
};

/// A variant of torchao's format.
const fn torchao(rule: ScaleRule) -> Spec {
    Spec {
        name: "torchao:mxfp4",
        summary: "E2M1 codes and exponents apart, four rules for the exponent",
        choice: Some(Choice::ScaleRule(rule)),
        parts: TORCHAO_PARTS,
        home: "torchao 0.18.0",
        ..COMMON
    }
}

const TORCHAO_PARTS: &[Part] = &[
    Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Codes },
    Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
];

static TORCHAO_FLOOR_SPEC: Spec = torchao(ScaleRule::Floor);
static TORCHAO_RCEIL_SPEC: Spec = torchao(ScaleRule::Rceil);
static TORCHAO_CEIL_SPEC: Spec = torchao(ScaleRule::Ceil);
static TORCHAO_EVEN_SPEC: Spec = torchao(ScaleRule::Even);

static COMPRESSED_TENSORS_SPEC: Spec = Spec {
    name: "compressed-tensors:mxfp4",
    summary: "E2M1 codes and exponents apart",
    parts: &[
        Part { name: "weight_packed", dtype: PartDtype::U8, extent: Extent::Codes },
        Part { name: "weight_scale", dtype: PartDtype::Scale, extent: Extent::Groups },
    ],
    home: "compressed-tensors 0.20.0",
    ..COMMON
};

/// The numerics of one encoder; all decoders agree but for the sign of a zero.
#[derive(Clone, Copy, Default)]
pub(super) struct Mxfp4<E>(PhantomData<E>);

/// How the exponent follows from the largest magnitude of a group.
pub(super) trait Exponent: Copy + Default + Send + Sync + 'static {
    /// How numbers are rounded.
    const ROUNDING: Rounding;
    /// Whether code 8 decodes to +0.0 at home.
    const NO_NEGATIVE_ZERO: bool = false;
    /// What elements are multiplied by where the byte is 0.
    const LARGEST_FACTOR: f32 = f32::from_bits(254 << 23);

    /// The exponent bytes, not yet confined to 0..=254; `largest` is 0 or more.
    fn bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32;
}

/// floor(log2(largest)) - 2, where log2 is correctly rounded to f32: a few ulp below a power of two it is that power.
#[derive(Clone, Copy, Default)]
pub(super) struct FloorOfLog2;

impl Exponent for FloorOfLog2 {
    const ROUNDING: Rounding = Rounding::TowardZero;
    const NO_NEGATIVE_ZERO: bool = true;

    #[inline(always)]
    fn bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32 {
        let bits = simd.bits(largest);
        // Within 64 ulp below a power of two the logarithm may round up to it.
        let mantissa = simd.and(bits, simd.splat_i32(0x7f_ffff));
        let near = simd.less(simd.splat((0x7f_ffff - 64) as f32), simd.to_f32(mantissa));
        let mut field = simd.shift_right(bits, 23);
        if simd.any(near) {
            let (mut lanes, mut largest_lanes) = ([0; 16], [0.0; 16]);
            simd.store_i32(field, &mut lanes);
            simd.store(largest, &mut largest_lanes);
            correct_fields(&mut lanes, &largest_lanes);
            field = simd.load_i32(&lanes);
        }
        simd.add_i32(field, simd.splat_i32(-2))
    }
}

#[cold]
#[inline(never)]
fn correct_fields(fields: &mut [i32; 16], largest: &[f32; 16]) {
    for (field, &largest) in fields.iter_mut().zip(largest) {
        if largest.is_normal() {
            *field = (f64::from(largest).log2() as f32).floor() as i32 + 127;
        }
    }
}

/// The exponent of `largest`, raised where its mantissa is 1.75 or more, - 2.
#[derive(Clone, Copy, Default)]
pub(super) struct Even;

impl Exponent for Even {
    const ROUNDING: Rounding = Rounding::HalfToEven;

    #[inline(always)]
    fn bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32 {
        let bits = simd.add_i32(simd.bits(largest), simd.splat_i32(0x0020_0000));
        simd.add_i32(simd.shift_right(bits, 23), simd.splat_i32(-2))
    }
}

/// The smallest power of two that is not below largest / 6; 1 where that is zero.
#[derive(Clone, Copy, Default)]
pub(super) struct RoundUp;

impl Exponent for RoundUp {
    const ROUNDING: Rounding = Rounding::TowardZero;

    #[inline(always)]
    fn bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32 {
        let zero = simd.splat(0.0);
        let sixth = simd.div(largest, simd.splat(6.0));
        // Up to 2^-127 the byte is 0, which the bits of a subnormal number do not say.
        let target = simd.select(simd.less(simd.splat(f32::from_bits(0x0040_0000)), sixth), sixth, zero);
        let target = simd.select(simd.equal(sixth, zero), simd.splat(1.0), target);
        simd.shift_right(simd.add_i32(simd.bits(target), simd.splat_i32(0x7f_ffff)), 23)
    }
}

/// The exponent of `largest`, - 2.
#[derive(Clone, Copy, Default)]
pub(super) struct Floor;

impl Exponent for Floor {
    const ROUNDING: Rounding = Rounding::WithSign;
    const LARGEST_FACTOR: f32 = f32::from_bits(253 << 23);

    #[inline(always)]
    fn bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32 {
        simd.add_i32(simd.shift_right(simd.bits(largest), 23), simd.splat_i32(-2))
    }
}

/// The exponent of the smallest power of two that is not below `largest`, - 2.
#[derive(Clone, Copy, Default)]
pub(super) struct Ceil;

impl Exponent for Ceil {
    const ROUNDING: Rounding = Rounding::WithSign;
    const LARGEST_FACTOR: f32 = f32::from_bits(253 << 23);

    #[inline(always)]
    fn bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32 {
        let bits = simd.add_i32(simd.bits(largest), simd.splat_i32(0x7f_ffff));
        simd.add_i32(simd.shift_right(bits, 23), simd.splat_i32(-2))
    }
}

/// As [`Even`]; where the byte is 0 elements are divided by 2^-126.
#[derive(Clone, Copy, Default)]
pub(super) struct EvenNormal;

impl Exponent for EvenNormal {
    const ROUNDING: Rounding = Rounding::WithSign;
    const LARGEST_FACTOR: f32 = f32::from_bits(253 << 23);

    #[inline(always)]
    fn bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32 {
        Even::bytes(simd, largest)
    }
}

/// ceil(log2(largest / 6)), where log2 is correctly rounded to f32: a few ulp above a power of two it is that power. A group
/// of zeros has byte 0, and elements are left as they are where the byte is 0.
#[derive(Clone, Copy, Default)]
pub(super) struct CeilOfLog2;

impl Exponent for CeilOfLog2 {
    const ROUNDING: Rounding = Rounding::WithSign;
    const LARGEST_FACTOR: f32 = 1.0;

    #[inline(always)]
    fn bytes<S: Simd>(simd: S, largest: S::F32) -> S::I32 {
        let sixth = simd.div(largest, simd.splat(6.0));
        // Up to 2^-127 the byte is 0.
        let target = simd.select(simd.less(simd.splat(f32::from_bits(0x0040_0000)), sixth), sixth, simd.splat(0.0));
        let bits = simd.bits(target);
        let mantissa = simd.to_f32(simd.and(bits, simd.splat_i32(0x7f_ffff)));
        let mut bytes = simd.shift_right(simd.add_i32(bits, simd.splat_i32(0x7f_ffff)), 23);
        let near = simd.and(simd.less(simd.splat(0.0), mantissa), simd.less(mantissa, simd.splat(65.0)));
        if simd.any(near) {
            let (mut lanes, mut targets) = ([0; 16], [0.0; 16]);
            simd.store_i32(bytes, &mut lanes);
            simd.store(target, &mut targets);
            correct_bytes(&mut lanes, &targets);
            bytes = simd.load_i32(&lanes);
        }
        bytes
    }
}

#[cold]
#[inline(never)]
fn correct_bytes(bytes: &mut [i32; 16], targets: &[f32; 16]) {
    for (byte, &target) in bytes.iter_mut().zip(targets) {
        if target.is_normal() {
            *byte = (f64::from(target).log2() as f32).ceil() as i32 + 127;
        }
    }
}

impl<E: Exponent> Rule for Mxfp4<E> {
    const NEED: Need = Need::Magnitude;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const LANES: Lanes = Lanes::E2m1(E::ROUNDING);
    const NUMBERS: [f32; 16] = if E::NO_NEGATIVE_ZERO { NUMBERS_WITHOUT_NEGATIVE_ZERO } else { NUMBERS };

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let zero = simd.splat(0.0);
        let byte = simd.max_i32(E::bytes(simd, ranges.high), simd.splat_i32(0));
        // 2^-127 has no exponent field of its own.
        let smallest = simd.and(simd.equal(simd.to_f32(byte), zero), simd.splat_i32(0x0040_0000));
        let scale = simd.as_f32(simd.or(simd.shift_left(byte, 23), smallest));
        let negated_byte = simd.add_i32(simd.xor(byte, simd.splat_i32(-1)), simd.splat_i32(1));
        let inverse = simd.as_f32(simd.shift_left(simd.add_i32(negated_byte, simd.splat_i32(254)), 23));
        let inverse = simd.select(simd.equal(simd.to_f32(byte), zero), simd.splat(E::LARGEST_FACTOR), inverse);
        Fit { scale, offset: zero, factor: inverse }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, _: S::F32) -> S::I32 {
        e2m1::codes(simd, simd.mul(x, inverse), E::ROUNDING)
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::F32, inverse: S::F32, _: S::F32) -> S::I32 {
        simd.bits(simd.mul(x, inverse))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, scale)
    }
}

impl<E: Exponent> Header for Mxfp4<E> {
    const DTYPE: ScaleDtype = ScaleDtype::E8m0;
}
