"""Files: what is in them, what a conversion leaves behind, and that the reference reader of safetensors agrees."""

import errno
import json
import os
import shutil
import threading
from collections import namedtuple

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from checkpoints import bfloat16_bits, container, floats_of_bits, write
from helpers import PEAK, python, same, same_parts, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import quantize as qz


@pytest.fixture
def model(tmp_path):
    """A small checkpoint of every kind of tensor."""
    tensors = {
        "half": sample((4, 64), 1).astype(np.float16),
        "brain": bfloat16_bits(sample((2, 3, 96), 2)),
        "single": sample((3, 100), 3),
        "double": sample((5, 33), 4).astype(np.float64),
        "bias": sample((64,), 5),
        "ids": np.arange(12, dtype=np.int64).reshape(3, 4),
    }
    return write(tmp_path / "model.safetensors", tensors, {"format": "pt"}, brain="BF16"), tensors


def quantized(tensors, **options):
    """What quantize() makes of the matrices."""
    matrices = {name: array for name, array in tensors.items() if name not in ("bias", "ids")}
    dtypes = {"brain": "bfloat16"}
    return {name: qz.quantize(array, dtype=dtypes.get(name), **options) for name, array in matrices.items()}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"format": "uint4", "group_size": 16, "scale_dtype": "float32"},
        {"format": "int4", "group_size": "row", "scale_dtype": "bfloat16"},
        {"format": "uint4", "group_size": "tensor"},
    ],
)
def test_a_converted_file_gives_the_arrays_that_quantize_makes(model, tmp_path, options):
    path, tensors = model
    report = qz.convert(path, tmp_path / "small", **options)
    expected = quantized(tensors, **options)
    with qz.open(tmp_path / "small") as file:
        assert set(file) == set(tensors)
        for name, q in expected.items():
            assert file[name].identical(q), name
            assert file[name].format == q.format
        same(file["bias"], tensors["bias"])
        same(file["ids"], tensors["ids"])
    assert {tensor.name for tensor in report.tensors if tensor.action == "quantize"} == set(expected)
    assert report.bytes_after == sum(q.nbytes for q in expected.values()) + tensors["bias"].nbytes + tensors["ids"].nbytes
    assert report.bits_per_weight == 8 * sum(q.nbytes for q in expected.values()) / sum(q.size for q in expected.values())


@pytest.mark.parametrize("name", ["mlx", "gguf:mxfp4", "gptoss:mxfp4", "mlx:mxfp4", "compressed-tensors:mxfp4"])
def test_formats_of_other_projects(model, tmp_path, name):
    """What blocks do not divide is kept, with the reason; scales that follow the array follow the dtype of each tensor."""
    path, tensors = model
    options = {"format": name, "group_size": 32}
    report = qz.convert(path, tmp_path / "small", **options)
    matrices = {"half": tensors["half"], "brain": tensors["brain"]}
    reasons = {tensor.name: tensor.reason for tensor in report.tensors}
    assert reasons["single"] == f"last axis has 100 elements; {name} needs a multiple of 32"
    with qz.open(tmp_path / "small") as file:
        for tensor, q in quantized(matrices, **options).items():
            assert file[tensor].identical(q), tensor
            if name == "mlx":
                assert q.parts["scales"].dtype == {"half": np.float16, "brain": np.uint16}[tensor]
        same(file["single"], tensors["single"])
    with safetensors.safe_open(tmp_path / "small", "numpy") as file:
        weights = {key: file.get_tensor(f"half.{key}") for key in quantized(matrices, **options)["half"].parts}
        same_parts(weights, quantized(matrices, **options)["half"].parts)
    qz.convert(tmp_path / "small", tmp_path / "back", dequantize=True)
    for tensor, q in quantized(matrices, **options).items():
        dtype = {"half": np.float16, "brain": "bfloat16"}[tensor]
        same(qz.open(tmp_path / "back")[tensor], q.dequantize(dtype=dtype))


def test_every_tensor_comes_back_in_its_own_dtype(model, tmp_path):
    path, tensors = model
    qz.convert(path, tmp_path / "small")
    qz.convert(tmp_path / "small", tmp_path / "back", dequantize=True)
    with qz.open(tmp_path / "back") as back, qz.open(path) as before:
        assert [(info.name, info.dtype, info.shape) for info in sorted(back.tensors)] == [
            (info.name, info.dtype, info.shape) for info in sorted(before.tensors)
        ]
        assert back.metadata == before.metadata == {"format": "pt"}
        for name, q in quantized(tensors).items():
            dtype = "bfloat16" if name == "brain" else tensors[name].dtype
            same(back[name], q.dequantize(dtype=dtype), name)
        same(back["bias"], tensors["bias"])


def test_bfloat16_needs_no_other_package(tmp_path):
    bits = bfloat16_bits(sample((4, 64)))
    path = write(tmp_path / "in", {"w": bits}, w="BF16")
    code = f"""
import sys
sys.modules["ml_dtypes"] = None
import numpy as np, quantize as qz
qz.convert({str(path)!r}, {str(tmp_path / "small")!r})
qz.convert({str(tmp_path / "small")!r}, {str(tmp_path / "back")!r}, dequantize=True)
q, w = qz.open({str(tmp_path / "small")!r})["w"], qz.open({str(tmp_path / "back")!r})["w"]
print(q.parts["packed"].tobytes().hex(), w.dtype, w.tobytes().hex())
"""
    expected = qz.quantize(floats_of_bits(bits))
    decoded = bfloat16_bits(expected.dequantize())
    assert python(code).split() == [expected.parts["packed"].tobytes().hex(), "uint16", decoded.tobytes().hex()]


def test_the_reference_reads_what_is_written(model, tmp_path):
    path, tensors = model
    qz.convert(path, tmp_path / "small", scale_dtype="float32")
    with safetensors.safe_open(tmp_path / "small", "numpy") as file:
        names = {"bias", "ids"} | {f"{name}.{part}" for name in quantized(tensors) for part in ("packed", "scales")}
        assert set(file.keys()) == names
        for name, q in quantized(tensors, scale_dtype="float32").items():
            same_parts({part: file.get_tensor(f"{name}.{part}") for part in q.parts}, q.parts, name)
        assert file.metadata()["format"] == "pt"
        scheme = json.loads(file.metadata()["quantize"])
    assert scheme["version"] == 1
    assert scheme["tensors"]["brain"] == {
        "format": "int4",
        "shape": [2, 3, 96],
        "axis": -1,
        "group_size": 32,
        "scale_dtype": "float32",
        "dtype": "bfloat16",
    }


def test_a_copy_has_the_bytes_of_the_reference_writer(tmp_path):
    tensors = {"b": sample((3, 4)), "a": np.arange(5, dtype=np.uint8), "c": np.array(2.0), "d": np.zeros((0, 2), np.int64)}
    safetensors.numpy.save_file(tensors, tmp_path / "reference", metadata={"format": "np"})
    qz.convert(tmp_path / "reference", tmp_path / "copy", group_size=64)
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "reference").read_bytes()


def test_what_numpy_has_no_dtype_for_comes_as_bits(tmp_path):
    stored = [("BF16", 2), ("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("BOOL", 1), ("U16", 2), ("C64", 8), ("U64", 8)]
    header, data = {}, bytes(range(256))[: sum(4 * size for _, size in stored) + 6]
    begin = 0
    for name, size in stored:
        header[name] = {"dtype": name, "shape": [2, 2], "data_offsets": [begin, begin + 4 * size]}
        begin += 4 * size
    header["F4"] = {"dtype": "F4", "shape": [2, 3], "data_offsets": [begin, begin + 3]}
    header["F6"] = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [begin + 3, begin + 6]}
    (tmp_path / "in").write_bytes(container(header, data))
    with qz.open(tmp_path / "in") as file:
        found = {name: (array.dtype.name, array.shape) for name, array in file.items()}
        assert b"".join(file[name].tobytes() for name in header) == data
    assert found == {
        "BF16": ("uint16", (2, 2)),
        "F8_E4M3": ("uint8", (2, 2)),
        "F8_E5M2": ("uint8", (2, 2)),
        "F8_E8M0": ("uint8", (2, 2)),
        "BOOL": ("bool", (2, 2)),
        "U16": ("uint16", (2, 2)),
        "C64": ("complex64", (2, 2)),
        "U64": ("uint64", (2, 2)),
        "F4": ("uint8", (3,)),
        "F6": ("uint8", (3,)),
    }


def entry(dtype="U8", shape=(4,), offsets=(0, 4)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


HEADERS = {
    "empty": ({}, 0),
    "one": ({"a": entry()}, 4),
    "metadata": ({"__metadata__": {"k": "v"}, "a": entry()}, 4),
    "metadata null": ({"__metadata__": None, "a": entry()}, 4),
    "metadata number": ({"__metadata__": {"k": 1}, "a": entry()}, 4),
    "metadata list": ({"__metadata__": [], "a": entry()}, 4),
    "hole at the start": ({"a": entry(offsets=(1, 5))}, 5),
    "hole between": ({"a": entry(), "b": entry(offsets=(5, 9))}, 9),
    "overlap": ({"a": entry(), "b": entry(offsets=(3, 7))}, 7),
    "the same bytes": ({"a": entry(), "b": entry()}, 4),
    "out of order": ({"b": entry(offsets=(4, 8)), "a": entry()}, 8),
    "trailing": ({"a": entry()}, 5),
    "cut": ({"a": entry()}, 3),
    "backwards": ({"a": entry(offsets=(4, 0))}, 4),
    "size": ({"a": entry(shape=(3,))}, 4),
    "scalar": ({"a": entry("F32", ())}, 4),
    "empty axis": ({"a": entry(shape=(0, 9), offsets=(0, 0)), "b": entry()}, 4),
    "half byte": ({"a": entry("F4", (3,), (0, 2))}, 2),
    "whole bytes": ({"a": entry("F4", (4, 2), (0, 4))}, 4),
    "wraps": ({"a": entry(shape=(2**32, 2**32), offsets=(0, 0))}, 0),
    "negative": ({"a": entry(shape=(-4,))}, 4),
    "fraction": ({"a": entry(shape=(4.0,))}, 4),
    "unknown dtype": ({"a": entry("I4", (8,))}, 4),
    "lower case dtype": ({"a": entry("bf16", (2,))}, 4),
    "extra field": ({"a": entry() | {"x": [1]}}, 4),
    "missing field": ({"a": {"dtype": "U8", "shape": [4]}}, 4),
    "no object": ([], 0),
    "spaces behind": (b"{}   ", 0),
    "space before": (b" {}", 0),
    "NUL behind": (b"{}\0", 0),
    "no JSON": (b"{", 0),
    "no UTF-8": (b'{"\xff":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4),
    "lone surrogate": (b'{"\\ud800":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}', 4),
}


def reference(file):
    """Names, dtypes and shapes by the reference reader, or None where it refuses."""
    try:
        return {name: (tensor["dtype"], tuple(tensor["shape"]), bytes(tensor["data"])) for name, tensor in safetensors.deserialize(file)}
    except safetensors.SafetensorError:
        return None


def ours(path):
    try:
        with qz.open(path) as file:
            return {info.name: (info.shape, file[info.name].tobytes()) for info in file.tensors}
    except qz.CorruptFileError:
        return None


@pytest.mark.parametrize("case", HEADERS)
def test_a_file_is_accepted_as_the_reference_does(case, tmp_path):
    header, size = HEADERS[case]
    file = container(header, bytes(range(size)))
    (tmp_path / "in").write_bytes(file)
    found, expected = ours(tmp_path / "in"), reference(file)
    assert (found is None) == (expected is None)
    if expected is not None:
        assert found == {name: (shape, data) for name, (_, shape, data) in expected.items()}


def test_a_name_that_comes_twice_is_refused(tmp_path):
    one = json.dumps(entry()).encode()
    file = container(b'{"a":' + one + b',"a":' + one + b"}", bytes(4))
    (tmp_path / "in").write_bytes(file)
    assert reference(file) is not None  # the last one wins there
    with pytest.raises(qz.CorruptFileError, match="in: safetensors: the header is wrong: 'a' comes twice"):
        qz.open(tmp_path / "in")


WHOLE = container({"ab": entry("F16", (2, 1)), "b": entry(offsets=(4, 8)), "__metadata__": {"k": "v"}}, bytes(8))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, len(WHOLE) - 9), value=st.integers(0, 255), cut=st.integers(0, 3))
def test_a_damaged_file_is_never_accepted_where_the_reference_refuses(position, value, cut, tmp_path):
    file = bytearray(WHOLE[: len(WHOLE) - cut])
    file[position] = value
    (tmp_path / "in").write_bytes(file)
    found, expected = ours(tmp_path / "in"), reference(bytes(file))
    if found is not None:
        assert expected is not None
        assert found == {name: (shape, data) for name, (_, shape, data) in expected.items()}


@pytest.mark.parametrize(("name", "part", "value"), [("gptq", "g_idx", -1), ("compressed-tensors", "weight_shape", 7)])
def test_parts_are_checked_as_from_parts_does(name, part, value, tmp_path):
    x, path = sample((8, 64)), tmp_path / "small"
    qz.convert(write(tmp_path / "in", {"w": x}), path, format=name, group_size=32)
    with safetensors.safe_open(path, "numpy") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, file.metadata()  # noqa: SIM118 - no mapping
    tensors[f"w.{part}"].flat[0] = value
    safetensors.numpy.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=part) as expected:
        qz.from_parts(name, {key.removeprefix("w."): array for key, array in tensors.items()}, shape=x.shape, group_size=32)
    with pytest.raises(qz.CorruptFileError) as raised:
        qz.open(path)["w"]
    assert str(raised.value) == f"{path}: safetensors: tensor 'w': {expected.value}"
    with pytest.raises(qz.CorruptFileError, match=part):
        qz.convert(path, tmp_path / "back", dequantize=True)
    assert not (tmp_path / "back").exists()
    with pytest.raises(qz.CorruptFileError, match=part):
        qz.compare_files(tmp_path / "in", path)


def test_npy_in_every_order(tmp_path):
    array = sample((3, 5, 64))
    expected = qz.quantize(array)
    for name, variant in {"c": array, "fortran": np.asfortranarray(array), "swapped": array.astype(">f4")}.items():
        np.save(tmp_path / f"{name}.npy", variant)
        same(qz.open(tmp_path / f"{name}.npy")[name], array, name)
        qz.convert(tmp_path / f"{name}.npy", tmp_path / name)
        assert qz.open(tmp_path / name)[name].identical(expected), name
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(qz.CorruptFileError, match=r"objects.npy: npy: the array holds Python objects"):
        qz.open(tmp_path / "objects.npy")


def test_an_open_file_is_a_mapping_that_reads_when_asked(model):
    path, tensors = model
    with qz.open(path) as file:
        assert len(file) == 6
        assert sorted(file) == sorted(tensors)
        assert "half" in file
        assert "absent" not in file
        assert file.get("absent") is None
        with pytest.raises(KeyError):
            file["absent"]
        assert (file.path, file.container) == (path, "safetensors")
        assert repr(file) == f"Checkpoint({str(path)!r}, 6 tensors, 4.5 kB)"
        info = next(info for info in file.tensors if info.name == "brain")
        assert info == ("brain", "bfloat16", (2, 3, 96), 1152, None, None)
        assert info.size == 576
        assert file == file
        assert file != qz.open(path)
        read = file["half"]
    same(read, tensors["half"])
    assert read.flags.writeable
    with pytest.raises(ValueError, match="is closed"):
        file["half"]


def test_many_threads_read_one_file(model):
    path, tensors = model
    wrong = []

    def read():
        for _ in range(50):
            wrong.extend(name for name, array in tensors.items() if file[name].tobytes() != array.tobytes())

    with qz.open(path) as file:
        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_the_report_tells_what_was_done(model, tmp_path):
    path, tensors = model
    report = qz.convert(path, tmp_path / "small", exclude=["dou*"], keep=["half"])
    rows = {tensor.name: tensor for tensor in report.tensors}
    assert rows["half"].reason == "kept by name"
    assert rows["double"].reason == "excluded by 'dou*'"
    assert rows["bias"].reason == "1-d; a matrix has 2 axes or more"
    assert rows["ids"].reason == "int64 is not quantized"
    for name, reference in {"single": tensors["single"], "brain": floats_of_bits(tensors["brain"])}.items():
        expected = qz.compare(reference, quantized(tensors)[name])
        assert (rows[name].action, rows[name].format, rows[name].group_size) == ("quantize", "int4", 32)
        assert rows[name].rmse == pytest.approx(expected.rmse, rel=1e-12)
        assert rows[name].max_abs_error == expected.max_abs_error
        assert rows[name].sqnr_db == pytest.approx(expected.sqnr_db, rel=1e-12)
        assert rows[name].bits_per_weight == expected.bits_per_weight
    measured = {name: rows[name].sqnr_db for name in ("single", "brain")}
    assert report.worst == min(measured, key=measured.get)
    assert min(measured.values()) < report.sqnr_db < max(measured.values())
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["tensors"][0]["name"] == report.tensors[0].name


def test_errors_of_zero_are_null_in_json(tmp_path):
    write(tmp_path / "in", {"zeros": np.zeros((2, 32), np.float32)})
    report = qz.convert(tmp_path / "in", tmp_path / "out")
    assert report.sqnr_db == np.inf
    assert report.to_dict()["sqnr_db"] is None
    assert report.tensors[0].rmse == 0


def test_a_dry_run_plans_and_writes_nothing(model, tmp_path):
    path, _ = model
    plan = qz.convert(path, None, dry_run=True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
    report = qz.convert(path, tmp_path / "small")
    for planned, done in zip(plan.tensors, report.tensors, strict=True):
        assert (planned.name, planned.action, planned.bytes_after, planned.sqnr_db) == (done.name, done.action, done.bytes_after, None)
    assert plan.bytes_after == report.bytes_after
    assert sum(tensor.nbytes for tensor in qz.open(tmp_path / "small").tensors) == report.bytes_after


def test_the_bytes_do_not_depend_on_threads(tmp_path):
    write(tmp_path / "in", {"w": sample((1024, 1100)), "v": sample((3, 700_000))})
    files = set()
    for threads in (1, 2, 7):
        qz.convert(tmp_path / "in", tmp_path / "out", format="uint4", group_size="tensor", overwrite=True, threads=threads)
        files.add((tmp_path / "out").read_bytes())
    assert len(files) == 1


def test_progress_is_told_and_its_exception_stops_the_work(model, tmp_path):
    path, tensors = model
    news = []
    qz.convert(path, tmp_path / "small", progress=lambda *told: news.append(told))
    total = sum(array.nbytes for array in tensors.values())
    assert {name for _, _, name in news} == set(tensors)
    assert [done for done, _, _ in news] == sorted(done for done, _, _ in news)
    assert news[-1][:2] == (total, total)

    class Enough(Exception):  # noqa: N818
        pass

    def stop(*_):
        raise Enough

    with pytest.raises(Enough):
        qz.convert(path, tmp_path / "other", progress=stop)
    with pytest.raises(KeyboardInterrupt):
        qz.convert(path, tmp_path / "other", progress=interrupt)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model.safetensors", "small"]
    qz.convert(path, tmp_path / "other")


def interrupt(*_):
    raise KeyboardInterrupt


def test_a_tensor_that_is_not_finite_is_named_and_nothing_is_written(tmp_path):
    array = sample((4, 64))
    array[1, 2], array[3, 4] = np.nan, np.inf
    path = write(tmp_path / "in", {"good": sample((4, 64)), "layers.7.bad": array})
    with pytest.raises(qz.PolicyError, match=r"in: tensor 'layers.7.bad': 2 elements are not finite, the first at \(1, 2\) is (nan|NaN)"):
        qz.convert(path, tmp_path / "out")
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]
    with pytest.warns(qz.QuantizeWarning, match="2 elements were not finite and replaced"):
        report = qz.convert(path, tmp_path / "out", nonfinite="clip")
    assert {tensor.name: tensor.replaced for tensor in report.tensors} == {"good": 0, "layers.7.bad": 2}
    assert report.worst == "good"
    with pytest.warns(qz.QuantizeWarning):
        expected = qz.quantize(array, nonfinite="clip")
    assert qz.open(tmp_path / "out")["layers.7.bad"].identical(expected)


def test_a_name_in_a_message_is_escaped(tmp_path):
    path = write(tmp_path / "in", {"a\x1b[31m": np.full((2, 32), np.nan, np.float32)})
    with pytest.raises(qz.PolicyError, match=r"tensor 'a\\u\{1b\}\[31m': 64 elements"):
        qz.convert(path, tmp_path / "out")


def test_scales_beyond_their_dtype_are_a_matter_of_policy_too(tmp_path):
    path = write(tmp_path / "in", {"large": np.full((2, 32), 1e30, np.float32)})
    with pytest.raises(qz.PolicyError, match=r"tensor 'large': the scale of group \(0, 0\) is beyond the largest float16"):
        qz.convert(path, tmp_path / "out")
    qz.convert(path, tmp_path / "out", scale_dtype="float32")


def test_arguments_are_refused_before_anything_is_written(model, tmp_path):
    path, _ = model
    for options, expected in [
        ({"format": "int5"}, "no format 'int5'"),
        ({"group_size": 0}, "group_size is 0"),
        ({"format": "q4_0", "group_size": 64}, "group_size is 64; gguf:q4_0 takes 32"),
        ({"format": "q4_0", "scale_dtype": "float32"}, "has no option scale_dtype"),
        ({"nonfinite": "drop"}, "nonfinite is 'drop'"),
        ({"include": ["layers.*"]}, "include is 'layers.*'; no tensor of the file matches it"),
        ({"keep": "bis"}, "keep is 'bis'; no tensor of the file has that name"),
        ({"threads": 0}, "threads is 0"),
        ({"dequantize": True, "group_size": 32}, "expected none with dequantize=True"),
    ]:
        with pytest.raises((ValueError, TypeError)) as raised:
            qz.convert(path, tmp_path / "out", **options)
        assert expected in str(raised.value)
    with pytest.raises(ValueError, match="target is None"):
        qz.convert(path, None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_files_that_cannot_be_read_or_written(model, tmp_path):
    path, _ = model
    (tmp_path / "folder").mkdir()
    (tmp_path / "exists").write_bytes(b"old")
    for source, target, kind in [
        ("absent", "out", FileNotFoundError),
        ("folder", "out", FileNotFoundError),  # its config.json
        ("model.safetensors", "absent/out", FileNotFoundError),
        ("model.safetensors", "folder", IsADirectoryError),
        ("model.safetensors", "exists", FileExistsError),
        ("model.safetensors", "x" * 300, OSError),
    ]:
        with pytest.raises(kind) as raised:
            qz.convert(tmp_path / source, tmp_path / target)
        assert raised.value.filename is not None
        assert raised.value.errno is not None
    assert (tmp_path / "exists").read_bytes() == b"old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["exists", "folder", "model.safetensors"]
    qz.convert(path, tmp_path / "exists", overwrite=True)


def test_a_pipe_is_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="not a regular file"):
        qz.open(tmp_path / "pipe")


def test_memory_is_bounded_by_the_largest_tensor_not_by_the_file(tmp_path):
    rows, columns, count = 4096, 4096, 8  # 8 tensors of 64 MiB
    nbytes = 4 * rows * columns
    entries = {f"w{i}": entry("F32", (rows, columns), (i * nbytes, (i + 1) * nbytes)) for i in range(count)}
    header = container(entries)
    with (tmp_path / "in").open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count * nbytes)
    code = f"""{PEAK}
import quantize as qz
np_alone = peak()
qz.convert({str(tmp_path / "in")!r}, {str(tmp_path / "small")!r})
qz.convert({str(tmp_path / "small")!r}, {str(tmp_path / "in")!r}, dequantize=True, overwrite=True)
print(peak() - np_alone)
"""
    assert int(python(code, QUANTIZE_NUM_THREADS="2")) < (64 + 9 + 64) << 20  # the tensor, its parts, blocks and what threads take


def test_a_full_disk_is_noticed_before_the_start(model, tmp_path, monkeypatch):
    path, _ = model
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10_000, 9_999, 1))
    with pytest.raises(OSError, match="the new file needs 1.1 kB, the disk has 1 bytes free") as raised:
        qz.convert(path, tmp_path / "out")
    assert raised.value.errno == errno.ENOSPC
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_file_can_be_converted_in_place(model, tmp_path):
    path, tensors = model
    path.chmod(0o640)
    with pytest.raises(FileExistsError):
        qz.convert(path, path)
    qz.convert(path, path, overwrite=True)
    assert qz.open(path)["half"].identical(quantized(tensors)["half"])
    assert path.stat().st_mode & 0o777 == 0o640
    link = tmp_path / "link"
    link.symlink_to(path)
    qz.convert(link, link, overwrite=True, dequantize=True)
    assert link.is_symlink()
    assert qz.open(path)["half"].dtype == np.float16
