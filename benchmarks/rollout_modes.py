"""What becomes of success and smoothness if the policy is late, for each way to execute its chunks.

    python benchmarks/rollout_modes.py --model outputs/quickstart/policy --output outputs/rollout_modes

Closed loop in MetaWorld with an artificial inference delay: a chunk is used only so many control steps after its observation, while
the chunks before it go on. Results do not depend on how fast the machine is. Every mode and delay runs the same episodes. Writes
episodes.csv, which an interrupted run goes on with, table.md and rollout_modes.png.

* success: episodes that were solved within the step limit.
* steps: to success, of those that were solved.
* jerk: mean of |a(t+1) - 2 a(t) + a(t-1)| over the executed actions and their dimensions; 1 is half of an action's range.
* seam: mean of |a(t) - a(t-1)| where a new chunk takes over; for ensembles, which do so at almost every step, everywhere.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_vla import Policy
from hf_vla.evaluation import make_environment
from hf_vla.evaluation.rollout import stream_episode
from hf_vla.inference import ChunkRule

#: What each mode is called in the figure, and what it executes between two requests: half of the quickstart's chunk of 8, so that a
#: delay of 4 is possible; ensembles ask whenever the policy is free.
MODES = {
    "open_loop": ("newest chunk", {"execute": 4}),
    "temporal_ensemble": ("ACT's ensemble", {}),
    "adaptive_ensemble": ("StarVLA's ensemble", {}),
    "real_time_chunking": ("real-time chunking", {"execute": 4}),
}
FIELDS = ("mode", "delay", "task", "seed", "success", "steps", "jerk", "seam")


def measure(policy: Policy, environment, seed: int, rule: ChunkRule) -> dict[str, float]:
    steps = list(stream_episode(policy, environment, seed, chunk_rule=rule))
    actions = np.stack([step.action for step in steps[1:]]).astype(np.float64)
    borders = [number for number, step in enumerate(steps[1:]) if step.new_chunk and number]
    jumps = np.abs(np.diff(actions, axis=0)).mean(axis=1)
    return {
        "success": int(steps[-1].success),
        "steps": steps[-1].number,
        "jerk": np.abs(np.diff(actions, n=2, axis=0)).mean(),
        "seam": np.mean([jumps[number - 1] for number in borders]),
    }


def read(file: Path) -> list[dict[str, str]]:
    if not file.exists():
        return []
    with file.open(newline="") as opened:
        return list(csv.DictReader(opened))


def summarize(rows: list[dict[str, str]]) -> dict[tuple[str, int], dict[str, float]]:
    """(mode, delay) -> the means over all episodes."""
    cells: dict[tuple[str, int], list[dict[str, str]]] = {}
    for row in rows:
        cells.setdefault((row["mode"], int(row["delay"])), []).append(row)
    return {
        key: {
            "episodes": len(cell),
            "success": sum(int(row["success"]) for row in cell),
            "steps": np.mean([int(row["steps"]) for row in cell if row["success"] == "1"] or [np.nan]),
            "jerk": np.mean([float(row["jerk"]) for row in cell]),
            "seam": np.mean([float(row["seam"]) for row in cell]),
        }
        for key, cell in sorted(cells.items(), key=lambda item: (list(MODES).index(item[0][0]), item[0][1]))
    }


def table(summary: dict[tuple[str, int], dict[str, float]]) -> str:
    lines = ["| chunks | delay | solved | steps | jerk | seam |", "|---|---|---|---|---|---|"]
    for (mode, delay), cell in summary.items():
        lines.append(
            f"| {MODES[mode][0]} | {delay} | {cell['success']} of {cell['episodes']} | {cell['steps']:.0f} | {cell['jerk']:.3f} | "
            f"{cell['seam']:.3f} |"
        )
    return "\n".join(lines)


def plot(summary: dict[tuple[str, int], dict[str, float]], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    for axis, (name, label) in zip(
        axes, {"success": "solved, %", "jerk": "jerk", "seam": "jump at a new chunk"}.items(), strict=True
    ):
        for mode, (title, _) in MODES.items():
            cells = {delay: cell for (of, delay), cell in summary.items() if of == mode}
            values = [100 * c["success"] / c["episodes"] if name == "success" else c[name] for c in cells.values()]
            axis.plot(list(cells), values, marker="o", label=title)
        axis.set_xlabel("inference delay, control steps")
        axis.set_ylabel(label)
        axis.set_ylim(bottom=0)
    axes[0].set_ylim(0, 104)
    axes[0].legend(loc="lower left")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/quickstart/policy")
    parser.add_argument("--output", default="outputs/rollout_modes")
    parser.add_argument("--tasks", nargs="+", default=["button-press-topdown", "drawer-open", "window-open"])
    parser.add_argument("--episodes", type=int, default=10, help="per task")
    parser.add_argument("--delays", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--max-steps", type=int, default=150)
    parser.add_argument("--first-seed", type=int, default=10_000)
    a = parser.parse_args()
    torch.set_num_threads(1)
    output = Path(a.output)
    output.mkdir(parents=True, exist_ok=True)
    file = output / "episodes.csv"
    rows = read(file)
    done = {(row["mode"], row["delay"], row["task"], row["seed"]) for row in rows}
    # Seeds are the outer loop: after an interruption all modes have the same number of episodes, but for one.
    planned = [
        (mode, delay, task, seed)
        for seed in range(a.first_seed, a.first_seed + a.episodes)
        for task in a.tasks
        for mode in a.modes
        for delay in a.delays
        if (mode, str(delay), task, str(seed)) not in done
    ]
    policy = Policy.from_pretrained(a.model)
    environments = {task: make_environment("metaworld", task, max_steps=a.max_steps) for task in a.tasks}
    with file.open("a", newline="") as opened:
        writer = csv.DictWriter(opened, FIELDS)
        if not rows:
            writer.writeheader()
        for mode, delay, task, seed in tqdm(planned, unit="episode"):
            rule = ChunkRule(mode, inference_delay=delay, **MODES[mode][1])
            measured = measure(policy, environments[task], seed, rule)
            writer.writerow({"mode": mode, "delay": delay, "task": task, "seed": seed, **measured})
            opened.flush()
    for environment in environments.values():
        environment.close()
    summary = summarize(read(file))
    text = table(summary)
    (output / "table.md").write_text(text + "\n")
    plot(summary, output / "rollout_modes.png")
    print(text)


if __name__ == "__main__":
    main()
