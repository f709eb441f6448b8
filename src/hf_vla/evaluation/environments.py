"""The interface of simulators, and the registry that makes one by name.

* `Environment`: the interface that rollouts, recorders and commands are written against.
* `StepResult`: what a simulation step returns.
* `make_environment(name, task)`: make a simulator by name; its module is imported only then.
* `register_environment(name, cls)`: add one of your own.
* `environment_class(name)`, `environment_names()`, `task_names(name)`: what is available, and its defaults.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hf_vla.plugins import load_plugins
from hf_vla.utils.suggestions import nearest_first

__all__ = [
    "FIRST_EVALUATION_SEED",
    "Environment",
    "StepResult",
    "canonical_task",
    "checked_action",
    "environment_class",
    "environment_names",
    "make_environment",
    "register_environment",
    "registered_environments",
    "suite_tasks",
    "task_names",
]

#: Recordings take seeds from 0: no policy is evaluated on an episode that it was shown.
FIRST_EVALUATION_SEED = 10_000
# Name → (module, class), imported when it is first used.
_BUILT_IN = {
    "behavior": ("hf_vla.evaluation.behavior", "BehaviorEnvironment"),
    "calvin": ("hf_vla.evaluation.calvin", "CalvinEnvironment"),
    "gymnasium": ("hf_vla.evaluation.gymnasium", "GymnasiumEnvironment"),
    "libero": ("hf_vla.evaluation.libero", "LiberoEnvironment"),
    "maniskill": ("hf_vla.evaluation.maniskill", "ManiSkillEnvironment"),
    "metaworld": ("hf_vla.evaluation.metaworld", "MetaWorldEnvironment"),
    "rlbench": ("hf_vla.evaluation.rlbench", "RLBenchEnvironment"),
    "robocasa": ("hf_vla.evaluation.robocasa", "RoboCasaEnvironment"),
    "robotwin": ("hf_vla.evaluation.robotwin", "RoboTwinEnvironment"),
    "simplerenv": ("hf_vla.evaluation.simplerenv", "SimplerEnvironment"),
}
_REGISTERED: dict[str, type[Environment]] = {}


class StepResult(NamedTuple):
    """What a simulation step returns; the next observation is `Environment.observation()`.

    Attributes:
        reward: the simulator's own reward for this step.
        terminated: whether the simulator has ended the episode.
        truncated: whether the episode's step limit is reached; a further `step` needs a `reset`.
        success: whether the task is solved in the state that this step reached.
        info: what else the simulator reports; "score" is the benchmark's own score of the episode so far, if there is one.
    """

    reward: float
    terminated: bool
    truncated: bool
    success: bool
    info: dict[str, Any]


class Environment(ABC):
    """One task in one simulator.

    Stepping never renders: a frame is rendered when `observation()` or `render()` asks for it, and an observation that
    is asked for twice is rendered once. A policy that executes five actions per chunk pays for one frame in five.

    A subclass sets the attributes as class attributes or in `__init__`, whose first argument is the task and whose
    others are settings with defaults: camera, image size and step limit are the environment's own affair.

    Attributes:
        name: the simulator's name in the registry.
        task: the task's name.
        instruction: the task in natural language, for the policy.
        action_low, action_high: float32 (D,), limits of the actions in robot units.
        action_names, state_names: names of the D action and S state dimensions; no state names if there is no state.
        camera_names: names of an observation's images, in their order.
        fps: control steps per simulated second.
        max_steps: steps after which an episode is over.
        robot_type: the embodiment's name as written into datasets.
        evaluation_episodes, first_evaluation_seed: episodes per task, and the first one's seed, of an evaluation that
            does not say otherwise.
        practice_settings: settings for everything but an evaluation whose result is reported: recordings, and
            validation during training. A benchmark with official initial states keeps these for the evaluation.
        steps_after_success: how many steps a recording goes on after success; 0 if the simulator ends the episode.
        num_episodes: how many episodes there are, if a seed is the number of an official one; None if it may be any.
        robot_types: names of the embodiments whose policies can be evaluated here; empty if every one may be tried.
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
    evaluation_episodes: int = 20
    first_evaluation_seed: int = FIRST_EVALUATION_SEED
    practice_settings: Mapping[str, Any] = {}
    steps_after_success: int = 5
    num_episodes: int | None = None
    robot_types: Sequence[str] = ()

    @abstractmethod
    def reset(self, seed: int) -> dict[str, Any]:
        """Start an episode and return its first observation.

        Args:
            seed: determines the initial state alone. For benchmarks with official initial states it is the number of
                the episode.

        Raises:
            ValueError: the seed is not an integer from 0, or there is no such episode.
        """

    @abstractmethod
    def observation(self) -> dict[str, Any]:
        """Return the current state as a dataset item without an action.

        Returns:
            `{"image": [PIL.Image, one per camera], "lang": str, "state": float32 (1, S) in robot units}`; without
            "state" if `state_names` is empty.
        """

    @abstractmethod
    def step(self, action: np.ndarray) -> StepResult:
        """Execute one action, (D,) in robot units; values beyond the limits are clipped.

        Raises:
            ValueError: the action has another shape, or NaN or infinite values.
            RuntimeError: the episode has not been started, or is over.
        """

    @abstractmethod
    def render(self, size: int | None = None) -> Image.Image:
        """Return the first camera's view of the current state, `size` pixels wide (default: the observation's size)."""

    def modality(self) -> dict[str, Any] | None:
        """Return the contents of `meta/modality.json` of a recording, or None if its features' names say enough."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Free what the simulator holds; a closed environment cannot be used again."""

    @classmethod
    def task_names(cls) -> list[str]:
        """Return the simulator's tasks; none if it does not list them."""
        return []

    @classmethod
    def benchmark_record(cls, task: str, protocol: str | None = None) -> Any:
        """Return the `BenchmarkRecord` that holds for a task, or None if this is not a benchmark that has one."""
        return None

    @classmethod
    def suites(cls) -> dict[str, list[str]]:
        """Return the benchmark's suites, suite → its tasks; none if it has only tasks."""
        return {}

    @classmethod
    def canonical_task(cls, task: str) -> str:
        """Return the name in `task_names()` that `task` stands for.

        Raises:
            ValueError: there is none; the message lists what is possible, nearest names first.
        """
        names = cls.task_names()
        if names and task not in names:
            raise ValueError(f"unknown task {task!r}; possible: {', '.join(nearest_first(task, names))}")
        return task

    def expert_action(self) -> np.ndarray:
        """Return the scripted expert's action for the current state, float32 (D,) within the limits.

        Raises:
            NotImplementedError: the environment has no scripted expert.
        """
        raise NotImplementedError(f"{type(self).__name__} has no scripted expert")

    def other_instructions(self) -> list[str]:
        """Return instructions of other tasks that could be asked for in this scene; none if that is not known."""
        return []

    def settings(self) -> dict[str, Any]:
        """Return the keyword arguments that make the same environment again; they are written into datasets."""
        return {}


_METHODS = ("reset", "step", "observation", "render", "close")
_ATTRIBUTES = (
    "name", "task", "instruction", "action_low", "action_high", "action_names", "state_names", "camera_names", "fps",
    "max_steps", "robot_type",
)  # fmt: skip


def register_environment(name: str, cls: type) -> None:
    """Make a simulator of your own known to `make_environment`, and to the commands `eval` and `record`.

    Args:
        name: its name, such as for `--env`.
        cls: a subclass of `Environment`; of another class with the same methods, one is made. Called with the task and
            the settings as keyword arguments.

    Raises:
        ValueError: the name is taken, or `cls` is not a class or lacks methods; the message names them.

    Example:
        >>> class Corridor(hf_vla.evaluation.Environment): ...
        >>> hf_vla.register_environment("corridor", Corridor)
        >>> environment = hf_vla.evaluation.make_environment("corridor", "walk", max_steps=50)
    """
    if name in _BUILT_IN:
        raise ValueError(f"the environment {name!r} is one of hf_vla's own; register yours under another name")
    if not isinstance(cls, type):
        raise ValueError(f"register_environment({name!r}, …) takes a class, not {cls!r}")
    missing = sorted(
        getattr(cls, "__abstractmethods__", set()) | {method for method in _METHODS if not hasattr(cls, method)}
    )
    if missing:
        raise ValueError(
            f"{cls.__name__} cannot be the environment {name!r}: it lacks the methods {', '.join(missing)}; "
            "hf_vla.evaluation.Environment describes them"
        )
    earlier = _REGISTERED.get(name)
    # The cell of a notebook that runs again, or a module that is loaded a second time, defines the same class anew.
    if earlier is not None and (earlier.__module__, earlier.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"the environment {name!r} is registered already, as {earlier.__module__}.{earlier.__qualname__}; "
            f"register {cls.__module__}.{cls.__qualname__} under another name"
        )
    if not issubclass(cls, Environment):
        cls = type(cls.__name__, (cls, Environment), {"__module__": cls.__module__, "__qualname__": cls.__qualname__})
    _REGISTERED[name] = cls


def environment_names() -> list[str]:
    """Return the names that `make_environment` knows."""
    load_plugins()
    return sorted({*filter(_is_built_in, _BUILT_IN), *_REGISTERED})


def registered_environments() -> list[str]:
    """Return the names of the simulators that users and plugins registered."""
    load_plugins()
    return sorted(_REGISTERED)


def _is_built_in(name: str) -> bool:
    """Whether the package has that simulator's module; hf-vla-client has not all of them."""
    return name in _BUILT_IN and importlib.util.find_spec(_BUILT_IN[name][0]) is not None


def canonical_task(name: str, task: str) -> str:
    """Return the name that simulator `name` itself uses for `task`: "drawer-open" for MetaWorld's "drawer-open-v3".

    Raises:
        ValueError: unknown simulator or task; the message lists what is possible, nearest names first.
    """
    return environment_class(name).canonical_task(task)


def suite_tasks(name: str, suite: str) -> list[str]:
    """Return the tasks of a suite of simulator `name`, such as LIBERO's "libero_object".

    Raises:
        ValueError: unknown simulator or suite; the message lists what is possible, nearest names first.
    """
    suites = environment_class(name).suites()
    if not suites:
        raise ValueError(f"{name} has no suites; name its tasks")
    if suite not in suites:
        raise ValueError(f"unknown suite {suite!r}; possible: {', '.join(nearest_first(suite, list(suites)))}")
    return suites[suite]


def task_names(name: str) -> list[str]:
    """Return the tasks of simulator `name`; none if it does not list them.

    Raises:
        ValueError: there is no such simulator.
    """
    return environment_class(name).task_names()


def make_environment(name: str, task: str, **settings: Any) -> Environment:
    """Make the environment of simulator `name` for `task`.

    Args:
        name: one of `environment_names()`.
        task: one of `task_names(name)`.
        **settings: further arguments of the environment's class, such as `image_size`.

    Raises:
        ValueError: unknown simulator, task or setting (the message lists what is possible, nearest names first), or a
            registered class that lacks attributes.
        ImportError: the simulator's package is not installed.
        OSError: the simulator cannot render on this machine.
    """
    cls = environment_class(name)
    parameters = inspect.signature(cls).parameters
    if not any(parameter.kind == inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        possible = list(parameters)[1:]
        for setting in settings:
            if setting not in possible:
                raise ValueError(
                    f"{name} does not take the setting {setting!r}; "
                    f"possible: {', '.join(nearest_first(setting, possible)) or 'none'}"
                )
    environment = cls(task, **settings)
    for attribute, value in (("name", name), ("task", task)):
        if not hasattr(environment, attribute):
            setattr(environment, attribute, value)
    if missing := [attribute for attribute in _ATTRIBUTES if not hasattr(environment, attribute)]:
        raise ValueError(
            f"the environment {name!r} ({cls.__name__}) lacks the attributes {', '.join(missing)}; "
            "hf_vla.evaluation.Environment describes them"
        )
    return environment


def environment_class(name: str) -> type[Environment]:
    """Return the class of simulator `name`, whose attributes are its defaults.

    Raises:
        ValueError: there is no such simulator; the message lists what is possible, nearest names first.
    """
    if name not in _REGISTERED and name not in _BUILT_IN:
        load_plugins()
    if name in _REGISTERED:
        return _REGISTERED[name]
    if not _is_built_in(name):
        raise ValueError(
            f"unknown environment {name!r}; possible: {', '.join(nearest_first(name, environment_names()))}"
        )
    module, class_name = _BUILT_IN[name]
    return getattr(importlib.import_module(module), class_name)


def checked_action(action: np.ndarray, environment: Environment) -> np.ndarray:
    """Return `action` as float32 (D,), clipped to the environment's limits.

    Raises:
        ValueError: the action has another shape, or NaN or infinite values.
    """
    action = np.asarray(action, dtype=np.float32)
    if action.shape != (len(environment.action_names),):
        raise ValueError(
            f"action has shape {action.shape}; {environment.name} takes ({len(environment.action_names)},): "
            f"{', '.join(environment.action_names)}"
        )
    if not np.isfinite(action).all():
        raise ValueError(f"action has NaN or infinite values: {action.tolist()}")
    return np.clip(action, environment.action_low, environment.action_high)
