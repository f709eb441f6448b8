"""Stages of a prediction that a stopwatch can time, such as the backbone.

Nothing is registered on modules, so one policy can be timed in several threads at once.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

_timer = threading.local()


def stage(name: str) -> AbstractContextManager:
    """Return a context manager for the code of stage `name`. It does nothing unless this thread is inside of `timed_by`."""
    timer = None if torch.compiler.is_compiling() else getattr(_timer, "current", None)
    return contextlib.nullcontext() if timer is None else timer(name)


@contextlib.contextmanager
def timed_by(timer: Callable[[str], AbstractContextManager]) -> Iterator[None]:
    """Enter `timer(name)` around each stage that runs in this thread inside of the context."""
    before, _timer.current = getattr(_timer, "current", None), timer
    try:
        yield
    finally:
        _timer.current = before


__all__ = ["stage", "timed_by"]
