"""The companions of ggml's 4-bit formats: ``gguf:q8_0``, ``gguf:q5_0``, ``gguf:q5_1``, ``gguf:q5_k`` and ``gguf:q6_k``."""

import numpy as np

from .base import Format, first_largest, pack_halves, reciprocal, store, truncate, unpack_halves
from .q4_k import factors_of, header, header_of, in_order, round_to_int, search

HALF = np.dtype("<f2")
F32 = np.float32


def halves(blocks, *at):
    """The float16 numbers at bytes ``at`` of each block, as float32."""
    return [np.ascontiguousarray(blocks[..., i : i + 2]).view(HALF).astype(F32) for i in at]


def joined(*parts):
    """Blocks of these pieces, those of a row one after the other."""
    blocks = np.concatenate(parts, -1)
    return {"blocks": blocks.reshape(blocks.shape[:-2] + (blocks.shape[-2] * blocks.shape[-1],))}


def away_from_zero(values):
    """Rounded, halves away from zero; 0 for what is not finite."""
    values = np.where(np.isfinite(values), values, F32(0))
    return np.trunc(values + np.copysign(np.float64(0.5), values))


class Q8_0(Format):
    """``blocks`` u8 (..., 34 a group): the scale as float16, then 32 codes as int8."""

    name = "gguf:q8_0"
    parts = ("blocks",)

    def encode_groups(self, x, scale_dtype, join):
        scales = np.abs(x).max(-1) / F32(127)
        with np.errstate(over="ignore", invalid="ignore"):
            codes = away_from_zero(x * reciprocal(scales)[..., None]).astype(np.int8)
        return joined(store(scales, HALF, "scale")[..., None].view(np.uint8), codes.view(np.uint8))

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 34, 34))
        [scales] = halves(blocks, 0)
        return blocks[..., 2:].view(np.int8).astype(F32) * scales


def pack_five(codes):
    """Codes 0..31 of blocks (..., 32): a word of fifth bits, then the lower four."""
    fifth = np.packbits(codes >> 4, axis=-1, bitorder="little")
    return np.concatenate([fifth, pack_halves(codes & 15)], -1)


def unpack_five(packed):
    """Undo :func:`pack_five`."""
    return unpack_halves(packed[..., 4:]) | np.unpackbits(packed[..., :4], axis=-1, bitorder="little") << 4


class Q5_0(Format):
    """``blocks`` u8 (..., 22 a group): the scale as float16, 32 fifth bits, 16 bytes of the lower four, j low with j + 16 high."""

    name = "gguf:q5_0"
    parts = ("blocks",)

    def encode_groups(self, x, scale_dtype, join):
        largest = first_largest(x)
        scales = np.where(largest == 0, F32(0), largest) / F32(-16)
        with np.errstate(over="ignore", invalid="ignore"):
            codes = np.minimum(truncate(x * reciprocal(scales)[..., None] + F32(16.5)), 31).astype(np.uint8)
        return joined(store(scales, HALF, "scale")[..., None].view(np.uint8), pack_five(codes))

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 22, 22))
        [scales] = halves(blocks, 0)
        return (unpack_five(blocks[..., 2:]).astype(F32) - F32(16)) * scales


class Q5_1(Format):
    """``blocks`` u8 (..., 24 a group): scale and minimum as float16, then codes as in :class:`Q5_0`."""

    name = "gguf:q5_1"
    parts = ("blocks",)

    def encode_groups(self, x, scale_dtype, join):
        low = np.take_along_axis(x, x.argmin(-1, keepdims=True), -1)
        high = np.take_along_axis(x, x.argmax(-1, keepdims=True), -1)
        with np.errstate(over="ignore", invalid="ignore"):
            scales = (high - low) / F32(31)
            codes = truncate((x - low) * reciprocal(scales) + F32(0.5)) & 31
        stored = [store(scales, HALF, "scale").view(np.uint8), store(low, HALF, "minimum").view(np.uint8)]
        return joined(*stored, pack_five(codes.astype(np.uint8)))

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 24, 24))
        scales, minimums = halves(blocks, 0, 2)
        return unpack_five(blocks[..., 4:]).astype(F32) * scales + minimums


class Q5K(Format):
    """``blocks`` u8 (..., 176 for 8 groups): the header of Q4_K, 32 bytes with a fifth bit of each group, 32 bytes for two groups each."""

    name = "gguf:q5_k"
    parts = ("blocks",)
    block = 256

    def encode_groups(self, x, scale_dtype, join):
        x = x.reshape(x.shape[:-2] + (x.shape[-2] // 8, 8, 32))
        fitted, depths, codes = search(x, largest=31, first=-0.5, steps=16)
        (scale, s), (minimum, m) = factors_of(fitted), factors_of(depths)
        stored, scales, minimums = header(scale, s, minimum, m)
        with np.errstate(all="ignore"):
            again = np.clip(round_to_int((x + minimums[..., None]) / scales[..., None]), 0, 31)
        codes = np.where(scales[..., None] != 0, again, codes).astype(np.uint8)
        fifth = np.packbits(np.swapaxes(codes >> 4, -1, -2), axis=-1, bitorder="little")[..., 0]
        low = (codes[..., 0::2, :] & 15) | (codes[..., 1::2, :] & 15) << 4
        return joined(stored, fifth, low.reshape(low.shape[:-2] + (128,)))

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 176, 176))
        scales, minimums = header_of(blocks)
        low = blocks[..., 48:].reshape(blocks.shape[:-1] + (4, 1, 32))
        low = np.concatenate([low & 15, low >> 4], -2).reshape(blocks.shape[:-1] + (8, 32))
        fifth = np.swapaxes(np.unpackbits(blocks[..., 16:48, None], axis=-1, bitorder="little"), -1, -2)
        x = (low | fifth << 4).astype(F32) * scales[..., None] - minimums[..., None]
        return x.reshape(x.shape[:-3] + (8 * x.shape[-3], 32))


def search_symmetric(x):
    """Scale and codes of each group of 16, by the weights x^2: nineteen candidates."""
    largest = first_largest(x)

    def fit(numerator):
        codes = np.clip(round_to_int((F32(numerator) / largest)[..., None] * x), -32, 31).astype(F32)
        weights = x * x
        return codes, in_order(weights * x * codes), in_order(weights * codes * codes)

    with np.errstate(all="ignore"):
        codes, products, squares = fit(-32)
        scale = np.where(squares == 0, F32(0), products / squares)
        best = scale * products
        for step in [*range(-9, 0), *range(1, 10)]:
            tried, products, squares = fit(-(F32(32) + F32(0.1) * F32(step)))
            better = (squares > 0) & (products * products > best * squares)
            scale = np.where(better, products / squares, scale)
            best = np.where(better, scale * products, best)
            codes = np.where(better[..., None], tried, codes)
    zero = np.abs(largest) < F32(1e-15)
    return np.where(zero, F32(0), scale), np.where(zero[..., None], F32(-32), codes)


class Q6K(Format):
    """``blocks`` u8 (..., 210 for 16 groups): 128 bytes of lower four bits, 64 of upper two, 16 factors as int8, the scale as float16."""

    name = "gguf:q6_k"
    parts = ("blocks",)
    group_size = 16
    block = 256

    def encode_groups(self, x, scale_dtype, join):
        x = x.reshape(x.shape[:-2] + (x.shape[-2] // 16, 16, 16))
        fitted, codes = search_symmetric(x)
        if not np.isfinite(fitted).all():
            raise OverflowError("sums of a group are beyond float32")
        largest = first_largest(fitted)
        zero = np.abs(largest) < F32(1e-15)
        with np.errstate(all="ignore"):
            inverse = F32(-128) / largest
            factors = np.where(zero[..., None], 0, np.minimum(round_to_int(inverse[..., None] * fitted), 127)).astype(np.int8)
            scale = store(np.where(zero, F32(0), F32(1) / inverse), HALF, "scale")
            scales = scale.astype(F32)[..., None] * factors.astype(F32)
            again = np.clip(round_to_int(x / scales[..., None]), -32, 31)
        codes = (np.where(scales[..., None] != 0, again, codes) + 32).astype(np.uint8)
        # Element 128 h + 32 q + l: half h, quarter q.
        codes = codes.reshape(codes.shape[:-2] + (2, 4, 32))
        low = (codes[..., :2, :] & 15) | (codes[..., 2:, :] & 15) << 4
        high = sum((codes[..., q, :] >> 4) << (2 * q) for q in range(4))
        flat = low.reshape(scale.shape + (128,)), high.reshape(scale.shape + (64,))
        return joined(*flat, factors.view(np.uint8), scale[..., None].view(np.uint8))

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 210, 210))
        [scale] = halves(blocks, 208)
        scales = scale * blocks[..., 192:208].view(np.int8).astype(F32)
        low = blocks[..., :128].reshape(blocks.shape[:-1] + (2, 2, 32))
        high = blocks[..., 128:192].reshape(blocks.shape[:-1] + (2, 1, 32)) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
        codes = np.concatenate([low & 15, low >> 4], -2) | high << 4
        x = (codes.astype(F32) - F32(32)).reshape(blocks.shape[:-1] + (16, 16)) * scales[..., None]
        return x.reshape(x.shape[:-3] + (16 * x.shape[-3], 16))
