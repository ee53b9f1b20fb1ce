"""The product against vectors: those of the projects that own a format, or the frozen ones of our own formats."""

import numpy as np
import pytest
from golden import CASES, cases
from helpers import load, same, same_parts

import quantize as qz

FORMATS = [row.name for row in qz.formats()]


def test_every_format_has_vectors():
    assert sorted(CASES) == sorted(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_encode_gives_the_bytes(name):
    encoded = [case for case in cases(name) if case.x is not None]
    for case in encoded:
        same_parts(qz.quantize(case.x, name, **case.options).parts, case.parts, case.key)
    assert len(encoded) >= 10 or name in ("gptoss:mxfp4", "hqq")


@pytest.mark.parametrize("name", FORMATS)
def test_decode_gives_the_bits(name):
    decoded = [case for case in cases(name) if case.values is not None]
    for case in decoded:
        options = {key: value for key, value in case.options.items() if key not in ("scale_dtype", "axis")}
        q = qz.from_parts(name, case.parts, shape=case.values.shape, **options)
        same(q.dequantize(dtype=case.values.dtype), case.values, case.key)
    assert len(decoded) >= 10 or name in ("gptoss:mxfp4", "hqq")


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
