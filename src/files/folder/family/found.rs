//! The quantized weights of a folder, by what its config says and by the names, dtypes and shapes of its tensors.

use std::collections::HashMap;

use serde_json::{Map, Value};

use super::config::{dtype_of, method};
use super::stored::{OFFSET, parts, state_name};
use super::{buffer, corrupt, shown};
use crate::error::{Error, Index, Result};
use crate::files::checkpoint::part_name;
use crate::files::{Container, StoredDtype, Tensor, json};
use crate::formats::{self, bnb};
use crate::layout::{Layout, Options};
use crate::spec::{Choice, GroupSize, NESTED};

/// A quantized weight that was found.
pub(crate) struct Found {
    /// Its name.
    pub(crate) name: String,
    /// How it is quantized.
    pub(crate) layout: Layout,
    /// The dtype that it had before.
    pub(crate) dtype: StoredDtype,
    /// The tensors of its parts.
    pub(crate) parts: Vec<usize>,
    /// Tensors that repeat what the layout says.
    pub(crate) constants: Vec<usize>,
    /// The last part, where a text has it and no tensor: it is then not among the parts.
    pub(crate) offset: Option<f32>,
}

/// Why quantized weights of a folder are not understood, in one clause.
type Unknown = String;

/// The quantized weights of a folder, or why they cannot be read as such: a method, or a variant of one, that is not among the formats.
///
/// # Errors
///
/// [`Error::Corrupt`] where the tensors contradict the config or each other.
pub(crate) fn recognise(config: &Map<String, Value>, container: &dyn Container) -> Result<std::result::Result<Vec<Found>, Unknown>> {
    let Some((method, described)) = method(config) else { return Ok(Ok(Vec::new())) };
    let reader = match reader_of(method, described) {
        Ok(reader) => reader,
        Err(unknown) => return Ok(Err(unknown)),
    };
    let tensors = container.tensors();
    let places: HashMap<&str, usize> = tensors.iter().enumerate().map(|(index, tensor)| (tensor.name.as_str(), index)).collect();
    let mut found = Vec::new();
    for (index, tensor) in tensors.iter().enumerate() {
        let Some(module) = tensor.name.strip_suffix(reader.mark()).and_then(|rest| rest.strip_suffix('.')) else { continue };
        let module = Module { name: module, config, container, places: &places };
        match module.read(&reader, index)? {
            Some(weight) => found.push(weight),
            None => continue,
        }
    }
    Ok(Ok(found))
}

/// How the weights of a folder are read.
enum Reader {
    /// Parts under the names that the format gives them; the named one marks a module.
    Parts { format: &'static str, mark: &'static str },
    /// A text beside each weight says it all.
    Bnb,
}

impl Reader {
    /// The end of the name of one tensor of each quantized module.
    fn mark(&self) -> &'static str {
        match self {
            Reader::Parts { mark, .. } => mark,
            Reader::Bnb => "weight",
        }
    }
}

fn reader_of(method: &str, described: &Value) -> std::result::Result<Reader, Unknown> {
    let bits = |value: &Value| match value.as_u64() {
        Some(4) => Ok(()),
        _ => Err(format!("{method} with {value} bits")),
    };
    let parts = |format, mark| Ok(Reader::Parts { format, mark });
    match method {
        "compressed-tensors" => {
            let groups = described["config_groups"].as_object().map(|groups| groups.values().collect::<Vec<_>>()).unwrap_or_default();
            groups.iter().try_for_each(|group| bits(&group["weights"]["num_bits"]))?;
            let own = groups.iter().find_map(|group| group["format"].as_str());
            match own.or(described["format"].as_str()) {
                Some("pack-quantized") => parts("compressed-tensors", "weight_packed"),
                Some("nvfp4-pack-quantized") => parts("compressed-tensors:nvfp4", "weight_packed"),
                Some("mxfp4-pack-quantized") => parts("compressed-tensors:mxfp4", "weight_packed"),
                other => Err(format!("compressed-tensors with format {}", shown(other.unwrap_or("none")))),
            }
        }
        "gptq" => {
            bits(&described["bits"])?;
            match described["checkpoint_format"].as_str() {
                None | Some("gptq") => parts("gptq", "qweight"),
                Some("gptq_v2") => parts("gptq:v2", "qweight"),
                Some(other) => Err(format!("gptq with checkpoint_format {}", shown(other))),
            }
        }
        "awq" => {
            bits(if described["bits"].is_null() { &described["w_bit"] } else { &described["bits"] })?;
            match described["version"].as_str() {
                None | Some("gemm" | "GEMM") => parts("awq", "qweight"),
                Some(other) => Err(format!("awq with version {}", shown(other))),
            }
        }
        "bitsandbytes" if described["load_in_4bit"] == true => Ok(Reader::Bnb),
        "modelopt" => match described["quant_algo"].as_str() {
            Some("NVFP4" | "W4A16_NVFP4") => parts("modelopt:nvfp4", "weight_scale"),
            other => Err(format!("modelopt with quant_algo {}", shown(other.unwrap_or("none")))),
        },
        "mlx" => {
            bits(&described["bits"])?;
            match described["mode"].as_str() {
                None | Some("affine") => parts("mlx", "scales"),
                Some("mxfp4") => parts("mlx:mxfp4", "scales"),
                Some("nvfp4") => parts("mlx:nvfp4", "scales"),
                Some(other) => Err(format!("mlx with mode {}", shown(other))),
            }
        }
        other => Err(format!("the method {}", shown(other))),
    }
}

/// See [`Module::state`].
type State = (Layout, StoredDtype, Vec<usize>, Option<f32>);

/// A module of a folder, to be read.
struct Module<'a> {
    name: &'a str,
    config: &'a Map<String, Value>,
    container: &'a dyn Container,
    places: &'a HashMap<&'a str, usize>,
}

impl Module<'_> {
    fn part(&self, part: &str) -> Option<(usize, &Tensor)> {
        let &index = self.places.get(part_name(self.name, part).as_str())?;
        Some((index, &self.container.tensors()[index]))
    }

    fn needed(&self, part: &str) -> Result<&Tensor> {
        self.part(part).map(|(_, tensor)| tensor).ok_or_else(|| self.wrong(format!("{} is missing", part_name(self.name, part))))
    }

    /// The weight of the module, marked by tensor `mark`; `None` where it is not quantized.
    fn read(&self, reader: &Reader, mark: usize) -> Result<Option<Found>> {
        let (layout, dtype, constants, offset) = match reader {
            Reader::Bnb => match self.state()? {
                Some(read) => read,
                None => return Ok(None),
            },
            Reader::Parts { format, .. } => {
                let (layout, dtype) = self.layout(format, &self.container.tensors()[mark])?;
                (layout, dtype, Vec::new(), None)
            }
        };
        let mut expected = parts(self.name, &layout);
        if offset.is_some() {
            expected.truncate(OFFSET);
        }
        let parts = expected.iter().map(|expected| self.place(expected)).collect::<Result<_>>()?;
        Ok(Some(Found { name: part_name(self.name, "weight"), layout, dtype, parts, constants, offset }))
    }

    /// Where a part is; it has the dtype and the shape that the layout gives it.
    fn place(&self, expected: &Tensor) -> Result<usize> {
        let Some(&index) = self.places.get(expected.name.as_str()) else {
            return Err(self.wrong(format!("{} is missing", shown(&expected.name))));
        };
        let found = &self.container.tensors()[index];
        // Floats of 8 bits are also stored as their bits.
        let same_dtype = found.dtype == expected.dtype || (found.dtype, expected.dtype) == (StoredDtype::U8, StoredDtype::F8E4M3);
        if !same_dtype || found.shape != expected.shape {
            let describe = |tensor: &Tensor| format!("{} of shape {}", tensor.dtype.name(), Index(&tensor.shape));
            return Err(self.wrong(format!("{} is {}; expected {}", shown(&expected.name), describe(found), describe(expected))));
        }
        Ok(index)
    }

    /// The layout that the shapes of the parts speak of, and the dtype before.
    fn layout(&self, format: &'static str, mark: &Tensor) -> Result<(Layout, StoredDtype)> {
        let family = format.split(':').next().expect("a split has a first part");
        let matrix = |tensor: &Tensor| match tensor.shape[..] {
            [rows, columns] => Ok((rows, columns)),
            _ => Err(self.wrong(format!("{} has shape {}; expected a matrix", shown(&tensor.name), Index(&tensor.shape)))),
        };
        let by = |(n, k): (usize, usize), words: (usize, usize)| {
            let length = |n: usize, by: usize| n.checked_mul(by).ok_or_else(|| self.wrong("its lengths cannot be counted".into()));
            Ok::<_, Error>((length(n, words.0)?, length(k, words.1)?))
        };
        // N and K, then the groups of a row.
        let (codes, scales) = match family {
            "gptq" | "awq" => (mark, self.needed("scales")?),
            "mlx" => (self.needed("weight")?, mark),
            "modelopt" => (self.needed("weight")?, mark),
            _ => (mark, self.needed("weight_scale")?),
        };
        let (first, second) = matrix(codes)?;
        let groups = matrix(scales)?;
        let ((n, k), groups) = match family {
            "gptq" => (by((second, first), (1, 8))?, groups.0),
            "awq" => (by((second, first), (8, 1))?, groups.0),
            _ if codes.dtype == StoredDtype::U8 => (by((first, second), (1, 2))?, groups.1),
            _ => (by((first, second), (1, 8))?, groups.1),
        };
        for other in ["weight_g_idx", "g_idx"].iter().filter(|_| family == "compressed-tensors") {
            if self.part(other).is_some() {
                return Err(
                    self.wrong("its columns are in another order than its groups, which is not read from compressed-tensors".into())
                );
            }
        }
        if groups == 0 || !k.is_multiple_of(groups) {
            return Err(self.wrong(format!("{k} columns in {groups} groups")));
        }
        let default = formats::find(format)?.spec();
        let choice = match family {
            "compressed-tensors" if default.choice.is_some() => Some(Choice::Symmetric(self.part("weight_zero_point").is_none())),
            _ => None,
        };
        let spec = formats::choose(format, choice)?.spec();
        let size = k / groups;
        let elements = GroupSize::Elements(size);
        let group_size = if groups == 1 && !spec.group_sizes.takes(elements) { GroupSize::Row } else { elements };
        let scale_dtype = spec.scale_dtypes.iter().copied().find(|dtype| dtype.name() == scales.dtype.name());
        let options = Options {
            group_size: Some(group_size),
            scale_dtype: scale_dtype.filter(|_| spec.scale_dtypes.len() > 1),
            ..Options::default()
        };
        let layout = Layout::new(spec, &[n, k], options).map_err(|error| self.wrong(error.to_string()))?;
        let before = dtype_of(self.config).or(scales.dtype.float().map(|_| scales.dtype)).unwrap_or(StoredDtype::F32);
        Ok((layout, before))
    }

    /// What the state of bitsandbytes says: the layout, the dtype before, the tensors that say it, and the offset of scales that are
    /// quantized in turn.
    fn state(&self) -> Result<Option<State>> {
        let weight = part_name(self.name, "weight");
        for format in ["bnb:nf4", "bnb:fp4"] {
            let mut spec = formats::choose(format, Some(Choice::DoubleQuant(false)))?.spec();
            let Some(&index) = self.places.get(state_name(&weight, spec).as_str()) else { continue };
            let bytes = self.container.tensors()[index].bytes();
            let mut text = buffer(bytes, || "the state of bitsandbytes".into())?;
            self.container.read(index, 0, &mut text)?;
            let state = json::read(&text).map_err(|fault| self.wrong(format!("its quant_state {fault}")))?;
            let offset = self.nested_offset(&weight, &state)?;
            if offset.is_some() {
                spec = formats::choose(format, Some(Choice::DoubleQuant(true)))?.spec();
            }
            let length = |value: &Value| value.as_u64().and_then(|value| usize::try_from(value).ok());
            let shape: Option<Vec<usize>> = state["shape"].as_array().and_then(|lengths| lengths.iter().map(length).collect());
            let dtype = state["dtype"].as_str().and_then(StoredDtype::from_name).filter(|dtype| dtype.float().is_some());
            let (Some(shape), Some(blocksize), Some(dtype)) = (shape, length(&state["blocksize"]), dtype) else {
                return Err(self.wrong("its quant_state lacks a shape, a blocksize or a dtype of floats".into()));
            };
            let options = Options { group_size: Some(GroupSize::Elements(blocksize)), ..Options::default() };
            let layout = Layout::new(spec, &shape, options).map_err(|error| self.wrong(error.to_string()))?;
            let maps = ["quant_map", "nested_quant_map"].map(|map| self.places.get(format!("{weight}.{map}").as_str()).copied());
            return Ok(Some((layout, dtype, maps.into_iter().flatten().chain([index]).collect(), offset)));
        }
        Ok(None)
    }

    /// The offset of scales that are quantized in turn, if the state says that they are, by the numbers that all such scales have.
    fn nested_offset(&self, weight: &str, state: &Value) -> Result<Option<f32>> {
        if state["nested_blocksize"].is_null() {
            return Ok(None);
        }
        if state["nested_blocksize"] != NESTED || state["nested_dtype"] != "float32" {
            let found = format!("{} and {}", state["nested_blocksize"], state["nested_dtype"]);
            return Err(
                self.wrong(format!("its quant_state has nested_blocksize and nested_dtype {found}; {NESTED} and \"float32\" are read"))
            );
        }
        let expected = Tensor { name: format!("{weight}.nested_quant_map"), dtype: StoredDtype::F32, shape: vec![256] };
        let mut numbers = [0; 1024];
        self.container.read(self.place(&expected)?, 0, &mut numbers)?;
        let found = numbers.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        // Versions of torch differ in the last places.
        let is_same = found.zip(bnb::nested_numbers()).all(|(found, number)| (found - number).abs() <= 1e-6);
        if !is_same {
            return Err(self.wrong(format!("{} has other numbers than bitsandbytes", shown(&expected.name))));
        }
        let offset = state["nested_offset"].as_f64().map(|offset| offset as f32).filter(|offset| offset.is_finite());
        offset.map(Some).ok_or_else(|| self.wrong("its quant_state lacks the nested_offset".into()))
    }

    fn wrong(&self, reason: String) -> Error {
        corrupt(format!("module {}: {reason}", shown(self.name)))
    }
}
