"""Types: the package under mypy and pyright at their strictest, what its callers may write, and the stub of the module."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

import quantize

ROOT = Path(__file__).parents[2]
PACKAGE, ACCEPTED, REFUSED = "python/quantize", "tests/typing/accepted.py", "tests/typing/refused.py"


def run(*command):
    return subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600)


def mypy(*paths):
    """(path, line, message) of every error."""
    done = run("mypy", "--output", "json", *paths)
    assert done.returncode in (0, 1), done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line]
    return [(error["file"], error["line"], error["message"]) for error in found if error["severity"] == "error"]


def pyright(*paths):
    """(path, line, message) of every error."""
    done = run("pyright", "--pythonpath", sys.executable, "--outputjson", *paths)
    assert done.returncode in (0, 1), done.stderr
    found = json.loads(done.stdout)["generalDiagnostics"]
    return [
        (str(Path(error["file"]).relative_to(ROOT)), error["range"]["start"]["line"] + 1, error["message"])
        for error in found
        if error["severity"] == "error"
    ]


checkers = pytest.mark.parametrize("errors_of", [mypy, pyright])


@checkers
def test_the_package_and_what_callers_may_write(errors_of):
    assert errors_of(PACKAGE, ACCEPTED) == []


@checkers
def test_what_callers_may_not_write(errors_of):
    lines = (ROOT / REFUSED).read_text(encoding="utf-8").splitlines()
    marked = [number for number, line in enumerate(lines, 1) if line.endswith("# refused")]
    assert len(marked) > 20
    assert sorted({line for _, line, _ in errors_of(REFUSED)}) == marked


def test_the_stub_is_the_module():
    done = run(
        "mypy.stubtest", "quantize._core", "--mypy-config-file", "pyproject.toml", "--allowlist", "tests/typing/stubtest-allowlist.txt"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_package_says_that_it_is_typed():
    assert Path(quantize.__file__).with_name("py.typed").exists()
