"""An environment without a simulator and policies without a network, quick enough to test rollouts with."""

import contextlib
import os

import numpy as np
from PIL import Image

from hf_vla.evaluation.collection import Simulators
from hf_vla.evaluation.environments import Environment, StepResult


class ToyEnvironment(Environment):
    """Bring a point to a target; both lie on a line. The image's brightness tells the seed's target."""

    name = "toy"
    instruction = "reach the target"
    action_low, action_high = np.array([-1.0], np.float32), np.array([1.0], np.float32)
    action_names, state_names, camera_names = ("dx",), ("x",), ("front",)
    fps, robot_type = 10, "point"

    def __init__(self, task="reach", max_steps=30):
        self.task, self.max_steps = task, max_steps
        self.observations_drawn = 0
        self.executed = []

    @classmethod
    def task_names(cls):
        return ["reach", "touch"]

    def reset(self, seed):
        self.target = 3 + seed % 10
        self.position, self.steps = 0.0, 0
        return self.observation()

    def observation(self):
        self.observations_drawn += 1
        return {"image": [self.render(16)], "lang": self.instruction, "state": np.array([[self.position]], np.float32)}

    def step(self, action):
        self.executed.append(float(action[0]))
        self.position += float(action[0])
        self.steps += 1
        return StepResult(
            reward=-abs(self.position - self.target),
            terminated=False,
            truncated=self.steps >= self.max_steps,
            success=abs(self.position - self.target) < 0.5,
            info={},
        )

    def render(self, size=None):
        return Image.new("RGB", (size or 16,) * 2, (128 + 10 * self.target,) * 3)

    def close(self):
        self.closed = True


class SightedPolicy:
    """Reads the target from the image and moves there at full speed; gray is the place where it starts."""

    def __init__(self, horizon=4):
        self.horizon = horizon
        self.seeds, self.seen = [], []

    def reset(self, seed=None):
        self.seeds.append(seed)

    def infer(self, observation):
        self.seen.append(observation)
        target = observation["image"][0].getpixel((0, 0))[0] / 10 - 12.8
        distance = target - observation["state"][0, 0]
        steps = np.clip(distance - np.arange(self.horizon), -1, 1)
        return steps.astype(np.float32)[:, None]

    def untrained(self, seed=0):
        return IdlePolicy()


class IdlePolicy(SightedPolicy):
    """Never moves."""

    def infer(self, observation):
        self.seen.append(observation)
        return np.zeros((self.horizon, 1), np.float32)


class ConstantPolicy(SightedPolicy):
    """Returns what it was given."""

    def __init__(self, chunk):
        super().__init__()
        self.chunk = chunk

    def infer(self, observation):
        return self.chunk


class MetaWorldExpert:
    """MetaWorld's scripted expert behind a policy's interface: one action a chunk, read from the simulator itself."""

    def __init__(self, environment):
        self.environment = environment

    def reset(self, seed=None):
        pass

    def infer(self, observation):
        return self.environment.expert_action()[None]


class ToyBandit(ToyEnvironment):
    """One chunk of three actions in the units of `tiny_policies`' arm; the nearer their first number is to 2.5, the better.

    Args:
        tolerance: the task is solved if the last action is as near as this.
        crash_file: the process ends as soon as it steps, as long as there is such a file, which it removes.
        reward: in place of the environment's own.
    """

    name, task, instruction, robot_type = "bandit", "near", "open the drawer", "arm"
    action_low, action_high = np.array([-1.0, 2.0], np.float32), np.array([3.0, 4.0], np.float32)
    action_names, state_names, camera_names = ("a", "b"), ("x", "y"), ("front",)
    best = 2.5

    def __init__(self, task="near", max_steps=3, crash_file=None, reward=None, chunks=1, tolerance=0.3):
        super().__init__(task, max_steps * chunks)
        self.crash_file, self.reward, self.tolerance = crash_file, reward, tolerance
        self.chunk = max_steps

    @classmethod
    def task_names(cls):
        return ["near"]

    def reset(self, seed):
        self.steps, self.seed = 0, seed
        return self.observation()

    def observation(self):
        return {"image": [self.render(64)], "lang": self.instruction, "state": np.array([[0.5, 3.0]], np.float32)}

    def step(self, action):
        if self.crash_file is not None:
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.crash_file)  # of several processes, one can
                os._exit(3)
        self.steps += 1
        distance = abs(float(action[0]) - self.best)
        return StepResult(
            reward=-distance if self.reward is None else self.reward,
            terminated=False,
            truncated=self.steps >= self.max_steps,
            success=distance < self.tolerance and self.steps % self.chunk == 0,
            info={},
        )

    def render(self, size=None):
        return Image.new("RGB", (size or 64,) * 2, (128,) * 3)


class InThisProcess:
    """A collector's worker without a process of its own, which would take seconds to start."""

    name = "this process"

    def __init__(self, make):
        self.simulators, self.replies = Simulators(lambda task: make()), []

    def send(self, request):
        self.replies.append(("answer", self.simulators.answer(request)))

    def receive(self):
        return self.replies.pop(0)

    def close(self):
        self.simulators.close()
