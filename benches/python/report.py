"""The figures of peers.py as rows of a table, as Markdown and as a chart.

As a script it writes both from the files that ``peers.py --json`` left; see ``--help``.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from peer import OURS

HEADERS = ["format", "what", "who", "threads", "output", "GB/s", "limit", "ratio", "we are", "check"]
MARK = "<!-- Made by benches/python/report.py from here on. -->"
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


def size_name(nbytes: int) -> str:
    """Return the bytes in the largest unit that they fill."""
    power = max(power for power in (10, 20, 30) if nbytes >= 2**power)
    return f"{nbytes / 2**power:g} {'KMG'[power // 10 - 1]}iB"


def gigabytes(row: dict[str, Any], key: str, nbytes: int) -> float:
    """Return the speed that these seconds are."""
    return nbytes / row[key] / 1e9


def markdown(figures: dict[str, Any]) -> str:
    """Return the machine, the versions, and a table for each size that has ours in the row of each peer."""
    lines = ["Machine: " + ", ".join(f"{name} {value}" for name, value in figures["machine"].items()) + ".", ""]
    lines.append("Peers: " + ", ".join(f"{name} {state}" for name, state in figures["peers"].items()) + ".")
    for size, rows in figures["sizes"].items():
        nbytes = int(size)
        lines += [f"\n### {size_name(nbytes)} of float32\n"]
        lines.append("| format | job | peer | threads | output | peer, GB/s | ours, GB/s | we are | peer, ratio | ours, ratio | check |")
        lines.append("|---|---|---|---:|---|---:|---:|---:|---:|---:|---|")
        for peer, ours in pairs(rows):
            numbers = [f"{gigabytes(peer, 'seconds', nbytes):.3f}", f"{gigabytes(ours, 'seconds', nbytes):.2f}", f"{peer['slower']:.1f} x"]
            ratios = [f"{peer['ratio']:.3f}", f"{ours['ratio']:.2f}"]
            row = [peer["format"], peer["what"], who(peer), str(peer["threads"]), peer["output"], *numbers, *ratios, peer["check"]]
            lines.append("| " + " | ".join(row) + " |")
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
    title = f"{size_name(nbytes)} of float32 to 4 bits and back\n{machine['cpu']}, {machine['threads']} cores, {machine['level']}"
    figure.suptitle(title, fontsize=10)
    figure.savefig(file, dpi=110)
    plt.close(figure)
    with Image.open(file) as image:
        image.convert("RGB").quantize(64).save(file, optimize=True)  # a quarter of the bytes


def pairs(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the row of each peer with ours beside it."""
    same = ("format", "what", "threads", "output")
    ours = {tuple(row[key] for key in same): row for row in rows if row["peer"] == OURS}
    return [(row, ours[tuple(row[key] for key in same)]) for row in rows if row["peer"] != OURS]


def bars(rows: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the fastest of these pairs for each peer, the fastest peer first."""
    best: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {}
    for peer, ours in sorted(pairs(rows), key=lambda pair: pair[0]["seconds"]):
        best.setdefault(peer["peer"], (peer, ours))
    return list(best.values())


def label(row: dict[str, Any]) -> str:
    """Return who does which format on how many threads."""
    threads = "1 thread" if row["threads"] == 1 else f"{row['threads']} threads"
    return f"{who(row)}\n{row['format']}, {threads}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("figures", type=Path, nargs="+", help="what peers.py --json wrote; rows of later files are added to the first")
    parser.add_argument("--markdown", type=Path, help="file whose text after the mark is replaced by tables")
    parser.add_argument("--png", help="file for the chart of the first size")
    options = parser.parse_args()
    figures, *more = (json.loads(file.read_text()) for file in options.figures)
    for other in more:
        figures["peers"] |= other["peers"]
        for size, rows in other["sizes"].items():
            figures["sizes"].setdefault(size, []).extend(rows)
    if options.markdown:
        head, mark, _ = options.markdown.read_text().partition(MARK)
        options.markdown.write_text(head + mark + "\n\n" + markdown(figures))
    if options.png:
        draw(figures, options.png)


if __name__ == "__main__":
    main()
