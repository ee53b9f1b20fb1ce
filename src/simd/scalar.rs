//! The level of every CPU, and the meaning of each primitive: arrays and loops.

use super::{Kernel, LANES, Simd};
use half::f16;

/// The proof that needs no proof.
#[derive(Clone, Copy, Debug)]
pub struct Scalar;

impl Simd for Scalar {
    type F32 = [f32; 16];
    type I32 = [i32; 16];
    type F64 = [f64; 8];
    type Folded = i32;

    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        kernel.run_scalar()
    }

    fn splat(self, x: f32) -> [f32; 16] {
        [x; LANES]
    }

    fn splat_i32(self, x: i32) -> [i32; 16] {
        [x; LANES]
    }

    fn load(self, x: &[f32; 16]) -> [f32; 16] {
        *x
    }

    fn load_i32(self, x: &[i32; 16]) -> [i32; 16] {
        *x
    }

    fn store(self, v: [f32; 16], x: &mut [f32; 16]) {
        *x = v;
    }

    fn store_i32(self, v: [i32; 16], x: &mut [i32; 16]) {
        *x = v;
    }

    fn load_f16(self, x: &[u16; 16]) -> [f32; 16] {
        x.map(|bits| f16::from_bits(bits).to_f32())
    }

    fn store_f16(self, v: [f32; 16], x: &mut [u16; 16]) {
        *x = v.map(|value| f16::from_f32(value).to_bits());
    }

    fn load_u16(self, x: &[u16; 16]) -> [i32; 16] {
        x.map(i32::from)
    }

    fn store_u16(self, v: [i32; 16], x: &mut [u16; 16]) {
        *x = v.map(|value| value as u16);
    }

    fn stream(self, from: &[u8], to: &mut [u8]) {
        check_lines(from, to);
        to.copy_from_slice(from);
    }

    fn fence(self) {}

    fn add(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| a + b)
    }

    fn sub(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| a - b)
    }

    fn mul(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| a * b)
    }

    fn div(self, a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        each(a, b, |a, b| a / b)
    }

    fn sqrt(self, v: [f32; 16]) -> [f32; 16] {
        v.map(f32::sqrt)
    }

    fn less(self, a: [f32; 16], b: [f32; 16]) -> [i32; 16] {
        each(a, b, |a, b| -i32::from(a < b))
    }

    fn equal(self, a: [f32; 16], b: [f32; 16]) -> [i32; 16] {
        each(a, b, |a, b| -i32::from(a == b))
    }

    fn select(self, mask: [i32; 16], a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| if mask[i] != 0 { a[i] } else { b[i] })
    }

    fn which(self, mask: [i32; 16]) -> u32 {
        (0..16).map(|i| u32::from(mask[i] != 0) << i).sum()
    }

    fn any(self, mask: [i32; 16]) -> bool {
        mask.iter().any(|&lane| lane != 0)
    }

    fn splat_f64(self, x: f64) -> [f64; 8] {
        [x; 8]
    }

    fn load_f64(self, x: &[f64; 8]) -> [f64; 8] {
        *x
    }

    fn store_f64(self, v: [f64; 8], x: &mut [f64; 8]) {
        *x = v;
    }

    fn load_f32_as_f64(self, x: &[f32; 8]) -> [f64; 8] {
        x.map(f64::from)
    }

    fn add_f64(self, a: [f64; 8], b: [f64; 8]) -> [f64; 8] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    fn sub_f64(self, a: [f64; 8], b: [f64; 8]) -> [f64; 8] {
        std::array::from_fn(|i| a[i] - b[i])
    }

    fn mul_f64(self, a: [f64; 8], b: [f64; 8]) -> [f64; 8] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    fn abs_f64(self, v: [f64; 8]) -> [f64; 8] {
        v.map(f64::abs)
    }

    fn max_f64(self, a: [f64; 8], b: [f64; 8]) -> [f64; 8] {
        std::array::from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }

    fn add_i32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        each(a, b, i32::wrapping_add)
    }

    fn and(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        each(a, b, |a, b| a & b)
    }

    fn or(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        each(a, b, |a, b| a | b)
    }

    fn xor(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        each(a, b, |a, b| a ^ b)
    }

    fn max_i32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        each(a, b, i32::max)
    }

    fn min_i32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        each(a, b, i32::min)
    }

    fn max_u32(self, a: [i32; 16], b: [i32; 16]) -> [i32; 16] {
        each(a, b, |a, b| a.cast_unsigned().max(b.cast_unsigned()).cast_signed())
    }

    fn shift_left(self, v: [i32; 16], n: u32) -> [i32; 16] {
        v.map(|lane| lane << n)
    }

    fn shift_right(self, v: [i32; 16], n: u32) -> [i32; 16] {
        v.map(|lane| lane >> n)
    }

    fn bits(self, v: [f32; 16]) -> [i32; 16] {
        v.map(|lane| lane.to_bits().cast_signed())
    }

    fn as_f32(self, v: [i32; 16]) -> [f32; 16] {
        v.map(|lane| f32::from_bits(lane.cast_unsigned()))
    }

    fn round(self, v: [f32; 16]) -> [i32; 16] {
        v.map(|lane| lane.round_ties_even() as i32)
    }

    fn truncate(self, v: [f32; 16]) -> [i32; 16] {
        v.map(|lane| lane as i32)
    }

    fn to_f32(self, v: [i32; 16]) -> [f32; 16] {
        v.map(|lane| lane as f32)
    }

    fn fold_max(self, v: [i32; 16]) -> i32 {
        v.into_iter().fold(i32::MIN, i32::max)
    }

    fn max_of_each(self, v: &[i32; 16]) -> [i32; 16] {
        *v
    }

    fn max_of_runs(self, v: [i32; 16], run: usize) -> [i32; 16] {
        std::array::from_fn(|i| v[i / run * run..][..run].iter().fold(i32::MIN, |a, &b| a.max(b)))
    }

    fn transpose(self, v: &[[f32; 16]; 16]) -> [[f32; 16]; 16] {
        std::array::from_fn(|i| std::array::from_fn(|j| v[j][i]))
    }

    fn look_up(self, table: [f32; 16], codes: [i32; 16]) -> [f32; 16] {
        codes.map(|code| table[(code & 15) as usize])
    }

    fn pack_pairs(self, codes: &[[i32; 16]; 8], packed: &mut [u8; 64]) {
        for (i, byte) in packed.iter_mut().enumerate() {
            let code = |at: usize| codes[at / 16][at % 16].clamp(0, 15) as u8;
            *byte = code(2 * i) | code(2 * i + 1) << 4;
        }
    }

    fn pack_halves(self, codes: &[[i32; 16]; 8], packed: &mut [u8; 64]) {
        for (i, byte) in packed.iter_mut().enumerate() {
            let code = |vector: usize| codes[vector][i % 16].clamp(0, 15) as u8;
            *byte = code(i / 16 * 2) | code(i / 16 * 2 + 1) << 4;
        }
    }

    fn unpack_pairs(self, packed: &[u8; 8]) -> [i32; 16] {
        std::array::from_fn(|i| i32::from(packed[i / 2] >> (i % 2 * 4)))
    }

    fn unpack_halves(self, packed: &[u8; 16]) -> [[i32; 16]; 2] {
        [packed.map(i32::from), packed.map(|byte| i32::from(byte >> 4))]
    }

    fn pack_bytes(self, codes: &[u8; 128], bias: u8, packed: &mut [u8; 64]) -> bool {
        for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = pair[0] & 15 | pair[1] << 4;
        }
        codes.iter().all(|code| code.wrapping_add(bias) < 16)
    }

    fn unpack_bytes(self, packed: &[u8; 64], table: &[u8; 16], codes: &mut [u8; 128]) {
        for (byte, pair) in packed.iter().zip(codes.as_chunks_mut::<2>().0) {
            *pair = [table[usize::from(byte & 15)], table[usize::from(byte >> 4)]];
        }
    }
}

#[inline(always)]
fn each<T: Copy, R>(a: [T; 16], b: [T; 16], f: impl Fn(T, T) -> R) -> [R; 16] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

/// The contract of [`Simd::stream`].
#[inline(always)]
pub(super) fn check_lines(from: &[u8], to: &[u8]) {
    assert_eq!(from.len(), to.len());
    assert!(to.len().is_multiple_of(64) && to.as_ptr().addr().is_multiple_of(64), "stream takes whole cache lines");
}
