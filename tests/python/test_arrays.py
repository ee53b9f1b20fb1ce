"""The product against the slow reference, bit for bit, over formats, dtypes, memory layouts, shapes, groups and threads."""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import pytest
from helpers import BFLOAT16, BY_ROWS, KINDS, as_bits, same, same_parts, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import FORMATS, iq4, nvfp4

import quantize as qz

SETTINGS = settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
INFO = {row.name: row for row in qz.formats()}
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
NUMBERS = dict.fromkeys(("gguf:iq4_nl", "gguf:iq4_xs"), iq4.TABLE) | {"gguf:nvfp4": nvfp4.NUMBERS}


def test_every_format_has_a_reference():
    assert sorted(FORMATS) == sorted(row.name for row in qz.formats())


# Every layout takes a C-order array and returns an array of the same shape and dtype that lies differently in memory;
# "broadcast" also changes values, so that the expected parts are always made from the array that it returned.


def strided(a):
    wide = np.full([2 * n + 1 for n in a.shape], 7, a.dtype)
    inner = wide[tuple(slice(1, None, 2) for _ in a.shape)]
    inner[...] = a
    return inner


def reversed_(a):
    backwards = (slice(None, None, -1),) * a.ndim
    return a[backwards].copy()[backwards]


def broadcast(a):
    return np.broadcast_to(a[:1], a.shape) if len(a) else a


def repeated(a):
    return np.broadcast_to(a[..., :1], a.shape) if a.shape[-1] else a


def windows(a):
    """Rows that overlap in memory: row i starts one element after row i - 1."""
    if a.ndim != 2 or not a.size:
        return a
    line = np.concatenate([a[0], a[:, -1]])
    return np.lib.stride_tricks.as_strided(line, a.shape, (line.itemsize, line.itemsize), writeable=False)


def swapped(a):
    return a if a.dtype == BFLOAT16 else a.astype(a.dtype.newbyteorder())


def unaligned(a):
    raw = np.empty(a.nbytes + 1, np.uint8)[1:]
    raw[:] = np.frombuffer(a.tobytes(), np.uint8)
    return np.frombuffer(raw, a.dtype).reshape(a.shape) if a.size else a


def read_only(a):
    a = a.copy()
    a.setflags(write=False)
    return a


def transposed(a):
    return np.ascontiguousarray(a.T).T


LAYOUTS = {
    "C": lambda a: a,
    "Fortran": np.asfortranarray,
    "strided": strided,
    "reversed": reversed_,
    "broadcast": broadcast,
    "repeated": repeated,
    "windows": windows,
    "byte-swapped": swapped,
    "unaligned": unaligned,
    "read-only": read_only,
    "transposed": transposed,
    "swapped and strided": lambda a: strided(swapped(a)),
}

DTYPES = ("float32", "float16", "float64", "bfloat16", "bfloat16 bits")


def cast(x, dtype):
    """``x`` in ``dtype``; what overflows becomes 1, so that the array stays finite."""
    with np.errstate(over="ignore"):
        a = x.astype(BFLOAT16 if "bfloat16" in dtype else dtype)
    a[~np.isfinite(a.astype(np.float32))] = 1
    if dtype == "float64":
        a = a * (1 + 1e-9)  # values that float32 has to round
        a[~np.isfinite(a.astype(np.float32))] = 1
    return a.view(np.uint16) if dtype == "bfloat16 bits" else a


@dataclass(frozen=True)
class Call:
    """The recipe of a call: what hypothesis draws and, where a test fails, shows."""

    name: str
    shape: tuple[int, ...]
    options: dict
    kind: str = "normal"
    seed: int = 0
    dtype: str = "float32"
    layout: str = "C"
    threads: int | None = None

    @property
    def array(self):
        return LAYOUTS[self.layout](cast(sample(self.shape, self.seed, self.kind), self.dtype))

    @property
    def values(self):
        """The floats that the array stands for."""
        array = self.array
        return array.astype(np.uint16).view(BFLOAT16) if self.dtype == "bfloat16 bits" else array

    def quantize(self, array):
        dtype = "bfloat16" if self.dtype == "bfloat16 bits" else None
        return qz.quantize(array, self.name, dtype=dtype, threads=self.threads, **self.options)

    def expected_parts(self):
        return FORMATS[self.name].encode(self.values, **self.options)

    def expected_values(self):
        options = {key: value for key, value in self.options.items() if key != "scale_dtype"}
        return np.ascontiguousarray(FORMATS[self.name].decode(self.expected_parts(), self.shape, **options))


@st.composite
def calls(draw):
    """A format, a shape with its group axis, options, dtype and memory layout.

    The lengths of the group axis lie around the widths of lanes, blocks and tiles.
    """
    name = draw(st.sampled_from(BY_ROWS))
    ndim = draw(st.integers(1, 4))
    shape = [draw(st.integers(0, 12) if ndim < 3 else st.integers(1, 4)) for _ in range(ndim)]
    options = {"axis": draw(st.integers(-ndim, ndim - 1))}
    info = INFO[name]
    if not info.any_group_size:
        size = draw(st.sampled_from([None, *info.group_sizes]))
        block = max(size or info.group_size, FORMATS[name].block)
        length = block * draw(st.sampled_from([0, 1, 2, 3, 16, 17, 33] if block < 256 else [0, 1, 2, 3, 5]))
        options["group_size"] = size
    else:
        length = draw(st.sampled_from([0, 1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1055]))
        options["group_size"] = draw(st.sampled_from([None, 1, 2, 3, 5, 16, 31, 32, 33, 64, 128, 512, 1000, "row", "tensor"]))
    if "scale_dtype" in info.options:
        options["scale_dtype"] = draw(st.sampled_from([None, "float16", "bfloat16", "float32"]))
    shape[options["axis"]] = length
    facts = [st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.sampled_from(DTYPES), st.sampled_from(sorted(LAYOUTS))]
    kind, seed, dtype, layout = (draw(fact) for fact in facts)
    return Call(name, tuple(shape), options, kind, seed, dtype, layout, draw(st.sampled_from([None, 1, 2, 5])))


@SETTINGS
@given(calls())
def test_parts_and_values_are_those_of_the_reference(call):
    array = call.array
    try:
        expected = call.expected_parts()
    except OverflowError:
        with pytest.raises(ValueError, match="beyond the largest"):
            call.quantize(array)
        return
    q = call.quantize(array)
    own = INFO[call.name].scales_follow_array and call.dtype == "bfloat16" and call.options["scale_dtype"] is None
    same_parts(q.parts, expected if own else {part: as_bits(a) for part, a in expected.items()})
    same(q.dequantize(threads=call.threads), call.expected_values())

    assert q.format == call.name
    assert q.shape == array.shape
    assert q.ndim == array.ndim
    assert q.size == array.size
    assert q.axis == call.options["axis"] % q.ndim
    assert q.group_size == (call.options.get("group_size") or INFO[call.name].group_size)
    assert q.dtype == np.float32
    assert q.nbytes == sum(part.nbytes for part in expected.values())
    if array.size:
        assert q.bits_per_weight == 8 * q.nbytes / q.size


def values_from_codes(q):
    """What the public pieces of ``q`` say its values are: codes, scales, and zero points or minimums."""
    codes = np.moveaxis(q.codes(), q.axis, -1)
    codes = NUMBERS.get(q.format, E2M1)[codes] if INFO[q.format].scheme == "codebook" else codes.astype(np.float32)
    size = {"row": max(codes.shape[-1], 1), "tensor": 1}.get(q.group_size, q.group_size)

    def spread(groups):
        if q.group_size == "tensor":
            return np.broadcast_to(groups.reshape(-1)[:1], codes.shape) if codes.size else np.zeros_like(codes)
        return np.repeat(groups, size, -1)[..., : codes.shape[-1]]

    with np.errstate(over="ignore"):
        if q.minimums is not None:
            values = codes * spread(q.scales) + spread(q.minimums)
        elif q.zero_points is not None:
            values = (codes - spread(q.zero_points)) * spread(q.scales)
        else:
            values = codes * spread(q.scales)
    return np.moveaxis(values, -1, q.axis)


@SETTINGS
@given(calls())
def test_codes_scales_and_offsets_say_what_the_values_are(call):
    array, name = call.array, call.name
    try:
        expected = call.expected_parts()
    except OverflowError:
        return
    q = call.quantize(array)
    codes = q.codes()
    scheme = INFO[name].scheme
    lowest, highest = INFO[name].codes
    assert codes.dtype == np.int8
    assert codes.shape == array.shape
    if codes.size:
        assert codes.min() >= lowest
        assert codes.max() <= highest
    assert q.scales.dtype == np.float32
    if "scales" in expected and scheme != "codebook":
        same(q.scales, expected["scales"].astype(np.float32))
    assert (q.zero_points is not None) == (scheme == "affine")
    assert (q.minimums is not None) == (scheme == "minimum")
    for offsets in (q.zero_points, q.minimums):
        assert offsets is None or (offsets.shape == q.scales.shape and offsets.dtype == np.float32)
    same(values_from_codes(q), q.dequantize())


@SETTINGS
@given(calls(), st.sampled_from(["float16", "float32", "float64", "bfloat16", BFLOAT16]), st.booleans())
def test_decode_to_every_dtype(call, dtype, into):
    array = call.array
    try:
        decoded = call.expected_values()
    except OverflowError:
        return
    q = call.quantize(array)
    with np.errstate(over="ignore"):
        wanted = decoded.astype(dtype)  # numpy knows the name "bfloat16" through ml_dtypes
    if isinstance(dtype, str):
        wanted = as_bits(wanted)
    out = np.full(array.shape, 7, wanted.dtype) if into else None
    result = q.dequantize(dtype=dtype, out=out, threads=call.threads)
    assert not into or result is out
    same(result, wanted)
    same(qz.dequantize(q, dtype=dtype), wanted)


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_scale_dtype_by_name_gives_bits_and_by_ml_dtypes_its_own_dtype(name):
    x = sample((3, 40))
    expected = FORMATS[name].encode(x, scale_dtype="bfloat16")
    same(qz.quantize(x, name, scale_dtype="bfloat16").parts["scales"], expected["scales"].view(np.uint16))
    same(qz.quantize(x, name, scale_dtype=ml_dtypes.bfloat16).parts["scales"], expected["scales"])
    same(qz.quantize(x, name, scale_dtype=np.float32).parts["scales"], FORMATS[name].encode(x, scale_dtype="float32")["scales"])
    same(qz.quantize(x, name, scale_dtype=np.dtype("float16")).parts["scales"], FORMATS[name].encode(x)["scales"])


# Large enough for threads: a call below 512 Ki elements stays on its thread.
LARGE = [
    ("int4", (1031, 1024), {}),
    ("int4", (513, 2049), {"group_size": 37, "scale_dtype": "bfloat16"}),
    ("int4", (7, 150_001), {"group_size": "row", "scale_dtype": "float32"}),
    ("int4", (1031, 1023), {"group_size": "tensor"}),
    ("int4", (1, 1_100_003), {"group_size": 64}),
    ("uint4", (1031, 1024), {}),
    ("uint4", (3, 350_000), {"group_size": 100_000}),
    ("uint4", (1024, 1031), {"group_size": 128, "axis": 0}),
    ("uint4", (2, 517, 1023), {"group_size": "tensor"}),
    ("gguf:q4_0", (1031, 1024), {}),
    ("gguf:q4_0", (1024, 1031), {"axis": 0}),
    ("gguf:q4_1", (1031, 1024), {}),
    ("gguf:q4_1", (4, 320, 1024), {"axis": 1}),
    ("gguf:q4_k", (600, 1024), {}),
    ("gguf:iq4_nl", (600, 1024), {}),
    ("gguf:iq4_xs", (768, 700), {"axis": 0}),
    ("gguf:nvfp4", (640, 1024), {}),
    ("mlx", (1031, 1024), {}),
    ("mlx", (1024, 1031), {"group_size": 128, "axis": 0}),
    ("mlx", (1031, 1056), {"group_size": 32, "scale_dtype": "float16"}),
    ("gguf:mxfp4", (1031, 1024), {}),
    ("gptoss:mxfp4", (33, 1024, 32), {"axis": 1}),
    ("mlx:mxfp4", (1031, 1056), {}),
    ("compressed-tensors:mxfp4", (1, 1_100_000), {}),
]


@pytest.mark.parametrize(("name", "shape", "options"), LARGE)
def test_large_arrays_at_any_thread_count(name, shape, options):
    x = sample(shape)
    expected = FORMATS[name].encode(x, **options)
    decoded = FORMATS[name].decode(expected, shape, axis=options.get("axis", -1), group_size=options.get("group_size"))
    for threads in (1, 2, 3, 8):
        q = qz.quantize(x, name, threads=threads, **options)
        same_parts(q.parts, {part: as_bits(a) for part, a in expected.items()}, threads)
        same(q.dequantize(threads=threads), np.ascontiguousarray(decoded), threads)
    half = np.full(shape, np.nan, np.float16)
    same(q.dequantize(dtype=np.float16, out=half), np.ascontiguousarray(decoded.astype(np.float16)))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
@pytest.mark.parametrize("name", BY_ROWS)
def test_large_arrays_of_any_layout(name, layout):
    array = LAYOUTS[layout](sample((640, 1024)))
    same_parts(qz.quantize(array, name, threads=2).parts, FORMATS[name].encode(array))


@pytest.mark.parametrize("first", [-5, 5])
def test_the_first_of_equal_extremes_decides_also_across_threads(first):
    x = sample((1100, 1000))
    x[300, 17], x[900, 3] = first, -first
    for options in ({"group_size": "tensor"}, {"group_size": "row", "axis": 0}):
        for threads in (1, 2, 8):
            same_parts(qz.quantize(x, "int4", threads=threads, **options).parts, FORMATS["int4"].encode(x, **options))
    assert qz.quantize(x, group_size="tensor").scales.item() == first / -8


@SETTINGS
@given(calls(), st.data())
def test_parts_of_a_whole_are_the_whole_of_the_parts(call, data):
    """Cut an array along an axis that is not the group axis, or between groups: the parts are those of the whole, cut."""
    array = call.array
    if call.options.get("group_size") == "tensor" or array.ndim < 2:
        return
    try:
        call.expected_parts()
    except OverflowError:
        return
    whole = call.quantize(array)
    axis = call.options["axis"] % array.ndim
    others = [n for n in range(array.ndim) if n != axis]
    along = data.draw(st.sampled_from(others))
    at = data.draw(st.integers(0, array.shape[along]))
    first, second = np.split(array, [at], axis=along)
    pieces = [call.quantize(piece).parts for piece in (first, second)]
    joined_axis = others.index(along)  # in the parts the group axis has moved to the end
    for part, whole_part in whole.parts.items():
        same(np.concatenate([piece[part] for piece in pieces], joined_axis), whole_part, part)


@pytest.mark.parametrize("name", BY_ROWS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_cut_between_groups_changes_nothing(name, dtype):
    x = sample((5, 512)).astype(dtype)
    whole = qz.quantize(x, name)
    for at in (256,) if FORMATS[name].block == 256 else (64, 256, 448):  # axis 1 of the parts has the groups, in order
        left, right = qz.quantize(x[:, :at], name).parts, qz.quantize(x[:, at:], name).parts
        for part, array in whole.parts.items():
            same(np.concatenate([left[part], right[part]], 1), array, part)


@pytest.mark.parametrize("name", BY_ROWS)
def test_the_input_is_left_alone(name):
    x = sample((40, 256))
    before = x.copy()
    q = qz.quantize(x, name, axis=0 if INFO[name].any_group_size else -1)
    parts = {part: array.copy() for part, array in q.parts.items()}
    q.dequantize()
    same(x, before)
    same_parts(q.parts, parts)


@pytest.mark.parametrize("name", ["int4", "uint4"])
@pytest.mark.parametrize("count", [1, 3, 31, 33, 255, 257])
def test_padding_is_zero_and_does_not_depend_on_memory(name, count):
    for fill in (0x00, 0xFF):
        q = qz.quantize(sample((4, count)), name, group_size=5)
        out = {part: np.full_like(array, 0) for part, array in q.parts.items()}
        for array in out.values():
            array.view(np.uint8)[...] = fill
        filled = qz.quantize(sample((4, count)), name, group_size=5, out=out)
        same_parts(filled.parts, dict(q.parts))
        if count % 2:
            assert (q.parts["packed"][:, -1] >> 4 == 0).all()


# Where scales are searched, or stored in a few bits, what was decoded need not come back.
INEXACT = ("gguf:q4_k", "gguf:iq4_nl", "gguf:iq4_xs", "gguf:nvfp4", "mlx:nvfp4")


# The numbers of the test are those of four bits.
COMPANIONS = [name for name, info in INFO.items() if info.companion]


@pytest.mark.parametrize("name", sorted(set(BY_ROWS) - {*INEXACT, *COMPANIONS}))
def test_quantizing_what_was_decoded_changes_nothing(name):
    """Idempotence, where the scheme allows it: exact steps of a power of two with the extreme at code -8 (or both ends).

    Of a codebook: its own numbers, the largest among them.
    """
    codes = np.random.default_rng(5).integers(-8, 8, (6, 128)).astype(np.float32)
    codes[:, ::32], codes[:, 1::32] = -8, 7
    if INFO[name].scheme == "codebook":
        codes = E2M1[codes.astype(np.int8)]
    x = codes * np.float32(0.25)
    q = qz.quantize(x, name)
    same(q.dequantize() + 0, x + 0)  # + 0 makes -0.0 the 0.0 that it equals
    assert qz.quantize(q.dequantize(), name).identical(q)
