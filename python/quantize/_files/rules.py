"""Rules: what tensors of some names become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from quantize._types import GroupSize

Rules: TypeAlias = "Mapping[str, str] | Sequence[tuple[str, str]]"
"""Patterns of names, each with ``"keep"`` or a format and its options, such as ``"int4,group_size=64"``; the first that matches decides."""

Parsed: TypeAlias = "tuple[str, tuple[str, GroupSize | None, str | None, dict[str, Any] | None] | None]"
"""A pattern, and format, group size, dtype of scales and other options; None where tensors are kept."""


def listed(rules: Rules) -> list[tuple[str, str]]:
    """Give rules as pairs, in their order."""
    return [(pattern, wish) for pattern, wish in (rules.items() if isinstance(rules, Mapping) else rules)]


def parsed(rule: tuple[str, str]) -> Parsed:
    """Read what a rule asks for.

    Raises
    ------
    ValueError
        An option without a value.
    """
    pattern, wish = rule
    if wish == "keep":
        return pattern, None
    format, *given = (word.strip() for word in wish.split(","))
    options: dict[str, Any] = {}
    for word in given:
        name, equals, value = word.partition("=")
        if not equals:
            raise ValueError(f"the rule of {pattern!r} has {word!r}; expected NAME=VALUE, such as group_size=64")
        options[name.strip()] = _value(value.strip())
    group_size, scale_dtype = options.pop("group_size", None), options.pop("scale_dtype", None)
    return pattern, (format, group_size, scale_dtype, options or None)


def _value(text: str) -> Any:
    named = {"true": True, "false": False}
    if text.lower() in named:
        return named[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
