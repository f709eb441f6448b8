"""Stages of a prediction that a stopwatch can time: the backbone, and what else encodes the observation.

Nothing is registered on a module, so that one policy can be timed in several threads at once.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import torch

_timer = threading.local()


def stage(name: str) -> AbstractContextManager:
    """A context for what belongs to stage `name`. It does nothing unless this thread is within `timed_by`."""
    timer = None if torch.compiler.is_compiling() else getattr(_timer, "current", None)
    return contextlib.nullcontext() if timer is None else timer(name)


@contextlib.contextmanager
def timed_by(timer: Callable[[str], AbstractContextManager]) -> Iterator[None]:
    """Within it, `timer(name)` is entered around each stage that runs in this thread."""
    before, _timer.current = getattr(_timer, "current", None), timer
    try:
        yield
    finally:
        _timer.current = before


__all__ = ["stage", "timed_by"]
