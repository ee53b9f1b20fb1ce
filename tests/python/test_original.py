"""The four functions of the original package: equal where it was right, repaired where it was not."""

import re

import ml_dtypes
import numpy as np
import pytest
from helpers import load, python, same
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import quantize as qz

INPUTS = load("inputs")
ORIGINAL = load("original_quantize")
CASES = sorted({key.split("/")[0] for key in ORIGINAL})

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, max_side=20)
FLOATS = st.one_of(
    hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
    hnp.arrays(np.float64, SHAPES, elements=st.floats(-1e300, 1e300)),
)
CODES = hnp.arrays(np.int8, hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=9), elements=st.integers(-8, 7))


def original_absmax(x):
    """The formula of the original, with the clip before the cast."""
    x = np.asarray(x, np.float32)
    scale = np.abs(x).max() / np.float32(7)
    scale = scale if scale != 0 else np.float32(1)
    return np.clip(np.rint(x / scale), -8, 7).astype(np.int8), scale


@pytest.mark.parametrize("case", CASES)
def test_absmax_equals_the_original(case):
    x = INPUTS[case]
    expected = {field: ORIGINAL[f"{case}/absmax/{field}"] for field in ("codes", "scale", "zero_point", "packed", "dequant")}
    codes, scale, zero_point = qz.quantize_to_int4(x, scale_method="absmax")
    assert codes.shape == x.shape
    same(codes.ravel(), expected["codes"])
    assert scale == expected["scale"]
    assert zero_point == expected["zero_point"]
    same(qz.pack_int4_to_int8(codes.ravel()), expected["packed"])
    same(qz.dequantize_from_int4(codes, scale, zero_point).ravel(), expected["dequant"].ravel())


@given(hnp.arrays(np.float32, SHAPES, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_absmax_is_its_formula(x):
    codes, scale, zero_point = qz.quantize_to_int4(x, "absmax")
    expected, expected_scale = original_absmax(x)
    same(codes, np.asarray(expected))
    assert isinstance(scale, np.float32)
    assert (scale, zero_point) == (expected_scale, 0)


@given(FLOATS)
@example(np.array([0.0, 5e-324]))
@example(np.array([-5e-324, 4e-323]))
@example(np.array([1e17, 1e17 + 16]))
@example(np.array([1e9, 1e9 + 1]))
@example(np.array([0.5, 15.5]))
def test_minmax_is_within_half_a_step(x):
    codes, scale, zero_point = qz.quantize_to_int4(x)
    assert codes.dtype == np.int8
    assert codes.shape == x.shape
    assert -8 <= codes.min() <= codes.max() <= 7
    assert isinstance(scale, np.float64)
    assert type(zero_point) is int
    decoded = qz.dequantize_from_int4(codes, scale, zero_point)
    assert decoded.dtype == np.float64
    # Besides half a step there is the rounding of float64 itself: of the quotient, and of the product.
    error, rounding = np.abs(decoded - x), 4 * np.spacing(np.abs(x).max().astype(np.float64))
    assert (error <= scale / 2 + rounding).all()


def test_minmax_uses_the_whole_range():
    codes, scale, zero_point = qz.quantize_to_int4([0, 1, 2, 3, 4, 5])
    same(codes, np.array([-8, -5, -2, 1, 4, 7], np.int8))
    assert (scale, zero_point) == (5 / 15, -8)
    codes, scale, zero_point = qz.quantize_to_int4(np.linspace(10, 20, 16, dtype=np.float32))
    same(codes, np.arange(-8, 8, dtype=np.int8))
    assert (scale, zero_point) == (10 / 15, -23)


@pytest.mark.parametrize(("constant", "scale", "code"), [(3.5, 3.5, 1), (-3.5, 3.5, -1), (0.1, 0.1, 1), (0.0, 1.0, 0), (1e300, 1e300, 1)])
def test_minmax_of_a_constant_is_exact(constant, scale, code):
    codes, found, zero_point = qz.quantize_to_int4(np.full((2, 3), constant))
    same(codes, np.full((2, 3), code, np.int8))
    assert (found, zero_point) == (scale, 0)
    assert (qz.dequantize_from_int4(codes, found, zero_point) == constant).all()


@pytest.mark.parametrize("method", ["minmax", "absmax"])
@pytest.mark.parametrize("values", [[200.0] * 3, [1000, 1000.5, 1001], [-99, -100, -101], [1e30, 1e30]])
def test_no_code_wraps(method, values):
    """The original cast before it clipped: 200 became -56, which became -8."""
    codes, scale, zero_point = qz.quantize_to_int4(values, method)
    decoded = qz.dequantize_from_int4(codes, scale, zero_point)
    assert np.allclose(decoded, values, rtol=0.07)


@pytest.mark.parametrize("method", ["minmax", "absmax"])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16, np.int8, np.int64, np.bool_])
def test_any_real_numbers_are_taken(method, dtype):
    x = np.array([[0, 1, 1], [1, 0, 1]]).astype(dtype)
    codes, scale, zero_point = qz.quantize_to_int4(x, method)
    expected = qz.quantize_to_int4(x.astype(np.float64).tolist(), method)
    same(codes, expected[0])
    assert (scale, zero_point) == expected[1:]


@pytest.mark.parametrize("method", ["minmax", "absmax"])
@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ([], ValueError, "values is empty; a scale needs at least one element"),
        ([1.0, np.nan], ValueError, "values holds NaN, an infinity or a number beyond float"),
        ([1.0, -np.inf], ValueError, "values holds NaN, an infinity or a number beyond float"),
        ([1j], TypeError, "values has dtype complex128; expected real numbers"),
        (["one"], TypeError, "values has dtype <U3; expected real numbers"),
        ([None], TypeError, "values has dtype object; expected real numbers"),
    ],
)
def test_bad_values(method, values, error, message):
    with pytest.raises(error, match=re.escape(message)):
        qz.quantize_to_int4(values, method)


def test_beyond_the_largest_float():
    with pytest.raises(ValueError, match="a number beyond float32"):
        qz.quantize_to_int4([1e39], "absmax")
    with pytest.raises(ValueError, match="the range of values is beyond the largest float64"):
        qz.quantize_to_int4([-1.7e308, 1.7e308])


def test_unknown_method():
    with pytest.raises(ValueError, match="scale_method is 'mean'; expected 'minmax' or 'absmax'"):
        qz.quantize_to_int4([1.0], "mean")


def test_the_zero_point_counts():
    same(qz.dequantize_from_int4([-8, 0, 7], np.float32(0.5), -3), np.array([-2.5, 1.5, 5.0], np.float32))
    same(qz.dequantize_from_int4([[1]], 2.0, 3), np.array([[-4.0]], np.float32))


@pytest.mark.parametrize(
    ("scale", "dtype"),
    [(0.1, np.float32), (1, np.float32), (np.float16(0.1), np.float32), (np.float32(0.1), np.float32), (np.float64(0.1), np.float64)],
)
def test_the_scale_decides_the_dtype(scale, dtype):
    codes = np.arange(-8, 8, dtype=np.int8)
    same(qz.dequantize_from_int4(codes, scale), codes.astype(dtype) * dtype(scale))


@given(CODES)
def test_packing_pairs_the_first_axis(codes):
    packed = qz.pack_int4_to_int8(codes)
    assert packed.dtype == np.int8
    assert packed.shape == (-(-len(codes) // 2), *codes.shape[1:])
    padded = np.concatenate([codes, np.zeros((len(codes) % 2, *codes.shape[1:]), np.int8)])
    same(packed.view(np.uint8), ((padded[0::2] & 15) | (padded[1::2] & 15) << 4).view(np.uint8))
    same(qz.unpack_int8_to_int4(packed), padded)
    same(qz.unpack_int8_to_int4(packed.view(np.uint8)), padded)
    same(qz.unpack_int8_to_int4(packed.astype(np.int64)), padded)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.int64])
def test_packing_takes_lists_and_any_integers(dtype):
    expected = np.array([-31, 7], np.int8)
    same(qz.pack_int4_to_int8(np.array([1, -2, 7], dtype)), expected)
    same(qz.pack_int4_to_int8([1, -2, 7]), expected)
    same(qz.pack_int4_to_int8([]), np.empty(0, np.int8))
    same(qz.unpack_int8_to_int4([-31, 7]), np.array([1, -2, 7, 0], np.int8))
    same(qz.unpack_int8_to_int4([]), np.empty(0, np.int8))


@pytest.mark.parametrize("code", [-9, 8, 15, 127, -128, 256, -257, 2**40])
def test_packing_never_wraps(code):
    with pytest.raises(ValueError, match="codes"):
        qz.pack_int4_to_int8([0, code])


@pytest.mark.parametrize(
    ("call", "argument", "error", "message"),
    [
        ("pack_int4_to_int8", [0.5], TypeError, "codes"),
        ("pack_int4_to_int8", 3, ValueError, "codes is a single number; expected an array"),
        ("unpack_int8_to_int4", [0.5], TypeError, "packed has dtype float64; expected int8 or uint8"),
        ("unpack_int8_to_int4", [128], ValueError, "packed holds a number outside -128..127; expected bytes"),
        ("unpack_int8_to_int4", 3, ValueError, "packed is a single number; expected an array"),
    ],
)
def test_bad_codes(call, argument, error, message):
    with pytest.raises(error, match=message):
        getattr(qz, call)(argument)


def test_both_import_paths():
    """``quantize.quantize`` is the module for an import from it, and stays the function for everybody else."""
    printed = python(
        "from quantize.quantize import pack_int4_to_int8, quantize_to_int4, dequantize_from_int4, unpack_int8_to_int4\n"
        "import quantize, quantize.quantize, numpy\n"
        "assert quantize.pack_int4_to_int8 is pack_int4_to_int8\n"
        "assert quantize.unpack_int8_to_int4 is unpack_int8_to_int4\n"
        "assert quantize.quantize_to_int4 is quantize_to_int4\n"
        "assert quantize.dequantize_from_int4 is dequantize_from_int4\n"
        "print(quantize.quantize(numpy.ones((1, 32), numpy.float32)).format)\n"
    )
    assert printed == "int4\n"
