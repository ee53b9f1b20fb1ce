//! The numbers of the 4-bit float E2M1; how encoders round to it is in [`crate::simd::e2m1`].

/// The number of each code.
pub(super) const NUMBERS: [f32; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// The same as readers have it that know no negative zero.
pub(super) const NUMBERS_WITHOUT_NEGATIVE_ZERO: [f32; 16] =
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];
