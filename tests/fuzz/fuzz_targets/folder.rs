//! Any bytes as the config and the tensors of a folder: an error, or tensors that can all be read.
//!
//! Byte 0 says how much of the rest is the config, in 255ths. `./check fuzz` runs it for a minute, from the seeds in `tests/fuzz/seeds`.

#![no_main]

use std::cell::LazyCell;
use std::fs;

use libfuzzer_sys::fuzz_target;
use quantize::error::Error;
use quantize::files::checkpoint::Checkpoint;

thread_local! {
    static FOLDER: LazyCell<tempfile::TempDir> = LazyCell::new(|| tempfile::tempdir().expect("a folder for temporary files"));
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&first, rest)) = bytes.split_first() else { return };
    let (config, tensors) = rest.split_at(rest.len() * usize::from(first) / 255);
    FOLDER.with(|folder| {
        fs::write(folder.path().join("config.json"), config).expect("a file can be written");
        fs::write(folder.path().join("model.safetensors"), tensors).expect("a file can be written");
        let Ok(checkpoint) = quantize::files::open(folder.path()).and_then(Checkpoint::new) else { return };
        for entry in checkpoint.entries() {
            // What the parts say may still be wrong.
            assert!(matches!(checkpoint.load(entry), Ok(_) | Err(Error::Corrupt { .. })));
        }
    });
});
