"""Hugging Face folders whose conversion ended early: shards that are whole are kept, of the same job and by one process."""

import contextlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from folders import folder, weights

import quantize as qz


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


JOB = """
import sys
import quantize as qz
qz.convert(sys.argv[1], sys.argv[2], format="gptq", shard_size=20_000, memory_limit=100_000, resume=True)
"""


def test_a_job_that_is_killed_is_taken_up(model, tmp_path):
    qz.convert(model, tmp_path / "whole", format="gptq", shard_size=20_000)
    whole = files(tmp_path / "whole")
    shards = [name for name in whole if name.endswith(".safetensors")]
    partial = tmp_path / ".out.partial"
    kept = set()
    for delay in np.random.default_rng(0).uniform(0.05, 0.4, 20):
        process = subprocess.Popen([sys.executable, "-c", JOB, model, tmp_path / "out"])
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.kill()
        process.wait()
        if (tmp_path / "out").exists():
            break
        for name in shards:
            if (partial / name).exists():
                kept.add(name)
                assert (partial / name).read_bytes() == whole[name]
    report = None
    if not (tmp_path / "out").exists():
        report = qz.convert(model, tmp_path / "out", format="gptq", shard_size=20_000, memory_limit=100_000, resume=True)
    assert files(tmp_path / "out") == whole
    assert not partial.exists()
    if report and kept:
        assert any(tensor.action == "quantize" and tensor.sqnr_db is None for tensor in report.tensors)


def test_what_is_taken_up_is_of_the_same_job(model, tmp_path):
    def stop(done, total, name):
        if done > total // 2:
            raise KeyboardInterrupt

    job = {"format": "gptq", "shard_size": 20_000, "resume": True}
    with pytest.raises(KeyboardInterrupt):
        qz.convert(model, tmp_path / "out", progress=stop, **job)
    partial = tmp_path / ".out.partial"
    done = {name: data for name, data in files(partial).items() if name.endswith(".safetensors")}
    assert len(done) > 1
    assert not (partial / "config.json").exists()
    # Another job does not take them for its own, whatever they are called: one with other options, and one of weights that changed.
    for name in done:
        (partial / name).write_bytes(b"of another job")
    qz.convert(model, tmp_path / "out", **job | {"group_size": 64})
    assert not partial.exists()
    qz.convert(model, tmp_path / "expected", **job | {"group_size": 64})
    assert files(tmp_path / "out") == files(tmp_path / "expected")

    with pytest.raises(KeyboardInterrupt):
        qz.convert(model, tmp_path / "again", progress=stop, **job)
    shutil.rmtree(model)
    folder(model, arrays={name: 2 * array for name, array in weights().items()})
    qz.convert(model, tmp_path / "again", **job)
    qz.convert(model, tmp_path / "doubled", format="gptq", shard_size=20_000)
    assert files(tmp_path / "again") == files(tmp_path / "doubled")


def test_two_processes_do_not_work_on_one_folder(model, tmp_path):
    def again(done, total, name):
        with pytest.raises(OSError, match="another process is at work"):
            qz.convert(model, tmp_path / "out", format="gptq", resume=True)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        qz.convert(model, tmp_path / "out", format="gptq", resume=True, progress=again)
