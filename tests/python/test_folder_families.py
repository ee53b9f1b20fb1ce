"""Hugging Face folders of each family: tensors and config are those of its project, and are read back."""

import json

import numpy as np
import pytest
from checkpoints import bfloat16_bits
from folders import CONFIG, FLOATS, MODULES, config, folder, stored, weights
from helpers import as_bits, same, sample
from reference import bnb

import quantize as qz

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
