"""The mode of the floating-point unit belongs to the thread that calls: it changes no byte, and is as before after the call."""

import platform

from helpers import python

UPWARD = {"x86_64": 0x800, "aarch64": 0x400000}[platform.machine()]


def test_bytes_do_not_depend_on_the_rounding_mode_of_the_caller():
    code = f"""
import ctypes
import numpy as np, quantize as qz

libm = ctypes.CDLL("libm.so.6")
x = np.random.default_rng(0).standard_normal((64, 1 << 14)).astype(np.float32)
formats = [row.name for row in qz.formats()]
threads = [1, 3]  # the pool is made by the first call with three, and its threads inherit the mode

def run(name, count):
    q = qz.quantize(x, name, threads=count)
    return [*(part.tobytes() for part in q.parts.values()), q.dequantize(threads=count).tobytes(), qz.quantize(x.astype(np.float64), name).scales.tobytes()]

expected = [run(name, 1) for name in formats]
libm.fesetround({UPWARD})
upward = [[run(name, count) for name in formats] for count in threads]
mode = libm.fegetround()
libm.fesetround(0)
print(mode == {UPWARD}, [results == expected for results in upward])
"""
    assert python(code) == "True [True, True]\n"
