"""The three formats of MLX on its CPU backend: the project that owns them. Input and output are its arrays; it uses one core."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx
import numpy as np

from . import Problem, Work

MODES = {"mlx": ("affine", 64), "mlx:mxfp4": ("mxfp4", 32), "mlx:nvfp4": ("nvfp4", 16)}


def works(problem: Problem) -> Iterator[Work]:
    if problem.format not in MODES:
        return
    mode, group = MODES[problem.format]
    mx.set_default_device(mx.cpu)
    x = mx.array(problem.x)

    def encode():
        parts = mx.quantize(x, group, 4, mode)
        mx.eval(parts)
        return parts

    parts = encode()

    def decode():
        values = mx.dequantize(*parts, group_size=group, bits=4, mode=mode, dtype=mx.float32)
        mx.eval(values)
        return values

    yield Work("encode", encode, lambda parts: dict(zip(problem.q.parts, map(np.array, parts), strict=True)), 1)
    yield Work("decode", decode, np.array, 1)
