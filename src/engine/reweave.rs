//! From the parts of one layout to those of another, tile by tile: what a tile holds stays in a core's own cache on its way.
//!
//! ```text
//! parts -> rows of the one format -> scales and offsets as floats, checked and converted -> rows of the other -> parts
//! ```
//!
//! Where both have their codes two a byte, these never lie apart: nibbles become other nibbles. Where one is a layout of the turned
//! matrix they are turned where they lie, where both are, not at all.

use super::cut::{self, Parts, PartsMut};
use super::woven::{self, Scratch, Tiles, row_bytes, rows_of};
use super::{Outcome, Run, SERIAL, STREAM};
use crate::error::Result;
use crate::formats::{self, Context, Format, Groups, Turned, Weave};
use crate::kernels::blocks::{Block, BlockMut};
use crate::kernels::halves::{self, FromBlocks, ToBlocks};
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

    /// Whether its codes are rows that follow each other without padding, two a byte.
    fn has_rows_in_place(&self) -> bool {
        let width = self.rows.columns().div_ceil(2);
        self.has_plain_codes() && (self.weave().is_none() || self.has_codes_in_place()) && self.bytes(self.rows.columns())[0] == width
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

    fn part_bytes(&self) -> usize {
        (0..self.layout.spec.parts.len()).map(|index| self.layout.part_bytes(index)).sum()
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
    let nibbles = Nibbles::between(from, to, shift, from_context, to_context);
    let flipped = nibbles.as_ref().and_then(|nibbles| nibbles.flipped);
    if let (Some(source), Some(target), Some(flip)) = (from.turned(), to.turned(), flipped) {
        return stay_turned((from, source, parts), (to, target, out), flip, convert, run);
    }
    // Codes that are turned where they lie, the ones of the source or those of the target.
    let turns = flipped.and_then(|flip| Some((to.turned().filter(|_| from.has_rows_in_place())?, flip)));
    let turns_back = flipped.and_then(|flip| Some((from.turned().filter(|_| to.has_rows_in_place())?, flip)));
    let turned = turns.is_some() || turns_back.is_some();
    // The tiles know which of the two cannot be cut between any rows.
    let cut_by = if from.has(&[Extent::Transposed, Extent::GroupPairsTransposed]) { from } else { to };
    let tiles = match (to.turned(), from.turned()) {
        (Some(_), _) => Tiles::tall(to.layout, to.rows.clone(), threads, true, out[0]),
        (_, Some(_)) => Tiles::tall(from.layout, from.rows.clone(), threads, true, parts[0]),
        _ => Tiles::of_rows(cut_by.layout, cut_by.rows.clone(), threads, true),
    };
    let columns = from.layout.columns();
    let bytes_of = |side: &Side<'_>, len| {
        let [codes, others @ ..] = side.bytes(len);
        let [first, second, third] = others;
        [if turned { 0 } else { codes }, first, second, third]
    };
    let stream = from.part_bytes() + to.part_bytes() > STREAM;
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
    let pool_failed = pool::for_each(tasks, threads, run.interrupted, |(tile, source, mut from_rows, mut target, mut to_rows)| {
        if failed.load(Ordering::Relaxed) {
            return;
        }
        let width = columns.div_ceil(2);
        if let Some((weave, flip)) = turns {
            let codes = if from.has_codes_in_place() { source[0].bytes().expect("whole rows") } else { std::mem::take(&mut from_rows[0]) };
            let (rows, bytes) = (target[0].rows(), target[0].width());
            weave.turn(Context { stream, ..to_context }, Block::whole(codes, width), flip, target[0].part(0..rows, 0..bytes));
        }
        if let Some((weave, flip)) = turns_back {
            let in_place = to.has_codes_in_place();
            let codes = if in_place { target[0].bytes().expect("whole rows") } else { std::mem::take(&mut to_rows[0]) };
            weave.turn_back(Context { stream, ..from_context }, source[0], flip, BlockMut::whole(codes, width));
        }
        let unwoven = from.weave().map(|weave| {
            let mut rows = Scratch::new(&from.rows, tile, !turned && !from.has_codes_in_place());
            weave.unweave(from_context, tile, &source, &mut rows.slices());
            rows
        });
        let mut woven = to.weave().map(|_| Scratch::new(&to.rows, tile, !turned && !to.has_codes_in_place()));
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
                let (mut source, mut target) =
                    (cut::split(&mut from_rows, bytes_of(from, len)), cut::split_mut(&mut to_rows, bytes_of(to, len)));
                groups.resize_scales(from.rows.spec, from_context, len);
                match &nibbles {
                    Some(nibbles) if !turned => nibbles.apply(from_context, &mut source[0], &mut target[0], len),
                    Some(_) => {}
                    None => groups.codes.resize(len, 0),
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
            weave.weave(Context { stream, ..to_context }, tile, &rows.views(), &mut target);
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
    /// Bytes of the headers of both sides, where they are blocks.
    headers: [Option<usize>; 2],
}

impl Nibbles {
    /// Where both sides have their codes two a byte.
    fn between(from: &Side<'_>, to: &Side<'_>, shift: i8, from_context: Context, to_context: Context) -> Option<Self> {
        let headers = [from, to].map(|side| side.format.rows().halves_after());
        let codes = codes_of_nibbles(from, from_context)?.map(|code| code + shift);
        let wanted = codes_of_nibbles(to, to_context)?;
        let table = codes.map(|code| wanted.iter().position(|&wanted| wanted == code).map_or(0, |nibble| nibble as u8));
        let flipped = Some(table[0]).filter(|flip| (0..16).all(|nibble| table[usize::from(nibble)] == nibble ^ flip));
        let has_kernel = match headers {
            [None, None] => true,
            [Some(_), Some(_)] => false,
            _ => flipped.is_some(),
        };
        has_kernel.then_some(Nibbles { table, flipped, headers })
    }

    /// The nibbles of `len` codes; what is left of `from` and `to` is what else they hold.
    fn apply(&self, context: Context, from: &mut &[u8], to: &mut &mut [u8], len: usize) {
        match (self.headers, self.flipped) {
            ([Some(header), _], Some(flip)) => {
                let packed = std::mem::take(to);
                context.level.run(FromBlocks { blocks: from, header, flip, packed });
            }
            ([_, Some(header)], Some(flip)) => {
                let packed = std::mem::take(from);
                context.level.run(ToBlocks { packed, flip, header, blocks: to });
            }
            (_, flipped) => self.apply_in_order(context, flipped, std::mem::take(from), std::mem::take(to), len),
        }
    }

    fn apply_in_order(&self, context: Context, flipped: Option<u8>, from: &[u8], to: &mut [u8], len: usize) {
        if let Some(flip) = flipped {
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

/// The code that each nibble stands for, where codes are stored two a byte: found out by unpacking all sixteen.
fn codes_of_nibbles(side: &Side<'_>, context: Context) -> Option<[i8; 16]> {
    let (rows, context) = (side.format.rows(), Context { group: halves::CODES, ..context });
    let mut all = Groups { codes: vec![0; halves::CODES], ..Groups::default() };
    if let Some(header) = rows.halves_after() {
        let mut block = vec![0; header];
        block.extend((0..16).map(|nibble| nibble * 0x11));
        rows.unpack(context, &[&block], &mut all);
    } else if side.has_plain_codes() {
        let packed: [u8; halves::BYTES] = std::array::from_fn(|byte| 0x22 * (byte % 8) as u8 + 0x10);
        rows.unpack(context, &[&packed, &[]], &mut all);
    } else {
        return None;
    }
    all.codes.first_chunk().copied()
}
