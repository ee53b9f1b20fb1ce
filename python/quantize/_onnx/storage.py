"""How a matrix lies in the tensors of a graph, and how its lines, outputs or inputs, are read and written some at a time.

``g`` is the block size, ``G`` the number of blocks of K inputs, N the number of outputs:

    MatMulNBits           uint8 (N, G, g / 2), scales (N, G), zero points uint8 (N, ceil(G / 2))     the parts of onnx:matmulnbits
    GatherBlockQuantized  uint8 (N, K / 2), scales (N, G), zero points uint8 (N, ceil(G / 2))        likewise, rows without padding
    DequantizeLinear      INT4 or UINT4 in the shape of the weight, scales and zero points likewise  the parts of onnx:qdq where axis is 0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from quantize._api import from_parts, pack, unpack
from quantize._onnx.data import FLOAT, FLOAT16

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from quantize._types import GroupSize, QuantizedArray, Tensor

DTYPES: dict[int, np.dtype[Any]] = {FLOAT: np.dtype("<f4"), FLOAT16: np.dtype("<f2")}
"""Of activations, and so of scales."""

BLOCKS = (16, 32, 64, 128, 256)
"""Of MatMulNBits and GatherBlockQuantized."""

Piece: TypeAlias = "Callable[[int, NDArray[np.uint8]], None]"
"""Reads or writes an array of bytes at a place of a tensor."""


class Stored(NamedTuple):
    """A matrix as a tensor has it, row after row without padding."""

    shape: tuple[int, int]
    bits: int
    """Of an element."""
    axis: int
    """The axis along which the lines are counted."""

    @property
    def nbytes(self) -> int:
        """Bytes of all."""
        return -(-math.prod(self.shape) * self.bits // 8)

    @property
    def step(self) -> int:
        """Lines between which it can be cut: each cut is at the beginning of a byte."""
        row = self.shape[1] * self.bits
        if self.axis == 0:
            return 8 // math.gcd(8, row)
        return max(self.shape[1], 1) if row % 8 else 8 // math.gcd(8, self.bits)

    def places(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Where some lines are: the first byte and the number of bytes of each piece."""
        rows, columns = self.shape
        if stop - start == self.shape[self.axis]:
            yield 0, self.nbytes
        elif self.axis == 0:
            first = start * columns * self.bits // 8
            yield first, -(-stop * columns * self.bits // 8) - first
        else:
            for row in range(rows):
                yield (row * columns + start) * self.bits // 8, (stop - start) * self.bits // 8

    def read(self, fill: Piece, start: int, stop: int) -> NDArray[np.uint8]:
        """Read some lines."""
        places = list(self.places(start, stop))
        found = np.empty(sum(length for _, length in places), np.uint8)
        end = 0
        for at, length in places:
            fill(at, found[end : end + length])
            end += length
        return found

    def write(self, write: Piece, start: int, stop: int, array: NDArray[Any]) -> None:
        """Write some lines."""
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        end = 0
        for at, length in self.places(start, stop):
            write(at, data[end : end + length])
            end += length


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

    def stored(self, is_table: bool = False) -> list[Stored]:
        """Codes, scales and zero points as tensors have them; a table to look rows up in has no padding."""
        rows, columns, groups = self.rows, self.columns, self.groups
        width = 8 * np.dtype(self.dtype).itemsize
        if self.format == "onnx:matmulnbits":
            codes = columns if is_table else groups * self.block
            parts = [Stored((rows, codes), 4, 0), Stored((rows, groups), width, 0), Stored((rows, groups + groups % 2), 4, 0)]
        elif self.axis == 1:
            parts = [Stored((rows, columns), 4, 0), Stored((rows, groups), width, 0), Stored((rows, groups), 4, 0)]
        else:
            parts = [Stored((columns, rows), 4, 1), Stored((groups, rows), width, 1), Stored((groups, rows), 4, 1)]
        return parts[:2] if self.symmetric else parts

    def inputs(self, start: int, stop: int) -> Layout:
        """How some inputs of all outputs are quantized."""
        return self._replace(shape=(stop - start, self.rows) if self.axis == 0 else (self.rows, stop - start))

    def lines_of_inputs(self, start: int, stop: int, parts: Sequence[Stored]) -> list[tuple[int, int]]:
        """Which lines of each part are of some inputs, cut between blocks if there are several; the last ones have the padding."""
        block = max(self.block, 1)
        starts = [start] + [start // block] * (len(parts) - 1)
        stops = [stop] + [-(-stop // block)] * (len(parts) - 1)
        return list(zip(starts, [part.shape[part.axis] for part in parts] if stop == self.columns else stops, strict=True))

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self.stored())


def assembled(layout: Layout, count: int, data: Sequence[NDArray[np.uint8]]) -> QuantizedArray:
    """Give so many outputs, as tensors have them, as an array."""
    columns, groups, block = layout.columns, layout.groups, layout.block
    codes, scales, *more = data
    scales = scales.view(np.dtype(layout.dtype).newbyteorder("<"))
    if layout.format == "onnx:matmulnbits":
        codes = codes.reshape(count, len(codes) // max(count, 1))
        codes = np.pad(codes, ((0, 0), (0, groups * block // 2 - codes.shape[1])))  # a table has no padding
        parts = [codes.reshape(count, groups, block // 2), scales.reshape(count, groups)]
        parts += [each.reshape(count, -(-groups // 2)) for each in more]
    elif layout.axis == 0:
        parts = [codes, scales.reshape(groups, count), *more]
    else:  # the parts are those of the transpose
        parts = [_turned(codes, count, columns), np.ascontiguousarray(scales.reshape(count, groups).T)]
        parts += [_turned(each, count, groups) for each in more]
    named: dict[str, NDArray[Any]] = dict(zip(("packed", "scales", "zero_points"), parts, strict=False))
    shape = (columns, count) if layout.axis == 0 else (count, columns)
    return from_parts(layout.format, named, shape=shape, axis=layout.axis, group_size=layout.group_size, symmetric=layout.symmetric)


def taken_apart(q: QuantizedArray, is_table: bool = False) -> list[NDArray[Any]]:
    """Give codes, scales and zero points of an array as tensors have them."""
    codes, scales, *more = q.parts.values()
    count, columns = q.shape[1 - q.axis], q.shape[q.axis]
    if q.format == "onnx:matmulnbits":
        return [codes.reshape(count, -1)[:, : columns // 2] if is_table else codes, scales, *more]
    if q.axis == 0:
        return [codes, scales, *more]
    return [_turned(codes, columns, count), scales.T, *(_turned(each, len(scales), count) for each in more)]


def _turned(nibbles: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.uint8]:
    """Transpose a matrix of packed nibbles."""
    codes = unpack(nibbles, rows * columns, signed=False).reshape(rows, columns)
    return pack(np.ascontiguousarray(codes.T).reshape(-1), signed=False)
