"""Processes that work for this one."""

from __future__ import annotations

import multiprocessing
import os
import threading


def one_thread_per_process() -> None:
    """Let processes that are started from now on compute in one thread each, unless the environment says otherwise.

    Several processes with several threads each would compete for the cores.
    """
    for name, value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE")):
        os.environ.setdefault(name, value)


def exit_with_parent() -> None:
    """End this process as soon as the one that started it has ended, however that came about."""
    threading.Thread(target=_exit_after_parent, daemon=True).start()


def _exit_after_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


__all__ = ["exit_with_parent", "one_thread_per_process"]
