"""Files whose conversion ended early and is taken up: what is whole is kept, the rest done anew, and the bytes are those of an undisturbed run."""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
from checkpoints import gguf_floats, write
from helpers import sample

import quantize as qz
from quantize import cli

COUNT = 24


def arrays(factor=1.0):
    found = {f"blk.{layer:02}.attn_q.weight": sample((32, 256), layer) * np.float32(factor) for layer in range(COUNT)}
    # In front of them in the file, after them in the plan: places are not in the order of the work.
    return found | {"a.norm.weight": sample((256,), 99), "z.embed.weight": sample((40, 256), 98)}


JOBS = {
    "safetensors": ("in.safetensors", "out.safetensors", {"format": "int4"}),
    "gguf": ("in.gguf", "out.gguf", {"format": "gguf:q4_0"}),
    "parts": ("in.gguf", "out.gguf", {"format": "gguf:q4_0", "shard_size": 30_000}),
}


@pytest.fixture(params=JOBS)
def job(request, tmp_path):
    """A source, a target, and what is made of the one."""
    source, target, options = JOBS[request.param]
    make(tmp_path / source)
    return tmp_path / source, tmp_path / target, options


def make(source, factor=1.0):
    if source.suffix == ".gguf":
        source.write_bytes(gguf_floats(arrays(factor)))
    else:
        write(source, arrays(factor))


def made(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def undisturbed(source, target, options):
    """What the job makes."""
    folder = target.parent / "undisturbed"
    folder.mkdir()
    qz.convert(source, folder / target.name, **options)
    return made(folder)


def outputs(target):
    return {name: data for name, data in made(target.parent).items() if name.startswith("out")}


def partial(target):
    return target.with_name(f".{target.name}.partial")


def stopped(source, target, options, after=0.5):
    """Begin a job and interrupt it."""

    def stop(done, total, name):
        if done > after * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qz.convert(source, target, progress=stop, resume=True, **options)
    assert (partial(target) / "journal").exists()


@pytest.fixture
def begun(job):
    """A job that was interrupted, and what it makes."""
    expected = undisturbed(*job)
    stopped(*job)
    return *job, expected


def kept(report):
    """The tensors that an earlier job had made: their errors are not known."""
    return [tensor.name for tensor in report.tensors if tensor.action == "quantize" and tensor.sqnr_db is None]


KILLED = """
import sys, time
import quantize as qz
source, target = sys.argv[1:]
print("begun", flush=True)
qz.convert(source, target, resume=True, progress=lambda *_: time.sleep(0.01), **{options})
"""


@pytest.mark.parametrize("name", JOBS)
def test_a_job_that_is_killed_is_taken_up(name, tmp_path):
    source, target, options = JOBS[name]
    source, target = tmp_path / source, tmp_path / target
    make(source)
    expected = undisturbed(source, target, options)
    lines = 0
    for delay in np.random.default_rng(len(name)).uniform(0, 0.1, 7):
        command = [sys.executable, "-c", KILLED.replace("{options}", repr(options)), str(source), str(target)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        process.stdout.readline()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        process.communicate()
        if target.exists() or not partial(target).exists():
            continue
        # What was whole stays whole: the journal only grows.
        journal = partial(target) / "journal"
        found = journal.read_bytes().count(b"\n") if journal.exists() else 0
        assert found >= lines
        lines = found
    if lines:
        assert len(kept(qz.convert(source, target, resume=True, **options))) >= lines - 2
    elif not outputs(target):
        qz.convert(source, target, resume=True, **options)
    assert outputs(target) == expected
    assert not partial(target).exists()


def test_what_is_done_is_kept(begun):
    source, target, options, expected = begun
    assert outputs(target) == {}
    report = qz.convert(source, target, resume=True, **options)
    assert 5 < len(kept(report)) < COUNT
    assert outputs(target) == expected
    assert not partial(target).exists()
    at_once = qz.convert(source, target, overwrite=True, **options)
    assert [(tensor.name, tensor.sha256) for tensor in report.tensors] == [(tensor.name, tensor.sha256) for tensor in at_once.tensors]


def test_what_is_damaged_is_done_anew(begun):
    source, target, options, expected = begun
    whole = (partial(target) / "journal").read_bytes().count(b"\n")
    files = sorted(path for path in partial(target).iterdir() if path.suffix == ".new")
    data = bytearray(files[0].read_bytes())
    data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
    files[0].write_bytes(data)
    report = qz.convert(source, target, resume=True, **options)
    assert len(kept(report)) < whole
    assert outputs(target) == expected


def test_what_is_cut_short_is_done_anew(begun):
    source, target, options, expected = begun
    journal = partial(target) / "journal"
    journal.write_bytes(journal.read_bytes()[:-10])  # a line that was being written
    for file in partial(target).glob("*.new"):
        os.truncate(file, file.stat().st_size // 2)
    qz.convert(source, target, resume=True, **options)
    assert outputs(target) == expected


def changed_options(source, target, options):
    return options | {"exclude": ["z.*"]}


def changed_source(source, target, options):
    make(source, 2.0)
    return options


def changed_time(source, target, options):
    os.utime(source, ns=(1, 1))
    return options


def changed_version(source, target, options):
    fingerprint = partial(target) / "fingerprint"
    version, rest = fingerprint.read_text().split("\n", 1)
    assert version == qz.__version__
    fingerprint.write_text(f"0.0.1\n{rest}")
    return options


@pytest.mark.parametrize("change", [changed_options, changed_source, changed_time, changed_version])
def test_what_is_of_another_job_is_not_taken_up(change, job):
    source, target, options = job
    stopped(source, target, options)
    options = change(*job)
    report = qz.convert(source, target, resume=True, **options)
    assert kept(report) == []
    assert outputs(target) == undisturbed(source, target, options)


def test_other_importance_is_another_job(tmp_path):
    source, target = write(tmp_path / "in.safetensors", arrays()), tmp_path / "out.safetensors"
    options = {"method": "optimal", "importance": tmp_path / "importance.safetensors"}
    write(options["importance"], {name: np.ones(256, np.float32) for name in arrays()})
    stopped(source, target, options)
    weights = {name: np.arange(256, dtype=np.float32) for name in arrays()}
    write(options["importance"], weights)
    assert kept(qz.convert(source, target, resume=True, **options)) == []
    assert outputs(target) == undisturbed(source, target, options)


def test_two_processes_do_not_work_on_one_file(job):
    source, target, options = job

    def again(done, total, name):
        with pytest.raises(OSError, match="another process is at work"):
            qz.convert(source, target, resume=True, **options)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qz.convert(source, target, resume=True, progress=again, **options)


def test_a_model_whose_last_files_have_their_names_already(tmp_path):
    """Killed between two names: the first part gets its own last, and without it there is no model."""
    source, target, options = tmp_path / "in.gguf", tmp_path / "out.gguf", JOBS["parts"][2]
    make(source)
    expected = undisturbed(source, target, options)
    stopped(source, target, options, after=0.99)
    *_, last = sorted(expected)
    (tmp_path / last).write_bytes(expected[last])
    with pytest.raises(FileExistsError):  # as any file that this job has not made
        qz.convert(source, target, resume=True, **options)
    with (partial(target) / "journal").open("a") as journal:
        journal.write("named\n")
    qz.convert(source, target, resume=True, **options)
    assert outputs(target) == expected


def test_a_file_takes_its_own_place(tmp_path):
    source, link = write(tmp_path / "in.safetensors", arrays()), tmp_path / "link.safetensors"
    link.symlink_to(source)
    expected = undisturbed(source, source, {})
    stopped(source, source, {"overwrite": True})
    qz.convert(source, link, resume=True, overwrite=True)
    assert source.read_bytes() == expected["in.safetensors"]
    assert link.is_symlink()
    assert not partial(source).exists()


def test_what_is_refused_leaves_nothing(tmp_path):
    source, target = write(tmp_path / "in.safetensors", arrays()), tmp_path / "out.safetensors"
    target.write_bytes(b"of somebody else")
    with pytest.raises(FileExistsError):
        qz.convert(source, target, resume=True)
    with pytest.raises(OSError, match="missing"):
        qz.convert(source, tmp_path / "missing" / "out.safetensors", resume=True)
    with pytest.raises(ValueError, match="an ONNX file is made at once"):
        qz.convert(tmp_path / "in.onnx", tmp_path / "out.onnx", resume=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.safetensors", "out.safetensors"]


@pytest.mark.parametrize("name", ["journal", "lock", "fingerprint"])
def test_any_name_will_do(name, tmp_path):
    source = write(tmp_path / "in.safetensors", arrays())
    stopped(source, tmp_path / name, {})
    assert kept(qz.convert(source, tmp_path / name, resume=True))
    qz.convert(source, tmp_path / "expected")
    assert (tmp_path / name).read_bytes() == (tmp_path / "expected").read_bytes()


def test_the_command_line(begun, capsys):
    source, target, options, expected = begun
    size = [] if "shard_size" not in options else ["--shard-size", str(options["shard_size"])]
    assert cli.main(["convert", str(source), str(target), "--to", options["format"], *size, "--resume", "--quiet"]) == 0
    assert capsys.readouterr().out == ""
    assert outputs(target) == expected
