"""Texts that others wrote and that come with installed packages."""

from __future__ import annotations

import bz2
import html
import importlib
import importlib.util
import inspect
import re
import warnings
from pathlib import Path
from pydoc_data.topics import topics

# Modules with documentation in sentences.
MODULES = """os sys re json csv math random statistics datetime calendar collections heapq bisect array copy pprint enum decimal fractions
itertools functools operator pathlib tempfile glob shutil pickle sqlite3 zlib gzip bz2 lzma zipfile tarfile configparser hashlib hmac secrets
io time argparse getopt logging getpass platform ctypes threading multiprocessing subprocess sched queue asyncio socket ssl select signal mmap
email mailbox mimetypes base64 binascii html urllib.parse urllib.request http.client ftplib smtplib uuid xmlrpc.client ipaddress wave colorsys
gettext locale cmd shlex unittest doctest timeit trace gc inspect typing dataclasses contextlib abc atexit traceback warnings types weakref
string textwrap difflib unicodedata struct codecs numpy numpy.linalg numpy.fft numpy.random scipy.stats scipy.optimize scipy.signal
scipy.sparse scipy.linalg scipy.interpolate scipy.spatial"""


def documentation() -> list[list[str]]:
    """Sentences of every documented object of Python's standard library, numpy and scipy that has two or more."""
    seen, found = set(), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in MODULES.split():
            if importlib.util.find_spec(name.split(".")[0]) is None:
                continue
            module = importlib.import_module(name)
            members = [getattr(module, member, None) for member in sorted(dir(module)) if not member.startswith("_")]
            for text in map(documented, [module, *members]):
                if len(text) >= 80 and text not in seen:
                    seen.add(text)
                    found.append([sentence for sentence in map(one_line, re.split(r"(?<=[.!?])\s+", text)) if is_sentence(sentence)])
    return [sentences for sentences in found if len(sentences) > 1]


def documented(thing: object) -> str:
    """Documentation, if any."""
    try:
        return inspect.getdoc(thing) or ""
    except Exception:  # whatever a foreign descriptor raises
        return ""


def one_line(text: str) -> str:
    """Join lines."""
    return text.strip().replace("\n", " ")


def is_sentence(text: str) -> bool:
    """Whether it reads as prose."""
    return 25 < len(text) < 300 and text[0].isupper() and ">>>" not in text and "---" not in text


def test_data(name: str) -> Path:
    """A file of the test data of gensim."""
    spec = importlib.util.find_spec("gensim")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the texts are those of gensim: pip install gensim")
    return Path(spec.origin).parent / "test" / "test_data" / name


def news() -> str:
    """Reports of the Australian Broadcasting Corporation: the Lee background corpus."""
    lines = test_data("lee_background.cor").read_text(encoding="utf-8").splitlines()
    return "\n\n".join(line.strip() for line in lines if line.strip())


def manual() -> str:
    """The Python language reference, as far as the interpreter has it."""
    return "\n\n".join(topics[name] for name in sorted(topics))


def encyclopedia() -> str:
    """Articles of the English Wikipedia, each cut at 6000 characters."""
    from gensim.corpora.wikicorpus import filter_wiki

    with bz2.open(test_data("enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"), "rt", encoding="utf-8") as file:
        articles = re.findall(r"<text[^>]*>(.*?)</text>", file.read(), re.S)
    kept = []
    for article in articles:
        if len(article) < 5000:
            continue
        plain = filter_wiki(html.unescape(article))
        lines = (re.sub(r"'{2,}", "", line).strip() for line in plain.split("\n"))
        prose = "\n".join(line for line in lines if len(line) > 80 and line[0] not in "*|!{}=:#")
        kept.append(re.sub(r"[ \t]+", " ", prose)[:6000])
    return "\n\n".join(kept)
