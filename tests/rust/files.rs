//! Containers: what is accepted, what is refused and with which words, what a writer leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use quantize::element::{Dtype, Source};
use quantize::engine::{self, NonFinite, Run, Sums};
use quantize::error::{Error, Result};
use quantize::files::checkpoint::Checkpoint;
use quantize::files::compare::{self, Verdict};
use quantize::files::convert::{Action, Effect, Failure, Plan, Selection, Step, Target};
use quantize::files::input::Input;
use quantize::files::npy::Npy;
use quantize::files::output::Output;
use quantize::files::safetensors::{Safetensors, Writer};
use quantize::files::{Container, StoredDtype, Tensor};
use quantize::formats;
use quantize::layout::{Layout, Options};
use quantize::level::Level;
use quantize::spec::{GroupSize, ScaleDtype};
use quantize::tensor::Quantized;

/// A safetensors file of this header and this many bytes of data.
fn file(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend((0..data).map(|i| i as u8));
    file
}

fn read(file: Vec<u8>) -> Result<Safetensors> {
    Safetensors::new(Input::from_bytes(file))
}

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

const TWO: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[3,11]},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;

#[test]
fn a_file_gives_its_tensors_in_the_order_of_their_data() {
    let file = read(file(TWO, 11)).unwrap();
    assert_eq!(file.metadata(), &BTreeMap::from([("format".into(), "pt".into())]));
    let expected = [("a", StoredDtype::U8, vec![3]), ("b", StoredDtype::F32, vec![2, 1])];
    let expected = expected.map(|(name, dtype, shape)| Tensor { name: name.into(), dtype, shape });
    assert_eq!(file.tensors(), expected);
    assert_eq!(bytes_of(&file, 0), [0, 1, 2]);
    assert_eq!(bytes_of(&file, 1), [3, 4, 5, 6, 7, 8, 9, 10]);
    let mut middle = [0; 2];
    file.read(1, 5, &mut middle).unwrap();
    assert_eq!(middle, [8, 9]);
}

#[test]
fn what_the_reference_accepts_is_accepted() {
    for (case, header, data) in [
        ("no tensors", "{}".to_string(), 0),
        ("only metadata", r#"{"__metadata__":{"a":"b"}}"#.into(), 0),
        ("null metadata", r#"{"__metadata__":null}"#.into(), 0),
        ("spaces at the end", "{}   \n ".into(), 0),
        ("a space in front", " {}".into(), 0),
        ("shape of no axes", r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#.into(), 4),
        ("an empty axis", r#"{"a":{"dtype":"F32","shape":[0,7],"data_offsets":[0,0]}}"#.into(), 0),
        (
            "an empty tensor between two others",
            r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[2,4]},"e":{"dtype":"U8","shape":[0],"data_offsets":[2,2]},"b":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}}"#.into(),
            4,
        ),
        ("an unknown field", r#"{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1],"extra":[{"x":1}]}}"#.into(), 1),
        ("two F4 in a byte", r#"{"a":{"dtype":"F4","shape":[2,1],"data_offsets":[0,1]}}"#.into(), 1),
        ("four F6 in three bytes", r#"{"a":{"dtype":"F6_E2M3","shape":[4],"data_offsets":[0,3]}}"#.into(), 3),
        ("an empty name", r#"{"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1),
        ("a NUL in a name", r#"{"a\u0000b":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#.into(), 1),
        ("brackets in a name", format!(r#"{{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#, "[{".repeat(40)), 1),
        ("a long name", format!(r#"{{"{}":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}}}"#, "x".repeat(1 << 20)), 1),
    ] {
        if let Err(error) = read(file(header, data)) {
            panic!("{case}: {error}");
        }
    }
}

#[test]
fn a_broken_header_is_refused_with_the_rule_and_the_tensor() {
    let one = |entry: &str| format!(r#"{{"w":{entry}}}"#);
    let two = |a: &str, b: &str| {
        let entry = |offsets| format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":{offsets}}}"#);
        format!(r#"{{"a":{},"b":{}}}"#, entry(a), entry(b))
    };
    let deep = format!(r#"{{"w":{{"dtype":"U8","shape":[1],"data_offsets":[0,1],"x":{}1{}}}}}"#, "[".repeat(50_000), "]".repeat(50_000));
    for (header, data, expected) in [
        (String::new(), 0, "EOF"),
        ("[]".into(), 0, "expected an object of tensors by name"),
        ("null".into(), 0, "expected an object of tensors by name"),
        ("{}\0\0".into(), 0, "trailing characters"),
        ("\u{feff}{}".into(), 0, "expected value"),
        (r#"{"a":1}"#.into(), 0, "tensor 'a': invalid type: integer `1`"),
        ("{\"a\":".into(), 0, "tensor 'a': EOF"),
        (one(r#"{"dtype":"F32","shape":[1]}"#), 4, "tensor 'w': missing field `data_offsets`"),
        (one(r#"{"dtype":"F32","data_offsets":[0,4]}"#), 4, "tensor 'w': missing field `shape`"),
        (one(r#"{"shape":[1],"data_offsets":[0,4]}"#), 4, "tensor 'w': missing field `dtype`"),
        (one(r#"{"dtype":"I4","shape":[2],"data_offsets":[0,1]}"#), 1, "tensor 'w': dtype 'I4' is not one that safetensors defines"),
        (one(r#"{"dtype":"bf16","shape":[2],"data_offsets":[0,4]}"#), 4, "dtype 'bf16'"),
        (one(r#"{"dtype":"F8_E4M3FN","shape":[2],"data_offsets":[0,2]}"#), 2, "dtype 'F8_E4M3FN'"),
        (one(r#"{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}"#), 4, "invalid value: integer `-1`"),
        (one(r#"{"dtype":"F32","shape":[1.0],"data_offsets":[0,4]}"#), 4, "invalid type: floating point"),
        (one(r#"{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}"#), 4, "expected value"),
        (one(r#"{"dtype":"F32","shape":1,"data_offsets":[0,4]}"#), 4, "expected a sequence"),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0]}"#), 4, "invalid length 1"),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4,8]}"#), 4, "trailing characters"),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,0]}"#), 4, "tensor 'w' claims bytes 4 to 0, but F32 of shape (1,) takes 4"),
        (one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,4]}"#), 4, "tensor 'w' claims bytes 0 to 4, but F32 of shape (2,) takes 8"),
        (one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,2]}"#), 2, "no whole number of bytes"),
        (one(r#"{"dtype":"U8","shape":[4294967296,4294967296],"data_offsets":[0,0]}"#), 0, "more than 64 bits can count"),
        (one(r#"{"dtype":"F64","shape":[2305843009213693952],"data_offsets":[0,0]}"#), 0, "more than 64 bits can count"),
        (one(r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#), 4, "more than 64 bits can count"),
        (one(r#"{"dtype":"U8","shape":[1152921504606846976],"data_offsets":[0,1152921504606846976]}"#), 4, "past the file"),
        (one(r#"{"dtype":"U8","shape":[18446744073709551616],"data_offsets":[0,1]}"#), 1, "invalid type: floating point"),
        (one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4],"dtype":"F32"}"#), 4, "dtype comes twice"),
        (two("[0,4]", "[0,4]"), 8, "tensor 'b' begins at byte 0 and overlaps the tensor that ends at 4"),
        (two("[0,4]", "[3,7]"), 8, "tensor 'b' begins at byte 3 and overlaps"),
        (two("[0,4]", "[5,9]"), 9, "tensor 'b' begins at byte 5 and leaves a hole after the tensor that ends at 4"),
        (two("[1,5]", "[5,9]"), 9, "tensor 'a' begins at byte 1 and leaves a hole"),
        (two("[0,4]", "[4,8]"), 7, "the data of tensor 'b' ends at byte 8, past the file: its data has 7"),
        (two("[0,4]", "[4,8]"), 9, "1 bytes follow the last tensor and belong to none"),
        ("{}".into(), 1, "1 bytes follow the last tensor"),
        (two("[0,4]", "[4,8]").replace("\"b\"", "\"a\""), 8, "'a' comes twice"),
        (r#"{"__metadata__":{},"__metadata__":{}}"#.into(), 0, "'__metadata__' comes twice"),
        (r#"{"__metadata__":{"k":"1","k":"2"}}"#.into(), 0, "the metadata key 'k' comes twice"),
        (r#"{"__metadata__":{"k":1}}"#.into(), 0, "expected a string"),
        (r#"{"__metadata__":{"k":{}}}"#.into(), 0, "expected a string"),
        (r#"{"__metadata__":"k"}"#.into(), 0, "expected an object of strings as __metadata__"),
        (deep, 1, "nests deeper than 32"),
    ] {
        let message = refusal(read(file(&header, data)));
        assert!(message.contains(expected), "{header:.200}\n  says: {message}\n  expected: {expected}");
        assert!(message.starts_with("safetensors: "), "{message}");
    }
}

#[test]
fn names_are_escaped_and_cut_in_messages() {
    let named = |name: &str| {
        let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[2],"data_offsets":[0,1]}}}}"#);
        refusal(read(file(header, 1)))
    };
    assert!(named(r"a\u0000b").contains(r"'a\0b'"));
    assert!(named("a\u{202e}b").contains(r"'a\u{202e}b'"));
    assert!(named(r"a\u001b[31m").contains(r"'a\u{1b}[31m'"));
    assert!(named(&"x".repeat(1 << 20)).len() < 300);
}

#[test]
fn invalid_utf8_is_refused() {
    let header = [&br#"{"a"#[..], &[0xff], &br#"":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#[..]].concat();
    assert!(refusal(read(file(header, 1))).contains("the header is not UTF-8"));
    let lone_surrogate = r#"{"\ud800":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}"#;
    assert!(refusal(read(file(lone_surrogate, 1))).contains("the header is wrong"));
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let whole = file(TWO, 11);
    for length in 0..whole.len() {
        let message = refusal(read(whole[..length].to_vec()));
        assert!(message.starts_with("safetensors: "), "{length}: {message}");
    }
}

#[test]
fn a_claimed_header_length_is_compared_before_anything_is_allocated() {
    for claimed in [1 << 31, 1 << 32, 1 << 63, u64::MAX, u64::MAX - 7, 100_000_001, 100_000_000, 3] {
        let file = [&claimed.to_le_bytes()[..], b"{}"].concat();
        let message = refusal(read(file));
        assert!(message.contains(&format!("claims {claimed} bytes")), "{message}");
    }
}

#[test]
fn another_kind_of_file_is_recognised() {
    for (start, expected) in [
        (&b""[..], "it is empty"),
        (b"PK\x03\x04\x14\x00\x00\x00\x08\x00", "zip archive"),
        (b"\x80\x02}q\x00(X\x01\x00\x00\x00", "pickle"),
        (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}", "pickle"),
        (b"<!DOCTYPE html><html><body>404", "HTML page"),
        (b"\n <html lang=\"en\">", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "Git LFS pointer"),
        (b"GGUF\x03\x00\x00\x00\x01\x00\x00\x00", "GGUF"),
        (b"\x93NUMPY\x01\x00v\x00{'descr'", "npy"),
        (b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03", "gzip"),
        (b"{\"metadata\": {\"total_size\": 1}}", "plain JSON"),
        (b"abc", "the file has 3 bytes"),
    ] {
        let message = refusal(read(start.to_vec()));
        assert!(message.contains(expected), "{start:?} says: {message}");
    }
}

#[test]
fn a_header_of_ten_thousand_tensors_is_read() {
    let entry = |i: usize| format!(r#""model.layers.{i}.weight":{{"dtype":"F32","shape":[1],"data_offsets":[{},{}]}}"#, 4 * i, 4 * i + 4);
    let header = format!("{{{}}}", (0..10_000).map(entry).collect::<Vec<_>>().join(","));
    let file = read(file(header, 40_000)).unwrap();
    assert_eq!(file.tensors().len(), 10_000);
}

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(bytes.clone());
        let _ = read(file(&bytes, 3));
        let _ = Npy::new(Input::from_bytes(bytes), "a".into());
    }

    #[test]
    fn one_changed_byte_gives_a_file_or_an_error(position in 0usize..TWO.len() + 8, value in any::<u8>()) {
        let mut bytes = file(TWO, 11);
        bytes[position] = value;
        if let Ok(file) = read(bytes) {
            for index in 0..file.tensors().len() {
                bytes_of(&file, index);
            }
        }
    }
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

fn write_one(path: &Path, overwrite: bool) -> Result<()> {
    let mut writer = Writer::new(Output::create(path, overwrite)?, &[tensor("w", StoredDtype::U8, &[3])], &BTreeMap::new())?;
    writer.write(0, 1, &[2, 3])?;
    writer.write(0, 0, &[1])?;
    writer.finish()
}

#[test]
fn a_written_file_lies_as_the_reference_lays_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out.safetensors");
    let tensors = [
        tensor("b", StoredDtype::U8, &[3]),
        tensor("z", StoredDtype::F32, &[1, 2]),
        tensor("a\n\"", StoredDtype::U8, &[]),
        tensor("h", StoredDtype::Bf16, &[0]),
    ];
    let metadata = BTreeMap::from([("format".to_string(), "pt".to_string())]);
    let mut writer = Writer::new(Output::create(&path, false).unwrap(), &tensors, &metadata).unwrap();
    writer.write(2, 0, &[9]).unwrap();
    writer.write(0, 0, &[1, 2, 3]).unwrap();
    writer.write(1, 0, &[4; 8]).unwrap();
    assert!(listing(folder.path()).iter().all(|name| name.starts_with(".quantize-")), "nothing under the name before the end");
    writer.finish().unwrap();
    assert_eq!(listing(folder.path()), ["out.safetensors"]);

    let bytes = fs::read(&path).unwrap();
    let header = concat!(
        r#"{"__metadata__":{"format":"pt"},"z":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"#,
        r#""h":{"dtype":"BF16","shape":[0],"data_offsets":[8,8]},"a\n\"":{"dtype":"U8","shape":[],"data_offsets":[8,9]},"#,
        r#""b":{"dtype":"U8","shape":[3],"data_offsets":[9,12]}}"#
    );
    let padded = header.len().next_multiple_of(8);
    assert_eq!(bytes[..8], (padded as u64).to_le_bytes());
    assert_eq!(bytes[8..8 + padded], *format!("{header:padded$}").as_bytes());
    assert_eq!(bytes[8 + padded..], [4, 4, 4, 4, 4, 4, 4, 4, 9, 1, 2, 3]);

    let file = Safetensors::new(Input::open(&path).unwrap()).unwrap();
    let names: Vec<&str> = file.tensors().iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names, ["z", "h", "a\n\"", "b"]);
}

#[test]
fn a_writer_refuses_a_name_that_comes_twice_or_is_reserved() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["w", "__metadata__"] {
        let tensors = [tensor("w", StoredDtype::U8, &[1]), tensor(name, StoredDtype::U8, &[2])];
        let output = Output::create(&folder.path().join("out"), false).unwrap();
        let error = Writer::new(output, &tensors, &BTreeMap::new()).err().unwrap();
        assert_eq!(error.to_string(), format!("the name of a tensor is '{name}'; a safetensors file can hold that name only once"));
    }
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn an_unfinished_output_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let mut output = Output::create(&path, false).unwrap();
    output.write(0, b"half").unwrap();
    drop(output);
    assert!(listing(folder.path()).is_empty());
}

#[test]
fn an_existing_file_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    fs::write(&path, "old").unwrap();
    let error = write_one(&path, false).unwrap_err();
    assert!(matches!(&error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::AlreadyExists), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"old");
    write_one(&path, true).unwrap();
    assert_eq!(Safetensors::new(Input::open(&path).unwrap()).unwrap().tensors().len(), 1);
    assert_eq!(listing(folder.path()), ["out"]);
}

#[test]
fn a_file_that_appears_meanwhile_is_not_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let output = Output::create(&path, false).unwrap();
    fs::write(&path, "of somebody else").unwrap();
    assert!(output.finish().is_err());
    assert_eq!(fs::read(&path).unwrap(), b"of somebody else");
    assert_eq!(listing(folder.path()), ["out"]);
}

#[test]
fn an_output_that_cannot_be_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    for path in [folder.path().join("missing").join("out"), folder.path().to_path_buf(), folder.path().join("x".repeat(300))] {
        assert!(matches!(Output::create(&path, true), Err(Error::Io { .. })), "{}", path.display());
    }
    assert!(listing(folder.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn permissions_are_those_of_the_replaced_file_or_of_any_new_file() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let folder = tempfile::tempdir().unwrap();
    let (path, plain) = (folder.path().join("out"), folder.path().join("plain"));
    fs::write(&plain, "").unwrap();
    write_one(&path, false).unwrap();
    assert_eq!(mode(&path), mode(&plain));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    write_one(&path, true).unwrap();
    assert_eq!(mode(&path), 0o640);
}

#[cfg(unix)]
#[test]
fn a_symbolic_link_is_followed_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("real")).unwrap();
    let (path, link) = (folder.path().join("real").join("out"), folder.path().join("link"));
    fs::write(&path, "old").unwrap();
    std::os::unix::fs::symlink(&path, &link).unwrap();
    write_one(&link, true).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_ne!(fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(&folder.path().join("real")), ["out"]);
}

#[cfg(unix)]
#[test]
fn what_is_no_regular_file_is_refused_before_it_can_block() {
    for path in ["/dev/zero", "/"] {
        assert!(matches!(Input::open(Path::new(path)), Err(Error::Io { .. })), "{path}");
    }
}

#[test]
fn a_file_that_becomes_shorter_while_it_is_read_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    fs::write(&path, file(TWO, 11)).unwrap();
    let opened = Safetensors::new(Input::open(&path).unwrap()).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(8 + TWO.len() as u64 + 5).unwrap();
    assert_eq!(bytes_of(&opened, 0), [0, 1, 2]);
    let error = opened.read(1, 0, &mut [0; 8]).unwrap_err();
    assert_eq!(error.to_string(), "safetensors: the file became shorter while it was read");
}

/// An npy file of this description.
fn npy(version: u8, description: &str, data: &[u8]) -> Vec<u8> {
    let mut file = b"\x93NUMPY".to_vec();
    file.extend([version, 0]);
    match version {
        1 => file.extend((description.len() as u16).to_le_bytes()),
        _ => file.extend((description.len() as u32).to_le_bytes()),
    }
    file.extend_from_slice(description.as_bytes());
    file.extend_from_slice(data);
    file
}

fn read_npy(file: Vec<u8>) -> Result<Npy> {
    Npy::new(Input::from_bytes(file), "array".into())
}

#[test]
fn npy_gives_little_endian_c_order() {
    let data: Vec<u8> = (0..12).collect();
    for (description, dtype, shape, expected) in [
        ("{'descr': '<i2', 'fortran_order': False, 'shape': (2, 3), }    \n", StoredDtype::I16, vec![2, 3], data.clone()),
        (
            "{'descr': '>i2', 'fortran_order': False, 'shape': (2, 3)}",
            StoredDtype::I16,
            vec![2, 3],
            vec![1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10],
        ),
        ("{'shape':(2,3),'fortran_order':True,'descr':\"<i2\"}", StoredDtype::I16, vec![2, 3], vec![0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]),
        ("{'descr': '|u1', 'fortran_order': True, 'shape': (12,), }", StoredDtype::U8, vec![12], data.clone()),
        ("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 3, 1), }", StoredDtype::F32, vec![1, 3, 1], data.clone()),
        (
            "{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 2), }",
            StoredDtype::U8,
            vec![2, 3, 2],
            vec![0, 6, 2, 8, 4, 10, 1, 7, 3, 9, 5, 11],
        ),
    ] {
        for version in 1..=3 {
            let file = read_npy(npy(version, description, &data)).unwrap();
            assert_eq!(file.tensors(), [Tensor { name: "array".into(), dtype, shape: shape.clone() }], "{description}");
            assert_eq!(bytes_of(&file, 0), expected, "{description}");
        }
    }
    let complex = read_npy(npy(1, "{'descr': '>c8', 'fortran_order': False, 'shape': (), }", &data[..8])).unwrap();
    assert_eq!(bytes_of(&complex, 0), [3, 2, 1, 0, 7, 6, 5, 4]);
}

#[test]
fn a_broken_npy_is_refused_with_the_rule() {
    for (description, data, expected) in [
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", 7, "<f4 of shape (2,) takes 8 bytes, but 7 follow"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", 9, "takes 8 bytes, but 9 follow"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (-2,)}", 8, "something that is no length"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999999999,)}", 8, "something that is no length"),
        ("{'descr': '<f8', 'fortran_order': False, 'shape': (4611686018427387904, 4)}", 8, "more than 64 bits"),
        ("{'descr': '|O', 'fortran_order': False, 'shape': (1,)}", 8, "pickles and never loaded"),
        ("{'descr': [('x', '<f4')], 'fortran_order': False, 'shape': (1,)}", 4, "named fields"),
        ("{'descr': '<V2', 'fortran_order': False, 'shape': (1,)}", 2, "BF16"),
        ("{'descr': '<c16', 'fortran_order': False, 'shape': (1,)}", 16, "'<c16' is not a plain number"),
        ("{'descr': '', 'fortran_order': False, 'shape': (1,)}", 4, "not a plain number"),
        ("{'descr': '\u{e9}', 'fortran_order': False, 'shape': (1,)}", 4, "not a plain number"),
        ("{'descr': '<f4', 'fortran_order': 1, 'shape': (1,)}", 4, "neither True nor False"),
        ("{'descr': '<f4', 'fortran_order': False}", 4, "lacks one of"),
        ("{'descr': '<f4', 'descr': '<f4', 'fortran_order': False, 'shape': (1,)}", 4, "descr twice"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'x': 'y'}", 4, "unknown key 'x'"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)} + 1", 4, "goes on"),
        ("{'descr': '<f4', 'fortran_order': False, 'shape': (1,)", 4, "lacks a '}'"),
        ("", 4, "lacks a '{'"),
    ] {
        let message = refusal(read_npy(npy(1, description, &vec![0; data])));
        assert!(message.starts_with("npy: ") && message.contains(expected), "{description}\n  says: {message}");
    }
    let whole = npy(2, "{'descr': '<f4', 'fortran_order': False, 'shape': (2,)}", &[0; 8]);
    for length in 0..whole.len() {
        refusal(read_npy(whole[..length].to_vec()));
    }
    for claimed in [u32::MAX, 1 << 31, (1 << 20) + 1, 1 << 20] {
        let file = [b"\x93NUMPY\x02\x00", &claimed.to_le_bytes()[..], b"{}"].concat();
        assert!(refusal(read_npy(file)).contains(&format!("claims {claimed} bytes")));
    }
    assert!(refusal(read_npy(npy(4, "{}", &[]))).contains("version 4 is not known"));
    assert!(refusal(read_npy(b"PK\x03\x04....".to_vec())).contains("zip archive"));
}

/// A safetensors file at `path`.
fn write_file(path: &Path, tensors: &[(Tensor, Vec<u8>)], metadata: &[(&str, &str)]) {
    let headers: Vec<Tensor> = tensors.iter().map(|(tensor, _)| tensor.clone()).collect();
    let metadata = metadata.iter().map(|(key, text)| (key.to_string(), text.to_string())).collect();
    let mut writer = Writer::new(Output::create(path, true).unwrap(), &headers, &metadata).unwrap();
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
    plan.run(checkpoint(from), to, true, NonFinite::Raise, &run, &mut |_, _| Ok(()))
}

fn convert(from: &Path, to: &Path, target: Target) -> Vec<Effect> {
    let plan = Plan::new(&checkpoint(from), target, &Selection::default()).unwrap();
    run_plan(&plan, from, to).unwrap()
}

/// The stored bytes of an entry, one buffer for each tensor that it lies in.
fn load(file: &Checkpoint, name: &str) -> Vec<Vec<u8>> {
    let entry = file.entries().iter().find(|entry| entry.name == name).unwrap();
    file.load(entry, &mut |_| Ok(())).unwrap()
}

#[test]
fn matrices_are_planned_to_be_quantized_and_the_rest_is_kept_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    write_file(
        &path,
        &[
            float_tensor("matrix", StoredDtype::F32, &[3, 96]),
            float_tensor("stack", StoredDtype::F16, &[2, 3, 32]),
            float_tensor("ragged", StoredDtype::Bf16, &[3, 40]),
            float_tensor("narrow", StoredDtype::F32, &[3, 31]),
            float_tensor("vector", StoredDtype::F32, &[64]),
            float_tensor("scalar", StoredDtype::F64, &[]),
            float_tensor("empty", StoredDtype::F32, &[0, 64]),
            (tensor("ids", StoredDtype::I64, &[2, 64]), vec![7; 1024]),
        ],
        &[],
    );
    let plan = |target| {
        let plan = Plan::new(&checkpoint(&path), target, &Selection::default()).unwrap();
        let kept = |step: Step| match step.action {
            Action::Quantize => (step.name, "quantized".to_string()),
            Action::Keep(reason) => (step.name, reason),
            Action::Dequantize => panic!("nothing is quantized yet"),
        };
        plan.steps.into_iter().map(kept).collect::<BTreeMap<String, String>>()
    };
    let common = [
        ("matrix", "quantized"),
        ("stack", "quantized"),
        ("vector", "1-d; a matrix has 2 axes or more"),
        ("scalar", "0-d; a matrix has 2 axes or more"),
        ("empty", "no elements"),
        ("ids", "int64 is not quantized"),
    ];
    let expect = |target, own: [(&str, &str); 2]| {
        let expected = common.into_iter().chain(own).map(|(name, reason)| (name.to_string(), reason.to_string())).collect();
        assert_eq!(plan(target), expected);
    };
    let blocks = "gguf:q4_0 needs a multiple of 32";
    let ragged = format!("last axis has 40 elements; {blocks}");
    let narrow = format!("last axis has 31 elements; {blocks}");
    expect(target("gguf:q4_0", None), [("ragged", &ragged), ("narrow", &narrow)]);
    expect(target("int4", None), [("ragged", "quantized"), ("narrow", "last axis has 31 elements; a group has 32")]);
    expect(target("uint4", Some(GroupSize::Row)), [("ragged", "quantized"), ("narrow", "quantized")]);
}

#[test]
fn a_converted_file_holds_the_parts_and_gives_every_tensor_back() {
    let folder = tempfile::tempdir().unwrap();
    let [path, small, back] = ["in", "small", "back"].map(|name| folder.path().join(name));
    let dtypes = [StoredDtype::F16, StoredDtype::Bf16, StoredDtype::F32, StoredDtype::F64];
    let mut tensors: Vec<_> = dtypes.iter().map(|&dtype| float_tensor(dtype.name(), dtype, &[2, 3, 70])).collect();
    tensors.push((tensor("ids", StoredDtype::I64, &[5]), (0..40).collect()));
    tensors.push((tensor("odd", StoredDtype::F8E4M3, &[3]), vec![1, 2, 3]));
    write_file(&path, &tensors, &[("format", "pt"), ("note", "kept")]);
    for (format, group_size) in
        [("int4", None), ("uint4", Some(GroupSize::Elements(7))), ("int4", Some(GroupSize::Row)), ("uint4", Some(GroupSize::Tensor))]
    {
        let effects = convert(&path, &small, target(format, group_size));
        assert_eq!(effects.iter().filter(|effect| effect.errors.is_some()).count(), 4);
        let file = checkpoint(&small);
        assert_eq!(file.container().metadata()["note"], "kept");
        convert(&small, &back, Target::Floats);
        let restored = checkpoint(&back);
        let metadata: Vec<_> = restored.container().metadata().keys().collect();
        assert_eq!(metadata, ["format", "note"]);

        for (original, bytes) in &tensors {
            let entry = restored.entries().iter().find(|entry| entry.name == original.name).unwrap();
            assert_eq!((entry.dtype, &entry.shape), (original.dtype, &original.shape));
            let Some(dtype) = original.dtype.float() else {
                assert_eq!(load(&file, &original.name), std::slice::from_ref(bytes), "copied");
                assert_eq!(load(&restored, &original.name), std::slice::from_ref(bytes), "copied twice");
                continue;
            };
            let options = Options { group_size, ..Options::default() };
            let layout = Layout::new(formats::find(format).unwrap().spec(), &original.shape, options).unwrap();
            let source = Source::from_bytes(bytes, dtype, &original.shape);
            let quantized = engine::quantize_owned(&source, layout).unwrap();
            assert_eq!(load(&file, &original.name), quantized.parts, "{format} {}", original.name);
            let decoded = engine::dequantize_owned(&quantized).unwrap();
            assert_eq!(load(&restored, &original.name), [stored_as(original.dtype, &decoded)], "{format} {}", original.name);
        }
    }
}

#[test]
fn what_is_quantized_already_is_kept_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let [path, first, second] = ["in", "first", "second"].map(|name| folder.path().join(name));
    write_file(&path, &[float_tensor("a", StoredDtype::F32, &[64, 64]), float_tensor("b", StoredDtype::F32, &[64, 64])], &[]);
    let only_a = Selection { include: vec!["a".into()], ..Selection::default() };
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &only_a).unwrap();
    run_plan(&plan, &path, &first).unwrap();
    // The scales of "a" are a matrix of floats too, but they are no tensor of the checkpoint.
    let plan = Plan::new(&checkpoint(&first), target("q4_0", None), &Selection::default()).unwrap();
    let actions: Vec<_> = plan.steps.iter().map(|step| (step.name.as_str(), step.action.clone())).collect();
    assert_eq!(actions, [("b", Action::Quantize), ("a", Action::Keep("already int4".into()))]);
    run_plan(&plan, &first, &second).unwrap();
    assert_eq!(load(&checkpoint(&second), "a"), load(&checkpoint(&first), "a"));
    let formats: BTreeMap<_, _> =
        checkpoint(&second).entries().iter().map(|entry| (entry.name.clone(), entry.layout().unwrap().spec.name)).collect();
    assert_eq!(formats, BTreeMap::from([("a".into(), "int4"), ("b".into(), "gguf:q4_0")]));
}

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

/// More elements than the block that errors are measured and floats are decoded in.
#[test]
fn blocks_of_rows_make_no_difference() {
    let folder = tempfile::tempdir().unwrap();
    let [path, small, back] = ["in", "small", "back"].map(|name| folder.path().join(name));
    let shape = [3, 700, 2050];
    let (header, bytes) = float_tensor("w", StoredDtype::Bf16, &shape);
    write_file(&path, &[(header, bytes.clone())], &[]);
    for group_size in [GroupSize::Elements(32), GroupSize::Tensor] {
        let [effect] = convert(&path, &small, target("uint4", Some(group_size))).try_into().unwrap();
        convert(&small, &back, Target::Floats);
        let (file, run) = (checkpoint(&small), Run::serial(Level::current().unwrap()));
        let layout = file.entries()[0].layout().unwrap().clone();
        let source = Source::from_bytes(&bytes, Dtype::Bf16, &shape);
        let decoded = engine::dequantize_owned(&Quantized { layout, parts: load(&file, "w") }).unwrap();
        assert_eq!(load(&checkpoint(&back), "w"), [stored_as(StoredDtype::Bf16, &decoded)]);
        let sums = engine::compare(&source, &Source::from_slice(&decoded, &shape), &run).unwrap();
        assert_eq!(effect.errors.unwrap(), sums.into_iter().fold(Sums::default(), Sums::then));
    }
}

#[test]
fn names_and_patterns_select_and_must_mean_something() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    let names = ["layers.0.up", "layers.0.down", "layers.1.up", "head"];
    write_file(&path, &names.map(|name| float_tensor(name, StoredDtype::F32, &[2, 32])), &[]);
    let plan = |include: &[&str], exclude: &[&str], keep: &[&str]| {
        let owned = |names: &[&str]| names.iter().map(|name| name.to_string()).collect();
        let selection = Selection { include: owned(include), exclude: owned(exclude), keep: owned(keep) };
        let plan = Plan::new(&checkpoint(&path), target("int4", None), &selection).map_err(|error| error.to_string())?;
        let reason = |step: Step| match step.action {
            Action::Keep(reason) => (step.name, reason),
            _ => (step.name, String::new()),
        };
        Ok::<_, String>(plan.steps.into_iter().map(reason).collect::<BTreeMap<_, _>>())
    };
    let all = |reasons: [&str; 4]| Ok(names.iter().zip(reasons).map(|(name, reason)| (name.to_string(), reason.to_string())).collect());
    assert_eq!(plan(&[], &[], &[]), all(["", "", "", ""]));
    assert_eq!(plan(&["layers.*"], &["*.down"], &["layers.1.up"]), all(["", "excluded by '*.down'", "kept by name", "not included"]));
    assert_eq!(plan(&["*.up", "head"], &[], &[]), all(["", "not included", "", ""]));
    let refused = |argument: &str, pattern: &str, why: &str| Err(format!("{argument} is '{pattern}'; no tensor of the file {why}"));
    assert_eq!(plan(&["layer.*"], &[], &[]), refused("include", "layer.*", "matches it"));
    assert_eq!(plan(&[], &["head", "tail"], &[]), refused("exclude", "tail", "matches it"));
    assert_eq!(plan(&[], &[], &["hea*"]), refused("keep", "hea*", "has that name"));
}

#[test]
fn options_that_a_format_does_not_take_are_refused_whatever_the_file_holds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    write_file(&path, &[], &[]);
    let plan = |target| Plan::new(&checkpoint(&path), target, &Selection::default()).unwrap_err().to_string();
    assert_eq!(plan(target("gguf:q4_0", Some(GroupSize::Elements(64)))), "group_size is 64; gguf:q4_0 takes 32");
    let options = Options { scale_dtype: Some(ScaleDtype::F32), ..Options::default() };
    let float_scales = Target::Format(formats::find("gguf:q4_0").unwrap().spec(), options);
    assert!(plan(float_scales).contains("has no option scale_dtype"));
}

#[test]
fn a_part_never_takes_the_name_of_another_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("in");
    write_file(&path, &[float_tensor("w", StoredDtype::F32, &[2, 32]), float_tensor("w.scales", StoredDtype::F32, &[2])], &[]);
    let error = Plan::new(&checkpoint(&path), target("int4", None), &Selection::default()).unwrap_err();
    assert!(error.to_string().contains("the name of a part is 'w.scales'"), "{error}");
    let keep = Selection { keep: vec!["w".into()], ..Selection::default() };
    Plan::new(&checkpoint(&path), target("int4", None), &keep).unwrap();
}

#[test]
fn values_that_cannot_be_quantized_stop_the_job_and_name_the_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("in"), folder.path().join("out"));
    let mut wrong = float_tensor("wrong", StoredDtype::F32, &[2, 32]);
    wrong.1[132..136].copy_from_slice(&f32::NAN.to_le_bytes());
    write_file(&path, &[float_tensor("right", StoredDtype::F32, &[2, 32]), wrong], &[]);
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &Selection::default()).unwrap();
    let Failure { tensor, error } = run_plan(&plan, &path, &out).unwrap_err();
    assert_eq!(tensor.as_deref(), Some("wrong"));
    assert!(matches!(error, Error::NonFinite { count: 1, ref first, .. } if *first == [1, 1]), "{error}");
    assert_eq!(listing(folder.path()), ["in"]);

    let run = Run::serial(Level::current().unwrap());
    let effects = plan.run(checkpoint(&path), &out, false, NonFinite::Zero, &run, &mut |_, _| Ok(())).unwrap();
    assert_eq!(effects.iter().map(|effect| effect.replaced).collect::<Vec<_>>(), [0, 1]);

    let mut large = float_tensor("large", StoredDtype::F32, &[1, 32]);
    large.1 = stored_as(StoredDtype::F32, &[1e30; 32]);
    write_file(&path, &[large], &[]);
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &Selection::default()).unwrap();
    let Failure { tensor, error } = run_plan(&plan, &path, &out).unwrap_err();
    assert!(tensor.as_deref() == Some("large") && matches!(error, Error::ScaleOverflow { .. }), "{error}");
}

#[test]
fn a_caller_that_stops_leaves_nothing_behind() {
    let folder = tempfile::tempdir().unwrap();
    let (path, out) = (folder.path().join("in"), folder.path().join("out"));
    write_file(&path, &["a", "b", "c"].map(|name| float_tensor(name, StoredDtype::F32, &[2, 32])), &[]);
    let plan = Plan::new(&checkpoint(&path), target("int4", None), &Selection::default()).unwrap();
    let run = Run::serial(Level::current().unwrap());
    let mut names = Vec::new();
    let stop = &mut |bytes: u64, name: &str| {
        names.push((name.to_string(), bytes));
        if names.len() == 2 { Err(Error::Cancelled) } else { Ok(()) }
    };
    let failure = plan.run(checkpoint(&path), &out, false, NonFinite::Raise, &run, stop).unwrap_err();
    assert!(matches!(failure, Failure { tensor: None, error: Error::Cancelled }));
    assert_eq!(names, [("a".to_string(), 256), ("b".to_string(), 256)]);
    assert_eq!(listing(folder.path()), ["in"]);
}

#[test]
fn a_file_can_be_replaced_by_its_own_conversion() {
    let folder = tempfile::tempdir().unwrap();
    let [path, other] = ["in", "other"].map(|name| folder.path().join(name));
    write_file(&path, &[float_tensor("w", StoredDtype::F32, &[64, 64]), float_tensor("v", StoredDtype::F32, &[64])], &[]);
    convert(&path, &other, target("int4", None));
    convert(&path, &path, target("int4", None));
    assert_eq!(fs::read(&path).unwrap(), fs::read(&other).unwrap());
    assert_eq!(listing(folder.path()), ["in", "other"]);
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
fn two_files_are_compared_tensor_by_tensor() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let matrix = float_tensor("matrix", StoredDtype::F32, &[2, 64]);
    let ids = (tensor("ids", StoredDtype::I64, &[2]), vec![1; 16]);
    let byte = |name: &str, value| (tensor(name, StoredDtype::U8, &[1]), vec![value]);
    let float = |name: &str, shape: &[usize]| float_tensor(name, StoredDtype::F32, shape);
    write_file(&first, &[matrix.clone(), ids.clone(), byte("other", 1), float("shape", &[4]), byte("dtype", 1), float("a", &[])], &[]);
    let small = folder.path().join("small");
    convert(&first, &small, target("int4", None));
    let parts: Vec<_> = load(&checkpoint(&small), "matrix");
    let scheme = checkpoint(&small).container().metadata()["quantize"].clone();
    write_file(
        &second,
        &[
            (tensor("matrix.packed", StoredDtype::U8, &[2, 32]), parts[0].clone()),
            (tensor("matrix.scales", StoredDtype::F16, &[2, 2]), parts[1].clone()),
            ids,
            byte("other", 2),
            float("shape", &[2, 2]),
            float("dtype", &[1]),
            float("b", &[]),
        ],
        &[("quantize", &scheme)],
    );

    let run = Run::serial(Level::current().unwrap());
    let compared = compare::compare(&checkpoint(&first), &checkpoint(&second), &run, &mut |_, _| Ok(())).unwrap();
    let mut verdicts = BTreeMap::new();
    for row in compared {
        let text = match row.verdict {
            None => "missing".into(),
            Some(Verdict::Measured(sums)) => {
                let x = weights(128);
                let quantized = Quantized {
                    layout: checkpoint(&small).entries().iter().find_map(|e| e.layout()).unwrap().clone(),
                    parts: parts.clone(),
                };
                let error: f64 = engine::dequantize_owned(&quantized).unwrap().iter().zip(&x).map(|(y, x)| f64::from(y - x).powi(2)).sum();
                assert!((sums.error_squares / error - 1.0).abs() < 1e-6 && error > 0.0, "{} {error}", sums.error_squares);
                format!("{} {}", row.reference.unwrap().kind, row.other.unwrap().kind)
            }
            Some(verdict) => format!("{verdict:?}"),
        };
        verdicts.insert(row.name, text);
    }
    let expected = [
        ("matrix", "float32 int4"),
        ("ids", "SameBytes(true)"),
        ("other", "SameBytes(false)"),
        ("shape", "Shapes"),
        ("dtype", "Dtypes"),
        ("a", "missing"),
        ("b", "missing"),
    ];
    assert_eq!(verdicts, expected.map(|(name, text)| (name.to_string(), text.to_string())).into());
}
