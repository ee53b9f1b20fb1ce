"""Our own ``int4`` (group 32, float32 scales) as loops that numba compiles; kernels of this bench, not a product."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numba
import numpy as np
from limit import one_and_all

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    if problem.format != "int4":
        return
    groups, packed = problem.x.reshape(-1, 32), problem.q.parts["packed"].reshape(-1, 16)
    scales = problem.q.parts["scales"].ravel()
    encoded, decoded = (np.empty_like(packed), np.empty_like(scales)), np.empty_like(groups)
    for threads in one_and_all():
        yield Work("encode", partial(run, threads, encode, groups, *encoded), parts, threads, reused=True)
        dequantize = partial(run, threads, decode, packed, scales, decoded)
        yield Work("decode", dequantize, lambda result: result[2].reshape(problem.x.shape), threads, reused=True)


def run(threads, kernel, *arrays):
    numba.set_num_threads(threads)
    kernel(*arrays)
    return arrays


def parts(result):
    _, packed, scales = result
    return {"packed": packed, "scales": scales}


@numba.njit(parallel=True, fastmath={"nnan", "nsz"})
def encode(groups, packed, scales):
    for g in numba.prange(len(groups)):
        x = groups[g]
        low, high = x[0], x[0]
        for i in range(32):
            low, high = min(low, x[i]), max(high, x[i])
        extreme = high if high > -low else low
        if high == -low:
            for i in range(31, -1, -1):
                if abs(x[i]) == high:
                    extreme = x[i]
        scale = extreme / np.float32(-8)
        inverse = np.float32(0)
        if abs(scale) >= np.float32(2.0**-126):
            inverse = np.float32(1) / scale
        else:
            scale = np.float32(0)
        scales[g] = scale
        for i in range(16):
            even = min(max(np.rint(x[2 * i] * inverse), np.float32(-8)), np.float32(7))
            odd = min(max(np.rint(x[2 * i + 1] * inverse), np.float32(-8)), np.float32(7))
            packed[g, i] = np.uint8((np.int32(even) & 15) | (np.int32(odd) & 15) << 4)


@numba.njit(parallel=True)
def decode(packed, scales, groups):
    for g in numba.prange(len(groups)):
        scale = scales[g]
        for i in range(16):
            byte = np.int32(packed[g, i])
            groups[g, 2 * i] = np.float32(((byte & 15) ^ 8) - 8) * scale
            groups[g, 2 * i + 1] = np.float32((byte >> 4 ^ 8) - 8) * scale
