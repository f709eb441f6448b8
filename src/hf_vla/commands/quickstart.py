"""The main job, end to end: demonstrations from a simulator -> a trained policy -> closed-loop success, with controls.

    hf-vla quickstart
    hf-vla quickstart --recipe libero_object

Runs `hf-vla record`, `hf-vla train RECIPE` and `hf-vla eval`, and prints each command. What is recorded and how the policy
is evaluated stand in the recipe, under `record` and `eval`. After an interruption the same command goes on where it was:
finished stages are not run again, a recording and an evaluation keep their finished episodes, and a training whose recipe
saves checkpoints goes on from the last one. Leaves result.json with the success rates beside the figures.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# One thread per process: the parallelism is in the processes, and idle threads that spin slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import yaml

from ..cards.sections import read_summary
from ..utils.files import atomic_write
from .command import command
from .packaged import RECIPES
from .parser import ArgumentParser, log_to_console, read_yaml

_SECONDS_BETWEEN_NOTES = 5.0
_CONTROLS = {"none": "trained", "blind": "blind", "wrong instruction": "wrong instruction", "untrained": "untrained"}


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla quickstart", description=__doc__)
    parser.add_argument("--recipe", default="quickstart", help="training recipe with the settings of the other stages")
    parser.add_argument("--output", help="folder for everything; default: outputs/RECIPE")
    parser.add_argument("--tasks", nargs="+", help="the simulator's tasks; default: the recipe's")
    parser.add_argument("--demonstrations", type=int, help="episodes to record for each task; default: the recipe's")
    parser.add_argument(
        "--episodes", type=int, help="episodes to evaluate for each task and control; default: the recipe's"
    )
    parser.add_argument(
        "--max-steps", type=int, help="steps after which an evaluated episode has failed; default: the recipe's"
    )
    parser.add_argument("--train-steps", type=int, help="training steps; default: the recipe's")
    return parser


class Stages:
    """Runs commands one after the other, and remembers in a file which are done and how long they took, interrupted ones too.

    Args:
        folder: where that file is.
        imports: what all of them import (`--import`).
    """

    def __init__(self, folder: Path, imports: Sequence[str] = ()):
        self.imports = [f"--import={name}" for name in imports]
        self.file = folder / "stages.json"
        #: stage -> whether it is "done", and "seconds" and "processor_seconds", which its processes together used
        self.stages: dict[str, dict[str, Any]] = json.loads(self.file.read_text()) if self.file.exists() else {}
        if not all(isinstance(stage, dict) for stage in self.stages.values()):
            raise ValueError(
                f"{self.file} is of an earlier version of hf-vla quickstart, which can't be continued; give another --output"
            )

    def done(self, name: str) -> bool:
        return bool(self.stages.get(name, {}).get("done"))

    def run(self, name: str, subcommand: str, *arguments: str, processes: int = 1) -> None:
        if self.done(name):
            print(f"[{name}] done already, in {self.stages[name]['seconds']:.0f} s", flush=True)
            return
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        command = [*launcher * (processes > 1), "-m", "hf_vla", subcommand, *arguments, *self.imports]
        print(f"[{name}] python {shlex.join(command)}", flush=True)
        before = self.stages.get(name, {"seconds": 0.0, "processor_seconds": 0.0})
        start, ended, used, status = time.monotonic(), _ended_seconds(), 0.0, None
        process = subprocess.Popen([sys.executable, *command])
        try:
            while status is None:
                # What a stage used until it is killed is known to this interval.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    status = process.wait(timeout=_SECONDS_BETWEEN_NOTES)
                # Gone at the end: then what it used in all is known to the system.
                running = _processor_seconds(process.pid) if status is None else _ended_seconds() - ended
                used = max(used, running)
                self.stages[name] = {
                    "done": status == 0,
                    "seconds": before["seconds"] + time.monotonic() - start,
                    "processor_seconds": before["processor_seconds"] + used,
                }
                write_json(self.file, self.stages)
        finally:
            if status is None:  # interrupted
                process.terminate()
                process.wait()
        if status:
            raise OSError(f"stage {name} failed with status {status}; see its message above")
        took = self.stages[name]
        print(
            f"[{name}] took {took['seconds']:.0f} s, and {took['processor_seconds']:.0f} s of processor time",
            flush=True,
        )


def _ended_seconds() -> float:
    """The processor time of all processes that this one started and that have ended."""
    times = os.times()
    return times.children_user + times.children_system


def _processor_seconds(pid: int) -> float:
    """The processor time so far of a process and all that it started; 0 if it has ended."""
    import psutil  # accelerate brings it

    try:
        parent = psutil.Process(pid)
        times = [process.cpu_times() for process in (parent, *parent.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0.0
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def write_json(file: Path, content: dict) -> None:
    with atomic_write(file) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def write_settings(file: Path, content: dict[str, Any]) -> str:
    """Write a command's settings into a YAML file for it, and return the file's name."""
    with atomic_write(file) as partial:
        partial.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return str(file)


def successes(summary: Path) -> tuple[dict[str, dict[str, int]], int]:
    """Return the solved episodes, control -> task -> number, and how many there are of each task.

    The policy itself is the control "none".
    """
    rows = read_summary(summary)
    if not rows:
        raise ValueError(f"{summary} is not a table of hf-vla eval: it has other columns, or no rows")
    found: dict[str, dict[str, int]] = {}
    for row in rows:
        found.setdefault(row["control"], {})[row["task"]] = int(row["successes"])
    return found, int(rows[0]["episodes"])


@command(extra="sim")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    import torch

    from ..cards.model_card import add_results

    recipe = read_yaml(arguments.recipe, RECIPES)
    if not isinstance(recipe.get("record"), dict) or not isinstance(recipe.get("eval"), dict):
        raise ValueError(
            f"the recipe {arguments.recipe} does not say what to record and how to evaluate; it needs `record` and `eval`, with "
            "the settings of hf-vla record and hf-vla eval"
        )
    recording, evaluating = dict(recipe["record"]), dict(recipe["eval"])
    if arguments.tasks:
        for settings in (recording, evaluating):
            settings.pop("suite", None)
            settings["task"] = arguments.tasks
    recording |= _given(episodes=arguments.demonstrations)
    evaluating |= _given(episodes=arguments.episodes, max_steps=arguments.max_steps)

    output = Path(arguments.output or Path("outputs") / Path(arguments.recipe).stem)
    demonstrations, policy, evaluation = output / "demonstrations", output / "policy", output / "evaluation"
    workers = str(min(2, os.cpu_count() or 1))
    output.mkdir(parents=True, exist_ok=True)
    stages = Stages(output, getattr(arguments, "import") or ())
    stages.run(
        "record", "record", write_settings(output / "record.yaml", recording),
        "--output", str(demonstrations), "--num-workers", workers,
    )  # fmt: skip
    options = ["--max_steps", str(arguments.train_steps)] if arguments.train_steps else []
    processes = 1
    batch = int(recipe.get("per_device_train_batch_size", 8))
    if not torch.accelerator.is_available() and (os.cpu_count() or 1) > 1 and batch % 2 == 0:
        processes = 2  # one thread each; the batch is split between them
        options += ["--use_cpu", "true", "--per_device_train_batch_size", str(batch // processes)]
    if any(policy.glob("checkpoint-*")):
        options += ["--resume_from_checkpoint", "true"]
    elif policy.exists() and not stages.done("train"):
        shutil.rmtree(policy)  # of a run that was interrupted before it saved anything
    stages.run(
        "train", "train",
        arguments.recipe, "--dataset", str(demonstrations), "--output_dir", str(policy), *options,
        processes=processes,
    )  # fmt: skip
    stages.run(
        "evaluate", "eval", write_settings(output / "eval.yaml", evaluating),
        "--model", str(policy), "--output", str(evaluation), "--num-workers", workers,
    )  # fmt: skip
    summary = evaluation / "success_summary.csv"
    solved, episodes = successes(summary)
    result = {
        "episodes": episodes,
        "success": solved["none"],
        **{f"{control.replace(' ', '_')}_success": solved[control] for control in solved if control != "none"},
        "minutes": round(sum(stage["seconds"] for stage in stages.stages.values()) / 60, 2),
        "processor_minutes": round(sum(stage["processor_seconds"] for stage in stages.stages.values()) / 60, 2),
        "policy": str(policy),
    }
    write_json(output / "result.json", result)
    add_results(policy, summary)
    columns = [control for control in _CONTROLS if control in solved]
    print(f"\n{'task':28s}" + "".join(f" {_CONTROLS[name]:>18s}" for name in columns) + f"   of {episodes} episodes")
    for task in solved["none"]:
        print(f"{task:28s}" + "".join(f" {solved[name][task]:18d}" for name in columns))
    print(f"{result['minutes']:.1f} minutes; results in {output / 'result.json'}")
    print(f"figures: {policy / 'loss.png'}, {evaluation / 'success_summary.png'}; videos: {evaluation / 'videos'}")
    print(f"all on one page: hf-vla report {output}")
    print(f'load it: hf_vla.Policy.from_pretrained("{policy}")')


def _given(**settings: Any) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if value is not None}
