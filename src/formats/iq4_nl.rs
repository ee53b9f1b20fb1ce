//! GGUF `IQ4_NL`: groups of 32 under a table of 16 numbers, one f16 scale before the codes.
//!
//! ```text
//! byte   0..2      2                    ...            17
//!        scale f16 | x0 low, x16 high | x1, x17 | ... | x15, x31
//!
//! scale = the best of 16 candidates (see `iq4`)
//! code  = nearest(x * (1 / scale)), a tie to the larger number    x ~ table[code] * scale
//! ```
//!
//! The codes are made with the scale before it is rounded to f16. This is the encoder of ggml's `quantize_iq4_nl`; its
//! `quantize_row_iq4_nl_ref` tries one candidate only. Source: ggml-org/ggml `src/ggml-quants.c`.

use super::iq4::{self, Iq4, Nearest, reciprocal_or_zero, search};
use super::{Context, Faults, Groups, Need, Range, Rows};
use crate::kernels::decode::{Output, Shelf, Tables, Values};
use crate::kernels::lanes::{self, GROUP, TILE, any_not_finite};
use crate::kernels::scales::{self, round_to};
use crate::simd::{Kernel, LANES, Simd};
use crate::spec::{Codebook, Extent, GroupSizes, Part, PartDtype, ScaleDtype, Scheme, Spec};
use half::f16;

pub(super) static FORMAT: Iq4Nl = Iq4Nl;

static SPEC: Spec = Spec {
    name: "gguf:iq4_nl",
    aliases: &["iq4_nl"],
    summary: "blocks of 32 codes of a table of 16, f16 scale",
    scheme: Scheme::Codebook(Codebook::Iq4),
    group_sizes: GroupSizes::Fixed(GROUP),
    scale_dtypes: &[ScaleDtype::F16],
    parts: &[Part { name: "blocks", dtype: PartDtype::U8, extent: Extent::Blocks(BYTES) }],
    home: "ggml 0.13.1",
    ..Spec::BASE
};

/// Bytes of the scale.
const SCALE: usize = 2;

/// Bytes of a block.
const BYTES: usize = SCALE + GROUP / 2;

pub(super) struct Iq4Nl;

impl Rows for Iq4Nl {
    fn spec(&self) -> &'static Spec {
        &SPEC
    }

    fn need(&self) -> Need {
        Need::Magnitude
    }

    fn quantize(&self, context: Context, x: &[f32], _: Option<Range>, groups: &mut Groups) -> Faults {
        context.level.run(Quantize { x, groups })
    }

    fn pack(&self, _: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        for ((block, codes), &scale) in
            blocks.as_chunks_mut::<BYTES>().0.iter_mut().zip(groups.codes.chunks_exact(GROUP)).zip(&groups.scales)
        {
            let (header, packed) = block.split_at_mut(SCALE);
            header.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
            iq4::pack(codes, packed);
        }
    }

    fn unpack(&self, _: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let groups = groups.codes.chunks_exact_mut(GROUP).zip(&mut groups.scales);
        for (block, (codes, scale)) in blocks.as_chunks::<BYTES>().0.iter().zip(groups) {
            *scale = f16::from_le_bytes([block[0], block[1]]).to_f32();
            iq4::unpack(&block[SCALE..], codes);
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        let Groups { codes, scales, .. } = groups;
        context.level.run(Values { rule: Iq4, codes, group: GROUP, scales, offsets: &[], x });
    }

    fn decode(&self, context: Context, parts: &[&[u8]], _: &mut Groups, x: Output<'_>) {
        let [blocks] = parts else { unreachable!("the spec names one part") };
        let shelf = Blocks(blocks.as_chunks().0);
        context.level.run(Tables { rule: Iq4, shelf, group: GROUP, x, stream: context.stream });
    }
}

struct Quantize<'a> {
    x: &'a [f32],
    groups: &'a mut Groups,
}

impl Kernel for Quantize<'_> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Faults {
        let Groups { codes, scales, .. } = self.groups;
        let nearest = Nearest::new(simd);
        let mut faults = Faults::default();
        for ((x, codes), scales) in self.x.chunks(TILE).zip(codes.chunks_mut(TILE)).zip(scales.chunks_mut(LANES)) {
            let x = lanes::load(simd, x);
            let found = search(simd, nearest, &x);
            let stored = round_to(simd, found.scale, ScaleDtype::F16);
            faults |= Faults { element: any_not_finite(simd, found.largest), scale: any_not_finite(simd, stored) };
            let inverse = reciprocal_or_zero(simd, found.scale);
            lanes::store_codes(simd, &x.map(|x| nearest.code(simd, simd.mul(inverse, x))), codes);
            let mut all = [0.0; LANES];
            simd.store(stored, &mut all);
            scales.copy_from_slice(&all[..scales.len()]);
        }
        faults
    }
}

/// Where the decoder reads.
#[derive(Clone, Copy)]
struct Blocks<'a>(&'a [[u8; BYTES]]);

impl Shelf for Blocks<'_> {
    const HALVES: bool = true;

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        let mut bytes = [0; SCALE * LANES];
        for (bytes, block) in bytes.as_chunks_mut::<SCALE>().0.iter_mut().zip(&self.0[first..first + count]) {
            bytes.copy_from_slice(&block[..SCALE]);
        }
        scales::load(simd, ScaleDtype::F16, &bytes)
    }

    #[inline(always)]
    fn offsets<S: Simd>(self, simd: S, _: usize, _: usize) -> S::F32 {
        simd.splat(0.0)
    }

    #[inline(always)]
    fn packed(&self, group: usize) -> &[u8] {
        &self.0[group][SCALE..]
    }
}
