"""``awq``, the GEMM version: a float16 scale and a 4-bit zero point a group, x ~ (code - zero_point) * scale.

W is (N, K). Words hold eight codes along N, in an order of their own.
"""

import numpy as np

from .base import Format, store, to_float32
from .gptq import HALF, from_words, to_words

# The output that nibble i of a word holds, and the nibble that output j is in.
ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
INVERSE = [0, 4, 1, 5, 2, 6, 3, 7]


def half(values):
    """Round float32 to float16 and go on with that in float32."""
    with np.errstate(over="ignore"):
        return values.astype(HALF).astype(np.float32)


def reorder(codes, order):
    """Every eight codes along the last axis in another order."""
    eights = codes.reshape(codes.shape[:-1] + (codes.shape[-1] // 8, 8))
    return eights[..., order].reshape(codes.shape)


class Awq(Format):
    """``qweight`` i32 (K, N/8); ``qzeros`` i32 (G, N/8); ``scales`` f16 (G, N).

    As AutoAWQ rounds to nearest, without its search. Its arithmetic is float16: every operation is a float32 one on float16
    numbers whose result is rounded to float16, h(...) below. Elements beyond float16 count as infinite.

    1. x = h(x), low = min(x), high = max(x): the range need not take in 0.
    2. scale = h(max(h(high - low), h(1e-5)) / 15).
    3. zero_point = clamp(-rint(h(low / scale)), 0, 15).
    4. code = clamp(rint(h(x / scale)) + zero_point, 0, 15).

    AutoAWQ then keeps (code - zero_point) * scale as the weight and rounds that once more to pack it, which leads back to the same
    code: the three roundings between move it by less than 0.04. (Only where zero_point * scale is beyond float16 its code is lost.)
    """

    name = "awq"
    group_size = 128
    parts = ("qweight", "qzeros", "scales")

    def read(self, array):
        return half(to_float32(array))

    def encode_groups(self, x, scale_dtype, join):
        low, high = x.min(-1), x.max(-1)
        ranges = np.maximum(half(high - low), np.float32(np.float16(1e-5)))
        stored = store(ranges / np.float32(15), HALF, "scale")
        scales = stored.astype(np.float32)
        # A quotient may be infinite: a group of one number is coded as 0 or 15.
        zero_points = np.clip(-np.rint(half(low / scales)), 0, 15)
        codes = np.clip(np.rint(half(x / scales[..., None])) + zero_points[..., None], 0, 15)
        return {
            "qweight": to_words(reorder(join(codes.astype(np.uint8)).T, ORDER)),
            "qzeros": to_words(reorder(zero_points.astype(np.uint8).T, ORDER)),
            "scales": stored.T,
        }

    def decode_groups(self, parts, columns, cut):
        codes = reorder(from_words(parts["qweight"]), INVERSE).T
        zero_points = reorder(from_words(parts["qzeros"]), INVERSE).T.astype(np.float32)
        scales = parts["scales"].T.astype(np.float32)
        return (cut(codes).astype(np.float32) - zero_points[..., None]) * scales[..., None]
