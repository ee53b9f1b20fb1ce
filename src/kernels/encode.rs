//! From floats to codes: the range of each group, its scale and offset, then a code for each element.
//!
//! ```text
//! range -> fit: scale, offset, factor -> code = clamp(rule(x, factor, offset))
//! ```
//!
//! The rule is the format's (see [`Rule`]); the loops are here, twice: [`Tiles`] for groups of 16, 32, ... 512 elements, fused
//! from the load to the packed bytes, and [`Pieces`] for groups of any length. Both give the same codes and scales.

use super::convert::{Half, Widen, widen_all};
use super::pace::Pace;
use super::range::{INFINITE, Keys, Need, Range, Ranges, Running};
use super::scales::round_to;
use crate::level::Level;
use crate::simd::e2m1::Rounding;
use crate::simd::ranks::Ranks;
use crate::simd::{Kernel, LANES, Simd};
use crate::spec::ScaleDtype;
use std::borrow::Cow;

/// The numerics of a format: how a range becomes a scale, a float a code, a code a float.
///
/// Codes are handled with [`Rule::BIAS`] added, so that they lie in 0..=15.
pub trait Rule: Copy + Default + Send + Sync + 'static {
    /// What the scale is made from.
    const NEED: Need;
    /// What is added to a code of the scheme so that it lies in 0..=15.
    const BIAS: i8;
    /// The code that each stored nibble stands for.
    const CODES: [i8; 16];
    /// The number that each stored nibble stands for, before scale and offset.
    const NUMBERS: [f32; 16] = numbers(Self::CODES);
    /// Bits of the least magnitude that is no element: infinity, or less where the rule computes in a smaller dtype.
    const BEYOND: i32 = INFINITE;
    /// Whether the offset is stored in the dtype of the scales (a minimum, or a zero point that is no integer), so that it can
    /// overflow.
    const MINIMUM: bool = false;

    /// What is packed.
    const LANES: Lanes = Lanes::Codes;

    /// The rule for a tensor: `global` is the second level of its scales, 1 where there is none.
    fn of(_global: f32) -> Self {
        Self::default()
    }

    /// The second level of the scales of a tensor whose largest magnitude is `largest`.
    fn global(_largest: f32) -> f32 {
        1.0
    }

    /// Scale, offset and factor of 16 groups.
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, dtype: ScaleDtype) -> Fit<S>;
    /// Codes with the bias added; the caller clamps them to 0..=15.
    fn codes<S: Simd>(self, simd: S, x: S::F32, factor: S::F32, offset: S::F32) -> S::I32;
    /// What is packed, as [`Rule::LANES`] says.
    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::F32, factor: S::F32, offset: S::F32) -> S::I32 {
        self.codes(simd, x, factor, offset)
    }
    /// The floats that numbers stand for with their scale and offset.
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, offset: S::F32) -> S::F32;
}

/// What becomes nibbles: codes, or the bits of numbers where bytes are the better place to make codes of them.
#[derive(Clone, Copy, Debug)]
pub enum Lanes {
    /// Codes.
    Codes,
    /// Numbers whose codes are E2M1.
    E2m1(Rounding),
    /// Numbers between steps; codes, where [`Simd::HAS_TABLES`].
    Ranked(&'static Ranks),
}

impl Lanes {
    /// As [`Simd::pack_pairs`].
    #[inline(always)]
    pub fn pack_pairs<S: Simd>(self, simd: S, lanes: &[S::I32; 8], packed: &mut [u8; 64]) {
        match self {
            Lanes::E2m1(rounding) => simd.pack_e2m1_pairs(lanes, rounding, packed),
            Lanes::Ranked(ranks) if !S::HAS_TABLES => simd.pack_ranked_pairs(lanes, ranks, packed),
            Lanes::Codes | Lanes::Ranked(_) => simd.pack_pairs(lanes, packed),
        }
    }
}

/// Codes as numbers.
const fn numbers(codes: [i8; 16]) -> [f32; 16] {
    let mut numbers = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        numbers[i] = codes[i] as f32;
        i += 1;
    }
    numbers
}

/// What a rule makes of the ranges of 16 groups, a lane each.
#[derive(Clone, Copy)]
pub struct Fit<S: Simd> {
    /// The scale, before or after it is rounded to the dtype that stores it.
    pub scale: S::F32,
    /// The zero point or the minimum; in a symmetric scheme 0, or what else codes are made with.
    pub offset: S::F32,
    /// What codes are made with: what an element is multiplied by, or divided by.
    pub factor: S::F32,
}

/// 1 / scale, 0 where the scale is 0, and NaN where the reciprocal is infinite: then every code becomes 0, which is what the
/// conversion of an infinite product gives in ggml on x86.
#[inline(always)]
pub fn reciprocal_or_nan<S: Simd>(simd: S, scale: S::F32) -> S::F32 {
    let zero = simd.splat(0.0);
    let inverse = simd.div(simd.splat(1.0), scale);
    let finite = simd.sub(inverse, inverse); // 0, or NaN where it is infinite
    simd.select(simd.equal(scale, zero), zero, simd.add(inverse, finite))
}

/// (scale, 1 / scale), and (+0, 0) where the magnitude of the scale is below the smallest normal number.
#[inline(always)]
pub fn scale_and_reciprocal<S: Simd>(simd: S, scale: S::F32) -> (S::F32, S::F32) {
    let zero = simd.splat(0.0);
    let magnitude = simd.as_f32(simd.and(simd.bits(scale), simd.splat_i32(i32::MAX)));
    let subnormal = simd.less(magnitude, simd.splat(f32::MIN_POSITIVE));
    let inverse = simd.div(simd.splat(1.0), scale);
    (simd.select(subnormal, zero, scale), simd.select(subnormal, zero, inverse))
}

/// What was wrong with a tile: the caller looks for the place only then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// An element is NaN or infinite.
    pub element: bool,
    /// A scale or minimum is beyond the largest number of its dtype.
    pub scale: bool,
}

impl Faults {
    /// Either fault.
    pub fn any(self) -> bool {
        self.element || self.scale
    }
}

impl std::ops::BitOrAssign for Faults {
    fn bitor_assign(&mut self, other: Faults) {
        self.element |= other.element;
        self.scale |= other.scale;
    }
}

/// The largest magnitudes seen, as bits: they carry what is not finite to the end of the loop.
#[derive(Clone, Copy)]
struct Worst<S: Simd> {
    element: S::I32,
    scale: S::I32,
}

impl<S: Simd> Worst<S> {
    #[inline(always)]
    fn new(simd: S) -> Self {
        Worst { element: simd.splat_i32(0), scale: simd.splat_i32(0) }
    }

    #[inline(always)]
    fn take(&mut self, simd: S, v: S::F32) {
        self.scale = simd.max_i32(self.scale, simd.and(simd.bits(v), simd.splat_i32(i32::MAX)));
    }

    #[inline(always)]
    fn faults(self, simd: S, beyond: i32) -> Faults {
        let (mut element, mut scale) = ([0; LANES], [0; LANES]);
        simd.store_i32(self.element, &mut element);
        simd.store_i32(self.scale, &mut scale);
        let from = |limit: i32, lanes: [i32; LANES]| lanes.iter().any(|&bits| bits >= limit);
        Faults { element: from(beyond, element), scale: from(INFINITE, scale) }
    }
}

/// Elements in the dtype that they are given in.
#[derive(Clone, Copy)]
pub enum Input<'a> {
    /// Binary32.
    F32(&'a [f32]),
    /// Little-endian pairs of bytes.
    Half(Half, &'a [[u8; 2]]),
}

impl<'a> Input<'a> {
    /// Number of elements.
    pub(crate) fn len(self) -> usize {
        match self {
            Input::F32(x) => x.len(),
            Input::Half(_, halves) => halves.len(),
        }
    }

    /// Some of them.
    pub fn part(self, range: std::ops::Range<usize>) -> Input<'a> {
        match self {
            Input::F32(x) => Input::F32(&x[range]),
            Input::Half(half, halves) => Input::Half(half, &halves[range]),
        }
    }

    /// All of them as f32.
    pub fn floats(self, level: Level) -> Cow<'a, [f32]> {
        match self {
            Input::F32(x) => Cow::Borrowed(x),
            Input::Half(half, halves) => {
                let mut x = vec![0.0; halves.len()];
                level.run(Widen { halves, half, x: &mut x });
                Cow::Owned(x)
            }
        }
    }

    /// The elements from `start` on as f32, as many as the buffer holds, and the pace for them: that of a cache where they are a copy, of
    /// what was asked for here.
    #[inline(always)]
    fn tile<'t, S: Simd>(&'t self, simd: S, start: usize, pace: Pace, buffer: &'t mut [f32]) -> (&'t [f32], Pace) {
        match self {
            Input::F32(x) => (&x[start..][..buffer.len()], pace),
            Input::Half(half, halves) => {
                let halves = &halves[start..][..buffer.len()];
                for line in halves.as_chunks::<{ 2 * LANES }>().0 {
                    simd.prefetch(line, pace.codes);
                }
                widen_all(simd, *half, halves, buffer);
                (buffer, pace.in_cache())
            }
        }
    }
}

/// Where a format keeps what a tile becomes.
pub trait Place {
    /// Store the scales and offsets of the groups of 16 sub-blocks, number `tile` of these: every `run`-th lane.
    fn fit<S: Simd>(&mut self, simd: S, tile: usize, fit: &Fit<S>, run: usize);
    /// Pack and store 128 elements, number `line` of the tiles' lines: of each what [`Rule::lanes`] gives.
    fn codes<S: Simd>(&mut self, simd: S, line: usize, lanes: &[S::I32; 8]);
    /// All of them are there.
    fn finish<S: Simd>(&mut self, simd: S);
}

/// Elements of a tile: 16 sub-blocks of 32, or twice 16 of 16.
pub const TILE: usize = 512;

/// Sub-blocks of a tile at most.
const BLOCKS: usize = 2 * LANES;

/// Encode whole tiles of groups of `16 * VECTORS * run` elements; `x` is a multiple of [`TILE`] long.
///
/// A tile is seen as sub-blocks of `VECTORS` vectors, 1 or 2, one a lane, and larger groups fold lanes. Loads ascend; the
/// loop over sub-blocks has a trip count that the compiler cannot see, so that it stays rolled: hardware prefetchers follow few
/// load instructions.
pub struct Tiles<'a, R, P, const VECTORS: usize = 2> {
    /// The numerics.
    pub rule: R,
    /// The layout.
    pub place: P,
    /// The elements.
    pub x: Input<'a>,
    /// Sub-blocks of a group: 1, 2, 4, 8 or 16.
    pub run: usize,
    /// The dtype of the scales.
    pub dtype: ScaleDtype,
}

impl<R: Rule, P: Place, const VECTORS: usize> Kernel for Tiles<'_, R, P, VECTORS> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Faults {
        let mut worst = Worst::new(simd);
        let quarters = std::hint::black_box(8 / VECTORS);
        let nothing = simd.fold_max(simd.splat_i32(0));
        let (mut high, mut low) = ([nothing; BLOCKS], [nothing; BLOCKS]);
        let (mut factors, mut offsets) = ([0.0; BLOCKS], [0.0; BLOCKS]);
        let mut buffer = [0.0; TILE];
        let everywhere = Pace::of_this_cpu();
        for index in 0..self.x.len() / TILE {
            let (tile, pace) = self.x.tile(simd, index * TILE, everywhere, &mut buffer);
            let vectors = tile.as_chunks::<LANES>().0;
            let ends = high.as_chunks_mut::<4>().0.iter_mut().zip(low.as_chunks_mut::<4>().0);
            for (vectors, (high, low)) in vectors.chunks_exact(4 * VECTORS).zip(ends).take(quarters) {
                if pace.range > 0 {
                    for vector in vectors {
                        simd.prefetch_second(vector, pace.range);
                    }
                }
                for ((vectors, high), low) in vectors.as_chunks::<VECTORS>().0.iter().zip(high).zip(low) {
                    let mut running = Running::of(simd, R::NEED, simd.load(&vectors[0]));
                    for vector in &vectors[1..] {
                        running.take(simd, R::NEED, simd.load(vector));
                    }
                    let folded = running.keys(simd, R::NEED).folded(simd);
                    *high = folded.0;
                    if R::NEED != Need::Magnitude {
                        *low = folded.1;
                    }
                }
            }
            // One vector of sub-blocks, or two, so that the divisions of both are under way at once.
            let (high, low) = (high.as_chunks::<LANES>().0, low.as_chunks::<LANES>().0);
            let (factors_of, offsets_of) = (factors.as_chunks_mut::<LANES>().0, offsets.as_chunks_mut::<LANES>().0);
            for half in 0..2 / VECTORS {
                let keys = Keys::<S>::transpose(simd, R::NEED, &high[half], &low[half]).fold(simd, self.run);
                worst.element = simd.max_i32(worst.element, keys.worst(simd));
                let part = &tile[half * LANES * LANES..][..VECTORS * LANES * LANES];
                let fit = self.rule.fit(simd, keys.ranges(simd, R::NEED).settle(simd, R::NEED, part, self.run), self.dtype);
                worst.take(simd, round_to(simd, fit.scale, self.dtype));
                if R::MINIMUM {
                    worst.take(simd, round_to(simd, fit.offset, self.dtype));
                }
                self.place.fit(simd, 2 / VECTORS * index + half, &fit, self.run);
                simd.store(fit.factor, &mut factors_of[half]);
                simd.store(fit.offset, &mut offsets_of[half]);
            }
            // A range does not check its counter for overflow, as `enumerate` does: then these loops are unrolled.
            for (line, vectors) in (0..TILE / LINE).zip(vectors.as_chunks::<8>().0) {
                let mut lanes = [simd.splat_i32(0); 8];
                for (k, (lanes, x)) in (0..8).zip(lanes.iter_mut().zip(vectors)) {
                    let block = (8 * line + k) / VECTORS;
                    let (factor, offset) = (simd.splat(factors[block]), simd.splat(offsets[block]));
                    simd.prefetch(x, pace.codes);
                    *lanes = self.rule.lanes(simd, simd.load(x), factor, offset);
                }
                self.place.codes(simd, TILE / LINE * index + line, &lanes);
            }
        }
        self.place.finish(simd);
        worst.faults(simd, R::BEYOND)
    }
}

/// Elements of a line of codes: 64 bytes.
pub const LINE: usize = 128;

/// Encode groups that are larger than a tile: `group` is a multiple of [`LINE`], and `x` of `group`.
pub struct Lines<'a, R, P> {
    /// The numerics.
    pub rule: R,
    /// Where codes and scales go; a group is a tile to it.
    pub place: P,
    /// The elements.
    pub x: &'a [f32],
    /// Elements of a group.
    pub group: usize,
    /// The dtype of the scales.
    pub dtype: ScaleDtype,
}

impl<R: Rule, P: Place> Kernel for Lines<'_, R, P> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) -> Faults {
        let mut worst = Worst::new(simd);
        let (lines, pace) = (self.group / LINE, Pace::of_this_cpu());
        for (index, x) in self.x.chunks_exact(self.group).enumerate() {
            let (range, keys) = range_of(simd, R::NEED, x, pace.range);
            worst.element = simd.max_i32(worst.element, keys);
            let fit = self.rule.fit(simd, Ranges::splat(simd, range), self.dtype);
            worst.take(simd, round_to(simd, fit.scale, self.dtype));
            if R::MINIMUM {
                worst.take(simd, round_to(simd, fit.offset, self.dtype));
            }
            self.place.fit(simd, index, &fit, LANES);
            for (line, x) in (0..lines).zip(x.as_chunks::<LINE>().0) {
                let mut lanes = [simd.splat_i32(0); LINE / LANES];
                for (lanes, x) in lanes.iter_mut().zip(x.as_chunks::<LANES>().0) {
                    simd.prefetch(x, pace.codes);
                    *lanes = self.rule.lanes(simd, simd.load(x), fit.factor, fit.offset);
                }
                self.place.codes(simd, lines * index + line, &lanes);
            }
        }
        self.place.finish(simd);
        worst.faults(simd, R::BEYOND)
    }
}

/// Encode a part of a group whose range is known, a multiple of [`LINE`] long; its scale is not stored.
pub struct Ranged<'a, R, P> {
    /// The numerics.
    pub rule: R,
    /// Where codes go.
    pub place: P,
    /// The elements.
    pub x: &'a [f32],
    /// The range of the group.
    pub range: Range,
    /// The dtype of the scales.
    pub dtype: ScaleDtype,
}

impl<R: Rule, P: Place> Kernel for Ranged<'_, R, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        let (fit, pace) = (self.rule.fit(simd, Ranges::splat(simd, self.range), self.dtype), Pace::of_this_cpu());
        for (line, x) in (0..self.x.len() / LINE).zip(self.x.as_chunks::<LINE>().0) {
            let mut lanes = [simd.splat_i32(0); LINE / LANES];
            for (lanes, x) in lanes.iter_mut().zip(x.as_chunks::<LANES>().0) {
                // Nothing else asks for it.
                if pace.range > 0 {
                    simd.prefetch_second(x, pace.range)
                } else {
                    simd.prefetch(x, pace.codes)
                }
                *lanes = self.rule.lanes(simd, simd.load(x), fit.factor, fit.offset);
            }
            self.place.codes(simd, line, &lanes);
        }
        self.place.finish(simd);
    }
}

/// The range of one group, or of a piece of it; `x` is not empty.
pub struct RangeOf<'a> {
    /// The elements.
    pub x: &'a [f32],
    /// What is needed of them.
    pub need: Need,
}

impl Kernel for RangeOf<'_> {
    /// The range, and whether an element is not finite.
    type Output = (Range, bool);

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> (Range, bool) {
        let (range, worst) = range_of(simd, self.need, self.x, Pace::of_this_cpu().range);
        let mut lanes = [0; LANES];
        simd.store_i32(worst, &mut lanes);
        (range, lanes[0] >= INFINITE)
    }
}

/// The range of `x`, and its worst key in every lane. What lies `ahead` bytes after each element is asked for, unless that is 0.
#[inline(always)]
fn range_of<S: Simd>(simd: S, need: Need, x: &[f32], ahead: usize) -> (Range, S::I32) {
    let (vectors, rest) = x.as_chunks::<LANES>();
    // Several, since each vector waits for the one before it.
    let mut several = [Running::of(simd, need, simd.splat(x[0])); 4];
    let (fours, vectors) = vectors.as_chunks::<4>();
    for vectors in fours {
        for (running, vector) in several.iter_mut().zip(vectors) {
            if ahead > 0 {
                simd.prefetch_second(vector, ahead);
            }
            running.take(simd, need, simd.load(vector));
        }
    }
    let [mut running, others @ ..] = several;
    for other in others {
        running.join(simd, need, other);
    }
    for vector in vectors {
        running.take(simd, need, simd.load(vector));
    }
    if !rest.is_empty() {
        running.take(simd, need, simd.load(&padded(rest)));
    }
    let keys = running.keys(simd, need).fold(simd, LANES);
    let ranges = keys.ranges(simd, need);
    let range = Range { high: first(simd, ranges.high), low: first(simd, ranges.low) };
    (range.settle(need, x), keys.worst(simd))
}

/// Fewer than 16 elements, filled up with the first one, which changes no range.
#[inline(always)]
fn padded(rest: &[f32]) -> [f32; LANES] {
    let mut vector = [rest[0]; LANES];
    vector[..rest.len()].copy_from_slice(rest);
    vector
}

/// Encode groups of any length, the last of them possibly short, to codes, scales and offsets.
pub struct Pieces<'a, R> {
    /// The numerics.
    pub rule: R,
    /// The elements.
    pub x: &'a [f32],
    /// Elements of a group.
    pub group: usize,
    /// The range of the group that all of `x` belongs to, where it is known; else each group's is found here.
    pub range: Option<Range>,
    /// The dtype of the scales.
    pub dtype: ScaleDtype,
    /// One code an element, without bias.
    pub codes: &'a mut [i8],
    /// One scale a group, as it is stored.
    pub scales: &'a mut [f32],
    /// One offset a group, as it is stored; empty in a symmetric scheme.
    pub offsets: &'a mut [f32],
}

impl<R: Rule> Kernel for Pieces<'_, R> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Faults {
        let mut worst = Worst::new(simd);
        for (index, (x, codes)) in self.x.chunks(self.group).zip(self.codes.chunks_mut(self.group)).enumerate() {
            let ranges = match self.range {
                Some(range) => Ranges::splat(simd, range),
                None => {
                    let (range, keys) = range_of(simd, R::NEED, x, 0);
                    worst.element = simd.max_i32(worst.element, keys);
                    Ranges::splat(simd, range)
                }
            };
            let fit = self.rule.fit(simd, ranges, self.dtype);
            let scale = round_to(simd, fit.scale, self.dtype);
            worst.take(simd, scale);
            self.scales[index] = first(simd, scale);
            if let Some(stored) = self.offsets.get_mut(index) {
                let offset = if R::MINIMUM { round_to(simd, fit.offset, self.dtype) } else { fit.offset };
                if R::MINIMUM {
                    worst.take(simd, offset);
                }
                *stored = first(simd, offset);
            }
            let (vectors, rest) = x.as_chunks::<LANES>();
            let (code_vectors, code_rest) = codes.as_chunks_mut::<LANES>();
            for (vector, codes) in vectors.iter().zip(code_vectors) {
                *codes = codes_of(simd, self.rule, vector, &fit);
            }
            if !rest.is_empty() {
                code_rest.copy_from_slice(&codes_of(simd, self.rule, &padded(rest), &fit)[..rest.len()]);
            }
        }
        worst.faults(simd, R::BEYOND)
    }
}

#[inline(always)]
fn codes_of<S: Simd, R: Rule>(simd: S, rule: R, x: &[f32; LANES], fit: &Fit<S>) -> [i8; LANES] {
    let mut lanes = [0; LANES];
    simd.store_i32(rule.codes(simd, simd.load(x), fit.factor, fit.offset), &mut lanes);
    lanes.map(|code| code.clamp(0, 15) as i8 - R::BIAS)
}

#[inline(always)]
fn first<S: Simd>(simd: S, v: S::F32) -> f32 {
    let mut lanes = [0.0; LANES];
    simd.store(v, &mut lanes);
    lanes[0]
}
