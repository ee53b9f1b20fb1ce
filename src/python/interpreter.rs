//! One interpreter a process: a second one would share the statics, and the objects in them, of the first.
#![allow(unsafe_code, reason = "the id of an interpreter is not in the safe interface")]

use std::sync::atomic::{AtomicI64, Ordering};

use pyo3::exceptions::PyImportError;
use pyo3::ffi;
use pyo3::prelude::*;

/// An `ImportError` in any interpreter but the first that imported this module.
pub(super) fn refuse_a_second(_py: Python<'_>) -> PyResult<()> {
    const NONE: i64 = -1;
    static FIRST: AtomicI64 = AtomicI64::new(NONE);
    // SAFETY: `_py` shows that this thread is attached, which makes the pointer valid.
    let this = unsafe { ffi::PyInterpreterState_GetID(ffi::PyInterpreterState_Get()) };
    match FIRST.compare_exchange(NONE, this, Ordering::Relaxed, Ordering::Relaxed) {
        Err(first) if first != this => {
            let message = "quantize is in use by another interpreter of this process; use it from one interpreter, or from processes";
            Err(PyImportError::new_err(message))
        }
        _ => Ok(()),
    }
}
