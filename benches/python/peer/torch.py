"""Our own ``int4`` (group 32, float32 scales) in eager torch operators; code of this bench, not a product. Input and output are tensors."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from limit import all_threads

from . import Problem, Work

torch.set_num_threads(all_threads())


def works(problem: Problem) -> Iterator[Work]:
    if problem.format != "int4":
        return
    x = torch.from_numpy(problem.x)
    packed, scales = encode(x)
    yield Work("encode", partial(encode, x), lambda result: {"packed": result[0].numpy(), "scales": result[1].numpy()}, all_threads())
    yield Work("decode", partial(decode, packed, scales), lambda x: x.reshape(problem.x.shape).numpy(), all_threads())


def encode(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    groups = x.view(-1, 32)
    scales = groups.gather(1, groups.abs().argmax(dim=1, keepdim=True)) / -8
    codes = (groups * (1 / scales)).round_().clamp_(-8, 7).to(torch.int8)
    return (codes[:, ::2] & 15 | codes[:, 1::2] << 4).view(torch.uint8), scales


def decode(packed: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    signed = packed.view(torch.int8)
    codes = torch.stack(((signed << 4) >> 4, signed >> 4), dim=-1)
    return codes.view(-1, 32) * scales
