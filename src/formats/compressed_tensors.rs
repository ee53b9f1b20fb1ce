//! `compressed-tensors`, its pack-quantized: matrices W (N, K) with a scale a group, and a zero point or none.
//!
//! ```text
//! weight_packed      i32 (N, ceil(K / 8))   W[n, 8i] in the lowest bits of word (n, i); the last word of a row filled up with 0
//! weight_scale       (N, G) in the dtype of the array
//! weight_zero_point  i32 (ceil(N / 8), G)   that of row 8j in the lowest bits of word (j, g); only if asymmetric
//! weight_shape       i64 (2): N, K
//!
//! low = min(x, 0), high = max(x, 0)
//! symmetric:   scale = max(-low, high) / 7.5, z = 0
//! asymmetric:  scale = (high - low) / 15, z = round(clamp(-8 - low / scale, -8, 7)), 0 where low / scale is 0 / 0
//! a scale of 0 becomes the epsilon of the dtype
//! q = round(clamp(x / scale + z, -8, 7));  stored are q + 8 and z + 8
//! x ~ (code - zero_point) * scale, the zero point of symmetric codes 8
//! ```
//!
//! Encoding, every operation is rounded to the dtype of the scales; integers are rounded half to even. Source:
//! vllm-project/compressed-tensors `src/compressed_tensors/compressors/pack_quantized/`, `quantization/utils/helpers.py` and
//! `quantization/lifecycle/forward_helpers.py`.

use super::planar::{Planar, rows};
use super::{Context, Faults, Groups, Need, Range, Rows, Tile, Weave};
use crate::kernels::blocks::{Block, BlockMut};
use crate::kernels::decode::Output;
use crate::kernels::encode::{Fit, Input, Rule};
use crate::kernels::lanes::clamp;
use crate::kernels::nibbles::{OFFSET, UNSIGNED};
use crate::kernels::range::Ranges;
use crate::kernels::scales::round_to;
use crate::simd::Simd;
use crate::spec::{Choice, Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Shapes, Spec};
use std::marker::PhantomData;

pub(super) static SYMMETRIC: PackQuantized<true> = PackQuantized { spec: &SYMMETRIC_SPEC, rows: &SYMMETRIC_ROWS };
pub(super) static ASYMMETRIC: PackQuantized<false> = PackQuantized { spec: &ASYMMETRIC_SPEC, rows: &ASYMMETRIC_ROWS };

static SYMMETRIC_SPEC: Spec = spec(true);
static ASYMMETRIC_SPEC: Spec = spec(false);
static SYMMETRIC_ROWS_SPEC: Spec = rows(&SYMMETRIC_SPEC);
static ASYMMETRIC_ROWS_SPEC: Spec = rows(&ASYMMETRIC_SPEC);

const fn spec(symmetric: bool) -> Spec {
    const CODES: Part = Part { name: "weight_packed", dtype: PartDtype::I32, extent: Extent::Codes };
    const SCALES: Part = Part { name: "weight_scale", dtype: PartDtype::Scale, extent: Extent::Groups };
    const ZERO_POINTS: Part = Part { name: "weight_zero_point", dtype: PartDtype::I32, extent: Extent::GroupWordsAcrossRows };
    const SHAPE: Part = Part { name: "weight_shape", dtype: PartDtype::I64, extent: Extent::Lengths };
    Spec {
        name: "compressed-tensors",
        summary: "compressed-tensors pack-quantized: words of 8 codes along K, scales in the dtype of the weight",
        scheme: if symmetric { Scheme::Symmetric } else { Scheme::Affine },
        group_sizes: GroupSizes::OneOf { sizes: &[32, 64, 128], default: 128, row: true, short: false },
        shapes: Shapes::Matrix { rows: 1, columns: 1 },
        scale_dtypes: &[ScaleDtype::F32, ScaleDtype::F16, ScaleDtype::Bf16],
        scales_follow_array: true,
        parts: if symmetric { &[CODES, SCALES, SHAPE] } else { &[CODES, SCALES, ZERO_POINTS, SHAPE] },
        choice: Some(Choice::Symmetric(symmetric)),
        home: "compressed-tensors 0.20.0",
        ..Spec::BASE
    }
}

static SYMMETRIC_ROWS: AnyDtype<true> = AnyDtype::new(&SYMMETRIC_ROWS_SPEC);
static ASYMMETRIC_ROWS: AnyDtype<false> = AnyDtype::new(&ASYMMETRIC_ROWS_SPEC);

/// A dtype that the arithmetic is in.
pub(super) trait Arithmetic: Copy + Default + Send + Sync + 'static {
    const DTYPE: ScaleDtype;
    /// What a scale of 0 becomes.
    const EPSILON: f32;
}

#[derive(Clone, Copy, Default)]
pub(super) struct Single;

impl Arithmetic for Single {
    const DTYPE: ScaleDtype = ScaleDtype::F32;
    const EPSILON: f32 = f32::EPSILON;
}

#[derive(Clone, Copy, Default)]
pub(super) struct Half;

impl Arithmetic for Half {
    const DTYPE: ScaleDtype = ScaleDtype::F16;
    const EPSILON: f32 = 1.0 / 1024.0;
}

#[derive(Clone, Copy, Default)]
pub(super) struct Brain;

impl Arithmetic for Brain {
    const DTYPE: ScaleDtype = ScaleDtype::Bf16;
    const EPSILON: f32 = 1.0 / 128.0;
}

#[derive(Clone, Copy, Default)]
pub(super) struct Rounded<A, const SYMMETRIC: bool>(PhantomData<A>);

impl<A: Arithmetic, const SYMMETRIC: bool> Rule for Rounded<A, SYMMETRIC> {
    const NEED: Need = Need::WithZero;
    const BIAS: i8 = if SYMMETRIC { 8 } else { 0 };
    const CODES: [i8; 16] = if SYMMETRIC { OFFSET } else { UNSIGNED };

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let round = |v: S::F32| round_to(simd, v, A::DTYPE);
        let (zero, eight) = (simd.splat(0.0), simd.splat(8.0));
        let Ranges { high, low } = ranges;
        let negated = simd.sub(zero, low);
        let scale = if SYMMETRIC {
            round(simd.div(simd.select(simd.less(high, negated), negated, high), simd.splat(7.5)))
        } else {
            round(simd.div(round(simd.sub(high, low)), simd.splat(15.0)))
        };
        let zero_point = if SYMMETRIC {
            eight
        } else {
            let ideal = round(simd.sub(simd.splat(-8.0), round(simd.div(low, scale))));
            let nearest = simd.to_f32(simd.round(clamp(simd, ideal, simd.splat(-8.0), simd.splat(7.0))));
            simd.add(simd.select(simd.equal(ideal, ideal), nearest, zero), eight)
        };
        let scale = simd.select(simd.equal(scale, zero), simd.splat(A::EPSILON), scale);
        Fit { scale, offset: zero_point, factor: scale }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, zero_point: S::F32) -> S::I32 {
        let mut steps = round_to(simd, simd.div(x, scale), A::DTYPE);
        if !SYMMETRIC {
            steps = round_to(simd, simd.add(steps, simd.sub(zero_point, simd.splat(8.0))), A::DTYPE);
        }
        simd.add_i32(simd.round(steps), simd.splat_i32(8))
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, zero_point: S::F32) -> S::F32 {
        simd.mul(if SYMMETRIC { numbers } else { simd.sub(numbers, zero_point) }, scale)
    }
}

/// The same rows with arithmetic in the dtype of the scales, whichever it is.
pub(super) struct AnyDtype<const SYMMETRIC: bool> {
    single: Planar<Rounded<Single, SYMMETRIC>>,
    half: Planar<Rounded<Half, SYMMETRIC>>,
    brain: Planar<Rounded<Brain, SYMMETRIC>>,
}

impl<const SYMMETRIC: bool> AnyDtype<SYMMETRIC> {
    const fn new(spec: &'static Spec) -> Self {
        AnyDtype { single: Planar::new(spec), half: Planar::new(spec), brain: Planar::new(spec) }
    }

    fn of(&self, context: Context) -> &dyn Rows {
        match context.scale_dtype {
            ScaleDtype::F16 => &self.half,
            ScaleDtype::Bf16 => &self.brain,
            _ => &self.single,
        }
    }
}

impl<const SYMMETRIC: bool> Rows for AnyDtype<SYMMETRIC> {
    fn spec(&self) -> &'static Spec {
        self.single.spec()
    }

    fn need(&self) -> Need {
        self.single.need()
    }

    fn quantize(&self, context: Context, x: &[f32], range: Option<Range>, groups: &mut Groups) -> Faults {
        self.of(context).quantize(context, x, range, groups)
    }

    fn pack(&self, context: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        self.of(context).pack(context, groups, parts);
    }

    fn unpack(&self, context: Context, parts: &[&[u8]], groups: &mut Groups) {
        self.of(context).unpack(context, parts, groups);
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        self.of(context).dequantize(context, groups, x);
    }

    fn encode(&self, context: Context, x: Input<'_>, groups: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        self.of(context).encode(context, x, groups, parts)
    }

    fn decode(&self, context: Context, parts: &[&[u8]], groups: &mut Groups, x: Output<'_>) {
        self.of(context).decode(context, parts, groups, x);
    }
}

/// The layout.
pub(super) struct PackQuantized<const SYMMETRIC: bool> {
    spec: &'static Spec,
    rows: &'static AnyDtype<SYMMETRIC>,
}

/// Rows that share a word of zero points.
const WORD: usize = 8;

impl<const SYMMETRIC: bool> Weave for PackQuantized<SYMMETRIC> {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn rows(&self) -> &'static dyn Rows {
        self.rows
    }

    fn weave(&self, context: Context, tile: Tile, rows: &[&[u8]], parts: &mut [BlockMut<'_>]) {
        let groups = context.groups(tile.columns);
        rows.iter().zip(parts.iter_mut()).take(2).for_each(|(from, to)| to.copy_from(from));
        if SYMMETRIC {
            return;
        }
        let mut words = vec![0u32; groups];
        for (index, zero_points) in rows[2].chunks(WORD * groups).enumerate() {
            words.fill(0);
            for (zero_points, shift) in zero_points.chunks_exact(groups).zip((0..).step_by(4)) {
                for (word, &zero_point) in words.iter_mut().zip(zero_points) {
                    *word |= u32::from(zero_point & 15) << shift;
                }
            }
            for (to, word) in parts[2].row(index).as_chunks_mut().0.iter_mut().zip(&words) {
                *to = word.to_le_bytes();
            }
        }
    }

    fn unweave(&self, context: Context, tile: Tile, parts: &[Block<'_>], rows: &mut [&mut [u8]]) {
        let groups = context.groups(tile.columns);
        parts.iter().zip(rows.iter_mut()).take(2).for_each(|(from, to)| from.copy_to(to));
        if SYMMETRIC {
            return;
        }
        for (index, zero_points) in rows[2].chunks_mut(WORD * groups).enumerate() {
            let words = parts[2].row(index).as_chunks().0;
            for (zero_points, shift) in zero_points.chunks_exact_mut(groups).zip((0..).step_by(4)) {
                for (zero_point, word) in zero_points.iter_mut().zip(words) {
                    *zero_point = (u32::from_le_bytes(*word) >> shift & 15) as u8;
                }
            }
        }
    }
}
