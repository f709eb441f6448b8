"""`LeRobotDataset` against datasets whose every number and frame is known."""

import json
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError
from synthetic_v3 import (
    CODECS,
    DATA_FILES,
    LENGTHS,
    SIZES,
    TASKS,
    Truth,
    barcode,
    draw_frames,
    edit_json,
    encode,
    read_barcode,
    rewrite,
)
from torch.utils.data import DataLoader

from hf_vla.data import LeRobotDataset, LeRobotWriter
from hf_vla.data.tables import ParquetImages
from hf_vla.data.video import VideoReader

HORIZON = 6
SHARED = ["v20_bridge_like", "v21_video"]


def load_truth(folder: Path) -> Truth:
    """`truth.npz` of a shared dataset; pixels are by frame index there, as not all frames are kept."""
    archive = np.load(folder / "truth.npz")
    truth = Truth(int(archive["fps"]), [str(camera) for camera in archive["cameras"]])
    for episode in range(len(archive["lengths"])):
        prefix = f"ep{episode:03d}"
        truth.state.append(archive[f"{prefix}/state"])
        truth.action.append(archive[f"{prefix}/action"])
        truth.timestamp.append(archive[f"{prefix}/timestamp"])
        truth.task.append(str(archive[f"{prefix}/task"]))
        kept = archive[f"{prefix}/frame_idx"].tolist()
        truth.pixels.append({c: dict(zip(kept, archive[f"{prefix}/frames/{c}"], strict=True)) for c in truth.cameras})
    return truth


def check_everything(dataset: LeRobotDataset, truth: Truth) -> None:
    """Every item of `dataset`, which reads all episodes and cameras, against `truth`."""
    assert dataset.cameras == truth.cameras
    assert len(dataset) == sum(map(len, truth.action))
    frames = [(episode, frame) for episode, action in enumerate(truth.action) for frame in range(len(action))]
    compared = 0
    for index, (episode, frame) in enumerate(frames):
        item = dataset[index]
        ahead = truth.action[episode][frame : frame + HORIZON]
        padding = np.repeat(truth.action[episode][-1:], HORIZON - len(ahead), axis=0)
        np.testing.assert_array_equal(item["action"], np.concatenate([ahead, padding]))
        np.testing.assert_array_equal(item["action_mask"], np.arange(HORIZON) < len(ahead))
        np.testing.assert_array_equal(item["state"], truth.state[episode][None, frame])
        assert item["action"].dtype == item["state"].dtype == np.float32
        assert item["action_mask"].dtype == bool
        assert item["lang"] == truth.task[episode]
        assert item["dataset"] == dataset.unnorm_key
        for camera, (name, image) in enumerate(zip(truth.cameras, item["image"], strict=True)):
            assert image.mode == "RGB"
            pixels = np.asarray(image)
            np.testing.assert_array_equal(read_barcode(pixels), barcode(frame, episode, camera))
            original = truth.pixels[episode][name]
            if not isinstance(original, dict) or frame in original:
                assert np.abs(pixels.astype(float) - original[frame]).mean() < 5
                compared += 1
    assert compared >= 2 * len(truth.action) * len(truth.cameras)


@pytest.mark.parametrize("name", SHARED)
def test_reads_v2_exactly(copied, name):
    root = copied(name)
    check_everything(LeRobotDataset(root, HORIZON), load_truth(root))


@pytest.mark.parametrize("codec", CODECS)
def test_reads_v3_exactly(written, codec):
    root, truth = written[codec]
    check_everything(LeRobotDataset(root, HORIZON), truth)


def test_v3_layout_is_the_shared_one(written):
    # The test above means little unless files really are shared and the cameras split at different episodes.
    root = written["libx264"][0]
    assert len(list(root.glob("data/*/*.parquet"))) == 3
    assert [len(list(root.glob(f"videos/{camera}/*/*.mp4"))) for camera in SIZES] == [2, 3]
    with pq.ParquetFile(root / "data/chunk-000/file-000.parquet") as file:
        assert file.num_row_groups == DATA_FILES.count(0) == 2


def test_images_in_tables_are_read_exactly(written):
    root, truth = written["image"]
    dataset = LeRobotDataset(root, HORIZON)
    check_everything(dataset, truth)
    item = dataset[LENGTHS[0] + 3]
    for camera, image in zip(truth.cameras, item["image"], strict=True):
        np.testing.assert_array_equal(np.asarray(image), truth.pixels[1][camera][3])


def test_images_in_tables_with_room_for_one_row_group(written):
    root, truth = written["image"]
    images = ParquetImages(root, capacity=0)
    file = root / "data/chunk-000/file-000.parquet"
    for episode, frame in ((0, 1), (1, 11), (0, 6), (1, 0), (1, 1)):
        image = images.read(file, episode * LENGTHS[0] + frame, truth.cameras[1])
        np.testing.assert_array_equal(np.asarray(image), truth.pixels[episode][truth.cameras[1]][frame])


def test_images_beside_tables_are_read_exactly(written, tmp_path):
    root, truth = written["image"]
    root = shutil.copytree(root, tmp_path / "beside")
    camera = truth.cameras[0]
    for file in root.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        cells = table[camera].to_pylist()
        for row, cell in enumerate(cells):
            (root / f"{file.stem}-{row}.png").write_bytes(cell["bytes"])
        paths = pa.array(
            [{"bytes": None, "path": f"{file.stem}-{row}.png"} for row in range(len(cells))], table[camera].type
        )
        pq.write_table(table.set_column(table.column_names.index(camera), camera, paths), file, row_group_size=4)
    check_everything(LeRobotDataset(root, HORIZON), truth)
    (root / "file-000-8.png").unlink()
    with pytest.raises(OSError, match=rf"episode 1, frame 1, camera '{camera}'.*file-000-8.png"):
        LeRobotDataset(root, HORIZON)[8]


@pytest.mark.parametrize("source", [*SHARED, *CODECS])
def test_order_of_access_and_number_of_decoders_change_nothing(written, reference_datasets, source):
    root = written[source][0] if source in written else reference_datasets / source
    dataset = LeRobotDataset(root, HORIZON)
    in_order = [np.concatenate([np.asarray(image).ravel() for image in item["image"]]) for item in dataset]
    few_decoders = LeRobotDataset(root, HORIZON, max_open_videos=1)
    for index in np.random.default_rng(0).permutation(len(dataset)).tolist():
        for reader in (dataset, few_decoders):
            pixels = np.concatenate([np.asarray(image).ravel() for image in reader[index]["image"]])
            np.testing.assert_array_equal(pixels, in_order[index])


@pytest.mark.parametrize("source", [*SHARED, "libx264"])
def test_reading_in_order_seeks_once_per_file(written, reference_datasets, source, monkeypatch):
    root = written[source][0] if source in written else reference_datasets / source
    seeks = []
    seek = VideoReader._seek
    monkeypatch.setattr(VideoReader, "_seek", lambda reader, *args: (seeks.append(reader.path), seek(reader, *args)))
    for item in LeRobotDataset(root, HORIZON):
        assert item["image"]
    assert sorted(seeks) == sorted(root.glob("videos/**/*.mp4"))


def test_nearest_frame_is_taken_off_the_grid(v3):
    # Clocks of real robots jitter: a timestamp 40 % of a frame late still means the frame before it.
    def jitter(table):
        shift = np.where(table["frame_index"].to_numpy() % 2 == 1, 0.4, 0.0) / 30
        values = pa.array((table["timestamp"].to_numpy() + shift).astype(np.float32))
        return table.set_column(table.column_names.index("timestamp"), "timestamp", values)

    expected = [np.asarray(item["image"][1]) for item in LeRobotDataset(v3, HORIZON)]
    for file in v3.glob("data/*/*.parquet"):
        pq.write_table(jitter(pq.read_table(file)), file)
    dataset = LeRobotDataset(v3, HORIZON)
    for index in [*range(len(dataset)), *np.random.default_rng(0).permutation(len(dataset)).tolist()]:
        np.testing.assert_array_equal(np.asarray(dataset[index]["image"][1]), expected[index])


def test_cameras_by_name_and_order(reference_datasets):
    root = reference_datasets / "v21_video"
    front, wrist = LeRobotDataset(root, HORIZON)[4]["image"]
    dataset = LeRobotDataset(root, HORIZON, cameras=["wrist", "observation.images.front"])
    assert dataset.cameras == ["observation.images.wrist", "observation.images.front"]
    assert dataset[4]["image"] == [wrist, front]
    assert LeRobotDataset(root, HORIZON, cameras=[])[4]["image"] == []
    with pytest.raises(ValueError, match=r"unknown camera 'top'.*observation.images.front"):
        LeRobotDataset(root, HORIZON, cameras=["wrist", "top"])
    with pytest.raises(ValueError, match="list of names"):
        LeRobotDataset(root, HORIZON, cameras="wrist")


@pytest.mark.parametrize("source", ["v21_video", "v3"])
def test_chosen_episodes(copied, v3, source):
    root = v3 if source == "v3" else copied(source)
    whole = LeRobotDataset(root, HORIZON)
    lengths = [11, 28, 5, 33] if source == "v21_video" else LENGTHS
    part = LeRobotDataset(root, HORIZON, episodes=[3, 1])
    assert len(part) == lengths[1] + lengths[3]
    for position, original in ((0, lengths[0]), (lengths[1], sum(lengths[:3])), (-1, sum(lengths[:4]) - 1)):
        assert part[position]["image"] == whole[original]["image"]
        np.testing.assert_array_equal(part[position]["action"], whole[original]["action"])
    assert part.statistics["num_transitions"] == len(part)
    assert part.statistics["num_trajectories"] == 2
    with pytest.raises(ValueError, match="episode 9 does not exist"):
        LeRobotDataset(root, HORIZON, episodes=[1, 9])
    with pytest.raises(ValueError, match="more than once"):
        LeRobotDataset(root, HORIZON, episodes=[1, 1])
    with pytest.raises(ValueError, match="episodes is empty"):
        LeRobotDataset(root, HORIZON, episodes=[])


def test_indices_out_of_range_and_bad_horizon(reference_datasets):
    root = reference_datasets / "v21_video"
    dataset = LeRobotDataset(root, HORIZON)
    assert dataset[-1]["image"] == dataset[76]["image"]
    for index in (77, -78):
        with pytest.raises(IndexError, match="77 frames"):
            dataset[index]
    with pytest.raises(ValueError, match="action_horizon"):
        LeRobotDataset(root, 0)


def test_key_and_names(copied):
    root = copied("v20_bridge_like")
    dataset = LeRobotDataset(root, HORIZON)
    assert dataset.unnorm_key == "widowx"
    assert dataset.action_names == ["x", "y", "z", "roll", "pitch", "yaw", "gripper"]
    assert dataset.state_names == ["x", "y", "z", "roll", "pitch", "yaw", "pad", "gripper"]
    assert (dataset.action_dim, dataset.state_dim, dataset.fps, dataset.num_episodes) == (7, 8, 5, 4)
    assert LeRobotDataset(root, HORIZON, unnorm_key="oxe_bridge")[0]["dataset"] == "oxe_bridge"
    edit_json(root / "meta/info.json", robot_type=None)
    assert LeRobotDataset(root, HORIZON).unnorm_key == "v20_bridge_like"


# ---- what the columns mean


def test_modality_slices_and_instruction_column(v3):
    truth_state = [item["state"][0] for item in LeRobotDataset(v3, HORIZON)]
    truth_action = [item["action"] for item in LeRobotDataset(v3, HORIZON)]
    modality = {
        "state": {"gripper": {"start": 7, "end": 8}, "position": {"start": 0, "end": 3}},
        "action": {
            "gripper": {"start": 6, "end": 7},
            "where": {"start": 0, "end": 2, "original_key": "observation.state"},
        },
        "video": {"ego": {"original_key": "observation.images.wrist"}},
        "annotation": {"human.action.task_description": {}},
    }
    (v3 / "meta/modality.json").write_text(json.dumps(modality))
    for file in v3.glob("data/*/*.parquet"):
        table = pq.read_table(file)
        texts = [f"episode {episode}" for episode in table["episode_index"].to_pylist()]
        pq.write_table(table.append_column("annotation.human.action.task_description", pa.array(texts)), file)
    dataset = LeRobotDataset(v3, HORIZON, cameras=["ego"])
    assert dataset.cameras == ["observation.images.wrist"]
    assert dataset.state_names == ["gripper", "x", "y", "z"]
    assert dataset.action_names == ["gripper", "x", "y"]
    index = LENGTHS[0] + 2
    item = dataset[index]
    np.testing.assert_array_equal(item["state"][0], truth_state[index][[7, 0, 1, 2]])
    np.testing.assert_array_equal(item["action"][:, 0], truth_action[index][:, 6])
    np.testing.assert_array_equal(item["action"][:, 1:], [truth_state[index + step][:2] for step in range(HORIZON)])
    assert item["lang"] == "episode 1"
    assert np.shape(dataset.statistics["action"]["q99"]) == (3,)


@pytest.mark.parametrize(
    ("part", "entry", "message"),
    [
        ("state", {"start": 6, "end": 9}, r"\[6, 9\).*8 dimensions"),
        ("action", {"start": 0, "end": 1, "original_key": "effort"}, "'effort'.*observation.state"),
        ("video", {"original_key": "observation.images.top"}, "'observation.images.top'.*wrist"),
    ],
)
def test_modality_that_does_not_fit(v3, part, entry, message):
    modality = {"action": {"all": {"start": 0, "end": 7}}, "state": {}, "video": {}}
    modality[part]["odd"] = entry
    (v3 / "meta/modality.json").write_text(json.dumps(modality))
    with pytest.raises(ValueError, match=message):
        LeRobotDataset(v3, HORIZON)


def test_dataset_without_state_and_scalar_action(v3):
    info = json.loads((v3 / "meta/info.json").read_text())
    del info["features"]["observation.state"]
    info["features"]["action"] |= {"shape": [1], "names": ["force"]}
    (v3 / "meta/info.json").write_text(json.dumps(info))
    for file in v3.glob("data/*/*.parquet"):
        table = pq.read_table(file).drop_columns(["observation.state", "action"])
        pq.write_table(table.append_column("action", pa.array(np.arange(len(table), dtype=np.float64))), file)
    dataset = LeRobotDataset(v3, HORIZON)
    item = dataset[0]
    assert "state" not in item
    assert "state" not in dataset.statistics
    assert dataset.state_dim is None
    np.testing.assert_array_equal(item["action"], np.arange(HORIZON, dtype=np.float32)[:, None])


# ---- statistics


def test_statistics_are_exact_and_cached(copied):
    root = copied("v21_video")
    truth = load_truth(root)
    statistics = LeRobotDataset(root, HORIZON).statistics
    assert (statistics["num_transitions"], statistics["num_trajectories"]) == (77, 4)
    for name, episodes in (("action", truth.action), ("state", truth.state)):
        rows = np.concatenate(episodes).astype(np.float64)
        expected = {"mean": rows.mean(0), "std": rows.std(0), "min": rows.min(0), "max": rows.max(0)}
        expected |= {"q01": np.quantile(rows, 0.01, axis=0), "q99": np.quantile(rows, 0.99, axis=0)}
        assert set(statistics[name]) == set(expected)
        for key, values in expected.items():
            np.testing.assert_allclose(statistics[name][key], values, rtol=1e-12, atol=1e-15)

    (cache,) = (root / ".hf_vla").iterdir()
    cache.write_text(json.dumps({"from": "cache"}))
    assert LeRobotDataset(root, HORIZON).statistics == {"from": "cache"}
    cache.write_text('{"trunc')
    assert LeRobotDataset(root, HORIZON).statistics == statistics
    rewrite(root / "data/chunk-000/episode_000002.parquet", "action", lambda action: action + 100)
    changed = LeRobotDataset(root, HORIZON).statistics
    assert changed["action"]["max"][0] > 90
    assert changed["state"] == statistics["state"]


def test_statistics_without_a_place_to_cache_them(copied):
    root = copied("v21_video")
    expected = LeRobotDataset(root, HORIZON).statistics
    shutil.rmtree(root / ".hf_vla")
    (root / ".hf_vla").write_text("a file where the folder would be")
    assert LeRobotDataset(root, HORIZON).statistics == expected


# ---- processes


@pytest.mark.parametrize("codec", ["libx264", "image"])
def test_pickle_round_trip(written, codec):
    dataset = LeRobotDataset(written[codec][0], HORIZON)
    before = dataset[20]
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy[20]["image"] == before["image"]
    np.testing.assert_array_equal(copy[20]["action"], before["action"])
    assert copy.statistics == dataset.statistics
    fresh = len(pickle.dumps(LeRobotDataset(written[codec][0], HORIZON)))
    assert len(pickle.dumps(copy)) < fresh + 5000  # neither tables nor images travel


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_read_what_the_main_process_reads(written, method):
    dataset = LeRobotDataset(written["libx264"][0], HORIZON)
    expected = [item["image"] for item in dataset]  # leaves open decoders behind for forked workers to inherit
    workers = 2 if method == "fork" else 1
    loader = DataLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context=method)
    assert [item["image"] for item in loader] == expected
    assert dataset[3]["image"] == expected[3]


def test_forked_worker_leaves_the_open_files_of_its_parent_alone(copied):
    # A forked process shares the positions in its parent's files. The file has to be larger than what is read ahead.
    root = copied("v21_video")
    noise = np.random.default_rng(0).integers(0, 256, (33, 96, 128, 3), dtype=np.uint8)
    video = root / "videos/chunk-000/observation.images.front/episode_000003.mp4"
    encode(video, noise, "libx264", 10)
    assert video.stat().st_size > 250_000
    expected = [item["image"] for item in LeRobotDataset(root, HORIZON, episodes=[3])]
    dataset = LeRobotDataset(root, HORIZON, episodes=[3])
    assert dataset[0]["image"] == expected[0]
    loader = DataLoader(dataset, batch_size=None, num_workers=1, multiprocessing_context="fork")
    assert [item["image"] for item in loader] == expected
    assert [item["image"] for item in dataset] == expected


def test_fifty_thousand_episodes_start_fast(v3):
    episodes = pq.read_table(v3 / "meta/episodes/chunk-000/file-000.parquet").slice(0, 1)
    many = pa.concat_tables([episodes] * 50_000).combine_chunks()
    many = many.set_column(many.column_names.index("episode_index"), "episode_index", pa.array(range(50_000)))
    pq.write_table(many, v3 / "meta/episodes/chunk-000/file-000.parquet")
    edit_json(v3 / "meta/info.json", total_episodes=50_000, total_frames=50_000 * LENGTHS[0])
    start = time.perf_counter()
    dataset = LeRobotDataset(v3, HORIZON)
    assert time.perf_counter() - start < 10
    assert len(dataset) == 50_000 * LENGTHS[0]


@pytest.mark.parametrize("with_files", [True, False])
def test_fifty_thousand_episodes_in_files_of_their_own_start_fast(copied, with_files, caplog):
    root, count = copied("v21_video"), 50_000
    lines = [json.dumps({"episode_index": e, "tasks": [], "length": 30}) for e in range(count)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    edit_json(root / "meta/info.json", total_episodes=count, total_frames=30 * count)
    shutil.rmtree(root / "data")
    shutil.rmtree(root / "videos")
    if with_files:
        for chunk in range(count // 1000):
            folder = root / f"data/chunk-{chunk:03d}"
            folder.mkdir(parents=True)
            for episode in range(1000 * chunk, 1000 * chunk + 1000):
                (folder / f"episode_{episode:06d}.parquet").touch()
    start = time.perf_counter()
    dataset = LeRobotDataset(root, HORIZON, cameras=[])
    assert time.perf_counter() - start < 10
    assert len(dataset) == 30 * count
    # Metadata alone can be looked at, but not for anything else.
    assert ("there is only meta/" in caplog.text) is not with_files
    with pytest.raises(OSError, match="episode_049999.parquet"):
        dataset[-1]
    if with_files:
        (root / "data/chunk-031/episode_031415.parquet").unlink()
        with pytest.raises(FileNotFoundError, match="episode_031415.parquet is missing"):
            LeRobotDataset(root, HORIZON, cameras=[])


def test_tables_and_decoders_in_memory_are_bounded(copied, monkeypatch):
    root = copied("v21_video")
    whole = LeRobotDataset(root, HORIZON)
    bounded = LeRobotDataset(root, HORIZON, max_table_bytes=1, max_open_videos=1)
    read = []
    reading = bounded._tables.read
    bounded._tables.read = lambda file: (read.append(file), reading(file))[1]
    order = [0, 1, 20, 2, 76, 75]
    for index in order:
        np.testing.assert_array_equal(bounded[index]["action"], whole[index]["action"])
    assert len(read) == 4  # again for every change of the episode, not for every item
    for index in order:
        assert whole[index]["lang"]
    monkeypatch.setattr("hf_vla.data.lerobot.read_frame_table", None)
    assert [whole[index]["lang"] for index in order]  # all tables are still there


def test_memory_is_flat_over_an_epoch(copied):
    dataset = LeRobotDataset(copied("v21_video"), HORIZON)

    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    rng = np.random.default_rng(0)
    for index in rng.permutation(len(dataset)).tolist():
        assert dataset[index]
    before = resident()
    for _ in range(6):
        for index in rng.permutation(len(dataset)).tolist():
            assert dataset[index]
    # 462 items of two images take 20 MB as pixels; decoders that leak take more.
    assert resident() - before < 8e6


# ---- the Hub


@pytest.fixture
def hub(written, tmp_path, monkeypatch):
    """A Hub that serves the h264 dataset; returns the list of (revision, patterns) asked for."""
    from fnmatch import fnmatch

    asked = []
    snapshot = tmp_path / "snapshots" / "c0ffee"

    def download(repo_id, repo_type, revision, allow_patterns):
        assert (repo_id, repo_type) == ("lab/robot", "dataset")
        asked.append((revision, allow_patterns))
        for file in written["libx264"][0].rglob("*.*"):
            name = str(file.relative_to(written["libx264"][0]))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr("hf_vla.data.hub.snapshot_download", download)
    return asked, snapshot


def test_hub_repository_downloads_only_what_is_needed(hub, written):
    asked, snapshot = hub
    dataset = LeRobotDataset("lab/robot", HORIZON, cameras=["wrist"], episodes=[2, 3], revision="v3.0")
    assert [revision for revision, _ in asked] == ["v3.0", "c0ffee"]
    assert dataset.revision == "c0ffee"
    files = sorted(str(file.relative_to(snapshot)) for file in snapshot.rglob("*.*") if file.is_file())
    assert [file for file in files if not file.startswith("meta/")] == [
        "data/chunk-000/file-001.parquet",
        "data/chunk-000/file-002.parquet",
        "videos/observation.images.wrist/chunk-000/file-001.mp4",
    ]
    whole = LeRobotDataset(written["libx264"][0], HORIZON, cameras=["wrist"])
    assert dataset[5]["image"] == whole[sum(LENGTHS[:3])]["image"]


def test_whole_folders_are_asked_for_by_one_pattern_each(hub):
    # The Hub's client compares every file with every pattern: a pattern a file takes hours with 50,000 episodes.
    asked, _ = hub
    LeRobotDataset("lab/robot", HORIZON)
    assert asked[-1][1] == ["data/*", "videos/*"]
    LeRobotDataset("lab/robot", HORIZON, cameras=["front"])
    assert asked[-1][1] == ["data/*", "videos/observation.images.front/*"]


def test_cached_repository_is_read_offline(written, tmp_path, monkeypatch):
    repository = tmp_path / "hub" / "datasets--lab--robot"
    shutil.copytree(written["libx264"][0], repository / "snapshots" / ("a" * 40))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    dataset = LeRobotDataset("lab/robot", HORIZON)
    assert dataset.revision == "a" * 40
    assert dataset[0]["lang"] == TASKS[0]
    with pytest.raises(FileNotFoundError, match="lab/other"):
        LeRobotDataset("lab/other", HORIZON)


def test_download_that_breaks_off(monkeypatch):
    def download(*arguments, **options):
        raise HfHubHTTPError.__bases__[0]("peer closed the connection")

    monkeypatch.setattr("hf_vla.data.hub.snapshot_download", download)
    with pytest.raises(FileNotFoundError, match="'lab/robot'.*peer closed the connection"):
        LeRobotDataset("lab/robot", HORIZON)


def test_neither_folder_nor_repository(tmp_path, reference_datasets):
    with pytest.raises(FileNotFoundError, match="not a local folder"):
        LeRobotDataset(tmp_path / "nowhere" / "at" / "all", HORIZON)
    with pytest.raises(ValueError, match="local folder"):
        LeRobotDataset(reference_datasets / "v21_video", HORIZON, revision="main")


def test_what_the_writer_writes(tmp_path):
    rng = np.random.default_rng(0)
    features = {
        "observation.images.front": {"dtype": "video", "shape": (96, 128, 3)},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    }
    states, actions = (rng.normal(size=(2, 9, size)).astype(np.float32) for size in (3, 2))
    with LeRobotWriter(tmp_path / "own", fps=10, features=features, robot_type="arm") as writer:
        for episode in range(2):
            for frame, image in enumerate(draw_frames(9, episode, 0, (96, 128))):
                numbers = {"observation.state": states[episode, frame], "action": actions[episode, frame]}
                writer.add_frame({"observation.images.front": image} | numbers)
            writer.save_episode(TASKS[episode])
    dataset = LeRobotDataset(tmp_path / "own", HORIZON)
    assert (len(dataset), dataset.unnorm_key, dataset.action_names) == (18, "arm", ["dx", "dy"])
    for index in range(18):
        item, episode, frame = dataset[index], *divmod(index, 9)
        np.testing.assert_array_equal(item["state"][0], states[episode, frame])
        np.testing.assert_array_equal(item["action"][0], actions[episode, frame])
        np.testing.assert_array_equal(read_barcode(np.asarray(item["image"][0])), barcode(frame, episode, 0))
        assert item["lang"] == TASKS[episode]
