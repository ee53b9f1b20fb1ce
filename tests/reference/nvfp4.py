"""NVFP4 in four layouts: groups of 16 E2M1 codes under an 8-bit float, x ~ number(code) * scale; most have a scale of the tensor.

``number`` has -0.0 at code 8 where nothing else is said. In all but ggml's the 8-bit float is E4M3 in full: rounded to the
nearest, a tie to the even byte, what is beyond 448 to 448.
"""

import ml_dtypes
import numpy as np

from . import e2m1
from .base import Format, pack, unpack

NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def decode_scale(byte):
    """Four bits of exponent, three of mantissa; the sign bit means nothing, and 0x7f is 0."""
    exponent, mantissa = (byte >> 3 & 15).astype(np.int32), (byte & 7).astype(np.float32)
    normal = np.ldexp(np.float32(1) + mantissa / np.float32(8), exponent - 7)
    scale = np.where(exponent == 0, mantissa * np.float32(2.0**-9), normal)
    return np.where(byte == 0x7F, np.float32(0), scale).astype(np.float32)


def encode_scale(scale):
    """The mantissa rounded half up; from 256 on 448, below 2^-6 no more than 7 * 2^-9."""
    small = np.minimum(np.trunc(np.minimum(scale, 1) * np.float32(512) + np.float32(0.5)), 7)
    fraction, exponent = np.frexp(scale)  # fraction 0.5 to 1
    eighths = np.trunc(fraction * np.float32(16) + np.float32(0.5)) - 8  # 0 to 8: a carry
    rounded = 8 * (exponent + 6) + eighths
    return np.where(scale < 2.0**-6, small, np.where(rounded >= 120, 126, rounded)).astype(np.uint8)


class GgufNvFp4(Format):
    """``blocks`` u8 (..., 36 for 4 groups): four scales, then 8 bytes of codes a group, j low with j + 8 high."""

    name = "gguf:nvfp4"
    parts = ("blocks",)
    group_size = 16
    block = 64

    def encode_groups(self, x, scale_dtype, join):
        scales = encode_scale(np.abs(x).max(-1) / np.float32(6))
        numbers = NUMBERS * decode_scale(scales)[..., None]
        # The distances are float32: the first of the smallest wins.
        codes = np.abs(numbers[..., None, :] - x[..., None]).argmin(-1).astype(np.uint8)
        packed = codes[..., :8] | codes[..., 8:] << 4
        shape = x.shape[:-2] + (x.shape[-2] // 4,)
        blocks = np.concatenate([scales.reshape(shape + (4,)), packed.reshape(shape + (32,))], -1)
        return {"blocks": blocks.reshape(shape[:-1] + (36 * shape[-1],))}

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 36, 36))
        packed = blocks[..., 4:].reshape(blocks.shape[:-1] + (4, 8))
        values = NUMBERS[np.concatenate([packed & 15, packed >> 4], -1)] * decode_scale(blocks[..., :4])[..., None]
        return values.reshape(values.shape[:-3] + (4 * values.shape[-3], 16))


def to_e4m3(x):
    return np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).view(np.uint8)


def from_e4m3(bytes):
    return bytes.view(ml_dtypes.float8_e4m3fn).astype(np.float32)


def divide(x, scales):
    """Quotients, and 0 where the scale is 0."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(scales == 0, np.float32(0), x / scales)


class CompressedTensorsNvFp4(Format):
    """``weight_packed`` u8 (..., K/2), the even element low; ``weight_scale`` u8 (..., G); ``weight_global_scale`` f32 (1,), which divides.

    Encode, every operation float32:

    1. amax = largest |x| of the tensor, at least 2^-126. global = (1 / amax) * 2688, a reciprocal and a product; 1 where
       that is infinite (a tensor of zeros, amax below 7.9e-36).
    2. byte = E4M3(clamp(global * (largest |x| of the group / 6), -448, 448)); a scale of 0 becomes 0.125 (byte 0x20).
    3. effective = scale / global; v = clamp(x / effective, -6, 6), a division.
    4. code = nearest number, a tie to the even code; 8 for v < 0 that rounds to zero, 0 for v = -0.0.

    Decode: number * (scale / global) in float32. The library rounds this to bfloat16.
    """

    name = "compressed-tensors:nvfp4"
    group_size = 16
    parts = ("weight_packed", "weight_scale", "weight_global_scale")

    def encode_groups(self, x, scale_dtype, join):
        with np.errstate(over="ignore"):
            global_scale = np.float32(1) / np.maximum(e2m1.largest(x.reshape(1, -1)), np.float32(2.0**-126)) * np.float32(2688)
        global_scale = np.where(np.isinf(global_scale), np.float32(1), global_scale)
        scales = to_e4m3(global_scale * (e2m1.largest(x) / np.float32(6)))
        scales = np.where(scales == 0, np.uint8(0x20), scales)
        codes = e2m1.nearest_even(x / (from_e4m3(scales) / global_scale)[..., None])
        return {"weight_packed": pack(join(codes)), "weight_scale": scales, "weight_global_scale": global_scale}

    def decode_groups(self, parts, columns, cut):
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = from_e4m3(parts["weight_scale"]) / parts["weight_global_scale"]
            return e2m1.NUMBERS[cut(unpack(parts["weight_packed"], columns))] * scales[..., None]


class ModelOptNvFp4(Format):
    """``weight`` u8 (..., K/2), the even element low; ``weight_scale`` u8 (..., G); ``weight_scale_2`` f32 (), which multiplies.

    Encode, every operation float32:

    1. scale_2 = largest |x| of the tensor / 2688.
    2. s = largest |x| of the group / (6 * scale_2); a group of zeros has 1 (byte 0x38).
    3. byte = E4M3(clamp(s, 2^-9, 448)).
    4. v = x / (scale * scale_2), a division.
    5. code = nearest number up to 6, a tie to the even code; 8 for v < 0 that rounds to zero, 0 for v = -0.0.

    Where scale_2 is 0, in a tensor of zeros, the project's s is 0 / 0 and its bytes are not a number. Here s is 1, as in any
    group of zeros. For a tensor with so little in it that scale_2, or a product of it, is 0, s is 1 where it would be
    divided by 0 and the codes are 0 where they would be. Such a tensor decodes to zeros.

    Decode: number * (scale * scale_2); the number of code 8 is +0.0.
    """

    name = "modelopt:nvfp4"
    group_size = 16
    parts = ("weight", "weight_scale", "weight_scale_2")

    def encode_groups(self, x, scale_dtype, join):
        scale_2 = (e2m1.largest(x.reshape(1, -1)) / np.float32(2688))[0]
        scales = divide(e2m1.largest(x), np.float32(6) * scale_2)
        scales = to_e4m3(np.clip(np.where(scales == 0, np.float32(1), scales), 2.0**-9, 448))
        codes = e2m1.nearest_even(divide(x, (from_e4m3(scales) * scale_2)[..., None]))
        return {"weight": pack(join(codes)), "weight_scale": scales, "weight_scale_2": np.array(scale_2)}

    def decode_groups(self, parts, columns, cut):
        with np.errstate(invalid="ignore"):
            scales = from_e4m3(parts["weight_scale"]) * parts["weight_scale_2"]
            return NUMBERS[cut(unpack(parts["weight"], columns))] * scales[..., None]


class MlxNvFp4(Format):
    """``weight`` u32 (..., K/8), eight codes a word from the lowest bits up; ``scales`` u8 (..., G).

    Encode, every operation float32, as the CPU backend does:

    1. byte = E4M3(largest |x| of the group / 6).
    2. v = x / scale, a division; a scale of 0 makes every code 0.
    3. code = the first of the numbers whose float32 distance |v - number| is smallest: a tie goes toward zero, and code 8
       is never made. v so large that all distances are equal is code 0.

    With ``global_scale``, the largest |x| of the tensor, which is needed again to decode: factor = 2688 / global_scale,
    byte = E4M3((largest |x| of the group / 6) * factor), v = (x / scale) * factor. The factor must be finite.

    Decode: number * scale, or number * (scale * (global_scale / 2688)).
    """

    name = "mlx:nvfp4"
    group_size = 16
    parts = ("weight", "scales")

    def encode_groups(self, x, scale_dtype, join, *, global_scale=None):
        with np.errstate(over="ignore"):
            factor = np.float32(1) if global_scale is None else np.float32(2688) / np.float32(global_scale)
            if not np.isfinite(factor):
                raise ValueError(f"2688 / global_scale is {factor}")
            scales = to_e4m3(e2m1.largest(x) / np.float32(6) * factor)
            codes = e2m1.nearest_toward_zero(divide(x, from_e4m3(scales)[..., None]) * factor)
        return {"weight": pack(join(codes)).view("<u4"), "scales": scales}

    def decode_groups(self, parts, columns, cut, *, global_scale=None):
        packed = np.ascontiguousarray(parts["weight"], "<u4").view(np.uint8)
        factor = np.float32(1) if global_scale is None else np.float32(global_scale) / np.float32(2688)
        with np.errstate(invalid="ignore"):
            return e2m1.NUMBERS[cut(unpack(packed, columns))] * (from_e4m3(parts["scales"]) * factor)[..., None]
