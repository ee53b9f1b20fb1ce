"""Files that are what they should be, and files that were tampered with."""

import json

import numpy as np
import pytest
from checkpoints import write
from folders import folder
from helpers import sample

import quantize as qz
from quantize import cli

SEARCHES = [
    (info.name, method)
    for method in ("nearest", "optimal", "fast")
    for info in qz.formats()
    if method in info.methods and not info.name.startswith("onnx:")
]


@pytest.fixture
def source(tmp_path):
    arrays = {"w": sample((16, 512), 1), "v": sample((8, 512), 2).astype(np.float16), "norm": sample((512,), 3)}
    arrays["w"][3, 7] = 9  # an outlier
    return write(tmp_path / "in.safetensors", arrays)


def verdicts(path, **options):
    return {tensor.name: tensor.verdict for tensor in qz.verify(path, **options).tensors}


@pytest.mark.parametrize(("format", "method"), SEARCHES)
def test_what_a_conversion_makes_is_what_it_should_be(source, tmp_path, format, method):
    weights = np.random.default_rng(0).uniform(0.01, 1, 512).astype(np.float32) ** 4
    write(tmp_path / "importance.safetensors", {"w": weights})
    importance = None if method == "nearest" else tmp_path / "importance.safetensors"
    qz.convert(source, tmp_path / "out.safetensors", format=format, method=method, importance=importance)
    assert verdicts(tmp_path / "out.safetensors") == {"w": "sound", "v": "sound", "norm": "sound"}
    found = qz.verify(tmp_path / "out.safetensors", against=source)
    assert found.ok
    assert {tensor.name: tensor.reason for tensor in found.tensors} == {"w": None, "v": None, "norm": None}
    if method == "nearest":
        assert {tensor.name: tensor.verdict for tensor in found.tensors} == {"w": "reproduced", "v": "reproduced", "norm": "same"}
    qz.convert(tmp_path / "out.safetensors", tmp_path / "floats.safetensors", dequantize=True)
    assert set(verdicts(tmp_path / "floats.safetensors", against=tmp_path / "out.safetensors").values()) == {"same"}


def change(path, name, edit):
    """Change the bytes of one stored tensor."""
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    part = np.frombuffer(bytes(data[8 + length + begin : 8 + length + end]), np.uint8).copy()
    edit(part)
    data[8 + length + begin : 8 + length + end] = part.tobytes()
    path.write_bytes(data)


def flip(at, mask):
    def edit(part):
        part[at] ^= mask

    return edit


def half(at, value):
    def edit(part):
        part.view(np.float16)[at] = value

    return edit


TAMPERED = [
    ("w.packed", flip(100, 0x02), "elements are not stored as the nearest value, the first at (0, "),
    ("w.packed", flip(-1, 0x10), "elements are not stored as the nearest value, the first at (15, 511)"),
    ("w.scales", half(5, np.nan), "its values are not finite, the first at (0, 160)"),
    ("w.scales", half(5, np.inf), "its values are not finite, the first at (0, "),
    ("w.scales", half(5, 4.0), "(0, 160)"),
    ("w.scales", half(5, 0.0), "(0, 160)"),
    ("norm", flip(0, 0x01), "its values are not those of the source"),
]


@pytest.mark.parametrize(("part", "edit", "message"), TAMPERED)
@pytest.mark.parametrize("method", ["nearest", "optimal"])
def test_what_was_tampered_with_is_found(source, tmp_path, part, edit, message, method):
    out = tmp_path / "out.safetensors"
    qz.convert(source, out, format="int4", method=method)
    change(out, part, edit)
    found = qz.verify(out, against=source)
    assert not found.ok
    (fault,) = found.faults
    assert fault.name == part.split(".", maxsplit=1)[0]
    assert message in fault.reason
    finite = "finite" not in message
    assert qz.verify(out).ok is finite


def test_hashes_of_a_report(source, tmp_path, capsys):
    out, report = tmp_path / "out.safetensors", tmp_path / "report.json"
    assert cli.main(["convert", str(source), str(out), "--to", "gguf:q4_0", "--report", str(report), "--quiet"]) == 0
    assert all(tensor["seconds"] > 0 for tensor in json.loads(report.read_text())["tensors"])
    assert qz.verify(out, report=report).ok
    change(out, "v.blocks", flip(40, 0x01))
    (fault,) = qz.verify(out, report=report).faults
    assert (fault.name, fault.verdict) == ("v", "faulty")
    assert "its hash is" in fault.reason
    names = json.loads(report.read_text())
    names["tensors"][0]["name"] = "other"
    report.write_text(json.dumps(names))
    assert {tensor.reason for tensor in qz.verify(out, report=report).faults} >= {"the report has it, the file has not"}
    assert cli.main(["convert", str(source), str(out), "--to", "gguf:q4_0", "--json", "--quiet", "--overwrite"]) == 0
    report.write_text(capsys.readouterr().out)
    assert qz.verify(out, report=report).ok
    change(out, "v.blocks", flip(40, 0x01))
    assert [fault.name for fault in qz.verify(out, report=report).faults] == ["v"]
    names = json.loads(report.read_text())
    for tensor in names["tensors"]:
        tensor["sha256"] = None  # of what an earlier job had done
    report.write_text(json.dumps(names))
    assert qz.verify(out, report=report).ok
    report.write_text("[]")
    with pytest.raises(qz.CorruptFileError, match="no report"):
        qz.verify(out, report=report)


def test_a_file_that_is_not_of_its_source(source, tmp_path):
    qz.convert(source, tmp_path / "out.safetensors")
    write(tmp_path / "other.safetensors", {"w": sample((8, 512), 1), "v": sample((8, 512), 9).astype(np.float16), "more": sample((4,), 1)})
    found = qz.verify(tmp_path / "out.safetensors", against=tmp_path / "other.safetensors")
    assert {tensor.name: tensor.reason.split(",")[0] for tensor in found.faults} == {
        "w": "its shape is (16",
        "v": found.faults[[tensor.name for tensor in found.faults].index("v")].reason.split(",")[0],
        "norm": "the source has no such tensor",
        "more": "the source has it",
    }


@pytest.mark.parametrize("format", ["compressed-tensors", "compressed-tensors:nvfp4", "gptq", "awq", "bnb:nf4", "mlx", "modelopt:nvfp4"])
def test_folders(tmp_path, format):
    model = folder(tmp_path / "model")
    qz.convert(model, tmp_path / "out", format=format, shard_size=50_000)
    assert set(verdicts(tmp_path / "out").values()) == {"sound"}
    expected = {"same", "reproduced"}
    assert set(verdicts(tmp_path / "out", against=model).values()) == expected
    qz.convert(tmp_path / "out", tmp_path / "floats", dequantize=True)
    assert set(verdicts(tmp_path / "floats", against=tmp_path / "out").values()) == {"same"}


def test_a_file_that_is_cut_short(source, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    qz.convert(source, out)
    out.write_bytes(out.read_bytes()[:-1])
    with pytest.raises(qz.CorruptFileError):
        qz.verify(out)
    assert cli.main(["verify", str(out)]) == cli.BAD_INPUT
    assert cli.main(["verify", str(tmp_path / "absent")]) == cli.IO
    capsys.readouterr()


def test_the_command_line(source, tmp_path, capsys):
    out = tmp_path / "out.safetensors"
    qz.convert(source, out)
    assert cli.main(["verify", str(out), "--against", str(source)]) == 0
    assert "2 reproduced, 1 same" in capsys.readouterr().out
    change(out, "w.scales", half(0, np.nan))
    assert cli.main(["verify", str(out), "--json"]) == cli.BAD_INPUT
    shown, err = capsys.readouterr()
    assert [tensor["verdict"] for tensor in json.loads(shown)["tensors"] if tensor["name"] == "w"] == ["faulty"]
    assert "1 tensor is at fault" in err
    assert cli.main(["verify", str(tmp_path / "model.onnx")]) == cli.USAGE
