"""Hugging Face folders: what a conversion writes for each family, what is read back, and folders that are refused."""

import contextlib
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import bfloat16_bits, container, write
from folders import CONFIG, LINEAR, folder, stored, weights
from helpers import as_bits, same, same_parts, sample
from reference import bnb

import quantize as qz
from quantize import cli

MODULES = [f"model.layers.{layer}.{name}" for layer in range(2) for name in LINEAR]
FLOATS = ["lm_head", "model.embed_tokens"]

# The tensors of a module of (N, K) for each format: name, dtype, shape. Written down from what the projects' own writers store.
STORED = {
    "compressed-tensors": lambda n, k: {
        "weight_packed": ("I32", (n, k // 8)),
        "weight_scale": ("BF16", (n, k // 128)),
        "weight_shape": ("I64", (2,)),
    },
    "compressed-tensors:nvfp4": lambda n, k: {
        "weight_packed": ("U8", (n, k // 2)),
        "weight_scale": ("F8_E4M3", (n, k // 16)),
        "weight_global_scale": ("F32", (1,)),
    },
    "compressed-tensors:mxfp4": lambda n, k: {"weight_packed": ("U8", (n, k // 2)), "weight_scale": ("U8", (n, k // 32))},
    "gptq": lambda n, k: {
        "qweight": ("I32", (k // 8, n)),
        "qzeros": ("I32", (k // 128, n // 8)),
        "scales": ("F16", (k // 128, n)),
        "g_idx": ("I32", (k,)),
    },
    "awq": lambda n, k: {
        "qweight": ("I32", (k, n // 8)),
        "qzeros": ("I32", (k // 128, n // 8)),
        "scales": ("F16", (k // 128, n)),
    },
    "bnb:nf4": lambda n, k: {
        "weight": ("U8", (n * k // 2, 1)),
        "weight.absmax": ("F32", (n * k // 64,)),
        "weight.quant_map": ("F32", (16,)),
        "weight.quant_state.bitsandbytes__nf4": ("U8", None),
    },
    "mlx": lambda n, k: {
        "weight": ("U32", (n, k // 8)),
        "scales": ("BF16", (n, k // 64)),
        "biases": ("BF16", (n, k // 64)),
    },
    "mlx:mxfp4": lambda n, k: {"weight": ("U32", (n, k // 8)), "scales": ("U8", (n, k // 32))},
    "mlx:nvfp4": lambda n, k: {"weight": ("U32", (n, k // 8)), "scales": ("U8", (n, k // 16))},
    "modelopt:nvfp4": lambda n, k: {
        "weight": ("U8", (n, k // 2)),
        "weight_scale": ("F8_E4M3", (n, k // 16)),
        "weight_scale_2": ("F32", ()),
    },
}
STORED["gptq:v2"] = STORED["gptq"]
STORED["bnb:fp4"] = lambda n, k: {name.replace("nf4", "fp4"): kind for name, kind in STORED["bnb:nf4"](n, k).items()}

# What readers are told; None where the key has to be absent.
DESCRIBED = {
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": FLOATS},
    "compressed-tensors:nvfp4": {"format": "nvfp4-pack-quantized", "ignore": FLOATS},
    "compressed-tensors:mxfp4": {"format": "mxfp4-pack-quantized", "ignore": FLOATS},
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True, "checkpoint_format": "gptq"},
    "gptq:v2": {"quant_method": "gptq", "checkpoint_format": "gptq_v2"},
    "awq": {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"},
    "bnb:nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
    "bnb:fp4": {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "mlx": {"group_size": 64, "bits": 4, "mode": "affine", "quant_method": None},
    "mlx:mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "mlx:nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "modelopt:nvfp4": {"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4", "ignore": FLOATS},
}


def modules(format):
    """The quantized modules: in the MLX project embeddings and heads too."""
    return sorted([*MODULES, *FLOATS] if format.startswith("mlx") else MODULES)


def config(path):
    return json.loads((path / "config.json").read_text())


@pytest.fixture
def model(tmp_path):
    return folder(tmp_path / "model")


@pytest.mark.parametrize("format", sorted(STORED))
def test_tensors_and_config_are_those_of_the_project(model, tmp_path, format):
    report = qz.convert(model, tmp_path / "out", format=format)
    assert sorted(t.name.removesuffix(".weight") for t in report.tensors if t.action == "quantize") == modules(format)
    found = stored(tmp_path / "out")
    before = stored(model)
    for name, array in weights().items():
        module = name.removesuffix(".weight")
        if module not in modules(format):
            assert found.pop(name) == before[name]
            continue
        for part, (dtype, shape) in STORED[format](*array.shape).items():
            kind, length, _ = found.pop(f"{module}.{part}")
            assert kind == dtype, part
            assert shape in (None, length), part
    assert not found

    described = config(tmp_path / "out").pop("quantization_config")
    assert {key: described.get(key) for key in DESCRIBED[format]} == DESCRIBED[format]
    assert list(config(tmp_path / "out"))[: len(CONFIG)] == list(CONFIG)
    assert (config(tmp_path / "out").get("quantization") == described) == format.startswith("mlx")
    assert (tmp_path / "out" / "tokenizer.json").read_text() == "{}"


@pytest.mark.parametrize("format", sorted(STORED))
def test_what_is_read_back_is_what_quantize_makes(model, tmp_path, format):
    qz.convert(model, tmp_path / "out", format=format)
    qz.convert(tmp_path / "out", tmp_path / "floats", dequantize=True)
    with qz.open(tmp_path / "out") as file, qz.open(tmp_path / "floats") as floats:
        assert file.container == "huggingface"
        assert set(file) == set(floats) == set(weights())
        assert {t.dtype for t in file.tensors} == {"bfloat16"}
        for name, array in weights().items():
            if name.removesuffix(".weight") not in modules(format):
                same(file[name], bfloat16_bits(array))
                continue
            q = qz.quantize(bfloat16_bits(array), format, dtype="bfloat16")
            if format not in ("compressed-tensors:nvfp4", "modelopt:nvfp4"):
                assert file[name].format == format
                for part, expected in q.parts.items():
                    got = as_bits(file[name].parts[part])
                    same(got.reshape(expected.shape), as_bits(expected), part)
            same(floats[name], as_bits(file[name].dequantize(dtype="bfloat16")))
    assert "quantization_config" not in config(tmp_path / "floats")
    assert not (tmp_path / "floats" / "quantize_config.json").exists()
    assert not (tmp_path / "floats" / "hf_quant_config.json").exists()


def test_the_state_of_bitsandbytes_is_its_own_text(tmp_path):
    weight = "model.layers.0.mlp.up_proj.weight"
    folder(tmp_path / "model", 1, {"dtype": "bfloat16"}, {weight: sample((512, 256))})
    qz.convert(tmp_path / "model", tmp_path / "out", format="nf4")
    found = stored(tmp_path / "out")
    # As bitsandbytes 0.50.2 writes it.
    text = b'{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [512, 256]}'
    assert found[f"{weight}.quant_state.bitsandbytes__nf4"][2] == text
    assert found[f"{weight}.quant_map"][2] == bnb.NF4.astype(np.float32).tobytes()


@pytest.mark.parametrize("format", ["bnb:nf4", "bnb:fp4"])
def test_scales_of_bitsandbytes_that_are_quantized_in_turn(model, tmp_path, format):
    qz.convert(model, tmp_path / "out", format=format, double_quant=True)
    found, kind = stored(tmp_path / "out"), format.split(":")[1]
    assert config(tmp_path / "out")["quantization_config"]["bnb_4bit_use_double_quant"] is True
    for module in MODULES:
        array = bfloat16_bits(weights()[f"{module}.weight"])
        q = qz.quantize(array, format, dtype="bfloat16", double_quant=True)
        own = {name.removeprefix(f"{module}.weight"): found.pop(name) for name in list(found) if name.startswith(f"{module}.weight")}
        assert own.pop("") == ("U8", (array.size // 2, 1), q.parts["packed"].tobytes())
        assert own.pop(".absmax") == ("U8", q.parts["absmax"].shape, q.parts["absmax"].tobytes())
        assert own.pop(".nested_absmax") == ("F32", q.parts["nested_absmax"].shape, q.parts["nested_absmax"].tobytes())
        assert own.pop(".quant_map")[:2] == ("F32", (16,))
        assert own.pop(".nested_quant_map")[:2] == ("F32", (256,))
        dtype, _, text = own.pop(f".quant_state.bitsandbytes__{kind}")
        assert not own
        assert dtype == "U8"
        # What bitsandbytes 0.50.2 writes, and spaces.
        assert list(json.loads(text)) == [
            "quant_type",
            "blocksize",
            "dtype",
            "shape",
            "nested_blocksize",
            "nested_dtype",
            "nested_offset",
        ]
        offset = json.loads(text)["nested_offset"]
        assert json.loads(text) == {
            "quant_type": kind,
            "blocksize": 64,
            "dtype": "bfloat16",
            "shape": list(array.shape),
            "nested_blocksize": 256,
            "nested_dtype": "float32",
            "nested_offset": float(q.parts["offset"]),
        }
        with qz.open(tmp_path / "out") as file:
            assert np.float32(offset) == q.parts["offset"]
            assert file[f"{module}.weight"].identical(q)
    assert set(found) == {name for name in weights() if name.removesuffix(".weight") not in MODULES}
    # Undone without loss, decoded, and made anew from what is plain.
    undone = qz.convert(tmp_path / "out", tmp_path / "plain", format=format, double_quant=False)
    assert {tensor.action for tensor in undone.tensors} == {"keep", "repack"}
    qz.convert(tmp_path / "out", tmp_path / "floats", dequantize=True)
    with qz.open(tmp_path / "out") as nested, qz.open(tmp_path / "plain") as plain, qz.open(tmp_path / "floats") as floats:
        for module in MODULES:
            name = f"{module}.weight"
            same(plain[name].dequantize(), nested[name].dequantize())
            same(floats[name], as_bits(nested[name].dequantize(dtype="bfloat16")))


@pytest.mark.parametrize(("format", "part"), [("compressed-tensors:nvfp4", "weight_global_scale"), ("modelopt:nvfp4", "weight_scale_2")])
def test_weights_that_are_computed_together_share_a_second_level(tmp_path, format, part):
    # q, k and v lie in different shards.
    qz.convert(folder(tmp_path / "model", 7), tmp_path / "out", format=format)
    arrays = weights()
    with qz.open(tmp_path / "out") as file:
        for together in (("self_attn", "q_proj", "k_proj", "v_proj"), ("mlp", "gate_proj", "up_proj"), ("mlp", "down_proj")):
            names = [f"model.layers.1.{together[0]}.{last}.weight" for last in together[1:]]
            largest = max(np.abs(arrays[name]).max() for name in names)
            expected = np.float32(2688) / largest if format.startswith("compressed") else largest / np.float32(2688)
            for name in names:
                assert file[name].parts[part].reshape(()) == pytest.approx(expected, rel=1e-6)
                error = file[name].dequantize() - arrays[name]
                assert np.abs(error).max() <= np.abs(arrays[name]).max() / 6


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


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


JOB = """
import sys
import quantize as qz
qz.convert(sys.argv[1], sys.argv[2], format="gptq", shard_size=20_000, memory_limit=100_000, resume=True)
"""


def test_a_job_that_is_killed_is_taken_up(model, tmp_path):
    qz.convert(model, tmp_path / "whole", format="gptq", shard_size=20_000)
    whole = files(tmp_path / "whole")
    shards = [name for name in whole if name.endswith(".safetensors")]
    partial = tmp_path / ".out.partial"
    kept = set()
    for delay in np.random.default_rng(0).uniform(0.05, 0.4, 20):
        process = subprocess.Popen([sys.executable, "-c", JOB, model, tmp_path / "out"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        process.wait()
        if (tmp_path / "out").exists():
            break
        for name in shards:
            if (partial / name).exists():
                kept.add(name)
                assert (partial / name).read_bytes() == whole[name]
    report = None
    if not (tmp_path / "out").exists():
        report = qz.convert(model, tmp_path / "out", format="gptq", shard_size=20_000, memory_limit=100_000, resume=True)
    assert files(tmp_path / "out") == whole
    assert not partial.exists()
    if report and kept:
        assert any(tensor.action == "quantize" and tensor.sqnr_db is None for tensor in report.tensors)


def test_what_is_taken_up_is_of_the_same_job(model, tmp_path):
    def stop(done, total, name):
        if done > total // 2:
            raise KeyboardInterrupt

    job = {"format": "gptq", "shard_size": 20_000, "resume": True}
    with pytest.raises(KeyboardInterrupt):
        qz.convert(model, tmp_path / "out", progress=stop, **job)
    partial = tmp_path / ".out.partial"
    done = {name: data for name, data in files(partial).items() if name.endswith(".safetensors")}
    assert len(done) > 1
    assert not (partial / "config.json").exists()
    # Another job does not take them for its own, whatever they are called: one with other options, and one of weights that changed.
    for name in done:
        (partial / name).write_bytes(b"of another job")
    qz.convert(model, tmp_path / "out", **job | {"group_size": 64})
    assert not partial.exists()
    qz.convert(model, tmp_path / "expected", **job | {"group_size": 64})
    assert files(tmp_path / "out") == files(tmp_path / "expected")

    with pytest.raises(KeyboardInterrupt):
        qz.convert(model, tmp_path / "again", progress=stop, **job)
    shutil.rmtree(model)
    folder(model, arrays={name: 2 * array for name, array in weights().items()})
    qz.convert(model, tmp_path / "again", **job)
    qz.convert(model, tmp_path / "doubled", format="gptq", shard_size=20_000)
    assert files(tmp_path / "again") == files(tmp_path / "doubled")


def test_two_processes_do_not_work_on_one_folder(model, tmp_path):
    def again(done, total, name):
        with pytest.raises(OSError, match="another process is at work"):
            qz.convert(model, tmp_path / "out", format="gptq", resume=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qz.convert(model, tmp_path / "out", format="gptq", resume=True, progress=again)


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


def index(path):
    return json.loads((path / "model.safetensors.index.json").read_text())


def rewritten(path, change):
    value = index(path)
    change(value)
    (path / "model.safetensors.index.json").write_text(json.dumps(value))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda index: index.pop("weight_map"), "has no weight_map"),
        (lambda index: index["weight_map"].update({"model.norm.weight": "../model.safetensors"}), "a shard is a file of the folder itself"),
        (lambda index: index["weight_map"].update({"model.norm.weight": "/etc/passwd"}), "a shard is a file of the folder itself"),
        (lambda index: index["weight_map"].update({"model.norm.weight": 3}), "a shard is a file of the folder itself"),
        (lambda index: index["weight_map"].update({"more": "model-00001-of-00002.safetensors"}), "'more' of the index lies in no shard"),
        (lambda index: index["weight_map"].pop("model.norm.weight"), "the index has it nowhere"),
        (
            lambda index: index["weight_map"].update({"model.embed_tokens.weight": "model-00002-of-00002.safetensors"}),
            "the index has it in 'model-00002-of-00002.safetensors'",
        ),
    ],
)
def test_an_index_that_disagrees_with_the_shards_is_refused(model, change, message):
    rewritten(model, change)
    with pytest.raises(qz.CorruptFileError, match=message):
        qz.open(model)


def test_shards_that_are_missing_broken_or_say_the_same(model):
    shard = model / "model-00002-of-00002.safetensors"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1])
    with pytest.raises(qz.CorruptFileError, match="'model-00002-of-00002.safetensors': "):
        qz.open(model)
    shard.write_bytes(container({"model.embed_tokens.weight": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}))
    with pytest.raises(qz.CorruptFileError, match=r"'model\.embed_tokens\.weight' lies in 'model-00001-\S+' and in 'model-00002-"):
        qz.open(model)
    shard.unlink()
    with pytest.raises(FileNotFoundError):
        qz.open(model)


def test_a_shard_is_a_file(model):
    """A pipe is never waited for; a link to a file is how caches hold models."""
    shard = model / "model-00002-of-00002.safetensors"
    shard.rename(model / "elsewhere")
    os.mkfifo(shard)
    with pytest.raises(OSError, match="not a regular file"):
        qz.open(model)
    shard.unlink()
    shard.mkdir()
    with pytest.raises(IsADirectoryError):
        qz.open(model)
    shard.rmdir()
    shard.symlink_to("elsewhere")
    assert set(qz.open(model)) == set(weights())
    for name in ("", ".", "..", "a/b", "./model-00001-of-00002.safetensors", "model-00001-of-00002.safetensors/"):
        rewritten(model, lambda index, name=name: index["weight_map"].update({"model.norm.weight": name}))
        with pytest.raises(qz.CorruptFileError, match="a shard is a file of the folder itself"):
            qz.open(model)


def test_a_folder_is_not_written_into_its_source(model, tmp_path):
    os.symlink(model, tmp_path / "link")
    for target in (model / "out", tmp_path / "link" / "out", model / "sub" / ".." / "out"):
        (model / "sub").mkdir(exist_ok=True)
        for resume in (False, True):
            with pytest.raises(ValueError, match="it lies in the folder that is read"):
                qz.convert(model, target, format="gptq", resume=resume)
    assert not (model / "out").exists()


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": NaN}', "[" * 100_000])
def test_a_config_that_is_no_object_is_refused(model, text):
    (model / "config.json").write_text(text)
    with pytest.raises(qz.CorruptFileError, match=r"config\.json"):
        qz.open(model)
    (model / "config.json").unlink()
    with pytest.raises(FileNotFoundError):
        qz.open(model)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"quant_method": "fp8"}, "the method 'fp8'"),
        ({"quant_method": "gptq", "bits": 8}, "gptq with 8 bits"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "gptq with checkpoint_format 'marlin'"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "awq with version 'gemv'"),
        ({"quant_method": "compressed-tensors", "format": "float-quantized"}, "compressed-tensors with format 'float-quantized'"),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, "modelopt with quant_algo 'FP8'"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "the method 'bitsandbytes'"),
    ],
)
def test_a_method_that_is_not_read_is_not_passed_over(tmp_path, described, message):
    source = folder(tmp_path / "model", config=CONFIG | {"quantization_config": described})
    with qz.open(source) as file:
        assert set(file) == set(weights())
    for options in ({"format": "gptq"}, {"dequantize": True}):
        with pytest.raises(ValueError, match=message):
            qz.convert(source, tmp_path / "out", **options)


def rewrite_shard(path, change):
    """Change the tensors of a folder of one shard: name to (dtype, shape, bytes)."""
    tensors = stored(path)
    change(tensors)
    header, data = {}, b""
    for name, (dtype, shape, own) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(data), len(data) + len(own)]}
        data += own
    (path / "model.safetensors").write_bytes(container(header, data))


UP = "model.layers.0.mlp.up_proj"
NESTED = "nested nf4"


def state(tensors, **change):
    """Change the state of bitsandbytes of one weight."""
    name = f"{UP}.weight.quant_state.bitsandbytes__nf4"
    text = json.dumps(json.loads(tensors[name][2]) | change).encode()
    tensors[name] = "U8", (len(text),), text


@pytest.mark.parametrize(
    ("format", "change", "message"),
    [
        ("gptq", lambda t: t.pop(f"{UP}.scales"), r"up_proj.scales is missing"),
        ("gptq", lambda t: t.pop(f"{UP}.qzeros"), r"up_proj.qzeros' is missing"),
        ("gptq", lambda t: t.update({f"{UP}.scales": ("F32", (1, 64), bytes(256))}), "is float32 of shape"),
        ("gptq", lambda t: t.update({f"{UP}.scales": ("F16", (3, 64), bytes(384))}), "128 columns in 3 groups"),
        ("gptq", lambda t: t.update({f"{UP}.scales": ("F16", (0, 64), b"")}), "128 columns in 0 groups"),
        ("gptq", lambda t: t.update({f"{UP}.scales": ("F16", (64,), bytes(128))}), "expected a matrix"),
        ("gptq", lambda t: t.update({f"{UP}.qweight": ("I32", (0, 2**62), b"")}), "cannot be counted|memory can address|groups"),
        ("compressed-tensors", lambda t: t.update({f"{UP}.weight_g_idx": ("I32", (128,), bytes(512))}), "another order"),
        ("nf4", lambda t: t.update({f"{UP}.weight.quant_state.bitsandbytes__nf4": ("U8", (2,), b"no")}), "quant_state is not JSON"),
        ("nf4", lambda t: t.update({f"{UP}.weight.quant_state.bitsandbytes__nf4": ("U8", (2,), b"{}")}), "lacks a shape"),
        (
            "nf4",
            lambda t: t.update(
                {
                    f"{UP}.weight.quant_state.bitsandbytes__nf4": ("U8", (24,), b'{"nested_blocksize": 256}')[:2]
                    + (b'{"nested_blocksize":256}',)
                }
            ),
            "nested_blocksize and nested_dtype 256 and null",
        ),
        (NESTED, lambda t: t.pop(f"{UP}.weight.nested_absmax"), r"weight\.nested_absmax' is missing"),
        (NESTED, lambda t: t.pop(f"{UP}.weight.nested_quant_map"), r"weight\.nested_quant_map' is missing"),
        (NESTED, lambda t: t.update({f"{UP}.weight.nested_quant_map": ("F32", (256,), bytes(1024))}), "other numbers than bitsandbytes"),
        (NESTED, lambda t: state(t, nested_offset=None), "lacks the nested_offset"),
        (NESTED, lambda t: state(t, nested_blocksize=128), "nested_blocksize and nested_dtype 128"),
    ],
)
def test_tensors_that_contradict_the_config_are_refused(tmp_path, format, change, message):
    options = {"format": "nf4", "double_quant": True} if format == NESTED else {"format": format}
    qz.convert(folder(tmp_path / "model", 1), tmp_path / "out", **options)
    rewrite_shard(tmp_path / "out", change)
    with pytest.raises(qz.CorruptFileError, match=message):
        qz.open(tmp_path / "out")


@pytest.mark.parametrize(
    ("file", "text", "key"),
    [
        ("config.json", '{"model_type": "llama", "dtype": "bfloat16", "model_type": "bert"}', "'model_type'"),
        ("config.json", '{"quantization_config": {"bits": 4, "bits": 8}}', "'bits'"),
        ("config.json", '{"list": [{"a": 1}, {"b": [{"c": null, "c": 2.5}]}]}', "'c'"),
        ("model.safetensors.index.json", '{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a'"),
        ("model.safetensors.index.json", '{"weight_map": {}, "weight_map": {}}', "'weight_map'"),
    ],
)
def test_a_key_that_comes_twice_is_refused(model, file, text, key):
    (model / file).write_text(text)
    with pytest.raises(qz.CorruptFileError, match=f"'{file}' is ambiguous: the key {key} comes twice at line 1"):
        qz.open(model)
