"""The weights of an ONNX model: constant tensors, those that are quantized among them.

A tensor is constant that is an initializer or in a Constant node, or what a quantized operator decodes.
"""

from __future__ import annotations

import math
import re
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize._onnx.data import INT4, TYPES, UINT4, UINT8, Proto, Source, is_outside
from quantize._onnx.graph import Scope, integer, is_microsoft, is_operator
from quantize._onnx.storage import BLOCKS, DTYPES, Layout, Stored, assembled

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from numpy.typing import NDArray

    from quantize._types import QuantizedArray


class Lines(NamedTuple):
    """A matrix that is read some lines at a time: rows, or columns."""

    length: int
    """How many there are."""
    step: int
    """It can be cut after so many."""
    read: Callable[[int, int], QuantizedArray | NDArray[Any]]
    """Give those from one on up to another as a matrix."""


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

    @property
    def matrix(self) -> tuple[int, int]:
        """The shape as a matrix: all axes but the last, and the last."""
        return math.prod(self.shape[:-1]), self.shape[-1] if self.shape else 1

    @property
    def tensors(self) -> tuple[Proto, ...]:
        """What it is stored in."""
        return (self.tensor,) if self.packed is None else self.packed.tensors

    def stored(self, axis: int) -> list[Stored]:
        """How it lies in its tensors, as a matrix whose lines run along ``axis``."""
        if self.packed is None:
            return [Stored(self.matrix, TYPES[self.data_type][1], 1 - axis)]
        parts = self.packed.stored
        return parts if axis == self.packed.layout.axis else [part._replace(axis=1 - part.axis) for part in parts]

    def step(self, axis: int) -> int:
        """Lines along ``axis`` between which it can be cut."""
        codes, *others = [part.step for part in self.stored(axis)]
        if self.packed is not None and axis != self.packed.layout.axis:  # the lines of a block share a scale
            layout = self.packed.layout
            others = [layout.block * step for step in others] if layout.groups > 1 else []
        return math.lcm(codes, *others)


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
    return _array(source.read(weight.tensor), weight.data_type, weight.shape)


@contextmanager
def opened(weight: Weight, axis: int, source: Source) -> Generator[Lines]:
    """Open a weight as a matrix whose lines run along ``axis``: along that of its inputs they are outputs. Brain floats become floats."""
    if weight.dtype == "string" and not is_outside(weight.tensor):
        yield Lines(1, 1, partial(_texts, weight.tensor))
        return
    stored, (rows, columns) = weight.stored(axis), weight.matrix
    layout = None if weight.packed is None else weight.packed.layout
    with ExitStack() as files:
        pieces = [files.enter_context(source.opened(tensor)) for tensor in weight.tensors]

        def parts(lines: list[tuple[int, int]]) -> list[NDArray[np.uint8]]:
            return [part.read(piece, *some) for part, piece, some in zip(stored, pieces, lines, strict=True)]

        def read(start: int, stop: int) -> QuantizedArray | NDArray[Any]:
            if layout is None:
                shape = (stop - start, columns) if axis == 1 else (rows, stop - start)
                [data] = parts([(start, stop)])
                is_brain = weight.dtype == "bfloat16"
                return (
                    (data.view("<u2").astype("<u4") << 16).view("<f4").reshape(shape) if is_brain else _array(data, weight.data_type, shape)
                )
            if axis == layout.axis:
                return assembled(layout, stop - start, parts([(start, stop)] * len(stored)))
            return assembled(layout.inputs(start, stop), layout.rows, parts(layout.lines_of_inputs(start, stop, stored)))

        yield Lines((rows, columns)[1 - axis], weight.step(axis), read)


def _texts(tensor: Proto, _start: int, _stop: int) -> NDArray[np.uint8]:
    """Give all texts as bytes, which tell where each ends."""
    return np.frombuffer(repr(list(tensor.string_data)).encode(), np.uint8)


def _array(data: NDArray[np.uint8], data_type: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """Give bytes as an array; those of what numpy has no dtype for as they are."""
    name, bits, _ = TYPES[data_type]
    if bits < 8:
        return data
    name = "uint16" if name == "bfloat16" else "uint8" if name.startswith("float8_") else name
    return data.view(np.dtype(name).newbyteorder("<")).reshape(shape)
