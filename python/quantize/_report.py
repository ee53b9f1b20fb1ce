"""What a conversion cost, tensor by tensor and group by group: as data, and as a page with pictures."""

from __future__ import annotations

import html
import itertools
import json
import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from quantize._api import compare
from quantize._core import __version__
from quantize._files import (
    Checkpoint,
    ConvertReport,
    FileComparison,
    Progress,
    TensorInfo,
    as_floats,
    hashed,
    is_turned,
    plain_data,
    printable,
    reference,
    shown_progress,
)
from quantize._types import QuantizedArray, amount

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from collections.abc import Set as AbstractSet

    from numpy.typing import NDArray

BINS = 40
"""Bins of a histogram: one for each dB of a group's signal to noise from 0 up; the first and the last take what lies beyond."""

WORST = 10
"""Tensors that the page shows with their worst group."""


@dataclass(frozen=True)
class TensorDetail:
    """What became of one tensor."""

    name: str
    """Its name."""
    shape: tuple[int, ...]
    """Its shape."""
    first: str
    """Its format or dtype in the first file."""
    second: str
    """Its format or dtype in the second file."""
    bits_per_weight: float
    """Bits per element in the second file, scales included."""
    nbytes: int
    """Bytes in the second file."""
    sha256: str
    """Hash of these bytes, part after part."""
    rmse: float | None
    """Root of the mean square of the errors; None where the tensor is the same to the byte, or no tensor of numbers."""
    max_abs_error: float | None
    """The largest error."""
    sqnr_db: float | None
    """Signal to noise in dB; infinite without errors."""
    cosine: float | None
    """Cosine of the angle between both."""
    saturated: int | None
    """Elements whose code is the outermost one and that lie beyond it."""
    group_size: int | None
    """Elements of the groups that ``histogram`` and ``worst_group`` speak of."""
    histogram: tuple[int, ...]
    """Groups by their signal to noise: one bin a dB from 0 up; groups of zeros and those without errors are not counted."""
    worst_group: tuple[int, ...] | None
    """Where the group of the lowest signal to noise is: its row, along all axes but that of the groups, and its number there."""
    worst_group_db: float | None
    """Its signal to noise."""
    lower_bound: float | None
    """No codes and scales of the format have a smaller mean squared error; see :class:`TensorComparison`, as for the three that follow."""
    excess: float | None
    """By how much the error is above that of the best codes and scales, as a part of it."""
    share_improved: float | None
    """The share of the groups whose error the best codes and scales make smaller."""
    weights: str | None
    """``"importance"`` where these three are weighted by it."""
    action: str | None
    """What the conversion did, if it is known; see :class:`TensorReport`."""
    reason: str | None
    """Why."""
    replaced: int
    """Elements that were not finite and were replaced."""
    seconds: float | None
    """How long the conversion took with it, if that is known."""


@dataclass(frozen=True)
class Report:
    """What a second file holds of a first. Made by :func:`report`."""

    first: str
    """The file that is the reference."""
    second: str
    """The file that is measured."""
    version: str
    """The version of this package."""
    bytes_first: int
    """Bytes of all tensors of the first file."""
    bytes_second: int
    """Bytes of all tensors of the second file."""
    bits_per_weight: float | None
    """Bits per element of all that is quantized in the second file."""
    sqnr_db: float | None
    """Signal to noise over all elements of tensors that changed, in dB."""
    missing: tuple[str, ...]
    """Names that only the first file has."""
    added: tuple[str, ...]
    """Names that only the second file has."""
    tensors: tuple[TensorDetail, ...]
    """Tensor by tensor, in the order of the first file."""

    def to_dict(self) -> dict[str, Any]:
        """Give everything as plain data for JSON. Numbers that are not finite are None."""
        return plain_data(self)

    def to_html(self) -> str:
        """Give a page that needs nothing else: tables, and pictures as SVG."""
        return _page(self)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write JSON, or a page where the name ends in ``.html``.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        path = Path(path)
        is_page = path.suffix.lower() in (".html", ".htm")
        path.write_text(self.to_html() if is_page else json.dumps(self.to_dict(), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def report(
    first: str | os.PathLike[str],
    second: str | os.PathLike[str],
    *,
    conversion: ConvertReport | None = None,
    comparison: FileComparison | None = None,
    progress: Progress | bool = False,
) -> Report:
    """Measure what a file holds of another, group by group. One tensor of each is in memory at a time.

    Parameters
    ----------
    first, second : path
        Files or folders; see :func:`open`. The first is the reference.
    conversion : ConvertReport, optional
        What :func:`convert` said when it made the second of the first: what was done to each tensor, and why.
    comparison : FileComparison, optional
        What :func:`compare_files` said of the two with ``optimum=True``: how far each tensor is from the smallest error of its format.
    progress : callable or bool
        As for :func:`convert`.

    Returns
    -------
    Report

    Raises
    ------
    CorruptFileError
        A file breaks the rules of its container.
    OSError
        A file cannot be read.

    Examples
    --------
    >>> import numpy as np, quantize as qz, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/weights.npy", np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64))
    ...     conversion = qz.convert(f"{folder}/weights.npy", f"{folder}/weights.safetensors")
    ...     measured = qz.report(f"{folder}/weights.npy", f"{folder}/weights.safetensors", conversion=conversion)
    >>> measured.tensors[0].worst_group, round(measured.tensors[0].worst_group_db, 1)
    ((0, 1), 24.3)
    """
    done = {tensor.name: tensor for tensor in conversion.tensors} if conversion else {}
    best = {tensor.name: tensor for tensor in comparison.tensors} if comparison else {}
    tensors: list[TensorDetail] = []
    squares = error_squares = 0.0
    with Checkpoint(first) as before, Checkpoint(second) as after, shown_progress(progress) as callback:
        total = sum(info.nbytes for info in before.tensors)
        infos = {info.name: info for info in after.tensors}
        read = 0
        for info in before.tensors:
            read += info.nbytes
            if info.name not in infos:
                continue
            own = after[info.name]
            digest, length = hashed(own)
            kinds = (info.format or info.dtype, infos[info.name].format or infos[info.name].dtype)
            x, y = reference(before, after, info.name), as_floats(own, infos[info.name].dtype)
            measured = _nothing()
            if x is not None and y is not None and x.shape == y.shape and x.size and kinds[0] != kinds[1]:
                measured = _measured(x, own if isinstance(own, QuantizedArray) else y, y, _groups(own, before, after, info))
                squares += float(np.square(x, dtype=np.float64).sum())
                error_squares += measured["rmse"] ** 2 * x.size
            step, beside = done.get(info.name), best.get(info.name)
            tensors.append(
                TensorDetail(
                    name=info.name,
                    shape=info.shape,
                    first=kinds[0],
                    second=kinds[1],
                    bits_per_weight=8 * length / max(info.size, 1),
                    nbytes=length,
                    sha256=digest,
                    lower_bound=None if beside is None else beside.lower_bound,
                    excess=None if beside is None else beside.excess,
                    share_improved=None if beside is None else beside.share_improved,
                    weights=None if beside is None else beside.weights,
                    action=step.action if step else None,
                    reason=step.reason if step else None,
                    replaced=step.replaced if step else 0,
                    seconds=step.seconds if step else None,
                    **measured,
                )
            )
            if callback is not None:
                callback(read, total, info.name)
        packed = [info for info in after.tensors if info.format]
        elements = sum(info.size for info in packed)
        return Report(
            first=str(before.path),
            second=str(after.path),
            version=__version__,
            bytes_first=total,
            bytes_second=sum(info.nbytes for info in after.tensors),
            bits_per_weight=8 * sum(info.nbytes for info in packed) / elements if elements else None,
            sqnr_db=_decibels(squares, error_squares) if squares or error_squares else None,
            missing=tuple(info.name for info in before.tensors if info.name not in infos),
            added=tuple(name for name in infos if name not in before),
            tensors=tuple(tensors),
        )


def _groups(own: QuantizedArray | NDArray[Any], before: Checkpoint, after: Checkpoint, info: TensorInfo) -> tuple[int, int] | None:
    """Give size and axis of the groups of a tensor: those that it has in the second file, else those that it had in the first."""
    if isinstance(own, QuantizedArray):
        return (own.group_size, own.axis) if isinstance(own.group_size, int) else None
    if not isinstance(info.group_size, int):
        return None
    axis = before.inputs_axis(info.name)
    axis = len(info.shape) - 1 if axis is None else axis
    return info.group_size, 1 - axis if is_turned(before, after, info.name) else axis


def _nothing() -> dict[str, Any]:
    fields = ("rmse", "max_abs_error", "sqnr_db", "cosine", "saturated", "group_size", "worst_group", "worst_group_db")
    return {**dict.fromkeys(fields), "histogram": ()}


def _measured(x: NDArray[Any], other: Any, y: NDArray[Any], grouped: tuple[int, int] | None) -> dict[str, Any]:
    whole = compare(x, other)
    found: dict[str, Any] = {
        **_nothing(),
        "rmse": whole.rmse,
        "max_abs_error": whole.max_abs_error,
        "sqnr_db": whole.sqnr_db,
        "cosine": whole.cosine,
        "saturated": whole.saturated,
    }
    if grouped is None:
        return found
    size, axis = grouped
    columns = x.shape[axis]
    if columns % size:
        return found
    x, y = np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1)
    groups = (*x.shape[:-1], columns // size, size)
    decibels = np.asarray(compare(x.reshape(groups), y.reshape(groups), axis=-1).sqnr_db)
    counted = decibels[np.isfinite(decibels)]
    found["group_size"] = size
    bins = np.clip(np.floor(counted), 0, BINS - 1).astype(np.int64)
    found["histogram"] = tuple(np.bincount(bins, minlength=BINS).tolist())
    if counted.size:
        lowest = np.unravel_index(int(np.argmin(np.where(np.isfinite(decibels), decibels, np.inf))), decibels.shape)
        found["worst_group"] = tuple(int(index) for index in lowest)
        found["worst_group_db"] = float(decibels[lowest])
    return found


def _decibels(squares: float, error_squares: float) -> float:
    if error_squares == 0:
        return math.inf
    return 10 * math.log10(squares / error_squares) if squares > 0 else -math.inf


_STYLE = """
:root { color-scheme: light dark; --text: #1c2430; --soft: #5b6675; --line: #d8dee6; --mark: #2f6fb3; --page: #ffffff }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e9f0; --soft: #9aa6b5; --line: #38424f; --mark: #6aa9e9; --page: #14181e }
}
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.15rem; margin-top: 2.2rem }
p { color: var(--soft) } code { font-size: .92em; overflow-wrap: anywhere }
.facts { display: flex; flex-wrap: wrap; gap: 1rem 2rem; margin: 1.2rem 0 }
.facts div { color: var(--soft) } .facts b { display: block; font-size: 1.35rem; color: var(--text) }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-size: .87rem }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; vertical-align: top }
th { color: var(--soft); font-weight: 500 } .text { text-align: left } th:first-child, td:first-child { padding-left: 0 }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 14rem }
svg { width: 100%; min-width: 760px; height: auto; display: block } svg text { fill: var(--soft); font: 12px system-ui, sans-serif }
.axis { stroke: var(--line) } .mark { fill: var(--mark) } circle { fill-opacity: .8 }
"""


def _page(found: Report) -> str:
    changed = [tensor for tensor in found.tensors if tensor.sqnr_db is not None]
    title = f"{Path(found.first).name} to {Path(found.second).name}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f"<p><code>{_text(found.first)}</code> against <code>{_text(found.second)}</code>, by quantize {found.version}</p>",
        _facts(found, len(changed)),
    ]
    if changed:
        body += ["<h2>Signal to noise by tensor</h2>", "<p>In the order of the file; higher is better.</p>", _by_tensor(changed)]
        histogram = [sum(counts) for counts in zip(*(tensor.histogram for tensor in changed if tensor.histogram), strict=True)]
        if any(histogram):
            body += ["<h2>Signal to noise of all groups</h2>", "<p>Groups by dB, one bar for each dB.</p>", _histogram(histogram)]
        worst = sorted(changed, key=lambda tensor: tensor.sqnr_db or 0.0)[:WORST]
        words = "tensor" if len(worst) == 1 else f"{len(worst)} tensors"
        body += [f"<h2>The {words} of the lowest signal to noise</h2>", "<p>A group is given by its row and its number there.</p>"]
        body.append(_table(_WORST_HEAD, map(_worst_row, worst), text={0, 1}))
        beside = [tensor for tensor in changed if tensor.excess is not None]
        if beside:
            body += ["<h2>Beside the smallest error</h2>", _OPTIMUM, _table(_OPTIMUM_HEAD, map(_optimum_row, beside), text={0, 1, 6})]
    body += ["<h2>Bits per weight</h2>", _bits(found)]
    kept = Counter((tensor.second, tensor.reason) for tensor in found.tensors if tensor.action in ("keep", "cast"))
    if kept:
        rows = [[kind, f"{count:,}", reason or ""] for (kind, reason), count in kept.most_common()]
        body += ["<h2>What was not quantized</h2>", _table(["dtype", "tensors", "why"], rows, text={0, 2})]
    for names, words in ((found.missing, "Only in the first file"), (found.added, "Only in the second file")):
        if names:
            body += [f"<h2>{words}</h2>", _table(["tensor"], [[name] for name in names])]
    body += ["<h2>All tensors</h2>", _table(_HEAD, map(_row, found.tensors), text={0, 2, 3, 11})]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{_text(title)}</title>'
    return f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head><body>\n' + "\n".join(body) + "\n</body></html>\n"


def _facts(found: Report, changed: int) -> str:
    percent = f" ({found.bytes_second / found.bytes_first:.1%})" if found.bytes_first else ""
    facts = [
        (f"{amount(found.bytes_first)} to {amount(found.bytes_second)}{percent}", "bytes of all tensors"),
        (f"{changed:,} of {len(found.tensors):,}", "tensors changed"),
    ]
    if found.bits_per_weight is not None:
        facts.append((f"{found.bits_per_weight:.2f}", "bits per weight where quantized"))
    if found.sqnr_db is not None:
        facts.append((_db(found.sqnr_db), "signal to noise of what changed"))
    return '<div class="facts">' + "".join(f"<div><b>{value}</b>{words}</div>" for value, words in facts) + "</div>"


_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 1000, 260, 56, 24


def _frame(marks: Sequence[str], ticks: Iterable[tuple[float, str]], below: Sequence[tuple[float, str]], label: str) -> str:
    lines = [
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH}" y1="{y:.1f}" y2="{y:.1f}"/><text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>'
        for y, text in ticks
    ]
    names = [f'<text x="{x:.1f}" y="{_HEIGHT - 6}" text-anchor="middle">{text}</text>' for x, text in below]
    drawn = "".join([*lines, *marks, *names])
    return f'<div class="wide"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{label}">{drawn}</svg></div>'


def _ticks(low: float, high: float) -> range:
    """Give round whole numbers, at most seven, the first and the last of which are the ends of an axis."""
    step = next(step for power in itertools.count() for step in (10**power, 2 * 10**power, 5 * 10**power) if 5 * step >= high - low)
    return range(math.floor(low / step) * step, math.ceil(high / step) * step + 1, step)


def _by_tensor(changed: Sequence[TensorDetail]) -> str:
    values = [tensor.sqnr_db for tensor in changed if tensor.sqnr_db is not None and math.isfinite(tensor.sqnr_db)]
    if not values:
        return "<p>No tensor lost anything.</p>"
    numbers = _ticks(math.floor(min(values) - 0.5), math.ceil(max(values) + 0.5))
    low, high = numbers[0], numbers[-1]
    radius = 3.5 if len(changed) <= 200 else 2

    def x_of(place: int) -> float:
        return _LEFT + 8 + (_WIDTH - _LEFT - 16) * (place + 0.5) / len(changed)

    def y_of(value: float) -> float:
        return 8 + (_HEIGHT - 16) * (high - value) / (high - low)

    marks = [
        f'<circle class="mark" cx="{x_of(place):.1f}" cy="{y_of(tensor.sqnr_db):.1f}" r="{radius}">'
        f"<title>{_text(tensor.name)}: {_db(tensor.sqnr_db)}, {tensor.second}</title></circle>"
        for place, tensor in enumerate(changed)
        if tensor.sqnr_db is not None and math.isfinite(tensor.sqnr_db)
    ]
    ticks = ((y_of(value), f"{value} dB") for value in numbers)
    return _frame(marks, ticks, [], "signal to noise of each tensor in dB")


def _histogram(counts: Sequence[int]) -> str:
    used = [place for place, count in enumerate(counts) if count]
    low, high = max(0, used[0] - 1), min(BINS, used[-1] + 2)
    numbers = _ticks(0, max(counts))
    width = (_WIDTH - _LEFT) / (high - low)

    def y_of(count: float) -> float:
        return 8 + (_HEIGHT - _BOTTOM - 8) * (1 - count / numbers[-1])

    marks: list[str] = []
    for place in range(low, high):
        if counts[place]:
            height = max(_HEIGHT - _BOTTOM - y_of(counts[place]), 1)  # one group of a million is to be seen
            x, y = _LEFT + (place - low) * width + 1, _HEIGHT - _BOTTOM - height
            words = f"{place} to {place + 1} dB: {counts[place]:,} groups"
            box = f'x="{x:.1f}" y="{y:.1f}" width="{width - 2:.1f}" height="{height:.1f}"'
            marks.append(f'<rect class="mark" {box}><title>{words}</title></rect>')
    every = max(1, (high - low) // 12)
    below = [(_LEFT + (place - low) * width, f"{place} dB") for place in range(low, high, every)]
    ticks = ((y_of(count), _short(count)) for count in numbers)
    return _frame(marks, ticks, below, "number of groups by their signal to noise in dB")


def _bits(found: Report) -> str:
    kinds: dict[str, list[int]] = {}
    for tensor in found.tensors:
        count = kinds.setdefault(tensor.second, [0, 0, 0])
        for place, value in enumerate((1, math.prod(tensor.shape), tensor.nbytes)):
            count[place] += value
    rows = [
        [kind, f"{tensors:,}", f"{elements:,}", amount(nbytes), f"{8 * nbytes / elements:.2f}" if elements else ""]
        for kind, (tensors, elements, nbytes) in sorted(kinds.items(), key=lambda item: -item[1][2])
    ]
    return _table(["format or dtype", "tensors", "elements", "bytes", "bits per element"], rows)


_WORST_HEAD = ["tensor", "format", "SQNR", "max error", "clipped", "worst group", "its SQNR"]
_HEAD = ["tensor", "shape", "before", "after", "bits", "RMSE", "max error", "SQNR", "cosine", "clipped", "replaced", "SHA-256"]


_OPTIMUM = """<p>No codes and scales of the format have a smaller mean squared error than the lower bound. The excess is how far above that of
the best ones the error is, improved are the groups in which these make it smaller. Tensors whose format has no proven search are not listed.</p>"""
_OPTIMUM_HEAD = ["tensor", "format", "SQNR", "lower bound", "excess", "improved", "weighted by"]


def _optimum_row(tensor: TensorDetail) -> list[str]:
    shares = [_percent(tensor.excess), _percent(tensor.share_improved)]
    return [tensor.name, tensor.second, _db(tensor.sqnr_db), _number(tensor.lower_bound), *shares, tensor.weights or "nothing"]


def _worst_row(tensor: TensorDetail) -> list[str]:
    where = "" if tensor.worst_group is None else ", ".join(map(str, tensor.worst_group))
    return [
        tensor.name,
        tensor.second,
        _db(tensor.sqnr_db),
        _number(tensor.max_abs_error),
        _count(tensor.saturated),
        where,
        _db(tensor.worst_group_db),
    ]


def _row(tensor: TensorDetail) -> list[str]:
    shape = " x ".join(map(str, tensor.shape)) or "scalar"
    cosine = "" if tensor.cosine is None else f"{tensor.cosine:.6f}"
    errors = [_number(tensor.rmse), _number(tensor.max_abs_error), _db(tensor.sqnr_db), cosine, _count(tensor.saturated)]
    replaced = f"{tensor.replaced:,}" if tensor.replaced else ""
    return [tensor.name, shape, tensor.first, tensor.second, f"{tensor.bits_per_weight:.2f}", *errors, replaced, tensor.sha256[:12]]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], text: AbstractSet[int] = frozenset({0})) -> str:
    """Make a table; the columns in ``text`` are of words, the others of numbers."""
    kinds = [' class="text"' if column in text else "" for column in range(len(head))]

    def line(row: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}{kind}>{_text(cell)}</{tag}>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"

    lines = "".join(line(row, "td") for row in rows)
    return f'<div class="wide"><table><thead>{line(head, "th")}</thead><tbody>{lines}</tbody></table></div>'


def _text(text: str) -> str:
    """Give what a file or a path is called as text of a page: no tags, and nothing that reverses or breaks the line."""
    return html.escape(printable(text))


def _db(value: float | None) -> str:
    if value is None:
        return ""
    return "exact" if value == math.inf else f"{value:.1f} dB"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:#.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else "infinite" if value == math.inf else f"{value:.1%}"


def _count(value: int | None) -> str:
    return "" if value is None else f"{value:,}"


def _short(count: int) -> str:
    return f"{count:,}" if count < 10**6 else f"{count / 10**6:,g} M"
