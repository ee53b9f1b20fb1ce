"""What the tests share: the vectors, equality of bits, samples, and a fresh interpreter."""

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

import quantize as qz

VECTORS = Path(__file__).parents[1] / "vectors"
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def load(name):
    """The arrays of ``tests/vectors/<name>.npz`` by key."""
    with np.load(VECTORS / f"{name}.npz") as file:
        return dict(file)


def bits(array):
    """The bytes of an array as unsigned integers of its item size: tells -0.0 from 0.0 and one NaN from another."""
    array = np.ascontiguousarray(array)
    return array.view(f"u{array.dtype.itemsize}") if array.dtype.itemsize <= 8 else array


def same(actual, expected, what="array"):
    """Assert equal dtype, shape and bits; a failure names the first element that differs."""
    assert isinstance(actual, np.ndarray), f"{what} is a {type(actual).__name__}"
    assert actual.dtype == expected.dtype, f"{what}: dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    different = np.argwhere(bits(actual) != bits(expected))
    if len(different):
        first = tuple(different[0].tolist())
        raise AssertionError(
            f"{what}: {len(different)} of {actual.size} elements differ, the first at {first}: {actual[first]!r}, expected {expected[first]!r}"
        )


def same_parts(actual, expected, what=""):
    """Assert that two mappings of parts agree: names in order, and every array to the bit."""
    assert list(actual) == list(expected)
    for name, array in expected.items():
        same(actual[name], array, f"{what} {name}")


def as_bits(array):
    """bfloat16 as the uint16 of its bits, which is how it travels under the name "bfloat16"; anything else as it is."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def sample(shape, seed=0, kind="normal"):
    """A float32 array of ``shape``: random, the same for the same arguments."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal(shape)
    with np.errstate(over="ignore", under="ignore"):
        values = {
            "normal": lambda: normal,
            # Quarters of a code: every rounding meets exact ties.
            "ties": lambda: random.integers(-32, 32, shape) / 4,
            "magnitudes tie": lambda: random.choice([-1.0, 1.0], shape),
            "zeros": lambda: random.choice([0.0, -0.0, 1.0, -3.0], shape, p=[0.49, 0.49, 0.01, 0.01]),
            "positive": lambda: np.abs(normal) + 3,
            "negative": lambda: -np.abs(normal) - 3,
            "half subnormal": lambda: normal * 1e-6,
            "half underflow": lambda: normal * 3e-7,
            "float subnormal": lambda: normal * 1e-40,
            "smallest normal": lambda: normal * 2.0**-123,
            "wide": lambda: normal * 10.0 ** random.uniform(-4, 4, shape),
            "huge": lambda: random.uniform(-3.4e38, 3.4e38, shape),
        }[kind]()
        return values.astype(np.float32)


KINDS = (
    "normal",
    "ties",
    "magnitudes tie",
    "zeros",
    "positive",
    "negative",
    "half subnormal",
    "half underflow",
    "float subnormal",
    "smallest normal",
    "wide",
    "huge",
)


def python(code, *flags, timeout=120, **environment):
    """Run ``code`` in a fresh interpreter and return what it printed; a failure shows its stderr. None unsets a variable."""
    environment = {key: value for key, value in {**os.environ, **environment}.items() if value is not None}
    path = [str(Path(__file__).parent), str(Path(__file__).parents[1]), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    done = subprocess.run([sys.executable, *flags, "-c", code], capture_output=True, text=True, env=environment, timeout=timeout)
    assert done.returncode == 0, done.stderr
    return done.stdout


# For such an interpreter: peak(), the bytes of memory that it has had at most. What resource says is at least what its parent had.
PEAK = """
import re
from pathlib import Path
def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
"""


# The formats whose parts are cut between rows as the array is, whatever its axes; the others have tests of their own.
BY_ROWS = [
    row.name
    for row in qz.formats()
    if not row.flat and all(shape.startswith("(...") for _, shape in row.part_shapes) and not {"symmetric", "global_scale"} & {*row.options}
]
