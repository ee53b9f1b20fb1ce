"""What the formats share: the cut into groups, the policies for elements that are not finite, and nibbles in bytes."""

import ml_dtypes
import numpy as np

SCALE_DTYPES = {"float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16), "float32": np.dtype(np.float32)}


class Format:
    """A format of 4-bit codes.

    A group is the elements that share a scale. Groups run along one axis, which is moved to the end first; every array
    below has that axis last, cut in two: ``(..., G, g)`` for ``G`` groups of ``g`` elements.
    """

    name: str
    group_size: int = 32
    block: int = 32  # elements that are stored together, in the formats of blocks
    parts: tuple[str, ...]

    def encode(self, array, *, axis=-1, group_size=None, scale_dtype=None, nonfinite="raise", **options):
        """Quantize ``array`` to the parts of the format, by name, in the order in which the format lists them.

        ``options`` are those that the format has beside group size and scale dtype; they reach :meth:`encode_groups`.
        """
        x = np.moveaxis(self.read(array), axis, -1)
        group_size = group_size or self.group_size
        groups = settle_nonfinite(cut(x, group_size), nonfinite)
        scale_dtype = SCALE_DTYPES[scale_dtype or self.default_scale_dtype(array)]
        return self.encode_groups(groups, scale_dtype, lambda codes: join(codes, x.shape, group_size), **options)

    def decode(self, parts, shape, *, axis=-1, group_size=None, **options):
        """The float32 array of ``shape`` that ``parts`` stand for."""
        moved = np.moveaxis(np.empty(shape, np.bool_), axis, -1).shape
        group_size = group_size or self.group_size
        # A product beyond float32 is an infinity, as IEEE has it: scales near the end of the range can lead there.
        with np.errstate(over="ignore"):
            groups = self.decode_groups(parts, moved[-1], lambda codes: cut(codes, group_size), **options)
        return np.moveaxis(join(groups, moved, group_size), -1, axis)

    def read(self, array):
        """The array as float32; what the home project cannot hold in its arithmetic is an infinity."""
        return to_float32(array)

    def default_scale_dtype(self, array):
        """The dtype of the scales where none is given."""
        return "float16"

    def encode_groups(self, x, scale_dtype, join):
        """Parts of the groups ``x`` (..., G, g); ``join`` puts codes of that shape back into rows (..., K)."""
        raise NotImplementedError

    def decode_groups(self, parts, columns, cut):
        """Values (..., G, g) of ``parts``; ``cut`` cuts the codes of rows of ``columns`` elements into groups."""
        raise NotImplementedError


def to_float32(array):
    """Any float dtype as float32: halves exactly, float64 rounded once (beyond the range of float32 it becomes infinite)."""
    with np.errstate(over="ignore"):
        return np.asarray(array).astype(np.float32)


def cut(x, group_size):
    """``(..., K)`` as groups ``(..., G, g)``; a short last group is filled up with zeros.

    A zero changes no extreme that a format looks for and is dropped again by :func:`join`. With ``"tensor"`` all
    elements are one group, ``(1, ..., 1, size)``.
    """
    if group_size == "tensor":
        groups = 1 if x.size else 0
        return x.reshape((groups,) * x.ndim + (max(x.size, 1),))
    columns = x.shape[-1]
    size = max(columns, 1) if group_size == "row" else min(group_size, max(columns, 1))
    count = -(-columns // size)
    filled = np.zeros(x.shape[:-1] + (count * size,), x.dtype)
    filled[..., :columns] = x
    return filled.reshape(x.shape[:-1] + (count, size))


def join(groups, shape, group_size):
    """Undo :func:`cut` for an array of ``shape``."""
    if group_size == "tensor":
        return groups.reshape(shape)
    rows = groups.reshape(shape[:-1] + (groups.shape[-2] * groups.shape[-1],))
    return rows[..., : shape[-1]]


def settle_nonfinite(x, policy):
    """Groups without NaN and infinities, by the policy.

    ``raise`` refuses; ``zero`` makes each 0; ``clip`` makes NaN 0 and an infinity the largest finite magnitude of its
    group, 0 where there is none, with the sign of the infinity.
    """
    finite = np.isfinite(x)
    if finite.all():
        return x
    if policy == "raise":
        raise ValueError(f"{np.count_nonzero(~finite)} elements are not finite")
    zeroed = np.where(finite, x, np.float32(0))
    if policy == "zero":
        return zeroed
    largest = np.abs(zeroed).max(-1, keepdims=True)
    return np.where(np.isinf(x), np.copysign(largest, x), zeroed)


def first_largest(x):
    """The element of largest magnitude of each group, with its sign; the first one wins."""
    return np.take_along_axis(x, np.abs(x).argmax(-1, keepdims=True), -1)[..., 0]


def store(values, dtype, what):
    """Round float32 ``values`` to the dtype that stores them; beyond its range is an error, never an infinity."""
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if not np.isfinite(stored.astype(np.float32)).all():
        raise OverflowError(f"a {what} is beyond the largest {dtype.name}")
    return stored


def store_scales(scales, dtype):
    """Round scales to ``dtype``; one that is subnormal as float32 or zero becomes +0.0."""
    stored = store(scales, dtype, "scale")
    return np.where(np.abs(stored.astype(np.float32)) < np.float32(2.0**-126), dtype.type(0), stored)


def reciprocal(scales):
    """1 / scale in float32, and 0 for a scale of 0."""
    inverse = np.zeros_like(scales)
    with np.errstate(over="ignore"):
        np.divide(np.float32(1), scales, out=inverse, where=scales != 0)
    return inverse


def pack(codes):
    """Codes 0..15 ``(..., n)`` as bytes ``(..., ceil(n / 2))``: the even element low; an odd row is filled with a 0."""
    low = codes[..., 0::2].astype(np.uint8)
    high = np.zeros_like(low)
    high[..., : codes.shape[-1] // 2] = codes[..., 1::2]
    return low | high << 4


def unpack(packed, count):
    """The ``count`` codes 0..15 of each row of bytes."""
    codes = np.empty(packed.shape[:-1] + (2 * packed.shape[-1],), np.uint8)
    codes[..., 0::2], codes[..., 1::2] = packed & 15, packed >> 4
    return codes[..., :count]


def pack_halves(codes):
    """Codes 0..15 of whole blocks ``(..., 32)`` as ggml pairs them: element j low with element j + 16 high."""
    low, high = codes[..., :16], codes[..., 16:]
    return low | high << 4


def unpack_halves(packed):
    """Undo :func:`pack_halves`."""
    return np.concatenate([packed & 15, packed >> 4], -1)


def truncate(values):
    """float32 to integer as x86 C does it: toward zero, and 0 for what is not finite."""
    return np.trunc(np.where(np.isfinite(values), values, np.float32(0))).astype(np.int32)
