"""A plan carried out: weights are read, quantized and written some outputs at a time, the graphs changed, the model written last."""

from __future__ import annotations

import math
import os
import time
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize import _core
from quantize._api import quantize
from quantize._onnx import output as files
from quantize._onnx.data import is_outside
from quantize._onnx.graph import tensors_of
from quantize._onnx.plan import How, Step, turn
from quantize._onnx.storage import Layout, taken_apart
from quantize._onnx.surgery import Surgeon
from quantize._onnx.weights import opened
from quantize._types import QuantizedArray

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from quantize._onnx.model import Model

BLOCK_ELEMENTS = 16 << 20
"""Elements of a weight that are changed at a time at most."""

ELEMENT_BYTES = 20
"""Bytes of memory for each of them at most: as it was, as float32, as it becomes, and both as floats to measure the error."""


def cut(model: Model, steps: list[Step], limit: int) -> int:
    """Say how many outputs of each weight are changed at a time, so that they take no more than the limit; what they take at most."""
    outside = _goes_outside(model, steps)
    peak = 0
    for step in steps:
        if not step.changes:
            continue
        weight, layout = step.weight, _inner_layout(step)
        whole = sum(model.source.nbytes(tensor) for tensor in weight.tensors if not is_outside(tensor))
        whole += 0 if outside else 2 * step.after
        whole += _importance_bytes(weight.name, step.how)
        smallest = min(math.lcm(weight.step(_inputs_axis(step)), *(part.step for part in layout.stored())), max(layout.rows, 1))
        each = ELEMENT_BYTES * max(layout.columns, 1)
        needed = whole + smallest * each
        if needed > limit:
            raise ValueError(
                f"memory_limit is {limit} bytes; tensor {weight.name!r} takes {needed}: what is inside the model is read as a whole, "
                f"and of {layout.columns} inputs at least {smallest} outputs are changed at a time"
            )
        count = min(limit - whole, ELEMENT_BYTES * BLOCK_ELEMENTS) // each // smallest * smallest
        step.count = min(max(count, smallest), max(layout.rows, 1))
        peak = max(peak, whole + step.count * each)
    return peak


def run(model: Model, steps: list[Step], target: str, overwrite: bool, progress: Callable[[int, int, str], object] | None) -> None:
    """Carry a plan out."""
    refused = next((step for step in steps if step.action == "refuse"), None)
    if refused is not None:
        raise _core.PolicyError(f"{model.path}: tensor {refused.weight.name!r}: {refused.reason}")
    outside = _goes_outside(model, steps)
    output = files.Output(target, overwrite, outside)
    try:
        if outside:
            _spare_source(model, output)
        surgeon = Surgeon(model.message, model.scopes)
        done, total = 0, sum(step.before for step in steps)
        for step in steps:
            if progress is not None:
                progress(done, total, step.weight.name)
            if step.changes:
                started = time.perf_counter()
                _carry_out(model, step, surgeon, output)
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


def _goes_outside(model: Model, steps: list[Step]) -> bool:
    """Whether the new model has a file of data."""
    if any(map(is_outside, tensors_of(model.message))):
        return True
    return model.size + sum(step.after - step.before for step in steps) > files.INSIDE_LIMIT


def _spare_source(model: Model, output: files.Output) -> None:
    """Refuse to put data in the place of that which another model, the source, goes on using."""
    try:
        place = os.stat(output.path + ".data")
        same_model = os.path.exists(output.path) and os.path.samefile(model.path, output.path)
    except FileNotFoundError:
        return
    if not same_model and any(os.path.samestat(place, own) for own in model.source.files()):
        raise ValueError(f"target is {output.path!r}; the data of the source has the name of its data: choose another name or folder")


def _inner_layout(step: Step) -> Layout:
    """How the weight is quantized in the new file; where it is decoded, in the old one."""
    if step.layout is not None:
        return step.layout
    assert step.weight.packed is not None
    return step.weight.packed.layout


def _inputs_axis(step: Step) -> int:
    """The axis of the weight, as the old file has it, along which the inputs run."""
    return _inner_layout(step).axis if step.weight.packed is None else step.weight.packed.layout.axis


def _carry_out(model: Model, step: Step, surgeon: Surgeon, output: files.Output) -> None:
    weight, layout = step.weight, _inner_layout(step)
    with ExitStack() as stack:
        lines = stack.enter_context(opened(weight, _inputs_axis(step), model.source))
        if step.layout is None:
            targets = surgeon.floats(weight, step.uses, layout)
        elif layout.format == "onnx:matmulnbits":
            targets = surgeon.pack(weight, step.uses, layout)
        else:
            targets = surgeon.decode(weight, step.uses, layout)
        rooms = [
            (target, [stack.enter_context(output.room(*pair)) for pair in zip(target.tensors, target.nbytes, strict=True)])
            for target in targets
        ]
        errors: list[NDArray[np.float64]] = []
        for start in range(0, layout.rows, step.count):
            stop = min(start + step.count, layout.rows)
            try:
                changed = _changed(lines.read(start, stop), step, start, errors)
            except ValueError as error:
                some = "" if stop - start == layout.rows else f" outputs {start} to {stop - 1}:"
                raise _core.PolicyError(f"{model.path}: tensor {weight.name!r}:{some} {error}") from error
            for target, pieces in rooms:
                arrays = taken_apart(changed, target.is_table) if isinstance(changed, QuantizedArray) else [changed]
                for part, piece, array in zip(target.stored, pieces, arrays, strict=True):
                    part.write(piece, start, stop, array)
    if errors:
        step.errors = (*np.sum(errors, axis=0).tolist()[:-1], float(np.max(errors, axis=0)[-1]))


def _changed(
    before: QuantizedArray | NDArray[Any], step: Step, start: int, errors: list[NDArray[np.float64]]
) -> QuantizedArray | NDArray[Any]:
    """Change the outputs of a weight from one on, and measure the errors."""
    how = step.how
    if isinstance(before, QuantizedArray):
        if step.layout is None:
            return before.dequantize(dtype=step.weight.dtype, threads=how.threads)
        q = turn(before, how, step.action == "requantize")
        floats = before.dequantize(threads=how.threads)
    else:
        assert step.layout is not None  # nothing else than what is quantized is decoded
        q = _quantized(before, step, step.layout, start)
        floats = before
    errors.append(_core.compare(floats, False, q.dequantize(threads=how.threads), False, None, how.threads))
    return q


def _quantized(array: NDArray[Any], step: Step, layout: Layout, start: int) -> QuantizedArray:
    """Quantize the outputs of a weight of floats from one on, as the nodes see them."""
    how = step.how
    if array.dtype.name != layout.dtype:  # a Cast stands between it and its users
        with np.errstate(over="ignore"):
            array = array.astype(layout.dtype)
    if how.nonfinite != "raise":
        step.replaced += array.size - int(np.count_nonzero(np.isfinite(array)))
    importance: Any = None
    if how.method == "optimal":
        importance, step.weighted = _importance(step.weight.name, layout, start, array, how)
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


def _given_importance(name: str, how: How) -> str | None:
    """Which tensor of the file of importance is for a weight."""
    return next((key for key in (name, f"{name}.in_sum2") if key in (how.importance or ())), None)


def _importance_bytes(name: str, how: How) -> int:
    """Bytes that the importance of a weight takes, which is read as a whole."""
    key = _given_importance(name, how)
    return 0 if key is None or how.importance is None else how.importance.info(key).nbytes


def _importance(name: str, layout: Layout, start: int, array: NDArray[Any], how: How) -> tuple[Any, str]:
    """What the errors of some outputs are weighted with: what the file of importance has for a tensor, else magnitudes."""
    key = _given_importance(name, how)
    if key is None or how.importance is None:
        return "magnitude", "magnitude"
    found = how.importance[key]
    if isinstance(found, QuantizedArray) or found.dtype.kind != "f":
        raise TypeError(f"importance of tensor {name!r} is not of floats; expected floats")
    if found.shape != layout.shape:
        return found.reshape(-1), "importance"
    stop = start + array.shape[1 - layout.axis]
    return found[start:stop] if layout.axis == 1 else found[:, start:stop], "importance"
