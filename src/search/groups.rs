//! All groups of a span: sixteen by sixteen, then the codes of each.

use super::line::Open;
use super::tile::Tile;
use super::{Elements, Task};
use crate::kernels::encode::Faults;
use crate::simd::{Kernel, LANES, Simd};

/// A way to find scales.
pub(super) trait Solver: Copy + Send + Sync + 'static {
    /// Groups that share something: whole blocks of them are solved together.
    const BLOCK: usize = 1;

    /// The greatest magnitude that a scale is multiplied by.
    fn greatest(self) -> f32;

    /// The best of sixteen groups.
    fn solve<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, open: &mut Open) -> Found<S>;

    /// What elements are multiples of where this is stored.
    fn effective(self, scale: f32) -> f32 {
        scale
    }

    /// The codes of elements with an effective scale, infinite in place of 0, and what else was found.
    fn code<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, offset: S::F32) -> S::I32;
}

/// What is stored for sixteen groups.
pub(super) struct Found<S: Simd> {
    /// 0 where none makes the error smaller than zeros do.
    pub(super) scale: S::F32,
    /// The zero point or the minimum; 0 where the format has neither.
    pub(super) offset: S::F32,
    /// What scale and offset are multiples of, where a block of groups shares it; else zeros.
    pub(super) units: [S::F32; 2],
}

impl<S: Simd> Found<S> {
    /// A scale and an offset that stand for themselves.
    #[inline(always)]
    pub(super) fn alone(simd: S, scale: S::F32, offset: S::F32) -> Self {
        Found { scale, offset, units: [simd.splat(0.0); 2] }
    }
}

/// Codes and scales of groups.
pub(super) struct Search<'a, P> {
    pub(super) solver: P,
    /// Bits of the least magnitude that is no element.
    pub(super) beyond: i32,
    /// What is added to codes and zero points.
    pub(super) bias: i8,
    pub(super) task: Task<'a>,
}

impl<P: Solver> Kernel for Search<'_, P> {
    type Output = Faults;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Faults {
        if self.task.weights.is_some() { self.all::<S, true>(simd) } else { self.all::<S, false>(simd) }
    }
}

impl<P: Solver> Search<'_, P> {
    #[inline(always)]
    fn all<S: Simd, const WEIGHTED: bool>(self, simd: S) -> Faults {
        let Search { solver, beyond, bias, task } = self;
        let mut faults = Faults::default();
        let mut tile = Tile::new(simd, task.dtype, solver.greatest(), task.nested);
        let mut open = Open::new();
        let rows = if let Elements::Rows(rows) = task.x { rows } else { &[] };
        let group = task.group.min(rows.len()).max(1);
        let many = LANES * group;
        let (mut rows, mut codes) = (rows.chunks(many), task.codes.chunks_mut(many));
        let (mut offsets, mut units) = (task.offsets.chunks_mut(LANES), task.units.chunks_mut(LANES / P::BLOCK));
        for (index, scales) in task.scales.chunks_mut(LANES).enumerate() {
            let (x, codes) = (rows.next().unwrap_or_default(), codes.next().unwrap_or_default());
            let (stored_offsets, stored_units) = (offsets.next().unwrap_or_default(), units.next().unwrap_or_default());
            if index > 0 {
                tile.advance();
            }
            let largest = if let Elements::Columns(columns) = task.x {
                tile.fill(simd, columns, task.weights)
            } else {
                let weights = task.weights.map(|weights| &weights[index * many..][..x.len()]);
                tile.load(simd, x, weights, group, P::BLOCK)
            };
            let mut worst = [0; LANES];
            simd.store_i32(largest, &mut worst);
            if worst.iter().any(|&bits| bits >= beyond) {
                faults.element = true;
                continue;
            }
            let Found { scale, offset, units } = solver.solve::<S, WEIGHTED>(simd, &tile, &mut open);
            let (found, offsets) = (lanes(simd, scale), lanes(simd, offset));
            scales.copy_from_slice(&found[..scales.len()]);
            for (stored, offset) in stored_offsets.iter_mut().zip(offsets) {
                *stored = offset + f32::from(bias);
            }
            let units = [lanes(simd, units[0]), lanes(simd, units[1])];
            for (block, stored) in stored_units.iter_mut().enumerate() {
                *stored = units.map(|units| units[block * P::BLOCK]);
            }
            faults.scale |= scales.iter().chain(&*stored_offsets).any(|stored| stored.is_infinite());
            for ((x, codes), (&scale, offset)) in x.chunks(group).zip(codes.chunks_mut(group)).zip(scales.iter().zip(offsets)) {
                code(simd, solver, bias, x, solver.effective(scale), offset, codes);
            }
        }
        faults
    }
}

/// Codes of the elements of a group.
#[inline(always)]
fn code<S: Simd, P: Solver>(simd: S, solver: P, bias: i8, x: &[f32], scale: f32, offset: f32, codes: &mut [i8]) {
    // Whatever is coded with a scale of 0 is 0.
    let divisor = simd.splat(if scale == 0.0 { f32::INFINITY } else { scale });
    let offset = simd.splat(offset);
    for (x, codes) in x.chunks(LANES).zip(codes.chunks_mut(LANES)) {
        let mut padded = [0.0; LANES];
        let x = x.first_chunk().unwrap_or_else(|| {
            padded[..x.len()].copy_from_slice(x);
            &padded
        });
        let mut lanes = [0; LANES];
        simd.store_i32(solver.code(simd, simd.load(x), divisor, offset), &mut lanes);
        let lanes = lanes.map(|code| (code as i8).wrapping_add(bias));
        codes.copy_from_slice(&lanes[..codes.len()]);
    }
}

/// The lanes of a vector.
#[inline(always)]
pub(super) fn lanes<S: Simd>(simd: S, v: S::F32) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    simd.store(v, &mut lanes);
    lanes
}
