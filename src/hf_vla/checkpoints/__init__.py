"""Checkpoints in all formats behind one function: this package's, StarVLA's native one, adapters."""

from ..utils.lazy import lazy_names

_LAZY = {"Checkpoint": "checkpoint", "find_checkpoint": "opening", "open_checkpoint": "opening"}
__all__ = sorted(_LAZY)
__getattr__, __dir__ = lazy_names(__name__, _LAZY)
