"""The files of a new ONNX model: itself, and one beside it for the bytes of its tensors if it has one."""

from __future__ import annotations

import errno
import os
import secrets
import stat
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize._onnx.data import Place, Proto, Source

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from numpy.typing import NDArray

    from quantize._onnx.storage import Piece

INSIDE_LIMIT = 2**30  # bytes of a model from which on what is new goes into a file of data
OUTSIDE_FROM = 1024  # bytes of a tensor that lies outside the model; below that it is not worth it
PAGE_FROM, PAGE = 1 << 20, 4096  # tensors from this size on begin on a page, so that a reader can map them


class Output:
    """A model in the making, with a file of data beside it if it has one. Both appear under their names when they are whole.

    The file of data comes first, so that whoever finds the model finds its data too.
    """

    def __init__(self, path: str, overwrite: bool, outside: bool) -> None:
        exists = os.path.exists(path)
        self.path = os.path.realpath(path) if exists else path
        if os.path.isdir(self.path):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
        self._overwrite = overwrite
        self._data: _Sibling | None = None
        self._places: dict[Place, Place] = {}
        self._end = 0
        if exists and not overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), path)
        self._model = _Sibling(self.path)
        if outside:
            try:
                self._data = _Sibling(self.path + ".data", overwrite)
            except BaseException:
                self.discard()
                raise

    @contextmanager
    def room(self, tensor: Proto, length: int) -> Generator[Piece]:
        """Give what writes the bytes of a tensor: outside the model where it has a file of data and they are enough to be worth it."""
        if self._data is None or length < OUTSIDE_FROM:
            inside = np.zeros(length, np.uint8)

            def copy(at: int, data: NDArray[np.uint8]) -> None:
                inside[at : at + len(data)] = data

            yield copy
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = inside.tobytes()
        else:
            place = self._place(length)
            yield self._piece(place)
            self._point(tensor, place)

    def adopt(self, tensor: Proto, source: Source) -> None:
        """Copy the bytes of a tensor that is outside the old model; a range that several tensors share is copied once."""
        place = source.place(tensor)
        if place is None or place.location == _OURS:
            return
        if place.length < OUTSIDE_FROM:
            with self.room(tensor, place.length) as write:
                write(0, source.read(tensor))
            return
        if place not in self._places:
            self._places[place] = self._place(place.length)
            write, at = self._piece(self._places[place]), 0
            for block in source.blocks(tensor):
                write(at, block)
                at += len(block)
        self._point(tensor, self._places[place])

    def _place(self, length: int) -> Place:
        """Take a range of the file of data."""
        align = PAGE if length >= PAGE_FROM else 64
        start = -(-self._end // align) * align
        self._end = start + length
        return Place(_OURS, start, length)

    def _piece(self, place: Place) -> Piece:
        """Give what writes into a range of the file of data."""
        assert self._data is not None
        file = self._data.file.fileno()

        def write(at: int, data: NDArray[np.uint8]) -> None:
            done = 0
            while done < len(data):
                done += os.pwrite(file, data.data[done:], place.offset + at + done)

        return write

    def _point(self, tensor: Proto, place: Place) -> None:
        tensor.ClearField("external_data")
        tensor.data_location = 1
        for key, value in place._asdict().items():
            tensor.external_data.add(key=key, value=str(value))

    def finish(self, tensors: Iterable[Proto], serialized: Any) -> None:
        """Write the model and put everything under its name, durably."""
        if self._data is not None:
            name = os.path.basename(self._data.target)
            for tensor in tensors:
                for entry in tensor.external_data:
                    if entry.key == "location" and entry.value == _OURS:
                        entry.value = name
            if self._end == 0:  # nothing was worth it
                self._data.discard()
                self._data = None
        self._model.file.write(serialized())
        for sibling in (self._data, self._model):
            if sibling is not None:
                sibling.sync()
        if self._data is not None:
            self._data.appear(self._overwrite)
        try:
            self._model.appear(self._overwrite)
        except BaseException:
            if self._data is not None and not self._overwrite:
                os.unlink(self._data.target)
            raise
        folder = os.open(os.path.dirname(self.path) or ".", os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def discard(self) -> None:
        """Remove what has not appeared."""
        for sibling in (self._data, self._model):
            if sibling is not None:
                sibling.discard()


_OURS = "\n"
"""The location of data in the file that is being written, until its tensors get its name. No file can be told to have it: see Source."""


class _Sibling:
    """A temporary file beside the one that it becomes."""

    def __init__(self, target: str, overwrite: bool = True) -> None:
        self.target = target
        mode = None
        with suppress(FileNotFoundError):
            mode = stat.S_IMODE(os.stat(target).st_mode)
        if mode is not None and not overwrite:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
        self._path = os.path.join(os.path.dirname(target), f".quantize-{secrets.token_hex(6)}.tmp")
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except OSError as error:
            error.filename = target
            raise
        self.file = os.fdopen(descriptor, "wb")
        if mode is not None:  # what is replaced leaves its permissions
            os.fchmod(descriptor, mode)

    def sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def appear(self, overwrite: bool) -> None:
        if overwrite:
            os.replace(self._path, self.target)
        else:
            try:
                os.link(self._path, self.target)  # fails where the name is taken
                os.unlink(self._path)
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                if os.path.lexists(self.target):
                    raise
                os.rename(self._path, self.target)
        self.file.close()

    def discard(self) -> None:
        with suppress(OSError):  # what could not be written can no more be flushed
            self.file.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
