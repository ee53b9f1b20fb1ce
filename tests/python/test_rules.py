"""Rules: what tensors of some names become, in files, GGUF files and folders, and rules that are refused."""

import json

import numpy as np
import pytest
from checkpoints import gguf_floats, gguf_text, write
from folders import folder
from helpers import same_parts, sample

import quantize as qz
from quantize import cli


@pytest.fixture
def file(tmp_path):
    names = ["a.up", "a.down", "b.up", "b.down"]
    return write(tmp_path / "in.safetensors", {name: sample((8, 128), number) for number, name in enumerate(names)})


def became(report):
    return {tensor.name: (tensor.action, tensor.format, tensor.group_size, tensor.rule) for tensor in report.tensors}


def test_the_first_rule_that_matches_decides(file, tmp_path):
    rules = {"a.*": "int4,group_size=64", "*.down": "uint4,group_size=16,scale_dtype=float32", "b.up": "keep", "*": "nf4"}
    expected = {
        "a.up": ("quantize", "int4", 64, "a.*"),
        "a.down": ("quantize", "int4", 64, "a.*"),
        "b.up": ("keep", None, None, "b.up"),
        "b.down": ("quantize", "uint4", 16, "*.down"),
    }
    assert became(qz.convert(file, None, rules=rules, dry_run=True)) == expected
    report = qz.convert(file, tmp_path / "out.safetensors", rules=list(rules.items()))
    assert became(report) == expected
    assert [tensor.seconds > 0 for tensor in report.tensors] == [True] * 4
    with qz.open(file) as before, qz.open(tmp_path / "out.safetensors") as after:
        same_parts(after["a.up"].parts, qz.quantize(before["a.up"], "int4", group_size=64).parts)
        same_parts(after["b.down"].parts, qz.quantize(before["b.down"], "uint4", group_size=16, scale_dtype="float32").parts)
        assert np.array_equal(after["b.up"], before["b.up"])


def test_what_no_rule_matches_is_kept_or_becomes_the_format(file):
    kept = became(qz.convert(file, None, rules={"a.*": "uint4"}, dry_run=True))
    assert kept["b.up"] == ("keep", None, None, "*")
    rest = became(qz.convert(file, None, format="int4", rules=[("a.*", "keep")], dry_run=True))
    assert rest["a.up"] == ("keep", None, None, "a.*")
    assert rest["b.up"] == ("quantize", "int4", 32, None)
    named = became(qz.convert(file, None, rules={"*": "int4"}, keep=["a.up"], exclude=["b.*"], dry_run=True))
    assert named["a.up"] == named["b.up"] == ("keep", None, None, None)


def test_rules_of_a_mixture(tmp_path):
    keys = {"general.architecture": (8, gguf_text("llama")), "llama.block_count": (4, (2).to_bytes(4, "little"))}
    arrays = {f"blk.{layer}.{name}.weight": sample((4, 256), layer) for layer in range(2) for name in ("ffn_up", "ffn_down", "attn_v")}
    (tmp_path / "in.gguf").write_bytes(gguf_floats(arrays, keys))
    report = qz.convert(
        tmp_path / "in.gguf", tmp_path / "out.gguf", format="q4_k_m", rules={"blk.?.ffn_down*": "gguf:q4_0", "*.1.attn_v*": "gguf:q8_0"}
    )
    formats = {tensor.name: tensor.format for tensor in report.tensors}
    assert formats["blk.0.ffn_down.weight"] == formats["blk.1.ffn_down.weight"] == "gguf:q4_0"
    assert (formats["blk.0.ffn_up.weight"], formats["blk.1.attn_v.weight"]) == ("gguf:q4_k", "gguf:q8_0")
    with qz.open(tmp_path / "out.gguf") as out:
        assert {info.name: info.format for info in out.tensors} == formats
    with pytest.raises(ValueError, match="int4"):
        qz.convert(tmp_path / "in.gguf", None, format="q4_k_m", rules={"*": "int4"}, dry_run=True)


def config(path):
    return json.loads((path / "config.json").read_text())["quantization_config"]


def test_a_folder_in_groups_of_several_sizes(tmp_path):
    model = folder(tmp_path / "model")
    downs = [f"model.layers.{layer}.mlp.down_proj" for layer in range(2)]
    rules = {"*.down_proj.*": "compressed-tensors,group_size=32,symmetric=false", "*.o_proj.*": "keep"}
    qz.convert(model, tmp_path / "ct", format="compressed-tensors", rules=rules)
    said = config(tmp_path / "ct")
    second, first = said["config_groups"]["group_0"], said["config_groups"]["group_1"]  # the group of all others is the last
    assert (first["targets"], first["weights"]["group_size"], first["weights"]["symmetric"]) == (["Linear"], 128, True)
    assert (sorted(second["targets"]), second["weights"]["group_size"], second["weights"]["symmetric"]) == (downs, 32, False)
    assert {f"model.layers.{layer}.self_attn.o_proj" for layer in range(2)} <= set(said["ignore"])
    with qz.open(tmp_path / "ct") as after:
        for name in downs:
            assert (after[f"{name}.weight"].group_size, "weight_zero_point" in after[f"{name}.weight"].parts) == (32, True)
        assert after["model.layers.0.mlp.up_proj.weight"].group_size == 128

    qz.convert(model, tmp_path / "mlx", format="mlx", rules={"*.down_proj.*": "mlx,group_size=32"})
    said = config(tmp_path / "mlx")
    assert said["group_size"] == 64
    assert {name: said[name] for name in downs} == {name: {"group_size": 32, "bits": 4, "mode": "affine"} for name in downs}
    with qz.open(tmp_path / "mlx") as after:
        assert after[f"{downs[0]}.weight"].group_size == 32


def test_mixes_that_a_config_cannot_say_are_refused(tmp_path):
    model = folder(tmp_path / "model")

    def refused(message, **job):
        with pytest.raises(ValueError, match=message):
            qz.convert(model, tmp_path / "out", **job)
        assert not (tmp_path / "out").exists()

    refused(r"group_size is 128 and 32; config\.json has one place", format="gptq", rules={"*.down_proj.*": "gptq,group_size=32"})
    refused("names one format for the whole folder", format="gptq", rules={"*.down_proj.*": "awq"})
    refused("readers compute both together", format="compressed-tensors", rules={"*.k_proj.*": "compressed-tensors,group_size=32"})
    qz.convert(model, tmp_path / "out", format="gptq", rules={"*": "gptq,group_size=32"})
    assert config(tmp_path / "out")["group_size"] == 32


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"x*": "int4"}, "a rule is 'x\\*'; no tensor of the file matches it"),
        ({"a.*": "int5"}, "int5"),
        ({"a.*": "int4,64"}, "has '64'; expected NAME=VALUE"),
        ({"a.*": "int4,group_size=0"}, "group_size"),
        ({"a.*": "int4,color=3"}, "color"),
        ({"a.*": "gguf:q4_0,group_size=64"}, "group_size"),
        ({"a.*": "int4,scale_dtype=float8"}, "scale_dtype"),
    ],
)
def test_rules_that_mean_nothing_are_refused(file, tmp_path, rules, message):
    with pytest.raises((ValueError, TypeError), match=message):
        qz.convert(file, tmp_path / "out.safetensors", rules=rules)
    assert not (tmp_path / "out.safetensors").exists()


def test_floats_take_no_rules(file):
    with pytest.raises(ValueError, match="floats are wanted"):
        qz.convert(file, None, rules={"*": "int4"}, dequantize=True, dry_run=True)


def test_rules_on_the_command_line(file, capsys):
    job = ["convert", str(file), "--dry-run", "--rule", "a.*=int4,group_size=64", "--rule", "*=keep"]
    assert cli.main(job) == 0
    out = capsys.readouterr().out
    assert "rule a.*" in out
    assert "kept by rule '*'" in out
    assert cli.main([*job, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert [tensor["rule"] for tensor in plan["tensors"]] == ["a.*", "a.*", "*", "*"]
    with pytest.raises(SystemExit):
        cli.main(["convert", str(file), "--rule", "int4"])
    assert "expected GLOB=FORMAT" in capsys.readouterr().err
