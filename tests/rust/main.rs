//! The core from outside: every level, every format, properties.

mod formats;
mod levels;
