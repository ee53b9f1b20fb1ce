//! NVFP4 of four projects: groups of 16 E2M1 codes, the even one low, an 8-bit float a group, and a number for the tensor.
//!
//! ```text
//! x ~ number(code) * effective(scale, global)
//! ```
//!
//! | format | effective scale | global | scale of a group | quotient | ties |
//! |---|---|---|---|---|---|
//! | `compressed-tensors:nvfp4` | scale / global | (1 / amax) * 2688 | global * (largest / 6), 0.125 for 0 | x / effective | to even |
//! | `modelopt:nvfp4` | scale * global | amax / 2688 | largest / (6 * global), 1 for 0, at least 2^-9 | x / effective | to even |
//! | `torchao:nvfp4` | global * scale | amax / 2688 | (largest / 6) / global, at least 2^-6 | x * ((1 / global) / scale) | to even, zeros keep their sign |
//! | `mlx:nvfp4` | scale * (amax / 2688) | amax, an option | (largest / 6) * (2688 / amax) | (x / scale) * (2688 / amax) | toward zero |
//!
//! amax is the largest magnitude of the tensor, largest that of the group; scales are rounded half to even and kept to 448.
//! Sources: vllm-project/compressed-tensors `compressors/nvfp4`; NVIDIA/TensorRT-Model-Optimizer `qtensor/nvfp4_tensor.py`;
//! pytorch/ao `mx_formats/nvfp4_tensor.py`; ml-explore/mlx `mlx/backend/cpu/quantized.cpp`.

use super::e2m1::{NUMBERS, NUMBERS_WITHOUT_NEGATIVE_ZERO};
use super::planar::Planar;
use crate::kernels::encode::{Fit, Lanes, Rule};
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::{Need, Ranges};
use crate::kernels::scales::round_to_e4m3;
use crate::simd::e2m1::{self, Rounding};
use crate::simd::{LANES, Simd};
use crate::spec::{Choice, Codebook, Extent, Global, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};

pub(super) static COMPRESSED_TENSORS: Planar<CompressedTensors> = Planar::new(&COMPRESSED_TENSORS_SPEC);
pub(super) static MODEL_OPT: Planar<ModelOpt> = Planar::new(&MODEL_OPT_SPEC);
pub(super) static TORCHAO: Planar<TorchAo> = Planar::new(&TORCHAO_SPEC);
pub(super) static TORCHAO_ONE_LEVEL: Planar<TorchAo> = Planar::new(&TORCHAO_ONE_LEVEL_SPEC);
pub(super) static MLX: Planar<Mlx> = Planar::new(&MLX_SPEC);

/// What the formats have in common.
const COMMON: Spec =
    Spec { scheme: Scheme::Codebook(Codebook::E2m1), group_sizes: GroupSizes::Fixed(16), scale_dtypes: &[ScaleDtype::E4m3], ..Spec::BASE };

static COMPRESSED_TENSORS_SPEC: Spec = Spec {
    name: "compressed-tensors:nvfp4",
    summary: "groups of 16 E2M1 codes with an 8-bit float scale, and a scale of the tensor that divides",
    global: Some(Global::Divides),
    parts: &[
        Part { name: "weight_packed", dtype: PartDtype::U8, extent: Extent::Codes },
        Part { name: "weight_scale", dtype: PartDtype::Scale, extent: Extent::Groups },
        Part { name: "weight_global_scale", dtype: PartDtype::F32, extent: Extent::One },
    ],
    home: "compressed-tensors 0.20.0",
    ..COMMON
};

static MODEL_OPT_SPEC: Spec = Spec {
    name: "modelopt:nvfp4",
    summary: "groups of 16 E2M1 codes with an 8-bit float scale, and a scale of the tensor that multiplies",
    global: Some(Global::Multiplies),
    parts: &[
        Part { name: "weight", dtype: PartDtype::U8, extent: Extent::Codes },
        Part { name: "weight_scale", dtype: PartDtype::Scale, extent: Extent::Groups },
        Part { name: "weight_scale_2", dtype: PartDtype::F32, extent: Extent::Scalar },
    ],
    home: "nvidia-modelopt 0.47.0",
    ..COMMON
};

/// What both variants have in common.
const TORCHAO_COMMON: Spec = Spec {
    name: "torchao:nvfp4",
    summary: "groups of 16 E2M1 codes with an 8-bit float scale, and a scale of the tensor that multiplies",
    home: "torchao 0.18.0",
    ..COMMON
};

static TORCHAO_SPEC: Spec = Spec {
    global: Some(Global::Multiplies),
    choice: Some(Choice::TwoLevel(true)),
    parts: &[
        Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Codes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
        Part { name: "per_tensor_scale", dtype: PartDtype::F32, extent: Extent::Scalar },
    ],
    ..TORCHAO_COMMON
};

static TORCHAO_ONE_LEVEL_SPEC: Spec = Spec {
    global: None,
    choice: Some(Choice::TwoLevel(false)),
    parts: &[
        Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Codes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
    ],
    ..TORCHAO_COMMON
};

static MLX_SPEC: Spec = Spec {
    name: "mlx:nvfp4",
    summary: "words of 8 E2M1 codes, groups of 16 with an 8-bit float scale",
    global: Some(Global::Largest),
    parts: &[
        Part { name: "weight", dtype: PartDtype::U32, extent: Extent::Codes },
        Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups },
    ],
    home: "mlx 0.32.4",
    ..COMMON
};

/// The nearest 8-bit float, at least `least` and at most 448.
#[inline(always)]
fn stored<S: Simd>(simd: S, v: S::F32, least: f32) -> S::F32 {
    let (least, most) = (simd.splat(least), simd.splat(448.0));
    let v = simd.select(simd.less(v, least), least, v);
    round_to_e4m3(simd, simd.select(simd.less(most, v), most, v))
}

/// `v`, or infinity in place of 0: what is divided by it is 0.
#[inline(always)]
fn divisor<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    simd.select(simd.equal(v, simd.splat(0.0)), simd.splat(f32::INFINITY), v)
}

#[derive(Clone, Copy)]
pub(super) struct CompressedTensors {
    global: f32,
}

impl Default for CompressedTensors {
    fn default() -> Self {
        CompressedTensors { global: 1.0 }
    }
}

impl Rule for CompressedTensors {
    const NEED: Need = Need::Magnitude;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const NUMBERS: [f32; 16] = NUMBERS;
    const LANES: Lanes = Lanes::E2m1(Rounding::HalfToEven);

    fn of(global: f32) -> Self {
        CompressedTensors { global }
    }

    fn global(largest: f32) -> f32 {
        let global = 1.0 / largest.max(f32::MIN_POSITIVE) * Global::LARGEST;
        if global.is_finite() { global } else { 1.0 }
    }

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let (zero, global) = (simd.splat(0.0), simd.splat(self.global));
        let scale = stored(simd, simd.mul(global, simd.div(ranges.high, simd.splat(6.0))), 0.0);
        let scale = simd.select(simd.equal(scale, zero), simd.splat(0.125), scale);
        Fit { scale, offset: zero, factor: simd.div(scale, global) }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, effective: S::F32, offset: S::F32) -> S::I32 {
        e2m1::codes(simd, simd.as_f32(self.lanes(simd, x, effective, offset)), Rounding::HalfToEven)
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::F32, effective: S::F32, _: S::F32) -> S::I32 {
        simd.bits(simd.div(x, effective))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, simd.div(scale, simd.splat(self.global)))
    }
}

#[derive(Clone, Copy)]
pub(super) struct ModelOpt {
    global: f32,
}

impl Default for ModelOpt {
    fn default() -> Self {
        ModelOpt { global: 1.0 }
    }
}

impl Rule for ModelOpt {
    const NEED: Need = Need::Magnitude;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const NUMBERS: [f32; 16] = NUMBERS_WITHOUT_NEGATIVE_ZERO;
    const LANES: Lanes = Lanes::E2m1(Rounding::HalfToEven);

    fn of(global: f32) -> Self {
        ModelOpt { global }
    }

    fn global(largest: f32) -> f32 {
        largest / Global::LARGEST
    }

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let (zero, global) = (simd.splat(0.0), simd.splat(self.global));
        let scale = simd.div(ranges.high, divisor(simd, simd.mul(simd.splat(6.0), global)));
        let scale = simd.select(simd.equal(scale, zero), simd.splat(1.0), scale);
        let scale = stored(simd, scale, 1.0 / 512.0);
        Fit { scale, offset: zero, factor: divisor(simd, simd.mul(scale, global)) }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, effective: S::F32, offset: S::F32) -> S::I32 {
        e2m1::codes(simd, simd.as_f32(self.lanes(simd, x, effective, offset)), Rounding::HalfToEven)
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::F32, effective: S::F32, _: S::F32) -> S::I32 {
        simd.bits(simd.div(x, effective))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, simd.mul(scale, simd.splat(self.global)))
    }
}

#[derive(Clone, Copy)]
pub(super) struct TorchAo {
    global: f32,
    /// Whether what elements are multiplied by can be infinite.
    is_tiny: bool,
}

impl Default for TorchAo {
    fn default() -> Self {
        TorchAo { global: 1.0, is_tiny: false }
    }
}

/// The least scale of torchao.
const LEAST: f32 = 1.0 / 64.0;

impl Rule for TorchAo {
    const NEED: Need = Need::Magnitude;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const NUMBERS: [f32; 16] = NUMBERS;
    const LANES: Lanes = Lanes::E2m1(Rounding::WithSign);

    fn of(global: f32) -> Self {
        TorchAo { global, is_tiny: (1.0 / global / LEAST).is_infinite() }
    }

    fn global(largest: f32) -> f32 {
        largest / Global::LARGEST
    }

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let sixth = simd.div(ranges.high, simd.splat(6.0));
        let scale = stored(simd, simd.div(sixth, divisor(simd, simd.splat(self.global))), LEAST);
        let inverse = simd.div(simd.splat(1.0), divisor(simd, simd.splat(self.global)));
        Fit { scale, offset: simd.splat(0.0), factor: simd.div(inverse, scale) }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, factor: S::F32, offset: S::F32) -> S::I32 {
        e2m1::codes(simd, simd.as_f32(self.lanes(simd, x, factor, offset)), Rounding::WithSign)
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::F32, factor: S::F32, _: S::F32) -> S::I32 {
        let number = simd.mul(x, factor);
        // 0 times an infinite factor is 0 all the same.
        simd.bits(if self.is_tiny { simd.select(simd.equal(x, simd.splat(0.0)), x, number) } else { number })
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, simd.mul(simd.splat(self.global), scale))
    }
}

#[derive(Clone, Copy)]
pub(super) struct Mlx {
    largest: f32,
}

impl Mlx {
    /// What an element is rounded as.
    #[inline(always)]
    fn number<S: Simd>(self, simd: S, x: S::F32, scale: S::F32) -> S::F32 {
        simd.mul(simd.div(x, scale), simd.splat(Global::LARGEST / self.largest))
    }
}

impl Default for Mlx {
    fn default() -> Self {
        Mlx { largest: Global::LARGEST }
    }
}

impl Rule for Mlx {
    const NEED: Need = Need::Magnitude;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const NUMBERS: [f32; 16] = NUMBERS;
    const LANES: Lanes = Lanes::E2m1(Rounding::TowardZero);

    fn of(largest: f32) -> Self {
        Mlx { largest }
    }

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let sixth = simd.div(ranges.high, simd.splat(6.0));
        let scale = stored(simd, simd.mul(sixth, simd.splat(Global::LARGEST / self.largest)), 0.0);
        let factor = divisor(simd, scale);
        // The largest number of the group goes where a minimum would.
        Fit { scale, offset: self.number(simd, ranges.high, factor), factor }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, largest: S::F32) -> S::I32 {
        e2m1::codes(simd, simd.as_f32(self.lanes(simd, x, scale, largest)), Rounding::TowardZero)
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, largest: S::F32) -> S::I32 {
        let number = self.number(simd, x, scale);
        // From 2^22 on the distances to the numbers round.
        if !simd.any(simd.less(largest, simd.splat(4_194_304.0))) {
            let mut lanes = [0.0; LANES];
            simd.store(number, &mut lanes);
            return simd.bits(simd.load(&lanes.map(nearest)));
        }
        simd.bits(number)
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, simd.mul(scale, simd.splat(self.largest / Global::LARGEST)))
    }
}

/// The first number that is nearest in f32.
#[cold]
#[inline(never)]
fn nearest(v: f32) -> f32 {
    let distance = |code: usize| (NUMBERS[code] - v).abs();
    NUMBERS[(1..16).fold(0, |best, code| if distance(code) < distance(best) { code } else { best })]
}
