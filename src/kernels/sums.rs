//! The sums that errors are made of, in f64, of every eighth element in order: the same at every level.

use crate::simd::{Kernel, Simd};

/// What `compare` needs of two arrays.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Sums {
    /// Elements.
    pub count: u64,
    /// Sum of (x - y)^2.
    pub error_squares: f64,
    /// Sum of x^2.
    pub squares: f64,
    /// Sum of y^2.
    pub other_squares: f64,
    /// Sum of x * y.
    pub products: f64,
    /// Largest |x - y|.
    pub max_abs_error: f64,
}

impl Sums {
    #[inline(always)]
    fn take(&mut self, x: f32, y: f32) {
        let (x, y) = (f64::from(x), f64::from(y));
        let error = x - y;
        self.count += 1;
        self.error_squares += error * error;
        self.squares += x * x;
        self.other_squares += y * y;
        self.products += x * y;
        let magnitude = error.abs();
        self.max_abs_error = larger(self.max_abs_error, magnitude);
    }

    /// These and the next ones.
    pub fn then(self, next: Sums) -> Sums {
        Sums {
            count: self.count + next.count,
            error_squares: self.error_squares + next.error_squares,
            squares: self.squares + next.squares,
            other_squares: self.other_squares + next.other_squares,
            products: self.products + next.products,
            max_abs_error: larger(self.max_abs_error, next.max_abs_error),
        }
    }
}

/// The sums of two tiles: 8 running sums of every eighth element, added in order.
pub struct SumsOf<'a> {
    /// The reference.
    pub x: &'a [f32],
    /// As many others.
    pub y: &'a [f32],
}

impl Kernel for SumsOf<'_> {
    type Output = Sums;

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) -> Sums {
        let (x, x_rest) = self.x.as_chunks::<8>();
        let (y, y_rest) = self.y.as_chunks::<8>();
        let zero = simd.splat_f64(0.0);
        let (mut error_squares, mut squares, mut other_squares, mut products, mut largest) = (zero, zero, zero, zero, zero);
        for (x, y) in x.iter().zip(y) {
            let (x, y) = (simd.load_f32_as_f64(x), simd.load_f32_as_f64(y));
            squares = simd.add_f64(squares, simd.mul_f64(x, x));
            other_squares = simd.add_f64(other_squares, simd.mul_f64(y, y));
            products = simd.add_f64(products, simd.mul_f64(x, y));
            let error = simd.sub_f64(x, y);
            error_squares = simd.add_f64(error_squares, simd.mul_f64(error, error));
            largest = simd.max_f64(largest, simd.abs_f64(error));
        }
        let mut sums = [[0.0; 8]; 5];
        for (sums, running) in sums.iter_mut().zip([error_squares, squares, other_squares, products, largest]) {
            simd.store_f64(running, sums);
        }
        let mut lanes: [Sums; 8] = std::array::from_fn(|lane| {
            let [error_squares, squares, other_squares, products, largest] = sums.map(|sums| sums[lane]);
            // An error that is NaN can be lost among the largest, but not among the squares.
            let max_abs_error = if error_squares.is_nan() { f64::NAN } else { largest };
            Sums { count: x.len() as u64, error_squares, squares, other_squares, products, max_abs_error }
        });
        for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
            lane.take(x, y);
        }
        lanes.into_iter().fold(Sums::default(), Sums::then)
    }
}

/// The errors of groups, each the sum of w (x - y)^2 over `size` elements: of every eighth one, and then of these eight.
pub struct ErrorsOf<'a> {
    /// The reference.
    pub x: &'a [f32],
    /// As many others.
    pub y: &'a [f32],
    /// As many weights; `None`: all are 1.
    pub weights: Option<&'a [f32]>,
    /// Elements of a group; the last may have fewer.
    pub size: usize,
    /// One for each group.
    pub errors: &'a mut [f64],
}

impl Kernel for ErrorsOf<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let groups = self.x.chunks(self.size).zip(self.y.chunks(self.size)).zip(self.errors);
        match self.weights {
            None => {
                for ((x, y), error) in groups {
                    *error = plain_error(simd, x, y);
                }
            }
            Some(weights) => {
                for (((x, y), error), weights) in groups.zip(weights.chunks(self.size)) {
                    *error = weighted_error(simd, x, y, weights);
                }
            }
        }
    }
}

#[inline(always)]
fn plain_error<S: Simd>(simd: S, x: &[f32], y: &[f32]) -> f64 {
    let ((x, x_rest), (y, y_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>());
    let mut sum = simd.splat_f64(0.0);
    for (x, y) in x.iter().zip(y) {
        let off = simd.sub_f64(simd.load_f32_as_f64(x), simd.load_f32_as_f64(y));
        sum = simd.add_f64(sum, simd.mul_f64(off, off));
    }
    let mut sums = [0.0; 8];
    simd.store_f64(sum, &mut sums);
    for ((sum, &x), &y) in sums.iter_mut().zip(x_rest).zip(y_rest) {
        let off = f64::from(x) - f64::from(y);
        *sum += off * off;
    }
    sums.iter().sum()
}

#[inline(always)]
fn weighted_error<S: Simd>(simd: S, x: &[f32], y: &[f32], weights: &[f32]) -> f64 {
    let ((x, x_rest), (y, y_rest), (weights, weights_rest)) = (x.as_chunks::<8>(), y.as_chunks::<8>(), weights.as_chunks::<8>());
    let mut sum = simd.splat_f64(0.0);
    for ((x, y), weights) in x.iter().zip(y).zip(weights) {
        let off = simd.sub_f64(simd.load_f32_as_f64(x), simd.load_f32_as_f64(y));
        sum = simd.add_f64(sum, simd.mul_f64(simd.mul_f64(simd.load_f32_as_f64(weights), off), off));
    }
    let mut sums = [0.0; 8];
    simd.store_f64(sum, &mut sums);
    for (((sum, &x), &y), &weight) in sums.iter_mut().zip(x_rest).zip(y_rest).zip(weights_rest) {
        let off = f64::from(x) - f64::from(y);
        *sum += f64::from(weight) * off * off;
    }
    sums.iter().sum()
}

/// The larger of two, NaN if one is: `f64::max` would lose it.
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if b <= a || a.is_nan() { a } else { b }
}
