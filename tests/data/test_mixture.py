"""`DatasetMixture`: what is drawn, how often, and that it is always the same."""

import copy
import logging
import pickle
import shutil
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from synthetic_v3 import LENGTHS, encode, rewrite
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer, TrainingArguments

from hf_vla.data import DatasetMixture, LeRobotDataset, tables
from hf_vla.data.named_mixtures import read_mixture
from hf_vla.robots import find_robot


class Numbers(Dataset):
    """A dataset whose items tell where they come from."""

    action_horizon, action_dim, state_dim, num_episodes = 4, 2, None, 1

    def __init__(self, key, size):
        self.unnorm_key, self.size = key, size
        self.statistics = {"num_transitions": size}

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.unnorm_key, index


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
@pytest.mark.parametrize(
    ("workers", "start"), [(1, "fork"), (3, "fork"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_workers_that_live_on_give_each_epoch_its_own_samples(workers, start):
    mixture = DatasetMixture([Numbers("a", 30), Numbers("b", 10)], [1, 3])
    loader = DataLoader(
        mixture, batch_size=None, num_workers=workers, persistent_workers=True, multiprocessing_context=start
    )
    seen = []
    for epoch in (0, 1, 5):
        mixture.set_epoch(epoch)
        seen.append([tuple(item) for item in loader])
        assert seen[-1] == draws(mixture)
    assert seen[0] != seen[1] != seen[2] != seen[0]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda mixture: pickle.loads(pickle.dumps(mixture))])
def test_workers_of_a_copy_follow_its_epoch(copied):
    mixture = copied(DatasetMixture([Numbers("a", 30)], seed=3))
    loader = DataLoader(mixture, batch_size=None, num_workers=1, persistent_workers=True)
    for epoch in (0, 1):
        mixture.set_epoch(epoch)
        assert [tuple(item) for item in loader] == draws(mixture)


@pytest.mark.parametrize("weights", [[1, 3], None])
def test_frequencies_are_those_of_the_report(weights):
    mixture = DatasetMixture([Numbers("a", 3000), Numbers("b", 1000)], weights)
    counts = Counter(key for key, _ in draws(mixture))
    share = 0.75 if weights is None else 0.25
    report = mixture.report()
    assert [entry["unnorm_key"] for entry in report] == ["a", "b"]
    assert [entry["expected_draws"] for entry in report] == pytest.approx([4000 * share, 4000 * (1 - share)])
    assert report[0]["expected_passes"] == pytest.approx(4000 * share / 3000)
    assert report[1]["probability"] == pytest.approx(1 - share)
    for entry in report:
        assert counts[entry["unnorm_key"]] == pytest.approx(
            entry["expected_draws"], abs=4 * 28
        )  # 28 > standard deviation
    frames = Counter(index for key, index in draws(mixture) if key == "b")
    assert min(frames) < 10 and max(frames) >= 990 and max(frames.values()) < 15


def test_a_share_of_the_draws_is_from_the_starts_of_episodes():
    class Episodes(Numbers):
        def __init__(self, key, lengths):
            super().__init__(key, sum(lengths))
            self.episode_lengths = np.array(lengths)

    members = [Episodes("a", [100, 2, 98]), Episodes("b", [200])]
    first = {"a": [*range(4), 100, 101, *range(102, 106)], "b": list(range(4))}
    mixture = DatasetMixture(members, [1, 1], epoch_size=4000, start_share=0.5, start_frames=4)
    drawn = draws(mixture)
    counts = Counter(drawn)
    # Of a's 1,000 starts a third is each episode's; and of its 1,000 other draws, half a percent is each frame.
    for index, share in [(0, 1 / 12), (101, 1 / 6), (103, 1 / 12), (50, 0)]:
        assert counts["a", index] == pytest.approx(1000 * share + 5, abs=40)
    starts = sum(index in first[key] for key, index in drawn)
    assert starts == pytest.approx(2000 + 1000 * 10 / 200 + 1000 * 4 / 200, abs=130)
    assert max(index for key, index in drawn if key == "b") >= 190
    alone = DatasetMixture(members, [1, 1], epoch_size=4000, start_share=1, start_frames=4)
    assert {key: sorted({i for k, i in draws(alone) if k == key}) for key in "ab"} == first
    # Without it, the draws and the identity are those of before.
    plain = DatasetMixture(members, [1, 1], epoch_size=4000)
    assert "start_share" not in plain.identity and mixture.identity["start_share"] == 0.5
    assert draws(DatasetMixture(members, [1, 1], epoch_size=4000, start_share=0.0, start_frames=1)) == draws(plain)
    for change, message in [
        ({"start_share": 1.5}, r"start_share must be in \[0, 1\], got 1.5"),
        ({"start_frames": 0}, "start_frames must be a whole number of at least 1, got 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            DatasetMixture(members, **change)
    with pytest.raises(ValueError, match="start_share needs datasets with `episode_lengths`"):
        DatasetMixture([Numbers("a", 300)], start_share=0.5)


def test_report_counts_what_was_drawn():
    mixture = DatasetMixture([Numbers("a", 300), Numbers("b", 100)], [1, 2], epoch_size=1000)
    assert len(mixture) == 1000
    for epoch in (0, 3):
        mixture.set_epoch(epoch)
        keys = [key for key, _ in draws(mixture)]
        for start, stop in ((0, None), (0, 0), (120, 777)):
            counted = [entry["draws"] for entry in mixture.report(start, stop)]
            assert counted == [keys[start:stop].count("a"), keys[start:stop].count("b")]


def test_balance_by_size():
    def shares(**options):
        members = [Numbers("a", 300), Numbers("b", 100)]
        return DatasetMixture(members, **options).probabilities.tolist()

    assert shares() == shares(balance_by_size=True) == [0.75, 0.25]
    assert shares(weights=[1, 1]) == [0.5, 0.5]
    assert shares(weights=[1, 3], balance_by_size=True) == [0.5, 0.5]


@pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_restart_in_mid_epoch(workers):
    def items(start, epoch):
        mixture = DatasetMixture([Numbers("a", 30), Numbers("b", 10)], [1, 3], seed=5)
        mixture.set_epoch(epoch)
        options = {"batch_size": 4, "collate_fn": list, "num_workers": workers}
        return [item for batch in DataLoader(mixture, sampler=range(start, len(mixture)), **options) for item in batch]

    whole = items(0, 2)
    assert items(17, 2) == whole[17:]
    expected = DatasetMixture([Numbers("a", 30), Numbers("b", 10)], [1, 3], seed=5)
    expected.set_epoch(2)
    assert whole == draws(expected)


def test_ranks_deal_out_one_sequence():
    mixture = DatasetMixture([Numbers("a", 30), Numbers("b", 10)], [1, 3])
    mixture.set_epoch(1)
    whole = draws(mixture)
    for ranks, batch_size in ((1, 8), (2, 4), (4, 2)):
        loaders = [
            prepare_data_loader(
                DataLoader(mixture, batch_size, collate_fn=list), num_processes=ranks, process_index=rank
            )
            for rank in range(ranks)
        ]
        for loader in loaders:
            loader.set_epoch(1)
        steps = zip(*loaders, strict=True)
        assert [item for step in steps for batch in step for item in batch] == whole


class Recorder(Trainer):
    """Trains nothing, and keeps the items that it is given."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen = []

    def compute_loss(self, model, inputs, **kwargs):
        self.seen += inputs["items"]
        return model.weight.sum()


@pytest.mark.filterwarnings("ignore:.*pin_memory")
@pytest.mark.parametrize("workers", [0, 2])
def test_trainer_follows_the_epochs_and_resumes(tmp_path, workers):
    def trainer(max_steps):
        mixture = DatasetMixture([Numbers("a", 15), Numbers("b", 5)], [1, 3], seed=2)
        arguments = TrainingArguments(
            tmp_path,
            max_steps=max_steps,
            per_device_train_batch_size=4,
            train_sampling_strategy="sequential",
            dataloader_num_workers=workers,
            dataloader_persistent_workers=workers > 0,
            save_steps=8,
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        collate = lambda items: {"items": items}  # noqa: E731
        return Recorder(torch.nn.Linear(1, 1), arguments, train_dataset=mixture, data_collator=collate), mixture

    whole, mixture = trainer(13)  # 5 steps an epoch
    whole.train()
    expected = []
    for epoch in range(3):
        mixture.set_epoch(epoch)
        expected += draws(mixture)
    assert whole.seen == expected[: 13 * 4]
    resumed, _ = trainer(13)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert resumed.seen == expected[8 * 4 : 13 * 4]


class Flaky(Numbers):
    """Every third item cannot be read."""

    def __getitem__(self, index):
        if index % 3 == 0:
            raise OSError(f"item {index} is damaged")
        return super().__getitem__(index)


def test_errors_are_raised_unless_skipping_is_asked_for(caplog):
    with pytest.raises(OSError, match="is damaged"):
        draws(DatasetMixture([Flaky("a", 30)]))
    mixture = DatasetMixture([Flaky("a", 30), Numbers("b", 30)], on_error="skip")
    with caplog.at_level(logging.WARNING, logger="hf_vla"):
        once = draws(mixture)
    assert len(once) == 60 and not [index for key, index in once if key == "a" and index % 3 == 0]
    damaged = mixture.num_skipped
    assert 3 < damaged == caplog.text.count("is damaged")
    assert [i for i in range(60) if once[i] != (mixture.datasets[mixture.draw(i)[0]].unnorm_key, mixture.draw(i)[1])]
    loader = DataLoader(mixture, batch_size=None, num_workers=2)
    assert [tuple(item) for item in loader] == once
    assert mixture.num_skipped == 2 * damaged
    mixture = DatasetMixture([Flaky("a", 1)], on_error="skip")
    with pytest.raises(OSError, match="100 draws in a row.*item 0 is damaged"):
        mixture[0]


def test_named_mixtures(copied, tmp_path):
    for name in ("bridge_orig_1.0.0_lerobot", "fractal20220817_data_0.1.0_lerobot"):
        root = copied("v20_bridge_like", name)
    info = root / "meta/info.json"  # of the second, whose camera has another name
    info.write_text(info.read_text().replace("observation.images.image_0", "observation.images.image"))
    (root / "meta/modality.json").unlink()
    (root / "videos/chunk-000/observation.images.image_0").rename(root / "videos/chunk-000/observation.images.image")
    mixture = DatasetMixture.from_name("bridge_rt_1", tmp_path, seed=4)
    assert [dataset.unnorm_key for dataset in mixture.datasets] == ["oxe_bridge", "oxe_rt1"]
    assert [dataset.action_horizon for dataset in mixture.datasets] == [16, 16]
    assert [dataset.cameras for dataset in mixture.datasets] == [
        ["observation.images.image_0"],
        ["observation.images.image"],
    ]
    assert mixture.probabilities.tolist() == [0.5, 0.5] and mixture.seed == 4
    assert DatasetMixture.from_name("bridge_rt_1", tmp_path, action_horizon=4)[0]["action"].shape == (4, 7)
    modes = find_robot("oxe_bridge").modes(mixture.statistics["oxe_bridge"], "oxe_bridge")
    assert modes == {"action": ["q99"] * 6 + ["binary"], "state": ["q99"] * 7 + ["binary"]}
    assert [entry["dataset"] for entry in read_mixture("libero_all")] == [
        f"libero_{suite}_no_noops_1.0.0_lerobot" for suite in ("object", "goal", "spatial", "10")
    ]

    own = tmp_path / "own.yaml"
    own.write_text("- {dataset: bridge_orig_1.0.0_lerobot, robot: mine, weight: 2, action_horizon: 3, episodes: [1]}")
    assert len(DatasetMixture.from_name(own, tmp_path)) == 34
    with pytest.raises(FileNotFoundError, match="libero_object_no_noops_1.0.0_lerobot is missing"):
        DatasetMixture.from_name("libero_all", tmp_path)
    with pytest.raises(ValueError, match="'bridge_rt'.*bridge_rt_1, .*libero_all, .*; did you mean bridge_rt_1"):
        DatasetMixture.from_name("bridge_rt", tmp_path)
    own.write_text("- {dataset: bridge_orig_1.0.0_lerobot, robot: mine}")
    with pytest.raises(ValueError, match="'mine' is not a known robot type; give action_horizon"):
        DatasetMixture.from_name(own, tmp_path)
    own.write_text("- {dataset: bridge_orig_1.0.0_lerobot, robot: oxe_bridge, horizon: 3}")
    with pytest.raises(ValueError, match="does not fit LeRobotDataset.*horizon"):
        DatasetMixture.from_name(own, tmp_path)
    own.write_text("dataset: bridge")
    with pytest.raises(ValueError, match="must be a list"):
        DatasetMixture.from_name(own, tmp_path)


def test_pickle_keeps_the_sequence():
    mixture = DatasetMixture([Numbers("a", 20), Numbers("b", 10)], seed=1)
    mixture.set_epoch(2)
    assert draws(pickle.loads(pickle.dumps(mixture))) == draws(mixture)


@pytest.mark.parametrize(
    "weights", [[1], [1, 2, 3], [1, 0], [1, -1], [1, float("nan")], [1, float("inf")], [], ["1", "2"], 3]
)
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        DatasetMixture([Numbers("a", 3), Numbers("b", 3)], weights)


def test_bad_arguments():
    with pytest.raises(ValueError, match="at least one dataset"):
        DatasetMixture([])
    with pytest.raises(ValueError, match="on_error is 'ignore'; possible: 'raise', 'skip'"):
        DatasetMixture([Numbers("a", 3)], on_error="ignore")
    for size in (0, 2.5, True):
        with pytest.raises(ValueError, match="epoch_size must be a whole number"):
            DatasetMixture([Numbers("a", 3)], epoch_size=size)
    for seed in (-1, 1.5, 2**64):
        with pytest.raises(ValueError, match="seed must be a whole number from 0 to"):
            DatasetMixture([Numbers("a", 3)], seed=seed)
    with pytest.raises(ValueError, match="augmentation must be an ImageAugmentation, got {'crop': 0.5}"):
        DatasetMixture([Numbers("a", 3)], augmentation={"crop": 0.5})
    with pytest.raises(ValueError, match="a mixture takes a list of datasets"):
        DatasetMixture(Numbers("a", 3))
    np.testing.assert_array_equal(DatasetMixture([Numbers("a", 3)] * 2, [1e308, 1e308]).probabilities, [0.5, 0.5])
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


def test_real_members(copied, tmp_path):
    roots = [copied(name) for name in ("v20_bridge_like", "v21_video")]
    bridge, video = (LeRobotDataset(root, 4) for root in roots)
    mixture = DatasetMixture([bridge, video], [2, 1])
    assert mixture.statistics == {"widowx": bridge.statistics, "synthetic": video.statistics}
    member, item = mixture.draw(5)
    np.testing.assert_array_equal(mixture[5]["action"], [bridge, video][member][item]["action"])
    assert mixture.report()[0]["dataset"] == str(roots[0])


def test_members_share_what_they_keep_open(reference_datasets):
    paths = [reference_datasets / name for name in ("v21_video", "v20_bridge_like", "v21_video")]
    members = [LeRobotDataset(path, 4, max_open_videos=size) for path, size in zip(paths, (2, 5, 3), strict=True)]
    expected = [[np.asarray(image) for image in member[7]["image"]] for member in members]
    mixture = DatasetMixture(members)
    assert {id(member.videos) for member in mixture.datasets} == {id(members[1].videos)}
    assert members[0].videos.capacity == 5
    for member, images in zip(mixture.datasets, expected, strict=True):
        for image, there in zip(member[7]["image"], images, strict=True):
            np.testing.assert_array_equal(image, there)


def test_shared_key_pools_statistics(copied, tmp_path):
    root = copied("v21_video")
    parts = [LeRobotDataset(root, 4, episodes=episodes) for episodes in ([0, 2], [1, 3])]
    pooled = DatasetMixture(parts, [5, 1]).statistics
    whole = LeRobotDataset(root, 4).statistics
    assert list(pooled) == ["synthetic"]
    assert pooled["synthetic"]["num_trajectories"] == 4
    for name in ("action", "state"):
        for key, values in whole[name].items():
            np.testing.assert_allclose(pooled["synthetic"][name][key], values, rtol=1e-12, atol=1e-15)


def test_shared_key_needs_one_action_mode(copied, tmp_path):
    root = copied("v21_video")
    parts = [LeRobotDataset(root, 4), LeRobotDataset(root, 4, action_mode="relative")]
    with pytest.raises(ValueError, match="'synthetic' must agree in action_mode: 'stored' of.*'relative'.* of"):
        _ = DatasetMixture(parts).statistics


def test_check_before_training(copied, tmp_path):
    root = copied("v21_video")
    videos = root / "videos/chunk-000/observation.images.wrist"
    DatasetMixture([LeRobotDataset(root, 4)]).check()
    whole = (videos / "episode_000001.mp4").read_bytes()
    (videos / "episode_000001.mp4").write_bytes(whole[: len(whole) // 2])
    mixture = DatasetMixture([LeRobotDataset(root, 4)])
    for _ in range(2):  # only success is remembered
        with pytest.raises(
            OSError, match="episode 1, camera 'observation.images.wrist'.*episode_000001.mp4 cannot be"
        ):
            mixture.check()
    shutil.copy(videos / "episode_000002.mp4", videos / "episode_000001.mp4")
    with pytest.raises(
        OSError, match="episode 1, camera.*ends at 0.500 s, but the last of the episode's 28 frames is at 2.7"
    ):
        DatasetMixture([LeRobotDataset(root, 4)]).check()
    DatasetMixture([LeRobotDataset(root, 4, cameras=["front"])]).check()
    (videos / "episode_000001.mp4").write_bytes(whole)
    DatasetMixture([LeRobotDataset(root, 4)]).check()


def test_check_goes_on_where_items_are_skipped(copied, tmp_path, caplog):
    root = copied("v21_video")
    video = root / "videos/chunk-000/observation.images.wrist/episode_000001.mp4"
    video.write_bytes(video.read_bytes()[:900])
    mixture = DatasetMixture([LeRobotDataset(root, 4)], on_error="skip")
    with caplog.at_level(logging.WARNING):
        mixture.check()
    assert "will be skipped" in caplog.text and "episode_000001.mp4 cannot be opened" in caplog.text
    assert all(mixture[index]["image"] for index in range(30)) and mixture.num_skipped


def test_episodes_whose_tables_cannot_be_read_are_left_out_where_items_are_skipped(written, tmp_path, caplog):
    root = shutil.copytree(written["image"][0], tmp_path / "v3")
    sound = LeRobotDataset(root, 4)
    broken, lost = root / "data/chunk-000/file-000.parquet", root / "data/chunk-000/file-001.parquet"
    in_lost = [e for row, e in enumerate(sound.episode_indices) if root / sound.metadata.data.path(row) == lost]

    def spoil(rows):
        rows[LENGTHS[0] + 2, 1] = np.nan
        return rows

    rewrite(broken, "action", spoil)
    lost.write_bytes(lost.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"file-000.parquet: episode 1, frame 2: action\[1\] is nan"):
        DatasetMixture([LeRobotDataset(root, 4)]).check()
    left_out = [1, *in_lost]
    kept = [episode for episode in sound.episode_indices if episode not in left_out]
    for _ in range(2):  # found, and read from where that is kept
        caplog.clear()
        mixture = DatasetMixture([LeRobotDataset(root, 4)], on_error="skip")
        assert mixture.datasets[0].episode_indices == kept and len(mixture) == sum(LENGTHS[e] for e in kept)
        assert f"left out are {len(left_out)} of {len(LENGTHS)} episodes" in caplog.text
        assert "episode 1, frame 2: action[1] is nan" in caplog.text and "file-001.parquet" in caplog.text
        mixture.check()
        assert mixture.statistics == {sound.unnorm_key: LeRobotDataset(root, 4, episodes=kept).statistics}
        assert all(np.isfinite(mixture[index]["action"]).all() for index in range(len(mixture)))
        assert mixture.num_skipped == 0
    with pytest.raises(ValueError, match="none of 1 episodes can be read.*is nan"):
        DatasetMixture([LeRobotDataset(root, 4, episodes=[1])], on_error="skip")


def test_episodes_are_left_out_no_longer_than_they_cannot_be_read(written, tmp_path, monkeypatch):
    root = shutil.copytree(written["image"][0], tmp_path / "v3")
    read, files = tables.read_frame_table, []

    def failing(path, *reading):
        files.append(path.name)
        if path.name == "file-001.parquet":
            raise OSError(24, "Too many open files")
        return read(path, *reading)

    monkeypatch.setattr("hf_vla.data.lerobot.read_frame_table", failing)
    assert DatasetMixture([LeRobotDataset(root, 4)], on_error="skip").datasets[0].num_episodes == len(LENGTHS) - 1
    monkeypatch.setattr("hf_vla.data.lerobot.read_frame_table", read)
    assert DatasetMixture([LeRobotDataset(root, 4)], on_error="skip").datasets[0].num_episodes == len(LENGTHS)
    # Nothing is wrong with these files, which needs no second look.
    monkeypatch.setattr("hf_vla.data.lerobot.read_frame_table", None)
    assert DatasetMixture([LeRobotDataset(root, 4)], on_error="skip").datasets[0].num_episodes == len(LENGTHS)


def test_check_finds_what_only_tables_tell(written, tmp_path):
    root = shutil.copytree(written["image"][0], tmp_path / "v3")
    DatasetMixture([LeRobotDataset(root, 4)]).check()
    pq.write_table(pq.read_table(root / "meta/tasks.parquet").slice(0, 1), root / "meta/tasks.parquet")
    mixture = DatasetMixture([LeRobotDataset(root, 4)])
    with pytest.raises(
        ValueError, match=r"file-000.parquet: episode 1, frame 0: task_index 1 is not among the 1 tasks"
    ):
        mixture.check()
    root = shutil.copytree(written["image"][0], tmp_path / "other")
    file = root / "data/chunk-000/file-001.parquet"
    pq.write_table(pq.read_table(file).drop_columns(["observation.images.wrist"]), file)
    DatasetMixture([LeRobotDataset(root, 4, cameras=["front"])]).check()
    with pytest.raises(OSError, match="file-001.parquet: column 'observation.images.wrist' is not there"):
        DatasetMixture([LeRobotDataset(root, 4)]).check()


@pytest.mark.parametrize("episodes", [None, [1, 3]])
def test_check_of_shared_files(written, episodes, tmp_path):
    root = shutil.copytree(written["libsvtav1"][0], tmp_path / "v3")
    DatasetMixture([LeRobotDataset(root, 4, episodes=episodes)]).check()
    file = root / "videos/observation.images.front/chunk-000/file-001.mp4"
    shutil.copy(root / "videos/observation.images.front/chunk-000/file-000.mp4", file)
    DatasetMixture([LeRobotDataset(root, 4, episodes=episodes)]).check()  # that one is longer
    encode(file, np.zeros((3, 96, 128, 3), np.uint8), "libx264", 30)
    with pytest.raises(OSError, match="episode [34], camera 'observation.images.front'.*file-001.mp4 ends at 0.100 s"):
        DatasetMixture([LeRobotDataset(root, 4, episodes=episodes)]).check()
