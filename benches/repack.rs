//! From the parts of one word layout to those of another, as a ratio to a copy of as many bytes in the same run.
//!
//! Every ordered pair of layouts between which a tensor travels without loss, with output that is reused: those with zero points
//! in groups of 128, those around `q4_0` in groups of 32. The copy is the best of one and all threads, normal and streamed stores.
//!
//! ```text
//! cargo bench --bench repack -- [--size MIB] [--repeats N] [--filter TEXT] [--level NAME] [--json FILE]
//! ```
//!
//! `--size` is that of the floats; the codes are an eighth of it. `--filter` is part of `from -> to`.

mod harness;
mod limit;
#[path = "harness/loops.rs"]
mod loops;

use harness::{LOSES, Options, median, time};
use limit::{Memory, Traffic};
use loops::Loops;
use quantize::element::Source;
use quantize::engine::{self, NonFinite, Run};
use quantize::error::Error;
use quantize::formats;
use quantize::layout::{Layout, Options as FormatOptions};
use quantize::level::Level;
use quantize::spec::{Choice, GroupSize, ScaleDtype};
use serde_json::{Value, json};

/// Elements of a row.
const COLUMNS: usize = 4096;

const COPY: Traffic = Traffic { read: 1, write: 1 };

/// A name, and whether it is symmetric where that is an option.
type Name = (&'static str, Option<bool>);

/// Layouts that hold the same values, with the size of their groups: the first one is encoded, the others come from it.
const FAMILIES: [(usize, &[Name]); 2] = [
    (
        128,
        &[
            ("uint4", None),
            ("gptq:v2", Some(false)),
            ("awq", None),
            ("compressed-tensors", Some(false)),
            ("onnx:matmulnbits", Some(false)),
            ("onnx:qdq", Some(false)),
        ],
    ),
    (
        32,
        &[
            ("gguf:q4_0", None),
            ("int4", None),
            ("gptq:v2", Some(false)),
            ("compressed-tensors", Some(true)),
            ("onnx:matmulnbits", Some(true)),
            ("onnx:qdq", Some(true)),
            ("mlx", None),
        ],
    ),
];

/// A layout and its parts, which begin at multiples of 64.
struct Stored {
    layout: Layout,
    parts: Vec<Memory>,
}

impl Stored {
    fn new(rows: usize, group: usize, (name, symmetric): Name) -> Self {
        let choice = symmetric.and_then(|on| Choice::switch("symmetric", on));
        let spec = formats::choose(name, choice).expect("a format").spec();
        let scale_dtype = (spec.scale_dtypes.len() > 1).then_some(ScaleDtype::F16);
        let options = FormatOptions { group_size: Some(GroupSize::Elements(group)), scale_dtype, choice, ..Default::default() };
        let layout = Layout::new(spec, &[rows, COLUMNS], options).expect("a shape that every format takes");
        let parts = (0..spec.parts.len()).map(|part| harness::memory(layout.part_bytes(part))).collect();
        Stored { layout, parts }
    }

    fn views(&self) -> Vec<&[u8]> {
        self.parts.iter().enumerate().map(|(i, part)| &bytemuck::cast_slice(part)[..self.layout.part_bytes(i)]).collect()
    }

    fn slices(&mut self) -> Vec<&mut [u8]> {
        let layout = &self.layout;
        self.parts.iter_mut().enumerate().map(|(i, part)| &mut bytemuck::cast_slice_mut(part)[..layout.part_bytes(i)]).collect()
    }

    fn bytes(&self) -> usize {
        (0..self.parts.len()).map(|part| self.layout.part_bytes(part)).sum()
    }
}

/// Whether the parts of `to` are now those of `from`.
fn repack(from: &Stored, to: &mut Stored, run: &Run<'_>) -> bool {
    let layout = to.layout.clone();
    match engine::repack(&from.layout, &from.views(), &layout, &mut to.slices(), run) {
        Ok(_) => true,
        Err(Error::Lossy { .. }) => false,
        Err(error) => panic!("{} to {}: {error}", from.layout.spec.name, layout.spec.name),
    }
}

fn main() {
    let options = Options::parse(256, 9);
    let machine = harness::machine();
    println!("{}\n{} MiB of f32, medians of {} repeats\n", harness::describe(&machine), options.size, options.repeats);
    let rows = (options.size << 20) / 4 / COLUMNS;
    let mut weights = harness::memory(4 * rows * COLUMNS);
    harness::fill_with_weights(bytemuck::cast_slice_mut(&mut weights));
    let (mut table, mut all) = (Vec::new(), Vec::<Value>::new());
    for (group, names) in FAMILIES {
        let mut stored: Vec<Stored> = names.iter().map(|&name| Stored::new(rows, group, name)).collect();
        let (first, others) = stored.split_first_mut().expect("a layout to begin with");
        let layout = first.layout.clone();
        let source = Source::from_slice(bytemuck::cast_slice(&weights), &layout.shape);
        engine::quantize(&source, &layout, NonFinite::Raise, &mut first.slices(), &all_threads(Level::detect())).expect("finite elements");
        for other in others {
            assert!(repack(first, other, &all_threads(Level::detect())), "{} is not the same values", other.layout.spec.name);
        }
        for (i, j) in (0..names.len()).flat_map(|i| (0..names.len()).map(move |j| (i, j))).filter(|(i, j)| i != j) {
            let name = format!("{} -> {}", names[i].0, names[j].0);
            let mut to = Stored::new(rows, group, names[j]);
            if name.contains(&options.filter) && repack(&stored[i], &mut to, &all_threads(Level::detect())) {
                measure(&name, &stored[i], &mut to, &options, &mut table, &mut all);
            }
        }
    }
    harness::print(&["from -> to", "group", "level", "MiB", "GB/s", "copy", "ratio", "slower than"], &table);
    harness::save(&options, &json!({"machine": machine, "mib": options.size, "repeats": options.repeats, "pairs": all}));
}

fn all_threads(level: Level) -> Run<'static> {
    Run { threads: quantize::threads::count(None), ..Run::serial(level) }
}

/// One pair at every level, the copies between the calls.
fn measure(name: &str, from: &Stored, to: &mut Stored, options: &Options, table: &mut Vec<Vec<String>>, all: &mut Vec<Value>) {
    let bytes = from.bytes().max(to.bytes());
    let (source, mut target) = (harness::memory(bytes), harness::memory(bytes));
    let levels = options.levels();
    let (mut copies, mut calls) = (Loops::new(COPY), vec![Vec::new(); levels.len()]);
    for _ in 0..options.repeats {
        copies.sample(&source, &mut target);
        for (samples, &level) in calls.iter_mut().zip(&levels) {
            samples.push(time(|| repack(from, to, &all_threads(level))));
        }
    }
    let copy = copies.limit();
    let group = from.layout.group_elements();
    let mut lower: Option<(&str, f64)> = None;
    for (samples, level) in calls.iter().zip(levels) {
        let seconds = median(samples);
        let ratio = copy / seconds;
        let note = lower.filter(|(_, lower)| *lower > LOSES * ratio).map_or("", |(name, _)| name);
        let speed = |seconds: f64| format!("{:.1}", bytes as f64 / seconds / 1e9);
        table.push(vec![
            name.to_string(),
            group.to_string(),
            level.name().to_string(),
            (bytes >> 20).to_string(),
            speed(seconds),
            speed(copy),
            format!("{ratio:.2}"),
            note.to_string(),
        ]);
        all.push(json!({
            "from": from.layout.spec.name, "to": to.layout.spec.name, "group": group, "level": level.name(), "bytes": bytes,
            "seconds": seconds, "copy_seconds": copy, "ratio": ratio, "note": note,
        }));
        lower = Some((level.name(), ratio));
    }
}
