"""NF4 and FP4 of bitsandbytes on the CPU: the project that owns both formats. Input and output are torch tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from bitsandbytes.functional import dequantize_4bit, quantize_4bit

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    kind = problem.format.removeprefix("bnb:")
    if kind not in ("nf4", "fp4"):
        return
    x = torch.from_numpy(problem.x)
    packed, state = quantize_4bit(x, blocksize=64, quant_type=kind)

    def parts(result):
        packed, state = result
        return {"packed": packed.numpy().ravel(), "absmax": state.absmax.numpy()}

    threads = torch.get_num_threads()
    yield Work("encode", partial(quantize_4bit, x, blocksize=64, quant_type=kind), parts, threads)
    yield Work("decode", partial(dequantize_4bit, packed, state), torch.Tensor.numpy, threads)
