//! Sixteen lanes of f32 or i32, or eight of f64, on every instruction set: the primitives that the kernels are written over.
//!
//! An instruction set is a token that proves that the CPU has it, [`Simd::run`], and the primitives. All of them give the
//! same bits on every level: one rounding an operation, nothing fused, nothing reassociated.
//! This folder is the home of `unsafe`: everything above it calls safe functions.

/// Primitives of an instruction set as one expression each; the argument for their safety is the same for all.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
macro_rules! primitives {
    ($(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $output:ty)? { $body:expr })*) => {$(
        #[inline(always)]
        #[allow(unsafe_code, reason = "intrinsics")]
        fn $name(self, $($argument: $kind),*) $(-> $output)? {
            // SAFETY: `self` exists only after its `new` found the features that these intrinsics need, and the pointers among
            // their operands come from references to arrays of exactly the bytes that are read or written.
            unsafe { $body }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub mod e2m1;
pub mod ieee;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub mod ranks;
pub(crate) mod scalar;

use e2m1::Rounding;
use ranks::Ranks;

/// Lanes of a vector.
pub const LANES: usize = 16;

/// Work that is written once and runs at any level: its operands are its fields.
pub trait Kernel {
    /// What the work returns.
    type Output;

    /// The work. Mark it and everything it calls `#[inline(always)]`, so that all of it is compiled with the instructions of `S`.
    fn run<S: Simd>(self, simd: S) -> Self::Output;

    /// The work at the level of every CPU. A method of the kernel, so that the compiler puts it beside the kernel: all work of that level
    /// in the one place that [`Simd::run`] has there takes a single thread minutes.
    fn run_scalar(self) -> Self::Output
    where
        Self: Sized,
    {
        self.run(scalar::Scalar)
    }
}

/// An instruction set.
///
/// Masks are vectors of i32 whose lanes are all ones or all zeros.
pub trait Simd: Copy + Send + Sync + 'static {
    /// 16 lanes of f32.
    type F32: Copy;
    /// 16 lanes of i32.
    type I32: Copy;
    /// 8 lanes of f64.
    type F64: Copy;
    /// What is left of a vector where only its largest lane counts: as much as one register holds.
    type Folded: Copy;

    /// Whether 16 floats are one register, so that looking one of them up costs less than computing it.
    const HAS_TABLES: bool = false;

    /// Run a kernel with the instructions of this level.
    fn run<K: Kernel>(self, kernel: K) -> K::Output;

    /// All lanes `x`.
    fn splat(self, x: f32) -> Self::F32;
    /// All lanes `x`.
    fn splat_i32(self, x: i32) -> Self::I32;
    /// 16 floats from memory.
    fn load(self, x: &[f32; 16]) -> Self::F32;
    /// 16 integers from memory.
    fn load_i32(self, x: &[i32; 16]) -> Self::I32;
    /// 16 floats to memory.
    fn store(self, v: Self::F32, x: &mut [f32; 16]);
    /// 16 integers to memory.
    fn store_i32(self, v: Self::I32, x: &mut [i32; 16]);
    /// 16 binary16 numbers from memory, widened exactly.
    fn load_f16(self, x: &[u16; 16]) -> Self::F32;
    /// Rounded to binary16, half to even, overflow to infinity.
    fn store_f16(self, v: Self::F32, x: &mut [u16; 16]);
    /// 16 unsigned 16-bit integers from memory.
    fn load_u16(self, x: &[u16; 16]) -> Self::I32;
    /// The low 16 bits of each lane.
    fn store_u16(self, v: Self::I32, x: &mut [u16; 16]);
    /// The low 8 bits of each lane.
    #[inline(always)]
    fn store_u8(self, v: Self::I32, x: &mut [u8; 16]) {
        let mut lanes = [0; LANES];
        self.store_i32(v, &mut lanes);
        *x = lanes.map(|lane| lane as u8);
    }
    /// Copy whole cache lines past the caches where the level can: for output that is larger than they are. Whoever streams
    /// calls [`Simd::fence`] before it says that it is done.
    ///
    /// # Panics
    ///
    /// Unless both have the same length, a multiple of 64, and `to` begins at a multiple of 64.
    fn stream(self, from: &[u8], to: &mut [u8]);
    /// Ask for the cache line `ahead` bytes after `x`, where the level can. It need not be memory of ours.
    #[inline(always)]
    fn prefetch<T>(self, _x: &T, _ahead: usize) {}
    /// The same, into the second cache.
    #[inline(always)]
    fn prefetch_second<T>(self, _x: &T, _ahead: usize) {}
    /// What was streamed before is visible to other threads before anything that follows.
    fn fence(self);

    /// a + b
    fn add(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a - b
    fn sub(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a * b
    fn mul(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// a / b, the correctly rounded quotient
    fn div(self, a: Self::F32, b: Self::F32) -> Self::F32;
    /// The correctly rounded square root
    fn sqrt(self, v: Self::F32) -> Self::F32;
    /// a < b, false where one is NaN
    fn less(self, a: Self::F32, b: Self::F32) -> Self::I32;
    /// a == b, so that -0.0 equals 0.0 and NaN nothing
    fn equal(self, a: Self::F32, b: Self::F32) -> Self::I32;
    /// a where the mask is set, else b
    fn select(self, mask: Self::I32, a: Self::F32, b: Self::F32) -> Self::F32;
    /// Bit i is lane i of the mask.
    fn which(self, mask: Self::I32) -> u32;
    /// Whether any lane of the mask is set.
    fn any(self, mask: Self::I32) -> bool;

    /// All lanes `x`.
    fn splat_f64(self, x: f64) -> Self::F64;
    /// 8 numbers from memory.
    fn load_f64(self, x: &[f64; 8]) -> Self::F64;
    /// 8 numbers to memory.
    fn store_f64(self, v: Self::F64, x: &mut [f64; 8]);
    /// 8 f32 from memory, exact.
    fn load_f32_as_f64(self, x: &[f32; 8]) -> Self::F64;
    /// a + b
    fn add_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// a - b
    fn sub_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// a * b
    fn mul_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;
    /// |v|
    fn abs_f64(self, v: Self::F64) -> Self::F64;
    /// The larger; where one is NaN, any.
    fn max_f64(self, a: Self::F64, b: Self::F64) -> Self::F64;

    /// a + b, wrapping
    fn add_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// a & b
    fn and(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// a | b
    fn or(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// a ^ b
    fn xor(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The larger of two signed integers.
    fn max_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The smaller of two signed integers.
    fn min_i32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// The larger of two unsigned integers.
    fn max_u32(self, a: Self::I32, b: Self::I32) -> Self::I32;
    /// v << n
    fn shift_left(self, v: Self::I32, n: u32) -> Self::I32;
    /// v >> n, the sign shifted in
    fn shift_right(self, v: Self::I32, n: u32) -> Self::I32;
    /// The bits of floats.
    fn bits(self, v: Self::F32) -> Self::I32;
    /// Floats from their bits.
    fn as_f32(self, v: Self::I32) -> Self::F32;

    /// The nearest integer, half to even. Any value where `v` is beyond i32 or NaN.
    fn round(self, v: Self::F32) -> Self::I32;
    /// The integer part. Any value below 1 where `v` is NaN, any at all where it is beyond i32.
    fn truncate(self, v: Self::F32) -> Self::I32;
    /// The nearest float to an integer.
    fn to_f32(self, v: Self::I32) -> Self::F32;

    /// The vector folded on itself: the largest signed integer stays.
    fn fold_max(self, v: Self::I32) -> Self::Folded;
    /// Lane i is the largest lane of vector i.
    fn max_of_each(self, v: &[Self::Folded; 16]) -> Self::I32;
    /// Every run of `run` lanes (1, 2, 4, 8 or 16) gets the largest of the run.
    fn max_of_runs(self, v: Self::I32, run: usize) -> Self::I32;
    /// Lane j of vector i is lane i of vector j: the bits, whatever they mean.
    fn transpose(self, v: &[Self::F32; 16]) -> [Self::F32; 16];
    /// Lane i is `table[codes[i] & 15]`.
    fn look_up(self, table: Self::F32, codes: Self::I32) -> Self::F32;
    /// How many of the first 15 lanes of `steps`, which ascend, are below each lane of `v`.
    #[inline(always)]
    fn rank(self, v: Self::F32, steps: Self::F32) -> Self::I32 {
        let mut all = [0.0; 16];
        self.store(steps, &mut all);
        // A mask is -1: the complement of one more is one less.
        let mut complement = self.splat_i32(-1);
        for &step in &all[..15] {
            complement = self.add_i32(complement, self.less(self.splat(step), v));
        }
        self.xor(complement, self.splat_i32(-1))
    }

    /// 128 codes in order, clamped to 0..=15, two a byte, the even one in the low nibble.
    fn pack_pairs(self, codes: &[Self::I32; 8], packed: &mut [u8; 64]);
    /// Four blocks of 32 codes, clamped to 0..=15: byte j of a block holds code j low and code j + 16 high.
    fn pack_halves(self, codes: &[Self::I32; 8], packed: &mut [u8; 64]);
    /// The E2M1 codes of 128 numbers, whose bits these are, packed as by [`Simd::pack_pairs`]. Any code where one is NaN.
    #[inline(always)]
    fn pack_e2m1_pairs(self, numbers: &[Self::I32; 8], rounding: Rounding, packed: &mut [u8; 64]) {
        let mut codes = [self.splat_i32(0); 8];
        for (codes, &numbers) in codes.iter_mut().zip(numbers) {
            *codes = e2m1::codes(self, self.as_f32(numbers), rounding);
        }
        self.pack_pairs(&codes, packed);
    }
    /// The E2M1 codes of 128 numbers, whose bits these are, packed as by [`Simd::pack_halves`]. Any code where one is NaN.
    #[inline(always)]
    fn pack_e2m1_halves(self, numbers: &[Self::I32; 8], rounding: Rounding, packed: &mut [u8; 64]) {
        let mut codes = [self.splat_i32(0); 8];
        for (codes, &numbers) in codes.iter_mut().zip(numbers) {
            *codes = e2m1::codes(self, self.as_f32(numbers), rounding);
        }
        self.pack_halves(&codes, packed);
    }
    /// The codes of 128 numbers between steps, whose bits these are, packed as by [`Simd::pack_pairs`]. Any code where one is NaN or
    /// beyond -2 and 2.
    #[inline(always)]
    fn pack_ranked_pairs(self, numbers: &[Self::I32; 8], ranks: &Ranks, packed: &mut [u8; 64]) {
        let mut codes = [self.splat_i32(0); 8];
        for (codes, &numbers) in codes.iter_mut().zip(numbers) {
            *codes = ranks.codes(self, self.as_f32(numbers));
        }
        self.pack_pairs(&codes, packed);
    }
    /// 16 codes from 8 bytes, the low nibble first. Only the low four bits of a lane count.
    fn unpack_pairs(self, packed: &[u8; 8]) -> Self::I32;
    /// 32 codes from 16 bytes: the low nibbles, then the high ones. Only the low four bits of a lane count.
    fn unpack_halves(self, packed: &[u8; 16]) -> [Self::I32; 2];
    /// 16 codes from 8 bytes: the low nibbles, then the high ones. Only the low four bits of a lane count.
    #[inline(always)]
    fn unpack_eights(self, packed: &[u8; 8]) -> Self::I32 {
        let bytes = u128::from(u64::from_le_bytes(*packed));
        let [codes, _] = self.unpack_halves(&(bytes | bytes >> 4 << 64).to_le_bytes());
        codes
    }
    /// `table[nibble]` for every nibble, the low one of a byte first: 8 bytes and 16 floats at a time.
    #[inline(always)]
    fn look_up_pairs(self, table: Self::F32, packed: &[u8], x: &mut [f32]) {
        for (packed, x) in packed.as_chunks::<8>().0.iter().zip(x.as_chunks_mut::<LANES>().0) {
            self.store(self.look_up(table, self.unpack_pairs(packed)), x);
        }
    }
    /// `table[nibble]` for every nibble of blocks of 16 bytes: the low ones of a block, then its high ones.
    #[inline(always)]
    fn look_up_halves(self, table: Self::F32, packed: &[u8], x: &mut [f32]) {
        for (packed, x) in packed.as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<{ 2 * LANES }>().0) {
            for (codes, x) in self.unpack_halves(packed).into_iter().zip(x.as_chunks_mut::<LANES>().0) {
                self.store(self.look_up(table, codes), x);
            }
        }
    }
    /// The low 16 bits of `table[codes[i] & 15]`, little-endian.
    #[inline(always)]
    fn look_up_u16(self, table: Self::I32, codes: Self::I32, x: &mut [[u8; 2]; 16]) {
        let mut words = [0; 16];
        self.store_u16(self.bits(self.look_up(self.as_f32(table), codes)), &mut words);
        *x = words.map(u16::to_le_bytes);
    }
    /// The same of every nibble, in the order of [`Simd::look_up_pairs`].
    #[inline(always)]
    fn look_up_pairs_u16(self, table: Self::I32, packed: &[u8], x: &mut [[u8; 2]]) {
        for (packed, x) in packed.as_chunks::<8>().0.iter().zip(x.as_chunks_mut::<LANES>().0) {
            self.look_up_u16(table, self.unpack_pairs(packed), x);
        }
    }
    /// The same of every nibble, in the order of [`Simd::look_up_halves`].
    #[inline(always)]
    fn look_up_halves_u16(self, table: Self::I32, packed: &[u8], x: &mut [[u8; 2]]) {
        for (packed, x) in packed.as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<{ 2 * LANES }>().0) {
            for (codes, x) in self.unpack_halves(packed).into_iter().zip(x.as_chunks_mut::<LANES>().0) {
                self.look_up_u16(table, codes, x);
            }
        }
    }

    /// 128 bytes to 64: the low nibbles of pairs, the even one low. Returns whether `code + bias` was in 0..=15 for each of them.
    fn pack_bytes(self, codes: &[u8; 128], bias: u8, packed: &mut [u8; 64]) -> bool;
    /// 64 bytes to 128 codes, low nibble first, each looked up in `table`.
    fn unpack_bytes(self, packed: &[u8; 64], table: &[u8; 16], codes: &mut [u8; 128]);
}
