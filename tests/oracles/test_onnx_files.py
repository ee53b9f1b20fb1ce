"""Files of ONNX models: data beside the model, models that are broken, jobs that fail."""

import os
import re
import resource
import stat
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx_models import (
    GEMM,
    NBITS,
    QDQ,
    constant,
    converted,
    floats,
    formats,
    initializers,
    model,
    node,
    run,
    session,
    steps,
    two_layers,
    write,
)

import quantize as qz
from quantize import cli
from quantize._onnx import data, job, output


def test_a_file_that_exists_is_replaced_only_when_asked(tmp_path):
    source = write(tmp_path / "in.onnx", two_layers())
    before = source.read_bytes()
    with pytest.raises(FileExistsError):
        qz.convert(source, source, format=NBITS)
    assert source.read_bytes() == before
    source.chmod(0o600)
    qz.convert(source, source, format=NBITS, overwrite=True)
    assert len(source.read_bytes()) < len(before) / 3
    assert stat.S_IMODE(source.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [source]
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(IsADirectoryError):
        qz.convert(source, tmp_path / "folder.onnx", dequantize=True, overwrite=True)


def outside(path, made, **options):
    """Write a model with its data beside it, by the onnx package."""
    onnx.save_model(made, path, save_as_external_data=True, location="weights.bin", size_threshold=0, convert_attribute=True, **options)
    return path


def big():
    nodes = [
        constant("u", floats(600, 8, seed=7)),
        node("MatMul", "x w", "a"),
        node("MatMul", "a u", "b"),
        node("Mul", "b v", "c"),
        node("Add", "c z", "y"),
    ]
    weights = {"w": floats(600, 600), "v": floats(2000, 8, seed=1)[:1], "z": floats(600, 8, seed=2)[:1], "k": floats(600, 600, seed=3)}
    return model(nodes, weights, {"x": (None, 600)})


@formats
def test_data_beside_the_model_stays_beside_it(tmp_path, format):
    (tmp_path / "there").mkdir()
    source, target = outside(tmp_path / "in.onnx", big()), tmp_path / "there" / "out.onnx"
    before = {path: path.read_bytes() for path in (source, tmp_path / "weights.bin")}
    report = qz.convert(source, target, format=format)
    assert [name for name, (action, _) in steps(report).items() if action == "quantize"] == ["w", "u"]
    assert sorted(path.name for path in target.parent.iterdir()) == ["out.onnx", "out.onnx.data"]
    assert target.stat().st_size < 3000
    onnx.checker.check_model(str(target))
    places = {}
    for tensor in data_tensors(target):
        entries = {entry.key: entry.value for entry in tensor.external_data}
        assert entries["location"] == "out.onnx.data"
        places[tensor.name] = int(entries["offset"]), int(entries["length"])
    assert places["k"][0] % 4096 == 0
    assert max(map(sum, places.values())) == (target.parent / "out.onnx.data").stat().st_size
    assert not {"v", "z"} & set(places)  # too small
    x = np.eye(600, dtype=np.float32)
    inside = write(tmp_path / "inside.onnx", big())
    qz.convert(inside, tmp_path / "inside-out.onnx", format=format)
    np.testing.assert_array_equal(run(target, x=x)[0], run(tmp_path / "inside-out.onnx", x=x)[0])
    assert {path: path.read_bytes() for path in before} == before
    back = target.parent / "back.onnx"
    qz.convert(target, back, dequantize=True)
    assert qz.compare_files(target, back).sqnr_db == float("inf")


def data_tensors(path):
    made = onnx.load(path, load_external_data=False)
    return [tensor for tensor in job.tensors_of(made) if tensor.data_location == TensorProto.EXTERNAL]


def test_ranges_that_tensors_share_are_copied_once(tmp_path):
    (tmp_path / "weights.bin").write_bytes(floats(64, 64).tobytes())
    made = model([node("Mul", "x v", "a"), node("Mul", "a u", "y")], {}, {"x": (64, 64)})
    for name in ("v", "u"):
        tensor = made.graph.initializer.add(name=name, data_type=TensorProto.FLOAT, dims=(64, 64), data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value="weights.bin")
    source = write(tmp_path / "in.onnx", made)
    qz.convert(source, tmp_path / "out.onnx", format=NBITS)
    assert (tmp_path / "out.onnx.data").read_bytes() == (tmp_path / "weights.bin").read_bytes()
    x = floats(64, 64, seed=1)
    np.testing.assert_array_equal(run(tmp_path / "out.onnx", x=x)[0], run(source, x=x)[0])


def test_a_model_takes_its_own_place_with_its_data(tmp_path):
    source = outside(tmp_path / "in.onnx", big())
    for _ in range(2):  # the second time the data is replaced too
        before = source.read_bytes(), decode_all(source)
        with pytest.raises(FileExistsError):
            qz.convert(source, source, format=QDQ)
        qz.convert(source, source, format=QDQ, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "in.onnx.data", "weights.bin"]
    after = decode_all(source)
    assert all(np.array_equal(after[name], array) for name, array in before[1].items())


def decode_all(path):
    with qz.open(path) as file:
        return {name: np.asarray(file[name]) for name in file}


def test_the_data_of_the_source_is_not_replaced(tmp_path):
    source = tmp_path / "in.onnx"
    onnx.save_model(big(), source, save_as_external_data=True, location="out.onnx.data", size_threshold=0)
    before = (tmp_path / "out.onnx.data").read_bytes()
    with pytest.raises(FileExistsError):
        qz.convert(source, tmp_path / "out.onnx", format=NBITS)
    with pytest.raises(ValueError, match="the data of the source has the name of its data"):
        qz.convert(source, tmp_path / "out.onnx", format=NBITS, overwrite=True)
    assert (tmp_path / "out.onnx.data").read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.onnx", "out.onnx.data"]


def test_a_model_that_grows_too_large_gets_data_beside_it(tmp_path, monkeypatch):
    _, _, target = converted(tmp_path, two_layers())
    monkeypatch.setattr(output, "INSIDE_LIMIT", 4096)
    qz.convert(target, tmp_path / "back.onnx", dequantize=True)
    assert (tmp_path / "back.onnx.data").stat().st_size == 4 * (64 * 64 + 64 * 8)
    x = floats(3, 64, seed=4)
    np.testing.assert_allclose(run(tmp_path / "back.onnx", x=x)[0], run(target, x=x)[0], rtol=1e-4, atol=1e-4)


def test_a_failure_leaves_nothing(tmp_path):
    made = big()
    made.graph.initializer[0].raw_data = np.full(600 * 600, np.nan, np.float32).tobytes()
    source = outside(tmp_path / "in.onnx", made)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(qz.PolicyError):
        qz.convert(source, tmp_path / "out.onnx", format=NBITS)
    assert sorted(tmp_path.iterdir()) == before


def changed(made, change):
    copy = onnx.ModelProto()
    copy.CopyFrom(made)
    change(copy.graph)
    return copy.SerializeToString()


def first(graph):
    return graph.initializer[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: b"", "no graph"),
        (lambda: b"version https://git-lfs.github.com/spec/v1\n", "onnx: no model"),
        (lambda: two_layers().SerializeToString()[:-100], "onnx: no model that protobuf can read"),
        (lambda: onnx.ModelProto(ir_version=8).SerializeToString(), "no graph"),
        (
            lambda: changed(two_layers(), lambda graph: first(graph).dims.append(2)),
            "tensor 'w' has 16384 bytes; its type and shape need 32768",
        ),
        (lambda: changed(two_layers(), lambda graph: first(graph).dims.append(2**62)), "its type and shape need"),
        (lambda: changed(two_layers(), lambda graph: first(graph).dims.append(-1)), "no negative length"),
        (lambda: changed(two_layers(), lambda graph: setattr(first(graph), "data_type", 77)), "type 77"),
        (lambda: changed(two_layers(), lambda graph: first(graph).ClearField("raw_data")), "tensor 'w' has 0 bytes"),
        (lambda: two_layers().SerializeToString().replace(b"w", b"\xff"), "not UTF-8"),
        (lambda: changed(two_layers(), lambda graph: setattr(first(graph), "name", "v")), "a name|is taken"),
        (lambda: changed(two_layers(), lambda graph: first(graph).segment.SetInParent()), "segment"),
        (lambda: changed(two_layers(), lambda graph: graph.node[1].output.__setitem__(0, "a")), "two nodes make the value 'a'"),
    ],
)
def test_broken_models_are_refused(tmp_path, make, message):
    path = tmp_path / "in.onnx"
    path.write_bytes(make())
    for call in (lambda: qz.open(path), lambda: qz.convert(path, tmp_path / "out.onnx", format=NBITS)):
        with pytest.raises(qz.CorruptFileError, match=message):
            call()
    assert list(tmp_path.iterdir()) == [path]


def test_a_quantized_weight_that_contradicts_itself_is_refused(tmp_path):
    _, _, target = converted(tmp_path, two_layers())
    made = onnx.load(target)
    made.graph.node[0].attribute[0].i = 65
    write(target, made)
    with pytest.raises(qz.CorruptFileError, match=r"tensor 'w_Q4' of a MatMulNBits has 2048 bytes; .* need 3072"):
        qz.open(target)


def test_a_weight_of_two_scales_is_refused(tmp_path):
    _, _, target = converted(tmp_path, model([node("MatMul", "x w", "a"), node("MatMul", "a w", "y")], {"w": floats(64, 64)}, GEMM))
    made = onnx.load(target)
    made.graph.initializer.append(numpy_helper.from_array(floats(64, 2), "others"))
    made.graph.node[1].input[2] = "others"
    write(target, made)
    with pytest.raises(qz.CorruptFileError, match="read the weight 'w_Q4' in two ways"):
        qz.open(target)


def test_a_message_beyond_two_gibibytes_is_refused_unread(tmp_path):
    path = tmp_path / "in.onnx"
    path.touch()
    os.truncate(path, 2**31)  # sparse
    with pytest.raises(qz.CorruptFileError, match="larger than 2 GiB.*external data"):
        qz.open(path)


@pytest.mark.parametrize("location", ["../weights.bin", "link.bin", "none.bin"])
def test_data_outside_the_folder_is_refused(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    source = outside(folder / "in.onnx", big())
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    (folder / "link.bin").symlink_to(tmp_path / "weights.bin")
    made = onnx.load(source, load_external_data=False)
    for tensor in job.tensors_of(made):
        tensor.external_data[0].value = location
    write(source, made)
    before = sorted(folder.iterdir())
    for call in (lambda: qz.open(source), lambda: qz.convert(source, folder / "out.onnx", format=NBITS)):
        with pytest.raises(qz.CorruptFileError, match=re.escape(location)):
            call()
    assert sorted(folder.iterdir()) == before


def test_tensors_of_every_type_are_listed_and_read(tmp_path):
    """Raw and in the fields that are meant for their types."""
    kinds = {
        number: np.dtype(helper.tensor_dtype_to_np_dtype(number))
        for number, (name, bits, _) in data.TYPES.items()
        if name != "string" and bits >= 8
    }
    made = model([node("Identity", "x", "y")], {}, GEMM)
    expected = {}
    for number, dtype in kinds.items():
        values = np.array([1, 0, 1, 1]).astype(dtype).reshape(2, 2)
        for raw in (True, False):
            name = f"{data.TYPES[number][0]}{'' if raw else '_typed'}"
            content = values.tobytes() if raw else values.reshape(-1)
            made.graph.initializer.append(helper.make_tensor(name, number, (2, 2), content, raw=raw))
            expected[name] = values.tobytes()
    made.graph.initializer.append(helper.make_tensor("nibbles", TensorProto.INT4, (3,), [1, -2, 3]))
    made.graph.initializer.append(helper.make_tensor("text", TensorProto.STRING, (2,), [b"ab", b"c"]))
    path = write(tmp_path / "in.onnx", made)
    with qz.open(path) as file:
        assert {name: file[name].tobytes() for name in expected} == expected
        assert file["nibbles"].tolist() == [0xE1, 0x03]
        listed = {info.name: (info.dtype, info.shape, info.nbytes) for info in file.tensors}
        assert listed["nibbles"] == ("int4", (3,), 2)
        assert listed["text"] == ("string", (2,), 3)
        with pytest.raises(ValueError, match="strings"):
            file["text"]
    assert initializers({}) == []
    assert session(path).get_inputs()[0].name == "x"


def test_a_file_for_every_tensor_and_a_long_chain(tmp_path):
    """More files than a process may have open, more nodes in a row than Python's stack is deep."""
    count = resource.getrlimit(resource.RLIMIT_NOFILE)[0] + 10 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 5000 else 1100
    chain = [node("Identity", f"w{at}", f"w{at + 1}") for at in range(2000)]
    made = model([*chain, node("MatMul", "x w2000", "y")], {"w0": floats(64, 8)}, GEMM)
    for at in range(count):
        (tmp_path / f"{at}.bin").write_bytes(bytes(16))
        tensor = made.graph.initializer.add(name=f"t{at}", data_type=TensorProto.FLOAT, dims=(4,), data_location=TensorProto.EXTERNAL)
        tensor.external_data.add(key="location", value=f"{at}.bin")
    report = qz.convert(write(tmp_path / "in.onnx", made), tmp_path / "out.onnx", format=NBITS)
    assert steps(report)["w0"] == ("quantize", None)
    assert not (tmp_path / "out.onnx.data").exists()  # nothing is large enough for it
    after = onnx.load(tmp_path / "out.onnx", load_external_data=False)
    assert len(after.graph.node) == 1
    assert len(after.graph.initializer) == 2 + count


@pytest.mark.parametrize("beside", [False, True])
def test_a_full_disk_leaves_nothing(tmp_path, beside):
    """A limit on the size of a file stands for it."""
    made = two_layers()
    source = outside(tmp_path / "in.onnx", made) if beside else write(tmp_path / "in.onnx", made)
    before = sorted(tmp_path.iterdir())
    command = [sys.executable, "-m", "quantize", "convert", str(source), str(tmp_path / "out.onnx"), "--to", NBITS]

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, preexec_fn=limit)
    assert done.returncode == cli.IO, done.stderr
    assert sorted(tmp_path.iterdir()) == before


def test_bytes_changed_at_random_give_a_model_or_an_error(tmp_path):
    random = np.random.default_rng(0)
    paths = [write(tmp_path / "floats.onnx", two_layers())]
    for format in (NBITS, QDQ):
        paths.append(tmp_path / f"{format.replace(':', '-')}.onnx")
        qz.convert(paths[0], paths[-1], format=format, symmetric=False)
    broken, target = tmp_path / "broken.onnx", tmp_path / "out.onnx"
    seen = set()
    for round_ in range(150):
        content = bytearray(paths[round_ % 3].read_bytes())
        # The names and numbers of a message are at its ends; between them are weights.
        at = int(random.choice([random.integers(300), len(content) - 1 - random.integers(400)]))
        if round_ % 2:
            content[at] = random.integers(256)
        else:
            del content[at : at + random.integers(1, 4)]
        broken.write_bytes(content)
        for how in ({"format": NBITS}, {"format": QDQ, "group_size": 16, "requantize": True}, {"dequantize": True}):
            try:
                qz.convert(broken, target, overwrite=True, **how)
                seen.add("done")
            except ValueError as error:
                seen.add(type(error).__name__)
    assert {"done", "CorruptFileError"} <= seen
    assert not list(tmp_path.glob(".quantize-*"))
