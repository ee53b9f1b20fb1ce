"""ONNX models without the onnx package: what is said then, and where the data of a model may lie. The rest is in tests/oracles."""

import os
import sys
from types import SimpleNamespace

import pytest

import quantize as qz
from quantize import cli
from quantize._onnx.data import Source

NEEDED = r"pip install quantize-int4\[onnx\]"


@pytest.fixture
def without_onnx(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)


@pytest.mark.usefixtures("without_onnx")
@pytest.mark.parametrize(
    "call",
    [
        lambda path: qz.open(path),
        lambda path: qz.convert(path, None, dry_run=True, format="onnx:matmulnbits"),
        lambda path: qz.compare_files(path, path),
    ],
)
def test_the_extra_that_is_missing_is_named(tmp_path, call):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    with pytest.raises(ImportError, match=NEEDED):
        call(path)


@pytest.mark.usefixtures("without_onnx")
def test_the_command_names_it_too(tmp_path, capsys):
    assert cli.main(["inspect", str(tmp_path / "model.onnx")]) == cli.FAILED
    assert "quantize-int4[onnx]" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "target", "options", "message"),
    [
        ("a.onnx", "a.safetensors", {}, "an ONNX file becomes an ONNX file"),
        ("a.safetensors", "a.onnx", {}, "an ONNX file becomes an ONNX file"),
        ("a.onnx", "b.onnx", {"scale_dtype": "float16"}, "scale_dtype or dtype is given"),
        ("a.onnx", "b.onnx", {"dtype": "float16", "dequantize": True}, "scale_dtype or dtype is given"),
    ],
)
def test_what_an_onnx_file_does_not_take(tmp_path, source, target, options, message):
    with pytest.raises(ValueError, match=message):
        qz.convert(tmp_path / source, tmp_path / target, **options)


# Data outside the model. The tensors are stand-ins with the fields of the message.


def tensor(dims=(2, 4), data_type=1, **external):
    entries = [SimpleNamespace(key=key, value=str(value)) for key, value in external.items()]
    return SimpleNamespace(name="w", dims=dims, data_type=data_type, data_location=1, external_data=entries, HasField=lambda _: False)


@pytest.fixture
def source(tmp_path):
    """A model's folder, in which w.bin has 40 bytes: one more float at either end than the tensor."""
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside.bin").write_bytes(bytes(32))
    (folder / "w.bin").write_bytes(bytes(range(40)))
    (folder / "sub" / "w.bin").write_bytes(bytes(32))
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    (folder / "inner.bin").symlink_to(folder / "w.bin")
    (folder / "linked").symlink_to(folder / "sub")
    os.link(tmp_path / "outside.bin", folder / "hard.bin")
    os.mkfifo(folder / "pipe")
    return Source(str(folder / "model.onnx"))


@pytest.mark.parametrize(
    "external",
    [
        {"location": "w.bin"},
        {"location": "w.bin", "offset": 4, "length": 32},
        {"location": "w.bin", "offset": 8, "length": 32, "checksum": "unused"},
        {"location": "./sub/w.bin", "length": 32},
    ],
)
def test_data_in_the_folder_is_read(source, external):
    one = tensor(**external)
    source.check([one])
    with open(os.path.join(os.path.dirname(source.path), external["location"]), "rb") as file:
        expected = file.read()[external.get("offset", 0) :][:32]
    assert source.read(one).tobytes() == expected
    assert b"".join(map(bytes, source.blocks(one))) == expected


@pytest.mark.parametrize(
    ("external", "message"),
    [
        ({}, "without a location"),
        ({"location": ""}, "inside the model's folder"),
        ({"location": "."}, "inside the model's folder"),
        ({"location": "../outside.bin"}, "inside the model's folder"),
        ({"location": "sub/../w.bin"}, "inside the model's folder"),
        ({"location": "/etc/passwd"}, "inside the model's folder"),
        ({"location": "sub//w.bin"}, "inside the model's folder"),
        ({"location": "w.bin\0"}, "inside the model's folder"),
        ({"location": "\n"}, "inside the model's folder"),
        ({"location": "link.bin"}, "is a link"),
        ({"location": "inner.bin"}, "is a link"),
        ({"location": "linked/w.bin"}, "is a link"),
        ({"location": "hard.bin"}, "no file of one name"),
        ({"location": "pipe"}, "no file of one name"),
        ({"location": "sub"}, "no file of one name"),
        ({"location": "w.bin/x"}, "is a link"),
        ({"location": "none.bin"}, "which is missing"),
        ({"location": "w.bin", "length": 28}, "28 bytes in 'w.bin'; its type and shape need 32"),
        ({"location": "w.bin", "length": 36}, "36 bytes in 'w.bin'; its type and shape need 32"),
        ({"location": "w.bin", "offset": 12}, "ends at byte 44 of 'w.bin'; the file has 40"),
        ({"location": "w.bin", "offset": 2**63 - 1}, "the file has 40"),
        ({"location": "w.bin", "offset": -4}, "expected a number of bytes"),
        ({"location": "w.bin", "offset": "0x4"}, "expected a number of bytes"),
        ({"location": "w.bin", "length": "9" * 5000}, "expected a number of bytes"),
        ({"location": "w.bin", "key": "value"}, "the key 'key'"),
        ({"location": "w.bin", "dims": (2**40, 2**40)}, "the file has 40"),
        ({"location": "w.bin", "dims": (-1, 4)}, "no negative length"),
        ({"location": "w.bin", "data_type": 99}, "type 99"),
    ],
)
def test_data_elsewhere_is_refused(source, external, message):
    with pytest.raises(qz.CorruptFileError, match=message):
        source.check([tensor(**external)])


def test_ranges_may_be_shared_but_not_overlap(source):
    source.check([tensor(location="w.bin", offset=4), tensor(location="w.bin", offset=4)])
    with pytest.raises(qz.CorruptFileError, match="overlap in 'w.bin'"):
        source.check([tensor(location="w.bin", offset=4), tensor(location="w.bin", offset=8)])


def test_a_file_that_becomes_shorter_is_an_error(source):
    one = tensor(location="w.bin")
    source.check([one])
    os.truncate(os.path.join(os.path.dirname(source.path), "w.bin"), 20)
    with pytest.raises(qz.CorruptFileError, match="shorter"):
        source.read(one)


def test_a_file_that_is_replaced_is_an_error(source):
    one = tensor(location="w.bin")
    source.check([one])
    path = os.path.join(os.path.dirname(source.path), "w.bin")
    with open(path + ".new", "wb") as file:
        file.write(bytes(40))
    os.replace(path + ".new", path)
    with pytest.raises(qz.CorruptFileError, match="another file"):
        source.read(one)
