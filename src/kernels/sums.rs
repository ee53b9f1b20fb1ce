//! The sums that errors are made of, in f64, each element's in order of its lane: the same at every level.

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
    fn run<S: Simd>(self, _: S) -> Sums {
        let (x, x_rest) = self.x.as_chunks::<8>();
        let (y, y_rest) = self.y.as_chunks::<8>();
        // A pass for each sum: the compiler keeps eight running sums in registers, not forty.
        let error_squares = pass(x, y, |sum, x, y| sum + (x - y) * (x - y));
        let squares = pass(x, y, |sum, x, _| sum + x * x);
        let other_squares = pass(x, y, |sum, _, y| sum + y * y);
        let products = pass(x, y, |sum, x, y| sum + x * y);
        let max_abs_error = pass(x, y, |largest, x, y| larger(largest, (x - y).abs()));
        let mut lanes = [Sums::default(); 8];
        for (lane, sums) in lanes.iter_mut().enumerate() {
            *sums = Sums {
                count: x.len() as u64,
                error_squares: error_squares[lane],
                squares: squares[lane],
                other_squares: other_squares[lane],
                products: products[lane],
                max_abs_error: max_abs_error[lane],
            };
        }
        for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
            lane.take(x, y);
        }
        lanes.into_iter().fold(Sums::default(), Sums::then)
    }
}

#[inline(always)]
fn pass(x: &[[f32; 8]], y: &[[f32; 8]], next: impl Fn(f64, f64, f64) -> f64) -> [f64; 8] {
    let mut sums = [0.0; 8];
    for (x, y) in x.iter().zip(y) {
        for lane in 0..8 {
            sums[lane] = next(sums[lane], f64::from(x[lane]), f64::from(y[lane]));
        }
    }
    sums
}

/// The larger of two, NaN if one is: `f64::max` would lose it.
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if b <= a || a.is_nan() { a } else { b }
}
