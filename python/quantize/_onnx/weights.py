"""The weights of an ONNX model: constant tensors, those that are quantized among them.

A tensor is constant that is an initializer or in a Constant node, or what a quantized operator decodes. A quantized weight is stored in
one of these ways; ``g`` is the block size, ``G`` the number of blocks:

    MatMulNBits           uint8 (N, G, g / 2), scales (N, G), zero points uint8 (N, ceil(G / 2))     the parts of onnx:matmulnbits
    GatherBlockQuantized  uint8 (V, K / 2), scales (V, G), zero points uint8 (V, ceil(G / 2))        likewise, rows without padding
    DequantizeLinear      INT4 or UINT4 in the shape of the weight, scales and zero points likewise  the parts of onnx:qdq where axis is 0
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize._api import from_parts, pack, unpack
from quantize._onnx.data import FLOAT, FLOAT16, INT4, TYPES, UINT4, UINT8, Proto, Source
from quantize._onnx.graph import Scope, integer, is_microsoft, is_operator

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from quantize._types import GroupSize, QuantizedArray, Tensor

DTYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype("<f4"), FLOAT16: np.dtype("<f2")}
"""Of activations, and so of scales."""

BLOCKS = (16, 32, 64, 128, 256)
"""Of MatMulNBits and GatherBlockQuantized."""


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
            value = node.output[0] if is_operator(node, "DequantizeLinear") else node.input[DATA[node.op_type]]
            home = scope.home(value)
            assert home is not None
            known = packed.setdefault((id(home), value), one)
            if known.layout != one.layout or any(mine is not other for mine, other in zip(known.tensors, one.tensors, strict=True)):
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


DATA = {"MatMulNBits": 1, "GatherBlockQuantized": 0, "DequantizeLinear": 0}
_PARTS = {"MatMulNBits": (1, 2, 3), "GatherBlockQuantized": (0, 2, 3), "DequantizeLinear": (0, 1, 2)}


def _values(scope: Scope) -> Iterator[str]:
    yield from (tensor.name for tensor in scope.graph.initializer)
    yield from (output for node in scope.graph.node for output in node.output if output)


def _part_names(node: Proto) -> list[str]:
    return [node.input[at] for at in _PARTS[node.op_type] if at < len(node.input) and node.input[at]]


def _packed(scope: Scope, node: Proto, source: Source) -> Packed | None:
    """What a node decodes, if it is a weight of one of our formats."""
    is_linear = is_operator(node, "DequantizeLinear")
    if not is_linear and not is_microsoft(node, "MatMulNBits", "GatherBlockQuantized"):
        return None
    tensors = tuple(filter(None, map(scope.constant, _part_names(node))))
    if not len(tensors) == len(_part_names(node)) in (2, 3) or len(node.output) != 1:
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
