"""GPTQ v1 of AutoGPTQ: round to nearest by its ``Quantizer``, then its own packing of float16 weights. Input is a torch tensor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from auto_gptq.nn_modules.qlinear.qlinear_cuda import QuantLinear
from auto_gptq.quantization.quantizer import Quantizer

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    if problem.format == "gptq":
        yield Work("encode", partial(encode, torch.from_numpy(problem.x)), parts, torch.get_num_threads())


def encode(x: torch.Tensor) -> QuantLinear:
    rows, columns = x.shape
    quantizer = Quantizer()
    quantizer.configure(4, perchannel=True, sym=True)
    groups = x.view(-1, 128)
    quantizer.find_params(groups, weight=True)
    linear = torch.nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(quantizer.quantize(groups).view(x.shape).half(), requires_grad=False)
    packed = QuantLinear(4, 128, columns, rows, bias=False)
    packed.pack(linear, quantizer.scale.view(rows, -1), quantizer.zero.view(rows, -1))
    return packed


def parts(linear: QuantLinear):
    return {name: getattr(linear, name).numpy() for name in ("qweight", "qzeros", "scales", "g_idx")}
