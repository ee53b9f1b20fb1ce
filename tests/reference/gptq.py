"""GPTQ's two checkpoint formats: a float16 scale and a 4-bit zero point a group, x ~ (code - zero_point) * scale.

Both store codes eight a word along K, from the lowest bits up. W is (N, K), and the parts have its axes the other way around.
"""

import numpy as np

from .base import Format, pack, store, to_float32, unpack

HALF = np.dtype(np.float16)


def to_words(codes):
    """Codes 0..15 ``(..., 8n)`` as int32 words ``(..., n)``, the first code in the lowest bits."""
    return np.ascontiguousarray(pack(codes)).view("<i4")


def from_words(words):
    """Undo :func:`to_words`."""
    return unpack(np.ascontiguousarray(words, "<i4").view(np.uint8), 8 * words.shape[-1])


def extremes(x, symmetric):
    """The range of each group: it takes in 0, and is symmetric about it for symmetric codes of a group with negative elements."""
    zero = np.float32(0)
    low, high = np.minimum(x.min(-1), zero), np.maximum(x.max(-1), zero)
    if symmetric:
        high = np.maximum(-low, high)
        low = np.where(low < 0, -high, low)
    return low, high


class GptqV2(Format):
    """``qweight`` i32 (K/8, N); ``qzeros`` i32 (G, N/8); ``scales`` f16 (G, N); ``g_idx`` i32 (K,), the group of each k.

    As GPTQModel packs what it rounded to nearest; float32, one rounding an operation:

    1. low = min(x, 0), high = max(x, 0). Symmetric: high = max(-low, high), and low = -high if low < 0.
    2. scale = (high - low) / 15, stored as float16, and in all that follows not rounded.
       Where the scale is 0: low = -1, high = 1 and again, so that a group of zeros has the scale 2/15.
    3. zero_point = clamp(rint(-low / scale), 0, 15), or 8 if symmetric.
    4. code = clamp(rint(x / scale) + zero_point, 0, 15).
    """

    name = "gptq:v2"
    group_size = 128
    parts = ("qweight", "qzeros", "scales", "g_idx")
    lowest_zero_point = 0
    subtracted = 0  # from a zero point before it is stored

    def encode_groups(self, x, scale_dtype, join, symmetric=True):
        low, high = extremes(x, symmetric)
        with np.errstate(over="ignore"):
            scales = (high - low) / np.float32(15)
        stored = store(scales, HALF, "scale")
        empty = self.divisors(scales, stored) == 0
        low, high = np.where(empty, np.float32(-1), low), np.where(empty, np.float32(1), high)
        scales = (high - low) / np.float32(15)
        stored = scales.astype(HALF)
        zero_points = np.full_like(scales, 8) if symmetric else np.rint(-low / scales)
        zero_points = np.clip(zero_points, self.lowest_zero_point, 15)
        codes = self.codes(x, scales[..., None], zero_points[..., None])
        rows = join(codes.astype(np.uint8))
        columns = rows.shape[-1]
        return {
            "qweight": to_words(rows).T,
            "qzeros": to_words(zero_points.T.astype(np.uint8) - np.uint8(self.subtracted)),
            "scales": stored.T,
            "g_idx": (np.arange(columns) // x.shape[-1]).astype(np.int32),
        }

    def divisors(self, scales, stored):
        """What elements are divided by."""
        return scales

    def codes(self, x, scales, zero_points):
        return np.clip(np.rint(x / scales) + zero_points, 0, 15)

    def decode_groups(self, parts, columns, cut, symmetric=None):
        codes = from_words(parts["qweight"].T).astype(np.float32)
        scales = parts["scales"].astype(np.float32).T
        # Without a wrap: the zero point 16 of version 1 is what its readers make of the nibble 15.
        zero_points = from_words(parts["qzeros"]).astype(np.float32).T + np.float32(self.subtracted)
        group = parts.get("g_idx", np.arange(columns) // max(columns // max(scales.shape[-1], 1), 1))
        return cut((codes - zero_points[:, group]) * scales[:, group])


class Gptq(GptqV2):
    """The parts of version 2, but ``qzeros`` holds zero_point - 1.

    As AutoGPTQ rounds to nearest, keeps the result as a float16 weight and packs that; with zero points from 1, because -1 is no
    nibble, and with codes kept in 0..15. Elements beyond float16 count as infinite. float32, one rounding an operation:

    1. and 2. as in version 2, but low = -1, high = 1 also where the scale is 0 as float16.
    3. zero_point = clamp(rint(-low / scale), 1, 15), or 8 if symmetric.
    4. first = clamp(rint(x / scale) + zero_point, 0, 15), with the scale that is not rounded.
    5. weight = (first - zero_point) * scale, rounded to float16.
    6. code = clamp(rint((weight + zero_point * scale) / float16(scale)), 0, 15): the product with the scale that is not rounded,
       the division by the stored one.
    """

    name = "gptq"
    lowest_zero_point = 1
    subtracted = 1

    def read(self, array):
        x = to_float32(array)
        with np.errstate(over="ignore"):
            return np.where(np.isinf(x.astype(HALF)), np.copysign(np.float32(np.inf), x), x)

    def divisors(self, scales, stored):
        return stored

    def codes(self, x, scales, zero_points):
        first = super().codes(x, scales, zero_points)
        with np.errstate(over="ignore"):
            weights = ((first - zero_points) * scales).astype(HALF).astype(np.float32)
        codes = np.rint((weights + zero_points * scales) / scales.astype(HALF).astype(np.float32))
        return np.clip(codes, 0, 15)
