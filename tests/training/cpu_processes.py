"""Processes on the CPU that pass for such of a GPU."""

import os


def allow_fsdp2(environment: dict[str, str]) -> None:
    """Set what accelerate's launcher would, and let it use FSDP2, which it does for every kind of device but the CPU."""
    from accelerate.state import DistributedType, PartialState

    initialise = PartialState.__init__

    def initialise_as_gpu(state, *args, **kwargs):
        initialise(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = initialise_as_gpu
    os.environ.update(environment)
