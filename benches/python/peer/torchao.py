"""MXFP4 (floor rule) and two-level NVFP4 of torchao, eager: the project that owns both layouts. Input and output are torch tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torchao.prototype.mx_formats.mx_tensor import to_dtype, to_mx
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, nvfp4_quantize, per_tensor_amax_to_scale

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    x = torch.from_numpy(problem.x)
    threads = torch.get_num_threads()
    if problem.format == "torchao:mxfp4":
        kind = torch.float4_e2m1fn_x2
        scales, packed = to_mx(x, kind, 32)
        yield Work("encode", partial(to_mx, x, kind, 32), mxfp4_parts, threads)
        yield Work("decode", partial(to_dtype, packed, scales, kind, 32, torch.float32), torch.Tensor.numpy, threads)
    if problem.format == "torchao:nvfp4":
        scale, scales, packed = nvfp4(x)
        tensor = NVFP4Tensor(packed, scales, 16, torch.float32, scale)
        yield Work("encode", partial(nvfp4, x), nvfp4_parts, threads)
        yield Work("decode", partial(tensor.dequantize, torch.float32), torch.Tensor.numpy, threads)


def mxfp4_parts(result):
    scales, packed = result
    return {"packed": bytes_of(packed), "scales": bytes_of(scales)}


def nvfp4(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    scale = per_tensor_amax_to_scale(x.abs().max())
    return scale, *nvfp4_quantize(x, 16, scale)


def nvfp4_parts(result):
    scale, scales, packed = result
    return {"packed": bytes_of(packed), "scales": bytes_of(scales), "per_tensor_scale": scale.numpy()}


def bytes_of(tensor: torch.Tensor):
    return tensor.view(torch.uint8).numpy()
