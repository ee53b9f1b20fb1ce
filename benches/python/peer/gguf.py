"""The gguf package: the formats of ggml in numpy, on one thread."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
from gguf import GGMLQuantizationType, dequantize, quantize

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    if not problem.format.startswith("gguf:"):
        return
    kind, blocks = GGMLQuantizationType[problem.format.removeprefix("gguf:").upper()], problem.q.parts["blocks"]
    if kind.name in ("Q4_0", "Q4_1", "MXFP4"):  # the others it only decodes
        yield Work("encode", partial(quantize, problem.x, kind), lambda blocks: {"blocks": blocks}, 1)
    yield Work("decode", partial(dequantize, blocks, kind), np.asarray, 1)
