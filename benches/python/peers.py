"""The package beside its peers, each as a ratio to the machine's limit in the same run.

A peer does what a format of ours does: it gets the same floats, and its bytes or its floats have to be the same as ours before
it is timed (where its scheme is another, its floats have to be near the input, and the table says how near). Everything that
has to do with a format is sampled in turn, and times are medians. What is not installed is listed as such.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from interface import machine, ones_like, weights
from limit import DECODE, ENCODE, Limit, aligned, all_threads, kinds, print_table
from peer import OURS, Problem, Work
from report import HEADERS, cells, draw, size_name

import quantize as qz

# Names on the package index; the file of each is peer/<name>.py.
PEERS = (
    "numpy",
    "numba",
    "gguf",
    "pywhispercpp",
    "onnxruntime",
    "ml_dtypes",
    "faiss-cpu",
    "mlx",
    "torch",
    "torchao",
    "bitsandbytes",
    "compressed-tensors",
    "nvidia-modelopt",
    "autoawq",
    "auto-gptq",
    "gptqmodel",
)
OPTIONS: dict[str, dict[str, Any]] = {"int4": {"scale_dtype": "float32"}, "uint4": {"scale_dtype": "float32"}}
SLOW = 1.0  # a call of more seconds is sampled three times only
UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def size(text: str) -> int:
    """Return the bytes that a size like ``64K`` or ``1G`` names."""
    return int(text[:-1]) * UNITS[text[-1].upper()]


def load(names: list[str]) -> tuple[dict[str, ModuleType], dict[str, str]]:
    """Return the files of those peers that are there, and for every peer its version or why it is not."""
    modules, states = {}, {}
    for name in names:
        try:
            states[name] = version(name)
            with quiet():
                modules[name] = importlib.import_module(f"peer.{name.replace('-', '_')}")
        except PackageNotFoundError:
            states[name] = "not installed"
        except Exception as error:  # whatever a package does wrong on its import
            states[name] += f", NOT MEASURED, it cannot be imported: {str(error).splitlines()[0]}"
    return modules, states


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what packages print away from the tables."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable()
        yield
        logging.disable(logging.NOTSET)


def problems(nbytes: int, only: list[str]) -> Iterator[Problem]:
    """Yield every 4-bit format with its own group size, all on the same floats."""
    x = weights(nbytes / 2**20)
    x = x.reshape(-1, min(x.shape[1], x.size // 64))  # 64 rows at least, which every layout can have
    for info in qz.formats():
        if not info.companion and any(text in info.name for text in only):
            yield Problem(info.name, x, qz.quantize(x, info.name, **OPTIONS.get(info.name, {})))


def check(problem: Problem, name: str, work: Work) -> tuple[str, float]:
    """Return in which way a result is right, and the seconds of that first call; raise where it is wrong."""
    start = time.perf_counter()
    returned = work.run()
    seconds = time.perf_counter() - start
    got = work.result(returned)
    job = f"{name}: {work.what} of {problem.format}"
    if not isinstance(got, np.ndarray):
        wrong = [part for part, array in got.items() if array.tobytes() != problem.q.parts[part].tobytes()]
        if wrong or not got:
            raise AssertionError(f"{job} gives other bytes in {wrong}")
        return "same bytes", seconds
    if not work.bound:
        if not np.array_equal(got, floats(problem.q, work.dtype)):
            raise AssertionError(f"{job} gives other floats")
        return "same floats", seconds
    error = float(np.linalg.norm(got - problem.x) / np.linalg.norm(problem.x))
    if not error < work.bound:
        raise AssertionError(f"{job} has an error of {error:.3f}, allowed is {work.bound}")
    return f"error {error:.3f}", seconds


def floats(q: qz.QuantizedArray, dtype: str) -> np.ndarray:
    """Return what it decodes to, rounded to ``dtype`` first."""
    if dtype == "bfloat16":
        return (q.dequantize(dtype=dtype).astype(np.uint32) << 16).view(np.float32)
    return q.dequantize(dtype=dtype)


def ours(problem: Problem, peers: list[Work]) -> Iterator[Work]:
    """Yield what we do beside these jobs of peers: on as many threads and into the same kind of output, and at our best."""
    q = problem.q
    encode = partial(qz.quantize, problem.x, problem.format, **OPTIONS.get(problem.format, {}))
    jobs = {"encode": (encode, ones_like(q), lambda q: dict(q.parts)), "decode": (q.dequantize, np.ones_like(problem.x), np.asarray)}
    known = {(work.what, work.threads, work.reused) for work in peers}
    for what, threads, reused in sorted(known | {(what, all_threads(), True) for what, _, _ in known}):
        run, out, result = jobs[what]
        yield Work(what, partial(run, threads=threads, **({"out": out} if reused else {})), result, threads, reused)


def measure(limit: Limit, problem: Problem, modules: dict[str, ModuleType], repeats: int) -> list[dict[str, Any]]:
    """Check and time every peer that knows the format, and ours."""
    with quiet():
        works = [(name, work) for name, module in modules.items() for work in module.works(problem)]
        if not works:
            return []
        works = [(OURS, work) for work in ours(problem, [work for _, work in works])] + works
        checks = [check(problem, name, work) for name, work in works]
        x = problem.x
        eighth, decoded = aligned(x.size // 8), aligned(x.size)
        turns = max(1, 2**22 // x.nbytes)
        loops = {"encode": partial(limit.reused, ENCODE, x, eighth), "decode": partial(limit.reused, DECODE, eighth, decoded)}
        jobs = [(partial(loop, streamed=s, threads=t, repeats=turns), repeats) for loop in loops.values() for s, t in kinds()]
        for (_, work), (_, call) in zip(works, checks, strict=True):
            slow = call > SLOW
            jobs.append((partial(sample, work.run, turns, not (work.reused or slow)), min(repeats, 3) if slow else repeats))
        medians = interleaved(jobs)
    ways = len(kinds())
    best = {"encode": min(medians[:ways]), "decode": min(medians[ways : 2 * ways])}
    times = medians[2 * ways :]
    mine = {(work.what, work.threads, work.reused): time_ for (name, work), time_ in zip(works, times, strict=True) if name == OURS}
    rows = []
    for (name, work), (verdict, _), time_ in zip(works, checks, times, strict=True):
        rows.append(
            {
                "format": problem.format,
                "what": work.what,
                "peer": name,
                "note": work.note,
                "threads": work.threads,
                "output": "reused" if work.reused else "fresh",
                "seconds": time_,
                "limit": best[work.what],
                "ratio": best[work.what] / time_,
                "slower": time_ / mine[work.what, work.threads, work.reused],
                "check": verdict,
            }
        )
    return sorted(rows, key=lambda row: (row["what"] != "encode", row["seconds"]))


def interleaved(jobs: list[tuple[Callable[[], float], int]]) -> list[float]:
    """Return the median of each job, all of them sampled in turn as many times as stands beside them."""
    samples: list[list[float]] = [[] for _ in jobs]
    for turn in range(max(repeats for _, repeats in jobs)):
        for (job, repeats), taken in zip(jobs, samples, strict=True):
            if turn < repeats:
                time.sleep(0.002)  # threads of the one before go to sleep
                taken.append(job())
    return [statistics.median(taken) for taken in samples]


def sample(run: Callable[[], object], turns: int, once_before: bool) -> float:
    """Return the seconds of one of some calls in a row, each result given back to the system only after the clock stopped.

    With fresh output one call goes before: free pages that a virtual machine had not used for seconds came at 0.3 GB/s, others
    at 6 (seen on the EPYC of the record of 2026-11-29).
    """
    if once_before:
        run()
    total = 0.0
    for _ in range(turns):
        start = time.perf_counter()
        result = run()
        total += time.perf_counter() - start
        del result
    return total / turns


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=size, nargs="+", default=[size("64M")], help="float32 bytes of the array, from 64K to 1G (64M)")
    parser.add_argument("--repeats", type=int, default=7, help="samples of everything")
    parser.add_argument("--filter", nargs="+", default=[""], help="only formats with one of these in their name")
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=PEERS, help="only these peers")
    parser.add_argument("--json", help="file that the figures go to")
    parser.add_argument("--png", help="file that a chart of the first size goes to (needs matplotlib)")
    options = parser.parse_args()
    if options.png and importlib.util.find_spec("matplotlib") is None:
        parser.error("--png needs matplotlib, which is not installed")
    modules, states = load(options.peer)
    figures: dict[str, Any] = {"machine": machine(), "repeats": options.repeats, "peers": states, "sizes": {}}
    print(", ".join(f"{name} {value}" for name, value in figures["machine"].items()))
    for name, state in states.items():
        print(f"  {name} {state}")
    limit = Limit()
    for nbytes in options.size:
        rows = [row for problem in problems(nbytes, options.filter) for row in measure(limit, problem, modules, options.repeats)]
        figures["sizes"][str(nbytes)] = rows
        print(f"\n{size_name(nbytes)} of float32, GB/s of float32; limit: a plain loop that reads and writes as many bytes")
        print_table(HEADERS, cells(rows, nbytes))
    if options.json:
        Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    if options.png:
        draw(figures, options.png)


if __name__ == "__main__":
    main()
