"""Rollouts recorded as a dataset: what was seen and done, interruptions, and what is refused."""

import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from toy import SightedPolicy, ToyEnvironment

from hf_vla.data import LeRobotDataset
from hf_vla.data.outcomes import read_outcomes
from hf_vla.evaluation import EvaluationSettings, environments, evaluate_with_controls


class KnownPolicy(SightedPolicy):
    """Tells itself from others."""

    fingerprint, unnorm_key = "0123456789abcdef", None


class OtherPolicy(KnownPolicy):
    fingerprint = "fedcba9876543210"


class InterruptedPolicy(KnownPolicy):
    """Fails at the third episode."""

    def reset(self, seed=None):
        super().reset(seed)
        if len(self.seeds) == 3:
            raise RuntimeError("killed")


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(environments, "_REGISTERED", {"toy": ToyEnvironment})


def evaluation(folder, load=KnownPolicy, episodes=4, **options):
    settings = EvaluationSettings(
        env="toy", tasks=["reach"], episodes=episodes, first_seed=0, environment={"max_steps": 4}, blind=True
    )
    return evaluate_with_controls(load, folder / "evaluation", settings, progress=False, **options)


def test_solved_and_failed_episodes_are_recorded_as_seen_and_done(tmp_path):
    rows = evaluation(tmp_path, record=tmp_path / "rollouts")
    assert [row.successes for row in rows] == [2, 0, 0]  # targets 3, 4, 5 and 6 steps away, and 4 steps
    dataset = LeRobotDataset(tmp_path / "rollouts", 1)
    assert dataset.num_episodes == 4  # controls are not recorded
    outcomes = read_outcomes(dataset)
    assert [outcome.success for outcome in outcomes.values()] == [True, True, False, False]
    assert {source for outcome in outcomes.values() for source in outcome.source} == {"policy"}
    episodes = pq.read_table(tmp_path / "rollouts/meta/episodes").to_pylist()
    assert [episode["seed"] for episode in episodes] == [0, 1, 2, 3]
    assert {episode["environment_task"] for episode in episodes} == {"reach"}
    assert {episode["policy"] for episode in episodes} == {"0123456789abcdef"}
    first = [dataset[index] for index in range(int(dataset.metadata.length[0]))]
    positions = np.concatenate([item["state"][:, 0] for item in first])
    actions = np.concatenate([item["action"][:, 0] for item in first])
    # Each action belongs to the state before it.
    assert np.allclose(positions[1:], np.cumsum(actions)[:-1]) and positions[0] == 0
    assert abs(positions[-1] + actions[-1] - 3) < 0.5  # and the last one reached the target
    assert abs(np.asarray(first[0]["image"][0]).mean() - 158) < 3 and first[0]["lang"] == "reach the target"
    assert not (tmp_path / "evaluation/recording").exists()


def test_recording_changes_nothing_of_the_evaluation(tmp_path):
    with_recording = evaluation(tmp_path / "a", record=tmp_path / "rollouts")
    assert with_recording == evaluation(tmp_path / "b")
    files = [(tmp_path / name / "evaluation/episodes.csv").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_an_interrupted_recording_goes_on_and_is_the_same(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        evaluation(tmp_path / "cut", InterruptedPolicy, record=tmp_path / "cut/rollouts")
    assert not (tmp_path / "cut/rollouts").exists()
    evaluation(tmp_path / "cut", record=tmp_path / "cut/rollouts")
    evaluation(tmp_path / "cut", record=tmp_path / "cut/rollouts")  # once more: nothing is left to do
    evaluation(tmp_path / "whole", record=tmp_path / "whole/rollouts")
    one, other = (pq.read_table(tmp_path / name / "rollouts/data").to_pylist() for name in ("cut", "whole"))
    assert one == other
    files = [
        tmp_path / name / "rollouts/videos/observation.images.front/chunk-000/file-000.mp4"
        for name in ("cut", "whole")
    ]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_refused(tmp_path):
    evaluation(tmp_path)
    with pytest.raises(FileExistsError, match="4 episodes of this evaluation are finished and were not recorded"):
        evaluation(tmp_path, record=tmp_path / "rollouts")
    shutil.rmtree(tmp_path / "evaluation")
    evaluation(tmp_path, record=tmp_path / "rollouts")
    with pytest.raises(
        FileExistsError, match="whole dataset of 4 episodes, without 1 of those asked for, such as seed 4"
    ):
        evaluation(tmp_path, episodes=5, record=tmp_path / "rollouts")
    with pytest.raises(
        FileExistsError, match="another evaluation: 4 episodes of this one are not finished, such as seed 0"
    ):
        evaluation(tmp_path / "new", record=tmp_path / "rollouts")
    assert not (tmp_path / "new/evaluation").exists()
    evaluation(tmp_path / "other policy", OtherPolicy)
    with pytest.raises(FileExistsError, match="another policy: fingerprint was '0123456789abcdef' and is now 'fedcba"):
        evaluation(tmp_path / "other policy", OtherPolicy, record=tmp_path / "rollouts")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not a recording of hf-vla eval --record"):
        evaluation(tmp_path, record=tmp_path / "other")
