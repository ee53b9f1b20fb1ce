"""Reports: what they say of each tensor and of its groups, as data and as a page."""

import hashlib
import json
from html.parser import HTMLParser
from itertools import pairwise

import numpy as np
import pytest
from checkpoints import bfloat16_bits, floats_of_bits, gguf_floats, write
from folders import folder
from helpers import as_bits, sample

import quantize as qz
from quantize import cli
from quantize._report import _ticks


@pytest.fixture
def files(tmp_path):
    """A checkpoint, what it became, and what the conversion said."""
    weight = sample((8, 128), 1)
    weight[5, 64:96] = np.where(np.arange(32) == 3, 8, 0.45)  # all but one become 0
    tensors = {
        "weight": weight,
        "brain": bfloat16_bits(sample((2, 4, 64), 2)),
        "zeros": np.zeros((2, 64), np.float32),
        "bias": sample((8,), 3),
        "ids": np.arange(4, dtype=np.int64),
    }
    source = write(tmp_path / "a.safetensors", tensors, None, brain="BF16")
    return source, tmp_path / "b.safetensors", tensors, qz.convert(source, tmp_path / "b.safetensors", format="q4_0")


def test_every_number_is_that_of_the_arrays(files):
    source, target, tensors, conversion = files
    report = qz.report(source, target, conversion=conversion)
    assert [tensor.name for tensor in report.tensors] == [info.name for info in qz.open(source).tensors]
    found = {tensor.name: tensor for tensor in report.tensors}
    squares = error_squares = 0.0
    for name in ("weight", "brain", "zeros"):
        x = floats_of_bits(tensors[name]) if name == "brain" else tensors[name]
        q = qz.quantize(x, "q4_0")
        own, expected = found[name], qz.compare(x, q)
        assert (own.rmse, own.max_abs_error, own.sqnr_db) == (expected.rmse, expected.max_abs_error, expected.sqnr_db)
        assert (own.cosine, own.saturated, own.bits_per_weight) == (expected.cosine, expected.saturated, expected.bits_per_weight)
        assert own.sha256 == hashlib.sha256(q.parts["blocks"].tobytes()).hexdigest()
        assert (own.action, own.first, own.second, own.group_size) == (
            "quantize",
            "bfloat16" if name == "brain" else "float32",
            "gguf:q4_0",
            32,
        )
        error = (x.astype(np.float64) - q.dequantize()).reshape(*x.shape[:-1], -1, 32)
        groups = np.square(x, dtype=np.float64).reshape(error.shape).sum(-1), np.square(error).sum(-1)
        squares, error_squares = squares + groups[0].sum(), error_squares + groups[1].sum()
        if name == "zeros":
            assert sum(own.histogram) == 0
            assert own.worst_group is None
            continue
        decibels = 10 * np.log10(groups[0] / groups[1])
        assert sum(own.histogram) == decibels.size
        assert list(own.histogram) == np.histogram(decibels, np.arange(41))[0].tolist()
        assert own.worst_group == np.unravel_index(decibels.argmin(), decibels.shape)
        assert own.worst_group_db == pytest.approx(decibels.min())
    assert found["weight"].worst_group == (5, 2)
    assert report.sqnr_db == pytest.approx(10 * np.log10(squares / error_squares))
    assert found["bias"].sqnr_db is None
    assert (found["bias"].action, found["bias"].reason) == ("keep", "1-d; a matrix has 2 axes or more")
    assert found["ids"].sha256 == hashlib.sha256(tensors["ids"].tobytes()).hexdigest()
    assert report.bits_per_weight == conversion.bits_per_weight


def test_names_that_one_file_has(files, tmp_path):
    source, target, tensors, _ = files
    write(tmp_path / "c.safetensors", {"weight": tensors["weight"], "more": tensors["bias"]})
    report = qz.report(source, tmp_path / "c.safetensors")
    assert set(report.missing) == {"brain", "zeros", "bias", "ids"}
    assert report.added == ("more",)
    assert report.sqnr_db is None
    assert report.tensors[0].action is None
    assert as_bits(qz.open(target)["bias"]).shape == (8,)


VOID = ("meta", "line", "circle", "rect")


class Page(HTMLParser):
    """A page whose tags are balanced: what it leads to, and whether a script is in it."""

    def __init__(self, page):
        super().__init__()
        self.open, self.links, self.tags = [], [], set()
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def test_a_page_stands_alone(files):
    source, target, _, conversion = files
    page = qz.report(source, target, conversion=conversion).to_html()
    assert "<script" not in page
    assert page.count("<svg") == 2
    for text in ("1-d; a matrix has 2 axes or more", "gguf:q4_0", "5, 2", "weight"):
        assert text in page
    assert Page(page).links == []


HOSTILE = {
    "<script>alert(1)</script>": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "</title></style><h1>": "&lt;/title&gt;&lt;/style&gt;&lt;h1&gt;",
    "a&amp;\"b\" 'c'": "a&amp;amp;&quot;b&quot; &#x27;c&#x27;",
    "\u202egnp.exe": "\\u202egnp.exe",  # would be read from right to left
    "line\nbreak\x00": "line\\nbreak\\x00",
    "long" * 100: "long" * 100,
}


def test_hostile_names_are_text(tmp_path):
    write(tmp_path / "<i>.safetensors", {name: sample((2, 64), 1) for name in HOSTILE})
    conversion = qz.convert(tmp_path / "<i>.safetensors", tmp_path / "b.safetensors")
    page = qz.report(tmp_path / "<i>.safetensors", tmp_path / "b.safetensors", conversion=conversion).to_html()
    for shown in HOSTILE.values():
        assert page.count(shown) >= 3  # in a picture and in two tables
    read = Page(page)
    assert not {"script", "i"} & read.tags
    assert page.count("<h1>") == page.count("<style>") == 1
    assert read.links == []
    assert all(character.isprintable() or character == "\n" for character in page)


def test_a_page_of_many_tensors(tmp_path):
    tensors = {f"layers.{layer}.weight": sample((2, 64), layer) for layer in range(1000)}
    write(tmp_path / "a.safetensors", tensors | {"zeros": np.zeros((2, 64), np.float32)})
    conversion = qz.convert(tmp_path / "a.safetensors", tmp_path / "b.safetensors")
    page = qz.report(tmp_path / "a.safetensors", tmp_path / "b.safetensors", conversion=conversion).to_html()
    Page(page)
    assert page.count("<circle") == 1000  # what lost nothing is on no scale of decibels
    assert page.count("layers.7.weight<") == 1
    assert "1,001 of 1,001" in page


@pytest.mark.parametrize("ends", [(0, 1), (0, 86), (0, 200_550), (14, 22), (-3, 3), (21, 22), (0, 10**12)])
def test_axes_end_at_round_numbers(ends):
    ticks = list(_ticks(*ends))
    assert ticks[0] <= ends[0]
    assert ends[1] <= ticks[-1]
    assert 2 <= len(ticks) <= 7
    step = ticks[1] - ticks[0]
    assert {later - tick for tick, later in pairwise(ticks)} == {step}
    assert str(step).rstrip("0") in ("1", "2", "5")


def test_the_command_line_writes_reports(files, tmp_path):
    source, target, _, _ = files
    done = ["convert", str(source), str(tmp_path / "out.safetensors"), "--to", "nf4", "--quiet", "--report", str(tmp_path / "report.html")]
    assert cli.main(done) == 0
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert cli.main(["compare", str(source), str(target), "--quiet", "--report", str(tmp_path / "report.json")]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report == json.loads(json.dumps(qz.report(source, target).to_dict()))
    assert cli.main(["convert", str(source), "--dry-run", "--report", str(tmp_path / "none.json"), "--quiet"]) == 0
    assert not (tmp_path / "none.json").exists()
    assert cli.main(["compare", str(source), str(target), "--quiet", "--report", str(tmp_path / "absent" / "report.json")]) == 5


FILES = {
    "parts of many": ("in.safetensors", {"format": "int4", "keep": ["bias"]}),
    "one part": ("in.safetensors", {"format": "gguf:q4_0"}),
    "parts that have columns": ("in.safetensors", {"format": "gptq", "group_size": 32}),
    "a scale of the tensor": ("in.safetensors", {"format": "torchao:nvfp4"}),
    "gguf": ("in.gguf", {"format": "gguf:q4_0"}),
    "several gguf": ("in.gguf", {"format": "gguf:q4_1", "shard_size": 3000}),
    "npz": ("in.safetensors", {"format": "int4"}),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("threads", [1, 2])
def test_the_hashes_of_a_conversion_are_those_of_the_new_file(name, threads, tmp_path):
    source, options = FILES[name]
    arrays = {"a": sample((128, 128), 1), "b": sample((64, 256), 2), "bias": sample((8,), 3), "none": np.zeros((0, 64), np.float32)}
    source, target = tmp_path / source, tmp_path / ("out.npz" if name == "npz" else f"out{source[2:]}")
    if source.suffix == ".gguf":
        source.write_bytes(gguf_floats({name: array for name, array in arrays.items() if array.size}))
    else:
        write(source, arrays)
    made = qz.convert(source, target, threads=threads, memory_limit=200_000, **options)
    with qz.open(made.target) as file:
        for tensor in made.tensors:
            found = file[tensor.name]
            parts = found.parts.values() if isinstance(found, qz.QuantizedArray) else [found]
            assert tensor.sha256 == hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest(), tensor.name
    back = qz.convert(made.target, tmp_path / f"back{target.suffix}", dequantize=True, threads=threads)
    with qz.open(back.target) as file:
        assert all(tensor.sha256 == hashlib.sha256(file[tensor.name].tobytes()).hexdigest() for tensor in back.tensors)
    assert all(tensor.sha256 is None for tensor in qz.convert(source, None, dry_run=True, **options).tensors)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("name", ["gptq", "awq", "onnx:qdq"])
def test_parts_that_lie_turned_are_put_together_where_there_is_room(name, threads, tmp_path):
    rows, columns = 96, 128
    write(tmp_path / "in.safetensors", {"a": sample((rows, columns), 1), "b": sample((rows, columns), 2)})

    def made(limit):
        """The estimate of memory, and the parts and the hash of each tensor."""
        source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
        report = qz.convert(source, target, format=name, group_size=32, threads=threads, memory_limit=limit, overwrite=True)
        with qz.open(target) as file:
            parts = {tensor: [part.tobytes() for part in file[tensor].parts.values()] for tensor in ("a", "b")}
        return report.memory, parts, {tensor.name: tensor.sha256 for tensor in report.tensors}

    # Of 32 bytes for each element of a block: eight rows, and all of them.
    block = 8 * columns * 32
    at_once, parts, hashes = made(None)
    assert at_once == rows * columns * 32
    assert hashes == {tensor: hashlib.sha256(b"".join(found)).hexdigest() for tensor, found in parts.items()}
    # No room, room for some parts or for none, room for all.
    assert made(block) == (block, parts, hashes)
    assert made(block + 2000) == (block + 2000, parts, hashes)
    memory, *others = made(2 * block - 32)
    assert block + 2000 < memory < 2 * block - 32
    assert others == [parts, hashes]


@pytest.mark.parametrize(
    "options",
    [
        {"format": "gptq"},
        {"format": "awq"},
        {"format": "compressed-tensors:nvfp4", "shard_size": 20_000},
        {"format": "mlx"},
        {"format": "nf4"},
        {"format": "nf4", "double_quant": True},
    ],
)
def test_the_hashes_of_a_folder(options, tmp_path):
    made = qz.convert(folder(tmp_path / "in"), tmp_path / "out", **options)
    measured = qz.report(tmp_path / "in", tmp_path / "out")
    assert {tensor.name: tensor.sha256 for tensor in made.tensors} == {tensor.name: tensor.sha256 for tensor in measured.tensors}
