"""The three layouts of compressed-tensors by its compressors: the project that owns them. Input and output are torch tensors.

Encoding is scales from the extremes, by its helpers, and ``compress``; decoding is ``decompress``, whose FP4 values are bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

from . import Problem, Work

KINDS = {
    "compressed-tensors": (PackedQuantizationCompressor, {"strategy": "group", "group_size": 128}),
    "compressed-tensors:mxfp4": (
        MXFP4PackedCompressor,
        {"strategy": "group", "group_size": 32, "type": "float", "scale_dtype": torch.uint8, "zp_dtype": torch.uint8},
    ),
    "compressed-tensors:nvfp4": (
        NVFP4PackedCompressor,
        {"strategy": "tensor_group", "group_size": 16, "type": "float", "scale_dtype": torch.float8_e4m3fn},
    ),
}


def works(problem: Problem) -> Iterator[Work]:
    if problem.format not in KINDS:
        return
    compressor, arguments = KINDS[problem.format]
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(num_bits=4, symmetric=True, **arguments))
    x = torch.from_numpy(problem.x)
    state = compress(compressor, scheme, x)
    threads = torch.get_num_threads()
    yield Work("encode", partial(compress, compressor, scheme, x), parts, threads)
    dtype = "bfloat16" if arguments.get("type") == "float" else "float32"
    yield Work(
        "decode", partial(compressor.decompress, state, scheme), weight, threads, dtype=dtype, note=dtype if dtype != "float32" else ""
    )


def compress(compressor, scheme: QuantizationScheme, x: torch.Tensor) -> dict[str, torch.Tensor]:
    weights = scheme.weights
    low, high = x.view(len(x), -1, weights.group_size).aminmax(dim=-1)
    state = {"weight": x}
    scale = None
    if weights.strategy == "tensor_group":
        scale = state["weight_global_scale"] = generate_gparam(low.min().view(1), high.max().view(1))
    state["weight_scale"], state["weight_zero_point"] = calculate_qparams(low, high, weights, global_scale=scale)
    return compressor.compress(state, scheme)


def parts(state: dict[str, torch.Tensor]):
    return {name: (part.view(torch.uint8) if part.dtype == torch.float8_e4m3fn else part).numpy() for name, part in state.items()}


def weight(state: dict[str, torch.Tensor]):
    return state["weight"].float().numpy()
