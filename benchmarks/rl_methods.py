"""Which way of learning by acting gains most with equal episodes: the methods, seeds, and controls in one table.

    python benchmarks/rl_methods.py --policy outputs/early/checkpoint-200 --output outputs/rl_methods

Each method starts from the same policy, acts for as many episodes as PPO's recipe, and is tested on the same held-out episodes:

* control: one iteration of PPO with a learning rate of 0. It must solve what the start policy solves: else something other than
  learning changes the policy.
* successes: the policy runs episodes and is trained on those that it solved (rounds), as it was trained before.
* ppo, rloo, grpo: `hf-vla rl`.
* recap: the episodes are labelled by their advantage (`hf-vla label`), and the policy is trained on all of them and the demonstrations.
* demonstrations: recap's control, trained as often on the demonstrations alone: no episodes.

PPO with a critic runs one more iteration of episodes, with which the critic is warmed up; the table has the number that were run.

A stage that is finished is not run again. Writes rl_methods.csv and prints its rows as a table, with minutes of wall-clock and of
processor time of learning, without the tests.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

from frameworks import Stages, run

METHODS = ("control", "successes", "ppo", "rloo", "recap", "demonstrations")
RECIPES = {"control": "ppo-metaworld", "ppo": "ppo-metaworld", "rloo": "rloo-metaworld", "grpo": "grpo-metaworld"}
ROUNDS = 3
FIRST_SEED = 2_000_000  # as hf-vla rl's


def act(args, stages: Stages, name: str, policy: Path, folder: Path, first: int, episodes: int) -> Path:
    """Let a policy run episodes, which are recorded; return the dataset."""
    rollouts, evaluation = folder / f"rollouts-{name}", folder / f"evaluation-{name}"
    if f"act {name}" not in stages.minutes:
        shutil.rmtree(evaluation, ignore_errors=True)
    options = ["--task", args.task, "--max-steps", args.max_steps, "--no-untrained-baseline", "--num-videos", 0]
    options += ["--seed-start", first, "--episodes", episodes, "--num-workers", 2]
    return stages.run(
        f"act {name}", "eval", rollouts, "--model", policy, "--output", evaluation, "--record", rollouts, *options
    )


def learn(args, method: str, seed: int, folder: Path, stages: Stages) -> Path:
    """Return the folder of the policy that a method makes."""
    episodes, policy = args.iterations * args.episodes, args.policy
    own_first = FIRST_SEED + 100_000 * (seed + 1)
    if method in RECIPES:
        output = folder / "policy"
        flags = ["--policy", policy, "--tasks", args.task, "--output_dir", output, "--seed", seed]
        iterations = 1 if method == "control" else args.iterations
        flags += ["--env_config", json.dumps({"max_steps": args.max_steps}), "--iterations", iterations]
        flags += ["--episodes_per_iteration", args.episodes, "--first_seed", own_first, "--test_episodes", 0]
        flags += ["--eval_strategy", "no", "--resume_from_checkpoint", "auto", *args.rl_flags]
        flags += ["--learning_rate", 0] if method == "control" else []
        return stages.run("rl", "rl", output, RECIPES[method], *flags, resumable=True)
    tuned = ["--learning_rate", args.tuning_rate, "--seed", seed]
    if method == "successes":
        for number in range(ROUNDS):
            first = own_first + number * (episodes // ROUNDS)
            act(args, stages, str(number), policy, folder, first, episodes // ROUNDS)
            data = [folder / f"rollouts-{n}" for n in range(number + 1)]
            policy = tune(
                args, stages, f"tune {number}", folder / f"policy-{number}", data, tuned, "--successes_only", "true"
            )
        return policy
    if method == "demonstrations":
        return tune(args, stages, "tune", folder / "policy", [args.demonstrations], tuned)
    rollouts = act(args, stages, "0", policy, folder, own_first, episodes)
    data = [args.demonstrations, rollouts]
    stages.run(
        "label",
        "label",
        folder / "labels",
        "--dataset",
        *data,
        "--model",
        policy,
        "--tag",
        f"seed{seed}",
        "--overwrite",
    )
    return tune(args, stages, "tune", folder / "policy", data, tuned, "--advantage", f"seed{seed}")


def tune(args, stages: Stages, name: str, output: Path, data: list[Path], flags: list, *more) -> Path:
    """Train the start policy on datasets, by the quickstart's recipe with a smaller rate."""
    recipe = stages.file.parent / "tuning.yaml"
    recipe.write_text("base: quickstart\nframework: null\npolicy_config: null\nvlm_config: null\n")
    given = ["--policy", args.policy, "--dataset", *data, "--output_dir", output, "--max_steps", args.tuning_steps]
    return stages.run(name, "train", output, recipe, *given, "--keep_statistics", "true", *flags, *more)


def episodes_of(args, method: str, policy: Path) -> int:
    """Return how many episodes a method has run."""
    if method in RECIPES:
        (state,) = policy.glob("checkpoint-*/rl_state.json")  # the recipes keep the last checkpoint only
        return json.loads(state.read_text())["episodes"]
    return 0 if method == "demonstrations" else args.iterations * args.episodes


def solved(args, policy: Path, output: Path, *more) -> int:
    options = ["--task", args.task, "--episodes", args.test_episodes, "--max-steps", args.max_steps, "--num-videos", 0]
    if not (output / "success_summary.csv").exists():
        run(
            "eval",
            "--model",
            policy,
            "--output",
            output,
            *options,
            "--no-untrained-baseline",
            "--num-workers",
            2,
            *more,
        )
    with (output / "success_summary.csv").open(newline="") as file:
        return int(next(row["successes"] for row in csv.DictReader(file) if row["control"] == "none"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--policy", type=Path, required=True, help="where all start: 40 to 60 %% of the held-out episodes"
    )
    parser.add_argument(
        "--demonstrations", type=Path, default=Path("outputs/quickstart/demonstrations"), help="for recap"
    )
    parser.add_argument("--output", type=Path, default=Path("outputs/rl_methods"))
    parser.add_argument("--task", default="drawer-open")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=sorted({*METHODS, *RECIPES}))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, default=24)
    parser.add_argument("--episodes", type=int, default=48, help="per iteration")
    parser.add_argument("--max-steps", type=int, default=200)
    parser.add_argument("--test-episodes", type=int, default=100)
    parser.add_argument(
        "--tuning-steps", type=int, default=1000, help="training steps of successes (a round) and recap"
    )
    parser.add_argument("--tuning-rate", type=float, default=3e-4)
    parser.add_argument("--rl-flags", nargs=argparse.REMAINDER, default=[], help="further flags of hf-vla rl, last")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    before = solved(args, args.policy, args.output / "before")
    rows = [
        {"method": "before", "seed": "", "solved": before, "episodes": 0, "minutes": 0.0, "processor_minutes": 0.0}
    ]
    for seed in args.seeds:
        for method in args.methods:
            folder = args.output / f"{method}-{seed}"
            stages = Stages(folder)
            policy = learn(args, method, seed, folder, stages)
            row = {"method": method, "seed": seed, "solved": solved(args, policy, folder / "test")}
            row["episodes"] = episodes_of(args, method, policy)
            for column, kind in (("minutes", "clock"), ("processor_minutes", "cpu")):
                row[column] = round(sum(stage[kind] for stage in stages.minutes.values()), 1)
            rows.append(row)
            with (args.output / "rl_methods.csv").open("w", newline="") as file:
                writer = csv.DictWriter(file, rows[0])
                writer.writeheader()
                writer.writerows(rows)
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(map(str, row.values())) + " |")


if __name__ == "__main__":
    main()
