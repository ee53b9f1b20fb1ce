"""How far the quantized tensors of a file are from the smallest error that their layouts can hold, by the tensors of another."""

from __future__ import annotations

import math
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize._files.checkpoint import Checkpoint
from quantize._optimum import Optimum, Sums, proves, searched
from quantize._types import QuantizedArray, format_info

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from quantize._files.progress import Progress

BLOCK_ELEMENTS = 1 << 20
"""Elements that are searched at a time: as numbers of eight bytes they are in memory several times."""

FLOATS = ("float16", "bfloat16", "float32", "float64")


class Beside(NamedTuple):
    """A tensor beside the best one of its layout."""

    optimum: Optimum
    weights: str | None
    """``"importance"`` where the errors are weighted by it."""


def optima(first: str, second: str, importance: str | None, threads: int | None, progress: Progress | None) -> dict[str, Beside]:
    """Search the tensors of the first file in the layouts of the second, as far as searches prove something there."""
    found: dict[str, Beside] = {}
    with Checkpoint(first) as before, Checkpoint(second) as after, Checkpoint(importance) if importance else nullcontext() as weights:
        done, total = 0, sum(info.nbytes for info in before.tensors)
        for info in before.tensors:
            if progress is not None:
                progress(done, total, info.name)
            done += info.nbytes
            if info.name not in after or not _is_searched(after, info.name):
                continue
            x = reference(before, after, info.name)
            if x is None or x.shape != after.info(info.name).shape or not np.isfinite(x).all():
                continue
            given = None if weights is None else _importance(weights, info.name, is_turned(before, after, info.name))
            parts = list(_parts(after, info.name, x, given, threads))
            if parts:
                sums = Sums(*(sum(each) for each in zip(*parts, strict=True)))
                found[info.name] = Beside(sums.optimum(), None if given is None else "importance")
        if progress is not None:
            progress(total, total, "")
    return found


def reference(before: Checkpoint, after: Checkpoint, name: str) -> NDArray[Any] | None:
    """Read a tensor of floats of one file with its axes as in the other; None for any other tensor."""
    array = as_floats(before[name], before.info(name).dtype)
    return array.T if array is not None and is_turned(before, after, name) else array


def as_floats(array: QuantizedArray | NDArray[Any], dtype: str) -> NDArray[Any] | None:
    """Give the numbers of a tensor of floats that was read from a file; None for any other."""
    if isinstance(array, QuantizedArray):
        return array.dequantize()
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array if dtype in FLOATS else None


def is_turned(before: Checkpoint, after: Checkpoint, name: str) -> bool:
    """Whether one of two ONNX files has a matrix the other way round: MatMulNBits does not tell how it was stored."""
    axes = {before.inputs_axis(name), after.inputs_axis(name)}
    return None not in axes and len(axes) == 2


def _is_searched(file: Checkpoint, name: str) -> bool:
    """Whether the search of a tensor's layout proves something."""
    format = file.info(name).format
    if format is None or "optimal" not in format_info(format).methods:
        return False
    return all(proves(q) for _, q in islice(file.rows(name, 1), 1))


def _importance(file: Checkpoint, name: str, turned: bool) -> NDArray[np.float32] | None:
    """Read the weights of a tensor, if the file has them."""
    key = next((key for key in (name, f"{name}.in_sum2") if key in file), None)
    if key is None:
        return None
    info = file.info(key)
    array = None if info.format else as_floats(file[key], info.dtype)
    if array is None:
        raise TypeError(f"importance of tensor {name!r} is of {info.format or info.dtype}; expected floats")
    return np.ascontiguousarray(array.T if turned else array, np.float32)


def _parts(file: Checkpoint, name: str, x: NDArray[Any], importance: NDArray[np.float32] | None, threads: int | None) -> Iterator[Sums]:
    """Search a tensor some rows at a time."""
    matrix = x.reshape(-1, x.shape[-1])
    for first, q in file.rows(name, BLOCK_ELEMENTS):
        rows = slice(first, first + q.shape[0])
        try:
            weights = None if importance is None else _of_rows(importance, x.shape, rows, q.shape[q.axis])
            counts = weights is None or weights.any()
            sums = searched(matrix[rows], False, q, weights if counts else None, False, threads)
        except (ValueError, TypeError) as error:
            raise type(error)(f"tensor {name!r}: {error}") from error
        yield sums if counts else Sums(0, 0, 0, 0, 0, sums.groups)


def _of_rows(importance: NDArray[np.float32], shape: tuple[int, ...], rows: slice, columns: int) -> NDArray[np.float32]:
    """Give what weights the errors of some rows of a tensor: numbers for each column, for each column of each expert, or for each element."""
    if importance.shape == shape and len(shape) > 1:
        return importance.reshape(-1, shape[-1])[rows]
    if len(shape) > 2 and shape[0] > 1 and importance.size == shape[0] * columns:
        experts = importance.reshape(shape[0], columns)
        experts = np.where(experts.any(1, keepdims=True), experts, np.float32(1))  # no input came to such an expert
        expert_of: NDArray[np.intp] = np.arange(rows.start, rows.stop, dtype=np.intp) // math.prod(shape[1:-1])
        return np.take(experts, expert_of, axis=0)
    if importance.size != columns:
        raise ValueError(f"importance has shape {importance.shape}; expected ({columns},) or {shape}")
    return importance.reshape(-1)
