"""What weights of an ONNX model are used for. Identity, Cast and Transpose may stand between a weight and its users."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from quantize._onnx.data import Proto
from quantize._onnx.graph import Scope, integer, is_microsoft, is_operator
from quantize._onnx.weights import DATA, Weight

if TYPE_CHECKING:
    from collections.abc import Iterator


class Use(NamedTuple):
    """A node that multiplies by a weight or looks rows up in it."""

    scope: Scope
    node: Proto
    axis: int
    """The axis of the weight as it is stored along which the inputs K run, or along which a row of a table does."""
    data_type: int
    """The type that the node sees."""

    @property
    def is_lookup(self) -> bool:
        """Whether rows are looked up."""
        return bool(self.node.op_type in ("Gather", "GatherBlockQuantized"))


def uses(weight: Weight) -> list[Use] | str:
    """What a weight is used for, or the first reason why it cannot be quantized."""
    found = list(_uses(weight.scope, weight.value, weight.seen, weight.data_type))
    reason = next((use for use in found if isinstance(use, str)), None)
    if reason is not None:
        return reason
    known = [use for use in found if isinstance(use, Use)]
    if len({(use.axis, use.data_type) for use in known}) > 1:
        return "used along both axes, or in two types"
    return known or "no node uses it"


def _uses(scope: Scope, value: str, dims: tuple[int, ...], data_type: int) -> Iterator[Use | str]:
    # A value, whether its axes are exchanged, its type; one after the other, since a chain may be long.
    open_values = [(scope, value, False, data_type)]
    while open_values:
        scope, value, flipped, data_type = open_values.pop()
        for where, node, position in scope.consumers.get(value, ()):
            order = [] if node is None else next((list(each.ints) for each in node.attribute if each.name == "perm"), [1, 0])
            if node is None:
                yield "an output of its graph"
            elif position or len(node.output) != 1:
                yield _no_use(node, position, dims) or Use(where, node, _inputs_axis(node) ^ flipped, data_type)
            elif is_operator(node, "Identity"):
                open_values.append((where, node.output[0], flipped, data_type))
            elif is_operator(node, "Cast"):
                open_values.append((where, node.output[0], flipped, integer(node, "to")))
            elif is_operator(node, "Transpose") and len(dims) == 2 and sorted(order) == [0, 1]:
                open_values.append((where, node.output[0], flipped ^ (order == [1, 0]), data_type))
            else:
                yield _no_use(node, position, dims) or Use(where, node, _inputs_axis(node) ^ flipped, data_type)


def _inputs_axis(node: Proto) -> int:
    """Along which axis of the weight that a node sees its inputs run: 0 or 1."""
    if node.op_type == "Gemm":
        return 1 if integer(node, "transB") else 0
    return 1 if node.op_type in ("Gather", "GatherBlockQuantized") else 0


def _no_use(node: Proto, position: int, dims: tuple[int, ...]) -> str | None:
    """Why a node does not use a value as a weight that can be quantized."""
    if len(node.output) != 1 or len(node.input) < 2:
        return f"used by {node.op_type}"
    if is_microsoft(node, "MatMulNBits", "GatherBlockQuantized") and position == DATA[node.op_type]:
        return None
    if not is_operator(node, "MatMul", "Gemm", "Gather"):
        return f"used by {node.op_type}"
    if position != (0 if node.op_type == "Gather" else 1):
        return f"used by {node.op_type}, but not as its weight"
    if node.op_type == "Gather":
        if integer(node, "axis") != 0 or len(dims) != 2:
            return "Gather looks up other things than rows of a matrix"
    elif node.op_type == "MatMul" and any(length != 1 for length in dims[:-2]):
        return "a stack of matrices"
    return None
