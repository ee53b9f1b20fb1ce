"""ggml's own C code, from the library in the pywhispercpp wheel: the same blocks from the same floats, the same floats from any blocks."""

import ctypes
from importlib.metadata import files

import numpy as np
import pytest
from helpers import same
from inputs import MAKE, rows, same_but_nan

import quantize as qz

# The types of ggml.h, and their names in the functions of ggml-quants.h.
TYPES = {
    "gguf:q4_0": (2, "q4_0"),
    "gguf:q4_1": (3, "q4_1"),
    "gguf:q4_k": (12, "q4_K"),
    "gguf:iq4_nl": (20, "iq4_nl"),
    "gguf:iq4_xs": (23, "iq4_xs"),
    "gguf:mxfp4": (39, "mxfp4"),
    "gguf:nvfp4": (40, "nvfp4"),
    "gguf:q5_0": (6, "q5_0"),
    "gguf:q5_1": (7, "q5_1"),
    "gguf:q8_0": (8, "q8_0"),
    "gguf:q5_k": (13, "q5_K"),
    "gguf:q6_k": (14, "q6_K"),
}
# Where the float16 numbers of a block are.
HALVES = dict.fromkeys(("gguf:q4_0", "gguf:iq4_nl", "gguf:iq4_xs", "gguf:q5_0", "gguf:q8_0"), slice(0, 2))
HALVES |= dict.fromkeys(("gguf:q4_1", "gguf:q4_k", "gguf:q5_1", "gguf:q5_k"), slice(0, 4)) | {"gguf:q6_k": slice(208, 210)}
# The largest magnitude that a code reaches with a factor of a group and a scale of 1.
REACH = {"gguf:iq4_xs": 32 * 127, "gguf:q6_k": 128 * 32}
BLOCKS = 4096


def load():
    """The library that holds the codecs, with the signatures of what is called here."""
    [path] = [file for file in files("pywhispercpp") if file.parent.name == "pywhispercpp.libs" and file.name.startswith("libggml-base")]
    library = ctypes.CDLL(str(path.locate()))
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    return library


GGML = load()


def sizes(name):
    """Elements and bytes of a block."""
    number, _ = TYPES[name]
    return GGML.ggml_blck_size(number), GGML.ggml_type_size(number)


def encode(name, x, importance=None):
    """Blocks of the rows of ``x``, with a row of an importance matrix if one is given."""
    number, _ = TYPES[name]
    length, size = sizes(name)
    blocks = np.empty((len(x), x.shape[1] // length * size), np.uint8)
    matrix = None if importance is None else importance.ctypes.data
    assert GGML.ggml_quantize_chunk(number, x.ctypes.data, blocks.ctypes.data, 0, len(x), x.shape[1], matrix) == blocks.nbytes
    return blocks


def decode(name, blocks):
    """Floats of rows of blocks."""
    length, size = sizes(name)
    x = np.empty((len(blocks), blocks.shape[1] // size * length), np.float32)
    function = getattr(GGML, f"dequantize_row_{TYPES[name][1]}")
    function.argtypes, function.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64], None
    function(blocks.ctypes.data, x.ctypes.data, x.size)
    return x


def beyond_float16(name, x, theirs):
    """Which rows are an error here, as docs/formats.md lists: ggml stores an infinity or NaN for the scale or the minimum."""
    beyond = ~np.isfinite(np.ascontiguousarray(theirs[:, HALVES[name]]).view(np.float16)).all(axis=1)
    if name in REACH:
        # Sums overflow too, and ggml goes on without that group, though no scale of float16 reaches its largest element.
        beyond |= np.abs(x).max(axis=1) > np.float32(65504 * REACH[name])
    return beyond


def nearest_under_exponent_0(x):
    """MXFP4 blocks with exponent byte 0: the first of the numbers times 2^-127 that is nearest."""
    numbers = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    numbers = np.float32(2.0**-127) * np.concatenate([numbers, -numbers])
    codes = np.abs(numbers - x[..., None]).argmin(axis=-1).astype(np.uint8)
    return np.concatenate([np.zeros((len(x), 1), np.uint8), codes[:, :16] | codes[:, 16:] << 4], axis=1)


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("name", TYPES)
def test_encodes_to_the_same_blocks(name, kind):
    length, _ = sizes(name)
    x = rows(kind, BLOCKS * max(length // 32, 1), 32).reshape(-1, length)
    expected = encode(name, x)
    if name in HALVES:
        beyond = beyond_float16(name, x, expected)
        assert beyond.all() == (kind in ("1e30", "largest"))
        for row in x[beyond][:64]:
            with pytest.raises(ValueError, match="beyond the largest float16"):
                qz.quantize(row, name)
        x, expected = x[~beyond], expected[~beyond]
    if name == "gguf:mxfp4":
        # Listed too: here the exponent of ggml wraps around, ours is 0.
        largest = np.abs(x).max(axis=1)
        small = (largest > 0) & (largest < 2.0**-125)
        expected[small] = nearest_under_exponent_0(x[small])
    same(qz.quantize(x, name).parts["blocks"], expected, kind)


def test_mxfp4_next_to_the_end_of_float32():
    """Listed: ggml's candidate 4 * 2^126 is an infinity, so that it takes 3 * 2^126 for what is nearly 2^128."""
    x = np.zeros((1, 32), np.float32)
    x[0, 0] = np.finfo(np.float32).max
    theirs, ours = encode("gguf:mxfp4", x), qz.quantize(x, "gguf:mxfp4").parts["blocks"]
    assert (theirs[0, 0], theirs[0, 1] & 15) == (253, 5)
    assert (ours[0, 0], ours[0, 1] & 15) == (253, 6)
    same(ours[:, 2:], theirs[:, 2:])


@pytest.mark.parametrize("name", TYPES)
def test_decodes_any_bytes_to_the_same_values(name):
    _, size = sizes(name)
    blocks = np.random.default_rng(4).integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    actual, expected = qz.from_parts(name, {"blocks": blocks}).dequantize(), decode(name, blocks)
    if name == "gguf:mxfp4":
        # Listed: 255 is NaN as E8M0 says, and 2^128 in ggml.
        assert np.isnan(actual[blocks[:, 0] == 255]).all()
        actual, expected = actual[blocks[:, 0] != 255], expected[blocks[:, 0] != 255]
    same_but_nan(actual, expected)


@pytest.mark.parametrize("name", TYPES)
def test_a_matrix_encodes_as_its_rows_do(name):
    length, _ = sizes(name)
    x = rows("normal", 64 * length // 32, 7 * 32).reshape(64, -1)
    same(qz.quantize(x, name).parts["blocks"], encode(name, x))


@pytest.mark.parametrize(("name", "ratio"), [("gguf:q4_k", 0.96), ("gguf:iq4_xs", 0.97)])
@pytest.mark.parametrize("importance", ["equal", "squares"])
@pytest.mark.parametrize("kind", ["normal", "heavy tails"])
def test_the_search_beats_that_of_ggml(name, ratio, importance, kind):
    """With the same importance, whose error is counted. ggml multiplies the weights by sqrt(mean of x^2 + x^2), which is not its own goal here."""
    x = {"normal": np.random.default_rng(7).standard_normal, "heavy tails": lambda shape: np.random.default_rng(8).standard_t(5, shape)}[
        kind
    ]
    x = x((512, 1536)).astype(np.float32)
    weights = {"equal": np.ones(1536), "squares": np.random.default_rng(9).standard_normal(1536) ** 2 + 0.05}[importance].astype(np.float32)

    def error(y):
        return float((weights * (x - y).astype(np.float64) ** 2).sum())

    theirs = error(decode(name, encode(name, x, weights)))
    for method in ("fast", "optimal"):
        q = qz.quantize(x, name, method=method, importance=weights)
        same(decode(name, q.parts["blocks"]), q.dequantize())
        assert error(q.dequantize()) <= ratio * theirs
