"""Build all 130 LIBERO tasks, reset each to an official initial state and render it.

    python benchmarks/libero_tasks.py
    python benchmarks/libero_tasks.py --compare    # and compare with LIBERO's own environment, pixel for pixel

With --compare, the images and the state after the waiting steps must equal those of LIBERO's `OffScreenRenderEnv`, which is made
for this episode alone, while ours is reset after another episode with random actions.
"""

import argparse
import contextlib
import io
import os
import time

import numpy as np

from hf_vla.evaluation import make_environment, task_names
from hf_vla.evaluation.libero import CAMERAS, WAITING_STEPS

EPISODE = 7


def reference(task: str) -> dict[str, np.ndarray]:
    """Return what LIBERO's own environment observes at the start of the episode."""
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    suite, number = task.split("/")
    with contextlib.redirect_stdout(io.StringIO()):
        tasks = benchmark.get_benchmark(suite)()
    record = tasks.get_task(int(number))
    file = os.path.join(get_libero_path("bddl_files"), record.problem_folder, record.bddl_file)
    simulator = OffScreenRenderEnv(bddl_file_name=file, camera_heights=256, camera_widths=256)
    simulator.seed(EPISODE)
    simulator.reset()
    simulator.set_init_state(tasks.get_task_init_states(int(number))[EPISODE])
    for _ in range(WAITING_STEPS):
        simulator.step([0.0] * 6 + [-1.0])
    observation = simulator.env._get_observations(force_update=True)
    simulator.close()
    return observation


def check(task: str, compare: bool) -> str:
    environment = make_environment("libero", task)
    if compare:
        environment.reset(3)
        generator = np.random.default_rng(0)
        for _ in range(10):
            environment.step(generator.uniform(environment.action_low, environment.action_high))
    observation = environment.reset(EPISODE)
    environment.close()
    images = [np.asarray(image) for image in observation["image"]]
    assert all(image.shape == (256, 256, 3) and image.std() > 20 for image in images), "an image is empty"
    if not compare:
        return "rendered"
    expected = reference(task)
    different = [
        int((image != expected[f"{camera}_image"][::-1, ::-1]).sum())
        for image, camera in zip(images, CAMERAS.values(), strict=True)
    ]
    moved = float(np.abs(observation["state"][0, :3] - expected["robot0_eef_pos"]).max())
    return "equal" if not any(different) and moved < 1e-6 else f"DIFFERENT: {different} values, {moved} m"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compare", action="store_true", help="compare with LIBERO's own environment")
    parser.add_argument("--tasks", nargs="+", help="these only")
    arguments = parser.parse_args()
    start, outcomes = time.monotonic(), []
    for task in arguments.tasks or task_names("libero"):
        before = time.monotonic()
        outcomes.append(check(task, arguments.compare))
        print(f"{task:20s} {outcomes[-1]:10s} {time.monotonic() - before:5.1f} s", flush=True)
    good = sum(outcome in ("rendered", "equal") for outcome in outcomes)
    print(f"{good} of {len(outcomes)} tasks in {(time.monotonic() - start) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
