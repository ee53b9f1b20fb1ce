"""Write what the documentation has from the code: ``docs/conversion.md`` and the tables of formats. ``./check docs`` runs it.

Which conversions are lossless is found by converting small samples of every format, chosen so that each fact on which a
conversion may depend holds in one and fails in another.
"""

import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np

import quantize as qz

ROOT = Path(__file__).parents[1]
TABLE = re.compile(r"^(\| name \| also .*\n\|[-|]+\n)((?:\|.*\n)+)", re.M)

# What a refusal says, and the letter of the fact that it is about; all else that it may say never changes.
FACTS = {
    " times the scale ": "s",
    "is not a": "s",
    "would need a zero point": "z",
    "has zero point ": "z",
    "the second level": "g",
}
HEAD = """# Conversion

`q.to(name)` moves codes untouched or raises `LossyConversionError`, which says which fact differs; `requantize=True` goes through floats. The tables are made by converting samples (`./check docs`),
and a test holds them to the code.

The group size must be one that both formats have and the shape one that the target takes, in every case. Beyond that, from the format of a row to that of a column:

| mark | lossless |
|---|---|
| ● | always |
| s | where every scale (and minimum) is a number that the target can store: `to` keeps the dtype of the scales where the target has it, and `scale_dtype="float32"` holds more |
| z | where every zero point is one that the target can store: integers from 0 to 15, from 1 in `gptq`, 8 alone in a format without zero points; a minimum counts as the zero point -minimum / scale |
| g | where the second level of the scales can be carried over: 1 where the target has none |
| ≈ | codes and scales of groups untouched; the second level becomes its reciprocal, which rounds: values agree within 2 units in the last place |
| | never: through floats |

Between formats of different tables it is never lossless. What any format may meet is not in the tables: a scale that is not finite, such as the exponent byte 255 of MXFP4, is never converted, nor is a `gptq` tensor whose groups are not in the order of
its columns (`desc_act`).
"""
TAIL = """
Between a format with minimums and one with zero points 15 times every scale must be a float32 number, as it is for float16 and bfloat16 scales: only then do code * scale + minimum, which rounds twice, and
(code - zero_point) * scale give the same values. A zero can lose its sign on the way, nothing else changes.

## Within a format

`q.to("bnb:nf4", double_quant=False)` undoes nesting, always; the other way is lossless only where nesting gives the same scales again. Where a format has the option `symmetric`, `to` takes the symmetric form if every zero point is 8, unless it is told
otherwise. A group size never changes without `requantize=True`.
"""


def samples(info: qz.FormatInfo) -> Iterator[qz.QuantizedArray]:
    """Arrays of a format that differ in group size, scale dtype, scales, zero points and second level."""
    random = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    # All sixteen codes of an integer scheme with the scale 1, and zero points or minimums of several kinds.
    whole = np.resize(np.arange(16, dtype=np.float32), (16, 256))
    # The greatest makes scales whose multiples are beyond float16.
    arrays = [random, whole - 8, whole, whole - 3, whole - 15, 30000 * (whole - 8)]
    if info.companion:  # all thirty-two codes, with the zero point in the middle
        arrays.insert(0, np.resize(np.arange(32, dtype=np.float32) - 16, (16, 256)))
    if info.scale_dtypes == ("float8_e4m3fn",):
        arrays = [random * np.float32(factor) for factor in (1, 3, 5, 7, 11, 1e-37, 2688 / np.abs(random).max())]
    sizes: list[int | None] = [16, 32, 64, 128, 256] if "group_size" in info.options else [None]
    dtypes = info.scale_dtypes if "scale_dtype" in info.options else [None]
    switches = [{name: on} for name in ("symmetric", "double_quant", "two_level") if name in info.options for on in (True, False)]
    for size in sizes:
        if size and info.group_sizes and size not in info.group_sizes:
            continue
        for dtype in dtypes:
            for options in switches or [{}]:
                for x in arrays:
                    if "global_scale" in info.options and np.abs(x).max() > 1e-30:
                        yield qz.quantize(x, info.name, global_scale=float(np.abs(x).max()))
                    try:
                        yield qz.quantize(x, info.name, group_size=size, scale_dtype=dtype, **options)
                    except ValueError:
                        assert x is arrays[-1], "only the greatest may be beyond a dtype"
    one = np.float16(1).tobytes()
    if info.name == "gguf:q4_k":  # every group with the scale 1 and the minimum -8, or 2 and -3
        yield blocks(info.name, one + one + bytes([1] * 4 + [8] * 4 + [0x81] * 4), 128)
        yield blocks(info.name, one + one + bytes([2] * 4 + [3] * 4 + [0x32] * 4), 128)
    if info.name == "gguf:q5_k":  # the scale 1 and the minimum -16
        yield blocks(info.name, one + one + bytes([1] * 4 + [0x50] * 4 + [1] * 4), 160)
    if info.name == "gguf:iq4_xs":  # every group with the scale 1
        yield blocks(info.name, one + b"\xaa\xaa" + b"\x11" * 4, 128)
    for name, shape in info.part_shapes:
        if info.scale_dtypes == ("float8_e4m3fn",) and shape.split(" if ")[0] in ("()", "(1,)"):  # any second level
            parts = qz.quantize(random, info.name).parts
            for second in (0.1, 0.3, 0.5, 0.7, 0.9, 1e-39):
                yield qz.from_parts(info.name, {**parts, name: np.full_like(parts[name], second)})
    if info.name == "gptq":  # the zero point 16
        parts = qz.quantize(random, info.name, group_size=32).parts
        yield qz.from_parts(info.name, {**parts, "qzeros": np.full_like(parts["qzeros"], -1)}, group_size=32)


def blocks(name: str, header: bytes, length: int) -> qz.QuantizedArray:
    """Sixteen blocks of ggml with this header and so many bytes of all codes."""
    codes = np.resize(np.arange(256, dtype=np.uint8), length).tobytes()
    return qz.from_parts(name, {"blocks": np.tile(np.frombuffer(header + codes, np.uint8), (16, 1))})


def apart(a: np.ndarray, b: np.ndarray) -> int:
    """The largest distance of two arrays of float32, in units in the last place; signs of zeros do not count."""
    distance = np.abs(a.view(np.int32).astype(np.int64) - b.view(np.int32))
    return int(distance[a != b].max(initial=0))


def mark(source: list[tuple[qz.QuantizedArray, np.ndarray]], target: str) -> str:
    """The cell of a pair of formats."""
    facts, done, rounds = set(), False, False
    for q, values in source:
        try:
            converted = q.to(target)
        except qz.LossyConversionError as error:
            facts.update([letter for text, letter in FACTS.items() if text in str(error)][:1])
            continue
        except ValueError:  # a shape or a group size that the target does not take
            continue
        ulps = apart(values, converted.dequantize())
        assert ulps <= 2, f"{q.format} to {target} changes values"
        done, rounds = True, rounds or ulps > 0
    if not done:
        return ""
    return " ".join(["≈"] * rounds + sorted(facts)) or "●"


def matrix() -> dict[tuple[str, str], str]:
    """The mark of every ordered pair of different formats."""
    names = [info.name for info in qz.formats()]
    marks = {}
    for info in qz.formats():
        source = [(q, q.dequantize()) for q in samples(info)]
        marks |= {(info.name, target): mark(source, target) for target in names if target != info.name}
    return marks


def conversion() -> str:
    """The page on conversion: a table for each family of formats that convert into each other."""
    marks = matrix()
    names = [info.name for info in qz.formats()]
    families: list[list[str]] = []
    for name in names:
        joined = [family for family in families if any(marks[name, other] or marks[other, name] for other in family)]
        families = [family for family in families if family not in joined] + [[*chain(*joined), name]]
    families = sorted((sorted(family, key=names.index) for family in families), key=lambda family: names.index(family[0]))
    text = [HEAD]
    for family in (family for family in families if len(family) > 1):
        text.append(f"| from, to | {' | '.join(f'`{name}`' for name in family)} |")
        text.append("|---|" + "---|" * len(family))
        for name in family:
            cells = ["=" if name == other else marks[name, other] for other in family]
            text.append(f"| `{name}` | {' | '.join(cells)} |".replace("|  ", "| "))
        text.append("")
    alone = [f"`{family[0]}`" for family in families if len(family) == 1]
    if alone:
        text.append(f"Into and from no other format: {', '.join(alone)}.")
    return "\n".join(text).rstrip() + "\n" + TAIL


def row(info: qz.FormatInfo) -> str:
    """The row of a format in the tables of README and ``docs/formats.md``."""

    def code(names):
        return ", ".join(f"`{name}`" for name in names)

    sizes = "/".join(map(str, info.group_sizes)) if info.group_sizes else "any"
    groups = sizes if len(info.group_sizes) == 1 else f"{sizes}, {info.group_size}"
    scales = ("the array's: " if info.scales_follow_array else "") + ", ".join(info.scale_dtypes)
    options = code(name for name in info.options if name not in ("group_size", "scale_dtype"))
    home = info.home if info.exact else f"{info.home}, decoding"
    bits = f"{info.bits_per_weight:.5g}"
    # Codes of 4 bits go without saying.
    values = f"{info.scheme}, {(info.codes[1] - info.codes[0]).bit_length()} bits" if info.companion else info.scheme
    cells = [code([info.name]), code(info.aliases), groups, scales, values, code(name for name, _ in info.parts), options, bits, home]
    return re.sub(r" +", " ", f"| {' | '.join(cells)} |\n")


def pages() -> dict[Path, str]:
    """What the pages must be."""

    def with_table(page: Path) -> str:
        return TABLE.sub(lambda found: found[1] + "".join(map(row, qz.formats())), page.read_text("utf-8"))

    tables = [ROOT / "README.md", ROOT / "docs" / "formats.md"]
    return {page: with_table(page) for page in tables} | {ROOT / "docs" / "conversion.md": conversion()}


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, "utf-8")
