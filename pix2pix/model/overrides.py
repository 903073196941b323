"""Corrections of what a model's file does not say: their names and values, as people give them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any


def checked_overrides(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The values by name, each of its type. Raises ValueError for other names and for values that make no sense."""
    values = {}
    for name, value in overrides.items():
        if name not in _TAKES:
            raise ValueError(f"cannot override {name!r}: expected one of {', '.join(_TAKES)}")
        parse, expected = _TAKES[name]
        try:
            values[name] = parse(value)
        except (TypeError, ValueError, OverflowError):
            raise ValueError(f"cannot override {name} with {value!r}: expected {expected}") from None
    return values


def _positive(value: Any) -> float:
    number = float(value)
    if not 0 < number < math.inf:
        raise ValueError
    return number


def _slope(value: Any) -> float:
    return 0.0 if float(value) == 0 else _positive(value)


def _pixels(value: Any) -> int:
    number = int(value)
    if number != float(value) or number < 1:
        raise ValueError
    return number


def _word(choices: Mapping[str, Any]) -> Callable[[Any], Any]:
    def parse(value: Any) -> Any:
        if str(value).lower() not in choices:
            raise ValueError
        return choices[str(value).lower()]

    return parse


_TAKES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "eps": (_positive, "a positive number"),
    "slope": (_slope, "a number, 0 or more"),
    "size": (_pixels, "a whole number of pixels"),
    "output_scale": (_positive, "a positive number"),
    "align_corners": (_word({"true": True, "false": False}), "true or false"),
    "padding_mode": (_word({"reflect": "reflect", "replicate": "replicate"}), "reflect or replicate"),
}
