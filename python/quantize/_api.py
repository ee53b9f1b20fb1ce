"""The functions of the package: arguments in, the core does the work. Never loops over data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from quantize import _core, _optimum
from quantize._threads import requested
from quantize._types import (
    FLOATS,
    Comparison,
    CpuFeatures,
    FormatInfo,
    GroupSize,
    Method,
    NonFinite,
    QuantizedArray,
    SupportsDLPack,
    float_dtype,
    format_info,
    wrap,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, DTypeLike, NDArray


def quantize(
    array: ArrayLike | SupportsDLPack,
    format: str = "int4",
    *,
    axis: int = -1,
    group_size: GroupSize | None = None,
    scale_dtype: DTypeLike | Literal["bfloat16"] | None = None,
    dtype: DTypeLike | Literal["bfloat16"] | None = None,
    method: Method = "nearest",
    importance: ArrayLike | SupportsDLPack | Literal["magnitude"] | None = None,
    tolerance: float | None = None,
    clip_limit: float | None = None,
    nonfinite: NonFinite = "raise",
    out: Mapping[str, NDArray[Any]] | None = None,
    threads: int | None = None,
    **options: object,
) -> QuantizedArray:
    """Quantize ``array`` to four bits.

    Parameters
    ----------
    array : (..., n) float16, bfloat16, float32 or float64
        Any memory layout and byte order; also anything with ``__dlpack__`` on the CPU or ``__array__``, and nested lists
        of numbers. float64 is rounded to float32 first. Nobody may write to it during the call.
    format : str
        Name or alias; see :func:`formats`.
    axis : int
        The axis that groups run along: the last one in ``bnb:nf4`` and ``bnb:fp4``, whose groups run over all elements. The parts are
        those of ``numpy.moveaxis(array, axis, -1)``.
    group_size : int, "row" or "tensor", optional
        Elements per scale. Default: the format's own. ``-1`` and ``"channel"`` mean ``"row"``.
    scale_dtype : "float16", "bfloat16", "float32" or a dtype, optional
        What scales are stored as, where the format leaves a choice. ``"bfloat16"`` gives its bits in uint16, the dtype of
        ``ml_dtypes`` gives that dtype. Default: the format's own, which may be the dtype of ``array``.
    dtype : optional
        What ``array`` holds. Needed only for bits of bfloat16 in uint16: ``dtype="bfloat16"``.
    method : "nearest", "optimal" or "fast"
        How scales are chosen: by the rule of the format's home project; those of the smallest error that the format can hold; or,
        where that takes long, those that a quick search finds. See :func:`formats` for the formats that have them. Groups then have
        up to 65536 elements.
    importance : None, "magnitude" or ndarray, optional
        What the last two weight the squared error of each element with: nothing; sqrt(mean square of the row + x^2), a row along
        ``axis``, for the weights of a model without data; or floats of 0 or more, of shape (n,), such as the mean squares of the
        inputs of a layer, or of the shape of ``array``. A group of zeros counts as one of equal weights.
    tolerance : float, optional
        By how much of itself the error of a group may be larger than the smallest one with "optimal" in ``gguf:q4_1``, ``mlx`` and
        ``hqq``: 1e-6 to 1, by default 1e-4; in ``gguf:q4_k`` before scales are brought to multiples of shared ones, by default 0.1.
        The larger, the faster. All other formats are searched the same whatever it is.
    clip_limit : float, optional
        How far "optimal" may cut an element, as a part of the largest magnitude of its group, from 0, where every element is within
        the range of the codes, to 1: the smallest error under that limit. In the formats of symmetric codes and tables whose scales
        are ordinary floats. Default: no limit.
    nonfinite : "raise", "zero" or "clip"
        What to do with NaN and infinities: raise; make them 0; or give an infinity the group's largest finite magnitude and
        make NaN 0. The last two warn with the count.
    out : mapping from part name to ndarray, optional
        Write into these arrays, every part of exactly its shape and dtype, C-contiguous and without overlap.
    threads : int, optional
        At most so many threads; see :func:`set_threads`. The bytes do not depend on it.
    **options
        Options of the format, where it has more: ``symmetric`` (bool), ``double_quant`` (bool), ``two_level`` (bool),
        ``scale_rule`` ("floor", "rceil", "ceil" or "even"), ``global_scale`` (float); see :func:`formats`.

    Returns
    -------
    QuantizedArray

    Raises
    ------
    ValueError
        Unknown format, a group size that the format does not have, an axis that its blocks do not divide, an element that is
        not finite, a scale beyond its dtype, an ``out`` that does not fit, or an ``importance`` of another shape, below 0, not
        finite or 0 everywhere, a ``tolerance`` or a ``clip_limit`` out of its range or without "optimal", or a ``clip_limit`` that the
        format is not searched with.
    TypeError
        An array that is not of floats or is on another device, an option or a method that the format lacks, a wrong dtype in
        ``out``.
    MemoryError
        The parts cannot be allocated.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> q = qz.quantize(np.ones((2, 64), np.float32), "gguf:q4_0")
    >>> q.parts["blocks"].shape
    (2, 36)

    The smallest error, where the third element matters most:

    >>> x = np.float32([[1.0, -0.8, 0.33, 0.1]])
    >>> qz.quantize(x, method="optimal", importance=np.float32([1, 1, 50, 1])).dequantize().round(3)
    array([[ 0.987, -0.823,  0.329,  0.165]], dtype=float32)
    """
    found, bits = (array, False) if type(array) is np.ndarray and dtype is None else floats(array, dtype)
    if method not in ("nearest", "optimal", "fast"):
        raise ValueError(f"method is {method!r}; expected 'nearest', 'optimal' or 'fast'")
    check_number("tolerance", tolerance, "0.000001 to 1, such as 0.01")
    check_number("clip_limit", clip_limit, "0 to 1, such as 0.05")
    weights, weight_bits = _importance(importance)
    if scale_dtype is not None:
        scale_name, view = float_dtype(scale_dtype)
    else:  # scales that follow the array are of its bfloat16
        scale_name, view = None, found.dtype if found.dtype.kind == "V" else None
    if out is not None and not isinstance(out, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"out is of type {type(out).__name__}; expected a mapping from the name of every part to an array")
    given = None if out is None else dict(out)
    how = (method, weights, weight_bits, tolerance, clip_limit, nonfinite)
    tensor, parts = _core.quantize(found, bits, format, axis, group_size, scale_name, options or None, *how, given, requested(threads))
    return wrap(tensor, parts, None if out is not None else view)


def check_number(argument: str, value: object, expected: str) -> None:
    """Refuse what is no number."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | float | np.floating)):
        raise TypeError(f"{argument} is of type {type(value).__name__}; expected a number from {expected}")


def dequantize(
    q: QuantizedArray,
    *,
    dtype: DTypeLike | Literal["bfloat16"] = np.float32,
    out: NDArray[Any] | None = None,
    threads: int | None = None,
) -> NDArray[Any]:
    """Decode to floats, each the plain product of code and scale.

    Parameters
    ----------
    q : QuantizedArray
    dtype : float32, float64, float16 or bfloat16
        float64 is exact, float16 may overflow to infinity. ``"bfloat16"`` gives its bits in uint16, the dtype of
        ``ml_dtypes`` gives that dtype.
    out : ndarray, optional
        Write into this array of exactly that shape and dtype, C-contiguous, and return it.
    threads : int, optional
        At most so many threads; see :func:`set_threads`.

    Returns
    -------
    ndarray
        Of shape ``q.shape``.

    Raises
    ------
    TypeError
        ``dtype`` is none of the four, or ``out`` has another one.
    ValueError
        ``out`` has another shape, is read-only, not C-contiguous or overlaps the parts.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> qz.dequantize(qz.quantize([[-8.0, 7.0, 0.0]]))
    array([[-8.,  7.,  0.]], dtype=float32)
    """
    if not isinstance(q, QuantizedArray):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"q is of type {type(q).__name__}; expected a QuantizedArray, as quantize() and from_parts() give it")
    return q.dequantize(dtype=dtype, out=out, threads=threads)


def pack(codes: ArrayLike, *, signed: bool = True, out: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Pack codes two a byte along the last axis, the even one in the low nibble.

    Parameters
    ----------
    codes : (..., n) integers
        In -8..7, or in 0..15 where not ``signed``.
    signed : bool
        Whether codes are two's complement.
    out : (..., ceil(n / 2)) uint8, optional
        Write into this array and return it.

    Returns
    -------
    (..., ceil(n / 2)) uint8
        An odd row ends in a zero nibble.

    Raises
    ------
    ValueError
        A code is out of range; it never wraps.
    TypeError
        ``codes`` are not integers.

    Examples
    --------
    >>> import quantize as qz
    >>> qz.pack([-8, 7, 1])
    array([120,   1], dtype=uint8)
    """
    codes = np.asarray(codes)
    if codes.dtype.kind not in "iu":
        raise TypeError(f"codes has dtype {codes.dtype}; expected integers")
    low, high = (-8, 7) if signed else (0, 15)
    own = np.int8 if signed else np.uint8
    # Clipping to one beyond the range keeps every wrong code wrong in the narrow dtype.
    narrow = codes if codes.dtype == own else np.clip(codes, low - 1 if signed else None, high + 1).astype(own)
    packed, wrong = _core.pack(narrow, signed, out, requested(None))
    if wrong is not None:
        where = tuple(int(i) for i in np.unravel_index(wrong, codes.shape))
        raise ValueError(f"codes has {codes[where]} at {where}; expected {low} to {high} with signed={signed}")
    return packed


def unpack(packed: ArrayLike, count: int, *, signed: bool = True, out: NDArray[Any] | None = None) -> NDArray[Any]:
    """Unpack what :func:`pack` packed.

    Parameters
    ----------
    packed : (..., m) uint8
    count : int
        Codes of a row: ``2 * m`` or ``2 * m - 1``.
    signed : bool
        Whether codes are two's complement.
    out : (..., count) int8, or uint8 where not ``signed``, optional
        Write into this array and return it.

    Returns
    -------
    (..., count) int8, or uint8 where not ``signed``

    Raises
    ------
    ValueError
        ``count`` does not fit the length of the rows.
    TypeError
        ``packed`` is not uint8.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> qz.unpack(np.array([120, 1], np.uint8), 3)
    array([-8,  7,  1], dtype=int8)
    """
    return _core.unpack(np.asarray(packed), count, signed, out, requested(None))


def from_parts(
    format: str,
    parts: Mapping[str, ArrayLike],
    *,
    shape: Sequence[int] | None = None,
    axis: int = -1,
    group_size: GroupSize | None = None,
    **options: Any,
) -> QuantizedArray:
    """Make a QuantizedArray of arrays that exist already, without copying them.

    Parameters
    ----------
    format : str
        Name or alias; see :func:`formats`.
    parts : mapping from part name to array
        All parts of the format; ``g_idx`` may be left out where the columns are in order. bfloat16 scales may be of ``ml_dtypes`` or
        bits in uint16, 8-bit floats of ``ml_dtypes`` or bytes in uint8.
    shape : sequence of int, optional
        Shape of the array that the parts stand for. Default: what ``weight_shape`` says, else the longest rows that the parts allow;
        those of ``bnb:nf4``, ``bnb:fp4`` and ``onnx:qdq`` do not tell it.
    axis : int
        The axis of that array that groups run along.
    group_size : int, "row" or "tensor", optional
        Elements per scale. Default: what the parts show, where the format takes few sizes; else the format's own.
    **options
        Options of the format. Where the parts show them too, both must agree.

    Returns
    -------
    QuantizedArray

    Raises
    ------
    ValueError
        Parts are missing or of shapes that do not fit, or an option contradicts them.
    TypeError
        A part of the wrong dtype, or an option that the format lacks.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> qz.from_parts("q4_0", {"blocks": np.zeros((4, 36), np.uint8)})
    QuantizedArray(gguf:q4_0, shape=(4, 64), 4.50 bits/weight, 144 bytes)
    """
    if not isinstance(parts, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"parts is of type {type(parts).__name__}; expected a mapping from the name of every part to an array")
    scale_dtype = options.pop("scale_dtype", None)
    name = None if scale_dtype is None else float_dtype(scale_dtype)[0]
    arrays = {part: _octets(np.asarray(array)) for part, array in parts.items()}
    q = wrap(*_core.from_parts(format, arrays, None if shape is None else tuple(shape), axis, group_size, name, options or None))
    if options.get("symmetric") is True and q.zero_points is not None and not (q.zero_points == 8).all():
        raise ValueError("symmetric is True; the parts have zero points other than 8")
    return q


def _octets(array: NDArray[Any]) -> NDArray[Any]:
    """Scales of the 8-bit floats of ``ml_dtypes`` as the bytes that they are."""
    return array.view(np.uint8) if array.dtype.name.startswith("float8_") else array


def compare(
    reference: ArrayLike | SupportsDLPack,
    other: QuantizedArray | ArrayLike | SupportsDLPack,
    *,
    axis: int | None = None,
    optimum: bool = False,
    importance: ArrayLike | SupportsDLPack | Literal["magnitude"] | None = None,
) -> Comparison:
    """Measure how far ``other`` is from ``reference``, in float64.

    Parameters
    ----------
    reference : array of floats
    other : QuantizedArray or array of floats
        Of the same shape.
    axis : int, optional
        Measure along this axis only; the fields are then arrays of the other axes.
    optimum : bool
        Search for the best codes and scales that the layout of ``other`` has for ``reference``, as ``method="optimal"`` does, and tell
        how far from them it is: ``lower_bound``, ``excess`` and ``share_improved``.
    importance : None, "magnitude" or ndarray, optional
        What these three weight the squared error of each element with; see :func:`quantize`.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        The shapes differ; or ``optimum`` is given with ``axis`` or for scales of two levels, or ``importance`` without it.
    TypeError
        As for :func:`quantize`; or ``optimum`` is given for a plain array, or for a format without that method.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> w = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    >>> round(qz.compare(w, qz.quantize(w)).sqnr_db, 1)
    26.2

    By how much its error is above the smallest one of the format, and in what share of the groups:

    >>> w = np.random.default_rng(0).standard_normal((64, 64), np.float32)
    >>> c = qz.compare(w, qz.quantize(w), optimum=True)
    >>> round(c.excess, 2), round(c.share_improved, 2)
    (0.14, 1.0)
    """
    expected, expected_bits = floats(reference, None)
    quantized = other if isinstance(other, QuantizedArray) else None
    if optimum and quantized is None:
        raise TypeError(f"optimum is True; other is of type {type(other).__name__}, expected a QuantizedArray: what is plain has no layout")
    if optimum and axis is not None:
        raise ValueError("optimum is True and axis is given; expected one of them: groups may lie across that axis")
    if importance is not None and not optimum:
        raise ValueError("importance is given; it has no use without optimum=True")
    found, found_bits = (quantized.dequantize(), False) if quantized is not None else floats(other, None)
    sums = _core.compare(expected, expected_bits, found, found_bits, axis, requested(None))
    count, error_squares, squares, other_squares, products, max_abs_error = np.moveaxis(sums, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        rmse = np.sqrt(error_squares / np.maximum(count, 1))
        sqnr_db = np.where(error_squares == 0, np.inf, 10 * np.log10(squares / error_squares))
        both_zero = (squares == 0) & (other_squares == 0)
        cosine = np.where(both_zero, 1.0, products / np.sqrt(squares * other_squares))
    saturated = None if quantized is None else _saturated(expected, found, quantized, axis)
    bits = None if quantized is None else quantized.bits_per_weight
    if axis is None:
        measured = (float(rmse), float(max_abs_error), float(sqnr_db), float(cosine), saturated, bits)
        if quantized is None or not optimum:
            return Comparison(*measured)
        return Comparison(*measured, *_optimum.beside(expected, expected_bits, quantized, *_importance(importance)))
    return Comparison(rmse, max_abs_error, sqnr_db, cosine, saturated, bits)


def formats() -> tuple[FormatInfo, ...]:
    """List the formats: a table, as data.

    Returns
    -------
    tuple of FormatInfo

    Examples
    --------
    >>> import quantize as qz
    >>> qz.formats()[0].name
    'int4'
    """
    return tuple(FormatInfo(*row) for row in _core.formats())


def cpu_features() -> CpuFeatures:
    """Tell which instruction set the calls use, and which ones this CPU has.

    ``QUANTIZE_LEVEL=scalar|avx2|avx512|neon`` in the environment forces one. All give the same bytes.

    Returns
    -------
    CpuFeatures

    Raises
    ------
    ValueError
        The variable holds an unknown name.

    Examples
    --------
    >>> import quantize as qz
    >>> qz.cpu_features().available[0]
    'scalar'
    """
    level, available = _core.cpu_features()
    return CpuFeatures(level, tuple(available))


# DLPack device types, https://dmlc.github.io/dlpack; 1, 3 and 11 are memory that the CPU reads in place.
_HOST = (1, 3, 11)
_DEVICES = {2: "cuda", 4: "opencl", 7: "vulkan", 8: "metal", 9: "vpi", 10: "rocm", 13: "cuda (managed)", 14: "oneapi", 15: "webgpu"}


def floats(array: Any, dtype: DTypeLike | Literal["bfloat16"] | None, argument: str = "array") -> tuple[NDArray[Any], bool]:
    """Give a numpy array over the data, and whether it is uint16 that holds bfloat16; messages call it ``argument``."""
    bits = False
    if isinstance(array, np.ndarray):
        if isinstance(array, np.ma.MaskedArray):
            raise TypeError(f"{argument} is a masked array; expected no mask: fill it with {argument}.filled(value)")
        found: NDArray[Any] = np.asarray(array)  # pyright: ignore[reportUnknownArgumentType]
    elif hasattr(array, "__dlpack__"):
        found, bits = _from_dlpack(array, argument)
    elif isinstance(array, (list, tuple)):
        return _from_numbers(array, argument), False  # pyright: ignore[reportUnknownArgumentType]
    else:
        found = np.asarray(array)
    if dtype is None:
        return found, bits
    name = float_dtype(dtype)[0]
    holds_bits = name == "bfloat16" and (found.dtype.kind, found.dtype.itemsize) == ("u", 2)
    if not holds_bits and found.dtype.name != name:
        raise TypeError(f"array has dtype {found.dtype}; expected {name}, as dtype= says")
    return found, bits or holds_bits


def _importance(importance: ArrayLike | SupportsDLPack | str | None) -> tuple[NDArray[Any] | str | None, bool]:
    """Weights as the core takes them, and whether they are bits of bfloat16."""
    if importance is None or isinstance(importance, str):
        return importance, False
    return floats(importance, None, "importance")


def _from_numbers(values: Any, argument: str) -> NDArray[np.float64]:
    """Nested lists of numbers. They count as float32, which the core rounds to."""
    found = np.asarray(values)
    if found.dtype.kind not in "iuf" and not (found.size == 0 or found.dtype.name in FLOATS):
        raise TypeError(f"{argument} is a list of {found.dtype}; expected numbers")
    return found.astype(np.float64, copy=False)


def _from_dlpack(array: SupportsDLPack, argument: str) -> tuple[NDArray[Any], bool]:
    kind, index = (int(value) for value in array.__dlpack_device__())
    if kind not in _HOST:
        device = f"{_DEVICES.get(kind, f'DLPack device type {kind}')}:{index}"
        raise TypeError(
            f"{argument} is on {device}; expected memory of the host: copy it there, "
            f"for example with {argument}.cpu(), jax.device_get({argument}) or cupy.asnumpy({argument})"
        )
    capsule: object
    try:
        capsule = array.__dlpack__(max_version=(1, 0))
    except TypeError:  # a library from before version 1
        capsule = array.__dlpack__()
    return _core.from_dlpack(capsule)


# The outermost codes of a table, each with how many scales the next number is away: E2M1, and those that differ.
_E2M1_ENDS = ((15, 2.0), (7, 2.0))
_TABLE_ENDS = {
    "bnb:nf4": ((0, 1 - 0.6961928), (15, 1 - 0.72295684)),
    "bnb:fp4": ((11, 1 / 3), (3, 1 / 3)),
    "gguf:iq4_nl": ((0, 23.0), (15, 24.0)),
    "gguf:iq4_xs": ((0, 23.0), (15, 24.0)),
}


def _saturated(expected: NDArray[Any], found: NDArray[Any], q: QuantizedArray, axis: int | None) -> Any:
    """Count the elements at either end of the codes that are off by more than half a step."""
    codes, scales = np.moveaxis(q.codes(), q.axis, -1), q.scales
    expected, found = (np.moveaxis(side, q.axis, -1) for side in (expected, found))
    info = format_info(q.format)
    ends = _TABLE_ENDS.get(q.format, _E2M1_ENDS) if info.scheme == "codebook" else tuple((code, 1.0) for code in info.codes)
    clipped = np.zeros(codes.shape, bool)
    for code, steps in ends:
        at = np.nonzero(codes == code)
        if info.flat or q.group_size == "tensor":
            flat = np.ravel_multi_index(at, codes.shape)
            scale = scales.reshape(-1)[flat // (q.group_size if isinstance(q.group_size, int) else max(codes.size, 1))]
        else:
            group = at[-1] // q.group_size if isinstance(q.group_size, int) else np.zeros_like(at[-1])
            scale = scales[(*at[:-1], group)]
        error = np.abs(expected[at].astype(np.float64) - found[at])
        clipped[at] = error > steps * np.abs(scale.astype(np.float64)) / 2
    counts = np.moveaxis(clipped, -1, q.axis).sum(axis)
    return int(counts) if axis is None else counts
