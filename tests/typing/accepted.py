"""What must type-check, and as what. Read by mypy and pyright, never run."""

from collections.abc import Mapping
from typing import Any, assert_type

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

import quantize as qz


def arrays(w: NDArray[np.float32], halves: NDArray[np.float16], doubles: NDArray[np.float64], bits: NDArray[np.uint16]) -> None:
    q = qz.quantize(w)
    assert_type(q, qz.QuantizedArray)
    qz.quantize(halves, "uint4", axis=0, group_size=64, scale_dtype="bfloat16", nonfinite="zero", threads=2)
    qz.quantize(doubles, group_size="row", scale_dtype=np.float32, method="nearest")
    qz.quantize(w, method="optimal", importance="magnitude")
    qz.quantize(w, "mlx", method="optimal", tolerance=0.01)
    qz.quantize(w, "mlx", method="fast")
    qz.quantize(w, method="optimal", importance=doubles)
    qz.quantize(w, method="optimal", importance=[1.0, 2.0])
    qz.quantize(bits, group_size="tensor", dtype="bfloat16", scale_dtype=ml_dtypes.bfloat16)
    qz.quantize([[1.0, 2], [3, 4.5]], out={"packed": np.empty((2, 1), np.uint8), "scales": np.empty((2, 1), np.float16)})

    assert_type(q.format, str)
    assert_type(q.shape, tuple[int, ...])
    assert_type(q.group_size, int | str)
    assert_type(q.dtype, np.dtype[np.float32])
    assert_type(q.parts, Mapping[str, NDArray[Any]])
    assert_type(q.scales, NDArray[np.float32])
    assert_type(q.zero_points, NDArray[np.float32] | None)
    assert_type(q.minimums, NDArray[np.float32] | None)
    assert_type(q.codes(), NDArray[np.int8])
    assert_type(q.nbytes, int)
    assert_type(q.bits_per_weight, float)
    assert_type(q[0], qz.QuantizedArray)
    assert_type(q[1:, ..., 2], qz.QuantizedArray)
    assert_type(q.to("gguf:q4_0", requantize=True), qz.QuantizedArray)
    assert_type(q.identical(q), bool)
    np.asarray(q)
    np.asarray(q, np.float64)


def back(q: qz.QuantizedArray) -> None:
    q.dequantize()
    qz.dequantize(q, dtype="bfloat16")
    qz.dequantize(q, dtype=np.float64, out=np.empty(q.shape), threads=1)
    again = qz.from_parts("int4", q.parts, shape=(2, 3), axis=0, group_size="channel", scale_dtype="float16")
    assert_type(again, qz.QuantizedArray)


def codes(integers: NDArray[np.int64]) -> None:
    assert_type(qz.pack(integers), NDArray[np.uint8])
    qz.unpack(qz.pack([1, 2, 3], signed=False), 3, signed=False)


def facts(w: NDArray[np.float32], q: qz.QuantizedArray) -> None:
    difference = qz.compare(w, q)
    assert_type(difference, qz.Comparison)
    assert_type(difference.bits_per_weight, float | None)
    qz.compare(w, w, axis=0)
    for row in qz.formats():
        assert_type(row.name, str)
        assert_type(row.group_size, int)
    assert_type(qz.cpu_features().level, str)
    qz.set_threads(2)
    qz.set_threads(None)
    with qz.threads(1):
        pass


def original() -> None:
    values, scale, zero_point = qz.quantize_to_int4([1.0, 2.0], scale_method="absmax")
    assert_type(values, NDArray[np.int8])
    assert_type(zero_point, int)
    qz.dequantize_from_int4(values, scale, zero_point)
    qz.dequantize_from_int4(values, 0.5)
    assert_type(qz.unpack_int8_to_int4(qz.pack_int4_to_int8(values)), NDArray[np.int8])


def errors() -> None:
    try:
        raise qz.LossyConversionError
    except ValueError:
        pass
    try:
        raise qz.CorruptFileError
    except ValueError:
        pass
