"""GGUF files: what is read from them, what a conversion leaves behind, and what the command line says of them."""

import json
import math
import struct

import numpy as np
import pytest
from checkpoints import bfloat16_bits, gguf, gguf_floats, gguf_text, write
from helpers import same, sample

import quantize as qz
from quantize import cli

FORMATS = {"gguf:q4_0": 2, "gguf:q4_1": 3, "gguf:q4_k": 14, "gguf:iq4_nl": 25, "gguf:iq4_xs": 30, "gguf:mxfp4": 38, "gguf:nvfp4": 39}
FORMATS |= {"gguf:q8_0": 7, "gguf:q5_0": 8, "gguf:q5_1": 9, "gguf:q5_k": 16, "gguf:q6_k": 18}
KEYS = {
    "general.architecture": (8, gguf_text("llama")),
    "general.file_type": (4, struct.pack("<I", 0)),
    "llama.rope.freq_base": (6, struct.pack("<f", 1e6)),
    "llama.causal": (7, b"\1"),
    "llama.low": (5, struct.pack("<i", -3)),
    "tokenizer.ggml.scores": (9, struct.pack("<IQ5f", 6, 5, 0.5, math.inf, 1, 2, 3)),
    "tokenizer.ggml.tokens": (9, struct.pack("<IQ", 8, 2) + gguf_text("<s>") + gguf_text(b"\xff\x01")),
    "none": (9, struct.pack("<IQ", 8, 0)),
}


@pytest.fixture
def model(tmp_path):
    """A model as a converter writes it, with a tensor of a type that is no format of ours."""
    arrays = {
        "token_embd.weight": sample((6, 256), 1),
        "output_norm.weight": sample((256,), 2),
        "blk.0.ffn_up_exps.weight": sample((2, 3, 256), 3),
    }
    tensors = {name: (0, array.shape, array.tobytes()) for name, array in arrays.items()}
    tensors["blk.0.attn_q.weight"] = (30, (4, 256), bfloat16_bits(sample((4, 256), 4)).tobytes())
    tensors["blk.0.ffn_down.weight"] = (11, (2, 256), bytes(range(110)) * 2)
    path = tmp_path / "model.gguf"
    path.write_bytes(gguf(tensors, KEYS))
    return path, arrays


def test_a_file_is_read(model):
    path, arrays = model
    with qz.open(path) as file:
        assert (file.container, len(file)) == ("gguf", 5)
        assert file.metadata == {
            "general.architecture": "llama",
            "general.file_type": 0,
            "llama.rope.freq_base": 1e6,
            "llama.causal": True,
            "llama.low": -3,
            "tokenizer.ggml.scores": [0.5, math.inf, 1, 2, 3],
            "tokenizer.ggml.tokens": ["<s>", "\ufffd\x01"],
            "none": [],
        }
        for name, array in arrays.items():
            same(file[name], array, name)
        same(file["blk.0.attn_q.weight"], bfloat16_bits(sample((4, 256), 4)))
        foreign = {info.name: info for info in file.tensors}["blk.0.ffn_down.weight"]
        assert foreign == ("blk.0.ffn_down.weight", "Q3_K", (2, 256), 220, None, None)
        same(file["blk.0.ffn_down.weight"], np.tile(np.arange(110, dtype=np.uint8), (2, 1)))


@pytest.mark.parametrize("name", FORMATS)
def test_a_converted_file_holds_what_quantize_makes(name, model, tmp_path):
    path, arrays = model
    report = qz.convert(path, tmp_path / "small.gguf", format=name)
    actions = {tensor.name: (tensor.action, tensor.reason) for tensor in report.tensors}
    assert actions["output_norm.weight"] == ("keep", "1-d; a matrix has 2 axes or more")
    assert actions["blk.0.ffn_down.weight"] == ("keep", "Q3_K is not quantized")
    assert [tensor for tensor, (action, _) in actions.items() if action == "quantize"] == [
        "token_embd.weight",
        "blk.0.ffn_up_exps.weight",
        "blk.0.attn_q.weight",
    ]
    with qz.open(path) as before, qz.open(tmp_path / "small.gguf") as file:
        for tensor in ("token_embd.weight", "blk.0.ffn_up_exps.weight"):
            assert file[tensor].identical(qz.quantize(arrays[tensor], name)), tensor
        assert file["blk.0.attn_q.weight"].identical(qz.quantize(before["blk.0.attn_q.weight"], name, dtype="bfloat16"))
        same(file["blk.0.ffn_down.weight"], before["blk.0.ffn_down.weight"])
        expected = before.metadata | {"general.quantization_version": 2, "general.file_type": FORMATS[name]}
        assert file.metadata == expected
        assert list(file.metadata)[-2:] == ["general.quantization_version", "general.file_type"]
        encoded = {tensor: file[tensor].dequantize() for tensor in ("token_embd.weight", "blk.0.ffn_up_exps.weight")}
    qz.convert(tmp_path / "small.gguf", tmp_path / "back.gguf", dequantize=True)
    with qz.open(tmp_path / "back.gguf") as file:
        for tensor, values in encoded.items():
            same(file[tensor], values, tensor)
        assert file.metadata["general.file_type"] == 0
    compared = {row.name: row for row in qz.compare_files(path, tmp_path / "small.gguf").tensors}
    assert compared["blk.0.ffn_down.weight"].verdict == "same"
    assert compared["token_embd.weight"].sqnr_db == {row.name: row.sqnr_db for row in report.tensors}["token_embd.weight"]


def test_a_second_conversion_keeps_every_byte(model, tmp_path):
    path, _ = model
    qz.convert(path, tmp_path / "once.gguf", format="gguf:q4_0")
    qz.convert(tmp_path / "once.gguf", tmp_path / "twice.gguf", format="gguf:q4_0")
    assert (tmp_path / "once.gguf").read_bytes() == (tmp_path / "twice.gguf").read_bytes()


@pytest.mark.parametrize("target", ["gguf:q5_k", "gguf:iq4_nl"])
def test_what_is_quantized_already_is_quantized_again_only_when_asked(model, tmp_path, target):
    path, _ = model
    once, kept, again = (tmp_path / name for name in ("once.gguf", "kept.gguf", "again.gguf"))
    qz.convert(path, once, format="gguf:q8_0")
    actions = {tensor.name: tensor.reason for tensor in qz.convert(once, kept, format=target).tensors}
    assert actions["token_embd.weight"] == "already gguf:q8_0"
    assert kept.read_bytes() == once.read_bytes()
    report = {tensor.name: tensor for tensor in qz.convert(once, again, format=target, requantize=True).tensors}
    assert report["token_embd.weight"].action == "requantize"
    assert report["blk.0.ffn_down.weight"].reason == "Q3_K is not quantized"
    with qz.open(once) as before, qz.open(again) as after:
        for name in ("token_embd.weight", "blk.0.ffn_up_exps.weight", "blk.0.attn_q.weight"):
            values = before[name].dequantize()
            assert after[name].identical(qz.quantize(values, target)), name
            assert report[name].sqnr_db == pytest.approx(qz.compare(values, after[name]).sqnr_db)
        assert after.metadata["general.file_type"] == FORMATS[target]
    same_file = qz.convert(once, tmp_path / "same.gguf", format="gguf:q8_0", requantize=True)
    assert {tensor.action for tensor in same_file.tensors} == {"keep"}


@pytest.mark.parametrize("threads", [1, 2])
def test_the_bytes_do_not_depend_on_the_threads(model, tmp_path, threads):
    path, _ = model
    qz.convert(path, tmp_path / "default.gguf", format="gguf:q4_k")
    qz.convert(path, tmp_path / "out.gguf", format="gguf:q4_k", threads=threads)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "default.gguf").read_bytes()


def test_rows_that_do_not_divide_refuse_the_job_before_it_begins(tmp_path, capsys):
    path, out = tmp_path / "in.gguf", tmp_path / "out.gguf"
    path.write_bytes(gguf_floats({"a.weight": sample((2, 288)), "b.weight": sample((2, 256))}))
    plan = qz.convert(path, None, format="gguf:q4_k", dry_run=True)
    reason = "last axis has 288 elements; gguf:q4_k needs a multiple of 256"
    assert [(row.action, row.reason) for row in plan.tensors] == [("refuse", reason), ("quantize", None)]
    with pytest.raises(qz.PolicyError) as raised:
        qz.convert(path, out, format="gguf:q4_k")
    advice = "keep the tensor out with exclude, name a fallback, or choose another format"
    assert str(raised.value) == f"{path}: tensor 'a.weight': {reason}: {advice}"
    assert cli.main(["convert", str(path), str(out), "--to", "gguf:q4_k"]) == cli.POLICY
    assert advice in capsys.readouterr().err
    assert sorted(tmp_path.iterdir()) == [path]
    assert cli.main(["convert", str(path), "--to", "gguf:q4_k", "--dry-run"]) == 0
    assert "1 quantized, 1 refused" in capsys.readouterr().out
    assert cli.main(["convert", str(path), str(out), "--to", "gguf:q4_k", "--exclude", "a.*", "--quiet"]) == 0
    assert type(qz.open(out)["b.weight"]) is qz.QuantizedArray


def test_a_file_stays_in_its_container(model, tmp_path):
    path, _ = model
    with pytest.raises(ValueError, match=r"expected one that ends in \.gguf"):
        qz.convert(path, tmp_path / "out.safetensors", format="gguf:q4_0")
    with pytest.raises(ValueError, match="format is int4; a GGUF file takes gguf:q4_0, gguf:q4_1"):
        qz.convert(path, tmp_path / "out.gguf")
    other = write(tmp_path / "in.safetensors", {"w": sample((2, 32))})
    with pytest.raises(ValueError, match=r"expected one that ends in \.safetensors"):
        qz.convert(other, tmp_path / "out.gguf", format="gguf:q4_0")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.safetensors", "model.gguf"]


def test_a_broken_file_is_refused_with_its_name(tmp_path, capsys):
    path = tmp_path / "in.gguf"
    path.write_bytes(gguf_floats({"w": sample((2, 32))})[:-1])
    with pytest.raises(qz.CorruptFileError, match=r"in\.gguf: gguf: the data of the last tensor, 'w', ends at byte 256; 255 are there"):
        qz.open(path)
    assert cli.main(["inspect", str(path)]) == cli.BAD_INPUT
    assert "the file is cut short" in capsys.readouterr().err
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(qz.CorruptFileError, match="zip archive"):
        qz.open(path)


def test_inspect_lists_keys_and_tensors(model, capsys):
    path, _ = model
    assert cli.main(["inspect", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.split() == ["blk.0.ffn_down.weight", "2", "x", "256", "Q3_K", "220", "bytes"] for line in lines)
    assert "container                       gguf" in lines
    assert "metadata llama.causal           True" in lines
    assert "metadata tokenizer.ggml.scores  5 values: 0.5, inf, 1.0, 2.0, ..." in lines
    assert cli.main(["inspect", str(path), "--json"]) == 0
    seen = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert seen["metadata"]["tokenizer.ggml.scores"] == [0.5, None, 1, 2, 3]
    assert seen["tensors"][4]["dtype"] == "Q3_K"


def test_companions_of_a_mixture_have_no_search(model, tmp_path):
    path, _ = model
    report = {tensor.name: tensor for tensor in qz.convert(path, tmp_path / "out.gguf", format="q4_0", method="optimal").tensors}
    # There is no output, so that the embedding is it.
    assert (report["token_embd.weight"].format, report["token_embd.weight"].weights) == ("gguf:q6_k", None)
    assert (report["blk.0.attn_q.weight"].format, report["blk.0.attn_q.weight"].weights) == ("gguf:q4_0", "magnitude")
    with qz.open(path) as before, qz.open(tmp_path / "out.gguf") as after:
        embedding = before["token_embd.weight"]
        assert after["token_embd.weight"].identical(qz.quantize(embedding, "gguf:q6_k"))
        experts = before["blk.0.ffn_up_exps.weight"]
        assert after["blk.0.ffn_up_exps.weight"].identical(qz.quantize(experts, "gguf:q4_0", method="optimal", importance="magnitude"))
