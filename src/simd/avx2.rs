//! AVX2 with F16C: a vector is two registers.

use super::e2m1::{Rounding, cells};
use super::ranks::{self, Ranks};
use super::scalar::check_lines;
use super::{Kernel, Simd};
use std::arch::x86_64::*;

/// The proof that this CPU has AVX2 and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2(());

impl Avx2 {
    /// The proof, where the CPU gives it.
    pub fn new() -> Option<Self> {
        (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")).then_some(Self(()))
    }
}

type F32 = [__m256; 2];
type I32 = [__m256i; 2];
type F64 = [__m256d; 2];

impl Simd for Avx2 {
    type F32 = F32;
    type I32 = I32;
    type F64 = F64;
    type Folded = __m256i;

    #[inline(always)]
    #[allow(unsafe_code, reason = "calls a function with target features")]
    fn run<K: Kernel>(self, kernel: K) -> K::Output {
        #[target_feature(enable = "avx2,f16c")]
        fn enabled<K: Kernel>(simd: Avx2, kernel: K) -> K::Output {
            kernel.run(simd)
        }
        // SAFETY: an `Avx2` exists only after `new` found these features.
        unsafe { enabled(self, kernel) }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "calls a function with target features")]
    fn rank(self, v: F32, steps: F32) -> I32 {
        // SAFETY: an `Avx2` exists only after `new` found these features.
        unsafe { by_halving(v, steps) }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "calls a function with target features")]
    fn look_up_pairs(self, table: F32, packed: &[u8], x: &mut [f32]) {
        let ((whole, rest), (whole_x, rest_x)) = (packed.as_chunks(), x.as_chunks_mut());
        if !whole.is_empty() {
            // SAFETY: an `Avx2` exists only after `new` found these features.
            unsafe { pairs_of(table, whole, whole_x) };
        }
        for (packed, x) in rest.as_chunks().0.iter().zip(rest_x.as_chunks_mut().0) {
            self.store(self.look_up(table, self.unpack_pairs(packed)), x);
        }
    }

    #[inline(always)]
    #[allow(unsafe_code, reason = "calls a function with target features")]
    fn look_up_pairs_u16(self, table: I32, packed: &[u8], x: &mut [[u8; 2]]) {
        let ((whole, rest), (whole_x, rest_x)) = (packed.as_chunks(), x.as_chunks_mut());
        if !whole.is_empty() {
            // SAFETY: an `Avx2` exists only after `new` found these features.
            unsafe { pairs_of_u16(table, whole, whole_x) };
        }
        for (packed, x) in rest.as_chunks().0.iter().zip(rest_x.as_chunks_mut().0) {
            self.look_up_u16(table, self.unpack_pairs(packed), x);
        }
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
        fn splat(x: f32) -> F32 { [_mm256_set1_ps(x); 2] }
        fn splat_i32(x: i32) -> I32 { [_mm256_set1_epi32(x); 2] }
        fn load(x: &[f32; 16]) -> F32 { [_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x[8..].as_ptr())] }
        fn load_i32(x: &[i32; 16]) -> I32 { [_mm256_loadu_si256(x.as_ptr().cast()), _mm256_loadu_si256(x[8..].as_ptr().cast())] }
        fn store(v: F32, x: &mut [f32; 16]) { { _mm256_storeu_ps(x.as_mut_ptr(), v[0]); _mm256_storeu_ps(x[8..].as_mut_ptr(), v[1]) } }
        fn store_i32(v: I32, x: &mut [i32; 16]) { {
            _mm256_storeu_si256(x.as_mut_ptr().cast(), v[0]);
            _mm256_storeu_si256(x[8..].as_mut_ptr().cast(), v[1])
        } }
        fn load_f16(x: &[u16; 16]) -> F32 {
            [_mm256_cvtph_ps(_mm_loadu_si128(x.as_ptr().cast())), _mm256_cvtph_ps(_mm_loadu_si128(x[8..].as_ptr().cast()))]
        }
        fn store_f16(v: F32, x: &mut [u16; 16]) { {
            _mm_storeu_si128(x.as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[0]));
            _mm_storeu_si128(x[8..].as_mut_ptr().cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v[1]))
        } }
        fn load_u16(x: &[u16; 16]) -> I32 {
            [_mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast())), _mm256_cvtepu16_epi32(_mm_loadu_si128(x[8..].as_ptr().cast()))]
        }
        fn store_u16(v: I32, x: &mut [u16; 16]) { {
            let low = _mm256_set1_epi32(0xffff);
            let words = _mm256_packus_epi32(_mm256_and_si256(v[0], low), _mm256_and_si256(v[1], low));
            _mm256_storeu_si256(x.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(words))
        } }

        fn add(a: F32, b: F32) -> F32 { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        fn sub(a: F32, b: F32) -> F32 { [_mm256_sub_ps(a[0], b[0]), _mm256_sub_ps(a[1], b[1])] }
        fn mul(a: F32, b: F32) -> F32 { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        fn div(a: F32, b: F32) -> F32 { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        fn sqrt(v: F32) -> F32 { [_mm256_sqrt_ps(v[0]), _mm256_sqrt_ps(v[1])] }
        fn less(a: F32, b: F32) -> I32 {
            [_mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(a[0], b[0])), _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(a[1], b[1]))]
        }
        fn equal(a: F32, b: F32) -> I32 {
            [_mm256_castps_si256(_mm256_cmp_ps::<_CMP_EQ_OQ>(a[0], b[0])), _mm256_castps_si256(_mm256_cmp_ps::<_CMP_EQ_OQ>(a[1], b[1]))]
        }
        fn select(mask: I32, a: F32, b: F32) -> F32 {
            [_mm256_blendv_ps(b[0], a[0], _mm256_castsi256_ps(mask[0])), _mm256_blendv_ps(b[1], a[1], _mm256_castsi256_ps(mask[1]))]
        }
        fn which(mask: I32) -> u32 {
            (_mm256_movemask_ps(_mm256_castsi256_ps(mask[0])) | _mm256_movemask_ps(_mm256_castsi256_ps(mask[1])) << 8) as u32
        }
        fn any(mask: I32) -> bool { _mm256_movemask_epi8(_mm256_or_si256(mask[0], mask[1])) != 0 }

        fn splat_f64(x: f64) -> F64 { [_mm256_set1_pd(x); 2] }
        fn load_f64(x: &[f64; 8]) -> F64 { [_mm256_loadu_pd(x.as_ptr()), _mm256_loadu_pd(x[4..].as_ptr())] }
        fn store_f64(v: F64, x: &mut [f64; 8]) { { _mm256_storeu_pd(x.as_mut_ptr(), v[0]); _mm256_storeu_pd(x[4..].as_mut_ptr(), v[1]) } }
        fn load_f32_as_f64(x: &[f32; 8]) -> F64 { [_mm256_cvtps_pd(_mm_loadu_ps(x.as_ptr())), _mm256_cvtps_pd(_mm_loadu_ps(x[4..].as_ptr()))] }
        fn add_f64(a: F64, b: F64) -> F64 { [_mm256_add_pd(a[0], b[0]), _mm256_add_pd(a[1], b[1])] }
        fn sub_f64(a: F64, b: F64) -> F64 { [_mm256_sub_pd(a[0], b[0]), _mm256_sub_pd(a[1], b[1])] }
        fn mul_f64(a: F64, b: F64) -> F64 { [_mm256_mul_pd(a[0], b[0]), _mm256_mul_pd(a[1], b[1])] }
        fn abs_f64(v: F64) -> F64 { [_mm256_andnot_pd(_mm256_set1_pd(-0.0), v[0]), _mm256_andnot_pd(_mm256_set1_pd(-0.0), v[1])] }
        fn max_f64(a: F64, b: F64) -> F64 { [_mm256_max_pd(a[0], b[0]), _mm256_max_pd(a[1], b[1])] }

        fn add_i32(a: I32, b: I32) -> I32 { [_mm256_add_epi32(a[0], b[0]), _mm256_add_epi32(a[1], b[1])] }
        fn and(a: I32, b: I32) -> I32 { [_mm256_and_si256(a[0], b[0]), _mm256_and_si256(a[1], b[1])] }
        fn or(a: I32, b: I32) -> I32 { [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])] }
        fn xor(a: I32, b: I32) -> I32 { [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])] }
        fn max_i32(a: I32, b: I32) -> I32 { [_mm256_max_epi32(a[0], b[0]), _mm256_max_epi32(a[1], b[1])] }
        fn min_i32(a: I32, b: I32) -> I32 { [_mm256_min_epi32(a[0], b[0]), _mm256_min_epi32(a[1], b[1])] }
        fn max_u32(a: I32, b: I32) -> I32 { [_mm256_max_epu32(a[0], b[0]), _mm256_max_epu32(a[1], b[1])] }
        fn shift_left(v: I32, n: u32) -> I32 { {
            let n = _mm_cvtsi32_si128(n.cast_signed());
            [_mm256_sll_epi32(v[0], n), _mm256_sll_epi32(v[1], n)]
        } }
        fn shift_right(v: I32, n: u32) -> I32 { {
            let n = _mm_cvtsi32_si128(n.cast_signed());
            [_mm256_sra_epi32(v[0], n), _mm256_sra_epi32(v[1], n)]
        } }
        fn bits(v: F32) -> I32 { [_mm256_castps_si256(v[0]), _mm256_castps_si256(v[1])] }
        fn as_f32(v: I32) -> F32 { [_mm256_castsi256_ps(v[0]), _mm256_castsi256_ps(v[1])] }
        fn round(v: F32) -> I32 { [_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1])] }
        fn truncate(v: F32) -> I32 { [_mm256_cvttps_epi32(v[0]), _mm256_cvttps_epi32(v[1])] }
        fn to_f32(v: I32) -> F32 { [_mm256_cvtepi32_ps(v[0]), _mm256_cvtepi32_ps(v[1])] }

        fn fold_max(v: I32) -> __m256i { _mm256_max_epi32(v[0], v[1]) }
        fn max_of_each(v: &[__m256i; 16]) -> I32 { [eight(&v.as_chunks::<8>().0[0]), eight(&v.as_chunks::<8>().0[1])] }
        fn max_of_runs(v: I32, run: usize) -> I32 { {
            let v = [run_of(v[0], run), run_of(v[1], run)];
            if run == 16 { [_mm256_max_epi32(v[0], v[1]); 2] } else { v }
        } }
        fn transpose(v: &[F32; 16]) -> [F32; 16] { {
            let square = |vectors: usize, half: usize| eight_by_eight(std::array::from_fn(|i| v[8 * vectors + i][half]));
            let squares = [[square(0, 0), square(1, 0)], [square(0, 1), square(1, 1)]];
            std::array::from_fn(|i| [squares[i / 8][0][i % 8], squares[i / 8][1][i % 8]])
        } }
        fn look_up(table: F32, codes: I32) -> F32 { [entries(table, codes[0]), entries(table, codes[1])] }

        fn pack_pairs(codes: &[I32; 8], packed: &mut [u8; 64]) {
            for (bytes, codes) in packed.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<4>().0) {
                pairs([clamped(codes[0], codes[1]), clamped(codes[2], codes[3])], bytes);
            }
        }
        fn pack_halves(codes: &[I32; 8], packed: &mut [u8; 64]) {
            for (bytes, codes) in packed.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<4>().0) {
                halves(clamped(codes[0], codes[2]), clamped(codes[1], codes[3]), bytes);
            }
        }
        fn pack_e2m1_pairs(x: &[I32; 8], rounding: Rounding, packed: &mut [u8; 64]) {
            for (bytes, x) in packed.as_chunks_mut::<32>().0.iter_mut().zip(x.as_chunks::<4>().0) {
                pairs([e2m1(x[0], x[1], rounding), e2m1(x[2], x[3], rounding)], bytes);
            }
        }
        fn pack_ranked_pairs(x: &[I32; 8], ranks: &Ranks, packed: &mut [u8; 64]) {
            for (bytes, x) in packed.as_chunks_mut::<32>().0.iter_mut().zip(x.as_chunks::<4>().0) {
                pairs([ranked([x[0], x[1]], ranks), ranked([x[2], x[3]], ranks)], bytes);
            }
        }
        fn pack_e2m1_halves(x: &[I32; 8], rounding: Rounding, packed: &mut [u8; 64]) {
            for (bytes, x) in packed.as_chunks_mut::<32>().0.iter_mut().zip(x.as_chunks::<4>().0) {
                halves(e2m1(x[0], x[2], rounding), e2m1(x[1], x[3], rounding), bytes);
            }
        }
        fn unpack_pairs(packed: &[u8; 8]) -> I32 { {
            let shifts = _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28);
            let words = packed.as_chunks::<4>().0;
            let lanes = |word: &[u8; 4]| i32::from_le_bytes(*word);
            [_mm256_srlv_epi32(_mm256_set1_epi32(lanes(&words[0])), shifts), _mm256_srlv_epi32(_mm256_set1_epi32(lanes(&words[1])), shifts)]
        } }
        fn unpack_halves(packed: &[u8; 16]) -> [I32; 2] { {
            let bytes = _mm_loadu_si128(packed.as_ptr().cast());
            let low = [_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes))];
            [low, [_mm256_srli_epi32::<4>(low[0]), _mm256_srli_epi32::<4>(low[1])]]
        } }
        fn unpack_eights(packed: &[u8; 8]) -> I32 { {
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(packed.as_ptr().cast()));
            [bytes, _mm256_srli_epi32::<4>(bytes)]
        } }
        fn look_up_halves(table: F32, packed: &[u8], x: &mut [f32]) { {
            let planes = planes(table);
            let bytes = _mm256_setr_epi8(0, 1, 2, 3, 8, 9, 10, 11, 0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15, 4, 5, 6, 7, 12, 13, 14, 15);
            for (packed, x) in packed.as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<32>().0) {
                let copies = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(packed.as_ptr().cast())), bytes);
                let codes = _mm256_and_si256(_mm256_srlv_epi64(copies, _mm256_setr_epi64x(0, 4, 0, 4)), _mm256_set1_epi8(15));
                from_planes(planes, codes, x);
            }
        } }
        fn look_up_halves_u16(table: I32, packed: &[u8], x: &mut [[u8; 2]]) { {
            let [low, high, ..] = planes([_mm256_castsi256_ps(table[0]), _mm256_castsi256_ps(table[1])]);
            let bytes = _mm256_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 8, 9, 10, 11, 12, 13, 14, 15);
            for (packed, x) in packed.as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<32>().0) {
                let copies = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128(packed.as_ptr().cast())), bytes);
                let codes = _mm256_and_si256(_mm256_srlv_epi64(copies, _mm256_setr_epi64x(0, 4, 0, 4)), _mm256_set1_epi8(15));
                from_planes_u16([low, high], codes, x);
            }
        } }
        fn pack_bytes(codes: &[u8; 128], bias: u8, packed: &mut [u8; 64]) -> bool { {
            let bias = _mm256_set1_epi8(bias.cast_signed());
            let mut beyond = _mm256_setzero_si256();
            for (bytes, codes) in packed.as_chunks_mut::<32>().0.iter_mut().zip(codes.as_chunks::<64>().0) {
                let mut pairs = [_mm256_setzero_si256(); 2];
                for (pairs, codes) in pairs.iter_mut().zip(codes.as_chunks::<32>().0) {
                    let v = _mm256_loadu_si256(codes.as_ptr().cast());
                    beyond = _mm256_or_si256(beyond, _mm256_add_epi8(v, bias));
                    *pairs = _mm256_maddubs_epi16(_mm256_and_si256(v, _mm256_set1_epi8(15)), _mm256_set1_epi16(0x1001));
                }
                let ordered = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi16(pairs[0], pairs[1]));
                _mm256_storeu_si256(bytes.as_mut_ptr().cast(), ordered);
            }
            _mm256_testz_si256(beyond, _mm256_set1_epi8(0xf0u8.cast_signed())) == 1
        } }
        fn unpack_bytes(packed: &[u8; 64], table: &[u8; 16], codes: &mut [u8; 128]) { {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            for (bytes, codes) in packed.as_chunks::<16>().0.iter().zip(codes.as_chunks_mut::<32>().0) {
                let wide = _mm256_cvtepu8_epi16(_mm_loadu_si128(bytes.as_ptr().cast()));
                let nibbles = _mm256_and_si256(_mm256_or_si256(wide, _mm256_slli_epi16::<4>(wide)), _mm256_set1_epi8(15));
                _mm256_storeu_si256(codes.as_mut_ptr().cast(), _mm256_shuffle_epi8(table, nibbles));
            }
        } }
        fn stream(from: &[u8], to: &mut [u8]) { {
            check_lines(from, to);   // so that each half line below is a whole one at a multiple of 32
            for (from, to) in from.as_chunks::<32>().0.iter().zip(to.as_chunks_mut::<32>().0) {
                _mm256_stream_si256(to.as_mut_ptr().cast(), _mm256_loadu_si256(from.as_ptr().cast()));
            }
        } }
        fn fence() { _mm_sfence() }
    }
}

/// Lane j of vector i is lane i of vector j.
#[inline]
#[target_feature(enable = "avx2")]
fn eight_by_eight(v: [__m256; 8]) -> [__m256; 8] {
    // In each half of four vectors, then the halves of all eight.
    let (low, high) = (halves_of([v[0], v[1], v[2], v[3]]), halves_of([v[4], v[5], v[6], v[7]]));
    std::array::from_fn(|i| {
        if i < 4 { _mm256_permute2f128_ps::<0x20>(low[i], high[i]) } else { _mm256_permute2f128_ps::<0x31>(low[i - 4], high[i - 4]) }
    })
}

/// Vector i holds, in each half, lane i of that half of the four vectors.
#[inline]
#[target_feature(enable = "avx2")]
fn halves_of(v: [__m256; 4]) -> [__m256; 4] {
    let (a, b) = (_mm256_unpacklo_ps(v[0], v[1]), _mm256_unpackhi_ps(v[0], v[1]));
    let (c, d) = (_mm256_unpacklo_ps(v[2], v[3]), _mm256_unpackhi_ps(v[2], v[3]));
    [
        _mm256_shuffle_ps::<0b01_00_01_00>(a, c),
        _mm256_shuffle_ps::<0b11_10_11_10>(a, c),
        _mm256_shuffle_ps::<0b01_00_01_00>(b, d),
        _mm256_shuffle_ps::<0b11_10_11_10>(b, d),
    ]
}

/// Lane i: the largest lane of vector i.
#[inline]
#[target_feature(enable = "avx2")]
fn eight(v: &[__m256i; 8]) -> __m256i {
    let low = two(two(v[0], v[2]), two(v[1], v[3]));
    let high = two(two(v[4], v[6]), two(v[5], v[7]));
    _mm256_max_epi32(_mm256_permute2x128_si256::<0x20>(low, high), _mm256_permute2x128_si256::<0x31>(low, high))
}

/// In each half: [a0, b0, a1, b1] against [a2, b2, a3, b3].
#[inline]
#[target_feature(enable = "avx2")]
fn two(a: __m256i, b: __m256i) -> __m256i {
    _mm256_max_epi32(_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b))
}

/// Every run of `run` lanes gets its largest, as far as one register reaches.
#[inline]
#[target_feature(enable = "avx2")]
fn run_of(mut v: __m256i, run: usize) -> __m256i {
    if run >= 2 {
        v = _mm256_max_epi32(v, _mm256_shuffle_epi32::<0b10_11_00_01>(v));
    }
    if run >= 4 {
        v = _mm256_max_epi32(v, _mm256_shuffle_epi32::<0b01_00_11_10>(v));
    }
    if run >= 8 {
        v = _mm256_max_epi32(v, _mm256_permute2x128_si256::<0x01>(v, v));
    }
    v
}

/// The codes of 32 numbers between steps as bytes, in the order of [`clamped`].
#[inline]
#[target_feature(enable = "avx2")]
fn ranked(x: [I32; 2], ranks: &Ranks) -> __m256i {
    let Some(cells) = &ranks.cells else { return ranked_by_halving(x, ranks) };
    let (a, b) = (units_of(x[0]), units_of(x[1]));
    let nibbles = _mm256_set1_epi8(15);
    // Eight bits for -1..1, and 1 becomes what is below it.
    let bytes = _mm256_packs_epi16(_mm256_srai_epi16::<7>(a), _mm256_srai_epi16::<7>(b));
    let index = _mm256_and_si256(_mm256_srli_epi16::<3>(bytes), nibbles);
    let entries = |table: &[u8; 32]| {
        let [negative, positive] = both_halves(table);
        _mm256_blendv_epi8(_mm256_shuffle_epi8(positive, index), _mm256_shuffle_epi8(negative, index), bytes)
    };
    let (low, high) = (entries(&cells.low), entries(&cells.high));
    let steps = [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)];
    let equal = _mm256_or_si256(_mm256_cmpeq_epi16(a, steps[0]), _mm256_cmpeq_epi16(b, steps[1]));
    if _mm256_testz_si256(equal, equal) == 0 {
        return ranked_by_halving(x, ranks);
    }
    // A mask is -1.
    let above = _mm256_packs_epi16(_mm256_cmpgt_epi16(a, steps[0]), _mm256_cmpgt_epi16(b, steps[1]));
    in_order(_mm256_sub_epi8(entries(&cells.below), above), ranks)
}

/// The units of 16 numbers: four of the one register, four of the other in each half.
#[inline]
#[target_feature(enable = "avx2")]
fn units_of(x: I32) -> __m256i {
    // Above the units is the half of 768 that is left.
    let units = |x| {
        let sum = _mm256_add_ps(_mm256_castsi256_ps(x), _mm256_set1_ps(ranks::UNITS));
        _mm256_sub_epi32(_mm256_castps_si256(sum), _mm256_castps_si256(_mm256_set1_ps(ranks::UNITS)))
    };
    _mm256_packs_epi32(units(x[0]), units(x[1]))
}

/// The same by way of ranks.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "loads")]
fn ranked_by_halving(x: [I32; 2], ranks: &Ranks) -> __m256i {
    // SAFETY: eight floats are read from each half of sixteen.
    let steps = unsafe { [_mm256_loadu_ps(ranks.steps.as_ptr()), _mm256_loadu_ps(ranks.steps[8..].as_ptr())] };
    let of = |[a, b]: I32| by_halving([_mm256_castsi256_ps(a), _mm256_castsi256_ps(b)], steps);
    in_order(clamped(of(x[0]), of(x[1])), ranks)
}

/// The codes of ranks.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "a load")]
fn in_order(found: __m256i, ranks: &Ranks) -> __m256i {
    // SAFETY: 16 bytes are read, of an array of 16.
    let order = unsafe { _mm_loadu_si128(ranks.order.as_ptr().cast()) };
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(order), found)
}

/// Each half of a table, twice.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "loads")]
fn both_halves(table: &[u8; 32]) -> [__m256i; 2] {
    // SAFETY: 16 bytes are read, from the beginning and from the middle of an array of 32.
    let halves = unsafe { [_mm_loadu_si128(table.as_ptr().cast()), _mm_loadu_si128(table[16..].as_ptr().cast())] };
    [_mm256_broadcastsi128_si256(halves[0]), _mm256_broadcastsi128_si256(halves[1])]
}

/// The rank by halving what is left: minus the number of steps found below tells where the next one is looked up.
#[inline]
#[target_feature(enable = "avx2")]
fn by_halving([a, b]: F32, [low, high]: F32) -> I32 {
    let pick = |v, order: [i32; 8]| {
        let [i0, i1, i2, i3, i4, i5, i6, i7] = order;
        _mm256_permutevar8x32_ps(v, _mm256_setr_epi32(i0, i1, i2, i3, i4, i5, i6, i7))
    };
    // The step in the middle, those in the middle of either half, of each quarter, of each eighth.
    let middle = pick(low, [7; 8]);
    let halves = [pick(low, [3; 8]), pick(high, [3; 8])];
    let quarters = _mm256_blend_ps::<0b0110_0110>(pick(low, [1, 1, 1, 5, 1, 1, 1, 5]), pick(high, [1, 5, 1, 1, 1, 5, 1, 1]));
    let eighths = _mm256_blend_ps::<0b0001_1110>(pick(low, [0, 0, 0, 0, 0, 6, 4, 2]), pick(high, [0, 6, 4, 2, 0, 0, 0, 0]));
    let rank = |v| {
        let below = |step| _mm256_castps_si256(_mm256_cmp_ps::<_CMP_LT_OQ>(step, v));
        let twice_and = |found, below| _mm256_add_epi32(_mm256_add_epi32(found, found), below);
        let first = below(middle);
        let second = below(_mm256_blendv_ps(halves[0], halves[1], _mm256_castsi256_ps(first)));
        let found = twice_and(first, second);
        let found = twice_and(found, below(_mm256_permutevar_ps(quarters, found)));
        let found = twice_and(found, below(_mm256_permutevar8x32_ps(eighths, found)));
        _mm256_sub_epi32(_mm256_setzero_si256(), found)
    };
    [rank(a), rank(b)]
}

/// Eight entries of a table of 16: the permutation reads the low three bits of a code, the blend its bit 3.
#[inline]
#[target_feature(enable = "avx2")]
fn entries(table: F32, codes: __m256i) -> __m256 {
    let (low, high) = (_mm256_permutevar8x32_ps(table[0], codes), _mm256_permutevar8x32_ps(table[1], codes));
    _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(codes)))
}

/// A float of the table for each nibble of 16 bytes, the low one first.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "loads")]
fn pairs_of(table: F32, packed: &[[u8; 16]], x: &mut [[f32; 32]]) {
    let planes = planes(table);
    // Two copies of each byte, in the order that `from_planes` asks for; the second one gives its high nibble.
    let bytes =
        _mm256_setr_epi8(0, 0, 1, 1, 4, 4, 5, 5, 8, 8, 9, 9, 12, 12, 13, 13, 2, 2, 3, 3, 6, 6, 7, 7, 10, 10, 11, 11, 14, 14, 15, 15);
    for (packed, x) in packed.iter().zip(x) {
        // SAFETY: 16 bytes are read, of an array of 16.
        let packed = unsafe { _mm_loadu_si128(packed.as_ptr().cast()) };
        let copies = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(packed), bytes);
        let low = _mm256_and_si256(copies, _mm256_set1_epi16(0x000f));
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(copies), _mm256_set1_epi16(0x0f00));
        from_planes(planes, _mm256_or_si256(low, high), x);
    }
}

/// The low 16 bits of an entry of the table for each nibble of 16 bytes, the low one first.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "loads")]
fn pairs_of_u16(table: I32, packed: &[[u8; 16]], x: &mut [[[u8; 2]; 32]]) {
    let [low, high, ..] = planes([_mm256_castsi256_ps(table[0]), _mm256_castsi256_ps(table[1])]);
    // Two copies of each byte, in the order that `from_planes_u16` asks for; the second one gives its high nibble.
    let bytes =
        _mm256_setr_epi8(0, 0, 1, 1, 2, 2, 3, 3, 8, 8, 9, 9, 10, 10, 11, 11, 4, 4, 5, 5, 6, 6, 7, 7, 12, 12, 13, 13, 14, 14, 15, 15);
    for (packed, x) in packed.iter().zip(x) {
        // SAFETY: 16 bytes are read, of an array of 16.
        let packed = unsafe { _mm_loadu_si128(packed.as_ptr().cast()) };
        let copies = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(packed), bytes);
        let low_nibbles = _mm256_and_si256(copies, _mm256_set1_epi16(0x000f));
        let high_nibbles = _mm256_and_si256(_mm256_srli_epi16::<4>(copies), _mm256_set1_epi16(0x0f00));
        from_planes_u16([low, high], _mm256_or_si256(low_nibbles, high_nibbles), x);
    }
}

/// The words of 32 codes: those of 0 to 7 and 16 to 23 are in the lower half.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "stores")]
fn from_planes_u16([low, high]: [__m256i; 2], codes: __m256i, x: &mut [[u8; 2]; 32]) {
    let (low, high) = (_mm256_shuffle_epi8(low, codes), _mm256_shuffle_epi8(high, codes));
    let words = [_mm256_unpacklo_epi8(low, high), _mm256_unpackhi_epi8(low, high)];
    for (words, x) in words.into_iter().zip(x.as_chunks_mut::<16>().0) {
        // SAFETY: 16 pairs of bytes are 32 bytes.
        unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), words) };
    }
}

/// Byte k of each of 16 floats, the same in both halves.
#[inline]
#[target_feature(enable = "avx2")]
fn planes(table: F32) -> [__m256i; 4] {
    let bytes =
        _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let [a, b] = table.map(|v| _mm256_shuffle_epi8(_mm256_castps_si256(v), bytes));
    // Each half has bytes 0 of four floats, of four others, bytes 1 of both; then bytes 2 and bytes 3.
    let (low, high) = (_mm256_unpacklo_epi32(a, b), _mm256_unpackhi_epi32(a, b));
    let (first, second) = (_mm256_setr_epi32(0, 4, 1, 5, 0, 4, 1, 5), _mm256_setr_epi32(2, 6, 3, 7, 2, 6, 3, 7));
    let plane = |v, order| _mm256_permutevar8x32_epi32(v, order);
    [plane(low, first), plane(low, second), plane(high, first), plane(high, second)]
}

/// The floats of 32 codes: those of 0 to 3, 8 to 11, 16 to 19 and 24 to 27 are in the lower half.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "stores")]
fn from_planes(planes: [__m256i; 4], codes: __m256i, x: &mut [f32; 32]) {
    let [b0, b1, b2, b3] = planes.map(|plane| _mm256_shuffle_epi8(plane, codes));
    let (low, high) = (_mm256_unpacklo_epi8(b0, b1), _mm256_unpacklo_epi8(b2, b3));
    let (low_end, high_end) = (_mm256_unpackhi_epi8(b0, b1), _mm256_unpackhi_epi8(b2, b3));
    let floats = [
        _mm256_unpacklo_epi16(low, high),
        _mm256_unpackhi_epi16(low, high),
        _mm256_unpacklo_epi16(low_end, high_end),
        _mm256_unpackhi_epi16(low_end, high_end),
    ];
    for (floats, x) in floats.into_iter().zip(x.as_chunks_mut::<8>().0) {
        // SAFETY: eight floats are 32 bytes.
        unsafe { _mm256_storeu_si256(x.as_mut_ptr().cast(), floats) };
    }
}

/// Codes as bytes to nibbles, the even one low; each half holds four of each register that they are from.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "a store")]
fn pairs(codes: [__m256i; 2], packed: &mut [u8; 32]) {
    let nibbles = _mm256_set1_epi16(0x1001); // low + 16 * high
    // Each half holds, for its four lanes of every register, 16 bits; the halves take turns.
    let both = _mm256_packus_epi16(_mm256_maddubs_epi16(codes[0], nibbles), _mm256_maddubs_epi16(codes[1], nibbles));
    let (low, high) = (_mm256_castsi256_si128(both), _mm256_extracti128_si256::<1>(both));
    let ordered = _mm256_set_m128i(_mm_unpackhi_epi16(low, high), _mm_unpacklo_epi16(low, high));
    // SAFETY: 32 bytes are written, of an array of 32.
    unsafe { _mm256_storeu_si256(packed.as_mut_ptr().cast(), ordered) };
}

/// Codes as bytes to nibbles, some low and some high.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(unsafe_code, reason = "a store")]
fn halves(low: __m256i, high: __m256i, packed: &mut [u8; 32]) {
    let both = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
    let ordered = _mm256_permutevar8x32_epi32(both, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
    // SAFETY: 32 bytes are written, of an array of 32.
    unsafe { _mm256_storeu_si256(packed.as_mut_ptr().cast(), ordered) };
}

/// The E2M1 codes of 32 numbers as bytes, in the order of [`clamped`]: cells of 32 bits, of 16, of 8, and from these the codes.
#[inline]
#[target_feature(enable = "avx2")]
fn e2m1(a: I32, b: I32, rounding: Rounding) -> __m256i {
    let words = [
        _mm256_packs_epi32(cells_of(a[0], rounding), cells_of(a[1], rounding)),
        _mm256_packs_epi32(cells_of(b[0], rounding), cells_of(b[1], rounding)),
    ];
    let sizes = [_mm256_and_si256(words[0], _mm256_set1_epi16(cells::SIZE)), _mm256_and_si256(words[1], _mm256_set1_epi16(cells::SIZE))];
    let first = _mm256_set1_epi16(cells::last_of_zero(rounding) + cells::FIRST);
    let bytes = _mm256_packs_epi16(_mm256_sub_epi16(sizes[0], first), _mm256_sub_epi16(sizes[1], first));
    let [c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15] = cells::CODES;
    let table = _mm256_setr_epi8(
        c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13, c14, c15, c0, c1, c2, c3, c4, c5, c6, c7, c8, c9, c10, c11, c12, c13,
        c14, c15,
    );
    let index = _mm256_min_epi8(_mm256_max_epi8(bytes, _mm256_setzero_si256()), _mm256_set1_epi8(15));
    let code = _mm256_shuffle_epi8(table, index);
    let not_zero = _mm256_cmpgt_epi8(bytes, _mm256_set1_epi8(-cells::FIRST as i8));
    // The cell of -0.0 has size 0, and negated it has no sign.
    let signed = match rounding {
        Rounding::HalfToEven => _mm256_packs_epi16(_mm256_sign_epi16(sizes[0], words[0]), _mm256_sign_epi16(sizes[1], words[1])),
        Rounding::TowardZero | Rounding::WithSign => _mm256_packs_epi16(words[0], words[1]),
    };
    let sign = _mm256_and_si256(_mm256_srli_epi16::<4>(signed), _mm256_set1_epi8(8));
    match rounding {
        Rounding::TowardZero => _mm256_and_si256(_mm256_or_si256(code, sign), not_zero),
        Rounding::HalfToEven | Rounding::WithSign => _mm256_or_si256(_mm256_and_si256(code, not_zero), sign),
    }
}

/// The cells of eight numbers, with their signs.
#[inline]
#[target_feature(enable = "avx2")]
fn cells_of(bits: __m256i, rounding: Rounding) -> __m256i {
    let up = match rounding {
        Rounding::TowardZero => _mm256_add_epi32(bits, _mm256_set1_epi32(cells::UP)),
        Rounding::HalfToEven | Rounding::WithSign => {
            let nudged = _mm256_castps_si256(_mm256_mul_ps(_mm256_castsi256_ps(bits), _mm256_set1_ps(cells::NUDGE)));
            _mm256_add_epi32(nudged, _mm256_set1_epi32(cells::UP - 1))
        }
    };
    _mm256_srai_epi32::<{ cells::SHIFT as i32 }>(up)
}

/// 32 codes as bytes, clamped to 0..=15; each half holds four of a[0], of a[1], of b[0], of b[1].
#[inline]
#[target_feature(enable = "avx2")]
fn clamped(a: I32, b: I32) -> __m256i {
    let bytes = _mm256_packus_epi16(_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(b[0], b[1]));
    _mm256_min_epu8(bytes, _mm256_set1_epi8(15))
}
