//! Any bytes as the parts of a tensor in any format and variant: they decode, to the same floats at every level.
//!
//! Bytes 0..5 choose the format, its groups, the dtype of its scales and the shape; the parts take the rest, again from its start where
//! it is too short. `./check fuzz` runs it for a minute.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quantize::element::Sink;
use quantize::engine::{self, Run};
use quantize::formats::FORMATS;
use quantize::layout::{Layout, Options};
use quantize::level::Level;
use quantize::spec::{Extent, Global, GroupSize, GroupSizes, Shapes, Spec};
use quantize::tensor::Quantized;

fuzz_target!(|bytes: &[u8]| {
    let Some((&[format, group, dtype, rows, columns], data)) = bytes.split_first_chunk() else { return };
    if data.is_empty() {
        return;
    }
    let spec = FORMATS[usize::from(format) % FORMATS.len()].spec();
    let group_size = group_size(spec, group);
    let scale_dtype = spec.scale_dtypes.get(usize::from(dtype) % 8).copied().filter(|_| spec.scale_dtypes.len() > 1);
    let global_scale = (spec.global == Some(Global::Largest) && dtype > 127).then(|| f32::from(dtype));
    let options = Options { group_size, scale_dtype, global_scale, ..Options::default() };
    let Ok(layout) = Layout::new(spec, &shape(spec, group_size, rows, columns), options) else { return };
    let parts = (0..spec.parts.len()).map(|index| part(&layout, index, data)).collect();
    let quantized = Quantized { layout, parts };
    let decoded = Level::available().into_iter().map(|level| decode(&quantized, level));
    let decoded: Vec<Vec<u32>> = decoded.collect();
    assert!(decoded.windows(2).all(|pair| pair[0] == pair[1]));
});

/// A size that the format lists, where it lists them; else any, the row and the tensor among them.
fn group_size(spec: &Spec, group: u8) -> Option<GroupSize> {
    match (group, spec.group_sizes) {
        (0, _) => None,
        (254, _) => Some(GroupSize::Row),
        (255, _) => Some(GroupSize::Tensor),
        (group, GroupSizes::OneOf { sizes, .. }) => Some(GroupSize::Elements(sizes[usize::from(group) % sizes.len()])),
        (group, _) => Some(GroupSize::Elements(usize::from(group))),
    }
}

/// At most seven of the rows that the format takes together; a few whole groups in each, or any number of elements.
fn shape(spec: &Spec, group_size: Option<GroupSize>, rows: u8, columns: u8) -> [usize; 2] {
    let unit = if let Shapes::Matrix { rows, .. } = spec.shapes { rows } else { 1 };
    let group = if let Some(GroupSize::Elements(size)) = group_size { size } else { spec.group_sizes.default() };
    let whole = usize::from(columns % 8) * spec.block(group);
    [usize::from(rows % 8) * unit, if rows < 128 { whole } else { 7 * usize::from(columns) }]
}

fn part(layout: &Layout, index: usize, data: &[u8]) -> Vec<u8> {
    let bytes = data.iter().cycle().skip(index).copied();
    let groups = layout.groups_per_row();
    match layout.spec.parts[index].extent {
        // Any group that there is may be that of a column.
        Extent::GroupOfColumn => {
            bytes.take(layout.columns()).flat_map(|byte| ((usize::from(byte) % groups) as i32).to_le_bytes()).collect()
        }
        _ => bytes.take(layout.part_bytes(index)).collect(),
    }
}

/// The bits of the floats; every NaN is the same one, since its payload means nothing.
fn decode(quantized: &Quantized, level: Level) -> Vec<u32> {
    let mut x = vec![0.0f32; quantized.layout.elements()];
    let sink = Sink::from_slice(&mut x, &quantized.layout.shape);
    engine::dequantize(&quantized.layout, &quantized.views(), sink, &Run::serial(level)).expect("every group is there, and nobody cancels");
    x.into_iter().map(|x| if x.is_nan() { u32::MAX } else { x.to_bits() }).collect()
}
