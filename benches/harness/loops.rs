//! Plain loops beside what is measured: the machine's limit in the same run.

use crate::harness::{median, time};
use crate::limit::{self, Line, Store, Traffic};

/// One traffic on one and on all threads, with normal and with streamed stores.
pub(crate) struct Loops {
    traffic: Traffic,
    /// Each with the seconds of its samples.
    kinds: Vec<(usize, Store, Vec<f64>)>,
}

impl Loops {
    pub(crate) fn new(traffic: Traffic) -> Self {
        let stores = |threads: usize| [Store::Normal, Store::Streamed].map(|store| (threads, store, Vec::new()));
        Loops { traffic, kinds: threads().into_iter().flat_map(stores).collect() }
    }

    /// One sample of each, to be taken in turn with those of what is measured.
    pub(crate) fn sample(&mut self, from: &[Line], to: &mut [Line]) {
        for (threads, store, seconds) in &mut self.kinds {
            seconds.push(time(|| limit::run(self.traffic, *store, *threads, from, to)));
        }
    }

    /// The best median, in seconds.
    pub(crate) fn limit(&self) -> f64 {
        self.kinds.iter().map(|(.., seconds)| median(seconds)).fold(f64::INFINITY, f64::min)
    }
}

/// One and all, or only one where there are no more.
pub(crate) fn threads() -> Vec<usize> {
    let mut threads = vec![1, quantize::threads::count(None)];
    threads.dedup();
    threads
}
