//! Borrowed work for threads that outlive it: they may enter as long as it is there, and whoever has not entered by its end is not waited for.
//!
//! A scope of rayon waits for every thread that was asked, also for one that the system has not let run since. Under load that is a whole
//! slice of its time, milliseconds, for a worker that would find nothing left to do.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use std::{mem, thread};

/// Work that is lent.
pub(super) struct Door {
    room: Mutex<Room>,
    /// Signalled by every thread that leaves.
    left: Condvar,
}

struct Room {
    /// None once the door is closed.
    work: Option<&'static (dyn Fn() + Sync)>,
    /// Threads that do the work.
    inside: usize,
}

impl Door {
    /// Run `body`; whoever has the door may do `work` meanwhile. Then it is closed, and those inside are waited for.
    #[allow(unsafe_code, reason = "a lifetime that ends when the door is closed")]
    pub(super) fn open<R>(work: &(dyn Fn() + Sync), body: impl FnOnce(&Arc<Door>) -> R) -> R {
        // SAFETY: `work` is only called between `enter` and `Leaving`, and `Closing`, which is dropped before this function returns or
        // unwinds, lets nobody enter any more and waits for those inside. So it is never called after the borrow has ended.
        let work = unsafe { mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work) };
        let door = Arc::new(Door { room: Mutex::new(Room { work: Some(work), inside: 0 }), left: Condvar::new() });
        let _closing = Closing(&door);
        body(&door)
    }

    /// Do the work, unless the door is closed.
    pub(super) fn enter(&self) {
        let mut room = self.room();
        let Some(work) = room.work else { return };
        room.inside += 1;
        drop(room);
        let _leaving = Leaving(self);
        work();
    }

    /// Nobody enters any more.
    pub(super) fn close(&self) {
        self.room().work = None;
    }

    /// Wait until nobody is inside or the time is over, awake for the first `awake` of it. Whether nobody is.
    pub(super) fn wait(&self, awake: Duration, time: Duration) -> bool {
        let began = Instant::now();
        while began.elapsed() < awake {
            if self.room().inside == 0 {
                return true;
            }
            thread::yield_now();
        }
        let rest = time.saturating_sub(began.elapsed());
        let waited = self.left.wait_timeout_while(self.room(), rest, |room| room.inside > 0);
        waited.unwrap_or_else(PoisonError::into_inner).0.inside == 0
    }

    fn room(&self) -> MutexGuard<'_, Room> {
        self.room.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts a thread out, also when the work panics.
struct Leaving<'a>(&'a Door);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.room().inside -= 1;
        self.0.left.notify_one();
    }
}

/// Ends the loan, also when the lender panics.
struct Closing<'a>(&'a Door);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
        while !self.0.wait(Duration::ZERO, Duration::MAX) {}
    }
}
