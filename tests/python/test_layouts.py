"""Formats that are matrices stored [in, out], flat, woven or of two levels: against the slow reference, and into each other."""

import itertools
import pickle

import numpy as np
import pytest
from helpers import BFLOAT16, KINDS, as_bits, same, same_parts, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference import FORMATS

import quantize as qz

SETTINGS = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
INFO = {row.name: row for row in qz.formats()}

MATRIX = ((8, 64), (16, 128), (24, 256), (40, 96), (136, 256), (8, 1056))
ANY = ((1, 1), (2, 5), (3, 33), (5, 100), (7, 65), (16, 128), (24, 96), (130, 48), (1, 1040), (4, 0))
FLAT = ((1,), (3, 33), (64,), (5, 100), (2, 3, 64), (7, 65), (1, 4097), (40, 256), (0,))
SIXTEENS = ((1, 16), (3, 64), (2, 5, 48), (7, 256), (1, 4112), (4, 0))
SYMMETRIC = ({}, {"symmetric": True}, {"symmetric": False})

# Shapes, group sizes and options of every format of this kind.
DOMAINS = {
    "gptq": (MATRIX, (None, 32, 64, "row"), SYMMETRIC),
    "gptq:v2": (MATRIX, (None, 32, 64, "row"), SYMMETRIC),
    "awq": (MATRIX, (None, 32, 64, "row"), ({},)),
    "onnx:matmulnbits": (ANY, (None, 16, 64, 256), (*SYMMETRIC, {"scale_dtype": "float16"})),
    "onnx:qdq": (ANY, (None, 1, 16, 33, 64, "row"), (*SYMMETRIC, {"scale_dtype": "float16", "symmetric": False})),
    "bnb:nf4": (FLAT, (None, 32, 64, 4096), ({}, {"double_quant": True})),
    "bnb:fp4": (FLAT, (None, 32, 128, 1024), ({}, {"double_quant": True})),
    "compressed-tensors": (ANY + MATRIX, (None, 32, 64, "row"), SYMMETRIC),
    "compressed-tensors:nvfp4": (SIXTEENS, (None,), ({},)),
    "modelopt:nvfp4": (SIXTEENS, (None,), ({},)),
    "mlx:nvfp4": (SIXTEENS, (None,), ({}, {"global_scale": 2.5})),
    "torchao:nvfp4": (SIXTEENS, (None,), ({}, {"two_level": True}, {"two_level": False})),
    "torchao:mxfp4": (
        ((3, 64), (2, 5, 96), (1, 1056)),
        (None,),
        tuple({"scale_rule": rule} for rule in ("floor", "rceil", "ceil", "even")),
    ),
    "hqq": (((2, 64), (16, 128), (6, 320), (8, 2, 64)), (None, 16, 32, "row"), ({}, {"scale_dtype": "float32"})),
}


def test_every_other_format_is_by_rows():
    by_rows = {name for name, row in INFO.items() if not row.flat and all(shape.startswith("(...") for _, shape in row.part_shapes)}
    assert set(INFO) - by_rows <= set(DOMAINS)


@st.composite
def calls(draw):
    name = draw(st.sampled_from(sorted(DOMAINS)))
    shapes, group_sizes, options = DOMAINS[name]
    shape, group_size, option = (draw(st.sampled_from(choices)) for choices in (shapes, group_sizes, options))
    return name, shape, {"group_size": group_size, **option}, draw(st.sampled_from(KINDS)), draw(st.integers(0, 999))


def attempt(name, x, options):
    """The parts by the reference, or the message that the product must have."""
    try:
        # The mean of the largest numbers is beyond float32.
        with np.errstate(over="raise" if options.get("double_quant") else "warn"):
            return FORMATS[name].encode(x, **options), None
    except (OverflowError, FloatingPointError):
        return None, "beyond the largest"
    except ValueError:
        return None, "not finite"


def refused(name, shape, group_size):
    """Whether the format does not take the shape: rows that are not whole groups, or an odd number of groups to be paired."""
    size = group_size or INFO[name].group_size
    if name in ("gptq", "gptq:v2", "awq", "compressed-tensors", "hqq") and size != "row" and shape[-1] % size:
        return True
    return name == "hqq" and (np.prod(shape) // (shape[-1] if size == "row" else size)) % 2 == 1


def decode_options(options):
    return {key: value for key, value in options.items() if key in ("group_size", "symmetric", "double_quant", "two_level", "global_scale")}


@SETTINGS
@given(calls(), st.sampled_from(["float32", "float16", "bfloat16"]), st.sampled_from([1, 2]))
def test_parts_and_values_are_those_of_the_reference(call, dtype, threads):
    name, shape, options, kind, seed = call
    with np.errstate(over="ignore"):
        x = sample(shape, seed, kind).astype(BFLOAT16 if dtype == "bfloat16" else dtype)
    x[~np.isfinite(x.astype(np.float32))] = 1
    if refused(name, shape, options["group_size"]):
        with pytest.raises(ValueError, match="needs a"):
            qz.quantize(x, name, **options)
        return
    expected, message = attempt(name, x, options)
    if expected is None:
        with pytest.raises(ValueError, match=message):
            qz.quantize(x, name, **options)
        return
    q = qz.quantize(x, name, threads=threads, **options)
    same_parts({part: as_bits(a) for part, a in q.parts.items()}, {part: as_bits(a) for part, a in expected.items()})
    values = FORMATS[name].decode(expected, shape, **decode_options(options))
    same(q.dequantize(threads=threads), np.ascontiguousarray(values))

    again = qz.from_parts(name, q.parts, shape=shape, **decode_options(options))
    assert again.identical(q)
    codes, scales = q.codes(), q.scales
    assert codes.shape == shape
    assert scales.dtype == np.float32
    if q.zero_points is not None:
        assert q.zero_points.shape == scales.shape


@pytest.mark.parametrize(("name", "options"), [(name, options) for name in DOMAINS for options in DOMAINS[name][2]])
def test_pickles_come_back(name, options):
    q = qz.quantize(sample((16, 128)), name, **options)
    for protocol in (2, 5):
        again = pickle.loads(pickle.dumps(q, protocol))
        assert again.identical(q)
        same(again.dequantize(), q.dequantize())


LARGE = [
    *(
        (name, shape, options)
        for name in ("gptq", "gptq:v2", "compressed-tensors")
        for shape in ((1032, 1024), (64, 16384))
        for options in SYMMETRIC[1:]
    ),
    *(("awq", shape, {"group_size": size}) for shape, size in (((1032, 1024), 128), ((64, 16384), "row"), ((16, 65536), 64))),
    *(("onnx:matmulnbits", (1031, 1024), options) for options in SYMMETRIC[1:]),
    *(("onnx:qdq", shape, options) for shape in ((1030, 1024), (1031, 1023), (2, 600_000)) for options in SYMMETRIC[1:]),
    *((name, (1031, 1025), options) for name in ("bnb:nf4", "bnb:fp4") for options in ({}, {"double_quant": True})),
    *((name, (1031, 1024), {}) for name in ("compressed-tensors:nvfp4", "modelopt:nvfp4", "mlx:nvfp4", "torchao:nvfp4", "torchao:mxfp4")),
    ("hqq", (1032, 1024), {}),
]


@pytest.mark.parametrize(("name", "shape", "options"), LARGE)
def test_large_arrays_at_any_thread_count(name, shape, options):
    x = sample(shape)
    expected = {part: as_bits(a) for part, a in FORMATS[name].encode(x, **options).items()}
    values = np.ascontiguousarray(FORMATS[name].decode(expected, shape, **decode_options(options)))
    for threads in (1, 2, 3):
        q = qz.quantize(x, name, threads=threads, **options)
        same_parts(q.parts, expected, threads)
        same(q.dequantize(threads=threads), values, threads)
    half = q.dequantize(dtype=np.float16)
    with np.errstate(over="ignore"):
        same(half, values.astype(np.float16))


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_any_bytes_decode_or_raise(name):
    random = np.random.default_rng(7)
    shape = (16, 128)
    for options in DOMAINS[name][2]:
        q = qz.quantize(sample(shape), name, **options)
        for _ in range(20):
            parts = {}
            for part, array in q.parts.items():
                whole = np.frombuffer(random.bytes(array.nbytes), array.dtype).reshape(array.shape)
                parts[part] = array if part == "weight_shape" else whole
            if "g_idx" in parts:
                with pytest.raises(ValueError, match=r"parts\['g_idx'\]"):
                    qz.from_parts(name, parts, shape=shape)
                parts["g_idx"] = random.integers(0, 128 // q.group_size, 128).astype(np.int32)
            shown = {key: value for key, value in decode_options(options).items() if key != "symmetric"}
            decoded = qz.from_parts(name, parts, shape=shape, **{**shown, "group_size": q.group_size}).dequantize()
            assert decoded.shape == shape


@pytest.mark.parametrize("name", ["gptq", "gptq:v2"])
def test_columns_in_activation_order(name):
    x = sample((16, 256))
    q = qz.quantize(x, name, group_size=64, symmetric=False)
    order = np.random.default_rng(3).permutation(256)
    # Codes stay where they are; each column takes the scales of the group that its number says.
    g_idx = (order // 64).astype(np.int32)
    moved = qz.from_parts(name, {**q.parts, "g_idx": g_idx})
    codes = q.codes().astype(np.float32)
    zero_points, scales = q.zero_points[:, g_idx], q.scales[:, g_idx]
    same(moved.dequantize(), (codes - zero_points) * scales)
    with pytest.raises(qz.LossyConversionError, match="not in order"):
        moved.to("uint4")
    without = {part: array for part, array in q.parts.items() if part != "g_idx"}
    assert qz.from_parts(name, without).identical(q)


# ---- conversion ----


def sources():
    """Quantized arrays of every format and variant, 16 x 256."""
    x = sample((16, 256), 5)
    for name in INFO:
        if name in DOMAINS:
            for options in DOMAINS[name][2]:
                yield qz.quantize(x, name, **options)
        else:
            yield qz.quantize(x, name)


def apart(a, b):
    """The largest distance in units of the last place."""
    return int(np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32)).max())


@pytest.mark.parametrize("target", sorted(INFO))
def test_a_conversion_keeps_every_value_or_is_refused(target):
    reciprocal = {"modelopt:nvfp4", "torchao:nvfp4", "compressed-tensors:nvfp4", "mlx:nvfp4"}
    for q in sources():
        values = q.dequantize()
        try:
            converted = q.to(target)
        except qz.LossyConversionError:
            through = q.to(target, requantize=True) if target not in ("gptq", "awq") or np.isfinite(values).all() else q
            assert through.shape == q.shape
            continue
        assert converted.format == target
        found = converted.dequantize()
        if {q.format, target} <= reciprocal and "compressed-tensors:nvfp4" in (q.format, target) and q.format != target:
            assert apart(found + 0, values + 0) <= 2, (q, target)
        else:
            np.testing.assert_array_equal(found, values, err_msg=f"{q} to {target}")


WORDS = ("gptq", "gptq:v2", "awq", "compressed-tensors", "onnx:matmulnbits", "onnx:qdq", "uint4")


def with_zero_points(shape, size):
    """Zero points 1 to 15 and float16 scales, which all of these formats hold."""
    random = np.random.default_rng(size)
    groups = (shape[0], shape[1] // size)
    packed = qz.pack(random.integers(0, 16, shape), signed=False)
    zero_points = qz.pack(random.integers(1, 16, groups), signed=False)
    scales = random.uniform(0.01, 2, groups).astype(np.float16)
    return qz.from_parts("uint4", {"packed": packed, "scales": scales, "zero_points": zero_points}, shape=shape, group_size=size)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(WORDS, 2)))
@pytest.mark.parametrize("size", [32, 64, 128])
def test_words_travel_with_their_zero_points(source, target, size):
    """From every format of zero points to every other."""
    first = with_zero_points((24, 256), size)
    start = first.to(source)
    converted = start.to(target)
    same(converted.dequantize(), first.dequantize())
    assert converted.to(source).identical(start)
    assert converted.to("uint4", scale_dtype="float16").identical(first)


@pytest.mark.parametrize(("source", "target"), list(itertools.permutations(("gptq", "gptq:v2", "awq", "onnx:qdq"), 2)))
@pytest.mark.parametrize("size", [32, 128, 1280])
def test_what_stays_turned_is_what_was_turned_twice(source, target, size):
    """Words that need no turning, in several bands and in runs of more than 1024, against the way through rows."""
    first = with_zero_points((1160, 1280), size)
    expected = first.to(target).parts
    for threads in (1, 2):
        same_parts(first.to(source).to(target, threads=threads).parts, expected)


MXFP4 = ("gptoss:mxfp4", "gguf:mxfp4", "mlx:mxfp4", "compressed-tensors:mxfp4", "torchao:mxfp4")
LOSSLESS = [
    ("gguf:q4_0", "int4"),
    ("int4", "gguf:q4_0"),
    ("gguf:q4_0", "mlx"),
    ("gguf:q4_0", "gptq"),
    ("gguf:q4_0", "gptq:v2"),
    ("gguf:q4_0", "onnx:matmulnbits"),
    ("gguf:q4_0", "onnx:qdq"),
    ("gguf:q4_0", "compressed-tensors"),
    *itertools.permutations(MXFP4, 2),
]


@pytest.mark.parametrize(("source", "target"), LOSSLESS)
def test_these_directions_are_lossless(source, target):
    x = sample((16, 256), 9)
    q = qz.quantize(x, source)
    np.testing.assert_array_equal(q.to(target).dequantize(), q.dequantize())


def test_the_symmetric_form_is_taken_where_every_zero_point_is_8():
    q = qz.quantize(sample((16, 128)), "int4", group_size=32)
    assert "zero_points" not in q.to("onnx:matmulnbits").parts
    assert "weight_zero_point" not in q.to("uint4").to("compressed-tensors").parts
    assert "zero_points" in q.to("uint4").to("onnx:matmulnbits", symmetric=False).parts
    with pytest.raises(qz.LossyConversionError, match="zero point"):
        qz.quantize(sample((16, 128)) + 3, "uint4").to("onnx:matmulnbits", symmetric=True)


def test_what_gptq_cannot_store_is_refused():
    low = qz.quantize(np.abs(sample((8, 64))) + 1, "gptq:v2", group_size=32, symmetric=False)
    assert (low.zero_points == 0).any()
    with pytest.raises(qz.LossyConversionError, match="zero point 0, which gptq cannot store"):
        low.to("gptq")
    one = qz.quantize(sample((8, 64)), "gptq", group_size=32, symmetric=False)
    sixteen = qz.from_parts("gptq", {**one.parts, "qzeros": np.full_like(one.parts["qzeros"], -1)})
    assert (sixteen.zero_points == 16).all()
    with pytest.raises(qz.LossyConversionError, match="zero point 16, which gptq:v2 cannot store"):
        sixteen.to("gptq:v2")


def test_nvfp4_of_two_projects_keeps_codes_and_scales():
    q = qz.quantize(sample((16, 256)), "modelopt:nvfp4")
    there = q.to("compressed-tensors:nvfp4")
    same(there.parts["weight_packed"], q.parts["weight"])
    same(there.parts["weight_scale"], q.parts["weight_scale"])
    assert there.parts["weight_global_scale"][0] == np.float32(1) / q.parts["weight_scale_2"]
    assert apart(there.dequantize() + 0, q.dequantize() + 0) <= 2  # -0.0 + 0 is 0.0, which code 8 is in one of them


@pytest.mark.parametrize("columns", [6, 6006, 24018])
def test_odd_groups_travel_through_halves_that_begin_inside_a_byte(columns):
    """Half of the codes is odd: in hqq the second half begins where in other formats a byte has another code before."""
    q = qz.quantize(sample((1, columns)), "uint4", group_size=3)
    there = q.to("hqq")
    same(there.dequantize(), q.dequantize())
    assert there.to("uint4").identical(q)


@pytest.mark.parametrize("name", ["bnb:nf4", "bnb:fp4"])
def test_nesting_is_undone(name):
    nested = qz.quantize(sample((16, 256)), name, double_quant=True)
    plain = nested.to(name, double_quant=False)
    assert list(plain.parts) == ["packed", "absmax"]
    same(plain.dequantize(), nested.dequantize())
    with pytest.raises(qz.LossyConversionError, match="quantized in turn"):
        qz.quantize(sample((16, 256)), name).to(name, double_quant=True)


def test_a_minimum_that_the_target_cannot_hold_is_refused():
    x = np.resize(np.arange(-15, 1, dtype=np.float32) * 16000, (1, 64))  # the scale is 16000
    with pytest.raises(qz.LossyConversionError, match="minimum -240000 of group 0 is not a float16 number"):
        qz.quantize(x, "mlx", group_size=32, scale_dtype="float32").to("gguf:q4_1")


def test_a_negative_scale_is_refused_where_its_byte_has_no_sign():
    q = qz.quantize(sample((4, 64)), "mlx:nvfp4")
    negative = qz.from_parts("mlx:nvfp4", {**q.parts, "scales": q.parts["scales"] | np.uint8(0x80)})
    np.testing.assert_array_equal(negative.dequantize(), -q.dequantize())
    with pytest.raises(qz.LossyConversionError, match="is not a float8_e4m3fn number"):
        negative.to("gguf:nvfp4")
    np.testing.assert_array_equal(q.to("gguf:nvfp4").dequantize(), q.dequantize())


@pytest.mark.parametrize("name", ["onnx:matmulnbits", "onnx:qdq", "compressed-tensors"])
def test_asymmetric_variants_show_their_zero_points(name):
    q = qz.quantize(sample((16, 128)) + 1, name, symmetric=False)
    expected = FORMATS[name].decode(q.parts, q.shape, symmetric=False)
    size = q.group_size
    codes, zero_points, scales = q.codes().astype(np.float32), np.repeat(q.zero_points, size, 1), np.repeat(q.scales, size, 1)
    np.testing.assert_array_equal((codes - zero_points) * scales, expected)
    assert qz.quantize(sample((16, 128)), name).zero_points is None


# ---- bad input ----

WRONG = [
    ("gptq", (8, 48), {}, "needs a multiple of 32"),
    ("gptq", (12, 64), {"group_size": 32}, "needs a multiple of 8"),
    ("awq", (8, 100), {"group_size": 32}, "needs a multiple of"),
    ("awq", (64,), {}, "takes a matrix"),
    ("gptq:v2", (2, 8, 64), {}, "takes a matrix"),
    ("gptq", (8, 64), {"group_size": 48}, 'gptq takes 32, 64, 128 or "row"'),
    ("hqq", (1, 64), {}, "even number"),
    ("bnb:nf4", (64,), {"group_size": 48}, "bnb:nf4 takes 32, 64"),
    ("modelopt:nvfp4", (2, 24), {}, "needs a multiple of 16"),
    ("torchao:mxfp4", (2, 32), {"scale_rule": "nearest"}, "scale_rule.*floor"),
    ("mlx:nvfp4", (2, 32), {"global_scale": -1.0}, "global_scale"),
    ("gptq", (8, 64), {"group_size": 32, "symmetric": "yes"}, "symmetric.*True or False"),
]


@pytest.mark.parametrize(("name", "shape", "options", "message"), WRONG)
def test_what_a_format_cannot_hold_is_an_error_that_names_the_rule(name, shape, options, message):
    with pytest.raises(ValueError, match=message):
        qz.quantize(np.ones(shape, np.float32), name, **options)


def test_an_option_that_a_format_lacks_lists_its_own():
    with pytest.raises(TypeError, match="awq has no option symmetric.*group_size"):
        qz.quantize(np.ones((8, 128), np.float32), "awq", symmetric=True)
    with pytest.raises(ValueError, match="takes the last axis"):
        qz.quantize(np.ones((8, 128), np.float32), "nf4", axis=0)


def test_parts_that_contradict_an_option_are_an_error():
    q = qz.quantize(sample((16, 128)), "onnx:matmulnbits", symmetric=False)
    with pytest.raises(ValueError, match="symmetric is True; the parts are those of symmetric=False"):
        qz.from_parts("onnx:matmulnbits", q.parts, symmetric=True)
    v2 = qz.quantize(sample((16, 128)), "gptq:v2", symmetric=False)
    with pytest.raises(ValueError, match="zero points other than 8"):
        qz.from_parts("gptq:v2", v2.parts, symmetric=True)
    ct = qz.quantize(sample((16, 128)), "compressed-tensors")
    with pytest.raises(ValueError, match=r"parts\['weight_shape'\].*\[16, 127\]"):
        qz.from_parts("compressed-tensors", {**ct.parts, "weight_shape": np.array([16, 127])}, shape=(16, 128))
    with pytest.raises(ValueError, match="do not tell it"):
        qz.from_parts("bnb:nf4", qz.quantize(sample((16, 128)), "nf4").parts)


@pytest.mark.parametrize("size", [9, 2**62 + 1, 2**63 - 1])
def test_a_group_longer_than_a_row_is_the_row(size):
    x = sample((4, 8))
    row = qz.quantize(x, "onnx:qdq", group_size="row")
    same_parts(qz.quantize(x, "onnx:qdq", group_size=size).parts, row.parts)
    same(qz.from_parts("onnx:qdq", row.parts, shape=x.shape, group_size=size).dequantize(), row.dequantize())


def test_lengths_in_any_memory_are_read_and_others_refused():
    q = qz.quantize(sample((16, 128)), "compressed-tensors")
    for shape in (np.array([16, 0, 128, 0])[::2], np.array([16, 128], ">i8")):
        assert qz.from_parts("compressed-tensors", {**q.parts, "weight_shape": shape}).identical(q)
    for shape in ([], [16], [16, 128, 1], 16, [16, -128], [2**62, 2**62]):
        with pytest.raises(ValueError, match="shape"):
            qz.from_parts("compressed-tensors", {**q.parts, "weight_shape": np.array(shape, np.int64)})


def test_a_flat_shape_that_no_memory_holds_is_refused():
    q = qz.quantize(sample((16, 128)), "nf4")
    with pytest.raises(ValueError, match="more than memory can address"):
        qz.from_parts("nf4", q.parts, shape=(2**40, 2**40))


def test_an_offset_beyond_float32_is_no_group():
    with pytest.raises(ValueError, match="the offset is beyond the largest float32"):
        qz.quantize(np.full((2, 64), 3e38, np.float32), "nf4", double_quant=True)


def test_the_table_has_the_parts_of_variants_in_their_order():
    for name, (_, _, options) in DOMAINS.items():
        for option in options:
            parts = qz.quantize(sample((16, 128)), name, **option).parts
            assert [part for part, _ in INFO[name].parts if part in parts] == list(parts), (name, option)


def test_elements_beyond_float16_are_infinite_where_the_rule_computes_in_it():
    x = sample((8, 128))
    x[3, 5] = 70000
    for name in ("awq", "gptq"):
        with pytest.raises(ValueError, match=r"not finite.*\(3, 5\)"):
            qz.quantize(x, name)
        with pytest.warns(qz.QuantizeWarning, match="1 element"):
            assert np.isfinite(qz.quantize(x, name, nonfinite="clip").dequantize()).all()
    qz.quantize(x, "gptq:v2")


# ---- slices ----


@pytest.mark.parametrize("name", ["gptq", "gptq:v2", "awq", "compressed-tensors"])
def test_rows_between_words(name):
    q = qz.quantize(sample((32, 128)), name)
    same(q[8:24].dequantize(), q.dequantize()[8:24])
    for index in (3, slice(4, 16), slice(0, 32, 2)):
        if name == "compressed-tensors" and index == slice(4, 16):
            continue
        with pytest.raises(ValueError, match="dequantize first"):
            q[index]


@pytest.mark.parametrize("name", ["gptq", "gptq:v2", "awq", "compressed-tensors"])
def test_columns_between_words_where_groups_run_down(name):
    q = qz.quantize(sample((128, 32)), name, axis=0)
    cut = q[:, 8:24]
    same(cut.dequantize(), np.ascontiguousarray(q.dequantize()[:, 8:24]))
    assert qz.from_parts(name, cut.parts, axis=0).identical(cut)


@pytest.mark.parametrize("name", ["bnb:nf4", "bnb:fp4"])
def test_rows_between_groups_of_a_flat_format(name):
    q = qz.quantize(sample((32, 96)), name)
    same(q[2:8].dequantize(), q.dequantize()[2:8])
    with pytest.raises(ValueError, match="dequantize first"):
        q[1:]


@pytest.mark.parametrize("name", ["modelopt:nvfp4", "compressed-tensors:nvfp4", "torchao:nvfp4"])
def test_rows_keep_the_scale_of_the_tensor(name):
    q = qz.quantize(sample((6, 5, 64)), name)
    same(q[2].dequantize(), q.dequantize()[2])
    same(q[1:4, 3].dequantize(), q.dequantize()[1:4, 3])
