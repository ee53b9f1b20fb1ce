"""``importance``: errors weigh what it says, whatever its dtype and order, and bad input is refused."""

import numpy as np
import pytest
from helpers import BFLOAT16, same_parts, sample
from searches import OF_ENERGY, RELATIVE, errors, importance_of

import quantize as qz


def test_weights_count():
    x = np.float32([[1, 0.3, -0.2, 0.05, 0.61, -0.9, 0.4, 0.8]])
    for place in range(8):
        weights = np.where(np.arange(8) == place, 1e6, 1).astype(np.float32)
        q = qz.quantize(x, method="optimal", scale_dtype="float32", importance=weights)
        plain = qz.quantize(x, method="optimal", scale_dtype="float32")
        assert abs(q.dequantize() - x)[0, place] <= abs(plain.dequantize() - x)[0, place] + 1e-7


def test_a_group_of_zero_weights_has_equal_ones():
    x = sample((4, 64))
    weights = np.ones_like(x)
    weights[:, :32] = 0
    q = qz.quantize(x, method="optimal", importance=weights)
    assert q.identical(qz.quantize(x, method="optimal"))


def test_weights_count_relatively():
    x = sample((4, 64))
    weights = importance_of("elements", x.shape)
    q = qz.quantize(x, method="optimal", importance=weights)
    for factor in (2.0**-100, 2.0**100):
        assert q.identical(qz.quantize(x, method="optimal", importance=weights * np.float32(factor)))


@pytest.mark.parametrize("kind", ["normal", "wide", "float subnormal", "huge", "zeros"])
def test_magnitude(kind):
    x = sample((6, 128), kind=kind)
    wide = x.astype(np.float64)
    weights = np.sqrt((wide**2).mean(-1, keepdims=True) + wide**2)
    q = qz.quantize(x, scale_dtype="float32", method="optimal", importance="magnitude")
    error, energy = errors(q, x, weights), (weights * wide**2).reshape(6, -1, 32).sum(-1)
    by_array = qz.quantize(x, scale_dtype="float32", method="optimal", importance=np.minimum(weights, 3.4e38).astype(np.float32))
    assert (error <= errors(by_array, x, weights) * (1 + RELATIVE) + energy * OF_ENERGY).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", BFLOAT16])
def test_importance_in_any_dtype_and_order(dtype):
    x = sample((4, 64))
    weights = np.random.default_rng(3).integers(1, 100, (4, 64)).astype(dtype)
    q = qz.quantize(x, method="optimal", importance=weights)
    assert q.identical(qz.quantize(x, method="optimal", importance=weights.astype(np.float32)))
    assert q.identical(qz.quantize(x, method="optimal", importance=np.asfortranarray(weights)))
    assert q.identical(qz.quantize(x, method="optimal", importance=weights[::-1][::-1]))
    assert q.identical(qz.quantize(x, method="optimal", importance=weights.tolist()))
    turned = qz.quantize(np.ascontiguousarray(x.T), axis=0, method="optimal", importance=np.ascontiguousarray(weights.T))
    same_parts(turned.parts, q.parts)
    columns = weights[0]
    q = qz.quantize(x, method="optimal", importance=columns)
    assert q.identical(qz.quantize(x, method="optimal", importance=np.tile(columns, (4, 1))))
    same_parts(qz.quantize(np.ascontiguousarray(x.T), axis=0, method="optimal", importance=columns).parts, q.parts)


@pytest.mark.parametrize(
    ("importance", "error", "message"),
    [
        ("size", ValueError, "importance is 'size'; expected None, \"magnitude\" or an array"),
        (np.full(64, -1.0), ValueError, r"importance is -1 at \(0,\)"),
        (np.r_[np.ones(63), np.nan], ValueError, r"importance is nan at \(63,\)"),
        (np.r_[np.ones(10), np.inf, np.ones(53)], ValueError, r"importance is inf at \(10,\)"),
        (np.full(64, 1e300), ValueError, r"importance is 1e300|importance is 1000"),
        (np.zeros((4, 64)), ValueError, "importance is 0 everywhere"),
        (np.ones(63), ValueError, r"importance has shape \(63,\); expected \(64,\)"),
        (np.ones((64, 4)), ValueError, r"importance has shape \(64, 4\)"),
        (np.ones((1, 4, 64)), ValueError, r"importance has shape \(1, 4, 64\)"),
        (1.0, ValueError, r"importance has shape \(\)"),
        (np.ones(64, int), TypeError, "importance has dtype int64"),
        (np.ma.masked_array(np.ones(64)), TypeError, "importance is a masked array"),
        (["a"] * 64, TypeError, "importance is a list"),
    ],
)
def test_bad_importance(importance, error, message):
    x = sample((4, 64))
    out = {name: np.full_like(part, 7) for name, part in qz.quantize(x).parts.items()}
    before = {name: part.copy() for name, part in out.items()}
    with pytest.raises(error, match=message):
        qz.quantize(x, method="optimal", importance=importance, out=out)
    same_parts(out, before)


def test_importance_belongs_to_optimal():
    for importance in ("magnitude", np.ones(64, np.float32)):
        with pytest.raises(ValueError, match="importance"):
            qz.quantize(sample((4, 64)), importance=importance)


def test_out_in_the_memory_of_the_importance():
    x, weights = sample((4, 64)), np.ones((4, 64), np.float32)
    scales = weights.view(np.float16)[0, :8].reshape(4, 2)
    with pytest.raises(ValueError, match="in the memory of the input"):
        qz.quantize(x, method="optimal", importance=weights, out={"packed": np.empty((4, 32), np.uint8), "scales": scales})
