//! Any bytes as a GGUF file: an error, or keys and tensors that can all be read.
//!
//! `./check fuzz` runs it for a minute, from the seeds in `tests/fuzz/seeds`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::files::checkpoint::Checkpoint;
use quantize::files::gguf::Gguf;
use quantize::files::input::Input;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Gguf::new(Input::from_bytes(bytes.to_vec())) else { return };
    let Ok(checkpoint) = Checkpoint::new(Box::new(file)) else { return };
    let file = checkpoint.container();
    file.keys().iter().for_each(|key| drop(key.value()));
    let mut total = 0;
    for (index, tensor) in file.tensors().iter().enumerate() {
        let mut data = vec![0; tensor.bytes() as usize];
        file.read(index, 0, &mut data).expect("a list that was accepted describes bytes that are there");
        total += data.len();
    }
    assert!(total < bytes.len(), "no byte belongs to two tensors");
});
