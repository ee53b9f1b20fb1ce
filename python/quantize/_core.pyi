"""The compiled core. Not for callers: its functions change without notice."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias, final

import numpy as np
from numpy.typing import NDArray

from quantize._types import GroupSize

# format, shape, axis, group_size, scale_dtype, options
_Tensor: TypeAlias = tuple[str, tuple[int, ...], int, int | str, str, dict[str, Any]]
_Parts: TypeAlias = dict[str, NDArray[Any]]
_Quantized: TypeAlias = tuple[_Tensor, _Parts]

__version__: str

class QuantizeWarning(UserWarning):
    """Something was done otherwise than asked, and is right: elements replaced, threads or an instruction set missing."""

class LossyConversionError(ValueError):
    """The target format cannot hold the same values; ``requantize=True`` goes through floats."""

class CorruptFileError(ValueError):
    """A file breaks the rules of its container, or a tensor in it those of its format. Nothing was read from that."""

class PolicyError(ValueError):
    """A tensor of a file cannot be converted under the policy that was chosen. No file was written."""

def quantize(
    array: NDArray[Any],
    bits: bool,
    format: str,
    axis: int,
    group_size: int | str | None,
    scale_dtype: str | None,
    options: dict[str, Any] | None,
    method: str,
    importance: NDArray[Any] | str | None,
    importance_bits: bool,
    tolerance: float | None,
    clip_limit: float | None,
    nonfinite: str,
    out: _Parts | None,
    threads: int | None,
) -> _Quantized: ...
def dequantize(tensor: _Tensor, parts: _Parts, dtype: str, out: NDArray[Any] | None, threads: int | None) -> NDArray[Any]: ...
def groups(
    tensor: _Tensor, parts: _Parts, codes: bool
) -> tuple[NDArray[np.int8] | None, NDArray[np.float32], NDArray[np.float32] | None]: ...
def repack(
    tensor: _Tensor,
    parts: _Parts,
    format: str,
    group_size: GroupSize | None,
    scale_dtype: str | None,
    options: dict[str, Any] | None,
    requantize: bool,
    threads: int | None,
) -> _Quantized: ...
def from_parts(
    format: str,
    parts: _Parts,
    shape: tuple[int, ...] | None,
    axis: int,
    group_size: int | str | None,
    scale_dtype: str | None,
    options: dict[str, Any] | None,
) -> _Quantized: ...
def part_shapes(tensor: _Tensor) -> list[tuple[int, ...]]: ...
def pack(codes: NDArray[Any], signed: bool, out: NDArray[Any] | None, threads: int | None) -> tuple[NDArray[np.uint8], int | None]: ...
def unpack(packed: NDArray[Any], count: int, signed: bool, out: NDArray[Any] | None, threads: int | None) -> NDArray[Any]: ...
def compare(
    reference: NDArray[Any],
    reference_bits: bool,
    other: NDArray[Any],
    other_bits: bool,
    axis: int | None,
    threads: int | None,
) -> NDArray[np.float64]: ...
def gptq(
    weight: NDArray[Any],
    bits: bool,
    hessian: Hessian,
    format: str,
    group_size: int | str | None,
    scale_dtype: str | None,
    options: dict[str, Any] | None,
    method: str,
    damping: float,
    order: str,
    refine: int,
    threads: int | None,
) -> _Quantized: ...
def output_error(
    weight: NDArray[Any], weight_bits: bool, other: NDArray[Any], other_bits: bool, hessian: Hessian, threads: int | None
) -> float: ...
def from_dlpack(capsule: object) -> tuple[NDArray[Any], bool]: ...
def formats() -> list[tuple[Any, ...]]: ...
def cpu_features() -> tuple[str, list[str]]: ...
def _panic_for_tests(in_pool: bool) -> None: ...

@final
class Hessian:
    """Sums of x x^T."""

    def __new__(cls, n: int) -> Self: ...
    @staticmethod
    def from_matrix(matrix: NDArray[Any], bits: bool) -> Hessian: ...
    def update(self, inputs: NDArray[Any], bits: bool, argument: str, threads: int | None) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def count(self) -> int: ...
    @property
    def diagonal(self) -> NDArray[np.float64]: ...
    @property
    def matrix(self) -> NDArray[np.float64]: ...

@final
class File:
    """An open file."""

    def __new__(cls, path: str) -> Self: ...
    @property
    def container(self) -> str: ...
    @property
    def metadata(self) -> dict[str, Any]: ...
    def tensors(self) -> list[tuple[str, str, list[int], int, _Tensor | None]]: ...
    @property
    def unread(self) -> str | None: ...
    def step(self, index: int) -> int: ...
    def blocks(self, index: int, elements: int) -> list[tuple[int, int]]: ...
    def read_rows(
        self, index: int, first: int, count: int
    ) -> tuple[_Tensor | None, list[tuple[str, NDArray[np.uint8], str, tuple[int, ...]]]]: ...
    def read(self, index: int) -> list[tuple[str, NDArray[np.uint8], str, tuple[int, ...]]]: ...

def name_map(text: bytes) -> dict[str, str]: ...
def convert(
    source: str,
    target: str | None,
    format: str | None,
    group_size: int | str | None,
    scale_dtype: str | None,
    options: dict[str, Any] | None,
    method: str,
    clip_limit: float | None,
    importance: str | None,
    nonfinite: str,
    include: list[str],
    exclude: list[str],
    keep: list[str],
    rules: Sequence[tuple[str, tuple[str, int | str | None, str | None, dict[str, Any] | None] | None]],
    fallback: str | None,
    requantize: bool,
    arch: str | None,
    names: dict[str, str],
    shard_size: int | None,
    memory_limit: int,
    work: str,
    shards: list[int],
    overwrite: bool,
    threads: int | None,
    progress: Callable[[int, int, str], object] | None,
) -> tuple[list[tuple[Any, ...]], int, tuple[str, list[str], list[int]] | None, Path | None]: ...
def verify_file(
    path: str, against: str | None, threads: int | None, progress: Callable[[int, int, str], object] | None
) -> list[tuple[Any, ...]]: ...
def compare_files(
    reference: str, other: str, threads: int | None, progress: Callable[[int, int, str], object] | None
) -> list[tuple[Any, ...]]: ...
