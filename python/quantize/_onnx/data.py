"""The bytes of an ONNX model's tensors, inside the model or in files beside it: read here, never by the onnx package.

A tensor that is outside names a file, an offset and a length. What a file may name is narrow: a regular file in the model's folder,
by plain names, without links at any of them; a range inside that file, of exactly the bytes of the tensor, that no other range cuts.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeAlias

import numpy as np

from quantize._core import CorruptFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from numpy.typing import NDArray

Proto: TypeAlias = Any
"""A message of protobuf; the onnx package, which has the types, may be missing."""

FLOAT, UINT8, STRING, FLOAT16, UINT4, INT4 = 1, 2, 8, 10, 21, 22

# Number of the type: its name, the bits of an element, the field that holds it where it is neither raw nor outside.
TYPES: dict[int, tuple[str, int, str]] = {
    1: ("float32", 32, "float_data"),
    2: ("uint8", 8, "int32_data"),
    3: ("int8", 8, "int32_data"),
    4: ("uint16", 16, "int32_data"),
    5: ("int16", 16, "int32_data"),
    6: ("int32", 32, "int32_data"),
    7: ("int64", 64, "int64_data"),
    8: ("string", 8, "string_data"),  # as many bytes as its texts have
    9: ("bool", 8, "int32_data"),
    10: ("float16", 16, "int32_data"),
    11: ("float64", 64, "double_data"),
    12: ("uint32", 32, "uint64_data"),
    13: ("uint64", 64, "uint64_data"),
    14: ("complex64", 64, "float_data"),
    15: ("complex128", 128, "double_data"),
    16: ("bfloat16", 16, "int32_data"),
    17: ("float8_e4m3fn", 8, "int32_data"),
    18: ("float8_e4m3fnuz", 8, "int32_data"),
    19: ("float8_e5m2", 8, "int32_data"),
    20: ("float8_e5m2fnuz", 8, "int32_data"),
    21: ("uint4", 4, "int32_data"),
    22: ("int4", 4, "int32_data"),
    23: ("float4_e2m1fn", 4, "int32_data"),
    24: ("float8_e8m0fnu", 8, "int32_data"),
    25: ("uint2", 2, "int32_data"),
    26: ("int2", 2, "int32_data"),
}

MESSAGE_LIMIT = 2**31 - 1  # bytes of a message, by protobuf
BLOCK = 8 << 20  # bytes that are copied at a time


class Place(NamedTuple):
    """A range of a file."""

    location: str
    offset: int
    length: int


class Source:
    """The tensors of the model at a path."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._folder = os.path.dirname(path) or "."
        self._files: dict[str, os.stat_result] = {}

    def corrupt(self, reason: str) -> NoReturn:
        """Refuse the file."""
        raise CorruptFileError(f"{self.path}: onnx: {reason}")

    def files(self) -> list[os.stat_result]:
        """Tell which files outside the model have been looked at."""
        return list(self._files.values())

    def check(self, tensors: Iterable[Proto]) -> None:
        """Look at every tensor: its type, its shape, and where its bytes are. Nothing is read."""
        places: dict[Place, str] = {}
        for tensor in tensors:
            if tensor.HasField("segment"):
                self.corrupt(f"tensor {tensor.name!r} is one segment of several, which no version of the format defines")
            expected = self.nbytes(tensor)
            place = self.place(tensor)
            if place is not None:
                self._check_place(tensor.name, place, expected)
                places.setdefault(place, tensor.name)
            elif (found := self._bytes_inside(tensor)) != expected:
                self.corrupt(f"tensor {tensor.name!r} has {found} bytes; its type and shape need {expected}")
        ends: dict[str, tuple[int, str]] = {}
        for place, name in sorted(places.items()):
            end, before = ends.get(place.location, (0, ""))
            if place.length and place.offset < end:
                self.corrupt(f"the bytes of tensors {before!r} and {name!r} overlap in {place.location!r}")
            ends[place.location] = max((end, before), (place.offset + place.length, name))

    def nbytes(self, tensor: Proto) -> int:
        """Bytes that type and shape need."""
        if tensor.data_type not in TYPES:
            self.corrupt(f"tensor {tensor.name!r} has type {tensor.data_type}, which is unknown here")
        if any(length < 0 for length in tensor.dims):
            self.corrupt(f"tensor {tensor.name!r} has shape {list(tensor.dims)}; expected no negative length")
        if tensor.data_type == STRING and len(tensor.string_data) == math.prod(tensor.dims):
            return sum(len(text) for text in tensor.string_data)
        return -(-int(math.prod(tensor.dims)) * TYPES[tensor.data_type][1] // 8)

    def place(self, tensor: Proto) -> Place | None:
        """Where the bytes of a tensor are outside the model, if they are."""
        if not is_outside(tensor):
            return None
        said: dict[str, str] = {}
        for entry in tensor.external_data:
            if entry.key not in ("location", "offset", "length", "checksum") or entry.key in said:
                self.corrupt(f"tensor {tensor.name!r} has external data with the key {entry.key!r}, unknown or for the second time")
            said[entry.key] = entry.value
        if "location" not in said:
            self.corrupt(f"tensor {tensor.name!r} has external data without a location")
        numbers = {key: said[key] for key in ("offset", "length") if key in said}
        for key, text in numbers.items():
            if not (text.isascii() and text.isdigit() and len(text) < 20):
                self.corrupt(f"tensor {tensor.name!r} has external data with {key} {text[:40]!r}; expected a number of bytes")
        length = int(numbers.get("length", self.nbytes(tensor)))
        return Place(said["location"], int(numbers.get("offset", 0)), length)

    def _check_place(self, name: str, place: Place, expected: int) -> None:
        if place.location not in self._files:
            with self._opened(name, place.location) as file:
                self._files[place.location] = os.fstat(file)
        size = self._files[place.location].st_size
        if place.length != expected:
            self.corrupt(f"tensor {name!r} has {place.length} bytes in {place.location!r}; its type and shape need {expected}")
        if place.offset + place.length > size:
            end = place.offset + place.length
            self.corrupt(f"tensor {name!r} ends at byte {end} of {place.location!r}; the file has {size}")

    @contextmanager
    def _opened(self, name: str, location: str) -> Generator[int]:
        """Open a file of the model's folder, component by component without following links, so that nobody can lead out of it.

        It is closed at once: some models have a file for every tensor, more than a process may have open.
        """
        components = [component for component in location.split("/") if component != "."]
        if not location.isprintable() or not all(components) or ".." in components or not components:
            self.corrupt(f"tensor {name!r} lies in {location!r}; expected a path inside the model's folder, without '..'")
        folder = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for component in components[:-1]:
                inner = os.open(component, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
                os.close(folder)
                folder = inner
            # What is no regular file, such as a pipe, must not make the call wait.
            file = os.open(components[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR, errno.ENOENT, errno.ENAMETOOLONG, errno.ENXIO):
                error.filename = os.path.join(self._folder, location)
                raise
            missing = error.errno == errno.ENOENT
            what = "which is missing" if missing else "which is no file or is a link; copy the file itself there"
            self.corrupt(f"tensor {name!r} lies in {location!r}, {what}")
        finally:
            os.close(folder)
        try:
            facts = os.fstat(file)
            if not stat.S_ISREG(facts.st_mode) or facts.st_nlink != 1:
                self.corrupt(f"tensor {name!r} lies in {location!r}, which is no file of one name; copy the file itself there")
            if not os.path.samestat(facts, self._files.get(location, facts)):
                self.corrupt(f"tensor {name!r} lies in {location!r}, which is another file than when the model was opened")
            yield file
        finally:
            os.close(file)

    def read(self, tensor: Proto) -> NDArray[np.uint8]:
        """Read the bytes of a tensor, little-endian, as the format stores them."""
        place = self.place(tensor)
        if place is None:
            return self._inside(tensor)
        found = np.empty(place.length, np.uint8)
        with self._opened(tensor.name, place.location) as file:
            self._fill(file, tensor.name, place, found.data)
        return found

    @contextmanager
    def opened(self, tensor: Proto) -> Generator[Callable[[int, NDArray[np.uint8]], None]]:
        """Give what fills an array with the bytes of a tensor from some place on."""
        place = self.place(tensor)
        if place is None:
            inside = self._inside(tensor)

            def copy(at: int, into: NDArray[np.uint8]) -> None:
                into[:] = inside[at : at + len(into)]

            yield copy
            return
        with self._opened(tensor.name, place.location) as file:
            yield lambda at, into: self._fill(file, tensor.name, Place(place.location, place.offset + at, len(into)), into.data)

    def blocks(self, tensor: Proto) -> Iterator[NDArray[np.uint8]]:
        """Read the bytes of a tensor that is outside the model in pieces, each good until the next is asked for."""
        place = self.place(tensor)
        assert place is not None
        block = np.empty(min(place.length, BLOCK), np.uint8)
        with self.opened(tensor) as fill:
            for start in range(0, place.length, BLOCK):
                piece = block[: min(BLOCK, place.length - start)]
                fill(start, piece)
                yield piece

    def _fill(self, file: int, name: str, place: Place, into: memoryview) -> None:
        done = 0
        while done < place.length:
            count = os.preadv(file, [into[done : done + BLOCK]], place.offset + done)
            if count == 0:
                self.corrupt(f"tensor {name!r} lies in {place.location!r}, which has become shorter since it was opened")
            done += count

    def _bytes_inside(self, tensor: Proto) -> int:
        """Bytes that are in the model, whether raw or as numbers of a wider type."""
        _, bits, field = TYPES[tensor.data_type]
        if field == "string_data":
            return sum(len(text) for text in tensor.string_data)
        if tensor.HasField("raw_data"):
            return len(tensor.raw_data)
        each = {"float_data": 4, "double_data": 8}.get(field, max(bits // 8, 1))
        return len(getattr(tensor, field)) * each

    def _inside(self, tensor: Proto) -> NDArray[np.uint8]:
        name, bits, field = TYPES[tensor.data_type]
        if field == "string_data":
            raise ValueError(f"{self.path}: tensor {tensor.name!r} is of strings; expected one of numbers")
        if tensor.HasField("raw_data"):
            found = np.frombuffer(tensor.raw_data, np.uint8)
        else:
            wide = {"float_data": "<f4", "double_data": "<f8", "int32_data": "<i4", "int64_data": "<i8", "uint64_data": "<u8"}[field]
            values = np.array(getattr(tensor, field), wide)
            # Narrow types are stored as the integers of their bits, 4-bit ones two an integer.
            is_narrow = field == "int32_data" or name == "uint32"
            found = (values.astype(f"<u{max(bits // 8, 1)}") if is_narrow else values).view(np.uint8)
        return found


def is_onnx(path: str | os.PathLike[str]) -> bool:
    """Whether a path is called as an ONNX model is: the file itself has no mark."""
    return os.fspath(path).lower().endswith(".onnx")


def is_outside(tensor: Proto) -> bool:
    """Whether the bytes of a tensor are in another file than the model."""
    return bool(tensor.data_location == 1)
