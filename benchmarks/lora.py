"""Train a policy on some tasks and adapt it to another by LoRA from its checkpoint: success before and after.

    python benchmarks/lora.py --output outputs/lora

Records demonstrations of the first tasks and of the new one, trains the quickstart's policy on the first, evaluates it, trains
an adapter on the new one (the recipe quickstart_lora), and evaluates the adapter's folder, on seeds that no demonstration
used. A stage whose output exists is not run again. Writes result.json and prints a table.

The policy's vocabulary is made from the first tasks' instructions, so that it spells the words of the new one in bytes.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

from frameworks import run
from safetensors import safe_open

NOISE = 0.1  # as the quickstart's


def parameters(folder: Path, file: str) -> int:
    with safe_open(folder / file, "pt") as tensors:
        return sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 - not a mapping


class Stages:
    """Run commands whose output does not exist yet, and record their minutes of wall-clock and of processor time."""

    def __init__(self, folder: Path):
        self.file = folder / "minutes.json"
        self.minutes: dict = json.loads(self.file.read_text()) if self.file.exists() else {}

    def run(self, name: str, command: str, output: Path, *arguments) -> Path:
        if name not in self.minutes:
            if output.exists():
                shutil.rmtree(output)  # of a run that was interrupted
            clock, cpu = run(command, *arguments)
            self.minutes[name] = {"clock": clock, "cpu": cpu}
            self.file.write_text(json.dumps(self.minutes, indent=2))
        return output


def successes(evaluation: Path) -> dict[str, int]:
    with (evaluation / "success_summary.csv").open(newline="") as file:
        return {row["task"]: int(row["successes"]) for row in csv.DictReader(file)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/lora"))
    parser.add_argument("--tasks", nargs="+", default=["button-press-topdown", "window-open"], help="first tasks")
    parser.add_argument("--new-task", default="drawer-open")
    parser.add_argument("--demonstrations", type=int, default=100, help="episodes to record for each task")
    parser.add_argument("--first-data", type=Path, help="dataset of the first tasks, in place of recording one")
    parser.add_argument("--new-data", type=Path, help="dataset of the new task, in place of recording one")
    parser.add_argument("--steps", type=int, default=1600, help="training steps on the first tasks")
    parser.add_argument("--adapter-steps", type=int, default=800, help="training steps on the new task")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to evaluate for each task")
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    stages = Stages(a.output)

    def record(name: str, tasks: list[str]) -> Path:
        output = a.output / name
        options = ["--episodes", a.demonstrations, "--noise", NOISE, "--output", output]
        return stages.run(name, "record", output, "--task", *tasks, *options)

    def train(name: str, recipe: str, data: Path, steps: int, *more) -> Path:
        output = a.output / name
        options = ["--dataset", data, "--output_dir", output, "--max_steps", steps, *more]
        return stages.run(name, "train", output, recipe, *options)

    def evaluate(name: str, model: Path) -> dict[str, int]:
        output = a.output / name
        options = ["--episodes", a.episodes, "--max-steps", 250, "--no-untrained-baseline", "--num-videos", 0]
        command = ["--model", model, "--task", *a.tasks, a.new_task, "--output", output, *options]
        return successes(stages.run(name, "eval", output, *command))

    first = a.first_data or record("first_data", a.tasks)
    new = a.new_data or record("new_data", [a.new_task])
    policy = train("policy", "quickstart", first, a.steps)
    before = evaluate("before", policy)
    adapter = train("adapter", "quickstart_lora", new, a.adapter_steps, "--policy", policy)
    after = evaluate("after", adapter)
    result = {
        "episodes": a.episodes,
        "new_task": a.new_task,
        "before": before,
        "after": after,
        "steps": {"policy": a.steps, "adapter": a.adapter_steps},
        "parameters": {
            "policy": parameters(policy, "model.safetensors"),
            "adapter": parameters(adapter, "adapter_model.safetensors"),
        },
        "minutes": stages.minutes,
    }
    (a.output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(
        f"| solved, of {a.episodes} | before | after {a.adapter_steps} steps of LoRA on {a.new_task} |\n|---|---|---|"
    )
    for task in before:
        print(f"| {task} | {before[task]} | {after[task]} |")
    print(f"parameters: policy {result['parameters']['policy']:,}, adapter {result['parameters']['adapter']:,}")


if __name__ == "__main__":
    main()
