"""The vectors of every format as cases of one form: what goes in, the parts that it must become, the values that they stand for."""

from typing import Any, NamedTuple

import golden_floats
import golden_words
import numpy as np
from helpers import BFLOAT16, load
from numpy.typing import NDArray

INPUTS = load("inputs")


class Case(NamedTuple):
    key: str
    x: NDArray[Any] | None  # None where the project decodes only
    options: dict[str, Any]
    parts: dict[str, NDArray[Any]]
    values: NDArray[Any] | None = None


def ggml(name):
    vectors = load(name.replace(":", "_"))
    for case in sorted({key.split("/")[0] for key in vectors}):
        yield Case(case, INPUTS[case], {}, {"blocks": vectors[f"{case}/packed"]}, vectors[f"{case}/dequant"])


def own(name):
    """Those of one of our formats; the values are kept for float16 scales."""
    keys = {}
    for key, array in load(name).items():
        case, part = key.rsplit("/", 1)
        keys.setdefault(case, {})[part] = array
    for key, parts in keys.items():
        case, group_size, scale_dtype = key.split("/")
        options = {"group_size": int(group_size) if group_size.isdigit() else group_size, "scale_dtype": scale_dtype}
        yield Case(key, INPUTS[case], options, parts, parts.pop("dequant", None))


def mlx(name):
    """Scales and biases are kept as float32, whatever the dtype of the array was; the values for float32."""
    vectors, dtypes = load(name), {"f32": np.float32, "f16": np.float16, "bf16": BFLOAT16}
    for key in sorted({key.rsplit("/", 1)[0] for key in vectors}):
        case, _, group_size, dtype = key.split("/")
        parts = {"weight": vectors[f"{key}/packed"]}
        parts |= {part: vectors[f"{key}/{part}"].astype(dtypes[dtype]) for part in ("scales", "biases")}
        x = INPUTS[case].astype(dtypes[dtype])
        yield Case(key, x, {"group_size": int(group_size.removeprefix("gs"))}, parts, vectors.get(f"{key}/dequant"))


def mlx_mxfp4(name):
    vectors = load(name.replace(":", "_"))
    for case in sorted({key.split("/")[0] for key in vectors}):
        parts = {"weight": vectors[f"{case}/packed"], "scales": vectors[f"{case}/scales"]}
        yield Case(case, INPUTS[case], {}, parts, vectors[f"{case}/dequant"])


def compressed_tensors_mxfp4(name):
    """The library gives its values as bfloat16."""
    vectors = load(name.replace(":", "_"))
    for case in sorted({key.split("/")[0] for key in vectors}):
        parts = {part: vectors[f"{case}/{part}"] for part in ("weight_packed", "weight_scale")}
        yield Case(case, INPUTS[case], {}, parts, vectors[f"{case}/dequant"].astype(BFLOAT16))


def gptoss_mxfp4(name):
    """Random bytes, one case for each matrix; the loader turns the values around."""
    vectors = load(name.replace(":", "_"))
    for expert, values in enumerate(vectors["dequant_f32"]):
        parts = {part: vectors[part][expert] for part in ("blocks", "scales")}
        yield Case(str(expert), None, {}, parts, np.ascontiguousarray(values.T))
        yield Case(str(expert), None, {}, parts, np.ascontiguousarray(vectors["dequant_bf16_as_u16"][expert].T).view(BFLOAT16))


CASES = {
    "int4": own,
    "uint4": own,
    "gguf:q4_0": ggml,
    "gguf:q4_1": ggml,
    "gguf:q4_k": ggml,
    "gguf:iq4_nl": ggml,
    "gguf:iq4_xs": ggml,
    "gguf:nvfp4": ggml,
    "mlx": mlx,
    "gguf:mxfp4": ggml,
    "gptoss:mxfp4": gptoss_mxfp4,
    "mlx:mxfp4": mlx_mxfp4,
    "compressed-tensors:mxfp4": compressed_tensors_mxfp4,
    "bnb:nf4": golden_floats.bnb,
    "bnb:fp4": golden_floats.bnb,
    "compressed-tensors": golden_floats.compressed_tensors,
    "compressed-tensors:nvfp4": golden_floats.nvfp4,
    "modelopt:nvfp4": golden_floats.nvfp4,
    "mlx:nvfp4": golden_floats.mlx_nvfp4,
    "torchao:mxfp4": golden_floats.torchao,
    "torchao:nvfp4": golden_floats.torchao,
    "gptq": golden_words.gptq,
    "gptq:v2": golden_words.gptq_v2,
    "awq": golden_words.awq,
    "onnx:matmulnbits": golden_words.onnx_matmulnbits,
    "onnx:qdq": golden_words.onnx_qdq,
    "hqq": golden_words.hqq,
    "gguf:q8_0": ggml,
    "gguf:q5_0": ggml,
    "gguf:q5_1": ggml,
    "gguf:q5_k": ggml,
    "gguf:q6_k": ggml,
}


def cases(name):
    """The cases of a format."""
    return list(CASES[name](name))
