//! Errors and warnings as Python sees them; no panic crosses.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::Mutex;

use pyo3::exceptions::{PyMemoryError, PyOSError, PyRuntimeError, PyTypeError, PyUserWarning, PyValueError};
use pyo3::prelude::*;
use pyo3::{PyErr, create_exception};

use crate::error::Error;

create_exception!(
    quantize,
    QuantizeWarning,
    PyUserWarning,
    "Something was done otherwise than asked, and is right: elements replaced, threads or an instruction set missing."
);
create_exception!(
    quantize,
    LossyConversionError,
    PyValueError,
    "The target format cannot hold the same values; ``requantize=True`` goes through floats."
);
create_exception!(
    quantize,
    CorruptFileError,
    PyValueError,
    "A file breaks the rules of its container, or a tensor in it those of its format. Nothing was read from that."
);

impl From<Error> for PyErr {
    fn from(error: Error) -> PyErr {
        let message = error.to_string();
        match error {
            Error::Shape { .. }
            | Error::Value { .. }
            | Error::UnknownFormat { .. }
            | Error::NonFinite { .. }
            | Error::ScaleOverflow { .. } => PyValueError::new_err(message),
            Error::Dtype { .. } | Error::Option { .. } | Error::Method { .. } => PyTypeError::new_err(message),
            Error::Lossy { .. } => LossyConversionError::new_err(message),
            Error::Corrupt { .. } => CorruptFileError::new_err(message),
            Error::Memory { .. } => PyMemoryError::new_err(message),
            // With these three arguments Python itself chooses the subclass, FileNotFoundError and the like.
            Error::Io { source, path } => match source.raw_os_error().or_else(|| number(source.kind())) {
                Some(number) => {
                    let text = io::Error::from_raw_os_error(number).to_string();
                    let text = text.trim_end_matches(&format!(" (os error {number})")).to_owned();
                    PyOSError::new_err((number, text, path.into_os_string()))
                }
                None => PyOSError::new_err(message),
            },
            // A caller that passes `interrupted` has the exception that interrupted and raises that one.
            Error::Cancelled => PyRuntimeError::new_err(message),
        }
    }
}

/// The number of an error that came by way of another crate, which kept its kind alone.
fn number(kind: io::ErrorKind) -> Option<i32> {
    match kind {
        io::ErrorKind::NotFound => Some(2),
        io::ErrorKind::PermissionDenied => Some(13),
        io::ErrorKind::StorageFull => Some(28),
        io::ErrorKind::ReadOnlyFilesystem => Some(30),
        _ => None,
    }
}

/// Where the last panic was, and what it said.
static LAST_PANIC: Mutex<String> = Mutex::new(String::new());

/// Panics are noted, not printed: [`guarded`] raises them. The hook is that of this extension module alone.
pub(super) fn keep_panics_quiet() {
    set_hook(Box::new(|panic| {
        if let Ok(mut last) = LAST_PANIC.try_lock() {
            *last = panic.to_string().replace(":\n", ": ");
        }
    }));
}

/// Run the body of a function; a panic in it, on whatever thread, becomes a `RuntimeError`.
pub(super) fn guarded<T>(body: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|_| {
        let last = LAST_PANIC.try_lock().map(|last| last.clone()).unwrap_or_default();
        Err(PyRuntimeError::new_err(format!(
            "a fault inside quantize ({last}); no result was made. Please report these words and the call that led to them."
        )))
    })
}
