"""The weights of an ONNX model: constant tensors, those that are quantized among them.

A tensor is constant that is an initializer or in a Constant node, or what a quantized operator decodes.
"""

from __future__ import annotations

import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize._onnx.data import INT4, TYPES, UINT4, UINT8, Proto, Source
from quantize._onnx.graph import Scope, integer, is_microsoft, is_operator
from quantize._onnx.storage import BLOCKS, DTYPES, Layout, Stored, assembled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray

    from quantize._types import QuantizedArray


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

    @property
    def stored(self) -> list[Stored]:
        """How the parts lie in their tensors."""
        return self.layout.stored(is_table=self.node.op_type == "GatherBlockQuantized")


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

    def stored(self, axis: int) -> list[Stored]:
        """How it lies in its tensors, as a matrix whose inputs run along ``axis``."""
        if self.packed is not None:
            return self.packed.stored
        return [Stored((self.shape[-2], self.shape[-1]), TYPES[self.data_type][1], 1 - axis)]


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
        return _checked(Packed(node, tensors, layout), source)
    if is_linear or integer(node, "bits", 4) != 4 or group_size not in BLOCKS or (not is_lookup and any(node.input[4:5])):
        return None  # the fifth input of MatMulNBits says that the columns are in another order
    shape = (data.dims[0], 2 * data.dims[1]) if is_lookup else (integer(node, "K"), integer(node, "N"))
    if min(shape) < 0:
        return None
    layout = Layout("onnx:matmulnbits", shape, int(is_lookup), group_size, dtype.name, symmetric)
    return _checked(Packed(node, tensors, layout), source)


def _checked(packed: Packed, source: Source) -> Packed:
    for tensor, part in zip(packed.tensors, packed.stored, strict=True):
        if source.nbytes(tensor) != part.nbytes:
            kind, found = packed.node.op_type, source.nbytes(tensor)
            source.corrupt(f"tensor {tensor.name!r} of a {kind} has {found} bytes; its attributes and the other tensors need {part.nbytes}")
    return packed


def load(weight: Weight, source: Source) -> QuantizedArray | NDArray[Any]:
    """Read a weight: a quantized one, or an array; what numpy has no dtype for as its bits or bytes."""
    if weight.packed is not None:
        return assembled(weight.packed.layout, weight.packed.layout.rows, [source.read(tensor) for tensor in weight.packed.tensors])
    name, bits, _ = TYPES[weight.tensor.data_type]
    data = source.read(weight.tensor)
    if bits < 8:
        return data
    name = "uint16" if name == "bfloat16" else "uint8" if name.startswith("float8_") else name
    return data.view(np.dtype(name).newbyteorder("<")).reshape(weight.shape)


@contextmanager
def opened(weight: Weight, axis: int, source: Source) -> Generator[Callable[[int, int], QuantizedArray | NDArray[Any]]]:
    """Give what reads some outputs of a weight, whose inputs run along ``axis``: a quantized matrix, or one of floats."""
    stored = weight.stored(axis)
    tensors = (weight.tensor,) if weight.packed is None else weight.packed.tensors
    with ExitStack() as files:
        pieces = [files.enter_context(source.opened(tensor)) for tensor in tensors]

        def read(start: int, stop: int) -> QuantizedArray | NDArray[Any]:
            data = [part.read(piece, start, stop) for part, piece in zip(stored, pieces, strict=True)]
            if weight.packed is not None:
                return assembled(weight.packed.layout, stop - start, data)
            shape = list(stored[0].shape)
            shape[stored[0].axis] = stop - start
            if weight.dtype == "bfloat16":
                return (data[0].view("<u2").astype("<u4") << 16).view("<f4").reshape(shape)
            return data[0].view(np.dtype(weight.dtype).newbyteorder("<")).reshape(shape)

        yield read
