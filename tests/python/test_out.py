"""``out=``: what is written where, and that a wrong one is refused before the first write."""

import types

import ml_dtypes
import numpy as np
import pytest
from helpers import BFLOAT16, BY_ROWS, as_bits, same, same_parts, sample
from reference import FORMATS

import quantize as qz

X = sample((4, 64))
ALL = sorted(BY_ROWS)


def empty_parts(name="int4", x=X, **options):
    """Arrays of the shapes and dtypes of the parts, filled with something else."""
    parts = FORMATS[name].encode(x, **options)
    return {part: np.full(a.shape, 7, a.dtype) for part, a in parts.items()}


# dequantize(out=)


@pytest.mark.parametrize("axis", [-1, 0])
def test_decode_into_out_returns_it(axis):
    x = sample((64, 64))
    q = qz.quantize(x, axis=axis)
    out = np.full(x.shape, np.nan, np.float32)
    assert q.dequantize(out=out) is out
    same(out, q.dequantize())
    again = np.full(x.shape, np.nan, np.float32)
    assert qz.dequantize(q, out=again) is again
    same(again, out)


def test_decode_into_a_part_of_something_larger(tmp_path):
    q = qz.quantize(X)
    stack = np.full((3, 4, 64), 7, np.float32)
    q.dequantize(out=stack[1])
    same(stack[1], q.dequantize())
    assert (stack[[0, 2]] == 7).all()
    mapped = np.memmap(tmp_path / "out", np.float32, "w+", shape=X.shape)
    assert q.dequantize(out=mapped) is mapped
    same(np.asarray(mapped), q.dequantize())


def read_only():
    out = np.full(X.shape, 7, np.float32)
    out.setflags(write=False)
    return out


WRONG_OUT = [
    (np.full((4, 65), 7, np.float32), ValueError, r"out has shape \(4, 65\).*\(4, 64\)"),
    (np.full((256,), 7, np.float32), ValueError, r"out has shape \(256,\).*\(4, 64\)"),
    (np.full((1, 4, 64), 7, np.float32), ValueError, r"out has shape \(1, 4, 64\).*\(4, 64\)"),
    (np.full((4, 64), 7, np.float64), TypeError, "out has dtype float64; expected float32"),
    (np.full((4, 64), 7, np.int32), TypeError, "out has dtype int32; expected float32"),
    (np.full((4, 64), 7, ">f4"), (TypeError, ValueError), "out"),
    (read_only(), ValueError, "out.*(writ|read-only)"),
    (np.full((4, 64), 7, np.float32, order="F"), ValueError, "out.*contiguous"),
    (np.full((4, 128), 7, np.float32)[:, ::2], ValueError, "out.*contiguous"),
    (np.full((4, 64), 7, np.float32)[::-1], ValueError, "out.*contiguous"),
    (np.broadcast_to(np.float32(7), (4, 64)), ValueError, "out"),
    ([[7.0] * 64] * 4, TypeError, "out"),
]


@pytest.mark.parametrize(("out", "error", "message"), WRONG_OUT, ids=range(len(WRONG_OUT)))
def test_a_wrong_out_of_dequantize_is_refused_before_the_first_write(out, error, message):
    q = qz.quantize(X)
    with pytest.raises(error, match=message):
        q.dequantize(out=out)
    assert (np.asarray(out) == 7).all()


@pytest.mark.parametrize("dtype", ["float16", "float64", "bfloat16", BFLOAT16])
def test_out_must_have_the_dtype_that_was_asked_for(dtype):
    q = qz.quantize(X)
    with pytest.raises(TypeError, match="out has dtype float32; expected"):
        q.dequantize(dtype=dtype, out=np.empty(X.shape, np.float32))


def test_bfloat16_out():
    q = qz.quantize(X)
    expected = q.dequantize().astype(BFLOAT16)
    bits, own = np.empty(X.shape, np.uint16), np.empty(X.shape, BFLOAT16)
    assert q.dequantize(dtype="bfloat16", out=bits) is bits
    assert q.dequantize(dtype=ml_dtypes.bfloat16, out=own) is own
    same(bits, expected.view(np.uint16))
    same(own, expected)


@pytest.mark.parametrize("dtype", ["int8", np.int32, "complex64", "bool", object])
def test_decode_to_something_else_is_refused(dtype):
    with pytest.raises(TypeError, match="dtype"):
        qz.quantize(X).dequantize(dtype=dtype)


def test_out_that_overlaps_the_parts():
    memory = np.zeros(4 * 64 * 4, np.uint8)
    parts = dict(qz.quantize(X).parts)
    memory[:128] = parts["packed"].reshape(-1)
    parts["packed"] = memory[:128].reshape(4, 32)
    q = qz.from_parts("int4", parts)
    with pytest.raises(ValueError, match="out.*memory of the input"):
        q.dequantize(out=memory.view(np.float32).reshape(4, 64))
    same(memory[:128].reshape(4, 32), parts["packed"])
    same(q.dequantize(), qz.quantize(X).dequantize())


# quantize(out=)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("axis", [-1, 0])
def test_encode_into_out_returns_those_arrays(name, axis):
    x = sample((256, 256))
    out = empty_parts(name, x, axis=axis)
    q = qz.quantize(x, name, axis=axis, out=out)
    for part, array in out.items():
        assert q.parts[part] is array
    same_parts(q.parts, FORMATS[name].encode(x, axis=axis))


def test_encode_into_out_of_bfloat16_scales():
    for scale_dtype in ("bfloat16", ml_dtypes.bfloat16):
        expected = FORMATS["int4"].encode(X, scale_dtype="bfloat16")
        if scale_dtype == "bfloat16":
            expected = {part: as_bits(array) for part, array in expected.items()}
        out = {part: np.full(a.shape, 7, a.dtype) for part, a in expected.items()}
        qz.quantize(X, scale_dtype=scale_dtype, out=out)
        same_parts(out, expected)


def test_encode_into_a_memory_map_and_the_middle_of_a_buffer(tmp_path):
    mapped = np.memmap(tmp_path / "packed", np.uint8, "w+", shape=(4, 32))
    buffer = np.full((3, 4, 2), 7, np.float16)
    q = qz.quantize(X, out={"packed": mapped, "scales": buffer[1]})
    assert q.parts["packed"] is mapped
    same(np.fromfile(tmp_path / "packed", np.uint8).reshape(4, 32), FORMATS["int4"].encode(X)["packed"])
    same(buffer[1], FORMATS["int4"].encode(X)["scales"])
    assert (buffer[[0, 2]] == 7).all()


def test_out_of_any_mapping_and_order():
    out = empty_parts("uint4")
    backwards = types.MappingProxyType(dict(reversed(out.items())))
    q = qz.quantize(X, "uint4", out=backwards)
    assert list(q.parts) == ["packed", "scales", "zero_points"]
    same_parts(q.parts, FORMATS["uint4"].encode(X))


def strided(a):
    return np.full((*a.shape[:-1], 2 * a.shape[-1]), 7, a.dtype)[..., ::2]


def locked(a):
    a = a.copy()
    a.setflags(write=False)
    return a


WRONG_PARTS = [
    ("packed", lambda a: np.full((4, 33), 7, np.uint8), ValueError, r"packed.* has shape \(4, 33\).*\(4, 32\)"),
    ("packed", lambda a: a.reshape(-1), ValueError, r"packed.* has shape \(128,\).*\(4, 32\)"),
    ("packed", lambda a: a.view(np.int8), TypeError, "packed.* has dtype int8; expected uint8"),
    ("packed", strided, ValueError, "packed.*contiguous"),
    ("packed", locked, ValueError, "packed.*(writ|read-only)"),
    ("packed", lambda a: a.tolist(), TypeError, "packed"),
    ("scales", lambda a: np.full((4, 3), 7, np.float16), ValueError, r"scales.* has shape \(4, 3\).*\(4, 2\)"),
    ("scales", lambda a: a.astype(np.float32), TypeError, "scales.* has dtype float32; expected float16"),
    ("scales", lambda a: a.astype(">f2"), (TypeError, ValueError), "scales"),
]


@pytest.mark.parametrize(("part", "change", "error", "message"), WRONG_PARTS, ids=range(len(WRONG_PARTS)))
def test_a_wrong_part_is_refused_before_the_first_write(part, change, error, message):
    out = empty_parts()
    out[part] = change(out[part])
    with pytest.raises(error, match=message):
        qz.quantize(X, out=out)
    assert all((np.asarray(array) == 7).all() for array in out.values())


def test_missing_and_unknown_parts_are_named():
    out = empty_parts()
    with pytest.raises(ValueError, match="out.*scales"):
        qz.quantize(X, out={"packed": out["packed"]})
    with pytest.raises(ValueError, match="out.*zero_points"):
        qz.quantize(X, out={**out, "zero_points": np.full((4, 1), 7, np.uint8)})
    with pytest.raises(TypeError, match="out"):
        qz.quantize(X, out=out["packed"])
    assert (out["packed"] == 7).all()


def test_parts_that_overlap_the_input_or_each_other():
    memory = np.zeros(4 * 64 * 4, np.uint8)
    x = memory.view(np.float32).reshape(4, 64)
    x[...] = X
    out = empty_parts()
    with pytest.raises(ValueError, match="packed.*memory of the input"):
        qz.quantize(x, out={**out, "packed": memory[100:228].reshape(4, 32)})
    same(x, X)
    shared = np.full(140, 7, np.uint8)
    with pytest.raises(ValueError, match="scales.*memory of another output"):
        qz.quantize(X, out={"packed": shared[:128].reshape(4, 32), "scales": shared[120:136].view(np.float16).reshape(4, 2)})
    assert (shared == 7).all()
