//! safetensors: a JSON header, then the bytes of every tensor, end to end.
//!
//! ```text
//! byte  0..8   n, the length of the header, u64 little-endian, at most 100 000 000
//!       8..    n bytes of JSON: {"__metadata__": {"key": "text"}, "name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}
//!       8+n..  data; the offsets count from here, [begin, end)
//! ```
//! The reader enforces the rules of the reference implementation (huggingface/safetensors 0.8.0): the tensors cover the data without
//! hole, overlap or rest, each has exactly the bytes that its dtype and shape take, and one unknown dtype refuses the file. It is
//! stricter in two: a name or key that comes twice is refused, as the format's description asks, and JSON nests at most 32 deep.
//! A length is compared with what the file has before anything is allocated by it.

mod header;

use std::collections::{BTreeMap, HashSet};

use header::{Entry, Header};

use super::input::Input;
use super::output::{Output, Writer};
use super::{Container, Tensor, buffer, looks_like, shown};
use crate::error::{Error, Index, Result};

/// Longest header, as in the reference.
pub const LONGEST_HEADER: u64 = 100_000_000;

/// Deepest JSON; a valid header nests three deep.
const DEEPEST: usize = 32;

/// The key of the free text in the header; no tensor can have this name.
pub(super) const METADATA: &str = "__metadata__";

/// A safetensors file, open for reading.
pub struct Safetensors {
    input: Input,
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
    /// Where the bytes of each tensor begin, from the start of the file.
    starts: Vec<u64>,
}

impl Safetensors {
    /// Read and check the header of `input`.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] with the rule that is broken and the tensor that breaks it; [`Error::Io`].
    pub fn new(input: Input) -> Result<Safetensors> {
        let header = read_header(&input).map_err(|error| match (error, input.start()) {
            (Error::Corrupt { container, reason }, Ok(start)) => {
                let reason = looks_like(&start).map_or(reason, String::from);
                Error::Corrupt { container, reason }
            }
            (error, _) => error,
        })?;
        let data = 8 + header.len() as u64;
        let parsed = parse(&header, input.length() - data)?;
        let starts = parsed.begins.iter().map(|begin| data + begin).collect();
        Ok(Safetensors { input, metadata: parsed.metadata, tensors: parsed.tensors, starts })
    }
}

impl Container for Safetensors {
    fn container(&self) -> &'static str {
        "safetensors"
    }

    fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    fn inputs(&self) -> Vec<&Input> {
        vec![&self.input]
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn read(&self, index: usize, offset: u64, out: &mut [u8]) -> Result<()> {
        self.input.read("safetensors", self.starts[index] + offset, out)
    }
}

/// The bytes of the header, if they can be one: what follows is then a safetensors file, right or wrong.
fn read_header(input: &Input) -> Result<Vec<u8>> {
    let Some(after_prefix) = input.length().checked_sub(8) else {
        return Err(corrupt(format!("the file has {} bytes; the length of the header alone takes 8", input.length())));
    };
    let mut prefix = [0; 8];
    input.read("safetensors", 0, &mut prefix)?;
    let length = u64::from_le_bytes(prefix);
    if length > LONGEST_HEADER {
        return Err(corrupt(format!("the header claims {length} bytes; the limit is {LONGEST_HEADER}")));
    }
    if length > after_prefix {
        return Err(corrupt(format!("the header claims {length} bytes; {after_prefix} follow: the file is cut short")));
    }
    let mut header = buffer(length, || "the header".into())?;
    input.read("safetensors", 8, &mut header)?;
    Ok(header)
}

/// A header that has passed every check: tensors in the order of their data, and where each begins.
struct Parsed {
    metadata: BTreeMap<String, String>,
    tensors: Vec<Tensor>,
    begins: Vec<u64>,
}

/// Parse the JSON of a header in front of `data` bytes.
fn parse(header: &[u8], data: u64) -> Result<Parsed> {
    let header = std::str::from_utf8(header).map_err(|error| corrupt(format!("the header is not UTF-8: {error}")))?;
    if nests_deeper(header.as_bytes(), DEEPEST) {
        return Err(corrupt(format!("the header nests deeper than {DEEPEST}")));
    }
    let header: Header = serde_json::from_str(header).map_err(|error| corrupt(format!("the header is wrong: {error}")))?;

    let mut entries = header.entries;
    // An empty tensor shares its begin with the one that follows: the end puts it first.
    entries.sort_by_key(|(_, entry)| entry.offsets);
    let mut tensors = Vec::with_capacity(entries.len());
    let mut begins = Vec::with_capacity(entries.len());
    let mut expected = 0;
    for (name, Entry { dtype, shape, offsets: (begin, end) }) in entries {
        let tensor = Tensor { name, dtype, shape };
        let named = || format!("tensor {}", shown(&tensor.name));
        let Some(bytes) = tensor.checked_bytes() else {
            let fault = "that is no whole number of bytes, or more than 64 bits can count";
            return Err(corrupt(format!("{} is {}; {fault}", named(), kind(&tensor))));
        };
        if end.checked_sub(begin) != Some(bytes) {
            let claim = format!("claims bytes {begin} to {end}");
            return Err(corrupt(format!("{} {claim}, but {} takes {bytes}", named(), kind(&tensor))));
        }
        if begin != expected {
            let fault = if begin > expected { "leaves a hole after" } else { "overlaps" };
            return Err(corrupt(format!("{} begins at byte {begin} and {fault} the tensor that ends at {expected}", named())));
        }
        if end > data {
            return Err(corrupt(format!("the data of {} ends at byte {end}, past the file: its data has {data}", named())));
        }
        expected = end;
        begins.push(begin);
        tensors.push(tensor);
    }
    if expected != data {
        return Err(corrupt(format!("{} bytes follow the last tensor and belong to none", data - expected)));
    }
    Ok(Parsed { metadata: header.metadata, tensors, begins })
}

fn kind(tensor: &Tensor) -> String {
    let dtype = tensor.dtype.safetensors_name().expect("it was read by that name");
    format!("{dtype} of shape {}", Index(&tensor.shape))
}

fn corrupt(reason: String) -> Error {
    Error::Corrupt { container: "safetensors", reason }
}

/// Whether brackets outside strings nest deeper than `limit`: what the parser skips must not be able to exhaust the stack or memory.
fn nests_deeper(json: &[u8], limit: usize) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for &byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > limit {
            return true;
        }
    }
    false
}

/// Begin a safetensors file: write the header of `tensors` to `output`. A tensor is later named by its place in `tensors`.
///
/// Tensors lie as the reference writer lays them: widest dtype first, so that each is aligned to its own size, then by name.
///
/// # Errors
///
/// [`Error::Value`]: a name that comes twice or that the format reserves, a dtype that the format lacks, a header above the limit;
/// [`Error::Io`].
pub fn create(mut output: Output, tensors: &[Tensor], metadata: &BTreeMap<String, String>) -> Result<Writer> {
    let mut order: Vec<usize> = (0..tensors.len()).collect();
    order.sort_by(|&a, &b| {
        let (a, b) = (&tensors[a], &tensors[b]);
        b.dtype.cmp(&a.dtype).then_with(|| a.name.cmp(&b.name))
    });

    let mut fields = Vec::with_capacity(tensors.len() + 1);
    let mut names = HashSet::from([METADATA]);
    if !metadata.is_empty() {
        fields.push(format!("{}:{}", json(METADATA), json(metadata)));
    }
    let mut starts = vec![0; tensors.len()];
    let mut end = 0u64;
    for index in order {
        let Tensor { name, dtype, shape } = &tensors[index];
        if !names.insert(name) {
            let expected = "a safetensors file can hold that name only once";
            return Err(Error::value("the name of a tensor", shown(name), expected));
        }
        let Some(dtype) = dtype.safetensors_name() else {
            let expected = "a safetensors file has no such dtype";
            return Err(Error::value(format!("the dtype of tensor {}", shown(name)), dtype.name(), expected));
        };
        let begin = end;
        starts[index] = begin;
        end = begin.checked_add(tensors[index].bytes()).expect("a plan has checked the sizes");
        let entry = format!(r#"{{"dtype":"{dtype}","shape":{},"data_offsets":[{begin},{end}]}}"#, json(shape));
        fields.push(format!("{}:{entry}", json(name)));
    }
    let mut header = format!("{{{}}}", fields.join(",")).into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    if header.len() as u64 > LONGEST_HEADER {
        let found = format!("{} bytes long", header.len());
        return Err(Error::value("the header", found, format!("safetensors allows {LONGEST_HEADER}")));
    }

    output.write(0, &(header.len() as u64).to_le_bytes())?;
    output.write(8, &header)?;
    let data = 8 + header.len() as u64;
    starts.iter_mut().for_each(|start| *start += data);
    Ok(Writer::new(output, starts, tensors))
}

fn json(value: &(impl serde::Serialize + ?Sized)) -> String {
    serde_json::to_string(value).expect("names, texts and numbers have a JSON form")
}
