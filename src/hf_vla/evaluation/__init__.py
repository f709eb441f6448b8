"""Closed-loop evaluation in simulators: environments, rollouts, reports. Names load when first used."""

from typing import TYPE_CHECKING

from ..utils.lazy import lazy_names

if TYPE_CHECKING:
    from .benchmark import EvaluationSettings as EvaluationSettings, evaluate_with_controls as evaluate_with_controls
    from .environments import (
        Environment as Environment,
        StepResult as StepResult,
        environment_class as environment_class,
        environment_names as environment_names,
        make_environment as make_environment,
        register_environment as register_environment,
        suite_tasks as suite_tasks,
        task_names as task_names,
    )
    from .gymnasium import GymnasiumEnvironment as GymnasiumEnvironment
    from .rollout import (
        Episode as Episode,
        EpisodeResult as EpisodeResult,
        RolloutPolicy as RolloutPolicy,
        evaluate as evaluate,
        run_episode as run_episode,
        run_episodes as run_episodes,
    )
    from .success import SuccessRate as SuccessRate

_MODULE_OF = {
    "Environment": "environments",
    "Episode": "rollout",
    "EpisodeResult": "rollout",
    "EvaluationSettings": "benchmark",
    "GymnasiumEnvironment": "gymnasium",
    "RolloutPolicy": "rollout",
    "StepResult": "environments",
    "SuccessRate": "success",
    "environment_class": "environments",
    "environment_names": "environments",
    "evaluate": "rollout",
    "evaluate_with_controls": "benchmark",
    "make_environment": "environments",
    "register_environment": "environments",
    "run_episode": "rollout",
    "run_episodes": "rollout",
    "suite_tasks": "environments",
    "task_names": "environments",
}

__all__ = sorted(_MODULE_OF)
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF, extra="sim")
