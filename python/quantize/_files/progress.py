"""What is told of long work while it is done."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeAlias

from quantize._types import amount

Progress: TypeAlias = Callable[[int, int, str], object]
"""Called with the bytes that are done, the bytes in all, and the name of the tensor at hand. An exception stops the work."""


@contextmanager
def shown_progress(progress: Progress | bool) -> Generator[Progress | None]:
    """Give the callback that shows progress: the caller's own, or a bar if the standard error is a terminal."""
    if callable(progress):
        yield progress
        return
    if not progress or not sys.stderr.isatty():
        yield None
        return
    try:
        tqdm: Any = import_module("tqdm").tqdm
    except ImportError:
        line = _Line()
        try:
            yield line
        finally:
            line.clear()
        return
    with tqdm(unit="B", unit_scale=True, leave=False, file=sys.stderr) as bar:

        def show(done: int, total: int, name: str) -> None:
            bar.total = total
            bar.set_description(printable(name)[-50:], refresh=False)
            bar.update(done - bar.n)

        yield show


class _Line:
    """One line on a terminal, rewritten at most ten times a second."""

    def __init__(self) -> None:
        self._next = 0.0

    def __call__(self, done: int, total: int, name: str) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + 0.1
            self._write(f"{done / max(total, 1):4.0%} of {amount(total)}  {printable(name)[-50:]}")

    def clear(self) -> None:
        self._write("")

    def _write(self, text: str) -> None:
        width = shutil.get_terminal_size().columns
        sys.stderr.write(f"\r{text[: width - 1]:{width - 1}}\r")
        sys.stderr.flush()


def printable(name: str) -> str:
    """Give a name from a file without what a terminal would act on."""
    return name if name.isprintable() else repr(name)[1:-1]
