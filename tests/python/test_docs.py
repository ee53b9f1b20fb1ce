"""README, documentation pages and docstrings: their tables are the compiled list, their examples run, their links lead somewhere."""

import doctest
import importlib
import pkgutil
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from checkpoints import gguf_floats, gguf_text
from folders import folder
from safetensors.numpy import save_file

import quantize as qz

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
MODULES = [
    module.name for module in pkgutil.walk_packages(qz.__path__, "quantize.") if module.name not in ("quantize._core", "quantize.__main__")
]

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page, *languages):
    """(language, code, line) of the fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        if found[1] in languages:
            yield found[1], found[2], text.count("\n", 0, found.start(2))


def test_generated_pages_are_what_the_code_gives():
    make = runpy.run_path(str(ROOT / "docs" / "make.py"))
    for page, text in make["pages"]().items():
        assert page.read_text(encoding="utf-8") == text, f"{page.name}: run ./check docs"


def test_every_format_has_its_section():
    families = sorted((ROOT / "docs" / "formats").glob("*.md"))
    sections = [name for page in families for name in re.findall(r"^## (\S+)$", page.read_text(encoding="utf-8"), re.M)]
    assert sorted(sections) == sorted(info.name for info in qz.formats())


def test_the_table_of_pages_leads_to_every_section():
    overview = ROOT / "docs" / "formats.md"
    rows = re.findall(r"^\| \[.*?\]\((formats/\w[\w-]*\.md)\).* \| (.*) \|$", overview.read_text(encoding="utf-8"), re.M)
    listed = {page: re.findall(r"`(\S+)`", names) for page, names in rows}
    found = {
        f"formats/{page.name}": re.findall(r"^## (\S+)$", page.read_text(encoding="utf-8"), re.M)
        for page in (ROOT / "docs" / "formats").glob("*.md")
    }
    assert {page: sorted(names) for page, names in listed.items()} == {page: sorted(names) for page, names in found.items()}


@pytest.fixture
def beside_a_checkpoint(tmp_path, monkeypatch):
    """A folder that holds what the examples begin with: model.safetensors, model.gguf, flux1-dev.safetensors and the folder model."""
    random, layer = np.random.default_rng(0), "encoder.layer.0.attention.self.query."
    weight, bias = random.standard_normal((64, 128), np.float32), np.zeros(64, np.float32)
    save_file({layer + "weight": weight, layer + "bias": bias}, tmp_path / "model.safetensors")
    tensors = {"token_embd.weight": weight, "output_norm.weight": np.ones(128, np.float32), "blk.0.attn_q.weight": weight}
    (tmp_path / "model.gguf").write_bytes(gguf_floats(tensors, {"general.architecture": (8, gguf_text("llama"))}))
    folder(tmp_path / "model", 1)
    images = ("img_in.weight", "final_layer.linear.weight", "double_blocks.0.img_attn.qkv.weight")
    save_file(dict.fromkeys(images, weight), tmp_path / "flux1-dev.safetensors")
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
