//! The arithmetic that every byte is defined by: round half to even, subnormals kept.
//!
//! A thread can be left with another rounding mode, or with subnormals flushed to zero: some libraries switch that on for the
//! whole process when they are loaded, and new threads inherit it. [`Ieee`] sets the mode for as long as it lives.

#![allow(unsafe_code, reason = "the control register of the floating-point unit")]

#[cfg(not(miri))]
use std::arch::asm;
use std::marker::PhantomData;

/// Standard arithmetic on this thread until it is dropped.
pub struct Ieee {
    #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
    before: Register,
    /// The mode belongs to a thread.
    not_send: PhantomData<*const ()>,
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
type Register = u32;
#[cfg(all(target_arch = "aarch64", not(miri)))]
type Register = u64;

/// All exceptions masked, round half to even, subnormals kept.
#[cfg(all(target_arch = "x86_64", not(miri)))]
const STANDARD: Register = 0x1f80;
/// Round half to even, subnormals kept, NaN carried on.
#[cfg(all(target_arch = "aarch64", not(miri)))]
const STANDARD: Register = 0;

impl Ieee {
    /// Switch this thread to standard arithmetic.
    #[inline]
    pub fn enter() -> Self {
        Ieee {
            #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
            before: {
                let before = read();
                if before != STANDARD {
                    write(STANDARD);
                }
                before
            },
            not_send: PhantomData,
        }
    }
}

impl Drop for Ieee {
    #[inline]
    fn drop(&mut self) {
        #[cfg(all(any(target_arch = "x86_64", target_arch = "aarch64"), not(miri)))]
        if self.before != STANDARD {
            write(self.before);
        }
    }
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn read() -> Register {
    let mut register = 0;
    // SAFETY: the instruction writes four bytes to the variable; every x86-64 has it.
    unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut register, options(nostack, preserves_flags)) };
    // The lowest six bits are what happened so far, not how to compute.
    register & !0x3f
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[inline]
fn write(register: Register) {
    // SAFETY: the instruction reads four bytes of the variable, a value that `read` gave or the one of a fresh process, which
    // is the one that the language counts on.
    unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const register, options(nostack, preserves_flags)) };
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline]
fn read() -> Register {
    let register;
    // SAFETY: the instruction reads a register that every aarch64 has.
    unsafe { asm!("mrs {}, fpcr", out(reg) register, options(nomem, nostack, preserves_flags)) };
    register
}

#[cfg(all(target_arch = "aarch64", not(miri)))]
#[inline]
fn write(register: Register) {
    // SAFETY: the value is one that `read` gave, or the one of a fresh process, which is the one that the language counts on.
    unsafe { asm!("msr fpcr, {}", in(reg) register, options(nostack, preserves_flags)) };
}

#[cfg(all(test, target_arch = "x86_64", not(miri)))]
mod tests {
    use super::*;
    use std::hint::black_box;

    #[test]
    fn the_mode_is_standard_inside_and_as_before_outside() {
        let downward_and_flushed = STANDARD | 0x2000 | 0x8040;
        write(downward_and_flushed);
        let third = || black_box(black_box(1.0f32) / black_box(3.0));
        let (outside, inside, kept) = {
            let outside = third();
            let _ieee = Ieee::enter();
            (outside, third(), black_box(black_box(f32::MIN_POSITIVE) / black_box(2.0)))
        };
        assert_eq!(read(), downward_and_flushed & !0x3f);
        write(STANDARD);
        assert_eq!((inside, kept), (1.0 / 3.0, f32::MIN_POSITIVE / 2.0));
        assert!(outside < inside);
    }
}
