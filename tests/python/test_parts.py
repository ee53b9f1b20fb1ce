"""A conversion in parts: the same bytes as at once, whoever does which part, how often, and however it ends."""

import contextlib
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from folders import folder, weights

import quantize as qz
from quantize import cli

JOB = {"format": "compressed-tensors:nvfp4", "shard_size": 20_000}  # whose second level of scales is shared across shards


@pytest.fixture
def model(tmp_path):
    return folder(tmp_path / "model")


@pytest.fixture
def whole(model, tmp_path):
    """What one process makes."""
    qz.convert(model, tmp_path / "whole", **JOB)
    return files(tmp_path / "whole")


def files(path):
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def plan(model, tmp_path, parts=3, **job):
    return qz.plan(model, tmp_path / "out", tmp_path / "plan.json", parts=parts, **JOB | job)


def test_parts_in_any_order_make_the_folder_of_one_process(model, whole, tmp_path):
    shared = plan(model, tmp_path)
    assert json.loads((tmp_path / "plan.json").read_text()) == json.loads(json.dumps(shared.to_dict()))
    assert set(shared.part_of) == {0, 1, 2}
    reports = [qz.convert_part(tmp_path / "plan.json", part, threads=part + 1) for part in (2, 0, 1)]
    names = [tensor.name for report in reports for tensor in report.tensors]
    assert sorted(names) == sorted(weights())
    assert all(tensor.sqnr_db for report in reports for tensor in report.tensors if tensor.action == "quantize")
    assert not (tmp_path / "out").exists()
    report = qz.finish(tmp_path / "plan.json")
    assert len(report.tensors) == len(weights())
    assert files(tmp_path / "out") == whole
    assert not (tmp_path / ".out.partial").exists()
    with pytest.raises(FileExistsError, match="carried out"):
        qz.finish(tmp_path / "plan.json")
    with pytest.raises(FileExistsError, match="carried out"):
        qz.convert_part(tmp_path / "plan.json", 0)


WORKER = "import sys, quantize as qz; qz.convert_part(sys.argv[1], int(sys.argv[2]), memory_limit=100_000)"


def test_workers_that_are_killed_or_do_the_same_do_no_harm(model, whole, tmp_path):
    plan(model, tmp_path)
    random = np.random.default_rng(0)
    start = [sys.executable, "-c", WORKER, tmp_path / "plan.json"]
    for delay in random.uniform(0.05, 0.4, 10):
        # Two with the same part, both killed.
        part = str(random.integers(3))
        twins = [subprocess.Popen([*start, part]) for _ in range(2)]
        with contextlib.suppress(subprocess.TimeoutExpired):
            twins[0].wait(delay)
        for twin in twins:
            twin.kill()
            twin.wait()
        done = [name for name in whole if (tmp_path / ".out.partial" / name).exists()]
        assert all((tmp_path / ".out.partial" / name).read_bytes() == whole[name] for name in done)
    workers = [subprocess.Popen([*start, str(part)]) for part in (0, 1, 2, 1)]
    assert [worker.wait() for worker in workers] == [0, 0, 0, 0]
    qz.finish(tmp_path / "plan.json")
    assert files(tmp_path / "out") == whole


def test_a_plan_is_not_finished_before_its_parts(model, tmp_path):
    plan(model, tmp_path)
    with pytest.raises(ValueError, match="part 0, 1, 2 of the plan is not done"):
        qz.finish(tmp_path / "plan.json")
    qz.convert_part(tmp_path / "plan.json", 1)

    def meanwhile(done, total, name):
        with pytest.raises(ValueError, match="part 0, 2 of the plan"):
            qz.finish(tmp_path / "plan.json")

    qz.convert_part(tmp_path / "plan.json", 1, progress=meanwhile)
    qz.convert_part(tmp_path / "plan.json", 0)

    def at_work(done, total, name):
        if done == total:
            with pytest.raises((OSError, ValueError), match="another process is at work|not done"):
                qz.finish(tmp_path / "plan.json")

    qz.convert_part(tmp_path / "plan.json", 2, progress=at_work)
    qz.finish(tmp_path / "plan.json")


def test_a_plan_is_of_one_source_and_one_job(model, tmp_path):
    plan(model, tmp_path)
    qz.convert_part(tmp_path / "plan.json", 0)
    # Another plan for the same folder.
    qz.plan(model, tmp_path / "out", tmp_path / "other.json", parts=2, format="gptq", shard_size=20_000)
    with pytest.raises(ValueError, match="another one"):
        qz.convert_part(tmp_path / "other.json", 0)
    # A source that became another.
    shutil.rmtree(model)
    folder(model, shards=3)
    with pytest.raises(ValueError, match="not what it was"):
        qz.convert_part(tmp_path / "plan.json", 1)


def test_a_copy_of_the_source_is_the_source(model, whole, tmp_path):
    plan(model, tmp_path)
    qz.convert_part(tmp_path / "plan.json", 0)
    shutil.move(model, tmp_path / "moved")
    shutil.copytree(tmp_path / "moved", model)  # with other times
    qz.convert_part(tmp_path / "plan.json", 1)
    qz.convert_part(tmp_path / "plan.json", 2)
    qz.finish(tmp_path / "plan.json")
    assert files(tmp_path / "out") == whole


@pytest.mark.parametrize(
    ("source", "job", "error", "message"),
    [
        ("model/model-00001-of-00002.safetensors", {}, ValueError, "one file; a part is some shards"),
        ("model", {"parts": 0}, ValueError, "parts is 0; expected 1 or more"),
        ("model", {"parts": 500}, ValueError, "parts is 500; the new folder has .* shards: take at most so many, or a smaller shard_size"),
        ("model", {"shard_size": 10**9}, ValueError, "the new folder has 1 shard"),
        ("model", {"group_size": 7}, (ValueError, TypeError), "group_size"),
        ("model", {"colour": 7}, TypeError, "colour"),
    ],
)
def test_plans_that_are_refused(model, tmp_path, source, job, error, message):
    with pytest.raises(error, match=message):
        qz.plan(tmp_path / source, tmp_path / "out", tmp_path / "plan.json", **{"parts": 2} | JOB | job)
    assert not (tmp_path / "plan.json").exists()


def test_a_tensor_that_does_not_fit_refuses_the_plan(tmp_path):
    name = "model.layers.0.mlp.bad.weight"
    model = folder(tmp_path / "model", arrays=weights() | {name: np.ones((8, 100), np.float32)})
    with pytest.raises(qz.PolicyError, match=name):
        plan(model, tmp_path)
    plan(model, tmp_path, exclude=["*.bad.*"])


def test_files_that_are_no_plans(model, tmp_path):
    path = tmp_path / "plan.json"
    plan(model, tmp_path)
    with pytest.raises(FileExistsError):
        plan(model, tmp_path)
    text = json.loads(path.read_text())
    for part in (-1, 3):
        with pytest.raises(ValueError, match="parts 0 to 2"):
            qz.convert_part(path, part)
    for change in ({"wanted": {"colour": 1}}, {"part_of": [0]}, {"parts": 4}, {"more": 1}):
        path.write_text(json.dumps(text | change))
        with pytest.raises(qz.CorruptFileError, match="no plan"):
            qz.convert_part(path, 0)
    path.write_text(json.dumps(text | {"quantize": "0.0.1"}))
    with pytest.raises(ValueError, match=r"version 0\.0\.1"):
        qz.convert_part(path, 0)
    path.write_text("{")
    with pytest.raises(qz.CorruptFileError, match="no plan"):
        qz.finish(path)


def test_parts_on_the_command_line(model, tmp_path, capsys):
    path, out = str(tmp_path / "plan.json"), str(tmp_path / "out")
    assert cli.main(["plan", str(model), out, "-o", path, "--parts", "2", "--to", "awq", "--shard-size", "20KB"]) == 0
    assert "quantize finish" in capsys.readouterr().out
    assert cli.main(["convert", "--plan", path, "--part", "0", "--quiet"]) == 0
    assert cli.main(["finish", path]) == cli.USAGE
    assert "part 1 of the plan is not done" in capsys.readouterr().err
    assert cli.main(["convert", "--plan", path, "--part", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tensors"]
    assert cli.main(["finish", path]) == 0
    assert f"written          {out} in" in capsys.readouterr().out
    assert cli.main(["finish", path]) == cli.IO
    for wrong in (["--plan", path], ["--plan", path, "--part", "0", "--to", "awq"], ["--part", "0", "a", "b"], []):
        assert cli.main(["convert", *wrong]) == cli.USAGE
    assert cli.main(["convert", "--plan", path, "--part", "0", str(model)]) == cli.USAGE
