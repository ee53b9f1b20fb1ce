"""What the tests of searches share: the formats that have one, errors of groups, importance, and the smallest error by brute force."""

import ml_dtypes
import numpy as np
from helpers import BFLOAT16
from reference import bnb, e2m1, iq4

import quantize as qz

# Of every format the options of the variants that have a search.
VARIANTS = {
    "int4": [{"scale_dtype": "float16"}, {"scale_dtype": BFLOAT16}, {"scale_dtype": "float32"}],
    "uint4": [{"scale_dtype": "float16"}, {"scale_dtype": BFLOAT16}, {"scale_dtype": "float32", "group_size": 16}],
    "gguf:q4_0": [{}],
    "gptq": [{"group_size": 32}, {"group_size": 32, "symmetric": False}],
    "gptq:v2": [{"group_size": 32}, {"group_size": 32, "symmetric": False}],
    "awq": [{"group_size": 32}],
    "onnx:matmulnbits": [
        {"scale_dtype": "float16", "group_size": 16},
        {"scale_dtype": "float32"},
        {"scale_dtype": "float32", "group_size": 16, "symmetric": False},
    ],
    "onnx:qdq": [
        {"scale_dtype": "float16", "group_size": 8},
        {"scale_dtype": "float32"},
        {"scale_dtype": "float16", "group_size": 8, "symmetric": False},
    ],
    "compressed-tensors": [
        {"scale_dtype": "float16", "group_size": 32},
        {"scale_dtype": BFLOAT16, "group_size": 32},
        {"scale_dtype": BFLOAT16, "group_size": 32, "symmetric": False},
    ],
    "gguf:iq4_nl": [{}],
    "bnb:nf4": [{}, {"group_size": 32}, {"double_quant": True}],
    "bnb:fp4": [{"group_size": 32}, {"group_size": 32, "double_quant": True}],
    "gguf:mxfp4": [{}],
    "gptoss:mxfp4": [{}],
    "mlx:mxfp4": [{}],
    "compressed-tensors:mxfp4": [{}],
    "torchao:mxfp4": [{"scale_rule": rule} for rule in ("floor", "even")],
    "gguf:nvfp4": [{}],
    "mlx:nvfp4": [{}, {"global_scale": 5.0}],
    "compressed-tensors:nvfp4": [{}],
    "modelopt:nvfp4": [{}],
    "torchao:nvfp4": [{}, {"two_level": False}],
}
# Those that store a scale and a minimum, or a zero point that is no integer.
PLANES = {
    "gguf:q4_1": [{}],
    "mlx": [{"scale_dtype": "float32"}, {"scale_dtype": "float16", "group_size": 32}, {"scale_dtype": BFLOAT16, "group_size": 32}],
    "hqq": [{}, {"scale_dtype": "float32", "group_size": 8}],
}
# Those whose groups of 32 share a scale, eight of them.
BLOCKS = ["gguf:q4_k", "gguf:iq4_xs"]
LINES = [(name, options) for name, variants in VARIANTS.items() for options in variants]
CASES = LINES + [(name, options) for name, variants in PLANES.items() for options in variants]

SYMMETRIC = np.arange(-8.0, 8.0)
TABLES = {"gguf:iq4_nl": iq4.TABLE, "bnb:nf4": bnb.NF4, "bnb:fp4": bnb.FP4}
# The scales of eight bits.
E8M0 = 2.0 ** np.arange(-127.0, 128.0)
E4M3 = np.arange(1, 127, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
# What sums in float32 are good to, relatively to the error and to the energy of the group.
RELATIVE, OF_ENERGY = 2e-6, 3e-7


def numbers_of(name, options):
    """The sets of numbers that a group of the format can have, each ascending: one, or one for each zero point."""
    if name in ("uint4", "awq") or not options.get("symmetric", True):
        return [np.arange(-z, 16.0 - z) for z in range(1 if name == "gptq" else 0, 16)]
    table = (
        SYMMETRIC if qz.formats()[[row.name for row in qz.formats()].index(name)].scheme != "codebook" else TABLES.get(name, e2m1.NUMBERS)
    )
    return [np.unique(table.astype(np.float64))]


def scales_of(q):
    """The effective scales that the groups of ``q`` can have, or the dtype that they are stored in."""
    row = next(row for row in qz.formats() if row.name == q.format)
    if row.scale_dtypes[0] == "float8_e8m0fnu":
        return E8M0
    if "nested_absmax" in q.parts:
        scales = bnb.MAP * q.parts["nested_absmax"] + q.parts["offset"]
        return scales[scales >= np.finfo(np.float32).tiny].astype(np.float64)
    if row.scale_dtypes[0].startswith("float8_e4m3"):
        # What is stored for one group tells the second level.
        part = next((part for name, part in q.parts.items() if "scale" in name and part.dtype == np.uint8), None)
        if part is None:
            return E4M3
        scales = part.reshape(-1).view(ml_dtypes.float8_e4m3fn).astype(np.float64)
        first = np.flatnonzero(scales)[:1]
        # With a second level the largest group has a scale.
        return E4M3 * (float(q.scales.reshape(-1)[first[0]]) / scales[first[0]] if len(first) else 1.0)
    return next((part.dtype.name for name, part in q.parts.items() if name in ("scales", "weight_scale", "absmax")), "float16")


def stored(scales, dtype):
    """Scales in the dtype that stores them; no format of float32 or bfloat16 scales stores a subnormal one here."""
    with np.errstate(over="ignore"):
        scales = scales.astype(np.float32).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).astype(np.float64)
    return np.where(np.abs(scales) < 2.0**-126, 0, scales)


def nearest(y, numbers):
    """The number nearest to each ``y``."""
    return numbers[np.searchsorted((numbers[1:] + numbers[:-1]) / 2, y)]


def error_of(x, weights, scales, numbers):
    """The smallest error of these scales, none of which is 0."""
    values = scales[:, None] * nearest(x / scales[:, None], numbers)
    return float((weights * (x - values) ** 2).sum(1).min(initial=np.inf))


def smallest_error(x, weights, numbers, dtype, least=None):
    """Look into every cell of scales of either sign: between two scales at which a code changes all codes stay as they are.

    In place of a dtype it takes all scales that there are. ``least`` has the smallest scale of either sign, where not all are allowed.
    """
    x, weights = x.astype(np.float64), weights.astype(np.float64)
    best = float((weights * x**2).sum()) if least is None else np.inf
    if isinstance(dtype, np.ndarray):
        return min(best, error_of(x, weights, dtype, numbers))
    middles = (numbers[1:] + numbers[:-1]) / 2
    for sign in (1, -1):
        with np.errstate(divide="ignore", invalid="ignore"):
            changes = (middles / (sign * x[:, None])).ravel()
        changes = np.unique(changes[(changes > 0) & np.isfinite(changes)])
        if not len(changes):
            continue
        inside = np.concatenate([[changes[0] / 2], (changes[1:] + changes[:-1]) / 2, [2 * changes[-1]]])
        codes = nearest(sign * x * inside[:, None], numbers)
        curvature = (weights * codes**2).sum(1)
        with np.errstate(divide="ignore", invalid="ignore"):
            scales = stored((weights * x * codes).sum(1) / curvature, dtype)
        if least is not None:
            scales = np.append(np.maximum(scales, least[sign]), least[sign])
        scales = np.unique(scales[np.isfinite(scales) & (scales != 0)])
        best = min(best, error_of(x, weights, sign * scales, numbers))
    return best


def errors(q, x, weights):
    """The weighted error of every group, in float64; the group axis is the last one."""
    differences = weights.astype(np.float64) * (x.astype(np.float64) - q.dequantize(dtype=np.float64)) ** 2
    size = q.group_size if isinstance(q.group_size, int) else x.shape[-1]
    return differences.reshape(*x.shape[:-1], -1, size).sum(-1)


def importance_of(kind, shape, seed=1):
    random = np.random.default_rng(seed)
    weights = {
        "none": lambda: None,
        "columns": lambda: random.random(shape[-1]) ** 4,
        "elements": lambda: random.random(shape) ** 4,
        "zeros": lambda: random.random(shape) * (random.random(shape) < 0.3),
        "apart": lambda: 10.0 ** random.uniform(-3, 3, shape),
    }[kind]()
    return None if weights is None else weights.astype(np.float32)
