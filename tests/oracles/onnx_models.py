"""Small ONNX models for the tests, made with the onnx package, and what ONNX Runtime computes with them."""

import numpy as np
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16, np.dtype(np.int64): TensorProto.INT64}


def node(operator, inputs, output, **attributes):
    """One node; its name is that of its output in capitals."""
    return helper.make_node(operator, inputs.split() if isinstance(inputs, str) else inputs, [output], name=output.upper(), **attributes)


def constant(name, array):
    """A Constant node."""
    return node("Constant", [], name, value=numpy_helper.from_array(array))


def initializers(weights):
    return [numpy_helper.from_array(array, name) for name, array in weights.items()]


def graph(nodes, weights, inputs=None, outputs="y", dtype=np.float32, rank=2):
    """A graph of float inputs (name: shape) and outputs of so many axes."""
    kind = TYPES[np.dtype(dtype)]
    kinds = {name: TensorProto.INT64 if name == "ids" else kind for name in inputs or {}}
    given = [helper.make_tensor_value_info(name, kinds[name], shape) for name, shape in (inputs or {}).items()]
    results = [helper.make_tensor_value_info(name, kind, [None] * rank) for name in outputs.split()]
    return helper.make_graph(nodes, "graph", given, results, initializers(weights))


def model(nodes, weights, inputs, outputs="y", *, opset=21, ir_version=10, dtype=np.float32, rank=2, opsets=()):
    made = graph(nodes, weights, inputs, outputs, dtype, rank)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in opsets)]
    return helper.make_model(made, opset_imports=imports, ir_version=ir_version, producer_name="tests")


def write(path, made):
    path.write_bytes(made.SerializeToString())
    return path


def session(path):
    """As the values are: no activations of 8 bits, which the fusion of DequantizeLinear and MatMul has by default."""
    options = ort.SessionOptions()
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path, **inputs):
    return session(path).run(None, inputs)
