"""What a file holds, and what is suspicious about it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from quantize._check import ADVICE, check
from quantize._core import CorruptFileError
from quantize._files.checkpoint import Checkpoint, TensorInfo
from quantize._files.errors import json_numbers
from quantize._files.progress import Progress, shown_progress

if TYPE_CHECKING:
    from quantize._types import FindingKind, QuantizedArray

ROWS = 32 << 20
"""Elements of a tensor that are looked at together."""


class TensorFinding(NamedTuple):
    """Something suspicious about a tensor of a file."""

    tensor: str | None
    """Its name; None where it concerns the file."""
    kind: FindingKind | Literal["method"]
    """What it is; see :class:`Finding`. ``method``: a folder is quantized in a way that is not read."""
    message: str
    """The part, what was found and what was expected."""
    certain: bool
    """False where it is only likely."""
    advice: str
    """What to do about it."""


@dataclass(frozen=True)
class Inspection:
    """What a file holds. Made by :func:`inspect`."""

    file: str
    """The file."""
    container: str
    """See :attr:`Checkpoint.container`."""
    metadata: dict[str, Any]
    """See :attr:`Checkpoint.metadata`."""
    nbytes: int
    """Bytes of all tensors."""
    bits_per_weight: float | None
    """Bits per element of all that is quantized, scales included."""
    tensors: tuple[TensorInfo, ...]
    """Tensor by tensor, in the order of the file."""
    findings: tuple[TensorFinding, ...]
    """What is suspicious; empty where nothing is, or where nothing was looked at."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON. Numbers that are not finite are None."""
        plain = asdict(self) | {"metadata": json_numbers(self.metadata)}
        plain["tensors"] = [tensor._asdict() | {"bits_per_weight": tensor.bits_per_weight} for tensor in self.tensors]
        plain["findings"] = [finding._asdict() for finding in self.findings]
        return plain


def inspect(path: str | os.PathLike[str], *, check: bool = True, progress: Progress | bool = False) -> Inspection:
    """List what a file holds, and look for what is wrong with its quantized tensors.

    The formats are those that names, dtypes and config say. Whether the bytes agree is what the detectors of :func:`check` look for: zero
    points of another version of GPTQ, the order of AWQ, scales that are not finite. They read the quantized tensors, some rows at a
    time; tensors of floats are not read.

    Parameters
    ----------
    path : path
        A file or a folder; see :func:`open`.
    check : bool
        Whether the tensors are looked at; otherwise only the header is read.
    progress : callable or bool
        As for :func:`convert`.

    Returns
    -------
    Inspection

    Raises
    ------
    CorruptFileError
        The file breaks the rules of its container, or tensors contradict the config.
    OSError
        It cannot be read.

    Examples
    --------
    >>> import numpy as np, quantize as qz, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/weights.npy", np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64))
    ...     report = qz.convert(f"{folder}/weights.npy", f"{folder}/weights.safetensors")
    ...     found = qz.inspect(f"{folder}/weights.safetensors")
    >>> found.bits_per_weight, found.findings
    (4.5, ())
    """
    with Checkpoint(path) as file:
        findings: list[TensorFinding] = []
        if file.unread is not None:
            message = f"quantized by {file.unread}, which is not read: its tensors are listed as they are stored"
            findings.append(TensorFinding(None, "method", message, True, "convert it with the project that made it"))
        quantized = [info for info in file.tensors if info.format]
        if check:
            done, total = 0, sum(info.nbytes for info in quantized)
            with shown_progress(progress) as callback:
                for info in quantized:
                    if callback is not None:
                        callback(done, total, info.name)
                    findings += _findings(file, info.name)
                    done += info.nbytes
        elements = sum(info.size for info in quantized)
        return Inspection(
            file=os.fspath(path),
            container=file.container,
            metadata=file.metadata,
            nbytes=sum(info.nbytes for info in file.tensors),
            bits_per_weight=8 * sum(info.nbytes for info in quantized) / elements if elements else None,
            tensors=file.tensors,
            findings=tuple(findings),
        )


def _findings(file: Checkpoint, name: str) -> Iterator[TensorFinding]:
    """Give what the detectors find in a tensor, of each kind the first."""
    seen: set[str] = set()
    try:
        for first, rows in file.rows(name, ROWS):
            whole = first == 0 and rows.shape[:1] == (math.prod(file.info(name).shape[:-1]),)
            for finding in _checked(rows):
                if finding.kind not in seen:
                    seen.add(finding.kind)
                    where = "" if whole else f"from row {first} on: "
                    yield TensorFinding(name, finding.kind, where + finding.message, finding.certain, ADVICE[finding.kind])
    except CorruptFileError as error:
        yield TensorFinding(name, "parts", str(error), True, ADVICE["parts"])


def _checked(rows: QuantizedArray) -> list[Any]:
    group_size: Any = rows.group_size
    options: dict[str, Any] = rows._tensor[5]  # pyright: ignore[reportPrivateUsage]
    return list(check(rows.format, rows.parts, shape=rows.shape, axis=rows.axis, group_size=group_size, **options))
