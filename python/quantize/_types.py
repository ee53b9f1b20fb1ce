"""What the functions of the package take and give: the quantized array, a comparison, the table of formats."""

from __future__ import annotations

from pickle import PickleBuffer
from types import EllipsisType, MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn, Protocol, SupportsIndex, TypeAlias

import numpy as np

from quantize import _core
from quantize._threads import requested

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import DTypeLike, NDArray

GroupSize: TypeAlias = "int | Literal['row', 'tensor', 'channel']"
"""Elements that share a scale, or all of a row, or all of the tensor; ``-1`` and ``'channel'`` mean ``'row'``."""

NonFinite: TypeAlias = Literal["raise", "zero", "clip"]
"""What to do with NaN and infinities."""

Method: TypeAlias = Literal["nearest", "optimal", "fast"]
"""How scales are chosen: by the rule of the format's home project, or those of the smallest error."""

Index: TypeAlias = "int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]"
"""Basic indexing."""


class SupportsDLPack(Protocol):
    """An array of another library that lends its memory by DLPack."""

    def __dlpack__(self, *, max_version: Any = None) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, Any]: ...


class FormatInfo(NamedTuple):
    """One row of the table of formats."""

    name: str
    """The name, ``project:layout`` where a project owns it."""
    aliases: tuple[str, ...]
    """Other names that find it."""
    summary: str
    """One sentence."""
    scheme: str
    """``symmetric``: x ~ code * scale. ``affine``: x ~ (code - zero_point) * scale. ``minimum``: x ~ code * scale + minimum.
    ``codebook``: x ~ table[code] * scale."""
    codes: tuple[int, int]
    """The lowest and the highest code."""
    group_size: int
    """The group size where none is given."""
    group_sizes: tuple[int, ...]
    """The group sizes that it takes; empty where it takes any."""
    any_group_size: bool
    """Whether it takes any other, ``"row"`` and ``"tensor"``."""
    scale_dtypes: tuple[str, ...]
    """The dtypes that scales can have, the default first."""
    scales_follow_array: bool
    """Whether the default is the dtype of the array instead, where scales can have it."""
    options: tuple[str, ...]
    """The names of its options."""
    parts: tuple[tuple[str, str], ...]
    """Name and default dtype of every array that it stores."""
    bits_per_weight: float
    """Bits per weight, scales included, by default."""
    home: str
    """The project whose bytes it reproduces, and the version that was compared."""
    part_shapes: tuple[tuple[str, str], ...]
    """Name and shape of every array that it stores, in N, K, the groups G of a row and the group size g."""
    exact: bool
    """Whether encoding gives that project's bytes. Where it decodes only, or its encoder cannot be repeated, the rule is ours."""
    flat: bool
    """Whether groups run over all elements in C order, whatever the axes."""
    methods: tuple[str, ...]
    """How its scales can be chosen: ``nearest``; ``optimal`` where a variant of it has a search; ``fast`` where that takes long."""
    companion: bool
    """Whether it is no 4-bit format but one of wider codes, which files store some tensors in beside those of 4 bits."""


FindingKind: TypeAlias = Literal[
    "parts",
    "layout",
    "not_finite",
    "negative_scale",
    "zero_scale",
    "global_scale",
    "zero_point_offset",
    "zero_point_range",
    "group_index",
    "activation_order",
    "nibble_order",
    "padding",
]
"""What :func:`check` can find; ``docs/check.md`` says what to do about each."""


class Finding(NamedTuple):
    """Something suspicious about stored parts."""

    kind: FindingKind
    """What it is."""
    message: str
    """The part, what was found and what was expected."""
    certain: bool
    """False where the arrays only make it likely: statistics, or a value that is legal but that the format's own project does not write."""


class CpuFeatures(NamedTuple):
    """The instruction sets that the kernels are written for, as far as this CPU has them."""

    level: str
    """The one that calls use: the fastest, or the one that ``QUANTIZE_LEVEL`` names."""
    available: tuple[str, ...]
    """Those of this CPU, the slowest first. All of them give the same bytes."""


class Comparison(NamedTuple):
    """How far an array is from its reference. Arrays in place of numbers where an axis was given."""

    rmse: Any
    """Root of the mean square of the errors."""
    max_abs_error: Any
    """The largest error."""
    sqnr_db: Any
    """Signal to quantization noise, 10 * log10(sum(reference^2) / sum(error^2)); infinite without errors."""
    cosine: Any
    """Cosine of the angle between both; 1 where both are zero."""
    saturated: Any
    """Elements at the lowest or highest code whose error is more than half a step; None for plain arrays."""
    bits_per_weight: float | None
    """Of the quantized array; None for plain arrays."""


Tensor: TypeAlias = "tuple[str, tuple[int, ...], int, int | str, str, dict[str, Any]]"


class QuantizedArray:
    """An array of 4-bit codes with their scales, in the layout of one format. Immutable.

    Made by :func:`quantize`, :func:`from_parts` and :meth:`to`. It is an array only as far as it can be one honestly:
    ``numpy.asarray(q)`` decodes all of it; arithmetic raises TypeError rather than decode behind the caller's back.
    """

    __slots__ = ("__weakref__", "_parts", "_tensor")

    # format, shape, axis, group_size, scale_dtype, and the options that the parts are read with
    _tensor: Tensor
    _parts: dict[str, NDArray[Any]]

    __array_ufunc__ = None

    def __init__(self) -> None:
        raise TypeError("a QuantizedArray is made by quantize() or from_parts()")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a QuantizedArray is immutable; cannot set {name}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a QuantizedArray is immutable; cannot delete {name}")

    @property
    def format(self) -> str:
        """Name of the format."""
        return self._tensor[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array that it decodes to."""
        return self._tensor[1]

    @property
    def axis(self) -> int:
        """The axis that groups run along, counted from the start. In the parts it is the last."""
        return self._tensor[2]

    @property
    def group_size(self) -> int | str:
        """Elements that share a scale; ``"row"`` or ``"tensor"`` where it is all of them."""
        return self._tensor[3]

    @property
    def dtype(self) -> np.dtype[np.float32]:
        """What it decodes to by default: float32."""
        return np.dtype(np.float32)

    @property
    def parts(self) -> Mapping[str, NDArray[Any]]:
        """The arrays that the format stores, by the names of its home project. bfloat16 is uint16 unless it was asked for by dtype."""
        return MappingProxyType(self._parts)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._tensor[1])

    @property
    def size(self) -> int:
        """Number of elements."""
        size = 1
        for length in self._tensor[1]:
            size *= length
        return size

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return sum(part.nbytes for part in self._parts.values())

    @property
    def bits_per_weight(self) -> float:
        """Bits per element, scales included; 0 for an empty array."""
        return 8 * self.nbytes / max(self.size, 1)

    @property
    def scales(self) -> NDArray[np.float32]:
        """The effective multipliers, float32 of shape (..., G) with the group axis last. Computed at every use."""
        return _core.groups(self._tensor, self._parts, False)[1]

    @property
    def zero_points(self) -> NDArray[np.float32] | None:
        """The zero points of an affine format, float32 like ``scales``; None in other schemes."""
        # A format whose variants are symmetric or affine is listed as symmetric; the offsets of its parts tell.
        return None if format_info(self.format).scheme == "minimum" else _core.groups(self._tensor, self._parts, False)[2]

    @property
    def minimums(self) -> NDArray[np.float32] | None:
        """The additive offsets of a format with minimums, float32 like ``scales``; None in other schemes."""
        return _core.groups(self._tensor, self._parts, False)[2] if format_info(self.format).scheme == "minimum" else None

    def codes(self) -> NDArray[np.int8]:
        """Unpack the codes.

        Returns
        -------
        ndarray of int8
            In the array's own shape: -8..7 for symmetric formats, 0..15 for the others, more for companions (``FormatInfo.codes``);
            of a codebook the index into its table.
        """
        codes = _core.groups(self._tensor, self._parts, True)[0]
        assert codes is not None  # asked for
        return np.moveaxis(codes, -1, self.axis)

    def dequantize(
        self, *, dtype: DTypeLike | Literal["bfloat16"] = np.float32, out: NDArray[Any] | None = None, threads: int | None = None
    ) -> NDArray[Any]:
        """Decode to floats; see :func:`quantize.dequantize`."""
        name, view = float_dtype(dtype)
        floats = _core.dequantize(self._tensor, self._parts, name, out, requested(threads))
        return floats if view is None or out is not None else floats.view(view)

    def to(
        self,
        format: str,
        *,
        group_size: GroupSize | None = None,
        scale_dtype: DTypeLike | Literal["bfloat16"] | None = None,
        requantize: bool = False,
        threads: int | None = None,
        **options: object,
    ) -> QuantizedArray:
        """Convert to another format: lossless, or not at all.

        Parameters
        ----------
        format : str
            Name of the target.
        group_size, scale_dtype : optional
            Options of the target. By default those of this array where the target has them; other scales widen to float32.
        requantize : bool
            Go through floats where the target cannot hold the same values.
        threads : int, optional
            At most so many threads.
        **options
            Further options of the target. A symmetric variant is taken where every zero point is 8.

        Returns
        -------
        QuantizedArray

        Raises
        ------
        LossyConversionError
            The target cannot hold the same values; the message says which fact differs.
        ValueError, TypeError
            As for :func:`quantize`.
        """
        name, view = (None, None) if scale_dtype is None else float_dtype(scale_dtype)
        converted = _core.repack(self._tensor, self._parts, format, group_size, name, options or None, requantize, requested(threads))
        return wrap(*converted, view)

    def identical(self, other: object) -> bool:
        """Whether ``other`` is a QuantizedArray of the same format, shape, axis, group size and bytes."""
        return (
            isinstance(other, QuantizedArray)
            and self._tensor == other._tensor
            and all(part.tobytes() == other._parts[name].tobytes() for name, part in self._parts.items())
        )

    def __getitem__(self, index: Index) -> QuantizedArray:
        """Take a part of the array, as a view: integers and slices, on any axis but the one that groups run along.

        Raises
        ------
        IndexError
            An index out of range, too many of them, or one that is no integer and no slice.
        ValueError
            The index cuts the group axis, or, where words or groups hold elements of several rows, the inside of one.
        """
        format, shape, axis, group_size, scale_dtype, options = self._tensor
        key = _full_index(index, shape)
        if key.pop(axis) != slice(None):
            raise ValueError(f"the index cuts axis {axis}, which groups run along; dequantize first")
        rows = [length for at, length in enumerate(shape) if at != axis]
        kept = [at for at, entry in enumerate(key) if isinstance(entry, slice)]
        # A view without memory, on which numpy itself checks the indices and finds the new shape.
        lengths = np.broadcast_to(np.int8(0), rows)[tuple(key)].shape
        new_axis = sum(at < axis for at in kept)
        new_shape = (*lengths[:new_axis], shape[axis], *lengths[new_axis:])
        tensor = (format, new_shape, new_axis, group_size, scale_dtype, options)
        info = format_info(format)
        extents = dict(info.part_shapes)
        if all(extents[name].startswith(("(...", "()", "(1,)")) for name in self._parts) and not info.flat:
            # What the tensor has once stays whole, its one scale for all groups too.
            by_rows = {name for name in self._parts if extents[name].startswith("(...")}
            if group_size == "tensor":
                by_rows = {name for name in by_rows if self._parts[name].shape[:-1] == tuple(rows)}
            cut = {name: part[tuple(key)] if name in by_rows else part for name, part in self._parts.items()}
        else:
            cut = cut_words(self, key, extents)
        parts = dict[str, "NDArray[Any]"]()
        for (name, part), expected in zip(cut.items(), _core.part_shapes(tensor), strict=True):
            if part.shape != expected:  # one scale for the whole tensor has its own shape
                part = part.reshape(-1)[: int(np.prod(expected))].reshape(expected)
            parts[name] = part
        return wrap(tensor, parts)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Decode all of it, to float32 by default. A copy is always made."""
        if copy is False:
            raise ValueError("a QuantizedArray holds no floats to share; decoding it makes a copy")
        target = np.dtype(np.float32 if dtype is None else dtype)
        if target.name in FLOATS and target.isnative:
            return self.dequantize(dtype=target)
        return self.dequantize().astype(target)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Plain data with a version, which names no other package: the inner modules of numpy move between its versions.
        def plain(part: NDArray[Any]) -> tuple[str, tuple[int, ...], PickleBuffer | bytes]:
            dtype = "bfloat16" if part.dtype.name == "bfloat16" else part.dtype.str
            octets = np.ascontiguousarray(part).view(np.uint8)
            return dtype, part.shape, PickleBuffer(octets.data) if protocol.__index__() >= 5 else octets.tobytes()

        parts = {name: plain(part) for name, part in self._parts.items()}
        return restore, ({"version": STATE_VERSION, "tensor": self._tensor, "parts": parts},)

    def __repr__(self) -> str:
        """Describe the array in one line, without decoding anything."""
        return f"QuantizedArray({self.format}, shape={self.shape}, {self.bits_per_weight:.2f} bits/weight, {amount(self.nbytes)})"

    def _repr_html_(self) -> str:
        facts = {
            "format": self.format,
            "shape": self.shape,
            "group size": f"{self.group_size} along axis {self.axis}",
            "size": f"{amount(self.nbytes)}, {self.bits_per_weight:.2f} bits per weight",
        }
        facts |= {name: f"{part.dtype} {part.shape}" for name, part in self._parts.items()}
        rows = "".join(f"<tr><th style='text-align: left'>{name}</th><td>{fact}</td></tr>" for name, fact in facts.items())
        return f"<table><caption>QuantizedArray</caption>{rows}</table>"


FLOATS = ("float16", "bfloat16", "float32", "float64")
STATE_VERSION = 1


def cut_words(q: QuantizedArray, key: list[int | slice], extents: dict[str, str]) -> dict[str, NDArray[Any]]:
    """Cut the rows of a format whose words hold codes of several rows, between words; of a flat one, between groups."""
    refuse = f"the index cuts inside a word of {q.format}, or leaves an axis out; dequantize first"
    first, *others = key if key else [slice(None)]
    if q.ndim == 0 or not isinstance(first, slice) or any(entry != slice(None) for entry in others):
        raise ValueError(refuse)
    length = q.size // max(q.shape[-1], 1) if q.ndim == 1 else q.shape[1 if q.axis == 0 else 0]
    start, stop, step = first.indices(length)
    stop = max(start, stop)
    if (start, stop, step) == (0, length, 1):
        return dict(q.parts)
    if step != 1:
        raise ValueError(refuse)
    if format_info(q.format).flat:
        row, group = q.size // max(length, 1), q.group_size
        assert isinstance(group, int)  # a flat format has no other
        begin, end = start * row, stop * row
        inside = begin % group or (end % group and end != q.size) or "nested_absmax" in q.parts
        if inside:
            raise ValueError(refuse)
        return {"packed": q.parts["packed"][begin // 2 : -(-end // 2)], "absmax": q.parts["absmax"][begin // group : -(-end // group)]}
    units = {"(K/8, N)": (1, 1), "(G, N)": (1, 1), "(K, N/8)": (1, 8), "(G, N/8)": (1, 8), "(ceil(N/8), G)": (0, 8)}
    cut = dict[str, "NDArray[Any]"]()
    for name, part in q.parts.items():
        extent = extents[name].split(" if ")[0]
        if extent == "(K,)":
            cut[name] = part
        elif extent == "(2,)":
            cut[name] = np.array([stop - start, q.shape[q.axis]], part.dtype)
        elif extent.startswith("(..."):
            cut[name] = part[start:stop]
        elif extent in units:
            at, unit = units[extent]
            if start % unit or (stop % unit and stop != length):
                raise ValueError(refuse)
            span = slice(start // unit, -(-stop // unit))
            cut[name] = part[:, span] if at else part[span]
        else:
            raise ValueError(refuse)
    return cut


def wrap(tensor: Tensor, parts: dict[str, NDArray[Any]], view: np.dtype[Any] | None = None) -> QuantizedArray:
    """Make a QuantizedArray of what the core gives; ``view`` is the bfloat16 that the caller asked for in place of its bits."""
    if view is not None:
        parts = {name: part.view(view) if part.dtype == np.uint16 else part for name, part in parts.items()}
    array = object.__new__(QuantizedArray)
    object.__setattr__(array, "_tensor", tensor)
    object.__setattr__(array, "_parts", parts)
    return array


def restore(state: dict[str, Any]) -> QuantizedArray:
    """Make a QuantizedArray of a pickled state. The name is part of every pickle."""
    version = state["version"]
    if version != STATE_VERSION:
        raise ValueError(f"the pickle has state version {version}; this quantize reads {STATE_VERSION}, load it with a newer one")
    # The first release with this version had no further options.
    format, shape, axis, group_size, scale_dtype, *more = state["tensor"]
    options: dict[str, Any] | None = more[0] if more else None
    if len(format_info(format).scale_dtypes) == 1:
        scale_dtype = None  # no option of this format

    def array(dtype: str, shape: tuple[int, ...], data: Any) -> NDArray[Any]:
        if dtype == "bfloat16":
            from ml_dtypes import bfloat16

            return np.ndarray(shape, bfloat16, data)
        return np.ndarray(shape, dtype, data)

    parts = {name: array(*part) for name, part in state["parts"].items()}
    return wrap(*_core.from_parts(format, parts, shape, axis, group_size, scale_dtype, options or None))


def float_dtype(dtype: DTypeLike | Literal["bfloat16"]) -> tuple[str, np.dtype[Any] | None]:
    """Give the name of a dtype, and the dtype itself if it is a bfloat16 that the caller has."""
    if dtype is np.float32:
        return "float32", None
    if isinstance(dtype, str) and dtype == "bfloat16":
        return "bfloat16", None
    resolved = np.dtype(dtype)
    name = resolved.name if resolved.isnative else str(resolved)
    return name, resolved if name == "bfloat16" else None


def format_info(name: str) -> FormatInfo:
    """Look up the canonical name of a format."""
    if not _table:
        _table.update((row[0], FormatInfo(*row)) for row in _core.formats())
    return _table[name]


_table: dict[str, FormatInfo] = {}


def amount(size: float) -> str:
    """Write a number of bytes in decimal units: ``9.4 MB``."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} bytes" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def _full_index(index: Index, shape: tuple[int, ...]) -> list[int | slice]:
    """One integer or slice for every axis."""
    entries = index if isinstance(index, tuple) else (index,)
    whole = [at for at, entry in enumerate(entries) if entry is Ellipsis]
    given = [entry for entry in entries if not isinstance(entry, EllipsisType)]
    if len(whole) > 1 or len(given) > len(shape):
        raise IndexError(f"index {index} has {len(given)} entries; the array has {len(shape)} axes")
    key: list[int | slice] = []
    for entry in given:
        if isinstance(entry, slice):
            key.append(entry)
        elif hasattr(entry, "__index__") and not isinstance(entry, (bool, np.bool_)) and np.ndim(entry) == 0:
            key.append(entry.__index__())
        else:
            raise IndexError(f"index holds {entry!r}; a QuantizedArray takes integers and slices")
    at = whole[0] if whole else len(key)
    key[at:at] = [slice(None)] * (len(shape) - len(given))
    # A slice that takes the whole axis is as good as none.
    return [
        slice(None) if isinstance(entry, slice) and entry.indices(length) == (0, length, 1) else entry
        for entry, length in zip(key, shape, strict=True)
    ]
