"""An ONNX model as the rest of the package sees a file of named tensors, and its conversion, in rows of plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantize._onnx.job import cut, run
from quantize._onnx.model import Model
from quantize._onnx.plan import How, plan
from quantize._onnx.uses import uses
from quantize._onnx.weights import Lines, load, opened
from quantize._types import QuantizedArray

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from quantize._types import Tensor


class File:
    """An open model, with what the compiled reader of other files has."""

    container = "onnx"

    def __init__(self, path: str) -> None:
        self.model = Model(path)

    @property
    def metadata(self) -> dict[str, Any]:
        """What the model says of itself, and its own entries."""
        message = self.model.message
        known = {
            "ir_version": int(message.ir_version),
            "opset_import": [f"{opset.domain or 'ai.onnx'} {opset.version}" for opset in message.opset_import],
            "producer": f"{message.producer_name} {message.producer_version}".strip(),
        }
        return {key: value for key, value in known.items() if value} | {entry.key: entry.value for entry in message.metadata_props}

    def tensors(self) -> list[tuple[str, str, list[int], int, Tensor | None]]:
        """Name, dtype, shape, bytes and layout of every constant."""
        rows: list[tuple[str, str, list[int], int, Tensor | None]] = []
        for weight in self.model.weights:
            tensor = None if weight.packed is None else weight.packed.layout.tensor
            rows.append((weight.name, weight.dtype, list(weight.shape), self.model.bytes_before(weight), tensor))
        return rows

    def read(self, index: int) -> list[tuple[str, NDArray[np.uint8], str, tuple[int, ...]]]:
        """Part, bytes, dtype and shape of what a constant is stored in."""
        found = self.array(index)
        parts = dict(found.parts) if isinstance(found, QuantizedArray) else {"": found}
        return [(name, np.ascontiguousarray(part).reshape(-1).view(np.uint8), part.dtype.name, part.shape) for name, part in parts.items()]

    def array(self, index: int) -> QuantizedArray | NDArray[Any]:
        """Read a constant."""
        return load(self.model.weights[index], self.model.source)

    def lines(self, index: int, axis: int) -> AbstractContextManager[Lines]:
        """Open a constant as a matrix whose lines run along an axis."""
        return opened(self.model.weights[index], axis, self.model.source)

    def inputs_axis(self, index: int) -> int | None:
        """Along which axis of a weight the inputs of its layer run; None for anything else."""
        weight = self.model.weights[index]
        if weight.packed is not None:
            return weight.packed.layout.axis
        found = uses(weight)
        return None if isinstance(found, str) or len(weight.shape) != 2 else found[0].axis


def convert(
    source: str, target: str | None, how: How, limit: int, overwrite: bool, progress: Callable[[int, int, str], object] | None
) -> tuple[list[tuple[Any, ...]], int]:
    """Give the rows of a report and the bytes that weights take at most while they are changed; without a target the plan alone."""
    model = Model(source)
    steps = plan(model, how)
    peak = cut(model, steps, limit)
    if target is not None:
        run(model, steps, target, overwrite, progress)
    return [step.row() for step in steps], peak
