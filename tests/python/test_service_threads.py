"""Threads inside a service: how many, when, and what happens when there are none to be had."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import python, same, same_parts, sample

import quantize as qz

# `workers()` counts the threads of our pool; it never shrinks, so every question below asks for more than the one before.
PRELUDE = """
import os, time, numpy as np, quantize as qz

def workers():
    time.sleep(0.2)  # those of a smaller pool that was replaced end by themselves
    names = (open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task"))
    return sum(name.startswith("quantize-") for name in names)

large = np.random.default_rng(0).standard_normal((64, 1 << 16)).astype(np.float32)
"""
UNSET = dict.fromkeys(["QUANTIZE_NUM_THREADS", "RAYON_NUM_THREADS", "OMP_NUM_THREADS"])


def printed(code, **environment):
    return python(PRELUDE + code, **{**UNSET, **environment}).split()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "4"}, 4),
        ({"OMP_NUM_THREADS": "3", "RAYON_NUM_THREADS": "4", "QUANTIZE_NUM_THREADS": "5"}, 5),
        ({"QUANTIZE_NUM_THREADS": "0", "RAYON_NUM_THREADS": "many", "OMP_NUM_THREADS": "3"}, 3),
        ({"QUANTIZE_NUM_THREADS": "1"}, 1),
    ],
)
def test_the_environment_says_how_many(environment, expected):
    assert printed("qz.quantize(large); print(workers() + 1)", **environment) == [str(expected)]


def test_the_stronger_word_holds():
    code = """
qz.quantize(large); print(workers() + 1)
qz.set_threads(3); qz.quantize(large); print(workers() + 1)
with qz.threads(4):
    qz.quantize(large); print(workers() + 1)
    qz.quantize(large, threads=5); print(workers() + 1)
    with qz.threads(6):
        qz.quantize(large).dequantize(); print(workers() + 1)
    qz.quantize(large, threads=7).dequantize(threads=8); print(workers() + 1)
"""
    assert printed(code, QUANTIZE_NUM_THREADS="2") == ["2", "3", "4", "5", "6", "8"]


def test_settings_end():
    code = """
with qz.threads(9): pass
qz.set_threads(9); qz.set_threads(None)
try:
    with qz.threads(9): raise KeyError
except KeyError: pass
qz.quantize(large); print(workers() + 1)
"""
    assert printed(code, QUANTIZE_NUM_THREADS="2") == ["2"]


def test_the_environment_is_read_at_every_call():
    code = """
for count in "2", "3", "1", "4":
    os.environ["OMP_NUM_THREADS"] = count
    qz.quantize(large); print(workers() + 1)
"""
    assert printed(code) == ["2", "3", "3", "4"]


def test_one_cpu_is_one_thread():
    """The affinity counts, not the machine."""
    code = "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); qz.quantize(large).dequantize(); print(workers())"
    assert printed(code) == ["0"]


def test_nothing_starts_before_it_is_needed():
    """Neither the import nor small calls start a thread, whatever they ask for."""
    code = """
print(workers())
q = qz.quantize(large[:4, :4096], threads=8); q.dequantize(threads=8); qz.pack(q.codes()); print(workers())
qz.quantize(large, threads=1).dequantize(threads=1); print(workers())
"""
    assert printed(code) == ["0", "0", "0"]


def test_a_context_belongs_to_its_thread():
    seen = []

    def other():
        from quantize._threads import requested

        seen.append(requested(None))

    with qz.threads(2):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [None]


@pytest.mark.parametrize("name", ["int4", "uint4", "gguf:q4_0", "gguf:q4_1"])
def test_many_threads_at_once_give_the_serial_bytes(name):
    """32 Python threads, half of them on one array and half on their own."""
    arrays = [sample((40, 1 << 14), seed=0)] * 16 + [sample((40 + seed, 1 << 14), seed=seed) for seed in range(16)]
    expected = [qz.quantize(array, name, threads=1) for array in arrays]
    gate = threading.Barrier(32)

    def work(array):
        gate.wait()
        q = qz.quantize(array, name, threads=3)
        return q, q.dequantize(threads=2)

    with ThreadPoolExecutor(32) as executor:
        for (q, floats), serial in zip(executor.map(work, arrays), expected, strict=True):
            same_parts(q.parts, serial.parts)
            same(floats, serial.dequantize(threads=1))


def test_the_interpreter_is_free_during_a_large_call():
    """Another thread goes on while a call of seconds lasts."""
    everything = np.broadcast_to(np.float32(1), (1 << 10, 1 << 18))
    turns, done = 0, threading.Event()

    def work():
        qz.compare(everything, everything)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    while not done.wait(0.001):
        turns += 1
    thread.join()
    assert turns > 20


def test_a_racing_writer_gives_wrong_numbers_only():
    """The contract forbids it; what a caller who breaks it gets is still an array of the right shape."""
    array = sample((256, 4096))
    stop = threading.Event()

    def write():
        random = np.random.default_rng(0)
        while not stop.is_set():
            array[random.integers(256)] = random.uniform(-1e4, 1e4)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for name in ("int4", "uint4", "gguf:q4_0", "gguf:q4_1") * 10:
            assert qz.quantize(array, name).dequantize().shape == array.shape
    finally:
        stop.set()
        writer.join()


NO_THREADS = """
import os, resource, warnings, numpy as np, quantize as qz
x = np.random.default_rng(0).standard_normal((64, 1 << 16)).astype(np.float32)
{before}
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
if os.getuid() == 0:
    os.setuid(65534)  # the limit does not bind root
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    for _ in range(3):
        {work}
print(*[f"{{warning.category.__name__}}: {{warning.message}}" for warning in caught], sep="\\n")
"""
NO_MORE = "QuantizeWarning: the system gives no more threads; working on the calling thread, slower, with the same results\n"


def warned(before, *work):
    """The warnings where ``work`` is done three times and the system gives no threads after ``before``."""
    return python(NO_THREADS.format(before=before, work="\n        ".join(work)))


BOTH_WAYS = (
    "q = qz.quantize(x, threads=4)",
    "assert q.identical(expected)",
    "assert (q.dequantize(threads=4) == expected.dequantize(threads=1)).all()",
)


def test_where_threads_cannot_be_started_the_caller_does_the_work():
    assert warned("expected = qz.quantize(x, threads=1)", *BOTH_WAYS) == NO_MORE


def test_a_pool_that_cannot_grow_is_used_as_it_is():
    assert warned("qz.quantize(x, threads=2); expected = qz.quantize(x, threads=1)", *BOTH_WAYS) == NO_MORE


@pytest.mark.parametrize("group_size", [32, "tensor"], ids=["by tiles", "whole"])
def test_a_conversion_that_cannot_start_threads_says_so(group_size):
    before = f"q = qz.quantize(x, group_size={group_size!r}, threads=1); expected = q.to('uint4', threads=1)"
    assert warned(before, "assert q.to('uint4', threads=4).identical(expected)") == NO_MORE


@pytest.mark.parametrize("in_pool", [False, True])
def test_a_panic_is_an_exception_that_asks_for_a_report(in_pool, capfd):
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"a fault inside quantize .*src/.*deliberate.*Please report") as raised:
            qz._core._panic_for_tests(in_pool)
        assert raised.type is RuntimeError
    array = sample((64, 1 << 15))
    assert qz.quantize(array, threads=2).identical(qz.quantize(array, threads=1))
    assert capfd.readouterr() == ("", "")


EXIT = """
import threading, time, numpy as np, quantize as qz
x = np.broadcast_to(np.float32(1), (1 << 16, 1 << 18))
def forever():
    qz.compare(x, x)
for _ in range(3):
    threading.Thread(target=forever, daemon=True).start()
time.sleep(0.3)
print("end")
"""


def test_the_interpreter_may_exit_during_a_call():
    done = subprocess.run([sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, env=os.environ)
    assert (done.returncode, done.stdout, done.stderr) == (0, "end\n", "")


SUBINTERPRETER = """
import sys, importlib.util
import quantize
code = '''
import sys
{load}
'''
try:
    from concurrent import interpreters
    interpreter = interpreters.create()
    run = interpreter.exec
except ImportError:
    try:
        import _interpreters as low
    except ImportError:
        import _xxsubinterpreters as low
    interpreter = low.create()
    run = lambda code: low.run_string(interpreter, code)
failed = run(code)
print("survived")
"""

IMPORT = """
try:
    {statement}
except ImportError:
    pass
else:
    raise SystemError("imported")
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import quantize",
        # Without numpy, which refuses by itself in some versions.
        "from importlib import util; spec = util.spec_from_file_location('quantize._core', {file!r}); "
        "spec.loader.exec_module(util.module_from_spec(spec))",
    ],
)
def test_a_subinterpreter_is_refused(statement):
    load = IMPORT.format(statement=statement.format(file=qz._core.__file__))
    assert python(SUBINTERPRETER.replace("{load}", load)) == "survived\n"
