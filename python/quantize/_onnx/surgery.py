"""What changes in a graph when a weight becomes quantized, or floats again. Nodes keep their places, names and outputs.

MatMul(a, w)      <->  MatMulNBits(a, packed, scales, zero points)
Gemm(a, w, c)      ->  the same with c as its bias; back: MatMul and Add
Gather(w, rows)   <->  GatherBlockQuantized(packed, rows, scales, zero points)
w, a constant     <->  w = DequantizeLinear(codes, scales, zero points), at the beginning of the graph
"""

from __future__ import annotations

from collections import Counter, defaultdict
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize._onnx.data import INT4, UINT4, UINT8, Proto
from quantize._onnx.graph import MICROSOFT, Scope, is_microsoft, is_operator
from quantize._onnx.storage import DTYPES, Layout, Stored
from quantize._onnx.uses import Use
from quantize._onnx.weights import SUFFIXES, Weight, base, unique

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence, Set


class Target(NamedTuple):
    """New tensors of a weight, without their bytes."""

    names: list[str]
    tensors: list[Proto]
    stored: list[Stored]
    is_table: bool = False

    @property
    def nbytes(self) -> list[int]:
        """Bytes of each."""
        return [part.nbytes for part in self.stored]


class Surgeon:
    """Changes the graphs of one model, and tidies up at the end."""

    def __init__(self, model: Proto, scopes: list[Scope]) -> None:
        self._model = model
        self._scopes = scopes
        self._helper: Any = import_module("onnx.helper")
        self._names = {value for scope in scopes for value in scope.makers}
        self._left: set[str] = set()  # values that nobody may need any more
        self._added: list[tuple[Scope, Proto | None, Proto]] = []  # nodes, each with the one that it follows; None for the beginning

    def pack(self, weight: Weight, uses: list[Use], layout: Layout) -> list[Target]:
        """Let the nodes that use a weight take it in the format onnx:matmulnbits."""
        rows, groups = layout.rows, layout.groups
        shapes = [(rows, groups, layout.block // 2), (rows, groups), (rows, -(-groups // 2))]
        kinds = [UINT8, uses[0].data_type, UINT8]
        targets: dict[bool, Target] = {}
        for is_table in dict.fromkeys(use.is_lookup for use in uses):
            dims = [(rows, layout.columns // 2), *shapes[1:]] if is_table else shapes
            targets[is_table] = self._target(weight, kinds, dims, layout.stored(is_table), is_table)
        for use in uses:
            data_name, *others = targets[use.is_lookup].names
            node = use.node
            self._left.update(node.input)
            numbers = {"bits": 4, "block_size": layout.block}
            if use.is_lookup:
                self._become(node, "GatherBlockQuantized", [data_name, node.input[1], *others], gather_axis=0, quantize_axis=1, **numbers)
            else:
                bias = _bias(node)
                inputs = [node.input[0], data_name, *others]
                inputs += [*[""] * (5 - len(inputs)), bias] if bias else []
                self._become(node, "MatMulNBits", inputs, K=layout.columns, N=rows, **numbers)
        self._left.add(weight.value)
        if all(opset.domain != MICROSOFT for opset in self._model.opset_import):
            self._model.opset_import.add(domain=MICROSOFT, version=1)
        return list(targets.values())

    def decode(self, weight: Weight, uses: list[Use], layout: Layout) -> list[Target]:
        """Make a weight the output of a DequantizeLinear, in the format onnx:qdq."""
        value, dims = self._plain(weight, uses), weight.seen
        stored = layout.stored()
        kind = INT4 if layout.symmetric else UINT4
        shapes = [dims, *((*dims[:-2], *part.shape) for part in stored[1:])]
        target = self._target(weight, [kind, _data_type(np.dtype(layout.dtype)), kind], shapes, stored)
        axis = len(dims) - 2 + layout.axis
        made = {"axis": axis, "block_size": layout.block}
        node = self._helper.make_node("DequantizeLinear", target.names, [value], name=f"{value}_DequantizeLinear", **made)
        self._added.append((weight.scope, None, node))
        return [target]

    def floats(self, weight: Weight, uses: list[Use], layout: Layout) -> list[Target]:
        """Make a weight that is quantized so an initializer of floats."""
        dtype = np.dtype(weight.dtype)
        stored = Stored(layout.shape, 8 * dtype.itemsize, 1 - layout.axis)
        value = self._plain(weight, uses)
        return [Target([value], [self._initializer(weight.scope, value, _data_type(dtype), weight.seen)], [stored])]

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

    def _target(
        self, weight: Weight, kinds: list[int], shapes: Sequence[tuple[int, ...]], stored: list[Stored], is_table: bool = False
    ) -> Target:
        """Add initializers for the parts of a weight to its graph."""
        value = weight.value if weight.packed is None else base(weight.value)
        names = [self._fresh(value + suffix) for suffix in SUFFIXES[: len(stored)]]
        tensors = [self._initializer(weight.scope, name, kinds[at], shapes[at]) for at, name in enumerate(names)]
        return Target(names, tensors, stored, is_table)

    def _initializer(self, scope: Scope, name: str, data_type: int, shape: tuple[int, ...]) -> Proto:
        tensor = scope.graph.initializer.add(name=name, data_type=data_type, dims=shape)
        if self._model.ir_version < 4 and scope.outer is None:  # before that version of the format initializers are inputs too
            scope.graph.input.append(self._helper.make_tensor_value_info(name, data_type, shape))
        return tensor

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
