"""Files of named tensors. The core reads, plans and writes; what is here says what is wanted, and tells what was done.

| module | what is there |
|---|---|
| ``checkpoint`` | an open file |
| ``conversion`` | a file converted into another |
| ``comparison`` | two files compared |
| ``errors`` | the numbers that errors are told by |
| ``progress`` | what is told of long work |
"""

from quantize._files.checkpoint import Checkpoint, TensorInfo, open
from quantize._files.comparison import FileComparison, TensorComparison, compare_files
from quantize._files.conversion import ConvertReport, TensorReport, convert
from quantize._files.errors import plain_data
from quantize._files.progress import Progress, printable, shown_progress

__all__ = [
    "Checkpoint",
    "ConvertReport",
    "FileComparison",
    "Progress",
    "TensorComparison",
    "TensorInfo",
    "TensorReport",
    "compare_files",
    "convert",
    "open",
    "plain_data",
    "printable",
    "shown_progress",
]
