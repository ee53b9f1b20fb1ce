"""Everybody who quantizes a matrix of weights, behind one signature: the peers, and this package by its methods.

Groups run along rows; what a row has beyond whole groups is a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Literal, NamedTuple

import formulas
import ggml
import numpy as np

import quantize as qz

Needs = Literal["nothing", "squares", "hessian"]
# Weights, and what is needed besides.
Run = Callable[[np.ndarray, Any], np.ndarray]


class Method(NamedTuple):
    """A way to quantize."""

    name: str
    bits: float
    """Bits a weight, all that is stored included, where groups divide rows."""
    run: Run
    needs: Needs = "nothing"
    """What it is given besides the weights: the mean squares of the inputs of their layer, or the Hessian of them."""
    missing: str | None = None
    """Why it cannot be run here."""


def grouped(formula: Callable[..., np.ndarray], size: int) -> Run:
    """A formula for rows that are groups, as a method without weights."""

    def run(w: np.ndarray, _: np.ndarray | None) -> np.ndarray:
        out = np.empty_like(w)
        whole = w.shape[1] // size * size
        for part in (slice(0, whole), slice(whole, None)):
            width = min(size, w[:, part].shape[1])
            if width:
                groups = np.ascontiguousarray(w[:, part]).reshape(-1, width)
                # Piece by piece: what is in a cache is done sooner.
                pieces = [formula(groups[at : at + 8192]) for at in range(0, len(groups), 8192)]
                out[:, part] = np.concatenate(pieces).reshape(len(w), -1)
        return out

    return run


def whole_scale(formula: Callable[..., np.ndarray], largest: float) -> Run:
    """A formula of NVFP4, with the scale of the tensor that makes its largest magnitude ``largest`` times 6."""

    def run(w: np.ndarray, _: np.ndarray | None) -> np.ndarray:
        whole = float(np.abs(w).max()) / (largest * 6)
        return grouped(lambda groups: formula(groups, whole), 16)(w, None)

    return run


def ours(name: str, method: str, **options: object) -> Run:
    """Make a method of this package."""

    def run(w: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        how = {} if importance is None else {"importance": importance}
        return qz.quantize(w, name, method=method, **how, **options).dequantize()

    return run


def of_ggml(name: str) -> Run:
    """Make a method of ggml."""
    return lambda w, importance: ggml.quantized(name, w, importance)


def flat(run: Run) -> Run:
    """Give a method an importance of 1 everywhere: ggml then searches where it would not."""
    return lambda w, _: run(w, np.ones(w.shape[1], np.float32))


def folded(run: Run) -> Run:
    """Lay rows end to end, four by four, where blocks of 256 do not divide them."""

    def by_fours(w: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        fold = 4 if w.shape[1] % 256 else 1
        importance = None if importance is None else np.tile(importance, fold)
        return run(w.reshape(len(w) // fold, -1), importance).reshape(w.shape)

    return by_fours


def lacks(name: str, method: str = "optimal") -> str | None:
    """Why a format cannot be searched in this build, if so."""
    [info] = [info for info in qz.formats() if info.name == name]
    return None if method in info.methods else f"{name} has no method {method!r} in this build"


def methods(group: int) -> Iterator[Method]:
    """Those with groups of one size, each peer before ours."""
    scale, both, integer = 16 / group, 32 / group, 20 / group
    yield Method("RTN absmax / 7", 4 + scale, grouped(lambda x: formulas.absmax(x, 7), group))
    yield Method("RTN absmax / 7.5", 4 + scale, grouped(lambda x: formulas.absmax(x, 7.5), group))
    yield Method("signed max / 8 (Q4_0)", 4 + scale, ours("int4", "nearest", group_size=group))
    yield Method("grid of 100", 4 + scale, grouped(formulas.grid, group))
    if group == 32:
        yield ggml_method("Q4_0, importance 1", 4.5, flat(of_ggml("gguf:q4_0")))
        yield ggml_method("Q4_0, E[x^2]", 4.5, of_ggml("gguf:q4_0"), needs="squares")
    yield Method("**int4 optimal**", 4 + scale, ours("int4", "optimal", group_size=group))
    yield Method("**int4 optimal, E[x^2]**", 4 + scale, ours("int4", "optimal", group_size=group), needs="squares")
    yield Method("**int4 optimal, magnitude**", 4 + scale, ours("int4", "optimal", group_size=group, importance="magnitude"))
    yield Method("zero point, min-max", 4 + integer, grouped(formulas.min_max_zero_point, group))
    yield Method("**uint4 optimal**", 4 + integer, ours("uint4", "optimal", group_size=group))
    yield Method("**uint4 optimal, E[x^2]**", 4 + integer, ours("uint4", "optimal", group_size=group), needs="squares")
    yield Method("minimum, min-max", 4 + both, grouped(formulas.min_max, group))
    yield Method("HQQ", 4 + both, grouped(formulas.hqq, group))
    if group == 32:
        yield ggml_method("Q4_1, importance 1", 5.0, flat(of_ggml("gguf:q4_1")))
        yield ggml_method("Q4_1, E[x^2]", 5.0, of_ggml("gguf:q4_1"), needs="squares")
    plane = {"scale_dtype": "float16", "group_size": group}
    yield Method("**hqq fast**", 4 + both, ours("hqq", "fast", **plane))
    yield Method("**hqq optimal**", 4 + both, ours("hqq", "optimal", **plane))
    yield Method("**hqq optimal, E[x^2]**", 4 + both, ours("hqq", "optimal", **plane), needs="squares")
    yield Method("NF4 absmax", 4 + both, grouped(formulas.nf4, group))
    yield Method("**nf4 optimal**", 4 + both, ours("bnb:nf4", "optimal", group_size=group))
    yield Method("**nf4 optimal, E[x^2]**", 4 + both, ours("bnb:nf4", "optimal", group_size=group), needs="squares")


def block_methods() -> Iterator[Method]:
    """Those of formats with blocks of their own, each peer before ours."""
    yield ggml_method("IQ4_NL", 4.5, of_ggml("gguf:iq4_nl"))
    yield ggml_method("IQ4_NL, E[x^2]", 4.5, of_ggml("gguf:iq4_nl"), needs="squares")
    yield Method("**iq4_nl optimal**", 4.5, ours("gguf:iq4_nl", "optimal"))
    yield Method("**iq4_nl optimal, E[x^2]**", 4.5, ours("gguf:iq4_nl", "optimal"), needs="squares")
    yield ggml_method("IQ4_XS", 4.25, folded(of_ggml("gguf:iq4_xs")))
    yield ggml_method("IQ4_XS, E[x^2]", 4.25, folded(of_ggml("gguf:iq4_xs")), needs="squares")
    yield from searched("gguf:iq4_xs", "iq4_xs", 4.25)
    yield ggml_method("Q4_K", 4.5, folded(of_ggml("gguf:q4_k")))
    yield ggml_method("Q4_K, importance 1", 4.5, folded(flat(of_ggml("gguf:q4_k"))))
    yield ggml_method("Q4_K, E[x^2]", 4.5, folded(of_ggml("gguf:q4_k")), needs="squares")
    yield from searched("gguf:q4_k", "q4_k", 4.5)
    yield Method("MXFP4 floor", 4.25, grouped(formulas.mxfp4, 32))
    yield from searched("torchao:mxfp4", "mxfp4", 4.25)
    yield Method("NVFP4 absmax / 6", 4.5, whole_scale(formulas.nvfp4, 448))
    yield Method("NVFP4 four over six", 4.5, whole_scale(formulas.four_over_six, 256))
    yield from searched("modelopt:nvfp4", "nvfp4", 4.5)


def feedback(group: int) -> Iterator[Method]:
    """Those that carry the error of a column over to those that follow."""

    def run(w: np.ndarray, hessian: qz.Hessian, refine: int) -> np.ndarray:
        return qz.gptq(w, hessian, format="int4", group_size=group, refine=refine).dequantize()

    for name, refine in (("**gptq**", 0), ("**gptq, 4 rounds of refinement**", 4)):
        yield Method(name, 4 + 16 / group, partial(run, refine=refine), "hessian")


def ggml_method(name: str, bits: float, run: Run, needs: Needs = "nothing") -> Method:
    """Make a method of ggml, if it is there."""
    return Method(f"ggml {name}", bits, run, needs, None if ggml.GGML else "pywhispercpp, which has ggml, is not installed")


def searched(name: str, short: str, bits: float) -> Iterator[Method]:
    """Yield the search of a format without and with weights."""
    run, missing = folded(ours(name, "optimal")), lacks(name)
    yield Method(f"**{short} optimal**", bits, run, missing=missing)
    yield Method(f"**{short} optimal, E[x^2]**", bits, run, needs="squares", missing=missing)
