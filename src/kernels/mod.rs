//! One operation a file, written once over [`crate::simd::Simd`], the formula first.
//!
//! A kernel is a struct of its operands that implements [`crate::simd::Kernel`]; `level.run(kernel)` runs it.

pub mod blocks;
pub mod codebooks;
pub mod convert;
pub mod decode;
pub mod encode;
pub mod halves;
pub mod lanes;
pub mod nibbles;
pub(crate) mod pace;
pub mod products;
pub mod range;
pub mod scales;
pub mod stream;
pub mod sums;
pub mod transpose;
pub mod words;
