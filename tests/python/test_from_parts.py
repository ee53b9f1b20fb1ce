"""from_parts: arrays that somebody else stored, checked against each other before they are believed."""

import ml_dtypes
import numpy as np
import pytest
from helpers import BFLOAT16, BY_ROWS, same, sample
from reference import FORMATS

import quantize as qz

ALL = sorted(BY_ROWS)
X = sample((3, 4, 64))
BLOCKS = sample((3, 4, 256))  # whole blocks of every format


def stored(name="int4", x=X, **options):
    return dict(qz.quantize(x, name, **options).parts)


CASES = [
    *((name, {}) for name in ALL),
    *((name, {"axis": 0}) for name in ("int4", "uint4")),
    *((name, {"group_size": g}) for name in ("int4", "uint4") for g in (1, 5, 64, 100, "row", "tensor")),
    *((name, {"scale_dtype": s}) for name in ("int4", "uint4", "mlx") for s in ("bfloat16", "float32", ml_dtypes.bfloat16)),
    *(("mlx", {"group_size": g}) for g in (32, 64)),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_what_was_stored_comes_back(name, options):
    q = qz.quantize(BLOCKS, name, **options)
    known = {key: value for key, value in options.items() if key != "scale_dtype"}
    back = qz.from_parts(name, dict(q.parts), shape=BLOCKS.shape, **known)
    assert back.identical(q)
    same(back.dequantize(), q.dequantize())
    for part in q.parts:
        assert np.shares_memory(back.parts[part], q.parts[part])


@pytest.mark.parametrize("name", ALL)
def test_the_shape_follows_from_the_parts(name):
    q = qz.quantize(BLOCKS, name)
    assert qz.from_parts(name, dict(q.parts)).identical(q)


LARGEST = [  # elements of a row, group size, and the largest row that its parts allow
    (63, 32, 64),
    (64, 32, 64),
    (65, 32, 66),
    (7, 5, 8),
    (5, 5, 5),  # three bytes would hold six, but one group of five no more than five
    (9, 3, 9),
    (10, 3, 10),
    (1, 1, 1),
    (2, 1, 2),
    (7, "row", 8),
    (7, "tensor", 8),
]


@pytest.mark.parametrize("name", ["int4", "uint4"])
@pytest.mark.parametrize(("columns", "group_size", "largest"), LARGEST)
def test_without_a_shape_the_row_is_the_longest_that_fits(name, columns, group_size, largest):
    x = sample((2, columns))
    parts = stored(name, x, group_size=group_size)
    q = qz.from_parts(name, parts, group_size=group_size)
    assert q.shape == (2, largest)
    same(np.ascontiguousarray(q.dequantize()[:, :columns]), qz.quantize(x, name, group_size=group_size).dequantize())
    assert qz.from_parts(name, parts, shape=(2, columns), group_size=group_size).identical(qz.quantize(x, name, group_size=group_size))


def test_shape_counts_the_axes_of_the_caller():
    x = sample((64, 3))
    parts = stored("int4", x, axis=0)
    assert parts["packed"].shape == (3, 32)
    assert qz.from_parts("int4", parts, axis=0).shape == (64, 3)
    assert qz.from_parts("int4", parts, axis=0, shape=(63, 3)).shape == (63, 3)
    with pytest.raises(ValueError, match="packed|shape"):
        qz.from_parts("int4", parts, axis=0, shape=(3, 64))


@pytest.mark.parametrize(("name", "part"), [("int4", "packed"), ("int4", "scales"), ("uint4", "zero_points"), ("gguf:q4_0", "blocks")])
def test_a_missing_part_is_named(name, part):
    parts = stored(name)
    del parts[part]
    with pytest.raises(ValueError, match=f"(?i){part}"):
        qz.from_parts(name, parts)


@pytest.mark.parametrize(("name", "part"), [("int4", "zero_points"), ("gguf:q4_0", "scales"), ("uint4", "g_idx")])
def test_an_unknown_part_is_named(name, part):
    with pytest.raises(ValueError, match=part):
        qz.from_parts(name, {**stored(name), part: np.zeros((3, 4, 2), np.uint8)})


WRONG = [
    ("int4", "packed", lambda a: a.astype(np.int32), TypeError, r"packed.* has dtype int32; expected uint8"),
    ("int4", "packed", lambda a: a.view(np.int8), TypeError, r"packed.* has dtype int8; expected uint8"),
    ("int4", "packed", lambda a: a.astype(np.float32), TypeError, r"packed.* has dtype float32; expected uint8"),
    ("int4", "scales", lambda a: a.astype(np.float64), TypeError, r"scales.* has dtype float64; expected"),
    ("int4", "scales", lambda a: a.astype(np.int16), TypeError, r"scales.* has dtype int16; expected"),
    ("uint4", "zero_points", lambda a: a.astype(np.int64), TypeError, r"zero_points.* has dtype int64; expected uint8"),
    ("gguf:q4_0", "blocks", lambda a: a.astype(np.uint16), TypeError, r"blocks.* has dtype uint16; expected uint8"),
    ("int4", "scales", lambda a: a[..., :1], ValueError, r"scales.* has shape \(3, 4, 1\)"),
    ("int4", "scales", lambda a: a[:2], ValueError, r"scales.* has shape \(2, 4, 2\)"),
    ("int4", "scales", lambda a: a[0], ValueError, r"scales.* has shape \(4, 2\)"),
    ("int4", "scales", lambda a: np.repeat(a, 2, -1), ValueError, r"scales.* has shape \(3, 4, 4\)"),
    ("uint4", "zero_points", lambda a: np.repeat(a, 2, -1), ValueError, r"zero_points.* has shape \(3, 4, 2\)"),
    ("gguf:q4_0", "blocks", lambda a: a[..., :-1], ValueError, r"blocks.* has shape \(3, 4, 35\)"),
    ("gguf:q4_1", "blocks", lambda a: a[..., 1:], ValueError, r"blocks.* has shape \(3, 4, 39\)"),
    ("mlx", "weight", lambda a: a.view(np.int32), TypeError, r"weight.* has dtype int32; expected uint32"),
    ("mlx", "weight", lambda a: a.view(np.uint8), TypeError, r"weight.* has dtype uint8; expected uint32"),
    ("mlx", "biases", lambda a: a.astype(np.float16), TypeError, r"biases.* has dtype float16; expected float32"),
    ("mlx", "scales", lambda a: np.repeat(a, 2, -1), ValueError, r"scales.* has shape \(3, 4, 2\)"),
    ("mlx:mxfp4", "scales", lambda a: a.view(np.int8), TypeError, r"scales.* has dtype int8; expected uint8"),
    ("gguf:mxfp4", "blocks", lambda a: a[..., :-1], ValueError, r"blocks.* has shape \(3, 4, 33\)"),
    ("gptoss:mxfp4", "blocks", lambda a: a[..., :-1], ValueError, r"blocks.* has shape \(3, 4, 2, 15\)"),
    ("gptoss:mxfp4", "blocks", lambda a: a.reshape(3, 4, 32), ValueError, r"blocks.* has shape \(3, 4, 32\)"),
    ("gptoss:mxfp4", "scales", lambda a: a[..., :1], ValueError, r"scales.* has shape \(3, 4, 1\)"),
    ("int4", "packed", lambda a: a[0, 0, 0], ValueError, "packed"),
    ("int4", "packed", lambda a: None, TypeError, "packed"),
]


@pytest.mark.parametrize(("name", "part", "change", "error", "message"), WRONG, ids=range(len(WRONG)))
def test_a_part_that_does_not_fit_is_named(name, part, change, error, message):
    parts = stored(name)
    parts[part] = change(parts[part])
    with pytest.raises(error, match=message):
        qz.from_parts(name, parts, shape=X.shape)
    with pytest.raises(error):  # without a shape the fault may as well lie in another part
        qz.from_parts(name, parts)


@pytest.mark.parametrize("shape", [(3, 4, 62), (3, 4, 66), (3, 5, 64), (12, 64), (64,), (), (3, 4, -64), (2**62, 2**62, 64)])
def test_a_shape_that_the_parts_do_not_have(shape):
    with pytest.raises(ValueError):
        qz.from_parts("int4", stored(), shape=shape)


@pytest.mark.parametrize("shape", [(3, 4, 64.0), "abc", 5.0])
def test_a_shape_that_is_none(shape):
    with pytest.raises((TypeError, ValueError)):
        qz.from_parts("int4", stored(), shape=shape)


@pytest.mark.parametrize("group_size", [16, 31, 64, "row", "tensor", 0])
def test_a_group_size_that_the_scales_contradict(group_size):
    with pytest.raises(ValueError):
        qz.from_parts("int4", stored(), group_size=group_size)


def test_an_option_that_the_parts_contradict():
    with pytest.raises(ValueError, match="scale_dtype"):
        qz.from_parts("int4", stored(), scale_dtype="float32")
    assert qz.from_parts("int4", stored(), scale_dtype="float16").identical(qz.quantize(X))


def test_bfloat16_scales_in_either_dress():
    q = qz.quantize(X, scale_dtype="bfloat16")
    parts = dict(q.parts)
    assert parts["scales"].dtype == np.uint16
    own = {**parts, "scales": parts["scales"].view(BFLOAT16)}
    same(qz.from_parts("int4", parts).dequantize(), q.dequantize())
    same(qz.from_parts("int4", own).dequantize(), q.dequantize())
    assert qz.from_parts("int4", own).parts["scales"].dtype == BFLOAT16


LAYOUTS = [
    np.asfortranarray,
    lambda a: np.repeat(a, 2, -1)[..., ::2],
    lambda a: a[::-1].copy()[::-1],
    lambda a: a.copy().view(np.recarray),
    lambda a: a.astype(a.dtype.newbyteorder()),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=range(len(LAYOUTS)))
@pytest.mark.parametrize("name", ALL)
def test_parts_of_any_memory_layout(name, layout):
    q = qz.quantize(BLOCKS, name)
    back = qz.from_parts(name, {part: layout(array) for part, array in q.parts.items()})
    same(back.dequantize(), q.dequantize())
    same(back.codes(), q.codes())
    assert back.identical(q)


def test_read_only_parts():
    parts = stored()
    for array in parts.values():
        array.setflags(write=False)
    same(qz.from_parts("int4", parts).dequantize(), qz.quantize(X).dequantize())


@pytest.mark.parametrize("parts", [None, [1, 2], "packed", 3])
def test_parts_must_be_a_mapping(parts):
    with pytest.raises(TypeError, match="parts"):
        qz.from_parts("int4", parts)


@pytest.mark.parametrize("name", ALL)
def test_any_bytes_decode(name):
    """Whatever the bytes are, there is a result: scales may be NaN or infinite, and then so are values."""
    random = np.random.default_rng(0)
    shapes = stored(name, sample((40, 512)))
    parts = {part: random.integers(0, 256, a.nbytes, np.uint8).view(a.dtype).reshape(a.shape) for part, a in shapes.items()}
    with np.errstate(all="ignore"):
        expected = FORMATS[name].decode(parts, (40, 512))
        q = qz.from_parts(name, parts)
        decoded = q.dequantize()
        assert np.array_equal(decoded, expected, equal_nan=True)
        finite = np.isfinite(expected)
        same(decoded[finite], expected[finite])
        assert q.codes().shape == (40, 512)


def test_nibbles_of_every_value_decode():
    packed = np.arange(256, dtype=np.uint8).reshape(1, 256)
    scales = np.ones((1, 1), np.float32)
    q = qz.from_parts("int4", {"packed": packed, "scales": scales}, group_size="row")
    low, high = np.arange(256) % 16, np.arange(256) // 16
    signed = np.stack([low, high], -1).reshape(1, 512)
    signed = np.where(signed > 7, signed - 16, signed)
    assert (q.codes() == signed).all()
    assert (q.dequantize() == signed).all()


def test_numbers_of_every_exponent_and_code():
    """All 4096 pairs, against ml_dtypes: a number times a power of two is exact, except for what is too small or too large."""
    exponents = np.arange(256, dtype=np.uint8).reshape(256, 1)
    codes = np.broadcast_to(np.arange(32, dtype=np.uint8) % 16, (256, 32))
    packed = np.ascontiguousarray(codes[:, 0::2] | codes[:, 1::2] << 4)
    powers = exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float64)
    with np.errstate(over="ignore"):
        expected = (codes.view(ml_dtypes.float4_e2m1fn).astype(np.float64) * powers).astype(np.float32)
    for name, parts in (
        ("compressed-tensors:mxfp4", {"weight_packed": packed, "weight_scale": exponents}),
        ("gptoss:mxfp4", {"blocks": packed.reshape(256, 1, 16), "scales": exponents}),
        ("mlx:mxfp4", {"weight": packed.view(np.uint32), "scales": exponents}),
    ):
        q = qz.from_parts(name, parts)
        same(q.dequantize()[:255], expected[:255])
        assert np.isnan(q.dequantize()[255]).all()
        same(q.codes(), codes.astype(np.int8))
        assert (q.zero_points, q.minimums) == (None, None)
        if name.startswith("gptoss"):
            same(qz.from_parts(name, parts, shape=(256, 32)).dequantize()[:255], expected[:255])
