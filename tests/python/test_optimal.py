"""``method="optimal"``: nothing that a layout can hold has a smaller error, on whatever level and threads, and all bad input is refused.

Formats with minimums, formats whose groups share a scale, limits and importance have files of their own.
"""

import contextlib

import numpy as np
import pytest
from helpers import KINDS, python, sample
from reference import FORMATS
from searches import (
    BLOCKS,
    CASES,
    LINES,
    OF_ENERGY,
    PLANES,
    RELATIVE,
    SYMMETRIC,
    VARIANTS,
    errors,
    importance_of,
    numbers_of,
    scales_of,
    smallest_error,
)

import quantize as qz


def test_every_format_that_has_it_is_tested():
    assert sorted([*VARIANTS, *PLANES, *BLOCKS]) == sorted(row.name for row in qz.formats() if "optimal" in row.methods)
    assert sorted([*PLANES, *BLOCKS]) == sorted(row.name for row in qz.formats() if "fast" in row.methods)
    assert all(row.methods == ("nearest", "optimal", "fast")[: len(row.methods)] for row in qz.formats())


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
from searches import BLOCKS, CASES, PLANES
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
