"""Two files compared of which one is an ONNX model at least, some lines of a tensor at a time: the core does not read those."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize import _core
from quantize._files.checkpoint import Checkpoint
from quantize._files.optimum import FLOATS, is_turned
from quantize._types import QuantizedArray

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from quantize._files.checkpoint import TensorInfo
    from quantize._files.progress import Progress

BLOCK_ELEMENTS = 2 << 20
"""Elements of a tensor that are compared at a time, as the core does; more where it cannot be cut so."""


def compare(first: str, second: str, threads: int | None, progress: Progress | None) -> list[tuple[Any, ...]]:
    """Give ``(name, first, second, verdict, errors)`` for every name of two files."""
    with Checkpoint(first) as reference, Checkpoint(second) as measured:
        rows: list[tuple[Any, ...]] = []
        done, total = 0, sum(info.nbytes for info in reference.tensors)
        for info in reference.tensors:

            def advance(part: float, done: int = done, info: TensorInfo = info) -> None:
                if progress is not None:
                    progress(done + int(part * info.nbytes), total, info.name)

            advance(0)
            there = info.name in measured
            verdict, errors = _pair(reference, measured, info.name, threads, advance) if there else (None, None)
            rows.append((info.name, _kept(info), _kept(measured.info(info.name)) if there else None, verdict, errors))
            done += info.nbytes
        return rows + [(info.name, None, _kept(info), None, None) for info in measured.tensors if info.name not in reference]


def _kept(info: TensorInfo) -> tuple[str, list[int], int]:
    return info.format or info.dtype, list(info.shape), info.nbytes


def _pair(
    first: Checkpoint, second: Checkpoint, name: str, threads: int | None, advance: Callable[[float], None]
) -> tuple[str, tuple[float, ...] | None]:
    info, other = first.info(name), second.info(name)
    turned = is_turned(first, second, name)
    if info.shape != (other.shape[::-1] if turned else other.shape):
        return "shapes", None
    blocks = _blocks(first, second, name, turned, advance)
    if _is_measured(info) and _is_measured(other):
        errors = [np.zeros(6)]
        for one, two in blocks:
            x, y = _floats(first, name, one, threads), _floats(second, name, two, threads)
            y = y.T if turned else y
            errors.append(_core.compare(x, x.dtype == np.uint16, y, y.dtype == np.uint16, None, threads))  # bfloat16 comes as its bits
        return "measured", (*np.sum(errors, axis=0).tolist()[:-1], float(np.max(errors, axis=0)[-1]))
    if _kept(info)[0] != _kept(other)[0]:
        return "dtypes", None
    return "same" if all(one.tobytes() == (two.T if turned else two).tobytes() for one, two in blocks) else "different", None


def _floats(file: Checkpoint, name: str, array: QuantizedArray | NDArray[Any], threads: int | None) -> NDArray[Any]:
    """Give lines as numbers."""
    if not isinstance(array, QuantizedArray):
        return array
    try:
        return array.dequantize(threads=threads)
    except ValueError as error:  # a part contradicts another
        raise _core.CorruptFileError(f"{file.path}: tensor {name!r}: {error}") from error


def _is_measured(info: TensorInfo) -> bool:
    return info.format is not None or info.dtype in FLOATS


def _blocks(first: Checkpoint, second: Checkpoint, name: str, turned: bool, advance: Callable[[float], None]) -> Iterator[tuple[Any, Any]]:
    """Read the same lines of a tensor of both files."""
    axes = _axes(first, second, name, turned)
    with first.lines(name, axes[0]) as lines, second.lines(name, axes[1]) as others:
        step = math.lcm(lines.step, others.step)
        columns = first.info(name).size // max(lines.length, 1)
        count = max(BLOCK_ELEMENTS // max(columns, 1) // step, 1) * step
        for start in range(0, lines.length, count):
            stop = min(start + count, lines.length)
            yield lines.read(start, stop), others.read(start, stop)
            advance(stop / lines.length)


def _axes(first: Checkpoint, second: Checkpoint, name: str, turned: bool) -> tuple[int, int]:
    """Along which axis lines run in each file: rows, but the outputs of a weight that both models have, as quantized ones are stored."""
    axes = (first.inputs_axis(name), second.inputs_axis(name))
    if turned and axes[0] is not None and axes[1] is not None:
        return axes[0], axes[1]
    packed = next((axis for file, axis in zip((first, second), axes, strict=True) if file.info(name).format is not None), None)
    are_models = first.container == second.container == "onnx"
    return (packed, packed) if are_models and packed is not None else (1, 1)
