"""Weights of ONNX models that are changed some outputs at a time: the same bytes as at once, in less memory."""

import os
from itertools import pairwise

import numpy as np
import onnx
import pytest
from helpers import PEAK, python
from onnx import TensorProto
from onnx_models import NBITS, QDQ, floats, formats, model, node, write

import quantize as qz
from quantize._onnx import job
from quantize._onnx.storage import Layout, Stored

K = 96
EACH = job.ELEMENT_BYTES * K  # bytes that an output takes while it is changed


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A model of every way to use a weight, its data beside it: stored with the inputs first or last, looked up, and both."""
    nodes = [
        node("Gather", "t ids", "a"),
        node("MatMul", "a w", "b"),
        node("MatMul", "a odd", "o"),
        node("Gemm", "a v", "c", transB=1),
        node("Transpose", "t", "turned"),
        node("MatMul", "a turned", "d"),
        node("Cast", "brain", "cast", to=TensorProto.FLOAT),
        node("MatMul", "a cast", "e"),
        node("MatMul", "a three", "f"),
    ]
    weights = {"t": floats(70, K), "w": floats(K, 62, seed=1), "odd": floats(K, 61, seed=2), "v": floats(58, K, seed=3)}
    weights["three"] = floats(1, K, 48, seed=5)
    made = model(nodes, weights, {"ids": (None,)}, "b o c d e f")
    bits = (floats(K, 44, seed=4).view(np.uint32) >> 16).astype(np.uint16)
    made.graph.initializer.add(name="brain", data_type=TensorProto.BFLOAT16, dims=bits.shape, raw_data=bits.tobytes())
    path = tmp_path_factory.mktemp("model") / "in.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def files(path):
    """The model but for the place of its data, and the data."""
    content = [name.read_bytes() for name in sorted(path.parent.glob(f"{path.name}*"))]
    assert len(content) == 2
    return [part.replace(path.name.encode(), b"model") for part in content]


def compare_ways(source, folder, outputs, **how):
    """Convert at once and some outputs at a time; the two reports."""
    folder.mkdir(exist_ok=True)
    limit = outputs * EACH + 2000  # parts below 1 KiB are inside the model, and count as a whole
    at_once = qz.convert(source, folder / "whole.onnx", overwrite=True, **how)
    cut = qz.convert(source, folder / "block.onnx", overwrite=True, memory_limit=limit, **how)
    assert cut.memory <= limit < at_once.memory
    assert files(folder / "block.onnx") == files(folder / "whole.onnx")
    for one, other in zip(cut.tensors, at_once.tensors, strict=True):
        assert (one.name, one.action, one.replaced) == (other.name, other.action, other.replaced)
        for number in ("max_abs_error", "sqnr_db", "rmse"):
            assert getattr(one, number) == pytest.approx(getattr(other, number), nan_ok=True)
    return at_once, cut


@formats
@pytest.mark.parametrize("options", [{}, {"symmetric": False, "group_size": 16}, {"method": "optimal"}])
def test_blocks_of_outputs_give_the_same_bytes(source, tmp_path, format, options):
    exclude = ["odd"] if format == QDQ else []
    include = ["*"]  # the table too
    report, _ = compare_ways(source, tmp_path / "there", 8, format=format, include=include, exclude=exclude, **options)
    found = {tensor.name: tensor.action for tensor in report.tensors}
    changed = {"w", "odd", "v", "t", "brain"} if format == NBITS else {"w", "v", "three"}
    assert {name for name, action in found.items() if action == "quantize"} == changed
    again = tmp_path / "there" / "whole.onnx"
    other = QDQ if format == NBITS else NBITS
    compare_ways(again, tmp_path / "again", 8, format=other, exclude=["odd", "t"] if format == NBITS else [])
    compare_ways(again, tmp_path / "back", 8, dequantize=True)
    compare_ways(again, tmp_path / "anew", 8, format=format, group_size=64, symmetric=True, requantize=True, exclude=exclude)


def test_one_group_a_row_and_given_importance(source, tmp_path):
    compare_ways(source, tmp_path / "rows", 8, format=QDQ, group_size="row", exclude="odd")
    importance = {"w": floats(K, seed=6) ** 2, "v": floats(58, K, seed=7) ** 2, "three": floats(K, 48, seed=8) ** 2}
    np.savez(tmp_path / "importance.npz", **importance)
    how = {"method": "optimal", "importance": tmp_path / "importance.npz"}
    for format in (NBITS, QDQ):
        _, cut = compare_ways(source, tmp_path / "weighted", 20, format=format, exclude="odd", **how)
        weighted = {tensor.name for tensor in cut.tensors if tensor.weights == "importance"}
        assert weighted == ({"w", "v"} if format == NBITS else {"w", "v", "three"})


def test_brain_floats_are_numbers(source, tmp_path):
    qz.convert(source, tmp_path / "out.onnx", format=NBITS, include="brain")
    with qz.open(source) as before, qz.open(tmp_path / "out.onnx") as after:
        x = (before["brain"].astype(np.uint32) << 16).view(np.float32)
        assert after["brain"].identical(qz.quantize(x, NBITS, axis=0))


def test_an_odd_number_of_outputs_is_changed_at_once_where_they_are_nibbles_side_by_side(source, tmp_path):
    with pytest.raises(ValueError, match=rf"tensor 'odd' takes {61 * EACH}: .* of {K} inputs at least 61 outputs"):
        qz.convert(source, tmp_path / "out.onnx", format=QDQ, memory_limit=60 * EACH)
    assert list(tmp_path.iterdir()) == []
    assert qz.convert(source, tmp_path / "out.onnx", format=QDQ, memory_limit=61 * EACH).memory == 61 * EACH


def test_what_is_inside_the_model_counts_as_a_whole(tmp_path):
    path = write(tmp_path / "in.onnx", model([node("MatMul", "x w", "y")], {"w": floats(K, 64)}, {"x": (None, K)}))
    inside = 4 * K * 64 + 2 * 5 * K * 64 // 8
    report = qz.convert(path, tmp_path / "out.onnx", format=NBITS, memory_limit=inside + 10 * EACH)
    assert report.memory == inside + 10 * EACH
    qz.convert(path, tmp_path / "whole.onnx", format=NBITS)
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "whole.onnx").read_bytes()
    with pytest.raises(ValueError, match="memory_limit is 1000 bytes; tensor 'w'"):
        qz.convert(path, None, format=NBITS, memory_limit=1000, dry_run=True)


def test_a_fault_names_the_outputs(source, tmp_path):
    made = onnx.load(source)
    w = floats(K, 62)
    w[5, 33] = np.nan
    next(tensor for tensor in made.graph.initializer if tensor.name == "w").raw_data = w.tobytes()
    path = tmp_path / "in.onnx"
    onnx.save_model(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with pytest.raises(qz.PolicyError, match=r"tensor 'w': outputs 32 to 39: 1 element is not finite, that at \(5, 1\)"):
        qz.convert(path, tmp_path / "out.onnx", format=NBITS, memory_limit=8 * EACH)
    with pytest.warns(qz.QuantizeWarning, match="1 element was"):
        compare_ways(path, tmp_path / "out", 8, format=NBITS, nonfinite="zero")


@pytest.mark.parametrize("layout", [Layout(format, (K, 30), axis, 32, "float16", False) for format in (NBITS, QDQ) for axis in (0, 1)])
def test_pieces_cover_every_byte_once(layout):
    for part in [*layout.stored(), *layout.stored(is_table=True), Stored((7, 5), 4, 0)]:
        outputs = part.shape[part.axis]
        cuts = [*range(0, outputs, 3 * part.step), outputs]
        covered = [byte for start, stop in pairwise(cuts) for at, size in part.places(start, stop) for byte in range(at, at + size)]
        assert sorted(covered) == list(range(part.nbytes))


@formats
@pytest.mark.parametrize("turned", [False, True])
def test_memory_stays_under_its_limit(tmp_path, format, turned):
    """A weight of eight times the limit, of zeros that take no place on the disk."""
    inputs, outputs, limit = 1024, 65536, 32 << 20
    path = tmp_path / "in.onnx"
    nodes = [node("Gemm", "x w", "y", transB=1) if turned else node("MatMul", "x w", "y")]
    made = model(nodes, {}, {"x": (None, inputs)})
    shape = (outputs, inputs) if turned else (inputs, outputs)
    tensor = made.graph.initializer.add(name="w", data_type=TensorProto.FLOAT, dims=shape, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="w.bin")
    write(path, made)
    with (tmp_path / "w.bin").open("wb") as file:
        os.truncate(file.fileno(), 4 * inputs * outputs)
    code = f"""{PEAK}
import onnx, onnx.helper, quantize as qz
before = peak()
report = qz.convert({str(path)!r}, {str(tmp_path / "out.onnx")!r}, format={format!r}, memory_limit={limit})
print(peak() - before, report.memory)
"""
    grown, said = map(int, python(code, QUANTIZE_NUM_THREADS="2").split())
    assert said <= limit
    assert grown <= limit + (8 << 20)  # what threads take
