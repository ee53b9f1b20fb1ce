//! Any bytes as the parts of a tensor in any format: they decode, to the same floats at every level.
//!
//! Bytes 0..4 choose the format, its groups and the shape; the parts take the rest, again from its start where it is too short.
//! `./check fuzz` runs it for a minute.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::element::Sink;
use quantize::engine::{self, Run};
use quantize::formats::FORMATS;
use quantize::layout::{Layout, Options};
use quantize::level::Level;
use quantize::spec::GroupSize;
use quantize::tensor::Quantized;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[format, group, rows, columns], data)) = bytes.split_first_chunk() else { return };
    if data.is_empty() {
        return;
    }
    let spec = FORMATS[usize::from(format) % FORMATS.len()].spec();
    let group_size = match group {
        0 => None,
        254 => Some(GroupSize::Row),
        255 => Some(GroupSize::Tensor),
        group => Some(GroupSize::Elements(usize::from(group))),
    };
    let shape = [usize::from(rows % 8), 7 * usize::from(columns)];
    let Ok(layout) = Layout::new(spec, &shape, Options { group_size, ..Options::default() }) else { return };
    let part = |index| data.iter().cycle().skip(index).take(layout.part_bytes(index)).copied().collect();
    let parts = (0..layout.spec.parts.len()).map(part).collect();
    let quantized = Quantized { layout, parts };
    let decoded = Level::available().into_iter().map(|level| decode(&quantized, level));
    let decoded: Vec<Vec<u32>> = decoded.collect();
    assert!(decoded.windows(2).all(|pair| pair[0] == pair[1]));
});

/// The bits of the floats; every NaN is the same one, since its payload means nothing.
fn decode(quantized: &Quantized, level: Level) -> Vec<u32> {
    let mut x = vec![0.0f32; quantized.layout.elements()];
    let sink = Sink::from_slice(&mut x, &quantized.layout.shape);
    engine::dequantize(&quantized.layout, &quantized.views(), sink, &Run::serial(level)).expect("nobody cancels");
    x.into_iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}
