"""Float arrays to 4-bit codes and back: fast, exact, in every layout in use.

>>> import numpy as np, quantize as qz
>>> w = np.linspace(-1, 1, 256, dtype=np.float32).reshape(4, 64)
>>> q = qz.quantize(w, "int4", group_size=64)
>>> q
QuantizedArray(int4, shape=(4, 64), 4.25 bits/weight, 136 bytes)
>>> bool(np.abs(q.dequantize() - w).max() < 0.08)
True
"""

import sys as _sys
from typing import TYPE_CHECKING as _TYPE_CHECKING

from quantize import _original
from quantize._api import compare, cpu_features, dequantize, formats, from_parts, pack, quantize, unpack
from quantize._check import check
from quantize._core import CorruptFileError, LossyConversionError, PolicyError, QuantizeWarning, __version__
from quantize._gptq import HeldOut, Hessian, gptq, output_error
from quantize._original import dequantize_from_int4, pack_int4_to_int8, quantize_to_int4, unpack_int8_to_int4
from quantize._threads import set_threads, threads
from quantize._types import Comparison, CpuFeatures, Finding, FormatInfo, QuantizedArray

_FILES = (
    "Checkpoint",
    "ConvertReport",
    "FileComparison",
    "Inspection",
    "SharedPlan",
    "TensorComparison",
    "TensorFinding",
    "TensorInfo",
    "TensorReport",
    "TensorVerdict",
    "Verification",
    "compare_files",
    "convert",
    "convert_part",
    "finish",
    "inspect",
    "open",
    "plan",
    "verify",
)
_REPORT = ("Report", "TensorDetail", "report")
if _TYPE_CHECKING:
    from quantize._files import (
        Checkpoint,
        ConvertReport,
        FileComparison,
        Inspection,
        SharedPlan,
        TensorComparison,
        TensorFinding,
        TensorInfo,
        TensorReport,
        TensorVerdict,
        Verification,
        compare_files,
        convert,
        convert_part,
        finish,
        inspect,
        open,
        plan,
        verify,
    )
    from quantize._report import Report, TensorDetail, report
else:

    def __getattr__(name: str) -> object:
        # What deals with files is imported when it is first used: it takes longer than all the rest.
        if name in _FILES:
            from quantize import _files

            return getattr(_files, name)
        if name in _REPORT:
            from quantize import _report

            return getattr(_report, name)
        raise AttributeError(f"module 'quantize' has no attribute {name!r}")


# The original package had a module of this name. A file quantize.py here would take the place of the function above.
_sys.modules["quantize.quantize"] = _original

__all__ = [
    "Checkpoint",
    "Comparison",
    "ConvertReport",
    "CorruptFileError",
    "CpuFeatures",
    "FileComparison",
    "Finding",
    "FormatInfo",
    "HeldOut",
    "Hessian",
    "Inspection",
    "LossyConversionError",
    "PolicyError",
    "QuantizeWarning",
    "QuantizedArray",
    "Report",
    "SharedPlan",
    "TensorComparison",
    "TensorDetail",
    "TensorFinding",
    "TensorInfo",
    "TensorReport",
    "TensorVerdict",
    "Verification",
    "__version__",
    "check",
    "compare",
    "compare_files",
    "convert",
    "convert_part",
    "cpu_features",
    "dequantize",
    "dequantize_from_int4",
    "finish",
    "formats",
    "from_parts",
    "gptq",
    "inspect",
    "open",
    "output_error",
    "pack",
    "pack_int4_to_int8",
    "plan",
    "quantize",
    "quantize_to_int4",
    "report",
    "set_threads",
    "threads",
    "unpack",
    "unpack_int8_to_int4",
    "verify",
]
