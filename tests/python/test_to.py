"""to(): between formats, lossless or refused with the fact that differs."""

import numpy as np
import pytest
from helpers import BY_ROWS, same, sample
from reference import FORMATS

import quantize as qz

ALL = sorted(BY_ROWS)
MXFP4 = [name for name in ALL if name.endswith(":mxfp4")]
X = sample((6, 256))
ODD = sample((6, 67))


def lossless(q, name, **options):
    """Convert and hold the values against each other, to the bit."""
    other = q.to(name, **options)
    assert other.format == FORMATS[name].name
    assert (other.shape, other.axis) == (q.shape, q.axis)
    same(other.dequantize(), q.dequantize())
    return other


@pytest.mark.parametrize("kind", ["normal", "zeros", "half subnormal", "half underflow", "ties"])
@pytest.mark.parametrize("axis", [-1, 0])
def test_q4_0_and_int4_are_the_same_numbers(kind, axis):
    x = sample((64, 96), kind=kind)
    q = qz.quantize(x, "gguf:q4_0", axis=axis)
    there = lossless(q, "int4")
    assert (there.group_size, there.parts["scales"].dtype) == (32, np.float16)
    same(there.codes(), q.codes())
    assert lossless(there, "gguf:q4_0").identical(q)
    affine = lossless(q, "uint4")
    assert lossless(affine, "gguf:q4_0").identical(q)
    own = qz.quantize(x, "int4", axis=axis)
    assert lossless(lossless(own, "gguf:q4_0"), "int4").identical(own)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"group_size": 5},
        {"group_size": "row"},
        {"group_size": "tensor"},
        {"scale_dtype": "float32"},
        {"scale_dtype": "bfloat16"},
        {"axis": 0},
    ],
)
def test_int4_becomes_uint4_with_zero_points_of_8(options):
    q = qz.quantize(ODD, "int4", **options)
    there = lossless(q, "uint4")
    assert there.group_size == q.group_size
    assert there.parts["scales"].dtype == q.parts["scales"].dtype
    same(there.codes(), (q.codes() + 8).astype(np.int8))
    assert (there.zero_points == 8).all()
    assert lossless(there, "int4").identical(q)


def test_q4_0_becomes_q4_1_where_the_minimum_fits():
    """-8 * scale is a float16 unless it is too large; only the sign of a zero can differ then."""
    q = qz.quantize(X, "gguf:q4_0")
    there = q.to("gguf:q4_1")
    assert (there.dequantize() == q.dequantize()).all()
    same(there.codes(), (q.codes() + 8).astype(np.int8))
    with pytest.raises(qz.LossyConversionError, match="minimum"):
        qz.quantize(X * np.float32(1e5), "gguf:q4_0").to("gguf:q4_1")


@pytest.mark.parametrize("kind", ["normal", "zeros", "half subnormal", "ties"])
@pytest.mark.parametrize("name", ["gguf:q4_0", "int4"])
def test_symmetric_becomes_mlx_where_the_bias_fits(name, kind):
    """The bias is -8 * scale; only the sign of a zero can differ."""
    q = qz.quantize(sample((6, 128), kind=kind), name)
    there = q.to("mlx")
    assert (there.group_size, there.parts["scales"].dtype) == (32, np.float16)
    assert (there.dequantize() == q.dequantize()).all()
    same(there.codes(), (q.codes() + 8).astype(np.int8))
    wide = q.to("mlx", scale_dtype="float32")
    assert (wide.dequantize() == q.dequantize()).all()
    assert lossless(wide, "mlx", scale_dtype="float16").identical(there)
    back = there.to(name)
    assert (back.dequantize() == q.dequantize()).all()
    live = q.scales != 0  # a scale of zero says nothing of its codes
    same(back.codes().reshape(6, 4, 32)[live], q.codes().reshape(6, 4, 32)[live])


def test_q4_0_becomes_mlx_only_where_8_times_its_scale_is_a_float16():
    q = qz.quantize(X * np.float32(1e5), "gguf:q4_0")
    with pytest.raises(qz.LossyConversionError, match="minimum .* is not a float16 number"):
        q.to("mlx")
    assert (q.to("mlx", scale_dtype="float32").dequantize() == q.dequantize()).all()


def test_mlx_of_other_group_sizes_becomes_our_formats():
    codes = np.tile(np.arange(16, dtype=np.float32), (6, 8))
    q = qz.quantize((codes - 8) / 4, "mlx", group_size=128)
    for target in ("int4", "uint4"):
        there = q.to(target)
        assert there.group_size == 128
        assert (there.dequantize() == q.dequantize()).all()
        assert (there.to("mlx").dequantize() == q.dequantize()).all()


@pytest.mark.parametrize("kind", ["normal", "zeros", "wide", "float subnormal", "huge"])
@pytest.mark.parametrize("name", MXFP4)
def test_mxfp4_is_mxfp4(name, kind):
    """Codes and exponents travel untouched; ggml alone reads code 8 as +0.0."""
    q = qz.quantize(sample((6, 128), kind=kind), name)
    for target in MXFP4:
        there = q.to(target)
        assert (there.dequantize() == q.dequantize()).all()
        same(there.codes(), q.codes())
        same(there.scales, q.scales)
        assert there.to(name).identical(q)


def test_an_exponent_that_is_nan_is_never_converted():
    q = qz.quantize(X, "mlx:mxfp4")
    scales = q.parts["scales"].copy()
    scales[2, 1] = 255
    broken = qz.from_parts("mlx:mxfp4", {**q.parts, "scales": scales})
    for target in MXFP4:
        with pytest.raises(qz.LossyConversionError, match="scale NaN of group 17"):
            broken.to(target)


def test_uint4_with_other_zero_points_is_not_symmetric():
    q = qz.quantize(X + 1, "uint4")
    with pytest.raises(qz.LossyConversionError, match="zero point"):
        q.to("int4")


@pytest.mark.parametrize(("narrow", "wide"), [("float16", "float32"), ("bfloat16", "float32")])
@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_scales_widen(name, narrow, wide):
    q = qz.quantize(ODD, name, scale_dtype=narrow)
    there = lossless(q, name, scale_dtype=wide)
    assert there.parts["scales"].dtype == wide
    assert lossless(there, name, scale_dtype=narrow).identical(q)


@pytest.mark.parametrize("name", ["int4", "uint4"])
def test_scales_that_a_narrower_dtype_cannot_hold(name):
    q = qz.quantize(X, name, scale_dtype="float32")
    for narrow in ("float16", "bfloat16"):
        with pytest.raises(qz.LossyConversionError, match=f"scale.*{narrow}"):
            q.to(name, scale_dtype=narrow)
    with pytest.raises(qz.LossyConversionError, match="scale.*float16"):
        qz.quantize(X, "int4", scale_dtype="float32").to("gguf:q4_0")


def test_scales_that_happen_to_fit():
    codes = np.tile([-8.0, 3, 7, 0], (6, 32)).astype(np.float32)
    q = qz.quantize(codes * 0.25, "int4", scale_dtype="float32")
    lossless(q, "int4", scale_dtype="float16")
    lossless(q, "int4", scale_dtype="bfloat16")
    lossless(q, "gguf:q4_0")


REFUSED = [
    ("int4", {"group_size": 64}, "gguf:q4_0", {}, r"group sizes differ \(64, 32\)"),
    ("int4", {"group_size": 128}, "int4", {"group_size": 32}, r"group sizes differ \(128, 32\)"),
    ("int4", {}, "int4", {"group_size": 64}, r"group sizes differ \(32, 64\)"),
    ("int4", {"group_size": "row"}, "uint4", {"group_size": 32}, "group sizes differ"),
    ("gguf:q4_0", {}, "int4", {"group_size": 64}, r"group sizes differ \(32, 64\)"),
    ("gguf:q4_1", {}, "uint4", {}, "minimum"),
    ("gguf:q4_1", {}, "int4", {}, "minimum"),
    ("gguf:q4_1", {}, "gguf:q4_0", {}, "minimum"),
    ("uint4", {}, "gguf:q4_1", {}, "(zero.point|minimum)"),
    ("uint4", {}, "gguf:q4_0", {}, "zero.point"),
    ("mlx", {}, "gguf:q4_0", {}, r"group sizes differ \(64, 32\)"),
    ("mlx", {"group_size": 32, "scale_dtype": "float16"}, "gguf:q4_0", {}, "minimum"),
    ("mlx", {"group_size": 32}, "uint4", {"scale_dtype": "float32"}, "15 times the scale"),
    ("int4", {"group_size": 32, "scale_dtype": "float32"}, "mlx", {"group_size": 32}, "15 times the scale"),
    ("gguf:q4_0", {}, "mlx", {"group_size": 64, "scale_dtype": "float16"}, r"group sizes differ \(32, 64\)"),
    *((name, {}, "int4", {"scale_dtype": "float32"}, "the codes have different meanings") for name in MXFP4),
    *((name, {}, "gguf:q4_1", {}, "the codes have different meanings") for name in MXFP4),
    *((name, {}, target, {}, "the codes have different meanings") for name in ("uint4", "gguf:q4_0") for target in MXFP4),
]


@pytest.mark.parametrize(("name", "options", "target", "wanted", "fact"), REFUSED)
def test_what_would_change_values_is_refused_with_the_fact(name, options, target, wanted, fact):
    q = qz.quantize(X, name, **options)
    with pytest.raises(qz.LossyConversionError, match=f"{fact}.*requantize=True") as raised:
        q.to(target, **wanted)
    assert isinstance(raised.value, ValueError)


@pytest.mark.parametrize(("name", "options", "target", "wanted", "fact"), REFUSED)
def test_requantize_goes_through_floats(name, options, target, wanted, fact):
    q = qz.quantize(X, name, **options)
    there = q.to(target, requantize=True, **wanted)
    assert there.identical(qz.quantize(q.dequantize(), target, **wanted))


def test_requantize_keeps_group_size_and_scale_dtype_where_it_can():
    q = qz.quantize(X + 1, "uint4", group_size=64, scale_dtype="float32")
    there = q.to("int4", requantize=True)
    assert there.identical(qz.quantize(q.dequantize(), "int4", group_size=64, scale_dtype="float32"))


def test_requantize_changes_nothing_where_the_way_is_lossless():
    q = qz.quantize(X, "gguf:q4_0")
    assert q.to("int4", requantize=True).identical(q.to("int4"))


@pytest.mark.parametrize("name", ALL)
def test_to_itself(name):
    q = qz.quantize(X, name)
    assert q.to(name).identical(q)


def test_rows_that_blocks_do_not_divide():
    q = qz.quantize(ODD, "int4")
    for requantize in (False, True):
        with pytest.raises(ValueError, match="67.*multiple of 32"):
            q.to("gguf:q4_0", requantize=requantize)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_arrays(threads):
    x = sample((1100, 1024))
    q = qz.quantize(x, "gguf:q4_0")
    with qz.threads(threads):
        there = q.to("int4")
    same(there.dequantize(), q.dequantize())
    assert there.to("gguf:q4_0").identical(q)


def test_empty_and_sliced():
    empty = qz.quantize(np.empty((0, 64), np.float32), "gguf:q4_0")
    assert lossless(empty, "int4").shape == (0, 64)
    q = qz.quantize(sample((8, 64)), "gguf:q4_0")[::-2]
    lossless(q, "int4")


def test_wrong_arguments():
    q = qz.quantize(X)
    with pytest.raises(ValueError, match="no format 'q4'"):
        q.to("q4")
    with pytest.raises(TypeError, match="double_quant"):
        q.to("uint4", double_quant=True)
    with pytest.raises(ValueError, match="group_size"):
        q.to("gguf:q4_0", group_size=64)
