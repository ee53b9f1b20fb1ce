//! All groups of a span: sixteen by sixteen, then the codes of each.

use super::Task;
use super::line::Open;
use super::sums::Levels;
use super::tile::Tile;
use crate::kernels::encode::Faults;
use crate::simd::{Kernel, LANES, Simd};

/// A way to find scales.
pub(super) trait Solver: Copy + Send + Sync + 'static {
    type Levels: Levels;

    /// The numbers.
    fn levels(self) -> Self::Levels;

    /// The scales of sixteen groups, as they are stored. 0 where none makes the error smaller than zeros do.
    fn solve<S: Simd, const WEIGHTED: bool>(self, simd: S, tile: &Tile<S>, open: &mut Open) -> S::F32;

    /// What elements are multiples of where this is stored.
    fn effective(self, scale: f32) -> f32 {
        scale
    }
}

/// Codes and scales of groups.
pub(super) struct Search<'a, P> {
    pub(super) solver: P,
    /// Bits of the least magnitude that is no element.
    pub(super) beyond: i32,
    /// What is added to a code.
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
        let levels = solver.levels();
        let mut faults = Faults::default();
        let mut tile = Tile::new(simd, task.dtype, (-levels.lowest()).max(levels.highest()));
        let mut open = Open::new();
        let group = task.group.min(task.x.len()).max(1);
        let many = LANES * group;
        let out = task.codes.chunks_mut(many).zip(task.scales.chunks_mut(LANES));
        for (index, (x, (codes, scales))) in task.x.chunks(many).zip(out).enumerate() {
            let weights = task.weights.map(|weights| &weights[index * many..][..x.len()]);
            let mut worst = [0; LANES];
            simd.store_i32(tile.load(simd, x, weights, group), &mut worst);
            if worst.iter().any(|&bits| bits >= beyond) {
                faults.element = true;
                continue;
            }
            let mut found = [0.0; LANES];
            simd.store(solver.solve::<S, WEIGHTED>(simd, &tile, &mut open), &mut found);
            scales.copy_from_slice(&found[..scales.len()]);
            faults.scale |= scales.iter().any(|scale| scale.is_infinite());
            for ((x, codes), &scale) in x.chunks(group).zip(codes.chunks_mut(group)).zip(&*scales) {
                code(simd, levels, bias, x, solver.effective(scale), codes);
            }
        }
        faults
    }
}

/// Codes of the elements of a group.
#[inline(always)]
fn code<S: Simd, L: Levels>(simd: S, levels: L, bias: i8, x: &[f32], scale: f32, codes: &mut [i8]) {
    // Whatever is coded with a scale of 0 is 0.
    let divisor = simd.splat(if scale == 0.0 { f32::INFINITY } else { scale });
    for (x, codes) in x.chunks(LANES).zip(codes.chunks_mut(LANES)) {
        let mut padded = [0.0; LANES];
        let x = x.first_chunk().unwrap_or_else(|| {
            padded[..x.len()].copy_from_slice(x);
            &padded
        });
        let mut lanes = [0; LANES];
        simd.store_i32(levels.code(simd, simd.div(simd.load(x), divisor)), &mut lanes);
        let lanes = lanes.map(|code| (code as i8).wrapping_add(bias));
        codes.copy_from_slice(&lanes[..codes.len()]);
    }
}
