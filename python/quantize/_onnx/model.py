"""A model that is open: its message, its graphs, its weights. Nothing of what lies outside it has been read."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import Any

from quantize._onnx.data import MESSAGE_LIMIT, Proto, Source
from quantize._onnx.graph import Scope, is_text, scopes, tensors_of
from quantize._onnx.weights import Weight, weights


class Model:
    """A model that is open: its message, its graphs, its weights."""

    def __init__(self, path: str) -> None:
        onnx: Any = package()
        self.path = path
        self.source = Source(path)
        if os.stat(path).st_size > MESSAGE_LIMIT:
            self.source.corrupt("the file is larger than 2 GiB, which a message of protobuf cannot be: weights belong in external data")
        serialized = Path(path).read_bytes()
        self.size = len(serialized)
        try:
            self.message: Proto = onnx.ModelProto.FromString(serialized)
        except Exception as error:  # protobuf has errors of its own for each of its engines
            self.source.corrupt(f"no model that protobuf can read: {error}")
        if not self.message.HasField("graph") or not self.message.opset_import:
            self.source.corrupt("no model: it has no graph, or no version of operators")
        if not is_text(self.message):
            self.source.corrupt("a name or a text is not UTF-8")
        self.source.check(tensors_of(self.message))
        self.scopes: list[Scope] = scopes(self.message, self.source)
        self.weights: list[Weight] = weights(self.scopes, self.source)

    @property
    def opset(self) -> int:
        """The version of the standard operators."""
        return max((int(opset.version) for opset in self.message.opset_import if opset.domain in ("", "ai.onnx")), default=0)

    def bytes_before(self, weight: Weight) -> int:
        """Bytes that a weight takes in the file."""
        return sum(map(self.source.nbytes, weight.tensors))


def package() -> Any:
    """Import the onnx package, which knows the messages."""
    try:
        return import_module("onnx")
    except ImportError as error:
        raise ImportError("an ONNX file needs the package onnx: pip install quantize-int4[onnx]") from error
