//! H = E[x x^T], from batches of inputs: each element one sum in f64 over the rows in order, however they come in batches.

use crate::element::Source;
use crate::engine::Run;
use crate::error::{Error, Index, Result};
use crate::kernels::products::{Panels, Square};
use crate::pool::{self, Watch};
use crate::simd::ieee::Ieee;

/// Sums of x x^T over the rows that were seen. The products of two f32 are exact in f64.
#[derive(Clone, Debug)]
pub struct Hessian {
    length: usize,
    count: u64,
    /// The upper triangle, all rows whole.
    sums: Vec<f64>,
}

/// Rows of the sums that one task adds to: panels of eight.
const ROWS: usize = 32;

/// Products that are added between two looks at whether to stop.
const PATIENCE: usize = 1 << 31;

impl Hessian {
    /// Of inputs of `length` elements; none was seen yet.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for 0, [`Error::Memory`].
    pub fn new(length: usize) -> Result<Hessian> {
        if length == 0 {
            return Err(Error::value("n", "0", "expected the number of inputs of the layer, 1 or more"));
        }
        let refuse = || Error::Memory { what: "the Hessian".into(), bytes: 8 * (length as u64).saturating_mul(length as u64) };
        let elements = length.checked_mul(length).ok_or_else(refuse)?;
        let mut sums = Vec::new();
        sums.try_reserve_exact(elements).map_err(|_| refuse())?;
        sums.resize(elements, 0.0);
        Ok(Hessian { length, count: 0, sums })
    }

    /// One that is known: E[x x^T] as a matrix.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] unless it is square; [`Error::Value`] unless its elements are finite and it is its own transpose, up to rounding.
    pub fn from_matrix(matrix: &Source<'_>, run: &Run<'_>) -> Result<Hessian> {
        let &[length, columns] = matrix.shape() else {
            return Err(Error::shape("matrix", format!("has {} axes", matrix.shape().len()), "expected a square matrix"));
        };
        if length != columns {
            return Err(Error::shape("matrix", format!("has shape {}", Index(matrix.shape())), "expected a square matrix"));
        }
        let mut hessian = Hessian::new(length)?;
        for (flat, sum) in hessian.sums.iter_mut().enumerate() {
            *sum = matrix.number(run.level, flat);
            if !sum.is_finite() {
                let at = Index(&[flat / length, flat % length]).to_string();
                return Err(Error::value("matrix", format!("{} at {at}", sum.to_string().to_lowercase()), "expected finite numbers"));
            }
        }
        let largest = hessian.sums.iter().fold(0.0f64, |largest, sum| largest.max(sum.abs()));
        for i in 0..length {
            for j in 0..i {
                let (above, below) = (hessian.sums[j * length + i], hessian.sums[i * length + j]);
                // What sums in float32 leave between the two halves.
                if (above - below).abs() > 1e-5 * largest {
                    let found = format!("not symmetric: {above} at {}, {below} at {}", Index(&[j, i]), Index(&[i, j]));
                    return Err(Error::value("matrix", found, "expected X^T X / rows: give (matrix + matrix.T) / 2 if it is that nearly"));
                }
            }
        }
        hessian.count = 1;
        Ok(hessian)
    }

    /// Take in inputs, whose last axis is that of the layer. Interrupted, it holds the rows up to some place.
    ///
    /// # Errors
    ///
    /// [`Error::Shape`] for another last axis, [`Error::Value`] with the place of an element that is not finite, both before any row is
    /// taken in and under the name `argument`; [`Error::Cancelled`].
    pub fn update(&mut self, inputs: &Source<'_>, argument: &str, run: &Run<'_>) -> Result<()> {
        let length = self.length;
        if inputs.shape().last() != Some(&length) {
            let found = format!("has shape {}", Index(inputs.shape()));
            return Err(Error::shape(argument, found, format!("expected {length} elements along the last axis")));
        }
        let rows = inputs.len() / length;
        let mut row = vec![0.0; length];
        let mut watch = Watch::new(run.interrupted);
        for index in 0..rows {
            watch.check()?;
            inputs.load(run.level, index * length, &mut row);
            if let Some(column) = row.iter().position(|x| !x.is_finite()) {
                let flat = index * length + column;
                let at = Index(&inputs.caller_index(flat, inputs.shape())).to_string();
                let value = inputs.number(run.level, flat).to_string().to_lowercase();
                return Err(Error::value(argument, format!("{value} at {at}"), "expected finite numbers: leave such rows out"));
            }
        }
        self.add(rows, |index, row| inputs.load(run.level, index * length, row), run)
    }

    /// Take in `rows` rows.
    pub(super) fn add(&mut self, rows: usize, mut load: impl FnMut(usize, &mut [f32]), run: &Run<'_>) -> Result<()> {
        let _ieee = Ieee::enter();
        let length = self.length;
        let batch = (PATIENCE / length / length).clamp(16, 256);
        let (mut panels, mut row) = (Panels::default(), vec![0.0; length]);
        let mut watch = Watch::new(run.interrupted);
        for start in (0..rows).step_by(batch) {
            watch.check()?;
            let depth = batch.min(rows - start);
            panels.fill(depth, length, |k, out| {
                load(start + k, &mut row);
                out.iter_mut().zip(&row).for_each(|(out, &x)| *out = f64::from(x));
            });
            // Without a stop in between: all elements are sums over the same rows.
            let tasks = self.sums.chunks_mut(ROWS * length).enumerate();
            pool::for_each(tasks, run.threads, &|| false, |(task, out)| {
                run.level.run(Square::<false> { x: &panels, first: task * ROWS, out, stride: length, offset: 0 });
            })?;
            self.count += depth as u64;
        }
        Ok(())
    }

    /// Elements of an input.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Rows that were seen.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// E[x_i x_j]; 0 before any row was seen.
    pub fn mean(&self, i: usize, j: usize) -> f64 {
        self.sums[i.min(j) * self.length + i.max(j)] / self.count.max(1) as f64
    }

    /// Sum over all i and j of E[x_i x_j] times that of another one.
    pub(super) fn inner(&self, other: &Hessian) -> f64 {
        let mut sum = 0.0;
        for i in 0..self.length {
            sum += self.mean(i, i) * other.mean(i, i);
            sum += 2.0 * (i + 1..self.length).map(|j| self.mean(i, j) * other.mean(i, j)).sum::<f64>();
        }
        sum
    }

    /// Columns by falling E[x^2], in their own order where it is equal.
    pub(super) fn by_activation(&self) -> Vec<usize> {
        let mut order: Vec<usize> = (0..self.length).collect();
        order.sort_by(|&a, &b| self.mean(b, b).total_cmp(&self.mean(a, a)));
        order
    }

    /// Whether it is of inputs of this length.
    pub(super) fn check_length(&self, length: usize) -> Result<()> {
        if self.length == length {
            return Ok(());
        }
        let found = format!("is of inputs of {} elements", self.length);
        Err(Error::shape(ARGUMENT, found, format!("the weight has {length} along its last axis")))
    }

    /// Whether it can guide feedback for rows of this length.
    pub(super) fn check(&self, length: usize) -> Result<()> {
        self.check_length(length)?;
        if self.count == 0 {
            return Err(Error::value(ARGUMENT, "empty", "expected inputs of the layer: a Hessian takes them by update()"));
        }
        let dead: Vec<usize> = (0..length).filter(|&j| self.mean(j, j) == 0.0).collect();
        if dead.is_empty() {
            return Ok(());
        }
        let named: Vec<String> = dead.iter().take(8).map(usize::to_string).collect();
        let more = if dead.len() > named.len() { format!(" and {} more", dead.len() - named.len()) } else { String::new() };
        let found = format!("0 in column {}{more}: no input of the calibration reached them", named.join(", "));
        let expected = "give inputs that do, or say how much they count: Hessian.from_matrix(h.matrix + numpy.diag(...))";
        Err(Error::value(ARGUMENT, found, expected))
    }
}

/// What Python calls a Hessian that is given.
pub(super) const ARGUMENT: &str = "hessian_or_inputs";
