//! Containers: what is accepted, what is refused and with which words, what a writer leaves behind.

mod checkpoint;
mod compare;
mod convert;
mod gguf;
mod gguf_convert;
mod input;
mod npy;
mod npz;
mod output;
mod safetensors;
mod verify;

use std::fs;
use std::path::Path;

use quantize::engine::Run;
use quantize::error::{Error, Result};
use quantize::files::checkpoint::Checkpoint;
use quantize::files::convert::{Effect, Failure, How, Plan, Selection, Target};
use quantize::files::output::Output;
use quantize::files::{Container, StoredDtype, Tensor};
use quantize::formats;
use quantize::layout::Options;
use quantize::level::Level;
use quantize::spec::GroupSize;

/// The message of the error that every broken file must give.
fn refusal<T>(opened: Result<T>) -> String {
    match opened {
        Err(error @ Error::Corrupt { .. }) => error.to_string(),
        Err(error) => panic!("not a Corrupt error: {error}"),
        Ok(_) => panic!("accepted"),
    }
}

fn bytes_of(container: &dyn Container, index: usize) -> Vec<u8> {
    let mut bytes = vec![0; container.tensors()[index].bytes() as usize];
    container.read(index, 0, &mut bytes).unwrap();
    bytes
}

fn tensor(name: &str, dtype: StoredDtype, shape: &[usize]) -> Tensor {
    Tensor { name: name.into(), dtype, shape: shape.to_vec() }
}

/// Names of everything in a folder.
fn listing(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A safetensors file at `path`.
fn write_file(path: &Path, tensors: &[(Tensor, Vec<u8>)], metadata: &[(&str, &str)]) {
    let headers: Vec<Tensor> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    let metadata = metadata.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
    let mut writer = quantize::files::safetensors::create(Output::create(path, true).unwrap(), &headers, &metadata).unwrap();
    for (index, (_, bytes)) in tensors.iter().enumerate() {
        writer.write(index, 0, bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// Floats that repeat in no group, from a congruential sequence.
fn weights(count: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// The little-endian bytes of floats in a dtype.
fn stored_as(dtype: StoredDtype, x: &[f32]) -> Vec<u8> {
    let bytes = |&x: &f32| match dtype {
        StoredDtype::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
        StoredDtype::Bf16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
        StoredDtype::F32 => x.to_le_bytes().to_vec(),
        StoredDtype::F64 => f64::from(x).to_le_bytes().to_vec(),
        other => panic!("no float: {other:?}"),
    };
    x.iter().flat_map(bytes).collect()
}

fn float_tensor(name: &str, dtype: StoredDtype, shape: &[usize]) -> (Tensor, Vec<u8>) {
    (tensor(name, dtype, shape), stored_as(dtype, &weights(shape.iter().product())))
}

fn checkpoint(path: &Path) -> Checkpoint {
    Checkpoint::new(quantize::files::open(path).unwrap()).unwrap()
}

fn target(format: &str, group_size: Option<GroupSize>) -> Target {
    Target::Format(formats::find(format).unwrap().spec(), Options { group_size, ..Options::default() })
}

fn run_plan(plan: &Plan, from: &Path, to: &Path) -> std::result::Result<Vec<Effect>, Failure> {
    let run = Run::serial(Level::current().unwrap());
    plan.run(checkpoint(from), to, true, &How::default(), &run, &mut |_, _| Ok(()))
}

fn convert(from: &Path, to: &Path, target: Target) -> Vec<Effect> {
    let plan = Plan::new(&checkpoint(from), target, &Selection::default()).unwrap();
    run_plan(&plan, from, to).unwrap()
}

/// The stored bytes of an entry, one buffer for each tensor that it lies in.
fn load(file: &Checkpoint, name: &str) -> Vec<Vec<u8>> {
    let entry = file.entries().iter().find(|entry| entry.name == name).unwrap();
    file.load(entry).unwrap()
}
