"""From one ONNX model to another: what happens to each tensor is planned from the model alone, then its graphs are changed."""

from __future__ import annotations

import fnmatch
import math
import os
import warnings
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize import _core
from quantize._api import from_parts, quantize
from quantize._onnx import data as bytes_of
from quantize._onnx.data import FLOAT, FLOAT16, TYPES, Output, Proto, Source
from quantize._onnx.graph import BLOCKS, DTYPES, Layout, Scope, Use, Weight, is_operator, is_text, load, scopes, tensors_of, uses, weights
from quantize._onnx.surgery import Surgeon
from quantize._types import QuantizedArray

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from quantize._types import GroupSize, Method, NonFinite

FORMATS = ("onnx:matmulnbits", "onnx:qdq")
BLOCKS_FROM = 21  # the version of the operators from which on DequantizeLinear knows 4-bit integers and blocks


class Model:
    """A model that is open: its message, its graphs, its weights."""

    def __init__(self, path: str) -> None:
        onnx: Any = package()
        self.path = path
        self.source = Source(path)
        if os.stat(path).st_size > bytes_of.MESSAGE_LIMIT:
            self.source.corrupt("the file is larger than 2 GiB, which a message of protobuf cannot be: weights belong in external data")
        serialized = Path(path).read_bytes()
        self.size = len(serialized)
        try:
            self.message: Proto = onnx.ModelProto.FromString(serialized)
        except Exception as error:  # protobuf has errors of its own for each of its engines
            self.source.corrupt(f"no model that protobuf can read: {error}")
        if not self.message.HasField("graph") or not self.message.opset_import:
            self.source.corrupt("no model: it has no graph, or no version of operators")
        if not is_text(self.message):
            self.source.corrupt("a name or a text is not UTF-8")
        self.source.check(tensors_of(self.message))
        self.scopes: list[Scope] = scopes(self.message, self.source)
        self.weights: list[Weight] = weights(self.scopes, self.source)

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return max((int(opset.version) for opset in self.message.opset_import if opset.domain in ("", "ai.onnx")), default=0)

    def bytes_before(self, weight: Weight) -> int:
        """Bytes that a weight takes in the file."""
        return sum(map(self.source.nbytes, (weight.tensor,) if weight.packed is None else weight.packed.tensors))


def package() -> Any:
    """Import the onnx package, which knows the messages."""
    try:
        return import_module("onnx")
    except ImportError as error:
        raise ImportError("an ONNX file needs the package onnx: pip install quantize-int4[onnx]") from error


class How(NamedTuple):
    """What is wanted."""

    format: str | None
    """None for floats."""
    group_size: GroupSize | None = None
    options: Mapping[str, Any] | None = None
    method: Method = "nearest"
    importance: Mapping[str, QuantizedArray | NDArray[Any]] | None = None
    nonfinite: NonFinite = "raise"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    keep: Sequence[str] = ()
    requantize: bool = False
    threads: int | None = None


@dataclass(eq=False)
class Step:
    """What happens to one weight."""

    weight: Weight
    action: str
    reason: str | None = None
    layout: Layout | None = None
    """How it is quantized in the new file."""
    uses: list[Use] = field(default_factory=list[Use])
    before: int = 0
    after: int = 0
    errors: tuple[Any, ...] | None = None
    replaced: int = 0
    weighted: str | None = None

    @property
    def changes(self) -> bool:
        """Whether the graph changes."""
        return self.action not in ("keep", "refuse")

    def row(self) -> tuple[Any, ...]:
        """Give what a report is made of."""
        weight, measured = self.weight, (self.errors, self.replaced, self.weighted)
        tensor = None if self.layout is None else self.layout.tensor
        becomes = weight.dtype if tensor is None else tensor[0]
        sizes = (self.before, self.after)
        return (weight.name, weight.shape, weight.dtype, self.action, self.reason, tensor, sizes, *measured, becomes, None)


def plan(model: Model, how: How) -> list[Step]:
    """Decide what happens to each tensor. Nothing is read."""
    _check_how(model, how)
    _check_names(model, how)
    steps: list[Step] = []
    for weight in model.weights:
        step = _step(weight, how)
        step.before = model.bytes_before(weight)
        step.after = step.before
        if step.action == "dequantize":
            step.after = math.prod(weight.shape) * np.dtype(weight.dtype).itemsize
        elif step.changes and step.layout is not None:
            copies = len({use.is_lookup for use in step.uses})  # a table that is multiplied by too
            step.after = copies * sum(step.layout.nbytes)
        steps.append(step)
    return steps


def _check_how(model: Model, how: How) -> None:
    if model.message.training_info:
        raise ValueError("the model has graphs for training, which use its weights as they are; expected one for inference alone")
    if how.format is None:
        return
    if how.format not in FORMATS:
        raise ValueError(f"format is {how.format!r}; an ONNX file takes {' or '.join(FORMATS)}")
    if how.group_size == "tensor":
        raise ValueError("group_size is 'tensor'; expected a number of elements or 'row' in an ONNX file")
    _layout(how, (0, 0), 0, "float32")  # what the format does not take is a fault whatever the file holds
    if how.format == "onnx:qdq" and model.opset < BLOCKS_FROM:
        raise ValueError(
            f"format is 'onnx:qdq'; the model is of opset {model.opset}, and DequantizeLinear knows blocks of 4 bits from {BLOCKS_FROM} on: "
            f"take onnx:matmulnbits, or convert the model with onnx.version_converter first"
        )


def _check_names(model: Model, how: How) -> None:
    """Every pattern and name must mean something: one that fits no tensor is most likely misspelt."""
    names = [weight.name for weight in model.weights]
    for argument, patterns in (("include", how.include), ("exclude", how.exclude)):
        for pattern in patterns:
            if not any(fnmatch.fnmatchcase(name, pattern) for name in names):
                raise ValueError(f"{argument} is {pattern!r}; no tensor of the file matches it")
    for name in how.keep:
        if name not in names:
            raise ValueError(f"keep is {name!r}; no tensor of the file has that name")


def _layout(how: How, shape: tuple[int, int], axis: int, dtype: str) -> Layout:
    """How a matrix is quantized: that of one without rows shows it."""
    assert how.format is not None
    empty = np.zeros((shape[0], 0) if axis == 0 else (0, shape[1]), dtype)
    options = dict(how.options or {})
    return _described(quantize(empty, how.format, axis=axis, group_size=how.group_size, method=how.method, **options), shape)


def _described(q: QuantizedArray, shape: tuple[int, int]) -> Layout:
    """How an array is quantized, as one of another shape."""
    group_size: Any = q.group_size
    return Layout(q.format, shape, q.axis, group_size, q.parts["scales"].dtype.name, "zero_points" not in q.parts)


def _step(weight: Weight, how: How) -> Step:
    packed, found, shape = weight.packed, uses(weight), weight.shape

    def kept(reason: str) -> Step:
        return Step(weight, "keep", reason, None if packed is None else packed.layout)

    left_out = _leaves_out(weight.name, how)
    if left_out is not None:
        return kept(left_out)
    if how.format is None:
        # A weight that its users decode has no others; one that the graph decodes may have any.
        return kept("not quantized") if packed is None else Step(weight, "dequantize", uses=[] if isinstance(found, str) else found)
    if packed is not None:
        return _again(weight, packed.layout, found, how, kept)
    if weight.dtype not in ("float16", "bfloat16", "float32", "float64"):
        return kept(f"{weight.dtype} is not quantized")
    if len(shape) < 2:
        return kept(f"{len(shape)}-d; a matrix has 2 axes or more")
    if math.prod(shape) == 0:
        return kept("no elements")
    if isinstance(found, str):
        return kept(found)
    reason = _unfit(weight, found, how)
    if reason is not None:
        return kept(reason)
    if any(use.is_lookup for use in found) and not how.include:
        return kept("rows are looked up in it; such a table is quantized where include names it")
    seen = weight.data_type if how.format == "onnx:qdq" else found[0].data_type
    layout = _layout(how, (shape[-2], shape[-1]), found[0].axis, DTYPES[seen].name)
    if layout.columns < layout.block:
        return kept(f"the axis of the inputs has {layout.columns} elements; a group has {layout.block}")
    return Step(weight, "quantize", None, layout, found)


def _leaves_out(name: str, how: How) -> str | None:
    """Why a tensor is not selected."""
    matching = next((pattern for pattern in how.exclude if fnmatch.fnmatchcase(name, pattern)), None)
    if name in how.keep:
        return "kept by name"
    if matching is not None:
        return f"excluded by {matching!r}"
    if how.include and not any(fnmatch.fnmatchcase(name, pattern) for pattern in how.include):
        return "not included"
    return None


def _unfit(weight: Weight, found: list[Use], how: How) -> str | None:
    """Why the operators of the format cannot stand in for those that use a weight."""
    seen = {weight.data_type} if how.format == "onnx:qdq" else {use.data_type for use in found}
    if not seen <= {FLOAT, FLOAT16}:
        names = ", ".join(sorted(TYPES[data_type][0] for data_type in seen if data_type in TYPES))
        return f"{names}; the operators are used with float32 and float16"
    if how.format == "onnx:qdq":
        is_table = any(use.is_lookup for use in found)
        return "rows are looked up in it; DequantizeLinear would decode the whole table each time" if is_table else None
    for use in found:
        reason = _unfit_node(weight, use)
        if reason is not None:
            return reason
    return None


def _unfit_node(weight: Weight, use: Use) -> str | None:
    """Why MatMulNBits or GatherBlockQuantized cannot take the place of a node."""
    scope, node = use.scope, use.node
    if use.is_lookup:
        is_whole = weight.seen[-1] % 2 == 0 and use.axis == len(weight.seen) - 1
        return None if is_whole else "rows of an odd length cannot be looked up"
    if is_operator(node, "Gemm"):
        given = {attribute.name: attribute for attribute in node.attribute}
        factors = {name: given[name].f if name in given else 1.0 for name in ("alpha", "beta")}
        bias = node.input[2] if len(node.input) > 2 else ""
        if factors["alpha"] != 1 or (bias and factors["beta"] != 1) or ("transA" in given and given["transA"].i):
            return "Gemm has factors, or transposes what it is given"
        tensor = scope.constant(bias) if bias else None
        if bias and (tensor is None or list(tensor.dims) != [weight.seen[1 - use.axis]]):
            return "Gemm adds something else than a constant vector"
    elif is_operator(node, "MatMul") and len(weight.seen) > 2:
        home = scope.home(node.input[0])
        rank = None if home is None else home.ranks.get(node.input[0])
        if rank is None or rank < len(weight.seen):
            return f"{len(weight.seen)} axes; the product may have more than that of a matrix"
    return None


def _again(weight: Weight, before: Layout, found: list[Use] | str, how: How, kept: Callable[[str], Step]) -> Step:
    """What happens to a weight that is quantized already."""
    if isinstance(found, str) or 0 in before.shape:
        return kept(found if isinstance(found, str) else "no elements")
    symmetric = (how.options or {}).get("symmetric", before.symmetric)
    if before.format == how.format and how.group_size in (None, before.group_size) and symmetric == before.symmetric:
        return kept(f"already {how.format}")
    reason = _unfit(weight, found, how)
    if reason is not None:
        return kept(reason)
    if before.axis != found[0].axis:
        return kept("its blocks run along the other axis")
    if how.format == "onnx:matmulnbits" and DTYPES[found[0].data_type].name != before.dtype:
        return kept("a Cast stands between it and its users")
    # All rows convert as one of zeros does.
    shape = (before.shape[0], 1) if before.axis == 0 else (1, before.shape[1])
    zeros = np.zeros(shape, before.dtype)
    row = quantize(zeros, before.format, axis=before.axis, group_size=before.group_size, symmetric=before.symmetric)
    action = "repack"
    try:
        try:
            q = _turn(row, how, False)
        except _core.LossyConversionError:
            if not how.requantize:
                raise
            q, action = _turn(row, how, True), "requantize"
    except ValueError as error:
        return Step(weight, "refuse", str(error), before, found)
    return Step(weight, action, None, _described(q, before.shape), found)


def _turn(q: QuantizedArray, how: How, requantize: bool) -> QuantizedArray:
    assert how.format is not None
    return q.to(how.format, group_size=how.group_size, requantize=requantize, threads=how.threads, **(how.options or {}))


def run(
    model: Model, steps: list[Step], how: How, target: str, overwrite: bool, progress: Callable[[int, int, str], object] | None
) -> None:
    """Carry a plan out."""
    refused = next((step for step in steps if step.action == "refuse"), None)
    if refused is not None:
        raise _core.PolicyError(f"{model.path}: tensor {refused.weight.name!r}: {refused.reason}")
    outside = any(map(bytes_of.is_outside, tensors_of(model.message)))
    if not outside:
        grown = sum(step.after - step.before for step in steps)
        outside = model.size + grown > bytes_of.INSIDE_LIMIT
    output = Output(target, overwrite, outside)
    try:
        if outside:
            _spare_source(model, output)
        surgeon = Surgeon(model.message, model.scopes, output)
        done, total = 0, sum(step.before for step in steps)
        for step in steps:
            if progress is not None:
                progress(done, total, step.weight.name)
            if step.changes:
                _carry_out(model, step, how, surgeon)
            done += step.before
        surgeon.finish()
        for tensor in tensors_of(model.message):
            if bytes_of.is_outside(tensor):
                output.adopt(tensor, model.source)
        if progress is not None:
            progress(total, total, "")
        untouched = not outside and not any(step.changes for step in steps)
        serialize = Path(model.path).read_bytes if untouched else model.message.SerializeToString
        output.finish(tensors_of(model.message), serialize)
    finally:
        output.discard()


def _spare_source(model: Model, output: Output) -> None:
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
            q = _turn(before, how, step.action == "requantize")
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


MEASURED = 4 << 20  # elements that are decoded at a time


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
            block = from_parts(q.format, parts, shape=shape, axis=q.axis, group_size=q.group_size)  # type: ignore[arg-type] # a number
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
