"""ggml's own quantizers, with and without an importance, by ctypes from the library in the wheel of pywhispercpp."""

from __future__ import annotations

import ctypes
from importlib.metadata import PackageNotFoundError, files

import numpy as np

# The types of ggml.h, and their names in the functions of ggml-quants.h.
TYPES = {
    "gguf:q4_0": (2, "q4_0"),
    "gguf:q4_1": (3, "q4_1"),
    "gguf:q4_k": (12, "q4_K"),
    "gguf:iq4_nl": (20, "iq4_nl"),
    "gguf:iq4_xs": (23, "iq4_xs"),
    "gguf:mxfp4": (39, "mxfp4"),
    "gguf:nvfp4": (40, "nvfp4"),
}


def load() -> ctypes.CDLL | None:
    """The library; None where the package is not installed."""
    try:
        found = files("pywhispercpp") or ()
    except PackageNotFoundError:
        return None
    [path] = [file for file in found if file.parent.name == "pywhispercpp.libs" and file.name.startswith("libggml-base")]
    library = ctypes.CDLL(str(path.locate()))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.ggml_blck_size.restype = integer
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    for _, name in TYPES.values():
        getattr(library, f"dequantize_row_{name}").argtypes = [pointer, pointer, integer]
    return library


GGML = load()


def quantized(name: str, x: np.ndarray, importance: np.ndarray | None = None) -> np.ndarray:
    """What ggml makes of the rows of ``x``, as floats; ``importance`` has a number for every column."""
    assert GGML is not None
    number, function = TYPES[name]
    length, size = GGML.ggml_blck_size(number), GGML.ggml_type_size(number)
    x = np.ascontiguousarray(x, np.float32)
    blocks, out = np.empty(x.size // length * size, np.uint8), np.empty_like(x)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    GGML.ggml_quantize_chunk(number, x.ctypes.data, blocks.ctypes.data, 0, *x.shape, None if weights is None else weights.ctypes.data)
    getattr(GGML, f"dequantize_row_{function}")(blocks.ctypes.data, out.ctypes.data, x.size)
    return out


def weights(name: str, x: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """What the search of ggml weights the square of every error with, from its sources.

    With an importance it is importance * sqrt(m + x^2): m is the mean square of the row in Q4_0 and Q4_1, and twice that of the block
    in the others. Without, IQ4 takes x^2, Q4_K (by sub-block) the root mean square plus |x|; all else is not searched.
    """
    x = x.astype(np.float64)
    block = {"gguf:q4_k": 256, "gguf:iq4_xs": 256}.get(name, 32)
    if importance is None:
        if name.startswith("gguf:iq4"):
            return x**2
        if name == "gguf:q4_k":
            small = x.reshape(-1, 32)
            return (np.sqrt((small**2).mean(1, keepdims=True)) + np.abs(small)).reshape(x.shape)
        return np.ones_like(x)
    if name in ("gguf:q4_0", "gguf:q4_1"):
        mean = (x**2).mean(1, keepdims=True)
    else:
        mean = np.repeat(2 * (x.reshape(-1, block) ** 2).mean(1), block).reshape(x.shape)
    return importance * np.sqrt(mean + x**2)
