"""``compressed-tensors`` of that project, its pack-quantized: matrices, x ~ (code - zero_point) * scale in words of 8 codes."""

import numpy as np

from .base import SCALE_DTYPES, Format, pack, store, unpack


def pack_words(codes):
    """Codes 0..15 ``(..., n)`` as int32 ``(..., ceil(n / 8))``, from the lowest bits up; the last word is filled with 0."""
    filled = np.zeros(codes.shape[:-1] + (-(-codes.shape[-1] // 8) * 8,), np.uint8)
    filled[..., : codes.shape[-1]] = codes
    return pack(filled).view("<i4")


def unpack_words(words, count):
    return unpack(np.ascontiguousarray(words, "<i4").view(np.uint8), count)


class CompressedTensors(Format):
    """``weight_packed`` i32 (N, ceil(K/8)), ``weight_scale`` (N, G), ``weight_zero_point`` i32 (ceil(N/8), G), ``weight_shape`` i64 (2,).

    There are zero points only where ``symmetric`` is False. Words are filled from the lowest bits up: of columns in
    ``weight_packed``, of rows in ``weight_zero_point``. Scales have the dtype of the array, float32 where that is none
    of the three.

    Encode. All arithmetic is in that dtype: each operation is a float32 one, rounded to it (``round`` below).

    1. low = min(0, smallest x), high = max(0, largest x) of the group.
    2. Symmetric: scale = round(max(-low, high) / 7.5), z = 0.
       Asymmetric: scale = round(round(high - low) / 15), z = rint(clamp(round(-8 - round(low / scale)), -8, 7)) with
       that scale, 0 where low / scale is 0 / 0.
    3. A scale of 0 becomes the epsilon of the dtype: 2^-23, 2^-10 (float16) or 2^-7 (bfloat16).
    4. q = rint(clamp(round(round(x / scale) + z), -8, 7)): divided, and clamped before rounding to an integer.
    5. Stored are q + 8 and z + 8.

    Decode: value = (code - zero_point) * scale in float32, the zero point of a symmetric one 8.
    """

    name = "compressed-tensors"
    group_size = 128
    parts = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape")

    def default_scale_dtype(self, array):
        dtype = np.asarray(array).dtype.name
        return dtype if dtype in SCALE_DTYPES else "float32"

    def encode_groups(self, x, scale_dtype, join, *, symmetric=True):
        def rounded(values):
            return values.astype(scale_dtype).astype(np.float32)

        low, high = x.min(-1, initial=0), x.max(-1, initial=0)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if symmetric:
                scales = rounded(np.maximum(-low, high) / np.float32(7.5))
                zero_points = np.zeros_like(scales)
            else:
                scales = rounded(rounded(high - low) / np.float32(15))
                ideal = np.clip(rounded(np.float32(-8) - rounded(low / scales)), -8, 7)
                zero_points = np.rint(np.nan_to_num(ideal, nan=0))
        epsilon = np.float32({"float32": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}[scale_dtype.name])
        scales = np.where(scales == 0, epsilon, scales)
        with np.errstate(over="ignore"):
            steps = rounded(rounded(x / scales[..., None]) + zero_points[..., None])
        codes = join(np.rint(np.clip(steps, -8, 7)) + 8)
        parts = {"weight_packed": pack_words(codes), "weight_scale": store(scales, scale_dtype, "scale")}
        if not symmetric:
            parts["weight_zero_point"] = pack_words(zero_points.T + 8).T
        return parts | {"weight_shape": np.array(codes.shape, np.int64)}

    def decode_groups(self, parts, columns, cut, *, symmetric=True):
        scales = parts["weight_scale"].astype(np.float32)
        codes = cut(unpack_words(parts["weight_packed"], columns)).astype(np.float32)
        zero_points = np.full_like(scales, 8)
        if not symmetric:
            zero_points = unpack_words(parts["weight_zero_point"].T, len(scales)).T
        return (codes - zero_points[..., None].astype(np.float32)) * scales[..., None]
