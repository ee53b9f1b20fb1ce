//! Other floats to f32 and back, in contiguous memory: half to even on the way down, overflow to infinity.

use super::scales::bf16_bits;
use crate::simd::{Kernel, LANES, Simd};

/// Which 16-bit float.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    /// IEEE binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
}

/// f32 from 16-bit floats, exact.
pub struct Widen<'a> {
    /// Little-endian pairs of bytes.
    pub halves: &'a [[u8; 2]],
    /// Which float they are.
    pub half: Half,
    /// As many floats.
    pub x: &'a mut [f32],
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        widen_all(simd, self.half, self.halves, self.x);
    }
}

/// As [`Widen`], within a kernel.
#[inline(always)]
pub(crate) fn widen_all<S: Simd>(simd: S, half: Half, halves: &[[u8; 2]], x: &mut [f32]) {
    // Asked once: the compiler leaves the question in a loop over both.
    match half {
        Half::F16 => widen_by(simd, F16, halves, x),
        Half::Bf16 => widen_by(simd, Bf16, halves, x),
    }
}

#[inline(always)]
fn widen_by<S: Simd>(simd: S, float: impl Wider, halves: &[[u8; 2]], x: &mut [f32]) {
    let (vectors, rest) = halves.as_chunks::<LANES>();
    let (x, x_rest) = x.as_chunks_mut::<LANES>();
    for (halves, x) in vectors.iter().zip(x) {
        simd.store(float.widen(simd, halves), x);
    }
    if !rest.is_empty() {
        let (mut last, mut x) = ([[0; 2]; LANES], [0.0; LANES]);
        last[..rest.len()].copy_from_slice(rest);
        simd.store(float.widen(simd, &last), &mut x);
        x_rest.copy_from_slice(&x[..rest.len()]);
    }
}

/// A 16-bit float.
trait Wider: Copy {
    /// 16 of them as f32.
    fn widen<S: Simd>(self, simd: S, halves: &[[u8; 2]; LANES]) -> S::F32;
}

#[derive(Clone, Copy)]
struct F16;

impl Wider for F16 {
    #[inline(always)]
    fn widen<S: Simd>(self, simd: S, halves: &[[u8; 2]; LANES]) -> S::F32 {
        simd.load_f16(&halves.map(u16::from_le_bytes))
    }
}

#[derive(Clone, Copy)]
struct Bf16;

impl Wider for Bf16 {
    #[inline(always)]
    fn widen<S: Simd>(self, simd: S, halves: &[[u8; 2]; LANES]) -> S::F32 {
        simd.as_f32(simd.shift_left(simd.load_u16(&halves.map(u16::from_le_bytes)), 16))
    }
}

/// 16-bit floats from f32.
pub struct Narrow<'a> {
    /// The floats.
    pub x: &'a [f32],
    /// Which float is wanted.
    pub half: Half,
    /// As many little-endian pairs of bytes.
    pub halves: &'a mut [[u8; 2]],
}

impl Kernel for Narrow<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self, simd: S) {
        let (vectors, rest) = self.x.as_chunks::<LANES>();
        let (halves, halves_rest) = self.halves.as_chunks_mut::<LANES>();
        for (x, halves) in vectors.iter().zip(halves) {
            narrow(simd, self.half, x, halves);
        }
        let (mut last, mut halves) = ([0.0; LANES], [[0; 2]; LANES]);
        last[..rest.len()].copy_from_slice(rest);
        narrow(simd, self.half, &last, &mut halves);
        halves_rest.copy_from_slice(&halves[..rest.len()]);
    }
}

#[inline(always)]
fn narrow<S: Simd>(simd: S, half: Half, x: &[f32; LANES], halves: &mut [[u8; 2]; LANES]) {
    let mut bits = [0; LANES];
    match half {
        Half::F16 => simd.store_f16(simd.load(x), &mut bits),
        Half::Bf16 => simd.store_u16(bf16_bits(simd, simd.load(x)), &mut bits),
    }
    *halves = bits.map(u16::to_le_bytes);
}

/// The bits of each lane rounded to a 16-bit float.
#[inline(always)]
pub(crate) fn half_bits<S: Simd>(simd: S, half: Half, v: S::F32) -> S::I32 {
    match half {
        Half::F16 => {
            let mut bits = [0; LANES];
            simd.store_f16(v, &mut bits);
            simd.load_u16(&bits)
        }
        Half::Bf16 => bf16_bits(simd, v),
    }
}
