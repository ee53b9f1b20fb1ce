"""Hugging Face folders that are quantized already: without loss to another format, anew when asked, or back to floats."""

import numpy as np
import pytest
from folders import FLOATS, MODULES, config
from helpers import same, same_parts

import quantize as qz


@pytest.mark.parametrize(
    ("before", "after", "options"),
    [
        ("gptq", "gptq:v2", {}),
        ("gptq", "compressed-tensors", {}),
        ("gptq:v2", "awq", {}),
        ("awq", "compressed-tensors", {}),
        ("compressed-tensors", "gptq", {"scale_dtype": "float16"}),
        ("mlx:mxfp4", "compressed-tensors:mxfp4", {}),
        ("modelopt:nvfp4", "compressed-tensors:nvfp4", {}),
        ("bnb:nf4", "bnb:nf4", {}),
    ],
)
def test_a_quantized_folder_becomes_another_without_loss(model, tmp_path, before, after, options):
    qz.convert(model, tmp_path / "first", format=before, **options)
    report = qz.convert(tmp_path / "first", tmp_path / "second", format=after)
    with qz.open(tmp_path / "first") as first, qz.open(tmp_path / "second") as second:
        for tensor in report.tensors:
            if tensor.action == "keep":
                same(second[tensor.name], first[tensor.name])
            elif tensor.action == "repack":
                assert second[tensor.name].format == after
                values, expected = second[tensor.name].dequantize(), first[tensor.name].dequantize()
                if {before, after} == {"modelopt:nvfp4", "compressed-tensors:nvfp4"}:
                    np.testing.assert_array_max_ulp(values, expected, 2)
                else:
                    same(values, expected)
                    assert tensor.sqnr_db == np.inf
    repacked = {tensor.name.removesuffix(".weight") for tensor in report.tensors if tensor.action == "repack"}
    assert repacked == set(MODULES)
    # The readers of other projects know no packed embeddings: those of MLX are decoded.
    decoded = {tensor.name.removesuffix(".weight") for tensor in report.tensors if tensor.action == "dequantize"}
    assert decoded == (set(FLOATS) if before.startswith("mlx") else set())
    described = config(tmp_path / "second")["quantization_config"]
    if before == "awq":  # which has zero points
        assert described["config_groups"]["group_0"]["weights"].pop("symmetric") is False
        described["config_groups"]["group_0"]["weights"]["symmetric"] = True
    at_once = config_of(model, tmp_path, after)
    assert described == at_once


def config_of(model, tmp_path, format):
    """What the config says of a model that was quantized at once."""
    qz.convert(model, tmp_path / "at_once", format=format)
    return config(tmp_path / "at_once")["quantization_config"]


def test_values_that_another_format_cannot_hold_are_quantized_anew_when_asked(model, tmp_path):
    qz.convert(model, tmp_path / "first", format="nf4")
    with pytest.raises(qz.PolicyError, match=r"tensor 'model\.layers\.\d\.\S+': bnb:nf4 to gptq would change values"):
        qz.convert(tmp_path / "first", tmp_path / "second", format="gptq")
    assert not (tmp_path / "second").exists()
    plan = qz.convert(tmp_path / "first", None, format="gptq", dry_run=True)
    assert {tensor.action for tensor in plan.tensors} == {"keep", "refuse"}
    report = qz.convert(tmp_path / "first", tmp_path / "second", format="gptq", requantize=True)
    assert {tensor.action for tensor in report.tensors} == {"keep", "requantize"}
    name = f"{MODULES[0]}.weight"
    with qz.open(tmp_path / "first") as first, qz.open(tmp_path / "second") as second:
        same_parts(second[name].parts, qz.quantize(first[name].dequantize(), "gptq", group_size=64).parts)
    assert config(tmp_path / "second")["quantization_config"]["group_size"] == 64


def test_what_is_left_out_of_a_quantized_folder_is_decoded(model, tmp_path):
    qz.convert(model, tmp_path / "first", format="gptq")
    report = qz.convert(tmp_path / "first", tmp_path / "second", format="awq", exclude="*.0.*")
    actions = {tensor.name: tensor.action for tensor in report.tensors}
    assert actions["model.layers.0.mlp.up_proj.weight"] == "dequantize"
    assert actions["model.layers.1.mlp.up_proj.weight"] == "repack"
    assert "model.layers.0.mlp.up_proj" in config(tmp_path / "second")["quantization_config"]["modules_to_not_convert"]
    with pytest.raises(ValueError, match="a folder is decoded whole"):
        qz.convert(tmp_path / "first", tmp_path / "third", dequantize=True, exclude="*.0.*")


def test_floats_of_another_dtype(model, tmp_path):
    qz.convert(model, tmp_path / "first", format="gptq")
    qz.convert(tmp_path / "first", tmp_path / "second", dequantize=True, dtype="float16")
    name = f"{MODULES[0]}.weight"
    with qz.open(tmp_path / "first") as first, qz.open(tmp_path / "second") as second:
        same(second[name], first[name].dequantize(dtype="float16"))
    assert config(tmp_path / "second")["dtype"] == "float16"
