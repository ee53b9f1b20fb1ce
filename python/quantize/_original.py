"""The four functions of the original package: one scale for the whole array, one code a byte.

x ~ (code - zero_point) * scale, codes -8..7. ``docs/original.md`` lists what differs from the original, and why. Imports that
were written for it find this module as ``quantize.quantize``. New code has :func:`quantize.quantize`: a scale for every few
elements leaves less than half the error, and two codes share a byte.
"""

from typing import Literal, TypeVar

import numpy as np
import numpy.typing as npt

from ._api import pack, unpack

__all__ = ["dequantize_from_int4", "pack_int4_to_int8", "quantize_to_int4", "unpack_int8_to_int4"]

Float = TypeVar("Float", np.float32, np.float64)

LOWEST, HIGHEST = -8, 7


def quantize_to_int4(
    values: npt.ArrayLike, scale_method: Literal["minmax", "absmax"] = "minmax"
) -> tuple[npt.NDArray[np.int8], np.float32 | np.float64, int]:
    """Quantize ``values`` to 4-bit codes with one scale and one zero point.

    Parameters
    ----------
    values : array of real numbers, of any shape, or nested lists
        Not empty, all finite.
    scale_method : {"minmax", "absmax"}
        ``minmax`` spreads the sixteen codes over the range of the values, in float64::

            scale = (max - min) / 15
            zero_point = rne(-8 - min / scale)
            code = clip(rne(x / scale) + zero_point, -8, 7)

        so that every value is within half a scale of what its code decodes to. The zero point may lie far outside -8..7. A
        constant c has scale abs(c) and code sign(c), or scale 1 where it is 0.
        ``absmax`` is symmetric, in float32, and leaves code -8 unused::

            scale = max(abs(x)) / 7
            zero_point = 0
            code = clip(rne(x / scale), -8, 7)

    Returns
    -------
    codes : int8 array of the shape of ``values``
        One code, -8..7, an element.
    scale : float64 for ``minmax``, float32 for ``absmax``
    zero_point : int

    Raises
    ------
    ValueError
        No such method, no values, a value that is not finite, or a range beyond the largest float.
    TypeError
        Values that are not real numbers.

    Examples
    --------
    >>> codes, scale, zero_point = quantize_to_int4([10.0, 12.0, 15.0, 25.0])
    >>> codes
    array([-8, -6, -3,  7], dtype=int8)
    >>> dequantize_from_int4(codes, scale, zero_point)
    array([10., 12., 15., 25.])
    """
    if scale_method == "minmax":
        return _affine(_finite(values, np.float64))
    if scale_method == "absmax":
        return _symmetric(_finite(values, np.float32))
    raise ValueError(f"scale_method is {scale_method!r}; expected 'minmax' or 'absmax'")


def _affine(x: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.int8], np.float64, int]:
    lowest = x.min()
    with np.errstate(over="ignore"):
        scale = (x.max() - lowest) / np.float64(HIGHEST - LOWEST)
    if np.isinf(scale):
        raise ValueError("the range of values is beyond the largest float64; divide them by 2 and double the scale")
    zero_point = 0
    if scale > 0:
        zero_point = int(np.rint(LOWEST - lowest / scale))
    else:  # no range to divide: the magnitude is the step
        scale = np.abs(x).max() or np.float64(1)
    return _clip(np.rint(x / scale) + zero_point), scale, zero_point


def _symmetric(x: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], np.float32, int]:
    scale = np.abs(x).max() / np.float32(HIGHEST) or np.float32(1)
    return _clip(np.rint(x / scale)), scale, 0


def _clip(codes: npt.NDArray[np.floating]) -> npt.NDArray[np.int8]:
    """To int8, in this order: a cast before the clip would wrap."""
    return np.asarray(np.clip(codes, LOWEST, HIGHEST), np.int8)


def _finite(values: npt.ArrayLike, dtype: type[Float]) -> npt.NDArray[Float]:
    array = np.asarray(values)
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise TypeError(f"values has dtype {array.dtype}; expected real numbers")
    if array.size == 0:
        raise ValueError("values is empty; a scale needs at least one element")
    with np.errstate(over="ignore"):
        array = array.astype(dtype)
    if not np.isfinite(array).all():
        raise ValueError(f"values holds NaN, an infinity or a number beyond {dtype.__name__}; clean it first")
    return array


def dequantize_from_int4(codes: npt.ArrayLike, scale: float | np.floating, zero_point: int = 0) -> npt.NDArray[np.floating]:
    """Decode codes of :func:`quantize_to_int4`: (code - zero_point) * scale.

    Parameters
    ----------
    codes : array of integers, of any shape
    scale : float
    zero_point : int

    Returns
    -------
    array of the shape of ``codes``
        float64 where ``scale`` is a numpy float64, float32 for a narrower or a Python float.

    Examples
    --------
    >>> dequantize_from_int4([-8, 0, 7], 0.5)
    array([-4. ,  0. ,  3.5], dtype=float32)
    """
    dtype = np.promote_types(np.float32, getattr(scale, "dtype", np.float32))
    # The product of two of these float32 numbers is exact in float64, so that it is rounded once.
    steps = np.asarray(codes, np.float64) - zero_point
    return np.asarray(steps * np.asarray(scale, dtype), dtype)


def pack_int4_to_int8(codes: npt.ArrayLike) -> npt.NDArray[np.int8]:
    """Pack codes -8..7 two a byte along the first axis, the even one in the low nibble.

    Parameters
    ----------
    codes : (n, ...) array of integers, or nested lists
        One code an element.

    Returns
    -------
    (ceil(n / 2), ...) int8 array
        An odd n is filled up with one code 0.

    Raises
    ------
    ValueError
        A code outside -8..7, or a single number in place of an array.
    TypeError
        Codes that are not integers.

    Examples
    --------
    >>> pack_int4_to_int8([1, -2, 7])
    array([-31,   7], dtype=int8)
    """
    array = _with_an_axis(codes, "codes")
    packed = pack(np.moveaxis(array, 0, -1))
    return np.moveaxis(packed.view(np.int8), -1, 0)


def unpack_int8_to_int4(packed: npt.ArrayLike) -> npt.NDArray[np.int8]:
    """Undo :func:`pack_int4_to_int8`; the caller drops the last code where it was a filling.

    Parameters
    ----------
    packed : (n, ...) int8 or uint8 array, or nested lists of -128..127

    Returns
    -------
    (2 n, ...) int8 array
        Codes -8..7.

    Raises
    ------
    ValueError
        A number outside -128..127, or a single number in place of an array.
    TypeError
        An array that is not of integers.

    Examples
    --------
    >>> unpack_int8_to_int4([-31, 7])
    array([ 1, -2,  7,  0], dtype=int8)
    """
    array = _with_an_axis(packed, "packed")
    if array.dtype != np.uint8:
        if array.dtype.kind not in "iu":
            raise TypeError(f"packed has dtype {array.dtype}; expected int8 or uint8")
        if array.size and not -128 <= array.min() <= array.max() <= 127:
            raise ValueError("packed holds a number outside -128..127; expected bytes")
        array = array.astype(np.int8).view(np.uint8)
    codes = unpack(np.moveaxis(array, 0, -1), 2 * len(array))
    return np.moveaxis(codes.astype(np.int8, copy=False), -1, 0)


def _with_an_axis(values: npt.ArrayLike, name: str) -> npt.NDArray[np.generic]:
    array = np.asarray(values)
    if array.ndim == 0:
        raise ValueError(f"{name} is a single number; expected an array")
    return array if array.size else array.astype(np.int8)  # numpy makes an empty list float64
