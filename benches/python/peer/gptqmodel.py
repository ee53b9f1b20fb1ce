"""GPTQ v2 of GPTQModel: round to nearest by its ``Quantizer``, then its own packing. Input is a torch tensor."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from gptqmodel.nn_modules.qlinear.torch import TorchLinear
from gptqmodel.quantization import QuantizeConfig
from gptqmodel.quantization.quantizer import Quantizer

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    if problem.format != "gptq:v2":
        return
    x = torch.from_numpy(problem.x)
    for pack, threads in (("pack_block", torch.get_num_threads()), ("pack_original", 1)):
        yield Work("encode", partial(encode, x, pack), parts, threads, note=pack)


def encode(x: torch.Tensor, pack: str) -> TorchLinear:
    rows, columns = x.shape
    quantizer = Quantizer(QuantizeConfig(bits=4, group_size=128, sym=True, offload_to_disk=False))
    quantizer.configure(perchannel=True)
    groups = x.view(-1, 128)
    quantizer.find_params(groups, weight=True)
    linear = torch.nn.Linear(columns, rows, bias=False, device="meta")
    linear.weight = torch.nn.Parameter(quantizer.quantize(groups).view(x.shape), requires_grad=False)
    packed = TorchLinear(
        bits=4, group_size=128, sym=True, desc_act=False, in_features=columns, out_features=rows, bias=False, register_buffers=False
    )
    arguments = {"workers": torch.get_num_threads()} if pack == "pack_block" else {}
    getattr(packed, pack)(
        linear, quantizer.scale.view(rows, -1), quantizer.zero.view(rows, -1), torch.arange(columns, dtype=torch.int32) // 128, **arguments
    )
    return packed


def parts(linear: TorchLinear):
    return {name: getattr(linear, name).numpy() for name in ("qweight", "qzeros", "scales", "g_idx")}
