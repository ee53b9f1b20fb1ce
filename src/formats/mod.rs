//! The formats: one file each, one line each in [`FORMATS`].
//!
//! A format has two sides, and [`Groups`] lies between them: `quantize` and `dequantize` are its numerics, `pack` and `unpack`
//! its layout. `encode` and `decode` are both sides at once; a format overrides them where the detour through [`Groups`] costs.
//!
//! Formats whose rows follow each other in every part are [`Rows`]. Others stand on one of these, and say how their parts are
//! made of its: [`Weave`] where rows lie side by side, [`Nest`] where scales are quantized in turn.

mod awq;
mod blocks;
pub(crate) mod bnb;
mod compressed_tensors;
mod e2m1;
mod gptq;
mod hqq;
mod int4;
mod iq4;
mod iq4_nl;
mod iq4_xs;
mod lines;
mod mlx;
mod mxfp4;
mod nvfp4;
mod nvfp4_planar;
mod onnx;
mod planar;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod transposed;
mod uint4;
mod wide;

pub use crate::kernels::encode::Faults;
pub use crate::kernels::range::{Need, Range};

use crate::error::{Error, Result};
use crate::kernels::blocks::{Block, BlockMut};
use crate::kernels::decode::Output;
use crate::kernels::encode::Input;
use crate::kernels::words::Kept;
use crate::level::Level;
use crate::search::Nested;
use crate::spec::{Choice, ScaleDtype, Spec};

/// Every format; the variants that an option selects follow each other, the default first. Python, the documentation, the tests
/// and the benches follow this list.
pub static FORMATS: &[Format] = &[
    Format::Rows(&int4::FORMAT),
    Format::Rows(&uint4::FORMAT),
    Format::Rows(&q4_0::FORMAT),
    Format::Rows(&q4_1::FORMAT),
    Format::Rows(&q4_k::FORMAT),
    Format::Rows(&iq4_nl::FORMAT),
    Format::Rows(&iq4_xs::FORMAT),
    Format::Rows(&nvfp4::FORMAT),
    Format::Rows(&mlx::FORMAT),
    Format::Rows(&mxfp4::GGUF),
    Format::Rows(&mxfp4::GPT_OSS),
    Format::Rows(&mxfp4::MLX),
    Format::Rows(&mxfp4::COMPRESSED_TENSORS),
    Format::Rows(&mxfp4::TORCHAO_FLOOR),
    Format::Rows(&mxfp4::TORCHAO_RCEIL),
    Format::Rows(&mxfp4::TORCHAO_CEIL),
    Format::Rows(&mxfp4::TORCHAO_EVEN),
    Format::Rows(&nvfp4_planar::MLX),
    Format::Rows(&nvfp4_planar::COMPRESSED_TENSORS),
    Format::Rows(&nvfp4_planar::MODEL_OPT),
    Format::Rows(&nvfp4_planar::TORCHAO),
    Format::Rows(&nvfp4_planar::TORCHAO_ONE_LEVEL),
    Format::Woven(&gptq::SYMMETRIC),
    Format::Woven(&gptq::ASYMMETRIC),
    Format::Woven(&gptq::V2_SYMMETRIC),
    Format::Woven(&gptq::V2_ASYMMETRIC),
    Format::Woven(&awq::FORMAT),
    Format::Rows(&onnx::MATMUL_SYMMETRIC),
    Format::Rows(&onnx::MATMUL_ASYMMETRIC),
    Format::Woven(&onnx::QDQ_SYMMETRIC),
    Format::Woven(&onnx::QDQ_ASYMMETRIC),
    Format::Rows(&bnb::NF4),
    Format::Nested(&bnb::NF4_NESTED),
    Format::Rows(&bnb::FP4),
    Format::Nested(&bnb::FP4_NESTED),
    Format::Woven(&compressed_tensors::SYMMETRIC),
    Format::Woven(&compressed_tensors::ASYMMETRIC),
    Format::Woven(&hqq::FORMAT),
    Format::Rows(&q8_0::FORMAT),
    Format::Rows(&q5_0::FORMAT),
    Format::Rows(&q5_1::FORMAT),
    Format::Rows(&q5_k::FORMAT),
    Format::Rows(&q6_k::FORMAT),
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

/// A format, by how its parts lie.
#[derive(Clone, Copy)]
pub enum Format {
    /// Rows follow each other in every part.
    Rows(&'static dyn Rows),
    /// Rows lie side by side.
    Woven(&'static dyn Weave),
    /// Scales are quantized in turn.
    Nested(&'static dyn Nest),
}

impl Format {
    /// The facts.
    pub fn spec(self) -> &'static Spec {
        match self {
            Format::Rows(format) => format.spec(),
            Format::Woven(format) => format.spec(),
            Format::Nested(format) => format.spec(),
        }
    }

    /// The format with the same numerics whose rows follow each other.
    pub fn rows(self) -> &'static dyn Rows {
        match self {
            Format::Rows(format) => format,
            Format::Woven(format) => format.rows(),
            Format::Nested(format) => format.plain(),
        }
    }
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
    /// The second level of the scales, 1 where there is none.
    pub global: f32,
    /// Whether what is written goes past the caches, where the format can do that: decoded floats, codes that are turned, or those of a format that
    /// [`Rows::streams`]. Then the thread runs [`crate::kernels::stream::Fence`] before it says that it is done.
    pub stream: bool,
}

impl Context {
    /// Groups that `elements` make.
    pub fn groups(&self, elements: usize) -> usize {
        elements.div_ceil(self.group)
    }
}

/// A format whose rows follow each other in every part: facts, numerics, layout. A part is the little-endian bytes of a tile's
/// share of it, in the order of the spec; parts that the tensor has once are empty.
pub trait Rows: Sync {
    /// The facts.
    fn spec(&self) -> &'static Spec;

    /// What of a group's range its scale is made from.
    fn need(&self) -> Need;

    /// The second level of the scales of a tensor whose largest magnitude is `largest`.
    fn global(&self, _largest: f32) -> f32 {
        1.0
    }

    /// Bytes of a header, where the one part is blocks of 32 elements in the order of [`crate::kernels::halves`].
    fn halves_after(&self) -> Option<usize> {
        None
    }

    /// Codes, scales and offsets of the groups of `x`. `range` is that of the one group that all of `x` belongs to, where a
    /// group is longer than a tile and was surveyed before.
    fn quantize(&self, context: Context, x: &[f32], range: Option<Range>, groups: &mut Groups) -> Faults;

    /// The headers of blocks whose scales and minimums are multiples of these units; see [`Groups::headers`].
    fn write_headers(&self, _units: &[[f32; 2]], _groups: &mut Groups) {}

    /// The bytes of groups. Parts that hold one element a group may be empty: then only the codes are wanted.
    fn pack(&self, context: Context, groups: &Groups, parts: &mut [&mut [u8]]);

    /// The groups of bytes: as many elements as `groups.codes` is long. Parts that hold one element a group may be empty: then
    /// only the codes are wanted.
    fn unpack(&self, context: Context, parts: &[&[u8]], groups: &mut Groups);

    /// The floats that groups stand for.
    fn dequantize(&self, context: Context, groups: &Groups, x: &mut [f32]);

    /// Whether codes of groups of that size are made without a scratch for all elements, and go past the caches where the context says so.
    fn streams(&self, _group: usize) -> bool {
        false
    }

    /// `quantize` and `pack`.
    fn encode(&self, context: Context, x: Input<'_>, groups: &mut Groups, parts: &mut [&mut [u8]]) -> Faults {
        groups.resize(self.spec(), context, x.len());
        let faults = self.quantize(context, &x.floats(context.level), None, groups);
        self.pack(context, groups, parts);
        faults
    }

    /// `quantize` and `pack` of a part of a group whose range is known, codes alone.
    fn encode_part(&self, context: Context, x: &[f32], range: Range, groups: &mut Groups, parts: &mut [&mut [u8]]) {
        let context = Context { group: x.len(), ..context };
        groups.resize(self.spec(), context, x.len());
        self.quantize(context, x, Some(range), groups);
        self.pack(context, groups, parts);
    }

    /// `unpack` and `dequantize`.
    fn decode(&self, context: Context, parts: &[&[u8]], groups: &mut Groups, x: Output<'_>) {
        groups.resize(self.spec(), context, x.len());
        self.unpack(context, parts, groups);
        x.fill(context.level, |x| self.dequantize(context, groups, x));
    }
}

/// A format whose rows lie side by side: a word holds codes of several rows, or the parts are those of the transposed matrix.
///
/// The engine cuts the tensor into tiles of some rows and columns, encodes a tile as the format [`Weave::rows`] does, and has it
/// woven into the blocks of the parts that the tile covers.
pub trait Weave: Sync {
    /// The facts.
    fn spec(&self) -> &'static Spec;

    /// The format with the same numerics whose rows follow each other, each padded to a whole byte: codes, scales and, if there
    /// are zero points, those, one element a group.
    fn rows(&self) -> &'static dyn Rows;

    /// The tile as rows to the tile in the parts; where `rows[0]` is empty the codes are there already.
    fn weave(&self, context: Context, tile: Tile, rows: &[&[u8]], parts: &mut [BlockMut<'_>]);

    /// The tile in the parts to the tile as rows; where `rows[0]` is empty only the scales and zero points are wanted.
    fn unweave(&self, context: Context, tile: Tile, parts: &[Block<'_>], rows: &mut [&mut [u8]]);

    /// Itself, where its parts are those of the turned matrix.
    fn turned(&self) -> Option<&dyn Turned> {
        None
    }
}

/// A format whose parts are those of the turned matrix, its codes the first: from one of them to another nothing need be turned, and
/// between them and those of rows that are two a byte codes are turned where they lie.
pub trait Turned: Sync {
    /// Which codes share a word, where the matrix has whole words.
    fn kept(&self) -> Kept;

    /// The part of the codes from the codes of rows, two a byte; every nibble is combined with `flip` by exclusive or.
    fn turn(&self, context: Context, rows: Block<'_>, flip: u8, part: BlockMut<'_>);

    /// The reverse.
    fn turn_back(&self, context: Context, part: Block<'_>, flip: u8, rows: BlockMut<'_>);

    /// The scales and offsets of a row of groups of the turned matrix.
    fn unpack_row(&self, context: Context, parts: &[Block<'_>], row: usize, groups: &mut Groups);

    /// The parts of the scales and offsets of a row of groups of the turned matrix.
    fn pack_row(&self, context: Context, groups: &Groups, parts: &mut [BlockMut<'_>], row: usize);
}

/// Lengths of a tile. It begins at a multiple of 8 rows, a whole group and a whole byte of a row.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    /// Rows.
    pub rows: usize,
    /// Elements of each of them.
    pub columns: usize,
}

/// A format whose scales, one f32 a group, are quantized in turn.
pub trait Nest: Sync {
    /// The facts.
    fn spec(&self) -> &'static Spec;

    /// The format with plain scales: codes, then scales.
    fn plain(&self) -> &'static dyn Rows;

    /// The parts after the codes from the scales.
    fn nest(&self, level: Level, scales: &[f32], parts: &mut [&mut [u8]]);

    /// The scales that the parts after the codes can hold, whatever their codes.
    fn nested(&self, parts: &[&mut [u8]]) -> Nested;

    /// Change the codes of the scales to those of `scales`; where it is none of those that there are the code stays.
    fn renest(&self, scales: &[f32], parts: &mut [&mut [u8]]) {
        let nested = self.nested(parts);
        for (group, (&scale, code)) in scales.iter().zip(&mut *parts[0]).enumerate() {
            *code = nested.code(scale, group).unwrap_or(*code);
        }
    }

    /// The scales from the parts after the codes.
    fn unnest(&self, level: Level, parts: &[&[u8]], scales: &mut [f32]);
}

impl Groups {
    /// Make room for `elements`.
    pub fn resize(&mut self, spec: &Spec, context: Context, elements: usize) {
        self.codes.resize(elements, 0);
        self.resize_scales(spec, context, elements);
    }

    /// Room for the scales, offsets and headers of so many elements alone.
    pub fn resize_scales(&mut self, spec: &Spec, context: Context, elements: usize) {
        let groups = context.groups(elements);
        self.scales.resize(groups, 0.0);
        self.offsets.resize(if spec.has_offsets() { groups } else { 0 }, 0.0);
        self.headers.resize(spec.header_bytes(elements), 0);
    }
}

/// The format of this name or alias, in its default variant.
///
/// # Errors
///
/// [`Error::UnknownFormat`], with names that are near.
pub fn find(name: &str) -> Result<Format> {
    let found = FORMATS.iter().find(|format| format.spec().name == name || format.spec().aliases.contains(&name));
    found.copied().ok_or_else(|| Error::UnknownFormat { name: name.to_string(), near: near(name) })
}

/// The variants of a format, the default first.
pub fn variants(spec: &Spec) -> impl Iterator<Item = Format> + Clone + use<> {
    let name = spec.name;
    FORMATS.iter().copied().filter(move |format| format.spec().name == name)
}

/// The variant of the format of this name that `choice` selects.
///
/// # Errors
///
/// [`Error::UnknownFormat`], [`Error::Option`] for an option that it lacks.
pub fn choose(name: &str, choice: Option<Choice>) -> Result<Format> {
    let format = find(name)?;
    let Some(choice) = choice else { return Ok(format) };
    let spec = format.spec();
    let lacks = || Error::Option { option: choice.option().into(), format: spec.name.into(), options: spec.options() };
    variants(spec).find(|variant| variant.spec().choice == Some(choice)).ok_or_else(lacks)
}

/// The first variant that stores the same parts: where an option concerns the encoder alone, what is stored does not show it.
pub fn stored(spec: &'static Spec) -> Format {
    let parts = |spec: &Spec| spec.parts.iter().map(|part| (part.name, part.extent)).collect::<Vec<_>>();
    let found = variants(spec).find(|variant| std::ptr::eq(variant.spec().parts, spec.parts) || parts(variant.spec()) == parts(spec));
    found.unwrap_or_else(|| of(spec))
}

/// The format that this spec is of.
///
/// # Panics
///
/// Where it is of none in the list.
pub fn of(spec: &'static Spec) -> Format {
    let found = FORMATS.iter().find(|format| std::ptr::eq(format.spec(), spec));
    *found.expect("a spec is that of a format in the list")
}

/// Names that begin or end alike, or differ in at most two letters.
fn near(name: &str) -> Vec<String> {
    let lower = name.to_lowercase();
    // Of a short word two letters are most of it.
    let far = if lower.len() < 4 { 2 } else { 3 };
    let is_near = |candidate: &str| {
        let tail = candidate.rsplit(':').next().unwrap_or(candidate);
        !lower.is_empty()
            && (candidate.contains(&lower) || lower.contains(tail) || distance(&lower, candidate) < far || distance(&lower, tail) < far)
    };
    let mut names: Vec<&str> = FORMATS.iter().map(|format| format.spec().name).collect();
    names.dedup();
    names.into_iter().filter(|candidate| is_near(candidate)).map(str::to_string).collect()
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
