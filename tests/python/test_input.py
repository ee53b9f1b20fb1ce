"""What goes in: arrays of other libraries, lists, and everything that is refused."""

import decimal
import re

import ml_dtypes
import numpy as np
import pytest
from dlpack import CUDA, Bfloat16, Borrowed, OnDevice
from helpers import BFLOAT16, BY_ROWS, same, same_parts, sample
from reference import FORMATS

import quantize as qz

X = sample((4, 64))
EXPECTED = FORMATS["int4"].encode(X)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_dlpack(dtype, order):
    array = np.array(X, dtype, order=order)
    same_parts(qz.quantize(Borrowed(array)).parts, FORMATS["int4"].encode(array))


def test_dlpack_of_a_strided_array():
    array = sample((8, 128))[::2, ::-2]
    same_parts(qz.quantize(Borrowed(array)).parts, FORMATS["int4"].encode(array))


@pytest.mark.parametrize("cut", [(slice(None), slice(None)), (slice(1, 3), slice(None, None, 3)), (slice(None, None, -1), slice(5, None))])
def test_dlpack_bfloat16(cut):
    values = sample((4, 96)).astype(BFLOAT16)[cut]
    tensor = Bfloat16(values.view(np.uint16))
    same_parts(qz.quantize(tensor).parts, FORMATS["int4"].encode(values))
    same_parts(qz.quantize(tensor, dtype="bfloat16").parts, FORMATS["int4"].encode(values))
    assert tensor.deleted == 2


def test_dlpack_of_integers_is_refused():
    with pytest.raises(TypeError, match="int32"):
        qz.quantize(Borrowed(X.astype(np.int32)))


@pytest.mark.parametrize(("device", "name"), [(CUDA, "cuda"), (8, "metal"), (10, "rocm"), (14, "oneapi"), (99, "99")])
def test_a_device_array_says_how_to_copy_it(device, name):
    with pytest.raises(TypeError, match=f"(?is){name}.*copy"):
        qz.quantize(OnDevice(device))
    with pytest.raises(TypeError, match=f"(?is){name}.*copy"):
        qz.compare(OnDevice(device), qz.quantize(X))


class ArrayLike:
    def __array__(self, dtype=None, copy=None):
        return X.astype(dtype or np.float64)


def test_the_array_protocol():
    same_parts(qz.quantize(ArrayLike()).parts, FORMATS["int4"].encode(X.astype(np.float64)))


def test_nested_lists_are_float32():
    x = [[0.1, -2.5, 3], [4, 5.25, -6]]
    same_parts(qz.quantize(x, group_size=3).parts, FORMATS["int4"].encode(np.array(x, np.float32), group_size=3))
    same_parts(qz.quantize((1, 2, 3)).parts, FORMATS["int4"].encode(np.array([1, 2, 3], np.float32)))
    assert qz.quantize([]).shape == (0,)
    assert qz.quantize([[], []]).shape == (2, 0)


@pytest.mark.parametrize("x", [[[1.0, 2.0], [3.0]], [[1.0], 2.0]])
def test_ragged_lists(x):
    with pytest.raises(ValueError):
        qz.quantize(x)


@pytest.mark.parametrize("x", [["a", "b"], [None, 1.0], [1j, 2.0], "text", b"bytes", object(), None, {"a": 1.0}, [decimal.Decimal(1), "x"]])
def test_what_is_no_array_of_numbers(x):
    with pytest.raises(TypeError):
        qz.quantize(x)


REFUSED = [
    *(np.ones((2, 32), dtype) for dtype in ("int8", "uint8", "int16", "uint16", "int32", "int64", "uint64", "bool")),
    *(np.ones((2, 32), dtype) for dtype in ("complex64", "complex128", "object", "S4", "U4", "M8[s]", "V4")),
    np.ones((2, 32), [("a", "f4")]),
    *(np.ones((2, 32), dtype) for dtype in (ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.float8_e4m3fn, ml_dtypes.float4_e2m1fn)),
]


@pytest.mark.parametrize("x", REFUSED, ids=lambda x: x.dtype.name)
def test_other_dtypes_are_refused_by_name(x):
    with pytest.raises(TypeError, match=f"array has dtype {re.escape(x.dtype.name)}; expected float16, bfloat16, float32 or float64"):
        qz.quantize(x)


def test_long_doubles_are_refused_where_they_are_longer():
    x = np.ones((2, 32), np.longdouble)
    if x.itemsize > 8:
        with pytest.raises(TypeError, match="array has dtype"):
            qz.quantize(x)
    else:
        assert qz.quantize(x).shape == (2, 32)


def test_masked_arrays_are_refused():
    with pytest.raises(TypeError, match="(?i)mask"):
        qz.quantize(np.ma.masked_greater(X, 1))


def test_integers_as_bfloat16_need_the_dtype():
    bits = X.astype(BFLOAT16).view(np.uint16)
    same_parts(qz.quantize(bits, dtype="bfloat16").parts, FORMATS["int4"].encode(X.astype(BFLOAT16)))
    same_parts(qz.quantize(bits, dtype=ml_dtypes.bfloat16).parts, FORMATS["int4"].encode(X.astype(BFLOAT16)))
    with pytest.raises(TypeError, match="uint16"):
        qz.quantize(bits)
    with pytest.raises(TypeError):
        qz.quantize(X.astype(np.int16), dtype="bfloat16")


class Subclass(np.ndarray):
    def __getitem__(self, index):
        raise AssertionError("an element was asked for by the index of a subclass")


def test_subclasses_are_arrays(tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=X.shape)
    mapped[...] = X
    mapped.flush()
    read_only = np.memmap(tmp_path / "x", np.float32, "r", shape=X.shape)
    for array in (mapped, read_only, X.view(np.recarray), X.view(Subclass)):
        same_parts(qz.quantize(array).parts, EXPECTED)


def test_an_array_without_axes():
    for x in (np.float32(1), np.array(1.0), 1.0):
        with pytest.raises(ValueError, match="0-d"):
            qz.quantize(x)


@pytest.mark.parametrize("axis", [2, -3, 100])
def test_axis_out_of_range(axis):
    with pytest.raises(ValueError, match="axis"):
        qz.quantize(X, axis=axis)


@pytest.mark.parametrize("axis", [1.0, "0", (0, 1)])
def test_axis_of_a_wrong_type(axis):
    with pytest.raises(TypeError):
        qz.quantize(X, axis=axis)


def test_axis_takes_numpy_integers():
    assert qz.quantize(X, axis=np.int64(0)).identical(qz.quantize(X, axis=0))


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 256), (2, 0, 3)])
@pytest.mark.parametrize("name", BY_ROWS)
def test_empty_arrays(name, shape):
    axis = shape.index(0) if shape != (0, 256) else 1
    x = np.empty(shape, np.float32)
    q = qz.quantize(x, name, axis=axis)
    assert q.shape == shape
    assert q.size == q.nbytes == 0
    same(q.dequantize(), x)
    same(q.codes(), np.empty(shape, np.int8))
    assert repr(q)


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_an_empty_tensor_has_no_group(name):
    q = qz.quantize(np.empty((3, 0), np.float32), name, group_size="tensor")
    assert q.parts["scales"].shape == (0, 0)


@pytest.mark.parametrize("value", [3.5, -3.5, 0.0, -0.0, 1e-45])
@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_one_element(name, value):
    x = np.array([value], np.float32)
    q = qz.quantize(x, name)
    same_parts(q.parts, FORMATS[name].encode(x))
    same(q.dequantize(), FORMATS[name].decode(q.parts, x.shape))


def test_float64_is_rounded_once():
    """Two values become ties as float32 and then round to even: as float64 they would have gone the other way."""
    x = np.array([[-8.0, 0.5 + 2.0**-26, 1.5 - 2.0**-26, 7.0]])
    same_parts(qz.quantize(x).parts, FORMATS["int4"].encode(x))
    assert qz.quantize(x).codes().tolist() == [[-8, 0, 2, 7]]
