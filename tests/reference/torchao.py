"""MXFP4 and NVFP4 of torchao: E2M1 codes, the even element low, under scales of one byte a group.

Both round to the nearest number up to 6, a tie to the even code, and keep the sign of what becomes zero: -0.0 is code 8.
All arithmetic is float32, one rounding an operation.
"""

import numpy as np

from . import e2m1
from .base import Format, pack, unpack
from .nvfp4 import from_e4m3, to_e4m3


def nearest_with_sign(x):
    return e2m1.nearest_even(np.abs(x)) | np.signbit(x).astype(np.uint8) << 3


def floor(x):
    """The exponent of the largest, - 2."""
    return np.clip(e2m1.exponent_field(e2m1.largest(x)) - 2, 0, 254).astype(np.uint8)


def ceil(x):
    """The exponent of the smallest power of two that is not below the largest, - 2."""
    largest = e2m1.largest(x)
    above = (largest.view(np.uint32) & 0x007F_FFFF) > 0
    return np.clip(e2m1.exponent_field(largest) + above - 2, 0, 254).astype(np.uint8)


def round_up(x):
    """ceil(log2(largest / 6)), where the logarithm is rounded to float32: just above a power of two it may be that power."""
    with np.errstate(divide="ignore"):
        logarithm = np.log2((e2m1.largest(x) / np.float32(6)).astype(np.float64)).astype(np.float32)
    return (np.clip(np.ceil(logarithm), -127, 127) + 127).astype(np.uint8)


class TorchAoMxFp4(Format):
    """``packed`` u8 (..., K/2); ``scales`` u8 (..., K/32), the exponents.

    Encode:

    1. byte by ``scale_rule``, from the bits of the largest |x| of the group: "floor" is its exponent - 2; "ceil" is one
       more where any bit of the mantissa is set; "even" one more where the mantissa is 1.75 or more; all at least 0.
       "rceil" is clamp(ceil(log2(largest / 6)), -127, 127) + 127, the logarithm rounded to float32.
    2. v = x / max(2^(byte - 127), 2^-126). For "rceil" v = x * 2^(127 - byte), and x itself where the byte is 0.
    3. code = nearest.

    Decode: number * 2^(byte - 127); 255 is not a number.
    """

    name = "torchao:mxfp4"
    parts = ("packed", "scales")

    def encode_groups(self, x, scale_dtype, join, *, scale_rule="floor"):
        exponents = {"floor": floor, "rceil": round_up, "ceil": ceil, "even": e2m1.even}[scale_rule](x)
        with np.errstate(under="ignore"):
            if scale_rule == "rceil":
                factors = np.where(exponents == 0, np.float32(1), e2m1.power(254 - exponents))
                scaled = x * factors[..., None]
            else:
                scaled = x / np.maximum(e2m1.power(exponents), np.float32(2.0**-126))[..., None]
        return {"packed": pack(join(nearest_with_sign(scaled))), "scales": exponents}

    def decode_groups(self, parts, columns, cut, *, scale_rule="floor"):
        return e2m1.NUMBERS[cut(unpack(parts["packed"], columns))] * e2m1.power(parts["scales"])[..., None]


class TorchAoNvFp4(Format):
    """``packed`` u8 (..., K/2); ``scales`` u8 (..., K/16), E4M3; with ``two_level`` ``per_tensor_scale`` f32 (), which multiplies.

    Encode with two levels:

    1. p = largest |x| of the tensor / 2688.
    2. byte = E4M3(clamp((largest |x| of the group / 6) / p, 2^-6, 448)).
    3. v = x * ((1 / p) / scale): a reciprocal, a division, a product.
    4. code = nearest.

    With one: byte = E4M3(clamp(largest |x| of the group / 6, 2^-6, 448)), v = x * (1 / scale).

    Where p is 0, in a tensor of zeros, the project's scales are not a number. Here they are 2^-6 (byte 0x08), and 1 / p is 0.
    An infinite (1 / p) / scale, in a tensor below 5.1e-34, makes the codes of zeros 0 with their sign.

    Decode: number * (p * scale), or number * scale.
    """

    name = "torchao:nvfp4"
    group_size = 16
    parts = ("packed", "scales", "per_tensor_scale")

    def encode_groups(self, x, scale_dtype, join, *, two_level=True):
        sixths = e2m1.largest(x) / np.float32(6)
        tensor = (e2m1.largest(x.reshape(1, -1)) / np.float32(2688))[0]
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if two_level:
                sixths = np.where(tensor == 0, np.float32(0), sixths / tensor)
            scales = to_e4m3(np.clip(sixths, 2.0**-6, 448))
            inverse = np.float32(1)
            if two_level:
                inverse = np.where(tensor == 0, np.float32(0), np.float32(1) / tensor)
            scaled = x * (inverse / from_e4m3(scales))[..., None]
        parts = {"packed": pack(join(nearest_with_sign(np.where(x == 0, x, scaled)))), "scales": scales}
        return parts | {"per_tensor_scale": np.array(tensor)} if two_level else parts

    def decode_groups(self, parts, columns, cut, *, two_level=True):
        scales = from_e4m3(parts["scales"])
        with np.errstate(invalid="ignore"):
            if two_level:
                scales = parts["per_tensor_scale"] * scales
            return e2m1.NUMBERS[cut(unpack(parts["packed"], columns))] * scales[..., None]
