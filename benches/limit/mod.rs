//! The machine's limit: plain loops with the memory traffic of a job and next to no arithmetic.
//!
//! A loop reads `read` cache lines and writes `write` of them a step: 8 + 1 is what encoding f32 to 4 bits must move, 1 + 8
//! what decoding must, 2 + 1 and 1 + 2 packing and unpacking. Stores are normal or streamed past the caches; which is faster
//! depends on the machine, so callers time both and take the better one.
//!
//! The Rust benches have this file as a module. The Python bench compiles it alone, without a crate:
//!
//! ```text
//! rustc --edition 2024 --crate-type cdylib --crate-name limit -O -C target-cpu=native benches/limit/mod.rs
//! ```
#![allow(unsafe_code, reason = "streaming stores, memory from the system, and a door for Python")]

use std::hint::black_box;
use std::sync::Mutex;
use std::time::Instant;

/// A cache line, at an address that streaming stores take.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub(crate) struct Line([f32; 16]);

/// Lines that one step reads and writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Lines read.
    pub(crate) read: usize,
    /// Lines written.
    pub(crate) write: usize,
}

/// How lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Store {
    /// Through the caches.
    Normal,
    /// Past the caches, where the CPU can.
    Streamed,
}

/// Bytes of either side that a thread takes at once.
const TASK: usize = 1 << 20;

/// Move the lines of `from` and `to` at this traffic, each once. Lines that do not make a whole step are left.
///
/// # Panics
///
/// Where there is no loop of this traffic.
pub(crate) fn run(traffic: Traffic, store: Store, threads: usize, from: &[Line], to: &mut [Line]) {
    let work = loop_of(traffic, store).unwrap_or_else(|| panic!("no loop of {traffic:?}"));
    let Traffic { read, write } = traffic;
    // SAFETY: `loop_of` returns a loop only for instructions that this CPU has.
    let work = |from: &[Line], to: &mut [Line]| unsafe { work(from, to) };
    if threads <= 1 {
        return work(from, to);
    }
    let steps = TASK / size_of::<Line>() / read.max(write);
    let rest = Mutex::new((from, to));
    let next = || {
        let mut rest = rest.lock().ok()?;
        let (from, to) = std::mem::take(&mut *rest);
        if from.len() < read || to.len() < write {
            return None;
        }
        let (task_from, from) = from.split_at(from.len().min(steps * read));
        let to_len = to.len().min(steps * write);
        let (task_to, to) = to.split_at_mut(to_len);
        *rest = (from, to);
        Some((task_from, task_to))
    };
    let pull = || {
        while let Some((from, to)) = next() {
            work(from, to);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(pull);
        }
        pull();
    });
}

/// A loop; the caller vouches for the instructions.
type Loop = unsafe fn(&[Line], &mut [Line]);

/// The loop of this traffic with the widest registers of this CPU.
fn loop_of(traffic: Traffic, store: Store) -> Option<Loop> {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx512f") {
        return pick::<x86::Avx512>(traffic, store);
    } else if is_x86_feature_detected!("avx") {
        return pick::<x86::Avx>(traffic, store);
    }
    pick::<Plain>(traffic, store)
}

fn pick<R: Registers>(traffic: Traffic, store: Store) -> Option<Loop> {
    macro_rules! loops {
        ($($read:literal + $write:literal),*) => {
            match (traffic.read, traffic.write, store) {
                $(($read, $write, Store::Normal) => Some(R::run::<$read, $write, false> as Loop),
                ($read, $write, Store::Streamed) => Some(R::run::<$read, $write, true> as Loop),)*
                _ => None,
            }
        };
    }
    loops!(8 + 0, 8 + 1, 4 + 1, 2 + 1, 1 + 1, 1 + 2, 1 + 4, 1 + 8, 0 + 8)
}

/// The registers that hold a line.
trait Registers {
    type Value: Copy;

    /// [`mix`] with the instructions of these registers.
    ///
    /// # Safety
    ///
    /// The CPU has them.
    unsafe fn run<const READ: usize, const WRITE: usize, const STREAMED: bool>(from: &[Line], to: &mut [Line]);

    fn load(line: &Line) -> Self::Value;
    fn add(a: Self::Value, b: Self::Value) -> Self::Value;
    fn store(value: Self::Value, line: &mut Line);
    fn stream(value: Self::Value, line: &mut Line);
}

/// One sum for each line of a step, so that no addition waits for another one of its step.
#[inline(always)]
fn mix<R: Registers, const READ: usize, const WRITE: usize, const STREAMED: bool>(from: &[Line], to: &mut [Line]) {
    let steps = (from.len().checked_div(READ).unwrap_or(usize::MAX)).min(to.len().checked_div(WRITE).unwrap_or(usize::MAX));
    let mut value = R::load(black_box(&Line([1.0; 16])));
    let mut sums = [value; READ];
    for step in 0..steps {
        for (sum, line) in sums.iter_mut().zip(&from[step * READ..][..READ]) {
            *sum = R::add(*sum, R::load(line));
            value = *sum;
        }
        for line in &mut to[step * WRITE..][..WRITE] {
            if STREAMED { R::stream(value, line) } else { R::store(value, line) }
        }
    }
    let mut last = Line([0.0; 16]);
    for sum in sums {
        R::store(sum, &mut last);
        black_box(&last);
    }
    #[cfg(target_arch = "x86_64")]
    if STREAMED {
        // SAFETY: every x86-64 CPU has SSE.
        unsafe { std::arch::x86_64::_mm_sfence() };
    }
}

/// Whatever the compiler makes of arrays; its streaming stores are normal ones.
struct Plain;

impl Registers for Plain {
    type Value = [f32; 16];

    unsafe fn run<const READ: usize, const WRITE: usize, const STREAMED: bool>(from: &[Line], to: &mut [Line]) {
        mix::<Self, READ, WRITE, STREAMED>(from, to);
    }

    #[inline(always)]
    fn load(line: &Line) -> [f32; 16] {
        line.0
    }

    #[inline(always)]
    fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn store(value: [f32; 16], line: &mut Line) {
        line.0 = value;
    }

    #[inline(always)]
    fn stream(value: [f32; 16], line: &mut Line) {
        line.0 = value;
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Line, Registers, mix};
    use std::arch::x86_64::*;

    /// The four operations on one line; the argument for their safety is the same for all.
    macro_rules! operations {
        ($value:ty, $(fn $name:ident($($argument:ident: $kind:ty),*) $(-> $output:ty)? { $body:expr })*) => {
            type Value = $value;
            $(#[inline(always)]
            fn $name($($argument: $kind),*) $(-> $output)? {
                // SAFETY: these are inlined into `run` alone, whose caller vouches for the instructions; a `Line` is 64
                // bytes at a multiple of 64.
                unsafe { $body }
            })*
        };
    }

    pub(super) struct Avx512;

    impl Registers for Avx512 {
        #[target_feature(enable = "avx512f")]
        unsafe fn run<const READ: usize, const WRITE: usize, const STREAMED: bool>(from: &[Line], to: &mut [Line]) {
            mix::<Self, READ, WRITE, STREAMED>(from, to);
        }

        operations! { __m512,
            fn load(line: &Line) -> __m512 { _mm512_load_ps(line.0.as_ptr()) }
            fn add(a: __m512, b: __m512) -> __m512 { _mm512_add_ps(a, b) }
            fn store(value: __m512, line: &mut Line) { _mm512_store_ps(line.0.as_mut_ptr(), value) }
            fn stream(value: __m512, line: &mut Line) { _mm512_stream_ps(line.0.as_mut_ptr(), value) }
        }
    }

    pub(super) struct Avx;

    impl Registers for Avx {
        #[target_feature(enable = "avx")]
        unsafe fn run<const READ: usize, const WRITE: usize, const STREAMED: bool>(from: &[Line], to: &mut [Line]) {
            mix::<Self, READ, WRITE, STREAMED>(from, to);
        }

        operations! { [__m256; 2],
            fn load(line: &Line) -> [__m256; 2] { [_mm256_load_ps(line.0[..8].as_ptr()), _mm256_load_ps(line.0[8..].as_ptr())] }
            fn add(a: [__m256; 2], b: [__m256; 2]) -> [__m256; 2] { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
            fn store(value: [__m256; 2], line: &mut Line) { {
                _mm256_store_ps(line.0[..8].as_mut_ptr(), value[0]);
                _mm256_store_ps(line.0[8..].as_mut_ptr(), value[1]);
            } }
            fn stream(value: [__m256; 2], line: &mut Line) { {
                _mm256_stream_ps(line.0[..8].as_mut_ptr(), value[0]);
                _mm256_stream_ps(line.0[8..].as_mut_ptr(), value[1]);
            } }
        }
    }
}

/// The size of the pages that memory is asked in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pages {
    /// 4 KiB.
    Small,
    /// 2 MiB where the system gives them, as numpy asks for large arrays.
    Huge,
}

/// Zeroed memory fresh from the system: no page of it exists before it is touched.
pub(crate) struct Memory {
    /// What was mapped, and its bytes.
    mapping: *mut u8,
    bytes: usize,
    /// The first huge page in it.
    lines: *mut Line,
    count: usize,
}

impl Memory {
    /// Map `count` lines.
    ///
    /// # Panics
    ///
    /// Where the system refuses.
    pub(crate) fn new(count: usize, pages: Pages) -> Self {
        let bytes = count * size_of::<Line>() + system::HUGE_PAGE;
        // SAFETY: a new mapping at an address of the system's choice touches no memory that exists.
        let mapping = unsafe { system::mmap(std::ptr::null_mut(), bytes, system::READ_WRITE, system::PRIVATE_ANONYMOUS, -1, 0) };
        assert!(mapping.addr() != usize::MAX, "the system has no {bytes} bytes");
        // SAFETY: less than a huge page further on, and the mapping is that much larger than the lines.
        let lines = unsafe { mapping.add(mapping.align_offset(system::HUGE_PAGE)) };
        #[cfg(target_os = "linux")]
        // SAFETY: advice about our own mapping changes no byte of it, and failing changes nothing.
        unsafe {
            system::madvise(lines, count * size_of::<Line>(), if pages == Pages::Huge { system::HUGE } else { system::NOT_HUGE });
        }
        #[cfg(not(target_os = "linux"))]
        let _ = pages;
        Memory { mapping, bytes, lines: lines.cast(), count }
    }
}

impl std::ops::Deref for Memory {
    type Target = [Line];

    fn deref(&self) -> &[Line] {
        // SAFETY: `count` lines at a multiple of 64, zeroed by the system, which `self` owns.
        unsafe { std::slice::from_raw_parts(self.lines, self.count) }
    }
}

impl std::ops::DerefMut for Memory {
    fn deref_mut(&mut self) -> &mut [Line] {
        // SAFETY: as in `deref`, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.lines, self.count) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: exactly what `new` mapped, and nothing borrows it any more.
        unsafe { system::munmap(self.mapping, self.bytes) };
    }
}

/// What the C library of Linux and macOS offers; std links it.
mod system {
    pub(super) const HUGE_PAGE: usize = 2 << 20;
    pub(super) const READ_WRITE: i32 = 1 | 2;
    pub(super) const PRIVATE_ANONYMOUS: i32 = 2 | if cfg!(target_os = "linux") { 0x20 } else { 0x1000 };
    #[cfg(target_os = "linux")]
    pub(super) const HUGE: i32 = 14;
    #[cfg(target_os = "linux")]
    pub(super) const NOT_HUGE: i32 = 15;

    unsafe extern "C" {
        pub(super) fn mmap(address: *mut u8, bytes: usize, protection: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
        pub(super) fn munmap(address: *mut u8, bytes: usize) -> i32;
        #[cfg(target_os = "linux")]
        pub(super) fn madvise(address: *mut u8, bytes: usize, advice: i32) -> i32;
    }
}

/// For Python: seconds of one of `repeats` runs of `steps` steps on memory that exists. NaN where there is no loop of this
/// traffic or an address is not a multiple of 64.
///
/// # Safety
///
/// `from` has `steps * read` lines to read and `to` as many to write as `steps * write`, apart from each other.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn limit_reused(
    read: usize,
    write: usize,
    streamed: bool,
    threads: usize,
    from: *const Line,
    to: *mut Line,
    steps: usize,
    repeats: usize,
) -> f64 {
    let (traffic, store) = (Traffic { read, write }, if streamed { Store::Streamed } else { Store::Normal });
    if loop_of(traffic, store).is_none() || !(from.is_aligned() && to.is_aligned()) || from.is_null() || to.is_null() {
        return f64::NAN;
    }
    // SAFETY: the caller vouches for the lengths, and the line above for the alignment.
    let (from, to) = unsafe { (std::slice::from_raw_parts(from, steps * read), std::slice::from_raw_parts_mut(to, steps * write)) };
    let start = Instant::now();
    for _ in 0..repeats {
        run(traffic, store, threads, from, to);
    }
    start.elapsed().as_secs_f64() / repeats as f64
}

/// For Python: seconds of `steps` steps into memory fresh from the system, the mapping and the page faults included. NaN as
/// in [`limit_reused`].
///
/// # Safety
///
/// `from` has `steps * read` lines to read.
#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn limit_fresh(
    read: usize,
    write: usize,
    streamed: bool,
    threads: usize,
    from: *const Line,
    steps: usize,
    huge: bool,
) -> f64 {
    let (traffic, store) = (Traffic { read, write }, if streamed { Store::Streamed } else { Store::Normal });
    if loop_of(traffic, store).is_none() || !from.is_aligned() || from.is_null() {
        return f64::NAN;
    }
    // SAFETY: the caller vouches for the length, and the line above for the alignment.
    let from = unsafe { std::slice::from_raw_parts(from, steps * read) };
    let start = Instant::now();
    let mut to = Memory::new(steps * write, if huge { Pages::Huge } else { Pages::Small });
    run(traffic, store, threads, from, &mut to);
    start.elapsed().as_secs_f64()
}
