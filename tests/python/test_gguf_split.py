"""GGUF models in several files: read as one, written, and refused where the files contradict each other."""

import struct

import numpy as np
import pytest
from checkpoints import gguf, gguf_text
from helpers import same, sample

import quantize as qz
from quantize import cli

KEYS = {"general.architecture": (8, gguf_text("llama")), "llama.block_count": (4, struct.pack("<I", 3))}


def arrays():
    return {f"blk.{layer}.attn_q.weight": sample((16, 64), layer) for layer in range(5)} | {"output_norm.weight": sample((64,), 9)}


def split_keys(number, count, tensors):
    values = {"split.no": (2, struct.pack("<H", number)), "split.count": (2, struct.pack("<H", count))}
    return values | {"split.tensors.count": (5, struct.pack("<i", tensors))}


def model(folder, count=3, change=lambda number, keys, tensors: None):
    """Write the parts, each changed before it is written; give the path of the first."""
    names = list(arrays())
    for number in range(count):
        keys = (KEYS if number == 0 else {}) | split_keys(number, count, len(names))
        tensors = {name: (0, arrays()[name].shape, arrays()[name].tobytes()) for name in names[number::count]}
        change(number, keys, tensors)
        (folder / f"model-{number + 1:05}-of-{count:05}.gguf").write_bytes(gguf(tensors, keys))
    return folder / f"model-00001-of-{count:05}.gguf"


def test_the_parts_are_read_as_one(tmp_path):
    path = model(tmp_path)
    with qz.open(path) as file:
        assert sorted(file) == sorted(arrays())
        assert file.metadata["llama.block_count"] == 3
        for name, array in arrays().items():
            same(file[name], array)
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(gguf({name: (0, array.shape, array.tobytes()) for name, array in arrays().items()}, KEYS))
    report = qz.convert(path, tmp_path / "a.gguf", format="gguf:q4_0")
    qz.convert(whole, tmp_path / "b.gguf", format="gguf:q4_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert {row.verdict for row in qz.compare_files(path, whole).tensors} == {"measured"}
    assert report.target == str(tmp_path / "a.gguf")


def test_a_model_is_written_in_parts(tmp_path):
    whole = tmp_path / "whole.gguf"
    whole.write_bytes(gguf({name: (0, array.shape, array.tobytes()) for name, array in arrays().items()}, KEYS))
    report = qz.convert(whole, tmp_path / "out.gguf", format="gguf:q4_0", shard_size=1200)
    parts = sorted(tmp_path.glob("out*"))
    assert [part.name for part in parts] == [f"out-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    assert report.target == str(parts[0])
    qz.convert(whole, tmp_path / "one.gguf", format="gguf:q4_0")
    with qz.open(parts[0]) as split, qz.open(tmp_path / "one.gguf") as one:
        assert sorted(split) == sorted(one)
        for name in one:
            equal = split[name].identical(one[name]) if type(one[name]) is qz.QuantizedArray else np.array_equal(split[name], one[name])
            assert equal, name
        own = {"split.no": 0, "split.count": 3, "split.tensors.count": len(one)}
        assert split.metadata == one.metadata | own
    # Back to one, and into parts of another size, over what is there.
    qz.convert(parts[0], tmp_path / "again.gguf", format="gguf:q4_0")
    assert (tmp_path / "again.gguf").read_bytes() == (tmp_path / "one.gguf").read_bytes()
    with pytest.raises(FileExistsError):
        qz.convert(whole, tmp_path / "out.gguf", format="gguf:q4_1", shard_size=1300)
    qz.convert(whole, tmp_path / "out.gguf", format="gguf:q4_1", shard_size=1300, overwrite=True)
    assert qz.open(parts[0])["blk.0.attn_q.weight"].format == "gguf:q4_1"
    # What is smaller stays one file, under its own name.
    assert qz.convert(whole, tmp_path / "small.gguf", format="gguf:q4_0", shard_size=10**6).target == str(tmp_path / "small.gguf")
    report = cli.main(["convert", str(whole), str(tmp_path / "cli.gguf"), "--to", "gguf:q4_0", "--shard-size", "1200", "--quiet"])
    assert report == 0
    assert len(list(tmp_path.glob("cli-*-of-00003.gguf"))) == 3


def test_parts_appear_together_or_not_at_all(tmp_path):
    path = model(tmp_path)
    before = sorted(tmp_path.iterdir())
    seen = []

    def stop(done, total, name):
        seen.append(done)
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qz.convert(path, tmp_path / "out.gguf", format="gguf:q4_0", shard_size=600, progress=stop)
    assert sorted(tmp_path.iterdir()) == before


def changed(number, key, value):
    def change(found, keys, tensors):
        if found == number:
            keys.pop(key, None) if value is None else keys.update({key: value})

    return change


def doubled(number, keys, tensors):
    if number == 1:
        tensors["blk.0.attn_q.weight"] = (0, (2,), bytes(8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed(1, "split.no", (2, struct.pack("<H", 2))), "00002-of-00003.gguf': split.no is 2 and split.count 3; expected 1 and 3"),
        (changed(2, "split.count", (2, struct.pack("<H", 4))), "split.no is 2 and split.count 4; expected 2 and 3"),
        (changed(1, "split.no", None), "split.no is none"),
        (changed(0, "split.no", None), "key split.no is missing"),
        (changed(0, "split.no", (2, struct.pack("<H", 3))), "is part 3 \\(from 0\\) of 3"),
        (changed(1, "split.tensors.count", (5, struct.pack("<i", 7))), "split.tensors.count is another"),
        (changed(1, "general.architecture", (8, gguf_text("falcon"))), "key 'general.architecture' has another value"),
        (doubled, "tensor 'blk.0.attn_q.weight' lies in two parts"),
        (changed(0, "split.count", (2, struct.pack("<H", 2))), "it would be called PREFIX-00001-of-00002.gguf"),
    ],
)
def test_parts_that_contradict_each_other_are_refused(change, message, tmp_path):
    path = model(tmp_path, change=change)
    with pytest.raises(qz.CorruptFileError, match=message):
        qz.open(path)


def test_a_wrong_count_a_missing_part_another_name(tmp_path):
    path = model(tmp_path, change=lambda number, keys, tensors: keys.update(split_keys(number, 3, 5)))
    with pytest.raises(qz.CorruptFileError, match="key split.tensors.count is 5; the 3 parts have 6 tensors"):
        qz.open(path)
    path = model(tmp_path)
    second = tmp_path / "model-00002-of-00003.gguf"
    with pytest.raises(qz.CorruptFileError, match="part 2 of 3 of a split model: open the first, 'model-00001-of-00003.gguf'"):
        qz.open(second)
    second.write_bytes(second.read_bytes()[:-300])
    with pytest.raises(qz.CorruptFileError, match="'model-00002-of-00003.gguf': .*the file is cut short"):
        qz.open(path)
    second.unlink()
    with pytest.raises(FileNotFoundError, match="model-00002-of-00003"):
        qz.open(path)
    path.rename(tmp_path / "other.gguf")
    with pytest.raises(qz.CorruptFileError, match="it would be called PREFIX-00001-of-00003.gguf"):
        qz.open(tmp_path / "other.gguf")


def test_keys_that_stand_in_a_later_part_are_kept(tmp_path):
    path = model(tmp_path, change=changed(2, "llama.more", (4, struct.pack("<I", 5))))
    qz.convert(path, tmp_path / "out.gguf", format="gguf:q4_0")
    assert qz.open(tmp_path / "out.gguf").metadata["llama.more"] == 5
