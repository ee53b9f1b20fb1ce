//! A container seen as tensors, quantized or not.

use std::fs;

use super::npy::npy;
use super::{checkpoint, convert, float_tensor, load, refusal, stored_as, target, tensor, weights, write_file};
use quantize::element::Source;
use quantize::engine;
use quantize::files::checkpoint::Checkpoint;
use quantize::files::{StoredDtype, Tensor};
use quantize::spec::GroupSize;

#[test]
fn an_npy_file_is_a_checkpoint_of_one_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let [path, small] = ["weights.npy", "small"].map(|name| folder.path().join(name));
    let x = weights(128);
    fs::write(&path, npy(1, "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 64)}", &stored_as(StoredDtype::F32, &x))).unwrap();
    convert(&path, &small, target("int4", None));
    let file = checkpoint(&small);
    let quantized = engine::quantize_owned(&Source::from_slice(&x, &[2, 64]), file.entries()[0].layout().unwrap().clone()).unwrap();
    assert_eq!(load(&file, "weights"), quantized.parts);
}

#[test]
fn a_scheme_that_disagrees_with_the_file_is_refused() {
    let facts = r#"{"format":"int4","shape":[2,32],"axis":-1,"group_size":32,"scale_dtype":"float16","dtype":"bfloat16"}"#;
    let parts =
        || vec![(tensor("w.packed", StoredDtype::U8, &[2, 16]), vec![0; 32]), (tensor("w.scales", StoredDtype::F16, &[2, 1]), vec![0; 4])];
    let scheme = |facts: &str| format!(r#"{{"version":1,"tensors":{{"w":{facts}}}}}"#);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    let opened = |scheme: &str, tensors: &[(Tensor, Vec<u8>)]| {
        write_file(&path, tensors, &[("quantize", scheme)]);
        Checkpoint::new(quantize::files::open(&path).unwrap())
    };
    assert_eq!(opened(&scheme(facts), &parts()).unwrap().entries().len(), 1);

    for (from, to, expected) in [
        ("int4", "int5", "no format 'int5'"),
        (r#""format":"int4","#, "", "format is missing"),
        ("[2,32]", "[2,-1]", "shape holds something that is no length"),
        ("[2,32]", "7", "shape is missing or no list"),
        ("[2,32]", "[]", "is 0-d"),
        ("[2,32]", "[4611686018427387904,4611686018427387904]", "more than memory can address"),
        ("[2,32]", "[2,64]", "tensor 'w.packed' is U8 of shape (2, 16); the metadata 'quantize' needs U8 of shape (2, 32)"),
        (":-1", ":0", "axis is 0; this release reads -1"),
        (":32,", ":0,", "group_size is 0"),
        (":32,", ":null,", "group_size is missing"),
        (":32,", ":16,", "tensor 'w.scales' is F16 of shape (2, 1)"),
        ("float16\"", "float64\"", "scale_dtype is none of those that int4 has"),
        ("\"float16\"", "\"float32\"", "needs F32 of shape (2, 1)"),
        ("bfloat16", "int8", "dtype is none of float16, bfloat16, float32 and float64"),
    ] {
        let message = refusal(opened(&scheme(&facts.replacen(from, to, 1)), &parts()));
        assert!(message.contains(expected), "{from} -> {to} says: {message}");
    }
    for (text, expected) in [
        ("{", "is not JSON"),
        ("[]", "version null"),
        (r#"{"version":2,"tensors":{}}"#, "version 2; this release reads 1"),
        (r#"{"version":1}"#, "lacks its tensors"),
        (&"[".repeat(100_000), "is not JSON"),
    ] {
        let message = refusal(opened(text, &parts()));
        assert!(message.contains(expected), "{text:.50} says: {message}");
    }
    assert!(refusal(opened(&scheme(facts), &parts()[..1])).contains("tensor 'w.scales' is missing"));
    let twice = [parts(), vec![(tensor("w", StoredDtype::U8, &[1]), vec![0])]].concat();
    assert!(refusal(opened(&scheme(facts), &twice)).contains("'w' is stored both plainly and quantized"));
}

#[test]
fn a_part_that_contradicts_the_layout_is_refused_when_it_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let [path, small] = ["in", "small"].map(|name| folder.path().join(name));
    write_file(&path, &[float_tensor("w", StoredDtype::F32, &[8, 64])], &[]);
    for (format, part, start, expected) in [
        ("gptq", "w.g_idx", (-1i32).to_le_bytes().to_vec(), "parts['g_idx'] is -1 at 0; expected groups 0 to 1"),
        (
            "compressed-tensors",
            "w.weight_shape",
            7i64.to_le_bytes().to_vec(),
            "parts['weight_shape'] is [7, 64]; the array has shape (8, 64)",
        ),
    ] {
        convert(&path, &small, target(format, Some(GroupSize::Elements(32))));
        let file = checkpoint(&small);
        let tensors = file.stored(&file.entries()[0]).map(|(_, tensor)| tensor.clone());
        let mut tensors: Vec<_> = tensors.zip(load(&file, "w")).collect();
        let (_, broken) = tensors.iter_mut().find(|(tensor, _)| tensor.name == part).unwrap();
        broken[..start.len()].copy_from_slice(&start);
        write_file(&small, &tensors, &[("quantize", &file.container().metadata()["quantize"])]);
        let file = checkpoint(&small);
        let message = refusal(file.load(&file.entries()[0]));
        assert_eq!(message, format!("safetensors: tensor 'w': {expected}"));
    }
}
