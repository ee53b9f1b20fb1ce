"""check: every kind of finding on a file that is wrong in this way, and silence on files that are right."""

import re
from pathlib import Path
from typing import get_args

import ml_dtypes
import numpy as np
import pytest
from golden import CASES, cases
from helpers import KINDS, sample

import quantize as qz
from quantize._types import FindingKind

X = sample((64, 256))
ODD = sample((3, 67))
AWQ = np.array([0, 2, 4, 6, 1, 3, 5, 7])  # the column in each nibble of a word
NATURAL = np.array([0, 4, 1, 5, 2, 6, 3, 7])  # the nibble of each column


def stored(name, x=X, **options):
    return {part: array.copy() for part, array in qz.quantize(x, name, **options).parts.items()}


def found(name, parts, **options):
    """The kinds of the findings, each with whether it is certain."""
    return [(finding.kind, finding.certain) for finding in qz.check(name, parts, **options)]


def swapped(parts):
    """The same values in the other byte order."""
    return {part: array.astype(array.dtype.newbyteorder()) for part, array in parts.items()}


def nibbles(words):
    """The eight nibbles of every word, the lowest first."""
    digits = [f"{int(word) & 0xFFFFFFFF:08x}"[::-1] for word in words.flat]
    return np.array([[int(digit, 16) for digit in word] for word in digits]).reshape(*words.shape, 8)


def words(nibbles):
    digits = ["".join(f"{nibble:x}" for nibble in word[::-1]) for word in nibbles.reshape(-1, 8)]
    return np.array([int(word, 16) for word in digits], np.uint32).view(np.int32).reshape(nibbles.shape[:-1])


def test_words_and_nibbles():
    assert nibbles(np.array([0x76543210, -1], np.int32)).tolist() == [list(range(8)), [15] * 8]
    assert words(np.array([[*range(8, 16)]])).tolist() == [0xFEDCBA98 - 2**32]


# Right files


@pytest.mark.parametrize("name", sorted(CASES))
def test_files_of_the_home_project(name):
    """AutoGPTQ cannot store the zero point 0: where there is one, that is the finding."""
    for case in cases(name):
        shape = None if case.x is None else case.x.shape
        certain = [kind for kind, certain in found(name, case.parts, shape=shape, **case.options) if certain]
        spoiled = name == "gptq" and (nibbles(case.parts["qzeros"]) == 15).any()
        assert certain == (["zero_point_range"] if spoiled else []), case.key


def test_some_files_of_autogptq_are_spoiled():
    assert sum((nibbles(case.parts["qzeros"]) == 15).any() for case in cases("gptq")) > 2


VARIANTS = [
    *((info.name, {}) for info in qz.formats()),
    *((name, {"symmetric": False}) for name in ("gptq", "gptq:v2", "onnx:matmulnbits", "onnx:qdq", "compressed-tensors")),
    *((name, {"double_quant": True}) for name in ("bnb:nf4", "bnb:fp4")),
    ("torchao:nvfp4", {"two_level": False}),
]


@pytest.mark.parametrize(("name", "options"), VARIANTS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "huge"])
def test_what_we_write_is_never_certainly_wrong(name, options, kind):
    q = qz.quantize(sample((32, 256), kind=kind), name, **options)
    assert [kind for kind, certain in found(name, q.parts, shape=q.shape, group_size=q.group_size, **options) if certain] == []


@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_weights_raise_no_suspicion(name, options):
    x = sample((256, 512), seed=3) * np.random.default_rng(3).uniform(0.01, 0.1, (256, 1)).astype(np.float32)
    q = qz.quantize(x, name, **options)
    assert qz.check(name, q.parts, shape=q.shape, **options) == []


@pytest.mark.parametrize("name", [info.name for info in qz.formats() if info.name != "hqq"])
def test_nothing_is_changed_and_nothing_kept(name):
    parts = stored(name)
    before = {part: array.copy() for part, array in parts.items()}
    for array in parts.values():
        array.flags.writeable = False
    qz.check(name, parts, shape=X.shape)
    assert all(array.tobytes() == before[part].tobytes() for part, array in parts.items())


@pytest.mark.parametrize("shape", [(0, 256), (64, 0), (1, 256), (256,)])
@pytest.mark.parametrize("name", ["int4", "uint4", "gguf:q4_k", "mlx", "bnb:nf4", "compressed-tensors:nvfp4", "torchao:nvfp4"])
def test_empty_and_small_arrays(name, shape):
    x = sample(shape)
    assert qz.check(name, stored(name, x), shape=shape) == []


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("name", "options"), VARIANTS)
def test_any_bytes_are_looked_at(name, options, seed):
    """Parts of the right shapes that hold anything at all: no error, no warning of numpy."""
    random = np.random.default_rng(seed)
    parts = stored(name, **options)
    for part, array in parts.items():
        octets = random.integers(0, 256, array.nbytes, np.uint8)
        parts[part] = octets.view(array.dtype).reshape(array.shape)
    assert all(isinstance(finding, qz.Finding) for finding in qz.check(name, parts, shape=X.shape, **options))


@pytest.mark.parametrize(("name", "options"), [*VARIANTS, ("int4", {"scale_dtype": "bfloat16"})])
def test_values_count_and_not_their_byte_order(name, options):
    """Whether the parts fit, do not because of any ``g_idx`` or lengths, or not at all."""
    random = np.random.default_rng(0)
    right = stored(name, **options)
    anything = {
        part: random.integers(0, 256, array.nbytes, np.uint8).view(array.dtype).reshape(array.shape) for part, array in right.items()
    }
    said = {key: option for key, option in options.items() if key != "scale_dtype"}
    for parts in (right, anything, {**anything, "more": X}):
        assert qz.check(name, swapped(parts), shape=X.shape, **said) == qz.check(name, parts, shape=X.shape, **said)


# parts, layout


def test_parts_that_do_not_fit_are_a_finding_with_the_words_of_the_error():
    parts = stored("uint4")
    parts["scales"] = parts["scales"].astype(np.int16)
    with pytest.raises(TypeError) as raised:
        qz.from_parts("uint4", parts)
    assert qz.check("uint4", parts) == [qz.Finding("parts", str(raised.value), True)]


@pytest.mark.parametrize("parts", [{}, {"nonsense": np.zeros(3)}, {"packed": None, "scales": "x"}, {"packed": np.zeros(()), "scales": 1.0}])
@pytest.mark.parametrize("name", [info.name for info in qz.formats()])
def test_anything_may_be_given(name, parts):
    assert ("parts", True) in found(name, parts)


def test_an_option_that_the_parts_contradict():
    assert found("compressed-tensors", stored("compressed-tensors"), symmetric=False)[0] == ("parts", True)


def test_mistakes_of_the_caller_are_errors():
    with pytest.raises(ValueError, match="no format 'q5'"):
        qz.check("q5", {})
    with pytest.raises(TypeError, match="mapping"):
        qz.check("int4", [1])
    with pytest.raises(TypeError, match="symmetric"):
        qz.check("int4", stored("int4"), symmetric=True)


LAYOUTS = [
    ("gptq", "awq", {}, "awq"),
    ("awq", "gptq", {}, "gptq with group_size=128 or gptq:v2"),
    ("mlx:mxfp4", "mlx:nvfp4", {}, "mlx:nvfp4"),
    ("modelopt:nvfp4", "compressed-tensors:nvfp4", {}, "compressed-tensors:nvfp4"),
    ("gguf:q4_1", "gguf:q4_0", {}, "gguf:q4_0"),
    ("int4", "int4", {"group_size": 64}, "int4 with group_size=64"),
    ("uint4", "uint4", {"group_size": 16}, "uint4 with group_size=16"),
]


@pytest.mark.parametrize(("said", "name", "options", "layout"), LAYOUTS)
def test_parts_of_another_layout(said, name, options, layout):
    findings = qz.check(said, stored(name, **options))
    assert [(finding.kind, finding.certain) for finding in findings] == [("parts", True), ("layout", True)]
    assert f" {layout}" in findings[1].message


def test_a_shape_that_contradicts_the_words():
    parts = stored("compressed-tensors")
    parts["weight_shape"][1] = 512
    assert ("parts", True) in found("compressed-tensors", parts)


# not_finite, negative_scale, zero_scale, global_scale

SCALES = [
    ("int4", "scales", {}),
    ("int4", "scales", {"scale_dtype": "bfloat16"}),
    ("int4", "scales", {"scale_dtype": ml_dtypes.bfloat16}),
    ("uint4", "scales", {"scale_dtype": "float32"}),
    ("mlx", "scales", {}),
    ("mlx", "biases", {}),
    ("gptq", "scales", {}),
    ("gptq:v2", "scales", {}),
    ("awq", "scales", {}),
    ("onnx:matmulnbits", "scales", {}),
    ("onnx:qdq", "scales", {"symmetric": False}),
    ("bnb:nf4", "absmax", {}),
    ("bnb:fp4", "nested_absmax", {"double_quant": True}),
    ("bnb:nf4", "offset", {"double_quant": True}),
    ("compressed-tensors", "weight_scale", {}),
    ("compressed-tensors:nvfp4", "weight_scale", {}),
    ("compressed-tensors:nvfp4", "weight_global_scale", {}),
    ("compressed-tensors:mxfp4", "weight_scale", {}),
    ("modelopt:nvfp4", "weight_scale", {}),
    ("modelopt:nvfp4", "weight_scale_2", {}),
    ("torchao:nvfp4", "scales", {}),
    ("torchao:nvfp4", "per_tensor_scale", {}),
    ("torchao:mxfp4", "scales", {}),
    ("mlx:mxfp4", "scales", {}),
    ("mlx:nvfp4", "scales", {}),
    ("gptoss:mxfp4", "scales", {}),
    ("hqq", "scales", {}),
    ("hqq", "zero_points", {}),
]


@pytest.mark.parametrize(("name", "part", "options"), SCALES)
def test_a_scale_that_is_not_finite(name, part, options):
    parts = stored(name, **options)
    array, at = parts[part], -1 if parts[part].ndim else ()
    if array.dtype == np.uint8:
        values = [255] if "mxfp4" in name else [0x7F, 0xFF]
    else:
        values = [0x7F80, 0xFF80, 0x7FC0] if array.dtype == np.uint16 else [np.inf, -np.inf, np.nan]
    for value in values:
        array.reshape(-1)[-1] = value
        options = {key: option for key, option in options.items() if key != "scale_dtype"}
        findings = [finding for finding in qz.check(name, parts, shape=X.shape, **options) if finding.kind == "not_finite"]
        last = tuple(length - 1 for length in array.shape)
        assert findings == [qz.Finding("not_finite", f"{part}: 1 of {array.size} not finite, the first at {last}", True)], (value, at)


BLOCKS = [("gguf:q4_0", 18, 0), ("gguf:q4_1", 20, 0), ("gguf:q4_1", 20, 2), ("gguf:q4_k", 144, 0), ("gguf:q4_k", 144, 2)]
BLOCKS += [("gguf:iq4_nl", 18, 0), ("gguf:iq4_xs", 136, 0)]


@pytest.mark.parametrize(("name", "size", "at"), BLOCKS)
def test_a_scale_in_a_block_that_is_not_finite(name, size, at):
    parts = stored(name)
    parts["blocks"][5, at : at + 2] = np.float16([np.inf]).view(np.uint8)
    findings = qz.check(name, parts)
    assert [(finding.kind, finding.certain) for finding in findings] == [("not_finite", True)]
    assert "group (5, 0)" in findings[0].message
    parts["blocks"][5, at : at + 2] = 0
    assert qz.check(name, parts) == []


def test_an_exponent_of_255_in_a_block():
    parts = stored("gguf:mxfp4")
    parts["blocks"][7, 17] = 255
    assert ["(7, 1)" in finding.message for finding in qz.check("gguf:mxfp4", parts)] == [True]


def test_8_bit_floats_of_ml_dtypes():
    parts = stored("torchao:nvfp4")
    parts["scales"][0, 0] = 0x7F
    parts["scales"] = parts["scales"].view(ml_dtypes.float8_e4m3fn)
    assert found("torchao:nvfp4", parts) == [("not_finite", True)]


SIGNS = [  # negative certain, zero reported
    ("uint4", "scales", False, False),
    ("gptq", "scales", False, True),
    ("gptq:v2", "scales", False, True),
    ("awq", "scales", False, True),
    ("compressed-tensors", "weight_scale", False, True),
    ("hqq", "scales", False, True),
    ("bnb:nf4", "absmax", False, False),
    ("bnb:fp4", "absmax", False, False),
    ("compressed-tensors:nvfp4", "weight_scale", True, True),
    ("modelopt:nvfp4", "weight_scale", True, True),
    ("torchao:nvfp4", "scales", True, True),
    ("mlx:nvfp4", "scales", True, False),
]


@pytest.mark.parametrize(("name", "part", "certain", "zero"), SIGNS)
def test_scales_that_the_project_never_writes(name, part, certain, zero):
    parts = stored(name)
    sign = 0x80 if parts[part].dtype == np.uint8 else -1
    first = parts[part].flat[0]
    parts[part].flat[0] = first | sign if sign == 0x80 else -first
    assert found(name, parts, shape=X.shape) == [("negative_scale", certain)]
    parts[part].flat[0] = 0
    assert found(name, parts, shape=X.shape) == ([("zero_scale", False)] if zero else [])


def test_a_lossless_conversion_may_bring_negative_scales():
    q = qz.quantize(X, "gguf:q4_0").to("gptq", group_size=32)
    assert found("gptq", q.parts, group_size=32) == [("negative_scale", False)]


GLOBAL = [("compressed-tensors:nvfp4", "weight_global_scale"), ("modelopt:nvfp4", "weight_scale_2"), ("torchao:nvfp4", "per_tensor_scale")]


@pytest.mark.parametrize(("name", "part"), GLOBAL)
def test_a_global_scale_of_the_other_convention(name, part):
    parts = stored(name)
    parts[part][...] = 1 / parts[part]
    assert found(name, parts) == [("global_scale", False)]
    parts[part][...] = -1
    assert found(name, parts) == [("global_scale", True)]
    parts[part][...] = 0  # right for a tensor of zeros where it multiplies
    assert found(name, parts) == [("global_scale", name.startswith("compressed"))]


# zero_point_offset, zero_point_range


def test_symmetric_zero_points_of_the_other_version_are_certain():
    one, two = stored("gptq"), stored("gptq:v2")
    assert {hex(int(word) & 0xFFFFFFFF) for word in one["qzeros"].flat} == {"0x77777777"}
    assert {hex(int(word) & 0xFFFFFFFF) for word in two["qzeros"].flat} == {"0x88888888"}
    assert found("gptq", two) == [("zero_point_offset", True)]
    assert found("gptq:v2", one) == [("zero_point_offset", True)]
    # ... unless the caller knows that they are not symmetric
    assert found("gptq", two, symmetric=False) == [("zero_point_offset", False)]
    assert found("awq", {**stored("awq"), "qzeros": stored("awq")["qzeros"] * 0 + 0x77777777}) == [("zero_point_offset", False)]


@pytest.mark.parametrize("group_size", [32, 128, "row"])
def test_other_zero_points_of_the_other_version_are_likely(group_size):
    x = sample((256, 512))
    one, two = (stored(name, x, symmetric=False, group_size=group_size) for name in ("gptq", "gptq:v2"))
    assert found("gptq", one, group_size=group_size) == found("gptq:v2", two, group_size=group_size) == []
    assert found("gptq", two, group_size=group_size) == [("zero_point_offset", False)]
    assert found("gptq:v2", one, group_size=group_size) == [("zero_point_offset", False)]


def test_zero_points_of_gptq_in_awq():
    parts = stored("awq", sample((256, 512)))
    assert nibbles(parts["qzeros"]).min() > 0
    parts["qzeros"] -= 0x11111111
    assert found("awq", parts) == [("zero_point_offset", False)]


def test_a_zero_point_that_version_1_cannot_hold():
    parts = stored("gptq", symmetric=False)
    digits = nibbles(parts["qzeros"])
    digits[1, 2, 3] = 15
    parts["qzeros"] = words(digits)
    findings = qz.check("gptq", parts)
    assert [(finding.kind, finding.certain) for finding in findings] == [("zero_point_range", True)]
    assert "1 of 16 words" in findings[0].message
    assert "the first at (1, 2)" in findings[0].message
    assert found("gptq:v2", stored("gptq:v2", -np.abs(X), symmetric=False)) == []


def test_zero_points_of_compressed_tensors_without_the_8():
    parts = stored("compressed-tensors", symmetric=False)
    parts["weight_zero_point"][...] = 0
    assert found("compressed-tensors", parts) == [("zero_point_offset", False)]


# group_index, activation_order


def test_activation_order():
    parts = stored("gptq", sample((256, 512)), symmetric=False)
    order = np.random.default_rng(0).permutation(512)
    codes = np.moveaxis(nibbles(parts["qweight"]), -1, 1).reshape(512, -1)[order]
    parts["qweight"] = words(np.moveaxis(codes.reshape(64, 8, -1), 1, -1))
    assert found("gptq", {**parts, "g_idx": parts["g_idx"][order]}) == [("activation_order", True)]
    # The zero points are looked at group by group all the same.
    offset = {**parts, "g_idx": parts["g_idx"][order], "qzeros": parts["qzeros"] + 0x11111111}
    assert found("gptq", offset) == [("activation_order", True), ("zero_point_offset", False)]


@pytest.mark.parametrize("value", [-1, 2, 1 << 30])
def test_a_group_index_out_of_range(value):
    parts = stored("gptq")
    parts["g_idx"][100] = value
    findings = qz.check("gptq", parts)
    assert ("group_index", True) in found("gptq", parts)
    message = next(finding.message for finding in findings if finding.kind == "group_index")
    assert message == "g_idx: 1 of 256 outside 0..1, the first at (100,)"


def test_groups_of_unequal_length():
    parts = stored("gptq")
    parts["g_idx"][...] = 0  # as some writers leave it
    assert found("gptq", parts) == [("group_index", False), ("activation_order", True)]


# nibble_order


@pytest.mark.parametrize("seed", range(3))
def test_natural_order_in_awq(seed):
    parts = stored("awq", sample((256, 1024), seed))
    assert found("awq", parts) == []
    codes, zeros = (words(nibbles(parts[part])[..., NATURAL]) for part in ("qweight", "qzeros"))
    for wrong in ({"qweight": codes, "qzeros": zeros}, {"qweight": codes}, {"qzeros": zeros}):
        assert found("awq", {**parts, **wrong}) == [("nibble_order", False)]


@pytest.mark.parametrize("name", ["gptq", "gptq:v2"])
def test_awq_order_in_gptq(name):
    parts = stored(name, sample((256, 1024)), symmetric=False)
    parts["qzeros"] = words(nibbles(parts["qzeros"])[..., AWQ])
    assert found(name, parts) == [("nibble_order", False)]


def test_words_in_the_other_byte_order_beside_a_g_idx_that_does_not_fit():
    parts = stored("gptq", sample((256, 1024)), symmetric=False)
    parts["qzeros"] = words(nibbles(parts["qzeros"])[..., AWQ])
    parts["g_idx"] = parts["g_idx"].astype(np.int64)
    assert found("gptq", parts) == found("gptq", swapped(parts)) == [("parts", True), ("nibble_order", False)]


# padding: (format, part, where the pad is, shape of the tensor, certain)

PADS = [
    ("int4", "packed", 0xF0, (3, 67), {}, True),
    ("uint4", "packed", 0xF0, (3, 67), {}, True),
    ("uint4", "zero_points", 0xF0, (3, 67), {}, True),
    ("bnb:nf4", "packed", 0x0F, (3, 67), {}, True),
    ("bnb:fp4", "packed", 0x0F, (3, 67), {"double_quant": True}, True),
    ("onnx:matmulnbits", "packed", 0xFF, (3, 67), {}, False),
    ("onnx:matmulnbits", "zero_points", 0xF0, (3, 67), {"symmetric": False}, False),
    ("onnx:qdq", "packed", 0xF0, (3, 67), {}, False),
    ("onnx:qdq", "zero_points", 0xF0, (3, 67), {"symmetric": False}, False),
    ("compressed-tensors", "weight_packed", -(1 << 28), (3, 67), {"group_size": "row"}, True),
    ("compressed-tensors", "weight_zero_point", -(1 << 28), (3, 67), {"group_size": "row", "symmetric": False}, True),
]


@pytest.mark.parametrize(("name", "part", "mask", "shape", "options", "certain"), PADS)
def test_padding(name, part, mask, shape, options, certain):
    parts = stored(name, ODD, **options)
    assert qz.check(name, parts, shape=shape, **options) == []
    last, filled = parts[part].reshape(-1)[-1:], 0x33333333 & mask
    last[...] = (last & ~np.array(mask).astype(last.dtype)) | np.array(filled).astype(last.dtype)
    assert ("padding", certain) in found(name, parts, shape=shape, **options)
    assert {kind for kind, _ in found(name, parts, shape=shape, **options)} <= {"padding", "nibble_order"}


SWAPPED = [("int4", "packed"), ("bnb:nf4", "packed"), ("bnb:fp4", "packed"), ("onnx:qdq", "packed")]


@pytest.mark.parametrize(("name", "part"), SWAPPED)
def test_padding_in_the_other_nibble(name, part):
    parts = stored(name, ODD)
    parts[part] = (parts[part] >> 4) | (parts[part] << 4)
    assert found(name, parts, shape=ODD.shape) == [("padding", name != "onnx:qdq"), ("nibble_order", False)]


def test_words_that_begin_at_the_highest_nibble():
    parts = stored("compressed-tensors", ODD, group_size="row")
    parts["weight_packed"] = words(nibbles(parts["weight_packed"])[..., ::-1])
    assert found("compressed-tensors", parts, group_size="row") == [("padding", True), ("nibble_order", False)]


# The table


def test_every_kind_has_its_row_and_its_test():
    text = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    kinds = get_args(FindingKind)
    assert re.findall(r"^\| `(\w+)` \|", text, re.M) == list(kinds)
    tests = Path(__file__).read_text(encoding="utf-8")
    assert [kind for kind in kinds if f'("{kind}", ' not in tests] == []


def test_large_parts_are_looked_at_in_pieces(monkeypatch):
    from quantize import _check

    monkeypatch.setattr(_check, "PIECE", 7)
    monkeypatch.setattr(_check, "SAMPLE", 1 << 14)
    parts = stored("gptq", symmetric=False)
    parts["scales"][1, 60] = np.nan
    parts["scales"] = np.asfortranarray(parts["scales"])
    assert [finding.message for finding in qz.check("gptq", parts)] == ["scales: 1 of 128 not finite, the first at (1, 60)"]
    blocks = stored("gguf:q4_0", sample((300, 32)))
    blocks["blocks"][299, :2] = 255
    assert ["(299, 0)" in finding.message for finding in qz.check("gguf:q4_0", blocks)] == [True]
