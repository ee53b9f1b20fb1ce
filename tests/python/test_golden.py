"""The product against vectors: those of the projects that own a format, or the frozen ones of our own formats."""

import numpy as np
import pytest
from helpers import load, same, same_parts

import quantize as qz

INPUTS = load("inputs")
FORMATS = [row.name for row in qz.formats()]


def ggml(name):
    """Cases of a ggml format: input, options, parts, decoded values."""
    vectors = load(name.replace(":", "_"))
    for case in sorted({key.split("/")[0] for key in vectors}):
        yield case, INPUTS[case], {}, {"blocks": vectors[f"{case}/packed"]}, vectors[f"{case}/dequant"]


def own(name):
    """Cases of one of our formats; the decoded values are kept for float16 scales."""
    keys = {}
    for key, array in load(name).items():
        case, part = key.rsplit("/", 1)
        keys.setdefault(case, {})[part] = array
    for key, parts in keys.items():
        case, group_size, scale_dtype = key.split("/")
        options = {"group_size": int(group_size) if group_size.isdigit() else group_size, "scale_dtype": scale_dtype}
        yield key, INPUTS[case], options, parts, parts.pop("dequant", None)


VECTORS = {"int4": own, "uint4": own, "gguf:q4_0": ggml, "gguf:q4_1": ggml}


def test_every_format_has_vectors():
    assert sorted(VECTORS) == sorted(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_encode_gives_the_bytes(name):
    for key, x, options, parts, _ in VECTORS[name](name):
        same_parts(qz.quantize(x, name, **options).parts, parts, key)


@pytest.mark.parametrize("name", FORMATS)
def test_decode_gives_the_bits(name):
    decoded = 0
    for key, x, options, parts, values in VECTORS[name](name):
        if values is not None:
            q = qz.from_parts(name, parts, shape=x.shape, group_size=options.get("group_size"))
            same(q.dequantize(), values, key)
            decoded += 1
    assert decoded >= 13


@pytest.mark.parametrize("signed", [True, False])
def test_pack_gives_the_bytes_of_onnx(signed):
    vectors = load("plain_int4")
    kind, dtype = ("int4", np.int8) if signed else ("uint4", np.uint8)
    counts = sorted({key.split("/")[0] for key in vectors if key.endswith(f"{kind}_packed")})
    assert len(counts) >= 3
    for count in counts:
        codes, packed = vectors[f"{count}/{kind}_codes"], vectors[f"{count}/{kind}_packed"]
        same(qz.pack(codes, signed=signed), packed, count)
        same(qz.unpack(packed, len(codes), signed=signed), codes.astype(dtype), count)
