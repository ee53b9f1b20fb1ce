"""What happens to each tensor of a model, planned from its graphs alone."""

from __future__ import annotations

import fnmatch
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize import _core
from quantize._api import quantize
from quantize._onnx.data import FLOAT, FLOAT16, TYPES
from quantize._onnx.graph import is_operator
from quantize._onnx.storage import DTYPES, Layout
from quantize._onnx.uses import Use, uses
from quantize._onnx.weights import Weight

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from quantize._files.checkpoint import Checkpoint
    from quantize._files.rules import Parsed
    from quantize._onnx.model import Model
    from quantize._types import GroupSize, Method, NonFinite, QuantizedArray

FORMATS = ("onnx:matmulnbits", "onnx:qdq")
BLOCKS_FROM = 21  # the version of the operators from which on DequantizeLinear knows 4-bit integers and blocks


class How(NamedTuple):
    """What is wanted."""

    format: str | None
    """None for floats."""
    group_size: GroupSize | None = None
    options: Mapping[str, Any] | None = None
    method: Method = "nearest"
    clip_limit: float | None = None
    importance: Checkpoint | None = None
    nonfinite: NonFinite = "raise"
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    keep: Sequence[str] = ()
    rules: Sequence[Parsed] = ()
    requantize: bool = False
    threads: int | None = None

    def of(self, rule: Parsed | None) -> How | None:
        """What is wanted of the tensors that a rule, or none, decides about; None where they are kept."""
        if rule is None:
            return self
        if rule[1] is None:
            return None
        format, group_size, _, options = rule[1]
        return self._replace(format=format, group_size=group_size, options=options)


@dataclass(eq=False)
class Step:
    """What happens to one weight."""

    weight: Weight
    how: How
    action: str
    reason: str | None = None
    layout: Layout | None = None
    """How it is quantized in the new file."""
    uses: list[Use] = field(default_factory=list[Use])
    rule: str | None = None
    """The pattern of the rule that decided."""
    before: int = 0
    after: int = 0
    count: int = 1
    """Outputs that are changed at a time."""
    errors: tuple[Any, ...] | None = None
    replaced: int = 0
    weighted: str | None = None
    seconds: float = 0.0

    @property
    def changes(self) -> bool:
        """Whether the graph changes."""
        return self.action not in ("keep", "refuse")

    def row(self) -> tuple[Any, ...]:
        """Give what a report is made of."""
        weight, done = self.weight, (self.errors, self.replaced, self.weighted, None, self.seconds)
        tensor = None if self.layout is None else self.layout.tensor
        becomes = weight.dtype if tensor is None else tensor[0]
        sizes = (self.before, self.after)
        return (weight.name, weight.shape, weight.dtype, self.action, self.reason, self.rule, tensor, sizes, becomes, None, done)


def plan(model: Model, how: How) -> list[Step]:
    """Decide what happens to each tensor. Nothing is read."""
    _check_all(model, how)
    _check_names(model, how)
    steps: list[Step] = []
    for weight in model.weights:
        step = _chosen(weight, how)
        step.before = model.bytes_before(weight)
        step.after = step.before
        if step.action == "dequantize":
            step.after = math.prod(weight.shape) * np.dtype(weight.dtype).itemsize
        elif step.changes and step.layout is not None:
            copies = len({use.is_lookup for use in step.uses})  # a table that is multiplied by too
            step.after = copies * step.layout.nbytes
        steps.append(step)
    return steps


def _check_all(model: Model, how: How) -> None:
    """Refuse what an ONNX file does not take."""
    if model.message.training_info:
        raise ValueError("the model has graphs for training, which use its weights as they are; expected one for inference alone")
    if how.format is None:
        if how.rules:
            raise ValueError(f"a rule is {how.rules[0][0]!r}; floats are wanted: give no rules")
        return
    _check_how(model, how, "format")
    for rule in how.rules:
        if rule[1] is not None and rule[1][2] is not None:
            raise ValueError(
                f"the rule of {rule[0]!r} has scale_dtype; expected none for an ONNX file: scales are of the dtype of its graph"
            )
        own = how.of(rule)
        if own is not None:
            _check_how(model, own, f"the format of the rule of {rule[0]!r}")


def _check_how(model: Model, how: How, argument: str) -> None:
    if how.format not in FORMATS:
        raise ValueError(f"{argument} is {how.format!r}; an ONNX file takes {' or '.join(FORMATS)}")
    if how.group_size == "tensor":
        raise ValueError("group_size is 'tensor'; expected a number of elements or 'row' in an ONNX file")
    _layout(how, (0, 0), 0, "float32")  # what the format does not take is a fault whatever the file holds
    if how.format == "onnx:qdq" and model.opset < BLOCKS_FROM:
        raise ValueError(
            f"{argument} is 'onnx:qdq'; the model is of opset {model.opset}, and DequantizeLinear knows blocks of 4 bits from {BLOCKS_FROM} on: "
            f"take onnx:matmulnbits, or convert the model with onnx.version_converter first"
        )


def _check_names(model: Model, how: How) -> None:
    """Every pattern and name must mean something: one that fits no tensor is most likely misspelt."""
    names = [weight.name for weight in model.weights]
    rules = [pattern for pattern, _ in how.rules]
    for argument, patterns in (("include", how.include), ("exclude", how.exclude), ("a rule", rules)):
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
    q = quantize(empty, how.format, axis=axis, group_size=how.group_size, method=how.method, clip_limit=how.clip_limit, **options)
    return _described(q, shape)


def _described(q: QuantizedArray, shape: tuple[int, int]) -> Layout:
    """How an array is quantized, as one of another shape."""
    group_size: Any = q.group_size
    return Layout(q.format, shape, q.axis, group_size, q.parts["scales"].dtype.name, "zero_points" not in q.parts)


def _chosen(weight: Weight, how: How) -> Step:
    """What happens to a weight by what its name asks for."""
    layout = None if weight.packed is None else weight.packed.layout
    left_out = _leaves_out(weight.name, how)
    if left_out is not None:
        return Step(weight, how, "keep", left_out, layout)
    rule = next((rule for rule in how.rules if fnmatch.fnmatchcase(weight.name, rule[0])), None)
    own = how.of(rule)
    if rule is None:
        assert own is not None
        return _step(weight, own, is_named=bool(how.include))
    step = Step(weight, how, "keep", f"kept by rule {rule[0]!r}", layout) if own is None else _step(weight, own, is_named=True)
    step.rule = rule[0]
    return step


def _step(weight: Weight, how: How, is_named: bool) -> Step:
    """What happens to a weight that is wanted so, by its type, its shape and its users."""
    packed, found, shape = weight.packed, uses(weight), weight.shape

    def kept(reason: str) -> Step:
        return Step(weight, how, "keep", reason, None if packed is None else packed.layout)

    if how.format is None:
        # A weight that its users decode has no others; one that the graph decodes may have any.
        return kept("not quantized") if packed is None else Step(weight, how, "dequantize", uses=[] if isinstance(found, str) else found)
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
    if any(use.is_lookup for use in found) and not is_named:
        return kept("rows are looked up in it; such a table is quantized where include or a rule names it")
    seen = weight.data_type if how.format == "onnx:qdq" else found[0].data_type
    layout = _layout(how, (shape[-2], shape[-1]), found[0].axis, DTYPES[seen].name)
    if layout.columns < layout.block:
        return kept(f"the axis of the inputs has {layout.columns} elements; a group has {layout.block}")
    return Step(weight, how, "quantize", None, layout, found)


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
            q = turn(row, how, False)
        except _core.LossyConversionError:
            if not how.requantize:
                raise
            q, action = turn(row, how, True), "requantize"
    except ValueError as error:
        return Step(weight, how, "refuse", str(error), before, found)
    return Step(weight, how, action, None, _described(q, before.shape), found)


def turn(q: QuantizedArray, how: How, requantize: bool) -> QuantizedArray:
    """Convert an array that is quantized to what is wanted."""
    assert how.format is not None
    return q.to(how.format, group_size=how.group_size, requantize=requantize, threads=how.threads, **(how.options or {}))
