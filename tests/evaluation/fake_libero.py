"""Modules with the documented API of LIBERO and robosuite, without a simulator: for the adapter's own behaviour.

A hand moves in free space by 5 cm per unit of action, half of the way per step; an image's brightness tells its camera
and where the hand is. An episode is solved when the hand is 10 cm lower than at its start.
"""

import sys
import types
from collections import namedtuple

import numpy as np

Task = namedtuple("Task", "name language problem problem_folder bddl_file init_states_file")
SUITES = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
CAMERAS = {"agentview": 40, "robot0_eye_in_hand": 120}


class RandomizationError(Exception):
    """As robosuite's: no place was found for an object."""


class _Sim:
    def __init__(self, simulator):
        context = types.SimpleNamespace(update_offscreen_size=lambda width, height: None)
        context.gl_ctx = types.SimpleNamespace(make_current=lambda: None)
        self._render_context_offscreen, self._simulator = context, simulator
        quality = types.SimpleNamespace(offsamples=4, shadowsize=4096)
        self.model = types.SimpleNamespace(vis=types.SimpleNamespace(quality=quality))

    def render(self, camera_name, width, height):
        self._simulator.rendered.append((camera_name, width, height))
        frame = np.full((height, width, 3), CAMERAS[camera_name], np.uint8)
        frame[0, 0] = 255  # the corner tells how the picture is turned
        return frame


class _Inner:
    """What `OffScreenRenderEnv.env` is."""

    def __init__(self, simulator):
        self._simulator, self.hard_reset, self.object_property_initializers = simulator, True, []
        self.failures = 0
        names = simulator.names
        self.parsed_problem = {
            "objects": {name.rpartition("_")[0]: [name] for name in names},
            "goal_state": [["in", name, "basket_1_contain_region"] for name in names[:1]],
        }

    def reset(self):
        if self.failures:
            self.failures -= 1
            raise RandomizationError
        self._simulator.draws.append(np.random.uniform())
        self._simulator.position = np.array([np.random.uniform(-0.1, 0.1), 0.0, 0.31])
        self._simulator.log.append("reset")

    def _get_observations(self, force_update=False):
        assert force_update, "what a step returns is older"
        simulator = self._simulator
        return {
            "robot0_eef_pos": simulator.position.copy(),
            "robot0_eef_quat": np.array([1.0, 0.0, 0.0, 0.0]),
            "robot0_gripper_qpos": np.array([0.04, -0.04]),
        }


class OffScreenRenderEnv:
    made = []
    #: the objects of the scene, the task's own first
    names = ()

    def __init__(self, bddl_file_name, **settings):
        self.file, self.settings = bddl_file_name, settings
        self.log, self.rendered, self.draws, self.closed = [], [], [], False
        self.sim, self.env = _Sim(self), _Inner(self)
        self.robots = [types.SimpleNamespace(gripper=types.SimpleNamespace(dof=2, current_action=None))]
        self.position = np.zeros(3)
        OffScreenRenderEnv.made.append(self)

    def set_init_state(self, state):
        self.log.append(("state", float(state[0])))
        self.position = np.array([state[0] / 100, 0.0, 0.31])

    def step(self, action):
        self.log.append(tuple(float(value) for value in action))
        self.position = self.position + 0.025 * np.asarray(action)[:3]
        solved = bool(self.position[2] < 0.2)
        return {}, float(solved), solved, {}

    def close(self):
        self.closed = True


class Benchmark:
    def __init__(self, suite):
        print("chatter about the order of tasks")
        self.suite = suite

    def get_task_init_states(self, number):
        return np.arange(50.0)[:, None] + np.zeros((1, 3))


def tasks(suite):
    names = [f"{suite.removeprefix('libero_')}_{n}_put_it_down" for n in range(SUITES[suite])]
    return {n: Task(n, n.replace("_", " "), "Libero", suite, f"{n}.bddl", f"{n}.pruned_init") for n in names}


def install(monkeypatch):
    """Put the modules where `import` finds them."""
    modules = {
        name: types.ModuleType(name)
        for name in (
            "libero", "libero.libero", "libero.libero.benchmark", "libero.libero.envs",
            "robosuite", "robosuite.utils", "robosuite.utils.errors",
        )
    }  # fmt: skip
    modules["libero.libero"].benchmark = modules["libero.libero.benchmark"]
    modules["libero.libero"].get_libero_path = lambda key: f"/nowhere/{key}"
    modules["libero.libero.benchmark"].task_maps = {suite: tasks(suite) for suite in SUITES}
    modules["libero.libero.benchmark"].get_benchmark = lambda suite: lambda: Benchmark(suite)
    modules["libero.libero.envs"].OffScreenRenderEnv = OffScreenRenderEnv
    modules["robosuite.utils.errors"].RandomizationError = RandomizationError
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    OffScreenRenderEnv.made.clear()
