//! The formats: one file each, one line each in [`FORMATS`].
//!
//! A format has two sides, and [`Groups`] lies between them: `quantize` and `dequantize` are its numerics, `pack` and `unpack`
//! its layout. `encode` and `decode` are both sides at once; a format overrides them where the detour through [`Groups`] costs.

mod blocks;
mod e2m1;
mod int4;
mod iq4;
mod iq4_nl;
mod iq4_xs;
mod mlx;
mod mxfp4;
mod nvfp4;
mod planar;
mod q4_0;
mod q4_1;
mod q4_k;
mod uint4;

pub use crate::kernels::encode::Faults;
pub use crate::kernels::range::{Need, Range};

use crate::error::{Error, Result};
use crate::level::Level;
use crate::spec::{ScaleDtype, Spec};

/// Every format. Python, the documentation, the tests and the benches follow this list.
pub static FORMATS: &[&dyn Format] = &[
    &int4::FORMAT,
    &uint4::FORMAT,
    &q4_0::FORMAT,
    &q4_1::FORMAT,
    &q4_k::FORMAT,
    &iq4_nl::FORMAT,
    &iq4_xs::FORMAT,
    &nvfp4::FORMAT,
    &mlx::FORMAT,
    &mxfp4::GGUF,
    &mxfp4::GPT_OSS,
    &mxfp4::MLX,
    &mxfp4::COMPRESSED_TENSORS,
];

/// A tile of whole groups between numerics and layout; a last group may be short.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Groups {
    /// One code an element, in the scheme's own range.
    pub codes: Vec<i8>,
    /// One scale a group, exactly as it is stored.
    pub scales: Vec<f32>,
    /// One zero point or minimum a group, exactly as it is stored; empty in a symmetric scheme.
    pub offsets: Vec<f32>,
    /// The bytes that a format with two levels of scales stores both levels in, block by block; empty in others. There `pack`
    /// reads these, not the products in `scales` and `offsets`, which do not tell how they were made.
    pub headers: Vec<u8>,
}

/// What a tile is worked on with.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The instruction set.
    pub level: Level,
    /// Elements of a group.
    pub group: usize,
    /// The dtype of the scales.
    pub scale_dtype: ScaleDtype,
    /// Whether decoded floats go past the caches, where the format can do that.
    pub stream: bool,
}

impl Context {
    /// Groups that `elements` make.
    pub fn groups(&self, elements: usize) -> usize {
        elements.div_ceil(self.group)
    }
}

/// A format: facts, numerics, layout. A part is the little-endian bytes of a tile's share of it, in the order of the spec.
pub trait Format: Sync {
    /// The facts.
    fn spec(&self) -> &'static Spec;

    /// What of a group's range its scale is made from.
    fn need(&self) -> Need;

    /// Codes, scales and offsets of the groups of `x`. `range` is that of the one group that all of `x` belongs to, where a
    /// group is longer than a tile and was surveyed before.
    fn quantize(&self, context: Context, x: &[f32], range: Option<Range>, groups: &mut Groups) -> Faults;

    /// The bytes of groups. Parts that hold one element a group may be empty: then only the codes are wanted.
    fn pack(&self, context: Context, groups: &Groups, parts: &mut [&mut [u8]]);

    /// The groups of bytes: as many elements as `groups.codes` is long. Parts that hold one element a group may be empty: then
    /// only the codes are wanted.
    fn unpack(&self, context: Context, parts: &[&[u8]], groups: &mut Groups);

    /// The floats that groups stand for.
    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]);

    /// `quantize` and `pack`.
    fn encode(&self, context: Context, x: &[f32], groups: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        groups.resize(self.spec(), context, x.len());
        let faults = self.quantize(context, x, None, groups);
        self.pack(context, groups, parts);
        faults
    }

    /// `unpack` and `dequantize`.
    fn decode(&self, context: Context, parts: &[&[u8]], groups: &mut Groups, x: &mut [f32]) {
        groups.resize(self.spec(), context, x.len());
        self.unpack(context, parts, groups);
        self.dequantize(context, groups, x);
    }
}

impl Groups {
    /// Make room for `elements`.
    pub fn resize(&mut self, spec: &Spec, context: Context, elements: usize) {
        let groups = context.groups(elements);
        self.codes.resize(elements, 0);
        self.scales.resize(groups, 0.0);
        self.offsets.resize(if spec.has_offsets() { groups } else { 0 }, 0.0);
        self.headers.resize(spec.header_bytes(elements), 0);
    }
}

/// The format of this name or alias.
///
/// # Errors
///
/// [`Error::UnknownFormat`], with names that are near.
pub fn find(name: &str) -> Result<&'static dyn Format> {
    let found = FORMATS.iter().find(|format| format.spec().name == name || format.spec().aliases.contains(&name));
    found.copied().ok_or_else(|| Error::UnknownFormat { name: name.to_string(), near: near(name) })
}

/// Names that begin or end alike, or differ in at most two letters.
fn near(name: &str) -> Vec<String> {
    let lower = name.to_lowercase();
    let is_near = |candidate: &str| {
        let tail = candidate.rsplit(':').next().unwrap_or(candidate);
        !lower.is_empty()
            && (candidate.contains(&lower) || lower.contains(tail) || distance(&lower, candidate) <= 2 || distance(&lower, tail) <= 2)
    };
    let names = FORMATS.iter().map(|format| format.spec().name);
    names.filter(|candidate| is_near(candidate)).map(str::to_string).collect()
}

/// Insertions, deletions and replacements that lead from one word to the other.
fn distance(from: &str, to: &str) -> usize {
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (i, a) in from.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, b) in to.bytes().enumerate() {
            let replaced = diagonal + usize::from(a != b);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[to.len()]
}
