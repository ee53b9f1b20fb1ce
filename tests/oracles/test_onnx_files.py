"""ONNX models from end to end: what ONNX Runtime's quantizer writes of the same model, and what the runtime computes with ours."""

import json
import logging
import os
import re
import resource
import stat
import subprocess
import sys

import numpy as np
import onnx
import pytest
from helpers import same
from onnx import TensorProto, helper, numpy_helper
from onnx_models import constant, graph, initializers, model, node, run, session, write

import quantize as qz
from quantize import cli
from quantize._onnx import data, job, output

NBITS, QDQ = "onnx:matmulnbits", "onnx:qdq"
formats = pytest.mark.parametrize("format", [NBITS, QDQ])


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


# The bytes of ONNX Runtime's quantizer


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


# What the runtime computes


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


GEMM = {"x": (None, 64)}
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
            "rows are looked up in it; such a table is quantized where include names it",
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


# What onnxruntime and others write is read


@pytest.mark.parametrize("qdq", [False, True])
@pytest.mark.parametrize("symmetric", [True, False])
def test_models_of_onnxruntime_are_read_and_decoded(tmp_path, qdq, symmetric):
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer, QuantFormat

    nodes = [node("Gather", "t ids", "x"), node("MatMul", "x w", "y")]
    made = model(nodes, {"t": floats(9, 64), "w": floats(64, 8)}, {"ids": (None,)})
    kinds = ("MatMul",) if qdq else ("MatMul", "Gather")
    kind = QuantFormat.QDQ if qdq else QuantFormat.QOperator
    quantizer = MatMulNBitsQuantizer(made, block_size=32, is_symmetric=symmetric, quant_format=kind, op_types_to_quantize=kinds)
    quantizer.process()
    path, back = write(tmp_path / "theirs.onnx", quantizer.model.model), tmp_path / "back.onnx"
    with qz.open(path) as file:
        found = {info.name: (info.format, info.shape, info.group_size) for info in file.tensors}
    assert found == {"t": (None if qdq else QDQ, (9, 64), None if qdq else 32), "w": (QDQ if qdq else NBITS, (64, 8), 32)}
    qz.convert(path, back, dequantize=True)
    assert operators(onnx.load(back)) == ["Gather", "MatMul"]
    ids = np.arange(9)
    np.testing.assert_allclose(run(back, ids=ids)[0], run(path, ids=ids)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("symmetric", [True, False])
def test_one_format_becomes_the_other_without_loss(tmp_path, symmetric):
    nodes = [node("MatMul", "x w", "a"), node("Gemm", "a v c", "y", transB=1)]
    weights = {"w": floats(100, 63), "v": floats(5, 63, seed=1), "c": floats(5)}
    source = write(tmp_path / "in.onnx", model(nodes, weights, {"x": (None, 100)}))
    paths = [tmp_path / f"{at}.onnx" for at in range(3)]
    qz.convert(source, paths[0], format=QDQ, symmetric=symmetric)
    for before, after, format in ((paths[0], paths[1], NBITS), (paths[1], paths[2], QDQ)):
        report = qz.convert(before, after, format=format)
        assert [tensor.action for tensor in report.tensors] == ["keep", "repack", "repack"] or steps(report)["w"][0] == "repack"
        assert report.sqnr_db == float("inf")
    x = floats(3, 100, seed=2)
    results = [run(path, x=x)[0] for path in paths]
    for result in results[1:]:
        np.testing.assert_allclose(result, results[0], rtol=1e-5, atol=1e-5)
    assert qz.compare_files(paths[0], paths[2]).sqnr_db == float("inf")


def test_another_group_size_is_refused_unless_it_is_asked_for(tmp_path):
    made = model([node("MatMul", "x w", "y")], {"w": floats(64, 8)}, GEMM)
    _, _, target = converted(tmp_path, made)
    again = tmp_path / "again.onnx"
    assert steps(qz.convert(target, None, format=NBITS, dry_run=True)) == {"w": ("keep", f"already {NBITS}")}
    with pytest.raises(qz.PolicyError, match=r"tensor 'w'.*group"):
        qz.convert(target, again, format=NBITS, group_size=16)
    assert not again.exists()
    report = qz.convert(target, again, format=NBITS, group_size=16, requantize=True)
    assert report.tensors[0].action == "requantize"
    expected = qz.quantize(decoded(target, "w"), NBITS, axis=0, group_size=16)
    same(decoded(again, "w"), expected.dequantize())
    np.testing.assert_array_equal(run(again, x=np.eye(64, dtype=np.float32))[0], decoded(again, "w"))


# What is not a weight stays


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


# Options


def two_layers():
    return model([node("MatMul", "x w", "a"), node("MatMul", "a v", "y")], {"w": floats(64, 64), "v": floats(64, 8, seed=1)}, GEMM)


def test_names_and_patterns_choose(tmp_path):
    source = write(tmp_path / "in.onnx", two_layers())
    plan = {"format": NBITS, "dry_run": True}
    assert steps(qz.convert(source, None, include="v*", **plan)) == {"w": ("keep", "not included"), "v": ("quantize", None)}
    assert steps(qz.convert(source, None, exclude="v", **plan)) == {"w": ("quantize", None), "v": ("keep", "excluded by 'v'")}
    assert steps(qz.convert(source, None, keep="w", **plan)) == {"w": ("keep", "kept by name"), "v": ("quantize", None)}
    for wrong in ({"include": "z*"}, {"exclude": "z"}, {"keep": "z"}):
        with pytest.raises(ValueError, match="no tensor of the file"):
            qz.convert(source, None, **wrong, **plan)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "format is 'int4'; an ONNX file takes onnx:matmulnbits or onnx:qdq"),
        ({"format": "gguf:q4_0"}, "an ONNX file takes"),
        ({"format": NBITS, "group_size": 24}, "24"),
        ({"format": QDQ, "group_size": "tensor"}, "group_size is 'tensor'"),
        ({"format": NBITS, "double_quant": True}, "no option double_quant"),
        ({"format": NBITS, "method": "fast"}, "fast"),
    ],
)
def test_options_that_do_not_fit(tmp_path, options, message):
    source = write(tmp_path / "in.onnx", two_layers())
    with pytest.raises((ValueError, TypeError), match=message):
        qz.convert(source, None, dry_run=True, **options)


def test_one_group_for_a_row(tmp_path):
    _, _, target = converted(tmp_path, two_layers(), QDQ, group_size="row")
    x = np.eye(64, dtype=np.float32)
    np.testing.assert_allclose(run(target, x=x)[0], decoded(target, "w") @ decoded(target, "v"), rtol=1e-4, atol=1e-5)


@formats
def test_optimal_is_nearer_than_nearest(tmp_path, format):
    source = write(tmp_path / "in.onnx", model([node("MatMul", "x w", "y")], {"w": floats(256, 64)}, {"x": (None, 256)}))
    importance = floats(256, seed=5) ** 2 + 1e-3
    np.save(tmp_path / "w.npy", importance)
    reports = {
        name: qz.convert(source, tmp_path / f"{name}.onnx", format=format, **options)
        for name, options in {
            "nearest": {},
            "optimal": {"method": "optimal"},
            "weighted": {"method": "optimal", "importance": tmp_path / "w.npy"},
        }.items()
    }
    assert reports["optimal"].sqnr_db > reports["nearest"].sqnr_db + 0.3
    assert [report.tensors[0].weights for report in reports.values()] == [None, "magnitude", "importance"]
    x = floats(64, 256, seed=6) * np.sqrt(importance)
    expected = run(source, x=x)[0]
    near = {name: qz.compare(expected, run(tmp_path / f"{name}.onnx", x=x)[0]).sqnr_db for name in reports}
    assert near["weighted"] > near["optimal"] > near["nearest"]


def test_what_is_not_finite(tmp_path):
    w = floats(64, 8)
    w[3, 4] = np.inf
    source, target = write(tmp_path / "in.onnx", model([node("MatMul", "x w", "y")], {"w": w}, GEMM)), tmp_path / "out.onnx"
    with pytest.raises(qz.PolicyError, match=r"in.onnx: tensor 'w': .*finite"):
        qz.convert(source, target, format=NBITS)
    assert list(tmp_path.iterdir()) == [source]
    with pytest.warns(qz.QuantizeWarning, match="1 element was not finite"):
        report = qz.convert(source, target, format=NBITS, nonfinite="zero")
    assert report.tensors[0].replaced == 1
    w[3, 4] = 0
    same(decoded(target, "w"), qz.quantize(w, NBITS, axis=0).dequantize())


def test_the_same_bytes_on_any_number_of_threads(tmp_path):
    source = write(tmp_path / "in.onnx", two_layers())
    for threads in (1, 2):
        qz.convert(source, tmp_path / f"{threads}.onnx", format=QDQ, threads=threads)
    assert (tmp_path / "1.onnx").read_bytes() == (tmp_path / "2.onnx").read_bytes()


def test_progress_is_told_and_can_stop_the_work(tmp_path):
    source, target = write(tmp_path / "in.onnx", two_layers()), tmp_path / "out.onnx"
    heard = []
    qz.convert(source, target, format=NBITS, progress=lambda *told: heard.append(told))
    total = 4 * (64 * 64 + 64 * 8)
    assert heard == [(0, total, "w"), (4 * 64 * 64, total, "v"), (total, total, "")]
    before = target.read_bytes()

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qz.convert(source, target, format=QDQ, overwrite=True, progress=stop)
    assert target.read_bytes() == before
    assert sorted(tmp_path.iterdir()) == [source, target]


# Files


def test_a_file_that_exists_is_replaced_only_when_asked(tmp_path):
    source = write(tmp_path / "in.onnx", two_layers())
    before = source.read_bytes()
    with pytest.raises(FileExistsError):
        qz.convert(source, source, format=NBITS)
    assert source.read_bytes() == before
    source.chmod(0o600)
    qz.convert(source, source, format=NBITS, overwrite=True)
    assert len(source.read_bytes()) < len(before) / 3
    assert stat.S_IMODE(source.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [source]
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(IsADirectoryError):
        qz.convert(source, tmp_path / "folder.onnx", dequantize=True, overwrite=True)


def outside(path, made, **options):
    """Write a model with its data beside it, by the onnx package."""
    onnx.save_model(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True, **options)
    return path


def big():
    nodes = [
        constant("u", floats(600, 8, seed=7)),
        node("MatMul", "x w", "a"),
        node("MatMul", "a u", "b"),
        node("Mul", "b v", "c"),
        node("Add", "c z", "y"),
    ]
    weights = {"w": floats(600, 600), "v": floats(2000, 8, seed=1)[:1], "z": floats(600, 8, seed=2)[:1], "k": floats(600, 600, seed=3)}
    return model(nodes, weights, {"x": (None, 600)})


@formats
def test_data_beside_the_model_stays_beside_it(tmp_path, format):
    (tmp_path / "there").mkdir()
    source, target = outside(tmp_path / "in.onnx", big()), tmp_path / "there" / "out.onnx"
    before = {path: path.read_bytes() for path in (source, tmp_path / "weights.bin")}
    report = qz.convert(source, target, format=format)
    assert [name for name, (action, _) in steps(report).items() if action == "quantize"] == ["w", "u"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert target.stat().st_size < 3000
    onnx.checker.check_model(str(target))
    places = {}
    for tensor in data_tensors(target):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "out.onnx.data"
        places[tensor.name] = int(entries["offset"]), int(entries["length"])
    assert places["k"][0] % 4096 == 0
    assert max(map(sum, places.values())) == (target.parent / "out.onnx.data").stat().st_size
    assert not {"v", "z"} & set(places)  # too small
    x = np.eye(600, dtype=np.float32)
    inside = write(tmp_path / "inside.onnx", big())
    qz.convert(inside, tmp_path / "inside-out.onnx", format=format)
    np.testing.assert_array_equal(run(target, x=x)[0], run(tmp_path / "inside-out.onnx", x=x)[0])
    assert {path: path.read_bytes() for path in before} == before
    back = target.parent / "back.onnx"
    qz.convert(target, back, dequantize=True)
    assert qz.compare_files(target, back).sqnr_db == float("inf")


def data_tensors(path):
    made = onnx.load(path, load_external_data=False)
    return [tensor for tensor in job.tensors_of(made) if tensor.data_location == TensorProto.EXTERNAL]


def test_ranges_that_tensors_share_are_copied_once(tmp_path):
    (tmp_path / "weights.bin").write_bytes(floats(64, 64).tobytes())
    made = model([node("Mul", "x v", "a"), node("Mul", "a u", "y")], {}, {"x": (64, 64)})
    for name in ("v", "u"):
        tensor = made.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=(64, 64), data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="weights.bin")
    source = write(tmp_path / "in.onnx", made)
    qz.convert(source, tmp_path / "out.onnx", format=NBITS)
    assert (tmp_path / "out.onnx.data").read_bytes() == (tmp_path / "weights.bin").read_bytes()
    x = floats(64, 64, seed=1)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x=x)[0], run(source, x=x)[0])


def test_a_model_takes_its_own_place_with_its_data(tmp_path):
    source = outside(tmp_path / "in.onnx", big())
    for _ in range(2):  # the second time the data is replaced too
        before = source.read_bytes(), decode_all(source)
        with pytest.raises(FileExistsError):
            qz.convert(source, source, format=QDQ)
        qz.convert(source, source, format=QDQ, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "in.onnx.data", "weights.bin"]
    after = decode_all(source)
    assert all(np.array_equal(after[name], array) for name, array in before[1].items())


def decode_all(path):
    with qz.open(path) as file:
        return {name: np.asarray(file[name]) for name in file}


def test_the_data_of_the_source_is_not_replaced(tmp_path):
    source = tmp_path / "in.onnx"
    onnx.save_model(big(), source, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    before = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(FileExistsError):
        qz.convert(source, tmp_path / "out.onnx", format=NBITS)
    with pytest.raises(ValueError, match="the data of the source has the name of its data"):
        qz.convert(source, tmp_path / "out.onnx", format=NBITS, overwrite=True)
    assert (tmp_path / "out.onnx.data").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx.data"]


def test_a_model_that_grows_too_large_gets_data_beside_it(tmp_path, monkeypatch):
    _, _, target = converted(tmp_path, two_layers())
    monkeypatch.setattr(output, "INSIDE_LIMIT", 4096)
    qz.convert(target, tmp_path / "back.onnx", dequantize=True)
    assert (tmp_path / "back.onnx.data").stat().st_size == 4 * (64 * 64 + 64 * 8)
    x = floats(3, 64, seed=4)
    np.testing.assert_allclose(run(tmp_path / "back.onnx", x=x)[0], run(target, x=x)[0], rtol=1e-4, atol=1e-4)


def test_a_failure_leaves_nothing(tmp_path):
    made = big()
    made.graph.initializer[0].raw_data = np.full(600 * 600, np.nan, np.float32).tobytes()
    source = outside(tmp_path / "in.onnx", made)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(qz.PolicyError):
        qz.convert(source, tmp_path / "out.onnx", format=NBITS)
    assert sorted(tmp_path.iterdir()) == before


# Broken files


def changed(made, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    change(copy.graph)
    return copy.SerializeToString()


def first(graph):
    return graph.initializer[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "no graph"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "onnx: no model"),
        (lambda: two_layers().SerializeToString()[:-100], "onnx: no model that protobuf can read"),
        (lambda: onnx.ModelProto(ir_version=8).SerializeToString(), "no graph"),
        (
            lambda: changed(two_layers(), lambda graph: first(graph).dims.append(2)),
            "tensor 'w' has 16384 bytes; its type and shape need 32768",
        ),
        (lambda: changed(two_layers(), lambda graph: first(graph).dims.append(2**62)), "its type and shape need"),
        (lambda: changed(two_layers(), lambda graph: first(graph).dims.append(-1)), "no negative length"),
        (lambda: changed(two_layers(), lambda graph: setattr(first(graph), "data_type", 77)), "type 77"),
        (lambda: changed(two_layers(), lambda graph: first(graph).ClearField("raw_data")), "tensor 'w' has 0 bytes"),
        (lambda: two_layers().SerializeToString().replace(b"w", b"\xff"), "not UTF-8"),
        (lambda: changed(two_layers(), lambda graph: setattr(first(graph), "name", "v")), "a name|is taken"),
        (lambda: changed(two_layers(), lambda graph: first(graph).segment.SetInParent()), "segment"),
        (lambda: changed(two_layers(), lambda graph: graph.node[1].output.__setitem__(0, "a")), "two nodes make the value 'a'"),
    ],
)
def test_broken_models_are_refused(tmp_path, make, message):
    path = tmp_path / "in.onnx"
    path.write_bytes(make())
    for call in (lambda: qz.open(path), lambda: qz.convert(path, tmp_path / "out.onnx", format=NBITS)):
        with pytest.raises(qz.CorruptFileError, match=message):
            call()
    assert list(tmp_path.iterdir()) == [path]


def test_a_quantized_weight_that_contradicts_itself_is_refused(tmp_path):
    _, _, target = converted(tmp_path, two_layers())
    made = onnx.load(target)
    made.graph.node[0].attribute[0].i = 65
    write(target, made)
    with pytest.raises(qz.CorruptFileError, match=r"tensor 'w_Q4' of a MatMulNBits has 2048 bytes; .* need 3072"):
        qz.open(target)


def test_a_weight_of_two_scales_is_refused(tmp_path):
    _, _, target = converted(tmp_path, model([node("MatMul", "x w", "a"), node("MatMul", "a w", "y")], {"w": floats(64, 64)}, GEMM))
    made = onnx.load(target)
    made.graph.initializer.append(numpy_helper.from_array(floats(64, 2), "others"))
    made.graph.node[1].input[2] = "others"
    write(target, made)
    with pytest.raises(qz.CorruptFileError, match="read the weight 'w_Q4' in two ways"):
        qz.open(target)


def test_a_message_beyond_two_gibibytes_is_refused_unread(tmp_path):
    path = tmp_path / "in.onnx"
    path.touch()
    os.truncate(path, 2**31)  # sparse
    with pytest.raises(qz.CorruptFileError, match="larger than 2 GiB.*external data"):
        qz.open(path)


@pytest.mark.parametrize("location", ["../weights.bin", "link.bin", "none.bin"])
def test_data_outside_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    source = outside(folder / "in.onnx", big())
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    made = onnx.load(source, load_external_data=False)
    for tensor in job.tensors_of(made):
        tensor.external_data[0].value = location
    write(source, made)
    before = sorted(folder.iterdir())
    for call in (lambda: qz.open(source), lambda: qz.convert(source, folder / "out.onnx", format=NBITS)):
        with pytest.raises(qz.CorruptFileError, match=re.escape(location)):
            call()
    assert sorted(folder.iterdir()) == before


# The command


def test_the_command_line(tmp_path, capsys):
    source, target = write(tmp_path / "in.onnx", two_layers()), tmp_path / "out.onnx"
    assert cli.main(["convert", str(source), str(target), "--to", NBITS, "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [tensor["format"] for tensor in report["tensors"]] == [NBITS] * 2
    assert cli.main(["inspect", str(target), "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert listed["container"] == "onnx"
    assert listed["metadata"] == {"ir_version": 10, "opset_import": ["ai.onnx 21", "com.microsoft 1"], "producer": "tests"}
    assert [(one["name"], one["shape"], one["format"], one["bits_per_weight"]) for one in listed["tensors"]] == [
        ("w", [64, 64], NBITS, 5.0),
        ("v", [64, 8], NBITS, 5.0),
    ]
    assert cli.main(["compare", str(source), str(target)]) == 0
    assert "SQNR" in capsys.readouterr().out
    assert cli.main(["convert", str(target), str(tmp_path / "back.onnx"), "--dequantize", "--quiet"]) == 0
    assert cli.main(["convert", str(source), str(tmp_path / "x.onnx")]) == cli.USAGE
    source.write_bytes(b"")
    assert cli.main(["inspect", str(source)]) == cli.BAD_INPUT


def test_compare_with_another_container(tmp_path):
    w = floats(64, 8)
    np.save(tmp_path / "w.npy", w)
    source = write(tmp_path / "in.onnx", model([node("MatMul", "x w", "y")], {"w": w, "n": np.arange(3)}, GEMM))
    compared = {tensor.name: tensor for tensor in qz.compare_files(source, tmp_path / "w.npy").tensors}
    assert (compared["w"].verdict, compared["w"].sqnr_db) == ("measured", float("inf"))
    assert compared["n"].verdict == "only first"
    compared = {tensor.name: tensor for tensor in qz.compare_files(source, source).tensors}
    assert compared["n"].verdict == "same"


def test_tensors_of_every_type_are_listed_and_read(tmp_path):
    """Raw and in the fields that are meant for their types."""
    kinds = {
        number: np.dtype(helper.tensor_dtype_to_np_dtype(number))
        for number, (name, bits, _) in data.TYPES.items()
        if name != "string" and bits >= 8
    }
    made = model([node("Identity", "x", "y")], {}, GEMM)
    expected = {}
    for number, dtype in kinds.items():
        values = np.array([1, 0, 1, 1]).astype(dtype).reshape(2, 2)
        for raw in (True, False):
            name = f"{data.TYPES[number][0]}{'' if raw else '_typed'}"
            content = values.tobytes() if raw else values.reshape(-1)
            made.graph.initializer.append(helper.make_tensor(name, number, (2, 2), content, raw=raw))
            expected[name] = values.tobytes()
    made.graph.initializer.append(helper.make_tensor("nibbles", TensorProto.INT4, (3,), [1, -2, 3]))
    made.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, (2,), [b"ab", b"c"]))
    path = write(tmp_path / "in.onnx", made)
    with qz.open(path) as file:
        assert {name: file[name].tobytes() for name in expected} == expected
        assert file["nibbles"].tolist() == [0xE1, 0x03]
        listed = {info.name: (info.dtype, info.shape, info.nbytes) for info in file.tensors}
        assert listed["nibbles"] == ("int4", (3,), 2)
        assert listed["text"] == ("string", (2,), 3)
        with pytest.raises(ValueError, match="strings"):
            file["text"]
    assert initializers({}) == []
    assert session(path).get_inputs()[0].name == "x"


def test_errors_are_measured_in_pieces(tmp_path, monkeypatch):
    nodes = [node("MatMul", "x w", "a"), node("Gemm", "a v", "b", transB=1), node("MatMul", "b u", "y")]
    weights = {"w": floats(64, 96), "v": floats(64, 96, seed=1), "u": floats(64, 96, seed=2)}
    source = write(tmp_path / "in.onnx", model(nodes, weights, GEMM))
    for format, group_size in ((NBITS, 32), (QDQ, 32), (QDQ, 40)):
        reports = []
        for elements in (job.MEASURED, 1000):
            monkeypatch.setattr(job, "MEASURED", elements)
            reports.append(qz.convert(source, tmp_path / "out.onnx", format=format, group_size=group_size, overwrite=True))
        for whole, pieces in zip(*(report.tensors for report in reports), strict=True):
            assert (whole.sqnr_db, whole.rmse, whole.max_abs_error) == pytest.approx((pieces.sqnr_db, pieces.rmse, pieces.max_abs_error))


def test_a_model_that_is_trained_is_refused(tmp_path):
    made = two_layers()
    made.training_info.add()
    with pytest.raises(ValueError, match="graphs for training"):
        qz.convert(write(tmp_path / "in.onnx", made), tmp_path / "out.onnx", format=NBITS)


def test_a_file_for_every_tensor_and_a_long_chain(tmp_path):
    """More files than a process may have open, more nodes in a row than Python's stack is deep."""
    count = resource.getrlimit(resource.RLIMIT_NOFILE)[0] + 10 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 5000 else 1100
    chain = [node("Identity", f"w{at}", f"w{at + 1}") for at in range(2000)]
    made = model([*chain, node("MatMul", "x w2000", "y")], {"w0": floats(64, 8)}, GEMM)
    for at in range(count):
        (tmp_path / f"{at}.bin").write_bytes(bytes(16))
        tensor = made.graph.initializer.add(name=f"t{at}", data_type=TensorProto.FLOAT, dims=(4,), data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"{at}.bin")
    report = qz.convert(write(tmp_path / "in.onnx", made), tmp_path / "out.onnx", format=NBITS)
    assert steps(report)["w0"] == ("quantize", None)
    assert not (tmp_path / "out.onnx.data").exists()  # nothing is large enough for it
    after = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert len(after.graph.node) == 1
    assert len(after.graph.initializer) == 2 + count


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


@pytest.mark.parametrize("beside", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, beside):
    """A limit on the size of a file stands for it."""
    made = two_layers()
    source = outside(tmp_path / "in.onnx", made) if beside else write(tmp_path / "in.onnx", made)
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "quantize", "convert", str(source), str(tmp_path / "out.onnx"), "--to", NBITS]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert done.returncode == cli.IO, done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_bytes_changed_at_random_give_a_model_or_an_error(tmp_path):
    random = np.random.default_rng(0)
    paths = [write(tmp_path / "floats.onnx", two_layers())]
    for format in (NBITS, QDQ):
        paths.append(tmp_path / f"{format.replace(':', '-')}.onnx")
        qz.convert(paths[0], paths[-1], format=format, symmetric=False)
    broken, target = tmp_path / "broken.onnx", tmp_path / "out.onnx"
    seen = set()
    for round_ in range(150):
        content = bytearray(paths[round_ % 3].read_bytes())
        # The names and numbers of a message are at its ends; between them are weights.
        at = int(random.choice([random.integers(300), len(content) - 1 - random.integers(400)]))
        if round_ % 2:
            content[at] = random.integers(256)
        else:
            del content[at : at + random.integers(1, 4)]
        broken.write_bytes(content)
        for how in ({"format": NBITS}, {"format": QDQ, "group_size": 16, "requantize": True}, {"dequantize": True}):
            try:
                qz.convert(broken, target, overwrite=True, **how)
                seen.add("done")
            except ValueError as error:
                seen.add(type(error).__name__)
    assert {"done", "CorruptFileError"} <= seen
    assert not list(tmp_path.glob(".quantize-*"))
