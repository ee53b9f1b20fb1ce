"""What is asked of a conversion, and the core at work on it."""

from __future__ import annotations

import os
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from quantize import _core, _onnx
from quantize._files.checkpoint import Checkpoint
from quantize._files.rules import Parsed, parsed
from quantize._threads import requested

if TYPE_CHECKING:
    from quantize._files.progress import Progress
    from quantize._types import GroupSize, Method, NonFinite

Work = Literal["once", "rest", "shards", "finish"]
"""What of a job is done: all; what an earlier job left undone; some shards; what is left when all shards are done."""


class Made(NamedTuple):
    """What the core says of a job."""

    rows: list[tuple[Any, ...]]
    """One for each tensor."""
    memory: int
    """Bytes that tensors take at a time."""
    job: tuple[str, list[str], list[int]] | None
    """What the job is told by, the names of its shards, and the shard of each tensor; of a folder that is not made at once."""
    path: str | None
    """Of what was made: the first of several files has a name of its own."""


@dataclass(frozen=True)
class Wanted:
    """The arguments of a conversion that decide its bytes, as plain data."""

    format: str | None = None
    group_size: GroupSize | None = None
    scale_dtype: str | None = None
    method: Method = "nearest"
    clip_limit: float | None = None
    importance: str | None = None
    nonfinite: NonFinite = "raise"
    include: list[str] = field(default_factory=list[str])
    exclude: list[str] = field(default_factory=list[str])
    keep: list[str] = field(default_factory=list[str])
    rules: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    fallback: str | None = None
    requantize: bool = False
    dequantize: bool = False
    dtype: str | None = None
    arch: str | None = None
    names: dict[str, str] | None = None
    shard_size: int | None = None
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    def check(self, source: str, target: str | None) -> None:
        """Refuse arguments that do not go together."""
        has_options = self.group_size is not None or self.scale_dtype is not None or self.options or self.method != "nearest"
        if self.dequantize and has_options:
            raise ValueError("group_size, scale_dtype, method or an option is given; expected none with dequantize=True, the file has them")
        if self.dtype is not None and not self.dequantize:
            raise ValueError("dtype is given; expected it only with dequantize=True")
        if self.method not in ("nearest", "optimal", "fast"):
            raise ValueError(f"method is {self.method!r}; expected 'nearest', 'optimal' or 'fast'")
        if self.clip_limit is not None:
            if self.method != "optimal":
                raise ValueError(f'clip_limit is given; method="{self.method}" has no use for it: say method="optimal"')
            if not 0 <= self.clip_limit <= 1:
                raise ValueError(f"clip_limit is {self.clip_limit}; expected a number from 0 to 1, such as 0.05")
        if self.importance is not None and self.method == "nearest":
            raise ValueError('importance is given; method="nearest" has no use for it: say method="optimal"')
        if self.shard_size is not None and self.shard_size < 1:
            raise ValueError(f"shard_size is {self.shard_size}; expected 1 or more bytes")
        if self.arch is not None and _onnx.is_onnx(source):
            raise ValueError("arch is given; it is for a GGUF file that is made of a safetensors, npy or npz file")
        if target is not None and _onnx.is_onnx(source) != _onnx.is_onnx(target):
            raise ValueError(f"target is {target!r}; an ONNX file becomes an ONNX file, which ends in .onnx, and no other file does")
        if _onnx.is_onnx(source):
            if self.scale_dtype is not None or self.dtype is not None:
                raise ValueError(
                    "scale_dtype or dtype is given; expected none for an ONNX file: floats are of the dtype that its graph has there"
                )
            if self.fallback is not None:
                raise ValueError("fallback is given; it is for GGUF files")

    def carry_out(
        self,
        source: str,
        target: str | None,
        *,
        limit: int,
        work: Work = "once",
        shards: list[int] | None = None,
        overwrite: bool = False,
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Made:
        """Have the core plan the conversion, and do it where there is a target."""
        if _onnx.is_onnx(source):
            with Checkpoint(self.importance) if self.importance else nullcontext() as found:
                format, rules = self._format_and_rules()
                wanted = _onnx.How(
                    format=None if self.dequantize else format,
                    group_size=self.group_size,
                    options=self.options,
                    method=self.method,
                    clip_limit=self.clip_limit,
                    importance=found,
                    nonfinite=self.nonfinite,
                    include=self.include,
                    exclude=self.exclude,
                    keep=self.keep,
                    rules=rules,
                    requantize=self.requantize,
                    threads=requested(threads),
                )
                return Made(*_onnx.convert(source, target, wanted, limit, overwrite, progress), None, target)
        format, given = self._format_and_rules()
        rows, memory, job, path = _core.convert(
            source,
            target,
            None if self.dequantize else format,
            self.group_size,
            self.dtype if self.dequantize else self.scale_dtype,
            self.options or None,
            self.method,
            self.clip_limit,
            self.importance,
            self.nonfinite,
            self.include,
            self.exclude,
            self.keep,
            given,
            self.fallback,
            self.requantize,
            self.arch,
            self.names or {},
            self.shard_size,
            limit,
            work,
            shards or [],
            overwrite,
            requested(threads),
            progress,
        )
        return Made(rows, memory, job, None if path is None else os.fspath(path))

    def _format_and_rules(self) -> tuple[str, list[Parsed]]:
        """Give the format of what no rule decides about, and the rules; without such a format the rest is kept."""
        given = [parsed(rule) for rule in self.rules]
        format = self.format or next((wish[0] for _, wish in given if wish), None)
        if given and format is not None and self.format is None:
            given.append(("*", None))
        return format or "int4", given


def allowed_memory(given: int | None) -> int:
    """Give a limit that is allowed; by default a quarter of the memory of the machine or of its control group, at most 2 GiB."""
    if given is not None:
        if given < 1:
            raise ValueError(f"memory_limit is {given}; expected 1 or more bytes")
        return given
    found = [8 << 30]
    with suppress(OSError, ValueError, AttributeError):  # not every system tells
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # the file has no number where there is no limit
            found.append(int(Path(path).read_text()))
    return min(found) // 4
