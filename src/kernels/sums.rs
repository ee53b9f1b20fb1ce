//! The sums that errors are made of, in f64, each element's in order of its lane: the same at every level.

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
    /// The sums of two tiles: 8 running sums of every eighth element, added in order.
    pub fn of(x: &[f32], y: &[f32]) -> Sums {
        let mut lanes = [Sums::default(); 8];
        let (x_vectors, x_rest) = x.as_chunks::<8>();
        let (y_vectors, y_rest) = y.as_chunks::<8>();
        for (x, y) in x_vectors.iter().zip(y_vectors) {
            for ((lane, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
                lane.take(x, y);
            }
        }
        for ((lane, &x), &y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
            lane.take(x, y);
        }
        lanes.into_iter().fold(Sums::default(), Sums::then)
    }

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

/// The larger of two, NaN if one is: `f64::max` would lose it.
#[inline(always)]
fn larger(a: f64, b: f64) -> f64 {
    if b <= a || a.is_nan() { a } else { b }
}
