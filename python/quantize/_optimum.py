"""How far a quantized array is from the smallest error that its layout can hold: the search again, on the array that it came from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize import _core
from quantize._threads import requested
from quantize._types import QuantizedArray, format_info, wrap

if TYPE_CHECKING:
    from numpy.typing import NDArray

# What a search in float32 is good to: a part of the error, or one of sum w x^2; and where it ends at a tolerance, that.
_OF_ERROR, _OF_ENERGY, _TOLERANCE = 2e-6, 3e-7, 1e-4
# The formats whose scales are multiples of others, and the parts that say so where it is a choice.
_TWO_LEVELS = ("gguf:q4_k", "gguf:iq4_xs")
_SECOND_LEVEL = {"weight_global_scale", "weight_scale_2", "per_tensor_scale", "nested_absmax"}


class Optimum(NamedTuple):
    """An array beside the best one of its layout."""

    lower_bound: float
    """No codes and scales have a smaller mean (weighted) squared error."""
    excess: float
    """By how much the error of the array is above that of the best one, as a part of it."""
    share_improved: float
    """The share of the groups whose error is above that of the best one by more than rounding."""


class Sums(NamedTuple):
    """What an optimum is told by, over some groups."""

    bounds: float
    """No codes and scales have a smaller sum of (weighted) squared errors."""
    errors: float
    smallest: float
    weights: float
    improved: int
    groups: int

    def optimum(self) -> Optimum:
        """Give the same as means and shares."""
        return Optimum(
            self.bounds / self.weights if self.weights else 0.0,
            self.errors / self.smallest - 1 if self.smallest else math.inf if self.errors else 0.0,
            self.improved / self.groups if self.groups else 0.0,
        )


def beside(expected: NDArray[Any], bits: bool, q: QuantizedArray, importance: NDArray[Any] | str | None, weight_bits: bool) -> Optimum:
    """Search the groups of ``expected`` in the layout of ``q``, and compare."""
    if not proves(q):
        raise ValueError(
            f"optimum is True; {q.format} has scales of two levels, whose search proves nothing: "
            "compare with what another method gives, or choose a format of one level"
        )
    return searched(expected, bits, q, importance, weight_bits, None).optimum()


def searched(
    expected: NDArray[Any], bits: bool, q: QuantizedArray, importance: NDArray[Any] | str | None, weight_bits: bool, threads: int | None
) -> Sums:
    """Search the groups of ``expected`` in the layout of ``q``, and add up.

    The search of a scale and a minimum is proven for real numbers, so there the bound is that of float32 zero points.
    """
    format, _, axis, size, scale_dtype, options = q._tensor  # pyright: ignore[reportPrivateUsage]
    if "symmetric" in format_info(format).options and "symmetric" not in options:  # always stored with zero points, which tell
        options = {"symmetric": q.zero_points is None or bool((q.zero_points == 8).all())}

    def search(format: str, scale_dtype: str | None, options: dict[str, Any] | None) -> QuantizedArray:
        how = ("optimal", importance, weight_bits, None, None, "raise", None, requested(threads))
        return wrap(*_core.quantize(expected, bits, format, axis, size, scale_dtype, options, *how))

    x = _float64(expected, bits)
    weights = _weights(x, importance, weight_bits, axis)
    best = search(format, scale_dtype if "scale_dtype" in format_info(format).options else None, options or None)
    errors, smallest = (_group_sums(weights * (side.dequantize(dtype=np.float64) - x) ** 2, q) for side in (q, best))
    energies = _group_sums(weights * x**2, q)
    rounding = np.maximum(_OF_ERROR * smallest, _OF_ENERGY * energies)
    if "fast" in format_info(format).methods:
        numbers = search("hqq", "float32", None).dequantize(dtype=np.float64)
        bounds = _group_sums(weights * (numbers - x) ** 2, q) * (1 - _TOLERANCE) - rounding
    else:
        bounds = smallest - rounding
    improved = int(np.count_nonzero(errors > smallest + rounding))
    least = float(np.maximum(bounds, 0).sum())
    return Sums(least, float(errors.sum()), float(smallest.sum()), float(weights.sum()), improved, errors.size)


def proves(q: QuantizedArray) -> bool:
    """Whether the search of a layout proves something: that of scales of two levels does not."""
    is_nested = _SECOND_LEVEL & q.parts.keys() or "global_scale" in q._tensor[5]  # pyright: ignore[reportPrivateUsage]
    return q.format not in _TWO_LEVELS and not is_nested


def _float64(array: NDArray[Any], bits: bool) -> NDArray[np.float64]:
    """What the core sees: float64 is rounded to float32, and uint16 may be the bits of bfloat16."""
    if bits:
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float32).astype(np.float64)


def _weights(x: NDArray[np.float64], importance: NDArray[Any] | str | None, bits: bool, axis: int) -> NDArray[np.float64]:
    """What the square of every error counts."""
    if importance is None:
        return np.ones_like(x)
    if isinstance(importance, str):
        squares: NDArray[np.float64] = x**2
        weights: NDArray[np.float64] = np.sqrt(squares.mean(axis, keepdims=True) + squares)
        return weights
    weights = _float64(importance, bits)
    if weights.ndim == 1 < x.ndim:
        weights = weights.reshape([-1 if at == axis else 1 for at in range(x.ndim)])
    return np.broadcast_to(weights, x.shape)


def _group_sums(values: NDArray[np.float64], q: QuantizedArray) -> NDArray[np.float64]:
    """The sum over each group, in order; the last one of a row may be shorter."""
    values = np.moveaxis(values, q.axis, -1)
    if q.group_size == "tensor" or format_info(q.format).flat:
        values = values.reshape(1, -1)
    size = q.group_size if isinstance(q.group_size, int) else max(values.shape[-1], 1)
    starts: NDArray[np.intp] = np.arange(0, values.shape[-1], size, dtype=np.intp)
    return np.add.reduceat(values, starts, axis=-1)
