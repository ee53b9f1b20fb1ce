//! DLPack in: a numpy array over the memory of another library's array, bfloat16 included, which numpy itself refuses.
//!
//! ```text
//! capsule "dltensor"             managed: { tensor, context, deleter }
//! capsule "dltensor_versioned"   managed: { version, context, deleter, flags, tensor }
//! ```
//! Whoever takes a capsule renames it to "used_...", and calls the deleter once when it is done with the memory.
#![allow(unsafe_code, reason = "the structs of another library, given by pointer")]

use std::ffi::{c_int, c_void};
use std::ptr;
use std::slice;

use numpy::npyffi::{self, NPY_TYPES};
use numpy::{PY_ARRAY_API, PyUntypedArray, PyUntypedArrayMethods};
use pyo3::exceptions::{PyBufferError, PyTypeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyCapsule;

use super::arrays::Array;
use super::errors::guarded;
use crate::error::Error;

/// One array, as `dlpack.h` lays it out.
#[repr(C)]
struct Tensor {
    data: *mut c_void,
    device_kind: i32,
    device_index: i32,
    ndim: i32,
    code: u8,
    bits: u8,
    lanes: u16,
    shape: *const i64,
    /// In elements; null for C order.
    strides: *const i64,
    byte_offset: u64,
}

/// An array and how to give it back, version 0.
#[repr(C)]
struct Managed {
    tensor: Tensor,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut Managed)>,
}

/// The same from version 1 on.
#[repr(C)]
struct ManagedVersioned {
    major: u32,
    minor: u32,
    context: *mut c_void,
    deleter: Option<unsafe extern "C" fn(*mut ManagedVersioned)>,
    flags: u64,
    tensor: Tensor,
}

/// Devices whose memory the CPU reads in place: itself, and pinned host memory of CUDA and ROCm.
const HOST: [i32; 3] = [1, 3, 11];
const FLOAT: u8 = 2;
const BFLOAT: u8 = 4;
const KINDS: [&str; 7] = ["int", "uint", "float", "object", "bfloat", "complex", "bool"];

/// Gives the array back when the numpy array over it is gone.
enum Owner {
    Unversioned(*mut Managed),
    Versioned(*mut ManagedVersioned),
}

// SAFETY: the protocol lets any thread call the deleter, once.
unsafe impl Send for Owner {}

impl Drop for Owner {
    fn drop(&mut self) {
        // SAFETY: the capsule was ours alone, and the deleter is called this once.
        unsafe {
            match *self {
                Owner::Unversioned(managed) => (*managed).deleter.map(|delete| delete(managed)),
                Owner::Versioned(managed) => (*managed).deleter.map(|delete| delete(managed)),
            }
        };
    }
}

/// `from_dlpack(capsule)` gives `(array, bits)`: a read-only numpy array over the same memory; `bits` says that it is uint16 holding bfloat16.
#[pyfunction]
pub(super) fn from_dlpack<'py>(capsule: &Bound<'py, PyCapsule>) -> PyResult<(Array<'py>, bool)> {
    guarded(|| {
        let (owner, tensor) = take(capsule)?;
        // SAFETY: the owner keeps what the tensor points to.
        let (array, bits) = unsafe { view(capsule.py(), tensor) }?;
        let base = PyCapsule::new_with_value(capsule.py(), owner, c"quantize.dlpack")?;
        // SAFETY: numpy takes over the reference to the base, and drops it with the array.
        let failed = unsafe { PY_ARRAY_API.PyArray_SetBaseObject(capsule.py(), array.as_array_ptr(), base.into_ptr()) };
        if failed < 0 { Err(PyErr::fetch(capsule.py())) } else { Ok((array, bits)) }
    })
}

/// Take the array out of its capsule.
fn take<'a>(capsule: &'a Bound<'_, PyCapsule>) -> PyResult<(Owner, &'a Tensor)> {
    let (versioned, plain) = (c"dltensor_versioned", c"dltensor");
    let (owner, tensor, used) = if capsule.is_valid_checked(Some(versioned)) {
        let managed: *mut ManagedVersioned = capsule.pointer_checked(Some(versioned))?.as_ptr().cast();
        // SAFETY: a capsule of this name holds this struct; the version stands first in all of them.
        let major = unsafe { (*managed).major };
        if major != 1 {
            return Err(PyBufferError::new_err(format!("array uses DLPack version {major}; expected 1, or convert it with numpy.asarray")));
        }
        // SAFETY: as above.
        (Owner::Versioned(managed), unsafe { &(*managed).tensor }, c"used_dltensor_versioned")
    } else if capsule.is_valid_checked(Some(plain)) {
        let managed: *mut Managed = capsule.pointer_checked(Some(plain))?.as_ptr().cast();
        // SAFETY: a capsule of this name holds this struct.
        (Owner::Unversioned(managed), unsafe { &(*managed).tensor }, c"used_dltensor")
    } else {
        return Err(PyBufferError::new_err("array gave a DLPack capsule that is of no known kind or was used before"));
    };
    // SAFETY: the name is static; from here on nobody but `owner` calls the deleter.
    if unsafe { ffi::PyCapsule_SetName(capsule.as_ptr(), used.as_ptr()) } != 0 {
        std::mem::forget(owner);
        return Err(PyErr::fetch(capsule.py()));
    }
    Ok((owner, tensor))
}

/// A numpy array over the memory of a tensor.
///
/// # Safety
///
/// The tensor must be as the protocol says, and stay as long as the array.
unsafe fn view<'py>(py: Python<'py>, tensor: &Tensor) -> PyResult<(Array<'py>, bool)> {
    if !HOST.contains(&tensor.device_kind) {
        let device = format!("DLPack device ({}, {})", tensor.device_kind, tensor.device_index);
        return Err(PyTypeError::new_err(format!("array is on {device}; copy it to the host first")));
    }
    let (number, item, bits) = match (tensor.code, tensor.bits, tensor.lanes) {
        (FLOAT, 16, 1) => (NPY_TYPES::NPY_HALF, 2, false),
        (FLOAT, 32, 1) => (NPY_TYPES::NPY_FLOAT, 4, false),
        (FLOAT, 64, 1) => (NPY_TYPES::NPY_DOUBLE, 8, false),
        (BFLOAT, 16, 1) => (NPY_TYPES::NPY_USHORT, 2, true),
        (code, bits, lanes) => {
            let kind = KINDS.get(usize::from(code)).copied().unwrap_or("unknown");
            let lanes = if lanes == 1 { String::new() } else { format!(" in {lanes} lanes") };
            return Err(Error::dtype("array", format!("{kind}{bits}{lanes}"), "float16, bfloat16, float32 or float64").into());
        }
    };
    let ndim = tensor.ndim.max(0) as usize;
    // SAFETY: `ndim` lengths, and as many strides unless it is null; a 0-d tensor may have neither.
    let (shape, strides) = unsafe {
        let read = |values: *const i64| if ndim == 0 || values.is_null() { &[][..] } else { slice::from_raw_parts(values, ndim) };
        (read(tensor.shape), read(tensor.strides))
    };
    let mut dims: Vec<npyffi::npy_intp> = shape.iter().map(|&n| n as npyffi::npy_intp).collect();
    let mut steps: Vec<npyffi::npy_intp> = strides.iter().map(|&n| (n * item) as npyffi::npy_intp).collect();
    let steps = if steps.is_empty() { ptr::null_mut() } else { steps.as_mut_ptr() };
    // SAFETY: the lengths and strides above, over memory of the tensor. Without flags the array is read-only.
    let array = unsafe {
        let data = tensor.data.wrapping_byte_add(tensor.byte_offset as usize);
        let ndarray = npyffi::get_type_object(py, npyffi::NpyTypes::PyArray_Type);
        let array =
            PY_ARRAY_API.PyArray_New(py, ndarray, ndim as c_int, dims.as_mut_ptr(), number as c_int, steps, data, 0, 0, ptr::null_mut());
        Bound::from_owned_ptr_or_err(py, array)?.cast_into_unchecked::<PyUntypedArray>()
    };
    Ok((array, bits))
}
