"""The Python interface against the machine's limit in the same run.

Four tables: a large array (reused and fresh output, one and all threads), arrays that a cache holds, what a call costs, and
what the import costs. In a table everything is sampled in turn, and times are medians. A ratio is the time of the plain loop with the same traffic (its best median over threads and kinds of stores) over ours; for fresh
output the loop writes to memory that the system has yet to give.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from limit import DECODE, ENCODE, Limit, aligned, interleaved, kinds, one_and_all, print_table

import quantize as qz

COLUMNS = 4096


class Case(NamedTuple):
    """A format with a group size."""

    format: str
    group: int

    def __str__(self) -> str:
        return f"{self.format} {self.group}"

    def quantize(self, x: np.ndarray, **arguments: Any) -> qz.QuantizedArray:
        return qz.quantize(x, self.format, group_size=self.group, **arguments)


def cases(only: str) -> list[Case]:
    """Return every 4-bit format, with groups of 32 and 128 where it takes any."""
    table = [info for info in qz.formats() if not info.companion]
    found = [Case(info.name, group) for info in table for group in ((32, 128) if info.any_group_size else (info.group_size,))]
    return [case for case in found if only in str(case)]


def weights(mebibytes: float) -> np.ndarray:
    """Return bell-shaped numbers in rows of 4096, the same in every run."""
    x = aligned(int(mebibytes * 2**20) // 4)
    some = np.random.default_rng(0).standard_normal(min(x.size, 2**20), np.float32)
    x[:] = np.resize(some, x.size)
    return x.reshape(-1, COLUMNS)


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call; what it returns is given back to the system only afterwards."""
    start = time.perf_counter()
    result = work()
    stop = time.perf_counter()
    del result
    return stop - start


def large(limit: Limit, only: str, mebibytes: int, repeats: int) -> list[dict[str, Any]]:
    """Encode and decode with reused and with fresh output, on one and on all threads."""
    x = weights(mebibytes)
    eighth, decoded = aligned(x.size // 8), aligned(x.size).reshape(x.shape)
    figures = [figure for case in cases(only) for figure in large_case(limit, case, x, eighth, decoded, repeats)]
    heading(f"{mebibytes} MiB of float32, GB/s of float32")
    rows = [
        [f["case"], f["what"], *(f"{x.nbytes / t / 1e9:.1f}" for t in (*f["seconds"], f["limit"])), *(f"{r:.2f}" for r in f["ratios"])]
        for f in figures
    ]
    threads = one_and_all()
    print_table(["format", "what", *(f"{t} t" for t in threads), "limit", *(f"ratio {t} t" for t in threads)], rows)
    return figures


def large_case(limit: Limit, case: Case, x: np.ndarray, eighth: np.ndarray, decoded: np.ndarray, repeats: int) -> Iterator[dict[str, Any]]:
    q = case.quantize(x)
    parts = ones_like(q)
    works: dict[str, tuple[Callable[..., float], Callable[..., object]]] = {
        "encode out=": (partial(limit.reused, ENCODE, x, eighth), partial(case.quantize, x, out=parts)),
        "encode fresh": (partial(limit.fresh, ENCODE, x), partial(case.quantize, x)),
        "decode out=": (partial(limit.reused, DECODE, eighth, decoded), partial(q.dequantize, out=decoded)),
        "decode fresh": (partial(limit.fresh, DECODE, eighth), q.dequantize),
    }
    jobs: list[Callable[[], float]] = []
    for loop, work in works.values():
        jobs += [partial(loop, streamed=streamed, threads=threads) for streamed, threads in kinds()]
        jobs += [partial(seconds, partial(work, threads=threads)) for threads in one_and_all()]
    medians = iter(interleaved(jobs, repeats))
    for what in works:
        best = min(next(medians) for _ in kinds())
        times = [next(medians) for _ in one_and_all()]
        yield {"case": str(case), "what": what, "seconds": times, "limit": best, "ratios": [best / t for t in times]}


def ones_like(q: qz.QuantizedArray) -> dict[str, np.ndarray]:
    """Return parts to write into, all of their pages touched."""
    return {name: np.ones_like(part) for name, part in q.parts.items()}


def small(limit: Limit, only: str, repeats: int) -> list[dict[str, Any]]:
    """Encode and decode arrays that a cache holds, into reused output, on as many threads as the package takes."""
    figures = [figure for kibibytes in (64, 1024) for case in cases(only) for figure in small_case(limit, case, kibibytes, repeats)]
    heading("arrays in cache, out=")
    rows = []
    for f in figures:
        elements = f["kib"] * 256
        speed = [f"{f['seconds'] * 1e6:.1f}", f"{f['seconds'] * 1e9 / elements:.3f}", f"{4e-9 * elements / f['seconds']:.1f}"]
        rows.append([f["case"], f["what"], f"{f['kib']} KiB", *speed, f"{f['ratio']:.2f}"])
    print_table(["format", "what", "size", "us", "ns/element", "GB/s", "ratio"], rows)
    return figures


def small_case(limit: Limit, case: Case, kibibytes: int, repeats: int) -> Iterator[dict[str, Any]]:
    # Words of GPTQ hold eight rows.
    x = weights(kibibytes / 1024).reshape(-1, COLUMNS // 2)
    eighth, decoded = aligned(x.size // 8), aligned(x.size).reshape(x.shape)
    q = case.quantize(x)
    turns = 4096 // kibibytes
    loop = partial(limit.reused, streamed=False, threads=1, repeats=turns)
    jobs = [
        partial(loop, ENCODE, x, eighth),
        partial(per_turn, partial(case.quantize, x, out=ones_like(q)), turns),
        partial(loop, DECODE, eighth, decoded),
        partial(per_turn, partial(q.dequantize, out=decoded), turns),
    ]
    encode_limit, encode, decode_limit, decode = interleaved(jobs, repeats)
    for what, best, time_ in (("encode", encode_limit, encode), ("decode", decode_limit, decode)):
        yield {"case": str(case), "what": what, "kib": kibibytes, "seconds": time_, "limit": best, "ratio": best / time_}


def per_turn(work: Callable[[], object], turns: int) -> float:
    """Return the seconds of one of many calls in a row."""
    start = time.perf_counter()
    for _ in range(turns):
        work()
    return (time.perf_counter() - start) / turns


def overhead(only: str, repeats: int) -> list[dict[str, Any]]:
    """Time calls on 64 x 64 arrays, where the work itself is a microsecond or two."""
    x = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    figures = []
    for case in (case for case in cases(only) if case.group <= x.shape[1] and takes(case, x)):
        q = case.quantize(x)
        works: dict[str, Callable[[], object]] = {
            "encode": partial(qz.quantize, x, case.format, group_size=case.group),
            "encode out=": partial(qz.quantize, x, case.format, group_size=case.group, out=ones_like(q)),
            "decode": q.dequantize,
            "decode out=": partial(q.dequantize, out=np.ones_like(x)),
        }
        times = interleaved([partial(per_turn, work, 500) for work in works.values()], max(repeats, 25))
        figures.append({"case": str(case), "microseconds": {name: t * 1e6 for name, t in zip(works, times, strict=True)}})
    heading("a call on 64 x 64, microseconds")
    rows = [[f["case"], *(f"{t:.1f}" for t in f["microseconds"].values())] for f in figures]
    print_table(["format", "encode", "encode out=", "decode", "decode out="], rows)
    return figures


def takes(case: Case, x: np.ndarray) -> bool:
    """Return whether rows of this length are whole groups, and blocks of groups."""
    try:
        case.quantize(x)
    except ValueError:
        return False
    return True


def imports(repeats: int) -> dict[str, float]:
    """Time the import in fresh processes that have numpy already, against one that imports nothing more."""
    command = "import time, numpy; start = time.perf_counter(); import quantize; print(time.perf_counter() - start)"
    run = [sys.executable, "-c", command]
    times = [float(subprocess.run(run, check=True, capture_output=True, text=True).stdout) for _ in range(max(repeats, 9))]
    figures = {"median": statistics.median(times) * 1e3, "best": min(times) * 1e3}
    heading(f"import quantize on top of numpy: {figures['median']:.1f} ms (best {figures['best']:.1f})")
    return figures


def heading(text: str) -> None:
    print(f"\n{text}")


def machine() -> dict[str, Any]:
    """Return what the figures were made on."""
    info = Path("/proc/cpuinfo")
    names = [line.split(": ", 1)[1] for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return {
        "cpu": names[0] if names else platform.processor(),
        "threads": one_and_all()[-1],
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "level": qz.cpu_features().level,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "quantize": qz.__version__,
    }


def command(doc: str, tables: Callable[[Limit, argparse.Namespace], dict[str, Any]]) -> None:
    """Read the command line of a script with this docstring, name the machine, make the tables, and write their figures to ``--json``."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--size", type=int, default=256, help="MiB of the large array, in float32")
    parser.add_argument("--repeats", type=int, default=9, help="samples of everything")
    parser.add_argument("--filter", default="", help="only what has this in its name, formats with their group size")
    parser.add_argument("--json", help="file that the figures go to")
    options = parser.parse_args()
    figures: dict[str, Any] = {"machine": machine(), "size": options.size, "repeats": options.repeats}
    print(", ".join(f"{name} {value}" for name, value in figures["machine"].items()))
    figures |= tables(Limit(), options)
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")


def tables(limit: Limit, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "large": large(limit, options.filter, options.size, options.repeats),
        "small": small(limit, options.filter, options.repeats),
        "overhead": overhead(options.filter, options.repeats),
        "import": imports(options.repeats),
    }


if __name__ == "__main__":
    command(__doc__, tables)
