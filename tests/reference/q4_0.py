"""``gguf:q4_0`` of ggml: symmetric groups of 32, x ~ (code - 8) * scale."""

import numpy as np

from .base import Format, first_largest, pack_halves, reciprocal, store, truncate, unpack_halves


class Q4_0(Format):
    """``blocks`` u8 (..., 18 a group): the scale as float16, then 16 bytes of codes, j low with j + 16 high."""

    name = "gguf:q4_0"
    parts = ("blocks",)

    def encode_groups(self, x, scale_dtype, join):
        # ggml starts its search at +0.0 and moves on only for something larger: a group of -0.0 still counts as +0.0.
        largest = first_largest(x)
        scales = np.where(largest == 0, np.float32(0), largest) / np.float32(-8)
        # The codes come from the scale before it is rounded to float16.
        with np.errstate(over="ignore", invalid="ignore"):
            codes = np.minimum(truncate(x * reciprocal(scales)[..., None] + np.float32(8.5)), 15).astype(np.uint8)
        stored = store(scales, np.dtype("<f2"), "scale")[..., None].view(np.uint8)
        blocks = np.concatenate([stored, pack_halves(codes)], -1)
        return {"blocks": blocks.reshape(blocks.shape[:-2] + (18 * blocks.shape[-2],))}

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 18, 18))
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
        return (unpack_halves(blocks[..., 2:]).astype(np.float32) - np.float32(8)) * scales
