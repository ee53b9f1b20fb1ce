"""ggml's own C code, by ctypes from the library in this wheel; on all threads by rows, which nobody offers ready-made."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import files

import numpy as np
from limit import one_and_all

from . import Problem, Work

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


def load() -> ctypes.CDLL:
    [path] = [f for f in files("pywhispercpp") or () if f.parent.name == "pywhispercpp.libs" and f.name.startswith("libggml-base")]
    library = ctypes.CDLL(str(path.locate()))
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    for _, name in TYPES.values():
        getattr(library, f"dequantize_row_{name}").argtypes = [pointer, pointer, integer]
    return library


GGML = load()


def works(problem: Problem) -> Iterator[Work]:
    if problem.format not in TYPES:
        return
    number, name = TYPES[problem.format]
    x, blocks = problem.x, problem.q.parts["blocks"]
    encoded, decoded = np.empty_like(blocks), np.empty_like(x)
    for threads in one_and_all():
        pool = ThreadPoolExecutor(threads)
        yield Work(
            "encode", partial(by_rows, pool, threads, partial(encode, number), x, encoded), as_blocks, threads, reused=True, note="ggml"
        )
        dequantize = partial(decode, getattr(GGML, f"dequantize_row_{name}"))
        yield Work("decode", partial(by_rows, pool, threads, dequantize, blocks, decoded), np.asarray, threads, reused=True, note="ggml")


def as_blocks(blocks: np.ndarray) -> dict[str, np.ndarray]:
    return {"blocks": blocks}


def by_rows(pool: ThreadPoolExecutor, threads: int, work, source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Do the work on an equal share of the rows on every thread."""
    if threads == 1:
        work(source, target)
    else:
        list(pool.map(work, np.array_split(source, threads), np.array_split(target, threads)))
    return target


def encode(number: int, x: np.ndarray, blocks: np.ndarray) -> None:
    if len(x):
        GGML.ggml_quantize_chunk(number, x.ctypes.data, blocks.ctypes.data, 0, *x.shape, None)


def decode(function, blocks: np.ndarray, x: np.ndarray) -> None:
    function(blocks.ctypes.data, x.ctypes.data, x.size)
