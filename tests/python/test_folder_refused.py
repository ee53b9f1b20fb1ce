"""Hugging Face folders that are refused: shards, index, config and tensors that are broken or contradict each other."""

import json
import os

import pytest
from checkpoints import container
from folders import CONFIG, folder, stored, weights

import quantize as qz


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
