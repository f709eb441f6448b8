"""Evaluations with controls: defaults of the simulator, files, what is refused."""

import csv

import fake_simulators
import numpy as np
import pytest
from toy import SightedPolicy, ToyEnvironment

from hf_vla.evaluation import EvaluationSettings, environments, evaluate_with_controls
from hf_vla.evaluation.benchmark import score_lines
from hf_vla.evaluation.comparison import read_policies
from hf_vla.evaluation.report import summarize
from hf_vla.evaluation.results import Outcome
from hf_vla.inference import ChunkRule
from hf_vla.processing.input_contract import InputContract


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    class Benchmark(ToyEnvironment):
        """Three official episodes, and practice from where nobody is evaluated."""

        evaluation_episodes, first_evaluation_seed = 3, 0

        @classmethod
        def task_names(cls):
            return ["suite/0", "suite/1"]

    monkeypatch.setattr(environments, "_REGISTERED", {"toy": ToyEnvironment, "benchmark": Benchmark})


def test_the_simulator_decides_what_is_not_said():
    assert EvaluationSettings(env="toy", tasks=["reach", "reach"]).seeds == range(10_000, 10_020)
    benchmark = EvaluationSettings(env="benchmark", tasks=["suite/1"])
    assert (benchmark.tasks, benchmark.seeds) == (("suite/1",), range(3))
    assert EvaluationSettings(env="benchmark", tasks=["suite/1"], episodes=2, first_seed=1).seeds == range(1, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": "toi"}, "unknown environment 'toi'; possible: toy"),
        ({"tasks": []}, "no tasks are given"),
        ({"tasks": ["jump"]}, "unknown task 'jump'"),
        ({"episodes": 0}, "episodes is 0"),
        ({"first_seed": -1}, "the first seed -1"),
        ({"num_videos": -1}, "the number of videos -1"),
    ],
)
def test_what_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationSettings(**{"env": "toy", "tasks": ["reach"], **change})


def test_policy_and_controls(tmp_path):
    settings = EvaluationSettings(
        env="benchmark", tasks=["suite/0", "suite/1"], blind=True, num_videos=1, environment={"max_steps": 5}
    )
    rows = evaluate_with_controls(SightedPolicy, tmp_path, settings, policy_name="mine", progress=False)
    # Targets are 3, 4 and 5 steps away; gray is the start, and an untrained policy idles.
    assert [(row.policy, row.task, row.successes, row.control) for row in rows] == [
        ("mine", "suite/0", 3, "none"),
        ("mine", "suite/1", 3, "none"),
        ("mine (blind)", "suite/0", 0, "blind"),
        ("mine (blind)", "suite/1", 0, "blind"),
        ("mine (untrained)", "suite/0", 0, "untrained"),
        ("mine (untrained)", "suite/1", 0, "untrained"),
    ]
    with open(tmp_path / "episodes.csv", newline="") as file:
        episodes = list(csv.DictReader(file))
    assert [episode["seed"] for episode in episodes] == ["0", "1", "2"] * 6
    assert sorted(file.name for file in (tmp_path / "videos").iterdir()) == [
        "suite-0-seed-0.mp4",
        "suite-1-seed-0.mp4",
    ]


def test_the_wrong_instruction_is_a_control(tmp_path, monkeypatch):
    class Obedient(SightedPolicy):
        """Moves only if it is told to reach."""

        def infer(self, observation):
            chunk = super().infer(observation)
            return chunk if observation["lang"] == "reach the target" else 0 * chunk

    class Scene(ToyEnvironment):
        @classmethod
        def task_names(cls):
            return ["reach", "touch"]

        def __init__(self, task="reach", max_steps=30):
            super().__init__(max_steps=max_steps)
            self.instruction = "reach the target" if task == "reach" else "touch it"

    monkeypatch.setitem(environments._REGISTERED, "scene", Scene)
    settings = EvaluationSettings(
        env="scene", tasks=["reach", "touch"], episodes=2, wrong_instruction=True, untrained=False
    )
    rows = evaluate_with_controls(Obedient, tmp_path / "both", settings, policy_name="mine", progress=False)
    assert [(row.policy, row.control, row.task, row.successes) for row in rows] == [
        ("mine", "none", "reach", 2),
        ("mine", "none", "touch", 0),
        ("mine (wrong instruction)", "wrong instruction", "reach", 0),
        ("mine (wrong instruction)", "wrong instruction", "touch", 2),
    ]
    names = {policy.name for policy in read_policies([tmp_path / "both"], controls=True)}
    assert names == {"mine", "mine (wrong instruction)"}
    alone = EvaluationSettings(env="scene", tasks=["reach"], episodes=2, wrong_instruction=True)
    with pytest.raises(ValueError, match="reach is the only task, and scene knows no other instruction"):
        evaluate_with_controls(Obedient, tmp_path / "one", alone, progress=False)
    assert not (tmp_path / "one").exists()


class Ensemble:
    """Predicts the number of the prediction, three steps ahead."""

    def __init__(self):
        self.asked = 0

    def reset(self, seed=None):
        self.asked = 0

    def infer(self, observation):
        self.asked += 1
        return np.full((3, 7), self.asked, np.float32)

    def untrained(self, seed=0):
        return self


def test_a_record_decides_what_is_not_said(monkeypatch):
    settings = EvaluationSettings(env="simplerenv", tasks=["stack_cube"])
    ensemble = ChunkRule("adaptive_ensemble", execute=1, length=7, alpha=0.1)
    assert (settings.execute_steps, settings.chunk_rule, settings.seeds) == (1, ensemble, range(24))
    assert settings.protocol["chunk"] == {"mode": "adaptive_ensemble", "execute": 1, "length": 7, "alpha": 0.1}
    own = EvaluationSettings(env="simplerenv", tasks=["stack_cube"], execute_steps=4, episodes=3)
    assert (own.execute_steps, own.chunk_rule, own.seeds) == (4, ChunkRule(execute=4), range(3))
    assert "chunk" not in own.protocol
    late = EvaluationSettings(env="simplerenv", tasks=["stack_cube"], chunk={"inference_delay": 2, "length": 3})
    assert late.chunk_rule == ChunkRule("adaptive_ensemble", 1, 2, length=3, alpha=0.1)
    other = EvaluationSettings(env="simplerenv", tasks=["stack_cube"], chunk={"mode": "temporal_ensemble"})
    assert other.chunk_rule == ChunkRule("temporal_ensemble")
    with pytest.raises(ValueError, match="decay belongs to the chunk mode temporal_ensemble"):
        EvaluationSettings(env="simplerenv", tasks=["stack_cube"], chunk={"decay": 0.1})
    tasks = ["google_visual_matching/move_near.urdf_default", "google_visual_matching/open_top_drawer.urdf_default"]
    google = EvaluationSettings(env="simplerenv", tasks=tasks)
    assert [len(google.seeds_of(task)) for task in tasks] == [60, 9]
    with pytest.raises(ValueError, match="have different chunk rules; evaluate them one after the other"):
        EvaluationSettings(env="simplerenv", tasks=["stack_cube", tasks[0]])
    with pytest.raises(ValueError, match="toy has no record of a protocol; leave out 'current'"):
        EvaluationSettings(env="toy", tasks=["reach"], benchmark_protocol="current")


def test_metaworld_as_starvla_evaluates_it_and_as_we_do():
    ours = EvaluationSettings(env="metaworld", tasks=["drawer-open"])
    assert (ours.execute_steps, ours.seeds, ours.environment) == (None, range(10_000, 10_020), {})
    theirs = EvaluationSettings(env="metaworld", tasks=["drawer-open"], benchmark_protocol="current")
    assert (theirs.execute_steps, theirs.seeds) == (8, range(10))
    assert theirs.environment == {"protocol": "current"}


def test_an_ensemble_of_a_benchmark(monkeypatch, tmp_path):
    make = fake_simulators.simplerenv(monkeypatch)
    settings = EvaluationSettings(
        env="simplerenv", tasks=["stack_cube"], episodes=2, untrained=False, environment={"max_steps": 3}
    )
    (row,) = evaluate_with_controls(Ensemble, tmp_path, settings, progress=False)
    assert (row.episodes, row.successes, row.seeds) == (2, 0, "0-1")
    for simulator in make.made:
        # Equal directions have equal weights: the plain mean of 1; 1 and 2; 1, 2 and 3. Then clipped to 1 metre.
        assert [action[0] for action in simulator.actions] == [1, 1, 1]


def test_scores_of_whole_suites():
    settings = EvaluationSettings(env="metaworld", tasks=["reach", "push"])
    record = settings.record_of("reach")
    rows = [
        summarize("mine", "metaworld", task, {0: Outcome(success, 10)})
        for suite, success in (("medium", True), ("hard", False))
        for task in record.suites[suite].tasks
    ]
    lines = score_lines(settings, rows + [summarize("mine", "metaworld", "reach", {0: Outcome(True, 1)})])
    assert [line.split(maxsplit=1)[1].split() for line in lines] == [
        ["medium", "100.0", "%"],
        ["hard", "0.0", "%"],
        ["mean", "of", "medium,", "hard", "50.0", "%"],
    ]
    assert score_lines(EvaluationSettings(env="toy", tasks=["reach"]), rows) == []


def test_episodes_that_a_benchmark_does_not_have_are_refused_before_the_first(monkeypatch, tmp_path):
    fake_simulators.simplerenv(monkeypatch)
    settings = EvaluationSettings(env="simplerenv", tasks=["stack_cube"], episodes=20, first_seed=10)
    with pytest.raises(ValueError, match="has the episodes 0 to 23; 10 to 29 are asked for: give fewer"):
        evaluate_with_controls(Ensemble, tmp_path, settings)
    assert not (tmp_path / "episodes.csv").exists()


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        ({"robot_type": "libero_franka"}, "trained on the robot type libero_franka, and simplerenv is for oxe_bridge; evaluate it"),
        ({"cameras": ["front", "wrist"]}, "trained with 2 cameras, front, wrist, and simplerenv shows 1, image_0"),
        ({"action_names": ["x", "y"]}, "actions of simplerenv have 7 dimensions, x, y, .*; those .* have 2, x, y"),
        ({"uses_state": True, "state_names": ["x"]}, "trained with the robot's state, and simplerenv has none"),
    ],
)  # fmt: skip
def test_a_policy_that_does_not_fit_is_refused_before_the_first_episode(monkeypatch, tmp_path, contract, message):
    make = fake_simulators.simplerenv(monkeypatch)

    class Misfit(Ensemble):
        input_contract = InputContract(**contract)

    settings = EvaluationSettings(env="simplerenv", tasks=["stack_cube"], episodes=1, untrained=False)
    with pytest.raises(ValueError, match=message):
        evaluate_with_controls(Misfit, tmp_path, settings, progress=False)
    assert make.made == []  # no episode has begun


def test_a_policys_state_of_another_size_is_refused(tmp_path):
    class Misfit(SightedPolicy):
        input_contract = InputContract(uses_state=True, state_names=["x", "y"])

    with pytest.raises(ValueError, match="states of toy have 1 dimensions, x; those .* have 2, x, y"):
        evaluate_with_controls(Misfit, tmp_path, EvaluationSettings(env="toy", tasks=["reach"], episodes=1))


def test_a_robot_that_nobody_described_may_be_tried(monkeypatch, tmp_path, caplog):
    fake_simulators.simplerenv(monkeypatch)

    class Nameless(Ensemble):
        input_contract = InputContract(robot_type="grandmas_arm")

    settings = EvaluationSettings(
        env="simplerenv", tasks=["stack_cube"], episodes=1, untrained=False, environment={"max_steps": 1}
    )
    evaluate_with_controls(Nameless, tmp_path, settings, progress=False)
    assert "trained on the robot type grandmas_arm, and simplerenv is for oxe_bridge" in caplog.text


def test_a_benchmarks_own_score_of_each_episode(monkeypatch, tmp_path):
    table = fake_simulators.calvin(monkeypatch, tmp_path / "data")
    table.solved = "open_drawer"  # the first of five instructions
    chosen = {"dataset": str(tmp_path / "data"), "max_steps": 3}
    settings = EvaluationSettings(
        env="calvin", tasks=["chains"], episodes=2, execute_steps=2, untrained=False, environment=chosen
    )
    for _ in range(2):  # the second finds everything there
        (row,) = evaluate_with_controls(Ensemble, tmp_path / "out", settings, progress=False)
        assert (row.successes, row.mean_score) == (0, 1)
    with open(tmp_path / "out" / "episodes.csv", newline="") as file:
        assert [episode["score"] for episode in csv.DictReader(file)] == ["1", "1"]
    assert score_lines(settings, [row])[0].endswith("mean score 1.000")
