"""README, documentation pages and docstrings: their tables are the compiled list, their examples run, their links lead somewhere."""

import doctest
import importlib
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import quantize as qz

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
MODULES = [
    module.name for module in pkgutil.iter_modules(qz.__path__, "quantize.") if module.name not in ("quantize._core", "quantize.__main__")
]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page, *languages):
    """(language, code, line) of the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        if found[1] in languages:
            yield found[1], found[2], text.count("\n", 0, found.start(2))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "docs" / "formats.md"], ids=lambda page: page.name)
def test_the_table_of_formats_is_the_compiled_list(page):
    table = re.search(r"^\| name \| also .*\n\|[-|]+\n((?:\|.*\n)+)", page.read_text(encoding="utf-8"), re.M)
    assert table is not None
    rows = table[1].splitlines()

    def code(names):
        return ", ".join(f"`{name}`" for name in names)

    def row(info):
        sizes = "any" if info.any_group_size else "/".join(map(str, info.group_sizes))
        groups = sizes if len(info.group_sizes) == 1 else f"{sizes}, {info.group_size}"
        scales = ("the array's: " if info.scales_follow_array else "") + ", ".join(info.scale_dtypes)
        names = code(name for name, _ in info.parts)
        cells = [
            code([info.name]),
            code(info.aliases),
            groups,
            scales,
            info.scheme,
            names,
            info.bits_per_weight,
            info.home,
        ]
        return "| " + " | ".join(map(str, cells)) + " |"

    assert [re.sub(r"\s+", " ", line) for line in rows] == [re.sub(r"\s+", " ", row(info)) for info in qz.formats()]


def test_every_format_has_its_section():
    sections = re.findall(r"^## (\S+)$", (ROOT / "docs" / "formats.md").read_text(encoding="utf-8"), re.M)
    assert sections == [info.name for info in qz.formats()]


@pytest.fixture
def beside_a_checkpoint(tmp_path, monkeypatch):
    """A folder that holds what the examples begin with: model.safetensors."""
    random, layer = np.random.default_rng(0), "encoder.layer.0.attention.self.query."
    weight, bias = random.standard_normal((64, 128), np.float32), np.zeros(64, np.float32)
    save_file({layer + "weight": weight, layer + "bias": bias}, tmp_path / "model.safetensors")
    monkeypatch.chdir(tmp_path)


@pages
@pytest.mark.usefixtures("beside_a_checkpoint")
def test_examples_of_pages(page):
    """Blocks of one page share their names."""
    names = {"__name__": "__main__"}
    for language, code, line in blocks(page, "python", "pycon"):
        if language == "python":
            exec(compile("\n" * line + code, str(page), "exec"), names)
        else:
            test = doctest.DocTestParser().get_doctest(code, names, page.name, str(page), line)
            test.globs = names  # the parser copies them
            report = []
            failed, _ = doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
            assert not failed, "".join(report)


@pytest.mark.parametrize("name", MODULES)
def test_examples_of_docstrings(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert not failed


def test_every_public_function_shows_itself():
    functions = [name for name in qz.__all__ if callable(getattr(qz, name)) and not isinstance(getattr(qz, name), type)]
    assert "quantize" in functions
    assert [name for name in functions if ">>>" not in (getattr(qz, name).__doc__ or "")] == []


@pages
@pytest.mark.usefixtures("beside_a_checkpoint")
def test_commands_of_pages(page):
    """The lines that begin with ``quantize``, in order."""
    lines = [line for _, code, _ in blocks(page, "sh") for line in code.splitlines() if line.startswith("quantize ")]
    for line in lines:
        done = subprocess.run([sys.executable, "-m", *shlex.split(line, comments=True)], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{line}\n{done.stderr}"


@pages
def test_links_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


@pages
def test_doors_exist(page):
    doors = set(re.findall(r"^#: (\w+)", (ROOT / "check").read_text(encoding="utf-8"), re.M))
    assert set(re.findall(r"\./check (\w+)", page.read_text(encoding="utf-8"))) <= doors
