"""How the system schedules this process."""

import contextlib
import os


@contextlib.contextmanager
def kept_scheduling():
    """Undo what SVT-AV1 does when root encodes with it: it makes the calling thread a real-time one (SCHED_FIFO, 99).

    It would stay so, with all that it starts, and on few cores everything else would wait for it: simulators, servers, browsers.
    """
    if not hasattr(os, "sched_setscheduler"):  # not Linux
        yield
        return
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)
