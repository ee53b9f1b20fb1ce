//! NEON: a vector is four registers. Where it has no instruction for all sixteen lanes, arrays and loops do.

use super::scalar::check_lines;
use super::{Kernel, Simd};
use std::arch::aarch64::*;
use std::arch::asm;

/// The proof that this CPU has NEON.
#[derive(Clone, Copy, Debug)]
pub struct Neon(());

impl Neon {
    /// The proof, where the CPU gives it.
    pub fn new() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

type F32 = [float32x4_t; 4];
type I32 = [int32x4_t; 4];
type F64 = [float64x2_t; 4];

/// The same operation on each of the four registers.
macro_rules! four {
    ($operation:ident($($v:ident),+)) => { [$operation($($v[0]),+), $operation($($v[1]),+), $operation($($v[2]),+), $operation($($v[3]),+)] };
}

impl Simd for Neon {
    type F32 = F32;
    type I32 = I32;
    type F64 = F64;
    type Folded = int32x4_t;

    #[inline(always)]
    #[allow(unsafe_code, reason = "calls a function with target features")]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "neon")]
        fn enabled<K: Kernel>(simd: Neon, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: a `Neon` exists only after `new` found this feature.
        unsafe { enabled(self, kernel) }
    }

    primitives! {
        fn splat(x: f32) -> F32 { [vdupq_n_f32(x); 4] }
        fn splat_i32(x: i32) -> I32 { [vdupq_n_s32(x); 4] }
        fn load(x: &[f32; 16]) -> F32 { [vld1q_f32(x.as_ptr()), vld1q_f32(x[4..].as_ptr()), vld1q_f32(x[8..].as_ptr()), vld1q_f32(x[12..].as_ptr())] }
        fn load_i32(x: &[i32; 16]) -> I32 { [vld1q_s32(x.as_ptr()), vld1q_s32(x[4..].as_ptr()), vld1q_s32(x[8..].as_ptr()), vld1q_s32(x[12..].as_ptr())] }
        fn store(v: F32, x: &mut [f32; 16]) {
            for (v, x) in v.into_iter().zip(x.as_chunks_mut::<4>().0) { vst1q_f32(x.as_mut_ptr(), v) }
        }
        fn store_i32(v: I32, x: &mut [i32; 16]) {
            for (v, x) in v.into_iter().zip(x.as_chunks_mut::<4>().0) { vst1q_s32(x.as_mut_ptr(), v) }
        }
        fn load_f16(x: &[u16; 16]) -> F32 { {
            let quarter = x.as_chunks::<4>().0;
            [widen_f16(vld1_u16(quarter[0].as_ptr())), widen_f16(vld1_u16(quarter[1].as_ptr())), widen_f16(vld1_u16(quarter[2].as_ptr())), widen_f16(vld1_u16(quarter[3].as_ptr()))]
        } }
        fn store_f16(v: F32, x: &mut [u16; 16]) {
            for (v, x) in v.into_iter().zip(x.as_chunks_mut::<4>().0) { vst1_u16(x.as_mut_ptr(), narrow_f16(v)) }
        }
        fn load_u16(x: &[u16; 16]) -> I32 { {
            let quarter = x.as_chunks::<4>().0;
            [widen_u16(&quarter[0]), widen_u16(&quarter[1]), widen_u16(&quarter[2]), widen_u16(&quarter[3])]
        } }
        fn store_u16(v: I32, x: &mut [u16; 16]) {
            for (v, x) in v.into_iter().zip(x.as_chunks_mut::<4>().0) { vst1_u16(x.as_mut_ptr(), vmovn_u32(vreinterpretq_u32_s32(v))) }
        }

        fn add(a: F32, b: F32) -> F32 { four!(vaddq_f32(a, b)) }
        fn sub(a: F32, b: F32) -> F32 { four!(vsubq_f32(a, b)) }
        fn mul(a: F32, b: F32) -> F32 { four!(vmulq_f32(a, b)) }
        fn div(a: F32, b: F32) -> F32 { four!(vdivq_f32(a, b)) }
        fn sqrt(v: F32) -> F32 { four!(vsqrtq_f32(v)) }
        fn less(a: F32, b: F32) -> I32 { { let mask = four!(vcltq_f32(a, b)); four!(vreinterpretq_s32_u32(mask)) } }
        fn equal(a: F32, b: F32) -> I32 { { let mask = four!(vceqq_f32(a, b)); four!(vreinterpretq_s32_u32(mask)) } }
        fn select(mask: I32, a: F32, b: F32) -> F32 { { let mask = four!(vreinterpretq_u32_s32(mask)); four!(vbslq_f32(mask, a, b)) } }
        fn which(mask: I32) -> u32 { {
            let (mask, bits) = (four!(vreinterpretq_u32_s32(mask)), [vld1q_u32([1, 2, 4, 8].as_ptr()); 4]);
            let set = four!(vandq_u32(mask, bits));
            let [a, b, c, d] = four!(vaddvq_u32(set));
            a | b << 4 | c << 8 | d << 12
        } }
        fn any(mask: I32) -> bool {
            vmaxvq_u32(vreinterpretq_u32_s32(vorrq_s32(vorrq_s32(mask[0], mask[1]), vorrq_s32(mask[2], mask[3])))) != 0
        }

        fn splat_f64(x: f64) -> F64 { [vdupq_n_f64(x); 4] }
        fn load_f64(x: &[f64; 8]) -> F64 { [vld1q_f64(x.as_ptr()), vld1q_f64(x[2..].as_ptr()), vld1q_f64(x[4..].as_ptr()), vld1q_f64(x[6..].as_ptr())] }
        fn store_f64(v: F64, x: &mut [f64; 8]) {
            for (v, x) in v.into_iter().zip(x.as_chunks_mut::<2>().0) { vst1q_f64(x.as_mut_ptr(), v) }
        }
        fn load_f32_as_f64(x: &[f32; 8]) -> F64 {
            [0, 2, 4, 6].map(|at| vcvt_f64_f32(vld1_f32(x[at..].as_ptr())))
        }
        fn add_f64(a: F64, b: F64) -> F64 { four!(vaddq_f64(a, b)) }
        fn sub_f64(a: F64, b: F64) -> F64 { four!(vsubq_f64(a, b)) }
        fn mul_f64(a: F64, b: F64) -> F64 { four!(vmulq_f64(a, b)) }
        fn abs_f64(v: F64) -> F64 { four!(vabsq_f64(v)) }
        fn max_f64(a: F64, b: F64) -> F64 { four!(vmaxq_f64(a, b)) }

        fn add_i32(a: I32, b: I32) -> I32 { four!(vaddq_s32(a, b)) }
        fn and(a: I32, b: I32) -> I32 { four!(vandq_s32(a, b)) }
        fn or(a: I32, b: I32) -> I32 { four!(vorrq_s32(a, b)) }
        fn xor(a: I32, b: I32) -> I32 { four!(veorq_s32(a, b)) }
        fn max_i32(a: I32, b: I32) -> I32 { four!(vmaxq_s32(a, b)) }
        fn min_i32(a: I32, b: I32) -> I32 { four!(vminq_s32(a, b)) }
        fn max_u32(a: I32, b: I32) -> I32 { {
            let (a, b) = (four!(vreinterpretq_u32_s32(a)), four!(vreinterpretq_u32_s32(b)));
            let larger = four!(vmaxq_u32(a, b));
            four!(vreinterpretq_s32_u32(larger))
        } }
        fn shift_left(v: I32, n: u32) -> I32 { { let n = [vdupq_n_s32(n.cast_signed()); 4]; four!(vshlq_s32(v, n)) } }
        fn shift_right(v: I32, n: u32) -> I32 { { let n = [vdupq_n_s32(-n.cast_signed()); 4]; four!(vshlq_s32(v, n)) } }
        fn bits(v: F32) -> I32 { four!(vreinterpretq_s32_f32(v)) }
        fn as_f32(v: I32) -> F32 { four!(vreinterpretq_f32_s32(v)) }
        fn round(v: F32) -> I32 { four!(vcvtnq_s32_f32(v)) }
        fn truncate(v: F32) -> I32 { four!(vcvtq_s32_f32(v)) }
        fn to_f32(v: I32) -> F32 { four!(vcvtq_f32_s32(v)) }

        fn fold_max(v: I32) -> int32x4_t { vmaxq_s32(vmaxq_s32(v[0], v[1]), vmaxq_s32(v[2], v[3])) }
        fn max_of_each(v: &[int32x4_t; 16]) -> I32 { [of_four(&v[..4]), of_four(&v[4..8]), of_four(&v[8..12]), of_four(&v[12..])] }
        fn transpose(v: &[F32; 16]) -> [F32; 16] { {
            let square = |vectors: usize, quarter: usize| four_by_four(std::array::from_fn(|i| v[4 * vectors + i][quarter]));
            let squares: [[[float32x4_t; 4]; 4]; 4] = std::array::from_fn(|quarter| std::array::from_fn(|vectors| square(vectors, quarter)));
            std::array::from_fn(|i| std::array::from_fn(|vectors| squares[i / 4][vectors][i % 4]))
        } }
        fn look_up(table: F32, codes: I32) -> F32 { {
            let table = uint8x16x4_t(vreinterpretq_u8_f32(table[0]), vreinterpretq_u8_f32(table[1]), vreinterpretq_u8_f32(table[2]), vreinterpretq_u8_f32(table[3]));
            [entries(table, codes[0]), entries(table, codes[1]), entries(table, codes[2]), entries(table, codes[3])]
        } }

        fn pack_pairs(codes: &[I32; 8], packed: &mut [u8; 64]) {
            for (packed, codes) in packed.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<2>().0) {
                let (first, second) = (bytes(codes[0]), bytes(codes[1]));
                let (even, odd) = (vuzp1q_u8(first, second), vuzp2q_u8(first, second));
                vst1q_u8(packed.as_mut_ptr(), vorrq_u8(even, vshlq_n_u8::<4>(odd)));
            }
        }
        fn pack_halves(codes: &[I32; 8], packed: &mut [u8; 64]) {
            for (packed, codes) in packed.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<2>().0) {
                vst1q_u8(packed.as_mut_ptr(), vorrq_u8(bytes(codes[0]), vshlq_n_u8::<4>(bytes(codes[1]))));
            }
        }
        fn unpack_pairs(packed: &[u8; 8]) -> I32 { {
            let low = vld1_u8(packed.as_ptr());
            let high = vshr_n_u8::<4>(low);
            lanes(vcombine_u8(vzip1_u8(low, high), vzip2_u8(low, high)))
        } }
        fn unpack_halves(packed: &[u8; 16]) -> [I32; 2] { {
            let low = vld1q_u8(packed.as_ptr());
            [lanes(low), lanes(vshrq_n_u8::<4>(low))]
        } }
        fn pack_bytes(codes: &[u8; 128], bias: u8, packed: &mut [u8; 64]) -> bool { {
            let mut beyond = vdupq_n_u8(0);
            for (packed, codes) in packed.as_chunks_mut::<16>().0.iter_mut().zip(codes.as_chunks::<32>().0) {
                let (first, second) = (vld1q_u8(codes.as_ptr()), vld1q_u8(codes[16..].as_ptr()));
                beyond = vorrq_u8(beyond, vorrq_u8(vaddq_u8(first, vdupq_n_u8(bias)), vaddq_u8(second, vdupq_n_u8(bias))));
                let (even, odd) = (vuzp1q_u8(first, second), vuzp2q_u8(first, second));
                vst1q_u8(packed.as_mut_ptr(), vorrq_u8(vandq_u8(even, vdupq_n_u8(15)), vshlq_n_u8::<4>(odd)));
            }
            vmaxvq_u8(beyond) < 16
        } }
        fn unpack_bytes(packed: &[u8; 64], table: &[u8; 16], codes: &mut [u8; 128]) { {
            let table = vld1q_u8(table.as_ptr());
            for (packed, codes) in packed.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
                let v = vld1q_u8(packed.as_ptr());
                let (low, high) = (vqtbl1q_u8(table, vandq_u8(v, vdupq_n_u8(15))), vqtbl1q_u8(table, vshrq_n_u8::<4>(v)));
                vst1q_u8(codes.as_mut_ptr(), vzip1q_u8(low, high));
                vst1q_u8(codes[16..].as_mut_ptr(), vzip2q_u8(low, high));
            }
        } }
    }

    /// There is no intrinsic for stores that pass the caches.
    #[inline(always)]
    fn stream(self, from: &[u8], to: &mut [u8]) {
        check_lines(from, to);
        to.copy_from_slice(from);
    }

    #[inline(always)]
    fn fence(self) {}

    #[inline(always)]
    fn max_of_runs(self, v: I32, run: usize) -> I32 {
        let mut all = [0; 16];
        self.store_i32(v, &mut all);
        for run in all.chunks_mut(run) {
            let largest = run.iter().fold(i32::MIN, |a, &b| a.max(b));
            run.fill(largest);
        }
        self.load_i32(&all)
    }
}

/// Lane j of vector i is lane i of vector j.
#[inline]
#[target_feature(enable = "neon")]
fn four_by_four(v: [float32x4_t; 4]) -> [float32x4_t; 4] {
    let even = |a, b| vreinterpretq_f64_f32(vtrn1q_f32(a, b));
    let odd = |a, b| vreinterpretq_f64_f32(vtrn2q_f32(a, b));
    let (a, b, c, d) = (even(v[0], v[1]), odd(v[0], v[1]), even(v[2], v[3]), odd(v[2], v[3]));
    [vtrn1q_f64(a, c), vtrn1q_f64(b, d), vtrn2q_f64(a, c), vtrn2q_f64(b, d)].map(|v| vreinterpretq_f32_f64(v))
}

/// Lane i: the largest lane of vector i of four.
#[inline]
#[target_feature(enable = "neon")]
fn of_four(v: &[int32x4_t]) -> int32x4_t {
    vpmaxq_s32(vpmaxq_s32(v[0], v[1]), vpmaxq_s32(v[2], v[3]))
}

/// Four entries of a table of 64 bytes: entry n is bytes 4 n to 4 n + 3.
#[inline]
#[target_feature(enable = "neon")]
fn entries(table: uint8x16x4_t, codes: int32x4_t) -> float32x4_t {
    let entry = vandq_s32(codes, vdupq_n_s32(15));
    let bytes = vmlaq_s32(vdupq_n_s32(0x0302_0100), entry, vdupq_n_s32(0x0404_0404));
    vreinterpretq_f32_u8(vqtbl4q_u8(table, vreinterpretq_u8_s32(bytes)))
}

/// Sixteen codes as bytes, clamped to 0..=15.
#[inline]
#[target_feature(enable = "neon")]
fn bytes(codes: I32) -> uint8x16_t {
    let low = vcombine_s16(vqmovn_s32(codes[0]), vqmovn_s32(codes[1]));
    let high = vcombine_s16(vqmovn_s32(codes[2]), vqmovn_s32(codes[3]));
    vminq_u8(vcombine_u8(vqmovun_s16(low), vqmovun_s16(high)), vdupq_n_u8(15))
}

/// Sixteen bytes as lanes.
#[inline]
#[target_feature(enable = "neon")]
fn lanes(bytes: uint8x16_t) -> I32 {
    let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
    let wide = [vmovl_u16(vget_low_u16(low)), vmovl_u16(vget_high_u16(low)), vmovl_u16(vget_low_u16(high)), vmovl_u16(vget_high_u16(high))];
    four!(vreinterpretq_s32_u32(wide))
}

#[inline]
#[target_feature(enable = "neon")]
fn widen_u16(x: &[u16; 4]) -> int32x4_t {
    vreinterpretq_s32_u32(vmovl_u16(vcreate_u16(bytemuck::cast(*x))))
}

/// The conversions of binary16 are part of the base instruction set; their intrinsics need a type that is not stable.
#[inline]
#[target_feature(enable = "neon")]
#[allow(unsafe_code, reason = "one instruction")]
fn widen_f16(halves: uint16x4_t) -> float32x4_t {
    let wide;
    // SAFETY: one instruction of registers only.
    unsafe {
        asm!("fcvtl {wide:v}.4s, {halves:v}.4h", wide = lateout(vreg) wide, halves = in(vreg) halves, options(pure, nomem, nostack, preserves_flags))
    };
    wide
}

#[inline]
#[target_feature(enable = "neon")]
#[allow(unsafe_code, reason = "one instruction")]
fn narrow_f16(wide: float32x4_t) -> uint16x4_t {
    let halves;
    // SAFETY: one instruction of registers only.
    unsafe {
        asm!("fcvtn {halves:v}.4h, {wide:v}.4s", halves = lateout(vreg) halves, wide = in(vreg) wide, options(pure, nomem, nostack, preserves_flags))
    };
    halves
}
