"""The records of benchmarks: what they say, and that a wrong one is an error."""

import copy

import pytest
import yaml

from hf_vla.evaluation import records
from hf_vla.evaluation.records import load_record, read_record, record_names
from hf_vla.robots.robot_types import robot_names

LIBERO = yaml.safe_load((records._folder() / "libero.yaml").read_text())


@pytest.mark.parametrize("name", record_names())
def test_records_are_whole(name):
    for protocol in (None, "current", "published"):
        record = load_record(name, protocol)
        assert len(record.action_low) == len(record.action_high) == len(record.action["names"])
        assert record.views and record.install and record.instruction
        assert all(task.episodes >= 1 and task.max_steps >= 1 for task in record.tasks.values())
    assert record.robot_type in robot_names() or record.name in ("behavior", "rlbench", "maniskill")


def test_counts_of_tasks_and_episodes():
    def counts(name, suite):
        tasks = load_record(name, "current").suites[suite].tasks.values()
        return len(tasks), sum(task.episodes for task in tasks)

    assert [len(suite.tasks) for suite in load_record("libero").suites.values()] == [10, 10, 10, 10, 90]
    assert [len(suite.tasks) for suite in load_record("metaworld").suites.values()] == [28, 11, 6, 5]
    assert counts("libero", "libero_object") == (10, 500)
    assert counts("simplerenv_widowx", "widowx") == (4, 96)
    assert counts("simplerenv_google", "google_visual_matching") == (44, 864)
    assert counts("simplerenv_google", "google_variant_aggregation")[0] == 92
    assert counts("robocasa_gr1", "gr1_tabletop") == (24, 1200)
    assert [len(s.tasks) for s in load_record("robocasa365").suites.values()] == [18, 16, 16]
    assert counts("robotwin", "clean") == (50, 5000)
    assert counts("behavior", "challenge_2025") == (50, 500)
    assert sum(len(suite.tasks) for suite in load_record("rlbench").suites.values()) == 18


def test_published_and_current_differ_where_the_protocols_do():
    filters = {
        protocol: load_record("libero", protocol).views[0].steps[-1] for protocol in (None, "current", "published")
    }
    assert filters == {
        None: "rotate_180",
        "current": {"resize": {"size": [224, 224], "filter": "bilinear"}},
        "published": {"resize": {"size": [224, 224], "filter": "area"}},
    }
    assert load_record("libero", "published").unnormalization == "published"
    thresholds = [
        load_record("calvin", p).action["steps"][0]["threshold_gripper"]["threshold"] for p in ("current", "published")
    ]
    assert thresholds == [0, 0.5]
    assert load_record("metaworld").tasks["easy/reach"].max_steps == 500
    assert load_record("metaworld", "current").tasks["easy/reach"].max_steps == 400


def test_scores():
    libero = load_record("libero")
    rates = {task: float(task.startswith("libero_goal")) for task in libero.tasks if "90" not in task}
    assert libero.mean_score(rates) == 0.25
    metaworld = load_record("metaworld")
    assert metaworld.mean_score({task: float(task.startswith("easy/")) for task in metaworld.tasks}) == 0.25
    # RoboCasa365 averages over its 50 tasks: 60.6, 35.0 and 33.3 give 43.7.
    kitchen = load_record("robocasa365")
    by_suite = {"atomic_seen": 60.6, "composite_seen": 35.0, "composite_unseen": 33.3}
    assert round(kitchen.mean_score({task: by_suite[task.split("/")[0]] for task in kitchen.tasks}), 1) == 43.7
    with pytest.raises(ValueError, match="no rates of tasks of libero are given; got none"):
        libero.mean_score({})


def test_googles_other_cameras_are_run_and_do_not_count():
    record = load_record("simplerenv_google")
    rates = {task: 0.0 for task in record.suites["google_variant_aggregation"].tasks}
    rates = {f"google_variant_aggregation/{task}": 0.0 if "camera" in task else 1.0 for task in rates}
    assert record.mean_score(rates) == 1.0
    # One variant of the eight of "move near", a quarter of the score.
    rates["google_variant_aggregation/move_near.base"] = 0.0
    assert record.mean_score(rates) == pytest.approx(1 - 1 / 8 / 4)
    # One of seven rooms for one of three drawers, opened or closed.
    rates["google_variant_aggregation/open_top_drawer.office"] = 0.0
    assert record.mean_score(rates) == pytest.approx(1 - 1 / 8 / 4 - 1 / 7 / 3 / 2 / 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gripper": 1}, "unknown key 'gripper' in the record; possible: .*action"),
        ({"name": "liberty"}, "its name is 'liberty', and the file's 'libero'"),
        ({"chunk": {"excute": 8}}, "unknown key 'excute' in a chunk rule; possible: execute"),
        ({"success": {"rule": "never"}}, "unknown success rule 'never'"),
        ({"seeds": {"first": 0}}, "it needs first and rule"),
        ({"views": [{"name": "image", "source": "x", "size": [8, 8], "steps": ["rotate_90"]}]}, "step 'rotate_90'; possible: rotate_180"),
        ({"views": [{"name": "image", "source": "x", "size": [8, 8], "steps": [{"resize": {"shape": [8, 8]}}]}]}, "unknown key 'shape' in the image step 'resize'"),
        ({"suites": {"one": {"tasks": 2, "episodes": 0, "max_steps": 3}}}, "episodes of one/0 is 0"),
        ({"suites": {"one": {"tasks": ["a", "a"], "episodes": 1, "max_steps": 3}}}, "the suite 'one' names a task twice"),
        ({"action": {"names": ["x"], "low": [0, 1], "high": 1}}, "action.low has 2 values for 1 names"),
        ({"waiting_action": [0]}, "the waiting action has 1 values, an action 7"),
        ({"score": {"exclude": ["libero_goal/77"]}}, "score.exclude names the task 'libero_goal/77', which does not exist"),
        ({"unnormalization": "old"}, "unnormalization is 'old'; possible: current, published"),
    ],
)  # fmt: skip
def test_a_wrong_record_is_an_error(change, message):
    with pytest.raises(ValueError, match=f"the record of the benchmark 'libero' is wrong: .*{message}"):
        read_record({**copy.deepcopy(LIBERO), **change}, "libero", "current")


def test_what_a_record_lacks_is_named():
    content = {key: value for key, value in LIBERO.items() if key != "chunk"}
    with pytest.raises(ValueError, match="'chunk' is missing"):
        read_record(content, "libero", "current")


def test_unknown_names():
    with pytest.raises(ValueError, match="no record of a benchmark 'libro'; possible: libero"):
        load_record("libro")
    with pytest.raises(ValueError, match="unknown protocol 'old'; possible: current, published"):
        load_record("libero", "old")
