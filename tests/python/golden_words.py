"""The vectors of the formats for GPUs and ONNX Runtime, most of which pack words and store W (N, K) the other way around, as cases."""

import golden
import numpy as np
from helpers import load


def keys(vectors):
    """What comes before the name of a field, each once."""
    return sorted({key.rsplit("/", 1)[0] for key in vectors})


def fields(vectors, key, *names):
    return {name: vectors[f"{key}/{name}"] for name in names if f"{key}/{name}" in vectors}


def group_size(text):
    return "row" if text == "gs-1" else int(text[2:])


def tiled(case):
    """The rows again and again, as many as AutoGPTQ's kernels want."""
    return np.resize(golden.INPUTS[case], (32, golden.INPUTS[case].shape[1]))


# The groups (row of the input, group) of which AutoGPTQ packs a code 16, which runs into the next one of its word.
SPOILED = {
    "small/gs128/sym": [(2, 1)],
    "small/gs128/asym": [(1, 0), (1, 1), (3, 0)],
}


def gptq(name):
    """Everything is decoded. Encoding leaves out the groups that AutoGPTQ spoils: those with the zero point 0, and ``SPOILED``.

    Where there are some, each column of groups is a case with the rows whose group is sound, repeated until there are 32 again. A
    zero point of 0 also spoils the zero points that share its word, so these are taken from before they were packed.
    """
    vectors = load(name)
    for key in keys(vectors):
        case, size, symmetric = key.split("/")
        options = {"group_size": group_size(size), "symmetric": symmetric == "sym"}
        parts = fields(vectors, key, "qweight", "qzeros", "scales", "g_idx")
        values = vectors.get(f"{key}/dequant")
        x, zero_points = tiled(case), vectors[f"{key}/raw_zero"]
        spoiled = zero_points == 0
        for row, group in SPOILED.get(key, []):
            spoiled[row :: len(golden.INPUTS[case]), group] = True
        if not spoiled.any():
            yield golden.Case(key, x, options, parts, values)
            continue
        yield golden.Case(key, None, options, parts, values)
        size = options["group_size"]
        for group in range(spoiled.shape[1]):
            sound = np.flatnonzero(~spoiled[:, group])
            if not len(sound):
                continue
            rows, columns = np.resize(sound, 32), slice(group * size, (group + 1) * size)
            stored = zero_points[rows, group].astype(np.uint32) - np.uint32(1)
            nibbles = stored.reshape(1, 4, 8) << np.arange(0, 32, 4, dtype=np.uint32)
            sound_parts = {
                "qweight": parts["qweight"][group * size // 8 : (group + 1) * size // 8, rows],
                "qzeros": np.bitwise_or.reduce(nibbles, -1).view(np.int32),
                "scales": parts["scales"][group : group + 1, rows],
                "g_idx": np.zeros(size, np.int32),
            }
            yield golden.Case(f"{key} group {group}", x[rows, columns], options, sound_parts)


def gptq_v2(name):
    """GPTQModel gives its values with the precision of float16, turned around."""
    vectors = load(name.replace(":", "_"))
    for key in keys(vectors):
        case, size, symmetric = key.split("/")
        options = {"group_size": group_size(size), "symmetric": symmetric == "sym"}
        parts = fields(vectors, key, "qweight", "qzeros", "scales", "g_idx")
        yield golden.Case(key, tiled(case), options, parts, np.ascontiguousarray(vectors[f"{key}/dequant"].T))


def awq(name):
    """AutoAWQ gives its values as float16."""
    vectors = load(name)
    for key in keys(vectors):
        case, size = key.split("/")
        parts = fields(vectors, key, "qweight", "qzeros", "scales")
        yield golden.Case(key, tiled(case), {"group_size": group_size(size)}, parts, vectors[f"{key}/dequant"])


def onnx_matmulnbits(name):
    """Values are those of a product with the identity: a sum with zeros, which makes +0.0 of every -0.0."""
    vectors = load(name.replace(":", "_"))
    for key in keys(vectors):
        case, size, symmetric, dtype = key.split("/")
        size, x = int(size[2:]), golden.INPUTS[case].astype({"f32": np.float32, "f16": np.float16}[dtype])
        parts = fields(vectors, key, "packed", "scales", "zero_points")
        columns = x.shape[1]
        if columns % 2:
            # ONNX Runtime leaves an earlier code in the nibble after the last element, which means nothing.
            parts["packed"].reshape(len(x), -1)[:, columns // 2] &= 15
        values = vectors.get(f"{key}/dequant")
        if values is not None:
            # A zero is (code - zero_point) * scale with equal code and zero point, so that it has the sign of the scale.
            values = np.ascontiguousarray(values.T)
            scales = np.repeat(parts["scales"], size, 1)[:, :columns]
            values = np.where(values == 0, np.copysign(np.float32(0), scales), values)
        yield golden.Case(key, x, {"group_size": size, "symmetric": symmetric == "sym"}, parts, values)


def onnx_qdq(name):
    """Values are turned around, as the input was."""
    vectors = load(name.replace(":", "_"))
    for key in keys(vectors):
        case, size, kind = key.split("/")
        options = {"group_size": int(size[2:]), "symmetric": kind == "sym_int4"}
        parts = fields(vectors, key, "packed", "scales", "zero_points")
        yield golden.Case(key, golden.INPUTS[case], options, parts, np.ascontiguousarray(vectors[f"{key}/dequant"].T))


def hqq(name):
    """HQQ only packs here: with scales of 1 and zero points of 0 the codes are the values."""
    vectors = load(name)
    for key in keys(vectors):
        codes = vectors[f"{key}/codes"]
        ones = np.ones((len(codes), 1), np.float16)
        parts = {"packed": vectors[f"{key}/packed"], "scales": ones, "zero_points": np.zeros_like(ones)}
        yield golden.Case(key, None, {"group_size": codes.shape[1]}, parts, codes.astype(np.float32))
