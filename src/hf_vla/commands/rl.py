"""Improve a policy by letting it act: reinforcement learning with PPO in a simulator.

    hf-vla rl ppo-metaworld --policy outputs/policy --tasks drawer-open
    hf-vla rl rloo-metaworld --policy outputs/policy --tasks drawer-open --iterations 12

RECIPE is the name of one of the package's recipes, or a YAML file that maps flag names to values. Flags on the command line win.
All of transformers' TrainingArguments are flags too. Evaluates the policy before and after on held-out episodes, with controls.
A run that was stopped goes on at its last finished iteration with --resume_from_checkpoint true; see docs/reinforcement_learning.md.
"""

import functools
import os
import shutil
from pathlib import Path

# One thread per process: the parallelism is in the processes, and idle threads that spin slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ..cards.sections import BEFORE
from .command import command
from .launching import launch_command, split_launch_arguments, start
from .parser import log_to_console

#: Episodes per task to film of the policy before learning and after it.
_VIDEOS = 2


@command(extra="sim")
def main(argv: list[str] | None = None) -> None:
    launch, argv = split_launch_arguments(argv)
    if launch.launch is not None:
        start(launch_command(launch, ["rl", *argv]))
    from ..training.rl_run import train_by_acting
    from ..training_args.arguments import VLATrainingArguments
    from ..training_args.peft import PeftArguments
    from ..training_args.ppo_arguments import CollectionArguments, PPOArguments
    from ..training_args.recipe import PolicyArguments
    from .dataclass_parser import parse_dataclasses

    log_to_console()
    types = (PolicyArguments, PeftArguments, CollectionArguments, PPOArguments, VLATrainingArguments)
    arguments, given = parse_dataclasses(types, argv, description=__doc__, command="rl")
    policy, _, collection, ppo, args = arguments
    if args.output_dir is None:
        raise ValueError("set output_dir: where checkpoints and the trained policy go")
    output = Path(args.output_dir)
    before, after = output / BEFORE, output / "evaluation"

    def before_learning() -> None:
        if args.overwrite_output_dir:
            for outdated in (before, after):
                shutil.rmtree(outdated, ignore_errors=True)
        if collection.test_episodes:
            _test(policy.policy, before, collection, ppo, "before", untrained=collection.controls)

    trainer = train_by_acting(*arguments, given=given, before_learning=before_learning)
    if not trainer.is_world_process_zero():
        return
    progress = trainer.progress
    print(
        f"{progress['episodes']:,} episodes, {progress['environment_steps']:,} environment steps, "
        f"{progress['seconds'] / 60:.1f} minutes of learning; policy written to {output}"
    )
    if collection.test_episodes:
        _test(str(output), after, collection, ppo, "after", blind=collection.controls)
        for line in _table(before, after):
            print(line)
    places = [output / "learning.png", before / "videos", after / "videos"]
    there = ", ".join(str(place) for place in places if place.exists())
    print(f"pictures: {there}; all on one page: hf-vla report {output}")


def _test(model: str, output: Path, collection, ppo, name: str, blind: bool = False, untrained: bool = False) -> None:
    """Evaluate a policy on held-out episodes, or finish its evaluation."""
    from ..evaluation.benchmark import EvaluationSettings, evaluate_with_controls
    from ..inference.policy import Policy

    settings = EvaluationSettings(
        env=collection.env,
        tasks=collection.tasks,
        episodes=collection.test_episodes,
        first_seed=collection.test_seed,
        execute_steps=ppo.execute_steps,
        blind=blind,
        untrained=untrained,
        num_videos=_VIDEOS,
        environment=collection.env_config,
    )
    print(f"testing the policy {name} learning", flush=True)
    evaluate_with_controls(
        functools.partial(Policy.from_pretrained, model, ppo.unnorm_key),
        output,
        settings,
        policy_name=name,
        num_workers=max(collection.num_workers, 1),
    )


def _table(before: Path, after: Path) -> list[str]:
    """Return the success rates before and after, and whether they differ by more than noise, as lines."""
    from ..evaluation.comparison import compare, read_policies

    lines = []
    policies = read_policies([before, after], controls=True)
    for policy in policies:
        solved = [outcome.success for outcome in policy.outcomes.values()]
        lines.append(f"{policy.name:28s} {sum(solved):4d} of {len(solved)}")
    (found,) = compare([policy for policy in policies if policy.control == "none"])
    lines.append(
        f"difference {-found.difference:+.2f}, 95 % interval {-found.high:+.2f} to {-found.low:+.2f}, p = {found.p_value:.2g}"
    )
    return lines
