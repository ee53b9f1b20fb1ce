"""Casts to the 4-bit types of ml_dtypes, the scales by numpy, on one thread; a code stays in a byte of its own, packing is not its business."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import ml_dtypes
import numpy as np

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    encoders = {"int4": int4, "torchao:mxfp4": mxfp4}
    if problem.format not in encoders:
        return
    encode = encoders[problem.format]
    groups = problem.x.reshape(-1, 32)
    codes, scales = encode(groups)

    def result(encoded):
        return decode(*encoded).reshape(problem.x.shape)

    yield Work("encode", partial(encode, groups), result, 1, note="not packed")
    yield Work("decode", partial(decode, codes, scales), lambda x: x.reshape(problem.x.shape), 1, note="not packed")


def int4(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1, keepdims=True), axis=-1) / np.float32(-8)
    codes = groups * (1 / scales)
    np.rint(codes, out=codes)
    np.clip(codes, -8, 7, out=codes)
    return codes.astype(ml_dtypes.int4), scales


def mxfp4(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    largest = np.abs(groups).max(axis=-1, keepdims=True)
    scales = ((largest.view(np.int32) & 0x7F800000) - (2 << 23)).view(np.float32)  # the power of two below, over 4
    return (groups / scales).astype(ml_dtypes.float4_e2m1fn), scales


def decode(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    x = codes.astype(np.float32)
    x *= scales
    return x
