"""Q4_0 and Q4_1 in numpy alone, in the form that is fastest there: rows in blocks that a cache holds, on a pool of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from limit import one_and_all

from . import Problem, Work

HEADER = {"gguf:q4_0": 2, "gguf:q4_1": 4}
BLOCK = 2**18  # elements


def works(problem: Problem) -> Iterator[Work]:
    if problem.format not in HEADER:
        return
    header, x, blocks = HEADER[problem.format], problem.x, problem.q.parts["blocks"]
    encoded, decoded = np.empty_like(blocks), np.empty_like(x)
    for threads in one_and_all():
        pool = ThreadPoolExecutor(threads)
        yield Work("encode", partial(by_blocks, pool, partial(encode, header), x, encoded), as_blocks, threads, reused=True)
        yield Work("decode", partial(by_blocks, pool, partial(decode, header), blocks, decoded), np.asarray, threads, reused=True)


def as_blocks(blocks: np.ndarray) -> dict[str, np.ndarray]:
    return {"blocks": blocks}


def by_blocks(
    pool: ThreadPoolExecutor, work: Callable[[np.ndarray, np.ndarray], None], source: np.ndarray, target: np.ndarray
) -> np.ndarray:
    """Do the work on some rows at a time."""
    rows = max(1, BLOCK // max(source.shape[1], target.shape[1]))
    starts = range(0, len(source), rows)
    list(pool.map(lambda start: work(source[start : start + rows], target[start : start + rows]), starts))
    return target


def encode(header: int, x: np.ndarray, blocks: np.ndarray) -> None:
    # Turned, so that an extreme of a group is one of whole rows.
    groups, out = np.ascontiguousarray(x.reshape(-1, 32).T), blocks.reshape(-1, header + 16)
    low, high = groups.min(axis=0), groups.max(axis=0)
    if header == 2:
        # The element of largest magnitude; where both ends are as large, the first of them.
        extreme = np.where(high > -low, high, low)
        if (tied := high == -low).any():
            first = np.take_along_axis(groups, np.abs(groups).argmax(axis=0, keepdims=True), axis=0)[0]
            extreme = np.where(tied, first, extreme)
        scale, half = extreme / np.float32(-8), np.float32(8.5)
    else:
        scale, half = (high - low) / np.float32(15), np.float32(0.5)
        groups -= low
        out[:, 2:4] = low.astype(np.float16)[:, None].view(np.uint8)
    out[:, :2] = scale.astype(np.float16)[:, None].view(np.uint8)
    with np.errstate(divide="ignore"):
        groups *= np.where(scale == 0, np.float32(0), 1 / scale)
    groups += half
    codes = groups.astype(np.uint8)
    np.minimum(codes, 15, out=codes)
    out[:, header:] = (codes[:16] | codes[16:] << 4).T


def decode(header: int, blocks: np.ndarray, x: np.ndarray) -> None:
    rows, groups = blocks.reshape(-1, header + 16), x.reshape(-1, 32)
    codes = np.empty((len(rows), 2, 16), np.uint8)
    np.bitwise_and(rows[:, header:], 15, out=codes[:, 0])
    np.right_shift(rows[:, header:], 4, out=codes[:, 1])
    if header == 2:
        codes -= 8  # wraps around to two's complement
        codes = codes.view(np.int8)
    np.multiply(codes.reshape(groups.shape).astype(np.float32), float16(rows[:, :2]), out=groups)
    if header == 4:
        groups += float16(rows[:, 2:4])


def float16(halves: np.ndarray) -> np.ndarray:
    return halves.copy().view(np.float16).astype(np.float32)
