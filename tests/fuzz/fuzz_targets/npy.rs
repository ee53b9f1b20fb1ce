//! Any bytes as an npy file: an error, or an array that can be read.
//!
//! `./check fuzz` runs it for a minute, from the seeds in `tests/fuzz/seeds`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::files::Container;
use quantize::files::input::Input;
use quantize::files::npy::Npy;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Npy::new(Input::from_bytes(bytes.to_vec()), "array".into()) else { return };
    let mut data = vec![0; file.tensors()[0].bytes() as usize];
    file.read(0, 0, &mut data).expect("a description that was accepted describes bytes that are there");
});
