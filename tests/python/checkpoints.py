"""Files for the tests of containers, written here byte by byte: nothing of the package is used."""

import json
import struct

import numpy as np

DTYPES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64", "int64": "I64", "uint8": "U8"}


def container(header, data=b""):
    """The bytes of a safetensors file; ``header`` is text or what becomes JSON."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def write(path, tensors, metadata=None, **dtypes):
    """Write arrays as a safetensors file. ``dtypes`` renames the dtype of an array: uint16 bits that are ``BF16``."""
    header = {} if metadata is None else {"__metadata__": metadata}
    data = b""
    for name, array in tensors.items():
        own = array.tobytes()
        dtype = dtypes.get(name) or DTYPES[array.dtype.name]
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [len(data), len(data) + len(own)]}
        data += own
    path.write_bytes(container(header, data))
    return path


def gguf_text(value):
    """A text or name as GGUF stores it."""
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def gguf(tensors, keys=None, version=3):
    """The bytes of a GGUF file: tensors are ``name: (number of the type, shape, bytes)``, keys ``name: (number of the type, bytes)``."""
    head = b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(keys or {}))
    for name, (kind, value) in (keys or {}).items():
        head += gguf_text(name) + struct.pack("<I", kind) + value
    data = b""
    for name, (kind, shape, own) in tensors.items():
        head += gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), kind, len(data))
        data += own + bytes(-len(own) % 32)
    return head + bytes(-len(head) % 32) + data


def gguf_floats(arrays, keys=None):
    """The same of float32 arrays."""
    return gguf({name: (0, array.shape, array.tobytes()) for name, array in arrays.items()}, keys)


def bfloat16_bits(array):
    """The bits of a float32 array rounded to bfloat16, ties to even."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def floats_of_bits(bits):
    """The float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
