//! Any bytes as an importance matrix of llama.cpp: an error, or vectors that can all be read.
//!
//! `./check fuzz` runs it for a minute, from the seeds in `tests/fuzz/seeds`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::files::Container;
use quantize::files::imatrix::Imatrix;
use quantize::files::input::Input;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Imatrix::new(Input::from_bytes(bytes.to_vec())) else { return };
    let mut total = 0;
    for (index, tensor) in file.tensors().iter().enumerate() {
        let mut data = vec![0; tensor.bytes() as usize];
        file.read(index, 0, &mut data).expect("an entry that was accepted describes bytes that are there");
        total += data.len();
    }
    assert!(total < bytes.len(), "no byte belongs to two tensors");
});
