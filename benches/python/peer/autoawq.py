"""AWQ of AutoAWQ: the project that owns the format. Its rule computes in float16; the input is float16 already, untimed.

``pseudo_quantize_tensor`` chooses scales, zero points and weights, ``WQLinear_GEMM.from_linear`` packs them.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace

import torch
from awq.modules.linear.gemm import WQLinear_GEMM
from awq.quantize.quantizer import AwqQuantizer

from . import Problem, Work

SETTINGS = SimpleNamespace(group_size=128, zero_point=True, w_bit=4)


def works(problem: Problem) -> Iterator[Work]:
    if problem.format == "awq":
        yield Work("encode", partial(encode, torch.from_numpy(problem.x).half()), parts, torch.get_num_threads(), note="from float16")


def encode(x: torch.Tensor) -> WQLinear_GEMM:
    weight, scales, zeros = AwqQuantizer.pseudo_quantize_tensor(SETTINGS, x)
    linear = torch.nn.Linear(x.shape[1], x.shape[0], bias=False, device="meta")
    linear.weight = torch.nn.Parameter(weight, requires_grad=False)
    return WQLinear_GEMM.from_linear(linear, 4, 128, scales=scales.t().contiguous(), zeros=zeros.t().contiguous())


def parts(linear: WQLinear_GEMM):
    return {name: getattr(linear, name).numpy() for name in ("qweight", "qzeros", "scales")}
