//! The npz reader: stored and deflated members of any size of field, a refusal for every archive that lies.

use std::io::Write;

use super::npy::npy;
use super::{bytes_of, refusal, tensor};
use flate2::write::DeflateEncoder;
use flate2::{Compression, Crc};
use quantize::error::Result;
use quantize::files::input::Input;
use quantize::files::npz::Npz;
use quantize::files::{Container, StoredDtype};

/// A member in the making: what its two headers say of it, and its bytes.
#[derive(Clone)]
struct Member {
    name: Vec<u8>,
    flags: u16,
    method: u16,
    crc: u32,
    length: u64,
    packed: Vec<u8>,
    /// What the directory claims of the bytes in the archive, where it lies.
    claimed: Option<u64>,
    /// Whether sizes and places stand in the field of 64 bits.
    large: bool,
    /// Where the directory says it is, where it lies.
    place: Option<u64>,
    /// The name in front of its bytes, where it is another.
    own_name: Option<Vec<u8>>,
}

fn stored(name: &str, bytes: &[u8]) -> Member {
    let mut crc = Crc::new();
    crc.update(bytes);
    Member {
        name: name.into(),
        flags: 0,
        method: 0,
        crc: crc.sum(),
        length: bytes.len() as u64,
        packed: bytes.to_vec(),
        claimed: None,
        large: false,
        place: None,
        own_name: None,
    }
}

fn deflated(name: &str, bytes: &[u8]) -> Member {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    Member { method: 8, packed: encoder.finish().unwrap(), ..stored(name, bytes) }
}

/// What the end of the archive says, where it lies.
#[derive(Clone, Default)]
struct End {
    count: Option<u64>,
    length: Option<u64>,
    start: Option<u64>,
    disk: u16,
    large: bool,
    comment: Vec<u8>,
}

fn archive(members: &[Member], end: &End) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for member in members {
        let start = file.len() as u64;
        let own = member.own_name.as_ref().unwrap_or(&member.name);
        let packed = member.claimed.unwrap_or(member.packed.len() as u64);
        let place = member.place.unwrap_or(start);
        let small = |value: u64| if member.large { u32::MAX } else { value as u32 }.to_le_bytes();
        let common = |name: &[u8], extra: usize| {
            let mut fields = [20u16.to_le_bytes(), member.flags.to_le_bytes(), member.method.to_le_bytes(), [0; 2], [0; 2]].concat();
            fields.extend(member.crc.to_le_bytes());
            fields.extend(small(packed));
            fields.extend(small(member.length));
            fields.extend((name.len() as u16).to_le_bytes());
            fields.extend((extra as u16).to_le_bytes());
            fields
        };
        file.extend([b"PK\x03\x04", &common(own, 3)[..], own, b"xyz", &member.packed].concat());
        let extra: Vec<u8> = if member.large {
            [&[9, 0, 2, 0, 7, 7, 1, 0, 24, 0][..], &member.length.to_le_bytes(), &packed.to_le_bytes(), &place.to_le_bytes()].concat()
        } else {
            Vec::new()
        };
        directory.extend(
            [b"PK\x01\x02\x14\x00", &common(&member.name, extra.len())[..], &[0; 10], &small(place), &member.name, &extra].concat(),
        );
    }
    let start = end.start.unwrap_or(file.len() as u64);
    let length = end.length.unwrap_or(directory.len() as u64);
    let count = end.count.unwrap_or(members.len() as u64);
    file.extend(directory);
    if end.large {
        let at = file.len() as u64;
        let fields = [&44u64.to_le_bytes()[..], &[45, 0, 45, 0], &[0; 8], &count.to_le_bytes(), &count.to_le_bytes()].concat();
        file.extend([b"PK\x06\x06", &fields[..], &length.to_le_bytes(), &start.to_le_bytes()].concat());
        file.extend([b"PK\x06\x07", &[0; 4][..], &at.to_le_bytes(), &1u32.to_le_bytes()].concat());
    }
    let small = |value: u64, most: u64| if end.large { most } else { value };
    let count = (small(count, 0xffff) as u16).to_le_bytes();
    file.extend([b"PK\x05\x06", &end.disk.to_le_bytes()[..], &[0; 2], &count, &count].concat());
    file.extend((small(length, 0xffff_ffff) as u32).to_le_bytes());
    file.extend((small(start, 0xffff_ffff) as u32).to_le_bytes());
    file.extend((end.comment.len() as u16).to_le_bytes());
    file.extend(&end.comment);
    file
}

fn read(members: &[Member], end: &End) -> Result<Npz> {
    Npz::new(Input::from_bytes(archive(members, end)))
}

fn array(shape: &str, data: &[u8]) -> Vec<u8> {
    npy(1, &format!("{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}"), data)
}

#[test]
fn members_are_tensors_stored_or_deflated_small_or_large() {
    let data: Vec<u8> = (0..60_000u32).map(|i| (i * i / 7) as u8).collect();
    for (large, comment) in [(false, Vec::new()), (true, b"a comment PK\x05\x06 with a signature".to_vec())] {
        let members = [
            stored("a.npy", &array("(3,)", &data[..3])),
            deflated("in/folder/../b.npy", &array("(300, 200)", &data)),
            deflated("none.npy", &array("(0, 4)", &[])),
        ]
        .map(|member| Member { large, ..member });
        let file = read(&members, &End { large, comment, ..End::default() }).unwrap();
        let shapes = [("a", &[3][..]), ("in/folder/../b", &[300, 200]), ("none", &[0, 4])];
        assert_eq!(file.tensors(), shapes.map(|(name, shape)| tensor(name, StoredDtype::U8, shape)));
        assert_eq!(bytes_of(&file, 0), &data[..3]);
        // From front to back, back again, and from the middle.
        for _ in 0..2 {
            assert_eq!(bytes_of(&file, 1), data);
        }
        for at in [59_990, 20_000, 30_000, 0] {
            let mut some = [0; 10];
            file.read(1, at as u64, &mut some).unwrap();
            assert_eq!(some, data[at..at + 10]);
        }
    }
    assert!(read(&[], &End::default()).unwrap().tensors().is_empty());
}

#[test]
fn an_archive_that_lies_is_refused_with_the_rule() {
    let good = stored("a.npy", &array("(3,)", &[1, 2, 3]));
    let packed = deflated("b.npy", &array("(600,)", &[7; 600]));
    let one = |change: &dyn Fn(&mut Member)| {
        let mut member = good.clone();
        change(&mut member);
        refusal(read(&[member], &End::default()))
    };
    let end = |end: End| refusal(read(std::slice::from_ref(&good), &end));
    for (found, expected) in [
        (refusal(read(&[good.clone(), good.clone()], &End::default())), "member 'a.npy' comes twice"),
        (one(&|m| m.flags = 1), "member 'a.npy' is encrypted"),
        (one(&|m| m.method = 12), "is packed by method 12"),
        (one(&|m| m.name = vec![0xff, 0xfe]), "not UTF-8"),
        (one(&|m| m.name = b"a.txt".to_vec()), "member 'a.txt' is no npy array"),
        (one(&|m| m.name = b"archive/data.pkl".to_vec()), "zip archive looks like a torch checkpoint"),
        (one(&|m| m.own_name = Some(b"b.npy".to_vec())), "another name in front of its bytes"),
        (one(&|m| m.length = 5), "is stored in"),
        (one(&|m| (m.length, m.claimed) = (1 << 31, Some(1 << 31))), "and the directory is at byte"),
        (one(&|m| (m.length, m.claimed, m.large) = (u64::MAX, Some(u64::MAX), true)), "and the directory is at byte"),
        (one(&|m| m.place = Some(1 << 30)), "and the directory is at byte"),
        (one(&|m| (m.place, m.large) = (Some(u64::MAX), true)), "and the directory is at byte"),
        (one(&|m| m.place = Some(4)), "is not where the directory says"),
        (end(End { count: Some(2), ..End::default() }), "claims 2 members"),
        (end(End { count: Some(0), ..End::default() }), "bytes of the directory belong to no member"),
        (end(End { count: Some(u64::MAX), large: true, ..End::default() }), "claims 18446744073709551615 members"),
        (end(End { length: Some(10), ..End::default() }), "the directory claims 10 bytes"),
        (end(End { start: Some(u64::MAX), large: true, ..End::default() }), "the directory claims"),
        (end(End { disk: 1, ..End::default() }), "several disks"),
    ] {
        assert!(found.contains(expected), "{found}");
    }
    // Two names for the same bytes.
    let twice = [good.clone(), Member { place: Some(0), name: b"b.npy".to_vec(), ..good.clone() }];
    assert!(refusal(read(&twice, &End::default())).contains("another name"));
    // A member within another.
    let inner = archive(std::slice::from_ref(&good), &End::default());
    let outer = stored("outer.npy", &inner);
    let place = Some(30 + 9 + 3);
    let nested = [outer, Member { place, ..good.clone() }];
    assert!(refusal(read(&nested, &End::default())).contains("two members overlap"));

    // What is deflated shows when it is read.
    let of_packed = |change: &dyn Fn(&mut Member)| {
        let mut member = packed.clone();
        change(&mut member);
        read(&[member], &End::default()).and_then(|file| {
            let mut all = vec![0; 600];
            file.read(0, 0, &mut all)
        })
    };
    of_packed(&|_| {}).unwrap();
    assert!(refusal(of_packed(&|m| m.crc ^= 1)).contains("CRC-32"));
    assert!(refusal(of_packed(&|m| (m.length, m.large) = (1 << 40, true))).contains("more than its"));
    assert!(refusal(of_packed(&|m| m.length += 1)).contains("follow the description"));
    assert!(refusal(of_packed(&|m| *m = deflated("b.npy", &array("(700,)", &[7; 600])))).contains("takes 700 bytes, but 600 follow"));
    let short = |m: &mut Member| *m = Member { length: m.length + 100, ..deflated("b.npy", &array("(700,)", &[7; 600])) };
    assert!(refusal(of_packed(&short).map(drop).and_then(|()| read_all(&short, &packed))).contains("too early"));
    let long = |m: &mut Member| *m = Member { length: m.length - 100, ..deflated("b.npy", &array("(500,)", &[7; 600])) };
    assert!(refusal(read_all(&long, &packed)).contains("more than the"));
    assert!(refusal(of_packed(&|m| m.packed.truncate(20))).contains("too early"));
    assert!(refusal(of_packed(&|m| m.packed.iter_mut().for_each(|byte| *byte = 0xff))).contains("not deflated"));
}

/// Read all of the one member that a change makes.
fn read_all(change: &dyn Fn(&mut Member), member: &Member) -> Result<()> {
    let mut member = member.clone();
    change(&mut member);
    let file = read(&[member], &End::default())?;
    let mut all = vec![0; file.tensors()[0].bytes() as usize];
    file.read(0, 0, &mut all)
}

#[test]
fn an_archive_that_is_cut_short_anywhere_is_refused() {
    let members = [stored("a.npy", &array("(3,)", &[1, 2, 3])), deflated("b.npy", &array("(600,)", &[7; 600]))];
    for large in [false, true] {
        let whole = archive(&members, &End { large, ..End::default() });
        for length in 0..whole.len() {
            refusal(Npz::new(Input::from_bytes(whole[..length].to_vec())));
        }
    }
    let text = refusal(Npz::new(Input::from_bytes(b"<!DOCTYPE html>".to_vec())));
    assert!(text.contains("HTML page"), "{text}");
}
