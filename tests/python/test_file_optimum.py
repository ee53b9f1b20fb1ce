"""Files beside the smallest error of their formats: the numbers of the arrays, whatever the blocks, the importance and the tensors without."""

import json

import numpy as np
import pytest
from checkpoints import bfloat16_bits, floats_of_bits, write
from helpers import sample

import quantize as qz
from quantize import cli
from quantize._files import optimum

FIELDS = ("lower_bound", "excess", "share_improved")
SHAPES = {"matrix": (48, 256), "brain": (12, 64), "stack": (3, 8, 128), "bias": (64,)}


@pytest.fixture
def source(tmp_path):
    tensors = {name: sample(shape, seed) for seed, (name, shape) in enumerate(SHAPES.items())}
    tensors["brain"] = bfloat16_bits(tensors["brain"])
    return write(tmp_path / "in.safetensors", tensors, None, brain="BF16"), tensors


def found(first, second, **how):
    compared = qz.compare_files(first, second, optimum=True, **how)
    return {tensor.name: tensor for tensor in compared.tensors}


def expected(tensors, name, q, **how):
    x = floats_of_bits(tensors[name]) if name == "brain" else tensors[name]
    return qz.compare(x, q, optimum=True, **how)


def check(tensor, beside, weights=None):
    assert [getattr(tensor, field) for field in FIELDS] == pytest.approx(beside[6:], rel=1e-12)
    assert tensor.weights == weights


@pytest.mark.parametrize("elements", [optimum.BLOCK_ELEMENTS, 1000])
@pytest.mark.parametrize(
    ("format", "options"), [("int4", {"group_size": 16}), ("gguf:q4_1", {}), ("nf4", {}), ("gguf:mxfp4", {}), ("hqq", {})]
)
def test_every_number_is_that_of_the_arrays(source, tmp_path, monkeypatch, elements, format, options):
    path, tensors = source
    monkeypatch.setattr(optimum, "BLOCK_ELEMENTS", elements)
    qz.convert(path, tmp_path / "out.safetensors", format=format, **options)
    compared = found(path, tmp_path / "out.safetensors")
    with qz.open(tmp_path / "out.safetensors") as file:
        for name in ("matrix", "brain", "stack"):
            check(compared[name], expected(tensors, name, file[name]))
            assert compared[name].excess > 0
    assert [getattr(compared["bias"], field) for field in FIELDS] == [None] * 3
    plain = qz.compare_files(path, tmp_path / "out.safetensors").tensors
    assert [getattr(plain[0], field) for field in (*FIELDS, "weights")] == [None] * 4
    assert [tensor.sqnr_db for tensor in plain] == [tensor.sqnr_db for tensor in compared.values()]


@pytest.mark.parametrize("elements", [optimum.BLOCK_ELEMENTS, 1000])
def test_the_importance_of_a_file_is_respected(source, tmp_path, monkeypatch, elements):
    path, tensors = source
    monkeypatch.setattr(optimum, "BLOCK_ELEMENTS", elements)
    experts = np.square(sample((3, 128), 7))
    experts[1] = 0  # no input came to it
    everywhere = np.square(sample(SHAPES["matrix"], 8))
    everywhere[:20] = 0
    write(tmp_path / "importance.safetensors", {"matrix": everywhere, "stack.in_sum2": experts, "other": everywhere})
    counted = np.where(experts.any(1, keepdims=True), experts, np.float32(1))
    importance = {"matrix": everywhere, "stack": np.repeat(counted[:, None], 8, axis=1)}
    for method, given in (("nearest", None), ("optimal", tmp_path / "importance.safetensors")):
        qz.convert(path, tmp_path / "out.safetensors", format="q4_0", method=method, importance=given, overwrite=True)
        compared = found(path, tmp_path / "out.safetensors", importance=tmp_path / "importance.safetensors")
        with qz.open(tmp_path / "out.safetensors") as file:
            for name in ("matrix", "stack"):
                check(compared[name], expected(tensors, name, file[name], importance=importance[name]), "importance")
                assert (compared[name].excess > 1e-6) == (method == "nearest")
                assert (compared[name].share_improved > 0) == (method == "nearest")
            check(compared["brain"], expected(tensors, "brain", file["brain"]))
    np.save(tmp_path / "matrix.npy", everywhere[30])
    columns = found(path, tmp_path / "out.safetensors", importance=tmp_path / "matrix.npy")["matrix"]
    with qz.open(tmp_path / "out.safetensors") as file:
        check(columns, expected(tensors, "matrix", file["matrix"], importance=everywhere[30]), "importance")


def test_what_has_no_proven_search_is_passed_over(source, tmp_path):
    _, tensors = source
    broken = tensors["matrix"].copy()
    broken[3, 5] = np.nan
    weights = {"a.matrix": tensors["matrix"], "b.matrix": tensors["matrix"], "c.matrix": tensors["matrix"], "d.matrix": broken}
    path = write(tmp_path / "in.safetensors", weights)
    rules = {"a.*": "gguf:q4_k", "b.*": "nf4,double_quant=true", "c.*": "gguf:q8_0", "*": "int4"}
    with pytest.warns(qz.QuantizeWarning):
        qz.convert(path, tmp_path / "out.safetensors", rules=rules, nonfinite="zero")
    compared = found(path, tmp_path / "out.safetensors")
    assert {tensor.lower_bound for tensor in compared.values()} == {None}
    assert {tensor.verdict for tensor in compared.values()} == {"measured"}


def test_importance_that_does_not_fit(source, tmp_path):
    path, _ = source
    qz.convert(path, tmp_path / "out.safetensors")
    write(tmp_path / "importance.safetensors", {"matrix": sample((7,), 1) ** 2})
    with pytest.raises(ValueError, match=r"tensor 'matrix': importance .*7"):
        found(path, tmp_path / "out.safetensors", importance=tmp_path / "importance.safetensors")
    write(tmp_path / "importance.safetensors", {"matrix": np.ones(256, np.int64)})
    with pytest.raises(TypeError, match="importance of tensor 'matrix' is of int64; expected floats"):
        found(path, tmp_path / "out.safetensors", importance=tmp_path / "importance.safetensors")
    with pytest.raises(ValueError, match="no use without optimum"):
        qz.compare_files(path, path, importance=tmp_path / "importance.safetensors")


def test_the_command_line_and_its_reports(source, tmp_path, capsys):
    path, tensors = source
    target = tmp_path / "out.safetensors"
    qz.convert(path, target, format="q4_0")
    np.save(tmp_path / "matrix.npy", np.square(tensors["matrix"][0]))
    asked = ["compare", str(path), str(target), "--optimum", "--importance", str(tmp_path / "matrix.npy"), "--quiet"]
    assert cli.main([*asked, "--json", "--report", str(tmp_path / "report.json")]) == 0
    printed = {tensor["name"]: tensor for tensor in json.loads(capsys.readouterr().out)["tensors"]}
    report = {tensor["name"]: tensor for tensor in json.loads((tmp_path / "report.json").read_text())["tensors"]}
    compared = found(path, target, importance=tmp_path / "matrix.npy")
    for name, tensor in compared.items():
        for field in (*FIELDS, "weights"):
            assert printed[name][field] == report[name][field] == getattr(tensor, field)
    assert report["matrix"]["weights"] == "importance"
    assert report["stack"]["weights"] is None
    assert cli.main([*asked[:-1], "--report", str(tmp_path / "report.html")]) == 0
    out = capsys.readouterr().out
    assert "lower bound" in out
    assert f"{compared['matrix'].excess:.1%}" in out
    page = (tmp_path / "report.html").read_text()
    assert "Beside the smallest error" in page
    for tensor in (compared["matrix"], compared["brain"], compared["stack"]):
        assert f"<td>{tensor.excess:.1%}</td><td>{tensor.share_improved:.1%}</td>" in page
    assert cli.main(["compare", str(path), str(target), "--report", str(tmp_path / "report.html")]) == 0
    assert "lower bound" not in capsys.readouterr().out
    assert "Beside" not in (tmp_path / "report.html").read_text()
    assert cli.main(["compare", str(path), str(target), "--importance", str(tmp_path / "matrix.npy")]) == cli.USAGE
