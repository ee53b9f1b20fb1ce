"""A conversion that several processes share, on one machine or many: a plan, its parts, the end.

A part is some of the shards of the new folder. A shard appears in the folder ``.NAME.partial`` beside the target when it is whole, and its
bytes do not depend on who makes it; so a part may be done again, or twice at a time, and nobody has to be told who does which.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from quantize import _core
from quantize._files.conversion import ConvertReport, asked, check_space, reported
from quantize._files.progress import Progress, shown_progress
from quantize._files.rules import listed
from quantize._files.wanted import Made, Wanted, allowed_memory

VERSION = 1
"""Of a plan's file."""


@dataclass(frozen=True)
class SharedPlan:
    """A conversion in parts. Made by :func:`plan`, which writes it to a file."""

    version: int
    """Of the file."""
    quantize: str
    """The version of this package."""
    source: str
    """The folder that is read."""
    target: str
    """The folder that is made."""
    wanted: dict[str, Any]
    """The arguments of :func:`convert` that decide the bytes."""
    fingerprint: str
    """Hash of what the job is told by: headers and sizes of the source, what becomes of each tensor."""
    shards: tuple[str, ...]
    """The files of the new folder."""
    part_of: tuple[int, ...]
    """The part that makes each of them, from 0 on."""
    parts: int
    """How many parts there are."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON."""
        return asdict(self)


def plan(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    parts: int,
    **wanted: Any,
) -> SharedPlan:
    """Plan a conversion of a Hugging Face folder in parts, which may run on several machines that see the same files.

    :func:`convert_part` does a part, in any order and at any time, :func:`finish` makes the folder of them. It is the folder that
    :func:`convert` makes, byte for byte.

    Parameters
    ----------
    source, target : path
        As for :func:`convert`: folders.
    path : path
        Where the plan is written, as JSON; no file may be there.
    parts : int
        At most as many as the new folder has shards; a smaller ``shard_size`` makes more.
    **wanted
        The arguments of :func:`convert` that decide what is made: ``format``, ``group_size``, ``rules``, ``shard_size`` ...

    Returns
    -------
    SharedPlan

    Raises
    ------
    ValueError
        The source is one file, or there are fewer shards than parts; whatever :func:`convert` refuses.
    PolicyError
        A tensor does not fit its format.
    OSError
        The plan is there already, or cannot be written.

    Examples
    --------
    >>> import numpy as np, pathlib, quantize as qz, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     model, name = pathlib.Path(folder, "model"), "model.layers.0.mlp.up_proj.weight"
    ...     model.mkdir()
    ...     length = (model / "config.json").write_text("{}")
    ...     np.save(f"{folder}/{name}.npy", np.ones((16, 128), np.float32))
    ...     copied = qz.convert(f"{folder}/{name}.npy", model / "model.safetensors", keep=[name])
    ...     shared = qz.plan(model, f"{folder}/out", f"{folder}/plan.json", parts=1, format="awq")
    ...     part = qz.convert_part(f"{folder}/plan.json", 0)
    ...     whole = qz.finish(f"{folder}/plan.json")
    >>> shared.shards, part.tensors[0].format
    (('model.safetensors',), 'awq')
    """
    source, target = os.fspath(source), os.fspath(target)
    if parts < 1:
        raise ValueError(f"parts is {parts}; expected 1 or more")
    if not os.path.isdir(source):
        raise ValueError(
            f"source is {source!r}, one file; a part is some shards of a new folder: convert the file at once, "
            "or put it into a folder as model.safetensors with its config.json"
        )
    own = asked(**wanted)
    if own.importance is not None:
        own = replace(own, importance=os.path.abspath(own.importance))
    own.check(source, target)
    made = own.carry_out(source, None, limit=allowed_memory(None), work="shards")
    fingerprint, shards, shard_of = _job(made)
    refused = next((row for row in made.rows if row[3] == "refuse"), None)
    if refused is not None:
        raise _core.PolicyError(f"{source}: tensor {refused[0]!r}: {refused[4]}")
    if parts > len(shards):
        count = "1 shard" if len(shards) == 1 else f"{len(shards)} shards"
        raise ValueError(f"parts is {parts}; the new folder has {count}: take at most so many, or a smaller shard_size")
    sizes = [0] * len(shards)
    for row, shard in zip(made.rows, shard_of, strict=True):
        sizes[shard] += row[7][0]
    shared = SharedPlan(
        version=VERSION,
        quantize=_core.__version__,
        source=os.path.abspath(source),
        target=os.path.abspath(target),
        wanted=asdict(own),
        fingerprint=fingerprint,
        shards=tuple(shards),
        part_of=tuple(_balanced(sizes, parts)),
        parts=parts,
    )
    with open(path, "x", encoding="utf-8") as file:
        file.write(json.dumps(shared.to_dict(), indent=2) + "\n")
    return shared


def convert_part(
    path: str | os.PathLike[str],
    part: int,
    *,
    memory_limit: int | None = None,
    threads: int | None = None,
    progress: Progress | bool = False,
) -> ConvertReport:
    """Make the shards of one part of a plan. Those that are there already stay.

    Parameters
    ----------
    path : path
        The plan that :func:`plan` wrote.
    part : int
        Which part, from 0 on.
    memory_limit, threads, progress
        As for :func:`convert`; they may differ from part to part.

    Returns
    -------
    ConvertReport
        Of the tensors of this part.

    Raises
    ------
    ValueError
        There is no such part, or the source is not the one of the plan.
    CorruptFileError
        The file is no plan.
    PolicyError, OSError
        As for :func:`convert`.

    Examples
    --------
    A whole one stands at :func:`plan`.

    >>> report = qz.convert_part("plan.json", 3)  # doctest: +SKIP
    """
    started = time.perf_counter()
    shared, wanted = _read(path)
    if not 0 <= part < shared.parts:
        raise ValueError(f"part is {part}; the plan has parts 0 to {shared.parts - 1}")
    limit = allowed_memory(memory_limit)
    made = _same_job(path, shared, wanted, limit)
    _, _, shard_of = _job(made)
    mine = [shard for shard, own in enumerate(shared.part_of) if own == part]
    is_mine = [shard in mine for shard in shard_of]
    check_space(shared.target, sum(row[7][1] for row, own in zip(made.rows, is_mine, strict=True) if own))
    with shown_progress(progress) as callback:
        made = wanted.carry_out(shared.source, shared.target, limit=limit, work="shards", shards=mine, threads=threads, progress=callback)
    rows = [row for row, own in zip(made.rows, is_mine, strict=True) if own]
    return reported(shared.source, shared.target, False, made._replace(rows=rows), started)


def finish(path: str | os.PathLike[str]) -> ConvertReport:
    """Make the folder of a plan whose parts are all done: index, config, other files, and its name.

    Parameters
    ----------
    path : path
        The plan that :func:`plan` wrote.

    Returns
    -------
    ConvertReport
        Of all tensors; the errors are in the reports of the parts.

    Raises
    ------
    ValueError
        A part is not done, or the source is not the one of the plan.
    CorruptFileError
        The file is no plan.
    OSError
        A part is still at work, or a file cannot be written.

    Examples
    --------
    A whole one stands at :func:`plan`.

    >>> report = qz.finish("plan.json")  # doctest: +SKIP
    """
    started = time.perf_counter()
    shared, wanted = _read(path)
    limit = allowed_memory(None)
    _same_job(path, shared, wanted, limit)
    target = Path(shared.target)
    partial = target.with_name(f".{target.name}.partial")  # as the core calls it
    missing = sorted({part for name, part in zip(shared.shards, shared.part_of, strict=True) if not (partial / name).exists()})
    if missing:
        raise ValueError(f"part {', '.join(map(str, missing))} of the plan is not done; expected all shards in {partial}")
    made = wanted.carry_out(shared.source, shared.target, limit=limit, work="finish")
    return reported(shared.source, shared.target, False, made, started)


def _balanced(sizes: list[int], parts: int) -> list[int]:
    """Give each shard a part: from the largest on, to the part that has least."""
    loads, part_of = [0] * parts, [0] * len(sizes)
    for shard in sorted(range(len(sizes)), key=lambda shard: (-sizes[shard], shard)):
        part = min(range(parts), key=lambda part: (loads[part], part))
        part_of[shard] = part
        loads[part] += max(sizes[shard], 1)  # so that no part is left without a shard
    return part_of


def _job(made: Made) -> tuple[str, list[str], list[int]]:
    assert made.job is not None  # the core gives it for a folder that is not made at once
    text, shards, shard_of = made.job
    return hashlib.sha256(text.encode()).hexdigest(), shards, shard_of


def _read(path: str | os.PathLike[str]) -> tuple[SharedPlan, Wanted]:
    try:
        shared = SharedPlan(**json.loads(Path(path).read_text(encoding="utf-8")))
        wanted = Wanted(**shared.wanted)
        wanted = replace(wanted, rules=listed(wanted.rules))
        part_of = tuple(map(int, shared.part_of))
        if len(part_of) != len(shared.shards) or set(part_of) != set(range(shared.parts)):
            raise ValueError("its parts do not cover its shards")
        shared = replace(shared, shards=tuple(map(str, shared.shards)), part_of=part_of)
    except (ValueError, TypeError) as error:
        raise _core.CorruptFileError(f"{os.fspath(path)}: no plan as 'quantize plan' writes it: {error}") from error
    if (shared.version, shared.quantize) != (VERSION, _core.__version__):
        raise ValueError(
            f"{os.fspath(path)}: a plan of version {shared.quantize} of this package; this is {_core.__version__}: make it anew"
        )
    if os.path.isdir(shared.target) and os.listdir(shared.target):
        raise FileExistsError(errno.EEXIST, "the folder is there: the plan is carried out", shared.target)
    return shared, wanted


def _same_job(path: str | os.PathLike[str], shared: SharedPlan, wanted: Wanted, limit: int) -> Made:
    made = wanted.carry_out(shared.source, None, limit=limit, work="shards")
    fingerprint, shards, _ = _job(made)
    if fingerprint != shared.fingerprint or tuple(shards) != shared.shards:
        raise ValueError(
            f"{shared.source}: not what it was when {os.fspath(path)} was made: other headers, sizes or files; make the plan anew"
        )
    return made
