"""``clip_limit``: no element is further beyond the numbers than it says, and within it nothing has a smaller error."""

import itertools

import numpy as np
import pytest
from helpers import sample
from searches import OF_ENERGY, RELATIVE, errors, importance_of, numbers_of, scales_of, smallest_error

import quantize as qz


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
