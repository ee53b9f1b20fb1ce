"""ml_dtypes, the small floats and integers of numpy arrays: its tables and its rounding, seen through the parts of the formats."""

import ml_dtypes
import numpy as np
import pytest
from helpers import same
from inputs import MAKE, rows, same_but_nan
from onnx import numpy_helper

import quantize as qz

BYTES = np.arange(256, dtype=np.uint8)
FLOAT4 = BYTES[:16].view(ml_dtypes.float4_e2m1fn).astype(np.float32)
E8M0 = BYTES.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
E4M3 = BYTES.view(ml_dtypes.float8_e4m3fn).astype(np.float32)

# A row for every scale: each code once, then once more where a group is 32. Neighbours share a byte, or the halves of a group do.
NEIGHBOURS = np.tile(BYTES[:16:2] | BYTES[1:16:2] << 4, (256, 1))
MXFP4 = {
    "gguf:mxfp4": {"blocks": np.hstack([BYTES[:, None], np.tile(BYTES[:16] | BYTES[:16] << 4, (256, 1))])},
    "gptoss:mxfp4": {"blocks": np.tile(NEIGHBOURS, (1, 2))[:, None], "scales": BYTES[:, None]},
    "mlx:mxfp4": {"weight": np.tile(NEIGHBOURS, (1, 2)).view(np.uint32), "scales": BYTES[:, None]},
    "compressed-tensors:mxfp4": {"weight_packed": np.tile(NEIGHBOURS, (1, 2)), "weight_scale": BYTES[:, None]},
    "torchao:mxfp4": {"packed": np.tile(NEIGHBOURS, (1, 2)), "scales": BYTES[:, None]},
}
NVFP4 = {
    "gguf:nvfp4": {"blocks": np.hstack([np.tile(BYTES[:, None], (1, 4)), np.tile(BYTES[:8] | BYTES[8:16] << 4, (256, 4))])},
    "mlx:nvfp4": {"weight": NEIGHBOURS.view(np.uint32), "scales": BYTES[:, None]},
    "compressed-tensors:nvfp4": {
        "weight_packed": NEIGHBOURS,
        "weight_scale": BYTES[:, None],
        "weight_global_scale": np.ones(1, np.float32),
    },
    "modelopt:nvfp4": {"weight": NEIGHBOURS, "weight_scale": BYTES[:, None], "weight_scale_2": np.float32(1)},
    "torchao:nvfp4": {"packed": NEIGHBOURS, "scales": BYTES[:, None]},
}
FLOAT4_ROUNDING = [("compressed-tensors:mxfp4", {}), ("gptoss:mxfp4", {})]
FLOAT4_ROUNDING += [("torchao:mxfp4", {"scale_rule": rule}) for rule in ("floor", "rceil", "ceil", "even")]
POSITIVE_ZERO = ("gguf:mxfp4", "gguf:nvfp4", "modelopt:nvfp4")  # what code 8 is in their tables


def table(name, scales, repeat):
    """Each code under each scale, repeated."""
    numbers = np.where(FLOAT4 == 0, np.float32(0), FLOAT4) if name in POSITIVE_ZERO else FLOAT4
    with np.errstate(over="ignore"):  # 4 * 2^127 is an infinity
        return np.tile(numbers, repeat) * scales[:, None]


@pytest.mark.parametrize("name", MXFP4)
def test_every_code_under_every_exponent(name):
    same_but_nan(qz.from_parts(name, MXFP4[name]).dequantize(), table(name, E8M0, 2))


@pytest.mark.parametrize("name", NVFP4)
def test_every_code_under_every_float8(name):
    actual, expected = qz.from_parts(name, NVFP4[name]).dequantize(), table(name, E4M3, 1)
    if name == "gguf:nvfp4":
        # Without a sign, and 0x7f is 0: test_ggml.py has those.
        actual, expected = actual[:127], np.tile(expected[:127], (1, 4))
    same_but_nan(actual, expected)


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind != "float subnormal"])
@pytest.mark.parametrize(("name", "options"), FLOAT4_ROUNDING)
def test_codes_are_rounded_as_a_cast_to_float4(name, options, kind):
    x = rows(kind, 2048, 32)
    q = qz.quantize(x, name, **options)
    expected = (x / q.scales).astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    if name != "torchao:mxfp4":
        expected[x == 0] = 0  # -0.0 has code 0 there
    same(q.codes().view(np.uint8), expected, kind)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize(("name", "options", "least"), [("mlx:nvfp4", {}, 0), ("torchao:nvfp4", {"two_level": False}, 2.0**-6)])
def test_scales_are_rounded_as_a_cast_to_float8(name, options, least, kind):
    x = rows(kind, 2048, 16)
    largest = np.abs(x).max(axis=1, keepdims=True)
    # A cast beyond 448 is NaN in ml_dtypes; the formats saturate.
    expected = np.clip(largest / np.float32(6), np.float32(least), np.float32(448)).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
    same(qz.quantize(x, name, **options).parts["scales"], expected, kind)


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "outlier", "half subnormal", "half underflow", "mixed"])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_scales_are_rounded_as_a_cast_to_a_half(dtype, kind):
    x = rows(kind, 2048, 32)
    extreme = np.take_along_axis(x, np.abs(x).argmax(axis=1, keepdims=True), axis=1)
    scales = qz.quantize(x, "int4", scale_dtype=dtype).parts["scales"]
    expected = (extreme / np.float32(-8)).astype(dtype)
    same(scales, np.where(expected == 0, expected.dtype.type(0), expected), kind)


@pytest.mark.parametrize("kind", MAKE)
def test_values_are_rounded_as_a_cast_to_bfloat16(kind):
    q = qz.quantize(rows(kind, 2048, 32), "int4", scale_dtype=np.float32)
    same(q.dequantize(dtype=ml_dtypes.bfloat16), q.dequantize().astype(ml_dtypes.bfloat16), kind)


@pytest.mark.parametrize(("dtype", "signed"), [(ml_dtypes.int4, True), (ml_dtypes.uint4, False)])
@pytest.mark.parametrize("count", [0, 1, 2, 15, 4096])
def test_packs_as_onnx_stores_int4_and_uint4(count, dtype, signed):
    random = np.random.default_rng(8)
    codes = random.integers(-8, 8, count, dtype=np.int8) if signed else random.integers(0, 16, count, dtype=np.uint8)
    packed = np.frombuffer(numpy_helper.from_array(codes.astype(dtype)).raw_data, np.uint8)
    same(qz.pack(codes, signed=signed), packed)
    same(qz.unpack(packed, count, signed=signed), codes)
