"""What can go wrong outside: a full disk, a folder that cannot be written, signals, a process that is killed. Nothing is left half-written."""

import contextlib
import resource
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest
from checkpoints import container, gguf, gguf_text, write
from folders import folder
from helpers import sample

import quantize as qz


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def command(*arguments):
    return [sys.executable, "-m", "quantize", *map(str, arguments)]


@pytest.fixture
def sources(tmp_path):
    """One of each container that is written in another way, and how."""
    arrays = {f"blk.{layer}.attn_q.weight": sample((64, 256), layer) for layer in range(4)}
    write(tmp_path / "in.safetensors", arrays)
    keys = {"general.architecture": (8, gguf_text("llama"))}
    (tmp_path / "in.gguf").write_bytes(gguf({name: (0, array.shape, array.tobytes()) for name, array in arrays.items()}, keys))
    folder(tmp_path / "in")
    return {
        "file": ["convert", tmp_path / "in.safetensors", tmp_path / "out.safetensors"],
        "gguf": ["convert", tmp_path / "in.gguf", tmp_path / "out.gguf", "--to", "gguf:q4_0"],
        "parts": ["convert", tmp_path / "in.gguf", tmp_path / "out.gguf", "--to", "gguf:q4_0", "--shard-size", "10000"],
        "folder": ["convert", tmp_path / "in", tmp_path / "out", "--to", "gptq"],
        "shards": ["convert", tmp_path / "in", tmp_path / "out", "--to", "gptq", "--shard-size", "20000"],
        "folder resumed": ["convert", tmp_path / "in", tmp_path / "out", "--to", "gptq", "--shard-size", "20000", "--resume"],
        "file resumed": ["convert", tmp_path / "in.safetensors", tmp_path / "out.safetensors", "--resume"],
        "parts resumed": ["convert", tmp_path / "in.gguf", tmp_path / "out.gguf", "--to", "gguf:q4_0", "--shard-size", "10000", "--resume"],
    }


KINDS = ["file", "gguf", "parts", "folder", "shards", "folder resumed", "file resumed", "parts resumed"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_leaves_nothing(kind, sources, tmp_path):
    """A limit on the size of files stands for it: the same write fails."""
    before = names(tmp_path)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))

    done = subprocess.run(command(*sources[kind]), capture_output=True, text=True, timeout=120, preexec_fn=limit, check=False)
    assert (done.returncode, done.stdout) == (5, "")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    # What was done of a job that can be resumed stays, and is taken up.
    kept = f".{sources[kind][2].name}.partial"
    assert names(tmp_path) == sorted([*before, *([kept] if "resumed" in kind else [])])
    assert subprocess.run(command(*sources[kind]), capture_output=True, timeout=120, check=False).returncode == 0
    assert kept not in names(tmp_path)


REFUSED = """
import os, sys
import quantize as qz
source, readable, target = sys.argv[1:]
qz.convert(readable, readable + ".before", format="gptq")  # all that is imported late
if os.geteuid() == 0:  # to whom everything is permitted
    os.setegid(65534)
    os.seteuid(65534)
try:
    qz.convert(source, target, format="gptq")
except OSError as error:
    print(type(error).__name__, error.filename)
"""


def refused(source, readable, target):
    """Whoever may not do everything is refused: what is said then."""
    command = [sys.executable, "-c", REFUSED, str(source), str(readable), str(target)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout


@pytest.mark.parametrize("to", ["out.safetensors", "out"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(to):
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        root.chmod(0o755)
        source = folder(root / "in") if to == "out" else write(root / "in.safetensors", {"w": sample((64, 64))})
        (root / "closed").mkdir(mode=0o555)
        target = root / "closed" / to
        assert refused(source, source, target).startswith("PermissionError ")
        assert names(root / "closed") == []


def test_a_file_that_cannot_be_read_is_named():
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        root.chmod(0o777)
        readable = write(root / "readable.safetensors", {"w": sample((64, 64))})
        source = write(root / "in.safetensors", {"w": sample((64, 64))})
        source.chmod(0)
        assert refused(source, readable, root / "out.safetensors") == f"PermissionError {source}\n"
        assert names(root) == ["in.safetensors", "readable.safetensors", "readable.safetensors.before"]


@pytest.mark.parametrize("kind", ["folder", "parts"])
@pytest.mark.parametrize(("stop", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
def test_a_signal_stops_a_job_of_many_files(stop, code, words, kind, tmp_path):
    """Matrices of zeros that take no disk: long enough to be stopped in the middle."""
    rows, columns, count = 8192, 4096, 12
    array = np.zeros((1, 1), np.float32)
    if kind == "folder":
        source = folder(tmp_path / "in", 1, arrays={f"model.layers.{i}.mlp.up_proj.weight": array for i in range(count)})
        entries = {
            f"model.layers.{i}.mlp.up_proj.weight": {
                "dtype": "BF16",
                "shape": [rows, columns],
                "data_offsets": [i * 2 * rows * columns, (i + 1) * 2 * rows * columns],
            }
            for i in range(count)
        }
        header = container(entries)
        with (source / "model.safetensors").open("wb") as file:
            file.write(header)
            file.truncate(len(header) + count * 2 * rows * columns)
        arguments = ["convert", source, tmp_path / "out", "--to", "gptq", "--shard-size", "30MB"]
    else:
        source = tmp_path / "in.gguf"
        empty = gguf({f"blk.{i}.attn_q.weight": (30, (rows, columns), b"") for i in range(count)})
        # The offsets, which were counted for tensors without bytes.
        offset = 0
        data = bytearray(empty)
        for i in range(count):
            at = data.index(f"blk.{i}.attn_q.weight".encode()) + len(f"blk.{i}.attn_q.weight") + 4 + 16 + 4
            data[at : at + 8] = offset.to_bytes(8, "little")
            offset += 2 * rows * columns
        with source.open("wb") as file:
            file.write(data)
            file.truncate(len(data) + offset)
        arguments = ["convert", source, tmp_path / "out.gguf", "--to", "gguf:q4_k", "--shard-size", "30MB"]
    before = names(tmp_path)
    process = subprocess.Popen(
        command(*arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 60
    while names(tmp_path) == before:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.3)
    process.send_signal(stop)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (code, "", f"quantize: {words}\n")
    assert names(tmp_path) == before


@pytest.mark.parametrize("kind", ["file", "parts"])
def test_a_job_that_is_killed_leaves_the_old_or_the_new_under_the_name(kind, sources, tmp_path):
    arguments = [*sources[kind], "--overwrite"]
    assert subprocess.run(command(*arguments), capture_output=True, timeout=120, check=False).returncode == 0
    outputs = [name for name in names(tmp_path) if name.startswith("out")]
    whole = {name: (tmp_path / name).read_bytes() for name in outputs}
    for delay in np.random.default_rng(0).uniform(0.1, 0.6, 20):
        process = subprocess.Popen(command(*arguments), stdout=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        process.wait()
        # The same job gives the same bytes: old and new are one.
        assert {name: (tmp_path / name).read_bytes() for name in outputs} == whole
    qz.open(tmp_path / outputs[0])


def test_a_source_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    source = write(tmp_path / "in.safetensors", {"a": sample((512, 4096)), "b": sample((512, 4096), 1)})

    def shrink(done, total, name):
        with source.open("r+b") as file:
            file.truncate(1 << 20)

    with pytest.raises(qz.CorruptFileError, match="became shorter while it was read"):
        qz.convert(source, tmp_path / "out", progress=shrink, memory_limit=32 * 4096 * 8)
    assert names(tmp_path) == ["in.safetensors"]
