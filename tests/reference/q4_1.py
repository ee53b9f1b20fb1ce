"""``gguf:q4_1`` of ggml: groups of 32 with a minimum, x ~ code * scale + minimum."""

import numpy as np

from .base import Format, pack_halves, reciprocal, store, truncate, unpack_halves


class Q4_1(Format):
    """``blocks`` u8 (..., 20 a group): scale and minimum as float16, then 16 bytes of codes, j low with j + 16 high."""

    name = "gguf:q4_1"
    parts = ("blocks",)

    def encode_groups(self, x, scale_dtype, join):
        # The first of equal elements counts: it decides between a minimum of -0.0 and one of +0.0.
        low = np.take_along_axis(x, x.argmin(-1, keepdims=True), -1)
        high = np.take_along_axis(x, x.argmax(-1, keepdims=True), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            scales = (high - low) / np.float32(15)
            # The codes come from scale and minimum before they are rounded to float16.
            codes = np.minimum(truncate((x - low) * reciprocal(scales) + np.float32(0.5)), 15).astype(np.uint8)
        half = np.dtype("<f2")
        stored = [store(scales, half, "scale").view(np.uint8), store(low, half, "minimum").view(np.uint8)]
        blocks = np.concatenate([*stored, pack_halves(codes)], -1)
        return {"blocks": blocks.reshape(blocks.shape[:-2] + (20 * blocks.shape[-2],))}

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 20, 20))
        scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
        minimums = np.ascontiguousarray(blocks[..., 2:4]).view("<f2").astype(np.float32)
        return unpack_halves(blocks[..., 4:]).astype(np.float32) * scales + minimums
