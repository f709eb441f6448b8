"""Checks of arguments that several modules take: numbers, and whole numbers."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any


def is_number(value: Any) -> bool:
    """Return whether it is a real number; True and False are not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_integer(value: Any, least: float = float("-inf")) -> bool:
    """Return whether it is a whole number of at least `least`; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool) and value >= least


def integers(name: str, values: Any) -> list[int]:
    """Return a list of whole numbers.

    Raises:
        ValueError: it is something else; the message starts with `name`.
    """
    listed = list(values) if isinstance(values, Iterable) and not isinstance(values, (str, bytes, dict)) else None
    if listed is None or not all(map(is_integer, listed)):
        raise ValueError(f"{name} must be a list of whole numbers, got {values!r:.200}")
    return [int(value) for value in listed]
