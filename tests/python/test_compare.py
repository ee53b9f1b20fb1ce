"""compare() against the formulas, written in numpy with float64."""

import math

import numpy as np
import pytest
from helpers import BFLOAT16, BY_ROWS, python, sample
from reference import bnb, e2m1, iq4

import quantize as qz

ALL = sorted(BY_ROWS)
INFO = {row.name: row for row in qz.formats()}


def figures(a, b, axis=None):
    """The definitions: over the whole array, or along ``axis``."""
    a, b = np.asarray(a).astype(np.float32).astype(np.float64), np.asarray(b).astype(np.float32).astype(np.float64)
    error = b - a
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "rmse": np.sqrt((error**2).mean(axis)),
            "max_abs_error": np.abs(error).max(axis),
            "sqnr_db": 10 * np.log10((a**2).sum(axis) / (error**2).sum(axis)),
            "cosine": (a * b).sum(axis) / np.sqrt((a**2).sum(axis) * (b**2).sum(axis)),
        }


def close(comparison, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(comparison, name), value, rtol=1e-9, err_msg=name)


@pytest.mark.parametrize("kind", ["normal", "ties", "wide", "positive"])
@pytest.mark.parametrize("name", ALL)
def test_figures_of_a_quantized_array(name, kind):
    x = sample((40, 256), kind=kind)
    q = qz.quantize(x, name)
    result = qz.compare(x, q)
    assert isinstance(result, qz.Comparison)
    close(result, figures(x, q.dequantize()))
    assert result.bits_per_weight == q.bits_per_weight
    assert all(isinstance(getattr(result, name), float) for name in ("rmse", "max_abs_error", "sqnr_db", "cosine"))


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_groups_along_another_axis(axis):
    x = sample((50, 70))
    q = qz.quantize(x, axis=axis, group_size=7)
    close(qz.compare(x, q), figures(x, q.dequantize()))


@pytest.mark.parametrize("dtype", [np.float16, np.float64, BFLOAT16])
def test_a_reference_of_any_dtype_and_layout(dtype):
    x = sample((40, 64)).astype(dtype)
    q = qz.quantize(x)
    for reference in (x, np.asfortranarray(x), x[::-1].copy()[::-1]):
        close(qz.compare(reference, q), figures(x, q.dequantize()))


def test_two_arrays():
    a, b = sample((30, 40)), sample((30, 40), seed=1)
    close(qz.compare(a, b), figures(a, b))
    close(qz.compare(a, b.astype(np.float64)), figures(a, b))


@pytest.mark.parametrize("level", ["scalar", None])
def test_an_error_that_is_no_number_is_told_wherever_it_is(level):
    """In every lane of a vector, before and after larger errors, and behind the last whole vector."""
    code = """
import numpy as np
import quantize as qz
for place in range(21):
    for value in (np.nan, np.inf, -np.inf):
        a, b = np.zeros(21), np.arange(21.0)
        b[place] = value
        found = qz.compare(a, b).max_abs_error
        assert np.array_equal(found, np.abs(a - b).max(), equal_nan=True), (place, value, found)
"""
    python(code, **({} if level is None else {"QUANTIZE_LEVEL": level}))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_along_an_axis(axis):
    """One figure for every position of the other axes, as numpy's reductions have it."""
    x = sample((6, 8, 64))
    for q in (qz.quantize(x), qz.quantize(x, axis=0, group_size=3)):
        result = qz.compare(x, q, axis=axis)
        close(result, figures(x, q.dequantize(), axis))
        assert result.rmse.shape == np.delete(x.shape, axis).tolist() or result.rmse.shape == tuple(np.delete(x.shape, axis))


def test_large_arrays():
    x = sample((1100, 1024))
    q = qz.quantize(x)
    close(qz.compare(x, q), figures(x, q.dequantize()))


TABLES = {"bnb:nf4": bnb.NF4, "bnb:fp4": bnb.FP4, "gguf:iq4_nl": iq4.TABLE, "gguf:iq4_xs": iq4.TABLE}


def saturated(x, q):
    """Elements at the lowest or highest code whose error is more than half a step: they were clipped."""
    codes, error = q.codes(), np.abs(q.dequantize() - x)
    if INFO[q.format].scheme == "codebook":
        numbers = TABLES.get(q.format, e2m1.NUMBERS).astype(np.float64)
    else:
        low, high = INFO[q.format].codes
        codes = codes.astype(int) - low
        numbers = np.arange(high - low + 1.0)
    scale = np.abs(np.repeat(q.scales.reshape(-1), q.group_size).reshape(x.shape))
    clipped = np.zeros(x.shape, bool)
    for end in (numbers.argmin(), numbers.argmax()):
        step = np.sort(np.abs(np.unique(numbers) - numbers[end]))[1]
        clipped |= (codes == end) & (error > step * scale / 2)
    return np.count_nonzero(clipped)


@pytest.mark.parametrize("name", sorted(INFO))
def test_saturated_elements_are_counted(name):
    x = sample((40, 256))
    q = qz.quantize(x, name)
    assert qz.compare(x, q).saturated == saturated(x, q)
    assert qz.compare(3 * x, q).saturated == saturated(3 * x, q) > 40


def test_saturated_elements_along_an_axis():
    """Also of a format whose groups run over the whole array."""
    x = sample((4, 6, 32))
    for q in (qz.quantize(x, group_size="tensor"), qz.quantize(x, axis=0, group_size=2), qz.quantize(x, "bnb:nf4")):
        total = qz.compare(3 * x, q).saturated
        for axis in range(3):
            counts = qz.compare(3 * x, q, axis=axis).saturated
            assert counts.sum() == total > 0
            assert counts.shape == tuple(np.delete(x.shape, axis))


def test_saturated_at_the_far_end_of_a_symmetric_group():
    x = np.zeros((1, 32), np.float32)
    x[0, :2] = -8, 8  # 8 has no code of its own: it becomes 7
    assert qz.compare(x, qz.quantize(x)).saturated == 1


def test_equal_arrays():
    x = sample((4, 64))
    result = qz.compare(x, x)
    assert (result.rmse, result.max_abs_error, result.sqnr_db) == (0, 0, math.inf)
    assert result.cosine == pytest.approx(1)


def test_zeros():
    x = np.zeros((4, 64), np.float32)
    result = qz.compare(x, qz.quantize(x))
    assert (result.rmse, result.max_abs_error, result.saturated) == (0, 0, 0)


def test_empty_arrays():
    x = np.empty((0, 64), np.float32)
    result = qz.compare(x, qz.quantize(x))
    assert result.saturated == 0


def test_values_that_squares_would_overflow():
    x = sample((4, 64), kind="huge")
    q = qz.quantize(x, scale_dtype="float32")
    close(qz.compare(x, q), figures(x, q.dequantize()))


def test_shapes_must_agree():
    q = qz.quantize(sample((4, 64)))
    with pytest.raises(ValueError, match=r"\(4, 65\)"):
        qz.compare(sample((4, 65)), q)
    with pytest.raises(ValueError, match=r"\(1, 64\)"):
        qz.compare(sample((1, 64)), q)
    with pytest.raises(ValueError, match="axis"):
        qz.compare(sample((4, 64)), q, axis=2)
    with pytest.raises(TypeError, match="int32"):
        qz.compare(np.ones((4, 64), np.int32), q)


def test_repr_shows_the_figures():
    x = sample((4, 64))
    assert "rmse" in repr(qz.compare(x, qz.quantize(x)))


OPTIMUM = [
    ("int4", {"group_size": 24}),
    ("int4", {"group_size": "row"}),
    ("int4", {"group_size": "tensor"}),
    ("uint4", {}),
    ("gguf:q4_0", {}),
    ("gguf:q4_1", {}),
    ("gguf:iq4_nl", {}),
    ("gguf:mxfp4", {}),
    ("torchao:mxfp4", {"scale_rule": "even"}),
    ("gguf:nvfp4", {}),
    ("torchao:nvfp4", {"two_level": False}),
    ("bnb:nf4", {}),
    ("mlx", {}),
    ("hqq", {}),
    ("gptq", {}),
    ("gptq", {"symmetric": False}),
    ("awq", {}),
    ("onnx:qdq", {"symmetric": False}),
    ("compressed-tensors", {}),
]


@pytest.mark.parametrize("importance", [None, "magnitude", "columns", "elements"])
@pytest.mark.parametrize(("name", "options"), OPTIMUM)
def test_beside_the_best_codes_and_scales(name, options, importance):
    x = sample((16, 256))
    weights = {
        None: np.ones_like(x),
        "magnitude": np.sqrt((x.astype(np.float64) ** 2).mean(1, keepdims=True) + x.astype(np.float64) ** 2),
        "columns": np.broadcast_to(np.linspace(0.1, 2, 256, dtype=np.float32), x.shape),
        "elements": np.random.default_rng(1).random(x.shape, np.float32),
    }[importance]
    given = {"columns": weights[0], "elements": weights}.get(importance, importance)
    nearest, best = (
        qz.quantize(x, name, method=method, **how, **options) for method, how in (("nearest", {}), ("optimal", {"importance": given}))
    )
    errors = [float((weights * (x - q.dequantize(dtype=np.float64)) ** 2).sum() / weights.sum()) for q in (nearest, best)]
    found = qz.compare(x, nearest, optimum=True, importance=given)
    assert found[:6] == qz.compare(x, nearest)[:6]
    assert (
        found.lower_bound <= errors[1] <= found.lower_bound * (1 + 2e-3)
    )  # scales of the rule's dtype may cost more than the proof is off
    assert found.excess == pytest.approx(errors[0] / errors[1] - 1, abs=1e-9)
    assert 0 < found.share_improved <= 1
    found = qz.compare(x, best, optimum=True, importance=given)
    assert (found.excess, found.share_improved) == (0, 0)


def test_the_best_of_what_is_exact_or_empty():
    whole = np.arange(-8, 8, dtype=np.float32).reshape(1, 16)
    found = qz.compare(whole, qz.quantize(whole), optimum=True)
    assert (found.lower_bound, found.excess, found.share_improved) == (0, 0, 0)
    shifted = qz.quantize(whole * np.float32(1.1))
    assert qz.compare(whole, shifted, optimum=True).excess == np.inf
    empty = np.zeros((0, 32), np.float32)
    assert qz.compare(empty, qz.quantize(empty), optimum=True)[6:] == (0, 0, 0)
    groups = sample((4, 6, 5))
    along = qz.compare(groups, qz.quantize(groups, axis=1, group_size=4), optimum=True, importance=np.arange(6, dtype=np.float32))
    last = np.ascontiguousarray(np.moveaxis(groups, 1, -1))
    assert along[6:] == qz.compare(last, qz.quantize(last, group_size=4), optimum=True, importance=np.arange(6, dtype=np.float32))[6:]


def test_an_optimum_that_is_none():
    x = sample((8, 256))
    for name, options in (
        ("gguf:q4_k", {}),
        ("gguf:iq4_xs", {}),
        ("modelopt:nvfp4", {}),
        ("torchao:nvfp4", {}),
        ("mlx:nvfp4", {"global_scale": 5.0}),
        ("bnb:nf4", {"double_quant": True}),
    ):
        with pytest.raises(ValueError, match=f"optimum is True; {name} has scales of two levels"):
            qz.compare(x, qz.quantize(x, name, **options), optimum=True)
    with pytest.raises(TypeError, match=r"optimum is True; other is of type ndarray, expected a QuantizedArray"):
        qz.compare(x, x, optimum=True)
    with pytest.raises(ValueError, match="optimum is True and axis is given"):
        qz.compare(x, qz.quantize(x), optimum=True, axis=0)
    with pytest.raises(ValueError, match="importance is given; it has no use without optimum=True"):
        qz.compare(x, qz.quantize(x), importance="magnitude")
    assert qz.compare(x, qz.quantize(x))[6:] == (None, None, None)
