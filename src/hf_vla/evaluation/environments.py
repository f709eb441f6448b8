"""What a simulator has to offer, and the registry that makes one by name.

* `Environment`: the interface that rollouts, recorders and scripts are written against.
* `make_environment(name, task)`: a simulator by name; its module is imported only then.
* `environment_names()`, `task_names(name)`: what is possible.
"""

from __future__ import annotations

import difflib
import importlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

__all__ = [
    "Environment",
    "StepResult",
    "canonical_task",
    "environment_names",
    "make_environment",
    "nearest_first",
    "task_names",
]

# Name → (module, class). The class takes the task as its first argument.
_ENVIRONMENTS = {"metaworld": ("hf_vla.evaluation.metaworld", "MetaWorldEnvironment")}


class StepResult(NamedTuple):
    """What a simulation step tells. The next observation is asked for by `Environment.observation()`.

    Attributes:
        success: the simulator's own success flag for the state reached by this step.
        done: whether the episode's step limit is reached; a further `step` needs a `reset`.
    """

    success: bool
    done: bool


class Environment(ABC):
    """One task in one simulator.

    Stepping never renders: a frame is drawn when `observation()` or `render()` asks for it, and an observation asked
    for twice is drawn once. A policy that executes five actions a chunk therefore pays for one frame in five.

    Attributes:
        name: the registry's name of the simulator.
        task: the task's name.
        instruction: what to tell the policy, in natural language.
        action_low, action_high: float32 (D,), limits of the actions in robot units.
        action_names, state_names: names of the D action and S state dimensions.
        camera_names: names of the images of an observation, in their order.
        fps: control steps in a simulated second.
        max_steps: steps after which an episode is over.
        robot_type: the embodiment's name as written into datasets.
    """

    name: str
    task: str
    instruction: str
    action_low: np.ndarray
    action_high: np.ndarray
    action_names: Sequence[str]
    state_names: Sequence[str]
    camera_names: Sequence[str]
    fps: int
    max_steps: int
    robot_type: str

    @abstractmethod
    def reset(self, seed: int) -> dict[str, Any]:
        """Start an episode whose objects are placed by `seed` alone, and return its first observation."""

    @abstractmethod
    def observation(self) -> dict[str, Any]:
        """The present state as a dataset item without action.

        Returns:
            `{"image": [PIL.Image, one a camera], "lang": str, "state": float32 (1, S) in robot units}`.
        """

    @abstractmethod
    def step(self, action: np.ndarray) -> StepResult:
        """Execute one action, (D,) in robot units; values beyond the limits are clipped.

        Raises:
            ValueError: the action has another shape, or NaN or infinite values.
            RuntimeError: the episode was not started or is over.
        """

    @abstractmethod
    def render(self, size: int | None = None) -> Image.Image:
        """The first camera's square view of the present state, `size` pixels wide (default: the observation's)."""

    @staticmethod
    @abstractmethod
    def task_names() -> list[str]:
        """The simulator's tasks."""

    @classmethod
    def canonical_task(cls, task: str) -> str:
        """The name in `task_names()` that `task` stands for.

        Raises:
            ValueError: there is none; the message lists what is possible, nearest names first.
        """
        if task not in cls.task_names():
            raise ValueError(f"unknown task {task!r}; possible: {', '.join(nearest_first(task, cls.task_names()))}")
        return task

    def expert_action(self) -> np.ndarray:
        """The scripted expert's action for the present state, float32 (D,) within the limits, where there is one."""
        raise NotImplementedError(f"{type(self).__name__} has no scripted expert")

    def settings(self) -> dict[str, Any]:
        """Keyword arguments beside the task that make the same environment again; written into datasets."""
        return {}

    @abstractmethod
    def close(self) -> None:
        """Free what the simulator holds; a closed environment cannot be used again."""


def environment_names() -> list[str]:
    """Names that `make_environment` knows."""
    return sorted(_ENVIRONMENTS)


def nearest_first(name: str, options: Sequence[str]) -> list[str]:
    """`options` with those first that look most like `name`: for error messages."""
    close = difflib.get_close_matches(name, options, n=5, cutoff=0.4)
    return close + [option for option in options if option not in close]


def canonical_task(name: str, task: str) -> str:
    """The name that simulator `name` itself uses for `task`, such as "drawer-open" for MetaWorld's "drawer-open-v3".

    Raises:
        ValueError: unknown simulator or task; the message lists what is possible, nearest names first.
    """
    return _environment_class(name).canonical_task(task)


def task_names(name: str) -> list[str]:
    """The tasks of simulator `name`.

    Raises:
        ValueError: there is no such simulator.
    """
    return _environment_class(name).task_names()


def make_environment(name: str, task: str, **kwargs: Any) -> Environment:
    """Make the environment of simulator `name` for `task`.

    Args:
        name: one of `environment_names()`.
        task: one of `task_names(name)`.
        **kwargs: further arguments of the environment's class, such as `image_size`.

    Raises:
        ValueError: unknown simulator or task; the message lists what is possible, nearest names first.
        ImportError: the simulator's package is not installed.
        OSError: the simulator cannot render on this machine.
    """
    return _environment_class(name)(task, **kwargs)


def _environment_class(name: str) -> type[Environment]:
    if name not in _ENVIRONMENTS:
        raise ValueError(
            f"unknown environment {name!r}; possible: {', '.join(nearest_first(name, environment_names()))}"
        )
    module, class_name = _ENVIRONMENTS[name]
    return getattr(importlib.import_module(module), class_name)
