"""Closed-loop evaluation in simulators: environments, rollouts, reports. Names load when first used."""

from ..utils.lazy import lazy_names

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
__getattr__, __dir__ = lazy_names(__name__, _MODULE_OF)
