//! The layouts of matrices that are stored [in, out]: columns of W (N, K) are rows of the parts.
//!
//! ```text
//! codes        words of 8 along K        (K / 8, N)     the words of the packed rows, turned
//!              words of 8 along N        (K, N / 8)     in the order of AWQ
//!              two a byte along N        K * N / 2      without padding between rows
//! scales       one a group               (G, N)
//! zero points  words of 8 along N, or two a byte along N, in the order of the codes; stored less [`Transposed::ZERO`]
//! ```

use super::planar::Planar;
use super::{Context, Groups, Rows, Tile, Turned, Weave};
use crate::kernels::blocks::{Block, BlockMut};
use crate::kernels::encode::Rule;
use crate::kernels::nibbles::{Pack, UNSIGNED, Unpack};
use crate::kernels::stream::Fence;
use crate::kernels::transpose::{Codes, Items, Nibbles, Order, STAGE, Unit};
use crate::kernels::words::{Kept, Words};
use crate::spec::{Extent, Spec};
use std::cell::RefCell;

/// A format of these layouts: its facts, and its numerics as rows. `ZERO` is taken from zero points where they are stored.
pub(super) struct Transposed<R: 'static, const ZERO: u8 = 0> {
    spec: &'static Spec,
    rows: &'static Planar<R>,
}

impl<R: Rule, const ZERO: u8> Transposed<R, ZERO> {
    /// `rows` has the same numerics: codes, scales and, if there are zero points, those in a byte each.
    pub(super) const fn new(spec: &'static Spec, rows: &'static Planar<R>) -> Self {
        Transposed { spec, rows }
    }

    fn order(&self) -> Order {
        if self.spec.parts[0].extent == Extent::WordsAcrossRows { Order::Awq } else { Order::Natural }
    }
}

impl<R: Rule, const ZERO: u8> Weave for Transposed<R, ZERO> {
    fn spec(&self) -> &'static Spec {
        self.spec
    }

    fn rows(&self) -> &'static dyn Rows {
        self.rows
    }

    fn weave(&self, context: Context, tile: Tile, rows: &[&[u8]], parts: &mut [BlockMut<'_>]) {
        let groups = context.groups(tile.columns);
        for (index, part) in self.spec.parts.iter().enumerate() {
            let to = parts[index].part(0..parts[index].rows(), 0..parts[index].width());
            match part.extent {
                _ if rows[0].is_empty() && index == 0 => {}
                Extent::WordsAlongColumns | Extent::WordsAcrossRows | Extent::Transposed
                    if context.stream && tile.rows.is_multiple_of(2) =>
                {
                    self.turn(context, Block::whole(rows[0], tile.columns.div_ceil(2)), 0, to);
                }
                Extent::WordsAlongColumns => {
                    context.level.run(Items { size: 4, from: Block::whole(rows[0], tile.columns / 2), to });
                }
                Extent::WordsAcrossRows | Extent::Transposed => {
                    self.turn_nibbles(context, Block::whole(rows[0], tile.columns.div_ceil(2)), tile.columns, to)
                }
                Extent::GroupsTransposed => {
                    let size = context.scale_dtype.size();
                    context.level.run(Items { size, from: Block::whole(rows[1], groups * size), to });
                }
                Extent::GroupWordsTransposed | Extent::GroupPairsTransposed => {
                    let width = groups.div_ceil(2);
                    let mut packed = vec![0; tile.rows * width];
                    for (zero_points, packed) in rows[2].chunks_exact(groups).zip(packed.chunks_exact_mut(width)) {
                        pack_zero_points::<ZERO>(context, zero_points, packed);
                    }
                    self.turn_nibbles(context, Block::whole(&packed, width), groups, to);
                }
                _ => {}
            }
        }
    }

    fn unweave(&self, context: Context, tile: Tile, parts: &[Block<'_>], rows: &mut [&mut [u8]]) {
        let groups = context.groups(tile.columns);
        for (index, (part, from)) in self.spec.parts.iter().zip(parts).enumerate() {
            match part.extent {
                _ if rows[0].is_empty() && index == 0 => {}
                Extent::WordsAlongColumns => {
                    context.level.run(Items { size: 4, from: *from, to: BlockMut::whole(rows[0], tile.columns / 2) });
                }
                Extent::WordsAcrossRows | Extent::Transposed => {
                    self.turn_nibbles_back(context, *from, tile.columns, BlockMut::whole(rows[0], tile.columns.div_ceil(2)));
                }
                Extent::GroupsTransposed => {
                    let size = context.scale_dtype.size();
                    context.level.run(Items { size, from: *from, to: BlockMut::whole(rows[1], groups * size) });
                }
                Extent::GroupWordsTransposed | Extent::GroupPairsTransposed => {
                    let width = groups.div_ceil(2);
                    let mut packed = vec![0; tile.rows * width];
                    self.turn_nibbles_back(context, *from, groups, BlockMut::whole(&mut packed, width));
                    for (zero_points, packed) in rows[2].chunks_exact_mut(groups).zip(packed.chunks_exact(width)) {
                        unpack_zero_points::<ZERO>(context, packed, zero_points);
                    }
                }
                _ => {}
            }
        }
    }

    fn turned(&self) -> Option<&dyn Turned> {
        Some(self)
    }
}

impl<R: Rule, const ZERO: u8> Turned for Transposed<R, ZERO> {
    fn kept(&self) -> Kept {
        if self.spec.parts[0].extent == Extent::WordsAlongColumns { Kept::Down } else { Kept::Across(self.order()) }
    }

    fn turn(&self, context: Context, rows: Block<'_>, flip: u8, part: BlockMut<'_>) {
        let unit = if self.kept() == Kept::Down { Unit::Words } else { Unit::Nibbles([Order::Natural, self.order()]) };
        turn_codes(context, rows, unit, flip, part);
    }

    fn turn_back(&self, context: Context, part: Block<'_>, flip: u8, rows: BlockMut<'_>) {
        let unit = if self.kept() == Kept::Down { Unit::Words } else { Unit::Nibbles([self.order(), Order::Natural]) };
        turn_codes(context, part, unit, flip, rows);
    }

    fn unpack_row(&self, context: Context, parts: &[Block<'_>], row: usize, groups: &mut Groups) {
        let (mut scales, mut zero_points) = (&[][..], Vec::new());
        for (part, from) in self.spec.parts.iter().zip(parts) {
            match part.extent {
                Extent::GroupsTransposed => scales = from.row(row),
                Extent::GroupWordsTransposed | Extent::GroupPairsTransposed => {
                    let mut packed = vec![0; from.width()];
                    let (from, to) = (from.part(row..row + 1, 0..from.width()), BlockMut::whole(&mut packed, from.width()));
                    let to_kept = Kept::Across(Order::Natural);
                    context.level.run(Words { from, from_kept: Kept::Across(self.order()), to, to_kept, flip: 0 });
                    zero_points.resize(2 * packed.len(), 0);
                    unpack_zero_points::<ZERO>(context, &packed, &mut zero_points);
                }
                _ => {}
            }
        }
        self.rows.unpack(context, &[&[], scales, &zero_points], groups);
    }

    fn pack_row(&self, context: Context, groups: &Groups, parts: &mut [BlockMut<'_>], row: usize) {
        let mut zero_points = vec![0; groups.offsets.len()];
        for (part, to) in self.spec.parts.iter().zip(&mut *parts) {
            if part.extent == Extent::GroupsTransposed {
                self.rows.pack(context, groups, &mut [&mut [], to.row(row), &mut zero_points]);
            }
        }
        for (part, to) in self.spec.parts.iter().zip(parts) {
            if matches!(part.extent, Extent::GroupWordsTransposed | Extent::GroupPairsTransposed) {
                let mut packed = vec![0; to.width()];
                pack_zero_points::<ZERO>(context, &zero_points, &mut packed);
                let (from, to) = (Block::whole(&packed, to.width()), to.part(row..row + 1, 0..to.width()));
                let from_kept = Kept::Across(Order::Natural);
                context.level.run(Words { from, from_kept, to, to_kept: Kept::Across(self.order()), flip: 0 });
            }
        }
    }
}

thread_local! {
    /// Room for codes that this thread turns.
    static ROOM: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn turn_codes(context: Context, from: Block<'_>, unit: Unit, flip: u8, to: BlockMut<'_>) {
    ROOM.with_borrow_mut(|stage| {
        stage.resize(STAGE, 0);
        context.level.run(Codes { from, to, unit, flip, stream: context.stream, stage });
    });
    if context.stream {
        context.level.run(Fence);
    }
}

/// Two a byte, as they are stored.
fn pack_zero_points<const ZERO: u8>(context: Context, zero_points: &[u8], packed: &mut [u8]) {
    let stored: Vec<u8> = zero_points.iter().map(|zero_point| zero_point.wrapping_sub(ZERO) & 15).collect();
    context.level.run(Pack { codes: &stored, bias: 0, packed });
}

/// The reverse.
fn unpack_zero_points<const ZERO: u8>(context: Context, packed: &[u8], zero_points: &mut [u8]) {
    let table = &UNSIGNED.map(|code| code.cast_unsigned() + ZERO);
    context.level.run(Unpack { packed, table, codes: zero_points });
}

impl<R: Rule, const ZERO: u8> Transposed<R, ZERO> {
    /// Rows of `columns` nibbles to `columns` rows; of an odd number of rows to a run of them without padding.
    fn turn_nibbles(&self, context: Context, from: Block<'_>, columns: usize, mut to: BlockMut<'_>) {
        let count = from.rows();
        if count.is_multiple_of(2) {
            return context.level.run(Nibbles { from, from_order: Order::Natural, to, to_order: self.order() });
        }
        let (width, mut even) = (from.width(), vec![0; (count + 1) * from.width()]);
        from.copy_to(&mut even[..count * width]);
        let mut turned = vec![0; columns * count.div_ceil(2)];
        self.turn_nibbles(context, Block::whole(&even, width), columns, BlockMut::whole(&mut turned, count.div_ceil(2)));
        join(&turned, count, to.row(0));
    }

    /// The reverse.
    fn turn_nibbles_back(&self, context: Context, from: Block<'_>, columns: usize, mut to: BlockMut<'_>) {
        let count = to.rows();
        if count.is_multiple_of(2) {
            return context.level.run(Nibbles { from, from_order: self.order(), to, to_order: Order::Natural });
        }
        let mut turned = vec![0; columns * count.div_ceil(2)];
        part(from.row(0), count, &mut turned);
        let (width, mut even) = (to.width(), vec![0; (count + 1) * to.width()]);
        self.turn_nibbles_back(context, Block::whole(&turned, count.div_ceil(2)), columns, BlockMut::whole(&mut even, width));
        to.copy_from(&even[..count * width]);
    }
}

/// Rows of an odd `count` of nibbles, each with a nibble 0 at its end, to a run without padding. Two rows are `count` bytes: the
/// second begins in the byte in which the first ends.
fn join(rows: &[u8], count: usize, run: &mut [u8]) {
    let width = count.div_ceil(2);
    for (rows, run) in rows.chunks(2 * width).zip(run.chunks_mut(count)) {
        let (first, second) = rows.split_at(width);
        run[..width].copy_from_slice(first);
        if let [start, ..] = second {
            run[width - 1] |= start << 4;
            let pairs = second.iter().zip(&second[1..]);
            run[width..].iter_mut().zip(pairs).for_each(|(to, (low, high))| *to = low >> 4 | high << 4);
        }
    }
}

/// The reverse.
fn part(run: &[u8], count: usize, rows: &mut [u8]) {
    let width = count.div_ceil(2);
    for (rows, run) in rows.chunks_mut(2 * width).zip(run.chunks(count)) {
        let (first, second) = rows.split_at_mut(width);
        first.copy_from_slice(&run[..width]);
        first[width - 1] &= 15;
        if let [others @ .., last] = second {
            let pairs = run[width - 1..].iter().zip(&run[width..]);
            others.iter_mut().zip(pairs).for_each(|(to, (low, high))| *to = low >> 4 | high << 4);
            *last = run[count - 1] >> 4;
        }
    }
}
