"""Pickles: out of band, copies, views, and the one written by the first version, which must load for ever."""

import copy
import pickle
import pickletools

import ml_dtypes
import numpy as np
import pytest
from helpers import BY_ROWS, VECTORS, same, sample

import quantize as qz

X = sample((3, 4, 256))
CASES = [
    *((name, {}) for name in BY_ROWS),
    ("int4", {"group_size": "row", "scale_dtype": "bfloat16", "axis": 0}),
    ("uint4", {"group_size": "tensor", "scale_dtype": "float32"}),
    ("uint4", {"group_size": 5, "axis": 1}),
    ("mlx", {"group_size": 32, "scale_dtype": "bfloat16"}),
    ("mlx", {"axis": -1, "scale_dtype": ml_dtypes.bfloat16}),
]


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(("name", "options"), CASES)
def test_round_trip(name, options, protocol):
    q = qz.quantize(X, name, **options)
    back = pickle.loads(pickle.dumps(q, protocol))
    assert back.identical(q)
    assert (back.shape, back.axis, back.group_size) == (q.shape, q.axis, q.group_size)
    same(back.dequantize(), q.dequantize())


def test_protocol_5_takes_the_parts_out_of_band():
    q = qz.quantize(sample((256, 1024)), "uint4")
    buffers = []
    data = pickle.dumps(q, 5, buffer_callback=buffers.append)
    assert len(buffers) == len(q.parts)
    assert len(data) < 1000
    assert sum(buffer.raw().nbytes for buffer in buffers) == q.nbytes
    back = pickle.loads(data, buffers=buffers)
    assert back.identical(q)
    for part in q.parts:
        assert np.shares_memory(back.parts[part], q.parts[part])


@pytest.mark.parametrize("index", [1, slice(1, 3), (slice(None), slice(None, None, -1))], ids=repr)
@pytest.mark.parametrize("out_of_band", [False, True])
def test_views(index, out_of_band):
    q = qz.quantize(X)
    cut = q[index]
    buffers = []
    data = pickle.dumps(cut, 5, buffer_callback=buffers.append if out_of_band else None)
    back = pickle.loads(data, buffers=buffers)
    assert back.identical(cut)
    same(back.dequantize(), np.ascontiguousarray(q.dequantize()[index]))


def test_a_view_takes_no_more_than_itself():
    q = qz.quantize(sample((1000, 1024)))
    assert len(pickle.dumps(q[3], 5)) < 2000


@pytest.mark.parametrize(("name", "options"), CASES)
def test_copies(name, options):
    q = qz.quantize(X, name, **options)
    deep = copy.deepcopy(q)
    assert deep is not q
    assert deep.identical(q)
    for part in q.parts:
        assert not np.shares_memory(deep.parts[part], q.parts[part])
    assert copy.copy(q).identical(q)


def test_ml_dtypes_scales_keep_their_dtype():
    q = qz.quantize(X, scale_dtype=ml_dtypes.bfloat16)
    back = pickle.loads(pickle.dumps(q))
    assert back.identical(q)
    assert back.parts["scales"].dtype == ml_dtypes.bfloat16


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_pickle_names_nothing_but_this_package(protocol):
    """Plain data: numpy moves its inner modules between 1.26 and 2, and a pickle of one must load under the other."""
    names = []
    for opcode, argument, _ in pickletools.genops(pickle.dumps(qz.quantize(X), protocol)):
        if opcode.name in ("GLOBAL", "SHORT_BINUNICODE", "BINUNICODE"):
            names.append(str(argument))
    assert any(name.startswith("quantize") for name in names)
    assert not [name for name in names if name.startswith("numpy")]


def first_version():
    """What ``tests/vectors/quantized_array.pickle`` holds: made once, by version 0.1.0, with ``pickle.dumps(.., protocol=5)``."""
    x = (np.arange(3 * 4 * 64, dtype=np.float32).reshape(3, 4, 64) * 37 % 101 - 50) / 16
    return {
        "int4": qz.quantize(x),
        "uint4": qz.quantize(x, "uint4", axis=1, group_size=3, scale_dtype="float32"),
        "bfloat16": qz.quantize(x, group_size="row", scale_dtype="bfloat16"),
        "tensor": qz.quantize(x, "uint4", group_size="tensor"),
        "q4_0": qz.quantize(x, "gguf:q4_0"),
        "q4_1": qz.quantize(x, "gguf:q4_1"),
        "view": qz.quantize(x)[1:, ::-1],
    }


def test_the_pickle_of_the_first_version_loads():
    loaded = pickle.loads((VECTORS / "quantized_array.pickle").read_bytes())
    expected = first_version()
    assert list(loaded) == list(expected)
    for name, q in expected.items():
        assert loaded[name].identical(q), name
        assert (loaded[name].shape, loaded[name].axis, loaded[name].group_size) == (q.shape, q.axis, q.group_size)
        same(loaded[name].dequantize(), q.dequantize(), name)


def state():
    """The function and the state that a pickle holds; the state is plain data."""
    rebuild, (state,) = qz.quantize(X).__reduce_ex__(5)
    return rebuild, state


def test_a_pickle_of_a_later_version_is_a_clear_error():
    rebuild, facts = state()
    assert isinstance(facts["version"], int)
    with pytest.raises(ValueError, match="version 99"):
        rebuild({**facts, "version": 99})


@pytest.mark.parametrize("shape", [(300, 400, 64), (3, 4, 62), (3, 4), (2**40, 2**40, 64)])
def test_a_state_whose_parts_do_not_fit_its_shape_is_an_error(shape):
    """Nothing decodes past its memory, whatever a pickle says."""
    rebuild, facts = state()
    format, _, *rest = facts["tensor"]
    with pytest.raises(ValueError):
        rebuild({**facts, "tensor": (format, shape, *rest)})


def test_a_state_without_all_parts_is_an_error():
    rebuild, facts = state()
    with pytest.raises(ValueError, match="scales"):
        rebuild({**facts, "parts": {"packed": facts["parts"]["packed"]}})
