"""The peers, one file each, named after its package on the index.

A file has one function, ``works(problem)``: what its package can do with that format. It is imported only where the package is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

import quantize as qz

OURS = "quantize"  # who we are in the tables


class Problem(NamedTuple):
    """What every peer gets: a format, floats in rows, and our own result of them."""

    format: str
    x: np.ndarray
    q: qz.QuantizedArray


class Work(NamedTuple):
    """What a peer does with it.

    ``run`` is timed; ``result`` then brings what it returned to ours, untimed: parts under our names, which have to be the
    same bytes, or floats, which have to be the same as ours. Where the scheme is another, ``bound`` says how far the
    floats may be from the input, relative to it (root mean square).
    """

    what: str  # "encode" or "decode"
    run: Callable[[], Any]
    result: Callable[[Any], Mapping[str, np.ndarray] | np.ndarray]
    threads: int
    reused: bool = False  # writes into memory that it is given
    bound: float = 0.0
    dtype: str = "float32"  # what a decoder rounds to
    note: str = ""
