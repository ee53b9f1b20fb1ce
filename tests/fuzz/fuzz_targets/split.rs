//! Any bytes as the two files of a GGUF model: an error, or tensors that can all be read.
//!
//! Byte 0 says how much of the rest is the first file, in 255ths. `./check fuzz` runs it for a minute, from the seeds in `tests/fuzz/seeds`.

#![no_main]

use std::cell::LazyCell;
use std::fs;

use libfuzzer_sys::fuzz_target;
use quantize::files::checkpoint::Checkpoint;

thread_local! {
    static FOLDER: LazyCell<tempfile::TempDir> = LazyCell::new(|| tempfile::tempdir().expect("a folder for temporary files"));
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let (one, other) = rest.split_at(rest.len() * usize::from(first) / 255);
    FOLDER.with(|folder| {
        let path = |number: usize| folder.path().join(format!("model-{number:05}-of-00002.gguf"));
        fs::write(path(1), one).expect("a file can be written");
        fs::write(path(2), other).expect("a file can be written");
        let Ok(checkpoint) = quantize::files::open(&path(1)).and_then(Checkpoint::new) else { return };
        let file = checkpoint.container();
        for (index, tensor) in file.tensors().iter().enumerate() {
            let mut data = vec![0; tensor.bytes() as usize];
            file.read(index, 0, &mut data).expect("a list that was accepted describes bytes that are there");
        }
    });
});
