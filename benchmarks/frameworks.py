"""Train every framework on the quickstart's data, with its backbone and number of steps, and evaluate it beside a blind control.

    make quickstart
    python benchmarks/frameworks.py --demonstrations outputs/quickstart/demonstrations --output outputs/frameworks

Each is trained by the recipes quickstart_*, in one process with one thread, and evaluated on seeds that no demonstration used.
Writes frameworks.csv and prints its rows as a table.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

TASKS = ("button-press-topdown", "drawer-open", "window-open")
RECIPES = {
    "qwen_pi_v3": "quickstart",
    "qwen_pi": "quickstart_pi",
    "qwen_gr00t": "quickstart_gr00t",
    "qwen_dual": "quickstart_dual",
    "qwen_oft": "quickstart_oft",
    "qwen_fast": "quickstart_fast",
    "qwen_adapter": "quickstart_adapter",
    "qwen_discrete_diffusion": "quickstart_discrete_diffusion",
}


def run(command: str, *arguments) -> tuple[float, float]:
    """Run `hf-vla COMMAND`; return its minutes of wall-clock and of processor time (which a busy machine hardly changes)."""
    start, before = time.monotonic(), os.times()
    subprocess.run([sys.executable, "-m", "hf_vla", command, *map(str, arguments)], check=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return round((time.monotonic() - start) / 60, 1), round(cpu / 60, 1)


class Stages:
    """Run commands that are not finished yet, and record their minutes of wall-clock and of processor time."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.file = folder / "minutes.json"
        self.minutes: dict[str, dict[str, float]] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def run(self, name: str, command: str, output: Path, *arguments, resumable: bool = False) -> Path:
        """Run `hf-vla COMMAND`, which writes `output`, and return that; without `resumable`, it begins from nothing."""
        if name not in self.minutes:
            if output.exists() and not resumable:
                shutil.rmtree(output)  # of a run that was interrupted
            clock, cpu = run(command, *arguments)
            self.minutes[name] = {"clock": clock, "cpu": cpu}
            self.file.write_text(json.dumps(self.minutes, indent=2))
        return output


def measure(framework: str, demonstrations: Path, output: Path, steps: int | None, episodes: int) -> dict:
    policy, evaluation = output / framework / "policy", output / framework / "evaluation"
    result_file = output / framework / "result.json"
    if result_file.exists():
        return json.loads(result_file.read_text())
    more = ["--max_steps", steps] if steps else []
    train = run("train", RECIPES[framework], "--dataset", demonstrations, "--output_dir", policy, *more)
    options = ["--episodes", episodes, "--max-steps", 250, "--blind", "--no-untrained-baseline", "--num-videos", 0]
    evaluate = run("eval", "--model", policy, "--task", *TASKS, "--output", evaluation, *options)
    row = {"framework": framework}
    with (evaluation / "success_summary.csv").open(newline="") as file:
        for entry in csv.DictReader(file):
            row[f"{entry['task']} {'blind' if entry['control'] == 'blind' else 'sighted'}"] = int(entry["successes"])
    row |= {
        "episodes": episodes,
        "train_minutes": train[0],
        "train_cpu_minutes": train[1],
        "evaluate_minutes": evaluate[0],
    }
    result_file.write_text(json.dumps(row, indent=2))
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--demonstrations", type=Path, default=Path("outputs/quickstart/demonstrations"))
    parser.add_argument("--output", type=Path, default=Path("outputs/frameworks"))
    parser.add_argument("--frameworks", nargs="+", choices=list(RECIPES), default=list(RECIPES))
    parser.add_argument("--steps", type=int, help="training steps; default: the recipe's")
    parser.add_argument("--episodes", type=int, default=20, help="episodes for each task and control")
    a = parser.parse_args()
    rows = [measure(name, a.demonstrations, a.output, a.steps, a.episodes) for name in a.frameworks]
    with (a.output / "frameworks.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    columns = list(rows[0])
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    for row in rows:
        print("| " + " | ".join(str(row[name]) for name in columns) + " |")


if __name__ == "__main__":
    main()
