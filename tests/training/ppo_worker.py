"""One of two processes that torchrun started on the CPU, for `test_ppo.py`: the run of `one_run`, under DDP or FSDP2.

torchrun --nproc_per_node 2 ppo_worker.py '{"folder": …, "environment": …}'
"""

import functools
import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from test_ppo import one_run  # noqa: E402
from toy import InThisProcess, ToyBandit  # noqa: E402

from hf_vla.evaluation.collection import Collector  # noqa: E402


def under_fsdp2(environment: dict[str, str]) -> None:
    """accelerate has FSDP2 for processes of every accelerator but the CPU: these pass for such."""
    from accelerate.state import DistributedType, PartialState

    initialise = PartialState.__init__

    def initialise_as_gpu(state, *args, **kwargs):
        initialise(state, *args, **kwargs)
        if state.distributed_type == DistributedType.MULTI_CPU:
            state.distributed_type = DistributedType.MULTI_GPU

    PartialState.__init__ = initialise_as_gpu
    os.environ.update(environment)


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    if options["environment"]:
        under_fsdp2(options["environment"])
    make = functools.partial(ToyBandit, chunks=2)
    with Collector({"twice": make}, num_workers=0, workers=[InThisProcess(make)], execute_steps=3) as collect:
        one_run(options["folder"], collect)
