"""ONNX models: read and converted by the messages of the onnx package, an extra; their data by rules of our own.

| module | what is there |
|---|---|
| ``data`` | where the bytes of tensors are, inside the model and beside it |
| ``output`` | the files of a new model |
| ``graph`` | graphs, who makes a value and who uses it |
| ``storage`` | how weights lie in tensors, some lines at a time |
| ``weights`` | constant tensors, quantized ones among them |
| ``uses`` | what weights are used for |
| ``model`` | an open model |
| ``plan`` | what happens to each tensor in a conversion |
| ``surgery`` | how a graph changes |
| ``job`` | a plan carried out |
| ``file`` | an open model as the rest of the package sees a file, and its conversion |
"""

from quantize._onnx.data import is_onnx
from quantize._onnx.file import File, convert
from quantize._onnx.plan import How
from quantize._onnx.weights import Lines

__all__ = ["File", "How", "Lines", "convert", "is_onnx"]
