"""ONNX Runtime: its quantizers of a weight B (K, N), and its operator DequantizeLinear. B is W transposed, before the clock starts."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import onnxruntime as ort
from limit import all_threads
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_qdq_matmul_4bits

from . import Problem, Work

QUANTIZERS = {"onnx:matmulnbits": quantize_matmul_4bits, "onnx:qdq": quantize_qdq_matmul_4bits}


def works(problem: Problem) -> Iterator[Work]:
    if problem.format not in QUANTIZERS:
        return
    b = np.ascontiguousarray(problem.x.T)
    depth, columns = b.shape
    packed, scales = (np.empty_like(part) for part in problem.q.parts.values())
    zero_points = np.zeros((columns, -(-depth // 64)), np.uint8)  # not written, all groups being symmetric
    if problem.format == "onnx:qdq":
        zero_points = zero_points.ravel()
    encode = partial(QUANTIZERS[problem.format], packed, b, scales, zero_points, 32, columns, depth, True)
    yield Work("encode", encode, lambda _: {"packed": packed, "scales": scales}, all_threads(), reused=True)
    if problem.format == "onnx:qdq":
        session = dequantize_linear(b.shape, **problem.q.parts)
        yield Work("decode", partial(session.run, None, {}), lambda outputs: outputs[0].T, all_threads())


def dequantize_linear(shape: tuple[int, ...], packed: np.ndarray, scales: np.ndarray) -> ort.InferenceSession:
    """Return a model of that one operator on these parts; without optimization it computes in every run."""
    parts = [helper.make_tensor("x", TensorProto.INT4, shape, packed.tobytes(), raw=True), numpy_helper.from_array(scales, "scale")]
    node = helper.make_node("DequantizeLinear", ["x", "scale"], ["y"], axis=0, block_size=32)
    graph = helper.make_graph([node], "graph", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], parts)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
