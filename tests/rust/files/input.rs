//! Files that are read, whatever they hold: regular ones, without a panic.

use std::fs;
use std::path::Path;

use super::bytes_of;
use super::safetensors::{TWO, file, read};
use proptest::prelude::*;
use quantize::error::Error;
use quantize::files::Container;
use quantize::files::input::Input;
use quantize::files::npy::Npy;
use quantize::files::safetensors::Safetensors;

proptest! {
    #[test]
    fn no_bytes_make_a_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = read(bytes.clone());
        let _ = read(file(&bytes, 3));
        let _ = Npy::new(Input::from_bytes(bytes), "a".into());
    }
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
