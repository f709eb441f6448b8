"""Measure a policy's success rate during training."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from hf_vla.evaluation.environments import canonical_task, environment_class, make_environment
from hf_vla.evaluation.rollout import Episode, run_episodes

__all__ = ["FIRST_VALIDATION_SEED", "SuccessRate"]

# Far from the seeds of demonstrations (from 0) and of hf-vla eval (from 10,000): the best policy of a run must not be
# chosen on the episodes on which it is reported.
FIRST_VALIDATION_SEED = 1_000_000


class SuccessRate:
    """Rolls a model out on a simulator's tasks, each time on the same episodes.

    Called with a model and its processor, it returns `{"success": rate over all episodes, "success/TASK": …}`.

    Args:
        env: simulator.
        tasks: names of its tasks.
        episodes: episodes per task.
        unnorm_key: statistics key of the simulated robot; optional if the processor has only one.
        execute_steps: actions executed per chunk; see `run_episode`.
        first_seed: seed of the first episode of each task, for objects and policy; later episodes count up from it.
        **environment_arguments: for `make_environment`; they override the simulator's `practice_settings`.

    Raises:
        ValueError: the simulator or a task is unknown, the simulator does not accept a setting, or there are no episodes.
        ImportError, OSError: the simulator is not installed, or cannot render on this machine.
    """

    def __init__(
        self,
        env: str,
        tasks: Sequence[str],
        episodes: int = 10,
        *,
        unnorm_key: str | None = None,
        execute_steps: int | None = None,
        first_seed: int = FIRST_VALIDATION_SEED,
        **environment_arguments: Any,
    ) -> None:
        if episodes < 1:
            raise ValueError(f"episodes is {episodes}; it must be at least 1")
        self.tasks = list(dict.fromkeys(canonical_task(env, task) for task in tasks))
        if not self.tasks:
            raise ValueError("no tasks are given")
        settings = {**environment_class(env).practice_settings, **environment_arguments}
        self.environments = {task: functools.partial(make_environment, env, task, **settings) for task in self.tasks}
        # Made once here, so that a setting that the simulator rejects fails before training.
        self.environments[self.tasks[0]]().close()
        self.seeds = range(first_seed, first_seed + episodes)
        self.unnorm_key, self.execute_steps = unnorm_key, execute_steps

    @property
    def metric_names(self) -> list[str]:
        return ["success", *(f"success/{task}" for task in self.tasks)]

    def __call__(self, model: Any, processor: Any) -> dict[str, float]:
        from hf_vla.inference.policy import Policy

        policy = Policy(model, processor, self.unnorm_key)
        planned = [Episode("policy", task, seed) for task in self.tasks for seed in self.seeds]
        results = run_episodes(planned, {"policy": policy}, self.environments, execute_steps=self.execute_steps)
        solved = {task: [r.success for r in results if r.episode.environment == task] for task in self.tasks}
        rates = {f"success/{task}": sum(found) / len(found) for task, found in solved.items()}
        return {"success": sum(r.success for r in results) / len(results), **rates}
