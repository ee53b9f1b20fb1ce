//! Numbers between steps: the code of a number is that of the interval between two steps in which it lies.

use super::Simd;

/// Fifteen steps that ascend, and the codes of the sixteen intervals between them. A step belongs to the interval below it.
#[derive(Debug)]
pub struct Ranks {
    /// The steps, and a lane that fills the vector.
    pub steps: [f32; 16],
    /// The codes, ascending with their intervals.
    pub order: [u8; 16],
    /// Where steps lie so far apart that this serves to find codes faster.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for levels that do better with bytes"))]
    pub(super) cells: Option<Cells>,
}

/// 32 cells from -1 to 1 of which each holds one step at most, the negative ones first.
///
/// Numbers are counted in units of 2^-14 there. Whoever counts as many units as the step of its cell may be on either side of it.
#[derive(Debug)]
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "for levels that do better with bytes"))]
pub(super) struct Cells {
    /// The units of the step, low bytes; more than any number has where there is none.
    pub low: [u8; 32],
    /// The same, high bytes.
    pub high: [u8; 32],
    /// The rank below it.
    pub below: [u8; 32],
}

/// The sum with it has the units of a number as its lowest 16 bits: floats from 512 on are 2^-14 apart.
pub(super) const UNITS: f32 = 768.0;

/// Units of a cell, as a power of two.
const WIDTH: u32 = 10;

impl Ranks {
    /// Of steps from -1 to 1, and the codes of the intervals between them.
    ///
    /// # Panics
    ///
    /// Where a step is beyond -1 and 1.
    pub const fn new(steps: [f32; 16], order: [u8; 16]) -> Self {
        Ranks { steps, order, cells: cells(&steps) }
    }

    /// The codes of numbers.
    #[inline(always)]
    pub fn codes<S: Simd>(&self, simd: S, x: S::F32) -> S::I32 {
        self.codes_of_ranks(simd, simd.rank(x, simd.load(&self.steps)))
    }

    /// The codes of intervals, which are counted from 0.
    #[inline(always)]
    pub fn codes_of_ranks<S: Simd>(&self, simd: S, ranks: S::I32) -> S::I32 {
        if self.is_ascending() {
            return ranks;
        }
        simd.bits(simd.look_up(simd.as_f32(simd.load_i32(&self.order.map(i32::from))), ranks))
    }

    /// Whether the codes ascend, as their intervals do.
    #[inline(always)]
    const fn is_ascending(&self) -> bool {
        let mut rank = 0;
        while rank < 16 {
            if self.order[rank] as usize != rank {
                return false;
            }
            rank += 1;
        }
        true
    }
}

/// The cells, unless one would hold two steps.
const fn cells(steps: &[f32; 16]) -> Option<Cells> {
    let mut cells = Cells { low: [0xff; 32], high: [0x7f; 32], below: [0; 32] };
    let (mut rank, mut cell) = (0, 0);
    while cell < 32 {
        cells.below[cell] = rank as u8;
        let mut count = 0;
        while rank < 15 {
            let units = (steps[rank] + UNITS).to_bits() as u16 as i16;
            if units >> WIDTH != cell as i16 - 16 {
                break;
            }
            [cells.low[cell], cells.high[cell]] = units.to_le_bytes();
            rank += 1;
            count += 1;
        }
        if count > 1 {
            return None;
        }
        cell += 1;
    }
    assert!(rank == 15, "steps lie between -1 and 1");
    Some(cells)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::level::Level;
    use crate::simd::{Kernel, LANES};
    use proptest::prelude::*;

    struct Pack<'a> {
        x: &'a [f32; 128],
        ranks: &'a Ranks,
    }

    impl Kernel for Pack<'_> {
        type Output = [u8; 64];

        #[inline(always)]
        fn run<S: Simd>(self, simd: S) -> [u8; 64] {
            let mut bits = [simd.splat_i32(0); 8];
            for (bits, x) in bits.iter_mut().zip(self.x.as_chunks::<LANES>().0) {
                *bits = simd.bits(simd.load(x));
            }
            let mut packed = [0; 64];
            simd.pack_ranked_pairs(&bits, self.ranks, &mut packed);
            packed
        }
    }

    fn number() -> impl Strategy<Value = f32> {
        prop_oneof![4 => -1.0f32..=1.0, 1 => -1e-4f32..1e-4, 1 => prop::sample::select(vec![0.0, -0.0, 1.0, -1.0, 1e-45, 1.0 + f32::EPSILON])]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(if cfg!(miri) { 2 } else { 256 }))]

        #[test]
        fn codes_are_those_of_the_steps_below(
            mut steps in prop::array::uniform16(-0.99f32..0.99),
            is_wide: bool,
            order in Just([0u8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]).prop_shuffle(),
            numbers in prop::collection::vec((number(), 0..30usize, -1i32..2), 128),
        ) {
            if is_wide {
                // Two cells for each.
                steps = std::array::from_fn(|i| (i as f32 - 7.5) / 8.0 + (steps[i] + 1.0) / 32.1);
            }
            steps[..15].sort_by(f32::total_cmp);
            let ranks = Ranks::new(steps, order);
            prop_assert!(ranks.cells.is_some() || !is_wide);
            let x = std::array::from_fn(|i| {
                let (number, place, off) = numbers[i];
                // At a step, or beside it.
                if place < 15 { f32::from_bits(steps[place].to_bits().wrapping_add_signed(off)) } else { number }
            });
            let codes = x.map(|x| order[steps[..15].iter().filter(|&&step| step < x).count()]);
            let expected: [u8; 64] = std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4);
            for level in Level::available() {
                prop_assert!(level.run(Pack { x: &x, ranks: &ranks }) == expected, "{} {:?} {:?}", level.name(), ranks, x);
            }
        }
    }
}
