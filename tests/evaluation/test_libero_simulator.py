"""The real LIBERO, where it is installed: official episodes, images, the scripted expert."""

import contextlib
import io
import json
import os
import shutil

import numpy as np
import pytest

from hf_vla.data import DatasetMixture
from hf_vla.evaluation import make_environment, run_episode
from hf_vla.evaluation.demonstrations import record_dataset, record_demonstration
from hf_vla.evaluation.libero import CAMERAS, LiberoEnvironment

pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'hf_vla[libero]'")
pytestmark = pytest.mark.slow

TASKS = ["libero_spatial/4", "libero_object/3", "libero_goal/9", "libero_10/2", "libero_90/60"]
EPISODE = 5


def official(task: str):
    """LIBERO's own environment at the start of an episode, after the waiting steps, and what it observes there."""
    from libero.libero import benchmark, get_libero_path
    from libero.libero.envs import OffScreenRenderEnv

    suite, number = task.split("/")
    with contextlib.redirect_stdout(io.StringIO()):
        tasks = benchmark.get_benchmark(suite)()
    record = tasks.get_task(int(number))
    file = os.path.join(get_libero_path("bddl_files"), suite, record.bddl_file)
    simulator = OffScreenRenderEnv(bddl_file_name=file, camera_heights=256, camera_widths=256)
    simulator.seed(EPISODE)
    simulator.reset()
    simulator.set_init_state(tasks.get_task_init_states(int(number))[EPISODE])
    for _ in range(10):
        simulator.step([0.0] * 6 + [-1.0])
    return simulator, observed(simulator)


def observed(simulator):
    """What LIBERO observes now. It renders into whichever context is current, which ours has changed."""
    simulator.sim._render_context_offscreen.gl_ctx.make_current()
    return simulator.env._get_observations(force_update=True)


def assert_same(observation, expected):
    from robosuite.utils.transform_utils import quat2axisangle

    for image, camera in zip(observation["image"], CAMERAS.values(), strict=True):
        assert np.array_equal(np.asarray(image), expected[f"{camera}_image"][::-1, ::-1])
    state = [
        expected["robot0_eef_pos"],
        quat2axisangle(expected["robot0_eef_quat"].copy()),
        expected["robot0_gripper_qpos"],
    ]
    assert np.array_equal(observation["state"][0], np.concatenate(state).astype(np.float32))


@pytest.mark.parametrize("task", TASKS)
def test_episodes_are_liberos_own(task):
    environment = make_environment("libero", task)
    assert environment.instruction == environment.instruction.lower() and " " in environment.instruction
    environment.reset(0)
    generator = np.random.default_rng(0)
    actions = generator.uniform(environment.action_low, environment.action_high, (8, 7)).astype(np.float32)
    for action in actions:
        environment.step(action)
    # The episode depends on its number alone, not on what happened before, and is the same as in a new simulator.
    observation = environment.reset(EPISODE)
    simulator, expected = official(task)
    assert_same(observation, expected)
    for action in actions:
        ours = environment.step(action)
        _, reward, done, _ = simulator.step([*action[:6], -1.0 if action[6] > 0.5 else 1.0])
        assert (ours.reward, ours.success) == (reward, done)
    assert_same(environment.observation(), observed(simulator))
    environment.close()
    simulator.close()


class Expert:
    def __init__(self, environment):
        self.environment = environment

    def reset(self, seed=None):
        pass

    def infer(self, observation):
        return self.environment.expert_action()[None]


@pytest.mark.parametrize("task", ["libero_object/1", "libero_object/7", "libero_spatial/0"])
def test_the_expert_solves_official_episodes(task):
    environment = make_environment("libero", task, cameras="image", image_size=32, quality="fast")
    results = [run_episode(Expert(environment), environment, seed) for seed in (0, 1)]
    environment.close()
    assert all(success and 60 < length < 180 for success, length in results), results


def test_demonstrations_recover_from_noise():
    settings = {"cameras": "image", "image_size": 32, "quality": "fast", **LiberoEnvironment.practice_settings}
    environment = make_environment("libero", "libero_object/6", **settings)
    demonstration = record_demonstration(environment, seed=3, noise=0.1)
    environment.close()
    actions = demonstration.actions
    assert demonstration.success[-1] and demonstration.images[0].shape[1:] == (32, 32, 3)
    assert set(actions[:, 6]) == {0.0, 1.0} and actions[0, 6] == 1  # it starts open
    assert np.abs(actions[:, :6]).max() <= 1 and demonstration.states.shape[1] == 8


def test_another_object_of_the_scene_is_the_target():
    """The seed chooses it, and instruction, expert and success are this object's."""
    settings = {"cameras": "image", "image_size": 32, "quality": "smooth", "targets": "any"}
    environment = make_environment("libero", "libero_object/3", **settings, **LiberoEnvironment.practice_settings)
    demonstration = record_demonstration(environment, seed=2)  # the third of six
    others = environment.other_instructions()
    environment.close()
    assert demonstration.instruction == "pick up the ketchup and place it in the basket" and demonstration.success[-1]
    assert "pick up the bbq sauce and place it in the basket" in others and len(others) == 5


def test_recordings_fit_the_recipes_for_libero(tmp_path):
    recorded = tmp_path / "recorded"
    seeds = record_dataset(
        recorded, "libero", ["libero_object/2"], 1, first_seed=4, progress=False, image_size=32, quality="fast"
    )
    assert seeds == {"libero_object/2": {"seeds": [4], "failed_seeds": []}}
    for suite in ("object", "goal", "spatial", "10"):
        shutil.copytree(recorded, tmp_path / f"libero_{suite}_no_noops_1.0.0_lerobot")
    mixture = DatasetMixture.from_name("libero_all", tmp_path)
    item = mixture[0]
    assert len(item["image"]) == 2 and item["action"].shape == (8, 7) and item["dataset"] == "franka"
    assert item["lang"] == "pick up the salad dressing and place it in the basket"
    info = json.loads((recorded / "meta" / "info.json").read_text())
    assert info["robot_type"] == "libero_franka" and info["fps"] == 20
    assert info["environment"]["settings"]["initial_states"] == "random"  # the official ones are for evaluation


def test_goals_beyond_the_expert_are_named():
    environment = make_environment("libero", "libero_goal/7", cameras="image", image_size=32, quality="fast")
    environment.reset(0)
    with pytest.raises(NotImplementedError, match="goal is turnon flat_stove_1"):
        environment.expert_action()
    environment.close()
