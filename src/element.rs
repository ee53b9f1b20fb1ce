//! Arrays of float16, bfloat16, float32 or float64, of any strides and byte order, as f32 tiles. The only room that knows dtypes.
//!
//! A tile is addressed by its flat index in C order of the axes, the group axis last. What leaves here is f32: float64 is
//! rounded half to even, the 16-bit floats are widened exactly. What comes back is rounded half to even. Only 16-bit floats that
//! follow each other leave and come back as they are: the kernels read and write them.

#![allow(unsafe_code, reason = "the border to arrays of foreign strides")]

mod turned;

pub use turned::{Room, SinkTile};

use crate::kernels::blocks::{Block, BlockMut};
use crate::kernels::convert::{Half, Narrow, Widen};
use crate::kernels::decode::Output;
use crate::kernels::encode::Input;
use crate::kernels::transpose::Items;
use crate::level::Level;
use crate::simd::LANES;
use bytemuck::{cast_slice, cast_slice_mut};
use std::marker::PhantomData;
use std::ops::Range;

/// Elements of a turned matrix to read or write at once, about: 512 KiB of f32 in a core's own cache.
const TURNED: usize = 128 * 1024;

/// A dtype of elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE binary16.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// IEEE binary32.
    F32,
    /// IEEE binary64.
    F64,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size(self) -> usize {
        match self {
            Dtype::F16 | Dtype::Bf16 => 2,
            Dtype::F32 => 4,
            Dtype::F64 => 8,
        }
    }

    /// The name that numpy and its users give it.
    pub fn name(self) -> &'static str {
        match self {
            Dtype::F16 => "float16",
            Dtype::Bf16 => "bfloat16",
            Dtype::F32 => "float32",
            Dtype::F64 => "float64",
        }
    }
}

/// Where elements are: a dtype, axes with byte strides, and the place of the group axis in the caller's own order.
#[derive(Clone, Debug)]
struct Strided {
    dtype: Dtype,
    swapped: bool,
    shape: Vec<usize>,
    strides: Vec<isize>,
    axis: usize,
    /// The axes again, with neighbours that follow each other in memory joined: few, long runs.
    runs: Vec<(usize, isize)>,
}

impl Strided {
    fn new(dtype: Dtype, swapped: bool, shape: &[usize], strides: &[isize]) -> Self {
        assert_eq!(shape.len(), strides.len(), "a stride for every axis");
        let mut array = Strided {
            dtype,
            swapped,
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            axis: shape.len().saturating_sub(1),
            runs: Vec::new(),
        };
        array.join();
        array
    }

    fn contiguous(dtype: Dtype, shape: &[usize]) -> Self {
        let mut strides = vec![0; shape.len()];
        let mut step = dtype.size() as isize;
        for (stride, &n) in strides.iter_mut().zip(shape).rev() {
            *stride = step;
            step *= n as isize;
        }
        Strided::new(dtype, false, shape, &strides)
    }

    fn with_axis_last(mut self, axis: usize) -> Self {
        self.axis = axis;
        let (n, stride) = (self.shape.remove(axis), self.strides.remove(axis));
        self.shape.push(n);
        self.strides.push(stride);
        self.join();
        self
    }

    fn join(&mut self) {
        self.runs.clear();
        for (&n, &stride) in self.shape.iter().zip(&self.strides) {
            match self.runs.last_mut() {
                Some((outer, outer_stride)) if *outer_stride == stride * n as isize => (*outer, *outer_stride) = (*outer * n, stride),
                _ if n == 1 => {}
                _ => self.runs.push((n, stride)),
            }
        }
        if self.runs.is_empty() {
            self.runs.push((self.shape.iter().product(), self.dtype.size() as isize));
        }
    }

    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether all elements follow each other in memory in native byte order.
    fn is_plain(&self) -> bool {
        !self.swapped && matches!(self.runs[..], [(_, stride)] if stride == self.dtype.size() as isize)
    }

    /// Whether they do that from here on, in a form that Rust has slices of: of floats aligned, of pairs of bytes anyhow.
    fn is_slice(&self, data: *const u8) -> bool {
        self.is_plain() && !data.is_null() && (self.dtype != Dtype::F32 || data.cast::<f32>().is_aligned())
    }

    /// Rows and columns of the matrices that the last two axes are, where these are stored turned, column after column without gaps,
    /// and the kernel that turns them takes the dtype.
    fn turned(&self) -> Option<(usize, usize)> {
        let size = self.dtype.size() as isize;
        match self.runs[..] {
            [.., (rows, near), (columns, far)] if near == size && far == size * rows as isize => {
                Some((rows, columns)).filter(|_| !self.swapped && size <= 4 && self.len() > 0)
            }
            _ => None,
        }
    }

    /// Elements to read or write at once: `least`, or of turned matrices some rows, unless these are so long that no cache holds
    /// them: their elements are neighbours in memory.
    fn span(&self, least: usize) -> usize {
        match self.turned() {
            Some((rows, columns)) if columns <= TURNED / 2 => ((TURNED / columns).max(LANES).min(rows) * columns).max(least),
            _ => least,
        }
    }

    /// The whole rows of turned matrices among the elements `start..start + len`, those of each matrix together.
    fn turned_rows(&self, start: usize, len: usize) -> Vec<TurnedRows> {
        let Some((rows, columns)) = self.turned() else { return Vec::new() };
        let (mut row, end) = (start.div_ceil(columns), (start + len) / columns);
        let mut blocks = Vec::new();
        // A row or two are read faster one by one.
        while row + 2 < end {
            let count = (rows - row % rows).min(end - row);
            let first = row * columns - start;
            let range = first..first + count * columns;
            self.visit(row * columns, 1, |offset, stride, _| {
                blocks.push(TurnedRows { offset, stride: stride as usize, count, range: range.clone() })
            });
            row += count;
        }
        blocks
    }

    /// Call `visit(byte offset, stride, range of 0..len)` for each run of the elements `start..start + len`.
    fn visit(&self, start: usize, len: usize, mut visit: impl FnMut(isize, isize, Range<usize>)) {
        let (run, stride) = self.runs[self.runs.len() - 1];
        let mut done = 0;
        while done < len {
            let (mut outer, column) = ((start + done) / run, (start + done) % run);
            let mut offset = column as isize * stride;
            for &(n, stride) in self.runs[..self.runs.len() - 1].iter().rev() {
                offset += (outer % n) as isize * stride;
                outer /= n;
            }
            let count = (run - column).min(len - done);
            visit(offset, stride, done..done + count);
            done += count;
        }
    }
}

/// A borrowed array that is read.
#[derive(Clone, Debug)]
pub struct Source<'a> {
    data: *const u8,
    array: Strided,
    lifetime: PhantomData<&'a [u8]>,
}

// SAFETY: a `Source` only reads, and whoever made it promised that the memory may be read for its lifetime.
unsafe impl Send for Source<'_> {}
// SAFETY: as above.
unsafe impl Sync for Source<'_> {}

impl<'a> Source<'a> {
    /// A C-contiguous array of f32.
    ///
    /// # Panics
    ///
    /// Unless the shape has as many elements as `x`.
    pub fn from_slice(x: &'a [f32], shape: &[usize]) -> Self {
        let array = Strided::contiguous(Dtype::F32, shape);
        assert_eq!(array.len(), x.len(), "a shape of as many elements");
        Source { data: x.as_ptr().cast(), array, lifetime: PhantomData }
    }

    /// A C-contiguous array of little-endian elements at any alignment.
    ///
    /// # Panics
    ///
    /// Unless the shape has as many elements as `data`.
    pub fn from_bytes(data: &'a [u8], dtype: Dtype, shape: &[usize]) -> Self {
        let array = Strided::contiguous(dtype, shape);
        assert_eq!(array.len() * dtype.size(), data.len(), "a shape of as many elements");
        Source { data: data.as_ptr(), array, lifetime: PhantomData }
    }

    /// An array of any byte strides; `swapped` elements are big-endian.
    ///
    /// # Safety
    ///
    /// For the lifetime `'a`, every element that shape and strides reach from `data` is readable memory, at any alignment.
    pub unsafe fn from_raw(data: *const u8, dtype: Dtype, swapped: bool, shape: &[usize], strides: &[isize]) -> Self {
        Source { data, array: Strided::new(dtype, swapped, shape, strides), lifetime: PhantomData }
    }

    /// The same array with `axis` moved to the end.
    pub fn with_axis_last(self, axis: usize) -> Self {
        Source { array: self.array.with_axis_last(axis), ..self }
    }

    /// The shape, the group axis last.
    pub fn shape(&self) -> &[usize] {
        &self.array.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.array.len()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What the elements are.
    pub fn dtype(&self) -> Dtype {
        self.array.dtype
    }

    /// Bytes of one element.
    pub fn item_size(&self) -> usize {
        self.array.dtype.size()
    }

    /// The caller's own index of what has flat index `flat` in an array of `shape` (group axis last).
    pub fn caller_index(&self, flat: usize, shape: &[usize]) -> Vec<usize> {
        let mut rest = flat;
        let mut index: Vec<usize> = shape.iter().rev().map(|&n| (rest % n, rest /= n).0).collect();
        index.reverse();
        if let Some(last) = index.pop() {
            index.insert(self.array.axis, last);
        }
        index
    }

    /// The whole array as one slice of elements that can be encoded, where it is that.
    pub fn as_input(&self) -> Option<Input<'a>> {
        let (data, len) = (self.data, self.len());
        if !self.array.is_slice(data) {
            return None;
        }
        // SAFETY: `is_slice` says that the elements follow each other and that the pointer is none to null and aligned where that
        // matters, and `from_raw` promised that they are readable for 'a.
        unsafe {
            match self.array.dtype {
                Dtype::F16 => Some(Input::Half(Half::F16, slice(data, len))),
                Dtype::Bf16 => Some(Input::Half(Half::Bf16, slice(data, len))),
                Dtype::F32 => Some(Input::F32(std::slice::from_raw_parts(data.cast(), len))),
                Dtype::F64 => None,
            }
        }
    }

    /// The element at flat index `at` itself, before it is rounded to f32.
    ///
    /// # Panics
    ///
    /// Where there is none.
    pub fn number(&self, level: Level, at: usize) -> f64 {
        let mut x = [0.0];
        self.load(level, at, &mut x);
        if self.array.dtype != Dtype::F64 {
            return f64::from(x[0]);
        }
        let mut number = 0.0;
        self.array.visit(at, 1, |offset, _, _| {
            // SAFETY: `load` found the element within the shape, all of which `from_raw` promised to be readable.
            let bytes = unsafe { self.data.wrapping_offset(offset).cast::<[u8; 8]>().read() };
            number = if self.array.swapped { f64::from_be_bytes(bytes) } else { f64::from_le_bytes(bytes) };
        });
        number
    }

    /// Elements to read at once: `least`, or more where neighbours in memory are not neighbours in the array.
    pub fn span(&self, least: usize) -> usize {
        self.array.span(least)
    }

    /// Whether the elements of a row lie apart, and those of a column side by side.
    pub fn is_turned(&self) -> bool {
        self.array.turned().is_some()
    }

    /// Read the elements from flat index `start` on.
    ///
    /// # Panics
    ///
    /// Where there are fewer than `x` wants.
    pub fn load(&self, level: Level, start: usize, x: &mut [f32]) {
        assert!(start.checked_add(x.len()).is_some_and(|end| end <= self.len()), "a tile within the array");
        let blocks = self.array.turned_rows(start, x.len());
        let rest = around(&blocks, x.len());
        for rows in blocks {
            self.load_turned(level, &rows, &mut x[rows.range.clone()]);
        }
        for range in rest {
            self.load_runs(level, start + range.start, &mut x[range]);
        }
    }

    /// Turned rows as they are stored.
    fn block(&self, &TurnedRows { offset, stride, count, ref range }: &TurnedRows) -> Block<'a> {
        let (columns, width) = (range.len() / count, count * self.array.dtype.size());
        // SAFETY: of `columns` columns of a turned matrix, `stride` bytes apart, these are the bytes from the first element of these
        // rows to the last; there is nothing but elements between them, and `from_raw` promised that those are readable.
        let bytes = unsafe { std::slice::from_raw_parts(self.data.wrapping_offset(offset), (columns - 1) * stride + width) };
        Block::new(bytes, columns, width, stride)
    }

    fn load_turned(&self, level: Level, rows: &TurnedRows, x: &mut [f32]) {
        let (columns, size, from) = (x.len() / rows.count, self.array.dtype.size(), self.block(rows));
        let half = match self.array.dtype {
            Dtype::F16 => Half::F16,
            Dtype::Bf16 => Half::Bf16,
            _ => return level.run(Items { size, from, to: BlockMut::whole(cast_slice_mut(x), columns * size) }),
        };
        let mut halves = vec![[0; 2]; x.len()];
        level.run(Items { size, from, to: BlockMut::whole(halves.as_flattened_mut(), columns * size) });
        level.run(Widen { halves: &halves, half, x });
    }

    fn load_runs(&self, level: Level, start: usize, x: &mut [f32]) {
        self.array.visit(start, x.len(), |offset, stride, range| {
            let (data, x) = (self.data.wrapping_offset(offset), &mut x[range]);
            let plain = !self.array.swapped && stride == self.array.dtype.size() as isize;
            // SAFETY: `visit` stays within the shape, all of which `from_raw` promised to be readable.
            unsafe {
                match (self.array.dtype, self.array.swapped) {
                    (Dtype::F16, _) if plain => level.run(Widen { halves: slice(data, x.len()), half: Half::F16, x }),
                    (Dtype::Bf16, _) if plain => level.run(Widen { halves: slice(data, x.len()), half: Half::Bf16, x }),
                    (Dtype::F16, _) => read(data, stride, self.array.swapped, x, |bytes| half::f16::from_le_bytes(bytes).to_f32()),
                    (Dtype::Bf16, _) => read(data, stride, self.array.swapped, x, |bytes| half::bf16::from_le_bytes(bytes).to_f32()),
                    (Dtype::F32, _) => read(data, stride, self.array.swapped, x, f32::from_le_bytes),
                    (Dtype::F64, _) => read(data, stride, self.array.swapped, x, |bytes| f64::from_le_bytes(bytes) as f32),
                }
            }
        });
    }
}

/// Whole rows of a turned matrix among elements 0..len of a call.
struct TurnedRows {
    /// Bytes from the first element of the array to that of the first row.
    offset: isize,
    /// Bytes from a column to the next.
    stride: usize,
    /// How many rows.
    count: usize,
    /// Which elements.
    range: Range<usize>,
}

/// What of 0..len is before and after these rows, which follow each other.
fn around(blocks: &[TurnedRows], len: usize) -> [Range<usize>; 2] {
    let start = blocks.first().map_or(len, |rows| rows.range.start);
    let end = blocks.last().map_or(len, |rows| rows.range.end);
    [0..start, end..len]
}

/// `len` elements of N bytes.
///
/// # Safety
///
/// They are readable for `'a`.
unsafe fn slice<'a, const N: usize>(data: *const u8, len: usize) -> &'a [[u8; N]] {
    // SAFETY: the caller's promise; arrays of bytes have no alignment.
    unsafe { std::slice::from_raw_parts(data.cast(), len) }
}

/// Read elements that are `stride` bytes apart.
///
/// # Safety
///
/// All of them are readable.
#[inline(always)]
unsafe fn read<const N: usize>(data: *const u8, stride: isize, swapped: bool, x: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    if stride == N as isize && !swapped {
        // SAFETY: the caller's promise.
        let elements = unsafe { slice::<N>(data, x.len()) };
        for (x, bytes) in x.iter_mut().zip(elements) {
            *x = value(*bytes);
        }
        return;
    }
    for (i, x) in x.iter_mut().enumerate() {
        // SAFETY: the caller's promise; arrays of bytes have no alignment.
        let mut bytes = unsafe { data.offset(i as isize * stride).cast::<[u8; N]>().read() };
        if swapped {
            bytes.reverse();
        }
        *x = value(bytes);
    }
}

/// A borrowed array that is written, or a range of its elements.
#[derive(Debug)]
pub struct Sink<'a> {
    data: *mut u8,
    array: std::sync::Arc<Strided>,
    start: usize,
    len: usize,
    lifetime: PhantomData<&'a mut [u8]>,
}

// SAFETY: a `Sink` has its elements for itself: `take` gives each to one of two, and it is not `Clone`.
unsafe impl Send for Sink<'_> {}

impl<'a> Sink<'a> {
    /// A C-contiguous array of f32.
    ///
    /// # Panics
    ///
    /// Unless the shape has as many elements as `x`.
    pub fn from_slice(x: &'a mut [f32], shape: &[usize]) -> Self {
        let array = Strided::contiguous(Dtype::F32, shape);
        assert_eq!(array.len(), x.len(), "a shape of as many elements");
        Sink { data: x.as_mut_ptr().cast(), start: 0, len: x.len(), array: array.into(), lifetime: PhantomData }
    }

    /// A C-contiguous array of little-endian elements at any alignment.
    ///
    /// # Panics
    ///
    /// Unless the shape has as many elements as `data`.
    pub fn from_bytes(data: &'a mut [u8], dtype: Dtype, shape: &[usize]) -> Self {
        let array = Strided::contiguous(dtype, shape);
        assert_eq!(array.len() * dtype.size(), data.len(), "a shape of as many elements");
        Sink { data: data.as_mut_ptr(), start: 0, len: array.len(), array: array.into(), lifetime: PhantomData }
    }

    /// An array of any byte strides.
    ///
    /// # Safety
    ///
    /// For the lifetime `'a`, every element that shape and strides reach from `data` is writable memory, at any alignment, no
    /// two elements overlap, and nothing else reads or writes it through Rust.
    pub unsafe fn from_raw(data: *mut u8, dtype: Dtype, shape: &[usize], strides: &[isize]) -> Self {
        let array = Strided::new(dtype, false, shape, strides);
        Sink { data, start: 0, len: array.len(), array: array.into(), lifetime: PhantomData }
    }

    /// The same array with `axis` moved to the end.
    pub fn with_axis_last(self, axis: usize) -> Self {
        let array = Strided::clone(&self.array).with_axis_last(axis);
        Sink { array: array.into(), ..self }
    }

    /// The shape, the group axis last.
    pub fn shape(&self) -> &[usize] {
        &self.array.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes of one element.
    pub fn item_size(&self) -> usize {
        self.array.dtype.size()
    }

    /// Split off the first `count` elements.
    ///
    /// # Panics
    ///
    /// Where there are fewer.
    pub fn take(&mut self, count: usize) -> Sink<'a> {
        assert!(count <= self.len, "no more than there are");
        let first = Sink { data: self.data, array: self.array.clone(), start: self.start, len: count, lifetime: PhantomData };
        self.start += count;
        self.len -= count;
        first
    }

    /// The elements as one slice of floats that can be decoded to, where they are that.
    pub fn as_output(&mut self) -> Option<Output<'_>> {
        if !self.array.is_slice(self.data) {
            return None;
        }
        let first = self.data.wrapping_add(self.start * self.array.dtype.size());
        // SAFETY: `is_slice` says that the elements follow each other and that the pointer is none to null and aligned where that
        // matters, `from_raw` promised that they are writable and ours, and `take` keeps `start + len` within them.
        unsafe {
            match self.array.dtype {
                Dtype::F16 => Some(Output::Half(Half::F16, slice_mut(first, self.len))),
                Dtype::Bf16 => Some(Output::Half(Half::Bf16, slice_mut(first, self.len))),
                Dtype::F32 => Some(Output::F32(std::slice::from_raw_parts_mut(first.cast(), self.len))),
                Dtype::F64 => None,
            }
        }
    }

    /// As [`Source::span`].
    pub fn span(&self, least: usize) -> usize {
        self.array.span(least)
    }

    /// As [`Source::is_turned`].
    pub fn is_turned(&self) -> bool {
        self.array.turned().is_some()
    }

    /// Write the elements from `at` on.
    ///
    /// # Panics
    ///
    /// Where `x` has more than there are.
    pub fn store(&mut self, level: Level, at: usize, x: &[f32]) {
        assert!(at.checked_add(x.len()).is_some_and(|end| end <= self.len), "a tile within the array");
        let blocks = self.array.turned_rows(self.start + at, x.len());
        let rest = around(&blocks, x.len());
        for rows in blocks {
            self.store_turned(level, &rows, &x[rows.range.clone()]);
        }
        for range in rest {
            self.store_runs(level, at + range.start, &x[range]);
        }
    }

    fn store_turned(&mut self, level: Level, &TurnedRows { offset, stride, count, .. }: &TurnedRows, x: &[f32]) {
        let (columns, size) = (x.len() / count, self.array.dtype.size());
        // SAFETY: of `columns` columns of a turned matrix, `stride` bytes apart, these are the elements of these rows, which are ours
        // and nobody else's.
        let to = unsafe { BlockMut::from_raw(self.data.wrapping_offset(offset), columns, count * size, stride) };
        let half = match self.array.dtype {
            Dtype::F16 => Half::F16,
            Dtype::Bf16 => Half::Bf16,
            _ => return level.run(Items { size, from: Block::whole(cast_slice(x), columns * size), to }),
        };
        let mut halves = vec![[0; 2]; x.len()];
        level.run(Narrow { x, half, halves: &mut halves });
        level.run(Items { size, from: Block::whole(halves.as_flattened(), columns * size), to });
    }

    fn store_runs(&mut self, level: Level, at: usize, x: &[f32]) {
        self.array.visit(self.start + at, x.len(), |offset, stride, range| {
            let (data, x) = (self.data.wrapping_offset(offset), &x[range]);
            let plain = stride == self.array.dtype.size() as isize;
            // SAFETY: `visit` stays within the shape, all of which `from_raw` promised to be writable and ours.
            unsafe {
                match self.array.dtype {
                    Dtype::F16 if plain => level.run(Narrow { x, half: Half::F16, halves: slice_mut(data, x.len()) }),
                    Dtype::Bf16 if plain => level.run(Narrow { x, half: Half::Bf16, halves: slice_mut(data, x.len()) }),
                    Dtype::F16 => write(data, stride, x, |x| half::f16::from_f32(x).to_le_bytes()),
                    Dtype::Bf16 => write(data, stride, x, |x| half::bf16::from_f32(x).to_le_bytes()),
                    Dtype::F32 => write(data, stride, x, f32::to_le_bytes),
                    Dtype::F64 => write(data, stride, x, |x| f64::from(x).to_le_bytes()),
                }
            }
        });
    }
}

/// `len` elements of N bytes.
///
/// # Safety
///
/// They are writable for `'a` and nobody else's.
unsafe fn slice_mut<'a, const N: usize>(data: *mut u8, len: usize) -> &'a mut [[u8; N]] {
    // SAFETY: the caller's promise; arrays of bytes have no alignment.
    unsafe { std::slice::from_raw_parts_mut(data.cast(), len) }
}

/// Write elements that are `stride` bytes apart.
///
/// # Safety
///
/// All of them are writable.
#[inline(always)]
unsafe fn write<const N: usize>(data: *mut u8, stride: isize, x: &[f32], bytes: impl Fn(f32) -> [u8; N]) {
    for (i, &x) in x.iter().enumerate() {
        // SAFETY: the caller's promise; arrays of bytes have no alignment.
        unsafe { data.offset(i as isize * stride).cast::<[u8; N]>().write(bytes(x)) };
    }
}
