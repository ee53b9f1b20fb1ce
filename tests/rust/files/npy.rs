//! The npy reader: C order and little-endian bytes from any file that numpy writes, a refusal for all else.

use super::{bytes_of, refusal};
use quantize::error::Result;
use quantize::files::input::Input;
use quantize::files::npy::Npy;
use quantize::files::{Container, StoredDtype, Tensor};

/// An npy file of this description.
pub(super) fn npy(version: u8, description: &str, data: &[u8]) -> Vec<u8> {
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
