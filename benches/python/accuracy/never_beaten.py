"""Whether anybody finds a smaller error: every peer against the search, group by group, in the objective that the peer minimises.

    python benches/python/accuracy/never_beaten.py [--groups 10000]

Groups are of normal, Student (3), Laplace and uniform numbers and of the weights of all-MiniLM-L6-v2, a fifth each.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import formulas
import ggml
import minilm
import numpy as np

import quantize as qz

# What the error of a group may be above that of a peer: relatively, and relatively to sum w x^2, which is what rounding is relative to.
EXACT, OF_ENERGY = 1e-6, 1e-7
# A scale and a minimum are searched up to a tolerance, this one where no other is given.
TOLERANCE = 1e-4
Weights = Callable[[np.ndarray], np.ndarray | None]


class Peer(NamedTuple):
    """Somebody who quantizes groups."""

    name: str
    run: Callable[[np.ndarray], np.ndarray]
    weights: Weights
    """What it weights errors with; None where it does not."""


class Scheme(NamedTuple):
    """A layout, and who writes it."""

    name: str
    size: int
    options: dict[str, object]
    peers: list[Peer]
    tolerance: float = EXACT
    in_total: bool = False
    """Whether the search proves nothing, so that only the sum over all groups counts."""
    missing: str | None = None
    """Why it cannot be compared here."""


class Outcome(NamedTuple):
    """A peer beside the search, in the peer's objective."""

    ratio: float
    """The error of the peer over ours, in total."""
    worst: float
    """By how much ours is above the peer's in the group where it is most, relatively; negative where it is below in all."""
    better: float
    """The share of groups where ours is smaller by more than the tolerance."""
    beaten: int
    """The number of groups where it is larger by more than the tolerance."""
    seconds: tuple[float, float]
    """Of the peer and of ours."""


def equal(_: np.ndarray) -> None:
    """No weights."""


def schemes() -> Iterator[Scheme]:
    """Every layout that has a search, with its peers."""
    for size in (32, 128):
        peers = [
            Peer("absmax / 7", lambda x: formulas.absmax(x, 7), equal),
            Peer("absmax / 7.5", lambda x: formulas.absmax(x, 7.5), equal),
            Peer("signed max / 8", formulas.signed_max, equal),
            Peer("grid of 100", formulas.grid, equal),
            Peer("grid of 100, weighted", lambda x: formulas.grid(x, random_weights(x)), random_weights),
        ]
        yield Scheme("int4", size, {"scale_dtype": "float16", "group_size": size}, peers)
    yield Scheme("gguf:q4_0", 32, {}, list(of_ggml("gguf:q4_0")))
    yield Scheme("gguf:iq4_nl", 32, {}, list(of_ggml("gguf:iq4_nl")))
    yield Scheme("bnb:nf4", 64, {"group_size": 64}, [Peer("absmax", formulas.nf4, equal)])
    peers = [Peer("floor rule", formulas.mxfp4, equal), *of_ggml("gguf:mxfp4", searched=False)]
    yield Scheme("gguf:mxfp4", 32, {}, peers)
    yield Scheme("gguf:nvfp4", 64, {}, list(of_ggml("gguf:nvfp4", searched=False)))
    for name, largest, formula in (("absmax / 6", 448, formulas.nvfp4), ("four over six", 256, formulas.four_over_six)):
        yield Scheme("mlx:nvfp4", 16, {"largest": largest}, [nvfp4_peer(name, largest, formula)])
    yield Scheme("uint4", 32, {"scale_dtype": "float16", "group_size": 32}, [Peer("min-max", formulas.min_max_zero_point, equal)])
    yield Scheme("gguf:q4_1", 32, {}, [Peer("min-max", formulas.min_max, equal), *of_ggml("gguf:q4_1")], tolerance=TOLERANCE)
    for size in (32, 128):
        options = {"scale_dtype": "float16", "group_size": size}
        yield Scheme(
            "hqq", size, options, [Peer("HQQ", formulas.hqq, equal), Peer("min-max", formulas.min_max, equal)], tolerance=TOLERANCE
        )
    for name in ("gguf:q4_k", "gguf:iq4_xs"):
        [info] = [info for info in qz.formats() if info.name == name]
        missing = None if "optimal" in info.methods else f"{name} has no method 'optimal' in this build"
        yield Scheme(name, 256, {}, list(of_ggml(name)), in_total=True, missing=missing)


def of_ggml(name: str, *, searched: bool = True) -> Iterator[Peer]:
    """Yield ggml without an importance, and where it searches with 1 everywhere and with one that is not flat."""
    yield Peer("ggml", lambda x: ggml.quantized(name, x), lambda x: ggml.weights(name, x, None))
    if searched:
        for word, make in (("importance 1", np.ones), ("an importance", columns)):
            yield Peer(
                f"ggml, {word}",
                lambda x, make=make: ggml.quantized(name, x, make(x.shape[1])),
                lambda x, make=make: ggml.weights(name, x, make(x.shape[1])),
            )


def columns(count: int) -> np.ndarray:
    """Uneven weights of columns."""
    return (np.random.default_rng(1).random(count) ** 4 + 1e-3).astype(np.float32)


def random_weights(x: np.ndarray) -> np.ndarray:
    """Uneven weights of elements."""
    return (np.random.default_rng(2).random(x.shape) ** 4).astype(np.float32)


def nvfp4_peer(name: str, largest: float, formula: Callable[..., np.ndarray]) -> Peer:
    """Make a rule of NVFP4 with the scale of the tensor that makes its largest magnitude ``largest`` times 6."""
    return Peer(name, lambda x: formula(x, float(np.abs(x).max()) / (largest * 6)), equal)


def groups(count: int, size: int) -> tuple[np.ndarray, str]:
    """``count`` groups, and what they are of."""
    random = np.random.default_rng(size)
    kinds = [random.standard_normal, lambda shape: random.standard_t(3, shape), lambda shape: random.laplace(size=shape)]
    kinds.append(lambda shape: random.uniform(-1, 1, shape))
    kinds = [lambda kind=kind: kind((count // 5, size)) for kind in kinds]
    words = "normal, Student, Laplace, uniform"
    if minilm.folder() is not None:
        kinds.append(lambda: chosen(random, count - 4 * (count // 5), size))
        words += ", MiniLM"
    return np.concatenate([kind() for kind in kinds]).astype(np.float32), words


def chosen(random: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Groups of a real model, anywhere in it."""
    weights = np.concatenate([w.reshape(-1, 128) for w in minilm.linears().values()])
    whole = weights.reshape(-1, size)
    return whole[random.choice(len(whole), count, replace=False)]


def ours(scheme: Scheme, x: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
    """What the search finds; groups are rows of a matrix."""
    options = dict(scheme.options)
    if (largest := options.pop("largest", None)) is not None:  # the scale of the tensor is that of the peer
        options["global_scale"] = float(np.abs(x).max()) * 448 / largest
    importance = None if weights is None else weights.astype(np.float32)
    return qz.quantize(x, scheme.name, method="optimal", importance=importance, threads=1, **options).dequantize()


def timed(work: Callable[[], np.ndarray], repeats: int) -> tuple[np.ndarray, float]:
    """What it gives, and the shortest of its times."""
    best = np.inf
    for _ in range(repeats):
        started = time.perf_counter()
        result = work()
        best = min(best, time.perf_counter() - started)
    return result, best


def outcome(scheme: Scheme, peer: Peer, x: np.ndarray, repeats: int = 1) -> Outcome:
    """Compare on the same groups."""
    weights = peer.weights(x)
    theirs, their_seconds = timed(lambda: peer.run(x), repeats)
    found, our_seconds = timed(lambda: ours(scheme, x, weights), repeats)
    factor = np.float64(1) if weights is None else weights.astype(np.float32).astype(np.float64)
    x = x.astype(np.float64)
    errors, theirs = ((factor * (x - side) ** 2).sum(1) for side in (found, theirs))
    slack = OF_ENERGY * (factor * x**2).sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        worst = np.nanmax(errors / theirs - 1)
    better = (theirs > errors * (1 + scheme.tolerance) + slack).mean()
    beaten = int((errors > theirs * (1 + scheme.tolerance) + slack).sum())
    return Outcome(float(theirs.sum() / errors.sum()), float(worst), float(better), beaten, (their_seconds, our_seconds))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", type=int, default=10_000, help="groups of every layout; blocks of 256 count as eight (default: 10000)")
    options = parser.parse_args()
    print(
        "| layout | group | peer | its error / ours | groups where ours is smaller | where larger | ours above it at most | ns, peer | ns, ours |"
    )
    print("|---|---:|---|---:|---:|---:|---:|---:|---:|")
    beaten, words = 0, ""
    for scheme in schemes():
        if scheme.missing:
            print(f"skipped: {scheme.missing}", file=sys.stderr)
            continue
        if ggml.GGML is None and any(peer.name.startswith("ggml") for peer in scheme.peers):
            print(f"skipped: ggml in {scheme.name}, pywhispercpp is not installed", file=sys.stderr)
        x, words = groups(options.groups // (8 if scheme.size == 256 else 1), scheme.size)
        for peer in scheme.peers:
            if ggml.GGML is None and peer.name.startswith("ggml"):
                continue
            result = outcome(scheme, peer, x, repeats=3)
            beaten += result.ratio < 1 if scheme.in_total else result.beaten
            nanoseconds = " | ".join(f"{1e9 * seconds / x.size:.0f}" for seconds in result.seconds)
            figures = f"{result.ratio:.4f} | {result.better:.1%} | {result.beaten} | {result.worst:.1e} | {nanoseconds}"
            print(f"| {scheme.name} | {scheme.size} | {peer.name} | {figures} |", flush=True)
    print(f"\nGroups: {words}.")
    if beaten:
        sys.exit(f"a peer has a smaller error {beaten} times")


if __name__ == "__main__":
    main()
