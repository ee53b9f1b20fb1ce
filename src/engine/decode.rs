//! From parts to an array.

use super::cut::{self, Grid, Parts, Task};
use super::groups::{long_scales, one_group};
use super::woven::{self, Place, Tiles};
use super::{Outcome, Run, SERIAL, STREAM, once};
use crate::element::{Room, Sink};
use crate::error::{Error, Result};
use crate::formats::{self, Context, Format, Groups, Rows, Weave};
use crate::kernels::decode::Output;
use crate::kernels::stream::Fence;
use crate::layout::Layout;
use crate::level::Level;
use crate::pool;
use crate::simd::ieee::Ieee;
use crate::tensor::Quantized;
use bytemuck::cast_slice;
use std::ops::Range;

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
    cut::check(layout, parts.iter().map(|part| part.len()));
    let threads = if layout.elements() < SERIAL { 1 } else { run.threads };
    if layout.elements() == 0 {
        return Ok(Outcome::default());
    }
    let (run, global) = (Run { threads, ..*run }, once::global_of(layout, parts));
    let large = run.reused && sink.len() * sink.item_size() > STREAM && sink.as_output().is_some();
    let pool_failed = match formats::of(layout.spec) {
        Format::Rows(format) => decode(layout, format, global, parts, sink, large, &run)?,
        Format::Woven(weave) => {
            let job = Woven { layout, weave, order: once::group_of_columns(layout, parts)?, global, stream: large };
            job.decode(parts, sink, &run)?
        }
        Format::Nested(nest) => {
            let plain = layout.in_format(nest.plain().spec());
            let mut scales = vec![0.0; plain.groups_per_row()];
            nest.unnest(run.level, &parts[1..], &mut scales);
            decode(&plain, nest.plain(), global, &[parts[0], cast_slice(&scales)], sink, large, &run)?
        }
    };
    Ok(Outcome { replaced: 0, pool_failed })
}

fn decode(
    layout: &Layout,
    format: &'static dyn Rows,
    global: f32,
    parts: &[&[u8]],
    mut sink: Sink<'_>,
    large: bool,
    run: &Run<'_>,
) -> Result<bool> {
    let grid = Grid::new(layout, run.threads);
    if let Some(tiles) = Tiles::turned(layout, &grid, sink.turned_rows(layout.columns())) {
        return decode_turned(&tiles, &grid, format, global, parts, sink, run);
    }
    let grid = if sink.is_turned() { grid.by_rows(layout.columns()) } else { grid };
    let mut rest = cut::borrow(parts);
    let stream = large && grid.columns >= cut::STREAMED_RUN;
    let scales = grid.long.then(|| long_scales(layout, &grid, format, run.level, &mut rest));
    let job = Job { layout, format, grid, level: run.level, global, stream, scales };
    let tasks = job.grid.tasks().map(|(start, len)| {
        let parts = cut::split(&mut rest, job.grid.bytes(layout, len));
        (Task { start, len, parts }, sink.take(len))
    });
    pool::for_each(tasks, run.threads, run.interrupted, |(task, sink)| job.decode_task(task, sink))
}

/// The same to turned matrices, tile by tile.
fn decode_turned(
    tiles: &Tiles<'_>,
    grid: &Grid,
    format: &'static dyn Rows,
    global: f32,
    parts: &[&[u8]],
    sink: Sink<'_>,
    run: &Run<'_>,
) -> Result<bool> {
    let past = run.reused && sink.len() * sink.item_size() > STREAM;
    let context = Context { level: run.level, group: grid.group, scale_dtype: tiles.rows.scale_dtype, global, stream: false };
    let (mut blocks, mut sinks) = (tiles.blocks(parts), tiles.sinks(sink));
    let tasks = tiles.tasks(run.threads, |_| (woven::next(&mut blocks), sinks.next().expect("a sink for every tile")));
    pool::for_each(tasks, run.threads, run.interrupted, |task| {
        let (mut room, mut groups) = (Room::default(), Groups::default());
        for (Place { tile, .. }, (blocks, sink)) in task {
            let mut rows = woven::Scratch::new(&tiles.rows, tile, true);
            rows.slices().into_iter().zip(&blocks).for_each(|(to, from)| from.copy_to(to));
            let mut rest = cut::borrow(&rows.views());
            sink.store(run.level, &mut room, past, |mut x| {
                for at in tiles.pieces(grid, tile) {
                    format.decode(context, &tiles.split(&mut rest, at.len())[..parts.len()], &mut groups, x.part(at));
                }
            });
        }
        run.level.run(Fence);
    })
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
    format: &'static dyn Rows,
    grid: Grid,
    level: Level,
    global: f32,
    stream: bool,
    /// Scales and offsets of long groups, which are decoded in several pieces.
    scales: Option<Groups>,
}

impl Job<'_> {
    fn decode_task(&self, mut task: Task<Parts<'_>>, mut sink: Sink<'_>) {
        let mut groups = Groups::default();
        let mut scratch = Vec::new();
        let span = if self.stream { task.len } else { sink.span(cut::SPAN) };
        let spans = self.grid.segments(task.start, task.len).flat_map(|(start, len)| self.grid.spans(start, len, span));
        let mut next = |(start, len): (usize, usize), x: Output<'_>| {
            let parts = cut::split(&mut task.parts, self.grid.bytes(self.layout, len));
            self.decode_span(start, &parts, &mut groups, x);
        };
        match sink.as_output() {
            Some(mut output) => {
                for (start, len) in spans {
                    let first = start - task.start;
                    next((start, len), output.part(first..first + len));
                }
            }
            None => {
                for (start, len) in spans {
                    scratch.resize(len, 0.0);
                    next((start, len), Output::F32(&mut scratch));
                    sink.store(self.level, start - task.start, &scratch);
                }
            }
        }
        if self.stream {
            self.level.run(Fence);
        }
    }

    fn decode_span(&self, start: usize, parts: &Parts<'_>, groups: &mut Groups, x: Output<'_>) {
        let parts = &parts[..self.layout.spec.parts.len()];
        let Job { level, grid, layout, global, stream, .. } = self;
        let context = Context { level: *level, group: grid.group, scale_dtype: layout.scale_dtype, global: *global, stream: *stream };
        let Some(scales) = &self.scales else {
            return self.format.decode(context, parts, groups, x);
        };
        // The piece is decoded as a group of its own that has the scale and the offset of the whole one.
        let own = one_group(layout, self.format, *level, scales, self.grid.group_of(start));
        let mut whole = Parts::default();
        for ((whole, codes), own) in whole.iter_mut().zip(parts).zip(&own) {
            *whole = if own.is_empty() { codes } else { own };
        }
        self.format.decode(Context { group: x.len(), ..context }, &whole[..parts.len()], groups, x);
    }
}

/// A format whose rows lie side by side.
struct Woven<'a> {
    layout: &'a Layout,
    weave: &'static dyn Weave,
    /// The group of each column, where the columns are not in order.
    order: Option<Vec<usize>>,
    global: f32,
    stream: bool,
}

impl Woven<'_> {
    fn decode(&self, parts: &[&[u8]], mut sink: Sink<'_>, run: &Run<'_>) -> Result<bool> {
        let tiles = Tiles::new(self.layout, self.weave, run.threads, self.order.is_some() || sink.is_turned());
        let mut blocks = tiles.blocks(parts);
        // Tiles of whole rows follow each other in the array; of others every row is written piece by piece.
        let (whole, columns) = (tiles.has_whole_rows(), tiles.rows.columns());
        let mut rows: Vec<Sink<'_>> = if whole { Vec::new() } else { (0..tiles.rows.rows()).map(|_| sink.take(columns)).collect() };
        let tasks = tiles.places().map(|place| {
            let runs = tiles.runs(place).enumerate().map(|(row, (_, len))| match whole {
                true => sink.take(len),
                false => rows[place.first_row + row].take(len),
            });
            (place.tile, woven::next(&mut blocks), runs.collect::<Vec<_>>())
        });
        pool::for_each(tasks, run.threads, run.interrupted, |(tile, blocks, sinks)| {
            let mut scratch = woven::Scratch::new(&tiles.rows, tile, true);
            let group = tiles.rows.group_elements();
            let context =
                Context { level: run.level, group, scale_dtype: self.layout.scale_dtype, global: self.global, stream: self.stream };
            self.weave.unweave(context, tile, &blocks, &mut scratch.slices());
            let mut rest = Parts::default();
            for (rest, rows) in rest.iter_mut().zip(scratch.views()) {
                *rest = rows;
            }
            match &self.order {
                Some(order) => self.decode_ordered(&tiles, order, rest, sinks, context),
                None => self.decode_runs(&tiles, rest, sinks, context),
            }
            if self.stream {
                run.level.run(Fence);
            }
        })
    }

    fn decode_runs(&self, tiles: &Tiles<'_>, mut rest: Parts<'_>, sinks: Vec<Sink<'_>>, context: Context) {
        let (format, count) = (self.weave.rows(), tiles.rows.spec.parts.len());
        let (mut groups, mut scratch) = (Groups::default(), Vec::new());
        for mut sink in sinks {
            let len = sink.len();
            let stream = self.stream && len >= cut::STREAMED_RUN;
            let context = Context { stream, ..context };
            let spans = tiles.spans(len, if stream { len } else { sink.span(cut::SPAN) });
            let mut next = |span: &Range<usize>, x: Output<'_>| {
                let parts = tiles.split(&mut rest, span.len());
                format.decode(context, &parts[..count], &mut groups, x);
            };
            match sink.as_output() {
                Some(mut output) => spans.for_each(|span| next(&span, output.part(span.clone()))),
                None => {
                    for span in spans {
                        scratch.resize(span.len(), 0.0);
                        next(&span, Output::F32(&mut scratch));
                        sink.store(context.level, span.start, &scratch);
                    }
                }
            }
        }
    }

    /// Rows whose columns are in another order than their groups: each element is a group of one.
    fn decode_ordered(&self, tiles: &Tiles<'_>, order: &[usize], mut rest: Parts<'_>, sinks: Vec<Sink<'_>>, context: Context) {
        let (format, count, columns) = (self.weave.rows(), tiles.rows.spec.parts.len(), tiles.rows.columns());
        let (mut row, mut single, mut x) = (Groups::default(), Groups::default(), vec![0.0; columns]);
        row.resize(tiles.rows.spec, context, columns);
        let context_of_one = Context { group: 1, ..context };
        single.resize(tiles.rows.spec, context_of_one, columns);
        for mut sink in sinks {
            for start in (0..sink.len()).step_by(columns) {
                format.unpack(context, &tiles.split(&mut rest, columns)[..count], &mut row);
                single.codes.copy_from_slice(&row.codes);
                for (to, &group) in single.scales.iter_mut().zip(order) {
                    *to = row.scales[group];
                }
                for (to, &group) in single.offsets.iter_mut().zip(order) {
                    *to = row.offsets[group];
                }
                format.dequantize(context_of_one, &single, &mut x);
                sink.store(context.level, start, &x);
            }
        }
    }
}
