"""The mixtures of llama.cpp: what each tensor of a model becomes is what its quantizer made of it, and the plan says why."""

import json

import numpy as np
import pytest
from checkpoints import gguf_floats, write
from helpers import VECTORS, sample
from llama_models import MIXTURES, MODELS, families, model

import quantize as qz
from quantize import cli

EXPECTED = json.loads((VECTORS / "llama_mixtures.json").read_text("utf-8"))


def stored(tensor):
    """What ggml calls the type that a tensor of a report has in the new file."""
    return {"float32": "F32", "float16": "F16"}.get(tensor.becomes, tensor.becomes.removeprefix("gguf:").upper())


@pytest.mark.parametrize("name", MODELS)
def test_every_tensor_becomes_what_llama_cpp_makes_of_it(name, tmp_path):
    path = tmp_path / "in.gguf"
    path.write_bytes(model(name))
    for mixture in MIXTURES:
        plan = qz.convert(path, None, format=mixture, fallback="llama.cpp", dry_run=True)
        assert families({tensor.name: stored(tensor) for tensor in plan.tensors}) == EXPECTED[name][mixture], mixture


def test_the_plan_says_why_and_lists_every_fallback(tmp_path, capsys):
    path = tmp_path / "in.gguf"
    path.write_bytes(model("rows of 288, tied"))
    strict = qz.convert(path, None, format="q4_k_m", dry_run=True)
    assert {tensor.action for tensor in strict.tensors if tensor.name.startswith("blk.0.attn_q")} == {"refuse"}
    assert {tensor.fallback for tensor in strict.tensors} == {None}
    with pytest.raises(qz.PolicyError, match="name a fallback"):
        qz.convert(path, tmp_path / "out.gguf", format="q4_k_m")
    report = qz.convert(path, tmp_path / "out.gguf", format="Q4_K_M", fallback="llama.cpp")
    found = {tensor.name: (tensor.becomes, tensor.fallback, tensor.reason) for tensor in report.tensors}
    rows = "last axis has 288 elements; gguf:q{} needs a multiple of 256"
    assert found["token_embd.weight"] == ("gguf:q8_0", "gguf:q6_k", rows.format("6_k"))
    assert found["blk.2.attn_q.weight"] == ("gguf:q5_0", "gguf:q4_k", rows.format("4_k"))
    assert found["output_norm.weight"] == ("float32", None, "1-d; a matrix has 2 axes or more")
    with qz.open(tmp_path / "out.gguf") as file:
        assert (file.metadata["general.file_type"], file.metadata["general.quantization_version"]) == (15, 2)
        assert {info.name: info.format for info in file.tensors if info.format} == {
            tensor.name: tensor.format for tensor in report.tensors if tensor.format
        }
    assert cli.main(["convert", str(path), "--to", "q4_k_m", "--fallback", "llama.cpp", "--dry-run"]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fallback", "from", "to"] in shown
    assert any(row[1:] == ["gguf:q4_k", "gguf:q5_0"] for row in shown)
    assert cli.main(["convert", str(path), "--to", "q4_k_m", "--fallback", "gguf:q8_0", "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {row["becomes"] for row in plan["tensors"] if row["fallback"]} == {"gguf:q8_0"}


def test_a_name_without_gguf_is_a_mixture_of_a_gguf_file_and_a_format_of_others(tmp_path):
    path, other = tmp_path / "in.gguf", write(tmp_path / "in.safetensors", {"w": sample((2, 256))})
    path.write_bytes(model("llama, 4 layers"))
    becomes = [
        {tensor.name: tensor.becomes for tensor in qz.convert(path, None, format=name, dry_run=True).tensors}["output.weight"]
        for name in ("q4_0", "gguf:q4_0")
    ]
    assert becomes == ["gguf:q6_k", "gguf:q4_0"]
    assert qz.convert(other, None, format="q4_0", dry_run=True).tensors[0].format == "gguf:q4_0"
    with pytest.raises(ValueError, match=r"a mixture of llama\.cpp is for GGUF files"):
        qz.convert(other, None, format="q4_k_m", dry_run=True)
    with pytest.raises(TypeError, match="group_size"):
        qz.convert(path, None, format="q4_k_m", group_size=32, dry_run=True)
    with pytest.raises(ValueError, match="no format 'q9'"):
        qz.convert(path, None, format="q4_k_m", fallback="q9", dry_run=True)


def test_a_fallback_to_half_floats_is_told(tmp_path):
    path, x = tmp_path / "in.gguf", sample((4, 48))
    path.write_bytes(gguf_floats({"a.weight": x}))
    [tensor] = qz.convert(path, tmp_path / "out.gguf", format="gguf:q4_0", fallback="llama.cpp").tensors
    assert (tensor.action, tensor.becomes, tensor.format, tensor.fallback) == ("cast", "float16", None, "gguf:q4_0")
    assert tensor.reason == "last axis has 48 elements; gguf:q4_0 needs a multiple of 32"
    with qz.open(tmp_path / "out.gguf") as file:
        np.testing.assert_array_equal(file["a.weight"], x.astype(np.float16), strict=True)
