//! The scales of the smallest error: for every group the codes and the scale that no others of the layout beat.
//!
//! ```text
//! E(s) = min over codes of sum w (x - s number(code))^2        s: every number that the layout can store
//! ```
//!
//! | module | what |
//! |---|---|
//! | `groups` | all groups of a span |
//! | `tile` | sixteen groups, a lane each, brought to one size |
//! | `sums` | what one scale does to them: its error, and what bounds that of its neighbours |
//! | `line` | branch and bound over the scale |
//! | `symmetric` | the codes -8..=7 |
//! | `codebook` | codes that are looked up |
//! | `plane` | a scale and a minimum, or a zero point that is a number |
//! | `blocks` | scales, and minimums, that are multiples of those of a block |
//! | `block_scales`, `block_planes` | they alone, and both |
//! | `small` | E2M1 codes, and the scales of eight bits |
//! | `zero_point` | a scale and an integer zero point |
//!
//! Sums run over a group from its first element to its last in its own lane, so that the bytes are the same at every level.

mod block_planes;
mod block_scales;
mod blocks;
mod codebook;
mod groups;
mod line;
mod plane;
mod plane_proof;
mod small;
mod sums;
mod symmetric;
mod tile;
mod zero_point;

use crate::kernels::encode::Faults;
use crate::kernels::range::{BEYOND_HALF, INFINITE};
use crate::level::Level;
use crate::simd::LANES;
use crate::spec::{self, Choice, Global, GroupSizes, ScaleDtype, Scheme, Spec, ZeroPoints};
use block_planes::BlockPlanes;
use block_scales::BlockScales;
use groups::{Search, Solver};
use line::OfLine;
use plane::{Offset, Plane};
use small::{Set, Small};
use std::sync::Arc;
use symmetric::Symmetric;
use zero_point::ZeroPoint;

/// Elements of a group at most: sixteen of them and their weights are 8 MiB.
pub const LARGEST_GROUP: usize = 64 * 1024;

/// By how much of itself an error may be larger than the smallest one, where a search ends at a tolerance and none is given.
pub const TOLERANCE: f32 = 1e-4;

/// The same of each group of a block, whose scale and minimum are then brought to multiples of shared ones: that costs some percent.
pub const TOLERANCE_IN_BLOCKS: f32 = 0.1;

/// What is searched for a format.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Problem {
    kind: Kind,
    /// What a code and a zero point of the search are less than the format's.
    bias: i8,
    /// Bits of the least magnitude that is no element.
    beyond: i32,
    /// How far elements may be beyond the numbers, as a part of the largest magnitude of their group.
    clip_limit: Option<f32>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Symmetric,
    Iq4,
    Nf4,
    NestedNf4,
    Fp4,
    NestedFp4,
    Small(Set, Option<Global>),
    /// From which zero point on.
    ZeroPoint(u8),
    Plane(Plane),
    BlockScales(BlockScales),
    BlockPlanes(BlockPlanes),
}

impl Problem {
    /// The problem of a format; `None` where it has no search.
    pub fn of(spec: &Spec) -> Option<Problem> {
        let is_in_blocks = matches!(spec.group_sizes, GroupSizes::InBlocks { .. });
        let (kind, bias) = match (spec.scheme, spec.choice) {
            _ if spec.is_companion() => return None,
            (Scheme::Symmetric, _) => (Kind::Symmetric, 0),
            (Scheme::Affine, Some(Choice::Symmetric(true))) => (Kind::Symmetric, 8),
            (Scheme::Affine, _) if let ZeroPoints::Integers(first, 15) = spec.zero_points => (Kind::ZeroPoint(first), 0),
            (Scheme::Affine, _) => (Kind::Plane(Plane::new(Offset::ZeroPoint)), 0),
            (Scheme::Minimum, _) if is_in_blocks => (Kind::BlockPlanes(BlockPlanes { tolerance: Some(TOLERANCE_IN_BLOCKS) }), 0),
            (Scheme::Minimum, _) => (Kind::Plane(Plane::new(Offset::Minimum)), 0),
            (Scheme::Codebook(spec::Codebook::Iq4), _) if is_in_blocks => (Kind::BlockScales(BlockScales { is_exact: true }), 0),
            (Scheme::Codebook(spec::Codebook::Iq4), _) => (Kind::Iq4, 0),
            // Around a mean that is far from 0 hardly a scale is negative.
            (Scheme::Codebook(spec::Codebook::Nf4), Some(Choice::DoubleQuant(true))) => (Kind::NestedNf4, 0),
            (Scheme::Codebook(spec::Codebook::Nf4), _) => (Kind::Nf4, 0),
            (Scheme::Codebook(spec::Codebook::Fp4), Some(Choice::DoubleQuant(true))) => (Kind::NestedFp4, 0),
            (Scheme::Codebook(spec::Codebook::Fp4), _) => (Kind::Fp4, 0),
            (Scheme::Codebook(spec::Codebook::E2m1), _) => {
                let set = if spec.scale_dtypes[0] == ScaleDtype::E8m0 { Set::E8m0 } else { Set::E4m3 };
                (Kind::Small(set, spec.global), 0)
            }
        };
        let beyond = if spec.half { BEYOND_HALF.to_bits().cast_signed() } else { INFINITE };
        Some(Problem { kind, bias, beyond, clip_limit: None })
    }

    /// The same up to a tolerance: the error may be larger than the smallest one by so much of itself. Searches that are exact stay so.
    #[must_use]
    pub fn within(self, tolerance: f32) -> Problem {
        match self.kind {
            Kind::Plane(plane) => Problem { kind: Kind::Plane(Plane { tolerance: Some(tolerance), ..plane }), ..self },
            Kind::BlockPlanes(_) => Problem { kind: Kind::BlockPlanes(BlockPlanes { tolerance: Some(tolerance) }), ..self },
            _ => self,
        }
    }

    /// The same among the scales that leave no element further beyond the numbers than such a part of the largest magnitude of its group;
    /// `None` where that is not searched, as where scales are quantized in turn.
    pub fn clipping(self, limit: f32) -> Option<Problem> {
        let is_line = matches!(self.kind, Kind::Symmetric | Kind::Iq4 | Kind::Nf4 | Kind::Fp4);
        is_line.then_some(Problem { clip_limit: Some(limit), ..self })
    }

    /// The same by a search that is quick and proves nothing; `None` where there is none.
    pub fn fast(self) -> Option<Problem> {
        let kind = match self.kind {
            Kind::Plane(plane) => Kind::Plane(Plane { tolerance: None, ..plane }),
            Kind::BlockPlanes(_) => Kind::BlockPlanes(BlockPlanes { tolerance: None }),
            Kind::BlockScales(_) => Kind::BlockScales(BlockScales { is_exact: false }),
            _ => return None,
        };
        Some(Problem { kind, ..self })
    }

    /// Whether what is found is rounded after the search, so that another scale may be better as it is stored.
    pub fn is_rounded_afterwards(self) -> bool {
        matches!(self.kind, Kind::Plane(_) | Kind::BlockScales(_) | Kind::BlockPlanes(_))
    }

    /// Codes and scales of the groups of `x`, and zero points or minimums where the format stores them.
    ///
    /// Where no scale makes the error smaller than that of zeros alone, the scale is 0. Where the format's own scale, the one
    /// that brings every element within the codes, would be beyond the dtype, it is infinite, and so is a minimum.
    pub fn solve(self, task: Task<'_>) -> Faults {
        let clip_limit = self.clip_limit;
        match self.kind {
            Kind::Symmetric => self.run(OfLine { levels: Symmetric, clip_limit }, task),
            Kind::Iq4 => self.run(OfLine { levels: &codebook::OF_IQ4, clip_limit }, task),
            Kind::Nf4 => self.run(OfLine { levels: &codebook::OF_NF4, clip_limit }, task),
            Kind::NestedNf4 => self.run(OfLine { levels: &codebook::OF_NF4_POSITIVE, clip_limit }, task),
            Kind::Fp4 | Kind::NestedFp4 => self.run(OfLine { levels: &codebook::OF_FP4, clip_limit }, task),
            Kind::Small(set, global) => {
                let global = global.map(|global| (global, task.global));
                self.run(Small { set, global }, task)
            }
            Kind::Plane(plane) => self.run(plane, task),
            Kind::BlockScales(blocks) => self.run(blocks, task),
            Kind::BlockPlanes(blocks) => self.run(blocks, task),
            Kind::ZeroPoint(first) => self.run(ZeroPoint { first: f32::from(first) }, task),
        }
    }

    fn run<P: Solver>(self, solver: P, task: Task<'_>) -> Faults {
        task.level.run(Search { solver, beyond: self.beyond, bias: self.bias, task })
    }
}

/// Groups to be searched.
#[derive(Debug)]
pub struct Task<'a> {
    /// The instruction set.
    pub level: Level,
    /// The elements.
    pub x: Elements<'a>,
    /// The weight of the error of each, 0 or more, or of each column; none where all are equal. A group of zeros has equal weights too.
    pub weights: Option<&'a [f32]>,
    /// Elements of a group; the last one may be shorter.
    pub group: usize,
    /// The dtype of the scales.
    pub dtype: ScaleDtype,
    /// The second level of the scales, 1 where there is none.
    pub global: f32,
    /// One code an element of a row.
    pub codes: &'a mut [i8],
    /// One scale a group.
    pub scales: &'a mut [f32],
    /// One zero point or minimum a group; empty in a scheme without.
    pub offsets: &'a mut [f32],
    /// What the scales and the minimums of a block are multiples of, where it shares them; else empty.
    pub units: &'a mut [[f32; 2]],
    /// The scales that there are, where they are quantized in turn, and the number of the first group.
    pub nested: Option<(Arc<Nested>, usize)>,
}

/// The elements of groups.
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// One group after the other.
    Rows(&'a [f32]),
    /// Sixteen groups side by side, their columns one after the other. They get no codes.
    Columns(&'a [[f32; LANES]]),
}

/// Scales that are quantized in turn: a scale is number * largest + offset, two roundings.
#[derive(Clone, Debug)]
pub struct Nested {
    /// The numbers of the codes, ascending.
    pub numbers: &'static [f32; 256],
    /// One for each [`spec::NESTED`] groups, 0 or more.
    pub largest: Vec<f32>,
    /// One for all.
    pub offset: f32,
}

impl Nested {
    /// The scale of a number, in a group.
    fn scale(&self, number: f32, group: usize) -> f32 {
        number * self.largest[group / spec::NESTED] + self.offset
    }

    /// The positive scales nearest to those of groups from `first` on; 0 where there is none.
    fn round(&self, scales: &mut [f32], first: usize) {
        let groups = self.largest.len() * spec::NESTED;
        for (scale, group) in scales.iter_mut().zip(first..groups) {
            let above = self.numbers.partition_point(|&number| self.scale(number, group) < *scale);
            let upper = self.numbers.get(above).map_or(f32::INFINITY, |&number| self.scale(number, group));
            let lower = if above == 0 { 0.0 } else { self.scale(self.numbers[above - 1], group) };
            let nearest = if lower < f32::MIN_POSITIVE || upper - *scale < *scale - lower { upper } else { lower };
            *scale = if (f32::MIN_POSITIVE..f32::INFINITY).contains(&nearest) { nearest } else { 0.0 };
        }
    }

    /// The code of a scale of a group that there is.
    pub fn code(&self, scale: f32, group: usize) -> Option<u8> {
        let place = self.numbers.partition_point(|&number| self.scale(number, group) < scale);
        let number = self.numbers.get(place)?;
        (self.scale(*number, group) == scale).then_some(place as u8)
    }
}
