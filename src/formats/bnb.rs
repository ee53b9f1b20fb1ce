//! `bnb:nf4` and `bnb:fp4` of bitsandbytes: blocks over all elements in C order, each with its largest magnitude as the scale.
//!
//! ```text
//! packed   byte i = code 2i high, code 2i + 1 low; an odd count ends with the code of 0.0
//! absmax   f32, one a block: the largest |x|; a short last block stores at least 1e-38
//!
//! v    = clamp(x * (1 / max(absmax, 1e-38)), -1, 1); in a short last block x / absmax
//! code = that of the number in whose interval v lies: its ends are the middles between neighbours, each belongs to the lower one
//! x ~ number(code) * absmax
//! ```
//!
//! NF4 numbers ascend with their codes. Those of FP4 are a sign and one of 0, 1/192, 2/3, 1, 1/3, 1/2, 1/6, 1/4; of its two zeros,
//! both +0.0, code 0 is the lower.
//!
//! With `double_quant` the scales are quantized in turn, to codes of 256 numbers that lie closer to each other around 0:
//!
//! ```text
//! absmax         u8, one a block
//! nested_absmax  f32, one for each 256 blocks: the largest |a|
//! offset         f32, the mean of all absmax
//!
//! a = absmax - offset; code = nearest(clamp(a * (1 / nested_absmax), -1, 1)), 0 where that is NaN
//! absmax ~ number(code) * nested_absmax + offset, two roundings
//! ```
//!
//! Sources: bitsandbytes-foundation/bitsandbytes `bitsandbytes/backends/default/ops.py`, `bitsandbytes/functional.py` and
//! `csrc/cpu_ops.cpp`.

use super::planar::Planar;
use super::{Context, Faults, Groups, Need, Nest, Range, Rows};
use crate::kernels::codebooks;
use crate::kernels::decode::Output;
use crate::kernels::encode::{Fit, Input, Lanes, Rule};
use crate::kernels::lanes::clamp;
use crate::kernels::nibbles::UNSIGNED;
use crate::kernels::range::Ranges;
use crate::level::Level;
use crate::search;
use crate::simd::Simd;
use crate::simd::ranks::Ranks;
use crate::spec::{Choice, Codebook, Extent, GroupSizes, NESTED, Part, PartDtype, ScaleDtype, Scheme, Shapes, Spec};
use std::marker::PhantomData;
use std::sync::LazyLock;

pub(super) static NF4: Blocks<Nf4> = Blocks::new(&NF4_SPEC);
pub(super) static NF4_NESTED: Nested<Nf4> = Nested { spec: &NF4_NESTED_SPEC, plain: &NF4 };
pub(super) static FP4: Blocks<Fp4> = Blocks::new(&FP4_SPEC);
pub(super) static FP4_NESTED: Nested<Fp4> = Nested { spec: &FP4_NESTED_SPEC, plain: &FP4 };

static NF4_SPEC: Spec = Spec { parts: PLAIN, choice: Some(Choice::DoubleQuant(false)), ..NF4_BASE };
static NF4_NESTED_SPEC: Spec = Spec { parts: NESTED_PARTS, choice: Some(Choice::DoubleQuant(true)), ..NF4_BASE };
static FP4_SPEC: Spec = Spec { parts: PLAIN, choice: Some(Choice::DoubleQuant(false)), ..FP4_BASE };
static FP4_NESTED_SPEC: Spec = Spec { parts: NESTED_PARTS, choice: Some(Choice::DoubleQuant(true)), ..FP4_BASE };

const NF4_BASE: Spec = Spec {
    name: "bnb:nf4",
    aliases: &["nf4"],
    summary: "NF4 of bitsandbytes: 16 numbers spaced for a normal distribution, blocks over the flat tensor",
    scheme: Scheme::Codebook(Codebook::Nf4),
    ..BASE
};

const FP4_BASE: Spec = Spec {
    name: "bnb:fp4",
    aliases: &["fp4"],
    summary: "FP4 of bitsandbytes: a 4-bit float of its own, blocks over the flat tensor",
    scheme: Scheme::Codebook(Codebook::Fp4),
    ..BASE
};

const BASE: Spec = Spec {
    group_sizes: GroupSizes::OneOf { sizes: &[32, 64, 128, 256, 512, 1024, 2048, 4096], default: 64, row: false, short: true },
    shapes: Shapes::Flat,
    scale_dtypes: &[ScaleDtype::F32],
    home: "bitsandbytes 0.50.2",
    ..Spec::BASE
};

const PLAIN: &[Part] = &[
    Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Codes },
    Part { name: "absmax", dtype: PartDtype::F32, extent: Extent::Groups },
];

const NESTED_PARTS: &[Part] = &[
    Part { name: "packed", dtype: PartDtype::U8, extent: Extent::Codes },
    Part { name: "absmax", dtype: PartDtype::U8, extent: Extent::Groups },
    Part { name: "nested_absmax", dtype: PartDtype::F32, extent: Extent::Nested },
    Part { name: "offset", dtype: PartDtype::F32, extent: Extent::Scalar },
];

/// The least scale that is divided by, and that a short block stores.
const LEAST: f32 = 1e-38;

/// 16 numbers and the search for the one in whose interval an element lies.
pub(super) trait Table: Copy + Default + Send + Sync + 'static {
    /// The number of each code.
    const NUMBERS: [f32; 16];
    /// The search falls into 16 buckets, number round(v * `BUCKETS` + `SHIFT`), v limited to -`LIMIT`..=`LIMIT`.
    const BUCKETS: f32;
    /// See [`Table::BUCKETS`].
    const SHIFT: f32;
    /// See [`Table::BUCKETS`]; 1 where the buckets hold all of -1..=1.
    const LIMIT: f32 = 1.0;
    /// The middles between neighbours, and the codes of what lies between these.
    const RANKS: &'static Ranks;
    /// The middles by bucket: at most two each.
    const SEARCH: Search = search(Self::RANKS.steps, Self::BUCKETS, Self::SHIFT, Self::LIMIT);
}

/// What is looked up by bucket.
pub(super) struct Search {
    /// The first middle in the bucket, infinite where there is none.
    first: [f32; 16],
    /// The second one.
    second: [f32; 16],
    /// The complement of the number of middles in the buckets before it.
    before: [i32; 16],
}

const fn middles(numbers: [f32; 16], order: [u8; 16]) -> [f32; 16] {
    let mut middles = [f32::INFINITY; 16];
    let mut rank = 0;
    while rank < 15 {
        middles[rank] = (numbers[order[rank] as usize] + numbers[order[rank + 1] as usize]) / 2.0;
        rank += 1;
    }
    middles
}

const fn search(middles: [f32; 16], buckets: f32, shift: f32, limit: f32) -> Search {
    let mut search = Search { first: [f32::INFINITY; 16], second: [f32::INFINITY; 16], before: [-1; 16] };
    let mut rank = 0;
    while rank < 15 {
        let middle = middles[rank];
        let limited = if middle > limit {
            limit
        } else if middle < -limit {
            -limit
        } else {
            middle
        };
        let bucket = (limited * buckets + shift + 0.5) as usize;
        if search.first[bucket] == f32::INFINITY {
            search.first[bucket] = middle;
        } else {
            assert!(search.second[bucket] == f32::INFINITY, "a bucket holds two middles at most");
            search.second[bucket] = middle;
        }
        let mut later = bucket + 1;
        while later < 16 {
            search.before[later] -= 1;
            later += 1;
        }
        rank += 1;
    }
    search
}

#[derive(Clone, Copy, Default)]
pub(super) struct Nf4;

impl Table for Nf4 {
    const NUMBERS: [f32; 16] = codebooks::NF4;
    const RANKS: &'static Ranks = &Ranks::new(middles(codebooks::NF4, codebooks::ASCENDING), codebooks::ASCENDING);
    const BUCKETS: f32 = 7.4;
    const SHIFT: f32 = 7.5;
}

#[derive(Clone, Copy, Default)]
pub(super) struct Fp4;

impl Table for Fp4 {
    const NUMBERS: [f32; 16] = codebooks::FP4;
    const RANKS: &'static Ranks = &Ranks::new(middles(codebooks::FP4, codebooks::FP4_ORDER), codebooks::FP4_ORDER);
    // Bucket 8 begins between -1/384 and 0 and ends before the middle of 1/192 and 1/6.
    const BUCKETS: f32 = 11.6;
    const SHIFT: f32 = 7.515;
    const LIMIT: f32 = 0.64;
}

/// The numerics; `SHORT` is that of a short last block.
#[derive(Clone, Copy, Default)]
pub(super) struct Absmax<T, const SHORT: bool>(PhantomData<T>);

impl<T, const SHORT: bool> Absmax<T, SHORT> {
    #[inline(always)]
    fn number<S: Simd>(simd: S, x: S::F32, factor: S::F32) -> S::F32 {
        if SHORT { simd.div(x, factor) } else { simd.mul(x, factor) }
    }
}

impl<T: Table, const SHORT: bool> Rule for Absmax<T, SHORT> {
    const NEED: Need = Need::Magnitude;
    const BIAS: i8 = 0;
    const CODES: [i8; 16] = UNSIGNED;
    const NUMBERS: [f32; 16] = T::NUMBERS;
    const LANES: Lanes = Lanes::Ranked(T::RANKS);

    #[inline(always)]
    fn fit<S: Simd>(self, simd: S, ranges: Ranges<S>, _: ScaleDtype) -> Fit<S> {
        let (zero, least) = (simd.splat(0.0), simd.splat(LEAST));
        let absmax = ranges.high;
        // What is not finite stays, to be found.
        let divisor = simd.select(simd.less(absmax, least), least, absmax);
        if SHORT {
            return Fit { scale: divisor, offset: zero, factor: divisor };
        }
        Fit { scale: absmax, offset: zero, factor: simd.div(simd.splat(1.0), divisor) }
    }

    #[inline(always)]
    fn codes<S: Simd>(self, simd: S, x: S::F32, factor: S::F32, _: S::F32) -> S::I32 {
        let v = Self::number(simd, x, factor);
        if S::HAS_TABLES { T::RANKS.codes_of_ranks(simd, by_bucket::<S, T>(simd, v)) } else { T::RANKS.codes(simd, v) }
    }

    #[inline(always)]
    fn lanes<S: Simd>(self, simd: S, x: S::F32, factor: S::F32, offset: S::F32) -> S::I32 {
        if S::HAS_TABLES { self.codes(simd, x, factor, offset) } else { simd.bits(Self::number(simd, x, factor)) }
    }

    #[inline(always)]
    fn values<S: Simd>(self, simd: S, numbers: S::F32, scale: S::F32, _: S::F32) -> S::F32 {
        simd.mul(numbers, scale)
    }
}

/// How many middles are below, of those in the bucket and before it.
#[inline(always)]
fn by_bucket<S: Simd, T: Table>(simd: S, v: S::F32) -> S::I32 {
    // Beyond -1 and 1 the codes are the same as there.
    let limited = if T::LIMIT < 1.0 { clamp(simd, v, simd.splat(-T::LIMIT), simd.splat(T::LIMIT)) } else { v };
    let bucket = simd.round(simd.add(simd.mul(limited, simd.splat(T::BUCKETS)), simd.splat(T::SHIFT)));
    let before = simd.bits(simd.look_up(simd.as_f32(simd.load_i32(&T::SEARCH.before)), bucket));
    let above = |middles: &[f32; 16]| simd.less(simd.look_up(simd.load(middles), bucket), v);
    // A mask is -1 for each middle below.
    let complement = simd.add_i32(before, simd.add_i32(above(&T::SEARCH.first), above(&T::SEARCH.second)));
    simd.xor(complement, simd.splat_i32(-1))
}

/// The layout: whole blocks, then a short one.
pub(super) struct Blocks<T: Table> {
    whole: Planar<Absmax<T, false>, true>,
    short: Planar<Absmax<T, true>, true>,
}

impl<T: Table> Blocks<T> {
    const fn new(spec: &'static Spec) -> Self {
        Blocks { whole: Planar::new(spec), short: Planar::new(spec) }
    }

    /// Elements of whole blocks among `elements`.
    fn whole(context: Context, elements: usize) -> usize {
        elements / context.group * context.group
    }

    /// An odd count ends with the code of 0.0.
    fn fill(elements: usize, packed: &mut [u8]) {
        let zero = T::NUMBERS.iter().position(|&number| number == 0.0).unwrap_or(0);
        if elements % 2 == 1
            && let Some(last) = packed.last_mut()
        {
            *last = *last & 0xf0 | zero as u8;
        }
    }
}

impl<T: Table> Rows for Blocks<T> {
    fn spec(&self) -> &'static Spec {
        self.whole.spec()
    }

    fn need(&self) -> Need {
        self.whole.need()
    }

    fn quantize(&self, context: Context, x: &[f32], range: Option<Range>, groups: &mut Groups) -> Faults {
        let whole = Self::whole(context, x.len());
        if whole == x.len() {
            return self.whole.quantize(context, x, range, groups);
        }
        let (x, rest) = x.split_at(whole);
        let (mut first, mut last) = (Groups::default(), Groups::default());
        first.resize(self.spec(), context, x.len());
        last.resize(self.spec(), context, rest.len());
        let mut faults = self.whole.quantize(context, x, None, &mut first);
        faults |= self.short.quantize(context, rest, range, &mut last);
        let blocks = first.scales.len();
        groups.codes[..whole].copy_from_slice(&first.codes);
        groups.codes[whole..].copy_from_slice(&last.codes);
        groups.scales[..blocks].copy_from_slice(&first.scales);
        groups.scales[blocks..].copy_from_slice(&last.scales);
        faults
    }

    fn pack(&self, context: Context, groups: &Groups, parts: &mut [&mut [u8]]) {
        self.whole.pack(context, groups, parts);
        Self::fill(groups.codes.len(), parts[0]);
    }

    fn unpack(&self, context: Context, parts: &[&[u8]], groups: &mut Groups) {
        self.whole.unpack(context, parts, groups);
    }

    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]) {
        self.whole.dequantize(context, groups, x);
    }

    fn encode(&self, context: Context, x: Input<'_>, groups: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        let whole = Self::whole(context, x.len());
        let mut faults = self.whole.encode(context, x.part(0..whole), groups, parts);
        if whole < x.len() {
            let starts = [whole / 2, whole / context.group * size_of::<f32>()];
            let mut rest: Vec<&mut [u8]> = parts.iter_mut().zip(starts).map(|(part, start)| &mut part[start..]).collect();
            faults |= self.short.encode(context, x.part(whole..x.len()), groups, &mut rest);
        }
        Self::fill(x.len(), parts[0]);
        faults
    }

    fn decode(&self, context: Context, parts: &[&[u8]], groups: &mut Groups, x: Output<'_>) {
        self.whole.decode(context, parts, groups, x);
    }
}

/// The format whose scales are quantized in turn.
pub(super) struct Nested<T: Table> {
    spec: &'static Spec,
    plain: &'static Blocks<T>,
}

impl<T: Table> Nest for Nested<T> {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn plain(&self) -> &'static dyn Rows {
        self.plain
    }

    fn nest(&self, _: Level, scales: &[f32], parts: &mut [&mut [u8]]) {
        let [codes, nested, offset] = parts else { unreachable!("the spec names three parts after the codes") };
        let mean = mean(scales);
        offset.copy_from_slice(&mean.to_le_bytes());
        let blocks = scales.chunks(NESTED).zip(codes.chunks_mut(NESTED)).zip(nested.as_chunks_mut::<4>().0);
        for ((scales, codes), nested) in blocks {
            let largest = scales.iter().fold(0.0f32, |largest, scale| largest.max((scale - mean).abs()));
            *nested = largest.to_le_bytes();
            let inverse = 1.0 / largest;
            for (scale, code) in scales.iter().zip(codes) {
                *code = nearest((scale - mean) * inverse);
            }
        }
    }

    fn nested(&self, parts: &[&mut [u8]]) -> search::Nested {
        let [_, nested, offset] = parts else { unreachable!("the spec names three parts after the codes") };
        let numbers = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect::<Vec<_>>();
        search::Nested { numbers: &MAP.numbers, largest: numbers(nested), offset: numbers(offset).first().copied().unwrap_or(0.0) }
    }

    fn unnest(&self, _: Level, parts: &[&[u8]], scales: &mut [f32]) {
        let [codes, nested, offset] = parts else { unreachable!("the spec names three parts after the codes") };
        let offset = offset.first_chunk().map_or(0.0, |bytes| f32::from_le_bytes(*bytes));
        let blocks = scales.chunks_mut(NESTED).zip(codes.chunks(NESTED)).zip(nested.as_chunks::<4>().0);
        for ((scales, codes), nested) in blocks {
            let nested = f32::from_le_bytes(*nested);
            for (scale, &code) in scales.iter_mut().zip(codes) {
                *scale = MAP.numbers[usize::from(code)] * nested + offset;
            }
        }
    }
}

/// The numbers of the 8-bit codes that nested scales have.
pub(crate) fn nested_numbers() -> &'static [f32; 256] {
    &MAP.numbers
}

/// The numbers of the 8-bit codes, and the table that finds the nearest.
struct Map {
    numbers: [f32; 256],
    /// The code for each of 65536 steps from -1 to 1.
    nearest: Vec<u8>,
}

/// The numbers are 0, 1 and, for each decade, the middles of 2^decade steps from 0.1 to 1 with both signs, ascending.
static MAP: LazyLock<Map> = LazyLock::new(|| {
    let mut numbers = [0.0, 1.0].to_vec();
    for (decade, power) in [1e-6f32, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0].into_iter().enumerate() {
        let steps = 1u32 << decade;
        let step = f64::from((1.0 - 0.1f32) / steps as f32);
        // Counted up from 0.1 in the lower half and down from 1 in the upper; f64 holds product and sum exactly.
        let end = |count: u32| match count < steps.div_ceil(2) {
            true => (f64::from(0.1f32) + step * f64::from(count)) as f32,
            false => (1.0 - step * f64::from(steps - count)) as f32,
        };
        for count in 0..steps {
            let middle = power * ((end(count) + end(count + 1)) / 2.0);
            numbers.extend([middle, -middle]);
        }
    }
    numbers.sort_by(f32::total_cmp);
    let mut sorted = [0.0; 256];
    sorted.copy_from_slice(&numbers);
    let nearest = |step: u16| {
        let v = -1.0 + f32::from(step) * 2.0 / 65535.0;
        let above = sorted.partition_point(|&number| number < v).clamp(1, 255);
        // A tie goes to the lower one.
        (if v - sorted[above - 1] <= sorted[above] - v { above - 1 } else { above }) as u8
    };
    Map { numbers: sorted, nearest: (0..=u16::MAX).map(nearest).collect() }
});

/// The code of a number, by the table; 0 of NaN.
fn nearest(v: f32) -> u8 {
    if v.is_nan() { 0 } else { MAP.nearest[((v.clamp(-1.0, 1.0) + 1.0) * 32767.5 + 0.5) as usize] }
}

/// Lanes of the vectors that torch sums with.
const LANES: usize = 8;

/// Vectors that are summed side by side.
const CHAINS: usize = 4;

/// The mean, in the order in which torch adds on one thread with vectors of 8 lanes; 0 of nothing.
///
/// Vector i goes to chain i mod 4; a chain has four levels of partial sums, and each hands its sum to the next one after 2^power
/// additions. Vectors left over go to chain 0, then the chains are added, then, from 0 on, the elements left over and the lanes.
fn mean(x: &[f32]) -> f32 {
    let (rows, rest) = x.as_chunks::<{ CHAINS * LANES }>();
    let power = (usize::BITS - (rows.len().max(2) - 1).leading_zeros()).div_euclid(4).max(4);
    let mut levels = [[0.0f32; CHAINS * LANES]; 4];
    let whole = rows.len() >> power << power;
    for (row, count) in rows[..whole].iter().zip(1usize..) {
        add(&mut levels[0], row);
        for level in 1..4u32 {
            if count % (1 << (level * power)) != 0 {
                break;
            }
            let sum = std::mem::replace(&mut levels[level as usize - 1], [0.0; CHAINS * LANES]);
            add(&mut levels[level as usize], &sum);
        }
    }
    let [mut sums, others @ ..] = levels;
    rows[whole..].iter().chain(&others).for_each(|row| add(&mut sums, row));
    let (vectors, rest) = rest.as_chunks::<LANES>();
    let mut chains = [[0.0; LANES]; CHAINS];
    chains.copy_from_slice(sums.as_chunks().0);
    let [mut lanes, others @ ..] = chains;
    vectors.iter().chain(&others).for_each(|vector| add(&mut lanes, vector));
    let total = rest.iter().chain(&lanes).fold(0.0, |total, value| total + value);
    total / x.len().max(1) as f32
}

fn add<const N: usize>(sums: &mut [f32; N], row: &[f32; N]) {
    sums.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
}
