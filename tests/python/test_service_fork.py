"""Processes that fork: a child works, whatever its parent was doing with the pool."""

import multiprocessing

import numpy as np
import pytest
from helpers import python, sample

import quantize as qz

CODE = """
import os, signal, sys, threading, time, warnings
import numpy as np, quantize as qz

warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of forks in programs with threads
x = np.random.default_rng(0).standard_normal((64, 1 << 16)).astype(np.float32)
expected = qz.quantize(x, threads=1)

def works():
    q = qz.quantize(x, threads=3)
    return q.identical(expected) and (q.dequantize(threads=2) == expected.dequantize(threads=1)).all()

def in_child(body):
    child = os.fork()
    if child == 0:
        signal.alarm(10)  # a hang ends the child, and the test
        os._exit(0 if body() else 1)
    return os.waitpid(child, 0)[1]

def busy(stop):
    everything = np.broadcast_to(np.float32(1), (1 << 9, 1 << 18))
    while not stop.is_set():
        qz.compare(everything, everything)
"""


def test_a_child_of_a_parent_that_has_no_pool():
    assert python(CODE + "print(in_child(works), works())") == "0 True\n"


def test_a_child_of_a_parent_that_used_its_pool():
    code = CODE + "assert works(); print(*[in_child(works) for _ in range(3)], works())"
    assert python(code) == "0 0 0 True\n"


def test_a_grandchild():
    code = CODE + "assert works(); print(in_child(lambda: works() and in_child(lambda: works() and in_child(works) == 0) == 0), works())"
    assert python(code) == "0 True\n"


@pytest.mark.parametrize("used", [False, True])
def test_a_child_of_a_parent_that_is_in_a_call(used):
    """Forks at many moments of calls that two other threads make."""
    code = (
        CODE
        + f"""
if {used}:
    assert works()
stop = threading.Event()
threads = [threading.Thread(target=busy, args=[stop]) for _ in range(2)]
for thread in threads:
    thread.start()
ended = []
for moment in range(10):
    time.sleep(0.005 * moment)
    ended.append(in_child(works))
stop.set()
for thread in threads:
    thread.join()
print(*ended, works())
"""
    )
    assert python(code) == "0 " * 10 + "True\n"


def test_a_child_forked_from_a_thread_while_the_main_thread_is_in_a_call():
    code = (
        CODE
        + """
ended = []
def fork():
    time.sleep(0.2)
    ended.append(in_child(works))
thread = threading.Thread(target=fork)
thread.start()
everything = np.broadcast_to(np.float32(1), (1 << 10, 1 << 18))
qz.compare(everything, everything)
thread.join()
print(*ended, works())
"""
    )
    assert python(code) == "0 True\n"


def quantized_elsewhere(array):
    return qz.quantize(array, threads=2)


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_multiprocessing(method):
    """Arrays go to the workers and quantized arrays come back."""
    array = sample((48, 1 << 14))
    expected = qz.quantize(array)
    with multiprocessing.get_context(method).Pool(2) as pool:
        for q in pool.map(quantized_elsewhere, [array, np.asfortranarray(array)]):
            assert q.identical(expected)
