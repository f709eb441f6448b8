"""Record demonstrations by a simulator's scripted expert as a LeRobot dataset."""

from __future__ import annotations

import json
import logging
import multiprocessing
import shutil
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from hf_vla.evaluation.environments import Environment, canonical_task, environment_class, make_environment
from hf_vla.evaluation.results import differences, episode_file
from hf_vla.utils.files import atomic_write

__all__ = [
    "Demonstration",
    "collect_demonstrations",
    "dataset_features",
    "record_dataset",
    "record_demonstration",
    "write_frames",
]

logger = logging.getLogger(__name__)

# Recording gives up if the expert solves fewer than one in this many seeds.
_MAX_SEEDS_PER_EPISODE = 5
# Higher quality than the eye needs, since small pictures lose the most: 1.4 kB per frame of 96 x 96.
_CRF = 12
_IMAGES = "observation.images."


@dataclass(frozen=True)
class Demonstration:
    """One successful episode of T frames.

    Attributes:
        seed: the seed that placed the objects.
        instruction: the task in natural language.
        images: one array per camera, uint8 (T, H, W, 3).
        states: float32 (T, S), robot units, before the action of the same row.
        actions: float32 (T, D), the expert's own actions within the environment's limits, robot units.
        success: bool (T,), the simulator's success flag after the action of the same row.
    """

    seed: int
    instruction: str
    images: tuple[np.ndarray, ...]
    states: np.ndarray
    actions: np.ndarray
    success: np.ndarray


def record_demonstration(environment: Environment, seed: int, noise: float = 0.0) -> Demonstration | None:
    """Record one episode by the expert, up to `environment.steps_after_success` steps after its first success.

    Args:
        environment: one with an expert.
        seed: places the objects and seeds the noise.
        noise: standard deviation of the Gaussian noise on the executed action, in units of the action's half range, in
            all dimensions but the last (the gripper). The recorded label is still the expert's own action for the state
            that the noise led to, so the data shows how to recover (Laskey et al., "DART", CoRL 2017).

    Returns:
        The demonstration, or None if the expert failed.
    """
    generator = np.random.default_rng([seed, zlib.crc32(environment.task.encode())])
    half_range = (environment.action_high - environment.action_low) / 2
    images, states, actions, successes = [], [], [], []
    environment.reset(seed)
    steps_left = None
    while steps_left != 0:
        observation = environment.observation()
        action = environment.expert_action()
        executed = action
        if noise:
            disturbance = generator.normal(scale=noise, size=action.shape) * half_range
            disturbance[-1] = 0
            executed = np.clip(action + disturbance, environment.action_low, environment.action_high)
        result = environment.step(executed)
        images.append([np.asarray(image) for image in observation["image"]])
        states.append(observation["state"][0] if environment.state_names else np.zeros(0))
        actions.append(action)
        successes.append(result.success)
        if steps_left is not None:
            steps_left -= 1
        elif result.success:
            steps_left = environment.steps_after_success
        if result.terminated or result.truncated:
            break
    if steps_left is None:
        return None
    return Demonstration(
        seed=seed,
        instruction=environment.instruction,
        images=tuple(np.stack(camera) for camera in zip(*images, strict=True)),
        states=np.stack(states).astype(np.float32),
        actions=np.stack(actions).astype(np.float32),
        success=np.array(successes),
    )


def collect_demonstrations(
    name: str,
    tasks: Sequence[str],
    episodes: int,
    *,
    first_seed: int = 0,
    noise: float = 0.0,
    num_workers: int = 1,
    keep: str | Path | None = None,
    **environment_arguments: Any,
) -> Iterator[tuple[str, int, Demonstration | None]]:
    """Yield `(task, seed, demonstration)` by task and ascending seed until every task has `episodes` demonstrations.

    The demonstration is None for a seed on which the expert failed; the next seed then takes its place. Order and
    content do not depend on `num_workers`. With `keep`, a folder, each episode is written there as soon as it is finished,
    and one that is there is read instead of recorded.

    Raises:
        ValueError: the expert solves too few seeds of a task.
    """
    pool = _pool(num_workers)
    try:
        for task in tasks:
            job = (name, task, environment_arguments, noise, keep)
            pending: deque = deque()
            next_seed, found = first_seed, 0
            while found < episodes:
                # Never submit more episodes than are missing, so that none is recorded in vain.
                while len(pending) < min(2 * num_workers, episodes - found):
                    if next_seed - first_seed >= _MAX_SEEDS_PER_EPISODE * (episodes + 1):
                        break
                    pending.append((next_seed, pool.submit(_record_in_worker, job, next_seed)))
                    next_seed += 1
                if not pending:
                    raise ValueError(
                        f"the expert solved only {found} of {next_seed - first_seed} episodes of {task!r}; "
                        "lower the noise, or choose another task"
                    )
                seed, future = pending.popleft()
                demonstration = future.result()
                found += demonstration is not None
                yield task, seed, demonstration
    finally:
        pool.shutdown(cancel_futures=True)


def record_dataset(
    output: str | Path,
    name: str,
    tasks: Sequence[str],
    episodes: int,
    *,
    first_seed: int = 0,
    noise: float = 0.0,
    num_workers: int = 1,
    progress: bool = True,
    **environment_arguments: Any,
) -> dict[str, dict[str, list[int]]]:
    """Record `episodes` demonstrations of each task into one LeRobot v3.0 dataset, or finish a recording that was interrupted.

    The episodes of an unfinished recording are in the folder `output` with ".partial" appended; with the same arguments (but
    for `num_workers` and `episodes`) they are not recorded again. The folder is removed when the dataset is whole.

    `info.json` gets an entry "environment" with the simulator, its settings, the noise, the tasks and their seeds, so that
    an evaluation can avoid these seeds.

    Args:
        output: folder of the dataset; it must be empty or not exist yet.
        name: simulator.
        tasks: names of its tasks, each once.
        episodes: successful episodes per task.
        first_seed: first seed of each task to try; further ones count up from it.
        noise: see `record_demonstration`.
        num_workers: processes that simulate and render; the dataset does not depend on their number.
        progress: whether to show a progress bar.
        **environment_arguments: for `make_environment`; they override the simulator's `practice_settings`.

    Returns:
        task → `{"seeds": those recorded, "failed_seeds": those on which the expert failed}`.

    Raises:
        ValueError: the simulator or a task is unknown, a number is out of range, or the expert fails too often.
        FileExistsError: `output` exists and is not empty, or an unfinished recording there has other settings.
    """
    if episodes < 1 or first_seed < 0 or num_workers < 1:
        raise ValueError(
            f"episodes is {episodes}, the first seed {first_seed}, the number of workers {num_workers}; "
            "episodes and workers start at 1, seeds at 0"
        )
    if not 0 <= noise <= 1:
        raise ValueError(f"noise is {noise}; possible: 0 to 1, in units of the action's half range")
    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise FileExistsError(f"{output} exists and is not empty; choose another output or remove it")
    tasks = [canonical_task(name, task) for task in tasks]
    if not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(f"tasks are {list(tasks)}; give at least one, and each once")
    environment_arguments = {**environment_class(name).practice_settings, **environment_arguments}
    # pyarrow and PyAV are needed only for recording; simulation works without them.
    from hf_vla.data.lerobot_writer import LeRobotWriter

    example = make_environment(name, tasks[0], **environment_arguments)
    settings, robot_type, fps, modality = example.settings(), example.robot_type, example.fps, example.modality()
    cameras = list(example.camera_names)
    features = dataset_features(example, [image.size for image in example.reset(first_seed)["image"]])
    example.close()

    unfinished = _unfinished(output, {"name": name, "settings": settings, "noise": noise})
    seeds = {task: {"seeds": [], "failed_seeds": []} for task in tasks}
    info = {"environment": {"name": name, "settings": settings, "noise": noise, "tasks": seeds}}
    with (
        LeRobotWriter(output, fps, features, robot_type=robot_type, info=info, crf=_CRF, modality=modality) as writer,
        tqdm(total=episodes * len(tasks), unit="episode", disable=not progress) as bar,
    ):
        for task, seed, demonstration in collect_demonstrations(
            name,
            tasks,
            episodes,
            first_seed=first_seed,
            noise=noise,
            num_workers=num_workers,
            keep=unfinished,
            **environment_arguments,
        ):
            bar.set_description(task, refresh=False)
            if demonstration is None:
                logger.info("%s: the expert failed on seed %d; the next seed takes its place", task, seed)
                seeds[task]["failed_seeds"].append(seed)
                continue
            _write(writer, cameras, demonstration)
            seeds[task]["seeds"].append(seed)
            bar.update()
    shutil.rmtree(unfinished)
    return seeds


def _unfinished(output: Path, recording: dict[str, Any]) -> Path:
    """Return the folder of finished episodes of a recording that is not finished; it is made if there is none."""
    from hf_vla.data.lerobot_writer import remove_leftovers

    folder = output.with_name(f"{output.name}.partial")
    about = folder / "recording.json"
    recording = json.loads(json.dumps(recording))
    if about.exists():
        before = json.loads(about.read_text(encoding="utf-8"))
        if before != recording:
            raise FileExistsError(
                f"{folder} holds an unfinished recording with other settings: {differences(before, recording)}; repeat its "
                "command to finish it, remove it, or choose another output"
            )
        remove_leftovers(output)
        logger.info("%s: %d finished episodes are there", folder, len(list(folder.glob("*.npz"))))
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(about) as partial:
        partial.write_text(json.dumps(recording, indent=2), encoding="utf-8")
    return folder


def dataset_features(environment: Environment, image_sizes: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Return the features of a dataset of an environment's episodes; `image_sizes` are (width, height) of each camera."""
    features = {
        f"{_IMAGES}{camera}": {"dtype": "video", "shape": (height, width, 3)}
        for camera, (width, height) in zip(environment.camera_names, image_sizes, strict=True)
    }
    if environment.state_names:
        features["observation.state"] = _vector_feature(environment.state_names)
    features["action"] = _vector_feature(environment.action_names)
    features["next.success"] = {"dtype": "bool", "shape": (1,)}
    features["next.done"] = {"dtype": "bool", "shape": (1,)}
    return features


def write_frames(writer: Any, cameras: Sequence[str], frames: Iterable[Mapping[str, Any]]) -> None:
    """Add the frames of one episode: `images` (one per camera), `state` (S,), `action` (D,) and `success` of each."""
    frames = list(frames)
    for number, given in enumerate(frames, start=1):
        frame = {f"{_IMAGES}{camera}": image for camera, image in zip(cameras, given["images"], strict=True)}
        if len(given["state"]):
            frame["observation.state"] = given["state"]
        frame["action"] = given["action"]
        frame["next.success"] = bool(given["success"])
        frame["next.done"] = number == len(frames)
        writer.add_frame(frame)


def _write(writer: Any, cameras: Sequence[str], demonstration: Demonstration) -> None:
    from hf_vla.data.outcomes import DEMONSTRATION

    views = zip(*demonstration.images, strict=True)
    rows = zip(views, demonstration.states, demonstration.actions, demonstration.success, strict=True)
    names = ("images", "state", "action", "success")
    write_frames(writer, cameras, (dict(zip(names, row, strict=True)) for row in rows))
    about = {"success": True, "source": DEMONSTRATION, "seed": demonstration.seed}
    writer.save_episode(demonstration.instruction, about)


def _vector_feature(names: Sequence[str]) -> dict[str, Any]:
    return {"dtype": "float32", "shape": (len(names),), "names": list(names)}


class _SameProcess:
    """The part of an executor's interface that is needed here; a job runs when its result is requested."""

    class _Result:
        def __init__(self, function, arguments):
            self._call = lambda: function(*arguments)

        def result(self):
            return self._call()

    def submit(self, function, *arguments):
        return self._Result(function, arguments)

    def shutdown(self, cancel_futures: bool = True) -> None:
        _close_environment()


def _pool(num_workers: int) -> ProcessPoolExecutor | _SameProcess:
    if num_workers == 1:
        return _SameProcess()
    # A forked process inherits OpenGL and thread pools in an unusable state.
    return ProcessPoolExecutor(num_workers, mp_context=multiprocessing.get_context("spawn"))


_environment: tuple[tuple, Environment] | None = None


def _record_in_worker(job: tuple, seed: int) -> Demonstration | None:
    """Record in this process's environment, which is replaced if the job differs from the last one."""
    global _environment
    name, task, arguments, noise, keep = job
    file = None if keep is None else Path(keep) / episode_file(task, seed, ".npz")
    if file is not None and file.exists():
        return _read_demonstration(file)
    if _environment is None or _environment[0] != job:
        _close_environment()
        _environment = (job, make_environment(name, task, **arguments))
    demonstration = record_demonstration(_environment[1], seed, noise=noise)
    if file is not None:
        with atomic_write(file) as partial:
            _write_demonstration(partial, demonstration)
    return demonstration


def _write_demonstration(file: Path, demonstration: Demonstration | None) -> None:
    """Write a demonstration, or that the expert failed."""
    arrays = {}
    if demonstration is not None:
        arrays = {
            name: getattr(demonstration, name) for name in ("states", "actions", "success", "seed", "instruction")
        }
        for number, images in enumerate(demonstration.images):
            # Differences, modulo 256, between frames: most are zero, which is fast to compress.
            arrays[f"images-{number}"] = np.diff(images, axis=0, prepend=np.zeros_like(images[:1]))
    with file.open("wb") as stream:
        np.savez_compressed(stream, **arrays)


def _read_demonstration(file: Path) -> Demonstration | None:
    with np.load(file) as arrays:
        if not arrays.files:
            return None
        images = [
            np.cumsum(arrays[name], axis=0, dtype=np.uint8) for name in arrays.files if name.startswith("images-")
        ]
        return Demonstration(
            seed=int(arrays["seed"]),
            instruction=str(arrays["instruction"]),
            images=tuple(images),
            states=arrays["states"],
            actions=arrays["actions"],
            success=arrays["success"],
        )


def _close_environment() -> None:
    global _environment
    if _environment is not None:
        _environment[1].close()
        _environment = None
