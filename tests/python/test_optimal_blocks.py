"""Searches of blocks whose groups share a scale: they prove nothing, and are held to a bound that nothing can pass."""

import numpy as np
import pytest
from helpers import KINDS, sample
from reference import FORMATS
from searches import BLOCKS, RELATIVE, importance_of

import quantize as qz


def errors_of_blocks(q, x, weights):
    """The weighted error of every block of 256, in float64."""
    return (weights.astype(np.float64) * (x.astype(np.float64) - q.dequantize(dtype=np.float64)) ** 2).reshape(-1, 256).sum(-1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighting", ["none", "columns", "zeros", "apart"])
@pytest.mark.parametrize("method", ["optimal", "fast"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_never_worse_than_nearest(name, method, weighting, kind):
    x = sample((8, 512), kind=kind)
    if kind == "huge":  # beyond float16
        for how in (method, "nearest"):
            with pytest.raises(ValueError, match="beyond the largest float16"):
                qz.quantize(x, name, method=how)
        return
    importance = importance_of(weighting, x.shape)
    q = qz.quantize(x, name, method=method, importance=importance)
    assert {key: (part.dtype, part.shape) for key, part in q.parts.items()} == {
        "blocks": (np.uint8, (8, 2 * qz.quantize(x[:1, :256], name).nbytes))
    }
    assert np.array_equal(FORMATS[name].decode(dict(q.parts), x.shape), q.dequantize())
    assert qz.from_parts(name, dict(q.parts), shape=x.shape).identical(q)
    weights = np.broadcast_to(np.float32(1) if importance is None else importance, x.shape)
    found, rule = errors_of_blocks(q, x, weights), errors_of_blocks(qz.quantize(x, name), x, weights)
    energy = (weights.astype(np.float64) * x.astype(np.float64) ** 2).reshape(-1, 256).sum(-1)
    assert (found <= rule * (1 + RELATIVE) + energy * 1e-9).all()


# What codes with any scale and minimum of their own miss, which is below what any factors can reach.
UNSHARED = {"gguf:q4_k": ("hqq", {"group_size": 32, "scale_dtype": "float32"}), "gguf:iq4_xs": ("gguf:iq4_nl", {})}


@pytest.mark.parametrize("kind", ["normal", "positive", "wide"])
@pytest.mark.parametrize("weighting", ["none", "columns", "elements"])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_are_near_a_bound(name, weighting, kind):
    x = sample((64, 512), kind=kind)
    importance = importance_of(weighting, x.shape)
    weights = np.broadcast_to(np.float32(1) if importance is None else importance, x.shape)
    total = {
        how: errors_of_blocks(qz.quantize(x, name, method=how, importance=importance), x, weights).sum() for how in ("optimal", "fast")
    }
    rule = errors_of_blocks(qz.quantize(x, name), x, weights).sum()
    unshared, options = UNSHARED[name]
    bound = errors_of_blocks(qz.quantize(x, unshared, method="optimal", importance=importance, **options), x, weights).sum()
    assert bound * (1 - 1e-3) <= total["optimal"] <= total["fast"]
    if kind == "normal":  # the further apart the weights are, the more other codes there are to look at
        optimal, fast = (1.03, 1.05) if weighting == "none" else (1.1, 1.2)
        assert total["optimal"] <= optimal * bound
        assert total["fast"] <= fast * bound
        assert total["fast"] <= 0.96 * rule


def test_minimums_above_zero():
    """The rule has none: a block of positive numbers begins at 0. The unit of the minimums has a sign, so that the reader gets them."""
    x = sample((8, 256)) * np.float32(0.1) + np.float32(5)
    found, rule = (np.abs(qz.quantize(x, "gguf:q4_k", method=method).dequantize() - x).max() for method in ("fast", "nearest"))
    assert found < 0.3 * rule


def test_a_group_without_weights_does_not_move_its_block():
    x = sample((4, 256))
    weights = np.ones_like(x)
    weights[:, 32:64] = 0
    rest = np.r_[0:32, 64:256]
    for name in BLOCKS:
        q = qz.quantize(x, name, method="optimal", importance=weights)
        other = x.copy()
        other[:, 32:64] = 0
        without = qz.quantize(other, name, method="optimal")
        error, expected = (float(((y.dequantize() - x)[:, rest].astype(np.float64) ** 2).sum()) for y in (q, without))
        assert error <= 1.02 * expected
        assert (np.abs(q.dequantize() - x)[:, 32:64]).max() < 1
