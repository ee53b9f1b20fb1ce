"""npz files: what numpy writes is read, converted and compared; archives that lie are refused."""

import io
import json
import time
import zipfile

import numpy as np
import pytest
from checkpoints import container, write
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
    assert cli.main(["convert", str(tmp_path / "in.npz"), str(tmp_path / "out.npy")]) == cli.USAGE
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


def plain_arrays():
    """One of each dtype that an npz file can hold, in shapes that differ."""
    kinds = [np.bool_, np.int8, np.uint8, np.int16, np.uint16, np.float16, np.int32, np.uint32, np.float32, np.complex64]
    kinds += [np.int64, np.uint64, np.float64]
    shapes = [(), (3,), (2, 3), (0, 4), (1, 2, 3)]
    made = {f"of {np.dtype(kind).name}": np.ones(shapes[number % 5], kind) for number, kind in enumerate(kinds)}
    return made | {"\u00e9t\u00e9": sample((2, 3), 7), "a/../../b.npy": np.arange(5)}


def test_what_is_written_is_read_by_numpy(tmp_path):
    np.savez(tmp_path / "in.npz", **plain_arrays())
    report = qz.convert(tmp_path / "in.npz", tmp_path / "out.npz", exclude=["*"])
    assert {tensor.action for tensor in report.tensors} == {"keep"}
    with zipfile.ZipFile(tmp_path / "out.npz") as archive:
        assert archive.testzip() is None
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert set(found) == set(plain_arrays())
        for name, array in plain_arrays().items():
            same(found[name], array, name)
    with qz.open(tmp_path / "out.npz") as file:
        assert list(file) == list(plain_arrays())


def test_quantized_tensors_are_read_by_numpy_and_back(tmp_path):
    write(tmp_path / "in.safetensors", {"w": sample((40, 128), 1), "bias": sample((8,), 2)}, {"who": "somebody"})
    report = qz.convert(tmp_path / "in.safetensors", tmp_path / "out.npz", format="int4")
    q = qz.quantize(sample((40, 128), 1), "int4")
    with np.load(tmp_path / "out.npz", allow_pickle=False) as found:
        assert sorted(found) == ["__metadata__", "bias", "w.packed", "w.scales"]
        for part, array in q.parts.items():
            same(found[f"w.{part}"], array, part)
        texts = json.loads(found["__metadata__"].tobytes())
    assert texts["who"] == "somebody"
    assert json.loads(texts["quantize"])["tensors"]["w"]["format"] == "int4"
    with qz.open(tmp_path / "out.npz") as file:
        assert list(file) == ["w", "bias"]
        assert file["w"].identical(q)
        assert file.metadata == texts
    assert report.bytes_after == q.nbytes + 32
    assert qz.verify(tmp_path / "out.npz", against=tmp_path / "in.safetensors").ok
    qz.convert(tmp_path / "out.npz", tmp_path / "back.npz", dequantize=True)
    with np.load(tmp_path / "back.npz") as found:
        same(found["w"], q.dequantize(), "w")


def test_a_job_of_an_npz_file_is_taken_up(tmp_path):
    write(tmp_path / "in.safetensors", {f"w{number}": sample((32, 256), number) for number in range(12)})
    qz.convert(tmp_path / "in.safetensors", tmp_path / "expected.npz")

    def stop(done, total, name):
        if 2 * done > total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qz.convert(tmp_path / "in.safetensors", tmp_path / "out.npz", progress=stop, resume=True)
    report = qz.convert(tmp_path / "in.safetensors", tmp_path / "out.npz", resume=True)
    assert any(tensor.sqnr_db is None for tensor in report.tensors)
    assert (tmp_path / "out.npz").read_bytes() == (tmp_path / "expected.npz").read_bytes()


def test_more_members_than_16_bits_count(tmp_path):
    names = [f"t{number}" for number in range(65_540)]
    write(tmp_path / "in.safetensors", dict.fromkeys(names, np.zeros((), np.uint8)))
    qz.convert(tmp_path / "in.safetensors", tmp_path / "out.npz")
    with np.load(tmp_path / "out.npz") as found:
        assert found.files == names
        same(found["t65539"], np.zeros((), np.uint8), "t65539")
    with qz.open(tmp_path / "out.npz") as file:
        assert len(file) == len(names)


@pytest.mark.parametrize(
    ("arrays", "dtypes", "options", "message"),
    [
        ({"w": np.ones((4, 64), np.uint16)}, {"w": "BF16"}, {"exclude": ["w"]}, "dtype of tensor 'w' is bfloat16; an npz file has no such"),
        ({"a\0b": np.ones(3, np.float32)}, {}, {}, "with a NUL in it"),
        ({"n" * 65_532: np.ones(3, np.float32)}, {}, {}, "65532 bytes long; an npz file takes up to 65531"),
    ],
)
def test_what_an_npz_file_cannot_hold_is_refused(arrays, dtypes, options, message, tmp_path):
    write(tmp_path / "in.safetensors", arrays, **dtypes)
    with pytest.raises(ValueError, match=message):
        qz.convert(tmp_path / "in.safetensors", tmp_path / "out.npz", **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors"]


def test_more_axes_than_numpy_has_are_refused(tmp_path):
    header = container({"w": {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}}, bytes(4))
    (tmp_path / "in.safetensors").write_bytes(header)
    with pytest.raises(ValueError, match="number of axes of tensor 'w' is 65; numpy takes up to 64"):
        qz.convert(tmp_path / "in.safetensors", tmp_path / "out.npz")


@pytest.mark.parametrize("text", [b"{", b"[]", b'{"a": 1}', b'{"a": "1", "a": "2"}', b"\xff"])
def test_a_free_text_that_is_wrong_is_refused(text, tmp_path):
    np.savez(tmp_path / "in.npz", __metadata__=np.frombuffer(text, np.uint8), w=np.ones(3))
    with pytest.raises(qz.CorruptFileError, match="__metadata__ is wrong"):
        qz.open(tmp_path / "in.npz")


def test_an_array_of_that_name_that_is_no_text_is_an_array(tmp_path):
    np.savez(tmp_path / "in.npz", __metadata__=np.ones(3))
    with qz.open(tmp_path / "in.npz") as file:
        assert list(file) == ["__metadata__"]
    with pytest.raises(ValueError, match="'__metadata__'; an npz file can hold that name only once"):
        qz.convert(tmp_path / "in.npz", tmp_path / "out.npz")
