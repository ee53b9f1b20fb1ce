//! Every kernel at every level, on arrays that a cache holds, on one thread: what the inner loops cost where memory does not.
//!
//! Beside each sample stands one of a plain loop with the same traffic on the same bytes; `ratio` is the loop's median over
//! the kernel's. (`Stream` is not here: it is for output that no cache holds.) Cycles are nanoseconds over the length of a cycle, which is measured first.
//!
//! ```text
//! cargo bench --bench kernels -- [--size MIB] [--repeats N] [--filter TEXT] [--level NAME] [--json FILE]
//! ```
//!
//! Sizes are 64 KiB and 1 MiB of elements (f32 where a kernel has them); `--size` leaves only that one.

mod harness;
mod limit;

use harness::{LOSES, Options, median, time};
use limit::{Line, Store, Traffic};
use quantize::formats::{Context, FORMATS, Format, Groups, Need, Rows};
use quantize::kernels::blocks::{Block, BlockMut};
use quantize::kernels::convert::{Half, Narrow, Widen};
use quantize::kernels::decode::Output;
use quantize::kernels::encode::{Input, RangeOf};
use quantize::kernels::nibbles::{Pack, SIGNED, Unpack};
use quantize::kernels::scales;
use quantize::kernels::sums::SumsOf;
use quantize::kernels::transpose::{Deinterleave, Interleave, Items, Nibbles, Order};
use quantize::kernels::words::{Kept, Words};
use quantize::layout::{Layout, Options as FormatOptions};
use quantize::level::Level;
use quantize::spec::{GroupSize, GroupSizes, ScaleDtype};
use serde_json::{Value, json};
use std::hint::black_box;

/// Seconds that a sample takes at least: far more than reading the clock.
const SAMPLE: f64 = 2e-4;

/// Elements of a row.
const COLUMNS: usize = 4096;

/// One kernel with its operands.
struct Case {
    name: String,
    /// Elements that one run handles.
    elements: usize,
    /// What one run must move, as lines of a plain loop.
    traffic: Traffic,
    /// Steps of that loop.
    steps: usize,
    run: Box<dyn FnMut()>,
}

impl Case {
    /// `bytes` are those of the larger side of the traffic.
    fn new(name: String, elements: usize, traffic: Traffic, bytes: usize, run: Box<dyn FnMut()>) -> Self {
        Case { name, elements, traffic, steps: bytes / 64 / traffic.read.max(traffic.write), run }
    }
}

fn main() {
    let options = Options::parse(0, 15);
    let machine = harness::machine();
    let cycle = cycle();
    println!("{}\none thread, medians of {} repeats, {:.2} GHz\n", harness::describe(&machine), options.repeats, 1.0 / cycle);
    let sizes = if options.size == 0 { vec![64 << 10, 1 << 20] } else { vec![options.size << 20] };
    let (mut rows, mut all) = (Vec::new(), Vec::<Value>::new());
    for bytes in sizes {
        // Twice the size, for the kernel that reads two arrays.
        let (mut from, mut to) = (harness::memory(2 * bytes), harness::memory(bytes));
        harness::fill_with_weights(bytemuck::cast_slice_mut(&mut from));
        let mut levels: Vec<(Level, Vec<Case>)> = options.levels().into_iter().map(|level| (level, cases(level, bytes / 4))).collect();
        for index in 0..levels.first().map_or(0, |(_, cases)| cases.len()) {
            let mut lower: Option<(&str, f64)> = None;
            for (level, cases) in &mut levels {
                let case = &mut cases[index];
                if !case.name.contains(&options.filter) {
                    continue;
                }
                let (kernel, plain) = measure(case, &from, &mut to, options.repeats);
                let nanoseconds = kernel * 1e9 / case.elements as f64;
                let ratio = plain / kernel;
                let note = lower.filter(|(_, lower)| *lower > LOSES * ratio).map_or(String::new(), |(name, _)| name.to_string());
                rows.push(vec![
                    case.name.clone(),
                    level.name().to_string(),
                    format!("{} KiB", bytes >> 10),
                    format!("{nanoseconds:.3}"),
                    format!("{:.2}", nanoseconds / cycle),
                    format!("{:.1}", 4.0 / nanoseconds),
                    format!("{ratio:.2}"),
                    note.clone(),
                ]);
                all.push(json!({
                    "kernel": case.name, "level": level.name(), "bytes": bytes, "nanoseconds_per_element": nanoseconds,
                    "cycles_per_element": nanoseconds / cycle, "ratio": ratio, "note": note,
                }));
                lower = Some((level.name(), ratio));
            }
        }
    }
    harness::print(&["kernel", "level", "size", "ns/el", "cycles", "f32 GB/s", "ratio", "slower than"], &rows);
    harness::save(&options, &json!({"machine": machine, "ghz": 1.0 / cycle, "repeats": options.repeats, "kernels": all}));
}

/// Nanoseconds of a cycle: a chain of multiplications (3 cycles each) and additions (1 cycle) that wait for each other, as
/// long on every x86-64 CPU of the last ten years and close to it elsewhere. The counters are not there on a virtual machine.
fn cycle() -> f64 {
    const STEPS: u32 = 1_000_000;
    let mut samples = [0.0; 9];
    for sample in &mut samples {
        *sample = time(|| {
            let (mut x, odd) = std::hint::black_box((3u64, 5u64));
            for _ in 0..STEPS {
                x = x.wrapping_mul(x).wrapping_add(odd);
            }
            std::hint::black_box(x);
        });
    }
    // The fastest: a cycle is what it is when nobody interferes.
    samples.into_iter().fold(f64::INFINITY, f64::min) * 1e9 / f64::from(4 * STEPS)
}

/// Median seconds of one run of the kernel and of the plain loop, whose samples alternate.
fn measure(case: &mut Case, from: &[Line], to: &mut [Line], repeats: usize) -> (f64, f64) {
    let Case { traffic, steps, run, .. } = case;
    let (from, to) = (&from[..*steps * traffic.read], &mut to[..*steps * traffic.write]);
    let mut plain = || limit::run(*traffic, Store::Normal, 1, black_box(from), black_box(&mut *to));
    let (kernel_turns, plain_turns) = (turns(run), turns(&mut plain));
    let (mut kernel_samples, mut plain_samples) = (Vec::new(), Vec::new());
    for _ in 0..repeats {
        plain_samples.push(time(|| (0..plain_turns).for_each(|_| plain())) / plain_turns as f64);
        kernel_samples.push(time(|| (0..kernel_turns).for_each(|_| run())) / kernel_turns as f64);
    }
    (median(&kernel_samples), median(&plain_samples))
}

/// How often work must run to fill a sample. The runs that tell warm the caches too.
fn turns(work: &mut dyn FnMut()) -> usize {
    let mut turns = 1;
    while time(|| (0..turns).for_each(|_| work())) < SAMPLE {
        turns *= 2;
    }
    turns
}

/// All kernels at this level, on `elements` elements.
fn cases(level: Level, elements: usize) -> Vec<Case> {
    let mut cases = Vec::new();
    for format in FORMATS {
        // The others run the kernels of the formats that they are made of.
        let Format::Rows(format) = *format else { continue };
        let groups = match format.spec().group_sizes {
            GroupSizes::Fixed(group) | GroupSizes::InBlocks { size: group, .. } => vec![group],
            GroupSizes::OneOf { .. } | GroupSizes::Divides { .. } | GroupSizes::Any { .. } => vec![32, 128],
        };
        for group in groups.into_iter().filter(|&group| format.spec().group_sizes.takes(GroupSize::Elements(group))) {
            cases.extend(format_cases(format, level, elements, group));
        }
    }
    cases.extend(other_cases(level, elements));
    cases
}

/// Work whose result counts as used.
fn repeatable<R>(mut work: impl FnMut() -> R + 'static) -> Box<dyn FnMut()> {
    Box::new(move || {
        black_box(work());
    })
}

fn weights(elements: usize) -> Vec<f32> {
    let mut x = vec![0.0; elements];
    harness::fill_with_weights(&mut x);
    x
}

/// The kernels that a format runs: the fused ones, and those of either side of [`Groups`].
fn format_cases(format: &'static dyn Rows, level: Level, elements: usize, group: usize) -> Vec<Case> {
    let spec = format.spec();
    let context = Context { level, group, scale_dtype: spec.scale_dtypes[0], global: 1.0, stream: false };
    let group_size = Some(GroupSize::Elements(group));
    let shape = [elements / COLUMNS, COLUMNS];
    let layout = Layout::new(spec, &shape, FormatOptions { group_size, ..Default::default() }).expect("whole groups");
    // Everything that any of them reads, made by the format itself.
    let made = || {
        let mut parts: Vec<Vec<u8>> = (0..spec.parts.len()).map(|part| vec![0; layout.part_bytes(part)]).collect();
        let mut groups = Groups::default();
        groups.resize(spec, context, elements);
        let x = weights(elements);
        format.quantize(context, &x, None, &mut groups);
        format.pack(context, &groups, &mut mutable(&mut parts));
        (x, parts, groups)
    };
    let case = |kernel: &str, traffic: Traffic, bytes: usize, run: Box<dyn FnMut()>| {
        Case::new(format!("{} {group} {kernel}", spec.name), elements, traffic, bytes, run)
    };
    vec![
        case("encode", Traffic { read: 8, write: 1 }, 4 * elements, {
            let (x, mut parts, mut groups) = made();
            repeatable(move || format.encode(context, Input::F32(black_box(&x)), &mut groups, &mut mutable(&mut parts)))
        }),
        case("encode f16", Traffic { read: 4, write: 1 }, 2 * elements, {
            let (x, mut parts, mut groups) = made();
            let mut halves = vec![[0; 2]; elements];
            level.run(Narrow { x: &x, half: Half::F16, halves: &mut halves });
            repeatable(move || format.encode(context, Input::Half(Half::F16, black_box(&halves)), &mut groups, &mut mutable(&mut parts)))
        }),
        case("decode", Traffic { read: 1, write: 8 }, 4 * elements, {
            let (mut x, parts, mut groups) = made();
            repeatable(move || format.decode(context, &shared(black_box(&parts)), &mut groups, Output::F32(&mut x)))
        }),
        case("decode f16", Traffic { read: 1, write: 4 }, 2 * elements, {
            let (_, parts, mut groups) = made();
            let mut halves = vec![[0; 2]; elements];
            repeatable(move || format.decode(context, &shared(black_box(&parts)), &mut groups, Output::Half(Half::F16, &mut halves)))
        }),
        case("quantize", Traffic { read: 4, write: 1 }, 4 * elements, {
            let (x, _, mut groups) = made();
            repeatable(move || format.quantize(context, black_box(&x), None, &mut groups))
        }),
        case("dequantize", Traffic { read: 1, write: 4 }, 4 * elements, {
            let (mut x, _, groups) = made();
            repeatable(move || format.dequantize(context, black_box(&groups), &mut x))
        }),
        case("pack", Traffic { read: 2, write: 1 }, elements, {
            let (_, mut parts, groups) = made();
            repeatable(move || format.pack(context, black_box(&groups), &mut mutable(&mut parts)))
        }),
        case("unpack", Traffic { read: 1, write: 2 }, elements, {
            let (_, parts, mut groups) = made();
            repeatable(move || format.unpack(context, &shared(black_box(&parts)), &mut groups))
        }),
    ]
}

fn shared(parts: &[Vec<u8>]) -> Vec<&[u8]> {
    parts.iter().map(Vec::as_slice).collect()
}

fn mutable(parts: &mut [Vec<u8>]) -> Vec<&mut [u8]> {
    parts.iter_mut().map(Vec::as_mut_slice).collect()
}

/// The kernels that no format owns.
fn other_cases(level: Level, elements: usize) -> Vec<Case> {
    let case = |name: &str, (read, write): (usize, usize), bytes: usize, run: Box<dyn FnMut()>| {
        Case::new(name.to_string(), elements, Traffic { read, write }, bytes, run)
    };
    let mut cases = Vec::new();
    for (name, need) in [("extreme", Need::Extreme), ("with zero", Need::WithZero), ("itself", Need::Itself)] {
        let x = weights(elements);
        let run = repeatable(move || level.run(RangeOf { x: black_box(&x), need }));
        cases.push(case(&format!("range {name}"), (8, 0), 4 * elements, run));
    }
    for (name, half) in [("float16", Half::F16), ("bfloat16", Half::Bf16)] {
        let (x, mut halves) = (weights(elements), vec![[0; 2]; elements]);
        level.run(Narrow { x: &x, half, halves: &mut halves });
        let (mut widened, to_widen) = (x.clone(), halves.clone());
        let widen = repeatable(move || level.run(Widen { halves: black_box(&to_widen), half, x: &mut widened }));
        cases.push(case(&format!("{name} widen"), (1, 2), 4 * elements, widen));
        let narrow = repeatable(move || level.run(Narrow { x: black_box(&x), half, halves: &mut halves }));
        cases.push(case(&format!("{name} narrow"), (2, 1), 4 * elements, narrow));
    }
    for dtype in [ScaleDtype::F16, ScaleDtype::Bf16, ScaleDtype::F32] {
        let (x, mut bytes) = (weights(elements), vec![0; dtype.size() * elements]);
        level.run(scales::Store { values: &x, dtype, bytes: &mut bytes });
        let (mut loaded, to_load) = (x.clone(), bytes.clone());
        let ratio = 4 / dtype.size();
        let load = repeatable(move || level.run(scales::Load { bytes: black_box(&to_load), dtype, values: &mut loaded }));
        cases.push(case(&format!("{} scales load", dtype.name()), (1, ratio), 4 * elements, load));
        let store = repeatable(move || level.run(scales::Store { values: black_box(&x), dtype, bytes: &mut bytes }));
        cases.push(case(&format!("{} scales store", dtype.name()), (ratio, 1), 4 * elements, store));
    }
    let (mut codes, mut packed) = (vec![1; elements], vec![1; elements / 2]);
    let (table, to_pack, to_unpack) = (SIGNED.map(i8::cast_unsigned), codes.clone(), packed.clone());
    let pack = repeatable(move || level.run(Pack { codes: black_box(&to_pack), bias: 8, packed: &mut packed }));
    cases.push(case("nibbles pack", (2, 1), elements, pack));
    let unpack = repeatable(move || level.run(Unpack { packed: black_box(&to_unpack), table: &table, codes: &mut codes }));
    cases.push(case("nibbles unpack", (1, 2), elements, unpack));
    cases.extend(transpose_cases(level, elements));
    let (x, y) = (weights(elements), weights(elements));
    cases.push(case("sums", (8, 0), 8 * elements, repeatable(move || level.run(SumsOf { x: black_box(&x), y: black_box(&y) }))));
    cases
}

/// A band of 128 rows of codes, or as many bytes of other items, to columns and back.
fn transpose_cases(level: Level, elements: usize) -> Vec<Case> {
    const BAND: usize = 128;
    let bytes = elements / 2;
    let width = bytes / BAND;
    let case = |name: String, elements: usize, run: Box<dyn FnMut()>| Case::new(name, elements, Traffic { read: 1, write: 1 }, bytes, run);
    let (rows, columns) = (vec![0x35; bytes], vec![0x35; bytes]);
    let mut cases = Vec::new();
    for (name, order) in [("natural", Order::Natural), ("awq", Order::Awq)] {
        let (from, mut to) = (rows.clone(), columns.clone());
        let there = repeatable(move || {
            let (from, to) = (Block::whole(black_box(&from), width), BlockMut::whole(&mut to, BAND / 2));
            level.run(Nibbles { from, from_order: Order::Natural, to, to_order: order });
        });
        cases.push(case(format!("nibbles {name} to columns"), elements, there));
        let (mut to, from) = (rows.clone(), columns.clone());
        let back = repeatable(move || {
            let (from, to) = (Block::whole(black_box(&from), BAND / 2), BlockMut::whole(&mut to, width));
            level.run(Nibbles { from, from_order: order, to, to_order: Order::Natural });
        });
        cases.push(case(format!("nibbles {name} to rows"), elements, back));
    }
    for size in [1, 2, 4] {
        let (from, mut to) = (rows.clone(), columns.clone());
        let turn = repeatable(move || {
            let (from, to) = (Block::whole(black_box(&from), width), BlockMut::whole(&mut to, size * BAND));
            level.run(Items { size, from, to });
        });
        cases.push(case(format!("items of {size} transpose"), bytes / size, turn));
    }
    let (down, natural, awq) = (Kept::Down, Kept::Across(Order::Natural), Kept::Across(Order::Awq));
    for (name, from_kept, to_kept) in [("down to across", down, awq), ("across to down", awq, down), ("in another order", natural, awq)] {
        // 128 rows across, or 16 down.
        let width_of = move |kept: Kept| if kept == down { 8 * width } else { width };
        let (from, mut to) = (rows.clone(), columns.clone());
        let words = repeatable(move || {
            let (from, to) = (Block::whole(black_box(&from), width_of(from_kept)), BlockMut::whole(&mut to, width_of(to_kept)));
            level.run(Words { from, from_kept, to, to_kept, flip: 8 });
        });
        cases.push(case(format!("words {name}"), elements, words));
    }
    let (low, high, mut pairs) = (vec![0x35; bytes / 2], vec![0x53; bytes / 2], columns.clone());
    let interleave = repeatable(move || level.run(Interleave { low: black_box(&low), high: black_box(&high), bytes: &mut pairs }));
    cases.push(case("nibbles interleave".to_string(), elements, interleave));
    let (mut low, mut high) = (vec![0; bytes / 2], vec![0; bytes / 2]);
    let deinterleave = repeatable(move || level.run(Deinterleave { bytes: black_box(&columns), low: &mut low, high: &mut high }));
    cases.push(case("nibbles deinterleave".to_string(), elements, deinterleave));
    cases
}
