"""What the oracles and the product both encode: random float32 rows, and the corners where rounding rules part. And equality of what they decode."""

import numpy as np
from helpers import same


def outlier(random, shape):
    x = random.standard_normal(shape) * 0.02
    np.put_along_axis(x, random.integers(shape[-1], size=(len(x), 1)), random.choice([-37.5, 37.5], (len(x), 1)), axis=-1)
    return x


def ties(random, shape):
    """Quarters of a code between -8 and 7: under a scale of 1, or of any power of two, every rounding meets halves."""
    x = random.integers(-32, 29, shape) / 4
    x[:, 0] = -8
    return x * 2.0 ** random.integers(-8, 9, (len(x), 1))


def float4_ties(random, shape):
    """Eighths up to 6: halfway between two numbers of E2M1 under a scale of 1, or of any power of two."""
    x = random.integers(-48, 49, shape) / 8
    x[:, 0] = random.choice([-6.0, 6.0], len(x))
    return x * 2.0 ** random.integers(-8, 9, (len(x), 1))


def near_powers(random, shape):
    """The largest of each row is a few units in the last place from a power of two, where a rounded logarithm is not the exponent."""
    x = random.uniform(-1, 1, shape)
    near = np.float32(1) + random.integers(-24, 25, len(x)) * np.float32(2**-24)
    x[:, 0] = random.choice([-1, 1], len(x)) * near
    x = x.clip(-np.abs(x[:, :1]), np.abs(x[:, :1]))
    return x * 2.0 ** random.integers(-60, 61, (len(x), 1))


MAKE = {
    "normal": lambda random, shape: random.standard_normal(shape),
    "weights": lambda random, shape: random.standard_normal(shape) * 0.02,
    "heavy tails": lambda random, shape: random.standard_t(2, shape),
    "ties": ties,
    "float4 ties": float4_ties,
    "near powers of two": near_powers,
    "one magnitude": lambda random, shape: random.choice([-1.0, 1.0], shape),
    "constant": lambda random, shape: np.broadcast_to(random.standard_normal((shape[0], 1)), shape),
    "negative": lambda random, shape: -np.abs(random.standard_normal(shape)) - 0.01,
    "positive": lambda random, shape: np.abs(random.standard_normal(shape)) + 0.01,
    "far from zero": lambda random, shape: random.standard_normal(shape) * 0.01 + 100,
    "outlier": outlier,
    "mixed": lambda random, shape: random.standard_normal(shape) * 10.0 ** random.uniform(-4, 4, (shape[0], 1)),
    "bfloat16": lambda random, shape: (random.standard_normal(shape).astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32),
    "zeros": lambda random, shape: np.zeros(shape),
    "signed zeros": lambda random, shape: random.choice([0.0, -0.0], shape),
    "sparse": lambda random, shape: random.choice([0.0, -0.0, 1.5, -3.0], shape, p=[0.48, 0.48, 0.02, 0.02]),
    "half subnormal": lambda random, shape: random.standard_normal(shape) * 1e-6,
    "half underflow": lambda random, shape: random.standard_normal(shape) * 1e-7,
    "tiny": lambda random, shape: random.standard_normal(shape) * 1e-30,
    "float subnormal": lambda random, shape: random.standard_normal(shape) * 1e-40,
    "1e30": lambda random, shape: random.standard_normal(shape) * 1e30,
    "largest": lambda random, shape: random.uniform(-3.4e38, 3.4e38, shape),
}


def rows(kind, count, length):
    """``count`` rows of ``length`` float32, the same for the same arguments; what is made for a row holds in each group that is one."""
    random = np.random.default_rng([ord(letter) for letter in kind])
    return MAKE[kind](random, (count, length)).astype(np.float32)


def same_but_nan(actual, expected, what="array"):
    """Assert equal bits, and NaN where NaN is expected: one NaN is as good as another."""
    same(np.isnan(actual), np.isnan(expected), f"{what}: NaN")
    same(np.where(np.isnan(actual), np.float32(0), actual), np.where(np.isnan(expected), np.float32(0), expected), what)
