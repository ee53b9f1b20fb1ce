"""The command line: ``quantize convert | plan | finish | inspect | verify | compare | formats``.

Results go to the standard output, everything else to the standard error. Exit codes: 0 done, 1 another failure, 2 wrong usage,
3 a bad input file, 4 a tensor that the policy forbids, 5 input or output failed, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from quantize import _files, _report
from quantize._api import formats
from quantize._core import CorruptFileError, PolicyError, QuantizeWarning, __version__
from quantize._files import printable
from quantize._types import amount

if TYPE_CHECKING:
    from collections.abc import Generator, Sequence, Set

FAILED, USAGE, BAD_INPUT, POLICY, IO, INTERRUPTED, TERMINATED = 1, 2, 3, 4, 5, 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Without the name of the program. Default: those of the process.

    Returns
    -------
    int
        The exit code.
    """
    options = _parser().parse_args(arguments)
    try:
        with _stopped_by_signals(), _warnings_on_stderr():
            options.run(options)
            sys.stdout.flush()
        return 0
    except _Stopped as stopped:
        return _fail(stopped, stopped.code)
    except KeyboardInterrupt:
        return _fail("interrupted", INTERRUPTED)
    except CorruptFileError as error:
        return _fail(error, BAD_INPUT)
    except PolicyError as error:
        return _fail(error, POLICY)
    except BrokenPipeError:
        # Whoever read the results has gone. Python would complain when it flushes at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return IO
    except OSError as error:
        named = error.filename is not None
        return _fail(f"{printable(str(error.filename))}: {error.strerror}" if named else error, IO)
    except (ValueError, TypeError) as error:  # what the functions say of their arguments
        return _fail(error, USAGE)
    except (MemoryError, ImportError) as error:  # an extra that a file needs is missing
        return _fail(error, FAILED)


def _fail(message: object, code: int) -> int:
    print(f"quantize: {message}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="quantize", description="Float tensors to 4-bit formats and back.")
    parser.add_argument("--version", action="version", version=f"quantize {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    command = _command(commands, "convert", _convert, "quantize the matrices of a file, or decode them back")
    command.add_argument("source", metavar="IN", nargs="?", help="a safetensors, GGUF, npy, npz or ONNX file, or a Hugging Face folder")
    command.add_argument(
        "target",
        metavar="OUT",
        nargs="?",
        help="what to write: GGUF from GGUF or with --arch, ONNX from ONNX, a folder from a folder, else safetensors or, by its name, npz; not needed for a dry run",
    )
    _add_wanted(command)
    _add_memory_limit(command)
    command.add_argument("--resume", action="store_true", help="keep what is done if the work ends early, and take it up; not for ONNX")
    command.add_argument("--plan", metavar="PLAN", help="do a part of what 'quantize plan' wrote there, in place of IN, OUT and options")
    command.add_argument("--part", type=int, metavar="I", help="which part of the plan, from 0 on")
    _add_report(command)
    command.add_argument("--overwrite", action="store_true", help="replace OUT if it exists; it may be IN")
    command.add_argument("--dry-run", action="store_true", help="print the plan, from the header alone; write nothing")
    _add_work_options(command)

    command = _command(commands, "plan", _plan, "plan the conversion of a folder in parts, for several processes or machines")
    command.add_argument("source", metavar="IN", help="a Hugging Face folder")
    command.add_argument("target", metavar="OUT", help="the folder to make")
    command.add_argument("-o", "--output", required=True, metavar="PLAN", help="where the plan is written, as JSON")
    command.add_argument("--parts", type=int, required=True, metavar="N", help="how many parts; at most as many as OUT has shards")
    _add_wanted(command)
    command.add_argument("--quiet", action="store_true", help="no table; errors and JSON still come")

    command = _command(commands, "finish", _finish, "make the folder of a plan whose parts are all done")
    command.add_argument("plan", metavar="PLAN", help="what 'quantize plan' wrote")
    command.add_argument("--quiet", action="store_true", help="no table; errors and JSON still come")

    command = _command(commands, "inspect", _inspect, "list the tensors of a file, and look for what is wrong with the quantized ones")
    command.add_argument("file", metavar="FILE", help="a safetensors, GGUF, npy, npz or ONNX file, or a Hugging Face folder")
    command.add_argument("--no-check", dest="check", action="store_false", help="read the header alone")
    command.add_argument("--strict", action="store_true", help="exit with 4 where something is certainly wrong")
    command.add_argument("--quiet", action="store_true", help="no progress and no tables; errors and JSON still come")

    command = _command(commands, "verify", _verify, "check that a file is whole, and what a conversion makes of another")
    command.add_argument("file", metavar="OUT", help="a safetensors, GGUF or npz file, or a Hugging Face folder")
    command.add_argument("--against", metavar="IN", help="the file that it was made of: every tensor must be what a conversion makes of it")
    command.add_argument(
        "--report", metavar="FILE", help="what 'convert --report FILE.json' wrote, or --json printed: the hashes must be those"
    )
    _add_work_options(command)

    command = _command(commands, "compare", _compare, "measure how far the tensors of one file are from those of another")
    command.add_argument("first", metavar="A", help="the reference")
    command.add_argument("second", metavar="B", help="what is measured; either file may be quantized")
    command.add_argument(
        "--optimum",
        action="store_true",
        help="search for the smallest error that the formats of B can hold for A, and show how far it is (slow)",
    )
    command.add_argument("--importance", metavar="FILE", help="what --optimum weights errors with: a vector for each tensor name")
    _add_report(command)
    _add_work_options(command)

    _command(commands, "formats", _formats, "list the formats")
    return parser


def _command(commands: Any, name: str, run: Any, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", help="print one JSON object")
    return command


def _add_wanted(command: argparse.ArgumentParser) -> None:
    """Add the options that decide the bytes."""
    kind = command.add_mutually_exclusive_group()
    kind.add_argument(
        "--to",
        "--format",
        dest="format",
        metavar="NAME",
        help="see 'quantize formats' (default: int4; with --rule the rest is kept); of a GGUF file also a mixture of llama.cpp such as q4_k_m",
    )
    kind.add_argument("--dequantize", action="store_true", help="decode every tensor to the dtype that it had before")
    command.add_argument(
        "--group-size", type=_group_size, metavar="N", help="elements per scale, 'row' or 'tensor' (default: the format's)"
    )
    command.add_argument("--scale-dtype", choices=["float16", "bfloat16", "float32"], help="what scales are stored as")
    command.add_argument("--dtype", choices=["float16", "bfloat16", "float32"], help="what --dequantize decodes to")
    command.add_argument(
        "--symmetric",
        action=argparse.BooleanOptionalAction,
        help="whether all zero points are in the middle, where the format leaves a choice",
    )
    command.add_argument(
        "--double-quant",
        action=argparse.BooleanOptionalAction,
        help="whether scales are quantized in turn, where the format leaves a choice (bnb:nf4, bnb:fp4)",
    )
    command.add_argument(
        "--method", choices=["nearest", "optimal", "fast"], default="nearest", help="how scales are chosen (default: nearest)"
    )
    command.add_argument(
        "--clip-limit",
        type=float,
        metavar="PART",
        help="how far --method optimal may cut an element, as a part of the largest magnitude of its group (default: no limit)",
    )
    command.add_argument(
        "--importance",
        metavar="FILE",
        help="what --method optimal weights errors with: a vector for each tensor name; without it, magnitudes",
    )
    command.add_argument(
        "--shard-size",
        type=_bytes,
        metavar="SIZE",
        help="of the files of a folder, such as 2GB or 500MB (default: 5GB), or of a GGUF model",
    )
    command.add_argument(
        "--nonfinite",
        choices=["raise", "zero", "clip"],
        default="raise",
        help="what to do with NaN and infinities: stop (default), make them 0, or clip infinities to the group",
    )
    command.add_argument("--include", action="append", default=[], metavar="GLOB", help="quantize only tensors of such names; repeatable")
    command.add_argument("--exclude", action="append", default=[], metavar="GLOB", help="quantize no tensor of such names; repeatable")
    command.add_argument("--keep", action="append", default=[], metavar="NAME", help="copy this tensor unchanged; repeatable")
    command.add_argument(
        "--rule",
        action="append",
        default=[],
        type=_rule,
        metavar="GLOB=FORMAT[,OPTION=VALUE]",
        help="what tensors of such names become, or GLOB=keep; repeatable, the first that matches decides, and --to is for the rest",
    )
    command.add_argument(
        "--fallback",
        metavar="NAME",
        help="what a matrix of a GGUF file becomes whose rows its format does not divide: a format, or llama.cpp for its rule",
    )
    command.add_argument(
        "--requantize", action="store_true", help="quantize anew what is quantized already and cannot be held without loss; else it refuses"
    )
    command.add_argument(
        "--arch", metavar="NAME", help="make a GGUF file of a safetensors file: a model of images of this architecture, such as flux"
    )
    command.add_argument("--names", metavar="FILE", help="with --arch: a JSON object of tensors' names, the old one to the new one")


def _add_memory_limit(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--memory-limit",
        type=_bytes,
        metavar="SIZE",
        help="of what tensors take at a time (default: a quarter of the memory, at most 2GiB)",
    )


def _add_report(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--report", metavar="FILE", help="measure group by group and write it here: a page with pictures if it ends in .html, else JSON"
    )


def _add_work_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--threads", type=int, metavar="N", help="at most so many threads")
    command.add_argument("--quiet", action="store_true", help="no progress and no tables; errors and JSON still come")


def _group_size(text: str) -> int | str:
    return text if text in ("row", "tensor", "channel") else int(text)


def _rule(text: str) -> tuple[str, str]:
    pattern, equals, wish = text.partition("=")
    if not (pattern and equals and wish):
        raise argparse.ArgumentTypeError(f"{text!r} is no rule; expected GLOB=FORMAT or GLOB=keep")
    return pattern, wish


def _bytes(text: str) -> int:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
    found = re.fullmatch(r"(\d+)\s*([KMGT]I?B)?", text.strip().upper())
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size; expected one like 2GB or 500MiB")
    return int(found[1]) * units.get(found[2], 1)


_WANTED = (
    "format",
    "group_size",
    "scale_dtype",
    "method",
    "clip_limit",
    "importance",
    "nonfinite",
    "include",
    "exclude",
    "keep",
    "fallback",
    "requantize",
    "dequantize",
    "dtype",
    "arch",
    "names",
    "shard_size",
)


def _wanted(options: argparse.Namespace) -> dict[str, Any]:
    """Give the options that decide the bytes as arguments."""
    given = {"symmetric": options.symmetric, "double_quant": options.double_quant}
    variant = {name: value for name, value in given.items() if value is not None}
    return {name: getattr(options, name) for name in _WANTED} | {"rules": options.rule} | variant


def _convert(options: argparse.Namespace) -> None:
    if options.plan is not None:
        _convert_part(options)
        return
    if options.source is None:
        raise ValueError("IN is missing; expected what to convert, or --plan and --part")
    if options.part is not None:
        raise ValueError("--part is given; expected --plan with it")
    report = _files.convert(
        options.source,
        options.target,
        memory_limit=options.memory_limit,
        resume=options.resume,
        overwrite=options.overwrite,
        dry_run=options.dry_run,
        threads=options.threads,
        progress=not options.quiet,
        **_wanted(options),
    )
    if options.report and not report.dry_run:
        _report.report(options.source, options.target, conversion=report, progress=not options.quiet).write(options.report)
    _show(report, options)


def _convert_part(options: argparse.Namespace) -> None:
    alone = _parser().parse_args(["convert"])
    own = ("plan", "part", "memory_limit", "threads", "quiet", "json")
    given = [name for name, value in vars(alone).items() if name not in own and getattr(options, name) != value]
    if given or options.part is None:
        found = f"{given[0].replace('_', '-')} is given" if given else "--part is missing"
        raise ValueError(f"{found}; expected --plan PLAN --part I, and no option that the plan has")
    report = _files.convert_part(
        options.plan, options.part, memory_limit=options.memory_limit, threads=options.threads, progress=not options.quiet
    )
    _show(report, options)


def _plan(options: argparse.Namespace) -> None:
    shared = _files.plan(options.source, options.target, options.output, parts=options.parts, **_wanted(options))
    if options.json:
        _print_json(shared.to_dict())
    elif not options.quiet:
        shards = Counter(shared.part_of)
        _print_table(["part", "shards"], [[part, shards[part]] for part in range(shared.parts)], right={0, 1})
        print()
        following = "quantize convert --plan PLAN --part I for each part, then quantize finish PLAN"
        _print_table([], [["written", options.output], ["next", following]])


def _finish(options: argparse.Namespace) -> None:
    _show(_files.finish(options.plan), options)


def _show(report: _files.ConvertReport, options: argparse.Namespace) -> None:
    if options.json:
        _print_json(report.to_dict())
    elif not options.quiet:
        _print_report(report)


def _print_report(report: _files.ConvertReport) -> None:
    # A plan is read line by line; of a job that is done, what was kept is told in sum.
    shown = [tensor for tensor in report.tensors if report.dry_run or tensor.action != "keep"]
    rows: list[list[object]] = []
    for tensor in shown:
        becomes = {"keep": "kept", "refuse": "refused"}.get(tensor.action, tensor.becomes)
        why = tensor.reason or (f"rule {tensor.rule}" if tensor.rule else "")
        remark = why if tensor.sqnr_db is None else _decibels(tensor.sqnr_db)
        rows.append(
            [tensor.name, _shape(tensor.shape), tensor.dtype, becomes, amount(tensor.bytes_before), amount(tensor.bytes_after), remark]
        )
    if rows:
        last = "why" if report.dry_run else "SQNR"
        _print_table(["tensor", "shape", "dtype", "becomes", "before", "after", last], rows, right={1, 4, 5})
        print()
    kept = Counter(tensor.reason for tensor in report.tensors if tensor.action == "keep")
    if kept:
        _print_table(["kept", "why"], [[count, reason] for reason, count in kept.most_common()], right={0})
        print()
    fallen = Counter((tensor.fallback, tensor.becomes) for tensor in report.tensors if tensor.fallback)
    if fallen:
        _print_table(["fallback", "from", "to"], [[count, *pair] for pair, count in fallen.most_common()], right={0})
        print()

    done: Counter[str] = Counter(tensor.action for tensor in report.tensors)
    replaced = sum(tensor.replaced for tensor in report.tensors)
    summary = [["tensors", ", ".join(f"{done[action]} {word}" for action, word in _ACTIONS.items() if done[action]) or "none"]]
    percent = f" ({report.bytes_after / report.bytes_before:.1%})" if report.bytes_before else ""
    summary.append(["bytes", f"{amount(report.bytes_before)} -> {amount(report.bytes_after)}{percent}"])
    if report.bits_per_weight is not None:
        summary.append(["bits per weight", f"{report.bits_per_weight:.2f} where quantized"])
    if report.sqnr_db is not None:
        summary.append(["SQNR", _decibels(report.sqnr_db)])
    if report.worst is not None:
        summary.append(["worst tensor", _worst(report)])
    weighted = Counter(tensor.weights for tensor in report.tensors if tensor.weights)
    if weighted:
        by = ", ".join(f"{weights} ({count})" for weights, count in weighted.most_common())
        summary.append(["scales", f"of the smallest error, weighted by {by}"])
    if replaced:
        summary.append(["replaced", f"{replaced} elements that were not finite"])
    summary.append(["written", "nothing, this is the plan" if report.dry_run else f"{report.target} in {report.seconds:.1f} s"])
    _print_table([], summary)


_ACTIONS = {
    "quantize": "quantized",
    "repack": "repacked without loss",
    "requantize": "quantized anew",
    "dequantize": "decoded",
    "cast": "cast",
    "keep": "kept",
    "refuse": "refused",
}


def _inspect(options: argparse.Namespace) -> None:
    found = _files.inspect(options.file, check=options.check, progress=not options.quiet)
    if options.json:
        _print_json(found.to_dict())
    elif not options.quiet:
        _print_inspection(found)
    certain = sum(finding.certain for finding in found.findings)
    if options.strict and certain:
        raise PolicyError(f"{options.file}: {certain} findings that are certain")


def _print_inspection(found: _files.Inspection) -> None:
    rows = [
        [
            tensor.name,
            _shape(tensor.shape),
            tensor.dtype,
            tensor.format or "",
            "" if tensor.group_size is None else tensor.group_size,
            amount(tensor.nbytes),
            "" if tensor.format is None else f"{tensor.bits_per_weight:.2f}",
        ]
        for tensor in found.tensors
    ]
    _print_table(["tensor", "shape", "dtype", "format", "group", "size", "bits/weight"], rows, right={1, 4, 5, 6})
    kinds = Counter(tensor.format or tensor.dtype for tensor in found.tensors)
    summary = [
        ["container", found.container],
        ["tensors", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"],
        ["bytes", amount(found.nbytes)],
        *([f"metadata {key}", _value(value)] for key, value in found.metadata.items() if key != "quantize"),
    ]
    if found.bits_per_weight is not None:
        summary.insert(3, ["bits per weight", f"{found.bits_per_weight:.2f} where quantized"])
    print()
    _print_table([], summary)
    for finding in found.findings:
        where = "" if finding.tensor is None else f"{printable(finding.tensor)}: "
        print(f"\n{'' if finding.certain else 'perhaps '}{finding.kind}: {where}{printable(finding.message)}\n  {finding.advice}")


def _verify(options: argparse.Namespace) -> None:
    found = _files.verify(options.file, against=options.against, report=options.report, threads=options.threads, progress=not options.quiet)
    if options.json:
        _print_json(found.to_dict())
    elif not options.quiet:
        faults = [[tensor.name, tensor.reason] for tensor in found.faults]
        if faults:
            _print_table(["at fault", "why"], faults)
            print()
        kinds = Counter(tensor.verdict for tensor in found.tensors)
        _print_table([], [["tensors", ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"]])
    if not found.ok:
        count = "1 tensor is" if len(found.faults) == 1 else f"{len(found.faults)} tensors are"
        raise CorruptFileError(f"{options.file}: {count} at fault")


def _value(value: str | float | list[Any]) -> str:
    """Give a value of the metadata as text; of a list only the beginning, since a vocabulary is one."""
    if not isinstance(value, list):
        return str(value)
    more = ", ..." if len(value) > 4 else ""
    return f"{len(value)} values: {', '.join(map(str, value[:4]))}{more}"


def _compare(options: argparse.Namespace) -> None:
    report = _files.compare_files(
        options.first,
        options.second,
        optimum=options.optimum,
        importance=options.importance,
        threads=options.threads,
        progress=not options.quiet,
    )
    if options.report:
        _report.report(options.first, options.second, comparison=report, progress=not options.quiet).write(options.report)
    if options.json:
        _print_json(report.to_dict())
        return
    if options.quiet:
        return
    rows: list[list[object]] = []
    for tensor in report.tensors:
        numbers = ["", "", _VERDICTS.get(tensor.verdict, "")]
        if tensor.sqnr_db is not None:
            numbers = [f"{tensor.rmse:.3g}", f"{tensor.max_abs_error:.3g}", _decibels(tensor.sqnr_db)]
        if options.optimum:
            has_search = tensor.lower_bound is not None
            numbers += [f"{tensor.lower_bound:.3g}", f"{tensor.excess:.1%}", f"{tensor.share_improved:.1%}"] if has_search else [""] * 3
        rows.append([tensor.name, _shape(tensor.shape), tensor.first or "-", tensor.second or "-", *numbers])
    head = ["tensor", "shape", "A", "B", "RMSE", "max error", "SQNR"]
    head += ["lower bound", "excess", "improved"] if options.optimum else []
    _print_table(head, rows, right={1, 4, 5, 7, 8, 9})
    if report.sqnr_db is not None:
        print()
        _print_table([], [["SQNR", _decibels(report.sqnr_db)], ["worst tensor", _worst(report)]])


def _worst(report: _files.ConvertReport | _files.FileComparison) -> str:
    sqnr_db = next(tensor.sqnr_db for tensor in report.tensors if tensor.name == report.worst)
    return f"{report.worst}, {_decibels(sqnr_db)}"


_VERDICTS = {
    "same": "the same bytes",
    "different": "other bytes",
    "shapes": "the shapes differ",
    "dtypes": "the dtypes differ",
    "only first": "only in A",
    "only second": "only in B",
}


def _formats(options: argparse.Namespace) -> None:
    table = formats()
    if options.json:
        _print_json([format._asdict() | {"parts": dict(format.parts)} for format in table])
        return
    rows = [
        [
            format.name,
            ", ".join(format.aliases),
            format.scheme,
            f"{format.group_size} or any" if format.any_group_size else " or ".join(map(str, format.group_sizes)),
            f"{format.bits_per_weight:.2f}",
            ", ".join(format.scale_dtypes),
            ", ".join(name for name, _ in format.parts),
            format.home,
        ]
        for format in table
    ]
    _print_table(["format", "also", "scheme", "group", "bits/weight", "scales", "parts", "home"], rows)


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2, allow_nan=False))


def _print_table(head: list[str], rows: Sequence[Sequence[object]], right: Set[int] = frozenset()) -> None:
    """Print rows of cells in columns; the columns in ``right`` are aligned to that side."""
    longest = 120
    cells = [[printable(str(cell))[:longest] for cell in row] for row in [head, *rows] if row]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (cell.rjust(width) if at in right else cell.ljust(width) for at, (cell, width) in enumerate(zip(row, widths, strict=True)))
        print("  ".join(padded).rstrip())


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "scalar"


def _decibels(sqnr_db: float | None) -> str:
    if sqnr_db is None or sqnr_db != sqnr_db:
        return "not measured"
    return "exact" if sqnr_db == float("inf") else f"{sqnr_db:.1f} dB"


class _Stopped(BaseException):
    """The process was told to stop."""

    def __init__(self, word: str, code: int) -> None:
        super().__init__(word)
        self.code = code


_SIGNALS = {signal.SIGINT: ("interrupted", INTERRUPTED), signal.SIGTERM: ("terminated", TERMINATED)}


@contextmanager
def _stopped_by_signals() -> Generator[None]:
    """Turn signals into an exception, so that what is half done is cleaned up; only the main thread can."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # What a parent has set to be ignored, as for a job in the background, stays so.
    usual = (signal.SIG_DFL, signal.default_int_handler)
    before = {number: handler for number in _SIGNALS if (handler := signal.getsignal(number)) in usual}

    def stop(number: int, _: object) -> NoReturn:
        # A second word would only disturb the cleaning up, and the end that follows.
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        raise _Stopped(*_SIGNALS[signal.Signals(number)])

    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, handler)


@contextmanager
def _warnings_on_stderr() -> Generator[None]:
    """Show each warning in one line of ours."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        print(f"quantize: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.simplefilter("always", QuantizeWarning)
        warnings.showwarning = show
        yield
