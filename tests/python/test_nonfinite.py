"""Elements that are not finite, and scales that do not fit: refused by default, counted under a policy."""

import warnings

import ml_dtypes
import numpy as np
import pytest
from helpers import BY_ROWS, same, same_parts, sample
from reference import FORMATS

import quantize as qz

ALL = sorted(BY_ROWS)
PLACES = [0, 1, 15, 16, 31, 32, 63, 64, 500, 511]


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ALL)
def test_one_anywhere_is_found(name, value):
    for place in PLACES:
        x = sample((3, 512))
        x[1, place] = value
        with pytest.raises(ValueError, match=rf"^1 element is not finite.* \(1, {place}\) is"):
            qz.quantize(x, name)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ALL)
def test_count_and_first_index_of_any_dtype(name, dtype):
    x = sample((4, 256)).astype(dtype)
    x[2, 7], x[2, 8], x[3, 0] = np.inf, np.nan, -np.inf
    with pytest.raises(ValueError, match=r"3 elements are not finite, the first at \(2, 7\) is inf"):
        qz.quantize(x, name)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_first_index_is_in_the_order_of_the_caller(axis):
    """Whatever axis the groups run along, the index is one that the caller can look up."""
    x = sample((32, 64, 96))
    x[20, 30, 40] = np.nan
    with pytest.raises(ValueError, match=r"at \(20, 30, 40\) is nan"):
        qz.quantize(x, axis=axis)


def test_far_into_a_large_array_and_from_every_thread():
    x = sample((1100, 1024))
    x[1000:, 5] = np.inf
    x[700, 1023] = np.nan
    for threads in (1, 2, 4):
        with pytest.raises(ValueError, match=r"101 elements are not finite, the first at \(700, 1023\) is nan"):
            qz.quantize(x, threads=threads)


@pytest.mark.parametrize("options", [{"group_size": "row"}, {"group_size": "tensor"}, {"group_size": 5}, {"group_size": 100_000}])
@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_in_groups_of_any_size(name, options):
    x = sample((3, 3000))
    x[1, 2999] = np.nan
    with pytest.raises(ValueError, match=r"at \(1, 2999\) is nan"):
        qz.quantize(x, name, **options)


@pytest.mark.parametrize("policy", ["zero", "clip"])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64])
@pytest.mark.parametrize("name", ALL)
def test_policies(name, policy, threads, dtype):
    x = sample((6, 512)).astype(dtype)
    random = np.random.default_rng(1)
    for value in (np.nan, np.inf, -np.inf):
        x[random.integers(0, 6, 40), random.integers(0, 512, 40)] = value
    x[2, :64] = np.inf
    x[2, 64:128] = np.nan
    x[3, 32:64] = np.where(random.random(32) < 0.5, 0, -np.inf)
    count = np.count_nonzero(~np.isfinite(x))
    with pytest.warns(qz.QuantizeWarning, match=str(count)) as caught:
        q = qz.quantize(x, name, nonfinite=policy, threads=threads)
    assert len(caught) == 1
    same_parts(q.parts, FORMATS[name].encode(x, nonfinite=policy))
    assert np.isfinite(q.dequantize()).all()


@pytest.mark.parametrize("policy", ["zero", "clip"])
@pytest.mark.parametrize("options", [{"group_size": "row"}, {"group_size": "tensor"}, {"group_size": 5}, {"group_size": 700}, {"axis": 0}])
@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_policies_in_groups_of_any_size(name, policy, options):
    x = sample((40, 1500))
    x[7, 3], x[20, 1400], x[39, 0] = np.inf, np.nan, -np.inf
    with pytest.warns(qz.QuantizeWarning, match="3 elements"):
        q = qz.quantize(x, name, nonfinite=policy, **options)
    same_parts(q.parts, FORMATS[name].encode(x, nonfinite=policy, **options))


def test_policies_on_a_large_array():
    x = sample((1100, 1024))
    x[::7, ::31] = np.inf
    count = np.count_nonzero(np.isinf(x))
    for threads in (1, 2, 4):
        with pytest.warns(qz.QuantizeWarning, match=str(count)):
            same_parts(qz.quantize(x, nonfinite="clip", threads=threads).parts, FORMATS["int4"].encode(x, nonfinite="clip"))


@pytest.mark.parametrize("policy", ["raise", "zero", "clip"])
def test_a_policy_that_was_not_needed_says_nothing(policy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert qz.quantize(sample((3, 64)), nonfinite=policy).identical(qz.quantize(sample((3, 64))))


@pytest.mark.parametrize("policy", ["keep", "", "RAISE", "ignore"])
def test_an_unknown_policy(policy):
    with pytest.raises(ValueError, match=f"nonfinite is .*{policy}.*raise.*zero.*clip"):
        qz.quantize(sample((3, 64)), nonfinite=policy)


@pytest.mark.parametrize("name", ALL)
def test_a_float64_beyond_float32_counts(name):
    x = sample((2, 256)).astype(np.float64)
    x[1, 3] = 1e39
    with pytest.raises(ValueError, match=r"1 element is not finite.*\(1, 3\)"):
        qz.quantize(x, name)
    with pytest.warns(qz.QuantizeWarning, match="1 element"):
        q = qz.quantize(x, name, nonfinite="clip")
    same_parts(q.parts, FORMATS[name].encode(x, nonfinite="clip"))


@pytest.mark.parametrize(("name", "what"), [("int4", "scale"), ("uint4", "scale"), ("gguf:q4_0", "scale"), ("gguf:q4_1", "scale")])
def test_a_scale_beyond_float16_names_the_group_and_the_way_out(name, what):
    x = sample((4, 96))
    x[2, 40] = 3e6
    with pytest.raises(ValueError, match=rf"the {what} of group \(2, 1\) is beyond the largest float16; use scale_dtype=float32"):
        qz.quantize(x, name)


def test_a_minimum_beyond_float16():
    x = np.full((2, 64), -1e5, np.float32)
    with pytest.raises(ValueError, match=r"the minimum of group \(0, 0\) is beyond the largest float16"):
        qz.quantize(x, "gguf:q4_1")


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_float32_scales_hold_what_float16_does_not(name):
    x = sample((4, 96), kind="huge") / 2
    for scale_dtype in ("float32", "bfloat16"):
        q = qz.quantize(x, name, scale_dtype=scale_dtype)
        same(q.dequantize(), FORMATS[name].decode(FORMATS[name].encode(x, scale_dtype=scale_dtype), x.shape))
        step = np.repeat(np.abs(q.scales.astype(np.float64)), 32, -1)
        assert (np.abs(q.dequantize() - x.astype(np.float64)) <= step * 1.04).all()


def test_the_largest_float_survives_float32_scales():
    x = np.array([[np.finfo(np.float32).max, 1, np.finfo(np.float32).min, 0]])
    q = qz.quantize(x.astype(np.float32), scale_dtype="float32")
    assert np.isfinite(q.scales).all()
    assert np.isfinite(q.dequantize()).all()
    assert q.dequantize()[0, 0] == np.finfo(np.float32).max


@pytest.mark.parametrize("axis", [0, 1])
def test_the_group_of_an_overflow_is_in_the_axes_of_the_caller(axis):
    x = sample((64, 64))
    x[40, 5] = 3e6
    group = (1, 5) if axis == 0 else (40, 0)
    with pytest.raises(ValueError, match=rf"group \({group[0]}, {group[1]}\)"):
        qz.quantize(x, axis=axis)


@pytest.mark.parametrize("kind", ["half subnormal", "half underflow", "float subnormal", "smallest normal", "zeros"])
@pytest.mark.parametrize("scale_dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_scales_that_vanish_become_zero(name, scale_dtype, kind):
    """A scale below 2**-126 is +0.0 with codes 0: everything decodes to 0, and nothing to NaN."""
    x = sample((9, 160), kind=kind)
    q = qz.quantize(x, name, scale_dtype=scale_dtype)
    same_parts(
        q.parts,
        {k: v.view(np.uint16) if v.dtype.name == "bfloat16" else v for k, v in FORMATS[name].encode(x, scale_dtype=scale_dtype).items()},
    )
    assert np.isfinite(q.dequantize()).all()
    dead = q.scales == 0
    assert not np.signbit(q.scales[dead]).any()
    values = q.dequantize().reshape(9, 5, 32)[dead]
    same(values, np.zeros_like(values))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("value", [0.0, -0.0, 0.3, -1.7, 1e-8, -65504.0])
def test_groups_of_one_value(name, value):
    x = np.full((2, 256), value, np.float32)
    q = qz.quantize(x, name)
    same_parts(q.parts, FORMATS[name].encode(x))
    if name == "gguf:nvfp4":  # three bits of mantissa, and no more than 6 * 448
        assert np.allclose(q.dequantize(), np.clip(x, -2688, 2688), rtol=2**-4, atol=2**-8)
    else:
        # Between 4 and 6 times a power of two a 4-bit float is coarse, and some rules clip up to a quarter.
        assert np.allclose(q.dequantize(), x, rtol=0.25 if "mxfp4" in name else 2**-10, atol=1e-7)
