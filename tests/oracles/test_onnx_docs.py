"""The page of ONNX: its commands and its example run. They are not among those of the other pages, since the package onnx is an extra."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from onnx_models import floats, model, node, write

PAGE = (Path(__file__).parents[2] / "docs" / "onnx.md").read_text(encoding="utf-8")


@pytest.fixture
def beside_a_model(tmp_path, monkeypatch):
    nodes = [
        node("Gather", "embed_tokens ids", "x"),
        node("MatMul", "x up_proj", "a"),
        node("Gemm", "a down_proj c", "b", transB=1),
        node("MatMul", "b lm_head", "y"),
    ]
    weights = {"embed_tokens": floats(10, 128), "up_proj": floats(128, 64, seed=1), "down_proj": floats(128, 64, seed=2), "c": floats(128)}
    write(tmp_path / "model.onnx", model(nodes, weights | {"lm_head": floats(128, 10, seed=3)}, {"ids": (None,)}))
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("beside_a_model")
def test_the_page():
    lines = re.findall(r"^\$ (quantize .*)$", PAGE, re.M)
    assert len(lines) == 7
    for line in lines:
        done = subprocess.run([sys.executable, "-m", *shlex.split(line)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
    (code,) = re.findall(r"^```py\n(.*?)^```$", PAGE, re.M | re.S)
    names = {}
    exec(compile(code, "docs/onnx.md", "exec"), names)
    assert (names["q"].format, names["q"].shape) == ("onnx:matmulnbits", (128, 64))
