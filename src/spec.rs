//! What a format is, as data ([`Spec`]), and a format settled for one tensor ([`Layout`]). Never numerics.
//!
//! Everything that follows from a shape stands here: how many groups there are, what shape each part has, how many bytes.

use crate::element::Dtype;
use crate::error::{Error, Index, Result};

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
    /// The group sizes that it takes.
    pub group_sizes: GroupSizes,
    /// The dtypes that its scales can have; the first one is the default.
    pub scale_dtypes: &'static [ScaleDtype],
    /// Whether the default is the dtype of the array instead, where the scales can have it.
    pub scales_follow_array: bool,
    /// The arrays that it stores, in the order in which they are passed everywhere.
    pub parts: &'static [Part],
    /// The project whose bytes it reproduces, and the version that was compared.
    pub home: &'static str,
}

/// The numerics of a scheme: how a code becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// x ~ code * scale, codes -8..=7.
    Symmetric,
    /// x ~ (code - zero_point) * scale, codes and zero points 0..=15.
    Affine,
    /// x ~ code * scale + minimum, codes 0..=15.
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
    /// One of these sizes; the last axis must be a multiple of it.
    OneOf {
        /// The sizes, ascending.
        sizes: &'static [usize],
        /// The size where none is given.
        default: usize,
    },
    /// Any size, a whole row or the whole tensor; the last group of a row may be short.
    Any {
        /// The size where none is given.
        default: usize,
    },
}

impl GroupSizes {
    /// Whether `size` is one of them.
    pub fn takes(self, size: GroupSize) -> bool {
        match self {
            GroupSizes::Fixed(only) | GroupSizes::InBlocks { size: only, .. } => size == GroupSize::Elements(only),
            GroupSizes::OneOf { sizes, .. } => matches!(size, GroupSize::Elements(n) if sizes.contains(&n)),
            GroupSizes::Any { .. } => size != GroupSize::Elements(0),
        }
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
}

impl ScaleDtype {
    /// Bytes of one scale.
    pub fn size(self) -> usize {
        match self {
            ScaleDtype::F16 | ScaleDtype::Bf16 => 2,
            ScaleDtype::F32 => 4,
            ScaleDtype::E8m0 | ScaleDtype::E4m3 => 1,
        }
    }

    /// The name that numpy and its users give it.
    pub fn name(self) -> &'static str {
        match self {
            ScaleDtype::F16 => "float16",
            ScaleDtype::Bf16 => "bfloat16",
            ScaleDtype::F32 => "float32",
            ScaleDtype::E8m0 => "float8_e8m0fnu",
            ScaleDtype::E4m3 => "float8_e4m3fn",
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
    /// The scale dtype that was chosen.
    Scale,
}

/// The length of the last axis of a part (or the last two); the axes before it are those of the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Two codes a byte, each row padded to a whole element: `ceil(K / 2)` bytes.
    Codes,
    /// The same, with an axis for the bytes of a group: `G, g / 2`.
    GroupCodes,
    /// One element a group: `G`.
    Groups,
    /// Two groups a byte, each row padded to a whole byte: `ceil(G / 2)`.
    GroupPairs,
    /// So many bytes a group: `G * n`.
    Blocks(usize),
}

/// The options of a format, as the caller gave them; `None` takes the format's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Elements that share a scale.
    pub group_size: Option<GroupSize>,
    /// The dtype of the scales.
    pub scale_dtype: Option<ScaleDtype>,
}

/// A format settled for one tensor.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The format.
    pub spec: &'static Spec,
    /// The shape of the tensor with the group axis last.
    pub shape: Vec<usize>,
    /// Elements that share a scale.
    pub group_size: GroupSize,
    /// The dtype of the scales.
    pub scale_dtype: ScaleDtype,
}

impl Spec {
    /// The names of the options that the format takes.
    pub fn options(&self) -> Vec<&'static str> {
        let mut names = Vec::new();
        if !matches!(self.group_sizes, GroupSizes::Fixed(_) | GroupSizes::InBlocks { .. }) {
            names.push("group_size");
        }
        if self.scale_dtypes.len() > 1 {
            names.push("scale_dtype");
        }
        names
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

    /// Bits per weight, scales included, for rows of whole groups of `group` elements.
    pub fn bits_per_weight(&self, group: usize, scale_dtype: ScaleDtype) -> f64 {
        let bits = |part: &Part| match (part.extent, part.dtype) {
            (Extent::Codes | Extent::GroupCodes, _) => 4.0,
            (Extent::Groups, PartDtype::U8) => 8.0 / group as f64,
            (Extent::Groups, _) => 8.0 * scale_dtype.size() as f64 / group as f64,
            (Extent::GroupPairs, _) => 4.0 / group as f64,
            (Extent::Blocks(bytes), _) => 8.0 * bytes as f64 / group as f64,
        };
        self.parts.iter().map(bits).sum()
    }
}

impl Layout {
    /// Settle `spec` for a tensor of `shape` (group axis last).
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for a group size that the format does not have, [`Error::Option`] for an option that it lacks,
    /// [`Error::Shape`] for a 0-d tensor, a last axis that its blocks do not divide, or more elements than memory can address.
    pub fn new(spec: &'static Spec, shape: &[usize], options: Options) -> Result<Layout> {
        let Some(&columns) = shape.last() else {
            return Err(Error::shape("array", "is 0-d", "give it at least one axis, for example with array[None]"));
        };
        let addressable = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n.max(1)));
        if addressable.is_none_or(|n| n > isize::MAX as usize / 8) {
            return Err(Error::shape("shape", format!("is {}", Index(shape)), "that is more than memory can address"));
        }
        let group_size = match (spec.group_sizes, options.group_size) {
            (GroupSizes::Fixed(n) | GroupSizes::InBlocks { size: n, .. }, None) => GroupSize::Elements(n),
            (GroupSizes::Fixed(n) | GroupSizes::InBlocks { size: n, .. }, Some(GroupSize::Elements(given))) if given == n => {
                GroupSize::Elements(n)
            }
            (GroupSizes::Fixed(n) | GroupSizes::InBlocks { size: n, .. }, Some(given)) => {
                return Err(Error::value("group_size", given.to_string(), format!("{} takes {n}", spec.name)));
            }
            (GroupSizes::OneOf { default, .. }, None) => GroupSize::Elements(default),
            (GroupSizes::OneOf { sizes, .. }, Some(given)) => match given {
                GroupSize::Elements(n) if sizes.contains(&n) => given,
                _ => {
                    let names: Vec<String> = sizes.iter().map(usize::to_string).collect();
                    let names = names.join(", ");
                    let takes = names.rsplit_once(", ").map_or(names.clone(), |(others, last)| format!("{others} or {last}"));
                    return Err(Error::value("group_size", given.to_string(), format!("{} takes {takes}", spec.name)));
                }
            },
            (GroupSizes::Any { .. }, Some(GroupSize::Elements(0))) => {
                return Err(Error::value("group_size", "0", format!("{} takes 1 or more, \"row\" or \"tensor\"", spec.name)));
            }
            (GroupSizes::Any { default }, given) => given.unwrap_or(GroupSize::Elements(default)),
        };
        if let GroupSize::Elements(n) = group_size
            && !matches!(spec.group_sizes, GroupSizes::Any { .. })
            && columns % spec.block(n) != 0
        {
            let found = format!("has {columns} elements");
            return Err(Error::shape("last axis", found, format!("{} needs a multiple of {}", spec.name, spec.block(n))));
        }
        let scale_dtype = match options.scale_dtype {
            None => spec.scale_dtypes[0],
            Some(given) if spec.scale_dtypes.len() > 1 && spec.scale_dtypes.contains(&given) => given,
            Some(_) => {
                return Err(Error::Option { option: "scale_dtype".into(), format: spec.name.into(), options: spec.options() });
            }
        };
        Ok(Layout { spec, shape: shape.to_vec(), group_size, scale_dtype })
    }

    /// Length of the group axis.
    pub fn columns(&self) -> usize {
        self.shape[self.shape.len() - 1]
    }

    /// Product of the other axes.
    pub fn rows(&self) -> usize {
        self.shape[..self.shape.len() - 1].iter().product()
    }

    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows() * self.columns()
    }

    /// Elements of one group along the axis: the whole axis for `Row` and `Tensor`, never 0.
    pub fn group_elements(&self) -> usize {
        match self.group_size {
            GroupSize::Elements(n) => n,
            GroupSize::Row | GroupSize::Tensor => self.columns().max(1),
        }
    }

    /// Groups of one row (one for the whole tensor counts as one of every row).
    pub fn groups_per_row(&self) -> usize {
        self.columns().div_ceil(self.group_elements())
    }

    /// The shape of anything that has one element a group: `(..., G)`, or `(1, ..., 1)` for the whole tensor.
    pub fn groups_shape(&self) -> Vec<usize> {
        self.shape_with(self.groups_per_row())
    }

    /// The shape of part `index` of the spec.
    pub fn part_shape(&self, index: usize) -> Vec<usize> {
        let groups = self.groups_per_row();
        match self.spec.parts[index].extent {
            Extent::Groups => self.shape_with(groups),
            Extent::GroupPairs => self.shape_with(groups.div_ceil(2)),
            Extent::Codes => self.row_shape(self.columns().div_ceil(2).div_ceil(self.part_item_size(index))),
            Extent::GroupCodes => {
                let mut shape = self.row_shape(groups);
                shape.push(self.group_elements() / 2);
                shape
            }
            Extent::Blocks(bytes) => self.row_shape(groups * bytes),
        }
    }

    /// Bytes of one element of part `index`.
    pub fn part_item_size(&self, index: usize) -> usize {
        match self.spec.parts[index].dtype {
            PartDtype::U8 => 1,
            PartDtype::U32 => 4,
            PartDtype::Scale => self.scale_dtype.size(),
        }
    }

    /// Bytes of part `index`.
    pub fn part_bytes(&self, index: usize) -> usize {
        self.part_shape(index).iter().product::<usize>() * self.part_item_size(index)
    }

    /// Bytes of all parts.
    pub fn bytes(&self) -> usize {
        (0..self.spec.parts.len()).map(|index| self.part_bytes(index)).sum()
    }

    /// Bytes that part `index` takes for the codes of `elements` of a row; 0 where it holds none, or there is no such part.
    pub(crate) fn code_bytes(&self, index: usize, elements: usize) -> usize {
        match self.spec.parts.get(index).map(|part| part.extent) {
            Some(Extent::Codes | Extent::GroupCodes) => elements.div_ceil(2),
            Some(Extent::Blocks(bytes)) => elements.div_ceil(self.group_elements()) * bytes,
            Some(Extent::Groups | Extent::GroupPairs) | None => 0,
        }
    }

    fn row_shape(&self, last: usize) -> Vec<usize> {
        let mut shape = self.shape.clone();
        *shape.last_mut().expect("a layout has an axis") = last;
        shape
    }

    /// As [`Self::row_shape`], except that one group for the whole tensor has no axes to run along.
    fn shape_with(&self, last: usize) -> Vec<usize> {
        match self.group_size {
            GroupSize::Tensor => vec![usize::from(self.elements() > 0); self.shape.len()],
            _ => self.row_shape(last),
        }
    }
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
