"""Rules by name for ONNX models: which one decides, what the plan says of it, what onnxruntime computes."""

import json

import numpy as np
import onnx
import pytest
from onnx_models import NBITS, QDQ, decoded, floats, model, node, operators, run, write

import quantize as qz
from quantize import cli


@pytest.fixture
def source(tmp_path):
    """Four weights, the first of which is a table, and a vector."""
    nodes = [
        node("Gather", "embed ids", "a"),
        node("MatMul", "a up", "b"),
        node("Gemm", "b down bias", "c", transB=1),
        node("MatMul", "c head", "y"),
    ]
    weights = {"embed": floats(10, 64), "up": floats(64, 128, seed=1), "down": floats(64, 128, seed=2), "head": floats(64, 10, seed=3)}
    return write(tmp_path / "in.onnx", model(nodes, weights | {"bias": floats(64, seed=4)}, {"ids": (None,)}))


RULES = {"d*": f"{QDQ},group_size=64,symmetric=false", "embed": f"{NBITS},group_size=16", "head": "keep", "bias": "keep"}


def became(report):
    return {tensor.name: (tensor.action, tensor.format, tensor.group_size, tensor.rule) for tensor in report.tensors}


def test_the_first_rule_that_matches_decides(source, tmp_path):
    expected = {
        "embed": ("quantize", NBITS, 16, "embed"),
        "up": ("quantize", NBITS, 32, None),
        "down": ("quantize", QDQ, 64, "d*"),
        "head": ("keep", None, None, "head"),
        "bias": ("keep", None, None, "bias"),
    }
    rules = {**RULES, "*": "keep"}  # in vain for what others match
    assert became(qz.convert(source, None, format=NBITS, rules=RULES, dry_run=True)) == expected
    assert became(qz.convert(source, None, rules=rules, dry_run=True))["up"] == ("keep", None, None, "*")
    target = tmp_path / "out.onnx"
    assert became(qz.convert(source, target, format=NBITS, rules=list(RULES.items()))) == expected
    made = onnx.load(target)
    onnx.checker.check_model(str(target))
    assert operators(made) == ["DequantizeLinear", "GatherBlockQuantized", "MatMulNBits", "Gemm", "MatMul"]
    with qz.open(source) as before, qz.open(target) as after:
        assert after["embed"].identical(qz.quantize(before["embed"], NBITS, group_size=16))
        assert after["up"].identical(qz.quantize(before["up"], NBITS, axis=0))
        assert after["down"].identical(qz.quantize(before["down"], QDQ, group_size=64, symmetric=False))
        assert np.array_equal(after["head"], before["head"])
    ids = np.arange(10)
    layers = decoded(target, "embed")[ids] @ decoded(target, "up") @ decoded(target, "down").T
    with qz.open(source) as floats_:
        expected_y = (layers + floats_["bias"]) @ floats_["head"]
    np.testing.assert_allclose(run(target, ids=ids)[0], expected_y, rtol=1e-3, atol=1e-2)


def test_what_no_rule_matches_is_kept_or_becomes_the_format(source):
    kept = became(qz.convert(source, None, rules={"up": NBITS}, dry_run=True))
    assert kept["down"] == ("keep", None, None, "*")
    rest = became(qz.convert(source, None, format=QDQ, rules=[("up", "keep")], dry_run=True))
    assert rest["up"] == ("keep", None, None, "up")
    assert rest["down"] == ("quantize", QDQ, 32, None)
    assert rest["embed"] == ("keep", None, None, None)
    named = became(qz.convert(source, None, rules={"*": NBITS}, keep=["up"], exclude=["d*"], dry_run=True))
    assert named["up"] == named["down"] == ("keep", None, None, None)
    assert named["embed"] == ("quantize", NBITS, 32, "*")
    table = qz.convert(source, None, rules={"embed": QDQ}, dry_run=True).tensors[0]
    assert (table.action, table.rule) == ("keep", "embed")
    assert "decode the whole table" in table.reason


def test_rules_for_a_model_that_is_quantized(source, tmp_path):
    qz.convert(source, tmp_path / "out.onnx", format=NBITS, rules=RULES)
    report = qz.convert(tmp_path / "out.onnx", tmp_path / "again.onnx", rules={"up": QDQ, "down": NBITS, "embed": "keep"})
    found = became(report)
    assert [found[name] for name in ("up", "down", "embed")] == [
        ("repack", QDQ, 32, "up"),
        ("repack", NBITS, 64, "down"),
        ("keep", NBITS, 16, "embed"),
    ]
    assert qz.compare_files(tmp_path / "out.onnx", tmp_path / "again.onnx").sqnr_db == float("inf")


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"x*": NBITS}, r"a rule is 'x\*'; no tensor of the file matches it"),
        ({"up": "int4"}, "is 'int4'; an ONNX file takes"),
        ({"up": f"{NBITS},group_size=24"}, "24"),
        ({"up": f"{QDQ},group_size=tensor"}, "group_size is 'tensor'"),
        ({"up": f"{NBITS},color=3"}, "color"),
        ({"up": f"{NBITS},scale_dtype=float16"}, "the rule of 'up' has scale_dtype"),
    ],
)
def test_rules_that_mean_nothing_are_refused(source, tmp_path, rules, message):
    for format in (None, NBITS):
        with pytest.raises((ValueError, TypeError), match=message):
            qz.convert(source, tmp_path / "out.onnx", format=format, rules=rules)
    assert list(tmp_path.iterdir()) == [source]


def test_rules_go_with_the_model(source, tmp_path):
    with pytest.raises(ValueError, match="a rule is 'up'; floats are wanted"):
        qz.convert(source, None, rules={"up": NBITS}, dequantize=True, dry_run=True)
    old = write(tmp_path / "old.onnx", model([node("MatMul", "x w", "y")], {"w": floats(64, 8)}, {"x": (None, 64)}, opset=17))
    with pytest.raises(ValueError, match="the format of the rule of 'w' is 'onnx:qdq'; the model is of opset 17"):
        qz.convert(old, None, format=NBITS, rules={"w": QDQ}, dry_run=True)


def test_rules_on_the_command_line(source, capsys):
    job = ["convert", str(source), "--dry-run", "--to", NBITS, *(word for rule in RULES.items() for word in ("--rule", "=".join(rule)))]
    assert cli.main(job) == 0
    out = capsys.readouterr().out
    assert "rule d*" in out
    assert "kept by rule 'head'" in out
    assert cli.main([*job, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert {tensor["name"]: tensor["rule"] for tensor in plan["tensors"]}["down"] == "d*"
