"""Run by torchrun: evaluates a recipe's untrained policy, in open and closed loop, and writes what each process found."""

import json
import os
import sys

import torch.distributed as dist
from test_evaluation import trainer_for

recipe, output, *flags = sys.argv[1:]


def closed_loop(model, processor):
    return {"success": 0.5, "rank": dist.get_rank()}


def broken(model, processor):
    raise ValueError("the simulator is gone")


trainer = trainer_for(recipe, *flags, closed_loop=closed_loop)
found = {"both": trainer.evaluate()}
trainer.eval_dataset = []
found["closed loop only"] = trainer.evaluate()
trainer.closed_loop = broken
try:
    trainer.evaluate()
except (ValueError, RuntimeError) as error:
    found["error"] = str(error)
with open(f"{output}/{os.environ['RANK']}.json", "w") as file:
    json.dump(found, file)
dist.barrier()  # one that leaves early can abort the other, which still reads from it
dist.destroy_process_group()
