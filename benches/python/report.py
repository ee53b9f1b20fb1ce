"""The figures of peers.py as rows of a table, as Markdown and as a chart.

As a script: ``report.py FIGURES.json --markdown FILE --png FILE`` writes both from the file that ``peers.py --json`` left.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from peer import OURS

HEADERS = ["format", "what", "who", "threads", "output", "GB/s", "limit", "ratio", "we are", "check"]
OURS_COLOUR, PEER_COLOUR, LIMIT_COLOUR = "#1f6f8b", "#c9c9c9", "#b03a2e"


def cells(rows: list[dict[str, Any]], nbytes: int) -> list[list[str]]:
    """Return the rows as text."""
    table = []
    for row in rows:
        speed, limit = (f"{gigabytes(row, key, nbytes):.2f}" for key in ("seconds", "limit"))
        faster = "" if row["peer"] == OURS else f"{row['slower']:.1f} x"
        table.append(
            [
                row["format"],
                row["what"],
                who(row),
                str(row["threads"]),
                row["output"],
                speed,
                limit,
                f"{row['ratio']:.3f}",
                faster,
                row["check"],
            ]
        )
    return table


def who(row: dict[str, Any]) -> str:
    """Return whose row it is, and what there is to know."""
    return f"{row['peer']} ({row['note']})" if row["note"] else row["peer"]


def gigabytes(row: dict[str, Any], key: str, nbytes: int) -> float:
    """Return the speed that these seconds are."""
    return nbytes / row[key] / 1e9


def markdown(figures: dict[str, Any]) -> str:
    """Return a table for each size."""
    lines = []
    for nbytes, rows in figures["sizes"].items():
        lines += [f"\n## {int(nbytes) / 2**20:g} MiB of float32\n", "| " + " | ".join(HEADERS) + " |"]
        lines.append("|---|---|---|---:|---|---:|---:|---:|---:|---|")
        lines += ["| " + " | ".join(row) + " |" for row in cells(rows, int(nbytes))]
    return "\n".join(lines) + "\n"


def draw(figures: dict[str, Any], file: str) -> None:
    """Draw who encodes and decodes how fast: each peer at its best, and ours on the same format, threads and kind of output."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt
    from PIL import Image

    nbytes, rows = next((int(size), rows) for size, rows in figures["sizes"].items())
    panels = {what: bars([row for row in rows if row["what"] == what]) for what in ("encode", "decode")}
    heights = [len(pairs) + 1.2 for pairs in panels.values()]
    figure, axes = plt.subplots(2, 1, figsize=(8, 0.36 * sum(heights) + 1.3), height_ratios=heights, layout="constrained", sharex=True)
    for axis, (what, pairs) in zip(axes, panels.items(), strict=True):
        for at, (peer, ours) in enumerate(pairs):
            for row, offset, colour in ((ours, -0.2, OURS_COLOUR), (peer, 0.2, PEER_COLOUR)):
                speed = gigabytes(row, "seconds", nbytes)
                axis.barh(at + offset, speed, 0.38, color=colour)
                axis.text(speed + 0.15, at + offset, f"{speed:.2g}" if speed < 10 else f"{speed:.0f}", va="center", fontsize=7)
        limit = statistics.median(gigabytes(row, "limit", nbytes) for row in rows if row["what"] == what)
        axis.axvline(limit, color=LIMIT_COLOUR, linewidth=1)
        axis.text(limit, -0.75, f"the machine's limit {limit:.0f} ", color=LIMIT_COLOUR, fontsize=8, ha="right", va="center")
        axis.set_yticks(range(len(pairs)), [label(peer) for peer, _ in pairs], fontsize=7)
        axis.set_ylim(len(pairs) - 0.4, -1.1)
        axis.set_title(what.capitalize(), loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("GB/s of float32 (longer is better)")
    patches = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in (OURS_COLOUR, PEER_COLOUR)]
    names = ["quantize: same format, threads and kind of output", "the peer"]
    figure.legend(patches, names, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    machine = figures["machine"]
    title = f"{nbytes / 2**20:g} MiB of float32 to 4 bits and back\n{machine['cpu']}, {machine['threads']} cores, {machine['level']}"
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    with Image.open(file) as image:
        image.convert("RGB").quantize(64).save(file, optimize=True)  # a quarter of the bytes


def bars(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the fastest row of each peer, with ours beside it, the fastest peer first."""
    best: dict[str, dict[str, Any]] = {}
    for row in sorted(rows, key=lambda row: row["seconds"]):
        if row["peer"] != OURS:
            best.setdefault(row["peer"], row)
    same = ("format", "threads", "output")
    return [
        (peer, next(row for row in rows if row["peer"] == OURS and all(row[key] == peer[key] for key in same))) for peer in best.values()
    ]


def label(row: dict[str, Any]) -> str:
    """Return who does which format on how many threads."""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"{who(row)}\n{row['format']}, {threads}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, nargs="+", help="what peers.py --json wrote; rows of later files are added to the first")
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--png")
    options = parser.parse_args()
    figures, *more = (json.loads(file.read_text()) for file in options.figures)
    for other in more:
        figures["peers"] |= other["peers"]
        for size, rows in other["sizes"].items():
            figures["sizes"].setdefault(size, []).extend(rows)
    if options.markdown:
        options.markdown.write_text(markdown(figures))
    if options.png:
        draw(figures, options.png)


if __name__ == "__main__":
    main()
