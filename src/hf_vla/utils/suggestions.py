"""Suggestions in errors about unknown names: the known names that look most like them."""

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(name, known: Iterable[str], otherwise: str = "", *, cutoff: float = 0.6) -> str:
    """Return the end of an error about an unknown name: "; did you mean A or B?", with up to three known names.

    Args:
        name: the unknown name.
        known: the possible ones.
        otherwise: the text if none of them looks like it.
        cutoff: how alike names must be, from 0 to 1.

    ```python
    >>> did_you_mean("episode", ["episodes", "task"])
    '; did you mean episodes?'
    >>> did_you_mean("seed", ["episodes", "task"], otherwise="possible: episodes, task")
    '; possible: episodes, task'

    ```
    """
    near = get_close_matches(str(name), list(known), cutoff=cutoff)
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; {otherwise}" if otherwise else ""


def nearest_first(name, known: Iterable[str]) -> list[str]:
    """Return `known` with those first that look most like `name`, for errors that list all of them."""
    known = list(known)
    near = get_close_matches(str(name), known, n=5, cutoff=0.4)
    return near + [other for other in known if other not in near]


__all__ = ["did_you_mean", "nearest_first"]
