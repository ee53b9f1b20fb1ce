"""The graphs of ONNX models that are quantized: the bytes of ONNX Runtime's quantizer, and what the runtime computes with ours."""

import logging

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import (
    GEMM,
    NBITS,
    QDQ,
    constant,
    converted,
    decoded,
    floats,
    formats,
    graph,
    model,
    node,
    operators,
    run,
    steps,
    two_layers,
    write,
)

import quantize as qz


def by_onnxruntime(made, group_size, symmetric, qdq):
    """Initializers by name of the model that it makes."""
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer, QuantFormat

    logging.disable(logging.WARNING)
    kind = QuantFormat.QDQ if qdq else QuantFormat.QOperator
    quantizer = MatMulNBitsQuantizer(made, block_size=group_size, is_symmetric=symmetric, quant_format=kind)
    quantizer.process()
    return {tensor.name: tensor for tensor in quantizer.model.model.graph.initializer}


def data_of(tensor, columns=0):
    """Type, shape and bytes. Where a column is odd its last byte has half a code of another one in theirs; here that is 0."""
    array = np.frombuffer(tensor.raw_data, np.uint8).copy()
    if columns % 2:
        packed = array.reshape(tuple(tensor.dims))
        packed[:, -1, columns % (2 * packed.shape[2]) // 2] &= 0x0F
    return tensor.data_type, array.tobytes()


@formats
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, 32, 128])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_initializers_are_those_of_onnxruntime(tmp_path, format, symmetric, group_size, dtype):
    weights = {"w": floats(257, 63, dtype=dtype), "v": floats(63, 128, seed=1, dtype=dtype), "u": floats(128, 6, seed=2, dtype=dtype)}
    group_size = 32 if group_size == 128 and format == NBITS else group_size
    kept = {name: array for name, array in weights.items() if array.shape[0] >= group_size}
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a v", "b"), node("MatMul", "b u", "y")]
    made = model(nodes, weights, {"x": (None, 257)}, dtype=dtype)
    _, _, target = converted(tmp_path, made, format, group_size=group_size, symmetric=symmetric)
    ours = {tensor.name: tensor for tensor in onnx.load(target).graph.initializer}
    theirs = by_onnxruntime(made, group_size, symmetric, format == QDQ)
    for name, array in kept.items():
        for part in ("Q4", "scales", *([] if symmetric else ["zero_points"])):
            their = theirs[f"{name}_DQ_{part}" if format == QDQ else f"{name}_{part}"]
            columns = len(array) if part == "Q4" and format == NBITS else 0
            assert data_of(ours[f"{name}_{part}"], columns) == data_of(their, columns), (name, part)


@formats
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_product_is_that_of_the_decoded_weight(tmp_path, format, symmetric, dtype):
    made = model([node("MatMul", "x w", "y")], {"w": floats(257, 63, dtype=dtype)}, {"x": (None, 257)}, dtype=dtype)
    report, source, target = converted(tmp_path, made, format, symmetric=symmetric)
    assert steps(report) == {"w": ("quantize", None)}
    w = decoded(target, "w").astype(dtype)
    identity = np.eye(257, dtype=dtype)
    np.testing.assert_array_equal(run(target, x=identity)[0], w)
    back = tmp_path / "back.onnx"
    qz.convert(target, back, dequantize=True)
    x = floats(5, 257, seed=3, dtype=dtype)
    near = {"rtol": 1e-5, "atol": 1e-5} if dtype == np.float32 else {"rtol": 2e-3, "atol": 0.03}
    np.testing.assert_allclose(run(target, x=x)[0], run(back, x=x)[0], **near)
    assert 15 < qz.compare(run(source, x=x)[0], run(target, x=x)[0]).sqnr_db < 30
    assert 20 < report.sqnr_db < 23


@pytest.mark.parametrize("opset", [7, 11, 13, 19])
def test_matmulnbits_goes_into_any_opset(tmp_path, opset):
    made = model([node("MatMul", "x w", "y")], {"w": floats(64, 8)}, {"x": (None, 64)}, opset=opset, ir_version=3 if opset == 7 else 6)
    if opset == 7:
        made.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (64, 8)))
    _, _, target = converted(tmp_path, made)
    after = onnx.load(target)
    assert {one.domain: one.version for one in after.opset_import} == {"": opset, "com.microsoft": 1}
    assert after.ir_version == made.ir_version
    inputs = ["x", "w_Q4", "w_scales"] if opset == 7 else ["x"]
    assert [one.name for one in after.graph.input] == inputs
    np.testing.assert_array_equal(run(target, x=np.eye(64, dtype=np.float32))[0], decoded(target, "w"))


@pytest.mark.parametrize("opset", [12, 20])
def test_qdq_below_opset_21_is_refused_with_the_way_out(tmp_path, opset):
    source = write(
        tmp_path / "in.onnx", model([node("MatMul", "x w", "y")], {"w": floats(64, 8)}, {"x": (None, 64)}, opset=opset, ir_version=8)
    )
    with pytest.raises(ValueError, match=f"of opset {opset}.* from 21 on: take onnx:matmulnbits"):
        qz.convert(source, tmp_path / "out.onnx", format=QDQ)
    assert list(tmp_path.iterdir()) == [source]


TRANSPOSED = {"transB": 1}


@formats
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("bias", [None, (8,)])
def test_gemm(tmp_path, format, transposed, bias):
    weights = {"w": floats(8, 64) if transposed else floats(64, 8)} | ({} if bias is None else {"c": floats(*bias)})
    made = model([node("Gemm", "x w" if bias is None else "x w c", "y", **(TRANSPOSED if transposed else {}))], weights, GEMM)
    report, source, target = converted(tmp_path, made, format, group_size=16, symmetric=False)
    assert steps(report)["w"] == ("quantize", None)
    assert report.tensors[0].shape == weights["w"].shape
    assert operators(onnx.load(target)) == (["MatMulNBits"] if format == NBITS else ["DequantizeLinear", "Gemm"])
    w = decoded(target, "w")
    w = w.T if transposed and format == QDQ else w
    expected = w + (0 if bias is None else weights["c"])
    np.testing.assert_allclose(run(target, x=np.eye(64, dtype=np.float32))[0], expected, rtol=1e-6, atol=1e-6)
    compared = {tensor.name: tensor for tensor in qz.compare_files(source, target).tensors}["w"]
    assert compared.verdict == "measured"
    assert compared.sqnr_db == report.sqnr_db
    back = tmp_path / "back.onnx"
    qz.convert(target, back, dequantize=True)
    x = floats(3, 64, seed=1)
    np.testing.assert_allclose(run(target, x=x)[0], run(back, x=x)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("nodes", "weights", "reason"),
    [
        ([node("Gemm", "x w", "y", alpha=0.5)], {"w": floats(64, 8)}, "Gemm has factors, or transposes what it is given"),
        ([node("Gemm", "x w c", "y", beta=0.5)], {"w": floats(64, 8), "c": floats(8)}, "Gemm has factors, or transposes what it is given"),
        ([node("Gemm", "x w c", "y")], {"w": floats(64, 8), "c": floats(1, 8)}, "Gemm adds something else than a constant vector"),
        ([node("MatMul", "w x", "y")], {"w": floats(8, 64)}, "used by MatMul, but not as its weight"),
        ([node("MatMul", "x w", "a"), node("Add", "a w", "y")], {"w": floats(64, 64)}, "used by Add"),
        ([node("MatMul", "x w", "y")], {"w": floats(2, 64, 8)}, "a stack of matrices"),
        ([node("MatMul", "x w", "y")], {"w": floats(1, 64, 8)}, "3 axes; the product may have more than that of a matrix"),
        ([node("MatMul", "x w", "y")], {"w": floats(16, 8)}, "the axis of the inputs has 16 elements; a group has 32"),
        ([node("MatMul", "x w", "y")], {"w": floats(64, 8).astype(np.float64)}, "float64; the operators are used with float32 and float16"),
        ([node("MatMul", "x w", "y")], {"w": floats(0, 8)}, "no elements"),
        (
            [node("Gather", "w ids", "y")],
            {"w": floats(8, 64)},
            "rows are looked up in it; such a table is quantized where include or a rule names it",
        ),
        ([node("Gather", "w ids", "y", axis=1)], {"w": floats(8, 64)}, "Gather looks up other things than rows of a matrix"),
        (
            [node("MatMul", "x w", "y"), node("Transpose", "w", "t"), node("MatMul", "x t", "z")],
            {"w": floats(64, 64)},
            "used along both axes, or in two types",
        ),
        ([node("Identity", "x", "y")], {"w": floats(64, 8)}, "no node uses it"),
        ([node("MatMul", "x w", "a"), node("Identity", "w", "y")], {"w": floats(64, 8)}, "an output of its graph"),
        ([node("Identity", "x", "y")], {"w": np.zeros((4, 4), np.int64)}, "int64 is not quantized"),
        ([node("Add", "x w", "y")], {"w": floats(64)}, "1-d; a matrix has 2 axes or more"),
    ],
)
def test_what_is_kept_is_told_why_and_copied_as_it_is(tmp_path, nodes, weights, reason):
    made = model(nodes, weights, {"x": None, "ids": (None,)})
    source, target = write(tmp_path / "in.onnx", made), tmp_path / "out.onnx"
    report = qz.convert(source, target, format=NBITS)
    assert steps(report)["w"] == ("keep", reason)
    assert target.read_bytes() == source.read_bytes()


def test_qdq_takes_what_has_more_axes_or_factors(tmp_path):
    nodes = [node("MatMul", "x w", "y"), node("Gemm", "x v c", "z", alpha=0.5, transB=1)]
    made = model(nodes, {"w": floats(1, 64, 8), "v": floats(8, 64), "c": floats(1, 8)}, GEMM, "y z")
    report, source, target = converted(tmp_path, made, QDQ)
    assert [steps(report)[name][0] for name in ("w", "v", "c")] == ["quantize", "quantize", "keep"]
    x = np.eye(64, dtype=np.float32)
    y, z = run(target, x=x)
    np.testing.assert_array_equal(y, decoded(target, "w")[None])
    np.testing.assert_allclose(z, decoded(target, "v").T / 2 + numpy_helper.to_array(made.graph.initializer[2]), rtol=1e-6, atol=1e-6)
    assert run(source, x=x)[0].shape == y.shape
    qz.convert(target, tmp_path / "back.onnx", dequantize=True)
    assert list(onnx.load(tmp_path / "back.onnx").graph.initializer[1].dims) == [1, 64, 8]


def test_unit_axes_are_dropped_where_the_product_has_them_anyway(tmp_path):
    made = model([node("MatMul", "x w", "y")], {"w": floats(1, 64, 8)}, {"x": (1, 1, 3, 64)}, rank=4)
    report, source, target = converted(tmp_path, made)
    assert steps(report)["w"] == ("quantize", None)
    x = floats(1, 1, 3, 64, seed=1)
    assert run(target, x=x)[0].shape == run(source, x=x)[0].shape


@formats
def test_weights_behind_identity_cast_and_transpose(tmp_path, format):
    nodes = [
        node("Identity", "w", "w1"),
        node("Cast", "w1", "w2", to=TensorProto.FLOAT),
        node("Transpose", "w2", "w3", perm=[1, 0]),
        node("MatMul", "x w3", "y"),
    ]
    made = model(nodes, {"w": floats(8, 64, dtype=np.float16)}, GEMM)
    report, _, target = converted(tmp_path, made, format)
    assert steps(report) == {"w": ("quantize", None)}
    after = onnx.load(target)
    if format == NBITS:  # nobody uses what stood between
        assert operators(after) == ["MatMulNBits"]
        assert [one.data_type for one in after.graph.initializer] == [TensorProto.UINT8, TensorProto.FLOAT]
    else:
        assert operators(after) == ["DequantizeLinear", "Identity", "Cast", "Transpose", "MatMul"]
        assert [one.data_type for one in after.graph.initializer] == [TensorProto.INT4, TensorProto.FLOAT16]
    w = decoded(target, "w")
    np.testing.assert_array_equal(run(target, x=np.eye(64, dtype=np.float32))[0], w if format == NBITS else w.astype(np.float16).T)


@formats
def test_constant_nodes_and_their_types(tmp_path, format):
    made = model([constant("w", floats(64, 8)), node("MatMul", "x w", "y")], {}, GEMM)
    made.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, (64, 8)))
    report, _, target = converted(tmp_path, made, format)
    assert steps(report) == {"w": ("quantize", None)}
    after = onnx.load(target)
    assert operators(after) == (["MatMulNBits"] if format == NBITS else ["DequantizeLinear", "MatMul"])
    assert [one.name for one in after.graph.value_info] == ([] if format == NBITS else ["w"])
    np.testing.assert_array_equal(run(target, x=np.eye(64, dtype=np.float32))[0], decoded(target, "w"))


@formats
def test_weights_of_inner_graphs(tmp_path, format):
    """One of the outer graph that both branches use, and one of each branch, of one name."""
    branches = {
        f"{word}_branch": graph([node("MatMul", "x w", "a"), node("MatMul", "a v", "y")], {"v": floats(64, 8, seed=seed)})
        for seed, word in enumerate(("then", "else"), 1)
    }
    nodes = [
        node("ReduceMax", "x", "largest", keepdims=0),
        node("Greater", "largest zero", "positive"),
        node("If", "positive", "y", **branches),
    ]
    weights = {"w": floats(64, 64), "zero": np.zeros((), np.float32)}
    report, source, target = converted(tmp_path, model(nodes, weights, GEMM), format)
    quantized = [tensor.name for tensor in report.tensors if tensor.action == "quantize"]
    assert quantized == ["w", "y.else_branch/v", "y.then_branch/v"]
    for sign, name in ((1, "y.then_branch/v"), (-1, "y.else_branch/v")):
        x = sign * np.eye(64, dtype=np.float32) - np.float32(sign < 0)  # all of it below 0 takes the other branch
        expected = (x @ decoded(target, "w")) @ decoded(target, name)
        np.testing.assert_allclose(run(target, x=x)[0], expected, rtol=1e-4, atol=1e-3)
        assert qz.compare(run(source, x=x)[0], run(target, x=x)[0]).sqnr_db > 15
    back = tmp_path / "back.onnx"
    qz.convert(target, back, dequantize=True)
    np.testing.assert_allclose(run(back, x=x)[0], run(target, x=x)[0], rtol=1e-4, atol=1e-4)


def test_a_weight_of_two_products_is_stored_once(tmp_path):
    nodes = [node("MatMul", "x w", "a"), node("MatMul", "a w", "y")]
    _, _, target = converted(tmp_path, model(nodes, {"w": floats(64, 64)}, GEMM))
    after = onnx.load(target)
    assert [one.name for one in after.graph.initializer] == ["w_Q4", "w_scales"]
    assert [list(one.input)[1:] for one in after.graph.node] == [["w_Q4", "w_scales"]] * 2
    with qz.open(target) as file:
        assert list(file) == ["w"]


TABLES = [node("Gather", "w ids", "rows"), node("Transpose", "w", "t", perm=[1, 0]), node("MatMul", "rows t", "y")]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("columns", [64, 40])
@pytest.mark.parametrize("opset", [13, 21])
def test_rows_are_looked_up_in_a_quantized_table(tmp_path, symmetric, columns, opset):
    made = model([node("Gather", "w ids", "y")], {"w": floats(9, columns)}, {"ids": (None, 3)}, opset=opset, ir_version=8, rank=3)
    report, _, target = converted(tmp_path, made, include=["w"], symmetric=symmetric)
    assert steps(report) == {"w": ("quantize", None)}
    assert operators(onnx.load(target)) == ["GatherBlockQuantized"]
    ids = np.array([[0, 8, -1], [3, 3, 5]])
    w = decoded(target, "w")
    np.testing.assert_array_equal(run(target, ids=ids)[0], w[ids])
    q = qz.quantize(numpy_helper.to_array(made.graph.initializer[0]), NBITS, symmetric=symmetric)
    np.testing.assert_array_equal(w, q.dequantize())
    back = tmp_path / "back.onnx"
    qz.convert(target, back, dequantize=True)
    assert operators(onnx.load(back)) == ["Gather"]
    np.testing.assert_array_equal(run(back, ids=ids)[0], w[ids])


def test_a_tied_table_is_quantized_for_both_or_for_neither(tmp_path):
    made = model(TABLES, {"w": floats(9, 64)}, {"ids": (None,)})
    source, target = write(tmp_path / "in.onnx", made), tmp_path / "out.onnx"
    assert steps(qz.convert(source, None, format=NBITS, dry_run=True))["w"][0] == "keep"
    report = qz.convert(source, target, format=NBITS, include="w")
    assert operators(onnx.load(target)) == ["GatherBlockQuantized", "MatMulNBits"]
    assert report.bytes_after == 2 * (9 * 32 + 9 * 2 * 4)
    w = decoded(target, "w")
    ids = np.arange(9)
    np.testing.assert_allclose(run(target, ids=ids)[0], w @ w.T if w.shape == (9, 64) else w.T @ w, rtol=1e-5, atol=1e-5)


def test_odd_rows_are_not_looked_up(tmp_path):
    made = model([node("Gather", "w ids", "y")], {"w": floats(9, 63)}, {"ids": (None,)})
    report = qz.convert(write(tmp_path / "in.onnx", made), None, format=NBITS, include="w", dry_run=True)
    assert steps(report)["w"] == ("keep", "rows of an odd length cannot be looked up")
    report = qz.convert(tmp_path / "in.onnx", None, format=QDQ, include="w", dry_run=True)
    assert steps(report)["w"] == ("keep", "rows are looked up in it; DequantizeLinear would decode the whole table each time")


def test_everything_else_of_the_model_stays(tmp_path):
    nodes = [node("MatMul", "x w", "a"), node("Twice", "a", "y", domain="ours")]
    made = model(nodes, {"w": floats(64, 8), "unused": floats(3)}, GEMM, opsets=["ours"])
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    made.functions.append(helper.make_function("ours", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 21)]))
    made.metadata_props.add(key="author", value="somebody")
    made.graph.doc_string = "two nodes"
    made.graph.node[0].doc_string = "the first"
    unknown = b"\xfa\x3e\x05later"  # field 1007 of the model, of a version to come
    source, target = tmp_path / "in.onnx", tmp_path / "out.onnx"
    source.write_bytes(made.SerializeToString() + unknown)
    qz.convert(source, target, format=NBITS)
    assert unknown in target.read_bytes()
    after = onnx.ModelProto.FromString(target.read_bytes())
    first = after.graph.node[0]
    assert (first.name, first.doc_string, list(first.output)) == ("A", "the first", ["a"])
    assert {one.name: one.i for one in first.attribute} == {"K": 64, "N": 8, "bits": 4, "block_size": 32}
    after.DiscardUnknownFields()
    for one in (made, after):  # what is left is the same
        del one.graph.node[0], one.graph.initializer[:], one.opset_import[:]
    assert after.SerializeToString() == made.SerializeToString()
    np.testing.assert_array_equal(run(target, x=np.eye(64, dtype=np.float32))[0], 2 * decoded(target, "w"))


def test_names_that_are_taken_are_not_used_again(tmp_path):
    nodes = [node("MatMul", "x w", "w_Q4"), node("Add", "w_Q4 w_scales", "y")]
    report, _, target = converted(tmp_path, model(nodes, {"w": floats(64, 8), "w_scales": floats(8)}, GEMM))
    assert steps(report)["w"] == ("quantize", None)
    assert [one.name for one in onnx.load(target).graph.initializer] == ["w_scales", "w_Q4_2", "w_scales_2"]
    expected = decoded(target, "w") + floats(8)
    np.testing.assert_allclose(run(target, x=np.eye(64, dtype=np.float32))[0], expected, rtol=1e-6, atol=1e-6)


def test_a_model_that_is_trained_is_refused(tmp_path):
    made = two_layers()
    made.training_info.add()
    with pytest.raises(ValueError, match="graphs for training"):
        qz.convert(write(tmp_path / "in.onnx", made), tmp_path / "out.onnx", format=NBITS)


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Identity", ["w", "b"], ["a"]), helper.make_node("Identity", ["a"], ["b"])],  # a ring
        [helper.make_node("Identity", ["w"], [])],
        [helper.make_node("MatMul", ["x", "w"], [])],
        [helper.make_node("Gather", ["w"], ["y"])],
        [helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft")],
        [helper.make_node("DequantizeLinear", [], ["y"])],
        [constant("d", np.zeros(4, np.uint8)), constant("s", np.ones(1, np.float32)), helper.make_node("DequantizeLinear", ["d", "s"], [])],
        [helper.make_node("Constant", [], ["c"])],
    ],
)
def test_nodes_that_make_no_sense_keep_their_weights(tmp_path, nodes):
    source = write(tmp_path / "in.onnx", model(nodes, {"w": floats(64, 64)}, GEMM))
    report = qz.convert(source, tmp_path / "out.onnx", format=NBITS, include="*")
    assert steps(report)["w"][0] == "keep"


def test_a_weight_beside_its_quantized_self_keeps_its_name(tmp_path):
    """ONNX Runtime's tool leaves a table as floats of which it quantizes the product."""
    w = floats(64, 64)
    q = qz.quantize(w, NBITS, axis=0)
    nodes = [
        node("MatMulNBits", "x w_Q4 w_scales", "a", domain="com.microsoft", K=64, N=64, bits=4, block_size=32),
        node("MatMul", "w a", "y"),
    ]
    made = model(nodes, {"w_Q4": q.parts["packed"], "w_scales": q.parts["scales"], "w": w}, GEMM, opsets=["com.microsoft"])
    source, back = write(tmp_path / "in.onnx", made), tmp_path / "back.onnx"
    with qz.open(source) as file:
        assert {info.name: info.format for info in file.tensors} == {"w_Q4": NBITS, "w": None}
    qz.convert(source, back, dequantize=True)
    x = floats(64, 64, seed=1)
    np.testing.assert_allclose(run(back, x=x)[0], run(source, x=x)[0], rtol=1e-4, atol=1e-3)
