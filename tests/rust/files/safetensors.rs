//! The safetensors reader and writer: the rules of the header, the words of a refusal, the layout of a written file.

use std::collections::BTreeMap;
use std::fs;

use super::{bytes_of, listing, refusal, tensor};
use proptest::prelude::*;
use quantize::error::Result;
use quantize::files::input::Input;
use quantize::files::output::Output;
use quantize::files::safetensors::{Safetensors, create};
use quantize::files::{Container, StoredDtype, Tensor};

/// A safetensors file of this header and this many bytes of data.
pub(super) fn file(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend((0..data).map(|i| i as u8));
    file
}

pub(super) fn read(file: Vec<u8>) -> Result<Safetensors> {
    Safetensors::new(Input::from_bytes(file))
}

pub(super) const TWO: &str = r#"{"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[3,11]},"a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}"#;

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
        (one(r#"{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}"#), 4, "past the file"),
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
    let mut writer = create(Output::create(&path, false).unwrap(), &tensors, &metadata).unwrap();
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
        let error = create(output, &tensors, &BTreeMap::new()).err().unwrap();
        assert_eq!(error.to_string(), format!("the name of a tensor is '{name}'; a safetensors file can hold that name only once"));
    }
    assert!(listing(folder.path()).is_empty());
}
