"""The machine's limit, from Python: the plain loops of ``benches/limit``, compiled for this machine and called by ctypes.

Run as a script it prints the table of loops; see ``--help``.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

SOURCE = Path(__file__).parents[1] / "limit" / "mod.rs"
LINE = 64


class Traffic(NamedTuple):
    """Cache lines that a step reads and writes."""

    read: int
    write: int


ENCODE = Traffic(8, 1)
DECODE = Traffic(1, 8)
TABLE = {
    "read": Traffic(8, 0),
    "read 8 + write 1": ENCODE,
    "read 2 + write 1": Traffic(2, 1),
    "copy": Traffic(1, 1),
    "read 1 + write 2": Traffic(1, 2),
    "read 1 + write 8": DECODE,
    "write": Traffic(0, 8),
}


class Limit:
    """The compiled loops."""

    def __init__(self) -> None:
        with tempfile.TemporaryDirectory() as directory:
            library = Path(directory) / "limit.so"
            command = ["rustc", "--edition", "2024", "--crate-type", "cdylib", "--crate-name", "limit", "-O", "-C", "target-cpu=native"]
            subprocess.run([*command, "-o", library, SOURCE], check=True)
            loops = ctypes.CDLL(str(library))
        count, flag, address = ctypes.c_size_t, ctypes.c_bool, ctypes.c_void_p
        self._reused, self._fresh = loops.limit_reused, loops.limit_fresh
        self._reused.restype = self._fresh.restype = ctypes.c_double
        self._reused.argtypes = [count, count, flag, count, address, address, count, count]
        self._fresh.argtypes = [count, count, flag, count, address, count, flag]

    def reused(self, traffic: Traffic, source: np.ndarray, target: np.ndarray, *, streamed: bool, threads: int, repeats: int = 1) -> float:
        """Return the seconds of one run that reads ``source`` and writes ``target``, which exist."""
        steps = min(array.nbytes // (LINE * lines) for array, lines in zip((source, target), traffic, strict=True) if lines)
        seconds = self._reused(*traffic, streamed, threads, source.ctypes.data, target.ctypes.data, steps, repeats)
        return _checked(seconds, traffic)

    def fresh(self, traffic: Traffic, source: np.ndarray, *, streamed: bool, threads: int, huge: bool = True) -> float:
        """Return the seconds of one run that reads ``source`` and writes memory that the system has yet to give."""
        steps = source.nbytes // (LINE * traffic.read)
        return _checked(self._fresh(*traffic, streamed, threads, source.ctypes.data, steps, huge), traffic)


def _checked(seconds: float, traffic: Traffic) -> float:
    if seconds != seconds:
        raise ValueError(f"no loop of {traffic}, or an array that does not begin at a multiple of {LINE}")
    return seconds


def aligned(count: int, dtype: np.dtype | type = np.float32) -> np.ndarray:
    """Return an array of ones at a multiple of 64, all of its pages touched."""
    itemsize = np.dtype(dtype).itemsize
    memory = np.ones(count * itemsize + LINE, np.uint8)
    start = -memory.ctypes.data % LINE
    array = memory[start : start + count * itemsize].view(dtype)
    array[...] = 1
    return array


def all_threads() -> int:
    """Return how many CPUs this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def one_and_all() -> list[int]:
    """Return 1 and the number of CPUs, once where they are the same."""
    return sorted({1, all_threads()})


def interleaved(jobs: Iterable[Callable[[], float]], repeats: int) -> list[float]:
    """Return the median seconds of each job, all of them sampled in turn; a job returns the seconds that it took."""
    jobs = list(jobs)
    samples = [[job() for job in jobs] for _ in range(repeats)]
    return [statistics.median(column) for column in zip(*samples, strict=True)]


def kinds() -> list[tuple[bool, int]]:
    """Return all pairs of ``streamed`` and ``threads``."""
    return list(product((False, True), one_and_all()))


def print_table(headers: list[str], rows: list[list[str]]) -> None:
    """Print columns, the first left-aligned, the others right."""
    widths = [max(map(len, column)) for column in zip(headers, *rows, strict=True)]
    for row in (headers, *rows):
        first, *rest = (cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        print("  ".join([first, *rest]).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description="Plain loops with the memory traffic of our jobs, GB/s of the larger side.")
    parser.add_argument("--size", type=int, default=256, help="MiB of the larger side")
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    limit, nbytes = Limit(), options.size << 20
    source, target = aligned(nbytes // 4), aligned(nbytes // 4)
    rows = []

    def add(name: str, jobs: list[Callable[[], float]]) -> None:
        rows.append([name, *(f"{nbytes / seconds / 1e9:.1f}" for seconds in interleaved(jobs, options.repeats))])

    for name, traffic in TABLE.items():
        lines = [nbytes * side // max(traffic) // 4 for side in traffic]
        arrays = (source[: lines[0]], target[: lines[1]])
        add(
            name,
            [lambda s=s, t=t, traffic=traffic, arrays=arrays: limit.reused(traffic, *arrays, streamed=s, threads=t) for s, t in kinds()],
        )
    for name, traffic in {"fresh read 8 + write 1": ENCODE, "fresh read 1 + write 8": DECODE}.items():
        read = source[: nbytes * traffic.read // max(traffic) // 4]
        for huge, pages in ((True, "2 MiB"), (False, "4 KiB")):
            add(
                f"{name}, {pages} pages",
                [
                    lambda s=s, t=t, r=read, h=huge, traffic=traffic: limit.fresh(traffic, r, streamed=s, threads=t, huge=h)
                    for s, t in kinds()
                ],
            )
    print_table(["loop", *(f"{'streamed' if s else 'normal'} {t} t" for s, t in kinds())], rows)


if __name__ == "__main__":
    main()
