"""npz files: what numpy writes is read, converted and compared; archives that lie are refused."""

import io
import json
import time
import zipfile

import numpy as np
import pytest
from helpers import same, sample

import quantize as qz
from quantize import cli


def arrays():
    return {
        "layers.0.weight": sample((8, 96), 1),
        "half": sample((4, 64), 2).astype(np.float16),
        "fortran": np.asfortranarray(sample((5, 64), 3)),
        "swapped": sample((4, 32), 4).astype(">f8"),
        "ids": np.arange(7),
        "scalar": np.float32(3),
        "a/../../b": sample((2, 32), 5),
    }


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_saves_is_read_and_converted(save, tmp_path):
    path, out = tmp_path / "in.npz", tmp_path / "out.safetensors"
    save(path, **arrays())
    with qz.open(path) as file:
        assert file.container == "npz"
        assert list(file) == list(arrays())
        for name, array in arrays().items():
            same(file[name], array.astype(array.dtype.newbyteorder("=")), name)
    report = qz.convert(path, out)
    assert report.sqnr_db > 15
    with qz.open(out) as file:
        assert file["layers.0.weight"].identical(qz.quantize(arrays()["layers.0.weight"]))
        assert file["half"].identical(qz.quantize(arrays()["half"]))
        same(file["ids"], arrays()["ids"])
    compared = {row.name: row.verdict for row in qz.compare_files(path, out).tensors}
    assert compared["fortran"] == "measured"
    assert compared["ids"] == "same"
    # A name is a name: nothing is written elsewhere.
    assert sorted(tmp_path.iterdir()) == [path, out]


def test_a_large_member_is_decoded_as_it_is_read(tmp_path):
    array = sample((700, 4096), 6)
    np.savez_compressed(tmp_path / "in.npz", w=array)
    qz.convert(tmp_path / "in.npz", tmp_path / "out", memory_limit=4 << 20, format="gguf:nvfp4")
    assert qz.open(tmp_path / "out")["w"].identical(qz.quantize(array, "gguf:nvfp4"))


def test_the_command_line_lists_it(tmp_path, capsys):
    np.savez(tmp_path / "in.npz", **arrays())
    assert cli.main(["inspect", str(tmp_path / "in.npz"), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out)
    assert (seen["container"], len(seen["tensors"])) == ("npz", len(arrays()))
    assert cli.main(["convert", str(tmp_path / "in.npz"), str(tmp_path / "out.npz")]) == cli.USAGE
    assert "npy and npz files become safetensors" in capsys.readouterr().err


def member(array):
    data = io.BytesIO()
    np.save(data, array, allow_pickle=True)
    return data.getvalue()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("archive/data.pkl", b"\x80\x02}q\x00."), ("archive/data/0", b"1234")], "torch checkpoint, and pickles are never loaded"),
        ([("readme.txt", b"hello")], "member 'readme.txt' is no npy array"),
        ([("w.npy", member(sample((2, 32)))), ("w.npy", member(sample((2, 32))))], "member 'w.npy' comes twice"),
        ([("w.npy", b"no array")], "member 'w.npy': the file does not begin as one"),
        ([("w.npy", member(sample((2, 32)))[:-1])], "member 'w.npy': <f4 of shape \\(2, 32\\) takes 256 bytes, but 255 follow"),
        ([("o.npy", member(np.array([{}], dtype=object)))], "member 'o.npy': the array holds Python objects"),
        ([("\x1b[31m.npy", b"")], r"'\\u\{1b\}\[31m\.npy'"),
    ],
)
def test_an_archive_of_something_else_is_refused(members, message, tmp_path):
    with zipfile.ZipFile(tmp_path / "in.npz", "w") as archive:
        for name, data in members:
            archive.writestr(name, data)
    with pytest.raises(qz.CorruptFileError, match=message):
        qz.open(tmp_path / "in.npz")
    assert cli.main(["convert", str(tmp_path / "in.npz"), str(tmp_path / "out")]) == cli.BAD_INPUT
    assert [entry.name for entry in tmp_path.iterdir()] == ["in.npz"]


def test_what_zip_tools_of_other_methods_write_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "in.npz", "w", zipfile.ZIP_BZIP2) as archive:
        archive.writestr("w.npy", member(sample((2, 32))))
    with pytest.raises(qz.CorruptFileError, match="is packed by method 12"):
        qz.open(tmp_path / "in.npz")


def test_a_bomb_costs_no_more_than_its_bytes(tmp_path):
    """A terabyte of zeros is claimed by a few bytes: refused at once."""
    np.savez_compressed(tmp_path / "in.npz", w=np.zeros(1000, np.uint8))
    data = bytearray((tmp_path / "in.npz").read_bytes())
    entry = data.rfind(b"PK\x01\x02")
    data[entry + 24 : entry + 28] = (0xFFFFFFF0).to_bytes(4, "little")
    (tmp_path / "in.npz").write_bytes(data)
    start = time.perf_counter()
    with pytest.raises(qz.CorruptFileError, match="more than its"):
        qz.open(tmp_path / "in.npz")
    assert time.perf_counter() - start < 10
