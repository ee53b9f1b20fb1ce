//! The numbers that a group can hold: 16 of them, a scale apart.
//!
//! ```text
//! symmetric   v = code * scale                   code -8..=7
//! affine      v = (code - zero_point) * scale     code 0..=15
//! minimum     v = code * scale + minimum          code 0..=15
//! ```
//!
//! The same operations as those that decode, so that what is lost is known exactly. Where the scale is 0 all numbers are one.

use crate::kernels::lanes::{clamp, magnitude};
use crate::kernels::scales::round_to;
use crate::simd::Simd;
use crate::spec::{ScaleDtype, Scheme, Spec};

#[derive(Clone, Copy, Debug)]
pub(super) struct Lattice {
    scheme: Scheme,
    dtype: ScaleDtype,
}

impl Lattice {
    pub(super) fn of(spec: &Spec, dtype: ScaleDtype) -> Lattice {
        Lattice { scheme: spec.scheme, dtype }
    }

    /// The nearest code to a number of steps.
    #[inline(always)]
    fn nearest<S: Simd>(self, simd: S, steps: S::F32) -> S::F32 {
        let (low, high) = if self.scheme == Scheme::Symmetric { (-8.0, 7.0) } else { (0.0, 15.0) };
        simd.to_f32(simd.round(clamp(simd, steps, simd.splat(low), simd.splat(high))))
    }

    /// The code of the number that is nearest to `x`.
    #[inline(always)]
    pub(super) fn code<S: Simd>(self, simd: S, x: S::F32, scale: S::F32, offset: S::F32) -> S::F32 {
        let divisor = or_infinity(simd, scale);
        let steps = match self.scheme {
            Scheme::Minimum => simd.div(simd.sub(x, offset), divisor),
            _ => simd.add(simd.div(x, divisor), offset),
        };
        self.nearest(simd, steps)
    }

    /// The code that is best where the loss falls by `slope` a unit and curves by `curvature`.
    #[inline(always)]
    pub(super) fn moved<S: Simd>(self, simd: S, code: S::F32, slope: S::F32, curvature: S::F32, scale: S::F32) -> S::F32 {
        let divisor = or_infinity(simd, simd.mul(curvature, scale));
        self.nearest(simd, simd.add(code, simd.div(slope, divisor)))
    }

    /// What a code stands for.
    #[inline(always)]
    pub(super) fn value<S: Simd>(self, simd: S, code: S::F32, scale: S::F32, offset: S::F32) -> S::F32 {
        match self.scheme {
            Scheme::Minimum => simd.add(simd.mul(code, scale), offset),
            _ => simd.mul(self.steps(simd, code, offset), scale),
        }
    }

    /// How many scales the number is away from where a scale of 0 would put it.
    #[inline(always)]
    pub(super) fn steps<S: Simd>(self, simd: S, code: S::F32, offset: S::F32) -> S::F32 {
        if self.scheme == Scheme::Affine { simd.sub(code, offset) } else { code }
    }

    /// A scale as it is stored; `scale` itself where the other has another sign or is no normal number.
    #[inline(always)]
    pub(super) fn rescaled<S: Simd>(self, simd: S, scale: S::F32, to: S::F32) -> S::F32 {
        let stored = round_to(simd, to, self.dtype);
        let size = magnitude(simd, stored);
        let is_normal = simd.and(simd.less(simd.splat(f32::MIN_POSITIVE), size), simd.less(size, simd.splat(f32::INFINITY)));
        let agrees = simd.less(simd.splat(0.0), simd.mul(stored, scale));
        simd.select(simd.and(is_normal, agrees), stored, scale)
    }
}

/// What is divided by 0 here is 0.
#[inline(always)]
pub(super) fn or_infinity<S: Simd>(simd: S, v: S::F32) -> S::F32 {
    simd.select(simd.equal(v, simd.splat(0.0)), simd.splat(f32::INFINITY), v)
}
