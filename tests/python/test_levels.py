"""Instruction sets: every one gives the same bytes, at any number of threads; one that is unknown or missing is said."""

import platform

import pytest
from helpers import python

import quantize as qz

DIGEST = """
import hashlib, sys, warnings
warnings.simplefilter("ignore")
import numpy as np
import quantize as qz
from helpers import KINDS, sample
digest = hashlib.sha256()
for row in qz.formats():
    name = row.name
    calls = [{"group_size": size} for size in row.group_sizes]
    if row.any_group_size:
        calls = [{"scale_dtype": "float32"}, {"group_size": 5, "scale_dtype": "bfloat16"}, {"group_size": "row", "scale_dtype": "float32"}]
    for shape in [(3, 256), (5, 1280), (70, 256), (72, 256), (1, 0)] + ([(1, 1), (3, 33), (2, 511), (7, 67)] if row.any_group_size else []):
        for kind in KINDS:
            for options in calls:
                x = sample(shape, kind=kind)
                try:
                    q = qz.quantize(x, name, **options)
                except ValueError as error:
                    digest.update(str(error).encode())
                    continue
                for part in q.parts.values():
                    digest.update(part.tobytes())
                for dtype in ("float32", "float16", "bfloat16", "float64"):
                    digest.update(q.dequantize(dtype=dtype).tobytes())
                digest.update(q.codes().tobytes())
        for dtype in (np.float16, np.float64):
            try:
                q = qz.quantize(sample(shape).astype(dtype), name)
            except ValueError as error:  # a shape that the format does not take
                digest.update(str(error).encode())
                continue
            digest.update(next(iter(q.parts.values())).tobytes())
    large = sample((608, 1024))
    large[5, 5], large[300, 7] = np.inf, np.nan
    for threads in (1, 2, 3):
        q = qz.quantize(large, name, nonfinite="clip", threads=threads)
        again = hashlib.sha256(b"".join(part.tobytes() for part in q.parts.values()) + q.dequantize(threads=threads).tobytes()).digest()
        assert threads == 1 or again == one, (name, threads)
        one = again
    digest.update(one)
print(digest.hexdigest())
"""

X86 = platform.machine() in ("x86_64", "AMD64")
FOREIGN = "neon" if X86 else "avx2"


@pytest.fixture(scope="module")
def scalar():
    return python(DIGEST, QUANTIZE_LEVEL="scalar")


@pytest.mark.parametrize("level", [None, "avx2", "avx512", "neon"])
def test_every_level_gives_the_bytes_of_scalar(level, scalar):
    assert python(DIGEST, QUANTIZE_LEVEL=level) == scalar


LEVEL_IN_USE = "import quantize as qz; print(qz.cpu_features().level)"


def test_the_level_can_be_seen_and_forced():
    assert python(LEVEL_IN_USE, QUANTIZE_LEVEL="scalar") == "scalar\n"
    features = qz.cpu_features()
    assert features.level in features.available
    assert "scalar" in features.available
    for level in features.available:
        assert python(LEVEL_IN_USE, QUANTIZE_LEVEL=level) == f"{level}\n"


UNKNOWN = """
import numpy as np
import quantize as qz                     # an import says nothing: the first use does
for call in (lambda: qz.quantize(np.ones((1, 32), np.float32)), lambda: qz.cpu_features()):
    try:
        call()
    except ValueError as error:
        print(error)
"""


def test_an_unknown_level_raises_at_first_use():
    lines = python(UNKNOWN, QUANTIZE_LEVEL="sse9").splitlines()
    assert len(lines) == 2
    for line in lines:
        for word in ("QUANTIZE_LEVEL", "sse9", "scalar", "avx2", "avx512", "neon"):
            assert word in line


MISSING = """
import warnings
import numpy as np
import quantize as qz
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    x = np.linspace(-1, 1, 64, dtype=np.float32)
    for _ in range(3):
        q = qz.quantize(x)
        q.dequantize()
print(len(caught), [w.category is qz.QuantizeWarning for w in caught], caught[0].message)
print(qz.cpu_features().level)
"""


def test_a_level_that_the_cpu_lacks_warns_once_and_works():
    said, level = python(MISSING, QUANTIZE_LEVEL=FOREIGN).splitlines()
    assert said.startswith("1 [True] ")
    assert FOREIGN in said
    assert level == qz.cpu_features().available[-1]


def test_a_level_that_the_cpu_lacks_under_warnings_as_errors():
    code = """
import numpy as np, quantize as qz
try:
    qz.quantize(np.ones((1, 32), np.float32))
except qz.QuantizeWarning as warning:
    print("warned")
print(qz.quantize(np.ones((1, 32), np.float32)).shape)
"""
    assert python(code, "-W", "error", QUANTIZE_LEVEL=FOREIGN) == "warned\n(1, 32)\n"
