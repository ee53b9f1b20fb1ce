//! AVX-512 (F, BW, DQ, VL, VBMI): a vector is one register.

use super::e2m1::{Rounding, cells};
use super::scalar::check_lines;
use super::{Kernel, LANES, Simd};
use std::arch::x86_64::*;

/// The proof that this CPU has AVX-512 F, BW, DQ, VL and VBMI.
#[derive(Clone, Copy, Debug)]
pub struct Avx512(());

impl Avx512 {
    /// The proof, where the CPU gives it.
    pub fn new() -> Option<Self> {
        let found = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("f16c");
        found.then_some(Self(()))
    }
}

impl Simd for Avx512 {
    type F32 = __m512;
    type I32 = __m512i;
    type F64 = __m512d;
    type Folded = __m512i;

    const HAS_TABLES: bool = true;

    #[inline(always)]
    #[allow(unsafe_code, reason = "calls a function with target features")]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,f16c")]
        fn enabled<K: Kernel>(simd: Avx512, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: an `Avx512` exists only after `new` found these features.
        unsafe { enabled(self, kernel) }
    }

    #[inline(always)]
    fn fold_max(self, v: __m512i) -> __m512i {
        v
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "an intrinsic")]
    fn prefetch<T>(self, x: &T, ahead: usize) {
        // SAFETY: asking for memory reads none of it.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(x).wrapping_byte_add(ahead).cast()) }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "an intrinsic")]
    fn prefetch_second<T>(self, x: &T, ahead: usize) {
        // SAFETY: as above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(std::ptr::from_ref(x).wrapping_byte_add(ahead).cast()) }
    }

    primitives! {
        fn splat(x: f32) -> __m512 { _mm512_set1_ps(x) }
        fn splat_i32(x: i32) -> __m512i { _mm512_set1_epi32(x) }
        fn load(x: &[f32; 16]) -> __m512 { _mm512_loadu_ps(x.as_ptr()) }
        fn load_i32(x: &[i32; 16]) -> __m512i { _mm512_loadu_si512(x.as_ptr().cast()) }
        fn store(v: __m512, x: &mut [f32; 16]) { _mm512_storeu_ps(x.as_mut_ptr(), v) }
        fn store_i32(v: __m512i, x: &mut [i32; 16]) { _mm512_storeu_si512(x.as_mut_ptr().cast(), v) }
        fn load_f16(x: &[u16; 16]) -> __m512 { _mm512_cvtph_ps(_mm256_loadu_si256(x.as_ptr().cast())) }
        fn store_f16(v: __m512, x: &mut [u16; 16]) {
            _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v))
        }
        fn load_u16(x: &[u16; 16]) -> __m512i { _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())) }
        fn store_u16(v: __m512i, x: &mut [u16; 16]) { _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(v)) }
        fn store_u8(v: __m512i, x: &mut [u8; 16]) { _mm_storeu_si128(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(v)) }

        fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
        fn sub(a: __m512, b: __m512) -> __m512 { _mm512_sub_ps(a, b) }
        fn mul(a: __m512, b: __m512) -> __m512 { _mm512_mul_ps(a, b) }
        fn div(a: __m512, b: __m512) -> __m512 { _mm512_div_ps(a, b) }
        fn sqrt(v: __m512) -> __m512 { _mm512_sqrt_ps(v) }
        fn less(a: __m512, b: __m512) -> __m512i { _mm512_movm_epi32(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b)) }
        fn equal(a: __m512, b: __m512) -> __m512i { _mm512_movm_epi32(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b)) }
        fn select(mask: __m512i, a: __m512, b: __m512) -> __m512 { _mm512_mask_blend_ps(_mm512_movepi32_mask(mask), b, a) }
        fn which(mask: __m512i) -> u32 { u32::from(_mm512_movepi32_mask(mask)) }
        fn any(mask: __m512i) -> bool { _mm512_movepi32_mask(mask) != 0 }

        fn splat_f64(x: f64) -> __m512d { _mm512_set1_pd(x) }
        fn load_f64(x: &[f64; 8]) -> __m512d { _mm512_loadu_pd(x.as_ptr()) }
        fn store_f64(v: __m512d, x: &mut [f64; 8]) { _mm512_storeu_pd(x.as_mut_ptr(), v) }
        fn load_f32_as_f64(x: &[f32; 8]) -> __m512d { _mm512_cvtps_pd(_mm256_loadu_ps(x.as_ptr())) }
        fn add_f64(a: __m512d, b: __m512d) -> __m512d { _mm512_add_pd(a, b) }
        fn sub_f64(a: __m512d, b: __m512d) -> __m512d { _mm512_sub_pd(a, b) }
        fn mul_f64(a: __m512d, b: __m512d) -> __m512d { _mm512_mul_pd(a, b) }
        fn abs_f64(v: __m512d) -> __m512d { _mm512_abs_pd(v) }
        fn max_f64(a: __m512d, b: __m512d) -> __m512d { _mm512_max_pd(a, b) }

        fn add_i32(a: __m512i, b: __m512i) -> __m512i { _mm512_add_epi32(a, b) }
        fn and(a: __m512i, b: __m512i) -> __m512i { _mm512_and_si512(a, b) }
        fn or(a: __m512i, b: __m512i) -> __m512i { _mm512_or_si512(a, b) }
        fn xor(a: __m512i, b: __m512i) -> __m512i { _mm512_xor_si512(a, b) }
        fn max_i32(a: __m512i, b: __m512i) -> __m512i { _mm512_max_epi32(a, b) }
        fn min_i32(a: __m512i, b: __m512i) -> __m512i { _mm512_min_epi32(a, b) }
        fn max_u32(a: __m512i, b: __m512i) -> __m512i { _mm512_max_epu32(a, b) }
        fn shift_left(v: __m512i, n: u32) -> __m512i { _mm512_sll_epi32(v, _mm_cvtsi32_si128(n.cast_signed())) }
        fn shift_right(v: __m512i, n: u32) -> __m512i { _mm512_sra_epi32(v, _mm_cvtsi32_si128(n.cast_signed())) }
        fn bits(v: __m512) -> __m512i { _mm512_castps_si512(v) }
        fn as_f32(v: __m512i) -> __m512 { _mm512_castsi512_ps(v) }
        fn round(v: __m512) -> __m512i { _mm512_cvtps_epi32(v) }
        fn truncate(v: __m512) -> __m512i { _mm512_cvttps_epi32(v) }
        fn to_f32(v: __m512i) -> __m512 { _mm512_cvtepi32_ps(v) }

        fn max_of_each(v: &[__m512i; 16]) -> __m512i { {
            // 4 vectors to one: each 128-bit quarter holds a maximum of each of the four.
            let quarters = [four(v[0], v[1], v[2], v[3]), four(v[4], v[5], v[6], v[7]), four(v[8], v[9], v[10], v[11]), four(v[12], v[13], v[14], v[15])];
            // Then the quarters of one vector are folded on each other, two vectors at a time.
            let (low, high) = (halves(quarters[0], quarters[1]), halves(quarters[2], quarters[3]));
            _mm512_max_epi32(_mm512_shuffle_i32x4::<0b10_00_10_00>(low, high), _mm512_shuffle_i32x4::<0b11_01_11_01>(low, high))
        } }
        fn max_of_runs(v: __m512i, run: usize) -> __m512i { {
            let mut v = v;
            if run >= 2 { v = _mm512_max_epi32(v, _mm512_shuffle_epi32::<0b10_11_00_01>(v)) }
            if run >= 4 { v = _mm512_max_epi32(v, _mm512_shuffle_epi32::<0b01_00_11_10>(v)) }
            if run >= 8 { v = _mm512_max_epi32(v, _mm512_shuffle_i32x4::<0b10_11_00_01>(v, v)) }
            if run >= 16 { v = _mm512_max_epi32(v, _mm512_shuffle_i32x4::<0b01_00_11_10>(v, v)) }
            v
        } }
        fn transpose(v: &[__m512; 16]) -> [__m512; 16] { {
            // In each quarter of four vectors, then the quarters of all sixteen.
            let rows = [quarters_of(&v[..4]), quarters_of(&v[4..8]), quarters_of(&v[8..12]), quarters_of(&v[12..])];
            let column = |i: usize| quarters([rows[0][i], rows[1][i], rows[2][i], rows[3][i]]);
            let columns = [column(0), column(1), column(2), column(3)];
            std::array::from_fn(|i| columns[i % 4][i / 4])
        } }
        fn look_up(table: __m512, codes: __m512i) -> __m512 { _mm512_permutexvar_ps(codes, table) }

        fn pack_pairs(codes: &[__m512i; 8], packed: &mut [u8; 64]) {
            pairs(clamped(codes[0], codes[1], codes[2], codes[3]), clamped(codes[4], codes[5], codes[6], codes[7]), packed)
        }
        fn pack_halves(codes: &[__m512i; 8], packed: &mut [u8; 64]) {
            halves_of(clamped(codes[0], codes[2], codes[4], codes[6]), clamped(codes[1], codes[3], codes[5], codes[7]), packed)
        }
        fn pack_e2m1_pairs(x: &[__m512i; 8], rounding: Rounding, packed: &mut [u8; 64]) {
            pairs(e2m1([x[0], x[1], x[2], x[3]], rounding), e2m1([x[4], x[5], x[6], x[7]], rounding), packed)
        }
        fn pack_e2m1_halves(x: &[__m512i; 8], rounding: Rounding, packed: &mut [u8; 64]) {
            halves_of(e2m1([x[0], x[2], x[4], x[6]], rounding), e2m1([x[1], x[3], x[5], x[7]], rounding), packed)
        }
        fn unpack_pairs(packed: &[u8; 8]) -> __m512i {
            _mm512_multishift_epi64_epi8(_mm512_loadu_si512(PAIR_SHIFTS.as_ptr().cast()), _mm512_set1_epi64(i64::from_le_bytes(*packed)))
        }
        fn unpack_eights(packed: &[u8; 8]) -> __m512i {
            _mm512_multishift_epi64_epi8(_mm512_loadu_si512(EIGHT_SHIFTS.as_ptr().cast()), _mm512_set1_epi64(i64::from_le_bytes(*packed)))
        }
        fn look_up_pairs_u16(table: __m512i, packed: &[u8], x: &mut [[u8; 2]]) { {
            let words = words(table);
            let (whole, rest) = packed.as_chunks::<16>();
            let (whole_x, rest_x) = x.split_at_mut(2 * LANES * whole.len());
            for (packed, x) in whole.iter().zip(whole_x.as_chunks_mut::<{ 2 * LANES }>().0) {
                // Four nibbles to a lane of 64 bits, then each to 16 bits. Only the low five bits of them count, and the table is there twice.
                let bytes = _mm512_cvtepu16_epi64(_mm_loadu_si128(packed.as_ptr().cast()));
                let codes = _mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x000c_0008_0004_0000), bytes);
                _mm512_storeu_si512(x.as_mut_ptr().cast(), _mm512_permutexvar_epi16(codes, words));
            }
            for (packed, x) in rest.as_chunks::<8>().0.iter().zip(rest_x.as_chunks_mut::<LANES>().0) {
                let bytes = _mm256_cvtepu16_epi64(_mm_loadl_epi64(packed.as_ptr().cast()));
                let codes = _mm256_multishift_epi64_epi8(_mm256_set1_epi64x(0x000c_0008_0004_0000), bytes);
                _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm256_permutexvar_epi16(codes, _mm512_castsi512_si256(words)));
            }
        } }
        fn look_up_halves_u16(table: __m512i, packed: &[u8], x: &mut [[u8; 2]]) { {
            let words = words(table);
            for (packed, x) in packed.as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<{ 2 * LANES }>().0) {
                let low = _mm256_cvtepu8_epi16(_mm_loadu_si128(packed.as_ptr().cast()));
                let codes = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), _mm256_srli_epi16::<4>(low));
                _mm512_storeu_si512(x.as_mut_ptr().cast(), _mm512_permutexvar_epi16(codes, words));
            }
        } }
        fn look_up_u16(table: __m512i, codes: __m512i, x: &mut [[u8; 2]; 16]) {
            _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm512_cvtepi32_epi16(_mm512_permutexvar_epi32(codes, table)))
        }
        fn unpack_halves(packed: &[u8; 16]) -> [__m512i; 2] { {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(packed.as_ptr().cast()));
            [bytes, _mm512_srli_epi32::<4>(bytes)]
        } }
        fn pack_bytes(codes: &[u8; 128], bias: u8, packed: &mut [u8; 64]) -> bool { {
            let bias = _mm512_set1_epi8(bias.cast_signed());
            let mut beyond = _mm512_setzero_si512();
            for (bytes, half) in packed.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
                let v = _mm512_loadu_si512(half.as_ptr().cast());
                beyond = _mm512_or_si512(beyond, _mm512_add_epi8(v, bias));
                let pairs = _mm512_maddubs_epi16(_mm512_and_si512(v, _mm512_set1_epi8(15)), _mm512_set1_epi16(0x1001));
                _mm256_storeu_si256(bytes.as_mut_ptr().cast(), _mm512_cvtepi16_epi8(pairs));
            }
            _mm512_test_epi8_mask(beyond, _mm512_set1_epi8(0xf0u8.cast_signed())) == 0
        } }
        fn unpack_bytes(packed: &[u8; 64], table: &[u8; 16], codes: &mut [u8; 128]) { {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast()));
            for (bytes, half) in packed.as_chunks::<32>().0.iter().zip(codes.as_chunks_mut::<64>().0) {
                let wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.as_ptr().cast()));
                let nibbles = _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16::<4>(wide)), _mm512_set1_epi8(15));
                _mm512_storeu_si512(half.as_mut_ptr().cast(), _mm512_shuffle_epi8(table, nibbles));
            }
        } }
        fn stream(from: &[u8], to: &mut [u8]) { {
            check_lines(from, to);   // so that each line below is a whole one at a multiple of 64
            for (from, to) in from.as_chunks::<64>().0.iter().zip(to.as_chunks_mut::<64>().0) {
                _mm512_stream_si512(to.as_mut_ptr().cast(), _mm512_loadu_si512(from.as_ptr().cast()));
            }
        } }
        fn fence() { _mm_sfence() }
    }
}

/// Output unit of 16 bits o is vector o / 4, quarter o % 4.
const PAIR_ORDER: [u16; 32] = {
    let mut order = [0; 32];
    let mut o = 0;
    while o < 32 {
        order[o] = (o % 4 * 8 + o / 4) as u16;
        o += 1;
    }
    order
};

/// Output unit of 32 bits o is block o / 4, quarter o % 4.
const HALF_ORDER: [u32; 16] = {
    let mut order = [0; 16];
    let mut o = 0;
    while o < 16 {
        order[o] = (o % 4 * 4 + o / 4) as u32;
        o += 1;
    }
    order
};

/// Lane i takes the eight bits that begin at this bit of the eight bytes: nibble after nibble.
const PAIR_SHIFTS: [u8; 64] = {
    let mut shifts = [0; 64];
    let mut lane = 0;
    while lane < 16 {
        shifts[4 * lane] = 4 * lane as u8;
        lane += 1;
    }
    shifts
};

/// The same: the low nibbles of all bytes, then the high ones.
const EIGHT_SHIFTS: [u8; 64] = {
    let mut shifts = [0; 64];
    let mut lane = 0;
    while lane < 16 {
        shifts[4 * lane] = (lane % 8 * 8 + lane / 8 * 4) as u8;
        lane += 1;
    }
    shifts
};

/// Vector i holds, in each quarter, lane i of that quarter of the four vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters_of(v: &[__m512]) -> [__m512; 4] {
    let (a, b) = (_mm512_unpacklo_ps(v[0], v[1]), _mm512_unpackhi_ps(v[0], v[1]));
    let (c, d) = (_mm512_unpacklo_ps(v[2], v[3]), _mm512_unpackhi_ps(v[2], v[3]));
    [
        _mm512_shuffle_ps::<0b01_00_01_00>(a, c),
        _mm512_shuffle_ps::<0b11_10_11_10>(a, c),
        _mm512_shuffle_ps::<0b01_00_01_00>(b, d),
        _mm512_shuffle_ps::<0b11_10_11_10>(b, d),
    ]
}

/// Vector i holds quarter i of the four vectors.
#[inline]
#[target_feature(enable = "avx512f")]
fn quarters(v: [__m512; 4]) -> [__m512; 4] {
    let (a, b) = (_mm512_shuffle_f32x4::<0b01_00_01_00>(v[0], v[1]), _mm512_shuffle_f32x4::<0b11_10_11_10>(v[0], v[1]));
    let (c, d) = (_mm512_shuffle_f32x4::<0b01_00_01_00>(v[2], v[3]), _mm512_shuffle_f32x4::<0b11_10_11_10>(v[2], v[3]));
    [
        _mm512_shuffle_f32x4::<0b10_00_10_00>(a, c),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(a, c),
        _mm512_shuffle_f32x4::<0b10_00_10_00>(b, d),
        _mm512_shuffle_f32x4::<0b11_01_11_01>(b, d),
    ]
}

/// Each quarter of the result: the largest of that quarter of a, of b, of c, of d.
#[inline]
#[target_feature(enable = "avx512f")]
fn four(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    two(two(a, c), two(b, d))
}

/// In each quarter: [a0, b0, a1, b1] against [a2, b2, a3, b3].
#[inline]
#[target_feature(enable = "avx512f")]
fn two(a: __m512i, b: __m512i) -> __m512i {
    _mm512_max_epi32(_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b))
}

/// Quarters: a0 with a2, a1 with a3, b0 with b2, b1 with b3.
#[inline]
#[target_feature(enable = "avx512f")]
fn halves(a: __m512i, b: __m512i) -> __m512i {
    _mm512_max_epi32(_mm512_shuffle_i32x4::<0b01_00_01_00>(a, b), _mm512_shuffle_i32x4::<0b11_10_11_10>(a, b))
}

/// 64 codes as bytes, clamped to 0..=15; each quarter holds four of a, four of b, four of c, four of d.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn clamped(a: __m512i, b: __m512i, c: __m512i, d: __m512i) -> __m512i {
    let bytes = _mm512_packus_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    _mm512_min_epu8(bytes, _mm512_set1_epi8(15))
}

/// The low 16 bits of each lane, twice.
#[inline]
#[target_feature(enable = "avx512f,avx512dq")]
fn words(table: __m512i) -> __m512i {
    let words = _mm512_cvtepi32_epi16(table);
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(words), words)
}

/// Codes as bytes in the order of [`clamped`] to nibbles, the even one low.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code, reason = "a load and a store")]
fn pairs(first: __m512i, second: __m512i, packed: &mut [u8; 64]) {
    let nibbles = _mm512_set1_epi16(0x1001); // low + 16 * high
    let bytes = _mm512_packus_epi16(_mm512_maddubs_epi16(first, nibbles), _mm512_maddubs_epi16(second, nibbles));
    // SAFETY: 64 bytes are read and written, of arrays of 64.
    unsafe {
        let order = _mm512_loadu_si512(PAIR_ORDER.as_ptr().cast());
        _mm512_storeu_si512(packed.as_mut_ptr().cast(), _mm512_permutexvar_epi16(order, bytes));
    }
}

/// Codes as bytes in the order of [`clamped`] to nibbles, some low and some high.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
#[allow(unsafe_code, reason = "a load and a store")]
fn halves_of(low: __m512i, high: __m512i, packed: &mut [u8; 64]) {
    let bytes = _mm512_or_si512(low, _mm512_slli_epi16::<4>(high));
    // SAFETY: 64 bytes are read and written, of arrays of 64.
    unsafe {
        let order = _mm512_loadu_si512(HALF_ORDER.as_ptr().cast());
        _mm512_storeu_si512(packed.as_mut_ptr().cast(), _mm512_permutexvar_epi32(order, bytes));
    }
}

/// The E2M1 codes of 64 numbers as bytes, in the order of [`clamped`]: cells of 32 bits, of 16, of 8, and from these the codes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
#[allow(unsafe_code, reason = "a load")]
fn e2m1(x: [__m512i; 4], rounding: Rounding) -> __m512i {
    let words = [
        _mm512_packs_epi32(cells_of(x[0], rounding), cells_of(x[1], rounding)),
        _mm512_packs_epi32(cells_of(x[2], rounding), cells_of(x[3], rounding)),
    ];
    let last_of_zero = _mm512_set1_epi16(cells::last_of_zero(rounding));
    let above = |words| _mm512_subs_epu16(_mm512_and_si512(words, _mm512_set1_epi16(cells::SIZE)), last_of_zero);
    let index = _mm512_min_epu8(_mm512_packus_epi16(above(words[0]), above(words[1])), _mm512_set1_epi8(31));
    let is_negative = match rounding {
        // All that are above the cell of -0.0, which as an integer without sign has the positive ones below it.
        Rounding::HalfToEven => {
            let negative_zero = _mm512_set1_epi16(!cells::SIZE);
            let bytes = _mm512_packus_epi16(_mm512_subs_epu16(words[0], negative_zero), _mm512_subs_epu16(words[1], negative_zero));
            _mm512_test_epi8_mask(bytes, bytes)
        }
        Rounding::TowardZero | Rounding::WithSign => _mm512_movepi8_mask(_mm512_packs_epi16(words[0], words[1])),
    };
    let codes = match rounding {
        Rounding::TowardZero => &const { signed_codes(0) },
        Rounding::HalfToEven | Rounding::WithSign => &const { signed_codes(8) },
    };
    // SAFETY: 64 bytes are read, of an array of 64.
    let codes = unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
    _mm512_permutexvar_epi8(_mm512_mask_add_epi8(index, is_negative, index, _mm512_set1_epi8(32)), codes)
}

/// The codes of 32 cells from the last one of code 0 on, then those of negative numbers.
const fn signed_codes(negative_zero: i8) -> [i8; 64] {
    let mut codes = [0; 64];
    codes[32] = negative_zero;
    let mut i = 1usize;
    while i < 32 {
        let place = i.saturating_sub(cells::FIRST as usize);
        codes[i] = cells::CODES[if place < 15 { place } else { 15 }];
        codes[32 + i] = 8 | codes[i];
        i += 1;
    }
    codes
}

/// The cells of 16 numbers, with their signs.
#[inline]
#[target_feature(enable = "avx512f")]
fn cells_of(bits: __m512i, rounding: Rounding) -> __m512i {
    let up = match rounding {
        Rounding::TowardZero => _mm512_add_epi32(bits, _mm512_set1_epi32(cells::UP)),
        Rounding::HalfToEven | Rounding::WithSign => {
            let nudged = _mm512_castps_si512(_mm512_mul_ps(_mm512_castsi512_ps(bits), _mm512_set1_ps(cells::NUDGE)));
            _mm512_add_epi32(nudged, _mm512_set1_epi32(cells::UP - 1))
        }
    };
    _mm512_srai_epi32::<{ cells::SHIFT }>(up)
}
