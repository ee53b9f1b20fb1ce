"""QuantizedArray as an object: immutable, sliced like an array, shown in one line, never mistaken for floats."""

import gc
import weakref

import numpy as np
import pytest
from helpers import BY_ROWS, same, sample

import quantize as qz

ALL = sorted(BY_ROWS)
OWN = ["int4", "uint4"]
X = sample((3, 4, 256))


@pytest.mark.parametrize("attribute", ["format", "shape", "axis", "group_size", "dtype", "parts", "scales", "ndim", "size", "nbytes"])
def test_attributes_cannot_be_set(attribute):
    q = qz.quantize(X)
    with pytest.raises(AttributeError):
        setattr(q, attribute, getattr(q, attribute))
    with pytest.raises(AttributeError):
        delattr(q, attribute)
    with pytest.raises(AttributeError):
        q.something = 1


def test_parts_cannot_be_replaced():
    q = qz.quantize(X)
    with pytest.raises(TypeError):
        q.parts["packed"] = q.parts["packed"]
    with pytest.raises((TypeError, AttributeError)):
        del q.parts["packed"]
    with pytest.raises(KeyError):
        q.parts["codes"]
    assert list(q.parts) == ["packed", "scales"]
    assert len(q.parts) == 2


def test_what_was_computed_belongs_to_the_caller():
    """Codes, scales and values are copies: to write to them changes nothing."""
    q = qz.quantize(X, "uint4")
    before = q.dequantize()
    for array in (q.codes(), q.dequantize(), np.array(q.scales), np.array(q.zero_points)):
        array[...] = 3
    same(q.dequantize(), before)


# Slicing

INDICES = [0, -1, 2, slice(1, 3), slice(None), slice(None, None, 2), slice(None, None, -1), slice(5, 9), slice(2, 1), ..., ()]
PAIRS = [
    (0, 1),
    (-1, slice(1, None)),
    (slice(None), 2),
    (slice(1, 3), slice(None, None, -2)),
    (..., slice(None)),
    (1, ...),
    (slice(0, 0), 1),
]


@pytest.mark.parametrize("index", INDICES + PAIRS, ids=repr)
@pytest.mark.parametrize("name", ALL)
def test_slices_are_the_slices_of_the_values(name, index):
    q = qz.quantize(X, name)
    cut = q[index]
    same(cut.dequantize(), np.ascontiguousarray(q.dequantize()[index]))
    same(cut.codes(), np.ascontiguousarray(q.codes()[index]))
    assert isinstance(cut, qz.QuantizedArray)
    assert (cut.format, cut.group_size, cut.dtype) == (q.format, q.group_size, q.dtype)
    assert cut.shape == X[index].shape
    assert cut.scales.ndim == cut.ndim


@pytest.mark.parametrize("name", OWN)
@pytest.mark.parametrize("group_size", ["row", "tensor", 5])
@pytest.mark.parametrize("index", [0, slice(1, 3), (1, 2), (slice(None), 1)], ids=repr)
def test_slices_of_any_group_size(name, group_size, index):
    q = qz.quantize(X, name, group_size=group_size)
    same(q[index].dequantize(), np.ascontiguousarray(q.dequantize()[index]))
    assert q[index].group_size == group_size


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("name", OWN)
def test_slices_where_the_groups_run_along_another_axis(name, axis):
    """The index counts the axes of the caller: only the group axis, wherever it is, cannot be cut."""
    q = qz.quantize(X, name, axis=axis, group_size=2)
    values = q.dequantize()
    for index in ((..., 5), (..., slice(3, 40, 7)), (..., slice(None, None, -1))):
        same(q[index].dequantize(), np.ascontiguousarray(values[index]))
    with pytest.raises((IndexError, ValueError), match="dequantize"):
        q[(slice(None),) * axis + (1,)]


def test_slices_are_views():
    q = qz.quantize(X)
    for index in (1, slice(1, None), (slice(None), slice(None, None, -1)), (2, 3)):
        for part in q.parts:
            assert np.shares_memory(q[index].parts[part], q.parts[part])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "index", [(..., 0), (0, 0, 0), (..., slice(32)), (slice(None), slice(None), slice(0, 64, 2)), (0, 0, slice(None, None, -1))], ids=repr
)
def test_the_group_axis_cannot_be_cut(name, index):
    q = qz.quantize(X, name)
    with pytest.raises((IndexError, ValueError), match="dequantize"):
        q[index]


def test_the_only_axis_cannot_be_cut():
    q = qz.quantize(sample((64,)))
    for index in (0, slice(0, 32), -1):
        with pytest.raises((IndexError, ValueError), match="dequantize"):
            q[index]


@pytest.mark.parametrize("index", [3, -4, (0, 4), (0, 0, 0, 0)], ids=repr)
def test_an_index_out_of_range(index):
    with pytest.raises(IndexError):
        qz.quantize(X)[index]


@pytest.mark.parametrize("index", [[0, 1], np.array([0, 1]), np.array([True, False, True]), 1.0, "0", "packed"], ids=repr)
def test_only_basic_indexing(index):
    with pytest.raises((IndexError, TypeError)):
        qz.quantize(X)[index]


def test_slices_cannot_be_assigned():
    q = qz.quantize(X)
    with pytest.raises(TypeError):
        q[0] = q[1]


def test_a_slice_of_a_slice_and_a_walk_over_rows():
    q = qz.quantize(X)
    same(q[1:][0][::-1].dequantize(), np.ascontiguousarray(q.dequantize()[1:][0][::-1]))
    for n in range(3):
        same(q[n].dequantize(), q.dequantize()[n])


def test_a_slice_is_quantized_like_a_whole():
    """A slice of contiguous rows is the same as the rows quantized on their own."""
    assert qz.quantize(X)[1:].identical(qz.quantize(X[1:]))
    assert qz.quantize(X)[1].identical(qz.quantize(X[1]))


def test_a_slice_keeps_its_memory_alive():
    q = qz.quantize(X)
    expected = q.dequantize()[1]
    cut = q[1]
    del q
    gc.collect()
    same(cut.dequantize(), expected)


# numpy


@pytest.mark.parametrize("axis", [-1, 0])
def test_as_an_array(axis):
    q = qz.quantize(X, axis=axis, group_size=3)
    same(np.asarray(q), q.dequantize())
    same(np.array(q), q.dequantize())
    same(np.asarray(q, np.float64), q.dequantize(dtype=np.float64))
    same(np.asarray(q, np.float16), q.dequantize(dtype=np.float16))
    same(q.__array__(), q.dequantize())
    same(q.__array__(np.dtype(np.float32), copy=True), q.dequantize())
    same(q.__array__(copy=None), q.dequantize())


def test_an_array_without_a_copy_cannot_be():
    with pytest.raises(ValueError, match="copy"):
        qz.quantize(X).__array__(copy=False)


def test_arithmetic_is_not_silently_done_on_floats():
    q = qz.quantize(X)
    assert qz.QuantizedArray.__array_ufunc__ is None
    for operation in (
        lambda: X + q,
        lambda: q + X,
        lambda: X * q,
        lambda: q * 2.0,
        lambda: -q,
        lambda: X @ q,
        lambda: q @ X,
        lambda: np.add(X, q),
        lambda: np.exp(q),
    ):
        with pytest.raises(TypeError):
            operation()


def test_products_are_a_later_step():
    q = qz.quantize(X)
    for name in ("T", "matmul", "__matmul__", "__rmatmul__"):
        assert not hasattr(q, name)


# Identity


@pytest.mark.parametrize("name", ALL)
def test_identical_compares_bytes(name):
    q = qz.quantize(X, name)
    assert q.identical(q)
    assert q.identical(qz.quantize(X, name))
    other = X.copy()
    other[2, 3, 63] += 4
    assert not q.identical(qz.quantize(other, name))
    assert not q.identical(qz.quantize(X[:2], name))


def test_identical_compares_the_facts_too():
    q = qz.quantize(X)
    assert not q.identical(qz.quantize(X, "uint4"))
    assert not q.identical(qz.quantize(X, scale_dtype="float32"))
    square = np.zeros((64, 64), np.float32)
    assert not qz.quantize(square).identical(qz.quantize(square, axis=0))
    line = np.zeros((4, 32), np.float32)
    assert not qz.quantize(line, group_size=32).identical(qz.quantize(line, group_size="row"))
    assert qz.quantize(line, axis=1).identical(qz.quantize(line, axis=-1))


def test_identical_reads_signs_of_zero():
    parts = {"packed": np.zeros((1, 16), np.uint8), "scales": np.zeros((1, 1), np.float16)}
    negative = {**parts, "scales": -parts["scales"]}
    assert not qz.from_parts("int4", parts).identical(qz.from_parts("int4", negative))


def test_equality_is_identity():
    q, again = qz.quantize(X), qz.quantize(X)
    assert q == q
    assert q != again
    assert len({q, again}) == 2
    assert hash(q) == hash(q)


# Shown


def test_repr_is_one_line():
    q = qz.quantize(sample((128, 64)), "gguf:q4_0")
    text = repr(q)
    assert "\n" not in text
    for fact in ("QuantizedArray", "q4_0", "(128, 64)", "4.5", "bits/weight"):
        assert fact in text
    assert "\n" not in repr(qz.quantize(np.ones(1, np.float32)))
    assert "\n" not in repr(qz.quantize(np.ones((0, 3), np.float32)))


def test_repr_html_is_a_small_table():
    html = qz.quantize(sample((128, 64)), "gguf:q4_0")._repr_html_()
    assert html.count("<table") == html.count("</table>") == 1
    for fact in ("gguf:q4_0", "(128, 64)", "4.5"):
        assert fact in html
    assert len(html) < 4000


def test_bits_per_weight():
    x = sample((128, 64))
    assert qz.quantize(x, "gguf:q4_0").bits_per_weight == 4.5
    assert qz.quantize(x, "gguf:q4_1").bits_per_weight == 5.0
    assert qz.quantize(x, "int4").bits_per_weight == 4.5
    assert qz.quantize(x, "int4", group_size=64, scale_dtype="float32").bits_per_weight == 4.5
    assert qz.quantize(x, "uint4", group_size=32).bits_per_weight == 4.625


@pytest.mark.parametrize("name", ALL)
def test_memory_is_given_back(name):
    q = qz.quantize(X, name)
    part = weakref.ref(next(iter(q.parts.values())))
    del q
    gc.collect()
    assert part() is None
