//! H = R R^T with R upper triangular: the Cholesky factor of the matrix with its rows and columns in reverse, in f64.
//!
//! ```text
//! A[i, j] = H[n-1-i, n-1-j],   A = T^T T,   R[i, j] = T[n-1-j, n-1-i]
//! ```
//!
//! Every element of A loses the products of the rows of T above it one after the other, whatever the blocks.

use super::hessian::{ARGUMENT, Hessian};
use crate::engine::Run;
use crate::error::{Error, Result};
use crate::kernels::products::{Factors, Panels, Square};
use crate::pool::{self, Watch};
use std::ops::Range;

/// R, and the damped H that it is made of, columns in the order of a sweep.
pub(super) struct Factor {
    length: usize,
    /// T, row after row.
    rows: Vec<f64>,
}

/// Rows of T that are finished before the others lose their products.
const BLOCK: usize = 64;

/// Rows of a task.
const ROWS: usize = 32;

/// The part of a diagonal element of H that must be left when all before is taken away.
const LEAST: f64 = 1e-12;

/// H: the mean of a Hessian, damped.
#[derive(Clone, Copy)]
pub(super) struct Damped<'a> {
    hessian: &'a Hessian,
    /// The mean of its diagonal, the unit of all elements: they are neither too large nor too small for f32 then.
    unit: f64,
    damping: f64,
}

impl<'a> Damped<'a> {
    pub(super) fn new(hessian: &'a Hessian, damping: f64) -> Damped<'a> {
        let length = hessian.length();
        let mean = (0..length).map(|j| hessian.mean(j, j)).sum::<f64>() / length as f64;
        Damped { hessian, unit: mean, damping }
    }

    pub(super) fn at(self, i: usize, j: usize) -> f64 {
        self.hessian.mean(i, j) / self.unit + if i == j { self.damping } else { 0.0 }
    }
}

impl Factor {
    pub(super) fn new(hessian: &Hessian, damping: f64, order: &[usize], run: &Run<'_>) -> Result<Factor> {
        let length = hessian.length();
        let damped = Damped::new(hessian, damping);
        let mut rows = Vec::new();
        let refuse = |_| Error::Memory { what: "the factor of the Hessian".into(), bytes: 8 * (length * length) as u64 };
        rows.try_reserve_exact(length * length).map_err(refuse)?;
        rows.resize(length * length, 0.0);
        let column = |at: usize| order[length - 1 - at];
        pool::for_each(rows.chunks_mut(length).enumerate(), run.threads, run.interrupted, |(i, row)| {
            for (j, element) in row.iter_mut().enumerate().skip(i) {
                *element = damped.at(column(i), column(j));
            }
        })?;
        let diagonal: Vec<f64> = (0..length).map(|i| rows[i * length + i]).collect();
        let mut panels = Panels::default();
        let mut watch = Watch::new(run.interrupted);
        for start in (0..length).step_by(BLOCK) {
            watch.check()?;
            let end = length.min(start + BLOCK);
            let (finished, rest) = rows[start * length..].split_at_mut((end - start) * length);
            for k in 0..end - start {
                let (above, row) = finished.split_at_mut(k * length);
                let (row, at) = (&mut row[..length], start + k);
                for above in above.chunks_exact(length) {
                    let factor = above[at];
                    for (element, above) in row[at..].iter_mut().zip(&above[at..]) {
                        *element -= factor * above;
                    }
                }
                let pivot = row[at];
                // NaN too.
                if !(pivot > LEAST * diagonal[at] && pivot < f64::INFINITY) {
                    let found = format!("not positive definite at column {} with damping {damping}", column(at));
                    let expected = "give more rows of inputs than the layer has inputs, or a larger damping, such as 0.01";
                    return Err(Error::value(ARGUMENT, found, expected));
                }
                let root = pivot.sqrt();
                row[at..].iter_mut().for_each(|element| *element /= root);
            }
            panels.fill(end - start, length - end, |k, out| out.copy_from_slice(&finished[k * length + end..][..length - end]));
            let tasks = rest.chunks_mut(ROWS * length).enumerate();
            pool::for_each(tasks, run.threads, run.interrupted, |(task, out)| {
                run.level.run(Square::<true> { x: &panels, first: task * ROWS, out, stride: length, offset: end });
            })?;
        }
        Ok(Factor { length, rows })
    }

    /// R_jj = 1 / d_j: how much what column j loses counts, whatever comes after.
    pub(super) fn weight(&self, j: usize) -> f64 {
        let at = self.length - 1 - j;
        self.rows[at * self.length + at]
    }

    /// R_ij / R_jj for i < j: how much of what column i lost column j makes up for.
    pub(super) fn share(&self, i: usize, j: usize) -> f32 {
        let row = &self.rows[(self.length - 1 - j) * self.length..][..self.length];
        (row[self.length - 1 - i] / row[self.length - 1 - j]) as f32
    }

    /// The shares of all columns before the block in each of the block.
    pub(super) fn before(&self, block: &Range<usize>, factors: &mut Factors) {
        factors.fill(block.len(), block.start, |j, i| self.share(i, block.start + j));
    }

    /// The shares within the block: of column i in column j at `i * block.len() + j`.
    pub(super) fn within(&self, block: &Range<usize>, shares: &mut Vec<f32>) {
        shares.clear();
        shares.extend(block.clone().flat_map(|i| block.clone().map(move |j| if i < j { self.share(i, j) } else { 0.0 })));
    }
}
