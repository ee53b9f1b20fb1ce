"""Published ONNX models, of packages from the index: what becomes of them, and what ONNX Runtime then says."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx_models import NBITS, QDQ, run, session, write
from safetensors.numpy import save_file
from test_onnx_graph import by_onnxruntime, data_of

import quantize as qz


def packaged(module, file):
    spec = find_spec(module)
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / file


@pytest.fixture(scope="module")
def magika():
    """What kind a file is of: two products, one of an odd 257 inputs, one of 214 outputs; opset 15."""
    return packaged("magika", "models/standard_v3_3/model.onnx")


@pytest.fixture(scope="module")
def recognizer():
    """Text of pictures: 420 constants and no initializer, nine products with short last groups; opset 12."""
    return packaged("rapidocr_onnxruntime", "models/ch_PP-OCRv4_rec_infer.onnx")


def beginnings_and_ends():
    """Four files as magika sees them: 1024 bytes of the beginning, 1024 of the end."""
    python = Path(__file__).read_bytes()[:1024]
    page = (b"<!DOCTYPE html><html><body><p>" + b"Some words. " * 100)[:1024]
    words = b"a,b,c\n" + b"1,2,3\n" * 200
    random = np.random.default_rng(0).bytes(1024)
    rows = [np.frombuffer(text[:1024], np.uint8) for text in (python, page, words, random)]
    return np.stack([np.concatenate([row, row[::-1]]) for row in rows]).astype(np.int32)


def line_of_text():
    """A picture of dark bars on paper, 48 pixels high."""
    picture = np.ones((1, 3, 48, 320), np.float32)
    for at in range(10, 300, 14):
        picture[..., 8:40, at : at + 4] = -1
        picture[..., 8 + at % 24 : 12 + at % 24, at : at + 10] = -1
    return picture


def quantized(report):
    return [tensor.name for tensor in report.tensors if tensor.action == "quantize"]


def test_magika_has_the_bytes_of_onnxruntime_and_its_answers(magika, tmp_path):
    target = tmp_path / "out.onnx"
    report = qz.convert(magika, target, format=NBITS)
    assert [(tensor.name, tensor.shape) for tensor in report.tensors if tensor.format] == [
        ("jax2tf_get_logits_/Const_24:0", (512, 214)),
        ("jax2tf_get_logits_/Const:0", (257, 64)),
    ]
    onnx.checker.check_model(str(target))
    ours = {tensor.name: tensor for tensor in onnx.load(target).graph.initializer}
    theirs = by_onnxruntime(onnx.load(magika), 32, True, False)
    for tensor in report.tensors:
        if tensor.format:
            assert data_of(ours[f"{tensor.name}_Q4"], tensor.shape[0]) == data_of(theirs[f"{tensor.name}_Q4"], tensor.shape[0])
            assert data_of(ours[f"{tensor.name}_scales"]) == data_of(theirs[f"{tensor.name}_scales"])
    given = {session(magika).get_inputs()[0].name: beginnings_and_ends()}
    before, after = run(magika, **given)[0], run(target, **given)[0]
    np.testing.assert_array_equal(before.argmax(-1), after.argmax(-1))
    assert np.abs(before - after).max() < 0.2


def test_optimal_scales_bring_the_products_nearer(magika, tmp_path):
    """With the mean squares of what each layer is given in 24 files of letters, for the products in 24 others."""
    made = onnx.load(magika)
    products = {one.input[1]: one.input[0] for one in made.graph.node if one.op_type == "MatMul"}
    made.graph.output.extend(helper.make_tensor_value_info(value, TensorProto.FLOAT, None) for value in products.values())
    exposed = write(tmp_path / "exposed.onnx", made)
    letters = np.random.default_rng(0).choice(np.frombuffer(b"  aeiou etaoin shrdlu\n(){}=.,", np.uint8), (2, 24, 2048)).astype(np.int32)
    (_, *seen), (_, *others) = (run(exposed, bytes=rows) for rows in letters)
    squares = {weight: (given.reshape(-1, given.shape[-1]) ** 2).mean(0) + 1e-12 for weight, given in zip(products, seen, strict=True)}
    save_file(squares, tmp_path / "importance.safetensors")
    errors = {}
    for name, how in {"nearest": {}, "optimal": {"method": "optimal", "importance": tmp_path / "importance.safetensors"}}.items():
        report = qz.convert(magika, tmp_path / f"{name}.onnx", format=NBITS, **how)
        assert {tensor.weights for tensor in report.tensors if tensor.format} == {"importance" if how else None}
        with qz.open(magika) as floats, qz.open(tmp_path / f"{name}.onnx") as file:
            errors[name] = [
                np.sqrt(np.mean((given @ (floats[weight] - file[weight].dequantize())) ** 2))
                for weight, given in zip(products, others, strict=True)
            ]
    assert all(optimal < 0.95 * nearest for optimal, nearest in zip(errors["optimal"], errors["nearest"], strict=True)), errors


def test_constants_become_weights_of_the_recognizer(recognizer, tmp_path):
    target, back = tmp_path / "out.onnx", tmp_path / "back.onnx"
    report = qz.convert(recognizer, target, format=NBITS, symmetric=False)
    assert quantized(report) == [f"linear_{at}.w_0" for at in range(77, 86)]
    constants = {one.output[0]: one.attribute[0].t for one in onnx.load(recognizer).graph.node if one.op_type == "Constant"}
    with qz.open(target) as file:
        for name in quantized(report):
            b = numpy_helper.to_array(constants[name])
            assert file[name].identical(qz.quantize(b, NBITS, axis=0, symmetric=False)), name
    given = {"x": line_of_text()}
    before, after = run(recognizer, **given)[0], run(target, **given)[0]
    assert np.mean(before.argmax(-1) == after.argmax(-1)) > 0.9
    assert qz.compare(before, after).cosine > 0.98
    qz.convert(target, back, dequantize=True)
    np.testing.assert_allclose(run(back, **given)[0], after, rtol=1e-3, atol=1e-4)
    assert qz.compare_files(target, back).sqnr_db == float("inf")


def test_the_recognizer_takes_qdq_after_its_operators_were_converted(recognizer, tmp_path):
    with pytest.raises(ValueError, match="opset 12"):
        qz.convert(recognizer, tmp_path / "out.onnx", format=QDQ)
    newer = write(tmp_path / "newer.onnx", version_converter.convert_version(onnx.load(recognizer), 21))
    target, back = tmp_path / "out.onnx", tmp_path / "back.onnx"
    assert len(quantized(qz.convert(newer, target, format=QDQ))) == 9
    qz.convert(target, back, dequantize=True)
    given = {"x": line_of_text()}
    np.testing.assert_allclose(run(target, **given)[0], run(back, **given)[0], rtol=1e-3, atol=1e-4)
    repacked = tmp_path / "repacked.onnx"
    assert qz.convert(target, repacked, format=NBITS).sqnr_db == float("inf")
    np.testing.assert_allclose(run(repacked, **given)[0], run(back, **given)[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_half", "silero_vad_op18_ifless"])
def test_detectors_of_speech_have_little_or_nothing_to_quantize(name, tmp_path):
    """Convolutions in the branches of If; the last of them has products there, with weights of the outer graph."""
    source, target = packaged("silero_vad", f"data/{name}.onnx"), tmp_path / "out.onnx"
    report = qz.convert(source, target, format=NBITS)
    assert len(quantized(report)) == (4 if name.endswith("ifless") else 0)
    if not quantized(report):
        assert target.read_bytes() == source.read_bytes()
        return
    tone = np.sin(np.arange(576, dtype=np.float32) / 9)[None]
    given = {"input": tone, "state": np.zeros((2, 1, 128), np.float32), "sr": np.array(16000)}
    before, after = run(source, **given), run(target, **given)
    assert np.abs(before[0] - after[0]).max() < 0.05
    assert qz.compare(before[1], after[1]).cosine > 0.99
