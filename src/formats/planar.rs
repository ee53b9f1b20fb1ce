//! The layout of codes, scales and offsets that are each in an array of their own, under the names that the format gives them.
//!
//! ```text
//! codes    byte i = code 2i low, code 2i + 1 high
//! scales   one a group, in the scale dtype
//! offsets  only where the scheme has them; minimums: one a group, in the scale dtype;
//!          zero points: byte i = zero point 2i low, zero point 2i + 1 high
//! ```

use super::{Context, Faults, Format, Groups, Need, Range};
use crate::kernels::decode::{Shelf, Tables, Values};
use crate::kernels::encode::{Fit, Pieces, Place, Rule, TILE, Tiles};
use crate::kernels::nibbles::{Pack, UNSIGNED, Unpack};
use crate::kernels::scales::{self, Load, Store};
use crate::simd::Simd;
use crate::spec::{ScaleDtype, Spec};
use bytemuck::{cast_slice, cast_slice_mut};
use std::marker::PhantomData;

/// A format of this layout: its facts and its numerics.
pub(super) struct Planar<R> {
    spec: &'static Spec,
    rule: PhantomData<R>,
}

impl<R: Rule> Planar<R> {
    pub(super) const fn new(spec: &'static Spec) -> Self {
        Planar { spec, rule: PhantomData }
    }

    /// What turns a code with the bias added into the stored nibble.
    const FLIP: u8 = (R::CODES[0] + R::BIAS) as u8;

    /// The groups of 32 to 512 elements that the fused kernels take, in sub-blocks of 32.
    fn run_of(context: Context) -> Option<usize> {
        (context.group.is_multiple_of(32) && (context.group / 32).is_power_of_two() && context.group <= TILE).then_some(context.group / 32)
    }

    /// The parts from element `start` on, which begins a tile.
    fn tails<'a>(context: Context, start: usize, parts: &'a mut [&mut [u8]]) -> Vec<&'a mut [u8]> {
        let groups = start / context.group;
        let scales = groups * context.scale_dtype.size();
        let starts = [start / 2, scales, if R::MINIMUM { scales } else { groups / 2 }];
        parts.iter_mut().zip(starts).map(|(part, start)| &mut part[start..]).collect()
    }

    fn encode_tiles(context: Context, run: usize, rule: R, x: &[f32], place: Columns<'_, R>) -> Faults {
        let dtype = context.scale_dtype;
        match run {
            1 => context.level.run(Tiles::<_, _, 1> { rule, place, x, dtype }),
            2 => context.level.run(Tiles::<_, _, 2> { rule, place, x, dtype }),
            4 => context.level.run(Tiles::<_, _, 4> { rule, place, x, dtype }),
            8 => context.level.run(Tiles::<_, _, 8> { rule, place, x, dtype }),
            _ => context.level.run(Tiles::<_, _, 16> { rule, place, x, dtype }),
        }
    }
}

impl<R: Rule + Default> Format for Planar<R> {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn need(&self) -> Need {
        R::NEED
    }

    fn quantize(&self, context: Context, x: &[f32], range: Option<Range>, groups: &mut Groups) -> Faults {
        let Groups { codes, scales, offsets, .. } = groups;
        context.level.run(Pieces { rule: R::default(), x, group: context.group, range, dtype: context.scale_dtype, codes, scales, offsets })
    }

    fn pack(&self, context: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [packed, scales, offsets @ ..] = parts else { unreachable!("the spec names two parts or three") };
        context.level.run(Pack { codes: cast_slice(&groups.codes), bias: 0, packed });
        context.level.run(Store { values: &groups.scales, dtype: context.scale_dtype, bytes: scales });
        match offsets {
            [minimums] if R::MINIMUM => context.level.run(Store { values: &groups.offsets, dtype: context.scale_dtype, bytes: minimums }),
            [zero_points] if !zero_points.is_empty() => {
                let codes: Vec<u8> = groups.offsets.iter().map(|&zero_point| zero_point as u8).collect();
                context.level.run(Pack { codes: &codes, bias: 0, packed: zero_points });
            }
            _ => {}
        }
    }

    fn unpack(&self, context: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [packed, scales, offsets @ ..] = parts else { unreachable!("the spec names two parts or three") };
        let table = &R::CODES.map(i8::cast_unsigned);
        context.level.run(Unpack { packed, table, codes: cast_slice_mut(&mut groups.codes) });
        context.level.run(Load { bytes: scales, dtype: context.scale_dtype, values: &mut groups.scales });
        match offsets {
            [minimums] if R::MINIMUM => {
                context.level.run(Load { bytes: minimums, dtype: context.scale_dtype, values: &mut groups.offsets });
            }
            [zero_points] if !zero_points.is_empty() => {
                let mut codes = vec![0; groups.offsets.len()];
                context.level.run(Unpack { packed: zero_points, table: &UNSIGNED.map(i8::cast_unsigned), codes: &mut codes });
                for (offset, code) in groups.offsets.iter_mut().zip(codes) {
                    *offset = f32::from(code);
                }
            }
            _ => {}
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        let Groups { codes, scales, offsets, .. } = groups;
        context.level.run(Values { rule: R::default(), codes, group: context.group, scales, offsets, x });
    }

    fn encode(&self, context: Context, x: &[f32], groups: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        let mut faults = Faults::default();
        let mut rest = 0;
        if let Some(run) = Self::run_of(context)
            && x.len() >= TILE
        {
            // Where a tile is one group, two tiles share a byte of zero points.
            let whole = if parts.len() > 2 && !R::MINIMUM && run == 16 { 2 * TILE } else { TILE };
            rest = x.len() / whole * whole;
            let place = Columns::new(context, parts);
            faults |= Self::encode_tiles(context, run, R::default(), &x[..rest], place);
        }
        if rest < x.len() {
            let mut parts = Self::tails(context, rest, parts);
            groups.resize(self.spec, context, x.len() - rest);
            faults |= self.quantize(context, &x[rest..], None, groups);
            self.pack(context, groups, &mut parts);
        }
        faults
    }

    fn decode(&self, context: Context, parts: &[&[u8]], groups: &mut Groups, x: &mut [f32]) {
        if context.group.is_multiple_of(32) && x.len().is_multiple_of(context.group) {
            let shelf = Rows::<R>::new(context, parts);
            return context.level.run(Tables { rule: R::default(), shelf, group: context.group, x, stream: context.stream });
        }
        groups.resize(self.spec, context, x.len());
        self.unpack(context, parts, groups);
        self.dequantize(context, groups, x);
    }
}

/// Where the fused kernel writes.
struct Columns<'a, R> {
    packed: &'a mut [u8],
    scales: &'a mut [u8],
    offsets: Option<&'a mut [u8]>,
    dtype: ScaleDtype,
    rule: PhantomData<R>,
}

impl<'a, R> Columns<'a, R> {
    fn new(context: Context, parts: &'a mut [&mut [u8]]) -> Self {
        let [packed, scales, offsets @ ..] = parts else { unreachable!("the spec names two parts or three") };
        let offsets = offsets.first_mut().map(|part| &mut **part);
        Columns { packed, scales, offsets, dtype: context.scale_dtype, rule: PhantomData }
    }
}

impl<R: Rule> Place for Columns<'_, R> {
    #[inline(always)]
    fn fit<S: Simd>(&mut self, simd: S, tile: usize, fit: &Fit<S>, run: usize) {
        let groups = 16 / run;
        let bytes = groups * self.dtype.size();
        scales::store(simd, fit.scale, self.dtype, run, &mut self.scales[tile * bytes..][..bytes]);
        if let Some(minimums) = &mut self.offsets
            && R::MINIMUM
        {
            scales::store(simd, fit.offset, self.dtype, run, &mut minimums[tile * bytes..][..bytes]);
        } else if let Some(zero_points) = &mut self.offsets {
            let mut lanes = [0; 16];
            simd.store_i32(simd.round(fit.offset), &mut lanes);
            let zero_point = |group: usize| lanes[group * run] as u8;
            if groups == 1 {
                // One group a tile: two tiles share a byte, and the even one comes first.
                let byte = &mut zero_points[tile / 2];
                *byte = if tile.is_multiple_of(2) { zero_point(0) } else { *byte | zero_point(0) << 4 };
            } else {
                for (pair, byte) in zero_points[tile * groups / 2..][..groups / 2].iter_mut().enumerate() {
                    *byte = zero_point(2 * pair) | zero_point(2 * pair + 1) << 4;
                }
            }
        }
    }

    #[inline(always)]
    fn codes<S: Simd>(&mut self, simd: S, line: usize, codes: &[S::I32; 8]) {
        let mut bytes = [0; 64];
        simd.pack_pairs(codes, &mut bytes);
        self.packed[64 * line..][..64].copy_from_slice(&bytes.map(|byte| byte ^ (Planar::<R>::FLIP * 0x11)));
    }
}

/// Where the fused decoder reads.
#[derive(Clone, Copy)]
struct Rows<'a, R> {
    packed: &'a [u8],
    scales: &'a [u8],
    offsets: &'a [u8],
    context: Context,
    rule: PhantomData<R>,
}

impl<'a, R> Rows<'a, R> {
    fn new(context: Context, parts: &[&'a [u8]]) -> Self {
        let [packed, scales, offsets @ ..] = parts else { unreachable!("the spec names two parts or three") };
        Rows { packed, scales, offsets: offsets.first().copied().unwrap_or_default(), context, rule: PhantomData }
    }
}

impl<R: Rule> Shelf for Rows<'_, R> {
    const HALVES: bool = false;

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        let size = self.context.scale_dtype.size();
        scales::load(simd, self.context.scale_dtype, &self.scales[first * size..][..count * size])
    }

    #[inline(always)]
    fn offsets<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        if R::MINIMUM {
            let size = self.context.scale_dtype.size();
            return scales::load(simd, self.context.scale_dtype, &self.offsets[first * size..][..count * size]);
        }
        // `first` is a multiple of 16; where there are no zero points the bytes are 0.
        let mut bytes = [0; 8];
        for (byte, packed) in bytes.iter_mut().zip(self.offsets.iter().skip(first / 2).take(count.div_ceil(2))) {
            *byte = *packed;
        }
        simd.to_f32(simd.and(simd.unpack_pairs(&bytes), simd.splat_i32(15)))
    }

    #[inline(always)]
    fn packed(&self, group: usize) -> &[u8] {
        let bytes = self.context.group / 2;
        &self.packed[group * bytes..][..bytes]
    }
}
