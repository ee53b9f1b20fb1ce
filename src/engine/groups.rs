//! The codes, scales and offsets of whole tensors: from parts and to parts.

use super::cut::{self, Grid, Parts, PartsMut, Task};
use super::{Outcome, Run, SERIAL, once, woven};
use crate::error::Result;
use crate::formats::{self, Context, Format, Groups, Rows};
use crate::layout::Layout;
use crate::level::Level;
use crate::pool;
use crate::simd::ieee::Ieee;
use crate::spec::Extent;
use crate::tensor::Quantized;
use bytemuck::cast_slice_mut;

/// Unpack parts: one code an element in C order of the layout's shape, one scale and offset a group in C order of its
/// `groups_shape`, as they are stored: where scales have a second level, [`super::global_of`] gives it. `offsets` is empty in a
/// symmetric scheme; `codes` may be empty where only the scales are wanted, `headers` (see [`Groups::headers`]) where they are not.
///
/// # Errors
///
/// [`crate::error::Error::Cancelled`].
///
/// # Panics
///
/// Where a length is not the layout's.
pub fn unpack(
    layout: &Layout,
    parts: &[&[u8]],
    codes: &mut [i8],
    scales: &mut [f32],
    offsets: &mut [f32],
    headers: &mut [u8],
    run: &Run<'_>,
) -> Result<Outcome> {
    let _ieee = Ieee::enter();
    cut::check(layout, parts.iter().map(|part| part.len()));
    if layout.elements() == 0 {
        return Ok(Outcome::default());
    }
    let rows = AsRows::new(layout, parts, !codes.is_empty(), run)?;
    unpack_rows(&rows.layout, rows.format, &rows.parts(parts), codes, scales, offsets, headers, run)
}

/// A tensor as rows that follow each other.
pub(super) struct AsRows {
    pub(super) layout: Layout,
    pub(super) format: &'static dyn Rows,
    /// Its parts, where they are not those of the tensor.
    own: Vec<(usize, Vec<u8>)>,
}

impl AsRows {
    /// Without the codes where only the scales are wanted and it takes work to have both.
    pub(super) fn new(layout: &Layout, parts: &[&[u8]], codes: bool, run: &Run<'_>) -> Result<AsRows> {
        let format = formats::of(layout.spec);
        let (rows_layout, own) = match format {
            Format::Rows(_) => (layout.clone(), Vec::new()),
            Format::Woven(weave) => {
                let threads = if layout.elements() < SERIAL { 1 } else { run.threads };
                let whole = woven::unweave(layout, weave, parts, codes, &Run { threads, ..*run })?;
                (whole.layout, whole.parts.into_iter().enumerate().collect())
            }
            Format::Nested(nest) => {
                let plain = layout.in_format(nest.plain().spec());
                let mut scales = vec![0; plain.part_bytes(1)];
                nest.unnest(run.level, &parts[1..], cast_slice_mut(&mut scales));
                (plain, vec![(1, scales)])
            }
        };
        Ok(AsRows { layout: rows_layout, format: format.rows(), own })
    }

    /// The parts; `parts` are those of the tensor.
    pub(super) fn parts<'a>(&'a self, parts: &[&'a [u8]]) -> Vec<&'a [u8]> {
        let mut rows: Vec<&[u8]> = parts.to_vec();
        rows.resize(self.layout.spec.parts.len(), &[]);
        for (index, part) in &self.own {
            rows[*index] = part;
        }
        rows
    }
}

#[expect(clippy::too_many_arguments, reason = "those of unpack, and the format")]
fn unpack_rows(
    layout: &Layout,
    format: &'static dyn Rows,
    parts: &[&[u8]],
    codes: &mut [i8],
    scales: &mut [f32],
    offsets: &mut [f32],
    headers: &mut [u8],
    run: &Run<'_>,
) -> Result<Outcome> {
    let threads = if layout.elements() < SERIAL { 1 } else { run.threads };
    let mut rest = cut::borrow(parts);
    let grid = Grid::new(layout, threads);
    // Codes that lie apart need not be touched where only the scales are wanted.
    let apart = matches!(layout.spec.parts[0].extent, Extent::Codes | Extent::GroupCodes);
    let skips_codes = apart && codes.is_empty();
    let bytes = |len: usize| {
        let mut bytes = grid.bytes(layout, len);
        bytes[0] = if skips_codes { 0 } else { bytes[0] };
        bytes
    };
    if grid.long {
        let all = long_scales(layout, &grid, format, run.level, &mut rest);
        scales.copy_from_slice(&all.scales);
        offsets.copy_from_slice(&all.offsets);
        if codes.is_empty() {
            return Ok(Outcome::default());
        }
    }
    let (wants_codes, has_offsets, wants_headers) = (!codes.is_empty(), layout.spec.has_offsets(), !headers.is_empty());
    let (mut codes, mut scales, mut offsets, mut headers) = (codes, scales, offsets, headers);
    let tasks = grid.tasks().map(|(start, len)| {
        let groups = if grid.long { 0 } else { grid.groups_of(len) };
        let share = Share {
            codes: take(&mut codes, if wants_codes { len } else { 0 }),
            scales: take(&mut scales, groups),
            offsets: take(&mut offsets, if has_offsets { groups } else { 0 }),
            headers: take(&mut headers, if wants_headers { layout.spec.header_bytes(len) } else { 0 }),
        };
        (Task { start, len, parts: cut::split(&mut rest, bytes(len)) }, share)
    });
    let pool_failed = pool::for_each(tasks, threads, run.interrupted, |(mut task, mut share)| {
        let mut tile = Groups::default();
        for (_, len) in grid.segments(task.start, task.len).flat_map(|(start, len)| grid.spans(start, len, cut::SPAN)) {
            let parts = cut::split(&mut task.parts, bytes(len));
            let context = Context {
                level: run.level,
                group: if grid.long { len } else { grid.group },
                scale_dtype: layout.scale_dtype,
                global: 1.0,
                stream: false,
            };
            tile.resize(layout.spec, context, len);
            if skips_codes {
                tile.codes.clear();
            }
            format.unpack(context, &parts[..layout.spec.parts.len()], &mut tile);
            if wants_codes {
                take(&mut share.codes, len).copy_from_slice(&tile.codes);
            }
            if wants_headers {
                take(&mut share.headers, tile.headers.len()).copy_from_slice(&tile.headers);
            }
            if !grid.long {
                take(&mut share.scales, tile.scales.len()).copy_from_slice(&tile.scales);
                take(&mut share.offsets, tile.offsets.len()).copy_from_slice(&tile.offsets);
            }
        }
    })?;
    Ok(Outcome { replaced: 0, pool_failed })
}

/// What a task of [`unpack`] writes.
struct Share<'a> {
    codes: &'a mut [i8],
    scales: &'a mut [f32],
    offsets: &'a mut [f32],
    headers: &'a mut [u8],
}

/// Cut the first `count` off a slice.
fn take<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    let (first, others) = std::mem::take(rest).split_at_mut(count);
    *rest = others;
    first
}

/// The scales and offsets of long groups, from the parts that hold one element a group; what is left of `rest` is the codes.
pub(super) fn long_scales(layout: &Layout, grid: &Grid, format: &dyn Rows, level: Level, rest: &mut Parts<'_>) -> Groups {
    let context = Context { level, group: 1, scale_dtype: layout.scale_dtype, global: 1.0, stream: false };
    let mut all = Groups::default();
    let mut row = Groups::default();
    row.resize(layout.spec, context, grid.groups_of_a_row());
    row.codes.clear();
    for _ in 0..grid.rows_of_groups() {
        let parts = cut::split(rest, grid.group_bytes(layout));
        format.unpack(context, &parts[..layout.spec.parts.len()], &mut row);
        all.scales.extend(&row.scales);
        all.offsets.extend(&row.offsets);
    }
    all
}

/// Write parts from codes, scales and offsets, in the order of [`unpack`], and the second level of the scales.
///
/// # Errors
///
/// [`crate::error::Error::Cancelled`].
///
/// # Panics
///
/// Where a length is not the layout's.
pub fn pack_groups(layout: &Layout, all: &Groups, global: f32, parts: &mut [&mut [u8]], run: &Run<'_>) -> Result<Outcome> {
    pack_codes(layout, all, global, |start, codes| codes.copy_from_slice(&all.codes[start..][..codes.len()]), parts, run)
}

/// As [`pack_groups`], with codes that `read` gives from an element on.
pub(super) fn pack_codes(
    layout: &Layout,
    all: &Groups,
    global: f32,
    read: impl Fn(usize, &mut [i8]) + Sync,
    parts: &mut [&mut [u8]],
    run: &Run<'_>,
) -> Result<Outcome> {
    let _ieee = Ieee::enter();
    cut::check(layout, parts.iter().map(|part| part.len()));
    if layout.elements() == 0 {
        return Ok(Outcome::default());
    }
    let outcome = match formats::of(layout.spec) {
        Format::Rows(format) => pack_rows(layout, format, all, read, parts, run)?,
        Format::Woven(weave) => {
            let threads = if layout.elements() < SERIAL { 1 } else { run.threads };
            let mut whole = Quantized::zeroed(woven::rows_of(layout, weave))?;
            let mut slices = woven::slices(&mut whole.parts);
            let outcome = pack_rows(&whole.layout, weave.rows(), all, read, &mut slices, run)?;
            woven::weave_all(layout, weave, &whole.views(), parts, &Run { threads, ..*run })?;
            outcome
        }
        Format::Nested(nest) => {
            let plain = layout.in_format(nest.plain().spec());
            let [codes, nested @ ..] = parts else { unreachable!("the spec names codes first") };
            let mut scales = vec![0; plain.part_bytes(1)];
            let outcome = pack_rows(&plain, nest.plain(), all, read, &mut [codes, &mut scales], run)?;
            nest.nest(run.level, &all.scales, nested);
            outcome
        }
    };
    once::write(layout, global, parts);
    Ok(outcome)
}

fn pack_rows(
    layout: &Layout,
    format: &'static dyn Rows,
    all: &Groups,
    read: impl Fn(usize, &mut [i8]) + Sync,
    parts: &mut [&mut [u8]],
    run: &Run<'_>,
) -> Result<Outcome> {
    let threads = if layout.elements() < SERIAL { 1 } else { run.threads };
    let mut rest = cut::borrow_mut(parts);
    let grid = Grid::new(layout, threads);
    if grid.long {
        pack_long_scales(layout, &grid, format, run.level, all, &mut rest);
    }
    let tasks = grid.tasks().map(|(start, len)| Task { start, len, parts: cut::split_mut(&mut rest, grid.bytes(layout, len)) });
    let pool_failed = pool::for_each(tasks, threads, run.interrupted, |mut task| {
        let mut tile = Groups::default();
        for (start, len) in grid.segments(task.start, task.len).flat_map(|(start, len)| grid.spans(start, len, cut::SPAN)) {
            let mut parts = cut::split_mut(&mut task.parts, grid.bytes(layout, len));
            let group = if grid.long { len } else { grid.group };
            let context = Context { level: run.level, group, scale_dtype: layout.scale_dtype, global: 1.0, stream: false };
            tile.resize(layout.spec, context, len);
            read(start, &mut tile.codes);
            if !grid.long {
                let group = grid.group_of(start);
                let groups = tile.scales.len();
                tile.scales.copy_from_slice(&all.scales[group..][..groups]);
                if layout.spec.has_offsets() {
                    tile.offsets.copy_from_slice(&all.offsets[group..][..groups]);
                }
                let headers = tile.headers.len();
                tile.headers.copy_from_slice(&all.headers[layout.spec.header_bytes(start)..][..headers]);
            }
            format.pack(context, &tile, &mut parts[..layout.spec.parts.len()]);
        }
    })?;
    Ok(Outcome { replaced: 0, pool_failed })
}

/// The codes of any elements of a tensor, from those parts of it that hold codes.
pub(super) struct Codes<'a> {
    layout: &'a Layout,
    format: &'static dyn Rows,
    level: Level,
    parts: Parts<'a>,
    group: usize,
}

impl<'a> Codes<'a> {
    pub(super) fn new(layout: &'a Layout, format: &'static dyn Rows, parts: &[&'a [u8]], level: Level) -> Self {
        let long = Grid::new(layout, 1).long;
        let group = if long { usize::MAX } else { layout.group_elements() };
        Codes { layout, format, level, parts: cut::borrow(parts), group }
    }

    /// Read as many codes as `codes` holds from element `start` on.
    pub(super) fn read(&self, start: usize, codes: &mut [i8]) {
        let columns = self.layout.columns();
        let mut tile = Groups::default();
        let (mut start, mut rest) = (start, codes);
        while !rest.is_empty() {
            let (row, column) = (start / columns, start % columns);
            let len = (columns - column).min(rest.len());
            // The halves of HQQ begin where its rows do not: in the middle of a byte there is a code before.
            let before = column % 2;
            let count = before + len;
            let group = self.group.min(count);
            let context = Context { level: self.level, group, scale_dtype: self.layout.scale_dtype, global: 1.0, stream: false };
            tile.resize(self.layout.spec, context, count);
            let parts: Parts<'a> = std::array::from_fn(|index| {
                let bytes = |elements: usize| self.layout.code_bytes(index, elements);
                let first = row * bytes(columns) + bytes(column - before);
                &self.parts[index][first..first + bytes(count)]
            });
            self.format.unpack(context, &parts[..self.layout.spec.parts.len()], &mut tile);
            take(&mut rest, len).copy_from_slice(&tile.codes[before..]);
            start += len;
        }
    }
}

/// The parts that hold one element a group, of one group among `all`; the others are empty.
pub(super) fn one_group(layout: &Layout, format: &dyn Rows, level: Level, all: &Groups, index: usize) -> [Vec<u8>; cut::MAX_PARTS] {
    let of_one = |values: &[f32]| values.get(index).copied().into_iter().collect();
    let one = Groups { codes: Vec::new(), scales: of_one(&all.scales), offsets: of_one(&all.offsets), headers: Vec::new() };
    let mut parts: [Vec<u8>; cut::MAX_PARTS] = std::array::from_fn(|index| match layout.spec.parts.get(index).map(|part| part.extent) {
        Some(Extent::Groups) => vec![0; layout.part_item_size(index)],
        Some(Extent::GroupPairs) => vec![0],
        _ => Vec::new(),
    });
    let context = Context { level, group: 1, scale_dtype: layout.scale_dtype, global: 1.0, stream: false };
    let mut slices = parts.each_mut().map(Vec::as_mut_slice);
    format.pack(context, &one, &mut slices[..layout.spec.parts.len()]);
    parts
}

/// Write the parts that hold one element a group, of long groups; what is left of `rest` is the codes.
pub(super) fn pack_long_scales(layout: &Layout, grid: &Grid, format: &dyn Rows, level: Level, all: &Groups, rest: &mut PartsMut<'_>) {
    let context = Context { level, group: 1, scale_dtype: layout.scale_dtype, global: 1.0, stream: false };
    let groups = grid.groups_of_a_row();
    for row in 0..grid.rows_of_groups() {
        let of_row = |values: &[f32]| values.get(row * groups..(row + 1) * groups).unwrap_or_default().to_vec();
        let row = Groups { codes: Vec::new(), scales: of_row(&all.scales), offsets: of_row(&all.offsets), headers: Vec::new() };
        let mut parts = cut::split_mut(rest, grid.group_bytes(layout));
        format.pack(context, &row, &mut parts[..layout.spec.parts.len()]);
    }
}
