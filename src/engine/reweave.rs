//! From the parts of one layout to those of another, tile by tile: what a tile holds stays in a core's own cache on its way.
//!
//! ```text
//! parts -> rows of the one format -> scales and offsets as floats, checked and converted -> rows of the other -> parts
//! ```
//!
//! Where both have their codes two a byte, these never lie apart: nibbles become other nibbles. Where both are layouts of the turned
//! matrix nothing is turned.

use super::cut::{self, Parts, PartsMut};
use super::woven::{self, Scratch, Tiles, row_bytes, rows_of};
use super::{Outcome, Run, SERIAL};
use crate::error::Result;
use crate::formats::{self, Context, Format, Groups, Turned, Weave};
use crate::kernels::nibbles::{Pack, Unpack};
use crate::kernels::words::Words;
use crate::layout::Layout;
use crate::pool;
use crate::spec::{Extent, GroupSize};
use std::sync::atomic::{AtomicBool, Ordering};

/// Elements of a row at most: a tile has 16 whole rows.
const MOST_COLUMNS: usize = 256 * 1024;

/// Elements between rows and rows at once: their codes, a byte each, stay in the first cache.
const SPAN: usize = 16 * 1024;

/// One side of a conversion.
pub(super) struct Side<'a> {
    layout: &'a Layout,
    format: Format,
    /// The tensor as rows that follow each other.
    rows: Layout,
}

impl<'a> Side<'a> {
    /// Of a layout of whole rows whose groups stand alone; others have no tiles that can be converted one by one.
    pub(super) fn new(layout: &'a Layout) -> Option<Self> {
        let (spec, format) = (layout.spec, formats::of(layout.spec));
        let rows = match format {
            Format::Rows(_) => layout.clone(),
            Format::Woven(weave) => rows_of(layout, weave),
            Format::Nested(_) => return None,
        };
        let stands_alone = !spec.is_flat() && spec.global.is_none() && spec.header_bytes(layout.elements()) == 0;
        let is_whole = layout.group_size != GroupSize::Tensor && rows.shape == layout.shape && layout.columns() <= MOST_COLUMNS;
        (stands_alone && is_whole).then_some(Side { layout, format, rows })
    }

    fn weave(&self) -> Option<&'static dyn Weave> {
        if let Format::Woven(weave) = self.format { Some(weave) } else { None }
    }

    /// Where its parts are those of the turned matrix, in whole words.
    fn turned(&self) -> Option<&'static dyn Turned> {
        self.weave()?.turned().filter(|_| self.rows.rows().is_multiple_of(8))
    }

    fn has(&self, extents: &[Extent]) -> bool {
        self.layout.spec.parts.iter().any(|part| extents.contains(&part.extent))
    }

    /// Whether its codes, as rows, are a part of their own, two a byte.
    fn has_plain_codes(&self) -> bool {
        let (group, columns) = (self.rows.group_elements(), self.rows.columns());
        match self.rows.spec.parts[0].extent {
            Extent::Codes => true,
            Extent::GroupCodes => group.is_multiple_of(2) && columns.is_multiple_of(group),
            _ => false,
        }
    }

    /// Whether its codes are rows that follow each other, though other parts are woven.
    fn has_codes_in_place(&self) -> bool {
        let is_rows = self.layout.spec.parts[0].extent == Extent::Codes && self.layout.part_bytes(0) == self.rows.part_bytes(0);
        self.weave().is_some() && is_rows
    }

    /// Bytes of each part of the rows for so many elements of a row.
    fn bytes(&self, len: usize) -> [usize; cut::MAX_PARTS] {
        std::array::from_fn(|index| if index < self.rows.spec.parts.len() { row_bytes(&self.rows, index, len) } else { 0 })
    }

    fn threads(&self, run: &Run<'_>) -> usize {
        if self.layout.elements() < SERIAL { 1 } else { run.threads }
    }

    fn context(&self, run: &Run<'_>) -> Context {
        let (group, scale_dtype) = (self.rows.group_elements(), self.rows.scale_dtype);
        Context { level: run.level, group, scale_dtype, global: 1.0, stream: false }
    }
}

/// Convert tile by tile; `shift` is added to every code, `convert` turns scales and offsets into those of the target. `None`
/// where it could not for some of them: then `out` holds nothing of use.
pub(super) fn reweave(
    (from, parts): (&Side<'_>, &[&[u8]]),
    (to, out): (&Side<'_>, &mut [&mut [u8]]),
    shift: i8,
    convert: impl Fn(&mut Groups) -> bool + Sync,
    run: &Run<'_>,
) -> Result<Option<Outcome>> {
    let threads = from.threads(run);
    let (from_context, to_context) = (from.context(run), to.context(run));
    let nibbles = (from.has_plain_codes() && to.has_plain_codes()).then(|| Nibbles::between(from, to, shift, from_context, to_context));
    let flipped = nibbles.as_ref().and_then(|nibbles| nibbles.flipped);
    if let (Some(source), Some(target), Some(flip)) = (from.turned(), to.turned(), flipped) {
        return stay_turned((from, source, parts), (to, target, out), flip, convert, run);
    }
    // The tiles know which of the two cannot be cut between any rows.
    let cut_by = if from.has(&[Extent::Transposed, Extent::GroupPairsTransposed]) { from } else { to };
    let tiles = Tiles::of_rows(cut_by.layout, cut_by.rows.clone(), threads, true);
    let columns = from.layout.columns();
    let (group, has_pairs) = (from_context.group, from.has(&[Extent::GroupPairs]) || to.has(&[Extent::GroupPairs]));
    // Rows that follow each other without padding on both sides are one.
    let pairs = if has_pairs { 2 } else { 1 };
    let in_one = columns.is_multiple_of(2) && columns.is_multiple_of(pairs * group);
    let unit = group * if group.is_multiple_of(2) { pairs } else { 2 };
    let span = if nibbles.is_some() { usize::MAX } else { (SPAN / unit).max(1) * unit };

    let (mut from_blocks, mut from_rest) = match from.weave() {
        Some(_) => (tiles.cut(from.layout, parts), Parts::default()),
        None => (Vec::new(), cut::borrow(parts)),
    };
    let (mut to_blocks, mut to_rest) = match to.weave() {
        Some(_) => (tiles.cut_mut(to.layout, out), PartsMut::default()),
        None => (Vec::new(), cut::borrow_mut(out)),
    };
    let share = |side: &Side<'_>, rows: usize| side.bytes(columns).map(|bytes| if side.weave().is_some() { 0 } else { rows * bytes });
    let tasks = tiles.places().map(|place| {
        let (source, target) = (woven::next(&mut from_blocks), woven::next_mut(&mut to_blocks));
        let from_rows = cut::split(&mut from_rest, share(from, place.tile.rows));
        (place.tile, source, from_rows, target, cut::split_mut(&mut to_rest, share(to, place.tile.rows)))
    });
    let failed = AtomicBool::new(false);
    let pool_failed = pool::for_each(tasks, threads, run.interrupted, |(tile, source, from_rows, mut target, to_rows)| {
        if failed.load(Ordering::Relaxed) {
            return;
        }
        let unwoven = from.weave().map(|weave| {
            let mut rows = Scratch::new(&from.rows, tile, !from.has_codes_in_place());
            weave.unweave(from_context, tile, &source, &mut rows.slices());
            rows
        });
        let mut woven = to.weave().map(|_| Scratch::new(&to.rows, tile, !to.has_codes_in_place()));
        {
            let mut from_rows = unwoven.as_ref().map_or(from_rows, |rows| cut::borrow(&rows.views()));
            let mut slices = woven.as_mut().map(Scratch::slices);
            let mut to_rows = slices.as_mut().map_or(to_rows, |rows| cut::borrow_mut(rows));
            if from.has_codes_in_place() {
                from_rows[0] = source[0].bytes().expect("whole rows");
            }
            if to.has_codes_in_place() {
                to_rows[0] = target[0].bytes().expect("whole rows");
            }
            let mut groups = Groups::default();
            let (runs, run_len) = if in_one { (1, tile.rows * columns) } else { (tile.rows, columns) };
            let spans = (0..runs).flat_map(|_| (0..run_len).step_by(span).map(|start| span.min(run_len - start)));
            for len in spans {
                let (mut source, mut target) = (cut::split(&mut from_rows, from.bytes(len)), cut::split_mut(&mut to_rows, to.bytes(len)));
                groups.resize_scales(from.rows.spec, from_context, len);
                if let Some(nibbles) = &nibbles {
                    nibbles.apply(from_context, std::mem::take(&mut source[0]), std::mem::take(&mut target[0]), len);
                } else {
                    groups.codes.resize(len, 0);
                }
                from.format.rows().unpack(from_context, &source[..from.rows.spec.parts.len()], &mut groups);
                if shift != 0 {
                    // None overflows: codes are a nibble's, and a check would keep this loop from being done many at a time.
                    groups.codes.iter_mut().for_each(|code| *code = code.wrapping_add(shift));
                }
                if !convert(&mut groups) {
                    return failed.store(true, Ordering::Relaxed);
                }
                to.format.rows().pack(to_context, &groups, &mut target[..to.rows.spec.parts.len()]);
            }
        }
        if let (Some(weave), Some(rows)) = (to.weave(), woven) {
            weave.weave(to_context, tile, &rows.views(), &mut target);
        }
    })?;
    Ok((!failed.into_inner()).then_some(Outcome { replaced: 0, pool_failed }))
}

/// The same of two layouts of the turned matrix: codes word by word, scales and offsets one row of it after the other.
fn stay_turned(
    (from, source, parts): (&Side<'_>, &dyn Turned, &[&[u8]]),
    (to, target, out): (&Side<'_>, &dyn Turned, &mut [&mut [u8]]),
    flip: u8,
    convert: impl Fn(&mut Groups) -> bool + Sync,
    run: &Run<'_>,
) -> Result<Option<Outcome>> {
    let threads = from.threads(run);
    let (from_context, to_context) = (from.context(run), to.context(run));
    let tiles = Tiles::bands(from.layout, from.rows.clone(), threads);
    let (mut from_blocks, mut to_blocks) = (tiles.cut(from.layout, parts), tiles.cut_mut(to.layout, out));
    let tasks = tiles.places().map(|place| (place.tile, woven::next(&mut from_blocks), woven::next_mut(&mut to_blocks)));
    let failed = AtomicBool::new(false);
    let pool_failed = pool::for_each(tasks, threads, run.interrupted, |(tile, parts, mut out)| {
        if failed.load(Ordering::Relaxed) {
            return;
        }
        let mut groups = Groups::default();
        for row in 0..from_context.groups(tile.columns) {
            groups.resize_scales(from.rows.spec, Context { group: 1, ..from_context }, tile.rows);
            source.unpack_row(from_context, &parts, row, &mut groups);
            if !convert(&mut groups) {
                return failed.store(true, Ordering::Relaxed);
            }
            target.pack_row(to_context, &groups, &mut out, row);
        }
        run.level.run(Words { from: parts[0], from_kept: source.kept(), to: out.swap_remove(0), to_kept: target.kept(), flip });
    })?;
    Ok((!failed.into_inner()).then_some(Outcome { replaced: 0, pool_failed }))
}

/// What becomes of stored nibbles.
struct Nibbles {
    /// The new nibble for each.
    table: [u8; 16],
    /// What they are all combined with by exclusive or, where that is all.
    flipped: Option<u8>,
}

impl Nibbles {
    /// Found out by unpacking all sixteen as the one format does and packing them as the other does.
    fn between(from: &Side<'_>, to: &Side<'_>, shift: i8, from_context: Context, to_context: Context) -> Self {
        let packed: [u8; 8] = std::array::from_fn(|byte| (0x11 * 2 * byte + 0x10) as u8);
        let mut all = Groups { codes: vec![0; 16], ..Groups::default() };
        from.format.rows().unpack(Context { group: 16, ..from_context }, &[&packed, &[]], &mut all);
        all.codes.iter_mut().for_each(|code| *code += shift);
        let mut stored = [0; 8];
        to.format.rows().pack(Context { group: 16, ..to_context }, &all, &mut [&mut stored, &mut []]);
        let table: [u8; 16] = std::array::from_fn(|nibble| stored[nibble / 2] >> (4 * (nibble % 2)) & 15);
        let flipped = Some(table[0]).filter(|flip| (0..16).all(|nibble| table[usize::from(nibble)] == nibble ^ flip));
        Nibbles { table, flipped }
    }

    /// The nibbles of `len` codes.
    fn apply(&self, context: Context, from: &[u8], to: &mut [u8], len: usize) {
        if let Some(flip) = self.flipped {
            to.iter_mut().zip(from).for_each(|(to, from)| *to = from ^ (flip * 0x11));
        } else {
            let mut codes = vec![0; 2 * from.len()];
            context.level.run(Unpack { packed: from, table: &self.table, codes: &mut codes });
            context.level.run(Pack { codes: &codes, bias: 0, packed: to });
        }
        if len % 2 == 1
            && let Some(last) = to.last_mut()
        {
            // The nibble that fills a row up is 0 whatever the codes are.
            *last &= 15;
        }
    }
}
