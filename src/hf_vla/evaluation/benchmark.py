"""Evaluate a policy on several tasks together with its controls, with a table, a figure and videos.

Every finished episode is on the disk at once, and evaluating again into the same folder runs only what is missing.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_vla.evaluation.environments import canonical_task, environment_class, make_environment
from hf_vla.evaluation.report import (
    SummaryRow,
    can_plot,
    plot_summary,
    summarize,
    write_starvla_summary,
    write_summary,
)
from hf_vla.evaluation.results import EpisodeKey, Outcome, ResultsFolder, episode_file
from hf_vla.evaluation.rollout import Episode, EpisodeResult, RolloutPolicy, run_episodes
from hf_vla.inference.chunk_rules import ChunkRule

__all__ = ["EvaluationSettings", "evaluate_with_controls", "score_lines"]

logger = logging.getLogger(__name__)

_WRONG_INSTRUCTION = "wrong instruction"


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The settings of an evaluation.

    Args:
        env: simulator.
        tasks: names of its tasks.
        episodes: episodes per task; default: the simulator's `evaluation_episodes`.
        first_seed: seed of the first episode of each task, for objects and policy; later episodes count up from it.
            Default: the simulator's `first_evaluation_seed`.
        execute_steps: actions executed per chunk, instead of the whole chunk rule of the benchmark's record.
        chunk: fields of the `ChunkRule` that are other than in the record; if "mode" is one of them, the record's rule does not
            count at all.
        blind: also evaluate with images replaced by a constant gray.
        wrong_instruction: also evaluate with the instruction of another object of the scene, if the simulator knows which
            there are (LIBERO), else of another of the tasks; success is still that of the task itself.
        untrained: also evaluate the policy with random weights.
        num_videos: episodes per task to film.
        environment: further settings of the simulator, for `make_environment`.
        benchmark_protocol: "current" or "published": evaluate exactly as StarVLA does or did, by the benchmark's record. Without
            it the simulator's defaults hold, and the chunk rule of the record.

    Raises:
        ValueError: the simulator or a task is unknown, there are no tasks, a number is out of range, the benchmark has no
            record, or tasks have different chunk rules.
    """

    env: str
    tasks: Sequence[str]
    episodes: int | None = None
    first_seed: int | None = None
    execute_steps: int | None = None
    chunk: Mapping[str, Any] = field(default_factory=dict)
    blind: bool = False
    wrong_instruction: bool = False
    untrained: bool = True
    num_videos: int = 0
    environment: Mapping[str, Any] = field(default_factory=dict)
    benchmark_protocol: str | None = None

    def __post_init__(self):
        if self.first_seed is None:
            first = environment_class(self.env).first_evaluation_seed if self.benchmark_protocol is None else 0
            object.__setattr__(self, "first_seed", first)
        if (self.episodes is not None and self.episodes < 1) or self.first_seed < 0 or self.num_videos < 0:
            raise ValueError(
                f"episodes is {self.episodes}, the first seed {self.first_seed}, the number of videos {self.num_videos}; "
                "episodes start at 1, seeds and videos at 0"
            )
        tasks = tuple(dict.fromkeys(canonical_task(self.env, task) for task in self.tasks))
        if not tasks:
            raise ValueError("no tasks are given")
        object.__setattr__(self, "tasks", tasks)
        records = [self.record_of(task) for task in tasks]
        if self.benchmark_protocol is not None:
            if None in records:
                raise ValueError(f"{self.env} has no record of a protocol; leave out {self.benchmark_protocol!r}")
            chosen = {**self.environment, "protocol": self.benchmark_protocol}
            object.__setattr__(self, "environment", chosen)
        rules = {ChunkRule() if record is None else record.chunk for record in records}
        if self.execute_steps is not None or "mode" in self.chunk:
            rules = {ChunkRule(execute=self.execute_steps)}
        if len(rules) > 1:
            raise ValueError(
                f"the tasks {', '.join(tasks[:5])} have different chunk rules; evaluate them one after the other, or give "
                "execute_steps"
            )
        rule = ChunkRule.from_dict({**rules.pop().to_dict(), **self.chunk})
        object.__setattr__(self, "execute_steps", rule.execute)
        object.__setattr__(self, "_chunk_rule", rule)

    @property
    def chunk_rule(self) -> ChunkRule:
        """What becomes of the policy's chunks."""
        return self._chunk_rule

    def record_of(self, task: str) -> Any:
        """Return the benchmark's record for a task, or None."""
        return environment_class(self.env).benchmark_record(task, self.benchmark_protocol)

    @property
    def seeds(self) -> range:
        """The seeds of the first task's episodes."""
        return self.seeds_of(self.tasks[0])

    def seeds_of(self, task: str) -> range:
        """Return the seeds of a task's episodes."""
        count, record = self.episodes, self.record_of(task)
        if count is None and record is not None:
            count = record.task(task).episodes
        if count is None:
            count = environment_class(self.env).evaluation_episodes
        return range(self.first_seed, self.first_seed + count)

    @property
    def protocol(self) -> dict[str, Any]:
        """What decides how an episode goes; an evaluation is continued only if it is the same."""
        decides = {"env": self.env, "environment": dict(self.environment), "execute_steps": self.execute_steps}
        simple = self.chunk_rule == ChunkRule(execute=self.execute_steps)
        return decides if simple else {**decides, "chunk": self.chunk_rule.to_dict()}


def evaluate_with_controls(
    load_policy: Callable[[], RolloutPolicy],
    output: str | Path,
    settings: EvaluationSettings,
    *,
    policy_name: str = "policy",
    num_workers: int = 1,
    progress: bool = True,
    server_wait: float = 0,
    training_step: int | None = None,
    record: str | Path | None = None,
) -> list[SummaryRow]:
    """Evaluate a policy and the requested controls on the same episodes, or finish an evaluation that was interrupted.

    Writes into `output` what `hf_vla.evaluation.results` lists. If an evaluation with the same settings and the same policy
    is there, its finished episodes are kept, and only what is missing is run; there may be more tasks, seeds or controls
    than before.

    Args:
        load_policy: function that makes the policy. For the untrained control the policy must have a method
            `untrained(seed)`; for several workers the function must be picklable, such as
            `functools.partial(Policy.from_pretrained, path)`.
        output: folder for the results; it must not hold those of another evaluation.
        settings: simulator, tasks, episodes and controls.
        policy_name: the policy's name in the table and the figure.
        num_workers: number of processes.
        progress: whether to show a progress bar.
        server_wait: seconds to wait for a policy server that goes away; see `run_episodes`.
        training_step: the step of its training at which the policy was saved, for `raw_success.txt`.
        record: folder of a LeRobot dataset that the policy's own episodes become, solved and failed ones, when all are there; see
            `hf_vla.evaluation.recording`. Controls are not recorded.

    Returns:
        One row per control and task: first the policy itself (control "none"), then "blind", "wrong instruction" and
        "untrained".

    Raises:
        ValueError: the simulator does not accept a setting, there is no wrong instruction, or the policy is another one than in
            the part of the evaluation that is finished.
        FileExistsError: `output` is a file, holds results of other settings, or another process is writing to it. To record,
            episodes are finished that were not recorded, or `record` is something else than the same evaluation's recording.
    """
    output = Path(output)
    environments = {
        task: functools.partial(make_environment, settings.env, task, **settings.environment)
        for task in settings.tasks
    }
    # Made once here, so that a setting that the simulator rejects fails before a policy is loaded.
    environment = environments[settings.tasks[0]]()
    try:
        if settings.wrong_instruction and len(settings.tasks) == 1 and not environment.other_instructions():
            raise ValueError(
                f"wrong_instruction: {settings.tasks[0]} is the only task, and {settings.env} knows no other instruction for its "
                "scene; evaluate several tasks together"
            )
        recording = None
        if record is not None:
            from hf_vla.evaluation.recording import Recording  # needs pyarrow and PyAV

            recording = Recording(record, output, environment)
    finally:
        environment.close()
    if environment.num_episodes is not None:
        for task in settings.tasks:
            _check_episodes(settings, task, environment)

    names = {"none": policy_name}
    if settings.blind:
        names["blind"] = f"{policy_name} (blind)"
    if settings.wrong_instruction:
        names[_WRONG_INSTRUCTION] = f"{policy_name} ({_WRONG_INSTRUCTION})"
    if settings.untrained:
        names["untrained"] = f"{policy_name} (untrained)"
    planned = [
        Episode(
            policy="untrained" if control == "untrained" else "trained",
            environment=task,
            seed=seed,
            blind=control == "blind",
            wrong_instruction=control == _WRONG_INSTRUCTION,
            video=_video(output, task, seed) if control == "none" and number < settings.num_videos else None,
            recording=recording and recording.file(EpisodeKey(control, task, seed)),
        )
        for control in names
        for task in settings.tasks
        for number, seed in enumerate(settings.seeds_of(task))
    ]
    about = {"policy": policy_name, "training_step": training_step}
    with ResultsFolder(output, settings.protocol, about) as results:
        keys = [_key(episode) for episode in planned]
        if recording is not None:
            recording.check(keys, results.finished, results.policies.get("trained"))
        missing = [episode for episode in planned if _key(episode) not in results.finished]
        if results.finished:
            logger.info("%s: %d of %d episodes are there", output, len(planned) - len(missing), len(planned))

        def keep(result: EpisodeResult) -> None:
            if result.episode.policy == "trained":
                results.identify("trained", result.policy_identity)
            results.add(_key(result.episode), Outcome(result.success, result.length, result.score))

        run_episodes(
            missing,
            {"trained": load_policy, "untrained": functools.partial(_load_untrained, load_policy)},
            environments,
            chunk_rule=settings.chunk_rule,
            num_workers=num_workers,
            progress=progress,
            on_result=keep,
            server_wait=server_wait,
            identities=results.policies,
        )
        results.sort(keys)
        if recording is not None:
            recording.finish(keys, results.finished, results.policies["trained"])
        rows = []
        for control, name in names.items():
            for task in settings.tasks:
                outcomes = {
                    key.seed: outcome for key, outcome in results.finished.items() if key[:2] == (control, task)
                }
                rows.append(summarize(name, settings.env, task, outcomes, control))
        write_summary(rows, output / "success_summary.csv")
        if can_plot():
            plot_summary(rows, output / "success_summary.png")
        else:
            logger.warning("no figures, because matplotlib is not installed")
        write_starvla_summary(output, rows, training_step)
    return rows


def score_lines(settings: EvaluationSettings, rows: Sequence[SummaryRow]) -> list[str]:
    """Return the benchmark's own score of each policy, for suites that were evaluated whole, as lines of text."""
    record = settings.record_of(settings.tasks[0])
    if record is None:
        return []
    by_name = {task.name: whole for whole, task in record.tasks.items()}
    lines = [
        f"{row.policy:40s} {row.task:28s} mean score {row.mean_score:.3f}"
        for row in rows
        if row.mean_score is not None
    ]
    for name in dict.fromkeys(row.policy for row in rows):
        rates = {
            row.task if row.task in record.tasks else by_name[row.task]: row.success_rate
            for row in rows
            if row.policy == name and (row.task in record.tasks or row.task in by_name)
        }
        whole = [s.name for s in record.suites.values() if all(f"{s.name}/{task}" in rates for task in s.tasks)]
        for suite in whole:
            lines.append(f"{name:40s} {suite:28s} {100 * record.mean_score(rates, [suite]):5.1f} %")
        if len(whole) > 1:
            lines.append(
                f"{name:40s} {'mean of ' + ', '.join(whole):28s} {100 * record.mean_score(rates, whole):5.1f} %"
            )
    return lines


def _video(output: Path, task: str, seed: int) -> Path:
    return output / "videos" / episode_file(task, seed, ".mp4")


def _check_episodes(settings: EvaluationSettings, task: str, environment: Any) -> None:
    """Refuse numbers of episodes that a benchmark does not have; `environment` is one of its tasks."""
    record, seeds = settings.record_of(task), settings.seeds_of(task)
    count = record.task(task).episodes if record is not None else environment.num_episodes
    count = environment.num_episodes if task == environment.task else count
    if seeds.stop > count:
        raise ValueError(
            f"{task} has the episodes 0 to {count - 1}; {seeds.start} to {seeds.stop - 1} are asked for: give fewer episodes or an "
            "earlier first seed"
        )


def _load_untrained(load_policy: Callable[[], Any]) -> RolloutPolicy:
    return load_policy().untrained(seed=0)


def _key(episode: Episode) -> EpisodeKey:
    control = "blind" if episode.blind else "untrained" if episode.policy == "untrained" else "none"
    control = _WRONG_INSTRUCTION if episode.wrong_instruction else control
    return EpisodeKey(control, episode.environment, episode.seed)
