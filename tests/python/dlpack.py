"""Arrays of other libraries, as far as the DLPack protocol shows them."""

import ctypes

import numpy as np

CPU, CUDA = 1, 2


class Borrowed:
    """An array that shows nothing of itself but DLPack."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class OnDevice:
    """An array in the memory of a device: to ask for its data is a fault of the caller."""

    shape, ndim, dtype = (4, 64), 2, np.dtype(np.float32)

    def __init__(self, device):
        self.device = device

    def __dlpack__(self, **options):
        raise AssertionError("the data of a device array was asked for")

    def __dlpack_device__(self):
        return self.device, 0

    def __array__(self, dtype=None, copy=None):
        raise AssertionError("the data of a device array was asked for")


class _Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_ = [("tensor", _Tensor), ("manager", ctypes.c_void_p), ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p))]


class Bfloat16:
    """A bfloat16 tensor on the CPU, as a framework exports it: numpy's own reader refuses this dtype.

    ``bits`` is a uint16 array of any layout. ``deleted`` counts how often the consumer gave the tensor back.
    """

    CODE = 4  # kDLBfloat

    def __init__(self, bits):
        self.bits = bits
        self.deleted = 0

    def __dlpack_device__(self):
        return CPU, 0

    def __dlpack__(self, **options):
        def delete(_):
            self.deleted += 1

        ndim = self.bits.ndim
        self.shape = (ctypes.c_int64 * ndim)(*self.bits.shape)
        self.strides = (ctypes.c_int64 * ndim)(*(stride // 2 for stride in self.bits.strides))
        tensor = _Tensor(self.bits.ctypes.data, CPU, 0, ndim, self.CODE, 16, 1, self.shape, self.strides, 0)
        # The structure and its deleter live as long as this object, which the tests keep.
        self.managed = _Managed(tensor, None, _Managed._fields_[2][1](delete))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(self.managed), b"dltensor", None)
