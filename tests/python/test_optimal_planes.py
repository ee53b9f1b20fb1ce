"""Searches of a scale and a minimum, or a zero point that is no integer: as near as the tolerance to the smallest error, or fast."""

import numpy as np
import pytest
from helpers import BFLOAT16, sample
from searches import OF_ENERGY, PLANES, RELATIVE, errors, importance_of

import quantize as qz


def smallest_error_of_all(x, weights):
    """The smallest error of any scale and minimum.

    The codes change where a line x_i - s (k + 1/2) is crossed. Every region between such lines touches a place where two of them cross,
    beside which there are four.
    """
    x, weights = x[weights > 0].astype(np.float64), weights[weights > 0].astype(np.float64)
    total = weights.sum()
    x = x - (weights * x).sum() / total
    best = float((weights * x**2).sum())
    k, other_k = np.meshgrid(np.arange(15), np.arange(15), indexing="ij")
    for i in range(len(x)):
        for j in range(i):
            with np.errstate(divide="ignore", invalid="ignore"):
                scales = ((x[i] - x[j]) / (k - other_k)).ravel()
            at = np.flatnonzero(np.isfinite(scales) & (scales > 0))
            if not len(at):
                continue
            first, second, scales = k.ravel()[at], other_k.ravel()[at], scales[at]
            codes = np.clip(np.rint((x - x[i]) / scales[:, None] + first[:, None] + 0.5), 0, 15)
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                codes[:, i], codes[:, j] = first + a, second + b
                mean = (weights * codes).sum(1) / total
                variance = (weights * (codes - mean[:, None]) ** 2).sum(1)
                covariance = (weights * x * (codes - mean[:, None])).sum(1)
                is_some = variance > 1e-12
                scale = covariance[is_some] / variance[is_some]
                left = x - scale[:, None] * (codes - mean[:, None])[is_some]
                best = min(best, float((weights * left**2).sum(1).min(initial=np.inf)))
    return best


@pytest.mark.parametrize("kind", ["normal", "ties", "magnitudes tie", "zeros", "positive", "wide"])
@pytest.mark.parametrize("weighting", ["none", "columns", "zeros", "apart"])
@pytest.mark.parametrize("tolerance", [None, 0.1])
def test_no_region_of_scales_and_minimums_has_a_smaller_error(kind, weighting, tolerance):
    x = sample((4, 32), kind=kind)
    importance = importance_of(weighting, x.shape)
    q = qz.quantize(x, "hqq", method="optimal", importance=importance, group_size=8, scale_dtype="float32", tolerance=tolerance)
    weights = np.broadcast_to(np.float32(1) if importance is None else importance, x.shape)
    found = errors(q, x, weights).ravel()
    for group, (values, weight) in enumerate(zip(x.reshape(-1, 8), weights.reshape(-1, 8), strict=True)):
        if weight.any():
            energy = float((weight * values.astype(np.float64) ** 2).sum())
            # Weights that are far apart can end the search before its proof.
            unproven = 1e-3 if weighting == "apart" else 0
            limit = smallest_error_of_all(values, weight) * (1 + max(tolerance or 1e-4, unproven)) + energy * OF_ENERGY
            assert found[group] <= limit, group


def half_steps(values, count):
    """The float16 numbers nearest to some, and so many on both sides of each, as one more axis."""
    above = below = values.astype(np.float16)
    steps = [above]
    for _ in range(count):
        above, below = np.nextafter(above, np.float16(np.inf)), np.nextafter(below, np.float16(-np.inf))
        steps += [above, below]
    return np.stack(steps, axis=-1).astype(np.float64)


@pytest.mark.parametrize("kind", ["normal", "uniform", "far"])
@pytest.mark.parametrize("weighting", ["none", "columns"])
@pytest.mark.parametrize(("name", "options"), [("gguf:q4_1", {}), ("mlx", {"group_size": 128}), ("hqq", {"group_size": 64})])
def test_no_stored_neighbours_are_better(name, options, kind, weighting):
    random = np.random.default_rng(11)
    x = (random.random if kind == "uniform" else random.standard_normal)((256, 128)).astype(np.float32) + np.float32(8 * (kind == "far"))
    importance = importance_of(weighting, x.shape)
    q = qz.quantize(
        x, name, method="optimal", importance=importance, **options, **({} if name == "gguf:q4_1" else {"scale_dtype": "float16"})
    )
    shape = (-1, q.group_size)
    weights = np.broadcast_to(np.float64(1) if importance is None else importance, x.shape).reshape(shape)
    found, x = errors(q, x, weights.reshape(x.shape)).ravel(), x.astype(np.float64).reshape(shape)
    codes, scales = q.codes().astype(np.float64).reshape(shape), q.scales.astype(np.float64).ravel()
    mean = (weights * x).sum(1) / weights.sum(1)
    q_mean = (weights * codes).sum(1) / weights.sum(1)
    for scale in half_steps(scales, 3).T:
        for shift in (-1, 0, 1):
            wanted = mean - scale * (q_mean + shift)
            minimums = scale[:, None] * -half_steps(-wanted / scale, 2) if name == "hqq" else half_steps(wanted, 2)
            for minimum in minimums.T:
                nearest = np.clip(np.rint((x - minimum[:, None]) / scale[:, None]), 0, 15)
                error = (weights * (x - scale[:, None] * nearest - minimum[:, None]) ** 2).sum(1)
                # Codes that change with the rounding are not foreseen, and some of them weigh a lot.
                assert (found <= error * (1 + (1e-4 if importance is None else 2e-4))).all()


@pytest.mark.parametrize("kind", ["normal", "positive", "ties"])
@pytest.mark.parametrize("weighting", ["none", "columns"])
@pytest.mark.parametrize(("name", "options"), [(name, options) for name, variants in PLANES.items() for options in variants])
def test_never_worse_than_a_grid_of_ranges(name, options, kind, weighting):
    x = sample((8, 128), kind=kind)
    importance = importance_of(weighting, x.shape)
    q = qz.quantize(x, name, method="optimal", importance=importance, **options)
    weights = np.broadcast_to(np.float32(1) if importance is None else importance, x.shape).reshape(8, -1, q.group_size)
    groups = x.reshape(8, -1, q.group_size).astype(np.float64)
    best = np.full(groups.shape[:2], np.inf)
    for part in np.linspace(0.3, 1, 100):
        low, high = (part * end(groups, axis=-1, keepdims=True) for end in (np.min, np.max))
        if kind == "positive":  # else zero is not in the range
            low, high = groups.min(-1, keepdims=True), groups.min(-1, keepdims=True) + part * np.ptp(groups, axis=-1, keepdims=True)
        scale = (high - low) / 15
        values = np.clip(np.rint((groups - low) / scale), 0, 15) * scale + low
        best = np.minimum(best, (weights * (groups - values) ** 2).sum(-1))
    # The grid is not rounded to what is stored; what rounding to bfloat16 costs is the larger, the farther the minimum is from 0.
    slack = {BFLOAT16: 0.02}.get(options.get("scale_dtype"), 0.001)
    found = errors(q, x, weights.reshape(x.shape))
    assert (found <= best * (1 + slack)).mean() > 0.95
    assert found.sum() <= best.sum() * (1 + slack)


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_groups_of_one_number(kind):
    x = np.repeat(sample((4, 8), kind=kind), 64, axis=1)
    for name, options in (("gguf:q4_1", {}), ("mlx", {"group_size": 64}), ("hqq", {"group_size": 64})):
        for method in ("optimal", "fast"):
            q = qz.quantize(x, name, method=method, **options)
            assert (abs(q.dequantize() - x) <= abs(x) * 2.0**-11).all()


@pytest.mark.parametrize(("name", "options"), [(name, options) for name, variants in PLANES.items() for options in variants])
def test_fast(name, options):
    x, weights = sample((64, 128)), np.random.default_rng(1).random(128).astype(np.float32)
    for importance in (None, weights):
        total = {
            method: errors(
                qz.quantize(x, name, method=method, importance=importance if method != "nearest" else None, **options),
                x,
                np.broadcast_to(np.float32(1) if importance is None else importance, x.shape),
            ).sum()
            for method in ("nearest", "optimal", "fast")
        }
        assert total["optimal"] <= total["fast"] * (1 + 1e-4)
        # Of eight elements each counts for more.
        assert total["fast"] <= (1.1 if options.get("group_size") == 8 else 1.03) * total["optimal"] < 0.9 * total["nearest"]


@pytest.mark.parametrize("name", ["int4", "uint4", "gguf:q4_0", "bnb:nf4"])
def test_formats_that_lack_the_fast_one(name):
    with pytest.raises(TypeError, match=f"{name} has no method 'fast'.*gguf:q4_1, gguf:q4_k, gguf:iq4_xs, mlx"):
        qz.quantize(sample((8, 256)), name, method="fast")


def test_tolerance():
    x = sample((64, 128))
    total = [
        errors(qz.quantize(x, "mlx", method="optimal", tolerance=t), x, np.ones_like(x)) for t in (1e-6, 1e-4, 0.01, np.float32(0.1), 1)
    ]
    for tolerance, larger in zip((1e-4, 0.01, 0.1, 1), total[1:], strict=True):
        assert (larger <= total[0] * (1 + tolerance + RELATIVE)).all()
    same = qz.quantize(x, "mlx", method="optimal")
    assert same.identical(qz.quantize(x, "mlx", method="optimal", tolerance=1e-4))
    # Others are exact whatever it is.
    assert qz.quantize(x, method="optimal", tolerance=0.5).identical(qz.quantize(x, method="optimal"))


@pytest.mark.parametrize("tolerance", [0, 1e-7, -0.1, 1.1, np.nan, np.inf])
def test_tolerances_that_are_none(tolerance):
    with pytest.raises(ValueError, match=r"tolerance is .*expected a number from 0.000001 to 1"):
        qz.quantize(sample((4, 64)), "mlx", method="optimal", tolerance=tolerance)


def test_tolerance_belongs_to_optimal():
    for wrong in ("0.1", True, [0.1]):
        with pytest.raises(TypeError, match=r"tolerance is of type .*expected a number"):
            qz.quantize(sample((4, 64)), "mlx", method="optimal", tolerance=wrong)
    for method in ("nearest", "fast"):
        with pytest.raises(ValueError, match=f'tolerance is given; method="{method}" has no use for it'):
            qz.quantize(sample((4, 64)), "mlx", method=method, tolerance=0.1)
