"""Train a policy on some tasks and adapt it to another by LoRA, in several ways: what is learnt, and what is forgotten.

    python benchmarks/lora.py --output outputs/lora

Records demonstrations of the first tasks and of the new one, trains the quickstart's policy on the first, evaluates it, and trains
adapters on the new one, each in its own way (WAYS), which are evaluated on all tasks, on seeds that no demonstration used. A stage
that is finished is not run again after an interruption. Writes result.json and prints a table.

The policy's vocabulary is made from the first tasks' instructions, so that it spells the words of the new one in bytes.
"""

import argparse
import csv
import json
from pathlib import Path

import yaml
from frameworks import Stages
from safetensors import safe_open

NOISE = 0.1  # as the quickstart's
FIRST_ROLLOUT_SEED = 20_000  # apart from those of the demonstrations and of the evaluation

#: the linear layers of the language model, and of everything behind it in QwenPI_v3 with three blocks
OF_LANGUAGE_MODEL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
OF_HEAD = ["to_q", "to_k", "to_v", "to_out.0", "net.0.proj", "net.2", "norm1.linear", "linear_1", "linear_2"]
OF_HEAD += ["layer1", "layer2", "layer3", "projectors.0.1", "projectors.1.1", "projectors.2.1"]
HEAD_BY_LORA = {"lora_target_modules": OF_LANGUAGE_MODEL + OF_HEAD, "modules_to_save": ["none"]}

#: By name: the recipe that is begun with, what it changes, and from where the first tasks are shown again.
WAYS = {
    "new data alone": ("quickstart_lora", {}, None),
    "new data alone, the head by LoRA": ("quickstart_lora", HEAD_BY_LORA, None),
    "with the old data": ("quickstart_lora_keep", {}, "data"),
    "with the old data, the policy's statistics": ("quickstart_lora_keep", {"keep_statistics": True}, "data"),
    "with own rollouts": ("quickstart_lora_keep", {}, "rollouts"),
    "with own rollouts, the head by LoRA": ("quickstart_lora_keep", HEAD_BY_LORA, "rollouts"),
}


def parameters(folder: Path, file: str) -> int:
    with safe_open(folder / file, "pt") as tensors:
        return sum(tensors.get_tensor(name).numel() for name in tensors.keys())  # noqa: SIM118 - not a mapping


def successes(evaluation: Path) -> dict[str, int]:
    with (evaluation / "success_summary.csv").open(newline="") as file:
        return {row["task"]: int(row["successes"]) for row in csv.DictReader(file)}


def parts(dataset: Path, tasks: list[str]) -> list[str]:
    """Return which episodes of a recorded dataset are of these tasks, as ranges."""
    recorded = json.loads((dataset / "meta/info.json").read_text())["environment"]["tasks"]
    ranges, first = [], 0
    for task, seeds in recorded.items():
        last = first + len(seeds["seeds"]) - 1
        if task in tasks:
            ranges.append(f"{first}-{last}")
        first = last + 1
    return ranges


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("outputs/lora"))
    parser.add_argument("--tasks", nargs="+", default=["button-press-topdown", "window-open"], help="first tasks")
    parser.add_argument("--new-task", default="drawer-open")
    parser.add_argument("--demonstrations", type=int, default=100, help="episodes to record for each task")
    parser.add_argument("--rollouts", type=int, default=20, help="episodes of the policy's own for each first task")
    parser.add_argument("--data", type=Path, help="recorded dataset of all tasks, in place of recording one")
    parser.add_argument("--steps", type=int, default=1400, help="training steps on the first tasks")
    parser.add_argument("--adapter-steps", type=int, default=700, help="training steps on the new task")
    parser.add_argument("--episodes", type=int, default=20, help="episodes to evaluate for each task")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    a = parser.parse_args()
    a.output.mkdir(parents=True, exist_ok=True)
    stages = Stages(a.output)

    def record() -> Path:
        output = a.output / "data"
        options = ["--episodes", a.demonstrations, "--noise", NOISE, "--output", output]
        return stages.run("data", "record", output, "--task", *a.tasks, a.new_task, *options)

    def train(name: str, recipe: dict, members: list[dict], steps: int) -> Path:
        """Train on a mixture of equal parts of its members."""
        folder = a.output / name.replace(" ", "_").replace(",", "").replace("'", "")
        folder.mkdir(exist_ok=True)
        (folder / "mixture.yaml").write_text(yaml.safe_dump(members))
        recipe = recipe | {
            "dataset": None,
            "dataset_weights": None,
            "mixture": str(folder / "mixture.yaml"),
            "max_steps": steps,
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | {"output_dir": str(folder / "policy")}))
        return stages.run(name, "train", folder / "policy", folder / "recipe.yaml")

    def evaluate(name: str, model: Path) -> dict[str, int]:
        output = model.parent / "evaluation"
        options = ["--episodes", a.episodes, "--max-steps", 250, "--no-untrained-baseline", "--num-videos", 0]
        command = ["--model", model, "--task", *a.tasks, a.new_task, "--output", output, *options]
        return successes(stages.run(f"evaluation: {name}", "eval", output, *command, resumable=True))

    def rollouts() -> Path:
        output, evaluation = a.output / "rollouts", a.output / "rollouts_evaluation"
        options = ["--episodes", a.rollouts, "--seed-start", FIRST_ROLLOUT_SEED, "--max-steps", 250]
        options += ["--no-untrained-baseline", "--num-videos", 0, "--output", evaluation, "--record", output]
        command = ["--model", policy, "--task", *a.tasks, *options]
        return stages.run("rollouts", "eval", output, *command, resumable=True)

    data = a.data or record()
    new = {"dataset": str(data), "episodes": parts(data, [a.new_task])}
    old = {"dataset": str(data), "episodes": parts(data, a.tasks)}
    policy = train("policy", {"base": "quickstart"}, [old], a.steps)
    result = {
        "episodes": a.episodes,
        "new_task": a.new_task,
        "steps": {"policy": a.steps, "adapter": a.adapter_steps},
        "success": {},
        "parameters": {"before": parameters(policy, "model.safetensors")},
        "minutes": stages.minutes,
    }
    for way in a.ways:
        recipe, changes, shown_again = WAYS[way]
        members = [new]
        if shown_again == "data":
            members.append(old)
        elif shown_again == "rollouts":
            members.append({"dataset": str(rollouts())})
        adapter = train(way, {"base": recipe, "policy": str(policy), **changes}, members, a.adapter_steps)
        result["success"][way] = evaluate(way, adapter)
        result["parameters"][way] = parameters(adapter, "adapter_model.safetensors")
    result["success"] = {"before": evaluate("policy", policy), **result["success"]}
    (a.output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    tasks = [*a.tasks, a.new_task]
    print(f"| solved, of {a.episodes} | {' | '.join(tasks)} (new) | parameters saved | minutes of training |")
    print("|" + "---|" * (len(tasks) + 3))
    for way, solved in result["success"].items():
        minutes = stages.minutes["policy" if way == "before" else way]["cpu"]
        numbers = [*(solved[task] for task in tasks), f"{result['parameters'][way]:,}", minutes]
        print(f"| {way} | {' | '.join(map(str, numbers))} |")


if __name__ == "__main__":
    main()
