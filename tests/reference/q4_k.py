"""``gguf:q4_k`` of ggml: groups of 32 with a 6-bit scale and a 6-bit minimum, x ~ code * (scale * s) - minimum * m."""

import numpy as np

from .base import Format, store

HALF = np.dtype("<f2")
F32 = np.float32


def round_to_int(values):
    """The nearest integer as ggml finds it: the low bits of the sum with 1.5 * 2^23, whatever they are for a large number."""
    with np.errstate(invalid="ignore"):
        return ((values + F32(12582912)).view(np.int32) & 0x7FFFFF) - 0x400000


def in_order(terms):
    """The sum of each group from its first element to its last, in float32."""
    total = terms[..., 0]
    for i in range(1, terms.shape[-1]):
        total = total + terms[..., i]
    return total


def search(x, largest=15, first=-1.0, steps=21):
    """Scale, depth (what the minimum is below zero) and codes 0..largest of each group."""
    high, low = x.max(-1), np.minimum(x.min(-1), F32(0))
    with np.errstate(over="ignore", invalid="ignore"):
        average = np.sqrt(in_order(x * x) / F32(32))
        weights = average[..., None] + np.abs(x)
        total, total_x = in_order(weights), in_order(weights * x)

    def codes_for(numerator, low):
        inverse = F32(numerator) / (high - low)
        codes = np.clip(round_to_int(inverse[..., None] * (x - low[..., None])), 0, largest)
        return inverse, codes.astype(F32)

    def error(scale, low, codes):
        difference = scale[..., None] * codes + low[..., None] - x
        return in_order(weights * (difference * difference))

    with np.errstate(all="ignore"):
        inverse, codes = codes_for(largest, low)
        scale = F32(1) / inverse
        least = error(scale, low, codes)
        for step in range(steps):
            _, tried = codes_for(F32(first) + F32(0.1) * F32(step) + F32(largest), low)
            weighted = weights * tried
            sums, squares, products = in_order(weighted), in_order(weighted * tried), in_order(weighted * x)
            determinant = total * squares - sums * sums
            fitted = (total * products - total_x * sums) / determinant
            lowest = (squares * total_x - sums * products) / determinant
            fitted = np.where(lowest > 0, products / squares, fitted)
            lowest = np.where(lowest > 0, F32(0), lowest)
            distance = error(fitted, lowest, tried)
            better = (determinant > 0) & (distance < least)
            least, scale, low = np.where(better, distance, least), np.where(better, fitted, scale), np.where(better, lowest, low)
            codes = np.where(better[..., None], tried, codes)
    return scale, -low, codes.astype(np.uint8)


def factors_of(values):
    """The largest of eight (at least 0) / 63, and each of them in 6 bits against it."""
    largest = np.maximum(values.max(-1), F32(0))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        unit = np.where(largest > 0, F32(63) / largest, F32(0))
        factors = round_to_int(unit[..., None] * values)
    return largest / F32(63), np.minimum(factors.astype(np.uint8), 63)


def header(scale, s, minimum, m):
    """The 16 bytes of blocks from scale, minimum and factors, and the scales and depths of their groups."""
    scale, minimum = store(scale, HALF, "scale"), store(minimum, HALF, "minimum")
    first = s[..., :4] | s[..., 4:] >> 4 << 6
    second = m[..., :4] | m[..., 4:] >> 4 << 6
    third = s[..., 4:] & 15 | (m[..., 4:] & 15) << 4
    halves = [half[..., None].view(np.uint8) for half in (scale, minimum)]
    stored = np.concatenate([*halves, first, second, third], -1)
    return stored, scale.astype(F32)[..., None] * s, minimum.astype(F32)[..., None] * m


def header_of(blocks):
    """Scales and depths of the groups of blocks."""
    scale, minimum = np.moveaxis(np.ascontiguousarray(blocks[..., :4]).view(HALF).astype(F32), -1, 0)
    first, second, third = blocks[..., 4:8], blocks[..., 8:12], blocks[..., 12:16]
    s = np.concatenate([first & 63, third & 15 | first >> 6 << 4], -1)
    m = np.concatenate([second & 63, third >> 4 | second >> 6 << 4], -1)
    return scale[..., None] * s, minimum[..., None] * m


class Q4K(Format):
    """``blocks`` u8 (..., 144 for 8 groups): scale and minimum as float16, 12 bytes of factors, 32 bytes for two groups each."""

    name = "gguf:q4_k"
    parts = ("blocks",)
    block = 256

    def encode_groups(self, x, scale_dtype, join):
        x = x.reshape(x.shape[:-2] + (x.shape[-2] // 8, 8, 32))
        fitted, depths, codes = search(x)
        (scale, s), (minimum, m) = factors_of(fitted), factors_of(depths)
        stored, scales, minimums = header(scale, s, minimum, m)
        with np.errstate(all="ignore"):
            again = np.clip(round_to_int((x + minimums[..., None]) / scales[..., None]), 0, 15).astype(np.uint8)
        codes = np.where(scales[..., None] == 0, codes, again)
        packed = (codes[..., 0::2, :] | codes[..., 1::2, :] << 4).reshape(scale.shape + (128,))
        blocks = np.concatenate([stored, packed], -1)
        return {"blocks": blocks.reshape(blocks.shape[:-2] + (144 * blocks.shape[-2],))}

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 144, 144))
        scales, minimums = header_of(blocks)
        packed = blocks[..., 16:].reshape(blocks.shape[:-1] + (4, 1, 32))
        codes = np.concatenate([packed & 15, packed >> 4], -2).reshape(blocks.shape[:-1] + (8, 32))
        values = scales[..., None] * codes - minimums[..., None]
        return values.reshape(values.shape[:-3] + (8 * values.shape[-3], 32))
