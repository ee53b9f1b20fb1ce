//! numpy arrays as the core sees them: borrowed, checked, allocated. Here is the single match on dtype.
//!
//! The contract on aliasing is that of numpy itself: nobody writes to an array or resizes it during a call. A caller that
//! does gets wrong numbers; the core never uses a value that it read as an index or a length.
#![allow(unsafe_code, reason = "the border to memory that numpy owns")]

use std::ffi::c_int;
use std::ops::Range;
use std::ptr::{self, NonNull};
use std::slice;

use numpy::npyffi::{self, NPY_TYPES, PyArrayObject_fields};
use numpy::{PY_ARRAY_API, PyArrayDescrMethods, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::PyMemoryError;
use pyo3::prelude::*;

use crate::element::{Dtype, Sink, Source};
use crate::error::{Error, Index, Result};

/// Any numpy array.
pub(super) type Array<'py> = Bound<'py, PyUntypedArray>;

/// The dtypes of the arrays that cross the border.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// Packed bytes, unsigned codes.
    U8,
    /// Signed codes.
    I8,
    /// Words of codes.
    U32,
    /// The same, signed; numbers of groups.
    I32,
    /// Lengths of axes.
    I64,
    /// Numbers. bfloat16, which numpy does not have, leaves as its bits in uint16.
    Float(Dtype),
}

impl Item {
    pub(super) fn size(self) -> usize {
        match self {
            Item::U8 | Item::I8 => 1,
            Item::U32 | Item::I32 => 4,
            Item::I64 => 8,
            Item::Float(dtype) => dtype.size(),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Item::U8 => "uint8",
            Item::I8 => "int8",
            Item::U32 => "uint32",
            Item::I32 => "int32",
            Item::I64 => "int64",
            Item::Float(dtype) => dtype.name(),
        }
    }

    fn number(self) -> NPY_TYPES {
        match self {
            Item::U8 => NPY_TYPES::NPY_UBYTE,
            Item::I8 => NPY_TYPES::NPY_BYTE,
            Item::U32 => NPY_TYPES::NPY_UINT,
            Item::I32 => NPY_TYPES::NPY_INT,
            Item::I64 => NPY_TYPES::NPY_LONGLONG,
            Item::Float(Dtype::F16) => NPY_TYPES::NPY_HALF,
            Item::Float(Dtype::Bf16) => NPY_TYPES::NPY_USHORT,
            Item::Float(Dtype::F32) => NPY_TYPES::NPY_FLOAT,
            Item::Float(Dtype::F64) => NPY_TYPES::NPY_DOUBLE,
        }
    }

    /// What an array holds; `bits` says that uint16 holds the bits of bfloat16.
    fn of(array: &Array<'_>, bits: bool) -> PyResult<Option<Item>> {
        let dtype = array.dtype();
        Ok(match (dtype.kind(), dtype.itemsize()) {
            (b'f', 4) => Some(Item::Float(Dtype::F32)),
            (b'f', 2) => Some(Item::Float(Dtype::F16)),
            (b'f', 8) => Some(Item::Float(Dtype::F64)),
            (b'u', 1) => Some(Item::U8),
            (b'i', 1) => Some(Item::I8),
            (b'u', 4) => Some(Item::U32),
            (b'i', 4) => Some(Item::I32),
            (b'i', 8) => Some(Item::I64),
            (b'u', 2) => bits.then_some(Item::Float(Dtype::Bf16)),
            (_, 2) if dtype_name(array)? == "bfloat16" => Some(Item::Float(Dtype::Bf16)),
            _ => None,
        })
    }
}

/// The array of numbers that `argument` names, to be read; `bits` as in [`Item::of`].
pub(super) fn source<'a>(array: &'a Array<'_>, argument: &str, bits: bool) -> PyResult<Source<'a>> {
    let Some(Item::Float(dtype)) = Item::of(array, bits)? else {
        let found = dtype_name(array)?;
        let hint = if found == "uint16" { "; for the bits of bfloat16 say dtype=\"bfloat16\"" } else { "" };
        return Err(Error::dtype(argument, found, format!("float16, bfloat16, float32 or float64{hint}")).into());
    };
    // SAFETY: numpy vouches for its pointer, shape and strides; `array` is borrowed for the life of the source.
    Ok(unsafe { Source::from_raw(data(array), dtype, is_swapped(array), array.shape(), array.strides()) })
}

/// The array that holds a part: of this dtype and shape, copied only if it is not contiguous or not in this machine's byte order.
pub(super) fn part<'py>(array: &Bound<'py, PyAny>, argument: &str, item: Item, shape: &[usize]) -> PyResult<Array<'py>> {
    let array = ndarray(array, argument, item)?;
    check_dtype(&array, argument, item)?;
    check_shape(&array, argument, shape)?;
    if array.is_c_contiguous() && !is_swapped(&array) {
        return Ok(array);
    }
    let flags = npyffi::NPY_ARRAY_CARRAY_RO | npyffi::NPY_ARRAY_NOTSWAPPED;
    // SAFETY: a null descriptor keeps the dtype, 0 and 0 any number of dimensions, a null context is what numpy asks for.
    unsafe {
        let copy = PY_ARRAY_API.PyArray_CheckFromAny(array.py(), array.as_ptr(), ptr::null_mut(), 0, 0, flags, ptr::null_mut());
        Ok(Bound::from_owned_ptr_or_err(array.py(), copy)?.cast_into_unchecked())
    }
}

/// The bytes of an array that is C-contiguous.
pub(super) fn bytes<'a>(array: &'a Array<'_>) -> &'a [u8] {
    assert!(array.is_c_contiguous(), "callers check it");
    let len = array.len() * array.dtype().itemsize();
    // SAFETY: a contiguous array of `len` bytes, borrowed as long as the slice.
    unsafe { slice::from_raw_parts(pointer(array).as_ptr(), len) }
}

/// One array to be written.
pub(super) struct Wanted {
    /// What messages call it: `out`, `out['packed']`.
    pub(super) argument: String,
    pub(super) item: Item,
    pub(super) shape: Vec<usize>,
}

/// Arrays to be written: C-contiguous, writable, in memory that nothing else in the call reads or writes.
pub(super) struct Outputs<'py>(Vec<Array<'py>>);

impl<'py> Outputs<'py> {
    /// New arrays. numpy allocates, since its large arrays are advised to huge pages; nothing is written to them yet.
    pub(super) fn new(py: Python<'py>, wanted: &[Wanted]) -> PyResult<Self> {
        wanted.iter().map(|wanted| empty(py, wanted)).collect::<PyResult<_>>().map(Outputs)
    }

    /// The caller's arrays, if they are what is wanted and overlap neither each other nor the inputs.
    pub(super) fn given(arrays: Vec<Bound<'py, PyAny>>, wanted: &[Wanted], inputs: &[&Array<'_>]) -> PyResult<Self> {
        let mut outputs: Vec<Array<'py>> = Vec::with_capacity(arrays.len());
        for (array, Wanted { argument, item, shape }) in arrays.iter().zip(wanted) {
            let array = ndarray(array, argument, *item)?;
            check_dtype(&array, argument, *item)?;
            check_shape(&array, argument, shape)?;
            let refuse = |found: &str, expected: &str| Err(Error::value(argument, found, expected).into());
            if is_swapped(&array) {
                return refuse("not in this machine's byte order", "expected an array that is");
            }
            if !array.is_c_contiguous() {
                return refuse("not C-contiguous", "expected an array that is");
            }
            // SAFETY: reads a field of a live array.
            if unsafe { (*fields(&array)).flags } & npyffi::NPY_ARRAY_WRITEABLE == 0 {
                return refuse("read-only", "expected a writable array");
            }
            if inputs.iter().any(|input| overlap(input, &array)) {
                return refuse("in the memory of the input", "give it memory of its own");
            }
            if outputs.iter().any(|output| overlap(output, &array)) {
                return refuse("in the memory of another output", "give it memory of its own");
            }
            outputs.push(array);
        }
        Ok(Outputs(outputs))
    }

    /// The bytes of all of them.
    pub(super) fn slices(&mut self) -> Vec<&mut [u8]> {
        let slice = |array: &Array<'_>| {
            let len = array.len() * array.dtype().itemsize();
            // SAFETY: a writable, contiguous array of `len` bytes; both constructors see to it that no other slice of the
            // call overlaps it, and `self` is borrowed mutably as long as the slices. Memory that is new from numpy has no
            // values yet; it is only written.
            unsafe { slice::from_raw_parts_mut(pointer(array).as_ptr(), len) }
        };
        self.0.iter().map(slice).collect()
    }

    /// The only one of them, for numbers.
    pub(super) fn sink(&mut self, dtype: Dtype) -> Sink<'_> {
        let [array] = &self.0[..] else { unreachable!("one array was asked for") };
        // SAFETY: as in `slices`.
        unsafe { Sink::from_raw(pointer(array).as_ptr(), dtype, array.shape(), array.strides()) }
    }

    pub(super) fn into_arrays(self) -> Vec<Array<'py>> {
        self.0
    }
}

fn empty<'py>(py: Python<'py>, wanted: &Wanted) -> PyResult<Array<'py>> {
    let mut dims: Vec<npyffi::npy_intp> = wanted.shape.iter().map(|&n| n as npyffi::npy_intp).collect();
    // SAFETY: `dims` holds as many lengths as it says; null strides and data ask for new memory in C order.
    let array = unsafe {
        let ndarray = npyffi::get_type_object(py, npyffi::NpyTypes::PyArray_Type);
        let (nothing, number) = (ptr::null_mut(), wanted.item.number() as c_int);
        PY_ARRAY_API.PyArray_New(py, ndarray, dims.len() as c_int, dims.as_mut_ptr(), number, nothing, nothing.cast(), 0, 0, nothing.cast())
    };
    // SAFETY: null, or a new reference to an array.
    match unsafe { Bound::from_owned_ptr_or_err(py, array) } {
        // SAFETY: the type that was asked for.
        Ok(array) => Ok(unsafe { array.cast_into_unchecked() }),
        Err(error) if error.is_instance_of::<PyMemoryError>(py) => {
            let bytes = wanted.shape.iter().product::<usize>() as u64 * wanted.item.size() as u64;
            Err(Error::Memory { what: wanted.argument.clone(), bytes }.into())
        }
        Err(error) => Err(error),
    }
}

fn ndarray<'py>(array: &Bound<'py, PyAny>, argument: &str, item: Item) -> PyResult<Array<'py>> {
    match array.cast::<PyUntypedArray>() {
        Ok(array) => Ok(array.clone()),
        Err(_) => {
            let found = array.get_type().name()?.to_string();
            Err(pyo3::exceptions::PyTypeError::new_err(format!("{argument} is of type {found}; expected a numpy array of {}", item.name())))
        }
    }
}

/// An error unless the array has this dtype.
pub(super) fn check_dtype(array: &Array<'_>, argument: &str, item: Item) -> PyResult<()> {
    if Item::of(array, true)? == Some(item) {
        return Ok(());
    }
    let or_bits = if item == Item::Float(Dtype::Bf16) { ", or its bits in uint16" } else { "" };
    Err(Error::dtype(argument, dtype_name(array)?, format!("{}{or_bits}", item.name())).into())
}

/// An error unless the array has this shape.
pub(super) fn check_shape(array: &Array<'_>, argument: &str, shape: &[usize]) -> Result<()> {
    if array.shape() == shape {
        return Ok(());
    }
    let found = format!("has shape {}", Index(array.shape()));
    Err(Error::shape(argument, found, format!("expected {}", Index(shape))))
}

/// What numpy calls the dtype of an array.
pub(super) fn dtype_name(array: &Array<'_>) -> PyResult<String> {
    array.dtype().getattr("name")?.extract()
}

fn is_swapped(array: &Array<'_>) -> bool {
    array.dtype().is_native_byteorder() == Some(false)
}

fn fields(array: &Array<'_>) -> *mut PyArrayObject_fields {
    // SAFETY: a `Bound` exists only while this thread is attached, and holds a live array.
    unsafe { npyffi::_PyArray_GET_ITEM_DATA(array.as_array_ptr()) }
}

fn data(array: &Array<'_>) -> *mut u8 {
    // SAFETY: reads a field of a live array.
    unsafe { (*fields(array)).data.cast() }
}

/// The first byte, or any address at all for an array without elements.
fn pointer(array: &Array<'_>) -> NonNull<u8> {
    NonNull::new(data(array)).unwrap_or(NonNull::dangling())
}

fn overlap(a: &Array<'_>, b: &Array<'_>) -> bool {
    let (a, b) = (addresses(a), addresses(b));
    a.start < b.end && b.start < a.end
}

/// The addresses from the first to the last byte of an array, whatever its strides.
fn addresses(array: &Array<'_>) -> Range<usize> {
    let start = data(array).addr();
    if array.is_empty() {
        return start..start;
    }
    let reaches = || array.shape().iter().zip(array.strides()).map(|(&n, &stride)| (n as isize - 1) * stride);
    let below: isize = reaches().map(|reach| reach.min(0)).sum();
    let above: isize = reaches().map(|reach| reach.max(0)).sum();
    start.wrapping_add_signed(below)..start.wrapping_add_signed(above) + array.dtype().itemsize()
}
