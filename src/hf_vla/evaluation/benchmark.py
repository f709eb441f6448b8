"""A policy on several tasks beside its controls, with table, figure and videos."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hf_vla.evaluation.environments import canonical_task, make_environment
from hf_vla.evaluation.report import SummaryRow, plot_summary, summarize, write_summary
from hf_vla.evaluation.rollout import Episode, EpisodeResult, RolloutPolicy, run_episodes
from hf_vla.utils.files import atomic_write

__all__ = ["FIRST_EVALUATION_SEED", "evaluate_with_controls"]

# Recording starts at seed 0: no policy is evaluated on an episode that it was shown.
FIRST_EVALUATION_SEED = 10_000


def evaluate_with_controls(
    load_policy: Callable[[], RolloutPolicy],
    output: str | Path,
    env: str,
    tasks: Sequence[str],
    episodes: int = 20,
    first_seed: int = FIRST_EVALUATION_SEED,
    policy_name: str = "policy",
    execute_steps: int | None = None,
    blind: bool = False,
    untrained: bool = True,
    num_videos: int = 0,
    num_workers: int = 1,
    progress: bool = True,
    **environment_arguments: Any,
) -> list[SummaryRow]:
    """Evaluate a policy on `tasks`, each with the same seeds, and the controls that were asked for.

    Writes into `output`: `success_summary.csv`, `success_summary.png`, `episodes.csv` and
    `videos/TASK-seed-SEED.mp4`.

    Args:
        load_policy: makes the policy; for `untrained` the policy has a method `untrained(seed)`, and for several
            workers the function can be pickled, such as `functools.partial(Policy.from_pretrained, path)`.
        output: folder; it must not hold the results of another evaluation.
        env: simulator.
        tasks: its tasks.
        episodes: for each task.
        first_seed: of objects and policy; one seed an episode from here upwards.
        policy_name: for table and figure.
        execute_steps: actions of a chunk to execute; see `run_episode`.
        blind: also evaluate with images replaced by a constant gray.
        untrained: also evaluate the policy with random weights.
        num_videos: episodes of each task to film.
        num_workers: processes.
        progress: whether to show a progress bar.
        **environment_arguments: for `make_environment`.

    Returns:
        One row a control and task: first the policy itself (control "none"), then "blind", then "untrained".

    Raises:
        ValueError: unknown simulator or task, or a number out of its range.
        FileExistsError: `output` holds results already.
    """
    output = Path(output)
    if episodes < 1 or first_seed < 0 or num_videos < 0:
        raise ValueError(
            f"episodes is {episodes}, the first seed {first_seed}, the number of videos {num_videos}; "
            "episodes start at 1, seeds and videos at 0"
        )
    if output.is_file() or (output / "success_summary.csv").exists():
        raise FileExistsError(f"{output} is a file or holds an evaluation already; choose another output or remove it")
    tasks = list(dict.fromkeys(canonical_task(env, task) for task in tasks))
    if not tasks:
        raise ValueError("no tasks are given")
    environments = {task: functools.partial(make_environment, env, task, **environment_arguments) for task in tasks}
    # Made once here, so that a setting the simulator does not take is found before a policy is loaded.
    environments[tasks[0]]().close()

    names = {"none": policy_name}
    if blind:
        names["blind"] = f"{policy_name} (blind)"
    if untrained:
        names["untrained"] = f"{policy_name} (untrained)"
    seeds = range(first_seed, first_seed + episodes)
    planned = [
        Episode(
            policy="untrained" if control == "untrained" else "trained",
            environment=task,
            seed=seed,
            blind=control == "blind",
            video=output / "videos" / f"{task}-seed-{seed}.mp4"
            if control == "none" and seed in seeds[:num_videos]
            else None,
        )
        for control in names
        for task in tasks
        for seed in seeds
    ]
    policies = {"trained": load_policy, "untrained": functools.partial(_load_untrained, load_policy)}
    results = run_episodes(planned, policies, environments, execute_steps, num_workers=num_workers, progress=progress)
    rows = []
    for control, name in names.items():
        for task in tasks:
            chosen = [r for r in results if _control(r.episode) == control and r.episode.environment == task]
            rows.append(summarize(name, env, task, chosen, control))
    output.mkdir(parents=True, exist_ok=True)
    _write_episodes(results, output / "episodes.csv")
    write_summary(rows, output / "success_summary.csv")
    plot_summary(rows, output / "success_summary.png")
    return rows


def _load_untrained(load_policy: Callable[[], Any]) -> RolloutPolicy:
    return load_policy().untrained(seed=0)


def _control(episode: Episode) -> str:
    return "blind" if episode.blind else "untrained" if episode.policy == "untrained" else "none"


def _write_episodes(results: Sequence[EpisodeResult], path: Path) -> None:
    with atomic_write(path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["control", "task", "seed", "success", "length"])
        for result in results:
            episode = result.episode
            writer.writerow([_control(episode), episode.environment, episode.seed, int(result.success), result.length])
