"""Files of named tensors. The core reads, plans and writes; what is here says what is wanted, and tells what was done.

| module | what is there |
|---|---|
| ``checkpoint`` | an open file |
| ``conversion`` | a file converted into another |
| ``wanted``, ``rules`` | what is asked of a conversion |
| ``parts`` | the same by several processes |
| ``comparison`` | two files compared |
| ``lines`` | the same with ONNX models |
| ``optimum`` | and beside the smallest error of their formats |
| ``inspection`` | what a file holds, and what is suspicious |
| ``verification`` | whether a file is what it should be |
| ``errors`` | what reports are made of |
| ``progress`` | what is told of long work |
"""

from quantize._files.checkpoint import Checkpoint, TensorInfo, open
from quantize._files.comparison import FileComparison, TensorComparison, compare_files
from quantize._files.conversion import ConvertReport, TensorReport, convert
from quantize._files.errors import hashed, plain_data
from quantize._files.inspection import Inspection, TensorFinding, inspect
from quantize._files.optimum import as_floats, is_turned, reference
from quantize._files.parts import SharedPlan, convert_part, finish, plan
from quantize._files.progress import Progress, printable, shown_progress
from quantize._files.verification import TensorVerdict, Verification, verify

__all__ = [
    "Checkpoint",
    "ConvertReport",
    "FileComparison",
    "Inspection",
    "Progress",
    "SharedPlan",
    "TensorComparison",
    "TensorFinding",
    "TensorInfo",
    "TensorReport",
    "TensorVerdict",
    "Verification",
    "as_floats",
    "compare_files",
    "convert",
    "convert_part",
    "finish",
    "hashed",
    "inspect",
    "is_turned",
    "open",
    "plain_data",
    "plan",
    "printable",
    "reference",
    "shown_progress",
    "verify",
]
