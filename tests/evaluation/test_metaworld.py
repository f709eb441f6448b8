"""MetaWorld tasks as environments: seeds, pictures, stepping, experts."""

import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from hf_vla.evaluation import metaworld
from hf_vla.evaluation.environments import make_environment, task_names
from hf_vla.evaluation.metaworld import _INSTRUCTIONS, MetaWorldEnvironment


@pytest.fixture(scope="module")
def drawer():
    environment = MetaWorldEnvironment("drawer-open-v3")
    yield environment
    environment.close()


def pixels(observation) -> np.ndarray:
    return np.asarray(observation["image"][0]).astype(int)


def solve(environment, seed) -> int | None:
    environment.reset(seed)
    for step in range(1, environment.max_steps + 1):
        if environment.step(environment.expert_action()).success:
            return step
    return None


def test_observation(drawer):
    observation = drawer.reset(0)
    assert set(observation) == {"image", "lang", "state"}
    assert observation["lang"] == "open the drawer"
    assert [image.size for image in observation["image"]] == [(96, 96)]
    assert observation["state"].shape == (1, 4) and observation["state"].dtype == np.float32
    x, y, z, gripper = observation["state"][0]
    # MetaWorld starts this task with the hand near (0, 0.6, 0.2) and the gripper open.
    assert abs(x) < 0.05 and abs(y - 0.6) < 0.05 and abs(z - 0.2) < 0.05 and gripper == 1


def test_an_episode_depends_on_its_seed_alone(drawer):
    def trace(environment):
        observation = environment.reset(7)
        states = [observation["state"]]
        for _ in range(60):
            environment.step(environment.expert_action())
        return pixels(observation), np.concatenate([*states, environment.observation()["state"]])

    fresh = MetaWorldEnvironment("drawer-open")
    first_image, first_states = trace(fresh)
    fresh.close()
    solve(drawer, 3)
    image, states = trace(drawer)
    assert np.array_equal(image, first_image) and np.array_equal(states, first_states)


@pytest.mark.parametrize("task", ["button-press-topdown", "window-open", "push"])
def test_objects_move_between_seeds(task):
    environment = make_environment("metaworld", task)
    images = [pixels(environment.reset(seed)) for seed in (0, 1, 2, 0)]
    environment.close()
    assert np.array_equal(images[0], images[3])
    for one, other in ((0, 1), (1, 2), (0, 2)):
        assert (np.abs(images[one] - images[other]).max(axis=2) > 30).sum() > 5


@pytest.mark.parametrize("task", ["drawer-open", "window-open", "dial-turn"])
def test_the_first_frame_shows_objects_where_they_are(task):
    # MetaWorld's own reset leaves them in these tasks where the reset before put them, until the first step.
    environment = make_environment("metaworld", task)
    before = pixels(environment.reset(4))
    environment.step(np.zeros(4))
    after = pixels(environment.observation())
    environment.close()
    # Only the open gripper moves; a moved drawer would change hundreds of pixels.
    assert (np.abs(before - after).max(axis=2) > 30).sum() < 40


def test_several_cameras():
    several = MetaWorldEnvironment(
        "push", cameras=["corner2", "gripperPOV"], image_size=64, view={"corner2": 0.42}, max_steps=9
    )
    settings = several.settings()
    assert several.camera_names == ("corner2", "gripperPOV") and settings["view"] == {
        "corner2": 0.42,
        "gripperPOV": 1.0,
    }
    images = several.reset(3)["image"]
    assert [np.asarray(image).tolist() for image in images] == [
        np.asarray(image).tolist() for image in several.observation()["image"]
    ]
    for camera, view, image in (("corner2", 0.42, images[0]), ("gripperPOV", 1.0, images[1])):
        alone = MetaWorldEnvironment("push", camera=camera, image_size=64, view=view)
        assert np.array_equal(alone.reset(3)["image"][0], image)
        alone.close()
    assert np.array_equal(several.render(64), images[0])
    several.step(np.ones(4, np.float32))
    assert not np.array_equal(several.observation()["image"][1], images[1])
    several.close()
    again = make_environment("metaworld", "push", **settings)
    assert again.settings() == settings
    again.close()


def test_picture_is_the_middle_of_the_camera_and_upright(drawer):
    drawer.reset(1)
    narrow = drawer.render(128)
    wide = MetaWorldEnvironment("drawer-open", view=1.0)
    wide.reset(1)
    cropped = np.asarray(wide.render(224)).astype(int)[48:176, 48:176]
    wide.close()
    assert np.abs(np.asarray(narrow) - cropped).mean() < 0.1

    image = np.asarray(narrow).astype(int)
    wall, table = image[:10].reshape(-1, 3).mean(0), image[-10:].reshape(-1, 3).mean(0)
    assert np.ptp(wall) < 12  # gray
    assert table[0] - table[2] > 20  # brown
    green = (image[..., 1] > image[..., 0] + 25) & (image[..., 1] > image[..., 2] + 25)
    assert green.sum() > 300  # the drawer


def test_stepping_does_not_render(drawer, monkeypatch):
    drawer.reset(0)
    drawn = []
    frame = MetaWorldEnvironment._frame
    monkeypatch.setattr(MetaWorldEnvironment, "_frame", lambda *args: drawn.append(1) or frame(*args))
    for _ in range(5):
        drawer.step(np.ones(4))
    assert not drawn
    first, second = drawer.observation(), drawer.observation()
    assert len(drawn) == 1 and np.array_equal(pixels(first), pixels(second))


def test_image_size_and_render_size():
    environment = MetaWorldEnvironment("button-press-topdown", image_size=64, camera="corner3")
    assert environment.reset(0)["image"][0].size == (64, 64)
    assert environment.render(200).size == (200, 200)
    reference = environment.render(256).resize((64, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(environment.render(), dtype=int) - np.asarray(reference)).mean() < 4
    environment.close()


@pytest.mark.parametrize("task", ["drawer-open", "button-press-topdown"])
def test_expert_solves_two_episodes(task):
    environment = make_environment("metaworld", task)
    lengths = [solve(environment, seed) for seed in (0, 1)]
    environment.close()
    assert all(length is not None and 20 < length < 150 for length in lengths), lengths


def test_doing_nothing_solves_nothing_and_the_limit_holds():
    environment = make_environment("metaworld", "drawer-open", max_steps=12)
    environment.reset(0)
    results = [environment.step(np.zeros(4)) for _ in range(12)]
    assert [result.success for result in results] == [False] * 12
    assert [result.truncated for result in results] == [False] * 11 + [True]
    assert not any(result.terminated for result in results)
    assert all(result.reward == result.info["unscaled_reward"] > 0 for result in results)
    with pytest.raises(RuntimeError, match="over after 12 steps"):
        environment.step(np.zeros(4))
    environment.reset(0)
    assert not environment.step(np.zeros(4)).truncated
    environment.close()


def test_actions_beyond_the_limits_are_clipped(drawer):
    ends = []
    for size in (1.0, 50.0):
        drawer.reset(0)
        for _ in range(5):
            drawer.step(np.full(4, size))
        ends.append(drawer.observation()["state"])
    assert np.array_equal(ends[0], ends[1])


@pytest.mark.parametrize(
    ("action", "message"),
    [(np.zeros(7), r"shape \(7,\)"), (np.zeros((1, 4)), r"shape \(1, 4\)"), (np.full(4, np.nan), "NaN or infinite")],
)
def test_bad_actions(drawer, action, message):
    drawer.reset(0)
    with pytest.raises(ValueError, match=message):
        drawer.step(action)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"camera": "corner22"}, "possible: corner2"),
        ({"cameras": ["corner2", "corner22"]}, "unknown MetaWorld camera 'corner22'; possible: corner2"),
        ({"cameras": ["corner2", "corner2"]}, "give at least one, and each once"),
        ({"cameras": "corner"}, "cameras is 'corner'; give a list of names"),
        ({"cameras": ["corner2"], "camera": "corner3"}, "camera is 'corner3' and cameras .* give one of them"),
        ({"view": {"corner": 0.5}}, "view names the camera 'corner'; the cameras are corner2"),
        ({"image_size": 0}, "image_size is 0"),
        ({"max_steps": 501}, "max_steps is 501"),
        ({"view": 0.0}, "view is 0.0"),
    ],
)
def test_bad_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        MetaWorldEnvironment("drawer-open", **arguments)


def test_bad_seed_and_missing_reset(drawer):
    for seed in (-1, 0.5, None):
        with pytest.raises(ValueError, match="seed is"):
            drawer.reset(seed)
    environment = MetaWorldEnvironment("drawer-open")
    with pytest.raises(RuntimeError, match="reset"):
        environment.step(np.zeros(4))
    environment.close()


def test_every_task_has_an_instruction_of_its_own():
    assert set(_INSTRUCTIONS) == set(task_names("metaworld"))
    assert len(set(_INSTRUCTIONS.values())) == 50


def test_settings_make_the_same_environment_again():
    environment = MetaWorldEnvironment("push", camera="corner", image_size=32, max_steps=99, view=0.7)
    again = make_environment("metaworld", "push", **environment.settings())
    assert again.settings() == environment.settings()
    assert np.array_equal(pixels(environment.reset(1)), pixels(again.reset(1)))
    environment.close()
    again.close()


def test_a_broken_renderer_says_what_to_install():
    check = (
        "from hf_vla.evaluation.environments import make_environment\n"
        "try:\n"
        "    make_environment('metaworld', 'drawer-open').reset(0)\n"
        "except OSError as error:\n"
        "    print(error)\n"
    )
    for backend in ("none-of-this-name", "glfw"):  # fails on import; fails without a display
        environment = os.environ | {"MUJOCO_GL": backend, "DISPLAY": "", "WAYLAND_DISPLAY": ""}
        result = subprocess.run([sys.executable, "-c", check], env=environment, capture_output=True, text=True)
        assert "MuJoCo cannot render here" in result.stdout and "libosmesa6" in result.stdout, result.stderr


def test_starvlas_protocol(monkeypatch):
    import metaworld as package

    # MT1's goals of one task instead of MT50's of all, which take a minute.
    goals = package.MT1("drawer-open-v3", seed=4042).train_tasks
    monkeypatch.setattr(metaworld, "_mt50_goals", lambda seed: {"drawer-open": goals})
    environment = make_environment("metaworld", "easy/drawer-open", protocol="current")
    assert (environment.max_steps, environment.instruction) == (400, "Open a drawer")

    # The benchmark's own vector environment: one simulator that is seeded once, episodes in order, a zero action first.
    own = package._init_each_env(
        package.env_dict.ALL_V3_ENVIRONMENTS["drawer-open-v3"],
        goals,
        seed=4042,
        render_mode="rgb_array",
        camera_name="corner2",
    )
    for episode in range(2):
        own.reset(seed=4042 + episode)
        expected, *_ = own.step(np.zeros(4, np.float32))
        ours = environment.reset(episode)
        np.testing.assert_allclose(ours["state"][0], expected[:4], rtol=1e-6)
    frame = np.asarray(own.render())
    own.close()
    assert frame.shape == (480, 480, 3)
    middle = Image.fromarray(np.ascontiguousarray(frame[::-1, ::-1])).crop((80, 80, 400, 400))
    difference = np.asarray(ours["image"][0]).astype(int) - np.asarray(middle.resize((224, 224), Image.BILINEAR))
    assert ours["image"][0].size == (224, 224) and np.abs(difference).mean() < 1
    environment.close()
    with pytest.raises(ValueError, match="the current protocol decides camera, cameras, image_size and view"):
        make_environment("metaworld", "drawer-open", protocol="current", image_size=128)
