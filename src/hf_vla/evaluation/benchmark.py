"""Evaluate a policy on several tasks together with its controls, with a table, a figure and videos."""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_vla.evaluation.environments import canonical_task, environment_class, make_environment
from hf_vla.evaluation.report import SummaryRow, plot_summary, summarize, write_summary
from hf_vla.evaluation.rollout import Episode, EpisodeResult, RolloutPolicy, run_episodes
from hf_vla.utils.files import atomic_write

__all__ = ["EvaluationSettings", "evaluate_with_controls"]


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of an evaluation.

    Args:
        env: simulator.
        tasks: names of its tasks.
        episodes: episodes per task; default: the simulator's `evaluation_episodes`.
        first_seed: seed of the first episode of each task, for objects and policy; later episodes count up from it.
            Default: the simulator's `first_evaluation_seed`.
        execute_steps: actions executed per chunk; see `run_episode`.
        blind: also evaluate with images replaced by a constant gray.
        untrained: also evaluate the policy with random weights.
        num_videos: episodes per task to film.
        environment: further settings of the simulator, for `make_environment`.

    Raises:
        ValueError: the simulator or a task is unknown, there are no tasks, or a number is out of range.
    """

    env: str
    tasks: Sequence[str]
    episodes: int | None = None
    first_seed: int | None = None
    execute_steps: int | None = None
    blind: bool = False
    untrained: bool = True
    num_videos: int = 0
    environment: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        defaults = environment_class(self.env)
        if self.episodes is None:
            object.__setattr__(self, "episodes", defaults.evaluation_episodes)
        if self.first_seed is None:
            object.__setattr__(self, "first_seed", defaults.first_evaluation_seed)
        if self.episodes < 1 or self.first_seed < 0 or self.num_videos < 0:
            raise ValueError(
                f"episodes is {self.episodes}, the first seed {self.first_seed}, the number of videos {self.num_videos}; "
                "episodes start at 1, seeds and videos at 0"
            )
        tasks = tuple(dict.fromkeys(canonical_task(self.env, task) for task in self.tasks))
        if not tasks:
            raise ValueError("no tasks are given")
        object.__setattr__(self, "tasks", tasks)

    @property
    def seeds(self) -> range:
        return range(self.first_seed, self.first_seed + self.episodes)


def evaluate_with_controls(
    load_policy: Callable[[], RolloutPolicy],
    output: str | Path,
    settings: EvaluationSettings,
    *,
    policy_name: str = "policy",
    num_workers: int = 1,
    progress: bool = True,
) -> list[SummaryRow]:
    """Evaluate a policy and the requested controls on the same episodes.

    Writes into `output`: `success_summary.csv`, `success_summary.png`, `episodes.csv` and
    `videos/TASK-seed-SEED.mp4`.

    Args:
        load_policy: function that makes the policy. For the untrained control the policy must have a method
            `untrained(seed)`; for several workers the function must be picklable, such as
            `functools.partial(Policy.from_pretrained, path)`.
        output: folder for the results; it must not hold those of another evaluation.
        settings: simulator, tasks, episodes and controls.
        policy_name: the policy's name in the table and the figure.
        num_workers: number of processes.
        progress: whether to show a progress bar.

    Returns:
        One row per control and task: first the policy itself (control "none"), then "blind", then "untrained".

    Raises:
        ValueError: the simulator does not accept a setting.
        FileExistsError: `output` is a file, or already holds results.
    """
    output = Path(output)
    if output.is_file() or (output / "success_summary.csv").exists():
        raise FileExistsError(f"{output} is a file or holds an evaluation already; choose another output or remove it")
    environments = {
        task: functools.partial(make_environment, settings.env, task, **settings.environment)
        for task in settings.tasks
    }
    # Made once here, so that a setting that the simulator rejects fails before a policy is loaded.
    environments[settings.tasks[0]]().close()

    names = {"none": policy_name}
    if settings.blind:
        names["blind"] = f"{policy_name} (blind)"
    if settings.untrained:
        names["untrained"] = f"{policy_name} (untrained)"
    filmed = settings.seeds[: settings.num_videos]
    planned = [
        Episode(
            policy="untrained" if control == "untrained" else "trained",
            environment=task,
            seed=seed,
            blind=control == "blind",
            video=_video(output, task, seed) if control == "none" and seed in filmed else None,
        )
        for control in names
        for task in settings.tasks
        for seed in settings.seeds
    ]
    results = run_episodes(
        planned,
        {"trained": load_policy, "untrained": functools.partial(_load_untrained, load_policy)},
        environments,
        execute_steps=settings.execute_steps,
        num_workers=num_workers,
        progress=progress,
    )
    rows = []
    for control, name in names.items():
        for task in settings.tasks:
            chosen = [r for r in results if _control(r.episode) == control and r.episode.environment == task]
            rows.append(summarize(name, settings.env, task, chosen, control))
    output.mkdir(parents=True, exist_ok=True)
    _write_episodes(results, output / "episodes.csv")
    write_summary(rows, output / "success_summary.csv")
    plot_summary(rows, output / "success_summary.png")
    return rows


def _video(output: Path, task: str, seed: int) -> Path:
    return output / "videos" / f"{task.replace('/', '-')}-seed-{seed}.mp4"


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
