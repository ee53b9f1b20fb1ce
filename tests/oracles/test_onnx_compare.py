"""ONNX models compared with each other and with other files, some lines of a tensor at a time."""

import json
import os
from contextlib import contextmanager

import numpy as np
import onnx
import pytest
from checkpoints import container
from helpers import PEAK, python
from onnx import TensorProto, helper
from onnx_models import NBITS, QDQ, floats, formats, model, node, write

import quantize as qz
from quantize._files import lines

K = 96


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model whose weights have their inputs first or last, or are looked up, its data beside it."""
    nodes = [node("Gather", "t ids", "a"), node("MatMul", "a w", "b"), node("Gemm", "a v", "c", transB=1), node("MatMul", "a odd", "o")]
    weights = {"t": floats(72, K), "w": floats(K, 62, seed=1), "v": floats(58, K, seed=2), "odd": floats(K, 61, seed=3)}
    weights |= {"ints": np.arange(4000).reshape(40, 100), "none": floats(0, 8), "one": np.float32(2.5)}
    made = model(nodes, weights, {"ids": (None,)}, "b c o")
    bits = (floats(K, 44, seed=4).view(np.uint32) >> 16).astype(np.uint16)
    made.graph.initializer.add(name="brain", data_type=TensorProto.BFLOAT16, dims=bits.shape, raw_data=bits.tobytes())
    made.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, (2,), [b"ab", b"c"]))
    path = tmp_path_factory.mktemp("model") / "in.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


@pytest.fixture(scope="module")
def others(source, tmp_path_factory):
    """The same weights in other models and other files."""
    folder, include = tmp_path_factory.mktemp("others"), {"include": ["*"], "exclude": ["odd", "brain"]}
    paths = {name: folder / f"{name}.onnx" for name in ("nbits", "asymmetric", "qdq", "rows")}
    qz.convert(source, paths["nbits"], format=NBITS, **include)
    qz.convert(source, paths["asymmetric"], format=NBITS, symmetric=False, group_size=16, include=["*"])
    qz.convert(source, paths["qdq"], format=QDQ, symmetric=False, **include)
    qz.convert(source, paths["rows"], format=QDQ, symmetric=False, group_size="row", **include)
    paths |= {"npz": folder / "floats.npz", "int4": folder / "int4.safetensors", "awq": folder / "awq.safetensors"}
    with qz.open(source) as file:
        np.savez(paths["npz"], **{name: file[name] for name in ("t", "w", "v", "odd", "ints", "none", "one")})
    qz.convert(paths["npz"], paths["int4"], format="int4", include=["t", "w", "v", "odd"])
    qz.convert(paths["npz"], paths["awq"], format="awq", group_size=32, include=["t"])
    return paths | {"source": source}


def decoded(file, name):
    found = file[name]
    if isinstance(found, qz.QuantizedArray):
        return found.dequantize()
    return (found.astype(np.uint32) << 16).view(np.float32) if file.info(name).dtype == "bfloat16" else found


MODELS = ("source", "nbits", "asymmetric", "qdq", "rows")
FILES = ("npz", "int4", "awq")
PAIRS = [(one, two) for one in MODELS for two in (*MODELS, *FILES)] + [(one, two) for one in FILES for two in MODELS]


@pytest.fixture
def reads(monkeypatch):
    """Small blocks, and for each tensor of each file the lines that were read, and how many there are."""
    monkeypatch.setattr(lines, "BLOCK_ELEMENTS", 8 * K)
    found, own = {}, qz.Checkpoint.lines

    @contextmanager
    def recorded(file, name, axis):
        with own(file, name, axis) as opened:
            spans = found[name, id(file)] = opened.length, []

            def read(start, stop):
                spans[1].append((start, stop))
                return opened.read(start, stop)

            yield opened._replace(read=read)

    monkeypatch.setattr(qz.Checkpoint, "lines", recorded)
    return found


@pytest.mark.parametrize(("one", "two"), PAIRS)
def test_blocks_of_lines_are_all_of_it(others, reads, one, two):
    compared = {tensor.name: tensor for tensor in qz.compare_files(others[one], others[two]).tensors}
    for (name, _), (count, spans) in reads.items():
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans)][: len(spans)]
        assert (spans[-1][1] if spans else 0) == count
        assert name not in ("t", "w", "v", "ints") or len(spans) > 1
    assert {name for name, _ in reads} >= {"t", "w", "ints"}
    with qz.open(others[one]) as first, qz.open(others[two]) as second:
        assert set(compared) == {*first, *second}
        for name, tensor in compared.items():
            if name in ("ints", "text") and name in first and name in second:
                assert tensor.verdict == "same"
            elif name in first and name in second:
                x, y = decoded(first, name), decoded(second, name)
                axes = first.inputs_axis(name), second.inputs_axis(name)
                y = y.T if None not in axes and axes[0] != axes[1] else y
                if x.shape != y.shape:
                    assert tensor.verdict == "shapes"
                    continue
                assert tensor.verdict == "measured"
                expected = qz.compare(np.atleast_1d(x), np.atleast_1d(y))
                assert (tensor.rmse, tensor.max_abs_error, tensor.sqnr_db, tensor.cosine) == pytest.approx(expected[:4])


def test_what_differs_in_one_block_differs(source, reads, tmp_path):
    made = onnx.load(source)
    tensors = {tensor.name: tensor for tensor in made.graph.initializer}
    ints = np.arange(4000).reshape(40, 100)
    ints[37, 2] += 1
    tensors["ints"].raw_data = ints.tobytes()
    tensors["text"].string_data[:] = [b"a", b"bc"]
    other = write(tmp_path / "other.onnx", made)
    verdicts = {tensor.name: tensor.verdict for tensor in qz.compare_files(source, other).tensors}
    assert {name for name, verdict in verdicts.items() if verdict == "different"} == {"ints", "text"}
    assert "dtypes" not in verdicts.values()
    tensors["ints"].data_type = TensorProto.UINT64
    write(other, made)
    verdicts = {tensor.name: tensor.verdict for tensor in qz.compare_files(source, other).tensors}
    assert verdicts["ints"] == "dtypes"


@formats
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("suffix", ["onnx", "npy"])
def test_memory_is_that_of_blocks(tmp_path, format, turned, suffix):
    """A weight of 128 MiB, of zeros that take no place on the disk, beside what became of it, as a model and as an array."""
    inputs, outputs = 1024, 32768
    shape = (outputs, inputs) if turned else (inputs, outputs)
    nodes = [node("Gemm", "x w", "y", transB=1) if turned else node("MatMul", "x w", "y")]
    made = model(nodes, {}, {"x": (None, inputs)})
    tensor = made.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    source = write(tmp_path / "in.onnx", made)
    nbytes = 4 * inputs * outputs
    with (tmp_path / "w.bin").open("wb") as file:
        os.truncate(file.fileno(), nbytes)
    target = tmp_path / "out.onnx"
    qz.convert(source, target, format=format)
    if suffix == "npy":
        source = tmp_path / "w.npy"
        with qz.open(target) as file, source.open("wb") as array:
            header = {"descr": "<f4", "fortran_order": False, "shape": file.info("w").shape}
            np.lib.format.write_array_header_1_0(array, header)
            os.truncate(array.fileno(), array.tell() + nbytes)
    code = f"""{PEAK}
import onnx, onnx.helper, quantize as qz
before = peak()
compared = qz.compare_files({str(source)!r}, {str(target)!r})
print(peak() - before, compared.tensors[0].verdict)
"""
    grown, verdict = python(code, QUANTIZE_NUM_THREADS="2").split()
    assert verdict == "measured"
    assert int(grown) < nbytes  # of which the file and the floats of both would take several


def test_parts_that_contradict_each_other_are_an_error_of_the_file(others, tmp_path):
    path = tmp_path / "gptq.safetensors"
    qz.convert(others["npz"], path, format="gptq", group_size=32, include=["t"])
    data = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8:start])["t.g_idx"]["data_offsets"]
    data[start + begin : start + end] = np.full(K, 77, np.int32).tobytes()
    path.write_bytes(data)
    with pytest.raises(qz.CorruptFileError, match=r"gptq\.safetensors: tensor 't': parts\['g_idx'\] is 77 at 0"):
        qz.compare_files(others["source"], path)


def test_rows_that_are_no_whole_bytes_are_compared_at_once(tmp_path):
    made = model([node("Identity", "x", "y")], {}, {"x": (None, 64)})
    made.graph.initializer.add(name="nibbles", data_type=TensorProto.FLOAT4E2M1, dims=(2, 3), raw_data=b"\x12\x34\x56")
    source = write(tmp_path / "in.onnx", made)
    for data, verdict in ((b"\x12\x34\x56", "same"), (b"\x12\x34\x57", "different")):
        header = {"nibbles": {"dtype": "F4", "shape": [2, 3], "data_offsets": [0, 3]}}
        (tmp_path / "other.safetensors").write_bytes(container(header, data))
        for pair in ((source, tmp_path / "other.safetensors"), (tmp_path / "other.safetensors", source)):
            [tensor] = qz.compare_files(*pair).tensors
            assert tensor.verdict == verdict
