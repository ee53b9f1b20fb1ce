"""Two files compared, tensor by tensor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from quantize import _core, _onnx
from quantize._files import lines
from quantize._files.errors import Errors, overall, plain_data
from quantize._files.optimum import optima
from quantize._files.progress import Progress, shown_progress
from quantize._threads import requested


@dataclass(frozen=True)
class TensorComparison:
    """How the tensors that two files have under one name relate."""

    name: str
    """The name."""
    verdict: Literal["measured", "same", "different", "shapes", "dtypes", "only first", "only second"]
    """``measured``: numbers. ``same``, ``different``: bytes of a dtype that is not measured. ``shapes``, ``dtypes``: those differ."""
    first: str | None
    """The format or dtype in the first file."""
    second: str | None
    """The format or dtype in the second file."""
    shape: tuple[int, ...]
    """The shape, of the first file where they differ."""
    rmse: float | None
    """Root of the mean square of the errors; None where nothing was measured."""
    max_abs_error: float | None
    """The largest error."""
    sqnr_db: float | None
    """Signal to noise in dB, the first file being the signal; infinite without errors."""
    cosine: float | None
    """Cosine of the angle between both."""
    lower_bound: float | None
    """No codes and scales of the format of the second file have a smaller mean squared error, weighted by the importance where it has some
    for the tensor; None unless ``optimum`` asked for it, and where no search proves it, like the two that follow."""
    excess: float | None
    """By how much the (weighted) error is above that of the best codes and scales, as a part of it."""
    share_improved: float | None
    """The share of the groups whose error the best codes and scales make smaller."""
    weights: str | None
    """``"importance"`` where these three are weighted by it."""


@dataclass(frozen=True)
class FileComparison:
    """How the tensors of two files relate."""

    first: str
    """The file that is the reference."""
    second: str
    """The file that is measured."""
    sqnr_db: float | None
    """Signal to noise over all elements that were measured, in dB."""
    worst: str | None
    """The tensor of the lowest SQNR."""
    tensors: tuple[TensorComparison, ...]
    """Name by name, in the order of the first file."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON. Numbers that are not finite are None."""
        return plain_data(self)


def compare_files(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    optimum: bool = False,
    importance: str | os.PathLike[str] | None = None,
    threads: int | None = None,
    progress: Progress | bool = False,
) -> FileComparison:
    """Measure how far the tensors of one file are from those of the same name in another, quantized or not.

    Parameters
    ----------
    first : path
        The reference.
    second : path
    optimum : bool
        Search for the best codes and scales that each tensor could have in the format of the second file, as :func:`compare` does, and tell
        how far it is from them. That takes as long as a conversion with ``method="optimal"``. Tensors with scales of two levels, whose
        search proves nothing, or with more than 4 bits are passed over, as are those that are not finite.
    importance : path, optional
        A file of what their errors are weighted with, as for :func:`convert`; a tensor that it has nothing for has plain squared errors.
    threads : int, optional
        At most so many threads; see :func:`set_threads`.
    progress : callable or bool
        As for :func:`convert`.

    Returns
    -------
    FileComparison

    Raises
    ------
    CorruptFileError
        A file breaks the rules of its container.
    ValueError, TypeError
        ``importance`` without ``optimum``, or numbers that do not fit the tensor.
    OSError
        A file cannot be read.

    Examples
    --------
    >>> import numpy as np, quantize as qz, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/weights.npy", np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64))
    ...     report = qz.convert(f"{folder}/weights.npy", f"{folder}/weights.safetensors")
    ...     compared = qz.compare_files(f"{folder}/weights.npy", f"{folder}/weights.safetensors")
    >>> compared.worst, round(compared.sqnr_db, 1)
    ('weights', 26.2)
    """
    if importance is not None and not optimum:
        raise ValueError("importance is given; it has no use without optimum=True")
    first, second = os.fspath(first), os.fspath(second)
    with shown_progress(progress) as callback:
        compare = lines.compare if _onnx.is_onnx(first) or _onnx.is_onnx(second) else _core.compare_files
        rows = compare(first, second, requested(threads), callback)
        best = optima(first, second, None if importance is None else os.fspath(importance), threads, callback) if optimum else {}
    tensors: list[TensorComparison] = []
    errors: list[tuple[str, Errors]] = []
    for name, one, other, verdict, sums in rows:
        kinds = (one[0] if one else None, other[0] if other else None)
        shape = tuple((one or other)[1])
        measured: tuple[float | None, float | None, float | None, float | None] = (None, None, None, None)
        if sums is not None:
            own = Errors(*sums)
            errors.append((name, own))
            measured = (own.rmse, own.max_abs_error, own.sqnr_db, own.cosine)
        beside = best.get(name)
        optimal: tuple[float | None, float | None, float | None] = (None, None, None) if beside is None else beside.optimum
        weights = None if beside is None else beside.weights
        tensors.append(
            TensorComparison(name, verdict or ("only first" if one else "only second"), *kinds, shape, *measured, *optimal, weights)
        )
    return FileComparison(first, second, *overall(errors), tuple(tensors))
