"""``gptq``: the codes of its paper, a loss that never rises, every format, any level and thread, and refusals that name the argument."""

import itertools
import threading
import time

import numpy as np
import pytest
from helpers import BFLOAT16, python, same, sample
from reference import FORMATS
from reference.feedback import damped
from reference.feedback import gptq as reference_gptq

import quantize as qz

# Of every format that is taken its variants.
VARIANTS = {
    "int4": [{}, {"scale_dtype": "float32", "group_size": 48}, {"scale_dtype": BFLOAT16, "group_size": "row"}],
    "uint4": [{}, {"scale_dtype": "float32", "group_size": 20}],
    "gguf:q4_0": [{}],
    "gguf:q4_1": [{}],
    "mlx": [{"group_size": 32}, {"group_size": 64, "scale_dtype": "float16"}],
    "gptq": [{"group_size": 32}, {"group_size": 32, "symmetric": False}, {"group_size": "row"}],
    "gptq:v2": [{"group_size": 32}, {"group_size": 64, "symmetric": False}],
    "awq": [{"group_size": 32}],
    "onnx:matmulnbits": [{"group_size": 32}, {"group_size": 256, "symmetric": False}],
    "onnx:qdq": [{"group_size": 32}, {"group_size": 24, "symmetric": False}],
    "compressed-tensors": [{"group_size": 32}, {"group_size": 64, "symmetric": False, "scale_dtype": BFLOAT16}],
    "hqq": [{"group_size": 32}],
}
CASES = [(name, options) for name, variants in VARIANTS.items() for options in variants]
ORDERED = ("gptq", "gptq:v2")


def inputs(rows, columns, seed=0):
    """Inputs that are correlated and of different sizes."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((rows, columns)) @ random.standard_normal((columns, columns)) / np.sqrt(columns)
    return ((mixed + random.standard_normal((rows, columns)) / 2) * 10.0 ** random.uniform(-1, 1, columns)).astype(np.float32)


def losses(w, q, hessian):
    """The loss of every row, in float64."""
    lost = w.astype(np.float64) - q.dequantize(dtype=np.float64)
    return ((lost @ hessian) * lost).sum(-1)


def hessian_of(x):
    h = qz.Hessian(x.shape[-1])
    h.update(x)
    return h


def test_the_hessian_is_the_mean_of_products():
    x = inputs(300, 37)
    h = hessian_of(x)
    expected = x.astype(np.float64).T @ x.astype(np.float64) / 300
    assert (h.n, h.count, repr(h)) == (37, 300, "Hessian(n=37, count=300)")
    np.testing.assert_allclose(h.matrix, expected, rtol=1e-12, atol=1e-12 * expected.max())
    assert np.array_equal(h.matrix, h.matrix.T)
    same(h.diagonal, np.diagonal(h.matrix).copy())


@pytest.mark.parametrize("columns", [1, 3, 8, 33, 100])
def test_the_hessian_does_not_depend_on_batches_or_threads(columns):
    x = inputs(700, columns)
    whole = hessian_of(x)
    pieces = qz.Hessian(columns)
    for start, end in itertools.pairwise([0, 1, 5, 262, 700]):
        pieces.update(x[None, start:end], threads=3)
    assert pieces.count == 700
    same(pieces.matrix, whole.matrix)


@pytest.mark.parametrize("dtype", ["float16", "float64", ">f4", BFLOAT16])
def test_inputs_of_any_dtype(dtype):
    x = inputs(50, 32).astype(dtype)
    same(hessian_of(x).matrix, hessian_of(x.astype(np.float32)).matrix)
    same(hessian_of(np.asfortranarray(x)).matrix, hessian_of(x.astype(np.float32)).matrix)


def test_a_matrix_that_is_known():
    matrix = hessian_of(inputs(300, 64)).matrix
    h = qz.Hessian.from_matrix(matrix)
    same(h.matrix, matrix)
    assert h.count == 1
    w = sample((16, 64))
    assert qz.gptq(w, h).identical(qz.gptq(w, hessian_of(inputs(300, 64))))
    # It goes on from there.
    h.update(np.zeros((1, 64), np.float32))
    np.testing.assert_allclose(h.matrix, matrix / 2)


@pytest.mark.parametrize("name", ["int4", "uint4", "gguf:q4_0"])
@pytest.mark.parametrize(("shape", "group"), [((16, 64), 32), ((33, 96), 32), ((20, 320), 32)])
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_plain_gptq_is_that_of_the_paper(name, shape, group, damping):
    w, x = sample(shape), inputs(4 * shape[1], shape[1])
    h = hessian_of(x)
    expected = reference_gptq(name, w, damped(h.matrix, damping), group)
    q = qz.gptq(w, h, format=name, method="nearest", damping=damping)
    # A weight that float32 rounds to the other side of a tie sends the rest of its row another way.
    found = q.dequantize(dtype=np.float64)
    agree = np.isclose(found, expected, rtol=1e-6, atol=1e-7).all(1)
    assert agree.mean() > 0.9
    matrix = damped(h.matrix, damping)
    lost = w - expected
    np.testing.assert_allclose(losses(w, q, matrix)[agree], ((lost @ matrix) * lost).sum(1)[agree], rtol=1e-5)


def test_without_correlation_it_is_quantize():
    """Then nothing can be made up for, and every column counts by its own E[x^2]."""
    w, sizes = sample((24, 96)), np.random.default_rng(3).random(96) + 0.1
    h = qz.Hessian.from_matrix(np.diag(sizes))
    assert qz.gptq(w, h, method="nearest", damping=0).identical(qz.quantize(w))
    q = qz.gptq(w, h, damping=0)
    expected = qz.quantize(w, method="optimal", importance=sizes)
    np.testing.assert_allclose(losses(w, q, h.matrix), losses(w, expected, h.matrix), rtol=1e-5)


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_every_format(name, options, order):
    w, x = sample((16, 320 if options.get("group_size") not in (48, 20, 24) else 240)), inputs(1000, 320)
    x = x[:, : w.shape[1]]
    h = hessian_of(x)
    matrix = damped(h.matrix, 0.01)
    importance = h.diagonal
    alone = qz.quantize(w, name, method="optimal", importance=importance, **options)
    plain = qz.gptq(w, h, format=name, method="nearest", order=order, **options)
    q = qz.gptq(w, h, format=name, order=order, **options)
    refined = qz.gptq(w, h, format=name, order=order, refine=3, **options)
    total = [losses(w, found, matrix).sum() for found in (alone, plain, q, refined)]
    # Few rows, so that ordinary luck is some per cent; a search of scales for the sweep beats the rule, and all beat none.
    assert total[3] < total[2] < 0.95 * total[0]
    assert total[2] < 1.02 * total[1]
    for found in (plain, q, refined):
        assert {key: (part.dtype, part.shape) for key, part in found.parts.items()} == {
            key: (part.dtype, part.shape) for key, part in alone.parts.items()
        }
        read = {key: value for key, value in options.items() if key in ("group_size", "symmetric")}
        assert qz.from_parts(name, dict(found.parts), shape=w.shape, **read).identical(found)
        if order == "natural" or name not in ORDERED:
            assert np.array_equal(FORMATS[name].decode(dict(found.parts), w.shape, **read), found.dequantize())


def test_every_format_that_is_taken_is_tested():
    w, h = sample((8, 256)), hessian_of(inputs(600, 256))
    taken = []
    for info in qz.formats():
        try:
            qz.gptq(w, h, format=info.name)
        except ValueError as error:
            assert str(error).startswith(f"format is '{info.name}'; error feedback takes int4, uint4, gguf:q4_0, ")  # noqa: PT017
        else:
            taken.append(info.name)
    assert sorted(taken) == sorted(VARIANTS)


@pytest.mark.parametrize("name", ORDERED)
def test_groups_follow_the_order_where_it_is_stored(name):
    w, x = sample((16, 128)), inputs(600, 128)
    h = hessian_of(x)
    q = qz.gptq(w, h, format=name, group_size=32, order="activation")
    order = np.argsort(-h.diagonal, kind="stable")
    expected = np.empty(128, np.int32)
    expected[order] = np.arange(128) // 32
    same(q.parts["g_idx"], expected)
    # The same columns in that order from the start have the same codes and scales.
    ordered = qz.gptq(w[:, order], x[:, order], format=name, group_size=32)
    same(q.parts["scales"], ordered.parts["scales"])
    same(q.dequantize()[:, order], ordered.dequantize())


@pytest.mark.parametrize(("name", "options"), [("int4", {}), ("uint4", {}), ("gptq", {"group_size": 32}), ("gguf:q4_1", {})])
@pytest.mark.parametrize("order", ["natural", "activation"])
def test_the_loss_never_rises(name, options, order):
    w, x = sample((40, 192)), inputs(800, 192)
    h = hessian_of(x)
    matrix = damped(h.matrix, 0.01)
    falling = [losses(w, qz.gptq(w, h, format=name, refine=rounds, order=order, **options), matrix) for rounds in range(7)]
    for before, after in itertools.pairwise(falling):
        assert (after <= before * (1 + 1e-6)).all()
    assert falling[-1].sum() < falling[0].sum()


def test_refined_codes_beside_all_codes():
    """No other code of one column has a smaller loss, and few other codes of all columns have."""
    w, x = sample((48, 4)), inputs(100, 4)
    h = hessian_of(x)
    matrix = damped(h.matrix, 0.01)
    q = qz.gptq(w, h, group_size=4, scale_dtype="float32", refine=30)
    scales, codes = q.scales, q.codes()
    found = losses(w, q, matrix)
    grid = np.stack(np.meshgrid(*[np.arange(-8.0, 8.0)] * 4, indexing="ij"), -1).reshape(-1, 4)
    ratios = []
    for row in range(len(w)):
        lost = w[row].astype(np.float64) - grid.astype(np.float32) * scales[row]
        every = ((lost @ matrix) * lost).sum(1)
        ratios.append(found[row] / every.min())
        one_off = (grid != codes[row]).sum(1) == 1
        assert found[row] <= every[one_off].min() * (1 + 1e-6)
    assert min(ratios) > 1 - 1e-6
    assert np.mean(np.array(ratios) < 1 + 1e-6) > 0.5


def test_the_scale_is_the_best_for_the_codes():
    w, x = sample((16, 32)), inputs(200, 32)
    h = hessian_of(x)
    matrix = damped(h.matrix, 0.01)
    q = qz.gptq(w, h, scale_dtype="float32", refine=30)
    codes = q.codes().astype(np.float64)
    best = ((codes @ matrix) * w).sum(1) / ((codes @ matrix) * codes).sum(1)
    np.testing.assert_allclose(q.scales[:, 0], best, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"refine": 2}, {"order": "activation", "refine": 1}, {"method": "nearest"}])
def test_threads_change_nothing(options):
    # Large enough that threads are used at all.
    w, x = sample((200, 512)), inputs(1100, 512)
    h = hessian_of(x)
    one = qz.gptq(w, h, threads=1, **options)
    for threads in (2, 5):
        assert qz.gptq(w, h, threads=threads, **options).identical(one)


DIGEST = """
import hashlib
import numpy as np
import quantize as qz
random = np.random.default_rng(0)
w = random.standard_normal((40, 160), np.float32)
x = random.integers(-9, 10, (500, 160)).astype(np.float32)
x[:, 1:] += x[:, :-1] / 3
h = qz.Hessian(160)
h.update(x)
print("hessian", hashlib.sha256(h.matrix).hexdigest())
for name in ("int4", "uint4", "gguf:q4_1"):
    for order in ("natural", "activation"):
        q = qz.gptq(w, h, format=name, refine=2, order=order)
        print(name, order, *(hashlib.sha256(part).hexdigest() for part in q.parts.values()))
"""


def test_levels_change_nothing():
    scalar = python(DIGEST, QUANTIZE_LEVEL="scalar")
    for level in qz.cpu_features().available[1:]:
        assert python(DIGEST, QUANTIZE_LEVEL=level) == scalar


def test_inputs_in_place_of_a_hessian():
    w, x = sample((16, 64)), inputs(300, 64)
    assert qz.gptq(w, x).identical(qz.gptq(w, hessian_of(x)))
    assert qz.gptq(w.tolist(), x.reshape(3, 100, 64)).identical(qz.gptq(w, x))


@pytest.mark.parametrize("dtype", ["float16", "float64", BFLOAT16])
def test_weights_of_any_dtype_and_order(dtype):
    w, h = sample((24, 64)).astype(dtype), hessian_of(inputs(300, 64))
    q = qz.gptq(w.astype(np.float32), h)
    assert qz.gptq(w, h).identical(q)
    assert qz.gptq(np.asfortranarray(w), h).identical(q)
    assert qz.gptq(w[None], h).dequantize().shape == (1, 24, 64)
    by_array = qz.gptq(w, h, format="mlx", group_size=32)
    assert by_array.parts["scales"].dtype == (np.float32 if dtype == "float64" else dtype)


def test_held_out():
    w, x = sample((32, 128)), inputs(2000, 128)
    report = qz.gptq(w, x[:1000], held_out=x[1000:], refine=1, group_size=64)
    h = hessian_of(x[:1000])
    assert report.feedback.identical(qz.gptq(w, h, refine=1, group_size=64))
    assert report.alone.identical(qz.quantize(w, group_size=64, method="optimal", importance=h.diagonal))
    outputs = x[1000:].astype(np.float64) @ w.astype(np.float64).T
    for q, error in ((report.feedback, report.feedback_error), (report.alone, report.alone_error)):
        off = x[1000:].astype(np.float64) @ q.dequantize(dtype=np.float64).T - outputs
        np.testing.assert_allclose(error, (off**2).sum() / (outputs**2).sum(), rtol=1e-6)
        assert qz.output_error(w, q, x[1000:]) == error
    assert report.feedback_error < report.alone_error
    assert (report.better, report.best) == ("feedback", report.feedback)
    # Other inputs than those that come: feedback does harm.
    report = qz.gptq(w, inputs(200, 128, seed=5), held_out=x[:, ::-1])
    assert (report.better, report.best) == ("alone", report.alone)


def test_output_error():
    w, x = sample((8, 32)), inputs(100, 32)
    assert qz.output_error(w, w, x) == 0
    assert qz.output_error(w, np.zeros_like(w), x) == 1
    assert qz.output_error(w, w / 2, hessian_of(x)) == 0.25
    with pytest.raises(ValueError, match=r"other has shape \(8, 31\); expected \(8, 32\)"):
        qz.output_error(w, w[:, 1:], x)
    with pytest.raises(ValueError, match=r"inputs has shape \(100, 31\); expected 32 elements along the last axis"):
        qz.output_error(w, w, x[:, 1:])


def test_few_elements():
    assert qz.gptq([[0.5]], [[1.0], [2.0]]).dequantize() == pytest.approx(0.5)
    assert qz.gptq(np.zeros((0, 8), np.float32), np.ones((3, 8)), damping=0.1).shape == (0, 8)
    zeros = qz.gptq(np.zeros((4, 64), np.float32), inputs(300, 64), refine=2)
    assert zeros.identical(qz.quantize(np.zeros((4, 64), np.float32)))
    w = sample((4, 64))
    w[:, 32:] = 0
    assert qz.gptq(w, qz.Hessian.from_matrix(np.eye(64)), refine=2).dequantize()[:, 32:].any() == np.False_


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12])
def test_sizes_of_the_inputs_do_not_matter(scale):
    w, matrix = sample((16, 64)), hessian_of(inputs(300, 64)).matrix
    power = 2.0 ** np.round(np.log2(scale))
    q = qz.gptq(w, qz.Hessian.from_matrix(matrix), refine=2)
    assert qz.gptq(w, qz.Hessian.from_matrix(matrix * power), refine=2).identical(q)


H = np.eye(64)
BAD = {
    "format": (
        {"format": "gguf:q4_k", "weight": np.ones((2, 256))},
        ValueError,
        r"format is 'gguf:q4_k'; error feedback takes int4, uint4",
    ),
    "format of a table": ({"format": "bnb:nf4"}, ValueError, r"format is 'bnb:nf4'; error feedback takes int4"),
    "unknown format": ({"format": "int5"}, ValueError, r"no format 'int5'"),
    "group of all": ({"group_size": "tensor"}, ValueError, r"group_size is \"tensor\"; .*\"row\" or a number"),
    "group size": ({"group_size": 0}, ValueError, r"group_size is 0; expected 1 or more"),
    "method": ({"method": "fast"}, ValueError, r"method is 'fast'; expected \"optimal\" or \"nearest\""),
    "order": ({"order": "random"}, ValueError, r"order is 'random'; expected \"natural\" or \"activation\""),
    "refine": ({"refine": -1}, ValueError, r"refine is -1; expected a number of rounds, 0 or more"),
    "damping": ({"damping": -0.1}, ValueError, r"damping is -0.1; expected a number of 0 or more"),
    "damping nan": ({"damping": np.nan}, ValueError, r"damping is nan; expected a number of 0 or more"),
    "threads": ({"threads": 0}, ValueError, r"threads is 0; expected 1 or more"),
    "option": ({"symmetric": True}, TypeError, r"int4 has no option symmetric"),
    "nan": ({"weight": np.full((2, 64), np.nan)}, ValueError, r"weight is nan at \(0, 0\); int4 takes finite numbers"),
    "beyond": ({"weight": np.full((8, 64), 7e4), "format": "awq", "group_size": 32}, ValueError, r"weight is 70000 at \(0, 0\); awq"),
    "too large": ({"weight": np.full((2, 64), 1e6)}, ValueError, r"the scale of group \(0, 0\) is beyond the largest float16"),
    "0-d": ({"weight": np.float32(1), "hessian_or_inputs": np.ones((3, 1))}, ValueError, r"weight is 0-d; expected \(N, K\)"),
    "integers": ({"weight": np.ones((2, 64), int)}, TypeError, r"weight has dtype int64; expected float16"),
    "length": ({"weight": np.ones((2, 32))}, ValueError, r"hessian_or_inputs is of inputs of 64 elements; the weight has 32"),
    "inputs": ({"hessian_or_inputs": np.ones((5, 63))}, ValueError, r"hessian_or_inputs has shape \(5, 63\); expected 64 elements"),
    "inputs nan": ({"hessian_or_inputs": np.full((5, 64), np.inf)}, ValueError, r"hessian_or_inputs is inf at \(0, 0\); expected finite"),
    "integers as inputs": ({"hessian_or_inputs": np.ones((5, 64), int)}, TypeError, r"hessian_or_inputs has dtype int64"),
    "empty": ({"hessian_or_inputs": qz.Hessian(64)}, ValueError, r"hessian_or_inputs is empty; .*update\(\)"),
    "one dead column": (
        {"hessian_or_inputs": qz.Hessian.from_matrix(np.diag(np.arange(64) != 7).astype(float))},
        ValueError,
        r"hessian_or_inputs is 0 in column 7: no input of the calibration reached them; give inputs that do, or .*from_matrix",
    ),
    "dead columns": (
        {"hessian_or_inputs": np.ones((5, 64)) * (np.arange(64) > 9)},
        ValueError,
        r"hessian_or_inputs is 0 in column 0, 1, 2, 3, 4, 5, 6, 7 and 2 more",
    ),
    "not definite": (
        {"hessian_or_inputs": np.ones((5, 64)), "damping": 0},
        ValueError,
        r"hessian_or_inputs is not positive definite at column \d+ with damping 0; .*a larger damping, such as 0.01",
    ),
    "negative": (
        {"hessian_or_inputs": qz.Hessian.from_matrix(np.where(np.eye(64) > 0, np.where(np.arange(64) == 5, -1, 1), 0).astype(float))},
        ValueError,
        r"hessian_or_inputs is not positive definite at column 5 with damping 0.01",
    ),
    "held out": ({"held_out": np.ones((5, 63))}, ValueError, r"held_out has shape \(5, 63\); expected 64 elements"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_refused(case):
    changes, kind, message = BAD[case]
    arguments = {"weight": np.ones((2, 64), np.float32), "hessian_or_inputs": qz.Hessian.from_matrix(H), **changes}
    with pytest.raises(kind, match=message):
        qz.gptq(arguments.pop("weight"), arguments.pop("hessian_or_inputs"), **arguments)


def test_matrices_that_are_none():
    for matrix, message in (
        (np.ones(4), r"matrix has 1 axes; expected a square matrix"),
        (np.ones((3, 4)), r"matrix has shape \(3, 4\); expected a square matrix"),
        (np.array([[1.0, 0.5], [0.4, 1.0]]), r"matrix is not symmetric: 0.5 at \(0, 1\), 0.4 at \(1, 0\); .*\(matrix \+ matrix.T\) / 2"),
        (np.array([[1.0, np.nan], [np.nan, 1.0]]), r"matrix is nan at \(0, 1\); expected finite numbers"),
        (np.ones((0, 0)), r"n is 0; expected the number of inputs of the layer"),
    ):
        with pytest.raises(ValueError, match=message):
            qz.Hessian.from_matrix(matrix)
    with pytest.raises(TypeError, match="matrix has dtype int64"):
        qz.Hessian.from_matrix(np.ones((2, 2), int))
    for n in (0, -3):
        with pytest.raises(ValueError, match=rf"n is {n}; expected"):
            qz.Hessian(n)


def test_a_batch_that_is_refused_changes_nothing():
    x = inputs(100, 16)
    h = hessian_of(x)
    wrong = x.copy()
    wrong[99, 3] = np.nan
    with pytest.raises(ValueError, match=r"inputs is nan at \(99, 3\); expected finite numbers"):
        h.update(wrong)
    with pytest.raises(ValueError, match=r"inputs has shape \(100, 15\); expected 16 elements"):
        h.update(x[:, 1:])
    same(h.matrix, hessian_of(x).matrix)


def test_many_calls_at_once():
    w, x = sample((64, 256)), inputs(600, 256)
    expected = qz.gptq(w, x, refine=1)
    found = []
    workers = [threading.Thread(target=lambda: found.append(qz.gptq(w, x, refine=1))) for _ in range(4)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert len(found) == 4
    assert all(q.identical(expected) for q in found)


INTERRUPTED = """
import signal, time
import numpy as np
import quantize as qz
w, h = np.ones((4096, 1024), np.float32), qz.Hessian.from_matrix(np.eye(1024) + 0.1)
def stop(*_):
    raise KeyboardInterrupt
signal.signal(signal.SIGALRM, stop)
signal.setitimer(signal.ITIMER_REAL, 0.3)
begun = time.monotonic()
try:
    qz.gptq(w, h, refine=10**6)
except KeyboardInterrupt:
    assert time.monotonic() - begun < 30
    print("stopped")
"""


def test_ctrl_c_stops_it():
    begun = time.monotonic()
    assert python(INTERRUPTED).strip() == "stopped"
    assert time.monotonic() - begun < 60
