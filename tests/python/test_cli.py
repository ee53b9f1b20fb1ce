"""The command line: what it prints where, its exit codes, and that a job that is stopped leaves nothing behind."""

import io
import json
import os
import pty
import resource
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from checkpoints import bfloat16_bits, container, write
from helpers import sample

import quantize as qz
from quantize import cli


@pytest.fixture
def model(tmp_path):
    """A checkpoint of two matrices and a vector."""
    tensors = {"up.weight": bfloat16_bits(sample((8, 64), 1)), "down.weight": sample((64, 96), 2), "norm": sample((64,), 3)}
    return write(tmp_path / "model.safetensors", tensors, {"format": "pt"}, **{"up.weight": "BF16"})


def run(*arguments, **options):
    """Run ``python -m quantize`` in a process of its own."""
    command = [sys.executable, "-m", "quantize", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, **options)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_convert_prints_the_table_and_nothing_else(model, tmp_path, capsys):
    assert cli.main(["convert", str(model), str(tmp_path / "out"), "--format", "uint4", "--group-size", "16"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "up.weight     8 x 64  bfloat16  uint4" in out
    assert "   1  1-d; a matrix has 2 axes or more" in out
    assert "tensors          2 quantized, 1 kept" in out
    assert "bytes            25.9 kB -> 4.6 kB (17.9%)" in out
    assert "bits per weight  5.25 where quantized" in out
    assert "worst tensor     up.weight, 23.0 dB" in out
    assert f"written          {tmp_path / 'out'} in" in out


def test_every_command_speaks_json(model, tmp_path, capsys):
    small = str(tmp_path / "small")

    def answer(*arguments):
        assert cli.main([*map(str, arguments), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out, parse_constant=pytest.fail)

    plan = answer("convert", model, "--dry-run")
    assert plan["dry_run"]
    assert plan["target"] is None
    done = answer("convert", model, small, "--scale-dtype", "float32", "--exclude", "no*", "--keep", "norm")
    assert [tensor["action"] for tensor in done["tensors"]] == [tensor["action"] for tensor in plan["tensors"]]
    assert [tensor["reason"] for tensor in done["tensors"]] == [None, None, "kept by name"]
    assert done["sqnr_db"] > 15
    assert done["worst"] in ("up.weight", "down.weight")

    seen = answer("inspect", small)
    assert seen["container"] == "safetensors"
    up = next(tensor for tensor in seen["tensors"] if tensor["name"] == "up.weight")
    assert up == {
        "name": "up.weight",
        "dtype": "bfloat16",
        "shape": [8, 64],
        "nbytes": 320,
        "format": "int4",
        "group_size": 32,
        "bits_per_weight": 5.0,
    }

    compared = answer("compare", model, small)
    assert compared["worst"] == done["worst"]
    rows = {tensor["name"]: tensor for tensor in compared["tensors"]}
    assert {tensor["name"]: tensor["sqnr_db"] for tensor in done["tensors"]} == {name: row["sqnr_db"] for name, row in rows.items()}
    assert (rows["norm"]["verdict"], rows["norm"]["rmse"], rows["norm"]["cosine"]) == ("measured", 0, pytest.approx(1))

    table = answer("formats")
    assert [row["name"] for row in table] == [format.name for format in qz.formats()]
    assert table[0]["parts"] == {"packed": "uint8", "scales": "float16"}


def test_there_and_back(model, tmp_path, capsys):
    small, back = str(tmp_path / "small"), str(tmp_path / "back")
    assert cli.main(["convert", str(model), small, "--quiet"]) == 0
    assert cli.main(["convert", small, back, "--dequantize", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.main(["compare", small, back]) == 0
    out = capsys.readouterr().out
    assert "up.weight     8 x 64  int4     bfloat16" in out
    assert cli.main(["convert", small, back, "--dequantize", "--overwrite"]) == 0
    assert "tensors  2 decoded, 1 kept" in capsys.readouterr().out


def test_compare_tells_what_cannot_be_measured(tmp_path, capsys):
    first = write(tmp_path / "first", {"a": sample((2, 3)), "b": sample((4,)), "c": np.arange(3), "d": np.arange(3), "gone": sample((1,))})
    second = write(
        tmp_path / "second", {"a": sample((3, 2)), "b": np.arange(4), "c": np.arange(3), "d": np.arange(1, 4), "new": sample((1,))}
    )
    assert cli.main(["compare", str(first), str(second)]) == 0
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines() if line}
    for name, words in {
        "a": "the shapes differ",
        "b": "the dtypes differ",
        "c": "the same bytes",
        "d": "other bytes",
        "gone": "only in A",
        "new": "only in B",
    }.items():
        assert lines[name].endswith(words)


def test_inspect_escapes_what_a_terminal_would_act_on(tmp_path, capsys):
    name = "a\x1b[31m\u202eb\x00"
    write(tmp_path / "in", {name: sample((2, 2))}, {"note\n": "x\x07"})
    assert cli.main(["inspect", str(tmp_path / "in")]) == 0
    out = capsys.readouterr().out
    assert "a\\x1b[31m\\u202eb\\x00" in out
    assert "metadata note\\n  x\\x07" in out


def test_npy_goes_in(tmp_path, capsys):
    np.save(tmp_path / "weights.npy", sample((8, 64)))
    assert cli.main(["convert", str(tmp_path / "weights.npy"), str(tmp_path / "out")]) == 0
    assert qz.open(tmp_path / "out")["weights"].identical(qz.quantize(sample((8, 64))))
    assert cli.main(["inspect", str(tmp_path / "weights.npy")]) == 0
    assert "container  npy" in capsys.readouterr().out


BAD = {
    "not there": (None, 5, "No such file or directory"),
    "cut": (container({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}, bytes(3)), 3, "ends at byte 4, past the file"),
    "unknown dtype": (container({"w": {"dtype": "I4", "shape": [8], "data_offsets": [0, 4]}}, bytes(4)), 3, "tensor 'w': dtype 'I4'"),
    "header length": (struct.pack("<Q", 2**63) + b"{}", 3, "the limit is 100000000"),
    "zip": (b"PK\x03\x04" + bytes(60), 3, "zip archive"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00}\x94.", 3, "pickle, which is never loaded"),
    "page": (b"<!DOCTYPE html><html><title>404</title></html>", 3, "HTML page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", 3, "git lfs pull"),
    "empty": (b"", 3, "it is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_input_is_named_with_its_fault(case, tmp_path, capsys):
    content, code, words = BAD[case]
    path = tmp_path / "in.safetensors"
    if content is not None:
        path.write_bytes(content)
    before = names(tmp_path)
    for command in (["inspect", path], ["convert", path, tmp_path / "out"], ["compare", path, path]):
        assert cli.main([*map(str, command)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith(f"quantize: {path}: ")
        assert words in err
        assert err.count("\n") == 1
    assert names(tmp_path) == before


def test_a_tensor_against_the_policy_is_named(tmp_path, capsys):
    array = sample((2, 64))
    array[1, 5] = np.inf
    path = write(tmp_path / "in", {"good": sample((2, 64)), "layers.3.bad": array})
    assert cli.main(["convert", str(path), str(tmp_path / "out")]) == 4
    out, err = capsys.readouterr()
    assert out == ""
    assert "tensor 'layers.3.bad': 1 element is not finite" in err
    assert names(tmp_path) == ["in"]
    assert cli.main(["convert", str(path), str(tmp_path / "out"), "--nonfinite", "zero"]) == 0
    out, err = capsys.readouterr()
    assert "replaced         1 elements" in out
    assert err == "quantize: warning: 1 element was not finite and replaced, as nonfinite= asks\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["shrink"], "invalid choice"),
        (["convert", "--format", "int4", "--dequantize", "in", "out"], "not allowed with"),
        (["convert", "--group-size", "wide", "in", "out"], "invalid _group_size value: 'wide'"),
    ],
)
def test_wrong_usage_is_told_by_the_parser(arguments, words, capsys):
    with pytest.raises(SystemExit) as raised:
        cli.main(arguments)
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["OUT", "--format", "q4"], "no format 'q4'; did you mean 'gguf:q4_0', 'gguf:q4_1', 'gguf:q4_k', 'gguf:iq4_nl', 'gguf:iq4_xs'?"),
        (["OUT", "--format", "q4_0", "--group-size", "64"], "group_size is 64; gguf:q4_0 takes 32"),
        (["OUT", "--include", "layers.*"], "include is 'layers.*'"),
        (["OUT", "--threads", "0"], "threads is 0"),
        (["OUT", "--dequantize", "--group-size", "32"], "expected none"),
        ([], "target is None"),
    ],
)
def test_wrong_options_are_told_by_the_functions(options, words, model, tmp_path, capsys):
    options = [str(tmp_path / "out") if option == "OUT" else option for option in options]
    assert cli.main(["convert", str(model), *options]) == 2
    assert words in capsys.readouterr().err
    assert names(tmp_path) == ["model.safetensors"]


def test_output_that_cannot_be_written(model, tmp_path, capsys):
    (tmp_path / "exists").write_bytes(b"old")
    assert cli.main(["convert", str(model), str(tmp_path / "exists")]) == 5
    assert capsys.readouterr().err == f"quantize: {tmp_path / 'exists'}: the file exists; overwrite replaces it\n"
    assert (tmp_path / "exists").read_bytes() == b"old"
    assert cli.main(["convert", str(model), str(tmp_path / "absent" / "out")]) == 5
    assert f"{tmp_path / 'absent'}" in capsys.readouterr().err
    assert cli.main(["convert", str(model), str(tmp_path / "exists"), "--overwrite", "--quiet"]) == 0


def test_a_limit_on_file_size_is_an_error_and_leaves_nothing(model, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))

    done = run("convert", model, tmp_path / "out", preexec_fn=limit)
    assert done.returncode == 5
    assert done.stdout == ""
    assert "File too large" in done.stderr
    assert names(tmp_path) == ["model.safetensors"]


def test_the_module_is_the_command(tmp_path):
    assert run("--version").stdout == f"quantize {qz.__version__}\n"
    assert "convert" in run("--help").stdout
    done = run("inspect", tmp_path / "absent")
    assert (done.returncode, done.stdout) == (5, "")
    assert done.stderr == f"quantize: {tmp_path / 'absent'}: No such file or directory\n"


def test_a_reader_that_leaves_is_no_traceback():
    read, write_end = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "quantize", "formats"], stdout=write_end, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    os.close(write_end)
    assert (done.returncode, done.stderr) == (5, "")


def test_progress_shows_on_a_terminal_only(model, tmp_path):
    assert run("convert", model, tmp_path / "plain").stderr == ""
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 120))
    command = [sys.executable, "-m", "quantize", "convert", str(model), str(tmp_path / "out"), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=slave, timeout=60, check=True)
    os.close(slave)
    shown = os.read(master, 1 << 16).decode()
    os.close(master)
    assert shown.startswith("\r")
    assert json.loads(done.stdout)["dry_run"] is False


def test_progress_without_tqdm_is_one_line(model, tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.main(["convert", str(model), str(tmp_path / "out")]) == 0
    shown = sys.stderr.getvalue()
    assert "% of 25.9 kB  " in shown
    assert "\n" not in shown
    assert shown.split("\r")[-2].strip() == ""


@pytest.fixture
def large(tmp_path):
    """A checkpoint of 6 GiB that takes no disk: long enough to be stopped in the middle."""
    rows, columns, count = 16_384, 4_096, 24
    nbytes = 4 * rows * columns
    entries = {f"w{i:02}": {"dtype": "F32", "shape": [rows, columns], "data_offsets": [i * nbytes, (i + 1) * nbytes]} for i in range(count)}
    header = container(entries)
    path = tmp_path / "large.safetensors"
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + count * nbytes)
    return path


@pytest.mark.parametrize(("stop", "code", "words"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])
@pytest.mark.parametrize("twice", [False, True])
def test_a_signal_stops_the_job_and_leaves_nothing(stop, code, words, twice, large, tmp_path):
    command = [sys.executable, "-m", "quantize", "convert", str(large), str(tmp_path / "out")]
    # A shell starts jobs in the background with SIGINT ignored, and that is inherited.
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".quantize-*.tmp")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    time.sleep(0.2)
    sent = time.monotonic()
    process.send_signal(stop)
    if twice:
        time.sleep(0.01)
        process.send_signal(stop)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 2
    assert process.returncode == code
    assert out == ""
    assert err == f"quantize: {words}\n"
    assert names(tmp_path) == ["large.safetensors"]
