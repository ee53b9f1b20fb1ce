"""One file converted into another."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantize import _core, _onnx
from quantize._files.checkpoint import Checkpoint
from quantize._files.errors import Errors, overall, plain_data
from quantize._files.progress import Progress, shown_progress
from quantize._threads import requested
from quantize._types import GroupSize, Method, NonFinite, amount, float_dtype

if TYPE_CHECKING:
    from numpy.typing import DTypeLike


@dataclass(frozen=True)
class TensorReport:
    """What a conversion did to one tensor."""

    name: str
    """Its name."""
    shape: tuple[int, ...]
    """Its shape."""
    dtype: str
    """Its dtype, or the one that it had before it was quantized."""
    action: Literal["quantize", "repack", "requantize", "dequantize", "keep", "cast", "refuse"]
    """What was done: ``repack`` is a conversion between formats that changes no value, ``requantize`` one that does, ``cast`` one to other
    floats. A plan that would ``refuse`` a tensor cannot be carried out."""
    reason: str | None
    """Why it was kept, cast or is refused; of a mixture also why it became what most others do not."""
    format: str | None
    """Its format in the new file, None where it is not quantized there."""
    group_size: int | str | None
    """Its group size in the new file."""
    bytes_before: int
    """Bytes in the old file."""
    bytes_after: int
    """Bytes in the new file."""
    rmse: float | None
    """Root of the mean square of the errors; None where nothing was quantized."""
    max_abs_error: float | None
    """The largest error."""
    sqnr_db: float | None
    """Signal to quantization noise in dB; infinite without errors."""
    replaced: int
    """Elements that were not finite and were replaced."""
    weights: str | None
    """What errors were weighted with in the search for scales: ``"importance"`` or ``"magnitude"``; None without a search."""
    becomes: str
    """The format or dtype that it has in the new file."""
    fallback: str | None
    """The format that was wanted, where its rows do not divide into blocks of that and it became something else."""

    @property
    def bits_per_weight(self) -> float | None:
        """Bits per element in the new file, scales included; None where it is not quantized there."""
        return 8 * self.bytes_after / math.prod(self.shape) if self.format and math.prod(self.shape) else None


@dataclass(frozen=True)
class ConvertReport:
    """What a conversion did, or would do."""

    source: str
    """The old file."""
    target: str | None
    """The new file; of a model in several files the first."""
    dry_run: bool
    """Whether this is the plan alone: then nothing was written and no error is known."""
    seconds: float
    """How long it took."""
    bytes_before: int
    """Bytes of all tensors in the old file."""
    bytes_after: int
    """Bytes of all tensors in the new file."""
    bits_per_weight: float | None
    """Bits per element of all that is quantized in the new file."""
    sqnr_db: float | None
    """Signal to quantization noise over all elements that were quantized, in dB."""
    worst: str | None
    """The tensor of the lowest SQNR."""
    memory: int
    """Bytes that tensors and what they become take at a time, estimated from above."""
    tensors: tuple[TensorReport, ...]
    """Tensor by tensor, in the order of the old file."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON. Numbers that are not finite, such as the SQNR without errors, are None."""
        return plain_data(self)


def convert(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str] | None,
    *,
    format: str = "int4",
    group_size: GroupSize | None = None,
    scale_dtype: DTypeLike | Literal["bfloat16"] | None = None,
    method: Method = "nearest",
    importance: str | os.PathLike[str] | None = None,
    nonfinite: NonFinite = "raise",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    fallback: str | None = None,
    requantize: bool = False,
    dequantize: bool = False,
    arch: str | None = None,
    names: str | os.PathLike[str] | None = None,
    dtype: DTypeLike | Literal["bfloat16"] | None = None,
    shard_size: int | None = None,
    memory_limit: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    threads: int | None = None,
    progress: Progress | bool = False,
    **options: Any,
) -> ConvertReport:
    """Quantize the matrices of a safetensors, npy, npz, GGUF or ONNX file, or of a Hugging Face folder, or decode them back.

    A tensor is quantized if it is of float16, bfloat16, float32 or float64, has two axes or more and a last axis of at least one
    group (a multiple of the block where the format has blocks). All others are copied unchanged; the report says why. Tensors
    are cut into blocks of rows, see ``memory_limit``. The new file appears under its name when it is whole, and may take the place of the old.

    A GGUF file becomes a GGUF file. There the tensors that llama.cpp keeps (norms, routers, embeddings of positions and their
    like) are kept, vectors become float32, and a matrix whose rows the block does not divide refuses the job, unless ``fallback``
    says what it becomes.

    A folder (``config.json`` and safetensors in shards or in one file) becomes a folder that the readers of the format's project
    load: the weights of the linear layers inside the blocks of the model are quantized, with MLX the embedding and the head too;
    tensors, index and config are named as that project names them; what is neither weights nor config is copied. A weight that the
    format does not take refuses the job. See the page on folders.

    An ONNX file becomes an ONNX file, in which ``onnx:matmulnbits`` or ``onnx:qdq`` stands where the weights of its MatMul and Gemm
    nodes were, and of Gather nodes where ``include`` names them. It needs the extra ``onnx``. See the page on ONNX.

    Parameters
    ----------
    source : path
        A safetensors file, also one that was converted before, a GGUF, npy, npz or ONNX file, or a Hugging Face folder.
    target : path or None
        What to write: GGUF from GGUF, ONNX from ONNX, a folder from a folder, else safetensors. None only for a dry run.
    format : str
        Name or alias; see :func:`formats`. A GGUF file takes those of gguf, and the mixtures of llama.cpp, which choose a format
        for each tensor: ``q4_0``, ``q4_1``, ``q4_k_s``, ``q4_k_m``, ``iq4_nl``, ``iq4_xs``, ``mxfp4_moe``. An ONNX file takes those of
        onnx.
    group_size, scale_dtype, nonfinite
        As for :func:`quantize`.
    method : "nearest", "optimal" or "fast"
        As for :func:`quantize`. In a search the errors of a tensor are weighted by what ``importance`` has for it, and else by
        magnitude; the report says which.
    importance : path, optional
        A file of floats, one tensor for each that it weights, under the same name: the mean squares of the inputs of its layer, of shape
        (columns,), of a stack of experts (experts, columns), or one number for each element. An importance matrix of llama.cpp in GGUF, of
        which the sums ``NAME.in_sum2`` are taken, or in its first form, ``imatrix.dat``.
    include, exclude : sequence of str
        Shell patterns of names: only tensors that match one of ``include``, none that matches one of ``exclude``.
    keep : sequence of str
        Names of tensors to copy unchanged.
    fallback : str, optional
        What a matrix of a GGUF file becomes whose rows the blocks of its format do not divide: a format, or ``"llama.cpp"`` for
        the rule of that project. The report lists every use.
    requantize : bool
        Quantize anew, from the values that it has, a quantized tensor whose values the format cannot hold. Without it such a tensor
        refuses the job; one whose values it can hold is converted without loss.
    dequantize : bool
        Decode quantized tensors to the dtype that they had before, instead of quantizing.
    arch : str, optional
        Make a GGUF file of a safetensors, npy or npz file: a model of images of this architecture, such as ``"flux"``, whose tensors keep
        their names. See the page on GGUF.
    names : path, optional
        With ``arch``: a file of JSON, an object that has the new name of each tensor which does not keep its own. The architecture may then
        be any.
    dtype : float16, bfloat16 or float32, optional
        Decode to this dtype instead.
    shard_size : int, optional
        Bytes of the tensors of one shard of a folder at most; a larger tensor has one of its own. Default: 5 GB. A GGUF file is cut only if
        this is given and it is larger: into ``OUT-00001-of-00003.gguf`` and so on.
    memory_limit : int, optional
        Bytes that tensors and what they become may take at a time: larger ones are cut between rows. It is refused where a tensor cannot be
        cut so far. Default: a quarter of the memory of the machine or of its control group, at most 2 GiB.
    resume : bool
        Keep what is done of a folder if the work ends early, as ``.NAME.partial`` beside the target, and take up what an earlier call with
        the same source and the same arguments left there. Whole shards are kept; the report knows no errors of their tensors.
    overwrite : bool
        Replace a file that exists. A folder that is not empty is never written into.
    dry_run : bool
        Plan from the header alone; write nothing.
    threads : int, optional
        At most so many threads; see :func:`set_threads`. The bytes do not depend on it.
    progress : callable or bool
        Called with bytes done, bytes in all and the name at hand. True shows a bar on a terminal, with tqdm where it is installed.
    **options
        As for :func:`quantize`.

    Returns
    -------
    ConvertReport

    Raises
    ------
    CorruptFileError
        The source breaks the rules of its container.
    PolicyError
        A tensor has elements that are not finite, or scales beyond their dtype, or (in a GGUF file) rows that the block does not
        divide while no ``fallback`` was named. The message names it.
    ValueError, TypeError
        Options that the format does not take, or names and patterns that fit no tensor; a format, or a name of the new file, that
        is not of the container.
    OSError
        A file cannot be read or written, exists already, or the disk is full.
    ImportError
        An ONNX file without the package onnx.

    Examples
    --------
    >>> import numpy as np, quantize as qz, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/weights.npy", np.ones((2, 64), np.float32))
    ...     report = qz.convert(f"{folder}/weights.npy", f"{folder}/weights.safetensors", group_size=64)
    >>> report.bytes_before, report.bytes_after, report.bits_per_weight
    (512, 68, 4.25)
    """
    source = os.fspath(source)
    target = None if target is None else os.fspath(target)
    if target is None and not dry_run:
        raise ValueError("target is None; expected a path, or dry_run=True for the plan alone")
    if dequantize and (group_size is not None or scale_dtype is not None or options or method != "nearest"):
        raise ValueError("group_size, scale_dtype, method or an option is given; expected none with dequantize=True, the file has them")
    if dtype is not None and not dequantize:
        raise ValueError("dtype is given; expected it only with dequantize=True")
    if method not in ("nearest", "optimal", "fast"):
        raise ValueError(f"method is {method!r}; expected 'nearest', 'optimal' or 'fast'")
    if importance is not None and method == "nearest":
        raise ValueError('importance is given; method="nearest" has no use for it: say method="optimal"')
    if shard_size is not None and shard_size < 1:
        raise ValueError(f"shard_size is {shard_size}; expected 1 or more bytes")
    if target is not None and _onnx.is_onnx(source) != _onnx.is_onnx(target):
        raise ValueError(f"target is {target!r}; an ONNX file becomes an ONNX file, which ends in .onnx, and no other file does")
    if _onnx.is_onnx(source) and (scale_dtype is not None or dtype is not None):
        raise ValueError("scale_dtype or dtype is given; expected none for an ONNX file: floats are of the dtype that its graph has there")
    if names is not None and arch is None:
        raise ValueError("names is given; it is for a GGUF file that is made of another file: say arch too")
    if arch is not None and (_onnx.is_onnx(source) or resume):
        raise ValueError("arch is given; it is for a GGUF file that is made of a safetensors, npy or npz file")
    renamed = [] if names is None else _name_map(names)
    selection = (_names(include), _names(exclude), _names(keep))
    floats = dtype if dequantize else scale_dtype
    scale_name = None if floats is None else float_dtype(floats)[0]
    weights = None if importance is None else os.fspath(importance)
    if memory_limit is not None and memory_limit < 1:
        raise ValueError(f"memory_limit is {memory_limit}; expected 1 or more bytes")
    if resume and not os.path.isdir(source):
        raise ValueError("resume is True; the source is one file, which is converted anew: expected a folder")
    limit = _memory_limit() if memory_limit is None else memory_limit
    started = time.perf_counter()

    def run(target: str | None, callback: Progress | None) -> tuple[list[Any], int, str | None]:
        if _onnx.is_onnx(source):
            if fallback is not None:
                raise ValueError("fallback is given; it is for GGUF files")
            with Checkpoint(weights) if weights else nullcontext() as found:
                name = None if dequantize else format
                wanted = _onnx.How(name, group_size, options, method, found, nonfinite, *selection, requantize, requested(threads))
                return *_onnx.convert(source, target, wanted, limit, overwrite, callback), target
        return _core.convert(
            source,
            target,
            None if dequantize else format,
            group_size,
            scale_name,
            options or None,
            method,
            weights,
            nonfinite,
            *selection,
            fallback,
            requantize,
            arch,
            renamed,
            shard_size,
            limit,
            resume,
            overwrite,
            requested(threads),
            callback,
        )

    rows, peak, made = run(None, None)
    if target is not None and not dry_run:
        _check_space(target, sum(row[6][1] for row in rows))
        with shown_progress(progress) as callback:
            rows, peak, made = run(target, callback)
    report = _report(source, target if made is None else os.fspath(made), dry_run, rows, peak, started)
    replaced = sum(tensor.replaced for tensor in report.tensors)
    if replaced:
        elements = "element was" if replaced == 1 else "elements were"
        warnings.warn(f"{replaced} {elements} not finite and replaced, as nonfinite= asks", _core.QuantizeWarning, stacklevel=2)
    return report


def _name_map(path: str | os.PathLike[str]) -> list[tuple[str, str]]:
    """Read the new names of tensors."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"names is {os.fspath(path)!r}, which is not JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found.values()):
        raise ValueError(f"names is {os.fspath(path)!r}; expected a JSON object of names: the old one to the new one")
    return list(found.items())


def _names(given: Sequence[str]) -> list[str]:
    """Give a list; a single text is one name."""
    return [given] if isinstance(given, str) else list(given)


def _report(source: str, target: str | None, dry_run: bool, rows: list[Any], peak: int, started: float) -> ConvertReport:
    tensors: list[TensorReport] = []
    errors: list[tuple[str, Errors]] = []
    for name, shape, dtype, action, reason, tensor, nbytes, sums, replaced, weights, becomes, fallback in rows:
        own = None if sums is None else Errors(*sums)
        if own is not None:
            errors.append((name, own))
        tensors.append(
            TensorReport(
                name=name,
                shape=tuple(shape),
                dtype=dtype,
                action=action,
                reason=reason,
                format=tensor[0] if tensor else None,
                group_size=tensor[3] if tensor else None,
                bytes_before=nbytes[0],
                bytes_after=nbytes[1],
                rmse=own and own.rmse,
                max_abs_error=own and own.max_abs_error,
                sqnr_db=own and own.sqnr_db,
                replaced=replaced,
                weights=weights,
                becomes=becomes,
                fallback=fallback,
            )
        )
    quantized = [tensor for tensor in tensors if tensor.format]
    elements = sum(math.prod(tensor.shape) for tensor in quantized)
    sqnr_db, worst = overall(errors)
    return ConvertReport(
        source=source,
        target=target,
        dry_run=dry_run,
        seconds=time.perf_counter() - started,
        bytes_before=sum(tensor.bytes_before for tensor in tensors),
        bytes_after=sum(tensor.bytes_after for tensor in tensors),
        bits_per_weight=8 * sum(tensor.bytes_after for tensor in quantized) / elements if elements else None,
        sqnr_db=sqnr_db,
        worst=worst,
        memory=peak,
        tensors=tuple(tensors),
    )


def _memory_limit() -> int:
    """Give a quarter of the memory of the machine or of its control group, at most 2 GiB."""
    found = [8 << 30]
    with suppress(OSError, ValueError, AttributeError):  # not every system tells
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # the file has no number where there is no limit
            found.append(int(Path(path).read_text()))
    return min(found) // 4


def _check_space(target: str, needed: int) -> None:
    """Refuse a job that the disk has no room for before it begins."""
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(target))).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"the new file needs {amount(needed)}, the disk has {amount(free)} free", target)
