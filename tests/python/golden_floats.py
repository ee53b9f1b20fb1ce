"""Cases of the formats of 4-bit floats and codebooks, and of compressed-tensors: see ``golden``, which lists them."""

import golden
import numpy as np
from helpers import BFLOAT16, load


def bnb(name):
    """Four block sizes; the values, and the scales quantized again, for 64.

    The sign that the library gives to a zero of FP4 depends on the place of the element: it is made +0.0.
    """
    vectors = load(name.replace(":", "_"))
    for key in sorted({key.rsplit("/", 1)[0] for key in vectors} - {"code"}):
        case, size, *nested = key.split("/")
        parts = {"packed": vectors[f"{case}/{size}/packed"]}
        if nested:
            names = {"absmax": "absmax_u8", "nested_absmax": "absmax2", "offset": "offset"}
            parts |= {part: vectors[f"{key}/{field}"] for part, field in names.items()}
        else:
            parts["absmax"] = vectors[f"{key}/absmax"]
        options = {"group_size": int(size.removeprefix("bs"))} | ({"double_quant": True} if nested else {})
        values = vectors.get(f"{key}/dequant")
        if values is not None and name == "bnb:fp4":
            values = np.where(values == 0, np.float32(0), values)
        yield golden.Case(key, golden.INPUTS[case], options, parts, values)


def compressed_tensors(name):
    """Inputs of 8 rows are stacked twice. Scales are kept as float32, whatever the dtype of the array was; the values for float32."""
    vectors, dtypes = load(name), {"f32": np.float32, "f16": np.float16, "bf16": BFLOAT16}
    for key in sorted({key.rsplit("/", 1)[0] for key in vectors}):
        case, group_size, scheme, *dtype = key.split("/")
        dtype = dtypes[dtype[0] if dtype else "f32"]
        x = golden.INPUTS[case].astype(dtype)
        if group_size == "channel":
            group_size = "row"
        else:
            group_size, x = int(group_size.removeprefix("gs")), np.concatenate([x, x])
        parts = {"weight_packed": vectors[f"{key}/weight_packed"], "weight_scale": vectors[f"{key}/weight_scale"].astype(dtype)}
        if scheme == "asym":
            parts["weight_zero_point"] = vectors[f"{key}/weight_zero_point"]
        parts["weight_shape"] = vectors[f"{key}/weight_shape"]
        options = {"group_size": group_size, "symmetric": scheme == "sym"}
        yield golden.Case(key, x, options, parts, vectors.get(f"{key}/dequant"))


def nvfp4(name):
    """compressed-tensors gives its values as bfloat16."""
    vectors = load(name.replace(":", "_"))
    dtype = BFLOAT16 if name.startswith("compressed-tensors") else np.float32
    for case in sorted({key.split("/")[0] for key in vectors}):
        fields = {key.split("/")[1]: array for key, array in vectors.items() if key.split("/")[0] == case}
        values = fields.pop("dequant").astype(dtype)
        yield golden.Case(case, golden.INPUTS[case], {}, fields, values)


def mlx_nvfp4(name):
    vectors = load(name.replace(":", "_"))
    for case in sorted({key.split("/")[0] for key in vectors}):
        for suffix, options in (("", {}), ("_global", {"global_scale": float(vectors[f"{case}/global_scale"])})):
            parts = {"weight": vectors[f"{case}/packed{suffix}"], "scales": vectors[f"{case}/scales{suffix}"]}
            yield golden.Case(case + suffix, golden.INPUTS[case], options, parts, vectors[f"{case}/dequant{suffix}"])


def torchao(name):
    """Four scale rules of MXFP4, or one and two levels of NVFP4."""
    vectors = load(name.replace(":", "_"))
    for key in sorted({key.rsplit("/", 1)[0] for key in vectors}):
        case, variant = key.split("/")
        names = ["packed", "scales", *(["per_tensor_scale"] if variant == "two_level" else [])]
        options = {"scale_rule": variant.lower()} if name == "torchao:mxfp4" else {"two_level": variant == "two_level"}
        parts = {part: vectors[f"{key}/{part}"] for part in names}
        yield golden.Case(key, golden.INPUTS[case], options, parts, vectors.get(f"{key}/dequant"))
