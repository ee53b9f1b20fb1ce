"""What :mod:`interface` leaves out: half floats, long groups, the first axis, odd addresses, codes alone, threads.

A ratio is the time of the plain loop with the same traffic, its best median over threads and kinds of stores, over ours; all of a
row are sampled in turn, output is reused and every thread is used. One scale for the whole array needs a second pass over it: there
the limit is a loop that reads, then one that encodes. The last table has arrays that caches hold: one call on one and on all
threads, and four Python threads that call at once against the same calls one after the other.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from interface import command, heading, ones_like, per_turn, seconds, weights
from limit import DECODE, ENCODE, Limit, Traffic, aligned, all_threads, interleaved, kinds, print_table

import quantize as qz

READ = Traffic(8, 0)


class Row(NamedTuple):
    """A call, and the loops whose times together are its limit."""

    name: str
    call: Callable[[], object]
    loops: list[tuple[Traffic, np.ndarray, np.ndarray]]


def rows(mebibytes: int) -> Iterator[Row]:
    """Yield the calls on so many MiB of float32, or as many elements of another dtype."""
    x = weights(mebibytes)
    eighth, decoded = aligned(x.size // 8), aligned(x.size)
    encode = [(ENCODE, x, eighth)]
    for name in ("int4", "uint4"):
        q = qz.quantize(x, name, group_size=32)
        half = aligned(x.size, np.uint16).reshape(x.shape)
        for dtype in ("float16", "bfloat16"):
            half[...] = x.astype(np.float16).view(np.uint16) if dtype == "float16" else x.view(np.uint32) >> 16
            source = half.view(np.float16) if dtype == "float16" else half
            given: dict[str, Any] = {} if dtype == "float16" else {"dtype": "bfloat16"}
            out = ones_like(qz.quantize(source, name, group_size=32, **given))
            call = partial(qz.quantize, source, name, group_size=32, out=out, **given)
            yield Row(f"{name} 32 from {dtype}", call, [(Traffic(4, 1), half, eighth)])
            target = half.view(np.float16) if dtype == "float16" else half
            yield Row(f"{name} 32 to {dtype}", partial(q.dequantize, dtype=dtype, out=target), [(Traffic(1, 4), eighth, half)])
        for columns in (4096, 65536):
            wide = x.reshape(-1, columns)
            out = ones_like(qz.quantize(wide, name, group_size="row"))
            yield Row(f"{name}, a scale a row of {columns}", partial(qz.quantize, wide, name, group_size="row", out=out), encode)
        out = ones_like(qz.quantize(x, name, group_size="tensor"))
        yield Row(f"{name}, one scale", partial(qz.quantize, x, name, group_size="tensor", out=out), [(READ, x, eighth), *encode])
        turned = qz.quantize(x, name, group_size=32, axis=0)
        yield Row(f"{name} 32, axis 0", partial(qz.quantize, x, name, group_size=32, axis=0, out=ones_like(turned)), encode)
        yield Row(f"{name} 32 decoded, axis 0", partial(turned.dequantize, out=np.ones_like(x)), [(DECODE, eighth, decoded)])
        odd = np.ones(4 * x.size + 4, np.uint8)[4:].view(np.float32).reshape(x.shape)
        odd[...] = x
        yield Row(f"{name} 32, addresses odd", partial(qz.quantize, odd, name, group_size=32, out=ones_like(q)), encode)
        yield Row(f"{name} 32 decoded, addresses odd", partial(q.dequantize, out=odd), [(DECODE, eighth, decoded)])
    codes, packed = aligned(4 * x.size, np.int8).reshape(-1, 4096), aligned(2 * x.size, np.uint8).reshape(-1, 2048)
    yield Row("pack", partial(qz.pack, codes, out=packed), [(Traffic(2, 1), codes, packed)])
    yield Row("unpack", partial(qz.unpack, packed, 4096, out=codes), [(Traffic(1, 2), packed, codes)])


def from_memory(limit: Limit, mebibytes: int, repeats: int, only: str) -> list[dict[str, Any]]:
    """Time the calls on arrays that no cache holds."""
    figures = []
    for row in rows(mebibytes):
        if only not in row.name:
            continue
        loops = [[partial(limit.reused, *loop, streamed=s, threads=t) for s, t in kinds()] for loop in row.loops]
        medians = iter(interleaved([*(job for jobs in loops for job in jobs), partial(seconds, row.call)], repeats))
        best = sum(min(next(medians) for _ in jobs) for jobs in loops)
        time_ = next(medians)
        figures.append({"case": row.name, "seconds": time_, "limit": best, "ratio": best / time_})
    heading(f"as many elements as {mebibytes} MiB of float32 hold, milliseconds")
    table = [[f["case"], f"{f['seconds'] * 1e3:.1f}", f"{f['limit'] * 1e3:.1f}", f"{f['ratio']:.2f}"] for f in figures]
    print_table(["what", "ours", "limit", "ratio"], table)
    return figures


def at_once(works: list[Callable[[], object]], turns: int) -> float:
    """Return the seconds of one of many rounds in which each has a thread of its own; to start a thread takes longer than a call."""

    def rounds(work: Callable[[], object]) -> None:
        for _ in range(turns):
            work()

    threads = [threading.Thread(target=rounds, args=(work,)) for work in works]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - start) / turns


def one_by_one(works: list[Callable[[], object]]) -> None:
    """Do each in turn."""
    for work in works:
        work()


def threads(repeats: int) -> list[dict[str, Any]]:
    """Time one thread against all, and calls that come at once against calls in turn."""
    figures = []
    for kibibytes in (512, 2048, 8192):
        arrays = [weights(kibibytes / 1024) for _ in range(4)]
        packed = [qz.quantize(x, "int4", group_size=32) for x in arrays]
        encoders = [partial(qz.quantize, x, "int4", group_size=32, out=ones_like(q)) for x, q in zip(arrays, packed, strict=True)]
        decoders = [partial(q.dequantize, out=np.ones_like(x)) for x, q in zip(arrays, packed, strict=True)]
        for what, works in (("encode", encoders), ("decode", decoders)):
            turns = 262144 // kibibytes
            jobs = [
                partial(per_turn, partial(works[0], threads=1), turns),
                partial(per_turn, works[0], turns),
                partial(per_turn, partial(one_by_one, works), turns),
                partial(at_once, works, turns),
            ]
            one, all_, in_turn, together = interleaved(jobs, repeats)
            figures.append({"what": what, "kib": kibibytes, "one": one, "all": all_, "in_turn": in_turn, "together": together})
    heading(f"int4 32 in caches, out=, microseconds; all threads are {all_threads()}")
    table = [
        [f"{f['what']} {f['kib']} KiB", *(f"{f[k] * 1e6:.0f}" for k in ("one", "all", "in_turn", "together")), f"{f['one'] / f['all']:.2f}"]
        for f in figures
    ]
    print_table(["what", "1 thread", "all", "4 calls in turn", "4 at once", "1 / all"], table)
    return figures


def tables(limit: Limit, options: argparse.Namespace) -> dict[str, Any]:
    return {
        "from_memory": from_memory(limit, options.size, options.repeats, options.filter),
        "threads": threads(options.repeats),
    }


if __name__ == "__main__":
    command(__doc__, tables)
