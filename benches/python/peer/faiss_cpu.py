"""The 4-bit scalar quantizer of faiss: one range for each column over all rows, chosen before the clock starts; another scheme than ours."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import faiss
import numpy as np

from . import Problem, Work


def works(problem: Problem) -> Iterator[Work]:
    if problem.format != "uint4":
        return
    x = problem.x
    quantizer = faiss.ScalarQuantizer(x.shape[1], faiss.ScalarQuantizer.QT_4bit)
    quantizer.train(x)
    threads = faiss.omp_get_max_threads()
    encode, note = partial(quantizer.compute_codes, x), "a range for each column"
    # The range of normal numbers in 15 steps: the error of a step is 0.15 of their deviation.
    yield Work("encode", encode, quantizer.decode, threads, bound=0.2, note=note)
    yield Work("decode", partial(quantizer.decode, encode()), np.asarray, threads, bound=0.2, note=note)
