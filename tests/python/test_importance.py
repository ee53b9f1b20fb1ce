"""What weights errors in a conversion: vectors, llama.cpp's matrices of both forms, a vector for each expert, numbers for each element."""

import struct

import numpy as np
import pytest
from checkpoints import gguf_floats, write
from helpers import sample

import quantize as qz
from quantize import cli


def squares(shape, seed):
    return np.square(sample(shape, seed)) + np.float32(0.01)


def imatrix(entries, calls=7, tail=b""):
    """An imatrix.dat: means times the number of calls."""
    data = struct.pack("<i", len(entries))
    for name, means in entries.items():
        name = name.encode()
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, means.size)
        data += (means.astype(np.float32) * np.float32(calls)).tobytes()
    return data + tail


TAIL = struct.pack("<ii", 12, 8) + b"wiki.raw"


@pytest.fixture
def model(tmp_path):
    arrays = {
        "blk.0.attn_q.weight": sample((16, 256), 1),
        "blk.0.ffn_up_exps.weight": sample((3, 8, 256), 2),
        "blk.0.ffn_down.weight": sample((4, 256), 3),
    }
    (tmp_path / "model.gguf").write_bytes(gguf_floats(arrays))
    return tmp_path / "model.gguf", arrays


def convert(path, importance, **options):
    out = path.with_name("out.gguf")
    report = qz.convert(path, out, format="gguf:q4_0", method="optimal", importance=importance, overwrite=True, **options)
    with qz.open(out) as file:
        return {name: file[name] for name in file}, {tensor.name: tensor.weights for tensor in report.tensors}


def expected(array, importance):
    return qz.quantize(array, "gguf:q4_0", method="optimal", importance=importance)


def test_a_limit_of_what_is_cut(model, tmp_path):
    path, arrays = model
    importance = tmp_path / "w.npz"
    np.savez(importance, **{"blk.0.attn_q.weight": squares((256,), 4)})
    found, _ = convert(path, importance, clip_limit=0.02)
    for name, array in arrays.items():
        weights = squares((256,), 4) if name == "blk.0.attn_q.weight" else "magnitude"
        assert found[name].identical(qz.quantize(array, "gguf:q4_0", method="optimal", importance=weights, clip_limit=0.02))
    assert (
        cli.main(["convert", str(path), str(tmp_path / "cut.gguf"), "--format", "q4_0", "--method", "optimal", "--clip-limit", "0.02"]) == 0
    )
    with qz.open(tmp_path / "cut.gguf") as file:
        assert file["blk.0.ffn_down.weight"].identical(found["blk.0.ffn_down.weight"])
    for method in ("nearest", "fast"):
        with pytest.raises(ValueError, match=rf'clip_limit is given; method="{method}" has no use for it: say method="optimal"'):
            qz.convert(path, None, dry_run=True, method=method, clip_limit=0.1)
    with pytest.raises(ValueError, match=r"clip_limit is 1.5; expected a number from 0 to 1"):
        qz.convert(path, None, dry_run=True, method="optimal", clip_limit=1.5)
    with pytest.raises(TypeError, match=r"clip_limit is of type str; expected a number from 0 to 1"):
        qz.convert(path, None, dry_run=True, method="optimal", clip_limit="0.1")
    with pytest.raises(ValueError, match=r"clip_limit is given; gguf:q4_1 is not searched with one; formats that are: int4"):
        qz.convert(path, tmp_path / "no.gguf", format="gguf:q4_1", method="optimal", clip_limit=0.1)


@pytest.mark.parametrize("tail", [b"", TAIL])
def test_the_first_form_of_an_importance_matrix(model, tmp_path, tail):
    path, arrays = model
    means = {"blk.0.attn_q.weight": squares((256,), 4), "blk.0.ffn_up_exps.weight": squares((3, 256), 5), "other.weight": squares((9,), 6)}
    means["blk.0.ffn_up_exps.weight"][1] = 0  # no input came to this expert
    (tmp_path / "imatrix.dat").write_bytes(imatrix(means, tail=tail))
    found, weights = convert(path, tmp_path / "imatrix.dat")
    assert weights == {
        "blk.0.attn_q.weight": "importance",
        "blk.0.ffn_up_exps.weight": "importance",
        "blk.0.ffn_down.weight": "magnitude",
    }
    by_calls = {name: values.astype(np.float32) * np.float32(7) for name, values in means.items()}
    assert found["blk.0.attn_q.weight"].identical(expected(arrays["blk.0.attn_q.weight"], by_calls["blk.0.attn_q.weight"]))
    experts = by_calls["blk.0.ffn_up_exps.weight"]
    experts[1] = 1
    everywhere = np.repeat(experts[:, None], 8, axis=1)
    assert found["blk.0.ffn_up_exps.weight"].identical(expected(arrays["blk.0.ffn_up_exps.weight"], everywhere))
    with qz.open(tmp_path / "imatrix.dat") as file:
        assert file.container == "imatrix"
        assert file.metadata == ({"chunks": "12", "dataset": "wiki.raw"} if tail else {})
        assert {info.name: info.shape for info in file.tensors} == {name: (values.size,) for name, values in means.items()}
    # Blocks of rows that reach over the ends of experts make no difference.
    again, _ = convert(path, tmp_path / "imatrix.dat", memory_limit=5 * 256 * 32)
    assert all(again[name].identical(found[name]) for name in found)


def test_the_newer_form_has_counts_beside_sums(model, tmp_path):
    path, arrays = model
    sums = {"blk.0.attn_q.weight": squares((1, 256), 7), "blk.0.ffn_up_exps.weight": squares((3, 256), 8)}
    tensors = {f"{name}.in_sum2": values for name, values in sums.items()}
    tensors |= {f"{name}.counts": np.full((values.shape[0], 1), 5, np.float32) for name, values in sums.items()}
    (tmp_path / "imatrix.gguf").write_bytes(gguf_floats(tensors))
    found, weights = convert(path, tmp_path / "imatrix.gguf")
    assert weights["blk.0.ffn_up_exps.weight"] == "importance"
    assert found["blk.0.attn_q.weight"].identical(expected(arrays["blk.0.attn_q.weight"], sums["blk.0.attn_q.weight"][0]))
    everywhere = np.repeat(sums["blk.0.ffn_up_exps.weight"][:, None], 8, axis=1)
    assert found["blk.0.ffn_up_exps.weight"].identical(expected(arrays["blk.0.ffn_up_exps.weight"], everywhere))


def test_rows_whose_numbers_are_all_0_are_no_fault_of_the_whole(model, tmp_path):
    path, arrays = model
    name = "blk.0.attn_q.weight"
    weights = squares((16, 256), 9)
    weights[4:11] = 0
    write(tmp_path / "importance.safetensors", {name: weights})
    whole, _ = convert(path, tmp_path / "importance.safetensors")
    assert whole[name].identical(expected(arrays[name], weights))
    by_rows, _ = convert(path, tmp_path / "importance.safetensors", memory_limit=256 * 32)
    assert by_rows[name].identical(whole[name])
    write(tmp_path / "importance.safetensors", {name: 0 * weights})
    for options in ({}, {"memory_limit": 256 * 32}):
        with pytest.raises(qz.PolicyError, match="0 everywhere"):
            convert(path, tmp_path / "importance.safetensors", **options)


GOOD = imatrix({"a": squares((3,), 1), "b": squares((2,), 2)}, tail=TAIL)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the number of entries takes 4 bytes; 0 are left"),
        (struct.pack("<i", 0), "claims 0 entries"),
        (struct.pack("<i", -1), "has the length -1"),
        (struct.pack("<ii", 1, 2**31 - 1), "the limit is 65535"),
        (struct.pack("<ii", 1, -5), "the name of entry 0 has the length -5"),
        (struct.pack("<ii1sii", 1, 1, b"a", 1, 2**31 - 1), "entry 'a' takes 8589934588 bytes; 0 are left"),
        (struct.pack("<ii1sii", 1, 1, b"\xff", 1, 0), "is not UTF-8"),
        (imatrix({"a": squares((3,), 1)}, tail=TAIL + b"x"), "1 bytes follow its last entry"),
        (struct.pack("<i", 2) + imatrix({"a": squares((1,), 1)})[4:] * 2, "entry 'a' comes twice"),
        (b"PK\x03\x04" + bytes(20), "zip archive"),
        (b"GGUF", "GGUF|gguf"),
    ],
)
def test_a_broken_importance_matrix_is_refused(data, message, tmp_path):
    (tmp_path / "imatrix.dat").write_bytes(data)
    with pytest.raises(qz.CorruptFileError, match=message):
        qz.open(tmp_path / "imatrix.dat")


def test_an_importance_matrix_that_is_cut_short_anywhere_is_refused(tmp_path):
    whole = {len(GOOD), len(GOOD) - len(TAIL)}
    for length in set(range(len(GOOD))) - whole:
        (tmp_path / "imatrix.dat").write_bytes(GOOD[:length])
        with pytest.raises(qz.CorruptFileError):
            qz.open(tmp_path / "imatrix.dat")
