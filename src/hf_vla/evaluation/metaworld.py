"""MetaWorld's fifty single-arm manipulation tasks (MT1) as environments, with their scripted experts.

MetaWorld: Yu et al., "Meta-World: A Benchmark and Evaluation for Multi-Task and Meta Reinforcement Learning",
CoRL 2019; package `metaworld` 3.1.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from hf_vla.evaluation.environments import Environment, StepResult, checked_action
from hf_vla.evaluation.protocol_steps import process_image
from hf_vla.evaluation.records import BenchmarkRecord, load_record
from hf_vla.evaluation.rendering import select_mujoco_backend
from hf_vla.utils.extras import pip_install
from hf_vla.utils.suggestions import nearest_first

__all__ = ["MetaWorldEnvironment"]

_RECORD = load_record("metaworld")
_SUFFIX = "-v3"
_CAMERAS = ("corner2", "corner", "corner3", "corner4", "topview", "behindGripper", "gripperPOV")
# These cameras are mounted upside down in MetaWorld's model files.
_UPSIDE_DOWN = ("corner", "corner2", "corner3", "corner4")
# The middle 128 of corner2's 224 pixels show the table, the arm and the object, and little of the room around them.
_DEFAULT_VIEW = {"corner2": 128 / 224}
_CANNOT_RENDER = (
    "MuJoCo cannot render here ({}); install the Debian package libosmesa6 and set MUJOCO_GL=osmesa, or MUJOCO_GL=egl "
    "if there is a GPU, before mujoco is imported"
)

_INSTRUCTIONS = {
    "assembly": "pick up the ring and put it on the peg",
    "basketball": "dunk the basketball into the basket",
    "bin-picking": "move the cube from one bin to the other",
    "box-close": "put the lid on the box",
    "button-press": "press the button",
    "button-press-topdown": "press the button from the top",
    "button-press-topdown-wall": "press the button behind the wall from the top",
    "button-press-wall": "reach around the wall and press the button",
    "coffee-button": "press the button of the coffee machine",
    "coffee-pull": "pull the mug away from the coffee machine",
    "coffee-push": "push the mug under the coffee machine",
    "dial-turn": "turn the dial",
    "disassemble": "take the ring off the peg",
    "door-close": "close the door",
    "door-lock": "lock the door",
    "door-open": "open the door",
    "door-unlock": "unlock the door",
    "drawer-close": "close the drawer",
    "drawer-open": "open the drawer",
    "faucet-close": "turn the faucet off",
    "faucet-open": "turn the faucet on",
    "hammer": "hammer the nail into the wall",
    "hand-insert": "put the hand into the hole",
    "handle-press": "press the handle down",
    "handle-press-side": "press the handle down from the side",
    "handle-pull": "pull the handle up",
    "handle-pull-side": "pull the handle up from the side",
    "lever-pull": "pull the lever up",
    "peg-insert-side": "insert the peg into the hole from the side",
    "peg-unplug-side": "pull the peg out of the hole",
    "pick-out-of-hole": "pick the puck out of the hole",
    "pick-place": "pick up the puck and bring it to the goal",
    "pick-place-wall": "pick up the puck and bring it over the wall to the goal",
    "plate-slide": "slide the plate into the cabinet",
    "plate-slide-back": "slide the plate out of the cabinet",
    "plate-slide-back-side": "slide the plate sideways out of the cabinet",
    "plate-slide-side": "slide the plate sideways into the cabinet",
    "push": "push the puck to the goal",
    "push-back": "pull the puck back to the goal",
    "push-wall": "push the puck around the wall to the goal",
    "reach": "reach the goal",
    "reach-wall": "reach over the wall to the goal",
    "shelf-place": "put the cube on the shelf",
    "soccer": "kick the ball into the goal",
    "stick-pull": "pull the box with the stick",
    "stick-push": "push the box with the stick",
    "sweep": "sweep the cube off the table",
    "sweep-into": "sweep the cube into the hole",
    "window-close": "push the window closed",
    "window-open": "push the window open",
}


class MetaWorldEnvironment(Environment):
    """One MetaWorld task; the seed decides where the object and the goal are.

    State: hand x, y, z in metres and gripper opening from 0 (closed) to 1 (open), float32 (1, 4). Action: hand
    displacement dx, dy, dz (1 is one centimetre per step) and gripper effort (1 closes), float32 (4,) within [-1, 1].
    A simulated second has eighty control steps.

    Args:
        task: name with or without the suffix "-v3", such as "drawer-open".
        camera: name of a MetaWorld camera; its images are always right side up.
        image_size: width and height of the observation's images in pixels.
        max_steps: steps after which an episode is over, at most MetaWorld's own limit of 500.
        view: central part of the camera's full picture that is shown, as a fraction of its width, in (0, 1]; or one for each camera,
            {camera: fraction}. The default is 128 / 224 for corner2 and 1 for the others.
        protocol: "current" or "published": StarVLA's evaluation of MT50, whose goals take a minute to make, once per process. The
            seed is the number of an episode; images, instructions and step limits are the protocol's.
        cameras: several cameras, instead of `camera`; one image of each, in this order. One camera can't tell how far away a goal is
            that floats in the air.

    Raises:
        ValueError: the task or camera is unknown, a number is out of range, or `protocol` decides what another argument says.
        ImportError: MetaWorld is not installed.
        OSError: MuJoCo cannot render on this machine.

    Example:
        >>> environment = MetaWorldEnvironment("drawer-open")
        >>> observation = environment.reset(seed=0)
        >>> result = environment.step(environment.expert_action())
    """

    name = "metaworld"
    action_low, action_high = _RECORD.action_low, _RECORD.action_high
    action_names = tuple(_RECORD.action["names"])
    state_names = tuple(_RECORD.state["names"])
    robot_type, robot_types = _RECORD.robot_type, tuple(_RECORD.robot_types)
    fps = _RECORD.fps
    max_steps = next(iter(_RECORD.tasks.values())).max_steps  # MetaWorld's own limit
    evaluation_episodes = next(iter(_RECORD.tasks.values())).episodes
    first_evaluation_seed = _RECORD.seeds["first"]

    def __init__(
        self,
        task: str,
        camera: str = _RECORD.views[0].name,
        image_size: int = _RECORD.views[0].size[0],
        max_steps: int = max_steps,
        view: float | Mapping[str, float] | None = None,
        protocol: str | None = None,
        cameras: Sequence[str] | None = None,
    ):
        environments, experts, self._mujoco = _import_metaworld()
        self.task = self.canonical_task(task)
        self.protocol = protocol
        self._record = load_record("metaworld", protocol)
        if protocol is not None:
            if (camera, image_size, view, cameras) != (_RECORD.views[0].name, _RECORD.views[0].size[0], None, None):
                raise ValueError(
                    f"the {protocol} protocol decides camera, cameras, image_size and view; leave them out"
                )
            view, image_size = 1.0, self._record.views[0].size[0]
            max_steps = min(max_steps, self._record.task(self.task).max_steps)
        if isinstance(cameras, str):
            raise ValueError(f"cameras is {cameras!r}; give a list of names, or one name as camera")
        if cameras is not None and camera != _RECORD.views[0].name:
            raise ValueError(f"camera is {camera!r} and cameras {list(cameras)}; give one of them")
        cameras = (camera,) if cameras is None else tuple(cameras)
        if not cameras or len(set(cameras)) != len(cameras):
            raise ValueError(f"cameras are {list(cameras)}; give at least one, and each once")
        for name in cameras:
            if name not in _CAMERAS:
                raise ValueError(
                    f"unknown MetaWorld camera {name!r}; possible: {', '.join(nearest_first(name, _CAMERAS))}"
                )
        if not 8 <= image_size <= 2048:
            raise ValueError(f"image_size is {image_size}; possible: 8 to 2048 pixels")
        if not 1 <= max_steps <= type(self).max_steps:
            raise ValueError(f"max_steps is {max_steps}; possible: 1 to {type(self).max_steps}, MetaWorld's own limit")
        self.camera_names, self.image_size, self.max_steps = cameras, image_size, max_steps
        self.views = _views(view, cameras)
        self.instruction = _INSTRUCTIONS.get(self.task, self.task.replace("-", " "))
        if protocol is not None:
            self.instruction = self._record.task(self.task).settings["instruction"]

        self._simulator = environments[self.task + _SUFFIX]()
        self._expert_class = experts[self.task + _SUFFIX]
        if protocol is None:
            self._prepare_random_resets()
            self._prepare_rendering()
        self._renderers: dict[int, Any] = {}
        self._images: list[Image.Image] | None = None
        self._steps = -1

    @classmethod
    def task_names(cls) -> list[str]:
        """Return the names of all tasks, without the suffix "-v3"."""
        return sorted(name.removesuffix(_SUFFIX) for name in _import_metaworld()[0])

    @classmethod
    def suites(cls) -> dict[str, list[str]]:
        """Return MT50's tasks by difficulty."""
        return {suite.name: list(suite.tasks) for suite in _RECORD.suites.values()}

    @classmethod
    def benchmark_record(cls, task: str, protocol: str | None = None) -> BenchmarkRecord:
        return load_record("metaworld", protocol)

    @classmethod
    def canonical_task(cls, task: str) -> str:
        suite, _, name = task.removesuffix(_SUFFIX).rpartition("/")
        task = name if not suite or name in cls.suites().get(suite, ()) else task
        name, names = task.removesuffix(_SUFFIX), cls.task_names()
        if name not in names:
            raise ValueError(f"unknown MetaWorld task {task!r}; possible: {', '.join(nearest_first(name, names))}")
        return name

    def reset(self, seed: int) -> dict[str, Any]:
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed is {seed!r}; possible: integers from 0")
        simulator, mujoco = self._simulator, self._mujoco
        # MetaWorld resets its model twice in a row and draws positions each time: the second reset starts from the state
        # that the seed's first draw left, not from that of the previous episode.
        simulator.seed(int(seed) if self.protocol is None else self._record.seeds["goals"])
        if self.protocol is not None:
            goals = _mt50_goals(self._record.seeds["goals"])[self.task]
            # The benchmark draws a goal at each reset of a simulator that is seeded once.
            drawn = [simulator.np_random.choice(len(goals)) for _ in range(seed + 1)]
            simulator.set_task(goals[drawn[-1]])
        simulator.reset()
        # Some tasks (drawer-open, window-open, ...) move bodies without updating the positions that depend on them: the
        # first frame would show the object up to 20 cm away from where it is.
        mujoco.mj_forward(simulator.model, simulator.data)
        current = simulator._get_curr_obs_combined_no_goal()
        simulator._prev_obs = current
        self._full_observation = np.concatenate([current, current, simulator._get_pos_goal()])
        self._expert = self._expert_class()
        for _ in range(self._record.waiting_steps):
            self._full_observation, *_ = simulator.step(np.array(self._record.waiting_action, dtype=np.float32))
        self._steps = 0
        self._images = None
        return self.observation()

    def observation(self) -> dict[str, Any]:
        self._check_started()
        if self._images is None:
            self._images = [self._picture(camera) for camera in self.camera_names]
        state = self._full_observation[None, :4].astype(np.float32)
        return {"image": [image.copy() for image in self._images], "lang": self.instruction, "state": state}

    def step(self, action: np.ndarray) -> StepResult:
        self._check_started()
        action = checked_action(action, self)
        if self._steps >= self.max_steps:
            raise RuntimeError(f"the episode is over after {self.max_steps} steps; call reset(seed)")
        self._full_observation, reward, terminated, _, info = self._simulator.step(action)
        self._steps += 1
        self._images = None
        return StepResult(
            reward=float(reward),
            terminated=bool(terminated),
            truncated=self._steps >= self.max_steps,
            success=bool(info["success"]),
            info=info,
        )

    def render(self, size: int | None = None) -> Image.Image:
        self._check_started()
        return self._picture(self.camera_names[0], size)

    def _picture(self, camera: str, size: int | None = None) -> Image.Image:
        """What a camera shows, right side up and processed."""
        if self.protocol is not None:
            image = process_image(self._frame(camera, self.image_size), self._record.views[0].steps)
            return image if size is None else image.resize((size, size))
        size = self.image_size if size is None else size
        # Rendered at twice the size and averaged over 2 x 2 pixels, so that thin parts (fingers) stay visible at 96 pixels.
        frame = self._frame(camera, 2 * size)
        if camera in _UPSIDE_DOWN:
            frame = frame[::-1, ::-1]
        return Image.fromarray(np.ascontiguousarray(frame)).reduce(2)

    def _frame(self, camera: str, size: int) -> np.ndarray:
        """What a camera sees, (size, size, 3), as it is mounted."""
        renderer = self._renderer(size)
        for site, position in self._simulator._target_site_config:
            self._simulator._set_pos_site(site, position)
        renderer.update_scene(self._simulator.data, camera=camera)
        return renderer.render()

    def expert_action(self) -> np.ndarray:
        self._check_started()
        action = np.asarray(self._expert.get_action(self._full_observation), dtype=np.float32)
        return np.clip(action, self.action_low, self.action_high)

    def settings(self) -> dict[str, Any]:
        one = len(self.camera_names) == 1
        return {
            **({"camera": self.camera_names[0]} if one else {"cameras": list(self.camera_names)}),
            "image_size": self.image_size,
            "max_steps": self.max_steps,
            "view": self.views[self.camera_names[0]] if one else dict(self.views),
            "protocol": self.protocol,
        }

    def close(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()
        self._simulator.close()

    def _check_started(self) -> None:
        if self._steps < 0:
            raise RuntimeError("the episode is not started; call reset(seed) first")

    def _prepare_random_resets(self) -> None:
        """Let the seed decide where the object and the goal are, and let the expert see the goal, as in MT1."""
        simulator = self._simulator
        simulator._set_task_called = True
        simulator._freeze_rand_vec = False
        simulator.seeded_rand_vec = True
        simulator._partially_observable = False
        # It was cached, with the goal's limits at zero, while the task was partially observable.
        simulator.__dict__.pop("sawyer_observation_space", None)

    def _prepare_rendering(self) -> None:
        model = self._simulator.model
        # Multisampling and shadows take most of a CPU renderer's time.
        model.vis.quality.offsamples = 0
        model.vis.quality.shadowsize = 0
        # A narrower field of view renders only the middle of the picture, with the same pixels as cropping.
        for name, view in self.views.items():
            camera = self._mujoco.mj_name2id(model, self._mujoco.mjtObj.mjOBJ_CAMERA, name)
            half_angle = math.radians(float(model.cam_fovy[camera])) / 2
            model.cam_fovy[camera] = math.degrees(2 * math.atan(math.tan(half_angle) * view))

    def _renderer(self, size: int) -> Any:
        if size not in self._renderers:
            model = self._simulator.model
            model.vis.global_.offwidth = model.vis.global_.offheight = size
            try:
                renderer = self._mujoco.Renderer(model, size, size)
            except (self._mujoco.FatalError, ImportError, AttributeError, RuntimeError) as error:
                raise OSError(_CANNOT_RENDER.format(error)) from error
            if self.protocol is None:
                # Reflections in the floor double the vertices and are hardly visible.
                renderer.scene.flags[self._mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
            self._renderers[size] = renderer
        return self._renderers[size]


def _views(given: float | Mapping[str, float] | None, cameras: Sequence[str]) -> dict[str, float]:
    """Return which part of its picture each camera shows."""
    views = {camera: _DEFAULT_VIEW.get(camera, 1.0) for camera in cameras}
    if isinstance(given, Mapping):
        if unknown := [camera for camera in given if camera not in views]:
            raise ValueError(f"view names the camera {unknown[0]!r}; the cameras are {', '.join(cameras)}")
        views.update(given)
    elif given is not None:
        views = dict.fromkeys(cameras, given)
    for view in views.values():
        if not 0 < view <= 1:
            raise ValueError(f"view is {view}; possible: above 0, up to 1 (the camera's full picture)")
    return views


@cache
def _mt50_goals(seed: int) -> dict[str, list[Any]]:
    """The fifty goals that MetaWorld's MT50 makes for each task with this seed, all tasks in one go."""
    import metaworld

    goals: dict[str, list[Any]] = {}
    for task in metaworld.MT50(seed=seed).train_tasks:
        goals.setdefault(task.env_name.removesuffix(_SUFFIX), []).append(task)
    return goals


def _import_metaworld() -> tuple[dict[str, type], dict[str, type], Any]:
    """Choose the rendering backend, then import and return MetaWorld's environment classes, its experts and mujoco."""
    select_mujoco_backend()
    try:
        import mujoco
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS
        from metaworld.policies import ENV_POLICY_MAP
    except ModuleNotFoundError as error:
        raise ImportError(f"MetaWorld needs {error.name}, which is not installed: {pip_install('sim')}") from error
    except (
        ImportError,
        AttributeError,
        RuntimeError,
    ) as error:  # PyOpenGL reads attributes of a missing library, None
        raise OSError(_CANNOT_RENDER.format(error)) from error
    # The experts warn about their own constants; their actions are clipped here.
    warnings.filterwarnings("ignore", message=r"Constant\(s\) may be too high", module="metaworld")
    return ALL_V3_ENVIRONMENTS, ENV_POLICY_MAP, mujoco
