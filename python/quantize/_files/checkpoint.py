"""A file of named tensors, open for reading."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize import _core, _onnx
from quantize._types import QuantizedArray, amount, wrap

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray


class TensorInfo(NamedTuple):
    """What a file says of one tensor."""

    name: str
    """Its name."""
    dtype: str
    """Its dtype by the name of numpy, ml_dtypes or ggml; of a quantized tensor the one that it had before, in a GGUF file float32."""
    shape: tuple[int, ...]
    """Its shape."""
    nbytes: int
    """The bytes that it takes in the file."""
    format: str | None
    """The format, None for a tensor that is not quantized."""
    group_size: int | str | None
    """Elements that share a scale, ``"row"`` or ``"tensor"``; None for a tensor that is not quantized."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def bits_per_weight(self) -> float | None:
        """Bits per element; None where there are no elements."""
        return 8 * self.nbytes / self.size if self.size else None


class Checkpoint(Mapping[str, "QuantizedArray | NDArray[Any]"]):
    """A file of named tensors, open for reading: a mapping from each name to its array, read when it is asked for.

    Made by :func:`open`. A quantized tensor is a :class:`QuantizedArray`, whatever parts it is stored in; anything else is an
    ndarray. What numpy has no dtype for comes as its bits: bfloat16 as uint16, 8-bit floats as uint8; 6-bit and 4-bit floats
    as the flat bytes that they are packed in; types of GGUF that are no format of this package, such as Q3_K, as uint8 with the
    bytes of a row along the last axis.

    Usable in a ``with`` block, which closes the file at its end.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file: _core.File | _onnx.File | None = _onnx.File(os.fspath(path)) if _onnx.is_onnx(path) else _core.File(os.fspath(path))
        self._path = Path(path)
        self._tensors: dict[str, tuple[int, TensorInfo, Any]] = {}
        for index, (name, dtype, shape, nbytes, tensor) in enumerate(self._file.tensors()):
            format, group_size = (tensor[0], tensor[3]) if tensor else (None, None)
            self._tensors[name] = index, TensorInfo(name, dtype, tuple(shape), nbytes, format, group_size), tensor

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._path

    @property
    def container(self) -> str:
        """The file format: ``"safetensors"``, ``"gguf"``, ``"npy"``, ``"npz"``, ``"onnx"`` or, of a folder, ``"huggingface"``."""
        return self._open_file().container

    @property
    def metadata(self) -> dict[str, Any]:
        """What the file says besides its tensors, by key: text, in a GGUF file also numbers, truth values and lists of them."""
        return self._open_file().metadata

    @property
    def tensors(self) -> tuple[TensorInfo, ...]:
        """What the header says of every tensor. Nothing is read."""
        return tuple(info for _, info, _ in self._tensors.values())

    def __getitem__(self, name: str) -> QuantizedArray | NDArray[Any]:
        """Read a tensor. CorruptFileError where a part contradicts the others, in the words of :func:`from_parts`."""
        index, _, tensor = self._tensors[name]
        arrays = {part: _array(data, dtype, shape) for part, data, dtype, shape in self._open_file().read(index)}
        return arrays[""] if tensor is None else wrap(tensor, arrays)

    def __iter__(self) -> Iterator[str]:
        """Go through the names, in the order of the data."""
        return iter(self._tensors)

    def __len__(self) -> int:
        """Count the tensors."""
        return len(self._tensors)

    def __contains__(self, name: object) -> bool:
        """Whether there is a tensor of this name; it is not read."""
        return name in self._tensors

    def __eq__(self, other: object) -> bool:
        """Whether it is the same open file. Mappings compare their values; arrays have no one answer to that."""
        return self is other

    @property
    def unread(self) -> str | None:
        """How a folder says that its tensors are quantized, where that is none of the formats that are read."""
        file = self._open_file()
        return file.unread if isinstance(file, _core.File) else None

    def info(self, name: str) -> TensorInfo:
        """Give what the header says of a tensor."""
        return self._tensors[name][1]

    def inputs_axis(self, name: str) -> int | None:
        """Along which axis of a weight of an ONNX file the inputs of its layer run; None where that is not known."""
        file = self._open_file()
        return file.inputs_axis(self._tensors[name][0]) if isinstance(file, _onnx.File) else None

    def rows(self, name: str, elements: int) -> Iterator[tuple[int, QuantizedArray]]:
        """Read a quantized tensor in blocks of rows of about so many elements: the first row of each, and the block as a matrix.

        Parts that contradict the others are handed out as they are.
        """
        file, (index, info, _) = self._open_file(), self._tensors[name]
        if info.format is None:
            raise ValueError(f"tensor {name!r} is of {info.dtype}; expected one that is quantized")
        if not isinstance(file, _core.File):
            found = self[name]
            assert isinstance(found, QuantizedArray)
            yield 0, found
            return
        for first, count in file.blocks(index, elements):
            found = _rows(file, index, first, count)
            assert isinstance(found, QuantizedArray)
            yield first, found

    def lines(self, name: str, axis: int) -> AbstractContextManager[_onnx.Lines]:
        """Open a tensor as a matrix of all axes but the last and the last, to be read some lines at a time.

        Lines run along ``axis``: 1 for rows, 0 in an ONNX file alone, for columns. What numpy has no dtype for comes as it does elsewhere, but
        for bfloat16 from an ONNX file, which is float32.
        """
        file, (index, info, _) = self._open_file(), self._tensors[name]
        if not isinstance(file, _core.File):
            return file.lines(index, axis)
        if axis != 1:
            raise ValueError(f"axis is {axis}; expected 1, the file is read in rows")

        def read(start: int, stop: int) -> QuantizedArray | NDArray[Any]:
            return _rows(file, index, start, stop - start)

        return nullcontext(_onnx.Lines(math.prod(info.shape[:-1]) if info.size else 0, file.step(index), read))

    def close(self) -> None:
        """Close the file. Arrays that were read stay."""
        self._file = None

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        """Describe the file in one line."""
        nbytes = sum(info.nbytes for info in self.tensors)
        return f"Checkpoint({str(self._path)!r}, {len(self)} tensors, {amount(nbytes)})"

    def _open_file(self) -> _core.File | _onnx.File:
        if self._file is None:
            raise ValueError(f"the file {self._path} is closed")
        return self._file


def open(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a safetensors, GGUF, npy, npz or ONNX file, or a Hugging Face folder.

    Parameters
    ----------
    path : path
        The array of an npy file is called as the file is, without its ending, and those of an npz file as they were saved. Of a GGUF model in
        several files it is the first, with which all are read. The tensors of a folder are those of all its shards; a
        weight that its config says is quantized is one tensor, called as the weight of the module. The tensors of an ONNX file are the
        constants of its graphs; it needs the extra ``onnx``.

    Returns
    -------
    Checkpoint
        A mapping from names to arrays, each read when it is asked for.

    Raises
    ------
    CorruptFileError
        The file breaks the rules of its container; the message names the rule and the tensor.
    OSError
        It cannot be read.
    ImportError
        An ONNX file without the package onnx.

    Examples
    --------
    >>> import numpy as np, quantize as qz, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/weights.npy", np.ones((2, 64), np.float32))
    ...     report = qz.convert(f"{folder}/weights.npy", f"{folder}/weights.safetensors")
    ...     qz.open(f"{folder}/weights.safetensors")["weights"]
    QuantizedArray(int4, shape=(2, 64), 4.50 bits/weight, 72 bytes)
    """
    return Checkpoint(path)


def _rows(file: _core.File, index: int, first: int, count: int) -> QuantizedArray | NDArray[Any]:
    """Read some rows of a tensor as a matrix."""
    tensor, parts = file.read_rows(index, first, count)
    arrays = {part: _array(data, dtype, shape) for part, data, dtype, shape in parts}
    return arrays[""] if tensor is None else wrap(tensor, arrays)


def _array(data: NDArray[np.uint8], dtype: str, shape: tuple[int, ...]) -> NDArray[Any]:
    """Give the bytes of a tensor as an array of its dtype, or of its bits where numpy has no such dtype."""
    if dtype.startswith(("float4_", "float6_")):
        return data
    name = "uint16" if dtype == "bfloat16" else "uint8" if dtype.startswith("float8_") else dtype
    return data.view(np.dtype(name).newbyteorder("<")).reshape(shape)
