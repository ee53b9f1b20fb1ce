"""``gguf:nvfp4`` of ggml: groups of 16 E2M1 codes under an 8-bit float, x ~ number(code) * scale."""

import numpy as np

from .base import Format

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
