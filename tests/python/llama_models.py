"""Small models of llama.cpp's shapes: what its quantizer made of them is in ``tests/vectors/llama_mixtures.json``."""

import struct
from itertools import groupby

import numpy as np
from checkpoints import gguf_floats, gguf_text

MIXTURES = ("q4_0", "q4_1", "q4_k_s", "q4_k_m", "iq4_nl", "iq4_xs", "mxfp4_moe")

# Architecture, layers, heads, heads of keys and values, length of rows, experts, and what else is special.
MODELS = {
    "llama, 4 layers": ("llama", 4, 4, 4, 256, 0, ""),
    "llama, 8 layers, tied": ("llama", 8, 4, 1, 256, 0, "tied"),
    "llama, 16 layers, shared heads": ("llama", 16, 8, 2, 256, 0, ""),
    "llama, 32 layers": ("llama", 32, 4, 4, 256, 0, ""),
    "llama, 35 layers, tied": ("llama", 35, 4, 2, 256, 0, "tied"),
    "llama, 80 layers": ("llama", 80, 4, 4, 256, 0, ""),
    "llama, 80 layers, shared heads": ("llama", 80, 8, 1, 256, 0, ""),
    "llama-embed, 80 layers, shared heads": ("llama-embed", 80, 8, 1, 256, 0, ""),
    "qwen2, 80 layers": ("qwen2", 80, 4, 4, 256, 0, ""),
    "deci, 80 layers": ("deci", 80, 4, 4, 256, 0, ""),
    "jais2, 68 layers": ("jais2", 68, 4, 4, 256, 0, ""),
    "llama, 4 experts": ("llama", 16, 4, 4, 256, 4, ""),
    "llama, 8 experts": ("llama", 16, 4, 1, 256, 8, ""),
    "fused": ("gpt2", 12, 4, 4, 256, 0, "fused"),
    "falcon": ("falcon", 32, 4, 1, 256, 0, "fused"),
    "rows of 288": ("llama", 16, 4, 4, 288, 0, ""),
    "rows of 288, tied": ("llama", 16, 4, 1, 288, 0, "tied"),
    "rows of 48": ("llama", 4, 4, 4, 48, 0, ""),
}


def model(name):
    """The bytes of a model: the keys of its shape, and of every matrix two rows, which is all that the quantizer asks for."""
    architecture, layers, heads, values, columns, experts, special = MODELS[name]
    numbers = {
        "block_count": layers,
        "context_length": 64,
        "embedding_length": columns,
        "feed_forward_length": columns,
        "attention.head_count": heads,
        "attention.head_count_kv": values,
        "vocab_size": 32,
    }
    if experts:
        numbers |= {"expert_count": experts, "expert_used_count": 2}
    keys = {"general.architecture": (8, gguf_text(architecture))}
    keys |= {f"{architecture}.{key}": (4, struct.pack("<I", number)) for key, number in numbers.items()}
    keys |= {f"{architecture}.attention.layer_norm{part}_epsilon": (6, struct.pack("<f", 1e-5)) for part in ("", "_rms")}
    keys["tokenizer.ggml.model"] = (8, gguf_text("none"))

    row = np.linspace(-1, 1, columns, dtype=np.float32)
    matrix, stack = np.stack([row, -row]), np.stack([[row, -row]] * (experts or 1))
    tensors = {"token_embd.weight": matrix, "output_norm.weight": row}
    if special != "tied":
        tensors["output.weight"] = matrix
    fused = ["attn_qkv"] if special == "fused" else ["attn_q", "attn_k", "attn_v"]
    stacks = ["ffn_down_exps", "ffn_gate_exps", "ffn_up_exps"] if experts else []
    dense = ["ffn_gate_inp"] if experts else ["ffn_down", "ffn_up"]
    for layer in range(layers):
        own = {"attn_norm": row, "ffn_norm": row} | dict.fromkeys([*fused, "attn_output", *dense], matrix) | dict.fromkeys(stacks, stack)
        tensors |= {f"blk.{layer}.{part}.weight": array for part, array in own.items()}
    return gguf_floats(tensors, keys)


def families(types):
    """Types by name as types by family, each layer a place: ``{"blk.*.attn_v.weight": "Q6_K*2 Q4_K*1"}``."""
    found = {}
    for name, kind in types.items():
        layer = name.split(".")[1] if name.startswith("blk.") else "0"
        found.setdefault(name.replace(f"blk.{layer}.", "blk.*."), {})[int(layer)] = kind
    listed = {family: [kinds[layer] for layer in sorted(kinds)] for family, kinds in sorted(found.items())}
    return {family: " ".join(f"{kind}*{len(list(run))}" for kind, run in groupby(kinds)) for family, kinds in listed.items()}
