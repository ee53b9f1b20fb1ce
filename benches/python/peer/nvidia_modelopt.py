"""NVFP4 of ModelOpt: the project that owns the layout. Input and output are torch tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from modelopt.torch.quantization.qtensor.nvfp4_tensor import NVFP4QTensor

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    if problem.format != "modelopt:nvfp4":
        return
    x = torch.from_numpy(problem.x)
    tensor, scale, outer = NVFP4QTensor.quantize(x, 16)
    threads = torch.get_num_threads()
    decode = partial(tensor.dequantize, torch.float32, scale=scale, double_scale=outer, block_sizes={-1: 16})
    yield Work("encode", partial(NVFP4QTensor.quantize, x, 16), parts, threads)
    yield Work("decode", decode, torch.Tensor.numpy, threads)


def parts(result):
    tensor, scale, outer = result
    return {"weight": tensor._quantized_data.numpy(), "weight_scale": scale.view(torch.uint8).numpy(), "weight_scale_2": outer.numpy()}
