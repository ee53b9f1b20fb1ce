//! From parts to an array.

use super::cut::{self, Grid, Parts, Task};
use super::groups::long_scales;
use super::{Outcome, Run, SERIAL, STREAM};
use crate::element::Sink;
use crate::error::{Error, Result};
use crate::formats::{self, Context, Format, Groups};
use crate::level::Level;
use crate::pool;
use crate::simd::ieee::Ieee;
use crate::spec::Layout;
use crate::tensor::Quantized;

/// Decode parts into an array: x ~ what the scheme of the format says, in f32 with one rounding an operation, then rounded to
/// the dtype of the array.
///
/// # Errors
///
/// [`Error::Cancelled`].
///
/// # Panics
///
/// Where the shape of the array or the length of a part is not the layout's.
pub fn dequantize(layout: &Layout, parts: &[&[u8]], mut sink: Sink<'_>, run: &Run<'_>) -> Result<Outcome> {
    let _ieee = Ieee::enter();
    assert_eq!(sink.shape(), layout.shape, "the shape of the layout");
    let threads = if layout.elements() < SERIAL { 1 } else { run.threads };
    let grid = Grid::new(layout, threads);
    let mut rest = cut::borrow(layout, parts);
    if grid.elements() == 0 {
        return Ok(Outcome::default());
    }
    let format = formats::find(layout.spec.name)?;
    // Each span waits for memory once, so short rows that are spans of their own are not streamed.
    let long_spans = grid.columns >= cut::STREAMED_SPAN;
    let stream = run.reused && long_spans && sink.len() * sink.item_size() > STREAM && sink.as_slice().is_some();
    let scales = grid.long.then(|| long_scales(layout, &grid, format, run.level, &mut rest));
    let job = Job { layout, format, grid, level: run.level, stream, scales };
    let tasks = job.grid.tasks().map(|(start, len)| {
        let parts = cut::split(&mut rest, job.grid.bytes(layout, len));
        (Task { start, len, parts }, sink.take(len))
    });
    let pool_failed = pool::for_each(tasks, threads, run.interrupted, |(task, sink)| job.decode_task(task, sink))?;
    Ok(Outcome { replaced: 0, pool_failed })
}

/// Decode into a vector in C order, on the calling thread.
///
/// # Errors
///
/// As [`dequantize`], and [`Error::Memory`].
pub fn dequantize_owned(quantized: &Quantized) -> Result<Vec<f32>> {
    let elements = quantized.layout.elements();
    let mut x = Vec::new();
    x.try_reserve_exact(elements).map_err(|_| Error::Memory { what: "the decoded array".into(), bytes: 4 * elements as u64 })?;
    x.resize(elements, 0.0);
    let sink = Sink::from_slice(&mut x, &quantized.layout.shape);
    dequantize(&quantized.layout, &quantized.views(), sink, &Run::serial(Level::current()?))?;
    Ok(x)
}

struct Job<'a> {
    layout: &'a Layout,
    format: &'static dyn Format,
    grid: Grid,
    level: Level,
    stream: bool,
    /// Scales and offsets of long groups, which are decoded in several pieces.
    scales: Option<Groups>,
}

impl Job<'_> {
    fn decode_task(&self, mut task: Task<Parts<'_>>, mut sink: Sink<'_>) {
        let mut groups = Groups::default();
        let mut scratch = Vec::new();
        let span = if self.stream { cut::STREAMED_SPAN } else { cut::SPAN };
        let spans = self.grid.segments(task.start, task.len).flat_map(|(start, len)| self.grid.spans(start, len, span));
        let mut next = |(start, len): (usize, usize), x: &mut [f32]| {
            let parts = cut::split(&mut task.parts, self.grid.bytes(self.layout, len));
            self.decode_span(start, &parts, &mut groups, x);
        };
        match sink.as_slice() {
            Some(slice) => {
                for (start, len) in spans {
                    next((start, len), &mut slice[start - task.start..][..len]);
                }
            }
            None => {
                for (start, len) in spans {
                    scratch.resize(len, 0.0);
                    next((start, len), &mut scratch);
                    sink.store(self.level, start - task.start, &scratch);
                }
            }
        }
    }

    fn decode_span(&self, start: usize, parts: &Parts<'_>, groups: &mut Groups, x: &mut [f32]) {
        let parts = &parts[..self.layout.spec.parts.len()];
        let context = Context { level: self.level, group: self.grid.group, scale_dtype: self.layout.scale_dtype, stream: self.stream };
        let Some(scales) = &self.scales else {
            return self.format.decode(context, parts, groups, x);
        };
        let context = Context { group: x.len(), ..context };
        groups.resize(self.layout.spec, context, x.len());
        self.format.unpack(context, parts, groups);
        let group = self.grid.group_of(start);
        groups.scales[0] = scales.scales[group];
        if let Some(offset) = groups.offsets.first_mut() {
            *offset = scales.offsets[group];
        }
        self.format.dequantize(context, groups, x);
    }
}
