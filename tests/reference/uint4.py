"""``uint4``: affine, codes and zero points 0..15, x ~ (code - zero_point) * scale."""

import numpy as np

from .base import Format, pack, reciprocal, store_scales, unpack


class Uint4(Format):
    """``packed`` u8 (..., ceil(K/2)); ``scales`` (..., G); ``zero_points`` u8 (..., ceil(G/2)); the even element low."""

    name = "uint4"
    parts = ("packed", "scales", "zero_points")

    def encode_groups(self, x, scale_dtype, join):
        zero = np.float32(0)
        # The range always takes in 0, so that 0 has a code of its own.
        low, high = x.min(-1, initial=zero), x.max(-1, initial=zero)
        scales = store_scales(high / np.float32(15) - low / np.float32(15), scale_dtype)
        inverse = reciprocal(scales.astype(np.float32))
        zero_points = np.clip(np.rint(-low * inverse), 0, 15)
        codes = np.clip(np.rint(x * inverse[..., None]) + zero_points[..., None], 0, 15).astype(np.uint8)
        return {"packed": pack(join(codes)), "scales": scales, "zero_points": pack(zero_points.astype(np.uint8))}

    def decode_groups(self, parts, columns, cut):
        codes = cut(unpack(parts["packed"], columns)).astype(np.float32)
        scales = parts["scales"].astype(np.float32)
        zero_points = unpack(parts["zero_points"], scales.shape[-1]).astype(np.float32)
        return (codes - zero_points[..., None]) * scales[..., None]
