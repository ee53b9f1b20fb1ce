"""pack and unpack: two codes a byte on the last axis, checked, never wrapped."""

import numpy as np
import pytest
from helpers import same
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.base import pack as slow_pack

import quantize as qz

KINDS = {True: (np.int8, -8, 7), False: (np.uint8, 0, 15)}


def codes_of(shape, signed, seed=0):
    dtype, low, high = KINDS[signed]
    return np.random.default_rng(seed).integers(low, high + 1, shape).astype(dtype)


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), max_size=3), st.sampled_from([0, 1, 2, 15, 16, 17, 63, 64, 65, 1023]), st.booleans(), st.integers(0, 99))
def test_pack_is_that_of_the_reference_and_unpack_its_inverse(lead, count, signed, seed):
    codes = codes_of((*lead, count), signed, seed)
    packed = qz.pack(codes, signed=signed)
    same(packed, slow_pack(codes & 15))
    same(qz.unpack(packed, count, signed=signed), codes)


@pytest.mark.parametrize("signed", [True, False])
def test_a_large_array(signed):
    codes = codes_of((1025, 2047), signed)
    packed = qz.pack(codes, signed=signed)
    same(packed, slow_pack(codes & 15))
    same(qz.unpack(packed, 2047, signed=signed), codes)


@pytest.mark.parametrize("signed", [True, False])
def test_output_that_is_larger_than_the_caches(signed):
    count = (33 << 20) + 131
    codes = np.resize(codes_of(1 << 20, signed), count)
    expected = slow_pack(codes & 15)
    # At a place of numpy's and at an odd one, as output goes past the caches in whole lines.
    for first in (0, 1):
        packed, unpacked = np.empty(expected.size + 1, np.uint8)[first:][: expected.size], np.empty(count + 1, codes.dtype)[first:][:count]
        same(qz.pack(codes, signed=signed, out=packed), expected)
        same(qz.unpack(packed, count, signed=signed, out=unpacked), codes)
    codes[-2] = -9 if signed else 16
    with pytest.raises(ValueError):
        qz.pack(codes, signed=signed, out=packed)


def test_the_even_element_is_low():
    assert qz.pack(np.array([1, 2, -1], np.int8)).tolist() == [0x21, 0x0F]
    assert qz.pack(np.array([1, 2, 15], np.uint8), signed=False).tolist() == [0x21, 0x0F]
    assert qz.unpack(np.array([0x21, 0x8F], np.uint8), 4).tolist() == [1, 2, -1, -8]
    assert qz.unpack(np.array([0x21, 0x8F], np.uint8), 3, signed=False).tolist() == [1, 2, 15]


@pytest.mark.parametrize("signed", [True, False])
def test_each_row_is_padded_to_a_byte(signed):
    codes = codes_of((4, 5), signed)
    packed = qz.pack(codes, signed=signed)
    assert packed.shape == (4, 3)
    assert (packed[:, 2] >> 4 == 0).all()
    same(qz.unpack(packed, 5, signed=signed), codes)
    same(qz.unpack(packed, 6, signed=signed)[:, :5].copy(), codes)


@pytest.mark.parametrize(("signed", "bad"), [(True, -9), (True, 8), (True, 127), (True, -128), (False, 16), (False, 255), (False, 128)])
@pytest.mark.parametrize("place", [0, 1, 15, 16, 31, 63, 64, 510])
def test_a_code_out_of_range_is_an_error_wherever_it_is(signed, bad, place):
    codes = codes_of((3, 511), signed)
    codes[1, place] = bad
    with pytest.raises(ValueError, match=rf"{bad}.*{'-8' if signed else '0'}.*{'7' if signed else '15'}"):
        qz.pack(codes, signed=signed)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.int64, np.uint16, np.uint64])
def test_wider_integers_never_wrap(dtype):
    for bad in (256, 257, 300, 65535 if np.dtype(dtype).itemsize > 2 else 300):
        with pytest.raises((TypeError, ValueError)):
            qz.pack(np.array([1, bad, 2], dtype))
        with pytest.raises((TypeError, ValueError)):
            qz.pack(np.array([1, bad, 2], dtype), signed=False)


def test_negative_codes_are_not_unsigned():
    with pytest.raises(ValueError, match="-1"):
        qz.pack(np.array([1, -1], np.int8), signed=False)


@pytest.mark.parametrize("dtype", [np.float32, np.bool_, np.complex64, object, "S1"])
def test_codes_of_another_kind_are_refused(dtype):
    with pytest.raises(TypeError, match="codes has dtype"):
        qz.pack(np.array([1, 0, 1], dtype))


def test_lists_of_codes():
    assert qz.pack([1, 2, -1]).tolist() == [0x21, 0x0F]
    with pytest.raises(ValueError, match="8"):
        qz.pack([1, 8])
    with pytest.raises(TypeError, match="codes"):
        qz.pack([1.5, 2.0])


@pytest.mark.parametrize("count", [3, 6, 100, 0, -1])
def test_a_count_that_the_bytes_do_not_have(count):
    with pytest.raises(ValueError, match=f"count is {count}.*(3|4|5)"):
        qz.unpack(np.zeros((2, 2), np.uint8) if count != 3 else np.zeros((2, 3), np.uint8), count)


def test_count_is_2n_or_one_less():
    packed = np.zeros((3, 5), np.uint8)
    for count in range(12):
        if count in (9, 10):
            assert qz.unpack(packed, count).shape == (3, count)
        else:
            with pytest.raises(ValueError, match=f"count is {count}"):
                qz.unpack(packed, count)
    assert qz.unpack(np.zeros((3, 0), np.uint8), 0).shape == (3, 0)


@pytest.mark.parametrize("count", [2.0, "2", None])
def test_a_count_that_is_none(count):
    with pytest.raises(TypeError):
        qz.unpack(np.zeros(1, np.uint8), count)


@pytest.mark.parametrize("dtype", [np.int16, np.int32, np.float32, np.bool_])
def test_packed_of_another_kind_is_refused(dtype):
    with pytest.raises(TypeError, match="packed has dtype"):
        qz.unpack(np.zeros(2, dtype), 4)


def test_arrays_without_axes():
    with pytest.raises(ValueError, match="0-d"):
        qz.pack(np.int8(3))
    with pytest.raises(ValueError, match="0-d"):
        qz.unpack(np.uint8(3), 2)


LAYOUTS = [np.asfortranarray, lambda a: np.repeat(a, 2, -1)[..., ::2], lambda a: a[::-1, ::-1].copy()[::-1, ::-1], lambda a: a.T.copy().T]


@pytest.mark.parametrize("layout", LAYOUTS, ids=range(len(LAYOUTS)))
def test_any_memory_layout(layout):
    codes = codes_of((7, 33), True)
    packed = qz.pack(layout(codes))
    same(packed, slow_pack(codes & 15))
    same(qz.unpack(layout(packed), 33), codes)


def test_read_only_and_broadcast():
    codes = codes_of((7, 33), True)
    codes.setflags(write=False)
    same(qz.pack(codes), slow_pack(codes & 15))
    row = np.broadcast_to(codes[0], (4, 33))
    same(qz.pack(row), slow_pack(np.array(row) & 15))


def test_out():
    codes = codes_of((4, 9), True)
    packed = np.full((4, 5), 7, np.uint8)
    assert qz.pack(codes, out=packed) is packed
    same(packed, slow_pack(codes & 15))
    back = np.full((4, 9), 7, np.int8)
    assert qz.unpack(packed, 9, out=back) is back
    same(back, codes)


def read_only(a):
    a.setflags(write=False)
    return a


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (np.full((4, 6), 7, np.uint8), ValueError, r"out has shape \(4, 6\).*\(4, 5\)"),
        (np.full((4, 5), 7, np.int16), TypeError, "out has dtype int16; expected uint8"),
        (read_only(np.full((4, 5), 7, np.uint8)), ValueError, "out.*(writ|read-only)"),
        (np.full((4, 5), 7, np.uint8, order="F"), ValueError, "out.*contiguous"),
    ],
)
def test_a_wrong_out_is_refused(out, error, message):
    with pytest.raises(error, match=message):
        qz.pack(codes_of((4, 9), True), out=out)
    assert (out == 7).all()


def test_a_wrong_out_of_unpack_is_refused():
    packed = np.zeros((4, 5), np.uint8)
    with pytest.raises(TypeError, match="out has dtype uint8; expected int8"):
        qz.unpack(packed, 9, out=np.zeros((4, 9), np.uint8))
    with pytest.raises(TypeError, match="out has dtype int8; expected uint8"):
        qz.unpack(packed, 9, signed=False, out=np.zeros((4, 9), np.int8))
    with pytest.raises(ValueError, match=r"out has shape \(4, 10\)"):
        qz.unpack(packed, 9, out=np.zeros((4, 10), np.int8))


def test_out_that_overlaps_is_refused():
    memory = np.zeros(40, np.int8)
    with pytest.raises(ValueError, match="out.*memory of the input"):
        qz.pack(memory[:20].reshape(2, 10), out=memory[10:20].view(np.uint8).reshape(2, 5))
    with pytest.raises(ValueError, match="out.*memory of the input"):
        qz.unpack(memory[10:20].view(np.uint8).reshape(2, 5), 10, out=memory[:20].reshape(2, 10))
