"""The graphs of an ONNX model: which values are constant, who uses them, and which of them are weights.

A value is known by its name in a graph; the graphs inside If, Loop and Scan see the values of those around them. A weight is constant:
an initializer, what a Constant node makes, or what a quantized operator decodes. Identity, Cast and Transpose may stand between it and
its users.

A quantized weight is stored in one of these ways; ``g`` is the block size, ``G`` the number of blocks:

    MatMulNBits           uint8 (N, G, g / 2), scales (N, G), zero points uint8 (N, ceil(G / 2))     the parts of onnx:matmulnbits
    GatherBlockQuantized  uint8 (V, K / 2), scales (V, G), zero points uint8 (V, ceil(G / 2))        likewise, rows without padding
    DequantizeLinear      INT4 or UINT4 in the shape of the weight, scales and zero points likewise  the parts of onnx:qdq where axis is 0
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize._api import from_parts, pack, unpack
from quantize._onnx.data import FLOAT, FLOAT16, INT4, TYPES, UINT4, UINT8, Proto, Source

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from quantize._types import GroupSize, QuantizedArray, Tensor

DTYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype("<f4"), FLOAT16: np.dtype("<f2")}  # of activations, and so of scales
MICROSOFT = "com.microsoft"
BLOCKS = (16, 32, 64, 128, 256)


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


# Weights


class Layout(NamedTuple):
    """How a matrix is quantized."""

    format: str
    shape: tuple[int, int]
    axis: int
    group_size: GroupSize
    dtype: str
    """Of the scales, and so of what it decodes to."""
    symmetric: bool

    @property
    def tensor(self) -> Tensor:
        """The same as the core has it."""
        return self.format, self.shape, self.axis, self.group_size, self.dtype, {"symmetric": self.symmetric}

    @property
    def rows(self) -> int:
        """The number of outputs, or of rows of a table."""
        return self.shape[1 - self.axis]

    @property
    def columns(self) -> int:
        """The number of inputs, or of elements of a row."""
        return self.shape[self.axis]

    @property
    def block(self) -> int:
        """Elements of a block."""
        return self.group_size if isinstance(self.group_size, int) else self.columns

    @property
    def groups(self) -> int:
        """Blocks of a row."""
        return -(-self.columns // max(self.block, 1))

    @property
    def nbytes(self) -> list[int]:
        """Bytes of each part."""
        is_flat = self.format == "onnx:qdq"
        codes = -(-self.rows * self.columns // 2) if is_flat else self.rows * self.groups * self.block // 2
        zero_points = -(-self.rows * self.groups // 2) if is_flat else self.rows * -(-self.groups // 2)
        return [codes, self.rows * self.groups * np.dtype(self.dtype).itemsize, *([] if self.symmetric else [zero_points])]


class Packed(NamedTuple):
    """How a graph stores a quantized weight."""

    node: Proto
    """A node that decodes it."""
    tensors: tuple[Proto, ...]
    """What is stored, in the order of the parts."""
    layout: Layout
    """What it is as an array of this package."""

    @property
    def is_linear(self) -> bool:
        """Whether the graph decodes it before it is used; else its users do."""
        return is_operator(self.node, "DequantizeLinear")


@dataclass(eq=False)
class Weight:
    """A constant tensor of a model, quantized or not."""

    name: str
    """What it is called in lists."""
    scope: Scope
    value: str
    """The value in its graph: of a quantized weight that its nodes decode themselves, the value of its data."""
    tensor: Proto
    """What is stored, or its data where it is quantized."""
    packed: Packed | None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape."""
        return tuple(self.tensor.dims) if self.packed is None else self.packed.layout.shape

    @property
    def seen(self) -> tuple[int, ...]:
        """The shape that its users see, which may have axes of length 1 before those of a matrix."""
        return self.shape if self.packed is not None and not self.packed.is_linear else tuple(self.tensor.dims)

    @property
    def data_type(self) -> int:
        """The type that its users see."""
        return int(self.tensor.data_type if self.packed is None else self.packed.tensors[1].data_type)

    @property
    def dtype(self) -> str:
        """The name of that type."""
        return TYPES[self.data_type][0]


def weights(found: list[Scope], source: Source) -> list[Weight]:
    """All constant tensors, in the order of the graphs. What a quantized weight consists of is not listed on its own."""
    packed: dict[tuple[int, str], Packed] = {}
    parts: set[int] = set()
    for scope in found:
        for node in scope.graph.node:
            one = _packed(scope, node, source)
            if one is None:
                continue
            value = node.output[0] if is_operator(node, "DequantizeLinear") else node.input[_DATA[node.op_type]]
            home = scope.home(value)
            assert home is not None
            if packed.setdefault((id(home), value), one).layout != one.layout:
                source.corrupt(f"two nodes read the weight {value!r} in two ways")
            parts.update(id(home.constants[name]) for name in _part_names(node) if (home := scope.home(name)) is not None)
    listed: list[Weight] = []
    plain = {scope.prefix + value for scope in found for value, tensor in scope.constants.items() if id(tensor) not in parts}
    taken: set[str] = set()
    for scope in found:
        for value in _values(scope):
            one = packed.get((id(scope), value))
            tensor = scope.constants.get(value) if one is None else one.tensors[0]
            if tensor is None or (one is None and id(tensor) in parts):
                continue
            name = scope.prefix + value
            if one is not None and base(name) not in plain:
                name = base(name)
            listed.append(Weight(unique(name, taken), scope, value, tensor, one))
    return listed


def unique(name: str, taken: set[str]) -> str:
    """Make a name that is not taken, and take it."""
    found, number = name, 2
    while found in taken:
        found, number = f"{name}_{number}", number + 1
    taken.add(found)
    return found


SUFFIXES = ("_Q4", "_scales", "_zero_points")
"""What ONNX Runtime's quantizer adds to the name of a weight, for each of its parts."""


def base(name: str) -> str:
    """Give the name of a weight by that of its data."""
    return re.sub(r"(_DQ)?_Q4(_\d+|_output)?$", "", name)


_DATA = {"MatMulNBits": 1, "GatherBlockQuantized": 0, "DequantizeLinear": 0}
_FIRST_PARTS = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3), "DequantizeLinear": (0, 1, 2)}


def _values(scope: Scope) -> Iterator[str]:
    yield from (tensor.name for tensor in scope.graph.initializer)
    yield from (output for node in scope.graph.node for output in node.output if output)


def _part_names(node: Proto) -> list[str]:
    return [node.input[at] for at in _FIRST_PARTS[node.op_type] if at < len(node.input) and node.input[at]]


def _packed(scope: Scope, node: Proto, source: Source) -> Packed | None:
    """What a node decodes, if it is a weight of one of our formats."""
    is_linear = is_operator(node, "DequantizeLinear")
    if not is_linear and not is_microsoft(node, "MatMulNBits", "GatherBlockQuantized"):
        return None
    tensors = tuple(filter(None, map(scope.constant, _part_names(node))))
    if not len(tensors) == len(_part_names(node)) in (2, 3):
        return None
    data, scales, *more = tensors
    symmetric, dtype = not more, DTYPES.get(scales.data_type)
    codes = [UINT8, UINT8] if data.data_type == UINT8 else [INT4] if symmetric else [UINT4, UINT4]
    if dtype is None or [tensor.data_type for tensor in (data, *more)] != codes[: 1 + len(more)]:
        return None
    is_lookup = node.op_type == "GatherBlockQuantized"
    group_size = integer(node, "block_size", 128 if is_lookup else 0)
    if is_lookup and (len(data.dims) != 2 or integer(node, "gather_axis") != 0 or integer(node, "quantize_axis", 1) not in (-1, 1)):
        return None
    if data.data_type != UINT8:
        if node.op_type == "MatMulNBits" or len(data.dims) < 2 or any(length != 1 for length in data.dims[:-2]) or group_size < 1:
            return None
        axis = 1 if is_lookup else integer(node, "axis", 1)
        axis = axis - len(data.dims) if axis >= 0 else axis
        if axis not in (-2, -1):
            return None
        layout = Layout("onnx:qdq", (data.dims[-2], data.dims[-1]), axis + 2, group_size, dtype.name, symmetric)
        return _checked(Packed(node, tensors, layout), layout.nbytes, source)
    if is_linear or integer(node, "bits", 4) != 4 or group_size not in BLOCKS or (not is_lookup and any(node.input[4:5])):
        return None  # the fifth input of MatMulNBits says that the columns are in another order
    shape = (data.dims[0], 2 * data.dims[1]) if is_lookup else (integer(node, "K"), integer(node, "N"))
    if min(shape) < 0:
        return None
    layout = Layout("onnx:matmulnbits", shape, int(is_lookup), group_size, dtype.name, symmetric)
    expected = layout.nbytes
    if is_lookup:
        expected[0] = layout.rows * layout.columns // 2
    return _checked(Packed(node, tensors, layout), expected, source)


def _checked(packed: Packed, expected: list[int], source: Source) -> Packed:
    for tensor, nbytes in zip(packed.tensors, expected, strict=True):
        if source.nbytes(tensor) != nbytes:
            kind, found = packed.node.op_type, source.nbytes(tensor)
            source.corrupt(f"tensor {tensor.name!r} of a {kind} has {found} bytes; its attributes and the other tensors need {nbytes}")
    return packed


def load(weight: Weight, source: Source) -> QuantizedArray | NDArray[Any]:
    """Read a weight: a quantized one, or an array; what numpy has no dtype for as its bits or bytes."""
    if weight.packed is not None:
        return _load_packed(weight.packed, source)
    name, bits, _ = TYPES[weight.tensor.data_type]
    data = source.read(weight.tensor)
    if bits < 8:
        return data
    name = "uint16" if name == "bfloat16" else "uint8" if name.startswith("float8_") else name
    return data.view(np.dtype(name).newbyteorder("<")).reshape(weight.shape)


def _load_packed(packed: Packed, source: Source) -> QuantizedArray:
    layout = packed.layout
    rows, groups = layout.rows, layout.groups
    data, scales, *more = (source.read(tensor) for tensor in packed.tensors)
    scales = scales.view(np.dtype(layout.dtype).newbyteorder("<"))
    zero_points = more[0] if more else None
    if layout.format == "onnx:matmulnbits":
        data = data.reshape(rows, -1) if data.size else data.reshape(rows, 0)
        data = np.pad(data, ((0, 0), (0, groups * layout.block // 2 - data.shape[1])))  # a table has no padding
        parts = {"packed": data.reshape(rows, groups, -1), "scales": scales.reshape(rows, groups)}
        parts |= {} if zero_points is None else {"zero_points": zero_points.reshape(rows, -1)}
    elif layout.axis == 0:
        parts = {"packed": data, "scales": scales.reshape(groups, rows)}
        parts |= {} if zero_points is None else {"zero_points": zero_points}
    else:
        parts = {"packed": turned(data, rows, layout.columns), "scales": np.ascontiguousarray(scales.reshape(rows, groups).T)}
        parts |= {} if zero_points is None else {"zero_points": turned(zero_points, rows, groups)}
    return from_parts(layout.format, parts, shape=layout.shape, axis=layout.axis, group_size=layout.group_size, symmetric=layout.symmetric)


def turned(nibbles: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Transpose a matrix of packed nibbles."""
    codes = unpack(nibbles, rows * columns, signed=False).reshape(rows, columns)
    return pack(np.ascontiguousarray(codes.T).reshape(-1), signed=False)


# Users


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
    if is_microsoft(node, "MatMulNBits", "GatherBlockQuantized") and position == _DATA[node.op_type]:
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
