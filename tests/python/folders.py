"""Folders as Hugging Face lays out a model, for tests: config, shards, index."""

import json

import numpy as np
from checkpoints import bfloat16_bits, write
from helpers import sample

CONFIG = {"model_type": "llama", "dtype": "bfloat16", "tie_word_embeddings": False, "architectures": ["LlamaForCausalLM"]}

LINEAR = {
    "self_attn.q_proj": (32, 128),
    "self_attn.k_proj": (16, 128),
    "self_attn.v_proj": (16, 128),
    "self_attn.o_proj": (128, 128),
    "mlp.gate_proj": (64, 128),
    "mlp.up_proj": (64, 128),
    "mlp.down_proj": (128, 256),
}

MODULES = [f"model.layers.{layer}.{name}" for layer in range(2) for name in LINEAR]
FLOATS = ["lm_head", "model.embed_tokens"]


def weights():
    """The float32 arrays of a model of two layers, in the order of a file, each a bfloat16 number."""
    arrays = {"model.embed_tokens.weight": sample((48, 128), 1)}
    for layer in range(2):
        for number, (name, shape) in enumerate(LINEAR.items()):
            # Magnitudes differ, so that a scale shared by several shows.
            arrays[f"model.layers.{layer}.{name}.weight"] = sample(shape, 10 * layer + number + 2) * np.float32(number + 1)
        arrays[f"model.layers.{layer}.input_layernorm.weight"] = sample((128,), 30 + layer)
    arrays["model.norm.weight"] = sample((128,), 40)
    arrays["lm_head.weight"] = sample((48, 128), 41)
    return {name: (bfloat16_bits(array).astype(np.uint32) << 16).view(np.float32) for name, array in arrays.items()}


def folder(path, shards=2, config=CONFIG, arrays=None):
    """Write a model in bfloat16 and give its path."""
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    (path / "tokenizer.json").write_text("{}")
    arrays = weights() if arrays is None else arrays
    names = list(arrays)
    parts = [names[number::shards] for number in range(shards)]
    files = {}
    for number, part in enumerate(parts):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors" if shards > 1 else "model.safetensors"
        bits = {name: bfloat16_bits(arrays[name]) for name in part}
        write(path / file, bits, {"format": "pt"}, **dict.fromkeys(part, "BF16"))
        files |= dict.fromkeys(part, file)
    if shards > 1:
        index = {"metadata": {"total_size": sum(2 * array.size for array in arrays.values())}, "weight_map": files}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return path


def stored(path):
    """Every tensor of a folder as its files have it: name to (dtype, shape, bytes)."""
    found = {}
    for file in sorted(path.glob("*.safetensors")):
        data = file.read_bytes()
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            found[name] = entry["dtype"], tuple(entry["shape"]), data[8 + length + begin : 8 + length + end]
    return found


def config(path):
    """The config of a folder."""
    return json.loads((path / "config.json").read_text())
