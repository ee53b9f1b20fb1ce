"""What must not type-check: every line that ends with the word, and no other. Read by mypy and pyright, never run."""

import numpy as np
from numpy.typing import NDArray

import quantize as qz


def arrays(w: NDArray[np.float32], q: qz.QuantizedArray) -> None:
    qz.quantize(w, "int4", 0)  # refused
    qz.quantize(w, 4)  # refused
    qz.quantize(w, axis="last")  # refused
    qz.quantize(w, group_size="block")  # refused
    qz.quantize(w, group_size=32.0)  # refused
    qz.quantize(w, method="best")  # refused
    qz.quantize(w, method="optimal", tolerance="small")  # refused
    qz.quantize(w, method="optimal", importance=object())  # refused
    qz.quantize(w, nonfinite="keep")  # refused
    qz.quantize(w, threads="all")  # refused
    qz.quantize(w, out=np.empty(3))  # refused
    qz.quantize(object())  # refused
    qz.dequantize(w)  # refused
    qz.dequantize(q, np.float32)  # refused
    qz.pack(np.zeros(2, np.int8), out=w)  # refused
    qz.unpack(np.zeros(2, np.uint8))  # refused
    qz.from_parts("int4", [w])  # refused
    qz.set_threads("all")  # refused
    qz.quantize_to_int4(w, "mean")  # refused


def quantized(q: qz.QuantizedArray) -> None:
    q.format = "uint4"  # refused
    q.parts["packed"] = np.zeros(3, np.uint8)  # refused
    q["packed"]  # refused
    q[0.5]  # refused
    q + 1  # refused
    q.to()  # refused
    q.transpose()  # refused
    len(q)  # refused
