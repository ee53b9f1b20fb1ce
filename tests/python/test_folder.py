"""Hugging Face folders: shards, index and the files beside them, and what stays float."""

import json
import os

import numpy as np
import pytest
from checkpoints import bfloat16_bits, write
from folders import CONFIG, FLOATS, MODULES, config, folder, stored, weights
from helpers import same_parts, sample

import quantize as qz
from quantize import cli


def test_shards_hold_whole_weights_and_the_index_names_all(model, tmp_path):
    qz.convert(model, tmp_path / "out", format="gptq", shard_size=20_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{number + 1:05}-of-{len(files):05}.safetensors" for number in range(len(files))]
    assert len(files) > 3
    found = stored(tmp_path / "out")
    assert set(index["weight_map"]) == set(found)
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in found.values())
    for module in MODULES:
        assert len({file for name, file in index["weight_map"].items() if name.startswith(f"{module}.")}) == 1
    qz.convert(model, tmp_path / "one", format="gptq")
    assert stored(tmp_path / "one") == found
    assert not (tmp_path / "one" / "model.safetensors.index.json").exists()


def test_what_stays_float_is_told_to_the_reader(tmp_path):
    arrays = weights() | {
        "model.layers.0.mlp.gate.weight": sample((8, 128), 50),
        "model.layers.0.mlp.experts.gate_up_proj": sample((2, 128, 128), 51),
        "model.layers.0.mlp.up_proj.bias": sample((64,), 52),
        "model.layers.0.conv.weight": sample((4, 8, 16), 53),
    }
    report = qz.convert(
        folder(tmp_path / "model", 1, arrays=arrays), tmp_path / "out", format="compressed-tensors", exclude="*.1.mlp.down_proj.*"
    )
    reasons = {tensor.name: tensor.reason for tensor in report.tensors if tensor.action == "keep"}
    assert reasons["model.layers.0.mlp.gate.weight"] == "a router of experts"
    assert reasons["model.layers.0.mlp.experts.gate_up_proj"] == "its name does not end in .weight"
    assert reasons["model.layers.0.conv.weight"] == "3-d; the weight of a linear layer has 2 axes"
    assert reasons["model.embed_tokens.weight"] == "an embedding or a head"
    assert reasons["model.layers.1.mlp.down_proj.weight"] == "excluded by '*.1.mlp.down_proj.*'"
    ignored = config(tmp_path / "out")["quantization_config"]["ignore"]
    assert set(ignored) == {*FLOATS, "model.layers.0.mlp.gate", "model.layers.1.mlp.down_proj"}
    # A head that is the embedding is a module of the model too.
    arrays.pop("lm_head.weight")
    qz.convert(folder(tmp_path / "tied", 1, arrays=arrays), tmp_path / "tied_out", format="compressed-tensors")
    assert "lm_head" in config(tmp_path / "tied_out")["quantization_config"]["ignore"]


def test_the_matrices_of_gpt2_are_the_other_way_round(tmp_path):
    names = ("c_attn", "c_proj", "c_fc")
    arrays = {f"transformer.h.0.mlp.{name}.weight": sample((128, 128), number) for number, name in enumerate(names)}
    source = folder(tmp_path / "model", 1, CONFIG | {"model_type": "gpt2"}, arrays)
    report = qz.convert(source, None, format="gptq", dry_run=True)
    assert {tensor.action for tensor in report.tensors} == {"keep"}
    assert "Conv1D" in report.tensors[0].reason


def test_a_weight_that_does_not_fit_refuses_the_job(tmp_path, capsys):
    arrays = weights() | {"model.layers.0.mlp.odd.weight": sample((16, 100), 60)}
    source = folder(tmp_path / "model", 1, arrays=arrays)
    assert cli.main(["convert", str(source), str(tmp_path / "out"), "--to", "awq"]) == 4
    assert "model.layers.0.mlp.odd.weight" in capsys.readouterr().err
    assert cli.main(["convert", str(source), str(tmp_path / "out"), "--to", "awq", "--exclude", "*.odd.*"]) == 0
    assert "model.layers.0.mlp.odd" in config(tmp_path / "out")["quantization_config"]["modules_to_not_convert"]


def test_importance_weights_errors_of_the_tensors_that_it_has(model, tmp_path):
    name = f"{MODULES[0]}.weight"
    seen = np.square(sample((128,), 70)) + np.float32(0.01)
    write(tmp_path / "importance.safetensors", {f"{name}.in_sum2": seen})
    report = qz.convert(model, tmp_path / "out", format="gptq", method="optimal", importance=tmp_path / "importance.safetensors")
    weighted = {tensor.name: tensor.weights for tensor in report.tensors if tensor.action == "quantize"}
    assert weighted.pop(name) == "importance"
    assert set(weighted.values()) == {"magnitude"}
    array = bfloat16_bits(weights()[name])
    with qz.open(tmp_path / "out") as file:
        same_parts(file[name].parts, qz.quantize(array, "gptq", dtype="bfloat16", method="optimal", importance=seen).parts)


def test_files_beside_the_weights_are_copied(model, tmp_path):
    (model / "1_Pooling").mkdir()
    (model / "1_Pooling" / "config.json").write_text('{"pooling": "mean"}')
    (model / ".git").mkdir()
    (model / ".git" / "HEAD").write_text("of version control")
    (tmp_path / "blob").write_text("a template")
    os.symlink(tmp_path / "blob", model / "chat_template.jinja")
    for stale in ("pytorch_model.bin", "model.onnx", "other.safetensors", "other.safetensors.index.json", "quantize_config.json"):
        (model / stale).write_bytes(b"stale")
    qz.convert(model, tmp_path / "out", format="gptq")
    found = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {
        "config.json",
        "quantize_config.json",
        "tokenizer.json",
        "1_Pooling/config.json",
        "chat_template.jinja",
        "model.safetensors",
    }
    assert (tmp_path / "out" / "1_Pooling" / "config.json").read_text() == '{"pooling": "mean"}'
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == "a template"
    assert json.loads((tmp_path / "out" / "quantize_config.json").read_text())["bits"] == 4


def test_a_folder_appears_whole_or_not_at_all(model, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "model.safetensors").write_bytes(b"of another model")
    with pytest.raises(FileExistsError):
        qz.convert(model, tmp_path / "there", format="gptq", overwrite=True)

    def stop(done, total, name):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qz.convert(model, tmp_path / "out", format="gptq", progress=stop)
    arrays = weights() | {"model.layers.0.mlp.bad.weight": np.full((16, 128), np.nan, np.float32)}
    with pytest.raises(qz.PolicyError, match=r"bad\.weight"):
        qz.convert(folder(tmp_path / "broken", 2, arrays=arrays), tmp_path / "out", format="gptq")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "model", "there"]
    (tmp_path / "empty").mkdir()
    qz.convert(model, tmp_path / "empty", format="gptq")
    assert (tmp_path / "empty" / "config.json").exists()


def test_a_folder_is_not_written_into_its_source(model, tmp_path):
    os.symlink(model, tmp_path / "link")
    for target in (model / "out", tmp_path / "link" / "out", model / "sub" / ".." / "out"):
        (model / "sub").mkdir(exist_ok=True)
        for resume in (False, True):
            with pytest.raises(ValueError, match="it lies in the folder that is read"):
                qz.convert(model, target, format="gptq", resume=resume)
    assert not (model / "out").exists()


def test_the_command_line(model, tmp_path, capsys):
    assert cli.main(["convert", str(model), "--dry-run", "--to", "nf4", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {tensor["action"] for tensor in plan["tensors"]} == {"keep", "quantize"}
    out = str(tmp_path / "out")
    assert cli.main(["convert", str(model), out, "--to", "compressed-tensors", "--no-symmetric", "--shard-size", "1MB", "--quiet"]) == 0
    assert config(tmp_path / "out")["quantization_config"]["config_groups"]["group_0"]["weights"]["symmetric"] is False
    assert cli.main(["inspect", out]) == 0
    shown = capsys.readouterr().out
    assert "container        huggingface" in shown
    assert "compressed-tensors" in shown
    assert cli.main(["compare", str(model), out, "--json"]) == 0
    verdicts = {tensor["name"]: tensor["verdict"] for tensor in json.loads(capsys.readouterr().out)["tensors"]}
    assert verdicts[f"{MODULES[0]}.weight"] == "measured"
    assert cli.main(["convert", str(model), str(tmp_path / "out.safetensors"), "--to", "nf4"]) == 2
    assert "that of a folder" in capsys.readouterr().err
