"""The 4-bit float E2M1, its shared exponent E8M0, and the rules by which encoders of MXFP4 choose both."""

import numpy as np

MAGNITUDES = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
NUMBERS = np.concatenate([MAGNITUDES, -MAGNITUDES])  # code 8 is -0.0


def nearest_toward_zero(x):
    """The first of the nearest numbers: a tie goes toward zero, and what rounds to zero is code 0."""
    with np.errstate(over="ignore"):
        return np.abs(x[..., None] - NUMBERS).argmin(-1).astype(np.uint8)


def nearest_even(x):
    """The nearest number, a tie to the even code; code 8 for a negative number that rounds to zero."""
    distances = np.abs(np.minimum(np.abs(x), np.float32(6))[..., None] - MAGNITUDES)
    nearest = distances == distances.min(-1, keepdims=True)
    # Of two that are equally near one has an even code, and it is the only even one.
    even_first = np.array([0, 2, 4, 6, 1, 3, 5, 7])
    codes = even_first[nearest[..., even_first].argmax(-1)].astype(np.uint8)
    return np.where(x < 0, codes + np.uint8(8), codes)


def largest(x):
    """The largest magnitude of each group."""
    return np.abs(x).max(-1, initial=np.float32(0))


def exponent_field(values):
    """Floor of log2 + 127 by the bits of positive normal float32 numbers; 0 for subnormal ones and 0."""
    return (values.view(np.uint32) >> 23).astype(np.int32)


def floor_of_log2(x):
    """floor(log2(largest)) - 2, where the logarithm is rounded to float32: just below a power of two it may be that power.

    For groups so small that the exponent leaves its byte ggml wraps around; here it stays at 0.
    """
    with np.errstate(divide="ignore"):
        logarithm = np.log2(largest(x).astype(np.float64)).astype(np.float32)
    return np.clip(np.floor(logarithm) - 2 + 127, 0, 254).astype(np.uint8)


def even(x):
    """The exponent of the largest, one more where its mantissa is 1.75 or more, - 2."""
    raised = (largest(x).view(np.uint32) + np.uint32(0x0020_0000)).view(np.float32)
    return np.clip(exponent_field(raised) - 2, 0, 254).astype(np.uint8)


def round_up(x):
    """The smallest power of two that is not below largest / 6; 127 where that is 0.

    For groups so small that the exponent leaves its byte MLX wraps around; here it stays at 0.
    """
    sixth = largest(x) / np.float32(6)
    mantissa, exponent = np.frexp(sixth)  # mantissa in [0.5, 1)
    byte = exponent + 127 - (mantissa == 0.5)
    return np.where(sixth == 0, 127, np.clip(byte, 0, 254)).astype(np.uint8)


def power(exponents):
    """2^(byte - 127) as float32, NaN for 255."""
    powers = np.ldexp(np.float32(1), np.minimum(exponents, 254).astype(np.int32) - 127)
    return np.where(exponents == 255, np.float32(np.nan), powers)
