"""Every kind of error shows its message: the argument, what was expected, what was found, what to do.

The files of ``CorruptFileError`` and ``OSError`` are in the tests of the containers.
"""

import re
import sys

import numpy as np
import pytest
from helpers import python, sample

import quantize as qz


def message(error, call):
    """The whole text of the error that ``call`` raises, which must be of exactly that class."""
    with pytest.raises(error) as raised:
        call()
    assert type(raised.value) is error
    return str(raised.value)


def test_shape():
    assert (
        message(ValueError, lambda: qz.quantize(sample((2, 100)), "gguf:q4_0"))
        == "last axis has 100 elements; gguf:q4_0 needs a multiple of 32"
    )


def test_shape_names_the_axis_that_was_asked_for():
    assert "100 elements; gguf:q4_0 needs a multiple of 32" in message(
        ValueError, lambda: qz.quantize(sample((100, 32)), "gguf:q4_0", axis=0)
    )


def test_dtype():
    text = message(TypeError, lambda: qz.quantize(np.ones((2, 32), np.int32)))
    assert text.startswith("array has dtype int32; expected float16, bfloat16, float32 or float64")


def test_value():
    assert message(ValueError, lambda: qz.quantize(sample((2, 96)), "gguf:q4_0", group_size=48)) == "group_size is 48; gguf:q4_0 takes 32"


def test_unknown_format():
    assert (
        message(ValueError, lambda: qz.quantize(sample((2, 32)), "q4"))
        == "no format 'q4'; did you mean 'gguf:q4_0', 'gguf:q4_1', 'gguf:q4_k', 'gguf:iq4_nl', 'gguf:iq4_xs'?"
    )
    assert "did you mean 'int4'" in message(ValueError, lambda: qz.quantize(sample((2, 32)), "int_4"))
    assert message(ValueError, lambda: qz.from_parts("zebra", {})).startswith("no format 'zebra'")


def test_nonfinite():
    x = sample((4, 64))
    x[3, 17] = x[3, 20] = np.nan
    x[3, 30] = np.inf
    text = message(ValueError, lambda: qz.quantize(x))
    assert text.startswith("3 elements are not finite, the first at (3, 17) is nan; ")
    assert "nonfinite=" in text


def test_nonfinite_of_one():
    text = message(ValueError, lambda: qz.quantize(np.array([1, -np.inf], np.float32)))
    assert text.startswith("1 element is not finite")
    assert "(1,) is -inf" in text


def test_scale_overflow():
    text = message(ValueError, lambda: qz.quantize(np.full((1, 32), 1e6, np.float32)))
    assert "scale of group (0, 0)" in text
    assert "float16" in text
    assert "scale_dtype=float32" in text


def test_lossy():
    q = qz.quantize(sample((2, 128)), group_size=128)
    text = message(qz.LossyConversionError, lambda: q.to("gguf:q4_0"))
    assert "group sizes differ (128, 32); requantize=True goes through floats" in text


def test_option():
    text = message(TypeError, lambda: qz.quantize(sample((2, 32)), "int4", double_quant=True))
    assert text == "int4 has no option double_quant; it takes group_size, scale_dtype"


MEMORY = """
import resource
import numpy as np, quantize as qz
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, resource.getrlimit(resource.RLIMIT_AS)[1]))
x = np.broadcast_to(np.float32(1), (2**18, 2**18))
try:
    qz.quantize(x)
except MemoryError as error:
    print(error)
small = qz.quantize(np.ones((4, 64), np.float32))           # and what comes after works
print(small.dequantize().sum())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="a limit on memory is set by POSIX means")
def test_memory():
    text = python(MEMORY)
    assert re.match(r"cannot allocate 34\.4 GB for .*'packed'.*\n256\.0\n$", text), text


ARGUMENTS = [
    (lambda: qz.dequantize(np.ones(3)), TypeError, "q"),
    (lambda: qz.dequantize(None), TypeError, "q"),
    (lambda: qz.quantize(), TypeError, "array"),
    (lambda: qz.quantize(sample((2, 32)), 4), TypeError, "format"),
    (lambda: qz.quantize(sample((2, 32)), None), TypeError, "format"),
    (lambda: qz.quantize(sample((2, 32)), "int4", -1), TypeError, "positional"),
    (lambda: qz.quantize(sample((2, 32)), threads="2"), TypeError, "threads"),
    (lambda: qz.quantize(sample((2, 32)), threads=1.5), TypeError, "threads"),
    (lambda: qz.quantize(sample((2, 32)), nonfinite=None), (TypeError, ValueError), "nonfinite"),
    (lambda: qz.compare(sample((2, 32)), "x"), TypeError, "dtype"),
]


@pytest.mark.parametrize(("call", "error", "text"), ARGUMENTS, ids=range(len(ARGUMENTS)))
def test_arguments_of_a_wrong_kind_are_named(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_errors_carry_no_rust():
    """No message speaks of the inside: no panics, no borrow, no Debug print."""
    calls = [
        lambda: qz.quantize(sample((2, 100)), "gguf:q4_0"),
        lambda: qz.quantize(np.ones((2, 32), np.int32)),
        lambda: qz.quantize(sample((2, 32)), "q4"),
        lambda: qz.from_parts("int4", {}),
        lambda: qz.unpack(np.zeros(2, np.uint8), 9),
        lambda: qz.quantize(sample((2, 32)), axis=5),
    ]
    for call in calls:
        with pytest.raises((TypeError, ValueError)) as raised:
            call()
        assert not re.search(r"panick|Option|Some\(|usize|pyo3|::|Err\(", str(raised.value))
