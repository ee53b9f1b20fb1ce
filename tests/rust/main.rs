//! The core from outside: every level, every format, properties.

mod files;
mod formats;
mod levels;
mod search;
