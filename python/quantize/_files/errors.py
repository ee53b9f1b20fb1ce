"""What reports are made of: the numbers that errors are told by, hashes, plain data."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from quantize._types import QuantizedArray

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Errors(NamedTuple):
    """The sums that errors are made of, as the core gives them."""

    elements: int
    error_squares: float
    squares: float
    other_squares: float
    products: float
    max_abs_error: float

    @property
    def rmse(self) -> float:
        """Root of the mean square of the errors."""
        return math.sqrt(self.error_squares / max(self.elements, 1))

    @property
    def sqnr_db(self) -> float:
        """Signal to noise in dB."""
        return _sqnr_db(self.squares, self.error_squares)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between both; 1 where both are zero."""
        lengths = math.sqrt(self.squares) * math.sqrt(self.other_squares)
        return self.products / lengths if lengths else float(self.squares == self.other_squares)


def _sqnr_db(squares: float, error_squares: float) -> float:
    """10 * log10(sum(reference^2) / sum(error^2)), infinite without errors."""
    if error_squares == 0:
        return math.inf
    ratio = squares / error_squares
    return 10 * math.log10(ratio) if ratio > 0 else -math.inf if ratio == 0 else math.nan


def overall(named: Sequence[tuple[str, Errors]]) -> tuple[float | None, str | None]:
    """Give the SQNR over all tensors and the name of the worst, passing over those that held NaN or infinities."""
    measured = [(name, errors) for name, errors in named if math.isfinite(errors.error_squares)]
    if not measured:
        return None, None
    overall = _sqnr_db(sum(errors.squares for _, errors in measured), sum(errors.error_squares for _, errors in measured))
    return overall, min(measured, key=lambda pair: pair[1].sqnr_db)[0]


def plain_data(report: Any) -> dict[str, Any]:
    """Give a report as plain data, with None in place of numbers that JSON does not have."""
    plain = dataclasses.asdict(report)
    plain["tensors"] = [_finite(tensor) for tensor in plain["tensors"]]
    return _finite(plain)


def _finite(fields: dict[str, Any]) -> dict[str, Any]:
    return {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in fields.items()}


def json_numbers(value: Any) -> Any:
    """Give plain data with None in place of numbers that JSON does not have."""
    return json.loads(json.dumps(value), parse_constant=lambda _: None)


def hashed(array: QuantizedArray | NDArray[Any]) -> tuple[str, int]:
    """Hash the bytes of an array, or of its parts in their order; and count them."""
    digest = hashlib.sha256()
    length = 0
    for part in array.parts.values() if isinstance(array, QuantizedArray) else (array,):
        data = np.ascontiguousarray(part)
        digest.update(data.reshape(-1).view(np.uint8).data)
        length += data.nbytes
    return digest.hexdigest(), length
