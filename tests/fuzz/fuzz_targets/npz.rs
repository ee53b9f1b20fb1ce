//! Any bytes as an npz file: an error, or arrays; those that are stored can be read, those that are deflated give their bytes or an error.
//!
//! `./check fuzz` runs it for a minute, from the seeds in `tests/fuzz/seeds`.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::files::Container;
use quantize::files::input::Input;
use quantize::files::npz::Npz;

fuzz_target!(|bytes: &[u8]| {
    let Ok(file) = Npz::new(Input::from_bytes(bytes.to_vec())) else { return };
    for (index, tensor) in file.tensors().iter().enumerate() {
        // A deflated byte stands for at most 1032.
        assert!(tensor.bytes() <= 1032 * (bytes.len() as u64 + 1), "no more than the archive can hold");
        let mut data = vec![0; tensor.bytes() as usize];
        if file.read(index, 0, &mut data).is_ok() && !data.is_empty() {
            let mut last = [0];
            file.read(index, data.len() as u64 - 1, &mut last).expect("what was read can be read again");
            assert_eq!(last[0], data[data.len() - 1]);
        }
    }
});
