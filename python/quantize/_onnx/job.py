"""A plan carried out: weights are read, quantized and written one after the other, the graphs changed, the model written last."""

from __future__ import annotations

import os
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from quantize import _core
from quantize._api import from_parts, quantize
from quantize._onnx import output as files
from quantize._onnx.data import is_outside
from quantize._onnx.graph import tensors_of
from quantize._onnx.plan import How, Step, turn
from quantize._onnx.surgery import Surgeon
from quantize._onnx.weights import BLOCKS, Layout, load
from quantize._types import QuantizedArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from quantize._onnx.model import Model
    from quantize._types import GroupSize

MEASURED = 4 << 20  # elements that are decoded at a time to measure errors


def run(
    model: Model, steps: list[Step], how: How, target: str, overwrite: bool, progress: Callable[[int, int, str], object] | None
) -> None:
    """Carry a plan out."""
    refused = next((step for step in steps if step.action == "refuse"), None)
    if refused is not None:
        raise _core.PolicyError(f"{model.path}: tensor {refused.weight.name!r}: {refused.reason}")
    outside = any(map(is_outside, tensors_of(model.message)))
    if not outside:
        grown = sum(step.after - step.before for step in steps)
        outside = model.size + grown > files.INSIDE_LIMIT
    output = files.Output(target, overwrite, outside)
    try:
        if outside:
            _spare_source(model, output)
        surgeon = Surgeon(model.message, model.scopes, output)
        done, total = 0, sum(step.before for step in steps)
        for step in steps:
            if progress is not None:
                progress(done, total, step.weight.name)
            if step.changes:
                started = time.perf_counter()
                _carry_out(model, step, how, surgeon)
                step.seconds = time.perf_counter() - started
            done += step.before
        surgeon.finish()
        for tensor in tensors_of(model.message):
            if is_outside(tensor):
                output.adopt(tensor, model.source)
        if progress is not None:
            progress(total, total, "")
        untouched = not outside and not any(step.changes for step in steps)
        serialize = Path(model.path).read_bytes if untouched else model.message.SerializeToString
        output.finish(tensors_of(model.message), serialize)
    finally:
        output.discard()


def _spare_source(model: Model, output: files.Output) -> None:
    """Refuse to put data in the place of that which another model, the source, goes on using."""
    try:
        place = os.stat(output.path + ".data")
        same_model = os.path.exists(output.path) and os.path.samefile(model.path, output.path)
    except FileNotFoundError:
        return
    if not same_model and any(os.path.samestat(place, own) for own in model.source.files()):
        raise ValueError(f"target is {output.path!r}; the data of the source has the name of its data: choose another name or folder")


def _carry_out(model: Model, step: Step, how: How, surgeon: Surgeon) -> None:
    weight = step.weight
    before = load(weight, model.source)
    if step.layout is None:
        assert isinstance(before, QuantizedArray)  # a step without a layout decodes
        surgeon.floats(weight, step.uses, before.dequantize(dtype=weight.dtype, threads=how.threads).reshape(weight.seen))
        return
    try:
        if isinstance(before, QuantizedArray):
            q = turn(before, how, step.action == "requantize")
            floats = before.dequantize(threads=how.threads)
        else:
            floats = before.reshape(step.layout.shape)
            q = _quantized(floats, step, step.layout, how)
    except ValueError as error:
        raise _core.PolicyError(f"{model.path}: tensor {weight.name!r}: {error}") from error
    step.errors = _errors(floats, q, how.threads)
    if step.layout.format == "onnx:matmulnbits":
        surgeon.pack(weight, step.uses, q)
    else:
        surgeon.decode(weight, step.uses, q)


def _errors(floats: NDArray[Any], q: QuantizedArray, threads: int | None) -> tuple[float, ...]:
    """Measure how far a quantized matrix is from its floats, some rows of its parts at a time."""
    if q.format == "onnx:qdq" and q.group_size in BLOCKS:
        q = q.to("onnx:matmulnbits", threads=threads)  # the same values in parts that have rows
    rows, columns = q.shape[1 - q.axis], q.shape[q.axis]
    step = rows if q.format == "onnx:qdq" else max(MEASURED // max(columns, 1), 1)
    sums: list[NDArray[np.float64]] = []
    for start in range(0, rows, step):
        block, stop = q, min(start + step, rows)
        if stop - start < rows:
            shape = (stop - start, columns) if q.axis else (columns, stop - start)
            parts = {name: part[start:stop] for name, part in q.parts.items()}
            block = from_parts(q.format, parts, shape=shape, axis=q.axis, group_size=cast("GroupSize", q.group_size))
        reference = floats[start:stop] if q.axis else floats[:, start:stop]
        sums.append(_core.compare(reference, False, block.dequantize(threads=threads), False, None, threads))
    *totals, _ = np.sum(sums, axis=0).tolist()
    return (*totals, float(max(each[-1] for each in sums)))


def _quantized(array: NDArray[Any], step: Step, layout: Layout, how: How) -> QuantizedArray:
    """Quantize a matrix of floats, as the nodes see it."""
    if array.dtype.name != layout.dtype:  # a Cast stands between it and its users
        with np.errstate(over="ignore"):
            array = array.astype(layout.dtype)
    if how.nonfinite != "raise":
        step.replaced = array.size - int(np.count_nonzero(np.isfinite(array)))
    importance: Any = None
    if how.method == "optimal":
        importance, step.weighted = _importance(step.weight.name, array, how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", _core.QuantizeWarning)  # the caller tells of all tensors at once
        return quantize(
            array,
            layout.format,
            axis=layout.axis,
            group_size=layout.group_size,
            method=how.method,
            clip_limit=how.clip_limit,
            importance=importance,
            nonfinite=how.nonfinite,
            threads=how.threads,
            symmetric=layout.symmetric,
        )


def _importance(name: str, array: NDArray[Any], how: How) -> tuple[Any, str]:
    """What errors are weighted with: what the file of importance has for a tensor, else magnitudes."""
    given = how.importance or {}
    found = next((given[key] for key in (name, f"{name}.in_sum2") if key in given), None)
    if found is None:
        return "magnitude", "magnitude"
    if isinstance(found, QuantizedArray) or found.dtype.kind != "f":
        raise TypeError(f"importance of tensor {name!r} is not of floats; expected floats")
    return found if found.shape == array.shape else found.reshape(-1), "importance"
