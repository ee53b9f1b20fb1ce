//! What the benches share: options, interleaved samples, medians, the table, the file of figures.

use crate::limit::{Line, Memory, Pages};
use serde_json::{Value, json};
use std::time::Instant;

/// What the command line asks for.
pub(crate) struct Options {
    /// MiB of f32.
    pub(crate) size: usize,
    /// Samples of everything, taken in turn.
    pub(crate) repeats: usize,
    /// Only what has this in its name.
    pub(crate) filter: String,
    /// Only this level.
    pub(crate) level: Option<String>,
    /// The file that the figures go to.
    pub(crate) json: Option<String>,
}

const HELP: &str = "options: --size MIB  --repeats N  --filter TEXT  --level NAME  --json FILE";

impl Options {
    /// The command line over these defaults. Without the `--bench` that `cargo bench` passes, as under `cargo test --benches`,
    /// everything runs once and small, to see that it runs.
    pub(crate) fn parse(size: usize, repeats: usize) -> Options {
        let is_bench = std::env::args().any(|argument| argument == "--bench");
        let (size, repeats) = if is_bench { (size, repeats) } else { (1, 1) };
        let mut options = Options { size, repeats, filter: String::new(), level: None, json: None };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| fail(&format!("{argument} needs a value")));
            match argument.as_str() {
                "--bench" => {}
                "--size" => options.size = number(&argument, &value()),
                "--repeats" => options.repeats = number(&argument, &value()),
                "--filter" => options.filter = value(),
                "--level" => options.level = Some(value()),
                "--json" => options.json = Some(value()),
                _ => fail(&format!("no option {argument}")),
            }
        }
        options
    }

    /// The levels of this CPU that are asked for, the slowest first.
    pub(crate) fn levels(&self) -> Vec<quantize::level::Level> {
        let mut levels = quantize::level::Level::available();
        levels.retain(|level| self.level.as_deref().is_none_or(|name| name == level.name()));
        levels
    }
}

fn number(option: &str, text: &str) -> usize {
    let number = text.parse().ok().filter(|&number| number > 0);
    number.unwrap_or_else(|| fail(&format!("{option} is {text}; expected a number from 1 on")))
}

fn fail(message: &str) -> ! {
    eprintln!("{message}\n{HELP}");
    std::process::exit(2)
}

/// Seconds that `work` takes.
pub(crate) fn time<R>(work: impl FnOnce() -> R) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64()
}

/// The middle one, or the mean of the two in the middle.
pub(crate) fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len().is_multiple_of(2) { (sorted[middle - 1] + sorted[middle]) / 2.0 } else { sorted[middle] }
}

/// A level that takes longer than a lower one by more than the samples scatter is a bug.
pub(crate) const LOSES: f64 = 1.05;

// SAFETY: a line is 64 bytes of floats without padding.
#[allow(unsafe_code, reason = "the module of lines is compiled without crates too, so it cannot say this itself")]
unsafe impl bytemuck::Zeroable for Line {}
// SAFETY: as above.
#[allow(unsafe_code, reason = "as above")]
unsafe impl bytemuck::Pod for Line {}

/// At least so many bytes on huge pages, all of them touched, so that no page is missing.
pub(crate) fn memory(bytes: usize) -> Memory {
    let mut memory = Memory::new(bytes.div_ceil(size_of::<Line>()), Pages::Huge);
    bytemuck::cast_slice_mut::<Line, u8>(&mut memory).fill(1);
    memory
}

/// Numbers that look like weights: bell-shaped around 0, the same in every run.
pub(crate) fn fill_with_weights(x: &mut [f32]) {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    for x in x {
        // Four 16-bit pieces of one xorshift step: their sum is close enough to a bell.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum: u64 = (0..4).map(|piece| state >> (16 * piece) & 0xffff).sum();
        *x = (sum as f32 - 131_070.0) / 1_000_000.0;
    }
}

/// What the figures were made on.
pub(crate) fn machine() -> Value {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let field = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.split_once(": ")).map_or("unknown", |(_, value)| value);
    json!({
        "cpu": field("model name"),
        "family": field("cpu family"),
        "model": field("model\t"),
        "cpus": quantize::threads::count(None),
        "load": read("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
    })
}

/// `machine`, in a line.
pub(crate) fn describe(machine: &Value) -> String {
    let text = |name: &str| machine[name].as_str().unwrap_or_default().to_string();
    format!("{} (family {} model {}), {} threads, load {}", text("cpu"), text("family"), text("model"), machine["cpus"], text("load"))
}

/// Print columns, the first left-aligned, the others right.
pub(crate) fn print(headers: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).chain([headers[column].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..headers.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let cells = cells.zip(&widths).enumerate();
        let padded = cells.map(|(column, (cell, &width))| if column == 0 { format!("{cell:width$}") } else { format!("{cell:>width$}") });
        println!("{}", padded.collect::<Vec<_>>().join("  ").trim_end());
    };
    line(&mut headers.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
}

/// Write the figures where `--json` says.
pub(crate) fn save(options: &Options, figures: &Value) {
    if let Some(path) = &options.json {
        std::fs::write(path, format!("{figures:#}\n")).unwrap_or_else(|error| fail(&format!("{path}: {error}")));
    }
}
