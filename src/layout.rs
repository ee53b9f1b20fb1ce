//! A format settled for one tensor: how many groups there are, what shape each part has, how many bytes.

use crate::error::{Error, Index, Result};
use crate::spec::{Choice, Extent, Global, GroupSize, NESTED, PartDtype, ScaleDtype, Shapes, Spec};

/// The options of a format, as the caller gave them; `None` takes the format's own.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Elements that share a scale.
    pub group_size: Option<GroupSize>,
    /// The dtype of the scales.
    pub scale_dtype: Option<ScaleDtype>,
    /// The variant; `formats::choose` finds its spec.
    pub choice: Option<Choice>,
    /// The largest magnitude of the tensor, where [`Global::Largest`] asks for it.
    pub global_scale: Option<f32>,
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
    /// The largest magnitude of the tensor, where the scales are multiples of it and no part keeps it.
    pub global_scale: Option<f32>,
}

impl Layout {
    /// Settle `spec` for a tensor of `shape` (group axis last).
    ///
    /// # Errors
    ///
    /// [`Error::Value`] for a group size, scale dtype or global scale that the format does not take, [`Error::Option`] for an option
    /// that it lacks, [`Error::Shape`] for a 0-d tensor, axes that its blocks do not divide, or more elements than memory can address.
    pub fn new(spec: &'static Spec, shape: &[usize], options: Options) -> Result<Layout> {
        check_shape(spec, shape)?;
        let group_size = settle_group_size(spec, shape, options.group_size)?;
        let scale_dtype = settle_scale_dtype(spec, options.scale_dtype)?;
        if let Some(given) = options.choice.filter(|&given| spec.choice != Some(given)) {
            return Err(lacks(spec, given.option()));
        }
        match options.global_scale {
            Some(_) if spec.global != Some(Global::Largest) => return Err(lacks(spec, "global_scale")),
            Some(given) if !(given.is_finite() && given > 0.0) => {
                let expected = "expected the largest magnitude of the tensor, a finite number above 0";
                return Err(Error::value("global_scale", given.to_string(), expected));
            }
            _ => {}
        }
        Ok(Layout { spec, shape: shape.to_vec(), group_size, scale_dtype, global_scale: options.global_scale })
    }

    /// Length of the axis that groups run along; of all of them in a flat format.
    pub fn columns(&self) -> usize {
        if self.spec.is_flat() { self.shape.iter().product() } else { self.shape[self.shape.len() - 1] }
    }

    /// Product of the other axes; 1 in a flat format.
    pub fn rows(&self) -> usize {
        if self.spec.is_flat() { 1 } else { self.shape[..self.shape.len() - 1].iter().product() }
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
        let (groups, rows, columns) = (self.groups_per_row(), self.rows(), self.columns());
        match self.spec.parts[index].extent {
            Extent::Groups => self.shape_with(groups),
            Extent::GroupPairs => self.shape_with(groups.div_ceil(2)),
            Extent::Codes => self.row_shape(columns.div_ceil(2).div_ceil(self.part_item_size(index))),
            Extent::GroupCodes => {
                let mut shape = self.row_shape(groups);
                shape.push(self.group_elements().div_ceil(2));
                shape
            }
            Extent::Blocks(bytes) => self.row_shape(columns / self.spec.block(self.group_elements()) * bytes),
            Extent::WordsAlongColumns => vec![columns / 8, rows],
            Extent::WordsAcrossRows => vec![columns, rows / 8],
            Extent::Transposed => vec![(rows * columns).div_ceil(2)],
            Extent::HalfRows => vec![rows * groups / 2, self.group_elements()],
            Extent::GroupsTransposed => vec![groups, rows],
            Extent::GroupWordsTransposed => vec![groups, rows / 8],
            Extent::GroupPairsTransposed => vec![(groups * rows).div_ceil(2)],
            Extent::GroupWordsAcrossRows => vec![rows.div_ceil(8), groups],
            Extent::Nested => vec![groups.div_ceil(NESTED)],
            Extent::Scalar => Vec::new(),
            Extent::One => vec![1],
            Extent::GroupOfColumn => vec![columns],
            Extent::Lengths => vec![self.shape.len()],
        }
    }

    /// Bytes of one element of part `index`.
    pub fn part_item_size(&self, index: usize) -> usize {
        match self.spec.parts[index].dtype {
            PartDtype::U8 => 1,
            PartDtype::U32 | PartDtype::I32 | PartDtype::F32 => 4,
            PartDtype::I64 => 8,
            PartDtype::Scale => self.scale_dtype.size(),
        }
    }

    /// The layout of the same tensor in another format with the same groups and scales.
    pub(crate) fn in_format(&self, spec: &'static Spec) -> Layout {
        Layout { spec, ..self.clone() }
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
            Some(Extent::Codes) => elements.div_ceil(2),
            Some(Extent::GroupCodes) => elements.div_ceil(self.group_elements()) * self.group_elements().div_ceil(2),
            Some(Extent::Blocks(bytes)) => elements.div_ceil(self.spec.block(self.group_elements())) * bytes,
            _ => 0,
        }
    }

    fn row_shape(&self, last: usize) -> Vec<usize> {
        if self.spec.is_flat() {
            return vec![last];
        }
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

/// Whether the format takes tensors of this shape, whatever the groups.
fn check_shape(spec: &Spec, shape: &[usize]) -> Result<()> {
    if shape.is_empty() {
        return Err(Error::shape("array", "is 0-d", "give it at least one axis, for example with array[None]"));
    }
    let addressable = shape.iter().try_fold(1usize, |product, &n| product.checked_mul(n.max(1)));
    if addressable.is_none_or(|n| n > isize::MAX as usize / 8) {
        return Err(Error::shape("shape", format!("is {}", Index(shape)), "that is more than memory can address"));
    }
    let Shapes::Matrix { rows, columns } = spec.shapes else { return Ok(()) };
    let [n, k] = shape else {
        let found = format!("has {} axes", shape.len());
        return Err(Error::shape("array", found, format!("{} takes a matrix (N, K), groups along K", spec.name)));
    };
    check_multiple(spec, "the other axis", *n, rows)?;
    check_multiple(spec, "last axis", *k, columns)
}

fn check_multiple(spec: &Spec, axis: &str, length: usize, multiple: usize) -> Result<()> {
    if length.is_multiple_of(multiple) {
        return Ok(());
    }
    Err(Error::shape(axis, format!("has {length} elements"), format!("{} needs a multiple of {multiple}", spec.name)))
}

fn settle_group_size(spec: &Spec, shape: &[usize], given: Option<GroupSize>) -> Result<GroupSize> {
    let size = given.unwrap_or(GroupSize::Elements(spec.group_sizes.default()));
    if !spec.group_sizes.takes(size) {
        return Err(Error::value("group_size", size.to_string(), format!("{} takes {}", spec.name, spec.group_sizes.names())));
    }
    let (columns, rows) = shape.split_last().expect("its shape has an axis");
    if let GroupSize::Elements(n) = size
        && !spec.group_sizes.may_be_short()
    {
        check_multiple(spec, "last axis", *columns, spec.block(n))?;
    }
    if spec.parts.iter().any(|part| part.extent == Extent::HalfRows) {
        let rows = rows.iter().product::<usize>();
        let groups = if let GroupSize::Elements(n) = size { rows * columns / n } else { rows };
        if columns % 2 == 1 || groups % 2 == 1 {
            let expected = format!("{} pairs groups: it needs an even number of them, and an even last axis", spec.name);
            return Err(Error::shape("array", format!("has shape {}", Index(shape)), expected));
        }
    }
    Ok(size)
}

fn settle_scale_dtype(spec: &Spec, given: Option<ScaleDtype>) -> Result<ScaleDtype> {
    match given {
        None => Ok(spec.scale_dtypes[0]),
        Some(_) if spec.scale_dtypes.len() == 1 => Err(lacks(spec, "scale_dtype")),
        Some(given) if spec.scale_dtypes.contains(&given) => Ok(given),
        Some(given) => {
            let names: Vec<&str> = spec.scale_dtypes.iter().map(|dtype| dtype.name()).collect();
            Err(Error::value("scale_dtype", given.name(), format!("{} takes {}", spec.name, names.join(", "))))
        }
    }
}

fn lacks(spec: &Spec, option: &str) -> Error {
    Error::Option { option: option.into(), format: spec.name.into(), options: spec.options() }
}
