"""LIBERO's adapter: tasks, official episodes, images, actions and limits, on a stand-in for the simulator."""

import sys

import fake_libero
import numpy as np
import pytest

from hf_vla.evaluation import EvaluationSettings, libero, make_environment, task_names
from hf_vla.evaluation.environments import canonical_task, suite_tasks

DOWN = np.array([0, 0, -1, 0, 0, 0, 1], np.float32)


@pytest.fixture(autouse=True)
def simulator(monkeypatch):
    """The stand-in's latest instance."""
    fake_libero.install(monkeypatch)
    libero._libero.cache_clear()
    yield lambda: fake_libero.OffScreenRenderEnv.made[-1]
    libero._libero.cache_clear()


def make(task="libero_object/3", **settings):
    return make_environment("libero", task, **settings)


def test_tasks_by_number_and_by_name():
    assert len(task_names("libero")) == 130 and task_names("libero")[0] == "libero_spatial/0"
    assert suite_tasks("libero", "libero_90") == [f"libero_90/{number}" for number in range(90)]
    for name in ("libero_object/3", "libero_object/object_3_put_it_down", "object_3_put_it_down", "libero_object/03"):
        assert canonical_task("libero", name) == "libero_object/3"
    environment = make("90_44_put_it_down")
    assert (environment.task, environment.task_name) == ("libero_90/44", "90_44_put_it_down")
    assert environment.instruction == "90 44 put it down"


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (
            "libero_object/10",
            "unknown LIBERO task 'libero_object/10'; possible: libero_object/0 to libero_object/9, or",
        ),
        ("libero_objekt/1", "unknown LIBERO suite 'libero_objekt'; possible: libero_object"),
        ("libero_object", "'libero_object' is a LIBERO suite; its tasks are libero_object/0 to libero_object/9"),
        ("object_3_put_it_don", "or a task's name, such as object_3_put_it_down"),
    ],
)
def test_unknown_tasks(task, message):
    with pytest.raises(ValueError, match=message):
        make(task)


def test_step_limits_and_episodes_are_the_benchmarks():
    limits = {suite: make(f"{suite}/0").max_steps for suite in libero.STEP_LIMITS}
    assert limits == {
        "libero_spatial": 220,
        "libero_object": 280,
        "libero_goal": 300,
        "libero_10": 520,
        "libero_90": 400,
    }
    settings = EvaluationSettings(env="libero", tasks=["libero_object/0"])
    assert settings.seeds == range(50)


def test_an_episode_starts_from_its_official_state(simulator, capsys):
    environment = make()
    observation = environment.reset(seed=17)
    # Ten steps without motion and with the gripper open, which the step limit does not count.
    assert simulator().log == ["reset", ("state", 17.0)] + [(0, 0, 0, 0, 0, 0, -1)] * 10
    assert observation["lang"] == "object 3 put it down"
    assert np.allclose(observation["state"], [[0.17, 0, 0.31, np.pi, 0, 0, 0.04, -0.04]])
    assert observation["state"].dtype == np.float32
    with pytest.raises(ValueError, match="libero_object/3 has no episode 50; its official initial states are 0 to 49"):
        environment.reset(seed=50)
    with pytest.raises(ValueError, match="seed is -1"):
        environment.reset(seed=-1)
    assert capsys.readouterr().out == ""
    make(waiting_steps=2).reset(0)
    assert len(simulator().log) == 4


def test_seeds_place_objects_and_fixtures_and_leave_numpys_generator_alone(simulator):
    np.random.seed(123)
    expected = np.random.uniform(size=3)
    np.random.seed(123)
    random = make(initial_states="random")
    first = [random.reset(seed)["state"][0, 0] for seed in (3, 4, 3)]
    assert first[0] == first[2] != first[1]
    assert not any(isinstance(entry, tuple) and entry[0] == "state" for entry in simulator().log)
    official = make(fixture_seed=7)
    for seed in (0, 1):
        official.reset(seed)
    assert simulator().draws[0] == simulator().draws[1]
    assert np.array_equal(np.random.uniform(size=3), expected)
    with pytest.raises(ValueError, match="fixture_seed is 7, but with random initial states"):
        make(fixture_seed=7, initial_states="random")


def test_the_arm_starts_as_in_official_states_or_further_away(simulator):
    noise = {"type": "gaussian", "magnitude": 0.02}
    assert make(initial_states="random").settings()["start_noise"] == 0.02
    assert simulator().robots[0].initialization_noise == noise
    make(initial_states="random", start_noise=0.1)
    assert simulator().robots[0].initialization_noise == noise | {"magnitude": 0.1}
    assert make().settings()["start_noise"] is None
    assert not hasattr(simulator().robots[0], "initialization_noise")  # the states say where the arm is


def test_objects_without_a_place_are_placed_again(simulator):
    environment = make()
    simulator().env.failures = 3
    environment.reset(0)
    assert simulator().log[0] == "reset"


def test_only_the_views_that_were_asked_for_are_rendered(simulator):
    environment = make(cameras=["wrist_image"], image_size=32)
    image = environment.reset(0)["image"][0]
    assert simulator().rendered == [("robot0_eye_in_hand", 32, 32)]
    for _ in range(5):
        environment.step(DOWN)
    assert len(simulator().rendered) == 1
    environment.observation()
    environment.observation()
    assert len(simulator().rendered) == 2
    # Rotated by 180 degrees: the first pixel that the simulator renders is the last one.
    assert image.getpixel((31, 31)) == (255, 255, 255) and image.getpixel((0, 0)) == (120, 120, 120)
    assert environment.render(64).size == (64, 64)
    both = make(image_size=16).reset(0)["image"]
    assert [image.getpixel((0, 0))[0] for image in both] == [40, 120]
    assert simulator().settings["use_camera_obs"] is False


def test_grippers_open_above_one_half(simulator):
    environment = make()
    assert environment.action_low[6] == 0 and environment.action_high[6] == 1
    environment.reset(0)
    sent = []
    for gripper in (0.0, 0.5, 0.51, 1.0, 9.0, -9.0):
        environment.step(np.array([0.25, -3, 0, 0, 0, 0.5, gripper]))
        sent.append(simulator().log[-1])
    assert [action[6] for action in sent] == [1, 1, -1, -1, -1, 1]  # -1 opens, +1 closes
    assert {action[:6] for action in sent} == {(0.25, -1, 0, 0, 0, 0.5)}
    with pytest.raises(
        ValueError, match=r"action has shape \(6,\); libero takes \(7,\): x, y, z, roll, pitch, yaw, gripper"
    ):
        environment.step(np.zeros(6))
    with pytest.raises(ValueError, match="NaN"):
        environment.step(np.full(7, np.nan))


def test_success_and_the_step_limit():
    environment = make(max_steps=6)
    environment.reset(0)
    results = [environment.step(DOWN) for _ in range(6)]
    assert [result.success for result in results] == [False] * 4 + [True] * 2
    assert [result.terminated for result in results] == [result.success for result in results]
    assert [result.reward for result in results] == [0, 0, 0, 0, 1, 1]
    assert [result.truncated for result in results] == [False] * 5 + [True]
    with pytest.raises(RuntimeError, match="over after 6 steps"):
        environment.step(DOWN)
    with pytest.raises(RuntimeError, match="not been started"):
        make().observation()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cameras": ["agentview"]}, "unknown LIBERO camera 'agentview'; possible: image, wrist_image"),
        ({"cameras": ["image", "image"]}, "give at least one, and each once"),
        ({"cameras": []}, "give at least one"),
        ({"image_size": 4}, "image_size is 4; possible: 8 to 2048"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"waiting_steps": -1}, "waiting_steps is -1"),
        ({"initial_states": "officials"}, "initial_states is 'officials'; possible: official, random"),
        ({"quality": "best"}, "quality is 'best'; possible: official, smooth, fast"),
        ({"targets": "all"}, "targets is 'all'; possible: task, any"),
        (
            {"start_noise": 0.1},
            "start_noise is 0.1 with official initial states; possible: 0 to 0.5, with random ones",
        ),
        ({"start_noise": -1, "initial_states": "random"}, "start_noise is -1 with random"),
        ({"targets": "any"}, "does not name one object of several to move"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


def test_settings_make_the_same_environment_again():
    environment = make(
        cameras="wrist_image", image_size=64, max_steps=9, waiting_steps=3, fixture_seed=1, quality="fast"
    )
    again = make(**environment.settings())
    assert again.settings() == environment.settings() and again.camera_names == ("wrist_image",)


def test_fast_quality_renders_without_multisampling_and_shadows(simulator):
    make(quality="fast")
    assert vars(simulator().sim.model.vis.quality) == {"offsamples": 0, "shadowsize": 0}
    make()
    assert vars(simulator().sim.model.vis.quality) == {"offsamples": 4, "shadowsize": 4096}


def test_smooth_quality_renders_at_twice_the_size(simulator):
    image = make(quality="smooth", cameras="image", image_size=16).reset(0)["image"][0]
    assert simulator().rendered == [("agentview", 32, 32)]
    assert vars(simulator().sim.model.vis.quality) == {"offsamples": 0, "shadowsize": 0}
    # One of the corner's four pixels is white: (255 + 3 * 40) / 4.
    assert image.size == (16, 16) and image.getpixel((15, 15)) == (94, 94, 94) and image.getpixel((0, 0))[0] == 40


def test_the_seed_says_which_object_of_the_scene_is_to_be_moved(simulator, monkeypatch):
    names = ("put_1", "basket_1", "red_mug_1", "plate_1")
    monkeypatch.setattr(fake_libero.OffScreenRenderEnv, "names", names)
    environment = make("libero_object/3", targets="any", initial_states="random")
    goal = simulator().env.parsed_problem
    states = []
    for seed, (words, name) in enumerate([("put", "put_1"), ("red mug", "red_mug_1"), ("plate", "plate_1")] * 2):
        observation = environment.reset(seed)
        states.append(observation["state"].tolist())
        assert observation["lang"] == environment.instruction == f"object 3 {words} it down"
        assert goal["goal_state"] == [["in", name, "basket_1_contain_region"]]
    assert environment.settings()["targets"] == "any"
    # Objects of one scene are asked for from the same start.
    assert states[0] == states[1] == states[2] != states[3] == states[4] == states[5]
    official = make("libero_object/3", targets="any")
    assert official.num_episodes == 150
    official.reset(149)
    assert ("state", 49.0) in simulator().log and official.instruction == "object 3 plate it down"
    # Which others could be asked for is known without that setting, too.
    task = make("libero_object/3")
    assert task.instruction == "object 3 put it down"
    assert task.other_instructions() == ["object 3 red mug it down", "object 3 plate it down"]


@pytest.mark.parametrize(
    "names", [(), ("put_1",), ("bowl_1", "plate_1"), ("put_1", "basket_1")], ids=["goal", "alone", "unnamed", "place"]
)
def test_scenes_without_another_object_to_ask_for(names, monkeypatch):
    monkeypatch.setattr(fake_libero.OffScreenRenderEnv, "names", names)
    assert make("libero_object/3").other_instructions() == []


def test_what_to_install_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "libero", None)
    monkeypatch.delitem(sys.modules, "libero.libero")
    with pytest.raises(
        ImportError, match=r"LIBERO needs the package 'libero'; install it with: pip install 'hf_vla\[libero\]'"
    ):
        make()


def test_a_missing_renderer_is_said(monkeypatch):
    def broken(self, **settings):
        raise AttributeError("'NoneType' object has no attribute 'OSMesaCreateContextExt'")

    monkeypatch.setattr(fake_libero.OffScreenRenderEnv, "__init__", broken)
    with pytest.raises(OSError, match="LIBERO cannot render here .*libosmesa6"):
        make()


def test_two_environments_of_one_process_do_not_disturb_each_other(simulator):
    one, two = make(), make("libero_goal/1")
    one.reset(1), two.reset(2)
    one.step(DOWN)
    assert one.observation()["state"][0, 2] < two.observation()["state"][0, 2]
    one.close()
    assert fake_libero.OffScreenRenderEnv.made[0].closed and not simulator().closed
