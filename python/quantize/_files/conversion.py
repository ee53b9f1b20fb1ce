"""One file converted into another."""

from __future__ import annotations

import errno
import math
import os
import shutil
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from quantize import _core, _onnx
from quantize._api import check_number
from quantize._files.errors import Errors, overall, plain_data
from quantize._files.progress import Progress, shown_progress
from quantize._files.rules import Rules, listed
from quantize._files.wanted import Made, Wanted, Work, allowed_memory
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
    rule: str | None
    """The pattern of the rule that decided, if one did."""
    sha256: str | None
    """Hash of the bytes that it has in the new file, part after part; None where nothing was done, in the shards of a folder that an
    earlier job wrote, and of ONNX files."""
    seconds: float
    """How long it took; 0 where nothing was done."""

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
    format: str | None = None,
    group_size: GroupSize | None = None,
    scale_dtype: DTypeLike | Literal["bfloat16"] | None = None,
    method: Method = "nearest",
    clip_limit: float | None = None,
    importance: str | os.PathLike[str] | None = None,
    nonfinite: NonFinite = "raise",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    rules: Rules = (),
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
    nodes were, and of Gather nodes where ``include`` or a rule names them. It needs the extra ``onnx``. See the page on ONNX.

    Parameters
    ----------
    source : path
        A safetensors file, also one that was converted before, a GGUF, npy, npz or ONNX file, or a Hugging Face folder.
    target : path or None
        What to write: GGUF from GGUF, ONNX from ONNX, a folder from a folder, else safetensors, or npz if it ends so. None only for
        a dry run.
    format : str, optional
        Name or alias; see :func:`formats`. Default: ``"int4"``; with ``rules`` what none of them matches is kept. A GGUF file takes those of gguf, and the mixtures of llama.cpp, which choose a format
        for each tensor: ``q4_0``, ``q4_1``, ``q4_k_s``, ``q4_k_m``, ``iq4_nl``, ``iq4_xs``, ``mxfp4_moe``. An ONNX file takes those of
        onnx.
    group_size, scale_dtype, nonfinite
        As for :func:`quantize`.
    method : "nearest", "optimal" or "fast"
        As for :func:`quantize`. In a search the errors of a tensor are weighted by what ``importance`` has for it, and else by
        magnitude; the report says which.
    clip_limit : float, optional
        As for :func:`quantize`, for every tensor.
    importance : path, optional
        A file of floats, one tensor for each that it weights, under the same name: the mean squares of the inputs of its layer, of shape
        (columns,), of a stack of experts (experts, columns), or one number for each element. An importance matrix of llama.cpp in GGUF, of
        which the sums ``NAME.in_sum2`` are taken, or in its first form, ``imatrix.dat``.
    include, exclude : sequence of str
        Shell patterns of names: only tensors that match one of ``include``, none that matches one of ``exclude``.
    keep : sequence of str
        Names of tensors to copy unchanged.
    rules : mapping or sequence of pairs, optional
        Patterns of names, each with ``"keep"`` or a format and its options: ``{"*.ffn_down*": "gguf:q4_k", "*": "gguf:q4_0"}``,
        ``{"*.mlp.*": "int4,group_size=64"}``. Of a tensor that is to be quantized the first that matches decides what it becomes, and the
        report names it. A folder holds one format, in groups of several sizes where its config can say so (``compressed-tensors``,
        ``mlx``).
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
        Keep what is done if the work ends early, as ``.NAME.partial`` beside the target, and take up what an earlier call with the same
        source and the same arguments left there: whole tensors of a file, whole shards of a folder. The report knows no errors of what was
        kept. Not for ONNX.
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
    if resume and _onnx.is_onnx(source):
        raise ValueError("resume is True; an ONNX file is made at once, and anew where that ended early: expected resume=False")
    wanted = asked(
        format=format,
        group_size=group_size,
        scale_dtype=scale_dtype,
        method=method,
        clip_limit=clip_limit,
        importance=importance,
        nonfinite=nonfinite,
        include=include,
        exclude=exclude,
        keep=keep,
        rules=rules,
        fallback=fallback,
        requantize=requantize,
        dequantize=dequantize,
        dtype=dtype,
        arch=arch,
        names=names,
        shard_size=shard_size,
        **options,
    )
    wanted.check(source, target)
    limit = allowed_memory(memory_limit)
    started = time.perf_counter()
    made = wanted.carry_out(source, None, limit=limit, threads=threads)
    if target is not None and not dry_run:
        check_space(target, sum(row[7][1] for row in made.rows) - (_kept(target) if resume else 0))
        work: Work = "rest" if resume else "once"
        with shown_progress(progress) as callback:
            made = wanted.carry_out(source, target, limit=limit, work=work, overwrite=overwrite, threads=threads, progress=callback)
    report = reported(source, made.path or target, dry_run, made, started)
    replaced = sum(tensor.replaced for tensor in report.tensors)
    if replaced:
        elements = "element was" if replaced == 1 else "elements were"
        warnings.warn(f"{replaced} {elements} not finite and replaced, as nonfinite= asks", _core.QuantizeWarning, stacklevel=2)
    return report


def asked(
    *,
    scale_dtype: DTypeLike | Literal["bfloat16"] | None = None,
    dtype: DTypeLike | Literal["bfloat16"] | None = None,
    importance: str | os.PathLike[str] | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    keep: Sequence[str] = (),
    rules: Rules = (),
    format: str | None = None,
    group_size: GroupSize | None = None,
    method: Method = "nearest",
    clip_limit: float | None = None,
    nonfinite: NonFinite = "raise",
    fallback: str | None = None,
    requantize: bool = False,
    dequantize: bool = False,
    arch: str | None = None,
    names: str | os.PathLike[str] | None = None,
    shard_size: int | None = None,
    **options: Any,
) -> Wanted:
    """Give arguments of :func:`convert` as plain data."""
    if names is not None and arch is None:
        raise ValueError("names is given; it is for a GGUF file that is made of another file: say arch too")
    check_number("clip_limit", clip_limit, "0 to 1, such as 0.05")
    return Wanted(
        format=format,
        group_size=group_size,
        scale_dtype=None if scale_dtype is None else float_dtype(scale_dtype)[0],
        method=method,
        clip_limit=None if clip_limit is None else float(clip_limit),
        importance=None if importance is None else os.fspath(importance),
        nonfinite=nonfinite,
        include=_names(include),
        exclude=_names(exclude),
        keep=_names(keep),
        rules=listed(rules),
        fallback=fallback,
        requantize=requantize,
        dequantize=dequantize,
        dtype=None if dtype is None else float_dtype(dtype)[0],
        arch=arch,
        names=None if names is None else _name_map(names),
        shard_size=shard_size,
        options=options,
    )


def _name_map(path: str | os.PathLike[str]) -> dict[str, str]:
    """Read the new names of tensors."""
    text = Path(path).read_bytes()
    try:
        return _core.name_map(text)
    except ValueError as error:
        raise ValueError(f"names is {os.fspath(path)!r}, which {error}") from None


def _names(given: Sequence[str]) -> list[str]:
    """Give a list; a single text is one name."""
    return [given] if isinstance(given, str) else list(given)


def reported(source: str, target: str | None, dry_run: bool, made: Made, started: float) -> ConvertReport:
    """Give what the core says of a job as a report."""
    tensors: list[TensorReport] = []
    errors: list[tuple[str, Errors]] = []
    for name, shape, dtype, action, reason, rule, tensor, nbytes, becomes, fallback, done in made.rows:
        sums, replaced, weights, sha256, seconds = done
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
                rule=rule,
                sha256=sha256,
                seconds=seconds,
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
        memory=made.memory,
        tensors=tuple(tensors),
    )


def _kept(target: str) -> int:
    """Give the bytes of the disk that what an earlier call left may take."""
    path = Path(os.path.realpath(target))
    found = path.with_name(f".{path.name}.partial").rglob("*")  # as the core calls it
    return sum(file.stat().st_size for file in found if file.is_file())


def check_space(target: str, needed: int) -> None:
    """Refuse a job that the disk has no room for before it begins."""
    free = shutil.disk_usage(os.path.dirname(os.path.realpath(target))).free
    if free < needed:
        raise OSError(errno.ENOSPC, f"the new file needs {amount(needed)}, the disk has {amount(free)} free", target)
