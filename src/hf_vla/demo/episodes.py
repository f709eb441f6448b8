"""A policy driving a simulator, as frames to be shown while it happens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
from PIL import Image

from ..evaluation.environments import environment_class, make_environment, registered_environments
from ..evaluation.rollout import RolloutPolicy, stream_episode

SIMULATOR = "metaworld"
# Others that the demo offers if they are installed: name -> the module that they need.
_OTHERS = {"libero": "libero"}
_FRAME_SIZE = 320
#: Show every second step of MetaWorld, which makes 80 per second, and every step of slower ones.
_STRIDE, _FAST = 2, 40


def simulators() -> list[str]:
    """Return the simulators that can be watched here: MetaWorld, others that are installed, and those that users registered."""
    installed = [name for name, module in _OTHERS.items() if find_spec(module) is not None]
    return [SIMULATOR, *installed, *registered_environments()]


def first_seed(simulator: str) -> int:
    """Return the seed of the simulator's first evaluation episode."""
    return environment_class(simulator).first_evaluation_seed


@dataclass(frozen=True)
class Frame:
    """One moment of an episode.

    Attributes:
        image: the simulator's view.
        instruction: what the policy was told.
        action: float32 (D,), the last action executed in robot units, or None before the first.
        action_names: one per dimension.
        low, high: float32 (D,), the action's limits.
        step, max_steps: steps executed, and the limit.
        success: whether the task was solved at any step so far.
        done: whether this is the last frame.
    """

    image: Image.Image
    instruction: str
    action: np.ndarray | None
    action_names: Sequence[str]
    low: np.ndarray
    high: np.ndarray
    step: int
    max_steps: int
    success: bool
    done: bool


def drive(policy: RolloutPolicy, task: str, seed: int, max_steps: int, simulator: str = SIMULATOR) -> Iterator[Frame]:
    """Let the policy act in one episode of the simulator's task; the simulator is closed at the end, or with the generator.

    Raises:
        ValueError: unknown task, or a policy whose actions the simulator doesn't take.
        OSError: the simulator can't render here.
    """
    environment = make_environment(simulator, task, max_steps=max_steps)
    stride = _STRIDE if environment.fps > _FAST else 1
    try:
        for step in stream_episode(policy, environment, seed):
            if step.number % stride == 0 or step.done:
                yield Frame(
                    image=environment.render(_FRAME_SIZE),
                    instruction=environment.instruction,
                    action=step.action,
                    action_names=environment.action_names,
                    low=environment.action_low,
                    high=environment.action_high,
                    step=step.number,
                    max_steps=environment.max_steps,
                    success=step.success,
                    done=step.done,
                )
    finally:
        environment.close()
