//! Float arrays to 4-bit codes and back: fast, exact, in every layout in use.
//!
//! The map, from the outside in; imports run one way, downwards:
//!
//! | module | what it is |
//! |---|---|
//! | `python` | the extension module, only with the feature of that name |
//! | [`files`] | containers of named tensors, and conversion between them |
//! | [`feedback`] | codes and scales by what the inputs of a layer say |
//! | [`engine`] | cuts arrays into tiles, runs them on threads, stops when asked |
//! | [`pool`], [`threads`] | the threads, and how many |
//! | [`formats`] | one file a format: its facts, its numerics, its layout |
//! | [`search`] | the scales of the smallest error |
//! | [`kernels`] | one operation a file, written once over [`simd`] |
//! | [`simd`] | sixteen lanes of f32 on every instruction set |
//! | [`element`] | float16, bfloat16, float32, float64 in any memory order |
//! | [`tensor`] | a quantized tensor that owns its parts |
//! | [`layout`] | a format settled for one tensor: the shapes and sizes of its parts |
//! | [`spec`], [`error`], [`level`] | what a format is, what goes wrong, which instruction set |
//!
//! ```
//! use quantize::{element::Source, engine, formats, layout::{Layout, Options}};
//!
//! let weights: Vec<f32> = (0..128).map(|i| i as f32 - 64.0).collect();
//! let layout = Layout::new(formats::find("int4")?.spec(), &[2, 64], Options::default())?;
//! let quantized = engine::quantize_owned(&Source::from_slice(&weights, &[2, 64]), layout)?;
//! assert_eq!(quantized.parts[0].len(), 64);
//! let restored = engine::dequantize_owned(&quantized)?;
//! assert!(weights.iter().zip(&restored).all(|(x, y)| (x - y).abs() <= 4.0));
//! # Ok::<(), quantize::error::Error>(())
//! ```

pub mod element;
pub mod engine;
pub mod error;
pub mod feedback;
pub mod files;
pub mod formats;
pub mod kernels;
pub mod layout;
pub mod level;
pub mod pool;
pub mod search;
pub mod simd;
pub mod spec;
pub mod tensor;
pub mod threads;

#[cfg(feature = "python")]
mod python;
