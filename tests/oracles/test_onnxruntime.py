"""ONNX Runtime: its quantizer makes the same parts of a weight B (K, N), and its operators the same values of the parts."""

import numpy as np
import onnxruntime as ort
import pytest
from helpers import same
from inputs import MAKE, rows
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi._pybind_state import quantize_matmul_4bits, quantize_qdq_matmul_4bits

import quantize as qz

GROUPS = 2048
TYPES = {np.dtype(np.float32): TensorProto.FLOAT, np.dtype(np.float16): TensorProto.FLOAT16}
# Sizes that leave short groups, odd rows, half bytes of zero points.
RAGGED = [(1, 1), (33, 3), (100, 5), (65, 8), (31, 7), (256, 1)]
# Where the range of a group is beyond float32, an asymmetric scale is an infinity there and an error here.
CASES = [(kind, symmetric) for kind in MAKE for symmetric in (True, False) if (kind, symmetric) != ("largest", False)]


def weight(kind, group_size=32, dtype=np.float32):
    """B (K, 64) of groups along K; what float16 cannot hold is its largest there."""
    x = rows(kind, GROUPS, group_size).reshape(64, -1).T
    return np.ascontiguousarray(x.clip(np.finfo(dtype).min, np.finfo(dtype).max).astype(dtype))


def parts_of(packed, scales, zero_points, symmetric):
    return {"packed": packed, "scales": scales} | ({} if symmetric else {"zero_points": zero_points})


def matmulnbits(b, group_size, symmetric):
    """The parts that the quantizer of MatMulNBits makes of B."""
    depth, columns = b.shape
    groups = -(-depth // group_size)
    packed = np.zeros((columns, groups, group_size // 2), np.uint8)
    scales = np.zeros((columns, groups), b.dtype)
    zero_points = np.zeros((columns, -(-groups // 2)), np.uint8)
    quantize_matmul_4bits(packed, b, scales, zero_points, group_size, columns, depth, symmetric)
    if depth % 2:
        # It leaves another code in the half of the byte after the last element; here that is 0.
        packed[:, -1, depth % group_size // 2] &= 0x0F
    return parts_of(packed, scales, zero_points, symmetric)


def qdq(b, group_size, symmetric):
    """The parts that the quantizer of QuantizeLinear and DequantizeLinear makes of B."""
    depth, columns = b.shape
    groups = -(-depth // group_size)
    packed, scales = np.zeros(-(-depth * columns // 2), np.uint8), np.zeros((groups, columns), b.dtype)
    zero_points = np.zeros(-(-groups * columns // 2), np.uint8)
    quantize_qdq_matmul_4bits(packed, b, scales, zero_points, group_size, columns, depth, symmetric)
    return parts_of(packed, scales, zero_points, symmetric)


def run(node, initializers, version, dtype, **inputs):
    """What one node gives for constant parts and for inputs."""
    given = [helper.make_tensor_value_info(name, TYPES[array.dtype], array.shape) for name, array in inputs.items()]
    y = helper.make_tensor_value_info("y", TYPES[np.dtype(dtype)], None)
    graph = helper.make_graph([node], "graph", given, [y], initializers)
    opsets = [helper.make_opsetid("", version), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"]).run(None, inputs)[0]


def multiply_identity(parts, depth, group_size):
    """The operator MatMulNBits with our parts, times the identity (K, K)."""
    columns, dtype = len(parts["scales"]), parts["scales"].dtype
    node = helper.make_node("MatMulNBits", ["a", *parts], ["y"], domain="com.microsoft", K=depth, N=columns, bits=4, block_size=group_size)
    initializers = [numpy_helper.from_array(array, name) for name, array in parts.items()]
    return run(node, initializers, 21, dtype, a=np.eye(depth, dtype=dtype))


def dequantize_linear(packed, shape, scales, zero_points=None, *, axis, group_size):
    """The operator DequantizeLinear; codes are UINT4 where there are zero points, otherwise INT4."""
    kind = TensorProto.INT4 if zero_points is None else TensorProto.UINT4
    initializers = [helper.make_tensor("x", kind, shape, packed.tobytes(), raw=True), numpy_helper.from_array(scales, "scale")]
    if zero_points is not None:
        initializers.append(helper.make_tensor("zero_point", kind, scales.shape, zero_points.tobytes(), raw=True))
    node = helper.make_node("DequantizeLinear", [given.name for given in initializers], ["y"], axis=axis, block_size=group_size)
    return run(node, initializers, 21, scales.dtype)


def same_parts(q, expected):
    assert list(q.parts) == list(expected)
    for name, array in expected.items():
        same(q.parts[name], array, name)


@pytest.mark.parametrize(("kind", "symmetric"), CASES)
@pytest.mark.parametrize(("name", "there"), [("onnx:matmulnbits", matmulnbits), ("onnx:qdq", qdq)])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_quantizes_to_the_same_parts(name, there, kind, symmetric, dtype):
    b = weight(kind, dtype=dtype)
    same_parts(qz.quantize(b, name, axis=0, symmetric=symmetric), there(b, 32, symmetric))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, 64, 128, 256])
@pytest.mark.parametrize(("name", "there"), [("onnx:matmulnbits", matmulnbits), ("onnx:qdq", qdq)])
def test_quantizes_groups_of_every_size(name, there, group_size, symmetric):
    b = weight("heavy tails", group_size)
    same_parts(qz.quantize(b, name, axis=0, group_size=group_size, symmetric=symmetric), there(b, group_size, symmetric))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shape", RAGGED)
@pytest.mark.parametrize(("name", "there"), [("onnx:matmulnbits", matmulnbits), ("onnx:qdq", qdq)])
def test_quantizes_short_groups(name, there, shape, symmetric):
    b = rows("ties", 1, shape[0] * shape[1]).reshape(shape)
    same_parts(qz.quantize(b, name, axis=0, symmetric=symmetric), there(b, 32, symmetric))


@pytest.mark.parametrize(("name", "there"), [("onnx:matmulnbits", matmulnbits), ("onnx:qdq", qdq)])
def test_a_range_beyond_float32_is_an_error(name, there):
    """Listed in docs/formats.md: there the scale is an infinity."""
    b = np.array([[3.4e38], [-3.4e38]], np.float32)
    assert np.isinf(there(b, 32, False)["scales"]).all()
    with pytest.raises(ValueError, match="scale"):
        qz.quantize(b, name, axis=0, symmetric=False)


@pytest.mark.parametrize(("kind", "symmetric"), CASES)
def test_matmulnbits_multiplies_by_the_same_values(kind, symmetric):
    """A sum with zeros beside it has no -0.0: equal as numbers."""
    b = weight(kind)
    q = qz.quantize(b, "onnx:matmulnbits", axis=0, symmetric=symmetric)
    np.testing.assert_array_equal(q.dequantize(), multiply_identity(q.parts, len(b), 32), strict=True)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("shape", [*RAGGED, (256, 64)])
def test_matmulnbits_decodes_any_bytes(shape, group_size, symmetric):
    depth, columns = shape
    groups = -(-depth // group_size)
    random = np.random.default_rng(6)
    packed = random.integers(0, 256, (columns, groups, group_size // 2), dtype=np.uint8)
    scales = random.standard_normal((columns, groups), dtype=np.float32)
    zero_points = random.integers(0, 256, (columns, -(-groups // 2)), dtype=np.uint8)
    parts = parts_of(packed, scales, zero_points, symmetric)
    q = qz.from_parts("onnx:matmulnbits", parts, shape=shape, axis=0, group_size=group_size)
    np.testing.assert_array_equal(q.dequantize(), multiply_identity(parts, depth, group_size), strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(("kind", "symmetric"), CASES)
def test_dequantizelinear_gives_the_same_values(kind, symmetric, dtype):
    b = weight(kind, dtype=dtype)
    q = qz.quantize(b, "onnx:qdq", axis=0, symmetric=symmetric)
    same(q.dequantize(dtype=dtype), dequantize_linear(**q.parts, shape=b.shape, axis=0, group_size=32))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [1, 7, 32, 1000])
@pytest.mark.parametrize("shape", [*RAGGED, (256, 64)])
def test_dequantizelinear_decodes_any_bytes(shape, group_size, symmetric):
    depth, columns = shape
    groups = -(-depth // group_size)
    random = np.random.default_rng(7)
    packed = random.integers(0, 256, -(-depth * columns // 2), dtype=np.uint8)
    scales = random.standard_normal((groups, columns), dtype=np.float32)
    zero_points = random.integers(0, 256, -(-groups * columns // 2), dtype=np.uint8)
    parts = parts_of(packed, scales, zero_points, symmetric)
    q = qz.from_parts("onnx:qdq", parts, shape=shape, axis=0, group_size=group_size)
    same(q.dequantize(), dequantize_linear(**parts, shape=shape, axis=0, group_size=group_size))


@pytest.mark.parametrize("kind", [kind for kind in MAKE if kind not in ("1e30", "largest")])
@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_dequantizelinear_reads_our_own_formats(name, kind):
    """Rows of an even number of groups of an even size are packed as ONNX packs a whole tensor."""
    x = rows(kind, GROUPS, 32).reshape(64, -1)
    q = qz.quantize(x, name, scale_dtype=np.float32)
    same(q.dequantize(), dequantize_linear(**q.parts, shape=x.shape, axis=1, group_size=32))
