"""``method="optimal"``: nothing that a layout can hold has a smaller error, on whatever level and threads, and all bad input is refused.

Blocks whose groups share a scale are the exception: there the search proves nothing, and is held to a bound that nothing can pass.
"""

import contextlib
import itertools

import ml_dtypes
import numpy as np
import pytest
from helpers import BFLOAT16, KINDS, python, same_parts, sample
from reference import FORMATS, bnb, e2m1, iq4

import quantize as qz

# Of every format the options of the variants that have a search.
VARIANTS = {
    "int4": [{"scale_dtype": "float16"}, {"scale_dtype": BFLOAT16}, {"scale_dtype": "float32"}],
    "uint4": [{"scale_dtype": "float16"}, {"scale_dtype": BFLOAT16}, {"scale_dtype": "float32", "group_size": 16}],
    "gguf:q4_0": [{}],
    "gptq": [{"group_size": 32}, {"group_size": 32, "symmetric": False}],
    "gptq:v2": [{"group_size": 32}, {"group_size": 32, "symmetric": False}],
    "awq": [{"group_size": 32}],
    "onnx:matmulnbits": [
        {"scale_dtype": "float16", "group_size": 16},
        {"scale_dtype": "float32"},
        {"scale_dtype": "float32", "group_size": 16, "symmetric": False},
    ],
    "onnx:qdq": [
        {"scale_dtype": "float16", "group_size": 8},
        {"scale_dtype": "float32"},
        {"scale_dtype": "float16", "group_size": 8, "symmetric": False},
    ],
    "compressed-tensors": [
        {"scale_dtype": "float16", "group_size": 32},
        {"scale_dtype": BFLOAT16, "group_size": 32},
        {"scale_dtype": BFLOAT16, "group_size": 32, "symmetric": False},
    ],
    "gguf:iq4_nl": [{}],
    "bnb:nf4": [{}, {"group_size": 32}, {"double_quant": True}],
    "bnb:fp4": [{"group_size": 32}, {"group_size": 32, "double_quant": True}],
    "gguf:mxfp4": [{}],
    "gptoss:mxfp4": [{}],
    "mlx:mxfp4": [{}],
    "compressed-tensors:mxfp4": [{}],
    "torchao:mxfp4": [{"scale_rule": rule} for rule in ("floor", "even")],
    "gguf:nvfp4": [{}],
    "mlx:nvfp4": [{}, {"global_scale": 5.0}],
    "compressed-tensors:nvfp4": [{}],
    "modelopt:nvfp4": [{}],
    "torchao:nvfp4": [{}, {"two_level": False}],
}
# Those that store a scale and a minimum, or a zero point that is no integer.
PLANES = {
    "gguf:q4_1": [{}],
    "mlx": [{"scale_dtype": "float32"}, {"scale_dtype": "float16", "group_size": 32}, {"scale_dtype": BFLOAT16, "group_size": 32}],
    "hqq": [{}, {"scale_dtype": "float32", "group_size": 8}],
}
# Those whose groups of 32 share a scale, eight of them.
BLOCKS = ["gguf:q4_k", "gguf:iq4_xs"]
LINES = [(name, options) for name, variants in VARIANTS.items() for options in variants]
CASES = LINES + [(name, options) for name, variants in PLANES.items() for options in variants]

SYMMETRIC = np.arange(-8.0, 8.0)
TABLES = {"gguf:iq4_nl": iq4.TABLE, "bnb:nf4": bnb.NF4, "bnb:fp4": bnb.FP4}
# The scales of eight bits.
E8M0 = 2.0 ** np.arange(-127.0, 128.0)
E4M3 = np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
# What sums in float32 are good to, relatively to the error and to the energy of the group.
RELATIVE, OF_ENERGY = 2e-6, 3e-7


def test_every_format_that_has_it_is_tested():
    assert sorted([*VARIANTS, *PLANES, *BLOCKS]) == sorted(row.name for row in qz.formats() if "optimal" in row.methods)
    assert sorted([*PLANES, *BLOCKS]) == sorted(row.name for row in qz.formats() if "fast" in row.methods)
    assert all(row.methods == ("nearest", "optimal", "fast")[: len(row.methods)] for row in qz.formats())


def numbers_of(name, options):
    """The sets of numbers that a group of the format can have, each ascending: one, or one for each zero point."""
    if name in ("uint4", "awq") or not options.get("symmetric", True):
        return [np.arange(-z, 16.0 - z) for z in range(1 if name == "gptq" else 0, 16)]
    table = (
        SYMMETRIC if qz.formats()[[row.name for row in qz.formats()].index(name)].scheme != "codebook" else TABLES.get(name, e2m1.NUMBERS)
    )
    return [np.unique(table.astype(np.float64))]


def scales_of(q):
    """The effective scales that the groups of ``q`` can have, or the dtype that they are stored in."""
    row = next(row for row in qz.formats() if row.name == q.format)
    if row.scale_dtypes[0] == "float8_e8m0fnu":
        return E8M0
    if "nested_absmax" in q.parts:
        scales = bnb.MAP * q.parts["nested_absmax"] + q.parts["offset"]
        return scales[scales >= np.finfo(np.float32).tiny].astype(np.float64)
    if row.scale_dtypes[0].startswith("float8_e4m3"):
        # What is stored for one group tells the second level.
        part = next((part for name, part in q.parts.items() if "scale" in name and part.dtype == np.uint8), None)
        if part is None:
            return E4M3
        scales = part.reshape(-1).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        first = np.flatnonzero(scales)[:1]
        # With a second level the largest group has a scale.
        return E4M3 * (float(q.scales.reshape(-1)[first[0]]) / scales[first[0]] if len(first) else 1.0)
    return next((part.dtype.name for name, part in q.parts.items() if name in ("scales", "weight_scale", "absmax")), "float16")


def stored(scales, dtype):
    """Scales in the dtype that stores them; no format of float32 or bfloat16 scales stores a subnormal one here."""
    with np.errstate(over="ignore"):
        scales = scales.astype(np.float32).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).astype(np.float64)
    return np.where(np.abs(scales) < 2.0**-126, 0, scales)


def nearest(y, numbers):
    """The number nearest to each ``y``."""
    return numbers[np.searchsorted((numbers[1:] + numbers[:-1]) / 2, y)]


def error_of(x, weights, scales, numbers):
    """The smallest error of these scales, none of which is 0."""
    values = scales[:, None] * nearest(x / scales[:, None], numbers)
    return float((weights * (x - values) ** 2).sum(1).min(initial=np.inf))


def smallest_error(x, weights, numbers, dtype, least=None):
    """Look into every cell of scales of either sign: between two scales at which a code changes all codes stay as they are.

    In place of a dtype it takes all scales that there are. ``least`` has the smallest scale of either sign, where not all are allowed.
    """
    x, weights = x.astype(np.float64), weights.astype(np.float64)
    best = float((weights * x**2).sum()) if least is None else np.inf
    if isinstance(dtype, np.ndarray):
        return min(best, error_of(x, weights, dtype, numbers))
    middles = (numbers[1:] + numbers[:-1]) / 2
    for sign in (1, -1):
        with np.errstate(divide="ignore", invalid="ignore"):
            changes = (middles / (sign * x[:, None])).ravel()
        changes = np.unique(changes[(changes > 0) & np.isfinite(changes)])
        if not len(changes):
            continue
        inside = np.concatenate([[changes[0] / 2], (changes[1:] + changes[:-1]) / 2, [2 * changes[-1]]])
        codes = nearest(sign * x * inside[:, None], numbers)
        curvature = (weights * codes**2).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = stored((weights * x * codes).sum(1) / curvature, dtype)
        if least is not None:
            scales = np.append(np.maximum(scales, least[sign]), least[sign])
        scales = np.unique(scales[np.isfinite(scales) & (scales != 0)])
        best = min(best, error_of(x, weights, sign * scales, numbers))
    return best


def errors(q, x, weights):
    """The weighted error of every group, in float64; the group axis is the last one."""
    differences = weights.astype(np.float64) * (x.astype(np.float64) - q.dequantize(dtype=np.float64)) ** 2
    size = q.group_size if isinstance(q.group_size, int) else x.shape[-1]
    return differences.reshape(*x.shape[:-1], -1, size).sum(-1)


def importance_of(kind, shape, seed=1):
    random = np.random.default_rng(seed)
    weights = {
        "none": lambda: None,
        "columns": lambda: random.random(shape[-1]) ** 4,
        "elements": lambda: random.random(shape) ** 4,
        "zeros": lambda: random.random(shape) * (random.random(shape) < 0.3),
        "apart": lambda: 10.0 ** random.uniform(-3, 3, shape),
    }[kind]()
    return None if weights is None else weights.astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "ties", "magnitudes tie", "zeros", "positive", "half subnormal", "half underflow", "wide"])
@pytest.mark.parametrize("weighting", ["none", "columns", "zeros", "apart"])
@pytest.mark.parametrize(("name", "options"), LINES)
def test_no_cell_has_a_smaller_error(name, options, kind, weighting):
    sets = numbers_of(name, options)
    # The brute force goes through every zero point, and rows of 8 are what some layouts take.
    x = sample((8, 32 if len(sets) > 1 else 64), kind=kind)
    importance = importance_of(weighting, x.shape)
    q = qz.quantize(x, name, method="optimal", importance=importance, **options)
    weights = np.broadcast_to(1.0 if importance is None else importance, x.shape)
    scales = scales_of(q)
    grouped = (8, -1, q.group_size)
    for row, (x_row, w_row) in enumerate(zip(x.reshape(grouped), weights.reshape(grouped), strict=True)):
        found = errors(q, x, weights)[row]
        for group, (values, weight) in enumerate(zip(x_row, w_row, strict=True)):
            if not weight.any():
                continue
            best = min(smallest_error(values, weight, numbers, scales) for numbers in sets)
            energy = float((weight * values.astype(np.float64) ** 2).sum())
            if 0 not in (numbers := sets[0]):  # zeros are one step off, and at first the steps are as large as the largest element asks for
                energy += float(weight.sum() * (np.abs(values).max() / numbers[-1]) ** 2)
            assert found[group] <= best * (1 + RELATIVE) + energy * OF_ENERGY, (row, group)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("name", "options"), CASES)
def test_never_worse_than_nearest(name, options, kind):
    x = sample((8, 256), kind=kind)
    try:
        nearest_q = qz.quantize(x, name, **options)
    except ValueError:  # a scale beyond its dtype, or an element beyond float16
        # A search knows its groups in a size of their own: a span beyond the dtype does no harm where the scale is within it.
        with contextlib.suppress(ValueError):
            assert np.isfinite(qz.quantize(x, name, method="optimal", **options).dequantize()).all()
        return
    q = qz.quantize(x, name, method="optimal", **options)
    ones = np.ones_like(x)
    energy = (x.astype(np.float64) ** 2).reshape(8, -1, q.group_size).sum(-1)
    if kind == "huge":  # scales whose products with every code are finite: the rule may take greater ones
        assert np.isfinite(q.dequantize()).all()
        return
    relative = 1e-4 if name in PLANES else RELATIVE
    found, rule = errors(q, x, ones), errors(nearest_q, x, ones) * (1 + relative) + energy * OF_ENERGY
    if any(name.endswith(("global_scale", "scale_2", "tensor_scale")) for name in q.parts):  # the second level is the best for all
        found, rule = found.sum(), rule.sum()
    assert (found <= rule).all()


@pytest.mark.parametrize(("name", "options"), CASES)
def test_the_layout_is_the_same(name, options):
    x = sample((8, 128))
    q = qz.quantize(x, name, method="optimal", **options)
    plain = qz.quantize(x, name, **options)
    assert {key: (part.dtype, part.shape) for key, part in q.parts.items()} == {
        key: (part.dtype, part.shape) for key, part in plain.parts.items()
    }
    stored = ("group_size", "global_scale", "two_level", "symmetric", "double_quant")
    options = {key: value for key, value in options.items() if key in stored}
    decoded = FORMATS[name].decode(dict(q.parts), x.shape, **options)
    assert np.array_equal(decoded, q.dequantize())
    assert qz.from_parts(name, dict(q.parts), shape=x.shape, **options).identical(q)


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


@pytest.mark.parametrize("weighting", ["none", "columns"])
def test_the_second_level_is_the_best_of_four(weighting):
    x = sample((300, 512))
    importance = importance_of(weighting, x.shape)
    weights = np.broadcast_to(np.float32(1) if importance is None else importance, x.shape)
    largest = np.abs(x).max()

    def error(name, **options):
        return errors(qz.quantize(x, name, method="optimal", importance=importance, **options), x, weights).sum()

    # The same numbers, with the second level in our hands.
    best = min(error("mlx:nvfp4", global_scale=float(np.float32(multiple) * largest)) for multiple in (1, 1.25, 1.5, 1.75))
    assert abs(error("modelopt:nvfp4") / best - 1) < 1e-5
    assert abs(error("compressed-tensors:nvfp4") / best - 1) < 1e-5
    one, *others = (qz.quantize(np.tile(x, (4, 1)), "modelopt:nvfp4", method="optimal", threads=n) for n in (1, 2, 3))
    assert all(one.identical(other) for other in others)


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


def least_scales(x, numbers, limit, dtype):
    """The smallest scale of either sign in ``dtype`` that leaves no element more than a part of the largest beyond the numbers."""
    missed = limit * np.abs(x).max()
    least = {}
    for sign in (1, -1):
        exact = max(0.0, *((sign * x - missed) / numbers[-1]), *((sign * x + missed) / numbers[0]))
        scale = np.array(exact * (1 + 1e-6)).astype(dtype)
        least[sign] = float(scale if scale >= exact else np.nextafter(scale, np.array(np.inf, dtype)))
    return least


LIMITED = [
    ("int4", {"scale_dtype": "float16"}),
    ("int4", {"scale_dtype": "float32"}),
    ("gguf:q4_0", {}),
    ("gguf:iq4_nl", {}),
    ("bnb:nf4", {"group_size": 32}),
    ("bnb:fp4", {"group_size": 32}),
]


@pytest.mark.parametrize("kind", ["normal", "ties", "zeros", "positive", "half subnormal", "half underflow", "wide"])
@pytest.mark.parametrize("weighting", ["none", "columns", "apart"])
@pytest.mark.parametrize(("name", "options"), LIMITED)
def test_no_cell_within_the_limit_has_a_smaller_error(name, options, kind, weighting):
    [numbers] = numbers_of(name, options)
    x = sample((8, 64), kind=kind)
    importance = importance_of(weighting, x.shape)
    weights = np.broadcast_to(np.float32(1) if importance is None else importance, x.shape)
    for limit in (0, 0.05, 0.5):
        q = qz.quantize(x, name, method="optimal", importance=importance, clip_limit=limit, **options)
        dtype = scales_of(q)
        grouped = (-1, q.group_size)
        values, scales, found = q.dequantize(dtype=np.float64).reshape(grouped), q.scales.reshape(-1), errors(q, x, weights).reshape(-1)
        for group, (x_row, w_row) in enumerate(zip(x.reshape(grouped).astype(np.float64), weights.reshape(grouped), strict=True)):
            if scales[group]:  # too large a scale for all, that of zeros
                ends = np.sort(scales[group] * numbers[[0, -1]].astype(np.float64))
                beyond = np.maximum(x_row - ends[1], ends[0] - x_row).max()
                assert beyond <= (limit + 1e-5) * np.abs(x_row).max(), (limit, group)
            least = least_scales(x_row, numbers, limit, dtype)
            energy = float((w_row * x_row**2).sum())
            if numbers[8] == 1:  # zeros are one step off
                energy += float(w_row.sum() * (np.abs(x_row).max() / numbers[-1]) ** 2)
            best = smallest_error(x_row, w_row, numbers, dtype, least)
            assert found[group] <= best * (1 + RELATIVE) + energy * OF_ENERGY, (limit, group, values[group])


def test_a_looser_limit_is_never_worse():
    x = sample((64, 128), kind="wide")
    limits = (0, 0.02, 0.1, 0.5, 1, None)
    total = [errors(qz.quantize(x, method="optimal", clip_limit=limit), x, np.ones_like(x)) for limit in limits]
    for tighter, looser in itertools.pairwise(total):
        assert (looser <= tighter * (1 + RELATIVE)).all()
    assert total[0].sum() > total[-1].sum()
    assert (total[-2] <= total[-1] * (1 + RELATIVE)).all()  # 1 is no limit


@pytest.mark.parametrize("limit", [-0.1, 1.1, np.nan, np.inf])
def test_limits_that_are_none(limit):
    with pytest.raises(ValueError, match=r"clip_limit is .*expected a number from 0 to 1"):
        qz.quantize(sample((4, 64)), method="optimal", clip_limit=limit)


def test_a_limit_belongs_to_optimal_and_to_some_formats():
    x = sample((8, 256))
    with pytest.raises(TypeError, match=r"clip_limit is of type str; expected a number from 0 to 1"):
        qz.quantize(x, method="optimal", clip_limit="0.1")
    with pytest.raises(ValueError, match=r'clip_limit is given; method="nearest" has no use for it'):
        qz.quantize(x, clip_limit=0.1)
    with pytest.raises(ValueError, match=r"tolerance is given; what has a clip_limit is searched exactly"):
        qz.quantize(x, method="optimal", clip_limit=0.1, tolerance=0.1)
    for name in ("uint4", "mlx", "hqq", "gguf:mxfp4", "mlx:nvfp4"):
        with pytest.raises(ValueError, match=rf"clip_limit is given; {name} is not searched with one; formats that are: int4, gguf:q4_0"):
            qz.quantize(x, name, method="optimal", clip_limit=0.1)
    with pytest.raises(ValueError, match="clip_limit is given; bnb:fp4 is not searched with one"):
        qz.quantize(x, "bnb:fp4", method="optimal", clip_limit=0.1, double_quant=True)
    # At the top of float16 the limit asks for a scale beyond it.
    top = np.float32([[8 * 65504, -8 * 65504, 1, 0]])
    qz.quantize(top, method="optimal")
    with pytest.raises(ValueError, match=r"beyond the largest float16"):
        qz.quantize(top, method="optimal", clip_limit=0)


@pytest.mark.parametrize("name", ["int4", "uint4", "gguf:q4_0", "bnb:nf4"])
def test_formats_that_lack_the_fast_one(name):
    with pytest.raises(TypeError, match=f"{name} has no method 'fast'.*gguf:q4_1, gguf:q4_k, gguf:iq4_xs, mlx"):
        qz.quantize(sample((8, 256)), name, method="fast")


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_groups_of_one_number(kind):
    x = np.repeat(sample((4, 8), kind=kind), 64, axis=1)
    for name, options in (("gguf:q4_1", {}), ("mlx", {"group_size": 64}), ("hqq", {"group_size": 64})):
        for method in ("optimal", "fast"):
            q = qz.quantize(x, name, method=method, **options)
            assert (abs(q.dequantize() - x) <= abs(x) * 2.0**-11).all()


@pytest.mark.parametrize("size", [1, 2, 7, 31, 33, 100, 1000, "row", "tensor"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 33), (2, 511), (40, 96), (1, 5000), (0, 8), (4, 0)])
def test_any_group_size(shape, size):
    x = sample(shape, seed=4)
    weights = np.random.default_rng(2).random(shape[-1]).astype(np.float32) + 0.01
    q = qz.quantize(x, group_size=size, method="optimal", importance=weights if x.size else None)
    groups = qz.quantize(x, group_size=size)
    assert q.scales.shape == groups.scales.shape
    if not x.size:
        return
    error = (weights * (x - q.dequantize()) ** 2).sum()
    assert error <= (weights * (x - groups.dequantize()) ** 2).sum() * (1 + RELATIVE)
    if size == "tensor" and x.size < 1000:
        best = smallest_error(x.ravel(), np.broadcast_to(weights, shape).ravel(), SYMMETRIC, "float16")
        assert error <= best * (1 + 1e-5)


def test_groups_of_any_size_have_a_limit():
    x = np.zeros((2, 65538), np.float32)
    qz.quantize(x[:, :65536], method="optimal", group_size="row")
    for size in ("row", 65537, "tensor"):
        with pytest.raises(ValueError, match=r"group_size is .*65536"):
            qz.quantize(x, method="optimal", group_size=size)


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


@pytest.mark.parametrize("row", [row for row in qz.formats() if "optimal" not in row.methods], ids=lambda row: row.name)
def test_formats_that_lack_it(row):
    with pytest.raises(TypeError, match=f"{row.name} has no method 'optimal'.*int4, uint4, gguf:q4_0"):
        qz.quantize(sample((8, 256)), row.name, method="optimal")


def test_what_is_not_finite():
    x = sample((4, 64))
    x[1, 3], x[2, 5] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 elements are not finite, the first at \(1, 3\) is nan"):
        qz.quantize(x, method="optimal")
    for policy, infinity in (("zero", 0.0), ("clip", np.abs(x[2, np.r_[0:5, 6:32]]).max())):
        clean = x.copy()
        clean[1, 3], clean[2, 5] = 0, infinity
        with pytest.warns(qz.QuantizeWarning, match="2 elements were not finite"):
            q = qz.quantize(x, method="optimal", nonfinite=policy)
        assert q.identical(qz.quantize(clean, method="optimal"))
    with pytest.warns(qz.QuantizeWarning, match="2 elements were not finite"):
        qz.quantize(x[:3, :35], method="optimal", nonfinite="clip", group_size="tensor", importance="magnitude")


def test_a_scale_that_overflows():
    x = np.ones((3, 64), np.float32)
    x[1, 40] = 1e9
    with pytest.raises(ValueError, match=r"the scale of group \(1, 1\) is beyond the largest float16"):
        qz.quantize(x, method="optimal")
    with pytest.raises(ValueError, match=r"the scale of group \(0, 0\) is beyond the largest float16"):
        qz.quantize(x[:, :63], method="optimal", group_size="tensor")
    wide = np.ones((2, 512), np.float32)
    wide[1, 300] = 1e9
    for name in BLOCKS:
        with pytest.raises(ValueError, match=r"the scale of group \(1, [89]\) is beyond the largest float16"):
            qz.quantize(wide, name, method="optimal")
    qz.quantize(x, method="optimal", scale_dtype="float32")


DIGEST = """
import hashlib
import numpy as np
import quantize as qz
from helpers import KINDS, sample
from test_optimal import BLOCKS, CASES, PLANES
digest = hashlib.sha256()
for name, options in CASES + [(name, {}) for name in BLOCKS]:
    for kind in KINDS:
        x = sample((8, 256), kind=kind)
        for importance in (None, "magnitude", np.random.default_rng(1).random(256).astype(np.float32)):
            try:
                method = "fast" if name in {*PLANES, *BLOCKS} and isinstance(importance, str) else "optimal"
                q = qz.quantize(x, name, method=method, importance=importance, **options)
            except ValueError as error:
                digest.update(str(error).encode())
                continue
            for part in q.parts.values():
                digest.update(part.tobytes())
large = sample((700, 1024), seed=5)
for size in (32, "row"):
    for importance in (None, "magnitude"):
        for limit in (None, 0.05):
            q = qz.quantize(large, group_size=size, method="optimal", importance=importance, clip_limit=limit, threads=1)
            digest.update(q.parts["packed"].tobytes() + q.parts["scales"].tobytes())
print(digest.hexdigest())
"""


def test_every_level_gives_the_same_bytes():
    levels = qz.cpu_features().available
    assert len({python(DIGEST, QUANTIZE_LEVEL=level) for level in levels}) == 1


def test_any_number_of_threads_gives_the_same_bytes():
    x = sample((700, 1024), seed=5)
    weights = np.random.default_rng(1).random(1024).astype(np.float32)
    for importance in (None, "magnitude", weights):
        cases = [("int4", {"group_size": 32}), ("int4", {"group_size": "row"}), ("gptq", {}), ("compressed-tensors", {})]
        for name, options in [*cases, ("gguf:iq4_xs", {}), ("bnb:nf4", {"double_quant": True})]:
            one, *others = (qz.quantize(x[:696], name, method="optimal", importance=importance, threads=n, **options) for n in (1, 2, 3))
            assert all(one.identical(other) for other in others)
