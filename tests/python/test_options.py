"""The decided cases of the interface: group sizes, thread counts, options that a format lacks, the table of formats."""

import inspect
import re

import numpy as np
import pytest
from helpers import BFLOAT16, BY_ROWS, python, same_parts, sample
from reference import FORMATS

import quantize as qz

X = sample((3, 4, 96))


@pytest.mark.parametrize("name", ["int4", "uint4"])
@pytest.mark.parametrize("given", ["row", "channel", -1])
def test_a_whole_row(name, given):
    q = qz.quantize(X, name, group_size=given)
    assert q.group_size == "row"
    assert q.parts["scales"].shape == (3, 4, 1)
    assert q.scales.shape == (3, 4, 1)
    if name == "uint4":
        assert q.parts["zero_points"].shape == (3, 4, 1)
        assert q.zero_points.shape == (3, 4, 1)
    same_parts(q.parts, FORMATS[name].encode(X, group_size="row"))


@pytest.mark.parametrize("name", ["int4", "uint4"])
@pytest.mark.parametrize("shape", [(96,), (4, 96), (3, 4, 96), (2, 3, 4, 5)])
def test_the_whole_tensor(name, shape):
    x = sample(shape)
    q = qz.quantize(x, name, group_size="tensor")
    ones = (1,) * len(shape)
    assert q.group_size == "tensor"
    assert q.parts["scales"].shape == q.scales.shape == ones
    if name == "uint4":
        assert q.parts["zero_points"].shape == q.zero_points.shape == ones
    same_parts(q.parts, FORMATS[name].encode(x, group_size="tensor"))


@pytest.mark.parametrize("given", [1, 7, 32, 96, 97, 10**6, np.int64(64)])
def test_group_size_reads_back(given):
    assert qz.quantize(X, group_size=given).group_size == given


def test_the_default_group_is_32_with_float16_scales():
    q = qz.quantize(X)
    assert (q.format, q.group_size) == ("int4", 32)
    assert q.parts["scales"].dtype == np.float16
    assert q.parts["scales"].shape == (3, 4, 3)


@pytest.mark.parametrize("given", [0, -2, -32, "rows", "", "col"])
def test_group_sizes_that_are_none(given):
    with pytest.raises(ValueError, match="group_size is"):
        qz.quantize(X, group_size=given)


@pytest.mark.parametrize("given", [32.0, (32,), [32]])
def test_group_sizes_of_a_wrong_type(given):
    with pytest.raises(TypeError, match="group_size"):
        qz.quantize(X, group_size=given)


@pytest.mark.parametrize("name", [row.name for row in qz.formats() if row.group_sizes == (32,)])
def test_formats_of_fixed_blocks(name):
    x = sample((3, 256))
    assert qz.quantize(x, name, group_size=32).group_size == 32
    for given in (16, 64, "row", "tensor"):
        with pytest.raises(ValueError, match=f"group_size is .*; {name} takes 32"):
            qz.quantize(x, name, group_size=given)
    with pytest.raises(TypeError, match=f"{name} has no option scale_dtype"):
        qz.quantize(x, name, scale_dtype="float32")


def test_a_format_of_a_few_group_sizes():
    for given in (32, 64, 128, None):
        assert qz.quantize(sample((3, 128)), "mlx", group_size=given).group_size == (given or 64)
    for given in (16, 48, 256, "row", "tensor"):
        with pytest.raises(ValueError, match="group_size is .*; mlx takes 32, 64 or 128"):
            qz.quantize(sample((3, 256)), "mlx", group_size=given)
    with pytest.raises(ValueError, match="last axis has 96 elements; mlx needs a multiple of 64"):
        qz.quantize(X, "mlx")


@pytest.mark.parametrize(
    ("dtype", "stored"), [("float16", "float16"), ("float32", "float32"), ("float64", "float32"), (BFLOAT16, "bfloat16")]
)
def test_scales_that_follow_the_array(dtype, stored):
    x = sample((3, 128)).astype(dtype)
    q = qz.quantize(x, "mlx")
    assert {q.parts["scales"].dtype.name, q.parts["biases"].dtype.name} == {stored}
    for given in ("float16", "float32", BFLOAT16):
        assert qz.quantize(x, "mlx", scale_dtype=given).parts["scales"].dtype == given
    if stored == "bfloat16":
        bits = qz.quantize(x.view(np.uint16), "mlx", dtype="bfloat16")
        assert bits.parts["scales"].dtype == np.uint16
        assert bits.identical(q)
    assert qz.from_parts("mlx", dict(q.parts)).identical(q)
    # Where scales do not follow the array its dtype changes nothing.
    assert qz.quantize(x).parts["scales"].dtype == np.float16


@pytest.mark.parametrize("given", ["float64", np.float64, "int8", "f8", "float8_e4m3fn"])
def test_scale_dtypes_that_are_none(given):
    with pytest.raises((TypeError, ValueError), match="(?s)scale_dtype.*float16.*bfloat16.*float32"):
        qz.quantize(X, scale_dtype=given)


@pytest.mark.parametrize("name", ["int4", "uint4", "gguf:q4_0"])
def test_an_option_that_the_format_lacks_lists_those_it_has(name):
    with pytest.raises(TypeError, match=f"{name} has no option double_quant") as raised:
        qz.quantize(X, name, double_quant=True)
    if name in ("int4", "uint4"):
        assert "group_size" in str(raised.value)
        assert "scale_dtype" in str(raised.value)
    with pytest.raises(TypeError, match=f"{name} has no option double_quant"):
        qz.from_parts(name, dict(qz.quantize(X, name).parts), double_quant=True)


@pytest.mark.parametrize("method", ["best", "", None, "Nearest"])
def test_an_unknown_method(method):
    with pytest.raises((TypeError, ValueError), match="method"):
        qz.quantize(X, method=method)


@pytest.mark.parametrize("threads", [0, -1, -100])
def test_fewer_than_one_thread(threads):
    q = qz.quantize(X)
    for call in (lambda: qz.quantize(X, threads=threads), lambda: q.dequantize(threads=threads), lambda: qz.set_threads(threads)):
        with pytest.raises(ValueError, match=f"threads is {threads}"):
            call()
    with pytest.raises(ValueError, match=f"threads is {threads}"), qz.threads(threads):
        pass


def test_short_names_find_formats():
    for short in ("q4_0", "q4_1"):
        q = qz.quantize(X, short)
        assert q.format == f"gguf:{short}"
        assert q.identical(qz.quantize(X, f"gguf:{short}"))


@pytest.mark.parametrize("name", ["", "int5", "GGUF:Q4_0", "gguf:", "q4_0 "])
def test_other_names_find_none(name):
    with pytest.raises(ValueError, match=re.escape(f"no format '{name}'")):
        qz.quantize(X, name)


def test_formats_is_a_table_as_data():
    rows = qz.formats()
    assert [row.name for row in rows] == [
        *("int4", "uint4", "gguf:q4_0", "gguf:q4_1"),
        *("gguf:q4_k", "gguf:iq4_nl", "gguf:iq4_xs", "gguf:nvfp4"),
        "mlx",
        *("gguf:mxfp4", "gptoss:mxfp4", "mlx:mxfp4", "compressed-tensors:mxfp4", "torchao:mxfp4"),
        *("mlx:nvfp4", "compressed-tensors:nvfp4", "modelopt:nvfp4", "torchao:nvfp4"),
        *("gptq", "gptq:v2", "awq", "onnx:matmulnbits", "onnx:qdq"),
        *("bnb:nf4", "bnb:fp4", "compressed-tensors", "hqq"),
        *("gguf:q8_0", "gguf:q5_0", "gguf:q5_1", "gguf:q5_k", "gguf:q6_k"),
    ]
    assert [row.name for row in rows if row.companion] == [row.name for row in rows[-5:]]
    for row in rows:
        assert row.name in FORMATS
        assert set(dict(row.part_shapes)) == set(dict(row.parts)) == set(FORMATS[row.name].parts)
    for row in [row for row in rows if row.name in BY_ROWS]:
        assert tuple(name for name, _ in row.parts) == FORMATS[row.name].parts
        assert tuple(dtype for _, dtype in row.parts) == tuple(
            array.dtype.name for array in FORMATS[row.name].encode(np.ones((1, 256), np.float32)).values()
        )
        q = qz.quantize(sample((64, 256)), row.name)
        assert (row.group_size, row.bits_per_weight) == (q.group_size, q.bits_per_weight)
        assert all(qz.quantize(sample((1, 256)), alias).format == row.name for alias in row.aliases)
        assert row.any_group_size == (not row.group_sizes)
        assert row.any_group_size or row.group_size in row.group_sizes
        assert row.scales_follow_array == (row.name == "mlx")


def test_signatures_are_those_of_the_design():
    parameters = {
        qz.quantize: "array format axis group_size scale_dtype dtype method importance tolerance clip_limit nonfinite out threads options",
        qz.dequantize: "q dtype out threads",
        qz.pack: "codes signed out",
        qz.unpack: "packed count signed out",
        qz.from_parts: "format parts shape axis group_size options",
        qz.compare: "reference other axis optimum importance",
    }
    positional = {qz.quantize: 2, qz.dequantize: 1, qz.pack: 1, qz.unpack: 2, qz.from_parts: 2, qz.compare: 2}
    for function, names in parameters.items():
        given = list(inspect.signature(function).parameters.values())
        assert [p.name for p in given] == names.split()
        for p in given[positional[function] :]:
            assert p.kind in (p.KEYWORD_ONLY, p.VAR_KEYWORD), f"{function.__name__}({p.name})"


def test_everything_public_is_there():
    names = {
        *("quantize", "dequantize", "pack", "unpack", "from_parts", "compare", "formats", "convert", "open"),
        *("QuantizedArray", "Comparison", "QuantizeWarning", "LossyConversionError", "CorruptFileError"),
        *("cpu_features", "threads", "set_threads"),
        *("quantize_to_int4", "dequantize_from_int4", "pack_int4_to_int8", "unpack_int8_to_int4"),
    }
    assert names <= set(qz.__all__)
    for name in qz.__all__:
        assert getattr(qz, name) is not None
        assert name.startswith("__") or getattr(qz, name).__doc__
    assert issubclass(qz.LossyConversionError, ValueError)
    assert issubclass(qz.CorruptFileError, ValueError)
    assert issubclass(qz.QuantizeWarning, Warning)


WITHOUT_ML_DTYPES = """
import sys
sys.modules["ml_dtypes"] = None          # an import of it fails, as where it is not installed
import numpy as np, quantize as qz
x = np.linspace(-3, 3, 64, dtype=np.float32)
bits = (x.view(np.uint32) >> 16).astype(np.uint16)
q = qz.quantize(bits, dtype="bfloat16", scale_dtype="bfloat16")
back = q.dequantize(dtype="bfloat16")
assert q.parts["scales"].dtype == back.dtype == np.uint16
assert qz.from_parts("int4", dict(q.parts)).identical(q)
print(np.abs(q.dequantize() - x).max() < 0.4)
"""


def test_bfloat16_needs_no_ml_dtypes():
    assert python(WITHOUT_ML_DTYPES) == "True\n"


@pytest.mark.parametrize("flags", [("-O",), ("-OO",), ("-W", "error"), ("-X", "dev"), ("-I",)])
def test_interpreter_flags(flags):
    code = """
import numpy as np, quantize as qz
x = np.linspace(-3, 3, 64, dtype=np.float32).reshape(2, 32)
q = qz.quantize(x)
print(repr(q), np.abs(q.dequantize() - x).max() < 0.4, qz.compare(x, q).rmse < 0.2)
"""
    assert python(code, *flags).endswith("True True\n")


def test_import_is_quiet_and_light():
    code = """
import sys
import numpy
before = set(sys.modules)
import quantize
heavy = {"ml_dtypes", "matplotlib", "onnx", "zarr", "tqdm", "asyncio", "multiprocessing", "unittest", "argparse"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    assert python(code) == "[]\n"
