"""``gguf:iq4_nl`` and ``gguf:iq4_xs`` of ggml: groups of 32 under a table of 16 numbers, x ~ table[code] * scale."""

import numpy as np

from .base import Format, first_largest, pack_halves, reciprocal, store, unpack_halves

TABLE = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
HALF = np.dtype("<f2")


def nearest(values):
    """The code of the nearest entry of the table; the upper one of two that are as near."""
    upper = np.clip(np.searchsorted(TABLE, values, side="right"), 1, 15)
    lower = upper - 1
    return np.where(values - TABLE[lower] < TABLE[upper] - values, lower, upper).astype(np.uint8)


def in_order(terms):
    """The sum of each group from its first element to its last, in float32."""
    total = np.zeros(terms.shape[:-1], np.float32)
    for i in range(terms.shape[-1]):
        total = total + terms[..., i]
    return total


def search(x):
    """The scale of each group that ggml's search ends with, in float32."""
    largest = first_largest(x)
    with np.errstate(over="ignore", under="ignore"):
        weights = x * x

    def sums(inverse):
        numbers = TABLE[nearest(x * inverse[..., None])]
        weighted = weights * numbers
        return in_order(weighted * x), in_order(weighted * numbers)

    with np.errstate(all="ignore"):
        products, squares = sums(np.float32(1) / (largest / np.float32(127)))
        scale = np.where(squares > 0, products / squares, np.float32(0))
        best = scale * products
        for step in range(-7, 8):
            products, squares = sums(np.float32(step - 127) / largest)
            better = (squares > 0) & (products * products > best * squares)
            scale = np.where(better, products / squares, scale)
            best = np.where(better, scale * products, best)
    return np.where(np.abs(largest) < np.float32(1e-15), np.float32(0), scale)


class Iq4Nl(Format):
    """``blocks`` u8 (..., 18 a group): the scale as float16, then 16 bytes of codes, j low with j + 16 high."""

    name = "gguf:iq4_nl"
    parts = ("blocks",)

    def encode_groups(self, x, scale_dtype, join):
        scales = search(x)
        stored = store(scales, HALF, "scale")[..., None].view(np.uint8)
        # The codes come from the scale before it is rounded to float16.
        codes = nearest(x * reciprocal(scales)[..., None])
        blocks = np.concatenate([stored, pack_halves(codes)], -1)
        return {"blocks": blocks.reshape(blocks.shape[:-2] + (18 * blocks.shape[-2],))}

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 18, 18))
        scales = np.ascontiguousarray(blocks[..., :2]).view(HALF).astype(np.float32)
        return TABLE[unpack_halves(blocks[..., 2:])] * scales


class Iq4Xs(Format):
    """``blocks`` u8 (..., 136 for 8 groups): a float16 scale, a 6-bit factor + 32 for each group, 16 bytes of codes a group.

    Of the factors the upper two bits come first, all in one word of 16 bits, then the lower four, two a byte.
    """

    name = "gguf:iq4_xs"
    parts = ("blocks",)
    block = 256

    def encode_groups(self, x, scale_dtype, join):
        x = x.reshape(x.shape[:-2] + (x.shape[-2] // 8, 8, 32))
        scales = search(x)
        shared = first_largest(scales) / np.float32(-32)
        stored = store(shared, HALF, "scale")[..., None].view(np.uint8)
        factors = np.clip(np.rint(reciprocal(shared)[..., None] * scales), -32, 31)
        codes = nearest(x * reciprocal(shared[..., None] * factors)[..., None])
        bits = (factors + 32).astype(np.uint8)
        upper = np.packbits((bits[..., None] >> np.array([4, 5], np.uint8)) & 1, axis=None, bitorder="little")
        lower = bits[..., 0::2] & 15 | (bits[..., 1::2] & 15) << 4
        blocks = [
            stored,
            upper.reshape(shared.shape + (2,)),
            lower,
            pack_halves(codes).reshape(shared.shape + (128,)),
        ]
        blocks = np.concatenate(blocks, -1)
        return {"blocks": blocks.reshape(blocks.shape[:-2] + (136 * blocks.shape[-2],))}

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 136, 136))
        shared = np.ascontiguousarray(blocks[..., :2]).view(HALF).astype(np.float32)
        i = np.arange(8)
        upper = blocks[..., 2 + i // 4] >> (2 * (i % 4)).astype(np.uint8) & 3
        lower = blocks[..., 4 + i // 2] >> (4 * (i % 2)).astype(np.uint8) & 15
        scales = shared * ((lower | upper << 4).astype(np.float32) - np.float32(32))
        codes = unpack_halves(blocks[..., 8:].reshape(blocks.shape[:-1] + (8, 16)))
        values = TABLE[codes] * scales[..., None]
        return values.reshape(values.shape[:-3] + (8 * values.shape[-3], 32))
