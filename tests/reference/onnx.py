"""The two blocked formats of ONNX Runtime: groups along K with a zero point of 0..15 or none, x ~ (code - zero_point) * scale.

W is (N, K), the transpose of the weight B (K, N) of an ONNX MatMul.
"""

import numpy as np

from .base import Format, pack, reciprocal, store, unpack


def round_half_away(values):
    """To the nearest integer, a tie away from zero, as C's roundf; adding 0.5 would lead 0.49999997 to 1."""
    whole = np.trunc(values)
    with np.errstate(invalid="ignore"):
        return whole + np.copysign((np.abs(values - whole) >= 0.5).astype(np.float32), values)


class Onnx(Format):
    """What the two layouts share. float32, one rounding an operation; a short last group is that of its elements alone.

    Symmetric:

    1. extreme = max(x) if abs(max(x)) > abs(min(x)), else min(x); in a group of zeros the first element, with its sign.
    2. scale = -extreme / 8, rounded to the scale dtype; it may be negative.

    Asymmetric:

    1. low = min(x, 0), high = max(x, 0).
    2. exact = (high - low) / 15; scale = exact, rounded to the scale dtype.
    3. zero_point = clamp(round_half_away(0 - low / exact), 0, 15), and 0 where exact is 0.

    Both: inverse = 1 / scale, with the rounded scale, and 0 where that is 0; it is infinite for a scale below 2^-128. Then the rule
    of the layout rounds x * inverse.
    """

    def default_scale_dtype(self, array):
        return "float16" if np.asarray(array).dtype == np.float16 else "float32"

    def scale(self, x, scale_dtype, symmetric):
        """Scales, zero points and x * inverse; 0 are the zero points of symmetric codes."""
        low, high = x.min(-1), x.max(-1)
        with np.errstate(all="ignore"):
            if symmetric:
                extreme = np.where(np.abs(high) > np.abs(low), high, low)
                extreme = np.where(extreme == 0, x[..., 0], extreme)
                scales = store(-extreme / np.float32(8), scale_dtype, "scale")
                zero_points = np.zeros(scales.shape, np.float32)
            else:
                low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
                exact = np.abs(high - low) / np.float32(15)  # abs, so that two zeros are +0.0 apart
                scales = store(exact, scale_dtype, "scale")
                quotients = np.divide(low, exact, out=np.zeros_like(low), where=exact != 0)
                zero_points = round_half_away(np.clip(np.float32(0) - quotients, 0, 15))
            return scales, zero_points, x * reciprocal(scales.astype(np.float32))[..., None]


class OnnxMatMulNBits(Onnx):
    """``packed`` u8 (N, G, g/2); ``scales`` (N, G); ``zero_points`` u8 (N, ceil(G/2)) if asymmetric; the even element low.

    code = clamp(round_half_away(x * inverse + zero_point), 0, 15): the zero point, 8 if symmetric, is added before rounding.
    0 * infinity is code 0. The last group is filled with codes 0, an odd row of zero points with 8.
    """

    name = "onnx:matmulnbits"
    parts = ("packed", "scales", "zero_points")

    def encode(self, array, *, group_size=None, **arguments):
        group_size = group_size or self.group_size
        parts = super().encode(array, group_size=group_size, **arguments)
        rows, groups = parts["packed"], parts["scales"].shape[-1]
        packed = np.zeros((len(rows), groups * group_size // 2), np.uint8)
        packed[:, : rows.shape[-1]] = rows
        return parts | {"packed": packed.reshape(len(rows), groups, group_size // 2)}

    def encode_groups(self, x, scale_dtype, join, symmetric=True):
        scales, zero_points, scaled = self.scale(x, scale_dtype, symmetric)
        if symmetric:
            zero_points = zero_points + np.float32(8)
        codes = np.nan_to_num(np.clip(round_half_away(scaled + zero_points[..., None]), 0, 15), nan=0).astype(np.uint8)
        parts = {"packed": pack(join(codes)), "scales": scales}
        if not symmetric:
            filled = np.pad(zero_points, [(0, 0), (0, zero_points.shape[-1] % 2)], constant_values=8)
            parts["zero_points"] = pack(filled)
        return parts

    def decode_groups(self, parts, columns, cut, symmetric=None):
        packed, scales = parts["packed"], parts["scales"].astype(np.float32)
        codes = unpack(packed.reshape(len(packed), packed.shape[1] * packed.shape[2]), columns)
        zero_points = np.full(scales.shape, 8, np.float32)
        if "zero_points" in parts:
            zero_points = unpack(parts["zero_points"], scales.shape[-1]).astype(np.float32)
        return (cut(codes).astype(np.float32) - zero_points[..., None]) * scales[..., None]


class OnnxQdq(Onnx):
    """``packed`` u8, the codes of B (K, N) in its order, two a byte, the even one low; ``scales`` (G, N); ``zero_points`` u8 if asymmetric.

    code = clamp(round_half_away(x * inverse) + zero_point, lowest, lowest + 15): the zero point is added after rounding. Symmetric
    codes are -8..7 in two's complement, the others 0..15. A product that is not finite is the lowest code. Zero points are packed
    like the codes, in the order of the scales; an odd number of either ends with a nibble 0.
    """

    name = "onnx:qdq"
    parts = ("packed", "scales", "zero_points")

    def encode_groups(self, x, scale_dtype, join, symmetric=True):
        scales, zero_points, scaled = self.scale(x, scale_dtype, symmetric)
        lowest = -8 if symmetric else 0
        codes = np.clip(round_half_away(scaled) + zero_points[..., None], lowest, lowest + 15)
        codes = np.where(np.isfinite(scaled), codes, np.float32(lowest)).astype(np.int8)
        parts = {"packed": pack((join(codes) & 15).T.reshape(-1)), "scales": scales.T}
        if not symmetric:
            parts["zero_points"] = pack(zero_points.T.reshape(-1))
        return parts

    def decode_groups(self, parts, columns, cut, symmetric=None):
        scales = parts["scales"].T.astype(np.float32)
        rows, groups = scales.shape
        codes = unpack(parts["packed"], rows * columns).reshape(columns, rows).T.astype(np.int8)
        zero_points = np.zeros(scales.shape, np.float32)
        if "zero_points" in parts:
            zero_points = unpack(parts["zero_points"], rows * groups).reshape(groups, rows).T.astype(np.float32)
        else:
            codes = np.where(codes > 7, codes - 16, codes)
        return (cut(codes).astype(np.float32) - zero_points[..., None]) * scales[..., None]
