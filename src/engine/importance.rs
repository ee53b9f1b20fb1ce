//! The weights of errors: what the caller says of importance, looked over once, and given tile by tile.

use super::Run;
use crate::element::Source;
use crate::error::{Error, Index, Result};
use crate::pool;
use std::sync::Mutex;

/// How much the error of an element counts.
#[derive(Clone, Copy, Debug, Default)]
pub enum Importance<'a> {
    /// All the same: right where the array itself is what counts.
    #[default]
    Equal,
    /// sqrt(mean square of the row + x^2), a row along the group axis: for the weights of a model without data. Elements that are
    /// not finite count as 0 in the mean.
    Magnitude,
    /// By an array: one weight for each place along the group axis, or one for each element. They are 0 or more.
    Array(&'a Source<'a>),
    /// The same of some rows of an array: all of their weights may be 0, where others are not.
    Rows(&'a Source<'a>),
}

/// Weights that are known to be good.
pub(super) enum Weights<'a> {
    Equal,
    /// The mean square of each row.
    Magnitude(Vec<f64>),
    /// One for each place along a row.
    Columns(Vec<f32>),
    Elements(&'a Source<'a>),
}

/// Elements that are loaded at once.
const SPAN: usize = 4096;

/// Elements of a task.
const TASK: usize = 64 * 1024;

impl<'a> Weights<'a> {
    /// Of what `source` holds; its last axis is that of the groups.
    pub(super) fn new(importance: Importance<'a>, source: &Source<'_>, run: &Run<'_>) -> Result<Weights<'a>> {
        let columns = source.shape().last().copied().unwrap_or(1);
        match importance {
            Importance::Equal => Ok(Weights::Equal),
            Importance::Magnitude => mean_squares(source, columns, run).map(Weights::Magnitude),
            Importance::Array(array) | Importance::Rows(array) => {
                let by_columns = array.shape() == [columns];
                if !by_columns && array.shape() != source.shape() {
                    let expected = format!("expected ({columns},), the length of the group axis, or that of the array");
                    return Err(Error::shape("importance", format!("has shape {}", Index(array.shape())), expected));
                }
                check(array, matches!(importance, Importance::Rows(_)), run)?;
                if !by_columns {
                    return Ok(Weights::Elements(array));
                }
                let mut weights = vec![0.0; columns];
                array.load(run.level, 0, &mut weights);
                Ok(Weights::Columns(weights))
            }
        }
    }

    /// Those of the elements `x`, which begin at `start`; `None` where all are equal.
    pub(super) fn of<'t>(&self, start: usize, x: &[f32], columns: usize, run: &Run<'_>, scratch: &'t mut Vec<f32>) -> Option<&'t [f32]> {
        scratch.resize(x.len(), 0.0);
        let pieces = pieces(start, x.len(), columns);
        match self {
            Weights::Equal => return None,
            Weights::Magnitude(mean_squares) => {
                for (row, _, at) in pieces {
                    for (weight, x) in scratch[at.clone()].iter_mut().zip(&x[at]) {
                        let square = f64::from(*x) * f64::from(*x);
                        *weight = ((mean_squares[row] + square).sqrt() as f32).min(f32::MAX);
                    }
                }
            }
            Weights::Columns(weights) => {
                for (_, column, at) in pieces {
                    let len = at.len();
                    scratch[at].copy_from_slice(&weights[column..column + len]);
                }
            }
            Weights::Elements(array) => array.load(run.level, start, scratch),
        }
        Some(scratch)
    }
}

/// The pieces of `len` elements from `start` on that lie in one row each: the row, the column, and where in the span.
fn pieces(start: usize, len: usize, columns: usize) -> impl Iterator<Item = (usize, usize, std::ops::Range<usize>)> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let (row, column) = ((start + at) / columns, (start + at) % columns);
        let piece = (columns - column).min(len - at);
        at += piece;
        (piece > 0).then_some((row, column, at - piece..at))
    })
}

/// The mean of the squares of each row, each added from its first element to its last.
fn mean_squares(source: &Source<'_>, columns: usize, run: &Run<'_>) -> Result<Vec<f64>> {
    let mut means = vec![0.0; source.len() / columns.max(1)];
    let rows = (TASK / columns.max(1)).max(1);
    pool::for_each(means.chunks_mut(rows).enumerate(), run.threads, run.interrupted, |(task, means)| {
        let mut x = [0.0; SPAN];
        for (row, mean) in (task * rows..).zip(means) {
            // Four sums side by side: one alone waits for each addition.
            let mut sums = [0.0f64; 4];
            for at in (0..columns).step_by(SPAN) {
                let x = &mut x[..SPAN.min(columns - at)];
                source.load(run.level, row * columns + at, x);
                for x in x.chunks(4) {
                    for (sum, x) in sums.iter_mut().zip(x) {
                        *sum += if x.is_finite() { f64::from(*x) * f64::from(*x) } else { 0.0 };
                    }
                }
            }
            *mean = (sums[0] + sums[1] + (sums[2] + sums[3])) / columns as f64;
        }
    })?;
    Ok(means)
}

/// Whether all weights are finite, none is negative, and one is not 0, unless all may be.
fn check(array: &Source<'_>, may_be_zero: bool, run: &Run<'_>) -> Result<()> {
    let found = Mutex::new((None::<usize>, may_be_zero || array.is_empty()));
    let tasks = (0..array.len()).step_by(TASK).map(|start| (start, TASK.min(array.len() - start)));
    pool::for_each(tasks, run.threads, run.interrupted, |(start, len)| {
        let mut weights = [0.0; SPAN];
        let (mut wrong, mut any) = (None, false);
        for at in (start..start + len).step_by(SPAN) {
            let weights = &mut weights[..SPAN.min(start + len - at)];
            array.load(run.level, at, weights);
            any |= weights.iter().any(|&weight| weight > 0.0);
            wrong = wrong.or_else(|| weights.iter().position(|weight| !(0.0..f32::INFINITY).contains(weight)).map(|i| at + i));
        }
        let mut found = found.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        found.0 = [found.0, wrong].into_iter().flatten().min();
        found.1 |= any;
    })?;
    let (wrong, any) = found.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner());
    if let Some(flat) = wrong {
        let index = Index(&array.caller_index(flat, array.shape())).to_string();
        let value = array.number(run.level, flat).to_string().to_lowercase();
        let expected = "expected finite numbers of 0 or more, such as the mean squares of the inputs";
        return Err(Error::value("importance", format!("{value} at {index}"), expected));
    }
    if !any {
        return Err(Error::value("importance", "0 everywhere", "give None where all elements are as important as each other"));
    }
    Ok(())
}
