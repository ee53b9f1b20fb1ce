//! From codes to floats: `x = values(code, scale, offset)`, the plain IEEE operations of the scheme.
//!
//! [`Tables`] computes the 16 floats that a group can hold once, then looks each nibble up, so that every uniform format and
//! every codebook is the same loop. Where looking up is dear and the numbers are one apart, each float is computed: the same bits.
//! For 16-bit floats the 16 are rounded before they are looked up. [`Values`] does the same from unpacked codes, for groups of any length.

use super::convert::{Half, Narrow, half_bits};
use super::encode::Rule;
use super::pace::Pace;
use super::stream::{LINE, Lines};
use crate::level::Level;
use crate::simd::{Kernel, LANES, Simd};
use bytemuck::{AnyBitPattern, NoUninit, Zeroable, cast_slice, cast_slice_mut};
use std::ops::Range;

/// What stored nibbles stand for: the part of a [`Rule`] that decoding needs, alone where the rule itself is no [`Rule`].
pub trait Meaning: Copy {
    /// The number that each stored nibble stands for, before scale and offset.
    const NUMBERS: [f32; 16];
    /// The code that each stored nibble stands for.
    const CODES: [i8; 16];

    /// The floats that numbers stand for with their scale and offset.
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, offset: S::F32) -> S::F32;
}

impl<R: Rule> Meaning for R {
    const NUMBERS: [f32; 16] = R::NUMBERS;
    const CODES: [i8; 16] = R::CODES;

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, offset: S::F32) -> S::F32 {
        Rule::values(self, simd, numbers, scale, offset)
    }
}

/// Decoded floats, in the dtype that is wanted.
pub enum Output<'a> {
    /// Binary32.
    F32(&'a mut [f32]),
    /// Rounded half to even, overflow to infinity, as little-endian pairs of bytes.
    Half(Half, &'a mut [[u8; 2]]),
}

impl Output<'_> {
    /// Number of floats.
    pub(crate) fn len(&self) -> usize {
        match self {
            Output::F32(x) => x.len(),
            Output::Half(_, halves) => halves.len(),
        }
    }

    /// Some of them.
    pub fn part(&mut self, range: Range<usize>) -> Output<'_> {
        match self {
            Output::F32(x) => Output::F32(&mut x[range]),
            Output::Half(half, halves) => Output::Half(*half, &mut halves[range]),
        }
    }

    /// Written by a function that knows f32 only.
    pub fn fill(self, level: Level, write: impl FnOnce(&mut [f32])) {
        match self {
            Output::F32(x) => write(x),
            Output::Half(half, halves) => {
                let mut x = vec![0.0; halves.len()];
                write(&mut x);
                level.run(Narrow { x: &x, half, halves });
            }
        }
    }
}

/// Where a format keeps what a group is decoded from.
pub trait Shelf: Copy {
    /// Whether the nibbles of a byte are 16 elements apart instead of adjacent.
    const HALVES: bool;
    /// Whether of two adjacent codes the first is in the high nibble.
    const HIGH_FIRST: bool = false;
    /// Whether it decodes groups by [`Floats::of`].
    const BY_VECTORS: bool = false;

    /// The scales of `count` groups (at most 16) from `first` on, a lane each.
    fn scales<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32;
    /// Their offsets.
    fn offsets<S: Simd>(self, simd: S, first: usize, count: usize) -> S::F32;
    /// The packed codes of a group.
    fn packed(&self, group: usize) -> &[u8];

    /// The floats of a group of at most [`PIECE`] elements.
    #[inline(always)]
    fn decode<S: Simd, F: Floats<S>>(self, simd: S, floats: F, group: usize, x: &mut [F::Float]) {
        decode_piece::<S, Self, F>(simd, floats, self.packed(group), x);
    }
}

/// What the nibbles of a group stand for.
pub trait Floats<S: Simd>: Copy {
    /// `f32`, or a 16-bit float as its two bytes.
    type Float;

    /// The floats of 16 nibbles. Only the low four bits of a lane count.
    fn of(self, simd: S, nibbles: S::I32, x: &mut [Self::Float; LANES]);

    /// Those of packed nibbles, the low one of a byte first: 8 bytes at a time.
    #[inline(always)]
    fn of_pairs(self, simd: S, packed: &[u8], x: &mut [Self::Float]) {
        for (packed, x) in packed.as_chunks::<8>().0.iter().zip(x.as_chunks_mut::<LANES>().0) {
            self.of(simd, simd.unpack_pairs(packed), x);
        }
    }

    /// Those of blocks of 16 bytes: the low nibbles of a block, then its high ones.
    #[inline(always)]
    fn of_halves(self, simd: S, packed: &[u8], x: &mut [Self::Float]) {
        for (packed, x) in packed.as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<{ 2 * LANES }>().0) {
            for (nibbles, x) in simd.unpack_halves(packed).into_iter().zip(x.as_chunks_mut::<LANES>().0) {
                self.of(simd, nibbles, x);
            }
        }
    }
}

/// All 16 of them, computed once.
#[derive(Clone, Copy)]
struct LookedUp<S: Simd>(S::F32);

impl<S: Simd> Floats<S> for LookedUp<S> {
    type Float = f32;

    #[inline(always)]
    fn of(self, simd: S, nibbles: S::I32, x: &mut [f32; LANES]) {
        simd.store(simd.look_up(self.0, nibbles), x);
    }

    #[inline(always)]
    fn of_pairs(self, simd: S, packed: &[u8], x: &mut [f32]) {
        simd.look_up_pairs(self.0, packed, x);
    }

    #[inline(always)]
    fn of_halves(self, simd: S, packed: &[u8], x: &mut [f32]) {
        simd.look_up_halves(self.0, packed, x);
    }
}

/// All 16 of them, computed and rounded to 16 bits once; each lane has its bits.
#[derive(Clone, Copy)]
struct Rounded<S: Simd>(S::I32);

impl<S: Simd> Floats<S> for Rounded<S> {
    type Float = [u8; 2];

    #[inline(always)]
    fn of(self, simd: S, nibbles: S::I32, halves: &mut [[u8; 2]; LANES]) {
        simd.look_up_u16(self.0, nibbles, halves);
    }

    #[inline(always)]
    fn of_pairs(self, simd: S, packed: &[u8], halves: &mut [[u8; 2]]) {
        simd.look_up_pairs_u16(self.0, packed, halves);
    }

    #[inline(always)]
    fn of_halves(self, simd: S, packed: &[u8], halves: &mut [[u8; 2]]) {
        simd.look_up_halves_u16(self.0, packed, halves);
    }
}

/// Those of others, past the caches from where they are made; what is written at once is whole cache lines.
#[derive(Clone, Copy)]
struct Streamed<F>(F);

impl<S: Simd, F: Floats<S, Float: AnyBitPattern + NoUninit>> Floats<S> for Streamed<F> {
    type Float = F::Float;

    #[inline(always)]
    fn of(self, simd: S, nibbles: S::I32, x: &mut [F::Float; LANES]) {
        let mut floats = [F::Float::zeroed(); LANES];
        self.0.of(simd, nibbles, &mut floats);
        simd.stream(cast_slice(&floats), cast_slice_mut(x));
    }

    #[inline(always)]
    fn of_pairs(self, simd: S, packed: &[u8], x: &mut [F::Float]) {
        let ((blocks, rest), (x, x_rest)) = (packed.as_chunks::<16>(), x.as_chunks_mut::<{ 2 * LANES }>());
        for (packed, x) in blocks.iter().zip(x) {
            let mut floats = [F::Float::zeroed(); 2 * LANES];
            self.0.of_pairs(simd, packed, &mut floats);
            simd.stream(cast_slice(&floats), cast_slice_mut(x));
        }
        for (packed, x) in rest.as_chunks::<8>().0.iter().zip(x_rest.as_chunks_mut::<LANES>().0) {
            self.of(simd, simd.unpack_pairs(packed), x);
        }
    }

    #[inline(always)]
    fn of_halves(self, simd: S, packed: &[u8], x: &mut [F::Float]) {
        for (packed, x) in packed.as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<{ 2 * LANES }>().0) {
            let mut floats = [F::Float::zeroed(); 2 * LANES];
            self.0.of_halves(simd, packed, &mut floats);
            simd.stream(cast_slice(&floats), cast_slice_mut(x));
        }
    }
}

/// Those of others; with 32 of them the memory is asked for that is written `ahead` bytes later, unless that is 0. Groups of fewer are bound by what
/// they compute.
#[derive(Clone, Copy)]
struct Asked<F> {
    floats: F,
    ahead: usize,
}

impl<F> Asked<F> {
    #[inline(always)]
    fn ask<S: Simd, T>(&self, simd: S, x: &[T; 2 * LANES]) {
        if self.ahead > 0 {
            for line in x.chunks_exact(LINE / size_of::<T>()) {
                simd.prefetch(&line[0], self.ahead);
            }
        }
    }
}

impl<S: Simd, F: Floats<S>> Floats<S> for Asked<F> {
    type Float = F::Float;

    #[inline(always)]
    fn of(self, simd: S, nibbles: S::I32, x: &mut [F::Float; LANES]) {
        self.floats.of(simd, nibbles, x);
    }

    #[inline(always)]
    fn of_pairs(self, simd: S, packed: &[u8], x: &mut [F::Float]) {
        let ((blocks, rest), (x, x_rest)) = (packed.as_chunks::<16>(), x.as_chunks_mut::<{ 2 * LANES }>());
        for (packed, x) in blocks.iter().zip(x) {
            self.ask(simd, x);
            self.floats.of_pairs(simd, packed, x);
        }
        self.floats.of_pairs(simd, rest, x_rest);
    }

    #[inline(always)]
    fn of_halves(self, simd: S, packed: &[u8], x: &mut [F::Float]) {
        for (packed, x) in packed.as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<{ 2 * LANES }>().0) {
            self.ask(simd, x);
            self.floats.of_halves(simd, packed, x);
        }
    }
}

/// Each computed where it is met: the number of a nibble is `(nibble ^ flip) + first`.
#[derive(Clone, Copy)]
struct Computed<S: Simd, R> {
    rule: R,
    scale: S::F32,
    offset: S::F32,
    uniform: Uniform,
}

impl<S: Simd, R: Meaning> Floats<S> for Computed<S, R> {
    type Float = f32;

    #[inline(always)]
    fn of(self, simd: S, nibbles: S::I32, x: &mut [f32; LANES]) {
        // The bits of 2^23 + n are those of 2^23 with n in the lowest places.
        let exponent = simd.splat_i32(Uniform::ONES.to_bits().cast_signed() | self.uniform.flip);
        let number = simd.as_f32(simd.xor(simd.and(nibbles, simd.splat_i32(15)), exponent));
        let number = simd.sub(number, simd.splat(Uniform::ONES - self.uniform.first));
        simd.store(self.rule.values(simd, number, self.scale, self.offset), x);
    }
}

/// Numbers one apart.
#[derive(Clone, Copy)]
struct Uniform {
    /// What a nibble is changed by to count them upward: 8 where codes are in two's complement.
    flip: i32,
    /// The smallest number.
    first: f32,
}

impl Uniform {
    /// From here on floats are one apart.
    const ONES: f32 = 8_388_608.0;

    /// Of these numbers, unless they are a codebook.
    const fn of(numbers: [f32; 16]) -> Option<Uniform> {
        let flip = if numbers[8] < numbers[0] { 8 } else { 0 };
        let first = numbers[flip];
        let mut nibble = 0;
        while nibble < 16 {
            if numbers[nibble ^ flip] != first + nibble as f32 {
                return None;
            }
            nibble += 1;
        }
        Some(Uniform { flip: flip as i32, first })
    }
}

/// Decode whole groups whose length is a multiple of 32, or any that the shelf decodes itself.
pub struct Tables<'a, R, P> {
    /// The numerics.
    pub rule: R,
    /// The layout.
    pub shelf: P,
    /// Elements of a group.
    pub group: usize,
    /// The floats.
    pub x: Output<'a>,
    /// Whether floats go past the caches. Then the thread runs [`super::stream::Fence`] before it says that it is done.
    pub stream: bool,
}

/// Elements of a group that are decoded at once.
pub const PIECE: usize = 512;

impl<R: Meaning, P: Shelf> Kernel for Tables<'_, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Tables { rule, shelf, group, x, stream } = self;
        let (groups, pace) = (x.len() / group, Pace::of_this_cpu());
        let from_registers = stream && pace.from_registers && S::HAS_TABLES;
        match x {
            Output::F32(x) if from_registers && is_lined(x, group) => {
                decode_groups(simd, Single::<true>(0), rule, shelf, group, groups, &mut Direct(x));
            }
            Output::F32(x) if stream => {
                let mut lines = Lines::new(cast_slice_mut(x), pace.floats(group * size_of::<f32>()));
                decode_groups(simd, Single::<false>(0), rule, shelf, group, groups, &mut lines);
                lines.finish(simd);
            }
            Output::F32(x) => decode_groups(simd, Single::<false>(pace.stay), rule, shelf, group, groups, &mut Direct(x)),
            Output::Half(half, halves) if from_registers && !P::BY_VECTORS && is_lined(halves, group) => {
                decode_groups(simd, Sixteen::<true>(half), rule, shelf, group, groups, &mut Direct(halves));
            }
            Output::Half(half, halves) if stream && pace.from_registers => {
                let mut lines = Lines::new(halves.as_flattened_mut(), pace.floats(2 * group));
                decode_groups(simd, Sixteen::<false>(half), rule, shelf, group, groups, &mut lines);
                lines.finish(simd);
            }
            Output::Half(half, halves) => decode_groups(simd, Sixteen::<false>(half), rule, shelf, group, groups, &mut Direct(halves)),
        }
    }
}

/// Whether groups are whole cache lines.
fn is_lined<F>(x: &[F], group: usize) -> bool {
    x.as_ptr().addr().is_multiple_of(LINE) && (group * size_of::<F>()).is_multiple_of(LINE)
}

/// Where decoded floats go, from front to back.
trait Sink<F> {
    /// The next `len` floats, to be written in full.
    fn next<S: Simd>(&mut self, simd: S, len: usize) -> &mut [F];
}

/// Straight to memory.
struct Direct<'a, F>(&'a mut [F]);

impl<F> Sink<F> for Direct<'_, F> {
    #[inline(always)]
    fn next<S: Simd>(&mut self, _: S, len: usize) -> &mut [F] {
        let (first, rest) = std::mem::take(&mut self.0).split_at_mut(len);
        self.0 = rest;
        first
    }
}

impl<F: AnyBitPattern + NoUninit> Sink<F> for Lines<'_> {
    #[inline(always)]
    fn next<S: Simd>(&mut self, simd: S, len: usize) -> &mut [F] {
        cast_slice_mut(Lines::next(self, simd, size_of::<F>() * len))
    }
}

/// One group among those of a shelf.
#[derive(Clone, Copy)]
struct Group<P> {
    shelf: P,
    elements: usize,
    index: usize,
}

/// What the nibbles of a group become.
trait Wanted: Copy {
    /// `f32`, or a 16-bit float as its two bytes.
    type Float;

    /// Decode a group.
    fn decode_group<S: Simd, R: Meaning, P: Shelf>(
        self,
        simd: S,
        rule: R,
        scale: S::F32,
        offset: S::F32,
        group: Group<P>,
        out: &mut impl Sink<Self::Float>,
    );
}

/// Binary32; past the caches from where it is made, or as its sink has it, for which memory is asked for so many bytes ahead.
#[derive(Clone, Copy)]
struct Single<const PAST: bool>(usize);

impl<const PAST: bool> Wanted for Single<PAST> {
    type Float = f32;

    #[inline(always)]
    fn decode_group<S: Simd, R: Meaning, P: Shelf>(
        self,
        simd: S,
        rule: R,
        scale: S::F32,
        offset: S::F32,
        group: Group<P>,
        out: &mut impl Sink<f32>,
    ) {
        let table = LookedUp(rule.values(simd, simd.load(&R::NUMBERS), scale, offset));
        match const { Uniform::of(R::NUMBERS) } {
            _ if PAST => decode_group(simd, Streamed(table), group, out),
            _ if S::HAS_TABLES => decode_group(simd, Asked { floats: table, ahead: self.0 }, group, out),
            Some(uniform) => decode_group(simd, Computed { rule, scale, offset, uniform }, group, out),
            None => decode_group(simd, table, group, out),
        }
    }
}

/// A 16-bit float, likewise.
#[derive(Clone, Copy)]
struct Sixteen<const PAST: bool>(Half);

impl<const PAST: bool> Wanted for Sixteen<PAST> {
    type Float = [u8; 2];

    #[inline(always)]
    fn decode_group<S: Simd, R: Meaning, P: Shelf>(
        self,
        simd: S,
        rule: R,
        scale: S::F32,
        offset: S::F32,
        group: Group<P>,
        out: &mut impl Sink<[u8; 2]>,
    ) {
        let values = rule.values(simd, simd.load(&R::NUMBERS), scale, offset);
        let rounded = Rounded(half_bits(simd, self.0, values));
        if PAST { decode_group(simd, Streamed(rounded), group, out) } else { decode_group(simd, rounded, group, out) }
    }
}

#[inline(always)]
fn decode_groups<S: Simd, W: Wanted, R: Meaning, P: Shelf>(
    simd: S,
    wanted: W,
    rule: R,
    shelf: P,
    group: usize,
    groups: usize,
    out: &mut impl Sink<W::Float>,
) {
    let (mut scales, mut offsets) = ([0.0; LANES], [0.0; LANES]);
    for first in (0..groups).step_by(LANES) {
        let count = (groups - first).min(LANES);
        simd.store(shelf.scales(simd, first, count), &mut scales);
        simd.store(shelf.offsets(simd, first, count), &mut offsets);
        for lane in 0..count {
            let (scale, offset) = (simd.splat(scales[lane]), simd.splat(offsets[lane]));
            wanted.decode_group(simd, rule, scale, offset, Group { shelf, elements: group, index: first + lane }, out);
        }
    }
}

#[inline(always)]
fn decode_group<S: Simd, P: Shelf, F: Floats<S>>(
    simd: S,
    floats: F,
    Group { shelf, elements, index }: Group<P>,
    out: &mut impl Sink<F::Float>,
) {
    if elements <= PIECE {
        return shelf.decode(simd, floats, index, out.next(simd, elements));
    }
    for packed in shelf.packed(index).chunks(PIECE / 2) {
        decode_piece::<S, P, F>(simd, floats, packed, out.next(simd, 2 * packed.len()));
    }
}

#[inline(always)]
fn decode_piece<S: Simd, P: Shelf, F: Floats<S>>(simd: S, floats: F, packed: &[u8], x: &mut [F::Float]) {
    if P::HALVES {
        floats.of_halves(simd, packed, x);
    } else if P::HIGH_FIRST {
        let mut swapped = [0; PIECE / 2];
        let swapped = &mut swapped[..packed.len()];
        swapped.iter_mut().zip(packed).for_each(|(to, byte)| *to = byte.rotate_left(4));
        floats.of_pairs(simd, swapped, x);
    } else {
        floats.of_pairs(simd, packed, x);
    }
}

/// Decode unpacked codes (without bias) in groups of any length, the last of them possibly short.
pub struct Values<'a, R> {
    /// The numerics.
    pub rule: R,
    /// One code an element.
    pub codes: &'a [i8],
    /// Elements of a group.
    pub group: usize,
    /// One scale a group.
    pub scales: &'a [f32],
    /// One offset a group; empty in a symmetric scheme.
    pub offsets: &'a [f32],
    /// The floats.
    pub x: &'a mut [f32],
}

impl<R: Meaning> Kernel for Values<'_, R> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let numbers = simd.load(&by_code::<R>());
        for (index, (codes, x)) in self.codes.chunks(self.group).zip(self.x.chunks_mut(self.group)).enumerate() {
            let offset = self.offsets.get(index).copied().unwrap_or(0.0);
            let table = self.rule.values(simd, numbers, simd.splat(self.scales[index]), simd.splat(offset));
            let (vectors, rest) = codes.as_chunks::<LANES>();
            let (x_vectors, x_rest) = x.as_chunks_mut::<LANES>();
            for (codes, x) in vectors.iter().zip(x_vectors) {
                look_up(simd, table, codes, x);
            }
            if !rest.is_empty() {
                let (mut last, mut x) = ([0; LANES], [0.0; LANES]);
                last[..rest.len()].copy_from_slice(rest);
                look_up(simd, table, &last, &mut x);
                x_rest.copy_from_slice(&x[..rest.len()]);
            }
        }
    }
}

/// The numbers in the order of the low four bits of their codes.
const fn by_code<R: Meaning>() -> [f32; 16] {
    let mut numbers = [0.0; 16];
    let mut nibble = 0;
    while nibble < 16 {
        numbers[(R::CODES[nibble] & 15) as usize] = R::NUMBERS[nibble];
        nibble += 1;
    }
    numbers
}

#[inline(always)]
fn look_up<S: Simd>(simd: S, table: S::F32, codes: &[i8; LANES], x: &mut [f32; LANES]) {
    simd.store(simd.look_up(table, simd.load_i32(&codes.map(i32::from))), x);
}
