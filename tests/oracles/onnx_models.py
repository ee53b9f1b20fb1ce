"""Small ONNX models for the tests, made with the onnx package, what ONNX Runtime computes with them, and what becomes of them."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import quantize as qz

NBITS, QDQ = "onnx:matmulnbits", "onnx:qdq"
formats = pytest.mark.parametrize("format", [NBITS, QDQ])

# The inputs of most models here.
GEMM = {"x": (None, 64)}

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


def floats(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape, np.float32).astype(dtype)


def converted(tmp_path, made, format=NBITS, **options):
    """The report, the path of the source and that of the result, which is a valid model."""
    source, target = write(tmp_path / "in.onnx", made), tmp_path / "out.onnx"
    report = qz.convert(source, target, format=format, **options)
    onnx.checker.check_model(str(target))
    assert sorted(tmp_path.iterdir()) == sorted([source, target])
    return report, source, target


def steps(report):
    return {tensor.name: (tensor.action, tensor.reason) for tensor in report.tensors}


def operators(made):
    return [one.op_type for one in made.graph.node]


def decoded(path, name):
    with qz.open(path) as file:
        return file[name].dequantize()


def two_layers():
    return model([node("MatMul", "x w", "a"), node("MatMul", "a v", "y")], {"w": floats(64, 64), "v": floats(64, 8, seed=1)}, GEMM)
