"""``int4``: symmetric, codes -8..7 as two's complement nibbles, x ~ code * scale."""

import numpy as np

from .base import Format, first_largest, pack, reciprocal, store_scales, unpack


class Int4(Format):
    """``packed`` u8 (..., ceil(K/2)), the even element low; ``scales`` (..., G), which may be negative."""

    name = "int4"
    parts = ("packed", "scales")

    def encode_groups(self, x, scale_dtype, join):
        # The extreme element takes code -8, so that all sixteen codes are in use.
        scales = store_scales(first_largest(x) / np.float32(-8), scale_dtype)
        inverse = reciprocal(scales.astype(np.float32))[..., None]
        codes = np.clip(np.rint(x * inverse), -8, 7).astype(np.int8)
        return {"packed": pack(join(codes) & 15), "scales": scales}

    def decode_groups(self, parts, columns, cut):
        nibbles = unpack(parts["packed"], columns).astype(np.int8)
        codes = np.where(nibbles > 7, nibbles - 16, nibbles)
        return cut(codes).astype(np.float32) * parts["scales"].astype(np.float32)[..., None]
