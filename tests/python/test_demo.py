"""The demonstration, with the package of weights and without."""

import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from quantize import demo


@pytest.fixture
def without_the_package(monkeypatch):
    monkeypatch.setattr(demo, "PACKAGE", "quantize_no_such_package")


@pytest.mark.usefixtures("without_the_package")
def test_it_needs_nothing(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["demo"])
    assert demo.main() == 0
    first, command, *report = capfd.readouterr().out.splitlines()
    assert first == "quantize_no_such_package is not installed: these are random weights (seed 20260101), not a model"
    assert command.startswith("$ quantize convert ")
    assert command.endswith("--format int4 --group-size 32")
    assert any("bits" in line for line in report)


def test_the_random_weights_are_a_checkpoint(tmp_path):
    demo.write_random(tmp_path / "random.safetensors")
    tensors = load_file(tmp_path / "random.safetensors")
    assert tensors["output.weight"].shape == (384, 1536)
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}
    assert all(0.04 < array.std() < 0.06 for array in tensors.values())


def test_it_finds_the_package(tmp_path, monkeypatch, capfd):
    folder = tmp_path / "weights_of_a_test"
    (folder / "model").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('the package is not imported')")
    save_file({"weight": np.ones((64, 64), np.float32)}, folder / "model" / "model.safetensors")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(demo, "PACKAGE", folder.name)
    assert demo.main(["--format", "gguf:q4_0"]) == 0
    command, *report = capfd.readouterr().out.splitlines()
    assert str(folder / "model" / "model.safetensors") in command
    assert command.endswith("--format gguf:q4_0")
    assert report
