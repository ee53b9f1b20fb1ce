//! How a CPU likes to be asked for memory: by kernels that read elements for their range, for their codes or for both, and how what they
//! write leaves past the caches or stays in them.

use super::stream::{LINE, Lines};
use std::sync::atomic::{AtomicU8, Ordering};

/// Bytes, measured: `benches/record/notes.md` has the figures.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    /// From an element whose range is found, or whose code alone is made, to what is asked for with it, into the second cache; 0 for not at all.
    pub(crate) range: usize,
    /// From an element whose code is made, or that is widened, to what is asked for with it, into the first cache.
    pub(crate) codes: usize,
    /// How many bytes of codes are collected before they leave past the caches.
    pub(crate) burst: usize,
    /// How many bytes of decoded floats.
    floats: usize,
    /// From decoded floats that stay in the caches to those that are written later, whose memory is asked for with them; 0 for not at all.
    pub(crate) stay: usize,
    /// Whether decoded floats leave from registers, where they are whole lines, and those of 16 bits past the caches at all.
    pub(crate) from_registers: bool,
    /// Whether codes that are packed or unpacked alone go past the caches.
    pub(crate) bytes: bool,
}

impl Pace {
    /// Ahead by what one core has on its way from memory (bandwidth times latency, some 7 KiB), and a tile; once for each line.
    const FAR: Pace =
        Pace { range: 0, codes: 10 * 1024, burst: Lines::BURST, floats: Lines::BURST, stay: 0, from_registers: false, bytes: false };

    /// On Intel whatever the first cache waits for, and each line on its way past the caches, occupies one of few buffers until memory
    /// answers, so that far requests and large bursts stop each other. The second cache's own prefetcher has room for more: it wants to
    /// be told at an even pace, from both loops, and of what comes next. Of a store that lies across two lines nothing is asked for early.
    const NEAR: Pace = Pace { range: 3 * 1024, codes: 3 * 1024, burst: 128, floats: 512, stay: 512, from_registers: true, bytes: true };

    /// What suits this CPU.
    pub(crate) fn of_this_cpu() -> Pace {
        // An atomic, as in `level.rs`. Asking the CPU takes microseconds in a virtual machine.
        static MAKER: AtomicU8 = AtomicU8::new(UNKNOWN);
        const UNKNOWN: u8 = 0;
        const INTEL: u8 = 1;
        const OTHER: u8 = 2;
        let maker = match MAKER.load(Ordering::Relaxed) {
            UNKNOWN => {
                let maker = if is_intel() { INTEL } else { OTHER };
                MAKER.store(maker, Ordering::Relaxed);
                maker
            }
            known => known,
        };
        if maker == INTEL { Pace::NEAR } else { Pace::FAR }
    }

    /// How many bytes of decoded floats are collected that come in pieces of so many: lines one by one were dearer in small bursts.
    pub(crate) fn floats(self, piece: usize) -> usize {
        if piece > LINE { self.floats } else { Lines::BURST }
    }

    /// For elements that the first cache holds.
    pub(crate) fn in_cache(self) -> Pace {
        Pace { range: 0, codes: 0, ..self }
    }
}

#[cfg(target_arch = "x86_64")]
fn is_intel() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn is_intel() -> bool {
    false
}
