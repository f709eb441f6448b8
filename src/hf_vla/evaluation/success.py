"""The success rate of a policy that is being trained."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from hf_vla.evaluation.environments import canonical_task, environment_class, make_environment
from hf_vla.evaluation.rollout import Episode, run_episodes

__all__ = ["FIRST_VALIDATION_SEED", "SuccessRate"]

# Apart from demonstrations, which start at 0, and from hf-vla eval, which starts at 10,000: the best of a run's
# policies must not be chosen on the episodes on which it is reported.
FIRST_VALIDATION_SEED = 1_000_000


class SuccessRate:
    """Rolls a model out on tasks of a simulator, each time on the same episodes.

    Called with a model and its processor, it returns `{"success": rate over all episodes, "success/TASK": …}`.

    Args:
        env: simulator.
        tasks: its tasks.
        episodes: for each task.
        unnorm_key: which of the processor's statistics are the simulated robot's; optional where there is only one.
        execute_steps: actions of a chunk to execute; see `run_episode`.
        first_seed: of objects and policy; one seed an episode from here upwards.
        **environment_arguments: for `make_environment`, beside the simulator's `practice_settings`.

    Raises:
        ValueError: unknown simulator or task, a setting it does not take, or no episodes.
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
        # Made once here, so that what the simulator does not take is found before training.
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
