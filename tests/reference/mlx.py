"""``mlx``: groups of 32, 64 or 128 with a scale of either sign and a bias, x ~ code * scale + bias."""

import numpy as np

from .base import Format, pack, store, unpack


class Mlx(Format):
    """``weight`` u32 (..., K/8), eight codes a word from the lowest bits up; ``scales`` and ``biases`` (..., G)."""

    name = "mlx"
    group_size = 64
    parts = ("weight", "scales", "biases")

    def default_scale_dtype(self, array):
        dtype = np.asarray(array).dtype.name
        return dtype if dtype in ("float16", "bfloat16") else "float32"

    def encode_groups(self, x, scale_dtype, join):
        low, high = x.min(-1), x.max(-1)
        low_is_larger = np.abs(low) > np.abs(high)
        with np.errstate(all="ignore"):
            step = np.maximum((high - low) / np.float32(15), np.float32(1e-7))
            step = np.where(low_is_larger, step, -step)
            edge = np.where(low_is_larger, low, high)
            steps = np.rint(edge / step)
            # A whole number of steps leads from the bias to zero, so that zero is a value.
            scales = np.where(steps != 0, edge / steps, step)
            biases = np.where(steps != 0, edge, np.float32(0))
            # The codes come from scale and bias before they are rounded. 0 / 0 is a group of one number, which is the bias.
            codes = np.nan_to_num(np.rint((x - biases[..., None]) / scales[..., None]), nan=0)
        return {
            "weight": pack(join(np.clip(codes, 0, 15).astype(np.uint8))).view("<u4"),
            "scales": store(scales, scale_dtype, "scale"),
            "biases": store(biases, scale_dtype, "minimum"),
        }

    def decode_groups(self, parts, columns, cut):
        packed = np.ascontiguousarray(parts["weight"], "<u4").view(np.uint8)
        scales, biases = (parts[part].astype(np.float32)[..., None] for part in ("scales", "biases"))
        with np.errstate(invalid="ignore"):
            return cut(unpack(packed, columns)).astype(np.float32) * scales + biases
