"""Conversion of a file beside copying it: how long it takes, and how much memory.

A checkpoint of bfloat16 is written once, then it is read, copied and converted in turn, from the page cache. The ratio is the slower of reading
and copying its bytes, over the conversion, which reads them, quantizes, measures the error and writes. Each conversion runs in a process of its
own, whose largest resident memory is shown beside the estimate of the plan; that of the interpreter alone comes first.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import quantize as qz

ROWS, COLUMNS = 8192, 4096

CHILD = """
import json, sys, time
from pathlib import Path
import quantize as qz
def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024
qz.open
before = peak()
start = time.perf_counter()
report = qz.convert(sys.argv[1], sys.argv[2], overwrite=True, **json.loads(sys.argv[3]))
print(json.dumps([time.perf_counter() - start, peak(), before, report.memory / 2**20]))
"""

WANTED = ({"format": "int4"}, {"format": "gguf:q4_0"}, {"format": "gptq"}, {"format": "awq"}, {"format": "int4", "memory_limit": 32 << 20})


def checkpoint(path: Path, mebibytes: int) -> None:
    """Write matrices of bfloat16: the bits of bell-shaped numbers."""
    count = max(1, mebibytes * 2**20 // (2 * ROWS * COLUMNS))
    bits = (np.random.default_rng(0).standard_normal((ROWS, COLUMNS), np.float32).view(np.uint32) >> 16).astype(np.uint16)
    header, size = {}, bits.nbytes
    for number in range(count):
        header[f"layers.{number}.weight"] = {
            "dtype": "BF16",
            "shape": [ROWS, COLUMNS],
            "data_offsets": [number * size, (number + 1) * size],
        }
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _ in range(count):
            file.write(bits.data)


def seconds(work: Callable[[], object]) -> float:
    """Return the seconds of one call, after which the disk is at rest: what it leaves to be written would slow the next one down."""
    start = time.perf_counter()
    work()
    took = time.perf_counter() - start
    os.sync()
    return took


def read(path: Path) -> None:
    """Read a file into one buffer, 16 MiB at a time."""
    buffer = bytearray(16 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass


def child(*arguments: str) -> list[float]:
    """Convert in a process of its own: seconds, largest memory, that before the conversion, the estimate."""
    done = subprocess.run([sys.executable, "-c", CHILD, *arguments], capture_output=True, text=True, check=True)
    os.sync()
    found: list[float] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=1024, metavar="MIB", help="of the checkpoint (default: 1024)")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, copy, out = (Path(folder) / name for name in ("model.safetensors", "copy", "out.safetensors"))
        checkpoint(source, options.size)
        times: dict[str, list[float]] = {"read": [], "copy": []}
        memory: dict[str, list[float]] = {}
        for _ in range(options.repeats):
            times["read"].append(seconds(lambda: read(source)))
            times["copy"].append(seconds(lambda: shutil.copyfile(source, copy)))
            for wanted in WANTED:
                name = ", ".join(str(value) for value in wanted.values())
                spent, after, before, estimate = child(str(source), str(out), json.dumps(wanted))
                times.setdefault(name, []).append(spent)
                memory[name] = [after, before, estimate]
        size = source.stat().st_size
    limit = max(statistics.median(times["read"]), statistics.median(times["copy"]))
    print(f"quantize {qz.__version__}, {qz.cpu_features().level}, {size / 2**20:.0f} MiB of bfloat16, {options.repeats} repeats")
    print(f"{'':24} {'median s':>9} {'min s':>7} {'GB/s':>6} {'ratio':>6} {'MiB':>6} {'before':>6} {'estimate':>8}")
    for name, taken in times.items():
        median = statistics.median(taken)
        figures = f"{name:24} {median:9.2f} {min(taken):7.2f} {size / median / 1e9:6.2f}"
        if name in memory:
            after, before, estimate = memory[name]
            figures += f" {limit / median:6.2f} {after:6.0f} {before:6.0f} {estimate:8.0f}"
        print(figures)


if __name__ == "__main__":
    main()
