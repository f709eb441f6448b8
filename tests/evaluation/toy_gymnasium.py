"""A Gymnasium environment without a simulator: a point that is to reach the origin of a square."""

import gymnasium
import numpy as np


class PointEnvironment(gymnasium.Env):
    """Observation: nested, two images, two vectors; instruction in info. Moving the point to the origin ends the episode."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}

    def __init__(self, render_mode=None, size=12, success="is_success"):
        self.render_mode, self.size, self.success = render_mode, size, success
        image = gymnasium.spaces.Box(0, 255, (size, size, 3), np.uint8)
        vector = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        self.observation_space = gymnasium.spaces.Dict(
            {"pixels": gymnasium.spaces.Dict({"top": image, "side": image}), "position": vector, "velocity": vector}
        )
        self.action_space = gymnasium.spaces.Box(np.array([-1.0, -2.0]), np.array([1.0, 2.0]), dtype=np.float64)

    def _look(self):
        brightness = int(100 + 10 * self.position[0])
        images = {
            name: np.full((self.size, self.size, 3), value, np.uint8) for name, value in self._values(brightness)
        }
        return {"pixels": images, "position": self.position.copy(), "velocity": self.velocity.copy()}

    def _values(self, brightness):
        return (("top", brightness), ("side", 7))

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.velocity = self.np_random.integers(2, 6, 2).astype(float), np.zeros(2)
        return self._look(), {"text": f"go home from {self.position[0]:.0f}"}

    def step(self, action):
        assert self.action_space.contains(action)
        self.velocity, self.position = action, self.position + action
        solved = bool(np.abs(self.position).max() < 0.5)
        info = {self.success: solved} if self.success else {}
        return self._look(), -float(np.abs(self.position).sum()), solved, False, info

    def render(self):
        return np.full((30, 40, 3), 200, np.uint8)


gymnasium.register("toys/Point-v0", entry_point=PointEnvironment, max_episode_steps=9)
