//! Refinement: group by group the best scale for the codes, then code by code the best one for the scale, as they are stored.
//!
//! ```text
//! r = lost H                      the loss falls by 2 r_j d as lost_j falls by d
//! scale += sum of u r / u H u     u = code, or code - zero point; over the columns of the group
//! code  += r_j / (H_jj scale)
//! ```
//!
//! Each step goes to the smallest loss of the numbers that it may choose from, so that a round never adds to it: coordinate descent
//! on codes and scales together. Zero points and minimums stay.

use super::factor::{Damped, Factor};
use super::hessian::Hessian;
use super::lattice::{Lattice, or_infinity};
use super::{Columns, Options, Tile, blocks, push};
use crate::engine::Run;
use crate::error::Result;
use crate::kernels::products::{Combine, Factors, Lanes};
use crate::pool::{self, Watch};
use crate::simd::{Kernel, LANES, Simd};

/// Refine all tiles. Rows whose loss rounding would have made larger stay as they are.
pub(super) fn refine(
    tiles: &mut [Tile],
    lattice: Lattice,
    columns: &Columns,
    factor: &Factor,
    (hessian, options): (&Hessian, Options),
    run: &Run<'_>,
) -> Result<()> {
    let before = losses(tiles, columns, factor, run)?;
    let kept: Vec<_> = tiles.iter().map(|tile| (tile.codes.clone(), tile.scales.clone())).collect();
    let by_group = columns.by_group();
    reorder(tiles, columns, &by_group);
    let damped = Damped::new(hessian, options.damping);
    let (all, group) = (by_group.order.len(), by_group.group);
    let mut elements = vec![0.0; all * all];
    pool::for_each(elements.chunks_mut(all).enumerate(), run.threads, run.interrupted, |(i, row)| {
        let of = |j: usize| damped.at(by_group.order[i], by_group.order[j]) as f32;
        row.iter_mut().enumerate().for_each(|(j, element)| *element = of(j));
    })?;
    let (mut factors, mut within) = (Factors::default(), Vec::new());
    // The work on a block may be shorter than the time after which it would ask itself.
    let mut watch = Watch::new(run.interrupted);
    for _ in 0..options.refine {
        for block in blocks(all, group) {
            watch.check()?;
            factors.fill(block.len(), all, |j, i| elements[(block.start + j) * all + i]);
            within.clear();
            block.clone().for_each(|i| within.extend_from_slice(&elements[i * all..][block.clone()]));
            pool::for_each(tiles.iter_mut(), run.threads, run.interrupted, |tile| {
                let mut slopes = vec![[0.0; LANES]; block.len()];
                run.level.run(Combine { factors: &factors, x: &tile.lost, out: &mut slopes });
                let groups = block.start / group..block.end.div_ceil(group);
                run.level.run(Round {
                    lattice,
                    group,
                    hessian: &within,
                    slopes: &mut slopes,
                    w: &tile.w[block.clone()],
                    lost: &mut tile.lost[block.clone()],
                    codes: &mut tile.codes[block.clone()],
                    scales: &mut tile.scales[groups.clone()],
                    offsets: &tile.offsets[groups],
                });
            })?;
        }
    }
    reorder(tiles, &by_group, columns);
    let after = losses(tiles, columns, factor, run)?;
    for ((tile, (codes, scales)), (before, after)) in tiles.iter_mut().zip(kept).zip(before.iter().zip(after)) {
        for lane in (0..LANES).filter(|&lane| after[lane] > before[lane]) {
            tile.codes.iter_mut().zip(&codes).for_each(|(code, kept)| code[lane] = kept[lane]);
            tile.scales.iter_mut().zip(&scales).for_each(|(scale, kept)| scale[lane] = kept[lane]);
        }
    }
    Ok(())
}

/// Bring columns from one order into another.
fn reorder(tiles: &mut [Tile], from: &Columns, to: &Columns) {
    if from.order == to.order {
        return;
    }
    let mut places = vec![0; from.order.len()];
    from.order.iter().enumerate().for_each(|(place, &column)| places[column] = place);
    for tile in tiles {
        for all in [&mut tile.w, &mut tile.lost, &mut tile.codes] {
            *all = to.order.iter().map(|&column| all[places[column]]).collect();
        }
    }
}

/// The loss of each row: the sum over j of R_jj^2 (lost_j + sum over i < j of lost_i share_ij)^2.
fn losses(tiles: &[Tile], columns: &Columns, factor: &Factor, run: &Run<'_>) -> Result<Vec<[f64; LANES]>> {
    let mut losses = vec![[0.0; LANES]; tiles.len()];
    let (mut factors, mut shares) = (Factors::default(), Vec::new());
    let mut watch = Watch::new(run.interrupted);
    for block in blocks(columns.order.len(), columns.group) {
        watch.check()?;
        factor.before(&block, &mut factors);
        factor.within(&block, &mut shares);
        pool::for_each(tiles.iter().zip(&mut losses), run.threads, run.interrupted, |(tile, losses)| {
            let mut t = tile.lost[block.clone()].to_vec();
            run.level.run(Combine { factors: &factors, x: &tile.lost[..block.start], out: &mut t });
            run.level.run(Spread { shares: &shares, lost: &tile.lost[block.clone()], t: &mut t });
            for (t, j) in t.iter().zip(block.clone()) {
                for (loss, &t) in losses.iter_mut().zip(t) {
                    *loss += (factor.weight(j) * f64::from(t)).powi(2);
                }
            }
        })?;
    }
    Ok(losses)
}

/// `t[k] += lost[j] * share[j, k]` for the columns of a block.
struct Spread<'a> {
    shares: &'a [f32],
    lost: &'a [Lanes],
    t: &'a mut [Lanes],
}

impl Kernel for Spread<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let columns = self.t.len();
        for (j, lost) in self.lost.iter().enumerate() {
            push(simd, &self.shares[j * columns + j + 1..], simd.load(lost), &mut self.t[j + 1..]);
        }
    }
}

/// The groups of a block.
struct Round<'a> {
    lattice: Lattice,
    /// Columns of a group; the last one may have fewer.
    group: usize,
    /// H of the columns of the block.
    hessian: &'a [f32],
    slopes: &'a mut [Lanes],
    w: &'a [Lanes],
    lost: &'a mut [Lanes],
    codes: &'a mut [Lanes],
    scales: &'a mut [Lanes],
    offsets: &'a [Lanes],
}

impl Kernel for Round<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self, simd: S) {
        for (index, start) in (0..self.w.len()).step_by(self.group).enumerate() {
            let columns = start..self.w.len().min(start + self.group);
            let offset = simd.load(&self.offsets[index]);
            self.rescale(simd, columns.clone(), index, offset);
            let scale = simd.load(&self.scales[index]);
            for j in columns {
                let curvature = simd.splat(self.hessian[j * self.w.len() + j]);
                let code = self.lattice.moved(simd, simd.load(&self.codes[j]), simd.load(&self.slopes[j]), curvature, scale);
                simd.store(code, &mut self.codes[j]);
                self.lose(simd, j, j + 1, scale, offset);
            }
        }
    }
}

impl Round<'_> {
    /// The best scale of a group for its codes.
    #[inline(always)]
    fn rescale<S: Simd>(&mut self, simd: S, columns: std::ops::Range<usize>, index: usize, offset: S::F32) {
        let scale = simd.load(&self.scales[index]);
        let (mut slope, mut curvature) = (simd.splat(0.0), simd.splat(0.0));
        for j in columns.clone() {
            let row = &self.hessian[j * self.w.len()..][columns.clone()];
            let mut sum = simd.splat(0.0);
            for (code, &element) in self.codes[columns.clone()].iter().zip(row) {
                sum = simd.add(sum, simd.mul(simd.splat(element), self.lattice.steps(simd, simd.load(code), offset)));
            }
            let steps = self.lattice.steps(simd, simd.load(&self.codes[j]), offset);
            slope = simd.add(slope, simd.mul(steps, simd.load(&self.slopes[j])));
            curvature = simd.add(curvature, simd.mul(steps, sum));
        }
        let best = simd.add(scale, simd.div(slope, or_infinity(simd, curvature)));
        let best = self.lattice.rescaled(simd, scale, best);
        simd.store(best, &mut self.scales[index]);
        for j in columns.clone() {
            self.lose(simd, j, columns.start, best, offset);
        }
    }

    /// Note what column j loses now, in the slopes of the columns from `first` on too.
    #[inline(always)]
    fn lose<S: Simd>(&mut self, simd: S, j: usize, first: usize, scale: S::F32, offset: S::F32) {
        let value = self.lattice.value(simd, simd.load(&self.codes[j]), scale, offset);
        let lost = simd.sub(simd.load(&self.w[j]), value);
        let more = simd.sub(lost, simd.load(&self.lost[j]));
        if simd.any(simd.xor(simd.equal(more, simd.splat(0.0)), simd.splat_i32(-1))) {
            simd.store(lost, &mut self.lost[j]);
            push(simd, &self.hessian[j * self.w.len() + first..], more, &mut self.slopes[first..]);
        }
    }
}
