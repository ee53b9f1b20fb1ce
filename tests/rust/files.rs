//! Containers: what is accepted, what is refused and with which words, what a writer leaves behind.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use quantize::error::{Error, Result};
use quantize::files::input::Input;
use quantize::files::npy::Npy;
use quantize::files::output::Output;
use quantize::files::safetensors::{Safetensors, Writer};
use quantize::files::{Container, StoredDtype, Tensor};

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
        ("{'descr': '>i2', 'fortran_order': False, 'shape': (2, 3)}", StoredDtype::I16, vec![2, 3], vec![1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10]),
        ("{'shape':(2,3),'fortran_order':True,'descr':\"<i2\"}", StoredDtype::I16, vec![2, 3], vec![0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11]),
        ("{'descr': '|u1', 'fortran_order': True, 'shape': (12,), }", StoredDtype::U8, vec![12], data.clone()),
        ("{'descr': '<f4', 'fortran_order': True, 'shape': (1, 3, 1), }", StoredDtype::F32, vec![1, 3, 1], data.clone()),
        ("{'descr': '|u1', 'fortran_order': True, 'shape': (2, 3, 2), }", StoredDtype::U8, vec![2, 3, 2], vec![0, 6, 2, 8, 4, 10, 1, 7, 3, 9, 5, 11]),
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
