//! Codes that stand for the numbers of a table.

use super::line::{Branches, Line};
use super::sums::Levels;
use crate::kernels::codebooks::{ASCENDING, FP4, FP4_ORDER, IQ4, NF4};
use crate::kernels::lanes::magnitude;
use crate::simd::Simd;

/// The numbers of a table, any positive multiple of them or, unless that is the same or not wanted, any negative one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Codebook {
    /// The numbers, ascending.
    numbers: [f32; 16],
    /// Their codes.
    codes: [u8; 16],
    /// The middles between neighbours; nothing is beyond the last one.
    middles: [f32; 16],
    /// The place of the number of smallest magnitude, which is 0 or more.
    least: usize,
    /// Whether only positive scales are looked at, as where the negative of every number is one of them too.
    is_positive: bool,
}

/// The table of ggml's IQ4 formats.
pub(super) static OF_IQ4: Codebook = Codebook::new(IQ4, ASCENDING, 8, false);
/// NF4 of bitsandbytes.
pub(super) static OF_NF4: Codebook = Codebook::new(NF4, ASCENDING, 7, false);
/// The same with positive scales alone.
pub(super) static OF_NF4_POSITIVE: Codebook = Codebook::new(NF4, ASCENDING, 7, true);
/// FP4 of bitsandbytes.
pub(super) static OF_FP4: Codebook = Codebook::new(FP4, FP4_ORDER, 7, true);

impl Codebook {
    /// Of the number of each code, and the codes by their numbers, ascending.
    pub(super) const fn new(of_code: [f32; 16], codes: [u8; 16], least: usize, is_positive: bool) -> Self {
        let (mut numbers, mut middles) = ([0.0; 16], [f32::INFINITY; 16]);
        let mut rank = 0;
        while rank < 16 {
            numbers[rank] = of_code[codes[rank] as usize];
            if rank > 0 {
                middles[rank - 1] = (numbers[rank - 1] + numbers[rank]) / 2.0;
            }
            rank += 1;
        }
        Codebook { numbers, codes, middles, least, is_positive }
    }

    /// The code nearest to `y`, which may be anything.
    #[inline(always)]
    pub(super) fn code<S: Simd>(&self, simd: S, y: S::F32) -> S::I32 {
        let rank = self.rank(simd, y);
        simd.bits(simd.look_up(simd.as_f32(simd.load_i32(&self.codes.map(i32::from))), rank))
    }

    /// The place of the number nearest to `y`: how many middles are below.
    #[inline(always)]
    fn rank<S: Simd>(&self, simd: S, y: S::F32) -> S::I32 {
        let middles = simd.load(&self.middles);
        let mut rank = simd.and(simd.less(simd.splat(self.middles[7]), y), simd.splat_i32(8));
        for step in [4, 2, 1] {
            let middle = simd.look_up(middles, simd.add_i32(rank, simd.splat_i32(step - 1)));
            rank = simd.add_i32(rank, simd.and(simd.less(middle, y), simd.splat_i32(step)));
        }
        rank
    }
}

impl<S: Simd> Levels<S> for &'static Codebook {
    #[inline(always)]
    fn lowest(self, simd: S) -> S::F32 {
        simd.splat(self.numbers[0])
    }

    #[inline(always)]
    fn highest(self, simd: S) -> S::F32 {
        simd.splat(self.numbers[15])
    }

    fn least(self) -> f32 {
        self.numbers[self.least]
    }

    #[inline(always)]
    fn nearest(self, simd: S, y: S::F32) -> (S::F32, S::F32) {
        let rank = self.rank(simd, y);
        let q = simd.look_up(simd.load(&self.numbers), rank);
        (q, magnitude(simd, simd.to_f32(simd.add_i32(rank, simd.splat_i32(-(self.least as i32))))))
    }
}

impl Branches for &'static Codebook {
    type Levels<S: Simd> = Self;

    #[inline(always)]
    fn branch<S: Simd>(self, _: S, sign: S::F32) -> (Self, S::F32) {
        (self, sign)
    }
}

impl Line for &'static Codebook {
    fn greatest(self) -> f32 {
        (-self.numbers[0]).max(self.numbers[15])
    }

    #[inline(always)]
    fn code<S: Simd>(self, simd: S, y: S::F32) -> S::I32 {
        self.code(simd, y)
    }

    fn doubles(self) -> bool {
        false
    }

    fn mirrored(self) -> f32 {
        if self.is_positive { f32::INFINITY } else { 0.0 }
    }

    fn full(self) -> f32 {
        1.0
    }

    fn grid(self) -> &'static [f32] {
        &[0.30, 0.42, 0.52, 0.595, 0.655, 0.71, 0.76, 0.81, 0.855, 0.9, 0.945, 0.99, 1.04, 1.10, 1.17, 1.26, 1.38, 1.55, 1.8]
    }

    #[inline(always)]
    fn unit<S: Simd>(self, simd: S, highest: S::F32, lowest: S::F32) -> S::F32 {
        let (high, low) = (simd.div(highest, simd.splat(self.numbers[15])), simd.div(lowest, simd.splat(-self.numbers[0])));
        simd.div(simd.splat(1.0), simd.select(simd.less(high, low), low, high))
    }
}
