"""A simulator whose episodes end only when it is closed, for tests of cancelling: user code of the app that the tests start.

Its file ENDLESS_LOG tells that it was opened and closed.
"""

import os
import time

import numpy as np
from PIL import Image

import hf_vla
from hf_vla.evaluation import StepResult


class Endless(hf_vla.evaluation.Environment):
    name, instruction = "endless", "go on and on"
    action_low, action_high = -np.ones(4, np.float32), np.ones(4, np.float32)
    action_names, state_names, camera_names = ("dx", "dy", "dz", "gripper"), ("x", "y", "z", "gripper"), ("front",)
    fps, robot_type = 20, "metaworld_robot"

    def __init__(self, task, max_steps=500):
        self.task, self.max_steps = task, max_steps

    @classmethod
    def task_names(cls):
        return ["on-and-on"]

    def reset(self, seed):
        self._log("opened")
        return self.observation()

    def observation(self):
        state = np.array([[0.0, 0.6, 0.2, 0.5]], np.float32)
        return {"image": [self.render()], "lang": self.instruction, "state": state}

    def step(self, action):
        time.sleep(0.02)
        return StepResult(reward=0.0, terminated=False, truncated=False, success=False, info={})

    def render(self, size=None):
        return Image.new("RGB", (size or 64,) * 2, "teal")

    def close(self):
        self._log("closed")

    def _log(self, what):
        with open(os.environ["ENDLESS_LOG"], "a") as file:
            file.write(f"{what}\n")


hf_vla.register_environment("endless", Endless)
