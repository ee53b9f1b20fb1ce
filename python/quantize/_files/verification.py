"""Whether a file is whole, and what a conversion makes of another."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from quantize import _core, _onnx
from quantize._files.checkpoint import Checkpoint
from quantize._files.errors import Errors, hashed, plain_data
from quantize._files.progress import Progress, shown_progress
from quantize._threads import requested


@dataclass(frozen=True)
class TensorVerdict:
    """What was found of one tensor."""

    name: str
    """Its name."""
    verdict: Literal["sound", "same", "reproduced", "bounded", "faulty"]
    """``sound``: readable and finite, nothing to compare with. ``same``: the values of the source. ``reproduced``: to the byte what the
    format's own rule makes of the source. ``bounded``: each element has the nearest value that its scale allows, and no group has lost
    its scale, as of a search for scales. ``faulty``: none of these."""
    reason: str | None
    """What is wrong; None where nothing is."""
    sqnr_db: float | None
    """Signal to noise against the source in dB, infinite without errors; None without a source."""


@dataclass(frozen=True)
class Verification:
    """What was found of a file. Made by :func:`verify`."""

    file: str
    """The file."""
    against: str | None
    """The file that it was made of."""
    report: str | None
    """The report that has the hashes."""
    ok: bool
    """Whether no tensor is faulty."""
    tensors: tuple[TensorVerdict, ...]
    """Tensor by tensor, in the order of the file; then those that it lacks."""

    @property
    def faults(self) -> tuple[TensorVerdict, ...]:
        """The tensors that are faulty."""
        return tuple(tensor for tensor in self.tensors if tensor.reason is not None)

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON. Numbers that are not finite are None."""
        return plain_data(self)


def verify(
    path: str | os.PathLike[str],
    *,
    against: str | os.PathLike[str] | None = None,
    report: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | bool = False,
) -> Verification:
    """Check that a file is whole: its container, that all scales and values of quantized tensors are finite, hashes, and error bounds.

    Parameters
    ----------
    path : path
        A file or a folder; see :func:`open`. Not an ONNX file.
    against : path, optional
        The file that it was made of. Each tensor must then have its values, or be what a conversion makes of them, see
        :class:`TensorVerdict`. A tensor whose elements that were not finite were replaced is compared in the others.
    report : path, optional
        What ``quantize convert --report FILE.json`` wrote, or what ``--json`` printed: the hashes of all tensors must be those.
    threads : int, optional
        At most so many threads; see :func:`set_threads`.
    progress : callable or bool
        As for :func:`convert`.

    Returns
    -------
    Verification

    Raises
    ------
    CorruptFileError
        A file breaks the rules of its container, or the report is none.
    OSError
        A file cannot be read.

    Examples
    --------
    >>> import numpy as np, quantize as qz, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/weights.npy", np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64))
    ...     made = qz.convert(f"{folder}/weights.npy", f"{folder}/weights.safetensors")
    ...     found = qz.verify(f"{folder}/weights.safetensors", against=f"{folder}/weights.npy")
    >>> found.ok, found.tensors[0].verdict
    (True, 'reproduced')
    """
    path = os.fspath(path)
    source, hashes = (None if given is None else os.fspath(given) for given in (against, report))
    if any(_onnx.is_onnx(given) for given in (path, source) if given is not None):
        raise ValueError(f"{path}: ONNX files are not verified: run the model with onnxruntime, or compare it with its source")
    expected = None if hashes is None else _hashes(hashes)
    with shown_progress(progress) as callback:
        rows = _core.verify_file(path, source, requested(threads), callback)
    wrong = {} if expected is None else _other_hashes(path, expected)
    tensors: list[TensorVerdict] = []
    for name, verdict, reason, sums in rows:
        found = wrong.pop(name, None)
        sqnr_db = None if sums is None else Errors(*sums).sqnr_db
        tensors.append(TensorVerdict(name, "faulty" if found else verdict, reason or found, sqnr_db))
    tensors += [TensorVerdict(name, "faulty", reason, None) for name, reason in wrong.items()]
    return Verification(path, source, hashes, all(tensor.reason is None for tensor in tensors), tuple(tensors))


def _hashes(path: str) -> dict[str, str | None]:
    """Give the hash of each tensor, as a report has it; None where that is not known."""
    try:
        tensors = json.loads(Path(path).read_text(encoding="utf-8"))["tensors"]
        return {str(tensor["name"]): tensor["sha256"] and str(tensor["sha256"]) for tensor in tensors}
    except (ValueError, TypeError, KeyError) as error:
        raise _core.CorruptFileError(
            f"{path}: no report as 'quantize convert --report FILE.json' writes it, or --json prints it: {error!r}"
        ) from error


def _other_hashes(path: str, expected: dict[str, str | None]) -> dict[str, str]:
    """Give what is wrong with the tensors whose hash is another, or that only one of the file and the report has."""
    wrong: dict[str, str] = {}
    with Checkpoint(path) as file:
        for name in file:
            if name not in expected:
                wrong[name] = "the report has no such tensor"
            if not (known := expected.get(name)):
                continue
            try:
                found = hashed(file[name])[0]
            except _core.CorruptFileError as error:
                wrong[name] = str(error)
                continue
            if found != known:
                wrong[name] = f"its hash is {found[:12]}..., that of the report {known[:12]}..."
        wrong |= {name: "the report has it, the file has not" for name in expected if name not in file}
    return wrong
