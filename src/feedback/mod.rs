//! Error feedback: what a column loses in rounding is made up for by the columns after it, as the inputs of a layer allow.
//!
//! ```text
//! H = E[x x^T] + damping * mean(diag) * I       x: the inputs of the layer, a row of W times x its output
//! loss of a row = (w - v) H (w - v)^T            v: what is stored for w
//! ```
//!
//! | module | what |
//! |---|---|
//! | `hessian` | H, from batches of inputs |
//! | `factor` | H = R R^T, R upper triangular |
//! | `lattice` | the numbers that a group can hold |
//! | `sweep` | column by column: scales where a group begins, then codes |
//! | `refine` | codes and scales, one after the other, while the loss falls |
//!
//! With the columns of R the loss is a sum of squares, one a column, each of which depends on the columns up to its own:
//!
//! ```text
//! loss = sum over j of R_jj^2 (t_j - v_j)^2       t_j = w_j + sum over i < j of (w_i - v_i) R_ij / R_jj
//! ```
//!
//! So the sweep takes for v_j what is nearest to t_j. Those are the codes of GPTQ, whose U = R^-1 is never needed: its d_j is 1 / R_jj.
//! Rows are independent of each other, and sums run from the first term to the last: the bytes are the same at every level, on any
//! number of threads.

mod factor;
mod hessian;
mod lattice;
mod refine;
mod sweep;

use crate::element::Source;
use crate::engine::{self, Outcome, Run};
use crate::error::{Error, Result};
use crate::formats::{FORMATS, Format, Groups};
use crate::kernels::products::Lanes;
use crate::kernels::range::BEYOND_HALF;
use crate::layout::Layout;
use crate::pool;
use crate::simd::ieee::Ieee;
use crate::simd::{LANES, Simd};
use crate::spec::{Extent, GroupSize, GroupSizes, Scheme, Spec};
use factor::Factor;
pub use hessian::Hessian;
use lattice::Lattice;

/// How codes and scales are found.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Where the scales of a group come from.
    pub scales: Scales,
    /// What is added to the diagonal of H, as a part of its mean; 0 or more.
    pub damping: f64,
    /// In which order the columns are swept.
    pub order: Order,
    /// Rounds of refinement after the sweep.
    pub refine: usize,
}

/// Where scales come from, once the group is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scales {
    /// Those of the smallest error weighted by R_jj^2: the best guess of the group's part of the loss.
    Optimal,
    /// The rule of the format: plain GPTQ.
    Nearest,
}

/// The order of the columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// As they are.
    Natural,
    /// By falling H_jj. A format that stores the group of each column gets groups of neighbours in this order. In others groups are
    /// what they are, and their scales are chosen before the sweep.
    Activation,
}

/// Sixteen rows side by side, a lane each: vector j holds column j of them.
#[derive(Default)]
struct Tile {
    /// The weights.
    w: Vec<Lanes>,
    /// What is lost: w - v.
    lost: Vec<Lanes>,
    /// The codes, as numbers.
    codes: Vec<Lanes>,
    /// One scale a group.
    scales: Vec<Lanes>,
    /// One zero point or minimum a group, 0 where the format has none.
    offsets: Vec<Lanes>,
}

/// Columns in the order of a sweep.
struct Columns {
    /// The column of the array that each one is.
    order: Vec<usize>,
    /// Columns of a group.
    group: usize,
    /// The group of each column.
    groups: Vec<usize>,
    /// The places in this order of the columns of each group.
    members: Vec<Vec<usize>>,
    /// Whether the columns of a group follow each other.
    together: bool,
}

impl Columns {
    /// Columns by `order`; groups of `group` columns are those of neighbours in this order, or those of the array.
    fn new(order: Vec<usize>, group: usize, of_neighbours: bool) -> Columns {
        let groups: Vec<usize> = order.iter().enumerate().map(|(at, &column)| if of_neighbours { at } else { column } / group).collect();
        let mut members = vec![Vec::new(); order.len().div_ceil(group)];
        groups.iter().enumerate().for_each(|(at, &group)| members[group].push(at));
        let together = groups.is_sorted();
        Columns { order, group, groups, members, together }
    }

    /// The same columns and groups, the columns of a group together.
    fn by_group(&self) -> Columns {
        let order = if self.together { self.order.clone() } else { (0..self.order.len()).collect() };
        Columns::new(order, self.group, true)
    }
}

/// Columns that are worked on at once: what precedes them enters by one product.
const BLOCK: usize = 128;

/// The ranges of columns that are worked on at once: whole groups.
fn blocks(columns: usize, group: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let block = (BLOCK / group).max(1) * group;
    (0..columns).step_by(block).map(move |start| start..columns.min(start + block))
}

/// Whether a format holds what feedback finds: a scale a group, and a zero point or a minimum.
fn is_taken(spec: &Spec) -> bool {
    let scheme = matches!(spec.scheme, Scheme::Symmetric | Scheme::Affine | Scheme::Minimum);
    scheme && !spec.is_companion() && !matches!(spec.group_sizes, GroupSizes::InBlocks { .. })
}

/// Encode weights, rows of which times inputs are the outputs of a layer, into parts, with error feedback.
///
/// # Errors
///
/// [`Error::Value`] for a format, group size, weight or damping that is not taken, columns that no input reached, or a Hessian that is
/// not positive definite; [`Error::Shape`] where its size is not the length of the rows; [`Error::ScaleOverflow`], [`Error::Memory`],
/// [`Error::Cancelled`]. On an error the parts hold nothing of use.
///
/// # Panics
///
/// Where the shape of the source or the length of a part is not the layout's.
pub fn quantize(
    source: &Source<'_>,
    hessian: &Hessian,
    layout: &Layout,
    options: Options,
    parts: &mut [&mut [u8]],
    run: &Run<'_>,
) -> Result<Outcome> {
    let _ieee = Ieee::enter();
    assert_eq!(source.shape(), layout.shape, "the shape of the layout");
    check(layout, options, hessian)?;
    if layout.elements() == 0 {
        let mut none = Groups::default();
        none.scales.resize(layout.groups_shape().iter().product(), 0.0);
        return engine::pack_groups(layout, &none, 1.0, parts, run);
    }
    let group = layout.group_elements().min(layout.columns());
    let stores_order = layout.spec.parts.iter().position(|part| part.extent == Extent::GroupOfColumn);
    let natural = || (0..layout.columns()).collect::<Vec<_>>();
    let by_activation = options.order == Order::Activation;
    let order = if by_activation { hessian.by_activation() } else { natural() };
    let columns = Columns::new(order, group, stores_order.is_some());
    let factor = Factor::new(hessian, options.damping, &columns.order, run)?;
    let lattice = Lattice::of(layout.spec, layout.scale_dtype);
    let mut tiles = load(source, layout, &columns, run)?;
    let pool_failed = sweep::sweep(&mut tiles, (source, layout), lattice, &columns, &factor, options, run)?;
    if options.refine > 0 {
        refine::refine(&mut tiles, lattice, &columns, &factor, (hessian, options), run)?;
    }
    let all = gather(&tiles, layout, &columns);
    let outcome = engine::pack_groups(layout, &all, 1.0, parts, run)?;
    if let Some(part) = stores_order {
        for (&column, &group) in columns.order.iter().zip(&columns.groups) {
            parts[part][4 * column..][..4].copy_from_slice(&(group as i32).to_le_bytes());
        }
    }
    Ok(Outcome { pool_failed: pool_failed || outcome.pool_failed, ..outcome })
}

fn check(layout: &Layout, options: Options, hessian: &Hessian) -> Result<()> {
    let spec = layout.spec;
    if !is_taken(spec) {
        let mut names: Vec<&str> =
            FORMATS.iter().map(|format| Format::spec(*format)).filter(|spec| is_taken(spec)).map(|spec| spec.name).collect();
        names.dedup();
        return Err(Error::value("format", format!("'{}'", spec.name), format!("error feedback takes {}", names.join(", "))));
    }
    if layout.group_size == GroupSize::Tensor {
        return Err(Error::value("group_size", "\"tensor\"", "error feedback takes groups of one row: \"row\" or a number"));
    }
    if !(0.0..f64::INFINITY).contains(&options.damping) {
        return Err(Error::value("damping", options.damping.to_string().to_lowercase(), "expected a number of 0 or more, such as 0.01"));
    }
    hessian.check(layout.columns())
}

/// The weights, columns in order.
fn load(source: &Source<'_>, layout: &Layout, columns: &Columns, run: &Run<'_>) -> Result<Vec<Tile>> {
    let (rows, length) = (layout.rows(), layout.columns());
    let mut tiles: Vec<Tile> = (0..rows.div_ceil(LANES)).map(|_| Tile::default()).collect();
    let wrong = std::sync::Mutex::new(None::<usize>);
    let bound = if layout.spec.half { BEYOND_HALF } else { f32::INFINITY };
    pool::for_each(tiles.iter_mut().enumerate(), run.threads, run.interrupted, |(number, tile)| {
        let mut row = vec![0.0; length];
        tile.w = vec![[0.0; LANES]; length];
        let first = number * LANES;
        for (lane, index) in (first..rows.min(first + LANES)).enumerate() {
            source.load(run.level, index * length, &mut row);
            if let Some(column) = row.iter().position(|x| x.is_nan() || x.abs() >= bound) {
                let mut wrong = wrong.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
                *wrong = Some(wrong.map_or(usize::MAX, |flat| flat).min(index * length + column));
            }
            for (w, &column) in tile.w.iter_mut().zip(&columns.order) {
                w[lane] = row[column];
            }
        }
        let groups = layout.groups_per_row();
        (tile.lost, tile.codes) = (vec![[0.0; LANES]; length], vec![[0.0; LANES]; length]);
        (tile.scales, tile.offsets) = (vec![[0.0; LANES]; groups], vec![[0.0; LANES]; groups]);
    })?;
    if let Some(flat) = wrong.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        let index = crate::error::Index(&source.caller_index(flat, source.shape())).to_string();
        let value = source.number(run.level, flat).to_string().to_lowercase();
        return Err(Error::value(
            "weight",
            format!("{value} at {index}"),
            format!("{} takes finite numbers below {bound}", layout.spec.name),
        ));
    }
    Ok(tiles)
}

/// Codes, scales and offsets of all rows, columns as in the array.
fn gather(tiles: &[Tile], layout: &Layout, columns: &Columns) -> Groups {
    let (rows, length, groups) = (layout.rows(), layout.columns(), layout.groups_per_row());
    let mut all = Groups { codes: vec![0; rows * length], ..Groups::default() };
    for row in 0..rows {
        let (tile, lane) = (&tiles[row / LANES], row % LANES);
        let codes = &mut all.codes[row * length..][..length];
        for (code, &column) in tile.codes.iter().zip(&columns.order) {
            codes[column] = code[lane] as i8;
        }
        all.scales.extend(tile.scales[..groups].iter().map(|scale| scale[lane]));
        if layout.spec.has_offsets() {
            all.offsets.extend(tile.offsets[..groups].iter().map(|offset| offset[lane]));
        }
    }
    all
}

/// What error two arrays of weights make in the outputs, `sum over rows of (w - v) H (w - v)^T` over `sum of w H w^T`: 0 for the
/// weights themselves, 1 for zeros. Both have the inputs of the Hessian as their last axis.
///
/// # Errors
///
/// [`Error::Shape`], [`Error::Value`] as of [`Hessian::update`], [`Error::Cancelled`].
///
/// # Panics
///
/// Unless both have the same shape.
pub fn output_error(weight: &Source<'_>, other: &Source<'_>, hessian: &Hessian, run: &Run<'_>) -> Result<f64> {
    assert_eq!(weight.shape(), other.shape(), "two arrays of one shape");
    let length = weight.shape().last().copied().unwrap_or(0);
    hessian.check_length(length)?;
    let rows = weight.len() / length.max(1);
    let (mut lost, mut whole) = (Hessian::new(length)?, Hessian::new(length)?);
    let mut v = vec![0.0; length];
    let subtract = |row: usize, out: &mut [f32], v: &mut [f32]| {
        weight.load(run.level, row * length, out);
        other.load(run.level, row * length, v);
        out.iter_mut().zip(v).for_each(|(w, v)| *w -= *v);
    };
    lost.add(rows, |row, out| subtract(row, out, &mut v), run)?;
    whole.add(rows, |row, out| weight.load(run.level, row * length, out), run)?;
    Ok(lost.inner(hessian) / whole.inner(hessian))
}

/// `sums[k] += factors[k] * x`
#[inline(always)]
fn push<S: Simd>(simd: S, factors: &[f32], x: S::F32, sums: &mut [Lanes]) {
    for (sum, &factor) in sums.iter_mut().zip(factors) {
        simd.store(simd.add(simd.load(sum), simd.mul(simd.splat(factor), x)), sum);
    }
}
