"""Conversion of ONNX models: from one format to another, options, the command line."""

import json

import numpy as np
import onnx
import pytest
from helpers import same
from onnx_models import GEMM, NBITS, QDQ, converted, decoded, floats, formats, model, node, operators, run, steps, two_layers, write

import quantize as qz
from quantize import cli


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
            "clipped": {"method": "optimal", "clip_limit": 0.0},
            "weighted": {"method": "optimal", "importance": tmp_path / "w.npy"},
        }.items()
    }
    assert reports["optimal"].sqnr_db > reports["nearest"].sqnr_db + 0.3
    assert [report.tensors[0].weights for report in reports.values()] == [None, "magnitude", "magnitude", "importance"]
    assert reports["clipped"].sqnr_db < reports["optimal"].sqnr_db
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


@formats
def test_reports_speak_of_the_groups_of_the_inputs(tmp_path, format):
    """Of square matrices too, which MatMulNBits has the other way round than Gemm."""
    nodes = [node("MatMul", "x w", "a"), node("Gemm", "a v", "y", transB=1)]
    weights = {"w": floats(64, 64), "v": floats(64, 64, seed=1)}
    weights["w"][32:, 5] *= np.where(np.arange(32) == 3, 30, 1)
    weights["v"][7, :32] *= np.where(np.arange(32) == 3, 30, 1)
    source, target = write(tmp_path / "in.onnx", model(nodes, weights, GEMM)), tmp_path / "out.onnx"
    done = qz.convert(source, target, format=format)
    compared = qz.compare_files(source, target, optimum=True)
    report = qz.report(source, target, comparison=compared)
    for detail, tensor, step in zip(report.tensors, compared.tensors, done.tensors, strict=True):
        assert detail.sqnr_db == pytest.approx(step.sqnr_db)
        assert tensor.sqnr_db == pytest.approx(step.sqnr_db)
        x = weights["v"].T if detail.name == "v" else weights["w"]
        q = qz.quantize(x, format, axis=0)
        assert (detail.lower_bound, detail.excess) == pytest.approx(qz.compare(x, q, optimum=True)[6:8])
        assert sum(detail.histogram) == 128
    assert [detail.worst_group for detail in report.tensors] == [(5, 1), (7, 0)]
