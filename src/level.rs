//! Which instruction set runs the kernels: found once, or forced by the environment.
//!
//! `QUANTIZE_LEVEL=scalar|avx2|avx512|neon` forces a level. Every level gives the same bytes.

use crate::error::{Error, Result};
#[cfg(target_arch = "aarch64")]
use crate::simd::neon::Neon;
use crate::simd::{Kernel, Simd, scalar::Scalar};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that this CPU has.
#[derive(Clone, Copy, Debug)]
pub enum Level {
    /// Arrays and loops.
    Scalar(Scalar),
    /// AVX2 with F16C.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 F, BW, DQ, VL and VBMI.
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    /// NEON.
    #[cfg(target_arch = "aarch64")]
    Neon(Neon),
}

/// Every name that `QUANTIZE_LEVEL` takes, on any machine.
pub const NAMES: [&str; 4] = ["scalar", "avx2", "avx512", "neon"];

/// The variable that forces a level.
pub const VARIABLE: &str = "QUANTIZE_LEVEL";

/// The level that was chosen, as one more than its index in `NAMES`; 0 before the first use. An atomic, not a lock: a lock
/// that is held while the process forks would stay locked in the child.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

impl Level {
    /// The levels of this CPU, the slowest first.
    pub fn available() -> Vec<Level> {
        let mut levels = vec![Level::Scalar(Scalar)];
        #[cfg(target_arch = "x86_64")]
        {
            levels.extend(Avx2::new().map(Level::Avx2));
            levels.extend(Avx512::new().map(Level::Avx512));
        }
        #[cfg(target_arch = "aarch64")]
        levels.extend(Neon::new().map(Level::Neon));
        levels
    }

    /// The fastest level of this CPU.
    pub fn detect() -> Level {
        *Level::available().last().expect("there is always the scalar level")
    }

    /// The level that calls use: the one that `QUANTIZE_LEVEL` names, else the fastest. A level that the CPU lacks gives the
    /// fastest; [`Level::lacking`] tells.
    ///
    /// # Errors
    ///
    /// [`Error::Value`] where the variable holds a name that no machine has.
    pub fn current() -> Result<Level> {
        let chosen = CHOSEN.load(Ordering::Relaxed);
        if chosen != 0 {
            return Ok(Level::named(NAMES[usize::from(chosen) - 1]).expect("it was there when it was chosen"));
        }
        let level = match std::env::var(VARIABLE) {
            Err(std::env::VarError::NotPresent) => Level::detect(),
            Err(error) => return Err(Error::value(VARIABLE, error.to_string(), format!("expected {}", NAMES.join(", ")))),
            Ok(name) if name.is_empty() => Level::detect(),
            Ok(name) if NAMES.contains(&name.as_str()) => Level::named(&name).unwrap_or_else(Level::detect),
            Ok(name) => return Err(Error::value(VARIABLE, format!("'{name}'"), format!("expected {}", NAMES.join(", ")))),
        };
        let index = NAMES.iter().position(|&name| name == level.name()).expect("every level has a name");
        CHOSEN.store(index as u8 + 1, Ordering::Relaxed);
        Ok(level)
    }

    /// The level that `QUANTIZE_LEVEL` names although this CPU lacks it.
    pub fn lacking() -> Option<String> {
        std::env::var(VARIABLE).ok().filter(|name| NAMES.contains(&name.as_str()) && Level::named(name).is_none())
    }

    /// The level of this name, where this CPU has it.
    pub fn named(name: &str) -> Option<Level> {
        match name {
            "scalar" => Some(Level::Scalar(Scalar)),
            #[cfg(target_arch = "x86_64")]
            "avx2" => Avx2::new().map(Level::Avx2),
            #[cfg(target_arch = "x86_64")]
            "avx512" => Avx512::new().map(Level::Avx512),
            #[cfg(target_arch = "aarch64")]
            "neon" => Neon::new().map(Level::Neon),
            _ => None,
        }
    }

    /// The name that `QUANTIZE_LEVEL` takes.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar(_) => "scalar",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(_) => "avx512",
            #[cfg(target_arch = "aarch64")]
            Level::Neon(_) => "neon",
        }
    }

    /// Run a kernel with the instructions of this level.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Level::Scalar(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2(simd) => simd.run(kernel),
            #[cfg(target_arch = "x86_64")]
            Level::Avx512(simd) => simd.run(kernel),
            #[cfg(target_arch = "aarch64")]
            Level::Neon(simd) => simd.run(kernel),
        }
    }
}
