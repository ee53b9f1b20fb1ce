//! The one error of the crate: kinds with fields; each message is written once, here.
//!
//! A message names the argument, what was expected, what was found and what to do.

use std::fmt;
use std::path::PathBuf;

/// What went wrong. The Python class that each kind becomes is named in its documentation.
#[derive(Debug)]
pub enum Error {
    /// Lengths that do not fit each other or the format (`ValueError`).
    Shape {
        /// The argument at fault.
        argument: String,
        /// What was found, as a clause: `has shape (3, 5)`.
        found: String,
        /// What was expected, as a clause: `gguf:q4_0 needs a multiple of 32`.
        expected: String,
    },
    /// An array of a kind that the argument does not take (`TypeError`).
    Dtype {
        /// The argument at fault.
        argument: String,
        /// The dtype or type that was found.
        found: String,
        /// What the argument takes.
        expected: String,
    },
    /// A value outside what the argument takes (`ValueError`).
    Value {
        /// The argument at fault.
        argument: String,
        /// The value that was found.
        found: String,
        /// What the argument takes.
        expected: String,
    },
    /// An option that the format does not have (`TypeError`).
    Option {
        /// The option that was given.
        option: String,
        /// The format.
        format: String,
        /// The options that the format has.
        options: Vec<&'static str>,
    },
    /// A method that the format does not have (`TypeError`).
    Method {
        /// The method.
        method: &'static str,
        /// The format.
        format: String,
        /// The formats that have it, with the option of the variant.
        formats: Vec<String>,
    },
    /// No format of this name (`ValueError`).
    UnknownFormat {
        /// The name that was given.
        name: String,
        /// Names that are near, best first.
        near: Vec<String>,
    },
    /// The array holds NaN or infinities under `nonfinite="raise"` (`ValueError`).
    NonFinite {
        /// How many elements are not finite.
        count: u64,
        /// Where the first one is, in the caller's own axes.
        first: Vec<usize>,
        /// Its value.
        value: f64,
    },
    /// A scale or minimum is beyond the largest number of the dtype that stores it (`ValueError`).
    ScaleOverflow {
        /// What is beyond it: `scale` or `minimum`, or the name of a part that the tensor has once.
        part: &'static str,
        /// The dtype that cannot hold it.
        dtype: &'static str,
        /// Index of the first such group, in the caller's own axes with the group axis counted in groups; empty of what the tensor
        /// has once.
        group: Vec<usize>,
    },
    /// The target format cannot hold the same values (`LossyConversionError`, a `ValueError`).
    Lossy {
        /// The format converted from.
        from: String,
        /// The format converted to.
        to: String,
        /// The fact that differs.
        reason: String,
    },
    /// A file that breaks the rules of its container, or a tensor in it those of its format (`CorruptFileError`, a `ValueError`).
    Corrupt {
        /// The container: `safetensors`, `npy`.
        container: &'static str,
        /// What is wrong, with the name of the tensor.
        reason: String,
    },
    /// Memory for a named thing could not be had (`MemoryError`).
    Memory {
        /// What the memory was for.
        what: String,
        /// How many bytes were asked for.
        bytes: u64,
    },
    /// The operating system refused (`OSError` and its subclasses).
    Io {
        /// What it said.
        source: std::io::Error,
        /// The file.
        path: PathBuf,
    },
    /// The caller asked to stop (in Python: the exception of the signal handler, usually `KeyboardInterrupt`).
    Cancelled,
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A [`Error::Shape`] from three clauses.
    pub fn shape(argument: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Error::Shape { argument: argument.into(), found: found.into(), expected: expected.into() }
    }

    /// A [`Error::Dtype`] from three clauses.
    pub fn dtype(argument: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Error::Dtype { argument: argument.into(), found: found.into(), expected: expected.into() }
    }

    /// A [`Error::Value`] from three clauses.
    pub fn value(argument: impl Into<String>, found: impl Into<String>, expected: impl Into<String>) -> Self {
        Error::Value { argument: argument.into(), found: found.into(), expected: expected.into() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Shape { argument, found, expected } => write!(f, "{argument} {found}; {expected}"),
            Error::Dtype { argument, found, expected } => write!(f, "{argument} has dtype {found}; expected {expected}"),
            Error::Value { argument, found, expected } => write!(f, "{argument} is {found}; {expected}"),
            Error::Option { option, format, options } if options.is_empty() => {
                write!(f, "{format} has no option {option}; it takes none")
            }
            Error::Option { option, format, options } => {
                write!(f, "{format} has no option {option}; it takes {}", options.join(", "))
            }
            Error::Method { method, format, formats } => {
                write!(f, "{format} has no method '{method}' with these options; formats that have it: {}", formats.join(", "))
            }
            Error::UnknownFormat { name, near } if near.is_empty() => write!(f, "no format '{name}'; formats() lists them"),
            Error::UnknownFormat { name, near } => write!(f, "no format '{name}'; did you mean '{}'?", near.join("', '")),
            Error::NonFinite { count, first, value } => {
                let value = value.to_string().to_lowercase();
                match count {
                    1 => write!(f, "1 element is not finite, that at {} is {value}; ", Index(first))?,
                    _ => write!(f, "{count} elements are not finite, the first at {} is {value}; ", Index(first))?,
                }
                write!(f, "clean the array or choose a policy with nonfinite=\"zero\" or \"clip\"")
            }
            Error::ScaleOverflow { part, dtype, group } => {
                let of = if group.is_empty() { String::new() } else { format!(" of group {}", Index(group)) };
                write!(
                    f,
                    "the {part}{of} is beyond the largest {dtype}; use scale_dtype=float32 where the format has it, or scale the array down"
                )
            }
            Error::Lossy { from, to, reason } => {
                write!(f, "{from} to {to} would change values: {reason}; requantize=True goes through floats")
            }
            Error::Corrupt { container, reason } => write!(f, "{container}: {reason}"),
            Error::Memory { what, bytes } => write!(f, "cannot allocate {} for {what}", Bytes(*bytes)),
            Error::Io { source, path } => write!(f, "{}: {source}", path.display()),
            Error::Cancelled => write!(f, "cancelled by the caller"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

/// An index or a shape as Python writes a tuple: `(3, 17)`, `(5,)`, `()`.
pub(crate) struct Index<'a>(pub(crate) &'a [usize]);

impl fmt::Display for Index<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            [one] => write!(f, "({one},)"),
            many => write!(f, "({})", many.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")),
        }
    }
}

/// A number of bytes in decimal units: `34.4 GB`.
struct Bytes(u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut amount = self.0 as f64;
        for unit in ["bytes", "kB", "MB", "GB", "TB"] {
            // What would be rounded to 1000.0 is 1.0 of the next unit.
            if amount < 999.95 || unit == "TB" {
                let digits = usize::from(unit != "bytes");
                return write!(f, "{amount:.digits$} {unit}");
            }
            amount /= 1000.0;
        }
        unreachable!("the last unit returns")
    }
}
