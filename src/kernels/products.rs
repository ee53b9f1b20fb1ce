//! Products of matrices in a fixed order: every sum runs from its first term to its last, whatever the level, the tile or the thread.
//!
//! ```text
//! Combine   out[j] += sum over k of factor[j, k] * x[k]      f32; a vector is a column of sixteen rows
//! Square    out[i, j] += sum over k of x[k, i] * x[k, j]     f64, or -= ; the upper triangle
//! ```

use crate::simd::{Kernel, LANES, Simd};

/// A column of sixteen rows.
pub type Lanes = [f32; LANES];

/// Sums that are added up at once: with AVX2, of half as wide registers, as many as there is room for.
const STRIP: usize = 6;

/// Factors of some columns, six of them side by side.
#[derive(Default)]
pub struct Factors {
    columns: usize,
    depth: usize,
    data: Vec<[f32; STRIP]>,
}

impl Factors {
    /// Make room for `columns` of `depth` factors each, and fill it; what was there is gone.
    pub fn fill(&mut self, columns: usize, depth: usize, factor: impl Fn(usize, usize) -> f32) {
        (self.columns, self.depth) = (columns, depth);
        self.data.clear();
        self.data.resize(columns.div_ceil(STRIP) * depth, [0.0; STRIP]);
        for column in 0..columns {
            let strip = &mut self.data[column / STRIP * depth..][..depth];
            for (k, factors) in strip.iter_mut().enumerate() {
                factors[column % STRIP] = factor(column, k);
            }
        }
    }
}

/// `out[j] += sum over k of factor[j, k] * x[k]`
pub struct Combine<'a> {
    /// As many columns as `out` has, as deep as `x` is long.
    pub factors: &'a Factors,
    /// What is added up.
    pub x: &'a [Lanes],
    /// The sums.
    pub out: &'a mut [Lanes],
}

impl Kernel for Combine<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Combine { factors, x, out } = self;
        assert_eq!((factors.columns, factors.depth), (out.len(), x.len()), "factors for every sum");
        if x.is_empty() {
            return;
        }
        for (strip, out) in factors.data.chunks_exact(x.len()).zip(out.chunks_mut(STRIP)) {
            let mut sums = [simd.splat(0.0); STRIP];
            for (sum, out) in sums.iter_mut().zip(&*out) {
                *sum = simd.load(out);
            }
            for (factors, x) in strip.iter().zip(x) {
                let x = simd.load(x);
                for (sum, &factor) in sums.iter_mut().zip(factors) {
                    *sum = simd.add(*sum, simd.mul(simd.splat(factor), x));
                }
            }
            for (sum, out) in sums.iter().zip(out) {
                simd.store(*sum, out);
            }
        }
    }
}

/// Columns of a panel of f64.
const PANEL: usize = 8;

/// Rows of `out` that are added up at once.
const ROWS: usize = 4;

/// A matrix of f64, eight columns after the other.
#[derive(Default)]
pub struct Panels {
    depth: usize,
    data: Vec<[f64; PANEL]>,
}

impl Panels {
    /// Make room for `depth` rows of `columns`, and fill it row by row; what was there is gone.
    pub fn fill(&mut self, depth: usize, columns: usize, mut row: impl FnMut(usize, &mut [f64])) {
        self.depth = depth;
        self.data.clear();
        self.data.resize(columns.div_ceil(PANEL) * depth, [0.0; PANEL]);
        let mut buffer = vec![0.0; columns];
        for k in 0..depth {
            row(k, &mut buffer);
            for (panel, numbers) in buffer.chunks(PANEL).enumerate() {
                self.data[panel * depth + k][..numbers.len()].copy_from_slice(numbers);
            }
        }
    }
}

/// `out[i, j] += sum over k of x[k, i] * x[k, j]` where j is not left of i's panel, or `-=`.
pub struct Square<'a, const SUBTRACT: bool> {
    /// The matrix x.
    pub x: &'a Panels,
    /// Which row of the whole the first one of `out` is: a multiple of 8.
    pub first: usize,
    /// Rows, each of which holds the columns of `x` from `offset` on.
    pub out: &'a mut [f64],
    /// Elements of a row of `out`.
    pub stride: usize,
    /// The column of `out` that the first one of `x` is.
    pub offset: usize,
}

impl<const SUBTRACT: bool> Kernel for Square<'_, SUBTRACT> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let Square { x, first, out, stride, offset } = self;
        for (strip, out) in out.chunks_mut(ROWS * stride).enumerate() {
            let row = first + strip * ROWS;
            let left = &x.data[row / PANEL * x.depth..][..x.depth];
            let first = row % PANEL;
            for (panel, right) in x.data.chunks_exact(x.depth.max(1)).enumerate().skip(row / PANEL) {
                let start = offset + panel * PANEL;
                let len = PANEL.min(stride - start);
                let mut sums = [simd.splat_f64(0.0); ROWS];
                for (sum, out) in sums.iter_mut().zip(out.chunks(stride)) {
                    let mut padded = [0.0; PANEL];
                    padded[..len].copy_from_slice(&out[start..start + len]);
                    *sum = simd.load_f64(&padded);
                }
                for (left, right) in left.iter().zip(right) {
                    let right = simd.load_f64(right);
                    for (sum, &left) in sums.iter_mut().zip(&left[first..first + ROWS]) {
                        let left = if SUBTRACT { -left } else { left };
                        *sum = simd.add_f64(*sum, simd.mul_f64(simd.splat_f64(left), right));
                    }
                }
                for (sum, out) in sums.iter().zip(out.chunks_mut(stride)) {
                    let mut padded = [0.0; PANEL];
                    simd.store_f64(*sum, &mut padded);
                    out[start..start + len].copy_from_slice(&padded[..len]);
                }
            }
        }
    }
}
