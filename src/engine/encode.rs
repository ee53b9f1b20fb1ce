//! From an array to parts.
//!
//! Groups up to 256 KiB are ranged and coded in one go. Longer ones take two passes, in `long`: the ranges of all groups, then their codes
//! (`Grid::long` says which). Elements that are not finite show in the ranges; only then are they looked for.

mod long;
mod turned;

use super::cut::{self, Grid, PartsMut, Task};
use super::search::{Method, Search};
use super::stage::Stage;
use super::woven::{self, Tiles};
use super::{Outcome, Run, SERIAL, STREAM, once};
use crate::element::Source;
use crate::error::{Error, Result};
use crate::formats::{self, Context, Faults, Format, Groups, Need, Range, Rows, Weave};
use crate::kernels::encode::{Input, RangeOf, TILE};
use crate::kernels::range::BEYOND_HALF;
use crate::kernels::stream::Fence;
use crate::layout::Layout;
use crate::level::Level;
use crate::pool::{self, Watch};
use crate::simd::LANES;
use crate::simd::ieee::Ieee;
use crate::tensor::Quantized;
use bytemuck::cast_slice_mut;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// What becomes of elements that are not finite.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NonFinite {
    /// An error that counts them and names the first.
    #[default]
    Raise,
    /// Each becomes 0.
    Zero,
    /// An infinity becomes the largest finite magnitude of its group with its sign, 0 if there is none; NaN becomes 0.
    Clip,
}

/// Encode an array into parts, which are in the order of the spec and of exactly the bytes that the layout says.
///
/// The bytes depend on nothing but the elements and the layout. On an error the parts hold nothing of use.
///
/// # Errors
///
/// [`Error::NonFinite`], [`Error::ScaleOverflow`], [`Error::Cancelled`].
///
/// # Panics
///
/// Where the shape of the source or the length of a part is not the layout's.
pub fn quantize(source: &Source<'_>, layout: &Layout, nonfinite: NonFinite, parts: &mut [&mut [u8]], run: &Run<'_>) -> Result<Outcome> {
    quantize_by(source, layout, Method::Nearest, nonfinite, parts, run)
}

/// As [`quantize`], with a method for the scales.
///
/// # Errors
///
/// As [`quantize`], and where scales are searched [`Error::Method`] where the format has no such search, [`Error::Value`] for groups
/// beyond [`crate::search::LARGEST_GROUP`], a tolerance or a limit out of range or weights that are none, [`Error::Shape`] for weights of another shape.
///
/// # Panics
///
/// As [`quantize`].
pub fn quantize_by(
    source: &Source<'_>,
    layout: &Layout,
    method: Method<'_>,
    nonfinite: NonFinite,
    parts: &mut [&mut [u8]],
    run: &Run<'_>,
) -> Result<Outcome> {
    quantize_sharing(source, layout, method, None, nonfinite, parts, run)
}

/// As [`quantize_by`], the second level of the scales made for the magnitude `largest`, where it is given: that of several tensors which
/// share it.
///
/// # Errors
///
/// As [`quantize_by`].
///
/// # Panics
///
/// As [`quantize`].
pub fn quantize_sharing(
    source: &Source<'_>,
    layout: &Layout,
    method: Method<'_>,
    largest: Option<f32>,
    nonfinite: NonFinite,
    parts: &mut [&mut [u8]],
    run: &Run<'_>,
) -> Result<Outcome> {
    let _ieee = Ieee::enter();
    assert_eq!(source.shape(), layout.shape, "the shape of the layout");
    cut::check(layout, parts.iter().map(|part| part.len()));
    let threads = if layout.elements() < SERIAL { 1 } else { run.threads };
    let run = Run { threads, ..*run };
    let search = Search::new(method, source, layout, &run)?;
    match formats::of(layout.spec) {
        Format::Rows(format) => {
            let (outcome, global) = encode(source, layout, (layout, format), (search.as_ref(), largest), nonfinite, &run, |job| {
                job.encode(cut::borrow_mut(parts))
            })?;
            once::write(layout, global, parts);
            Ok(outcome)
        }
        Format::Woven(weave) => {
            let rows = woven::rows_of(layout, weave);
            let (outcome, global) = encode(source, layout, (&rows, weave.rows()), (search.as_ref(), largest), nonfinite, &run, |job| {
                job.encode_woven(weave, parts)
            })?;
            once::write(layout, global, parts);
            Ok(outcome)
        }
        Format::Nested(nest) => {
            let plain = layout.in_format(nest.plain().spec());
            let mut scales = vec![0.0; plain.groups_per_row()];
            let [codes, nested @ ..] = parts else { unreachable!("the spec names codes first") };
            let mut encode = |search: Option<&Search<'_>>, scales: &mut [f32]| {
                encode(source, layout, (&plain, nest.plain()), (search, None), nonfinite, &run, |job| {
                    job.encode(cut::borrow_mut(&mut [codes, cast_slice_mut(scales)]))
                })
            };
            let (outcome, _) = encode(None, &mut scales)?;
            nest.nest(run.level, &scales, nested);
            if let Some(search) = search {
                // Among the scales that the second level of the rule gives, of which its own are some.
                encode(Some(&search.among(nest.nested(nested))), &mut scales)?;
                nest.renest(&scales, nested);
            }
            once::check_finite(layout, parts)?;
            Ok(outcome)
        }
    }
}

/// Encode by `work`, again under a policy if elements are not finite; the outcome, and the second level of the scales.
fn encode(
    source: &Source<'_>,
    layout: &Layout,
    (rows, format): (&Layout, &'static dyn Rows),
    (search, shared): (Option<&Search<'_>>, Option<f32>),
    nonfinite: NonFinite,
    run: &Run<'_>,
    mut work: impl FnMut(&mut Job<'_>) -> Result<(Faults, bool)>,
) -> Result<(Outcome, f32)> {
    let grid = Grid::new(rows, run.threads);
    let grid = if source.is_turned() { grid.by_rows(rows.columns()) } else { grid };
    let mut job = Job {
        source,
        // Halves of longer groups are needed twice, and widened once.
        input: source.as_input().filter(|input| matches!(input, Input::F32(_)) || grid.group <= TILE),
        layout,
        rows,
        format,
        span: source.span(if search.is_some() { cut::SPAN.max(LANES * grid.group) } else { cut::SPAN }),
        grid,
        search,
        shared,
        run: *run,
        global: once::unstored_global(layout),
        policy: None,
        replaced: AtomicU64::new(0),
        bounds: Vec::new(),
    };
    let (mut faults, mut pool_failed) = job.attempt(&mut work)?;
    if faults.element {
        if nonfinite == NonFinite::Raise {
            return Err(job.first_not_finite()?);
        }
        job.policy = Some(nonfinite);
        (faults, pool_failed) = job.attempt(&mut work)?;
    }
    if faults.scale {
        return Err(job.first_overflow()?);
    }
    Ok((Outcome { replaced: job.replaced.into_inner(), pool_failed }, job.global))
}

/// Encode an array into parts of its own, on the calling thread.
///
/// # Errors
///
/// As [`quantize`], and [`Error::Memory`].
pub fn quantize_owned(source: &Source<'_>, layout: Layout) -> Result<Quantized> {
    let mut quantized = Quantized::zeroed(layout)?;
    let mut parts: Vec<&mut [u8]> = quantized.parts.iter_mut().map(Vec::as_mut_slice).collect();
    quantize(source, &quantized.layout, NonFinite::Raise, &mut parts, &Run::serial(Level::current()?))?;
    Ok(quantized)
}

/// Of the largest magnitude, for which a second level of scales is made where it is searched: an octave, as twice as much shifts all
/// scales by one exponent. The last one lets the largest group have 4 in place of 6 for its largest element.
const MULTIPLES: [f32; 4] = [1.0, 1.25, 1.5, 1.75];

struct Job<'a> {
    source: &'a Source<'a>,
    /// The whole source, where it is floats of 32 or 16 bits in order.
    input: Option<Input<'a>>,
    layout: &'a Layout,
    /// The same tensor as rows that follow each other: the layout itself, or what it is woven of.
    rows: &'a Layout,
    format: &'static dyn Rows,
    /// The search for scales, where the format's own rule does not make them.
    search: Option<&'a Search<'a>>,
    /// The largest magnitude of the tensors that share the second level of the scales, where there are several.
    shared: Option<f32>,
    grid: Grid,
    /// Elements of a span; a search looks at sixteen groups at once.
    span: usize,
    run: Run<'a>,
    /// The second level of the scales, 1 where there is none.
    global: f32,
    /// How elements that are not finite are replaced; `None` while it is hoped that there are none.
    policy: Option<NonFinite>,
    replaced: AtomicU64,
    /// The largest finite magnitude of each long group, under a policy that needs it.
    bounds: Vec<f32>,
}

/// What a worker keeps from span to span.
#[derive(Default)]
struct Scratch {
    x: Vec<f32>,
    groups: Groups,
}

impl Job<'_> {
    /// Do the work, the second level of the scales settled before.
    fn attempt(&mut self, work: &mut impl FnMut(&mut Self) -> Result<(Faults, bool)>) -> Result<(Faults, bool)> {
        if self.layout.spec.global_part().is_some() {
            let (own, fault) = self.largest()?;
            if fault {
                return Ok((Faults { element: true, scale: false }, false));
            }
            self.global = match (self.search, self.shared) {
                (Some(search), None) if own > 0.0 => self.best_global(search, own)?,
                (_, shared) => self.format.global(shared.unwrap_or(own)),
            };
        }
        if self.grid.elements() == 0 { Ok((Faults::default(), false)) } else { work(self) }
    }

    /// The largest magnitude of the tensor; under a policy the largest finite one. And whether it is of no use.
    fn largest(&self) -> Result<(f32, bool)> {
        let all = Mutex::new((0.0f32, false));
        pool::for_each(self.grid.tasks(), self.run.threads, self.run.interrupted, |(start, len)| {
            let (mut scratch, mut own) = (Vec::new(), (0.0f32, false));
            let span = self.read_span();
            for at in (start..start + len).step_by(span) {
                let x = self.loaded(at, span.min(start + len - at), &mut scratch);
                let (largest, fault) = if self.policy.is_some() {
                    (largest_finite(x), false)
                } else {
                    let (range, fault) = self.run.level.run(RangeOf { x, need: Need::Magnitude });
                    (range.high, fault)
                };
                own = (own.0.max(largest), own.1 | fault);
            }
            let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            *all = (all.0.max(own.0), all.1 | own.1);
        })?;
        Ok(all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
    }

    /// Elements of a span that is only read: many where they are read where they are.
    fn read_span(&self) -> usize {
        if matches!((self.input, self.policy), (Some(Input::F32(_)), None)) { cut::STREAMED_SPAN } else { self.span }
    }

    /// The second level of the smallest error among those for some multiples of the largest magnitude. Errors are added in pieces
    /// that depend on nothing but the tensor.
    fn best_global(&self, search: &Search<'_>, largest: f32) -> Result<f32> {
        const PIECE: usize = 64 * 1024;
        let globals = MULTIPLES.map(|multiple| self.format.global((multiple * largest).min(f32::MAX)));
        let len = self.grid.elements();
        let mut errors = vec![[0.0; MULTIPLES.len()]; len.div_ceil(PIECE)];
        pool::for_each(errors.iter_mut().enumerate(), self.run.threads, self.run.interrupted, |(piece, errors)| {
            let Scratch { mut x, mut groups } = Scratch::default();
            let start = piece * PIECE;
            x.resize(PIECE.min(len - start), 0.0);
            self.load_clean(start, &mut x);
            for (error, global) in errors.iter_mut().zip(globals) {
                let context = Context { global, ..self.context() };
                groups.resize(self.rows.spec, context, x.len());
                *error = search.error(self.format, context, &self.run, start, &x, &mut groups);
            }
        })?;
        let mut totals = [0.0f64; MULTIPLES.len()];
        for errors in errors {
            totals.iter_mut().zip(errors).for_each(|(total, error)| *total += error);
        }
        let mut best = 0;
        for other in 1..MULTIPLES.len() {
            best = if totals[other] < totals[best] { other } else { best };
        }
        Ok(globals[best])
    }

    /// Elements in f32, those that are not finite replaced where a policy says so. The answer is how many were.
    fn load_clean(&self, start: usize, x: &mut [f32]) -> u64 {
        self.load(start, x);
        let Some(policy) = self.policy else { return 0 };
        x.chunks_mut(self.grid.group).map(|group| clean(group, policy, largest_finite(group))).sum()
    }

    /// Elements in f32; what the format cannot take is infinite.
    fn load(&self, start: usize, x: &mut [f32]) {
        self.source.load(self.run.level, start, x);
        if self.layout.spec.half {
            for x in x {
                *x = if x.abs() >= BEYOND_HALF { f32::INFINITY.copysign(*x) } else { *x };
            }
        }
    }

    /// Elements as they are.
    fn loaded<'t>(&'t self, start: usize, len: usize, scratch: &'t mut Vec<f32>) -> &'t [f32] {
        match self.input {
            Some(Input::F32(x)) => &x[start..start + len],
            _ => {
                scratch.resize(len, 0.0);
                self.load(start, scratch);
                scratch
            }
        }
    }

    fn encode_woven(&self, weave: &dyn Weave, parts: &mut [&mut [u8]]) -> Result<(Faults, bool)> {
        let (rows, is_turned, stream) = (woven::rows_of(self.layout, weave), self.source.is_turned(), self.is_streamed());
        let tiles = if stream {
            Tiles::lined(self.layout, rows, self.run.threads, is_turned, parts[0])
        } else {
            Tiles::of_rows(self.layout, rows, self.run.threads, is_turned)
        };
        let context = Context { stream, ..self.context() };
        let mut blocks = tiles.blocks_mut(parts);
        let all = Mutex::new(Faults::default());
        let tasks = tiles.places().map(|place| (place, woven::next_mut(&mut blocks)));
        let pool_failed = pool::for_each(tasks, self.run.threads, self.run.interrupted, |(place, mut blocks)| {
            let mut scratch = Scratch::default();
            let mut rows = woven::Scratch::new(&tiles.rows, place.tile, true);
            let mut rest = rows.slices();
            let mut faults = Faults::default();
            for (start, len) in tiles.runs(place) {
                for at in tiles.spans(len, self.span) {
                    let mut parts = tiles.split_mut(&mut rest, at.len());
                    faults |= self.encode_span(start + at.start, at.len(), &mut scratch, &mut parts);
                }
            }
            if faults.any() {
                *all.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) |= faults;
            }
            weave.weave(context, place.tile, &rows.views(), &mut blocks);
        })?;
        Ok((all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()), pool_failed))
    }

    fn encode(&mut self, parts: PartsMut<'_>) -> Result<(Faults, bool)> {
        if self.grid.long {
            return self.encode_long(parts);
        }
        // What is searched for or replaced is known by its index.
        let matrix = self.source.turned_rows(self.rows.columns()).filter(|_| self.policy.is_none() && self.search.is_none());
        match Tiles::turned(self.rows, &self.grid, matrix) {
            Some(tiles) => self.encode_turned(&tiles, parts),
            None => self.encode_short(parts),
        }
    }

    fn context(&self) -> Context {
        let Job { run, grid, layout, global, .. } = self;
        Context { level: run.level, group: grid.group, scale_dtype: layout.scale_dtype, global: *global, stream: false }
    }

    fn is_streamed(&self) -> bool {
        self.source.len() * self.source.item_size() > STREAM
    }

    fn encode_short(&self, mut parts: PartsMut<'_>) -> Result<(Faults, bool)> {
        let stream = self.is_streamed();
        let all = Mutex::new(Faults::default());
        let tasks =
            self.grid.tasks().map(|(start, len)| Task { start, len, parts: cut::split_mut(&mut parts, self.grid.bytes(self.rows, len)) });
        let pool_failed = pool::for_each(tasks, self.run.threads, self.run.interrupted, |task| {
            let faults = if stream { self.encode_streamed(task) } else { self.encode_task(task) };
            if faults.any() {
                *all.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) |= faults;
            }
        })?;
        Ok((all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()), pool_failed))
    }

    fn encode_task(&self, mut task: Task<PartsMut<'_>>) -> Faults {
        let mut scratch = Scratch::default();
        let mut faults = Faults::default();
        for (start, len) in self.spans_of(&task, self.span) {
            let mut parts = cut::split_mut(&mut task.parts, self.grid.bytes(self.rows, len));
            faults |= self.encode_span(start, len, &mut scratch, &mut parts);
        }
        faults
    }

    fn encode_streamed(&self, mut task: Task<PartsMut<'_>>) -> Faults {
        let mut scratch = Scratch::default();
        let mut faults = Faults::default();
        // The codes of short rows leave together.
        let streams = self.format.streams(self.grid.group) && self.grid.columns >= cut::STREAMED_SPAN;
        if let (Some(input), None, None, true) = (self.input, self.policy, self.search, streams) {
            let context = Context { stream: true, ..self.context() };
            for (start, len) in self.grid.segments(task.start, task.len) {
                let mut parts = cut::split_mut(&mut task.parts, self.grid.bytes(self.rows, len));
                let parts = &mut parts[..self.rows.spec.parts.len()];
                faults |= self.format.encode(context, input.part(start..start + len), &mut scratch.groups, parts);
            }
            self.run.level.run(Fence);
            return faults;
        }
        let spans = self.spans_of(&task, self.span);
        let mut stages = task.parts.map(|part| Stage::new(self.run.level, part));
        for (start, len) in spans {
            let sizes = self.grid.bytes(self.rows, len);
            let mut sizes = sizes.iter();
            let mut parts: PartsMut<'_> = stages.each_mut().map(|stage| stage.next(*sizes.next().expect("a size for every part")));
            faults |= self.encode_span(start, len, &mut scratch, &mut parts);
        }
        stages.into_iter().for_each(Stage::finish);
        faults
    }

    fn spans_of<'t, P>(&'t self, task: &Task<P>, span: usize) -> impl Iterator<Item = (usize, usize)> + use<'t, P> {
        self.grid.segments(task.start, task.len).flat_map(move |(start, len)| self.grid.spans(start, len, span))
    }

    fn encode_span(&self, start: usize, len: usize, scratch: &mut Scratch, parts: &mut PartsMut<'_>) -> Faults {
        let Scratch { x, groups } = scratch;
        let input = match (self.input, self.policy) {
            (Some(input), None) => input.part(start..start + len),
            _ => {
                x.resize(len, 0.0);
                self.replaced.fetch_add(self.load_clean(start, x), Ordering::Relaxed);
                Input::F32(x)
            }
        };
        let parts = &mut parts[..self.rows.spec.parts.len()];
        let Some(search) = self.search else { return self.format.encode(self.context(), input, groups, parts) };
        groups.resize(self.rows.spec, self.context(), len);
        let faults = search.quantize(self.format, self.context(), &self.run, start, &input.floats(self.run.level), groups);
        self.format.pack(self.context(), groups, parts);
        faults
    }

    /// How many elements are not finite, and which is the first.
    fn first_not_finite(&self) -> Result<Error> {
        let mut watch = Watch::new(self.run.interrupted);
        let (mut count, mut first) = (0, None);
        let mut x = vec![0.0; 4096];
        for start in (0..self.source.len()).step_by(x.len()) {
            watch.check()?;
            let len = x.len().min(self.source.len() - start);
            self.load(start, &mut x[..len]);
            for (i, _) in x[..len].iter().enumerate().filter(|(_, value)| !value.is_finite()) {
                count += 1;
                first.get_or_insert(start + i);
            }
        }
        let Some(flat) = first else {
            // It was there a moment ago.
            return Ok(Error::value(
                "array",
                "changed by another thread during the call",
                "nobody may write to it before the call returns",
            ));
        };
        let value = self.source.number(self.run.level, flat);
        Ok(Error::NonFinite { count, first: self.source.caller_index(flat, &self.layout.shape), value })
    }

    /// Which group is the first whose scale or minimum its dtype cannot hold.
    fn first_overflow(&mut self) -> Result<Error> {
        let groups_shape = self.layout.groups_shape();
        let (group, part) = self.overflowing()?.unwrap_or((0, "scale"));
        Ok(Error::ScaleOverflow { part, dtype: self.layout.scale_dtype.name(), group: self.source.caller_index(group, &groups_shape) })
    }

    fn overflowing(&mut self) -> Result<Option<(usize, &'static str)>> {
        let context = self.context();
        let mut one = Groups::default();
        let mut scratch = Vec::new();
        let mut ranges: Vec<Option<Range>> = Vec::new();
        let need = self.format.need();
        if self.grid.long && self.search.is_some() {
            return Ok(Some((0, "scale"))); // there is but one group
        }
        if self.grid.long {
            let surveyed = self.fold((None, false), |x| survey(self.run.level, need, x), |earlier, later| join(need, earlier, later))?;
            ranges.extend(surveyed.into_iter().map(|(range, _)| range));
        }
        let mut watch = Watch::new(self.run.interrupted);
        let Grid { block, columns, .. } = self.grid;
        let (rows, blocks) = (self.grid.rows_of_groups(), self.grid.groups_of_a_row().div_ceil(block / self.grid.group));
        for (row, number) in (0..rows).flat_map(|row| (0..blocks).map(move |number| (row, number))) {
            watch.check()?;
            let start = row * columns + number * block;
            let first = self.grid.group_of(start);
            let len = if self.grid.long { 1 } else { block.min(columns - number * block) };
            let context = Context { group: len.min(self.grid.group), ..context };
            one.resize(self.rows.spec, context, len);
            scratch.resize(len, 0.0);
            self.load(start, &mut scratch);
            if let Some(policy) = self.policy {
                for group in scratch.chunks_mut(self.grid.group) {
                    clean(group, policy, largest_finite(group));
                }
            }
            match self.search {
                Some(search) => search.quantize(self.format, context, &self.run, start, &scratch, &mut one),
                None => self.format.quantize(context, &scratch, ranges.get(first).copied().flatten(), &mut one),
            };
            if let Some(group) = beyond(&one.scales) {
                return Ok(Some((first + group, "scale")));
            }
            if let Some(group) = beyond(&one.offsets) {
                return Ok(Some((first + group, "minimum")));
            }
        }
        Ok(None)
    }
}

/// The first that is infinite, else the first that is NaN: a factor of 0 makes NaN of an infinite scale that groups share.
fn beyond(values: &[f32]) -> Option<usize> {
    values.iter().position(|value| value.is_infinite()).or_else(|| values.iter().position(|value| value.is_nan()))
}

fn survey(level: Level, need: Need, x: &[f32]) -> (Option<Range>, bool) {
    let (range, fault) = level.run(RangeOf { x, need });
    (Some(range), fault)
}

fn join(need: Need, earlier: (Option<Range>, bool), later: (Option<Range>, bool)) -> (Option<Range>, bool) {
    let range = match (earlier.0, later.0) {
        (Some(a), Some(b)) => Some(a.then(b, need)),
        (a, b) => a.or(b),
    };
    (range, earlier.1 || later.1)
}

/// The largest magnitude among the finite elements of an array, 0 where there is none.
///
/// # Errors
///
/// [`Error::Cancelled`].
pub fn largest(source: &Source<'_>, run: &Run<'_>) -> Result<f32> {
    const PIECE: usize = cut::LONG;
    let all = Mutex::new(0.0f32);
    let len = source.len();
    let tasks = (0..len).step_by(PIECE).map(|start| (start, PIECE.min(len - start)));
    pool::for_each(tasks, run.threads, run.interrupted, |(start, len)| {
        let mut x = vec![0.0; len];
        source.load(run.level, start, &mut x);
        let (range, fault) = run.level.run(RangeOf { x: &x, need: Need::Magnitude });
        let largest = if fault { largest_finite(&x) } else { range.high };
        let mut all = all.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        *all = all.max(largest);
    })?;
    Ok(all.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()))
}

/// The largest magnitude among the finite elements, 0 where there is none.
fn largest_finite(x: &[f32]) -> f32 {
    x.iter().map(|x| x.abs()).filter(|x| x.is_finite()).fold(0.0, f32::max)
}

/// Replace what is not finite; `bound` is the largest finite magnitude of the group. The answer is how many were replaced.
fn clean(x: &mut [f32], policy: NonFinite, bound: f32) -> u64 {
    let mut replaced = 0;
    for x in x.iter_mut().filter(|x| !x.is_finite()) {
        let clipped = policy == NonFinite::Clip && x.is_infinite();
        *x = if clipped { bound.copysign(*x) } else { 0.0 };
        replaced += 1;
    }
    replaced
}
