"""``hqq``: groups with a scale and a zero point that is a float, x ~ (code - zero_point) * scale."""

import numpy as np

from .base import Format, store


class Hqq(Format):
    """``packed`` u8 (R/2, g), where R is the number of groups; ``scales`` and ``zero_points`` (..., G).

    The groups are the rows of a matrix (R, g) of codes: byte (i, j) is code (i, j) high and code (i + R/2, j) low.

    The rule is ours, since HQQ's solver starts from the extremes and then searches. float32, one rounding an operation:

    1. low = min(x), high = max(x).
    2. scale = (high - low) / 15, rounded to the scale dtype; where that is below 2^-126 the scale is 1, as in a group of one number.
    3. zero_point = 0 - low / scale, with the rounded scale, rounded to the scale dtype.
    4. code = clamp(rint(x / scale + zero_point), 0, 15), with the rounded scale and zero point.
    """

    name = "hqq"
    group_size = 64
    parts = ("packed", "scales", "zero_points")

    def encode_groups(self, x, scale_dtype, join):
        low, high = x.min(-1), x.max(-1)
        with np.errstate(over="ignore"):
            stored = store((high - low) / np.float32(15), scale_dtype, "scale")
            stored = np.where(stored.astype(np.float32) < np.float32(2.0**-126), scale_dtype.type(1), stored)
            scales = stored.astype(np.float32)
            # Subtracted from 0, so that a zero point of 0 is +0.0.
            zero_points = store(np.float32(0) - low / scales, scale_dtype, "zero point")
        codes = np.rint(x / scales[..., None] + zero_points.astype(np.float32)[..., None])
        rows = np.clip(codes, 0, 15).astype(np.uint8).reshape(-1, x.shape[-1])
        first, second = np.split(rows, 2)
        return {"packed": first << 4 | second, "scales": stored, "zero_points": zero_points}

    def decode_groups(self, parts, columns, cut):
        packed = parts["packed"]
        scales, zero_points = (parts[part].astype(np.float32)[..., None] for part in ("scales", "zero_points"))
        rows = np.concatenate([packed >> 4, packed & 15]).astype(np.float32)
        return (rows.reshape(scales.shape[:-1] + (packed.shape[-1],)) - zero_points) * scales
