"""Plain GPTQ as its paper has it: by the inverse of the Hessian and the Cholesky factor of that, in float64."""

import numpy as np

from . import FORMATS
from .base import unpack


def damped(matrix, damping):
    """E[x x^T] with a part of its mean diagonal added to it."""
    return matrix + damping * np.trace(matrix) / len(matrix) * np.eye(len(matrix))


def rule(name, x):
    """Scale and zero point of one group a row, by the rule of the format."""
    parts = FORMATS[name].encode(x, group_size=x.shape[1])
    if name == "gguf:q4_0":
        return parts["blocks"][:, :2].copy().view(np.float16).astype(np.float64)[:, 0], 0
    zero_points = unpack(parts["zero_points"], 1)[:, 0].astype(np.float64) if name == "uint4" else 0
    return parts["scales"].astype(np.float64)[:, 0], zero_points


def gptq(name, w, hessian, group):
    """The values that are stored for ``w`` (N, K)."""
    w, values = w.astype(np.float64), np.zeros(w.shape)
    low, high = (0, 15) if name == "uint4" else (-8, 7)
    upper = np.linalg.cholesky(np.linalg.inv(hessian)).T
    for column in range(w.shape[1]):
        if column % group == 0:
            scales, zero_points = rule(name, w[:, column : column + group].astype(np.float32))
        codes = np.clip(np.rint(w[:, column] / scales) + zero_points, low, high)
        values[:, column] = (codes - zero_points) * scales
        error = (w[:, column] - values[:, column]) / upper[column, column]
        w[:, column:] -= error[:, None] * upper[column, column:]
    return values
