"""How many threads the caller asked for: by a context, else for the whole process."""

from __future__ import annotations

import operator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator
    from contextlib import AbstractContextManager

_context: ContextVar[int | None] = ContextVar("quantize.threads", default=None)
_process: int | None = None


def requested(threads: int | None) -> int | None:
    """Return the number that holds for a call: its own, the context's or the process's; None leaves it to the environment."""
    if threads is not None:
        return threads
    threads = _context.get()
    return _process if threads is None else threads


def _checked(count: int) -> int:
    count = operator.index(count)
    if count < 1:
        raise ValueError(f"threads is {count}; expected 1 or more")
    return count


def set_threads(count: int | None) -> None:
    """Set how many threads the calls of this process may use.

    Stronger are ``threads=`` of a call and :func:`threads`. Weaker, and read at every call, are the variables
    ``QUANTIZE_NUM_THREADS``, ``RAYON_NUM_THREADS`` and ``OMP_NUM_THREADS``, then the CPUs that the process may run on
    and its cgroup's quota. The bytes of a result never depend on the number.

    Parameters
    ----------
    count : int or None
        At least 1. None takes the setting back.

    Raises
    ------
    ValueError
        ``count`` is below 1.

    Examples
    --------
    >>> import quantize as qz
    >>> qz.set_threads(2)
    >>> qz.set_threads(None)
    """
    global _process
    _process = None if count is None else _checked(count)


def threads(count: int) -> AbstractContextManager[None]:
    """Limit the threads of calls inside a ``with`` block, in this thread or task only.

    Parameters
    ----------
    count : int
        At least 1.

    Raises
    ------
    ValueError
        ``count`` is below 1.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> with qz.threads(1):
    ...     q = qz.quantize(np.ones((2, 64), np.float32))
    """
    return _limit(_checked(count))


@contextmanager
def _limit(count: int) -> Generator[None]:
    token = _context.set(count)
    try:
        yield
    finally:
        _context.reset(token)
