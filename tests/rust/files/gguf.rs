//! The GGUF reader and writer: the rules of the header, the words of a refusal, the layout of a written file.

use std::fs;

use super::{bytes_of, listing, refusal, tensor};
use proptest::prelude::*;
use quantize::error::Result;
use quantize::files::checkpoint::Checkpoint;
use quantize::files::gguf::{Gguf, Key, Value, create};
use quantize::files::input::Input;
use quantize::files::output::Output;
use quantize::files::{Container, StoredDtype, Tensor};

/// A file in the making, byte by byte.
#[derive(Clone)]
pub(super) struct File {
    pub(super) version: u32,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) tensors: Vec<Vec<u8>>,
    pub(super) alignment: usize,
    pub(super) data: Vec<u8>,
}

fn text(bytes: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = bytes.as_ref();
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

pub(super) fn key(name: &str, kind: u32, value: impl AsRef<[u8]>) -> Vec<u8> {
    [&text(name)[..], &kind.to_le_bytes(), value.as_ref()].concat()
}

fn array(kind: u32, count: u64, elements: impl AsRef<[u8]>) -> Vec<u8> {
    [&kind.to_le_bytes()[..], &count.to_le_bytes(), elements.as_ref()].concat()
}

/// A line of the list; `axes` innermost first, as the file has them.
pub(super) fn line(name: impl AsRef<[u8]>, axes: &[u64], kind: u32, offset: u64) -> Vec<u8> {
    let axes_bytes: Vec<u8> = axes.iter().flat_map(|axis| axis.to_le_bytes()).collect();
    [&text(name)[..], &(axes.len() as u32).to_le_bytes(), &axes_bytes, &kind.to_le_bytes(), &offset.to_le_bytes()].concat()
}

impl File {
    pub(super) fn new(keys: &[Vec<u8>], tensors: &[Vec<u8>], data: usize) -> File {
        let data = (0..data).map(|i| i as u8).collect();
        File { version: 3, keys: keys.to_vec(), tensors: tensors.to_vec(), alignment: 32, data }
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut file = [&b"GGUF"[..], &self.version.to_le_bytes()].concat();
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend((self.keys.len() as u64).to_le_bytes());
        file.extend(self.keys.concat());
        file.extend(self.tensors.concat());
        file.resize(file.len().next_multiple_of(self.alignment), 0);
        file.extend(&self.data);
        file
    }
}

fn read(file: Vec<u8>) -> Result<Gguf> {
    Gguf::new(Input::from_bytes(file))
}

/// Two tensors of a row each, and a key of every kind.
fn two() -> File {
    let keys = [
        key("general.architecture", 8, text("llama")),
        key("u8", 0, [200]),
        key("i8", 1, [200]),
        key("u16", 2, 40_000u16.to_le_bytes()),
        key("i16", 3, (-2i16).to_le_bytes()),
        key("u32", 4, 3_000_000_000u32.to_le_bytes()),
        key("i32", 5, (-3i32).to_le_bytes()),
        key("f32", 6, 1e-5f32.to_le_bytes()),
        key("yes", 7, [1]),
        key("no", 7, [0]),
        key("texts", 9, array(8, 2, [text("a"), text("bÿ")].concat())),
        key("numbers", 9, array(3, 2, [1, 0, 0xff, 0xff])),
        key("nothing", 9, array(8, 0, [])),
        key("u64", 10, u64::MAX.to_le_bytes()),
        key("i64", 11, i64::MIN.to_le_bytes()),
        key("f64", 12, 0.1f64.to_le_bytes()),
    ];
    File::new(&keys, &[line("b", &[32, 2], 2, 0), line("a", &[3], 0, 64)], 96)
}

/// The example of a whole file: two rows of 32 in Q4_0.
#[test]
fn a_file_gives_its_keys_and_tensors() {
    let file = read(two().bytes()).unwrap();
    assert_eq!(file.tensors(), [tensor("b", StoredDtype::Q40, &[2, 32]), tensor("a", StoredDtype::F32, &[3])]);
    assert_eq!(bytes_of(&file, 0), (0..36).collect::<Vec<u8>>());
    assert_eq!(bytes_of(&file, 1), (64..76).collect::<Vec<u8>>());
    let mut middle = [0; 2];
    file.read(1, 5, &mut middle).unwrap();
    assert_eq!(middle, [69, 70]);
    let found: Vec<(&str, Value)> = file.keys().iter().map(|key| (key.name.as_str(), key.value())).collect();
    let expected = [
        ("general.architecture", Value::Text("llama".into())),
        ("u8", Value::Unsigned(200)),
        ("i8", Value::Signed(-56)),
        ("u16", Value::Unsigned(40_000)),
        ("i16", Value::Signed(-2)),
        ("u32", Value::Unsigned(3_000_000_000)),
        ("i32", Value::Signed(-3)),
        ("f32", Value::Float(1e-5f32.into())),
        ("yes", Value::Bool(true)),
        ("no", Value::Bool(false)),
        ("texts", Value::List(vec![Value::Text("a".into()), Value::Text("bÿ".into())])),
        ("numbers", Value::List(vec![Value::Signed(1), Value::Signed(-1)])),
        ("nothing", Value::List(vec![])),
        ("u64", Value::Unsigned(u64::MAX)),
        ("i64", Value::Signed(i64::MIN)),
        ("f64", Value::Float(0.1)),
    ];
    assert_eq!(found, expected);
    let version_2 = read(File { version: 2, ..two() }.bytes()).unwrap();
    assert_eq!((version_2.keys(), version_2.tensors()), (file.keys(), file.tensors()));
}

#[test]
fn four_bit_types_and_companions_are_entries_of_their_format() {
    let types = [
        (2, "gguf:q4_0", 32, 18),
        (3, "gguf:q4_1", 32, 20),
        (12, "gguf:q4_k", 256, 144),
        (20, "gguf:iq4_nl", 32, 18),
        (23, "gguf:iq4_xs", 256, 136),
        (39, "gguf:mxfp4", 32, 17),
        (40, "gguf:nvfp4", 64, 36),
        (8, "gguf:q8_0", 32, 34),
        (6, "gguf:q5_0", 32, 22),
        (7, "gguf:q5_1", 32, 24),
        (13, "gguf:q5_k", 256, 176),
        (14, "gguf:q6_k", 256, 210),
    ];
    for (kind, format, elements, bytes) in types {
        let file = read(File::new(&[], &[line("w", &[elements, 3], kind, 0)], 3 * bytes).bytes()).unwrap();
        let checkpoint = Checkpoint::new(Box::new(file)).unwrap();
        let [entry] = checkpoint.entries() else { panic!("one tensor") };
        assert_eq!(entry.layout().unwrap().spec.name, format);
        assert_eq!((entry.dtype, &entry.shape[..]), (StoredDtype::F32, &[3, elements as usize][..]));
        assert_eq!(checkpoint.load(entry).unwrap(), [(0..3 * bytes).map(|i| i as u8).collect::<Vec<_>>()]);
    }
    let file = read(File::new(&[], &[line("w", &[256], 11, 0)], 110).bytes()).unwrap();
    let checkpoint = Checkpoint::new(Box::new(file)).unwrap();
    assert!(checkpoint.entries()[0].layout().is_none());
    assert_eq!((checkpoint.entries()[0].dtype.name(), checkpoint.bytes(&checkpoint.entries()[0])), ("Q3_K", 110));
}

#[test]
fn what_the_reference_accepts_is_accepted() {
    let aligned = |alignment: u32, data| File {
        alignment: alignment as usize,
        ..File::new(&[key("general.alignment", 4, alignment.to_le_bytes())], &[line("w", &[3], 0, 0)], data)
    };
    for (case, file) in [
        ("no keys and no tensors", File::new(&[], &[], 0)),
        ("no axes", File::new(&[], &[line("w", &[], 0, 0)], 4)),
        ("an empty axis", File::new(&[], &[line("w", &[0, 7], 0, 0), line("v", &[1], 0, 0)], 4)),
        ("an empty axis of blocks", File::new(&[], &[line("w", &[0, 7], 12, 0)], 0)),
        ("an empty name", File::new(&[], &[line("", &[1], 0, 0)], 4)),
        ("no padding at the end", File::new(&[], &[line("w", &[1], 0, 0), line("v", &[1], 0, 32)], 36)),
        ("more at the end", File::new(&[], &[line("w", &[1], 0, 0)], 99)),
        ("a text that is no UTF-8", File::new(&[key("k", 8, text(b"\xff\xfe"))], &[], 0)),
        ("alignment 8", aligned(8, 12)),
        ("alignment 128", aligned(128, 12)),
        ("a name of 127 bytes", File::new(&[], &[line("x".repeat(127), &[1], 0, 0)], 4)),
        ("four axes", File::new(&[], &[line("w", &[1, 2, 1, 2], 0, 0)], 16)),
    ] {
        if let Err(error) = read(file.bytes()) {
            panic!("{case}: {error}");
        }
    }
}

#[test]
fn a_broken_file_is_refused_with_the_rule_and_the_tensor() {
    let one = |line: Vec<u8>| File::new(&[], &[line], 4096);
    let with = |key: Vec<u8>| File::new(&[key], &[], 64);
    let alignment = |alignment: u32| with(key("general.alignment", 4, alignment.to_le_bytes()));
    let whole = |offsets: [u64; 2]| File::new(&[], &[line("a", &[9], 0, offsets[0]), line("b", &[9], 0, offsets[1])], 4096);
    let huge = 1u64 << 62;
    for (file, expected) in [
        (File { version: 1, ..two() }, "version 1 is not known; 2 and 3 are"),
        (File { version: 4, ..two() }, "version 4 is not known"),
        (File { version: 3u32.swap_bytes(), ..two() }, "the file is big-endian"),
        (one(line("w", &[32, 2], 4, 0)), "tensor 'w' has type 4, which is not known"),
        (one(line("w", &[32, 2], 36, 0)), "tensor 'w' has type 36, which is not known"),
        (one(line("w", &[32, 2], u32::MAX, 0)), "tensor 'w' has type 4294967295, which is not known"),
        (one(line("w", &[33, 2], 2, 0)), "tensor 'w' has rows of 33 elements; Q4_0 takes blocks of 32"),
        (one(line("w", &[], 2, 0)), "tensor 'w' has rows of 1 elements; Q4_0 takes blocks of 32"),
        (one(line("w", &[1; 5], 0, 0)), "tensor 'w' has 5 axes; the limit is 4"),
        (one(line("w", &[huge, huge], 0, 0)), "more than 64 bits can count"),
        (one(line("w", &[huge, 1], 28, 0)), "more than 64 bits can count"),
        (one(line("w", &[1 << 40, 1 << 40, 0], 0, 0)), "more than 64 bits can count"),
        (one(line("w", &[u64::MAX], 24, 0)), "longer than 63 bits can count"),
        (one(line("w", &[huge], 24, 0)), "the data of the last tensor, 'w', ends at byte 4611686018427387904; 4096 are there"),
        (one(line("w", &[i64::MAX as u64], 24, 0)), "the file is cut short"),
        (one(line("w", &[1], 0, 32)), "tensor 'w' begins at byte 32 of the data and leaves a hole after what ends at 0"),
        (whole([0, 32]), "tensor 'b' begins at byte 32 of the data and overlaps what ends at 64"),
        (whole([0, 36]), "tensor 'b' begins at byte 36 of the data and overlaps what ends at 64"),
        (whole([0, 0]), "tensor 'b' begins at byte 0 of the data and overlaps"),
        (whole([0, 96]), "tensor 'b' begins at byte 96 of the data and leaves a hole"),
        (whole([64, 0]), "tensor 'a' begins at byte 64 of the data and leaves a hole"),
        (whole([0, u64::MAX]), "tensor 'b' begins at byte 18446744073709551615"),
        (File::new(&[], &[line("a", &[1], 0, 0), line("a", &[1], 0, 32)], 64), "tensor 'a' comes twice"),
        (one(line(b"\xff", &[1], 0, 0)), "the name of tensor 0 is not UTF-8"),
        (one(line("x".repeat(128), &[1], 0, 0)), "the name of tensor 0 claims 128 bytes; the limit is 127"),
        (File::new(&[key("k", 0, [1]), key("k", 0, [1])], &[], 0), "key 'k' comes twice"),
        (with(key("", 0, [1])), "the name of key 0 is empty"),
        (with(key(&"k".repeat(65_536), 0, [1])), "the name of key 0 claims 65536 bytes; the limit is 65535"),
        (with(key("k", 13, [1])), "key 'k' has type 13; types are 0 to 12"),
        (with(key("k", 9, array(13, 1, [1]))), "key 'k' is an array of type 13"),
        (with(key("k", 9, array(9, 1, array(0, 1, [1])))), "key 'k' is an array of arrays"),
        (with(key("k", 9, array(10, u64::MAX, [1]))), "key 'k' claims 18446744073709551615 elements of 8 bytes or more"),
        (with(key("k", 9, array(8, 1 << 61, [1]))), "key 'k' claims 2305843009213693952 elements of 8 bytes or more"),
        (with(key("k", 9, array(0, 1 << 31, [1]))), "key 'k' claims 2147483648 elements of 1 bytes or more"),
        (with(key("k", 8, u64::MAX.to_le_bytes())), "key 'k' takes 18446744073709551615 bytes"),
        (alignment(0), "key general.alignment is 0; expected a u32, a power of two from 8 to 1048576"),
        (alignment(1), "key general.alignment is 1;"),
        (alignment(24), "key general.alignment is 24;"),
        (alignment(1 << 31), "key general.alignment is 2147483648;"),
        (with(key("general.alignment", 5, 32i32.to_le_bytes())), "key general.alignment is of another type"),
        (with(key("general.alignment", 10, 32u64.to_le_bytes())), "key general.alignment is of another type"),
    ] {
        let message = refusal(read(file.bytes()));
        assert!(message.contains(expected), "says: {message}\n  expected: {expected}");
        assert!(message.starts_with("gguf: "), "{message}");
    }
}

#[test]
fn a_claimed_count_is_compared_before_anything_is_repeated_by_it() {
    for (place, what) in [(8, "tensors"), (16, "keys")] {
        for claimed in [1 << 31, 1 << 32, 1 << 63, u64::MAX, 1_000_001, 1_000_000, 1000] {
            let mut file = two().bytes();
            file[place..place + 8].copy_from_slice(&u64::to_le_bytes(claimed));
            let message = refusal(read(file));
            assert!(message.contains(&format!("the file claims {claimed} {what}")), "{message}");
        }
    }
}

#[test]
fn names_are_escaped_and_cut_in_messages() {
    let named = |name: &str| refusal(read(File::new(&[key(name, 13, [1])], &[], 0).bytes()));
    assert!(named("a\0b").contains(r"'a\0b'"));
    assert!(named("a\u{202e}b").contains(r"'a\u{202e}b'"));
    assert!(named(&"x".repeat(60_000)).len() < 300);
}

#[test]
fn a_file_cut_at_any_byte_is_refused() {
    let file = two();
    let whole = file.bytes();
    // The zeros after the last tensor may be missing.
    let needed = whole.len() - file.data.len() + 64 + 12;
    for length in 0..needed {
        let message = refusal(read(whole[..length].to_vec()));
        assert!(message.starts_with("gguf: "), "{length}: {message}");
    }
    for length in needed..=whole.len() {
        read(whole[..length].to_vec()).unwrap();
    }
}

#[test]
fn another_kind_of_file_is_recognised() {
    for (start, expected) in [(&b""[..], "it is empty"), (b"version https://git-lfs", "Git LFS pointer"), (b"GGU", "does not begin as one")]
    {
        assert!(refusal(read(start.to_vec())).contains(expected));
    }
}

#[test]
fn a_list_of_twenty_thousand_tensors_is_read() {
    let lines: Vec<_> = (0..20_000).map(|i| line(format!("blk.{i}.weight"), &[1], 0, 32 * i)).collect();
    let file = read(File::new(&[], &lines, 32 * 20_000).bytes()).unwrap();
    assert_eq!(file.tensors().len(), 20_000);
    assert_eq!(bytes_of(&file, 19_999), [224, 225, 226, 227]);
}

/// A long text does not fit the window that small numbers are read through.
#[test]
fn long_texts_between_short_ones_are_read_whole() {
    let long: String = (0..200_000u32).map(|i| char::from(b'a' + (i % 26) as u8)).collect();
    let texts = [text("short"), text(&long), text("short")].concat();
    let file = read(File::new(&[key("k", 9, array(8, 3, texts)), key("n", 0, [7])], &[], 0).bytes()).unwrap();
    let [first, last] = file.keys() else { panic!("two keys") };
    let expected = ["short", &long, "short"].map(|text| Value::Text(text.into())).to_vec();
    assert_eq!((first.value(), last.value()), (Value::List(expected), Value::Unsigned(7)));
}

/// As llama.cpp's quantizer lays it: tensors of no layer first, then by the number of the layer, by name; zeros after the last one too.
#[test]
fn a_written_file_has_these_bytes_and_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    let tensors = [
        tensor("blk.10.w", StoredDtype::Q40, &[2, 32]),
        tensor("blk.2.w", StoredDtype::F32, &[3]),
        tensor("token_embd.weight", StoredDtype::I8, &[1, 1]),
        tensor("blk.2.a", StoredDtype::F16, &[]),
        tensor("empty", StoredDtype::F32, &[0, 2]),
    ];
    let source = read(two().bytes()).unwrap();
    let keys: Vec<Key> = source.keys().iter().cloned().chain([Key::u32("general.file_type", 2)]).collect();
    let mut writer = create(Output::create(&path, false).unwrap(), &tensors, &keys).unwrap();
    let contents: Vec<Vec<u8>> = tensors.iter().map(|tensor| (1..=tensor.bytes() as u8).collect()).collect();
    for index in [1, 0, 2, 3, 4] {
        for (offset, byte) in contents[index].iter().enumerate() {
            writer.write(index, offset as u64, &[*byte]).unwrap();
        }
    }
    writer.finish().unwrap();

    let lines = [
        line("empty", &[2, 0], 0, 0),
        line("token_embd.weight", &[1, 1], 24, 0),
        line("blk.2.a", &[], 1, 32),
        line("blk.2.w", &[3], 0, 64),
        line("blk.10.w", &[32, 2], 2, 96),
    ];
    let mut data = Vec::new();
    for index in [2, 3, 1, 0] {
        data.extend(&contents[index]);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let keys_bytes = [two().keys, vec![key("general.file_type", 4, 2u32.to_le_bytes())]].concat();
    assert_eq!(fs::read(&path).unwrap(), File { data, ..File::new(&keys_bytes, &lines, 0) }.bytes());

    let file = Gguf::new(Input::open(&path).unwrap()).unwrap();
    assert_eq!(file.keys(), keys);
    for (index, found) in file.tensors().iter().enumerate() {
        let place = tensors.iter().position(|tensor| tensor == found).unwrap();
        assert_eq!(bytes_of(&file, index), contents[place]);
    }
}

#[test]
fn a_writer_refuses_what_no_reader_takes() {
    let folder = tempfile::tempdir().unwrap();
    let one = |name: &str, dtype, shape: &[usize]| vec![tensor(name, dtype, shape)];
    let twice = [one("w", StoredDtype::F32, &[1]), one("w", StoredDtype::F32, &[2])].concat();
    for (tensors, expected) in [
        (twice, "the name of a tensor is 'w'; a GGUF file can hold that name only once".to_string()),
        (one("w", StoredDtype::U8, &[1]), "the dtype of tensor 'w' is uint8; a GGUF file has no such type".into()),
        (one("w", StoredDtype::F32, &[1; 5]), "the number of axes of tensor 'w' is 5; a GGUF file takes up to 4".into()),
        (
            one(&"x".repeat(64), StoredDtype::F32, &[1]),
            format!("the name of tensor '{}' is 64 bytes long; readers take up to 63", "x".repeat(64)),
        ),
    ] {
        let output = Output::create(&folder.path().join("out"), false).unwrap();
        assert_eq!(create(output, &tensors, &[]).err().unwrap().to_string(), expected);
    }
    assert!(listing(folder.path()).is_empty());
}

proptest! {
    /// Whatever one byte, or a cut, makes of a file: it is refused in our words, or every tensor that it lists can be read.
    #[test]
    fn a_damaged_file_is_refused_or_read(position in 0usize..900, value: u8, cut in 0usize..40) {
        let mut file = two().bytes();
        let position = position % file.len();
        file[position] = value;
        file.truncate(file.len() - cut);
        match read(file) {
            Ok(file) => {
                for index in 0..file.tensors().len() {
                    bytes_of(&file, index);
                }
                file.keys().iter().for_each(|key| drop(key.value()));
            }
            Err(error) => prop_assert!(error.to_string().starts_with("gguf: "), "{}", error),
        }
    }

    /// Any bytes after a valid start.
    #[test]
    fn any_bytes_are_refused_or_read(bytes in prop::collection::vec(any::<u8>(), 0..200), tensors in 0u64..4, keys in 0u64..4) {
        let start = [&b"GGUF\x03\0\0\0"[..], &tensors.to_le_bytes(), &keys.to_le_bytes(), &bytes].concat();
        if let Ok(file) = read(start) {
            for index in 0..file.tensors().len() {
                bytes_of(&file, index);
            }
        }
    }

    /// What is written is read as it was, whatever the tensors.
    #[test]
    fn every_list_of_tensors_is_written_and_read_again(kinds in prop::collection::vec((0usize..5, 0usize..4, 0usize..3), 0..8)) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let dtypes = [StoredDtype::F32, StoredDtype::Bf16, StoredDtype::Q41, StoredDtype::I8, StoredDtype::Q6K];
        let tensors: Vec<Tensor> = kinds.iter().enumerate().map(|(index, &(kind, rows, blocks))| {
            tensor(&format!("blk.{}.{index}", 11 - index), dtypes[kind], &[rows, blocks * dtypes[kind].block().elements as usize])
        }).collect();
        let mut writer = create(Output::create(&path, false).unwrap(), &tensors, &[]).unwrap();
        for (index, tensor) in tensors.iter().enumerate() {
            writer.write(index, 0, &vec![index as u8 + 1; tensor.bytes() as usize]).unwrap();
        }
        writer.finish().unwrap();
        prop_assert_eq!(fs::metadata(&path).unwrap().len() % 32, 0);
        let file = Gguf::new(Input::open(&path).unwrap()).unwrap();
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for (index, found) in file.tensors().iter().enumerate() {
            let place = tensors.iter().position(|tensor| tensor == found).unwrap();
            prop_assert!(bytes_of(&file, index).iter().all(|&byte| byte == place as u8 + 1));
        }
    }
}
