"""The graphs of an ONNX model: which values there are, who makes them, who uses them.

A value is known by its name in a graph; the graphs inside If, Loop and Scan see the values of those around them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from quantize._onnx.data import Proto, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

MICROSOFT = "com.microsoft"
"""Whose operators those of ONNX Runtime are."""


class Consumer(NamedTuple):
    """A node that has a value as an input, or the output of a graph, which has no node."""

    scope: Scope
    node: Proto | None
    position: int


@dataclass(eq=False)
class Scope:
    """One graph of a model, and the one around it."""

    graph: Proto
    outer: Scope | None
    prefix: str
    makers: dict[str, Proto | None] = field(default_factory=dict[str, Proto])
    """Every value that the graph defines, with the node that makes it; None for inputs and initializers."""
    constants: dict[str, Proto] = field(default_factory=dict[str, Proto])
    """The tensors of initializers and Constant nodes, by the names of the values."""
    consumers: defaultdict[str, list[Consumer]] = field(default_factory=lambda: defaultdict(list))
    """Who uses a value of this graph, in this graph or inside."""
    ranks: dict[str, int] = field(default_factory=dict[str, int])
    """The number of axes of a value, where the graph says so."""

    def home(self, value: str) -> Scope | None:
        """Find the graph that defines a value that is seen here."""
        scope: Scope | None = self
        while scope is not None and value not in scope.makers:
            scope = scope.outer
        return scope

    def constant(self, value: str) -> Proto | None:
        """Find the tensor of a value that is seen here and that is constant."""
        home = self.home(value)
        return None if home is None else home.constants.get(value)


def scopes(model: Proto, source: Source) -> list[Scope]:
    """All graphs of a model, each before those inside it."""
    found = list(_scopes(model.graph, None, "", source))
    for scope in found:
        for node in scope.graph.node:
            for position, value in enumerate(node.input):
                home = scope.home(value) if value else None
                if home is not None:
                    home.consumers[value].append(Consumer(scope, node, position))
        for output in scope.graph.output:
            home = scope.home(output.name)
            if home is not None:
                home.consumers[output.name].append(Consumer(scope, None, 0))
    return found


def _scopes(graph: Proto, outer: Scope | None, prefix: str, source: Source) -> Iterator[Scope]:
    scope = Scope(graph, outer, prefix)
    for value in (*graph.input, *graph.value_info, *graph.output):
        if value.type.tensor_type.HasField("shape"):
            scope.ranks[value.name] = len(value.type.tensor_type.shape.dim)
    scope.makers.update((value.name, None) for value in graph.input)
    for tensor in graph.initializer:
        if not tensor.name or tensor.name in scope.constants:
            source.corrupt(f"an initializer has no name or one that is taken, {tensor.name!r}")
        scope.constants[tensor.name], scope.makers[tensor.name] = tensor, None
    yield scope
    inner: list[tuple[Proto, str]] = []
    for node in graph.node:
        for output in filter(None, node.output):
            if scope.makers.get(output) is not None or output in scope.constants:
                source.corrupt(f"two nodes make the value {output!r}")
            scope.makers[output] = node
        if is_operator(node, "Constant") and len(node.output) == 1 and len(node.attribute) == 1 and node.attribute[0].name == "value":
            scope.constants[node.output[0]] = node.attribute[0].t
        for attribute in node.attribute:
            name = f"{prefix}{node.output[0] if node.output else node.name}.{attribute.name}/"
            inner += [(attribute.g, name)] if attribute.HasField("g") else []
            inner += [(graph, name) for graph in attribute.graphs]
    for graph, name in inner:
        yield from _scopes(graph, scope, name, source)


def tensors_of(message: Proto) -> Iterator[Proto]:
    """All tensors in a message, wherever they are."""
    if message.DESCRIPTOR.name == "TensorProto":
        yield message
        return
    for inner in _inner(message):
        yield from tensors_of(inner)


def is_text(message: Proto) -> bool:
    """Whether all names and texts in a message are UTF-8; protobuf lets others pass, as bytes."""
    for descriptor, value in message.ListFields():
        if descriptor.type == descriptor.TYPE_STRING:
            texts = value if _is_repeated(descriptor) else (value,)
            if not all(isinstance(text, str) for text in texts):
                return False
    return all(map(is_text, _inner(message)))


def _inner(message: Proto) -> Iterator[Proto]:
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            yield from value if _is_repeated(descriptor) else (value,)


def _is_repeated(descriptor: Proto) -> bool:
    known = getattr(descriptor, "is_repeated", None)
    return bool(descriptor.label == descriptor.LABEL_REPEATED if known is None else known)


def is_operator(node: Proto, *names: str) -> bool:
    """Whether a node is one of these operators of the standard."""
    return node.op_type in names and node.domain in ("", "ai.onnx")


def is_microsoft(node: Proto, *names: str) -> bool:
    """Whether a node is one of these operators of ONNX Runtime."""
    return node.op_type in names and node.domain == MICROSOFT


def integer(node: Proto, name: str, default: int = 0) -> int:
    """An attribute of a node that is an integer."""
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)
