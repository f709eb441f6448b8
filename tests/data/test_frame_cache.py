"""`frame_cache=`: frames that were decoded once are read from files, and are the same whatever happens to these."""

import logging
import os
import shutil
from collections import namedtuple

import numpy as np
import pytest
from torch.utils.data import DataLoader

from hf_vla.data import DatasetMixture, LeRobotDataset
from hf_vla.data.video import VideoReader
from hf_vla.training_args.recipe import DataArguments


def pixels(dataset, indices=None):
    return [
        [np.asarray(image) for image in dataset[index]["image"]]
        for index in (range(len(dataset)) if indices is None else indices)
    ]


@pytest.fixture
def decoded(monkeypatch):
    """The videos that frames were decoded of, one entry a frame."""
    videos, frame_at = [], VideoReader.frame_at
    monkeypatch.setattr(VideoReader, "frame_at", lambda self, *args: videos.append(self.path) or frame_at(self, *args))
    return videos


def first_of_batch(items):
    return items[0]["lang"]


@pytest.mark.parametrize("source", ["v21_video", "libx264", "libsvtav1"])
def test_each_frame_is_decoded_once(written, reference_datasets, source, tmp_path, decoded):
    root = written[source][0] if source in written else reference_datasets / source
    expected = pixels(LeRobotDataset(root, 4))
    decoded.clear()
    dataset = LeRobotDataset(root, 4, frame_cache=tmp_path)
    order = np.random.default_rng(0).permutation(len(dataset)).tolist()
    for index, images in zip(order, pixels(dataset, order), strict=True):
        np.testing.assert_equal(images, expected[index])
    assert len(decoded) == 2 * len(dataset)
    for again in (
        dataset,
        LeRobotDataset(root, 4, frame_cache=tmp_path),
        LeRobotDataset(root, 4, frame_cache=tmp_path),
    ):
        np.testing.assert_equal(pixels(again), expected)
    part = LeRobotDataset(root, 4, episodes=[1, 3], cameras=["wrist"], frame_cache=tmp_path)
    np.testing.assert_equal(
        pixels(part.with_episodes([3]), [-1]), [[expected[-1 - dataset.metadata.length[4:].sum()][1]]]
    )
    assert len(decoded) == 2 * len(dataset)


def test_workers_share_it(reference_datasets, tmp_path, decoded):
    root = reference_datasets / "v21_video"
    expected = pixels(LeRobotDataset(root, 4))
    dataset = LeRobotDataset(root, 4, frame_cache=tmp_path)
    for _ in DataLoader(dataset, batch_size=1, num_workers=2, collate_fn=first_of_batch):
        pass
    decoded.clear()
    np.testing.assert_equal(pixels(dataset), expected)
    assert not decoded


def test_a_video_that_changed_is_decoded_again(copied, tmp_path, decoded):
    root = copied("v21_video")
    dataset = LeRobotDataset(root, 4, frame_cache=tmp_path / "cache")
    pixels(dataset)
    videos = root / "videos/chunk-000/observation.images.wrist"
    shutil.copy(videos / "episode_000001.mp4", videos / "episode_000000.mp4")
    decoded.clear()
    dataset = LeRobotDataset(root, 4, frame_cache=tmp_path / "cache")
    changed, expected = pixels(dataset), pixels(LeRobotDataset(root, 4))
    np.testing.assert_equal(changed, expected)
    assert decoded.count(videos / "episode_000000.mp4") == 2 * 11
    (videos / "episode_000000.mp4").unlink()
    with pytest.raises(OSError, match="episode 0, frame 3, camera 'observation.images.wrist'.*000000.mp4 is missing"):
        dataset[3]


def test_a_video_that_is_replaced_while_it_is_open(copied, tmp_path):
    root = copied("v21_video")
    dataset = LeRobotDataset(root, 4, frame_cache=tmp_path / "cache")
    pixels(dataset, [0])
    videos = root / "videos/chunk-000/observation.images.wrist"
    shutil.copy(videos / "episode_000001.mp4", tmp_path / "new.mp4")
    os.replace(tmp_path / "new.mp4", videos / "episode_000000.mp4")
    expected = pixels(LeRobotDataset(root, 4), [0, 1, 2])
    for reading in (dataset, LeRobotDataset(root, 4, frame_cache=tmp_path / "cache")):
        np.testing.assert_equal(pixels(reading, [0, 1, 2]), expected)


@pytest.mark.parametrize("damage", ["pixels", "cut off", "header", "header cut off", "empty"])
def test_damaged_files_are_as_good_as_empty(copied, tmp_path, damage, decoded):
    root = copied("v21_video")
    dataset = LeRobotDataset(root, 4, frame_cache=tmp_path / "cache")
    expected = pixels(dataset)
    files = sorted((tmp_path / "cache").rglob("*.rgb"))
    assert len(files) == 8
    for file in files:
        content = bytearray(file.read_bytes())
        if damage == "pixels":
            content[len(content) // 2] ^= 1
        elif damage == "header":
            content[3] ^= 1
        lengths = {"cut off": len(content) // 2, "header cut off": 28, "empty": 0}
        file.write_bytes(content[: lengths.get(damage)])
    decoded.clear()
    np.testing.assert_equal(pixels(dataset), expected)
    assert decoded
    if damage == "pixels":
        assert len(decoded) == len(files)
    decoded.clear()
    np.testing.assert_equal(pixels(dataset), expected)
    assert not decoded


def test_timestamps_off_the_grid(tmp_path, v3, decoded):
    # Two timestamps nearest to one slot: each gets its own frame.
    dataset = LeRobotDataset(v3, 4, cameras=["front"], frame_cache=tmp_path / "cache")
    expected = pixels(dataset, range(7))
    for shift in (0.3, -0.3, 0.0):
        table, rows = dataset.episode_table(0)
        table.timestamp[rows] = (np.arange(7) + shift).clip(0) / dataset.fps
        np.testing.assert_equal(pixels(dataset, range(7)), expected)


def test_no_room(v3, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12, 10**6)
    monkeypatch.setattr("hf_vla.data.frame_cache.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(OSError, match=r"frame_cache: .* need 0.0 GB.* name another folder"):
        LeRobotDataset(v3, 4, frame_cache=tmp_path / "cache")
    small = LeRobotDataset(v3, 4, cameras=["wrist"], episodes=[0], frame_cache=tmp_path / "cache")
    assert small[0]["image"]


def test_file_systems_without_links(v3, tmp_path, monkeypatch, decoded):
    def unsupported(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", unsupported)
    dataset = LeRobotDataset(v3, 4, frame_cache=tmp_path / "cache")
    expected = pixels(dataset)
    decoded.clear()
    np.testing.assert_equal(pixels(dataset), expected)
    assert not decoded and not list(tmp_path.rglob("*.tmp"))


def test_a_full_disk_costs_time_only(v3, tmp_path, monkeypatch, caplog):
    expected = pixels(LeRobotDataset(v3, 4))
    dataset = LeRobotDataset(v3, 4, frame_cache=tmp_path / "cache")
    pixels(dataset, [0])

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_vla.data.frame_cache.uuid.uuid4", full)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_equal(pixels(dataset), expected)
    assert caplog.text.count("No space left on device") == 1


def test_mixtures_take_it(reference_datasets, tmp_path, decoded):
    entries = tmp_path / "mixture.yaml"
    entries.write_text("- {dataset: v21_video, robot: synthetic, action_horizon: 4}\n")
    options = {"root": reference_datasets, "frame_cache": tmp_path / "cache"}
    mixture = DatasetMixture.from_name(entries, **options)
    expected = pixels(mixture)
    decoded.clear()
    np.testing.assert_equal(pixels(DatasetMixture.from_name(entries, **options)), expected)
    assert not decoded


def test_recipes_take_it(reference_datasets, tmp_path, decoded):
    root = reference_datasets / "v21_video"
    expected = pixels(LeRobotDataset(root, 4, frame_cache=tmp_path), [0, 40])
    decoded.clear()
    mixture = DataArguments(dataset=[str(root)], frame_cache=str(tmp_path)).build(4, seed=0)
    np.testing.assert_equal(pixels(mixture.datasets[0], [0, 40]), expected)
    assert not decoded
