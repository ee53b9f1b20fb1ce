"""The slow truth: every format written in numpy for reading, with no line shared with the product.

One class a format, one small file a family, what they share in ``base``. A class encodes an array to the parts of its
format and decodes the parts to float32; all arithmetic is float32 with one rounding an operation. These classes are
compared with the vectors of the projects that own the formats, and the product is compared with these classes.
"""

from .awq import Awq
from .base import Format
from .bnb import BnbFp4, BnbNf4
from .companions import Q5_0, Q5_1, Q5K, Q6K, Q8_0
from .compressed_tensors import CompressedTensors
from .gptq import Gptq, GptqV2
from .hqq import Hqq
from .int4 import Int4
from .iq4 import Iq4Nl, Iq4Xs
from .mlx import Mlx
from .mxfp4 import CompressedTensorsMxFp4, GgufMxFp4, GptOssMxFp4, MlxMxFp4
from .nvfp4 import CompressedTensorsNvFp4, GgufNvFp4, MlxNvFp4, ModelOptNvFp4
from .onnx import OnnxMatMulNBits, OnnxQdq
from .q4_0 import Q4_0
from .q4_1 import Q4_1
from .q4_k import Q4K
from .torchao import TorchAoMxFp4, TorchAoNvFp4
from .uint4 import Uint4

CLASSES = (Int4, Uint4, Q4_0, Q4_1, Q4K, Iq4Nl, Iq4Xs, GgufNvFp4, Mlx, GgufMxFp4, GptOssMxFp4, MlxMxFp4, CompressedTensorsMxFp4)
CLASSES += (BnbNf4, BnbFp4, CompressedTensors)
CLASSES += (CompressedTensorsNvFp4, ModelOptNvFp4, MlxNvFp4, TorchAoMxFp4, TorchAoNvFp4)
CLASSES += (Gptq, GptqV2, Awq, OnnxMatMulNBits, OnnxQdq, Hqq)
CLASSES += (Q8_0, Q5_0, Q5_1, Q5K, Q6K)
FORMATS: dict[str, Format] = {format.name: format() for format in CLASSES}

__all__ = ["FORMATS", "Format"]
