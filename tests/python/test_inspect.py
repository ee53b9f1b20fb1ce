"""What a file holds, and the mistakes of public files found in it."""

import json

import numpy as np
import pytest
from checkpoints import write
from folders import CONFIG, folder
from helpers import sample

import quantize as qz
from quantize import cli


@pytest.fixture
def made(tmp_path):
    """A folder of GPTQ, as version 1."""
    qz.convert(folder(tmp_path / "model"), tmp_path / "out", format="gptq", symmetric=False, method="nearest")
    return tmp_path / "out"


def relabelled(path, **change):
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] |= change
    (path / "config.json").write_text(json.dumps(config))


def test_nothing_is_found_in_what_is_right(made):
    found = qz.inspect(made)
    assert found.findings == ()
    assert found.container == "huggingface"
    assert found.bits_per_weight == pytest.approx(4 + 20 / 128 + 32 / np.mean([32, 16, 16, 128, 64, 64, 128]), abs=1)
    with qz.open(made) as file:
        assert found.tensors == file.tensors


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_header_of_gptq_version_1_over_zero_points_of_version_2(tmp_path, symmetric):
    qz.convert(folder(tmp_path / "model"), tmp_path / "out", format="gptq:v2", symmetric=symmetric)
    assert qz.inspect(tmp_path / "out").findings == ()
    relabelled(tmp_path / "out", checkpoint_format="gptq")
    found = qz.inspect(tmp_path / "out")
    offset = [finding for finding in found.findings if finding.kind == "zero_point_offset"]
    if symmetric:
        assert len(offset) == len(found.findings) == 14
        assert all(finding.certain and "0x88888888" in finding.message and "other version" in finding.advice for finding in offset)
        assert qz.inspect(tmp_path / "out", check=False).findings == ()
    else:
        assert offset


def test_scales_that_are_not_finite(tmp_path):
    qz.convert(write(tmp_path / "in.safetensors", {"w": sample((8, 64), 1)}), tmp_path / "out.safetensors")
    data = bytearray((tmp_path / "out.safetensors").read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin, _ = json.loads(data[8 : 8 + length])["w.scales"]["data_offsets"]
    data[8 + length + begin : 8 + length + begin + 2] = np.float16(np.nan).tobytes()
    (tmp_path / "out.safetensors").write_bytes(data)
    (finding,) = qz.inspect(tmp_path / "out.safetensors").findings
    assert (finding.tensor, finding.kind, finding.certain) == ("w", "not_finite", True)


def test_large_tensors_are_looked_at_in_rows(tmp_path, monkeypatch):
    from quantize._files import inspection

    qz.convert(folder(tmp_path / "model"), tmp_path / "out", format="gptq:v2")
    relabelled(tmp_path / "out", checkpoint_format="gptq")
    whole = qz.inspect(tmp_path / "out").findings
    monkeypatch.setattr(inspection, "ROWS", 2048)
    rows = qz.inspect(tmp_path / "out").findings
    assert [(finding.tensor, finding.kind) for finding in rows] == [(finding.tensor, finding.kind) for finding in whole]
    assert any("from row 0 on: " in finding.message for finding in rows)
    qz.convert(tmp_path / "model", tmp_path / "ct", format="compressed-tensors", symmetric=False)
    assert qz.inspect(tmp_path / "ct").findings == ()


def test_a_method_that_is_not_read_is_said(tmp_path):
    described = {"quantization_config": {"quant_method": "fp8"}}
    found = qz.inspect(folder(tmp_path / "model", config=CONFIG | described))
    (finding,) = found.findings
    assert (finding.tensor, finding.kind) == (None, "method")
    assert "fp8" in finding.message


def test_the_command_line(made, capsys):
    assert cli.main(["inspect", str(made), "--strict"]) == 0
    assert "bits per weight  " in capsys.readouterr().out
    qz.convert(made, made.parent / "two", format="gptq:v2")
    relabelled(made.parent / "two", checkpoint_format="gptq")
    two = str(made.parent / "two")
    assert cli.main(["inspect", two]) == 0
    assert "zero_point_offset: model.layers.0" in capsys.readouterr().out
    assert cli.main(["inspect", two, "--json", "--no-check"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    relabelled(made.parent / "two", checkpoint_format="marlin")
    assert cli.main(["inspect", two, "--strict"]) == cli.POLICY
    assert "findings that are certain" in capsys.readouterr().err
