"""Error feedback on the 36 linear layers of MiniLM: the error of their outputs on text that the calibration did not see, and the time.

Plain GPTQ, optimal scales, and those with refinement are our own implementation, one after the other on the same Hessian. Errors and
times are ratios to plain GPTQ: geometric means over the layers. Without feedback are the scales of the rule, the optimal ones, and those
weighted by E[x^2].
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from minilm import Floats, Model, sentences

import quantize as qz

PLAIN = "plain GPTQ"
ROWS = 8192  # of inputs to each layer, of the calibration and again of what is held out


def methods(h: qz.Hessian, refine: Sequence[int], **options: Any) -> Iterator[tuple[str, Callable[[Floats], qz.QuantizedArray]]]:
    """By name, what is compared."""
    importance = h.diagonal
    yield "nearest", lambda w: qz.quantize(w, **options)
    yield "optimal", lambda w: qz.quantize(w, method="optimal", **options)
    yield "optimal, E[x^2]", lambda w: qz.quantize(w, method="optimal", importance=importance, **options)
    yield PLAIN, lambda w: qz.gptq(w, h, method="nearest", **options)
    yield "gptq", lambda w: qz.gptq(w, h, **options)
    for rounds in refine:
        yield f"gptq, refine={rounds}", lambda w, rounds=rounds: qz.gptq(w, h, refine=rounds, **options)


def gathered(model: Model, texts: Iterator[str]) -> dict[str, qz.Hessian]:
    """The Hessian of every site, of as many rows as there are to be."""
    hessians: dict[str, qz.Hessian] = {}

    def see(site: str, x: Floats) -> None:
        h = hessians.setdefault(site, qz.Hessian(x.shape[-1]))
        h.update(x[: ROWS - h.count])

    while not hessians or min(h.count for h in hessians.values()) < ROWS:
        model.run(list(islice(texts, 64)), see)
    return hessians


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

    model, texts = Model(), list(sentences())
    calibration, held_out = (gathered(model, iter(texts[start::2])) for start in (0, 1))
    linears = list(model.linears().items())
    chosen = [linears[number * len(linears) // args.layers] for number in range(args.layers)]
    options = {"format": args.format, "threads": args.threads}
    if not args.format.startswith("gguf:"):
        options |= {"group_size": args.group_size, "scale_dtype": args.scale_dtype}
    figures: dict[str, dict[str, tuple[float, float]]] = {}
    better: Counter[str] = Counter()
    for name, (site, weight) in chosen:
        for method, work in methods(calibration[site], args.refine, **options):
            seconds = best_time(lambda work=work, weight=weight: work(weight), args.repeats)
            error = qz.output_error(weight, work(weight), held_out[site])
            figures.setdefault(method, {})[name] = (error, seconds)
        better[qz.gptq(weight, calibration[site], held_out=held_out[site], **options).better] += 1
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
