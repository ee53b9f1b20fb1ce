"""The gguf package, ggml's codecs written again in numpy: encoders of three formats, decoders of all."""

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type
from helpers import same
from inputs import MAKE, rows, same_but_nan

import quantize as qz

TYPES = {
    "gguf:q4_0": Type.Q4_0,
    "gguf:q4_1": Type.Q4_1,
    "gguf:q4_k": Type.Q4_K,
    "gguf:iq4_nl": Type.IQ4_NL,
    "gguf:iq4_xs": Type.IQ4_XS,
    "gguf:mxfp4": Type.MXFP4,
    "gguf:nvfp4": Type.NVFP4,
}
BLOCKS = 2048


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind not in ("float subnormal", "1e30", "largest")])
@pytest.mark.parametrize("name", ["gguf:q4_0", "gguf:q4_1", "gguf:mxfp4"])
def test_encodes_to_the_same_blocks(name, kind):
    """The kinds left out are the deviations that test_ggml.py looks at."""
    # Of 0.0 and -0.0 numpy takes either for the extreme and ggml the first, and the scale gets its sign: all zeros are made positive.
    x = rows(kind, BLOCKS, 32) + np.float32(0)
    if name != "gguf:mxfp4":
        x = x[np.abs(x).max(axis=1) < 65504]  # what a minimum in float16 reaches
    same(qz.quantize(x, name).parts["blocks"], gguf.quantize(x, TYPES[name]), kind)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, of infinities and NaN
@pytest.mark.parametrize("name", TYPES)
def test_decodes_any_bytes_to_the_same_values(name):
    _, size = gguf.GGML_QUANT_SIZES[TYPES[name]]
    blocks = np.random.default_rng(5).integers(0, 256, (BLOCKS, size), dtype=np.uint8)
    if name == "gguf:mxfp4":
        blocks = blocks[blocks[:, 0] != 255]  # NaN here, 2^128 there: listed in docs/formats.md
    same_but_nan(qz.from_parts(name, {"blocks": blocks}).dequantize(), gguf.dequantize(blocks, TYPES[name]))
