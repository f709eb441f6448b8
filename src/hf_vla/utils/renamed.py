"""Old names of arguments and settings that still work for one release, with a warning."""

import warnings
from collections.abc import Mapping
from typing import Any


def with_new_names(values: Mapping[str, Any], renamed: Mapping[str, str], where: str) -> dict[str, Any]:
    """`values` with old names replaced by new ones; each old name is a FutureWarning.

    Args:
        renamed: old name -> new name.
        where: what holds the values, such as a function or a file; the warning starts with it.

    Raises:
        ValueError: a value is given under both its old and its new name.
    """
    values = dict(values)
    for old, new in renamed.items():
        if old not in values:
            continue
        if new in values:
            raise ValueError(f"{where}: {old} is the old name of {new}, and both are given; leave out {old}")
        warnings.warn(f"{where}: {old} is now called {new}; the old name goes with the next release", FutureWarning, 3)
        values[new] = values.pop(old)
    return values


__all__ = ["with_new_names"]
