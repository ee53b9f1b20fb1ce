"""Freeze the vectors of our own formats: ``python tests/vectors/make_own.py`` writes int4.npz and uint4.npz beside itself.

No other project owns ``int4`` and ``uint4``, so their bytes come from the slow reference. Once released they stay:
a change here is a change of the format.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from reference import FORMATS  # noqa: E402  (found through the line above)

CASES = ("normal", "outlier", "ties", "small", "sparse", "ragged_1x1", "ragged_3x33", "ragged_7x65")
GROUP_SIZES = (32, 64, 128, 5, "row", "tensor")
SCALE_DTYPES = ("float16", "bfloat16", "float32")


def vectors(name):
    """Arrays by key: ``<case>/<group size>/<scale dtype>/<part>``, and ``.../dequant`` where the scales are float16."""
    inputs = np.load(HERE / "inputs.npz")
    format = FORMATS[name]
    arrays = {}
    for case in CASES:
        for group_size in GROUP_SIZES:
            for scale_dtype in SCALE_DTYPES:
                key = f"{case}/{group_size}/{scale_dtype}"
                parts = format.encode(inputs[case], group_size=group_size, scale_dtype=scale_dtype)
                for part, array in parts.items():
                    # A npz file knows no bfloat16: its bits are kept as uint16.
                    arrays[f"{key}/{part}"] = array.view(np.uint16) if array.dtype.name == "bfloat16" else array
                if scale_dtype == "float16":
                    arrays[f"{key}/dequant"] = format.decode(parts, inputs[case].shape, group_size=group_size)
    return arrays


if __name__ == "__main__":
    for name in ("int4", "uint4"):
        np.savez_compressed(HERE / f"{name}.npz", **vectors(name))
