"""An ONNX model as the rest of the package sees a file of named tensors, its conversion and its comparison, in rows of plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from quantize import _core
from quantize._onnx.data import is_onnx
from quantize._onnx.job import cut, run
from quantize._onnx.model import Model
from quantize._onnx.plan import How, plan
from quantize._onnx.uses import uses
from quantize._onnx.weights import load
from quantize._types import QuantizedArray

if TYPE_CHECKING:
    from collections.abc import Callable

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


def compare(first: str, second: str, threads: int | None, progress: Callable[[int, int, str], object] | None) -> list[tuple[Any, ...]]:
    """Give ``(name, first, second, verdict, errors)`` for every name of two files, one of which is a model at least."""
    reference, measured = _Side(first), _Side(second)
    mine, theirs = reference.kept, measured.kept
    rows: list[tuple[Any, ...]] = []
    done, total = 0, sum(nbytes for _, _, nbytes in mine.values())
    for name, kept in mine.items():
        if progress is not None:
            progress(done, total, name)
        done += kept[2]
        verdict, errors = _pair(reference, measured, name, threads) if name in theirs else (None, None)
        rows.append((name, kept, theirs.get(name), verdict, errors))
    return rows + [(name, None, kept, None, None) for name, kept in theirs.items() if name not in mine]


class _Side:
    """One of two files: a model, or any other file of tensors."""

    def __init__(self, path: str) -> None:
        from quantize._files import Checkpoint  # which imports this module

        self._file = File(path) if is_onnx(path) else Checkpoint(path)
        if isinstance(self._file, File):
            listed = [(name, dtype, shape, nbytes, tensor and tensor[0]) for name, dtype, shape, nbytes, tensor in self._file.tensors()]
        else:
            listed = [(info.name, info.dtype, list(info.shape), info.nbytes, info.format) for info in self._file.tensors]
        self.kept = {name: (format or dtype, shape, nbytes) for name, dtype, shape, nbytes, format in listed}
        self._index = {name: index for index, name in enumerate(self.kept)}

    def axis(self, name: str) -> int | None:
        """Along which axis of a weight the inputs of its layer run, where the file tells."""
        return self._file.inputs_axis(self._index[name]) if isinstance(self._file, File) else None

    def array(self, name: str, threads: int | None) -> NDArray[Any]:
        """Read a tensor; a quantized one is decoded."""
        found = self._file.array(self._index[name]) if isinstance(self._file, File) else self._file[name]
        return found.dequantize(threads=threads) if isinstance(found, QuantizedArray) else found


FLOATS = ("float16", "bfloat16", "float32", "float64")


def _pair(first: _Side, second: _Side, name: str, threads: int | None) -> tuple[str, tuple[float, ...] | None]:
    array, other = first.array(name, threads), second.array(name, threads)
    axes = (first.axis(name), second.axis(name))
    if None not in axes and axes[0] != axes[1]:
        other = other.T  # MatMulNBits does not tell whether the matrix was stored the other way round, as Gemm may have it
    if array.shape != other.shape:
        return "shapes", None
    kinds = [side.kept[name][0] for side in (first, second)]
    if all(kind in FLOATS or ":" in kind for kind in kinds):
        one, two = np.atleast_1d(array), np.atleast_1d(other)
        sums = _core.compare(one, kinds[0] == "bfloat16", two, kinds[1] == "bfloat16", None, threads)
        return "measured", tuple(sums.tolist())
    if kinds[0] != kinds[1]:
        return "dtypes", None
    return "same" if array.tobytes() == other.tobytes() else "different", None
