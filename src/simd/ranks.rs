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
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for levels that do better with bytes"))]
    pub(super) cells: Option<Cells>,
}

/// 32 cells from -1 to 1 of which each holds one step at most, the negative ones first.
///
/// Numbers are counted in units of 2^-14 there. Whoever counts as many units as the step of its cell may be on either side of it.
#[derive(Debug)]
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
    /// Of steps and the codes of the intervals between them.
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
