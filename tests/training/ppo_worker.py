"""One of two processes that torchrun started on the CPU, for `test_ppo.py`: the run of `one_run`, under DDP or FSDP2.

torchrun --nproc_per_node 2 ppo_worker.py '{"folder": …, "environment": …}'
"""

import functools
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from cpu_processes import allow_fsdp2  # noqa: E402
from test_ppo import one_run  # noqa: E402
from toy import InThisProcess, ToyBandit  # noqa: E402

from hf_vla.evaluation.collection import Collector  # noqa: E402

if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    if options["environment"]:
        allow_fsdp2(options["environment"])
    make = functools.partial(ToyBandit, chunks=2)
    with Collector({"twice": make}, num_workers=0, workers=[InThisProcess(make)], execute_steps=3) as collect:
        one_run(options["folder"], collect)
