//! The threads that share the tasks of a call with its caller: our own rayon pool, never the global one.
//!
//! * It is made by the first call that wants one, and replaced by a larger one when a call wants more.
//! * It belongs to one process: a forked child has the memory of its parent but not the threads, and makes its own.
//! * A call takes only workers that are idle, so it never waits behind the work of another call; where none is idle it works alone.
//!
//! ```text
//! caller     task task task ... wait      asks `interrupted` every 50 ms, between tasks and while it waits
//! helper     task task task     stay      whoever is free pulls the next task
//! helper      (wakes) task task stay
//! ```
//!
//! To wake a thread takes as long as to encode a megabyte. So who waits, the caller for the last task of a helper and a helper for the
//! next call, stays awake for two or three times that and lets other threads have its CPU meanwhile; then it sleeps.

mod door;

use std::any::Any;
use std::cell::Cell;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use rayon::{ThreadPool, ThreadPoolBuilder, Yield};

use crate::error::{Error, Result};
use crate::simd::ieee::Ieee;
use door::Door;

/// How long a caller goes without asking whether it is interrupted. A quarter of the 0.2 s within which Ctrl-C must act.
const PATIENCE: Duration = Duration::from_millis(50);

/// How long who waits stays awake: two or three times what it takes to wake a thread, measured (`benches/record/notes.md`).
const AWAKE: Duration = Duration::from_micros(100);

/// Do `work` on every task, on at most `threads` threads of which the caller is one.
///
/// The tasks start in order and each is done once. `interrupted` is called on the calling thread only. The answer is whether
/// helpers were wanted but could not be started, in which case the caller did more of the work itself.
///
/// # Errors
///
/// [`Error::Cancelled`] when `interrupted` said so; tasks that had begun were finished, the others were not started.
///
/// # Panics
///
/// With the panic of a task, after all participants have stopped. The pool stays usable.
pub fn for_each<T: Send>(
    tasks: impl Iterator<Item = T> + Send,
    threads: usize,
    interrupted: &dyn Fn() -> bool,
    work: impl Fn(T) + Sync,
) -> Result<bool> {
    let useful = tasks.size_hint().1.unwrap_or(usize::MAX);
    let helpers = threads.min(useful).saturating_sub(1);
    let call = Call { tasks: Mutex::new(tasks), work, stop: AtomicBool::new(false), panic: Mutex::new(None) };
    let mut watch = Watch::new(interrupted);
    if helpers == 0 {
        return call.lead(&mut watch).map(|()| false);
    }
    let (pool, failed) = Pool::with_workers(helpers);
    match pool {
        Some(pool) => call.share(&pool, helpers, &mut watch)?,
        None => call.lead(&mut watch)?,
    }
    Ok(failed)
}

/// What the participants of one call share.
struct Call<I, W> {
    tasks: Mutex<I>,
    work: W,
    /// Read before every task; set by an interrupt and by a panic.
    stop: AtomicBool,
    /// Of a helper.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

impl<T: Send, I: Iterator<Item = T> + Send, W: Fn(T) + Sync> Call<I, W> {
    fn next(&self) -> Option<T> {
        if self.stop.load(Ordering::Relaxed) {
            return None;
        }
        self.tasks.lock().ok()?.next() // poisoned: the iterator itself panicked, there is no next task
    }

    /// The tasks, on the calling thread and up to `helpers` idle workers.
    fn share(&self, pool: &Arc<Pool>, helpers: usize, watch: &mut Watch) -> Result<()> {
        let ended = Door::open(&|| self.help(), |door| {
            for _ in 0..pool.take_permits(helpers) {
                let (job, door) = (Arc::clone(pool), Arc::clone(door));
                pool.workers.spawn(move || job.serve(&door));
            }
            let _stop = StopOnPanic(&self.stop);
            let ended = self.lead(watch);
            door.close();
            self.wait(door, watch, ended)
        });
        let panic = self.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        panic.map_or(ended, |panic| resume_unwind(panic))
    }

    /// The calling thread: tasks until there are none, or an interrupt.
    fn lead(&self, watch: &mut Watch) -> Result<()> {
        while let Some(task) = self.next() {
            (self.work)(task);
            watch.check()?;
        }
        Ok(())
    }

    /// The calling thread, when it is done: until the helpers are.
    fn wait(&self, door: &Door, watch: &mut Watch, mut ended: Result<()>) -> Result<()> {
        let mut awake = AWAKE;
        loop {
            if ended.is_err() {
                self.stop.store(true, Ordering::Relaxed);
            }
            let patience = if ended.is_err() { PATIENCE } else { watch.patience() };
            if door.wait(mem::take(&mut awake), patience) {
                return ended;
            }
            ended = ended.and_then(|()| watch.check());
        }
    }

    /// A worker of the pool.
    fn help(&self) {
        let _ieee = Ieee::enter(); // the worker may have inherited another mode
        let tasks = || {
            while let Some(task) = self.next() {
                (self.work)(task)
            }
        };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(tasks)) {
            self.stop.store(true, Ordering::Relaxed);
            self.panic.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(panic);
        }
    }
}

/// Keeps the others from starting tasks of a call that is lost.
struct StopOnPanic<'a>(&'a AtomicBool);

impl Drop for StopOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Asks the caller's question when it is due.
pub(crate) struct Watch<'a> {
    interrupted: &'a dyn Fn() -> bool,
    asked: Instant,
}

impl<'a> Watch<'a> {
    pub(crate) fn new(interrupted: &'a dyn Fn() -> bool) -> Self {
        Watch { interrupted, asked: Instant::now() }
    }

    /// For the stretches that a call does on its own thread: [`Error::Cancelled`] when the caller wants to stop.
    pub(crate) fn check(&mut self) -> Result<()> {
        if self.is_interrupted() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// Time until the question is due.
    fn patience(&self) -> Duration {
        PATIENCE.saturating_sub(self.asked.elapsed())
    }

    fn is_interrupted(&mut self) -> bool {
        if !self.patience().is_zero() {
            return false;
        }
        let answer = (self.interrupted)();
        self.asked = Instant::now();
        answer
    }
}

/// The workers of one process.
struct Pool {
    process: u32,
    size: usize,
    /// Workers without a job. A permit is one of them, taken.
    idle: AtomicUsize,
    workers: ThreadPool,
}

/// No lock guards it: a lock held by another thread at the moment of a fork would stay locked in the child for ever.
static POOL: ArcSwapOption<Pool> = ArcSwapOption::const_empty();

impl Pool {
    /// The pool of this process with at least `size` workers, and whether it failed to become that large.
    fn with_workers(size: usize) -> (Option<Arc<Pool>>, bool) {
        let process = std::process::id();
        loop {
            let current = POOL.load_full();
            let ours = current.as_ref().filter(|pool| pool.process == process);
            if ours.is_some_and(|pool| pool.size >= size) {
                return (current, false);
            }
            let Some(larger) = Pool::new(process, size) else {
                return (ours.cloned(), true);
            };
            if ours.is_none() {
                // The parent's pool. To drop it would be to talk to threads that do not exist here: keep one reference for ever.
                mem::forget(current.clone());
            }
            POOL.compare_and_swap(&current, Some(Arc::new(larger))); // or another call was first; look again
        }
    }

    /// `None` where the system gives no more threads.
    fn new(process: u32, size: usize) -> Option<Pool> {
        let workers = ThreadPoolBuilder::new().num_threads(size).thread_name(|index| format!("quantize-{index}")).build().ok()?;
        Some(Pool { process, size, idle: AtomicUsize::new(size), workers })
    }

    /// Take up to `wanted` idle workers.
    fn take_permits(&self, wanted: usize) -> usize {
        let take = |idle: usize| Some(idle.saturating_sub(wanted));
        let idle = self.idle.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).expect("`take` always has an answer");
        idle.min(wanted)
    }

    /// The job of a worker: help, give the permit back, be there for the next call.
    fn serve(&self, door: &Door) {
        door.enter();
        self.idle.fetch_add(1, Ordering::Relaxed);
        stay_awake();
    }
}

/// Do the jobs that come within [`AWAKE`] of each other.
fn stay_awake() {
    thread_local! {
        static STAYS: Cell<bool> = const { Cell::new(false) };
    }
    // Such a job comes here too.
    if STAYS.replace(true) {
        return;
    }
    let mut last = Instant::now();
    while last.elapsed() < AWAKE {
        match rayon::yield_now() {
            Some(Yield::Executed) => last = Instant::now(),
            _ => thread::yield_now(),
        }
    }
    STAYS.set(false);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::thread::ThreadId;

    const NEVER: &dyn Fn() -> bool = &|| false;

    fn squares(count: usize, threads: usize) -> Vec<usize> {
        let mut out = vec![0; count];
        for_each(out.iter_mut().enumerate(), threads, NEVER, |(index, x)| *x += index * index + 1).unwrap();
        out
    }

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 3, 8] {
            for count in [0, 1, 2, 7, 1000] {
                assert_eq!(squares(count, threads), (0..count).map(|i| i * i + 1).collect::<Vec<_>>(), "{count} on {threads}");
            }
        }
    }

    #[test]
    fn one_thread_is_the_caller() {
        let seen: Mutex<HashSet<ThreadId>> = Mutex::default();
        let note = |_| {
            seen.lock().unwrap().insert(thread::current().id());
        };
        for_each(0..100, 1, NEVER, note).unwrap();
        assert_eq!(seen.into_inner().unwrap(), HashSet::from([thread::current().id()]));
    }

    #[test]
    fn as_many_threads_as_asked_for() {
        // Another test may hold some of the workers at this moment, so ask until all were idle.
        for attempt in 0.. {
            let seen: Mutex<HashSet<ThreadId>> = Mutex::default();
            for_each(0..12, 4, NEVER, |_| {
                seen.lock().unwrap().insert(thread::current().id());
                thread::sleep(Duration::from_millis(5));
            })
            .unwrap();
            let seen = seen.into_inner().unwrap();
            assert!(seen.len() <= 4);
            if seen.len() == 4 && seen.contains(&thread::current().id()) {
                break;
            }
            assert!(attempt < 100, "never saw all four threads");
        }
    }

    #[test]
    fn a_call_does_not_wait_for_the_workers_of_another() {
        let hold = Barrier::new(2);
        thread::scope(|scope| {
            let long = scope.spawn(|| {
                for_each(0..2, 2, NEVER, |index| {
                    if index == 0 {
                        hold.wait();
                    }
                })
            });
            assert_eq!(squares(50, 2).len(), 50); // ends although the long call does not
            hold.wait();
            assert!(!long.join().unwrap().unwrap());
        });
    }

    #[test]
    fn a_worker_that_does_not_come_is_not_waited_for() {
        let pool = Arc::new(Pool::new(std::process::id(), 1).unwrap());
        let hold = Arc::new(Barrier::new(2));
        let held = Arc::clone(&hold);
        pool.workers.spawn(move || _ = held.wait());
        let done = AtomicUsize::new(0);
        let work = |index| _ = done.fetch_add(index, Ordering::Relaxed);
        let call = Call { tasks: Mutex::new(0..10), work, stop: AtomicBool::new(false), panic: Mutex::new(None) };
        call.share(&pool, 1, &mut Watch::new(NEVER)).unwrap(); // ends although the worker does not
        assert_eq!(done.into_inner(), 45);
        assert_eq!(pool.take_permits(1), 0);
        hold.wait();
        while pool.take_permits(1) == 0 {
            thread::yield_now(); // it comes late, finds the door closed and is idle again
        }
    }

    #[test]
    fn many_calls_at_once() {
        thread::scope(|scope| {
            for threads in 1..=16 {
                scope.spawn(move || {
                    for _ in 0..50 {
                        assert_eq!(squares(20, threads)[19], 362);
                    }
                });
            }
        });
    }

    #[test]
    fn an_interrupt_stops_all_participants() {
        for threads in [1, 2, 4] {
            let (done, begun) = (AtomicUsize::new(0), Instant::now());
            let ended = for_each(0..100_000, threads, &|| true, |_| {
                done.fetch_add(1, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(1));
            });
            assert!(matches!(ended, Err(Error::Cancelled)), "{threads} threads");
            assert!(done.into_inner() < 1000 && begun.elapsed() < Duration::from_secs(2));
            assert_eq!(squares(10, threads)[9], 82);
        }
    }

    #[test]
    fn the_question_is_asked_on_the_calling_thread_every_50_ms() {
        for threads in [1, 2] {
            let (asked, caller, begun) = (AtomicUsize::new(0), thread::current().id(), Instant::now());
            let interrupted = || {
                assert_eq!(thread::current().id(), caller);
                asked.fetch_add(1, Ordering::Relaxed);
                false
            };
            for_each(0..300, threads, &interrupted, |_| thread::sleep(Duration::from_millis(2))).unwrap();
            let (asked, elapsed) = (asked.into_inner(), begun.elapsed());
            assert!(asked >= 2 && elapsed >= PATIENCE * asked as u32, "asked {asked} times in {elapsed:?} on {threads} threads");
        }
    }

    #[test]
    fn it_is_asked_while_the_caller_waits() {
        let asked = AtomicUsize::new(0);
        let interrupted = || {
            asked.fetch_add(1, Ordering::Relaxed);
            false
        };
        let caller = thread::current().id();
        let slow_helper = |_| {
            let helper = thread::current().id() != caller;
            thread::sleep(Duration::from_millis(if helper { 300 } else { 20 }));
        };
        for attempt in 0.. {
            for_each(0..2, 2, &interrupted, slow_helper).unwrap();
            if asked.load(Ordering::Relaxed) >= 4 {
                break;
            }
            assert!(attempt < 100, "the caller never waited for a helper");
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_leaves_the_pool_usable() {
        for threads in [1, 2, 4] {
            for culprit in [0, 1, 50] {
                let call = || for_each(0..100, threads, NEVER, |index| assert_ne!(index, culprit, "deliberate"));
                let panic = catch_unwind(AssertUnwindSafe(call)).unwrap_err();
                assert!(panic.downcast_ref::<String>().unwrap().contains("deliberate"));
                assert_eq!(squares(10, threads)[9], 82);
            }
        }
    }

    #[test]
    fn permits_are_given_back() {
        let pool = Pool::new(std::process::id(), 3).unwrap();
        assert_eq!(pool.take_permits(2), 2);
        assert_eq!(pool.take_permits(2), 1);
        assert_eq!(pool.take_permits(2), 0);
        pool.idle.fetch_add(3, Ordering::Relaxed);
        assert_eq!(pool.take_permits(9), 3);
    }
}
