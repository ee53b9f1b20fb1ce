//! Every format: the same bytes at every level and thread count, from every memory order, fused or not, whole or in pieces.

use half::{bf16, f16};
use proptest::prelude::*;
use quantize::element::{Dtype, Sink, Source};
use quantize::engine::{self, NonFinite, Run};
use quantize::error::Error;
use quantize::formats::{self, Context, FORMATS, Format, Groups};
use quantize::layout::{Layout, Options};
use quantize::level::Level;
use quantize::spec::{Extent, Global, GroupSize, GroupSizes, ScaleDtype};
use quantize::tensor::Quantized;

/// Group sizes that take every path: fused, by pieces, a row, the tensor.
fn group_sizes(sizes: GroupSizes) -> Vec<GroupSize> {
    match sizes {
        GroupSizes::Fixed(n) | GroupSizes::InBlocks { size: n, .. } => vec![GroupSize::Elements(n)],
        GroupSizes::OneOf { sizes, row, .. } => {
            sizes.iter().copied().map(GroupSize::Elements).chain(row.then_some(GroupSize::Row)).collect()
        }
        GroupSizes::Divides { .. } => [16, 32, 64, 128].map(GroupSize::Elements).into_iter().chain([GroupSize::Row]).collect(),
        GroupSizes::Any { tensor, .. } => {
            let elements = [1, 3, 16, 31, 32, 48, 64, 100, 128, 256, 512, 1024].map(GroupSize::Elements);
            elements.into_iter().chain([GroupSize::Row]).chain(tensor.then_some(GroupSize::Tensor)).collect()
        }
    }
}

fn layouts(shape: &[usize]) -> Vec<Layout> {
    let mut layouts = Vec::new();
    for format in FORMATS {
        let spec = format.spec();
        for group_size in group_sizes(spec.group_sizes) {
            for &scale_dtype in spec.scale_dtypes {
                let scale_dtype = (spec.scale_dtypes.len() > 1).then_some(scale_dtype);
                let options = Options { group_size: Some(group_size), scale_dtype, ..Options::default() };
                layouts.extend(Layout::new(spec, shape, options));
                if spec.global == Some(Global::Largest) {
                    layouts.extend(Layout::new(spec, shape, Options { global_scale: Some(2.5), ..options }));
                }
            }
        }
    }
    layouts
}

/// A run of numbers with zeros, ties of magnitude, negative zeros and subnormals among them.
fn sample(len: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let one = |bits: u64| match bits >> 56 {
        0..8 => 0.0,
        8..12 => -0.0,
        12..24 => ((bits & 15) as f32 - 8.0) / 4.0,
        24..26 => f32::from_bits(bits as u32 & 0x807f_ffff),
        26..28 => 2.0 * if bits & 1 == 0 { 1.0 } else { -1.0 },
        _ => ((bits & 0xff_ffff) as f32 / 8_388_608.0 - 1.0) * 2.0,
    };
    (0..len).map(|_| one(next())).collect()
}

fn encode(layout: &Layout, source: &Source<'_>, run: &Run<'_>) -> Result<Quantized, Error> {
    let mut quantized = Quantized::zeroed(layout.clone())?;
    // What was in the parts before must not show.
    quantized.parts.iter_mut().for_each(|part| part.fill(0xa5));
    let mut parts: Vec<&mut [u8]> = quantized.parts.iter_mut().map(Vec::as_mut_slice).collect();
    engine::quantize(source, layout, NonFinite::Raise, &mut parts, run)?;
    Ok(quantized)
}

fn decode(quantized: &Quantized, run: &Run<'_>) -> Vec<u32> {
    let mut x = vec![7.0; quantized.layout.elements()];
    let sink = Sink::from_slice(&mut x, &quantized.layout.shape);
    engine::dequantize(&quantized.layout, &quantized.views(), sink, run).unwrap();
    x.into_iter().map(f32::to_bits).collect()
}

/// A dtype of 16 bits.
#[derive(Clone, Copy)]
struct Half {
    dtype: Dtype,
    from_f32: fn(f32) -> [u8; 2],
    to_f32: fn([u8; 2]) -> f32,
}

const HALVES: [Half; 2] = [
    Half { dtype: Dtype::F16, from_f32: |x| f16::from_f32(x).to_le_bytes(), to_f32: |bytes| f16::from_le_bytes(bytes).to_f32() },
    Half { dtype: Dtype::Bf16, from_f32: |x| bf16::from_f32(x).to_le_bytes(), to_f32: |bytes| bf16::from_le_bytes(bytes).to_f32() },
];

impl Half {
    /// At an odd address.
    fn decode(self, quantized: &Quantized, run: &Run<'_>) -> Vec<[u8; 2]> {
        let mut bytes = vec![7; 2 * quantized.layout.elements() + 2];
        let first = 1 - bytes.as_ptr().addr() % 2;
        let bytes = &mut bytes[first..][..2 * quantized.layout.elements()];
        let sink = Sink::from_bytes(bytes, self.dtype, &quantized.layout.shape);
        engine::dequantize(&quantized.layout, &quantized.views(), sink, run).unwrap();
        bytes.as_chunks().0.to_vec()
    }

    /// With one NaN for all.
    fn numbers(self, halves: impl IntoIterator<Item = [u8; 2]>) -> Vec<u32> {
        let number = |bytes| (self.to_f32)(bytes);
        halves.into_iter().map(|bytes| if number(bytes).is_nan() { 0x7fc0_0000 } else { number(bytes).to_bits() }).collect()
    }

    /// What floats of these bits are rounded to.
    fn rounded(self, values: Vec<u32>) -> Vec<u32> {
        self.numbers(values.into_iter().map(|bits| (self.from_f32)(f32::from_bits(bits))))
    }
}

fn run_at(level: Level, threads: usize) -> Run<'static> {
    Run { threads, ..Run::serial(level) }
}

const SHAPES: [&[usize]; 16] = [
    &[1],
    &[32],
    &[3, 32],
    &[5, 33],
    &[2, 3, 64],
    &[7, 96],
    &[4, 100],
    &[3, 512],
    &[2, 515],
    &[5, 768],
    &[1, 1024],
    &[3, 1300],
    &[9, 1600],
    // Whole words of rows and of columns, which some formats ask for.
    &[8, 96],
    &[24, 256],
    &[40, 1056],
];

#[test]
fn the_shapes_take_every_format() {
    for format in FORMATS {
        let takes = |shape: &&[usize]| layouts(shape).iter().any(|layout| std::ptr::eq(layout.spec, format.spec()));
        assert!(SHAPES.iter().any(takes), "{:?}", format.spec());
    }
}

#[test]
fn bytes_do_not_depend_on_the_level() {
    for (seed, shape) in SHAPES.iter().enumerate() {
        let x = sample(shape.iter().product(), seed as u64 + 1);
        for layout in layouts(shape) {
            let source = Source::from_slice(&x, shape);
            let expected = encode(&layout, &source, &run_at(Level::named("scalar").unwrap(), 1)).unwrap();
            let values = decode(&expected, &run_at(Level::named("scalar").unwrap(), 1));
            for level in Level::available() {
                let quantized = encode(&layout, &source, &run_at(level, 1)).unwrap();
                assert_eq!(quantized.parts, expected.parts, "{layout:?} at {}", level.name());
                assert_eq!(decode(&quantized, &run_at(level, 1)), values, "{layout:?} at {}", level.name());
            }
        }
    }
}

#[test]
fn bytes_do_not_depend_on_the_thread_count() {
    for shape in [&[300, 2048][..], &[2, 400_001], &[1, 700_000], &[700_001, 1], &[20_001, 31], &[3, 262_144], &[16, 40_960]] {
        let x = sample(shape.iter().product(), 5);
        let telling = |layout: &Layout| !matches!(layout.group_size, GroupSize::Elements(1 | 16 | 48 | 64 | 100 | 256 | 1024));
        let mut chosen: Vec<Layout> = layouts(shape).into_iter().filter(telling).collect();
        for group in [70_000, 100_001] {
            let options = Options { group_size: Some(GroupSize::Elements(group)), ..Options::default() };
            chosen.extend(FORMATS.iter().filter_map(|format| Layout::new(format.spec(), shape, options).ok()));
        }
        for layout in chosen.into_iter().filter(|layout| matches!(layout.scale_dtype, ScaleDtype::F16 | ScaleDtype::E8m0)) {
            let source = Source::from_slice(&x, shape);
            let expected = encode(&layout, &source, &run_at(Level::detect(), 1)).unwrap();
            let values = decode(&expected, &run_at(Level::detect(), 1));
            for threads in [2, 3] {
                let quantized = encode(&layout, &source, &run_at(Level::detect(), threads)).unwrap();
                assert!(quantized.parts == expected.parts, "{layout:?} on {threads} threads");
                assert!(decode(&quantized, &run_at(Level::detect(), threads)) == values, "{layout:?} on {threads} threads");
            }
        }
    }
}

/// The codes of a matrix (K, N) without padding between its rows: with an odd N every other row begins in the middle of a byte.
#[test]
fn an_odd_number_of_rows_lies_as_an_even_number_does() {
    let nibble = |part: &[u8], at: usize| part[at / 2] >> (4 * (at % 2)) & 15;
    let qdq = |layout: &Layout| layout.spec.name == "onnx:qdq" && layout.scale_dtype == ScaleDtype::F16;
    for (rows, columns) in [(1, 600_001), (33, 20_003), (1001, 640), (65_537, 9)] {
        let x = sample((rows + 1) * columns, 19);
        let (even, odd) = ([rows + 1, columns], [rows, columns]);
        for (more, layout) in layouts(&even).into_iter().filter(qdq).zip(layouts(&odd).into_iter().filter(qdq)) {
            assert!(std::ptr::eq(more.spec, layout.spec) && more.group_size == layout.group_size);
            let more = encode(&more, &Source::from_slice(&x, &even), &run_at(Level::detect(), 1)).unwrap();
            let values = decode(&more, &run_at(Level::detect(), 1));
            for threads in [1, 2, 3] {
                let run = run_at(Level::detect(), threads);
                let quantized = encode(&layout, &Source::from_slice(&x[..rows * columns], &odd), &run).unwrap();
                assert!(decode(&quantized, &run) == values[..rows * columns], "{layout:?} on {threads} threads");
                for (index, height) in [(0, columns), (2, layout.groups_per_row())].into_iter().take(layout.spec.parts.len() - 1) {
                    let pairs = (0..height).flat_map(|row| (0..rows).map(move |column| (row * rows + column, row * (rows + 1) + column)));
                    let (part, others) = (&quantized.parts[index], &more.parts[index]);
                    let differs = pairs.filter(|&(at, other)| nibble(part, at) != nibble(others, other)).count();
                    assert_eq!(differs, 0, "part {index} of {layout:?} on {threads} threads");
                }
            }
        }
    }
}

#[test]
fn streamed_output_is_the_same() {
    // More than fits the caches, so that output is streamed; the tensor in two halves is not.
    let shape = [2, 4 << 20];
    let x = sample(shape[0] * shape[1] + 1, 11);
    for offset in [0, 1] {
        let x = &x[offset..][..shape[0] * shape[1]];
        // Only where the halves of the tensor are the halves of its parts.
        let in_halves = |layout: &Layout| {
            layout.spec.is_by_rows() && layout.spec.global.is_none() && matches!(layout.group_size, GroupSize::Elements(16 | 31 | 32 | 128))
        };
        for layout in layouts(&shape).into_iter().filter(in_halves) {
            let whole = encode(&layout, &Source::from_slice(x, &shape), &run_at(Level::detect(), 2)).unwrap();
            let half_shape = [1, shape[1]];
            let half = Layout { shape: half_shape.to_vec(), ..layout.clone() };
            let rows =
                x.chunks(shape[1]).map(|row| encode(&half, &Source::from_slice(row, &half_shape), &run_at(Level::detect(), 1)).unwrap());
            let rows: Vec<Quantized> = rows.collect();
            for (index, part) in whole.parts.iter().enumerate() {
                assert!(*part == [&rows[0].parts[index][..], &rows[1].parts[index]].concat(), "{layout:?}");
            }
            let values: Vec<u32> = rows.iter().flat_map(|row| decode(row, &run_at(Level::detect(), 1))).collect();
            assert!(decode(&whole, &run_at(Level::detect(), 2)) == values, "{layout:?}");
        }
    }
}

/// The bytes of a C-order array of matrices of `rows` rows, each of them turned.
fn turned(bytes: &[u8], size: usize, rows: usize, columns: usize) -> Vec<u8> {
    let mut out = vec![0; bytes.len()];
    for (from, to) in bytes.chunks_exact(rows * columns * size).zip(out.chunks_exact_mut(rows * columns * size)) {
        for (at, element) in from.chunks_exact(size).enumerate() {
            let (row, column) = (at / columns, at % columns);
            to[(column * rows + row) * size..][..size].copy_from_slice(element);
        }
    }
    out
}

#[test]
fn turned_arrays_are_cut_into_tiles_unseen() {
    // Matrices of whole tiles, of tiles with edges, of rows that end in half a group and half a byte, of few rows, and several; the first
    // is more than the caches hold, so that it is streamed.
    for [count, rows, columns] in [[1, 2176, 4352], [1, 700, 1088], [1, 333, 515], [1, 20, 4099], [3, 288, 480]] {
        let (shape, stored) = ([count, rows, columns], [count, columns, rows]);
        let large = count * rows * columns > 8 << 20;
        let names = ["int4", "uint4", "gguf:q4_0", "gguf:q4_k", "mlx:mxfp4", "modelopt:nvfp4", "bnb:nf4", "onnx:matmulnbits", "gptq"];
        let formats = FORMATS.iter().map(|format| format.spec());
        let formats: Vec<_> = formats.filter(|spec| !large || names.contains(&spec.name)).collect();
        let x = sample(shape.iter().product(), 14);
        for spec in formats {
            for group in [None, Some(16), Some(31), Some(128)].into_iter().take(if large { 1 } else { 4 }) {
                let options = Options { group_size: group.map(GroupSize::Elements), ..Options::default() };
                // Some formats take matrices alone.
                let layout = Layout::new(spec, &shape, options)
                    .or_else(|error| if count == 1 { Layout::new(spec, &[rows, columns], options) } else { Err(error) });
                let Ok(layout) = layout else { continue };
                let (shape, stored) = (&shape[3 - layout.shape.len()..], &stored[3 - layout.shape.len()..]);
                let axis = shape.len() - 2;
                let f32s = || x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
                let halves = |half: Half| x.iter().flat_map(|&x| (half.from_f32)(x)).collect::<Vec<u8>>();
                let dtypes = [(Dtype::F32, f32s()), (Dtype::F16, halves(HALVES[0])), (Dtype::Bf16, halves(HALVES[1]))];
                for ((dtype, bytes), threads) in dtypes.into_iter().take(if large { 2 } else { 3 }).zip([2, 1, 2]) {
                    let (size, run) = (dtype.size(), run_at(Level::detect(), threads));
                    let what = format!("{layout:?} of {} on {threads} threads", dtype.name());
                    let expected = encode(&layout, &Source::from_bytes(&bytes, dtype, shape), &run).unwrap();
                    let lying = turned(&bytes, size, rows, columns);
                    let quantized = encode(&layout, &Source::from_bytes(&lying, dtype, stored).with_axis_last(axis), &run).unwrap();
                    assert!(quantized.parts == expected.parts, "{what}");
                    let (mut plain, mut out) = (vec![7; bytes.len()], vec![7; bytes.len() + 1]);
                    engine::dequantize(&layout, &expected.views(), Sink::from_bytes(&mut plain, dtype, shape), &run).unwrap();
                    let sink = Sink::from_bytes(&mut out[1..], dtype, stored).with_axis_last(axis);
                    engine::dequantize(&layout, &expected.views(), sink, &run).unwrap();
                    assert!(out[1..] == turned(&plain, size, rows, columns), "{what}");
                }
            }
        }
    }
}

#[test]
fn large_arrays_are_the_same_past_the_caches() {
    // More than the caches hold, in both sizes of floats; rows that follow each other, and rows that end in a short group and half a byte.
    for shape in [[4608, 4096], [4608, 4095]] {
        let (x, elements) = (sample(shape[0] * shape[1], 14), shape[0] * shape[1]);
        let (mut streamed, mut plain) = (vec![0; 4 * elements + 128], vec![0; 4 * elements]);
        // Floats that are no slice are read by way of a copy.
        let mut moved = vec![0; 4 * elements + 4];
        let first = moved.as_ptr().align_offset(4) + 1;
        let moved = &mut moved[first..][..4 * elements];
        moved.copy_from_slice(bytemuck::cast_slice(&x));
        for format in FORMATS {
            let spec = format.spec();
            for group_size in [None, Some(GroupSize::Elements(32)), Some(GroupSize::Row), Some(GroupSize::Tensor)] {
                let Ok(layout) = Layout::new(spec, &shape, Options { group_size, ..Options::default() }) else { continue };
                let quantized = encode(&layout, &Source::from_slice(&x, &shape), &run_at(Level::detect(), 2)).unwrap();
                let copied = encode(&layout, &Source::from_bytes(moved, Dtype::F32, &shape), &run_at(Level::detect(), 2)).unwrap();
                assert!(quantized.parts == copied.parts, "{layout:?}");
                for dtype in [Dtype::F32, Dtype::F16, Dtype::Bf16] {
                    let len = dtype.size() * elements;
                    let run = Run { reused: false, ..run_at(Level::detect(), 2) };
                    let sink = Sink::from_bytes(&mut plain[..len], dtype, &shape);
                    engine::dequantize(&layout, &quantized.views(), sink, &run).unwrap();
                    // Where cache lines begin, and where numpy's arrays do.
                    for beyond in [0, 16] {
                        let first = streamed.as_ptr().align_offset(64) + beyond;
                        let streamed = &mut streamed[first..][..len];
                        streamed.fill(7);
                        let sink = Sink::from_bytes(streamed, dtype, &shape);
                        engine::dequantize(&layout, &quantized.views(), sink, &run_at(Level::detect(), 2)).unwrap();
                        assert!(*streamed == plain[..len], "{layout:?} to {}, {beyond} bytes beyond a line", dtype.name());
                    }
                }
            }
        }
    }
}

#[test]
fn large_arrays_are_woven_as_small_ones_are() {
    // As floats they are more than the caches hold, as halves they are not. Rows of the turned matrices are whole cache lines, at which
    // tiles begin; or they are not, and tiles begin where they may.
    for shape in [[4608, 2048], [4616, 2048]] {
        let half = &HALVES[0];
        let halves: Vec<[u8; 2]> = sample(shape[0] * shape[1], 13).into_iter().map(half.from_f32).collect();
        let floats: Vec<f32> = halves.iter().map(|&bytes| (half.to_f32)(bytes)).collect();
        for format in FORMATS {
            let Format::Woven(weave) = *format else { continue };
            let Ok(layout) = Layout::new(weave.spec(), &shape, Options::default()) else { continue };
            let small =
                encode(&layout, &Source::from_bytes(halves.as_flattened(), half.dtype, &shape), &run_at(Level::detect(), 1)).unwrap();
            let large = encode(&layout, &Source::from_slice(&floats, &shape), &run_at(Level::detect(), 2)).unwrap();
            assert!(large.parts == small.parts, "{layout:?}");
        }
    }
}

#[test]
fn halves_are_encoded_as_floats_and_decoded_to_rounded_ones() {
    for half in HALVES {
        for shape in SHAPES {
            let halves: Vec<[u8; 2]> = sample(shape.iter().product(), 5).into_iter().map(half.from_f32).collect();
            let floats: Vec<f32> = halves.iter().map(|&bytes| (half.to_f32)(bytes)).collect();
            for layout in layouts(shape) {
                for level in Level::available() {
                    let run = run_at(level, 1);
                    let expected = encode(&layout, &Source::from_slice(&floats, shape), &run).unwrap();
                    let quantized = encode(&layout, &Source::from_bytes(halves.as_flattened(), half.dtype, shape), &run).unwrap();
                    assert_eq!(quantized.parts, expected.parts, "{layout:?} at {}", level.name());
                    let rounded = half.rounded(decode(&quantized, &run));
                    assert_eq!(half.numbers(half.decode(&quantized, &run)), rounded, "{layout:?} at {}", level.name());
                }
            }
        }
    }
}

#[test]
fn halves_of_large_arrays_are_those_of_their_floats() {
    let shape = [5, 4 << 20];
    let mut x = vec![0; 2 * shape[0] * shape[1] + 2];
    for half in HALVES {
        for (name, offset) in [("int4", 0), ("gguf:q4_0", 1), ("bnb:nf4", 2)] {
            let layout = Layout::new(formats::find(name).unwrap().spec(), &shape, Options::default()).unwrap();
            let halves: Vec<u8> = sample(shape[0] * shape[1], 12).into_iter().flat_map(half.from_f32).collect();
            let quantized = encode(&layout, &Source::from_bytes(&halves, half.dtype, &shape), &run_at(Level::detect(), 2)).unwrap();
            let expected = half.rounded(decode(&quantized, &run_at(Level::detect(), 2)));
            let bytes = &mut x[offset..][..halves.len()];
            engine::dequantize(&layout, &quantized.views(), Sink::from_bytes(bytes, half.dtype, &shape), &run_at(Level::detect(), 2))
                .unwrap();
            assert!(half.numbers(bytes.as_chunks().0.to_vec()) == expected, "{name} to {}", half.dtype.name());
        }
    }
}

#[test]
fn halves_that_are_not_finite_are_found_as_floats_are() {
    let shape = [2, 1024];
    // The last one is more than float16 holds, which some formats compute in.
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30] {
        for half in HALVES {
            let mut halves: Vec<[u8; 2]> = sample(2048, 1).into_iter().map(half.from_f32).collect();
            halves[1500] = (half.from_f32)(value);
            let floats: Vec<f32> = halves.iter().map(|&bytes| (half.to_f32)(bytes)).collect();
            for layout in layouts(&shape) {
                let told = |source: Source<'_>| encode(&layout, &source, &run_at(Level::detect(), 1)).map_err(|error| error.to_string());
                let (from_floats, from_halves) =
                    (told(Source::from_slice(&floats, &shape)), told(Source::from_bytes(halves.as_flattened(), half.dtype, &shape)));
                assert_eq!(from_halves.map(|q| q.parts), from_floats.map(|q| q.parts), "{layout:?}");
            }
        }
    }
}

#[test]
fn fused_and_plain_paths_agree() {
    for format in FORMATS {
        let Format::Rows(format) = *format else { continue };
        // Tiles, one long group, and groups that end short, also after an odd number of them or in half a byte.
        for elements in [32, 333, 512, 544, 1000, 1024, 1025, 1536, 4096] {
            let x = sample(elements, 3);
            for layout in layouts(&[1, elements]).into_iter().filter(|layout| std::ptr::eq(layout.spec, format.spec())) {
                for level in Level::available() {
                    let fused = encode(&layout, &Source::from_slice(&x, &[1, elements]), &run_at(level, 1)).unwrap();
                    let global = engine::global_of(&layout, &fused.views());
                    let group = layout.group_elements();
                    let context = Context { level, group, scale_dtype: layout.scale_dtype, global, stream: false };
                    let mut groups = Groups::default();
                    groups.resize(layout.spec, context, elements);
                    let mut plain = Quantized::zeroed(layout.clone()).unwrap();
                    let mut parts: Vec<&mut [u8]> = plain.parts.iter_mut().map(Vec::as_mut_slice).collect();
                    format.quantize(context, &x, None, &mut groups);
                    format.pack(context, &groups, &mut parts);
                    // What the tensor has once is not the format's to write.
                    for (plain, (fused, part)) in plain.parts.iter_mut().zip(fused.parts.iter().zip(layout.spec.parts)) {
                        if matches!(part.extent, Extent::Scalar | Extent::One) {
                            plain.copy_from_slice(fused);
                        }
                    }
                    assert_eq!(fused.parts, plain.parts, "{layout:?} at {}", level.name());

                    let mut unpacked = Groups::default();
                    unpacked.resize(layout.spec, context, elements);
                    format.unpack(context, &plain.views(), &mut unpacked);
                    assert_eq!(unpacked, groups, "{layout:?} at {}", level.name());
                    let mut values = vec![0.0; elements];
                    format.dequantize(context, &unpacked, &mut values);
                    let values: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
                    assert_eq!(decode(&fused, &run_at(level, 1)), values, "{layout:?} at {}", level.name());
                }
            }
        }
    }
}

#[test]
fn groups_of_whole_tensors_lead_back() {
    for shape in [&[3, 96][..], &[5, 33], &[2, 100], &[3, 768], &[24, 256], &[1, 70_000], &[2, 140_000], &[4001, 33]] {
        let x = sample(shape.iter().product(), 9);
        for layout in layouts(shape) {
            let quantized = encode(&layout, &Source::from_slice(&x, shape), &run_at(Level::detect(), 1)).unwrap();
            if matches!(formats::of(layout.spec), Format::Nested(_)) {
                continue; // scales that are quantized again are others
            }
            let groups: usize = layout.groups_shape().iter().product();
            let mut all = Groups {
                codes: vec![0; x.len()],
                scales: vec![0.0; groups],
                offsets: vec![0.0; if layout.spec.has_offsets() { groups } else { 0 }],
                headers: vec![0; layout.spec.header_bytes(x.len())],
            };
            let Groups { codes, scales, offsets, headers } = &mut all;
            engine::unpack(&layout, &quantized.views(), codes, scales, offsets, headers, &run_at(Level::detect(), 2)).unwrap();
            let mut again = Quantized::zeroed(layout.clone()).unwrap();
            let mut parts: Vec<&mut [u8]> = again.parts.iter_mut().map(Vec::as_mut_slice).collect();
            let global = engine::global_of(&layout, &quantized.views());
            engine::pack_groups(&layout, &all, global, &mut parts, &run_at(Level::detect(), 1)).unwrap();
            assert!(again.parts == quantized.parts, "{layout:?}");
        }
    }
}

#[test]
fn codes_travel_between_schemes_and_back() {
    for shape in [&[1][..], &[3, 96], &[5, 33], &[7, 1], &[2, 100], &[1, 70_000], &[2, 140_000], &[4001, 33]] {
        let x = sample(shape.iter().product(), 13);
        for layout in layouts(shape).into_iter().filter(|layout| layout.spec.name == "int4") {
            let quantized = encode(&layout, &Source::from_slice(&x, shape), &run_at(Level::detect(), 1)).unwrap();
            let options = Options { group_size: Some(layout.group_size), scale_dtype: Some(layout.scale_dtype), ..Options::default() };
            let other = Layout::new(formats::find("uint4").unwrap().spec(), shape, options).unwrap();
            let there = repack(&quantized, other);
            assert!(decode(&there, &run_at(Level::detect(), 1)) == decode(&quantized, &run_at(Level::detect(), 1)), "{layout:?}");
            assert!(repack(&there, layout.clone()).parts == quantized.parts, "{layout:?}");
        }
    }
}

#[test]
fn mxfp4_travels_between_layouts_and_back() {
    for shape in [&[3, 96][..], &[2, 140_000], &[4001, 32]] {
        let x = sample(shape.iter().product(), 17);
        let is_mxfp4 = |layout: &Layout| layout.scale_dtype == ScaleDtype::E8m0;
        for layout in layouts(shape).into_iter().filter(is_mxfp4) {
            let quantized = encode(&layout, &Source::from_slice(&x, shape), &run_at(Level::detect(), 1)).unwrap();
            for other in layouts(shape).into_iter().filter(is_mxfp4) {
                let there = repack(&quantized, other);
                assert!(repack(&there, layout.clone()).parts == quantized.parts, "{layout:?}");
            }
        }
    }
}

fn repack(quantized: &Quantized, layout: Layout) -> Quantized {
    let mut repacked = Quantized::zeroed(layout.clone()).unwrap();
    let mut parts: Vec<&mut [u8]> = repacked.parts.iter_mut().map(Vec::as_mut_slice).collect();
    engine::repack(&quantized.layout, &quantized.views(), &layout, &mut parts, &run_at(Level::detect(), 3)).unwrap();
    repacked
}

proptest! {
    #[test]
    fn memory_order_does_not_matter(rows in prop::sample::select(vec![7usize, 8, 14, 24, 35]), columns in prop::sample::select(vec![32usize, 64, 96, 256]), seed: u64) {
        let x = sample(rows * columns, seed);
        let transposed: Vec<f32> = (0..columns).flat_map(|column| (0..rows).map(move |row| (row, column))).map(|(row, column)| x[row * columns + column]).collect();
        let bytes: Vec<u8> = x.iter().flat_map(|x| x.to_be_bytes()).collect();
        for layout in layouts(&[rows, columns]) {
            let expected = encode(&layout, &Source::from_slice(&x, &[rows, columns]), &run_at(Level::detect(), 1)).unwrap();
            let moved = Source::from_slice(&transposed, &[columns, rows]).with_axis_last(0);
            prop_assert_eq!(&encode(&layout, &moved, &run_at(Level::detect(), 1)).unwrap().parts, &expected.parts);
            // SAFETY: the strides reach exactly the bytes of the vector, which lives on.
            #[allow(unsafe_code)]
            let swapped = unsafe { Source::from_raw(bytes.as_ptr(), Dtype::F32, true, &[rows, columns], &[4 * columns as isize, 4]) };
            prop_assert_eq!(&encode(&layout, &swapped, &run_at(Level::detect(), 1)).unwrap().parts, &expected.parts);

            let mut y = vec![0.0; x.len()];
            let sink = Sink::from_slice(&mut y, &[columns, rows]).with_axis_last(0);
            engine::dequantize(&layout, &expected.views(), sink, &run_at(Level::detect(), 1)).unwrap();
            let values: Vec<u32> = (0..rows).flat_map(|row| (0..columns).map(move |column| (row, column))).map(|(row, column)| y[column * rows + row].to_bits()).collect();
            prop_assert_eq!(values, decode(&expected, &run_at(Level::detect(), 1)));
        }
    }

    #[test]
    fn any_bytes_decode(bytes in prop::collection::vec(any::<u8>(), 16_400), rows in prop::sample::select(vec![1usize, 2, 3, 8]), columns in prop::sample::select(vec![32usize, 64, 96, 256, 512])) {
        let shape = [rows, columns];
        for layout in layouts(&shape) {
            // Any group that there is may be that of a column.
            let group = |byte: &u8| (usize::from(*byte) % layout.groups_per_row()) as i32;
            let part = |index: usize| match layout.spec.parts[index].extent {
                Extent::GroupOfColumn => bytes[..columns].iter().flat_map(|byte| group(byte).to_le_bytes()).collect(),
                _ => bytes[index..index + layout.part_bytes(index)].to_vec(),
            };
            let parts = (0..layout.spec.parts.len()).map(part).collect();
            let quantized = Quantized { layout, parts };
            let numbers = |values: Vec<u32>| values.into_iter().map(|bits| if f32::from_bits(bits).is_nan() { 0x7fc0_0000 } else { bits }).collect::<Vec<_>>();
            let expected = numbers(decode(&quantized, &run_at(Level::named("scalar").unwrap(), 1)));
            for level in Level::available() {
                prop_assert_eq!(&numbers(decode(&quantized, &run_at(level, 1))), &expected, "{:?} at {}", quantized.layout, level.name());
                for half in HALVES {
                    let halves = half.numbers(half.decode(&quantized, &run_at(level, 1)));
                    prop_assert_eq!(halves, half.rounded(expected.clone()), "{:?} at {}", quantized.layout, level.name());
                }
            }
        }
    }

    #[test]
    fn elements_that_are_not_finite_are_found(at in 0usize..2000, value in prop::sample::select(vec![f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY])) {
        let shape = [2, 1024];
        let mut x = sample(2048, 1);
        x[at] = value;
        for layout in layouts(&shape) {
            for level in Level::available() {
                let error = encode(&layout, &Source::from_slice(&x, &shape), &run_at(level, 1)).unwrap_err();
                let Error::NonFinite { count, first, .. } = error else { panic!("{error}") };
                prop_assert_eq!((count, first), (1, vec![at / 1024, at % 1024]));
            }
        }
    }
}

#[test]
fn a_scale_beyond_its_dtype_is_an_error_that_names_the_group() {
    let shape = [2, 1024];
    let mut x = sample(2048, 2);
    x[1024 + 300] = 3e38;
    for layout in layouts(&shape).into_iter().filter(|layout| layout.scale_dtype == ScaleDtype::F16) {
        let error = encode(&layout, &Source::from_slice(&x, &shape), &run_at(Level::detect(), 1)).unwrap_err();
        let Error::ScaleOverflow { group, .. } = error else { panic!("{error}") };
        let expected = match layout.group_size {
            GroupSize::Elements(n) => vec![1, 300 / n],
            GroupSize::Row => vec![1, 0],
            GroupSize::Tensor => vec![0, 0],
        };
        assert_eq!(group, expected, "{layout:?}");
    }
}

#[test]
fn under_a_policy_too_the_group_is_the_one_that_overflows() {
    let mut x = vec![0.0; 128];
    (x[0], x[1], x[100]) = (f32::INFINITY, 1.0, 1e30);
    for format in FORMATS {
        let options = Options { group_size: Some(GroupSize::Elements(32)), ..Options::default() };
        let Ok(layout) = Layout::new(format.spec(), &[1, 128], options) else { continue };
        for policy in [NonFinite::Zero, NonFinite::Clip] {
            let mut quantized = Quantized::zeroed(layout.clone()).unwrap();
            let mut parts: Vec<&mut [u8]> = quantized.parts.iter_mut().map(Vec::as_mut_slice).collect();
            let source = Source::from_slice(&x, &[1, 128]);
            match engine::quantize(&source, &layout, policy, &mut parts, &run_at(Level::detect(), 1)) {
                Err(Error::ScaleOverflow { group, .. }) => assert_eq!(group, [0, 3], "{}", format.spec().name),
                other => assert_ne!(layout.scale_dtype, ScaleDtype::F16, "{}: {other:?}", format.spec().name),
            }
        }
    }
}

#[test]
fn a_float64_beyond_float32_is_named_as_it_is() {
    let bytes: Vec<u8> = [1.0f64, -1e300].into_iter().flat_map(f64::to_le_bytes).collect();
    let layout = Layout::new(formats::find("int4").unwrap().spec(), &[2], Options::default()).unwrap();
    let error = encode(&layout, &Source::from_bytes(&bytes, Dtype::F64, &[2]), &run_at(Level::detect(), 1)).unwrap_err();
    assert!(matches!(error, Error::NonFinite { count: 1, value: -1e300, .. }), "{error}");
}

#[test]
fn names_and_aliases_find_their_format() {
    for format in FORMATS {
        for name in format.spec().aliases.iter().chain([&format.spec().name]) {
            assert!(std::ptr::eq(formats::choose(name, format.spec().choice).unwrap().spec(), format.spec()));
        }
    }
    let message = formats::find("q4").map(|format| format.spec().name).unwrap_err().to_string();
    assert_eq!(message, "no format 'q4'; did you mean 'gguf:q4_0', 'gguf:q4_1', 'gguf:q4_k', 'gguf:iq4_nl', 'gguf:iq4_xs'?");
}
