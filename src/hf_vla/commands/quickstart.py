"""The main job, end to end: demonstrations from a simulator -> a trained policy -> closed-loop success, with controls.

    hf-vla quickstart --output outputs/quickstart

Runs `hf-vla record`, `hf-vla train quickstart` and `hf-vla eval`, and prints each command. A stage that is
finished is not run again after an interruption. Leaves result.json with the success rates beside the figures.
"""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

# One thread per process: the parallelism is in the processes, and idle threads that spin slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ..utils.files import atomic_write
from .command import command
from .parser import ArgumentParser, log_to_console

# On the executed actions, not on the recorded ones: the expert shows how to come back (Laskey et al. 2017).
NOISE = 0.1
TASKS = ("button-press-topdown", "drawer-open", "window-open")


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla quickstart", description=__doc__)
    parser.add_argument("--output", default="outputs/quickstart", help="folder for everything")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="MetaWorld tasks of the one policy")
    parser.add_argument("--demonstrations", type=int, default=100, help="episodes to record for each task")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to evaluate for each task and control")
    parser.add_argument("--max-steps", type=int, default=250, help="steps after which an evaluated episode has failed")
    parser.add_argument("--recipe", default="quickstart", help="training recipe")
    parser.add_argument("--train-steps", type=int, help="training steps; default: the recipe's")
    return parser


class Stages:
    """Runs commands one after the other, and remembers in a file which are done and how long they took.

    Args:
        folder: where that file is.
        imports: what all of them import (`--import`).
    """

    def __init__(self, folder: Path, imports: Sequence[str] = ()):
        self.imports = [f"--import={name}" for name in imports]
        self.file = folder / "stages.json"
        self.seconds: dict[str, float] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def run(self, name: str, subcommand: str, output: Path, *arguments: str, processes: int = 1) -> None:
        if name in self.seconds:
            print(f"[{name}] done already, in {self.seconds[name]:.0f} s", flush=True)
            return
        if output.exists():
            shutil.rmtree(output)  # of a run that was interrupted
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*launcher * (processes > 1), "-m", "hf_vla", subcommand, *arguments, *self.imports]
        print(f"[{name}] python {shlex.join(command)}", flush=True)
        start = time.monotonic()
        status = subprocess.run([sys.executable, *command]).returncode
        if status:
            raise OSError(f"stage {name} failed with status {status}; see its message above")
        self.seconds[name] = time.monotonic() - start
        write_json(self.file, self.seconds)
        print(f"[{name}] took {self.seconds[name]:.0f} s", flush=True)


def write_json(file: Path, content: dict) -> None:
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def successes(summary: Path, tasks: list[str], control: str) -> dict[str, int]:
    """Return the solved episodes per task, of the policy itself ("none") or of a control."""
    with summary.open(newline="") as file:
        rows = {(row["task"], row["control"]): int(row["successes"]) for row in csv.DictReader(file)}
    return {task: rows[task, control] for task in tasks}


@command(extra="sim")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    import torch

    from ..cards.model_card import add_results

    output, tasks = Path(arguments.output), arguments.tasks
    demonstrations, policy, evaluation = output / "demonstrations", output / "policy", output / "evaluation"
    workers = str(min(2, os.cpu_count() or 1))
    output.mkdir(parents=True, exist_ok=True)
    stages = Stages(output, getattr(arguments, "import") or ())
    stages.run(
        "record", "record", demonstrations,
        "--env", "metaworld", "--task", *tasks, "--episodes", str(arguments.demonstrations),
        "--noise", str(NOISE), "--output", str(demonstrations), "--num-workers", workers,
    )  # fmt: skip
    options = ["--max_steps", str(arguments.train_steps)] if arguments.train_steps else []
    processes = 1
    if not torch.accelerator.is_available() and (os.cpu_count() or 1) > 1:
        processes = 2  # one thread each; the batch of 32 is split between them
        options += ["--use_cpu", "true", "--per_device_train_batch_size", "16"]
    stages.run(
        "train", "train", policy,
        arguments.recipe, "--dataset", str(demonstrations), "--output_dir", str(policy), *options,
        processes=processes,
    )  # fmt: skip
    stages.run(
        "evaluate", "eval", evaluation,
        "--model", str(policy), "--env", "metaworld", "--task", *tasks, "--episodes", str(arguments.episodes),
        "--max-steps", str(arguments.max_steps), "--blind", "--output", str(evaluation), "--num-workers", workers,
    )  # fmt: skip
    summary = evaluation / "success_summary.csv"
    result = {
        "episodes": arguments.episodes,
        "success": successes(summary, tasks, "none"),
        "untrained_success": successes(summary, tasks, "untrained"),
        "blind_success": successes(summary, tasks, "blind"),
        "minutes": round(sum(stages.seconds.values()) / 60, 2),
        "policy": str(policy),
    }
    write_json(output / "result.json", result)
    add_results(policy, summary)
    print(f"\n{'task':28s} {'trained':>8s} {'blind':>8s} {'untrained':>10s}   of {arguments.episodes} episodes")
    for task in tasks:
        row = (result[name][task] for name in ("success", "blind_success", "untrained_success"))
        print("{:28s} {:8d} {:8d} {:10d}".format(task, *row))
    print(f"{result['minutes']:.1f} minutes; results in {output / 'result.json'}")
    print(f"figures: {policy / 'loss.png'}, {evaluation / 'success_summary.png'}; videos: {evaluation / 'videos'}")
    print(f'load it: hf_vla.Policy.from_pretrained("{policy}")')
