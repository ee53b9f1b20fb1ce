"""Models of images: safetensors become GGUF, names and all."""

import json

import numpy as np
import pytest
from checkpoints import bfloat16_bits, floats_of_bits, write
from folders import folder
from helpers import same, sample

import quantize as qz
from quantize import cli

LONG = "transformer_blocks.17." + "x" * 90 + ".weight"


@pytest.fixture
def model(tmp_path):
    tensors = {
        "double_blocks.0.img_attn.qkv.weight": bfloat16_bits(sample((48, 64), 1)),
        "double_blocks.0.img_attn.qkv.bias": bfloat16_bits(sample((48,), 2)),
        "double_blocks.0.norm.scale": sample((64,), 3),
        "blocks.0.modulation": sample((2, 6, 256), 4).astype(np.float16),
        "conv.weight": sample((64, 4, 3, 3), 5).astype(np.float16),
        "odd.weight": sample((64, 40), 6),
        "tiny.weight": sample((8, 64), 7).astype(np.float16),
        LONG: sample((32, 64), 8),
    }
    brain = {name: "BF16" for name, array in tensors.items() if array.dtype == np.uint16}
    return write(tmp_path / "model.safetensors", tensors, **brain), tensors


def test_names_are_kept_and_matrices_quantized(model, tmp_path):
    path, tensors = model
    report = qz.convert(path, tmp_path / "out.gguf", format="gguf:q4_0", arch="flux")
    actions = {tensor.name: (tensor.action, tensor.becomes) for tensor in report.tensors}
    assert actions == {
        "double_blocks.0.img_attn.qkv.weight": ("quantize", "gguf:q4_0"),
        "double_blocks.0.img_attn.qkv.bias": ("cast", "float32"),
        "double_blocks.0.norm.scale": ("keep", "float32"),
        "blocks.0.modulation": ("cast", "float32"),
        "conv.weight": ("keep", "float16"),
        "odd.weight": ("keep", "float32"),
        "tiny.weight": ("cast", "float32"),
        LONG: ("quantize", "gguf:q4_0"),
    }
    reasons = {tensor.name: tensor.reason for tensor in report.tensors}
    assert reasons["odd.weight"] == "last axis has 40 elements; gguf:q4_0 needs a multiple of 32"
    assert reasons["conv.weight"] == "4-d; only matrices are quantized"
    with qz.open(tmp_path / "out.gguf") as file:
        assert file.metadata == {"general.architecture": "flux", "general.quantization_version": 2, "general.file_type": 2}
        assert sorted(file) == sorted(tensors)
        qkv = floats_of_bits(tensors["double_blocks.0.img_attn.qkv.weight"])
        assert file["double_blocks.0.img_attn.qkv.weight"].identical(qz.quantize(qkv, "gguf:q4_0"))
        same(file["double_blocks.0.img_attn.qkv.bias"], floats_of_bits(tensors["double_blocks.0.img_attn.qkv.bias"]))
        same(file["conv.weight"], tensors["conv.weight"])
    qz.convert(tmp_path / "out.gguf", tmp_path / "back.gguf", dequantize=True)
    same(qz.open(tmp_path / "back.gguf")["odd.weight"], tensors["odd.weight"])


def test_what_is_quantized_already_becomes_its_type(model, tmp_path):
    path, _ = model
    qz.convert(path, tmp_path / "q4", format="gguf:q4_0", include="*.weight", exclude=["conv*", "tiny*"])
    qz.convert(tmp_path / "q4", tmp_path / "a.gguf", format="gguf:q4_0", arch="flux")
    qz.convert(path, tmp_path / "b.gguf", format="gguf:q4_0", arch="flux")
    with qz.open(tmp_path / "a.gguf") as a, qz.open(tmp_path / "b.gguf") as b:
        assert a.metadata == b.metadata
        assert a[LONG].identical(b[LONG])
    # A matrix that is quantized in a format that GGUF has no type for is repacked, or refused.
    qz.convert(path, tmp_path / "int4", format="int4", include=[LONG])
    qz.convert(tmp_path / "int4", tmp_path / "c.gguf", format="gguf:q4_0", arch="flux")
    same(qz.open(tmp_path / "c.gguf")[LONG].dequantize(), qz.open(tmp_path / "int4")[LONG].dequantize())


def test_names_of_a_map(model, tmp_path, capsys):
    path, tensors = model
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"odd.weight": "even.weight", LONG: "short.weight"}))
    out = str(tmp_path / "out.gguf")
    command = ["convert", str(path), out, "--to", "gguf:q4_0", "--arch", "mine", "--quiet"]
    assert cli.main([*command, "--names", str(names)]) == 0
    with qz.open(out) as file:
        assert set(file) == set(tensors) - {"odd.weight", LONG} | {"even.weight", "short.weight"}
        assert file.metadata["general.architecture"] == "mine"
        same(file["even.weight"], tensors["odd.weight"])
    for text, message in [
        ('{"absent": "x"}', "names is 'absent'; no tensor of the file has that name"),
        ('{"odd.weight": "conv.weight"}', "two tensors of the new file would have that name"),
        (
            '{"odd.weight": "x", "conv.weight": "x"}',
            "names is 'x' for both 'conv.weight' and 'odd.weight'; two tensors would have that name",
        ),
        ('{"odd.weight": "x", "odd.weight": "y"}', "is ambiguous: the key 'odd.weight' comes twice"),
        ('{"odd.weight": 1}', "holds no JSON object of names"),
        ("[1]", "holds no JSON object of names"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
    ]:
        names.write_text(text)
        assert cli.main([*command, "--names", str(names), "--overwrite"]) == cli.USAGE
        assert message in capsys.readouterr().err


def test_a_language_model_is_told_the_way(model, tmp_path, capsys):
    path, _ = model
    out = str(tmp_path / "out.gguf")
    llama = folder(tmp_path / "llama")
    for source, arch in [(path, ["--arch", "llama"]), (llama, ["--arch", "flux"]), (llama, [])]:
        assert cli.main(["convert", str(source), out, "--to", "awq" if not arch else "gguf:q4_0", *arch]) == cli.USAGE
        assert "convert_hf_to_gguf.py of llama.cpp" in capsys.readouterr().err
    with pytest.raises(ValueError, match="say arch too"):
        qz.convert(path, out, names="x")
    with pytest.raises(ValueError, match=r"models of images GGUF with arch"):
        qz.convert(path, out, format="gguf:q4_0")
    with pytest.raises(ValueError, match=r"expected one that ends in \.gguf"):
        qz.convert(path, tmp_path / "out.safetensors", format="gguf:q4_0", arch="flux")
    with pytest.raises(ValueError, match="a GGUF file takes gguf:q4_0"):
        qz.convert(path, out, format="int4", arch="flux")
    write(tmp_path / "five.safetensors", {"conv.weight": sample((2, 2, 2, 2, 2))})
    with pytest.raises(ValueError, match="the number of axes of tensor 'conv.weight' is 5; a GGUF file takes up to 4"):
        qz.convert(tmp_path / "five.safetensors", out, format="gguf:q4_0", arch="wan")
    assert not (tmp_path / "out.gguf").exists()
