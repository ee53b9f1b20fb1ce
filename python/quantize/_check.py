"""What is suspicious about stored parts: the mistakes that public files make, found by looking at the arrays themselves.

A detector is a function from stored parts to findings; ``DETECTORS`` says which ones look at which format. None changes anything, and
none decides: a finding that rests on statistics is not certain, and says so. Large parts are looked at in pieces, statistics use a sample.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from quantize._api import formats, from_parts
from quantize._types import Finding

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from quantize._types import FindingKind, GroupSize, QuantizedArray

PIECE = 1 << 20  # elements of a part that are looked at together
SAMPLE = 1 << 22  # codes that statistics are made of
SUGGESTED = (16, 32, 64, 128, 256, "row")  # group sizes to try where a format takes any

NIBBLES = 4 * np.arange(8, dtype=np.uint32)
# AWQ: nibble i of a word holds column AWQ_COLUMN[i] of the eight, so column j is in nibble AWQ_NIBBLE[j].
AWQ_COLUMN = np.array([0, 2, 4, 6, 1, 3, 5, 7])
AWQ_NIBBLE = np.argsort(AWQ_COLUMN)


ADVICE: dict[FindingKind, str] = {
    "parts": "give the missing part, shape or option, or see layout",
    "layout": "read them as one of those",
    "not_finite": "quantize again from the original weights; values of that group are lost",
    "negative_scale": "look where the file comes from; a lossless conversion or a search for scales may have written it",
    "zero_scale": "compare with the original weights",
    "global_scale": "take the reciprocal, after looking at some decoded values",
    "zero_point_offset": "read as the other version, by the config or by the name of the format; .to() converts",
    "zero_point_range": "quantize again as gptq:v2, or with zero points from 1",
    "group_index": "drop g_idx where the groups are in order",
    "activation_order": "keep g_idx, and use a reader that knows it",
    "nibble_order": "pack again in the right order",
    "padding": "look at the shape first, then at the order of nibbles",
}
"""What to do about each kind of finding, in short; ``docs/check.md`` says more."""


class Stored(NamedTuple):
    """Parts that have the names, dtypes and shapes of their format."""

    parts: Mapping[str, NDArray[Any]]
    shape: tuple[int, ...]
    """Of the tensor, with the axis that groups run along last."""
    group_size: int
    scale_dtype: str
    """What a scale is where it is stored as a byte."""
    asymmetric: bool = False
    """Whether the caller says so."""


Detector: TypeAlias = Callable[[Stored], Iterable[Finding]]


def check(
    format: str,
    parts: Mapping[str, ArrayLike],
    *,
    shape: Sequence[int] | None = None,
    axis: int = -1,
    group_size: GroupSize | None = None,
    **options: Any,
) -> list[Finding]:
    """Look for what files get wrong: zero points of another version, another nibble order, scales that cannot be right.

    Nothing is changed or repaired. Parts that do not fit the format are a finding too, so any arrays may be given.
    ``docs/check.md`` explains every kind of finding.

    Parameters
    ----------
    format : str
        What the parts are said to be.
    parts : mapping of str to array
        Name of each part to its array, as for :func:`from_parts`.
    shape, axis, group_size, **options
        As for :func:`from_parts`. Without ``shape`` a row is taken to be as long as the parts allow, without padding to look at.

    Returns
    -------
    list of Finding
        Empty where nothing is suspicious.

    Raises
    ------
    ValueError
        There is no format of this name, or a part is no array.
    TypeError
        ``parts`` is no mapping, or an option that the format lacks.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> q = qz.quantize(np.ones((2, 64), np.float32), "int4")
    >>> qz.check("int4", q.parts)
    []
    >>> scales = q.parts["scales"].copy()
    >>> scales[1, 0] = np.inf
    >>> for finding in qz.check("int4", {**q.parts, "scales": scales}):
    ...     print(finding.kind, finding.certain, finding.message, sep="; ")
    not_finite; True; scales: 1 of 4 not finite, the first at (1, 0)
    """
    info = next((info for info in formats() if format in (info.name, *info.aliases)), None)
    findings: list[Finding] = []
    try:
        array = from_parts(format, parts, shape=shape, axis=axis, group_size=group_size, **options)
    except (ValueError, TypeError) as error:
        if info is None or not isinstance(parts, Mapping) or options.keys() - set(info.options):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise
        findings.append(Finding("parts", str(error), True))
        array = None
    assert info is not None  # from_parts knows the name
    arrays = {name: _native(np.asarray(part)) for name, part in parts.items()}
    if array is not None:
        arrays |= array.parts  # 8-bit floats as bytes
    else:
        findings += _layouts(arrays, shape, axis, group_size)
        if "g_idx" in arrays:  # which may be all that does not fit
            others = {name: part for name, part in arrays.items() if name != "g_idx"}
            array = _fitted(format, others, shape, axis, group_size, options)
    findings += _not_finite(arrays, info.scale_dtypes[0])
    if array is not None:
        if list(arrays) == ["blocks"]:
            findings += _not_finite_in_blocks(array)
        lengths = list(array.shape)
        lengths.append(lengths.pop(array.axis))
        length = array.group_size if isinstance(array.group_size, int) else lengths[-1]
        stored = Stored(arrays, tuple(lengths), length, info.scale_dtypes[0], options.get("symmetric") is False)
        for detect in DETECTORS.get(info.name, ()):
            findings += detect(stored)
    return findings


def _native(array: NDArray[Any]) -> NDArray[Any]:
    """The same values in this machine's byte order, copied only if they are in the other."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _fitted(
    format: str, parts: Mapping[str, Any], shape: Sequence[int] | None, axis: int, group_size: Any, options: Mapping[str, Any]
) -> QuantizedArray | None:
    try:
        return from_parts(format, parts, shape=shape, axis=axis, group_size=group_size, **options)
    except (ValueError, TypeError):
        return None


def _layouts(arrays: Mapping[str, NDArray[Any]], shape: Sequence[int] | None, axis: int, group_size: Any) -> Iterator[Finding]:
    """Formats and group sizes that parts which do not fit their own would fit."""
    fits: list[str] = []
    for info in formats():
        if arrays.keys() <= {name for name, _ in info.parts}:
            for size in (group_size, *info.group_sizes, *(SUGGESTED if info.any_group_size else ())):
                if _fitted(info.name, arrays, shape, axis, size, {}) is not None:
                    fits.append(f"{info.name} with group_size={size or info.group_size!r}")
                    break
    if fits:
        yield Finding("layout", f"the parts have the names, dtypes and shapes of {' or '.join(fits)}", True)


# Scales


@cache
def _byte_scales(scale_dtype: str) -> NDArray[np.float32] | None:
    """Value of every byte, by the specifications of the Open Compute Project: 8-bit floating point (E4M3) and microscaling formats (E8M0)."""
    byte = np.arange(256)
    if scale_dtype == "float8_e8m0fnu":
        return np.where(byte == 255, np.float32(np.nan), np.ldexp(np.float32(1), np.minimum(byte, 254) - 127))
    if scale_dtype == "float8_e4m3fn":
        exponent = byte >> 3 & 15
        magnitude = np.ldexp(((byte & 7) + 8 * (exponent > 0)).astype(np.float32), np.maximum(exponent, 1) - 10)
        return np.copysign(np.where(byte & 127 == 127, np.float32(np.nan), magnitude), (127.5 - byte).astype(np.float32))
    return None


def _values(name: str, part: NDArray[Any], scale_dtype: str) -> Callable[[NDArray[Any]], NDArray[Any]] | None:
    """How elements of a part are read as floats; None where they are no floats."""
    if part.dtype.kind == "f":
        return lambda piece: piece
    if part.dtype.name == "bfloat16":
        return lambda piece: piece.astype(np.float32)
    if part.dtype == np.uint16:  # bfloat16 as bits
        return lambda piece: (piece.astype(np.uint32) << 16).view(np.float32)
    table = _byte_scales(scale_dtype)
    if table is not None and part.dtype == np.uint8 and name.endswith(("scale", "scales")):
        return partial(np.take, table)
    return None


def _not_finite(arrays: Mapping[str, NDArray[Any]], scale_dtype: str) -> Iterator[Finding]:
    """NaN and infinities in any part of floats."""

    def bad(values: Callable[[NDArray[Any]], NDArray[Any]], piece: NDArray[Any]) -> NDArray[Any]:
        finite: NDArray[np.bool_] = np.isfinite(values(piece))
        return ~finite

    for name, part in arrays.items():
        if values := _values(name, part, scale_dtype):
            yield from _counted("not_finite", name, part, partial(bad, values), "not finite", certain=True)


def _not_finite_in_blocks(array: QuantizedArray) -> Iterator[Finding]:
    """The same for scales and minimums that stand between the codes; rows are read in pieces."""
    step = array.shape[0] if array.axis == 0 else max(1, 32 * PIECE * array.shape[0] // max(array.size, 1))
    for start in range(0, array.shape[0], step):
        rows = array if step == array.shape[0] else array[start : start + step]
        for name, values in (("scales", rows.scales), ("minimums", rows.minimums)):
            bad = ~np.isfinite(values) if values is not None else np.zeros(0, bool)
            if bad.any():
                row, *rest = np.argwhere(bad)[0].tolist()
                message = f"blocks: not all {name} are finite, the first that is not is of group {(start + row, *rest)}"
                yield Finding("not_finite", message, True)
                return


def _signs(stored: Stored, *, part: str, zero: str = "", certain: bool = False) -> Iterator[Finding]:
    """Scales that the home project keeps positive; ``zero`` says how the project avoids 0, and is empty where it does not."""
    scales = stored.parts[part]
    values = _values(part, scales, stored.scale_dtype)
    if values is None:
        return  # absmax in double quantization: codes, which are looked up in a table
    yield from _counted(
        "negative_scale", part, scales, lambda piece: values(piece) < 0, "negative; the format's own project writes none", certain=certain
    )
    if zero:
        yield from _counted(
            "zero_scale", part, scales, lambda piece: values(piece) == 0, f"zero; the format's own project {zero}", certain=False
        )


def _global_scale(stored: Stored, *, part: str, divides: bool) -> Iterator[Finding]:
    """The second level of NVFP4: amax / 2688 where it multiplies, 2688 / amax where it divides."""
    if part not in stored.parts or 0 in stored.shape:
        return
    value = float(stored.parts[part].flat[0])
    if value == 0 and not divides:
        yield Finding("global_scale", f"{part} is 0: every element decodes to 0", False)
    elif value <= 0:
        yield Finding("global_scale", f"{part} is {value:g}; expected a positive number", True)
    elif math.isfinite(value) and (value < 1 if divides else value > 1):
        rule, other = ("2688 / amax, which divides", "multiplies") if divides else ("amax / 2688, which multiplies", "divides")
        amax = 2688 / value if divides else 2688 * value
        message = f"{part} is {value:g}; as {rule}, it says that the largest magnitude is {amax:g}: is it a scale that {other}?"
        yield Finding("global_scale", message, False)


# Zero points of GPTQ and AWQ


class Sample(NamedTuple):
    """Statistics of some groups by word of eight columns: arrays (groups, words, 8)."""

    mean: NDArray[np.float64]
    """Of the codes, in the order of the columns (GPTQ) or of the nibbles (AWQ)."""
    deviation: NDArray[np.float64]
    zero_points: NDArray[np.int64]
    """As stored, in the order of the nibbles."""
    scales: NDArray[np.float64]
    """In the order of the columns."""


def _sample(stored: Stored, packed_along_columns: bool) -> Sample | None:
    """Look at groups and words at even distances; None where there are none, or groups are of unequal length."""
    qweight, qzeros, scales = (stored.parts[name] for name in ("qweight", "qzeros", "scales"))
    count, columns, length = len(scales), int(scales.shape[1]), stored.group_size
    words = _spread(columns // 8, SAMPLE // max(8 * length * min(count, 32), 1))
    groups = _spread(count, SAMPLE // max(8 * length * len(words), 1))
    if not length * len(words) * len(groups):
        return None
    order = np.arange(count * length)
    if "g_idx" in stored.parts:
        g_idx = stored.parts["g_idx"]
        order = _order(g_idx)
        if not np.array_equal(g_idx[order], np.arange(count * length) // length):
            return None
    rows = order.reshape(count, length)[groups, :, np.newaxis]
    if packed_along_columns:
        nibbles = _unpacked(qweight[rows, words])
    else:
        picked = qweight[rows // 8, (8 * words[:, np.newaxis] + np.arange(8)).ravel()]
        nibbles = (picked >> (4 * (rows % 8)).astype(np.int32) & 15).astype(np.uint8).reshape(len(groups), length, len(words), 8)
    mean: NDArray[np.float64] = nibbles.mean(1)
    deviation = np.sqrt(np.maximum((nibbles * nibbles).mean(1) - mean**2, 0))  # 15 * 15 fits a byte
    at = (groups[:, np.newaxis], words)
    return Sample(mean, deviation, _unpacked(qzeros[at]).astype(np.int64), scales.reshape(count, -1, 8)[at].astype(np.float64))


def _order(g_idx: NDArray[Any]) -> NDArray[np.intp]:
    """Rows of the matrix, group after group."""
    return np.argsort(g_idx, kind="stable")


def _spread(count: int, limit: int) -> NDArray[np.intp]:
    """Indices at even distances: all of them, or at most ``limit`` and at least one."""
    return np.linspace(0, count - 1, min(count, max(limit, 1))).astype(np.intp)


def _unpacked(words: NDArray[Any]) -> NDArray[np.uint8]:
    """The eight nibbles of 32-bit words, the lowest first, on a new last axis."""
    return (words.view(np.uint32)[..., np.newaxis] >> NIBBLES & 15).astype(np.uint8)


def _zero_point_offset(stored: Stored, *, added: int, packed_along_columns: bool, other: str) -> Iterator[Finding]:
    """Zero points that another version stored: one less (v1), or as they are (v2, AWQ).

    The symmetric zero point is 8 in every group, so that all words are alike. Otherwise codes tell: weights scatter around 0, so
    the mean code of a group is near its zero point.
    """
    qzeros = stored.parts["qzeros"]
    right, wrong = (0x77777777, 0x88888888) if added else (0x88888888, 0x77777777)
    if qzeros.size and not _count(qzeros, lambda words: words.view(np.uint32) != wrong)[0]:
        message = f"all words of qzeros are 0x{wrong:08x}, the symmetric zero points of {other}; expected 0x{right:08x}"
        yield Finding("zero_point_offset", message, "gptq" in other and not stored.asymmetric)
        return
    sample = _sample(stored, packed_along_columns)
    if sample is None:
        return
    inside = (sample.zero_points > 1) & (sample.zero_points < 14)  # at the ends groups are one-sided
    offsets = (sample.mean - sample.zero_points)[inside]
    if offsets.size < 16:
        return
    offset = float(offsets.mean())
    if abs(offset - (1 - added)) < 0.25 and offsets.std() / math.sqrt(offsets.size) < 0.1:
        message = f"codes are on average {offset:.2f} above the zero points stored; expected {added}: are they zero points of {other}?"
        yield Finding("zero_point_offset", message, False)


def _zero_points_wrap(stored: Stored) -> Iterator[Finding]:
    """GPTQ v1 cannot hold the zero point 0: minus one it is 15, which some readers take for 16 and others for 0."""
    what = "words with a zero point stored as 15, which AutoGPTQ's kernels read as 16 and its older ones as 0"
    yield from _counted(
        "zero_point_range", "qzeros", stored.parts["qzeros"], lambda words: (_unpacked(words) == 15).any(-1), what, certain=True
    )


def _zero_points_all_lowest(stored: Stored) -> Iterator[Finding]:
    """compressed-tensors stores zero points plus 8; words of 0 would be -8 in every group, as if no weight were negative."""
    zero_points = stored.parts.get("weight_zero_point")
    if zero_points is not None and zero_points.size and not _count(zero_points, lambda words: words != 0)[0]:
        message = "all words of weight_zero_point are 0, which stands for -8; symmetric zero points are stored as 8"
        yield Finding("zero_point_offset", message, False)


def _g_idx(stored: Stored) -> Iterator[Finding]:
    """The group of every row of the matrix: in range, all groups equally often, and in order unless the file is sorted by activation."""
    g_idx = stored.parts.get("g_idx")
    if g_idx is None or g_idx.ndim != 1 or g_idx.dtype.kind != "i":
        return
    count, length = len(stored.parts["scales"]), stored.group_size
    outside = list(
        _counted("group_index", "g_idx", g_idx, lambda index: (index < 0) | (index >= count), f"outside 0..{count - 1}", certain=True)
    )
    yield from outside
    if outside or len(g_idx) != count * length or np.array_equal(g_idx, np.arange(len(g_idx)) // length):
        return
    uneven = np.bincount(g_idx, minlength=count) != length
    if uneven.any():
        message = f"g_idx: {np.count_nonzero(uneven)} of {count} groups do not have {length} rows, the first is {uneven.argmax()}"
        yield Finding("group_index", message, False)
    yield Finding(
        "activation_order", f"g_idx is not k // {length}: groups are in the order of activations, and a reader must follow it", True
    )


# Order of nibbles


def _awq_order(stored: Stored) -> Iterator[Finding]:
    """AWQ interleaves the columns of a word; a file packed in natural order has the same shapes.

    A group with a far outlier has a large scale and codes close together: the right order of columns is the one in which scale and
    deviation of codes go against each other. Zero points go with the mean of the codes.
    """
    sample = _sample(stored, True)
    if sample is None:
        return
    with np.errstate(divide="ignore", invalid="ignore"):
        deviation, scales = np.log(sample.deviation), np.log(sample.scales)
    awq, natural = -_evidence(deviation, scales[..., AWQ_COLUMN]), -_evidence(deviation, scales)
    if _stronger(natural, awq):
        yield Finding("nibble_order", "scales fit the codes of qweight in natural order (GPTQ's) better than in AWQ's order", False)
    same, mixed = _evidence(sample.mean, sample.zero_points), _evidence(sample.mean, sample.zero_points[..., AWQ_COLUMN])
    if _stronger(mixed, same):
        yield Finding("nibble_order", "zero points fit the codes better with qzeros in natural order than in AWQ's order", False)


def _gptq_order(stored: Stored) -> Iterator[Finding]:
    """GPTQ packs zero points in natural order; only they are packed along the columns."""
    sample = _sample(stored, False)
    if sample is None:
        return
    natural, awq = _evidence(sample.mean, sample.zero_points), _evidence(sample.mean, sample.zero_points[..., AWQ_NIBBLE])
    if _stronger(awq, natural):
        yield Finding("nibble_order", "zero points fit the codes better with qzeros in AWQ's order than in natural order", False)


def _evidence(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Correlation within words, times the root of the number of samples: beyond a few units it is no accident."""
    whole = np.isfinite(a).all(-1) & np.isfinite(b).all(-1)
    moved = slice(1, 7)  # the first and the last column have the same nibble in both orders
    a, b = a[whole][:, moved], b[whole][:, moved]
    if not len(a):
        return 0.0
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    norm = math.sqrt(float((a * a).sum()) * float((b * b).sum()))
    return float((a * b).sum()) / norm * math.sqrt(a.size) if norm else 0.0


def _stronger(evidence: float, other: float) -> bool:
    return evidence > 8 and evidence > 2 * abs(other)


# Padding


def _padding(part: str, nibbles: NDArray[Any], used: int, pads: tuple[int, ...], certain: bool) -> Iterator[Finding]:
    """Check what follows the last element: ``nibbles`` are those of the last byte or word of every row, in the format's order."""
    count = nibbles.shape[-1] - used
    if not count or not nibbles.size:
        return
    expected = " or ".join(map(str, pads))
    bad = np.count_nonzero(~np.isin(nibbles[..., used:], pads))
    if bad:
        yield Finding("padding", f"{part}: {bad} nibbles after the last element are not {expected}", certain)
        if np.isin(nibbles[..., :count], pads).all():
            message = f"{part}: {expected} stands where the padding would be with the nibbles in reverse order"
            yield Finding("nibble_order", message, False)


def _pairs(octets: NDArray[Any]) -> NDArray[Any]:
    """Both nibbles of bytes, the low one first, on a new last axis."""
    return np.stack((octets & 15, octets >> 4), -1)


def _row_padding(stored: Stored, *, part: str, per_group: bool = False, pad: int = 0, certain: bool = True) -> Iterator[Finding]:
    """Rows of bytes that end with half a byte."""
    packed = stored.parts.get(part)
    count = -(-stored.shape[-1] // max(stored.group_size, 1)) if per_group else stored.shape[-1]
    if packed is not None and count % 2:
        yield from _padding(part, _pairs(packed[..., -1]), 1, (pad,), certain)


def _flat_padding(
    stored: Stored, *, part: str, per_group: bool = False, high_first: bool = False, pads: tuple[int, ...] = (0,), certain: bool
) -> Iterator[Finding]:
    """An odd number of elements without regard to rows."""
    packed = stored.parts.get(part)
    count = math.prod(stored.shape)
    if per_group:
        count = math.prod(stored.shape[:-1]) * -(-stored.shape[-1] // max(stored.group_size, 1))
    if packed is not None and count % 2:
        nibbles = _pairs(packed.reshape(-1)[-1:])
        yield from _padding(part, nibbles[..., ::-1] if high_first else nibbles, 1, pads, certain)


def _block_padding(stored: Stored) -> Iterator[Finding]:
    """MatMulNBits fills the last group of a column with code 0. The half byte after an odd count holds anything."""
    packed, rest = stored.parts["packed"], stored.shape[-1] % stored.group_size
    if rest:
        after = packed[:, -1, (rest + 1) // 2 :]
        yield from _counted(
            "padding", "packed, after the last element of a column", after, lambda octets: octets != 0, "not 0", certain=False
        )


def _word_padding(stored: Stored) -> Iterator[Finding]:
    """compressed-tensors fills the last word of a row of codes, and of a column of zero points, with 0."""
    rows, columns = stored.shape
    if columns % 8:
        last = np.ascontiguousarray(stored.parts["weight_packed"][:, -1])
        yield from _padding("weight_packed", _unpacked(last), columns % 8, (0,), True)
    if "weight_zero_point" in stored.parts and rows % 8:
        last = np.ascontiguousarray(stored.parts["weight_zero_point"][-1])
        yield from _padding("weight_zero_point", _unpacked(last), rows % 8, (0,), True)


# Counting


def _count(part: NDArray[Any], is_bad: Callable[[NDArray[Any]], NDArray[Any]]) -> tuple[int, int]:
    """How many elements are bad, and the flat index of the first."""
    count = first = 0
    flat = part.reshape(-1) if part.flags.c_contiguous else part.flat  # both cut in C order, without a copy of the whole
    for start in range(0, part.size, PIECE):
        bad = is_bad(flat[start : start + PIECE])
        found = int(np.count_nonzero(bad))
        if found and not count:
            first = start + int(bad.argmax())
        count += found
    return count, first


def _counted(
    kind: FindingKind, name: str, part: NDArray[Any], is_bad: Callable[[NDArray[Any]], NDArray[Any]], what: str, *, certain: bool
) -> Iterator[Finding]:
    """One finding for all bad elements of a part."""
    count, first = _count(part, is_bad)
    if count:
        index = tuple(int(at) for at in np.unravel_index(first, part.shape))
        yield Finding(kind, f"{name}: {count} of {part.size} {what}, the first at {index}", certain)


# Formats

# A conversion from a format with signed scales may bring negative ones, and so may method="optimal": they are certain errors only where neither can.
_positive = partial(_signs, part="scales", zero="writes none, except where a float16 underflows")
_e4m3 = partial(_signs, zero="replaces it by a small number", certain=True)
_gptq = (_g_idx, _positive, _gptq_order)
_bnb = (partial(_signs, part="absmax"),)

DETECTORS: dict[str, tuple[Detector, ...]] = {
    "int4": (partial(_row_padding, part="packed"),),
    "uint4": (
        partial(_row_padding, part="packed"),
        partial(_row_padding, part="zero_points", per_group=True),
        partial(_signs, part="scales"),
    ),
    "gptq": (*_gptq, partial(_zero_point_offset, added=1, packed_along_columns=False, other="gptq:v2"), _zero_points_wrap),
    "gptq:v2": (*_gptq, partial(_zero_point_offset, added=0, packed_along_columns=False, other="gptq (v1)")),
    "awq": (_positive, _awq_order, partial(_zero_point_offset, added=0, packed_along_columns=True, other="GPTQ v1")),
    "onnx:matmulnbits": (_block_padding, partial(_row_padding, part="zero_points", per_group=True, pad=8, certain=False)),
    "onnx:qdq": (
        partial(_flat_padding, part="packed", certain=False),
        partial(_flat_padding, part="zero_points", per_group=True, certain=False),
    ),
    "bnb:nf4": (*_bnb, partial(_flat_padding, part="packed", high_first=True, pads=(7,), certain=True)),
    "bnb:fp4": (*_bnb, partial(_flat_padding, part="packed", high_first=True, pads=(0, 8), certain=True)),
    "compressed-tensors": (
        partial(_signs, part="weight_scale", zero="replaces it by the smallest step of the dtype"),
        _zero_points_all_lowest,
        _word_padding,
    ),
    "compressed-tensors:nvfp4": (
        partial(_e4m3, part="weight_scale"),
        partial(_global_scale, part="weight_global_scale", divides=True),
    ),
    "modelopt:nvfp4": (partial(_e4m3, part="weight_scale"), partial(_global_scale, part="weight_scale_2", divides=False)),
    "torchao:nvfp4": (partial(_e4m3, part="scales"), partial(_global_scale, part="per_tensor_scale", divides=False)),
    "mlx:nvfp4": (partial(_signs, part="scales", certain=True),),
    "hqq": (_positive,),
}
