"""What changes in a graph when a weight becomes quantized, or floats again. Nodes keep their places, names and outputs.

MatMul(a, w)      <->  MatMulNBits(a, packed, scales, zero points)
Gemm(a, w, c)      ->  the same with c as its bias; back: MatMul and Add
Gather(w, rows)   <->  GatherBlockQuantized(packed, rows, scales, zero points)
w, a constant     <->  w = DequantizeLinear(codes, scales, zero points), at the beginning of the graph
"""

from __future__ import annotations

from collections import Counter, defaultdict
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from quantize._onnx.data import INT4, UINT4, UINT8, Proto
from quantize._onnx.graph import MICROSOFT, Scope, is_microsoft, is_operator
from quantize._onnx.output import Output
from quantize._onnx.uses import Use
from quantize._onnx.weights import DTYPES, SUFFIXES, Weight, base, turned, unique

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Set

    from numpy.typing import NDArray

    from quantize._types import QuantizedArray


Part: TypeAlias = "tuple[int, tuple[int, ...], NDArray[Any]]"
"""Type, shape and bytes of a tensor."""


class Surgeon:
    """Changes the graphs of one model, and tidies up at the end."""

    def __init__(self, model: Proto, scopes: list[Scope], output: Output) -> None:
        self._model = model
        self._scopes = scopes
        self._output = output
        self._helper: Any = import_module("onnx.helper")
        self._names = {value for scope in scopes for value in scope.makers}
        self._left: set[str] = set()  # values that nobody may need any more
        self._added: list[tuple[Scope, Proto | None, Proto]] = []  # nodes, each with the one that it follows; None for the beginning

    def pack(self, weight: Weight, uses: list[Use], q: QuantizedArray) -> None:
        """Let the nodes that use a weight take ``q``, in the format onnx:matmulnbits, in its place."""
        rows, columns = q.shape[1 - q.axis], q.shape[q.axis]
        parts = [(UINT8 if part.dtype == np.uint8 else uses[0].data_type, part.shape, part) for part in q.parts.values()]
        names: dict[bool, list[str]] = {}
        for is_lookup in dict.fromkeys(use.is_lookup for use in uses):
            if is_lookup:  # the rows of a table are stored without the padding of their last block
                packed = q.parts["packed"].reshape(rows, -1)[:, : columns // 2]
                names[True] = self._initializers(weight, [(UINT8, packed.shape, packed), *parts[1:]])
            else:
                names[False] = self._initializers(weight, parts)
        for use in uses:
            data_name, *others = names[use.is_lookup]
            node = use.node
            self._left.update(node.input)
            numbers = {"bits": 4, "block_size": q.group_size}
            if use.is_lookup:
                self._become(node, "GatherBlockQuantized", [data_name, node.input[1], *others], gather_axis=0, quantize_axis=1, **numbers)
            else:
                bias = _bias(node)
                inputs = [node.input[0], data_name, *others]
                inputs += [*[""] * (5 - len(inputs)), bias] if bias else []
                self._become(node, "MatMulNBits", inputs, K=columns, N=rows, **numbers)
        self._left.add(weight.value)
        if all(opset.domain != MICROSOFT for opset in self._model.opset_import):
            self._model.opset_import.add(domain=MICROSOFT, version=1)

    def decode(self, weight: Weight, uses: list[Use], q: QuantizedArray) -> None:
        """Make a weight the output of a DequantizeLinear of ``q``, in the format onnx:qdq."""
        value, dims = self._plain(weight, uses), weight.seen
        data, scales, zero_points = q.parts["packed"], q.parts["scales"], q.parts.get("zero_points")
        if q.axis == 1:  # the parts are those of the transpose
            groups, rows = scales.shape
            data, scales = turned(data, q.shape[1], q.shape[0]), scales.T
            zero_points = None if zero_points is None else turned(zero_points, groups, rows)
        kind = INT4 if zero_points is None else UINT4
        shape = (*dims[:-2], *scales.shape)
        parts: list[Part] = [(kind, dims, data), (_data_type(scales.dtype), shape, scales)]
        parts += [] if zero_points is None else [(kind, shape, zero_points)]
        inputs = self._initializers(weight, parts)
        size = q.shape[q.axis] if q.group_size == "row" else q.group_size
        axis = len(dims) - 2 + q.axis
        node = self._helper.make_node("DequantizeLinear", inputs, [value], name=f"{value}_DequantizeLinear", axis=axis, block_size=size)
        self._added.append((weight.scope, None, node))

    def floats(self, weight: Weight, uses: list[Use], array: NDArray[Any]) -> None:
        """Make a quantized weight an initializer of floats."""
        self._initializer(weight.scope, self._plain(weight, uses), (_data_type(array.dtype), array.shape, array))

    def _plain(self, weight: Weight, uses: list[Use]) -> str:
        """Let the nodes that use a weight take it as floats; the name of that value, which nothing makes now."""
        packed, value = weight.packed, weight.value
        if packed is not None and not packed.is_linear:
            value = self._fresh(base(weight.value))
            for use in uses:
                node = use.node
                self._left.update(node.input)
                if use.is_lookup:
                    self._become(node, "Gather", [value, node.input[1]])
                    continue
                bias, result = _bias(node), node.output[0]
                self._become(node, "MatMul", [node.input[0], value])
                if bias:
                    node.output[0] = self._fresh(f"{result}_product")
                    name = f"{node.name}_bias" if node.name else ""
                    self._added.append((use.scope, node, self._helper.make_node("Add", [node.output[0], bias], [result], name=name)))
        elif packed is not None:
            self._left.update(packed.node.input)
            decoder = packed.node
            _remove(weight.scope.graph.node, lambda node: node is decoder)
        else:
            self._drop(weight.scope, value)
        self._left.add(weight.value)
        return value

    def _become(self, node: Proto, operator: str, inputs: Iterable[str], **numbers: int | str) -> None:
        """Change what a node does; it stays where it is, with its name and its output."""
        inputs = list(inputs)
        del node.input[:], node.attribute[:]
        node.input.extend(inputs)
        node.op_type, node.domain = operator, MICROSOFT if numbers else ""
        node.attribute.extend(self._helper.make_attribute(name, number) for name, number in numbers.items())

    def _initializers(self, weight: Weight, parts: list[Part]) -> list[str]:
        """Store the parts of a weight in its graph; their names."""
        value = weight.value if weight.packed is None else base(weight.value)
        names = [self._fresh(value + suffix) for suffix in SUFFIXES[: len(parts)]]
        for name, part in zip(names, parts, strict=True):
            self._initializer(weight.scope, name, part)
        return names

    def _initializer(self, scope: Scope, name: str, part: Part) -> None:
        data_type, shape, data = part
        tensor = scope.graph.initializer.add(name=name, data_type=data_type, dims=shape)
        self._output.store(tensor, np.ascontiguousarray(data).reshape(-1).view(np.uint8))
        if self._model.ir_version < 4 and scope.outer is None:  # before that version of the format initializers are inputs too
            scope.graph.input.append(self._helper.make_tensor_value_info(name, data_type, shape))

    def _fresh(self, name: str) -> str:
        """Make a name that no value of the model has."""
        return unique(name, self._names)

    def _drop(self, scope: Scope, value: str) -> None:
        """Remove the tensor or the node that makes a value; what the graph says of its type stays."""
        graph = scope.graph
        maker = scope.makers.get(value)
        if maker is not None:
            _remove(graph.node, lambda node: node is maker)
        else:
            _remove_named(graph.initializer, {value})
            _remove_named(graph.input, {value})

    def finish(self) -> None:
        """Put new nodes in their places, and remove what nobody uses any more of what was touched."""
        for scope in reversed(self._scopes):  # a graph is copied with those inside it
            first = [node for where, after, node in self._added if where is scope and after is None]
            later = {after.output[0]: node for where, after, node in self._added if where is scope and after is not None}
            if first or later:
                nodes = [*first]
                for node in scope.graph.node:
                    nodes.append(node)
                    nodes += [later[output] for output in node.output if output in later]
                copies = [_copy(node) for node in nodes]
                del scope.graph.node[:]
                scope.graph.node.extend(copies)
        self._sweep()

    def _sweep(self) -> None:
        """Remove initializers, constants and what only passes them on, of what was touched and nobody uses."""
        graphs = list(_graphs(self._model.graph))
        users = Counter(value for graph in graphs for value in _used(graph))
        makers: defaultdict[str, list[Proto]] = defaultdict(list)
        for graph in graphs:
            for node in filter(_passes_on, graph.node):
                for output in node.output:
                    makers[output].append(node)
        unused: set[str] = set()
        nodes: dict[int, Proto] = {}
        while self._left:
            value = self._left.pop()
            if users[value] or value in unused:
                continue
            unused.add(value)
            for node in makers[value]:
                if not any(users[output] for output in node.output):
                    nodes[id(node)] = node
                    users.subtract(node.input)
                    self._left.update(node.input)
        for graph in graphs:
            gone = {tensor.name for tensor in graph.initializer} & unused  # an input that is no initializer is the caller's
            _remove(graph.node, lambda node: id(node) in nodes)
            _remove_named(graph.initializer, gone)
            _remove_named(graph.input, gone)
            _remove_named(graph.value_info, unused)


def _bias(node: Proto) -> str | None:
    """What a node adds to its product."""
    at = 5 if is_microsoft(node, "MatMulNBits") else 2 if node.op_type == "Gemm" else len(node.input)
    return str(node.input[at]) if at < len(node.input) and node.input[at] else None


def _passes_on(node: Proto) -> bool:
    return is_operator(node, "Constant", "Identity", "Cast", "Transpose", "DequantizeLinear")


def _graphs(graph: Proto) -> Iterable[Proto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (*([attribute.g] if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _graphs(inner)


def _used(graph: Proto) -> Iterable[str]:
    for node in graph.node:
        yield from node.input
    for output in graph.output:
        yield output.name


def _data_type(dtype: np.dtype[Any]) -> int:
    return next(number for number, known in DTYPES.items() if known == dtype.newbyteorder("<"))


def _copy(message: Proto) -> Proto:
    copy = type(message)()
    copy.CopyFrom(message)
    return copy


def _remove(field: Proto, is_gone: Callable[[Proto], bool]) -> None:
    for at in reversed(range(len(field))):
        if is_gone(field[at]):
            del field[at]


def _remove_named(field: Proto, names: Set[str]) -> None:
    _remove(field, lambda entry: entry.name in names)
