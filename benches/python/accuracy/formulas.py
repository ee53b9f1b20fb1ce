"""Rules and searches of other projects as plain formulas, for groups as rows of a matrix: what they decode to.

Scales are rounded to float16 where their projects store them so.
"""

from __future__ import annotations

import numpy as np

NF4 = np.array(
    [-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0]
    + [0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0]
)
E2M1 = np.array([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6.0])
# The positive 8-bit floats with four bits of exponent.
E4M3 = np.unique([m / 8 * 2.0**-6 for m in range(1, 8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)])[:-1]


def half(scales: np.ndarray) -> np.ndarray:
    """Scales as float16 stores them, and 1 in place of 0, which is as good for groups of zeros."""
    rounded = scales.astype(np.float16).astype(np.float32)
    return np.where(rounded == 0, np.float32(1), rounded)[:, None]


def integers(x: np.ndarray, scales: np.ndarray, lowest: int = -8, highest: int = 7) -> np.ndarray:
    """Codes nearest to x / scale, times the scale."""
    return np.clip(np.rint(x / scales), lowest, highest) * scales


def table(x: np.ndarray, scales: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The nearest numbers of an ascending table, times the scale."""
    return (numbers[np.searchsorted((numbers[1:] + numbers[:-1]) / 2, x / scales)] * scales).astype(np.float32)


def largest(x: np.ndarray) -> np.ndarray:
    """The largest magnitude of every group."""
    return np.abs(x).max(1)


def absmax(x: np.ndarray, divisor: float) -> np.ndarray:
    """Symmetric, scale = largest magnitude / divisor."""
    return integers(x, half(largest(x) / np.float32(divisor)), -7 if divisor == 7 else -8)


def signed_max(x: np.ndarray) -> np.ndarray:
    """Symmetric, the element of largest magnitude becomes -8: the rule of Q4_0."""
    at = np.abs(x).argmax(1)
    return integers(x, half(x[np.arange(len(x)), at] / np.float32(-8)))


def grid(x: np.ndarray, weights: np.ndarray | None = None, steps: int = 100) -> np.ndarray:
    """Symmetric, the best of positive scales from 0.4 to 1.1 times largest magnitude / 7, as observers of the mean square error do."""
    best, out = np.full(len(x), np.inf), np.zeros_like(x)
    for share in np.linspace(0.4, 1.1, steps, dtype=np.float32):
        decoded = integers(x, half(largest(x) / 7 * share))
        errors = (x - decoded) ** 2 if weights is None else weights * (x - decoded) ** 2
        errors = errors.sum(1, dtype=np.float64)
        better = errors < best
        best[better], out[better] = errors[better], decoded[better]
    return out


def min_max_zero_point(x: np.ndarray) -> np.ndarray:
    """An integer zero point from 0 to 15, the range with 0 included."""
    high, low = np.maximum(x.max(1), 0), np.minimum(x.min(1), 0)
    scales = half((high - low) / 15)
    zero_points = np.clip(np.rint(-low[:, None] / scales), 0, 15)
    return (np.clip(np.rint(x / scales) + zero_points, 0, 15) - zero_points) * scales


def min_max(x: np.ndarray) -> np.ndarray:
    """A minimum, and the range over 15."""
    low = x.min(1).astype(np.float16).astype(np.float32)
    scales = half((x.max(1) - low) / 15)
    return np.clip(np.rint((x - low[:, None]) / scales), 0, 15) * scales + low[:, None]


def hqq(x: np.ndarray, steps: int = 20, norm: float = 0.7, beta: float = 10.0, growth: float = 1.01) -> np.ndarray:
    """Half-quadratic quantization (mobiusml/hqq): the scale of the range, the zero point moved to where few errors are large.

    In turn the errors are shrunk, e = sign(d) max(|d| - |d|^(norm - 1) / beta, 0), and the zero point becomes the mean of
    code - (x - e) / scale; beta grows, and the steps end where the mean magnitude of the errors does.
    """
    high, low = x.max(1, keepdims=True), x.min(1, keepdims=True)
    inverse = np.minimum(15 / np.maximum(high - low, np.float32(1e-12)), np.float32(2e4))
    zero, least = np.rint(-low * inverse), np.inf
    for _ in range(steps):
        codes = np.clip(np.rint(x * inverse + zero), 0, 15)
        errors = x - (codes - zero) / inverse
        size = np.abs(errors)
        if size.mean() >= least:
            break
        least = size.mean()
        shrunk = np.sign(errors) * np.maximum(size - np.maximum(size, 1e-30) ** (norm - 1) / beta, 0)
        zero = (codes - (x - shrunk) * inverse).mean(1, keepdims=True)
        beta *= growth
    scales, zero = half(1 / inverse[:, 0]), zero.astype(np.float16).astype(np.float32)
    return (np.clip(np.rint(x / scales + zero), 0, 15) - zero) * scales


def nf4(x: np.ndarray) -> np.ndarray:
    """NF4 of bitsandbytes: the largest magnitude is the scale, a float32."""
    scales = largest(x)[:, None]
    return table(x, np.where(scales == 0, 1, scales), NF4)


def mxfp4(x: np.ndarray) -> np.ndarray:
    """MXFP4 by the rule of the OCP: the exponent of the largest magnitude, less 2."""
    scales = 2.0 ** (np.floor(np.log2(np.maximum(largest(x), 1e-30))) - 2)
    return table(x, scales[:, None], E2M1)


def e4m3(scales: np.ndarray) -> np.ndarray:
    """The nearest 8-bit floats, none of which is 0."""
    above = np.clip(np.searchsorted(E4M3, scales), 1, len(E4M3) - 1)
    return np.where(scales - E4M3[above - 1] <= E4M3[above] - scales, E4M3[above - 1], E4M3[above])


def nvfp4(x: np.ndarray, whole: float) -> np.ndarray:
    """NVFP4 whose largest number is the largest magnitude; ``whole`` is the scale of the tensor."""
    return table(x, (e4m3(largest(x) / 6 / whole) * whole)[:, None], E2M1)


def four_over_six(x: np.ndarray, whole: float) -> np.ndarray:
    """NVFP4 whose largest number, 6 or 4, is the largest magnitude, whichever has the smaller error."""
    six, four = nvfp4(x, whole), table(x, (e4m3(largest(x) / 4 / whole) * whole)[:, None], E2M1)
    is_better = ((x - four) ** 2).sum(1) < ((x - six) ** 2).sum(1)
    return np.where(is_better[:, None], four, six)
