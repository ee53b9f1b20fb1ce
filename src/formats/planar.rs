//! The layout of codes, scales and offsets that are each in an array of their own, under the names that the format gives them.
//!
//! ```text
//! codes    byte i = code 2i low, code 2i + 1 high; or the other way round
//! scales   one a group, in the scale dtype
//! offsets  only where the scheme has them: one a group in the scale dtype, one byte a group, or
//!          byte i = zero point 2i low, zero point 2i + 1 high
//! ```

use super::{Context, Faults, Groups, Need, Range, Rows};
use crate::kernels::decode::{Output, Shelf, Tables, Values};
use crate::kernels::encode::{Fit, Input, LINE, Lines, Pieces, Place, Ranged, Rule, TILE, Tiles};
use crate::kernels::nibbles::{Pack, UNSIGNED, Unpack};
use crate::kernels::pace::Pace;
use crate::kernels::scales::{self, Load, Store};
use crate::kernels::stream::Front;
use crate::simd::{LANES, Simd};
use crate::spec::{Extent, Part, PartDtype, ScaleDtype, Scheme, Spec, ZeroPoints};
use bytemuck::{cast_slice, cast_slice_mut};
use std::marker::PhantomData;

/// A format of this layout: its facts and its numerics.
pub(super) struct Planar<R, const HIGH_FIRST: bool = false> {
    spec: &'static Spec,
    rule: PhantomData<R>,
}

/// How offsets are stored.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Offsets {
    /// There are none.
    None,
    /// In the scale dtype.
    Numbers,
    /// A byte each.
    Bytes,
    /// Two a byte.
    Nibbles,
}

/// The facts of the rows that a format is woven of: codes, scales and, where there are zero points, those, one element a group.
pub(super) const fn rows(spec: &Spec) -> Spec {
    const CODES: Part = Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Codes };
    const SCALES: Part = Part { name: "scales", dtype: PartDtype::Scale, extent: Extent::Groups };
    const INTEGERS: Part = Part { name: "zero_points", dtype: PartDtype::U8, extent: Extent::Groups };
    const NUMBERS: Part = Part { name: "zero_points", dtype: PartDtype::Scale, extent: Extent::Groups };
    let parts: &[Part] = match (spec.scheme, spec.zero_points) {
        (Scheme::Affine, ZeroPoints::Integers(..)) => &[CODES, SCALES, INTEGERS],
        (Scheme::Affine, ZeroPoints::Numbers) => &[CODES, SCALES, NUMBERS],
        _ => &[CODES, SCALES],
    };
    Spec { parts, ..*spec }
}

/// The last byte of an odd number of zero points has this above them.
fn padding(spec: &Spec) -> u8 {
    if spec.parts.iter().any(|part| part.extent == Extent::GroupCodes) { 8 << 4 } else { 0 }
}

impl<R: Rule, const HIGH_FIRST: bool> Planar<R, HIGH_FIRST> {
    pub(super) const fn new(spec: &'static Spec) -> Self {
        Planar { spec, rule: PhantomData }
    }

    /// What turns a code with the bias added into the stored nibble.
    const FLIP: u8 = (R::CODES[0] + R::BIAS) as u8;

    fn offsets(&self) -> Offsets {
        match self.spec.parts.get(2).map(|part| (part.extent, part.dtype)) {
            Some((Extent::Groups, PartDtype::Scale)) => Offsets::Numbers,
            Some((Extent::Groups, _)) => Offsets::Bytes,
            Some((Extent::GroupPairs, _)) => Offsets::Nibbles,
            _ => Offsets::None,
        }
    }

    /// Whether the fused kernels take groups of this size.
    fn is_fused(group: usize) -> bool {
        if group <= TILE { group.is_power_of_two() && group >= LANES } else { group.is_multiple_of(LINE) }
    }

    /// Bytes of each part for so many elements; of the last group what there is.
    fn sizes(&self, context: Context, elements: usize) -> [usize; 3] {
        let groups = context.groups(elements);
        let scales = groups * context.scale_dtype.size();
        let offsets = match self.offsets() {
            Offsets::None => 0,
            Offsets::Numbers => scales,
            Offsets::Bytes => groups,
            Offsets::Nibbles => groups.div_ceil(2),
        };
        [elements.div_ceil(2), scales, offsets]
    }

    /// The parts from element `start` on, which begins a tile.
    fn tails<'a>(&self, context: Context, start: usize, parts: &'a mut [&mut [u8]]) -> Vec<&'a mut [u8]> {
        parts.iter_mut().zip(self.sizes(context, start)).map(|(part, start)| &mut part[start..]).collect()
    }

    /// Decode less than two groups by the fused kernel, in a room of `N` floats that holds them filled up.
    fn decode_filled<const N: usize>(&self, context: Context, parts: &[&[u8]], x: Output<'_>) {
        let [packed, others @ ..] = parts else { unreachable!("the spec names two parts or more") };
        let (len, bytes) = (x.len(), x.len().div_ceil(2));
        let (mut codes, mut filled) = ([0; N], [0.0; N]);
        codes[..bytes].copy_from_slice(&packed[..bytes]);
        let parts_of_room = [&codes[..], others[0], others.get(1).copied().unwrap_or_default()];
        let shelf = Stored::<R, HIGH_FIRST>::new(context, self.offsets(), &parts_of_room);
        let whole = Output::F32(&mut filled[..context.groups(len) * context.group]);
        context.level.run(Tables { rule: R::of(context.global), shelf, group: context.group, x: whole, stream: false });
        x.fill(context.level, |x| x.copy_from_slice(&filled[..len]));
    }
}

/// Swap the nibbles of every byte.
fn swap(packed: &mut [u8]) {
    packed.iter_mut().for_each(|byte| *byte = byte.rotate_left(4));
}

impl<R: Rule, const HIGH_FIRST: bool> Rows for Planar<R, HIGH_FIRST> {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn need(&self) -> Need {
        R::NEED
    }

    fn global(&self, largest: f32) -> f32 {
        R::global(largest)
    }

    fn quantize(&self, context: Context, x: &[f32], range: Option<Range>, groups: &mut Groups) -> Faults {
        let Groups { codes, scales, offsets, .. } = groups;
        let (rule, dtype) = (R::of(context.global), context.scale_dtype);
        context.level.run(Pieces { rule, x, group: context.group, range, dtype, codes, scales, offsets })
    }

    fn pack(&self, context: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        let [packed, scales, rest @ ..] = parts else { unreachable!("the spec names two parts or more") };
        let (packed, padding_bytes) = packed.split_at_mut(groups.codes.len().div_ceil(2));
        context.level.run(Pack { codes: cast_slice(&groups.codes), bias: 0, packed });
        // Packed they are in two's complement; what fills the last byte up stays 0.
        let flip = (R::BIAS as u8 ^ Self::FLIP) & 15;
        if flip != 0 {
            packed.iter_mut().for_each(|byte| *byte ^= flip * 0x11);
            if groups.codes.len() % 2 == 1
                && let Some(last) = packed.last_mut()
            {
                *last &= 15;
            }
        }
        padding_bytes.fill(0);
        if HIGH_FIRST {
            swap(packed);
        }
        context.level.run(Store { values: &groups.scales, dtype: context.scale_dtype, bytes: scales });
        let Some(offsets) = rest.first_mut().filter(|part| !part.is_empty()) else { return };
        // Integers up to 255: so many added, they are in the lowest bits. A conversion that saturates is done one by one.
        let bytes = || groups.offsets.iter().map(|&zero_point| (zero_point + 8_388_608.0).to_bits() as u8);
        match self.offsets() {
            Offsets::None => {}
            Offsets::Numbers => context.level.run(Store { values: &groups.offsets, dtype: context.scale_dtype, bytes: offsets }),
            Offsets::Bytes => offsets.iter_mut().zip(bytes()).for_each(|(offset, byte)| *offset = byte),
            Offsets::Nibbles => {
                let codes: Vec<u8> = bytes().collect();
                context.level.run(Pack { codes: &codes, bias: 0, packed: offsets });
                if codes.len() % 2 == 1
                    && let Some(last) = offsets.last_mut()
                {
                    *last |= padding(self.spec);
                }
            }
        }
    }

    fn unpack(&self, context: Context, parts: &[&[u8]], groups: &mut Groups) {
        let [packed, scales, rest @ ..] = parts else { unreachable!("the spec names two parts or more") };
        let table = &R::CODES.map(i8::cast_unsigned);
        let packed = &packed[..groups.codes.len().div_ceil(2)];
        if HIGH_FIRST {
            let mut swapped = packed.to_vec();
            swap(&mut swapped);
            context.level.run(Unpack { packed: &swapped, table, codes: cast_slice_mut(&mut groups.codes) });
        } else {
            context.level.run(Unpack { packed, table, codes: cast_slice_mut(&mut groups.codes) });
        }
        context.level.run(Load { bytes: scales, dtype: context.scale_dtype, values: &mut groups.scales });
        let Some(offsets) = rest.first().filter(|part| !part.is_empty()) else { return };
        let from_bytes = |values: &mut [f32], bytes: &[u8]| {
            values.iter_mut().zip(bytes).for_each(|(value, &byte)| *value = f32::from(byte));
        };
        match self.offsets() {
            Offsets::None => {}
            Offsets::Numbers => context.level.run(Load { bytes: offsets, dtype: context.scale_dtype, values: &mut groups.offsets }),
            Offsets::Bytes => from_bytes(&mut groups.offsets, offsets),
            Offsets::Nibbles => {
                let mut codes = vec![0; groups.offsets.len()];
                let packed = &offsets[..codes.len().div_ceil(2)];
                context.level.run(Unpack { packed, table: &UNSIGNED.map(i8::cast_unsigned), codes: &mut codes });
                from_bytes(&mut groups.offsets, &codes);
            }
        }
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        let Groups { codes, scales, offsets, .. } = groups;
        context.level.run(Values { rule: R::of(context.global), codes, group: context.group, scales, offsets, x });
    }

    fn streams(&self, group: usize) -> bool {
        Self::is_fused(group)
    }

    fn encode(&self, context: Context, x: Input<'_>, groups: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        let Context { scale_dtype: dtype, group, .. } = context;
        let rule = R::of(context.global);
        let has_nibbles = self.offsets() == Offsets::Nibbles;
        // Two groups that are a tile each share a byte of zero points: what is left begins at a whole byte.
        let whole = if has_nibbles && group >= TILE && !x.len().is_multiple_of(group) { 2 * group } else { group.max(TILE) };
        let rest = if Self::is_fused(group) { x.len() / whole * whole } else { 0 };
        let mut faults = Faults::default();
        if rest > 0 {
            let ([packed, others @ ..], mut lines) = (&mut *parts, None) else { unreachable!("the spec names two parts or more") };
            let packed = Front::new(&mut packed[..rest / 2], context.stream, Pace::of_this_cpu(), &mut lines);
            let (place, x) = (Columns::<R, HIGH_FIRST>::new(context, self.offsets(), packed, others), x.part(0..rest));
            faults |= match group / LANES {
                _ if group > TILE => context.level.run(Lines { rule, place, x: &x.floats(context.level), group, dtype }),
                1 => context.level.run(Tiles::<_, _, 1> { rule, place, x, run: 1, dtype }),
                vectors => context.level.run(Tiles::<_, _, 2> { rule, place, x, run: vectors / 2, dtype }),
            };
        }
        if rest < x.len() {
            let (mut parts, x) = (self.tails(context, rest, parts), x.part(rest..x.len()));
            groups.resize(self.spec, context, x.len());
            faults |= self.quantize(context, &x.floats(context.level), None, groups);
            self.pack(context, groups, &mut parts);
        }
        faults
    }

    fn encode_part(&self, context: Context, x: &[f32], range: Range, groups: &mut Groups, parts: &mut [&mut [u8]]) {
        let (whole, rest) = x.split_at(x.len() / LINE * LINE);
        if !whole.is_empty() {
            let ([packed, others @ ..], mut lines) = (&mut *parts, None) else { unreachable!("the spec names two parts or more") };
            let packed = Front::new(&mut packed[..whole.len() / 2], context.stream, Pace::of_this_cpu(), &mut lines);
            let (rule, dtype) = (R::of(context.global), context.scale_dtype);
            let place = Columns::<R, HIGH_FIRST>::new(context, self.offsets(), packed, others);
            context.level.run(Ranged { rule, place, x: whole, range, dtype });
        }
        if !rest.is_empty() {
            let context = Context { group: rest.len(), ..context };
            groups.resize(self.spec, context, rest.len());
            self.quantize(context, rest, Some(range), groups);
            let [packed, others @ ..] = parts else { unreachable!("the spec names two parts or more") };
            let mut tails: Vec<&mut [u8]> = vec![&mut packed[whole.len() / 2..]];
            tails.extend(others.iter_mut().map(|part| &mut **part));
            self.pack(context, groups, &mut tails);
        }
    }

    fn decode(&self, context: Context, parts: &[&[u8]], groups: &mut Groups, mut x: Output<'_>) {
        let Context { group, stream, .. } = context;
        let (len, is_fused) = (x.len(), group.is_multiple_of(LANES));
        // Two groups share a byte of zero points: what is left begins at a whole byte.
        let unit = if self.offsets() == Offsets::Nibbles && !len.is_multiple_of(group) { 2 * group } else { group };
        let whole = if is_fused { len / unit * unit } else { 0 };
        if whole > 0 {
            let shelf = Stored::<R, HIGH_FIRST>::new(context, self.offsets(), parts);
            context.level.run(Tables { rule: R::of(context.global), shelf, group, x: x.part(0..whole), stream });
        }
        if whole < len {
            let mut tails = [&[][..]; 3];
            for ((tail, part), start) in tails.iter_mut().zip(parts).zip(self.sizes(context, whole)) {
                *tail = &part[start..];
            }
            let (parts, x) = (&tails[..parts.len()], x.part(whole..len));
            match group {
                _ if !is_fused || group > TILE => {
                    groups.resize(self.spec, context, len - whole);
                    self.unpack(context, parts, groups);
                    x.fill(context.level, |x| self.dequantize(context, groups, x));
                }
                // A large room takes longer to clear than these groups to decode.
                ..=128 => self.decode_filled::<256>(context, parts, x),
                _ => self.decode_filled::<{ 2 * TILE }>(context, parts, x),
            }
        }
    }
}

/// Where the fused kernel writes.
struct Columns<'a, R, const HIGH_FIRST: bool> {
    packed: Front<'a>,
    scales: &'a mut [u8],
    offsets: &'a mut [u8],
    stored: Offsets,
    dtype: ScaleDtype,
    rule: PhantomData<R>,
}

impl<'a, R, const HIGH_FIRST: bool> Columns<'a, R, HIGH_FIRST> {
    fn new(context: Context, stored: Offsets, packed: Front<'a>, parts: &'a mut [&mut [u8]]) -> Self {
        let [scales, rest @ ..] = parts else { unreachable!("the spec names two parts or more") };
        let offsets = rest.first_mut().map_or(&mut [][..], |part| &mut **part);
        Columns { packed, scales, offsets, stored, dtype: context.scale_dtype, rule: PhantomData }
    }
}

impl<R: Rule, const HIGH_FIRST: bool> Place for Columns<'_, R, HIGH_FIRST> {
    #[inline(always)]
    fn fit<S: Simd>(&mut self, simd: S, tile: usize, fit: &Fit<S>, run: usize) {
        let groups = 16 / run;
        let bytes = groups * self.dtype.size();
        scales::store(simd, fit.scale, self.dtype, run, &mut self.scales[tile * bytes..][..bytes]);
        if self.stored == Offsets::None {
            return;
        }
        if self.stored == Offsets::Numbers {
            return scales::store(simd, fit.offset, self.dtype, run, &mut self.offsets[tile * bytes..][..bytes]);
        }
        let mut lanes = [0; 16];
        simd.store_i32(simd.round(fit.offset), &mut lanes);
        let zero_point = |group: usize| lanes[group * run] as u8;
        if self.stored == Offsets::Bytes {
            for (group, byte) in self.offsets[tile * groups..][..groups].iter_mut().enumerate() {
                *byte = zero_point(group);
            }
        } else if groups == 1 {
            // One group a tile: two tiles share a byte, and the even one comes first.
            let byte = &mut self.offsets[tile / 2];
            *byte = if tile.is_multiple_of(2) { zero_point(0) } else { *byte | zero_point(0) << 4 };
        } else {
            for (pair, byte) in self.offsets[tile * groups / 2..][..groups / 2].iter_mut().enumerate() {
                *byte = zero_point(2 * pair) | zero_point(2 * pair + 1) << 4;
            }
        }
    }

    #[inline(always)]
    fn codes<S: Simd>(&mut self, simd: S, _: usize, lanes: &[S::I32; 8]) {
        let mut bytes = [0; 64];
        R::LANES.pack_pairs(simd, lanes, &mut bytes);
        let flip = Planar::<R, HIGH_FIRST>::FLIP * 0x11;
        let stored = bytes.map(|byte| if HIGH_FIRST { byte.rotate_left(4) } else { byte } ^ flip);
        self.packed.next(simd, stored.len()).copy_from_slice(&stored);
    }

    #[inline(always)]
    fn finish<S: Simd>(&mut self, simd: S) {
        self.packed.finish(simd);
    }
}

/// Where the fused decoder reads.
#[derive(Clone, Copy)]
struct Stored<'a, R, const HIGH_FIRST: bool> {
    packed: &'a [u8],
    scales: &'a [u8],
    offsets: &'a [u8],
    stored: Offsets,
    context: Context,
    rule: PhantomData<R>,
}

impl<'a, R, const HIGH_FIRST: bool> Stored<'a, R, HIGH_FIRST> {
    fn new(context: Context, stored: Offsets, parts: &[&'a [u8]]) -> Self {
        let [packed, scales, rest @ ..] = parts else { unreachable!("the spec names two parts or more") };
        Stored { packed, scales, offsets: rest.first().copied().unwrap_or_default(), stored, context, rule: PhantomData }
    }
}

impl<R: Rule, const HIGH_FIRST: bool> Shelf for Stored<'_, R, HIGH_FIRST> {
    const HALVES: bool = false;
    const HIGH_FIRST: bool = HIGH_FIRST;

    #[inline(always)]
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        let size = self.context.scale_dtype.size();
        scales::load(simd, self.context.scale_dtype, &self.scales[first * size..][..count * size])
    }

    #[inline(always)]
    fn offsets<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32 {
        match self.stored {
            Offsets::None => simd.splat(0.0),
            Offsets::Numbers => {
                let size = self.context.scale_dtype.size();
                scales::load(simd, self.context.scale_dtype, &self.offsets[first * size..][..count * size])
            }
            Offsets::Bytes => {
                let mut bytes = [0; LANES];
                bytes[..count].copy_from_slice(&self.offsets[first..][..count]);
                simd.to_f32(simd.load_i32(&bytes.map(i32::from)))
            }
            Offsets::Nibbles => {
                // `first` is a multiple of 16.
                let mut bytes = [0; 8];
                for (byte, packed) in bytes.iter_mut().zip(&self.offsets[first / 2..][..count.div_ceil(2)]) {
                    *byte = *packed;
                }
                simd.to_f32(simd.and(simd.unpack_pairs(&bytes), simd.splat_i32(15)))
            }
        }
    }

    #[inline(always)]
    fn packed(&self, group: usize) -> &[u8] {
        let bytes = self.context.group / 2;
        &self.packed[group * bytes..][..bytes]
    }
}
