"""The slow reference against the projects that own the formats, and against readings of the rules that share no line with it."""

import importlib.util
import math
import struct

import ml_dtypes
import numpy as np
import pytest
from golden import cases
from helpers import KINDS, VECTORS, load, same, same_parts, sample
from reference import FORMATS, e2m1

import quantize as qz


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("int4", "uint4")])
def test_the_bytes_and_values_of_the_projects(name):
    for case in cases(name):
        if case.x is not None:
            same_parts(FORMATS[name].encode(case.x, **case.options), case.parts, case.key)
        if case.values is not None:
            values = FORMATS[name].decode(case.parts, case.values.shape, **case.options)
            same(values.astype(case.values.dtype), case.values, case.key)


def f32(value):
    """Round a Python float (float64) to float32. One operation in float64, then this, is one float32 operation."""
    return float(np.float32(value))


def round_scale(value, dtype):
    """A float32 scale in the dtype that stores it, by struct or by the bits; subnormal as float32 becomes 0."""
    if dtype == "float16":
        value = struct.unpack("<e", struct.pack("<e", value))[0]
    elif dtype == "bfloat16":
        word = struct.unpack("<I", struct.pack("<f", value))[0]
        word += 0x7FFF + (word >> 16 & 1)
        value = struct.unpack("<f", struct.pack("<I", word & 0xFFFF0000))[0]
    return value if abs(value) >= 2.0**-126 else 0.0


def read_int4(group, dtype):
    """One group in plain Python: scale and codes."""
    largest = 0.0
    for x in group:
        if abs(x) > abs(largest):
            largest = x
    scale = round_scale(f32(largest / -8), dtype)
    if scale == 0:
        return 0.0, [0] * len(group)
    inverse = f32(1 / scale)
    return scale, [max(-8, min(7, round(f32(x * inverse)))) for x in group]


def read_uint4(group, dtype):
    """One group in plain Python: scale, zero point and codes."""
    low, high = min(0.0, *group), max(0.0, *group)
    scale = round_scale(f32(f32(high / 15) - f32(low / 15)), dtype)
    if scale == 0:
        return 0.0, 0, [0] * len(group)
    inverse = f32(1 / scale)
    zero_point = max(0, min(15, round(f32(-low * inverse))))
    return scale, zero_point, [max(0, min(15, round(f32(x * inverse)) + zero_point)) for x in group]


def cut(row, size):
    return [row[start : start + size] for start in range(0, len(row), size)]


def nibbles(codes):
    """Two codes a byte, the first one low."""
    codes = [code & 15 for code in codes] + [0] * (len(codes) % 2)
    return [low | high << 4 for low, high in zip(codes[0::2], codes[1::2], strict=True)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "huge"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1, 5, 32, "row"])
def test_int4_by_hand(kind, dtype, size):
    x = sample((3, 67), kind=kind)
    parts = FORMATS["int4"].encode(x, group_size=size, scale_dtype=dtype)
    decoded = FORMATS["int4"].decode(parts, x.shape, group_size=size)
    for row, packed, scales, values in zip(x.tolist(), parts["packed"], parts["scales"], decoded, strict=True):
        groups = [read_int4(group, dtype) for group in cut(row, 67 if size == "row" else size)]
        assert packed.tolist() == nibbles([code for _, codes in groups for code in codes])
        assert scales.tolist() == [scale for scale, _ in groups]
        expected = [f32(code * scale) for scale, codes in groups for code in codes]
        assert [math.copysign(1, v) * (v or 2) for v in values.tolist()] == [math.copysign(1, v) * (v or 2) for v in expected]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "huge"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("size", [1, 5, 32, "row"])
def test_uint4_by_hand(kind, dtype, size):
    x = sample((3, 67), kind=kind)
    parts = FORMATS["uint4"].encode(x, group_size=size, scale_dtype=dtype)
    decoded = FORMATS["uint4"].decode(parts, x.shape, group_size=size)
    rows = zip(x.tolist(), parts["packed"], parts["scales"], parts["zero_points"], decoded, strict=True)
    for row, packed, scales, zero_points, values in rows:
        groups = [read_uint4(group, dtype) for group in cut(row, 67 if size == "row" else size)]
        assert packed.tolist() == nibbles([code for *_, codes in groups for code in codes])
        assert scales.tolist() == [scale for scale, *_ in groups]
        assert zero_points.tolist() == nibbles([zero_point for _, zero_point, _ in groups])
        assert values.tolist() == [f32((code - z) * scale) for scale, z, codes in groups for code in codes]


def test_the_whole_tensor_is_one_group():
    x = sample((4, 9), seed=3)
    for name in ("int4", "uint4"):
        flat = FORMATS[name].encode(x.reshape(1, -1), group_size="row")
        parts = FORMATS[name].encode(x, group_size="tensor")
        assert parts["scales"].shape == (1, 1)
        same(parts["scales"], flat["scales"])
        same(
            FORMATS[name].decode(parts, x.shape, group_size="tensor").reshape(1, -1), FORMATS[name].decode(flat, (1, 36), group_size="row")
        )


def test_nibbles_are_those_of_onnx():
    """One group with scale 1: the codes are the elements, the bytes those of an INT4 tensor."""
    vectors = load("plain_int4")
    codes = vectors["n16/int4_codes"]
    x = np.concatenate([codes, [-8]]).astype(np.float32)
    parts = FORMATS["int4"].encode(x, group_size="row")
    assert parts["scales"] == [1]
    same(parts["packed"][:8], vectors["n16/int4_packed"])


def test_policies_for_what_is_not_finite():
    x = np.array([[1, -3, np.nan, np.inf], [np.inf, np.nan, -np.inf, -np.inf]], np.float32)
    int4 = FORMATS["int4"]
    with pytest.raises(ValueError, match="6 elements"):
        int4.encode(x)
    zeroed = np.array([[1, -3, 0, 0], [0, 0, 0, 0]], np.float32)
    clipped = np.array([[1, -3, 0, 3], [0, 0, 0, 0]], np.float32)
    same(int4.encode(x, nonfinite="zero")["packed"], int4.encode(zeroed)["packed"])
    same(int4.encode(x, nonfinite="clip")["packed"], int4.encode(clipped)["packed"])


@pytest.mark.parametrize("name", ["int4", "uint4", "gguf:q4_0", "gguf:q4_1", "mlx", "gguf:q4_k", "gguf:iq4_nl", "gguf:iq4_xs"])
def test_a_scale_beyond_its_dtype_is_an_error(name):
    x = np.full((1, 256), 3e38, np.float32)
    x[0, 1] = -3e38
    with pytest.raises(OverflowError):
        FORMATS[name].encode(x)


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_own_vectors_are_frozen(name):
    spec = importlib.util.spec_from_file_location("make_own", VECTORS / "make_own.py")
    make_own = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(make_own)
    made, frozen = make_own.vectors(name), load(name)
    assert list(made) == list(frozen)
    for key, array in made.items():
        same(array, frozen[key], key)


def test_bfloat16_scales_round_to_even():
    """The halfway case of a bfloat16 scale, which ml_dtypes and the bits must settle alike."""
    for word in (0x3F808000, 0x3F818000, 0x3F807FFF, 0x3F808001):
        value = struct.unpack("<f", struct.pack("<I", word))[0]
        assert float(np.float32(value).astype(ml_dtypes.bfloat16)) == round_scale(value, "bfloat16")


GGML_BLOCKS = ["gguf:q4_k", "gguf:iq4_nl", "gguf:iq4_xs", "gguf:nvfp4"]


def adversarial(kind):
    """What searches and 6-bit factors stumble over, (12, 1024)."""
    random = np.random.default_rng(11)
    normal = random.standard_normal((12, 1024))
    groups = np.repeat(10.0 ** random.uniform(-6, 3, (12, 32)), 32, 1)
    constant = np.repeat(random.standard_normal((12, 32)) * 1e3, 32, 1)
    negative = normal * 1e-3
    negative[:, :32] = -1e5  # the shared minimum dwarfs every other group
    outlier = normal * 0.01
    outlier[:, 77] = 1e3
    zeros = np.where(random.random((12, 1024)) < 0.7, np.where(random.random((12, 1024)) < 0.5, 0.0, -0.0), normal)
    zeros[:, 256:512] = -0.0
    return {
        "ties": random.integers(-32, 33, (12, 1024)) / 4,
        "midpoints": random.choice([-127, -115.5, -93.5, -74, -57, -42, -28.5, -16, -4.5, 7, 19, 31.5, 45.5, 61, 79, 101], (12, 1024)),
        "scales apart": normal * groups,
        "constant groups": constant,
        "one minimum": negative,
        "outlier": outlier,
        "zeros": zeros,
        "negative": -np.abs(normal),
        "positive": np.abs(normal) + 2,
        "tiny": normal * 1e-14,
        "below the search": normal * 1e-16,
        "subnormal": normal * 1e-40,
    }[kind].astype(np.float32)


ADVERSARIAL = (
    *("ties", "midpoints", "scales apart", "constant groups", "one minimum", "outlier"),
    *("zeros", "negative", "positive", "tiny", "below the search", "subnormal"),
)


@pytest.mark.parametrize("kind", ADVERSARIAL)
@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_product_and_reference_agree_on_what_is_hard(name, kind):
    x = adversarial(kind)
    q, parts = qz.quantize(x, name), FORMATS[name].encode(x)
    same(q.parts["blocks"], parts["blocks"])
    same(q.dequantize(), FORMATS[name].decode(parts, x.shape))


@pytest.mark.parametrize("scale", [1e30, 3e37])
def test_nvfp4_of_what_is_far_beyond_its_scales(scale):
    x = sample((8, 256)) * np.float32(scale)
    same(qz.quantize(x, "gguf:nvfp4").parts["blocks"], FORMATS["gguf:nvfp4"].encode(x)["blocks"])


@pytest.mark.parametrize("name", GGML_BLOCKS)
def test_any_bytes_decode_as_in_the_reference(name):
    x = sample((16, 1024))
    shape = qz.quantize(x, name).parts["blocks"].shape
    blocks = np.random.default_rng(12).integers(0, 256, shape, np.uint8)
    with np.errstate(over="ignore", invalid="ignore"):
        expected = FORMATS[name].decode({"blocks": blocks}, x.shape)
    values = qz.from_parts(name, {"blocks": blocks}).dequantize()
    numbers = ~np.isnan(expected)
    same(np.isnan(values), ~numbers)
    same(values[numbers], expected[numbers])


@pytest.mark.parametrize("name", ["gguf:q4_k", "gguf:iq4_xs"])
def test_two_levels_of_scales_cannot_be_made_from_others(name):
    x = sample((4, 256))
    with pytest.raises(qz.LossyConversionError, match=f"the scales of {name} are multiples of one for each 256 elements"):
        qz.quantize(x, "gguf:q4_0").to(name)
    assert qz.quantize(x, "gguf:q4_0").to(name, requantize=True).format == name
    q = qz.quantize(x * np.float32(1e-6), name)  # the shared scale is 0 in float16, the factors are not
    assert q.to(name).identical(q)


def test_numbers_of_e2m1_and_powers_are_those_of_ml_dtypes():
    same(np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float32), e2m1.NUMBERS)
    exponents = np.arange(256, dtype=np.uint8)
    powers = exponents.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    same(e2m1.power(exponents)[:255], powers[:255])
    assert np.isnan(e2m1.power(exponents)[255])


def test_rounding_to_e2m1_is_that_of_ml_dtypes():
    """Every float16, which has all ties; only the sign of what becomes zero is a matter of the project."""
    x = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    x = x[np.isfinite(x)].astype(np.float32)
    expected = x.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    same(e2m1.nearest_even(x)[(expected & 7) != 0], expected[(expected & 7) != 0])
    assert set(e2m1.nearest_even(x[(expected & 7) == 0])) == {0, 8}
    assert e2m1.nearest_even(np.array([-0.0, -0.25, 0.25], np.float32)).tolist() == [0, 8, 0]
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 7, -0.25, -0.75, -5], np.float32)
    assert e2m1.nearest_toward_zero(ties).tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 0, 9, 14]


def test_exponents_of_the_smallest_groups_are_those_of_mlx():
    """As mlx 0.32.4 has them where it does not wrap around: a sixth that underflows is a group of zeros."""
    largest = np.array([1e-45, 4e-45, 5.999999 * 2.0**-127, 6 * 2.0**-127, 6.000001 * 2.0**-127, 12 * 2.0**-127], np.float32)
    assert e2m1.round_up(np.repeat(largest[:, None], 32, 1)).tolist() == [127, 127, 0, 0, 1, 1]
