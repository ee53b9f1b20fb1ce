"""Error feedback: weights that are quantized for the inputs that a layer sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np

from quantize import _core
from quantize._api import floats, quantize
from quantize._threads import requested
from quantize._types import GroupSize, QuantizedArray, SupportsDLPack, float_dtype, wrap

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike, NDArray


class Hessian:
    """E[x x^T] of the inputs x of a layer, gathered batch by batch.

    Inputs are float32, or become it; products and sums are float64, one sum an element over all rows in order. So it does not
    matter how the rows come in batches, nor on how many threads or which CPU.

    Parameters
    ----------
    n : int
        Inputs of the layer: the last axis of its weight. It takes ``8 * n * n`` bytes.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> h = qz.Hessian(3)
    >>> h.update([[1.0, 0.0, 2.0], [3.0, 0.0, 0.0]])
    >>> h
    Hessian(n=3, count=2)
    >>> h.diagonal
    array([5., 0., 2.])
    """

    __slots__ = ("_core",)

    def __init__(self, n: int) -> None:
        self._core = _core.Hessian(n)

    @classmethod
    def from_matrix(cls, matrix: ArrayLike | SupportsDLPack) -> Hessian:
        """Make one of a matrix that is known.

        Parameters
        ----------
        matrix : (n, n) float16, bfloat16, float32 or float64
            E[x x^T]: finite, and symmetric up to 1e-5 of its largest element. The part above the diagonal counts.

        Returns
        -------
        Hessian
            Its ``count`` is 1.

        Raises
        ------
        ValueError
            The matrix is not square, not finite or not symmetric.
        """
        made = cls.__new__(cls)
        made._core = _core.Hessian.from_matrix(*floats(matrix, None, "matrix"))
        return made

    def update(self, inputs: ArrayLike | SupportsDLPack, *, threads: int | None = None) -> None:
        """Take in a batch.

        Parameters
        ----------
        inputs : (..., n) float16, bfloat16, float32 or float64
            What goes into the layer. After an exception of a signal, such as KeyboardInterrupt, the rows up to some place are taken in.
        threads : int, optional
            At most so many threads; see :func:`set_threads`.

        Raises
        ------
        ValueError
            The last axis is not ``n``, or an element is not finite; then no row is taken in.
        TypeError
            The array is not of floats or is on another device.
        """
        _take_in(self._core, inputs, "inputs", threads)

    @property
    def n(self) -> int:
        """Inputs of the layer."""
        return self._core.n

    @property
    def count(self) -> int:
        """Rows that were taken in."""
        return self._core.count

    @property
    def diagonal(self) -> NDArray[np.float64]:
        """E[x^2], of shape (n,): the ``importance`` of :func:`quantize` where feedback is not wanted."""
        return self._core.diagonal

    @property
    def matrix(self) -> NDArray[np.float64]:
        """E[x x^T], of shape (n, n)."""
        return self._core.matrix

    def __repr__(self) -> str:
        return f"Hessian(n={self.n}, count={self.count})"


class HeldOut(NamedTuple):
    """Feedback beside scales of the smallest error weighted by E[x^2], on inputs that neither saw."""

    feedback: QuantizedArray
    """By feedback."""
    alone: QuantizedArray
    """By ``quantize(..., method="optimal", importance=hessian.diagonal)``."""
    feedback_error: float
    """:func:`output_error` of the one on the inputs that were held out."""
    alone_error: float
    """That of the other."""

    @property
    def better(self) -> Literal["feedback", "alone"]:
        """Which of the two has the smaller error."""
        return "alone" if self.alone_error < self.feedback_error else "feedback"

    @property
    def best(self) -> QuantizedArray:
        """The one that has it."""
        return self.alone if self.better == "alone" else self.feedback


@overload
def gptq(
    weight: ArrayLike | SupportsDLPack,
    hessian_or_inputs: Hessian | ArrayLike | SupportsDLPack,
    *,
    format: str = ...,
    group_size: GroupSize | None = ...,
    scale_dtype: DTypeLike | Literal["bfloat16"] | None = ...,
    method: Literal["optimal", "nearest"] = ...,
    damping: float = ...,
    order: Literal["natural", "activation"] = ...,
    refine: int = ...,
    held_out: None = None,
    threads: int | None = ...,
    **options: object,
) -> QuantizedArray: ...
@overload
def gptq(
    weight: ArrayLike | SupportsDLPack,
    hessian_or_inputs: Hessian | ArrayLike | SupportsDLPack,
    *,
    format: str = ...,
    group_size: GroupSize | None = ...,
    scale_dtype: DTypeLike | Literal["bfloat16"] | None = ...,
    method: Literal["optimal", "nearest"] = ...,
    damping: float = ...,
    order: Literal["natural", "activation"] = ...,
    refine: int = ...,
    held_out: Hessian | ArrayLike | SupportsDLPack,
    threads: int | None = ...,
    **options: object,
) -> HeldOut: ...
def gptq(
    weight: ArrayLike | SupportsDLPack,
    hessian_or_inputs: Hessian | ArrayLike | SupportsDLPack,
    *,
    format: str = "int4",
    group_size: GroupSize | None = None,
    scale_dtype: DTypeLike | Literal["bfloat16"] | None = None,
    method: Literal["optimal", "nearest"] = "optimal",
    damping: float = 0.01,
    order: Literal["natural", "activation"] = "natural",
    refine: int = 0,
    held_out: Hessian | ArrayLike | SupportsDLPack | None = None,
    threads: int | None = None,
    **options: object,
) -> QuantizedArray | HeldOut:
    """Quantize the weight of a layer so that its outputs change little: what a column loses the columns after it make up for.

    ``docs/feedback.md`` has the formulas, what it is worth, and where it did harm.

    Parameters
    ----------
    weight : (..., n) float16, bfloat16, float32 or float64
        Rows that are multiplied with the inputs, (N, K) of a linear layer.
    hessian_or_inputs : Hessian or (..., n) floats
        The inputs of the layer on a few thousand tokens of calibration, gathered in a :class:`Hessian` or as they are.
    format : str
        A symmetric format, or one with a zero point or a minimum a group: ``int4``, ``uint4``, ``gptq``, ``gptq:v2``, ``awq``,
        ``onnx:matmulnbits``, ``onnx:qdq``, ``compressed-tensors``, ``gguf:q4_0``, ``gguf:q4_1``, ``mlx``, ``hqq``.
    group_size, scale_dtype
        As in :func:`quantize`; groups of a whole tensor are not taken.
    method : "optimal" or "nearest"
        Where scales come from when the sweep comes to a group: a search for the smallest error, each column weighted by how much
        its losses count; or the rule of the format, which is plain GPTQ.
    damping : float
        What is added to the diagonal of the Hessian, as a part of its mean.
    order : "natural" or "activation"
        Sweep columns as they are, or by falling E[x^2]. ``gptq`` and ``gptq:v2`` store which group a column is in, so that their
        groups follow that order; in other formats they stay, and their scales are chosen before the sweep.
    refine : int
        Rounds of refinement after the sweep, each about twice the work of it: the best scale of a group for its codes, then the
        best codes for the scale, in turn. The loss on the calibration never rises; 4 rounds give most of what there is.
    held_out : Hessian or (..., n) floats, optional
        Inputs to judge by, from another text than the calibration.
    threads : int, optional
        At most so many threads; see :func:`set_threads`. The bytes do not depend on it.
    **options
        Options of the format, as in :func:`quantize`.

    Returns
    -------
    QuantizedArray
        Or, with ``held_out``, a :class:`HeldOut`: this one, the one without feedback, and the errors of both.

    Raises
    ------
    ValueError
        A format or group size that is not taken, an element that is not finite, inputs of another length, a column that no input
        reached, a Hessian that is not positive definite with this damping, a scale beyond its dtype.
    TypeError
        Arrays that are not of floats, an option that the format lacks.
    MemoryError
        The Hessian, its factor or the parts cannot be allocated.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> random = np.random.default_rng(0)
    >>> w = random.standard_normal((32, 64), np.float32)
    >>> x = random.standard_normal((2000, 64), np.float32) @ random.standard_normal((64, 64), np.float32)
    >>> h = qz.Hessian(64)
    >>> h.update(x[:1000])
    >>> q = qz.gptq(w, h, format="gguf:q4_0")
    >>> plain = qz.quantize(w, "gguf:q4_0")
    >>> qz.output_error(w, q, x[1000:]) < 0.7 * qz.output_error(w, plain, x[1000:])
    True
    """
    found, bits = floats(weight, None, "weight")
    scale_name, view = (None, found.dtype if found.dtype.kind == "V" else None) if scale_dtype is None else float_dtype(scale_dtype)
    hessian = _sums(hessian_or_inputs, found, "hessian_or_inputs", threads)
    how = (method, damping, order, refine)
    tensor, parts = _core.gptq(found, bits, hessian, format, group_size, scale_name, options or None, *how, requested(threads))
    q = wrap(tensor, parts, view)
    if held_out is None:
        return q
    given: Any = {"group_size": group_size, "scale_dtype": scale_dtype, "threads": threads, **options}
    alone = quantize(weight, format, method="optimal", importance=hessian.diagonal, **given)
    judge = _sums(held_out, found, "held_out", threads)
    errors = [_core.output_error(found, bits, each.dequantize(threads=threads), False, judge, requested(threads)) for each in (q, alone)]
    return HeldOut(q, alone, *errors)


def output_error(
    weight: ArrayLike | SupportsDLPack,
    other: QuantizedArray | ArrayLike | SupportsDLPack,
    inputs: Hessian | ArrayLike | SupportsDLPack,
    *,
    threads: int | None = None,
) -> float:
    """Say how far the outputs of a layer are off: ``sum((x @ (weight - other).T)**2) / sum((x @ weight.T)**2)``.

    Parameters
    ----------
    weight : (..., n) floats
    other : QuantizedArray or (..., n) floats
        What takes its place.
    inputs : Hessian or (..., n) floats
        The inputs x, best of a text that the quantization did not see.
    threads : int, optional
        At most so many threads; see :func:`set_threads`.

    Returns
    -------
    float
        0 for the weight itself, 1 for zeros.

    Raises
    ------
    ValueError
        Shapes do not fit, or an input is not finite.
    TypeError
        Arrays that are not of floats.

    Examples
    --------
    >>> import numpy as np, quantize as qz
    >>> qz.output_error([[2.0, 1.0]], [[2.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]])
    0.2
    """
    found, bits = floats(weight, None, "weight")
    decoded, decoded_bits = (
        (other.dequantize(threads=threads), False) if isinstance(other, QuantizedArray) else floats(other, None, "other")
    )
    hessian = _sums(inputs, found, "inputs", threads)
    return _core.output_error(found, bits, decoded, decoded_bits, hessian, requested(threads))


def _sums(given: Any, weight: NDArray[Any], argument: str, threads: int | None) -> _core.Hessian:
    """Those of the Hessian that is given, or of inputs that are."""
    if isinstance(given, Hessian):
        return given._core  # pyright: ignore[reportPrivateUsage]
    if weight.ndim == 0:
        raise ValueError("weight is 0-d; expected (N, K): rows that are multiplied with the inputs")
    sums = _core.Hessian(weight.shape[-1])
    _take_in(sums, given, argument, threads)
    return sums


def _take_in(sums: _core.Hessian, inputs: Any, argument: str, threads: int | None) -> None:
    sums.update(*floats(inputs, None, argument), argument, requested(threads))
