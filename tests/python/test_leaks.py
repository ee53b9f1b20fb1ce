"""A hundred thousand small calls, right ones and wrong ones, leave memory where it was."""

import pytest
from helpers import python

CODE = """
import gc, resource
import numpy as np, quantize as qz

x = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
bad = x.copy(); bad[3, 3] = np.nan
q = qz.quantize(x)
parts = dict(q.parts)
out, into = np.empty_like(x), {{name: np.empty_like(part) for name, part in parts.items()}}

def right():
    qz.quantize(x, "uint4").dequantize()
    qz.quantize(x, out=into)
    q.dequantize(out=out)
    qz.from_parts("int4", parts)[2:].codes()
    q.to("gguf:q4_0")

def wrong():
    for call in (
        lambda: qz.quantize(bad),
        lambda: qz.quantize(x, "q4"),
        lambda: qz.quantize(x, group_size=0),
        lambda: qz.quantize(x, out={{"packed": out}}),
        lambda: q.dequantize(out=bad[:2]),
        lambda: qz.from_parts("int4", {{**parts, "scales": x}}),
    ):
        try:
            call()
        except (ValueError, TypeError):
            continue
        raise SystemExit("no error")

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

for _ in range(1000):
    {call}()
before = resident()
for _ in range({times}):
    {call}()
print(resident() - before)
"""


@pytest.mark.parametrize(("call", "times"), [("right", 20_000), ("wrong", 17_000)])
def test_memory_stays_flat(call, times):
    """Five or six calls a round: 10^5 in all. Memory may grow by noise, not by even 50 bytes a call."""
    assert int(python(CODE.format(call=call, times=times))) < 5_000_000
