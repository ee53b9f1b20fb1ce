"""MXFP4 in four layouts: groups of 32 E2M1 codes under a power of two, x ~ number(code) * 2^(byte - 127)."""

import numpy as np

from . import e2m1
from .base import Format, pack, pack_halves, unpack, unpack_halves


class MxFp4(Format):
    """What the layouts share; each class below says how its project chooses exponents and rounds."""

    exponents = staticmethod(e2m1.even)
    nearest = staticmethod(e2m1.nearest_even)

    def encode_bytes(self, x):
        """Exponents (..., G) and codes (..., G, 32)."""
        exponents = self.exponents(x)
        # A power of two divides without rounding, but for what is far too small to be anything but code 0.
        with np.errstate(under="ignore"):
            return exponents, self.nearest(x / e2m1.power(exponents)[..., None])

    def decode_bytes(self, exponents, codes):
        return e2m1.NUMBERS[codes] * e2m1.power(exponents)[..., None]


class GgufMxFp4(MxFp4):
    """``blocks`` u8 (..., 17 a group): the exponent, then 16 bytes of codes, j low with j + 16 high."""

    name = "gguf:mxfp4"
    parts = ("blocks",)
    exponents = staticmethod(e2m1.floor_of_log2)
    nearest = staticmethod(e2m1.nearest_toward_zero)

    def encode_groups(self, x, scale_dtype, join):
        exponents, codes = self.encode_bytes(x)
        blocks = np.concatenate([exponents[..., None], pack_halves(codes)], -1)
        return {"blocks": blocks.reshape(blocks.shape[:-2] + (17 * blocks.shape[-2],))}

    def decode_groups(self, parts, columns, cut):
        blocks = parts["blocks"]
        blocks = blocks.reshape(blocks.shape[:-1] + (blocks.shape[-1] // 17, 17))
        codes = unpack_halves(blocks[..., 1:])
        # ggml's table has no negative zero.
        return self.decode_bytes(blocks[..., 0], np.where(codes == 8, 0, codes))


class GptOssMxFp4(MxFp4):
    """``blocks`` u8 (..., G, 16), the even element low; ``scales`` u8 (..., G), the exponents."""

    name = "gptoss:mxfp4"
    parts = ("blocks", "scales")

    def encode_groups(self, x, scale_dtype, join):
        exponents, codes = self.encode_bytes(x)
        packed = pack(join(codes))
        return {"blocks": packed.reshape(exponents.shape + (16,)), "scales": exponents}

    def decode_groups(self, parts, columns, cut):
        return self.decode_bytes(parts["scales"], unpack(parts["blocks"], 32))


class MlxMxFp4(MxFp4):
    """``weight`` u32 (..., K/8), eight codes a word from the lowest bits up; ``scales`` u8 (..., G), the exponents."""

    name = "mlx:mxfp4"
    parts = ("weight", "scales")
    exponents = staticmethod(e2m1.round_up)
    nearest = staticmethod(e2m1.nearest_toward_zero)

    def encode_groups(self, x, scale_dtype, join):
        exponents, codes = self.encode_bytes(x)
        return {"weight": pack(join(codes)).view("<u4"), "scales": exponents}

    def decode_groups(self, parts, columns, cut):
        packed = np.ascontiguousarray(parts["weight"], "<u4").view(np.uint8)
        return self.decode_bytes(parts["scales"], cut(unpack(packed, columns)))


class CompressedTensorsMxFp4(MxFp4):
    """``weight_packed`` u8 (..., K/2), the even element low; ``weight_scale`` u8 (..., G), the exponents."""

    name = "compressed-tensors:mxfp4"
    parts = ("weight_packed", "weight_scale")

    def encode_groups(self, x, scale_dtype, join):
        exponents, codes = self.encode_bytes(x)
        return {"weight_packed": pack(join(codes)), "weight_scale": exponents}

    def decode_groups(self, parts, columns, cut):
        return self.decode_bytes(parts["weight_scale"], cut(unpack(parts["weight_packed"], columns)))
