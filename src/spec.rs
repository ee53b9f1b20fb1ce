//! What a format is, as data: [`Spec`] and the words that it is written in. Never numerics; what follows from the shape of a tensor is
//! in [`crate::layout`].

use crate::element::Dtype;

/// The static facts of a format: one per file in `formats/`, listed in `formats::FORMATS`.
#[derive(Debug)]
pub struct Spec {
    /// The name, `project:layout` where a project owns it.
    pub name: &'static str,
    /// Other names that find it.
    pub aliases: &'static [&'static str],
    /// One sentence for lists and documentation.
    pub summary: &'static str,
    /// How a code becomes a value.
    pub scheme: Scheme,
    /// Bits of a code.
    pub bits: u32,
    /// The group sizes that it takes.
    pub group_sizes: GroupSizes,
    /// The shapes that it takes.
    pub shapes: Shapes,
    /// The dtypes that its scales can have; the first one is the default.
    pub scale_dtypes: &'static [ScaleDtype],
    /// Whether the default is the dtype of the array instead, where the scales can have it.
    pub scales_follow_array: bool,
    /// The zero points that it can store, where the scheme is affine.
    pub zero_points: ZeroPoints,
    /// The second level of its scales, one number for the whole tensor, if it has one.
    pub global: Option<Global>,
    /// The arrays that it stores, in the order in which they are passed everywhere.
    pub parts: &'static [Part],
    /// The option that makes this variant of the format, where there are several: one spec each, of the same name.
    pub choice: Option<Choice>,
    /// The project whose bytes it reproduces, and the version that was compared.
    pub home: &'static str,
    /// Whether its rule computes in float16, so that elements beyond float16 count as infinite.
    pub half: bool,
    /// Whether encoding gives that project's bytes. Where it decodes only, or its encoder cannot be repeated, the rule is ours.
    pub exact: bool,
}

impl Spec {
    /// What most formats have in common; the rest must be filled in.
    pub(crate) const BASE: Spec = Spec {
        name: "",
        aliases: &[],
        summary: "",
        scheme: Scheme::Symmetric,
        bits: 4,
        group_sizes: GroupSizes::Fixed(32),
        shapes: Shapes::Any,
        scale_dtypes: &[],
        scales_follow_array: false,
        zero_points: ZeroPoints::Integers(0, 15),
        global: None,
        parts: &[],
        choice: None,
        home: "",
        half: false,
        exact: true,
    };

    /// The names of the options that the format takes.
    pub fn options(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        if !matches!(self.group_sizes, GroupSizes::Fixed(_) | GroupSizes::InBlocks { .. }) {
            names.push("group_size");
        }
        if self.scale_dtypes.len() > 1 {
            names.push("scale_dtype");
        }
        names.extend(self.choice.map(Choice::option));
        if self.global == Some(Global::Largest) {
            names.push("global_scale");
        }
        names
    }

    /// Whether it is no 4-bit format but the companion of some: what files of theirs store beside them.
    pub fn is_companion(&self) -> bool {
        self.bits != 4
    }

    /// The smallest and the largest code.
    pub fn codes(&self) -> (i32, i32) {
        let count = 1 << self.bits;
        if self.scheme == Scheme::Symmetric { (-count / 2, count / 2 - 1) } else { (0, count - 1) }
    }

    /// Whether groups run over the elements whatever the axes.
    pub fn is_flat(&self) -> bool {
        self.shapes == Shapes::Flat
    }

    /// Whether the parts of rows, one after the other, are the parts of the tensor, so that it can be cut between rows.
    pub fn is_by_rows(&self) -> bool {
        let by_rows = |part: &Part| {
            matches!(part.extent, Extent::Codes | Extent::GroupCodes | Extent::Groups | Extent::GroupPairs | Extent::Blocks(_))
        };
        !self.is_flat() && self.parts.iter().all(by_rows)
    }

    /// The index of the part that keeps the second level of the scales.
    pub(crate) fn global_part(&self) -> Option<usize> {
        self.global.and_then(|_| self.parts.iter().position(|part| matches!(part.extent, Extent::Scalar | Extent::One)))
    }

    /// The scale dtype that follows from an array's, where this format's do.
    pub fn scale_dtype_of(&self, array: Dtype) -> Option<ScaleDtype> {
        let follows = match array {
            Dtype::F16 => ScaleDtype::F16,
            Dtype::Bf16 => ScaleDtype::Bf16,
            Dtype::F32 | Dtype::F64 => ScaleDtype::F32,
        };
        (self.scales_follow_array && self.scale_dtypes.contains(&follows)).then_some(follows)
    }

    /// Whether groups have a zero point or a minimum beside their scale.
    pub fn has_offsets(&self) -> bool {
        matches!(self.scheme, Scheme::Affine | Scheme::Minimum)
    }

    /// Elements that are coded together where groups have `group`: a block of several, or one group.
    pub fn block(&self, group: usize) -> usize {
        if let GroupSizes::InBlocks { block, .. } = self.group_sizes { block } else { group }
    }

    /// Bytes in which `elements` keep their scales and offsets as multiples of shared ones; 0 in most formats.
    pub fn header_bytes(&self, elements: usize) -> usize {
        if let GroupSizes::InBlocks { block, header, .. } = self.group_sizes { elements / block * header } else { 0 }
    }

    /// Bits per weight, scales included, for rows of whole groups of `group` elements; what a tensor has once is not counted.
    pub fn bits_per_weight(&self, group: usize, scale_dtype: ScaleDtype) -> f64 {
        let bits = |part: &Part| match part.extent {
            Extent::Codes
            | Extent::GroupCodes
            | Extent::WordsAlongColumns
            | Extent::WordsAcrossRows
            | Extent::Transposed
            | Extent::HalfRows => 4.0,
            Extent::Groups | Extent::GroupsTransposed => match part.dtype {
                PartDtype::Scale => 8.0 * scale_dtype.size() as f64 / group as f64,
                PartDtype::F32 => 32.0 / group as f64,
                _ => 8.0 / group as f64,
            },
            Extent::GroupPairs | Extent::GroupWordsTransposed | Extent::GroupPairsTransposed | Extent::GroupWordsAcrossRows => {
                4.0 / group as f64
            }
            Extent::Blocks(bytes) => 8.0 * bytes as f64 / self.block(group) as f64,
            Extent::Nested => 32.0 / (group * NESTED) as f64,
            Extent::Scalar | Extent::One | Extent::GroupOfColumn | Extent::Lengths => 0.0,
        };
        self.parts.iter().map(bits).sum()
    }
}

/// The shapes that a format takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shapes {
    /// Any number of axes; groups run along the last one.
    Any,
    /// Two axes, (N, K), of these multiples; groups run along K.
    Matrix {
        /// N is a multiple of it.
        rows: usize,
        /// K is a multiple of it.
        columns: usize,
    },
    /// Any number of axes; groups run over the elements in C order, across the ends of rows.
    Flat,
}

/// The zero points that a format can store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ZeroPoints {
    /// Integers from the first to the second, ends included.
    Integers(u8, u8),
    /// Numbers of the scale dtype.
    Numbers,
}

/// How the second level of scales enters the effective scale of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Global {
    /// scale * global
    Multiplies,
    /// scale / global
    Divides,
    /// scale * (global / 2688): the largest magnitude of the tensor, which no part keeps. It is an option.
    Largest,
}

impl Global {
    /// The largest E2M1 number times the largest E4M3 number: 6 * 448.
    pub const LARGEST: f32 = 2688.0;

    /// The scale that elements are multiples of.
    pub fn effective(self, scale: f32, global: f32) -> f32 {
        match self {
            Global::Multiplies => scale * global,
            Global::Divides => scale / global,
            Global::Largest => scale * (global / Self::LARGEST),
        }
    }
}

/// An option that selects a variant of a format, and the variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Whether the encoder keeps every zero point in the middle.
    Symmetric(bool),
    /// Whether the scales are quantized in turn.
    DoubleQuant(bool),
    /// Whether scales have a second level.
    TwoLevel(bool),
    /// How the encoder makes the exponent of a group.
    ScaleRule(ScaleRule),
}

impl Choice {
    /// The choice of an option that is on or off.
    pub fn switch(option: &str, on: bool) -> Option<Choice> {
        match option {
            "symmetric" => Some(Choice::Symmetric(on)),
            "double_quant" => Some(Choice::DoubleQuant(on)),
            "two_level" => Some(Choice::TwoLevel(on)),
            _ => None,
        }
    }

    /// Whether the option is on, where it is on or off.
    pub fn is_on(self) -> Option<bool> {
        match self {
            Choice::Symmetric(on) | Choice::DoubleQuant(on) | Choice::TwoLevel(on) => Some(on),
            Choice::ScaleRule(_) => None,
        }
    }

    /// The name of the option.
    pub fn option(self) -> &'static str {
        match self {
            Choice::Symmetric(_) => "symmetric",
            Choice::DoubleQuant(_) => "double_quant",
            Choice::TwoLevel(_) => "two_level",
            Choice::ScaleRule(_) => "scale_rule",
        }
    }
}

/// How the exponent of a group follows from its largest magnitude.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleRule {
    /// The exponent of the magnitude, - 2.
    Floor,
    /// The smallest power of two that is not below magnitude / 6.
    Rceil,
    /// The smallest power of two that is not below the magnitude, - 2.
    Ceil,
    /// The exponent of the magnitude, raised where its mantissa is 1.75 or more, - 2.
    Even,
}

impl ScaleRule {
    /// All of them.
    pub const ALL: [ScaleRule; 4] = [ScaleRule::Floor, ScaleRule::Rceil, ScaleRule::Ceil, ScaleRule::Even];

    /// The name that users give it.
    pub fn name(self) -> &'static str {
        match self {
            ScaleRule::Floor => "floor",
            ScaleRule::Rceil => "rceil",
            ScaleRule::Ceil => "ceil",
            ScaleRule::Even => "even",
        }
    }
}

/// The numerics of a scheme: how a code becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// x ~ code * scale, codes -8..=7, or those of the [bits](Spec::bits).
    Symmetric,
    /// x ~ (code - zero_point) * scale, codes and zero points 0..=15.
    Affine,
    /// x ~ code * scale + minimum, codes 0..=15, or those of the bits.
    Minimum,
    /// x ~ `table[code]` * scale, codes 0..=15.
    Codebook(Codebook),
}

/// The tables that codebook schemes look their codes up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codebook {
    /// The 4-bit float of the OCP microscaling formats: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives.
    E2m1,
    /// The table of ggml's IQ4 formats: 16 integers from -127 to 113, closer to each other around 0.
    Iq4,
    /// The 4-bit numbers of bitsandbytes that are spaced for a normal distribution, from -1 to 1.
    Nf4,
    /// The 4-bit float of bitsandbytes: 0, 1/192, 1/6, 1/4, 1/3, 1/2, 2/3, 1 and their negatives.
    Fp4,
}

/// The group sizes that a format takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupSizes {
    /// One size; the last axis must be a multiple of it.
    Fixed(usize),
    /// One size, several groups to a block; the last axis must be a multiple of the block.
    InBlocks {
        /// Elements of a group.
        size: usize,
        /// Elements of a block.
        block: usize,
        /// Bytes of a block that hold the scales and offsets of its groups as multiples of one for all of them; 0 where each
        /// group's stand for themselves.
        header: usize,
    },
    /// One of these sizes.
    OneOf {
        /// The sizes, ascending.
        sizes: &'static [usize],
        /// The size where none is given.
        default: usize,
        /// Whether a whole row is one too.
        row: bool,
        /// Whether the last group of a row may be short; else the last axis must be a multiple of the size.
        short: bool,
    },
    /// Any size that divides the last axis, or a whole row.
    Divides {
        /// The size where none is given.
        default: usize,
    },
    /// Any size, a whole row or, where no part keeps the groups of rows apart, the whole tensor; the last group of a row may be
    /// short.
    Any {
        /// The size where none is given.
        default: usize,
        /// Whether the whole tensor is one.
        tensor: bool,
    },
}

impl GroupSizes {
    /// Whether `size` is one of them.
    pub fn takes(self, size: GroupSize) -> bool {
        match self {
            GroupSizes::Fixed(only) | GroupSizes::InBlocks { size: only, .. } => size == GroupSize::Elements(only),
            GroupSizes::OneOf { sizes, row, .. } => match size {
                GroupSize::Elements(n) => sizes.contains(&n),
                GroupSize::Row => row,
                GroupSize::Tensor => false,
            },
            GroupSizes::Divides { .. } | GroupSizes::Any { tensor: false, .. } => {
                size != GroupSize::Elements(0) && size != GroupSize::Tensor
            }
            GroupSizes::Any { tensor: true, .. } => size != GroupSize::Elements(0),
        }
    }

    /// The size where none is given.
    pub fn default(self) -> usize {
        match self {
            GroupSizes::Fixed(size) | GroupSizes::InBlocks { size, .. } => size,
            GroupSizes::OneOf { default, .. } | GroupSizes::Divides { default } | GroupSizes::Any { default, .. } => default,
        }
    }

    /// Whether the last group of a row may be short.
    pub fn may_be_short(self) -> bool {
        matches!(self, GroupSizes::OneOf { short: true, .. } | GroupSizes::Any { .. })
    }

    /// The sizes, for messages: `32, 64 or "row"`.
    pub(crate) fn names(self) -> String {
        let mut names: Vec<String> = match self {
            GroupSizes::Fixed(size) | GroupSizes::InBlocks { size, .. } => vec![size.to_string()],
            GroupSizes::OneOf { sizes, .. } => sizes.iter().map(usize::to_string).collect(),
            GroupSizes::Divides { .. } | GroupSizes::Any { .. } => vec!["1 or more".into()],
        };
        names.extend([GroupSize::Row, GroupSize::Tensor].into_iter().filter(|&size| self.takes(size)).map(|size| size.to_string()));
        let last = names.pop().unwrap_or_default();
        if names.is_empty() { last } else { format!("{} or {last}", names.join(", ")) }
    }
}

/// How many elements share a scale.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupSize {
    /// So many along the axis.
    Elements(usize),
    /// The whole axis.
    Row,
    /// The whole tensor.
    Tensor,
}

impl std::fmt::Display for GroupSize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            GroupSize::Elements(n) => write!(f, "{n}"),
            GroupSize::Row => write!(f, "\"row\""),
            GroupSize::Tensor => write!(f, "\"tensor\""),
        }
    }
}

/// A dtype that scales are stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleDtype {
    /// IEEE binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE binary32.
    F32,
    /// A byte b that stands for 2^(b - 127); 255 is NaN.
    E8m0,
    /// A float of a byte: 4 bits of exponent, 3 of mantissa, up to 448, no infinities.
    E4m3,
    /// The same without its sign.
    Ue4m3,
}

impl ScaleDtype {
    /// Bytes of one scale.
    pub fn size(self) -> usize {
        match self {
            ScaleDtype::F16 | ScaleDtype::Bf16 => 2,
            ScaleDtype::F32 => 4,
            ScaleDtype::E8m0 | ScaleDtype::E4m3 | ScaleDtype::Ue4m3 => 1,
        }
    }

    /// The name that numpy and its users give it.
    pub fn name(self) -> &'static str {
        match self {
            ScaleDtype::F16 => "float16",
            ScaleDtype::Bf16 => "bfloat16",
            ScaleDtype::F32 => "float32",
            ScaleDtype::E8m0 => "float8_e8m0fnu",
            ScaleDtype::E4m3 | ScaleDtype::Ue4m3 => "float8_e4m3fn",
        }
    }
}

/// One array that a format stores.
#[derive(Debug)]
pub struct Part {
    /// Its name in the home project.
    pub name: &'static str,
    /// What its elements are.
    pub dtype: PartDtype,
    /// How its last axis follows from the tensor.
    pub extent: Extent,
}

/// The dtype of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PartDtype {
    /// Bytes.
    U8,
    /// Words of 32 bits.
    U32,
    /// The same, signed.
    I32,
    /// Integers of 64 bits.
    I64,
    /// binary32 numbers, whatever the scale dtype.
    F32,
    /// The scale dtype that was chosen.
    Scale,
}

/// The shape of a part of a tensor (..., N, K) whose rows have G groups of g elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Two codes a byte, each row padded to a whole element: `..., N, ceil(K / 2)` bytes.
    Codes,
    /// The same, with an axis for the bytes of a group, the last one padded: `..., N, G, ceil(g / 2)`.
    GroupCodes,
    /// One element a group: `..., N, G`.
    Groups,
    /// Two groups a byte, each row padded to a whole byte: `..., N, ceil(G / 2)`.
    GroupPairs,
    /// So many bytes for what is coded together, a group or a block of g of them: `..., N, G / g * n`.
    Blocks(usize),
    /// Words of 8 codes along K: `K / 8, N`.
    WordsAlongColumns,
    /// Words of 8 codes along N: `K, N / 8`.
    WordsAcrossRows,
    /// The codes of the transposed matrix two a byte, without padding between its rows: `ceil(K * N / 2)`.
    Transposed,
    /// The codes of the first half of the rows of g elements each with one of the second half: `N * G / 2, g`.
    HalfRows,
    /// One element a group, transposed: `G, N`.
    GroupsTransposed,
    /// Words of 8 groups along N, transposed: `G, N / 8`.
    GroupWordsTransposed,
    /// Two groups a byte, transposed, without padding between rows: `ceil(G * N / 2)`.
    GroupPairsTransposed,
    /// Words of 8 groups along N: `ceil(N / 8), G`.
    GroupWordsAcrossRows,
    /// One element for each 256 groups: `ceil(G / 256)`.
    Nested,
    /// One element for the tensor, 0-d.
    Scalar,
    /// One element for the tensor, in one axis: `1`.
    One,
    /// The number of the group of each column: `K`.
    GroupOfColumn,
    /// The lengths of the axes: `2` in a matrix.
    Lengths,
}

impl Extent {
    /// The shape as a formula in N, K, G and g; `groups` are coded together.
    pub fn shape(self, groups: usize) -> String {
        match self {
            Extent::Codes => "(..., ceil(K/2) bytes)".into(),
            Extent::GroupCodes => "(..., G, g/2)".into(),
            Extent::Groups => "(..., G)".into(),
            Extent::GroupPairs => "(..., ceil(G/2))".into(),
            Extent::Blocks(bytes) if groups == 1 => format!("(..., {bytes}*G)"),
            Extent::Blocks(bytes) => format!("(..., {bytes}*G/{groups})"),
            Extent::WordsAlongColumns => "(K/8, N)".into(),
            Extent::WordsAcrossRows => "(K, N/8)".into(),
            Extent::Transposed => "(ceil(K*N/2),)".into(),
            Extent::HalfRows => "(N*G/2, g)".into(),
            Extent::GroupsTransposed => "(G, N)".into(),
            Extent::GroupWordsTransposed => "(G, N/8)".into(),
            Extent::GroupPairsTransposed => "(ceil(G*N/2),)".into(),
            Extent::GroupWordsAcrossRows => "(ceil(N/8), G)".into(),
            Extent::Nested => "(ceil(G/256),)".into(),
            Extent::Scalar => "()".into(),
            Extent::One => "(1,)".into(),
            Extent::GroupOfColumn => "(K,)".into(),
            Extent::Lengths => "(2,)".into(),
        }
    }
}

/// Groups that share a second-level scale in [`Extent::Nested`].
pub const NESTED: usize = 256;
