"""`DatasetMixture`: what is drawn, how often, and that it is always the same."""

import pickle
import shutil
from collections import Counter

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from hf_vla.data import DatasetMixture, LeRobotDataset


class Numbers(Dataset):
    """A dataset whose items tell where they come from."""

    action_horizon, action_dim, state_dim, num_episodes = 4, 2, None, 1

    def __init__(self, key, size):
        self.key, self.size = key, size
        self.statistics = {"num_transitions": size}

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.key, index

    def rows(self):
        return np.arange(2 * self.size, dtype=np.float32).reshape(self.size, 2), None


def draws(mixture):
    return [mixture[index] for index in range(len(mixture))]


def test_one_draw_per_seed_epoch_and_index():
    def make(seed=3):
        return DatasetMixture([Numbers("a", 300), Numbers("b", 100)], [1, 3], seed=seed)

    mixture = make()
    first = draws(mixture)
    assert len(first) == 400
    assert draws(make()) == first
    assert draws(make(seed=4)) != first
    mixture.set_epoch(1)
    second = draws(mixture)
    assert second != first
    resumed = make()
    resumed.set_epoch(1)
    assert [resumed[index] for index in range(250, 400)] == second[250:]
    mixture.set_epoch(0)
    assert draws(mixture) == first


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing_and_follow_the_epoch(workers):
    mixture = DatasetMixture([Numbers("a", 30), Numbers("b", 10)], [1, 3])
    loader = DataLoader(mixture, batch_size=None, num_workers=workers, persistent_workers=True)
    for epoch in (0, 1, 5):
        mixture.set_epoch(epoch)
        assert [tuple(item) for item in loader] == draws(mixture)


@pytest.mark.parametrize("weights", [[1, 3], None])
def test_frequencies_are_those_of_the_report(weights):
    mixture = DatasetMixture([Numbers("a", 3000), Numbers("b", 1000)], weights)
    counts = Counter(key for key, _ in draws(mixture))
    share = 0.75 if weights is None else 0.25
    report = mixture.report()
    assert [entry["key"] for entry in report] == ["a", "b"]
    assert [entry["expected_draws"] for entry in report] == pytest.approx([4000 * share, 4000 * (1 - share)])
    assert report[0]["expected_passes"] == pytest.approx(4000 * share / 3000)
    assert report[1]["probability"] == pytest.approx(1 - share)
    for entry in report:
        assert counts[entry["key"]] == pytest.approx(entry["expected_draws"], abs=4 * 28)  # 28 > standard deviation
    frames = Counter(index for key, index in draws(mixture) if key == "b")
    assert min(frames) < 10 and max(frames) >= 990 and max(frames.values()) < 15


def test_pickle_keeps_the_sequence():
    mixture = DatasetMixture([Numbers("a", 20), Numbers("b", 10)], seed=1)
    mixture.set_epoch(2)
    assert draws(pickle.loads(pickle.dumps(mixture))) == draws(mixture)


@pytest.mark.parametrize("weights", [[1], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], []])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        DatasetMixture([Numbers("a", 3), Numbers("b", 3)], weights)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one dataset"):
        DatasetMixture([])
    with pytest.raises(ValueError, match="seed"):
        DatasetMixture([Numbers("a", 3)], seed=-1)
    mixture = DatasetMixture([Numbers("a", 3)])
    with pytest.raises(ValueError, match="epoch"):
        mixture.set_epoch(-1)
    for index in (3, -1):
        with pytest.raises(IndexError, match="mixture of 3"):
            mixture[index]


@pytest.mark.parametrize("what", ["action_horizon", "action_dim", "state_dim"])
def test_members_that_cannot_share_a_batch(what):
    odd = Numbers("b", 3)
    setattr(odd, what, 9)
    with pytest.raises(ValueError, match=rf"agree in {what}.* 9 of"):
        DatasetMixture([Numbers("a", 3), odd])


def test_real_members(shared_dir, tmp_path):
    roots = [
        shutil.copytree(shared_dir / "datasets" / name, tmp_path / name) for name in ("v20_bridge_like", "v21_video")
    ]
    bridge, video = (LeRobotDataset(root, 4) for root in roots)
    mixture = DatasetMixture([bridge, video], [2, 1])
    assert mixture.statistics == {"widowx": bridge.statistics, "synthetic": video.statistics}
    member, item = mixture.draw(5)
    np.testing.assert_array_equal(mixture[5]["action"], [bridge, video][member][item]["action"])
    assert mixture.report()[0]["dataset"] == str(roots[0])


def test_shared_key_pools_statistics(shared_dir, tmp_path):
    root = shutil.copytree(shared_dir / "datasets" / "v21_video", tmp_path / "v21_video")
    parts = [LeRobotDataset(root, 4, episodes=episodes) for episodes in ([0, 2], [1, 3])]
    pooled = DatasetMixture(parts, [5, 1]).statistics
    whole = LeRobotDataset(root, 4).statistics
    assert list(pooled) == ["synthetic"]
    assert pooled["synthetic"]["num_trajectories"] == 4
    for name in ("action", "state"):
        for key, values in whole[name].items():
            np.testing.assert_allclose(pooled["synthetic"][name][key], values, rtol=1e-12, atol=1e-15)
