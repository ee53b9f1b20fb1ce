//! The sweep: block by block of columns, in each of them column by column.
//!
//! ```text
//! t_j = w_j + sum over i before the block of lost_i share_ij      one product a block
//! v_j = what the group holds that is nearest to t_j
//! lost_j = w_j - v_j,   t_k += lost_j share_jk                     for the later columns k of the block
//! ```
//!
//! Scales are chosen when the sweep comes to a group, for what its columns would be without any further loss: y_j = t_j where each v
//! of the group before is its y. These are the updated weights of GPTQ.

use super::factor::Factor;
use super::lattice::Lattice;
use super::{Columns, Options, Scales, Tile, blocks, push};
use crate::element::Source;
use crate::engine::{Importance, Method, Run, Search};
use crate::error::{Error, Result};
use crate::formats::{self, Context, Faults, Groups, Rows};
use crate::kernels::products::{Combine, Factors, Lanes};
use crate::layout::Layout;
use crate::pool::{self, Watch};
use crate::simd::{Kernel, LANES, Simd};
use std::sync::Mutex;

/// Find codes, scales and offsets of all tiles, and what is lost. The answer is whether helpers could not be started.
pub(super) fn sweep(
    tiles: &mut [Tile],
    (source, layout): (&Source<'_>, &Layout),
    lattice: Lattice,
    columns: &Columns,
    factor: &Factor,
    options: Options,
    run: &Run<'_>,
) -> Result<bool> {
    let group = columns.group;
    let squares = columns.members.iter().map(|members| squares(factor, members)).collect::<Vec<_>>();
    let weights: Vec<Source<'_>> = squares.iter().map(|squares| Source::from_slice(squares, &[squares.len()])).collect();
    let searches: Vec<Search<'_>> = match options.scales {
        Scales::Nearest => Vec::new(),
        Scales::Optimal => {
            let of = |weights| {
                let columns = Source::shape(weights)[0];
                let search =
                    Search::new(Method::Optimal(Importance::Array(weights)), &Source::from_slice(&[], &[0, columns]), layout, run)?;
                Ok(search.expect("that method searches"))
            };
            weights.iter().map(of).collect::<Result<_>>()?
        }
    };
    let chooser = Chooser { format: formats::of(layout.spec).rows(), layout, searches, run };
    let faulty = Mutex::new(None::<Fault>);
    let note = |tile: usize, group: usize, faults: Faults, found: &Tile| {
        if faults.any() {
            let beyond = |v: &[Lanes]| v[group].iter().position(|v| v.is_infinite());
            let scale = beyond(&found.scales).map(|lane| ("scale", lane));
            let part = scale.or_else(|| beyond(&found.offsets).map(|lane| ("minimum", lane)));
            let fault = Fault { row: tile * LANES + part.map_or(0, |(_, lane)| lane), group, part: part.map(|(part, _)| part) };
            let mut faulty = faulty.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            // The same one whichever thread is first.
            if faulty.as_ref().is_none_or(|other| (fault.row, fault.group) < (other.row, other.group)) {
                *faulty = Some(fault);
            }
        }
    };
    let check = || match faulty.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
        None => Ok(()),
        Some(Fault { row, group, part: Some(part) }) => {
            let shape = layout.groups_shape();
            let group = source.caller_index(row * shape[shape.len() - 1] + group, &shape);
            Err(Error::ScaleOverflow { part, dtype: layout.scale_dtype.name(), group })
        }
        Some(Fault { row, .. }) => {
            let expected = "a larger one, such as 0.1, is needed: what was fed back made weights of row";
            Err(Error::value("damping", options.damping.to_string(), format!("{expected} {row} larger than {} holds", layout.spec.name)))
        }
    };
    let mut pool_failed = false;
    if !columns.together {
        pool_failed |= pool::for_each(tiles.iter_mut().enumerate(), run.threads, run.interrupted, |(number, tile)| {
            let mut scratch = Scratch::default();
            for (group, members) in columns.members.iter().enumerate() {
                let t: Vec<Lanes> = members.iter().map(|&member| tile.w[member]).collect();
                let faults = chooser.choose(group, &t, tile, &mut scratch);
                note(number, group, faults, tile);
            }
        })?;
        check()?;
    }
    let (mut factors, mut shares) = (Factors::default(), Vec::new());
    let mut watch = Watch::new(run.interrupted);
    for block in blocks(columns.order.len(), group) {
        watch.check()?;
        factor.before(&block, &mut factors);
        factor.within(&block, &mut shares);
        pool_failed |= pool::for_each(tiles.iter_mut().enumerate(), run.threads, run.interrupted, |(number, tile)| {
            let mut t = tile.w[block.clone()].to_vec();
            run.level.run(Combine { factors: &factors, x: &tile.lost[..block.start], out: &mut t });
            let mut scratch = Scratch::default();
            let step = if columns.together { group } else { block.len() };
            for start in (0..block.len()).step_by(step) {
                let end = block.len().min(start + step);
                if columns.together {
                    let group = columns.groups[block.start + start];
                    let mut y = t[start..end].to_vec();
                    let w = &tile.w[block.start + start..block.start + end];
                    run.level.run(Ahead { shares: &shares, first: start, columns: block.len(), w, y: &mut y });
                    let faults = chooser.choose(group, &y, tile, &mut scratch);
                    note(number, group, faults, tile);
                }
                run.level.run(Step {
                    lattice,
                    range: start..end,
                    groups: &columns.groups[block.clone()],
                    shares: &shares,
                    t: &mut t,
                    w: &tile.w[block.clone()],
                    lost: &mut tile.lost[block.clone()],
                    codes: &mut tile.codes[block.clone()],
                    scales: &tile.scales,
                    offsets: &tile.offsets,
                });
            }
        })?;
        check()?;
    }
    Ok(pool_failed)
}

/// A group whose scale or minimum cannot be stored, or whose elements are beyond the format.
struct Fault {
    row: usize,
    group: usize,
    part: Option<&'static str>,
}

/// R_jj^2 of some columns, the largest of them 1: it is their ratios that count.
fn squares(factor: &Factor, members: &[usize]) -> Vec<f32> {
    let squares: Vec<f64> = members.iter().map(|&member| factor.weight(member).powi(2)).collect();
    let largest = squares.iter().copied().fold(0.0, f64::max);
    squares.iter().map(|square| (square / largest) as f32).collect()
}

/// What chooses scales and offsets.
struct Chooser<'a> {
    format: &'static dyn Rows,
    layout: &'a Layout,
    /// One a group; none where the format's rule chooses.
    searches: Vec<Search<'a>>,
    run: &'a Run<'a>,
}

/// A group of sixteen rows, and what was found for it.
#[derive(Default)]
struct Scratch {
    x: Vec<f32>,
    found: Groups,
}

impl Chooser<'_> {
    /// Scale and offset of a group of sixteen rows whose elements are to be `t`.
    fn choose(&self, group: usize, t: &[Lanes], tile: &mut Tile, Scratch { x, found }: &mut Scratch) -> Faults {
        let (level, len) = (self.run.level, t.len());
        let context = Context { level, group: len, scale_dtype: self.layout.scale_dtype, global: 1.0, stream: false };
        let offsets = if self.format.spec().has_offsets() { &mut tile.offsets[group][..] } else { &mut [] };
        if let Some(search) = self.searches.get(group)
            && let Some(faults) = search.choose(context, t, &mut tile.scales[group], offsets)
        {
            return faults;
        }
        x.resize(LANES * len, 0.0);
        level.run(AsRows { columns: t, rows: x });
        found.resize(self.format.spec(), context, x.len());
        let faults = match self.searches.get(group) {
            Some(search) => search.quantize(self.format, context, self.run, 0, x, found),
            None => self.format.quantize(context, x, None, found),
        };
        tile.scales[group].copy_from_slice(&found.scales);
        if !found.offsets.is_empty() {
            tile.offsets[group].copy_from_slice(&found.offsets);
        }
        faults
    }
}

/// Sixteen rows, one after the other, of the columns of a group.
struct AsRows<'a> {
    columns: &'a [Lanes],
    rows: &'a mut [f32],
}

impl Kernel for AsRows<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let len = self.columns.len();
        for (at, columns) in self.columns.chunks(LANES).enumerate() {
            let mut block = [simd.splat(0.0); LANES];
            for (v, column) in block.iter_mut().zip(columns) {
                *v = simd.load(column);
            }
            for (v, row) in simd.transpose(&block).into_iter().zip(self.rows.chunks_exact_mut(len)) {
                let row = &mut row[at * LANES..][..columns.len()];
                if let Some(whole) = row.first_chunk_mut() {
                    simd.store(v, whole);
                } else {
                    let mut lanes = [0.0; LANES];
                    simd.store(v, &mut lanes);
                    row.copy_from_slice(&lanes[..row.len()]);
                }
            }
        }
    }
}

/// A group without loss: `y_k += (w_j - y_j) share_jk`, from its first column to its last.
struct Ahead<'a> {
    /// Of the block, which has so many columns.
    shares: &'a [f32],
    columns: usize,
    /// The place of the group in it.
    first: usize,
    w: &'a [Lanes],
    y: &'a mut [Lanes],
}

impl Kernel for Ahead<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        for (j, w) in self.w.iter().enumerate() {
            let left = simd.sub(simd.load(w), simd.load(&self.y[j]));
            let at = self.first + j;
            push(simd, &self.shares[at * self.columns + at + 1..], left, &mut self.y[j + 1..]);
        }
    }
}

/// Columns of a block whose scales are known.
struct Step<'a> {
    lattice: Lattice,
    /// Which columns of the block.
    range: std::ops::Range<usize>,
    /// Of all columns of the block.
    groups: &'a [usize],
    shares: &'a [f32],
    t: &'a mut [Lanes],
    w: &'a [Lanes],
    lost: &'a mut [Lanes],
    codes: &'a mut [Lanes],
    /// Of all groups.
    scales: &'a [Lanes],
    offsets: &'a [Lanes],
}

impl Kernel for Step<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Step { lattice, range, groups, shares, t, w, lost, codes, scales, offsets } = self;
        let columns = t.len();
        for j in range {
            let (scale, offset) = (simd.load(&scales[groups[j]]), simd.load(&offsets[groups[j]]));
            let code = lattice.code(simd, simd.load(&t[j]), scale, offset);
            let left = simd.sub(simd.load(&w[j]), lattice.value(simd, code, scale, offset));
            simd.store(code, &mut codes[j]);
            simd.store(left, &mut lost[j]);
            push(simd, &shares[j * columns + j + 1..], left, &mut t[j + 1..]);
        }
    }
}
