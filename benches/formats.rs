//! Every format at every level on an array that no cache holds, as a ratio to the machine's limit in the same run.
//!
//! In turn: the plain loops with the traffic of encoding, encode, the loops of decoding, decode; then the next repeat. Output is
//! reused. The limit is the loop's best median over one and all threads, normal and streamed stores; the ratio is that over
//! the median of the format. The machine may be shared and its bandwidth move: only ratios compare between runs.
//!
//! ```text
//! cargo bench --bench formats -- [--size MIB] [--repeats N] [--filter TEXT] [--level NAME] [--json FILE]
//! ```

mod harness;
mod limit;
#[path = "harness/loops.rs"]
mod loops;

use harness::{LOSES, Options, median, time};
use limit::{Memory, Traffic};
use loops::Loops;
use quantize::element::{Sink, Source};
use quantize::engine::{self, NonFinite, Run};
use quantize::formats::FORMATS;
use quantize::layout::{self, Layout};
use quantize::level::Level;
use quantize::spec::{GroupSize, GroupSizes};
use serde_json::{Value, json};

const ENCODING: Traffic = Traffic { read: 8, write: 1 };
const DECODING: Traffic = Traffic { read: 1, write: 8 };

/// Elements of a row.
const COLUMNS: usize = 4096;

/// The arrays that all cases share.
struct Arrays {
    x: Memory,
    decoded: Memory,
    /// What the loops of encoding write and those of decoding read.
    eighth: Memory,
}

/// Medians of one format at one level, in seconds.
struct Figures {
    limits: [f64; 2],
    /// For encode and decode, with one and with all threads.
    seconds: [Vec<f64>; 2],
}

impl Figures {
    /// Limit over encode and over decode, with all threads.
    fn ratios(&self) -> [f64; 2] {
        [0, 1].map(|side| self.limits[side] / self.seconds[side].last().expect("at least one count of threads"))
    }
}

fn main() {
    let options = Options::parse(256, 9);
    let machine = harness::machine();
    let bytes = options.size << 20;
    println!("{}\n{} MiB of f32, medians of {} repeats, GB/s of f32\n", harness::describe(&machine), options.size, options.repeats);

    let mut arrays = Arrays { x: harness::memory(bytes), decoded: harness::memory(bytes), eighth: harness::memory(bytes / 8) };
    harness::fill_with_weights(bytemuck::cast_slice_mut(&mut arrays.x));
    let threads = loops::threads();
    let (mut rows, mut all) = (Vec::new(), Vec::<Value>::new());
    for layout in layouts(bytes / 4 / COLUMNS).iter().filter(|layout| name(layout).contains(&options.filter)) {
        let mut lower: Option<(&str, [f64; 2])> = None;
        for level in options.levels() {
            let figures = measure(&mut arrays, layout, level, &threads, options.repeats);
            let ratios = figures.ratios();
            let note = lower.map_or(String::new(), |(name, lower)| lost(name, lower, ratios));
            rows.push(row(layout, level, bytes, &figures, note.clone()));
            all.push(json!({
                "format": layout.spec.name, "group": layout.group_elements(), "level": level.name(), "threads": threads, "note": note,
                "encode_seconds": figures.seconds[0], "encode_limit_seconds": figures.limits[0], "encode_ratio": ratios[0],
                "decode_seconds": figures.seconds[1], "decode_limit_seconds": figures.limits[1], "decode_ratio": ratios[1],
            }));
            lower = Some((level.name(), ratios));
        }
    }
    let headers = ["format", "group", "level", "enc 1 t", "all t", "limit", "ratio", "dec 1 t", "all t", "limit", "ratio", "slower than"];
    harness::print(&headers, &rows);
    harness::save(&options, &json!({"machine": machine, "mib": options.size, "repeats": options.repeats, "formats": all}));
}

/// Every 4-bit format (companions write more than an eighth), with groups of 32 and of 128 where it has them.
fn layouts(rows: usize) -> Vec<Layout> {
    let of = |format: &quantize::formats::Format| {
        let spec = format.spec();
        let groups = match spec.group_sizes {
            GroupSizes::Fixed(group) | GroupSizes::InBlocks { size: group, .. } => vec![group],
            GroupSizes::OneOf { .. } | GroupSizes::Divides { .. } | GroupSizes::Any { .. } => vec![32, 128],
        };
        let taken = groups.into_iter().filter(|&group| spec.group_sizes.takes(GroupSize::Elements(group)));
        taken.collect::<Vec<_>>().into_iter().map(move |group| {
            let options = layout::Options { group_size: Some(GroupSize::Elements(group)), ..Default::default() };
            Layout::new(spec, &[rows, COLUMNS], options).expect("a shape that every format takes")
        })
    };
    FORMATS.iter().filter(|format| !format.spec().is_companion()).flat_map(of).collect()
}

fn name(layout: &Layout) -> String {
    let choice = layout.spec.choice.map_or(String::new(), |choice| match choice.is_on() {
        Some(on) => format!(" {}={on}", choice.option()),
        None => format!(" {choice:?}"),
    });
    format!("{}{choice} {}", layout.spec.name, layout.group_elements())
}

fn measure(arrays: &mut Arrays, layout: &Layout, level: Level, threads: &[usize], repeats: usize) -> Figures {
    let mut parts: Vec<Memory> = (0..layout.spec.parts.len()).map(|part| harness::memory(layout.part_bytes(part))).collect();
    let mut loops = [ENCODING, DECODING].map(Loops::new);
    let mut calls = [(); 2].map(|()| vec![Vec::new(); threads.len()]);
    for _ in 0..repeats {
        loops[0].sample(&arrays.x, &mut arrays.eighth);
        for (samples, &threads) in calls[0].iter_mut().zip(threads) {
            let mut parts: Vec<&mut [u8]> =
                parts.iter_mut().enumerate().map(|(i, part)| &mut bytemuck::cast_slice_mut(part)[..layout.part_bytes(i)]).collect();
            let source = Source::from_slice(bytemuck::cast_slice(&arrays.x), &layout.shape);
            let run = Run { threads, ..Run::serial(level) };
            samples.push(time(|| engine::quantize(&source, layout, NonFinite::Raise, &mut parts, &run).expect("finite elements")));
        }
        loops[1].sample(&arrays.eighth, &mut arrays.decoded);
        for (samples, &threads) in calls[1].iter_mut().zip(threads) {
            let parts: Vec<&[u8]> = parts.iter().enumerate().map(|(i, part)| &bytemuck::cast_slice(part)[..layout.part_bytes(i)]).collect();
            let sink = Sink::from_slice(bytemuck::cast_slice_mut(&mut arrays.decoded), &layout.shape);
            let run = Run { threads, ..Run::serial(level) };
            samples.push(time(|| engine::dequantize(layout, &parts, sink, &run).expect("nobody interrupts")));
        }
    }
    Figures { limits: loops.map(|loops| loops.limit()), seconds: calls.map(|calls| calls.iter().map(|samples| median(samples)).collect()) }
}

/// In what a level loses to the one below it.
fn lost(name: &str, lower: [f64; 2], ratios: [f64; 2]) -> String {
    let sides = ["encode", "decode"].into_iter().zip(lower.into_iter().zip(ratios));
    let lost: Vec<&str> = sides.filter(|(_, (lower, ratio))| *lower > LOSES * *ratio).map(|(side, _)| side).collect();
    if lost.is_empty() { String::new() } else { format!("{name}: {}", lost.join(", ")) }
}

fn row(layout: &Layout, level: Level, bytes: usize, figures: &Figures, note: String) -> Vec<String> {
    let speed = |seconds: f64| format!("{:.1}", bytes as f64 / seconds / 1e9);
    let mut row = vec![layout.spec.name.to_string(), layout.group_elements().to_string(), level.name().to_string()];
    for ((seconds, limit), ratio) in figures.seconds.iter().zip(figures.limits).zip(figures.ratios()) {
        row.extend([speed(seconds[0]), speed(seconds[seconds.len() - 1]), speed(limit), format!("{ratio:.2}")]);
    }
    row.push(note);
    row
}
