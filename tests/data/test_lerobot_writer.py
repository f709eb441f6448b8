"""The LeRobot v3.0 writer: what it writes is read back with pyarrow, pandas and PyAV."""

import json

import av
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hf_vla.data import LeRobotDataset
from hf_vla.data.lerobot_writer import LeRobotWriter
from hf_vla.data.video_writer import write_video

CAMERA = "observation.images.front"
FEATURES = {
    CAMERA: {"dtype": "video", "shape": (32, 48, 3)},
    "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
    "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    "next.success": {"dtype": "bool", "shape": (1,)},
}
LENGTHS = (5, 9, 4)
TASKS = ("open", "close", "open")


def frame(value: int) -> dict:
    """A smooth picture whose brightness follows `value`, and vectors that name it."""
    ramp = np.linspace(0, 60, 48)[None, :, None] + np.linspace(0, 60, 32)[:, None, None]
    image = (np.repeat(ramp, 3, axis=2) + 7 * value).astype(np.uint8)
    return {
        CAMERA: image,
        "observation.state": np.array([value, -value, value / 2], dtype=np.float32),
        "action": np.array([value / 10, 1], dtype=np.float32),
        "next.success": value % 2 == 0,
    }


def write(root, **kwargs) -> list[dict]:
    frames = []
    with LeRobotWriter(root, fps=10, features=FEATURES, robot_type="toy", **kwargs) as writer:
        for length, task in zip(LENGTHS, TASKS, strict=True):
            for _ in range(length):
                frames.append(frame(len(frames)))
                writer.add_frame(frames[-1])
            writer.save_episode(task=task)
    return frames


def test_layout_and_vectors(tmp_path):
    root = tmp_path / "nested" / "toy"
    frames = write(root, info={"environment": {"name": "toy"}})
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v3.0", 10, "toy")
    assert (info["total_episodes"], info["total_frames"], info["total_tasks"]) == (3, 18, 2)
    assert info["splits"] == {"train": "0:3"} and info["environment"] == {"name": "toy"}
    assert info["features"][CAMERA]["shape"] == [32, 48, 3] and info["features"][CAMERA]["dtype"] == "video"
    assert info["features"]["action"] == {"dtype": "float32", "shape": [2], "names": ["dx", "dy"]}

    table = pq.read_table(root / info["data_path"].format(chunk_index=0, file_index=0))
    assert set(table.column_names) == set(info["features"]) - {CAMERA}
    for key in ("observation.state", "action"):
        assert np.array_equal(np.stack(table[key].to_numpy()), np.stack([f[key] for f in frames]))
    assert table["next.success"].to_pylist() == [f["next.success"] for f in frames]
    assert table["index"].to_pylist() == list(range(18))
    assert table["episode_index"].to_pylist() == [0] * 5 + [1] * 9 + [2] * 4
    assert table["frame_index"].to_pylist() == [*range(5), *range(9), *range(4)]
    assert table["task_index"].to_pylist() == [0] * 5 + [1] * 9 + [0] * 4
    assert np.allclose(table["timestamp"].to_numpy(), np.array(table["frame_index"].to_pylist()) / 10)
    assert not [path for path in (tmp_path / "nested").iterdir() if path.name != "toy"]


def test_modality_is_written_if_it_is_given(tmp_path):
    write(tmp_path / "without")
    assert not (tmp_path / "without" / "meta" / "modality.json").exists()
    modality = {"video": {"front": {"original_key": "observation.images.front"}}}
    write(tmp_path / "with", modality=modality)
    assert json.loads((tmp_path / "with" / "meta" / "modality.json").read_text()) == modality


def test_tasks_and_episodes(tmp_path):
    write(tmp_path / "toy")
    tasks = pd.read_parquet(tmp_path / "toy/meta/tasks.parquet")
    assert tasks["task_index"].to_dict() == {"open": 0, "close": 1}
    episodes = pd.read_parquet(tmp_path / "toy/meta/episodes/chunk-000/file-000.parquet")
    assert episodes["length"].tolist() == list(LENGTHS)
    assert [list(names) for names in episodes["tasks"]] == [["open"], ["close"], ["open"]]
    assert episodes["dataset_from_index"].tolist() == [0, 5, 14]
    assert episodes["dataset_to_index"].tolist() == [5, 14, 18]
    assert episodes[f"videos/{CAMERA}/from_timestamp"].tolist() == [0.0, 0.5, 1.4]
    assert episodes[f"videos/{CAMERA}/to_timestamp"].tolist() == [0.5, 1.4, 1.8]
    for column in ("data/chunk_index", "data/file_index", f"videos/{CAMERA}/file_index", "meta/episodes/chunk_index"):
        assert episodes[column].tolist() == [0, 0, 0]
    assert np.allclose(episodes["stats/observation.state/max"][1], [13, -5, 6.5])
    mean = pq.read_table(tmp_path / "toy/meta/episodes/chunk-000/file-000.parquet")[f"stats/{CAMERA}/mean"]
    assert np.array(mean.to_pylist()).shape == (3, 3, 1, 1)


def test_video_frames_lie_where_the_episodes_say(tmp_path):
    frames = write(tmp_path / "toy")
    with av.open(tmp_path / f"toy/videos/{CAMERA}/chunk-000/file-000.mp4") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        decoded = list(container.decode(stream))
    assert [round(float(picture.time) * 10, 6) for picture in decoded] == list(range(18))
    assert all(decoded[start].key_frame for start in (0, 5, 14))
    for picture, original in zip(decoded, frames, strict=True):
        error = np.abs(picture.to_ndarray(format="rgb24").astype(int) - original[CAMERA])
        assert error.mean() < 3


def test_statistics_are_exact(tmp_path):
    frames = write(tmp_path / "toy")
    statistics = json.loads((tmp_path / "toy/meta/stats.json").read_text())
    states = np.stack([f["observation.state"] for f in frames]).astype(np.float64)
    expected = {"mean": states.mean(0), "std": states.std(0), "min": states.min(0), "max": states.max(0)}
    expected |= {"q01": np.quantile(states, 0.01, axis=0), "q99": np.quantile(states, 0.99, axis=0), "count": [18]}
    for name, value in expected.items():
        assert np.allclose(statistics["observation.state"][name], value), name
    pixels = np.stack([f[CAMERA] for f in frames]).reshape(-1, 3) / 255
    assert np.allclose(np.ravel(statistics[CAMERA]["mean"]), pixels.mean(0))
    assert np.allclose(np.ravel(statistics[CAMERA]["std"]), pixels.std(0))
    assert np.allclose(np.ravel(statistics[CAMERA]["max"]), pixels.max(0))
    assert statistics[CAMERA]["count"] == [18]


def test_equal_frames_give_equal_bytes(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert len(files) == 6
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_files_roll_over_when_full(tmp_path, monkeypatch):
    monkeypatch.setattr("hf_vla.data.lerobot_writer._DATA_FILES_SIZE_IN_MB", 1e-6)
    monkeypatch.setattr("hf_vla.data.lerobot_writer._VIDEO_FILES_SIZE_IN_MB", 1e-6)
    monkeypatch.setattr("hf_vla.data.lerobot_features.CHUNKS_SIZE", 2)
    write(tmp_path / "toy")
    episodes = pd.read_parquet(tmp_path / "toy/meta/episodes/chunk-000/file-000.parquet")
    for prefix in ("data", f"videos/{CAMERA}"):
        assert episodes[f"{prefix}/chunk_index"].tolist() == [0, 0, 1]
        assert episodes[f"{prefix}/file_index"].tolist() == [0, 1, 0]
    assert episodes[f"videos/{CAMERA}/from_timestamp"].tolist() == [0, 0, 0]
    assert pq.read_table(tmp_path / "toy/data/chunk-000/file-001.parquet")["index"].to_pylist() == list(range(5, 14))
    with av.open(tmp_path / f"toy/videos/{CAMERA}/chunk-001/file-000.mp4") as container:
        assert len(list(container.decode(video=0))) == 4


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(RuntimeError, match="camera unplugged"):
        with LeRobotWriter(tmp_path / "toy", 10, FEATURES) as writer:
            writer.add_frame(frame(0))
            writer.save_episode("open")
            raise RuntimeError("camera unplugged")
    assert not list(tmp_path.iterdir())


def test_existing_output(tmp_path):
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty")
    assert (tmp_path / "empty/meta/info.json").exists()
    before = (tmp_path / "empty/meta/info.json").read_bytes()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        LeRobotWriter(tmp_path / "empty", 10, FEATURES)
    assert (tmp_path / "empty/meta/info.json").read_bytes() == before


BAD_FRAMES = [
    ({"action": np.array([0, np.nan], dtype=np.float32)}, r"'action' has NaN or infinite values in dimensions \[1\]"),
    ({"action": np.array([np.inf, 0], dtype=np.float32)}, r"'action' has NaN or infinite values in dimensions \[0\]"),
    ({"action": np.zeros(3, dtype=np.float32)}, r"'action' has shape \(3,\); declared is \(2,\)"),
    ({"action": np.zeros(2)}, "'action' has dtype float64; declared is float32"),
    ({CAMERA: np.zeros((32, 48, 3), dtype=np.float32)}, "has dtype float32; declared is uint8"),
    ({CAMERA: Image.new("RGB", (32, 48))}, r"has shape \(48, 32, 3\); declared is \(32, 48, 3\)"),
    ({CAMERA: Image.new("I;16", (48, 32))}, "is an image of mode 'I;16', more than eight bits"),
    ({"next.success": 0.5}, "is the float 0.5; declared is bool"),
    ({"reward": 1.0}, r"unknown features \['reward'\]"),
]


@pytest.mark.parametrize(("change", "message"), BAD_FRAMES)
def test_bad_frames_name_dataset_episode_and_frame(tmp_path, change, message):
    with LeRobotWriter(tmp_path / "toy", 10, FEATURES) as writer:
        writer.add_frame(frame(0))
        writer.save_episode("open")
        writer.add_frame(frame(1))
        with pytest.raises(ValueError, match=message) as error:
            writer.add_frame({**frame(2), **change})
        assert "dataset 'toy', episode 1, frame 1" in str(error.value)
        # The bad frame was not taken in: the episode goes on.
        writer.add_frame(frame(2))
        writer.save_episode("open")
    assert json.loads((tmp_path / "toy/meta/info.json").read_text())["total_frames"] == 3


def test_missing_feature(tmp_path):
    writer = LeRobotWriter(tmp_path / "toy", 10, FEATURES)
    with pytest.raises(ValueError, match=r"missing features \['action'\]"):
        writer.add_frame({key: value for key, value in frame(0).items() if key != "action"})
    writer.abort()
    with pytest.raises(ValueError, match="finalized or aborted"):
        writer.add_frame(frame(0))
    assert not list(tmp_path.iterdir())


def test_forgetting_to_save_the_last_episode_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="1 frames were added but not saved"):
        with LeRobotWriter(tmp_path / "toy", 10, FEATURES) as writer:
            writer.add_frame(frame(0))
    assert not list(tmp_path.iterdir())


def test_unfinished_work_is_not_dropped_silently(tmp_path):
    writer = LeRobotWriter(tmp_path / "toy", 10, FEATURES)
    with pytest.raises(ValueError, match="no episodes"):
        writer.finalize()
    with pytest.raises(ValueError, match="no frames were added"):
        writer.save_episode("open")
    writer.add_frame(frame(0))
    with pytest.raises(ValueError, match="instruction is ''"):
        writer.save_episode("")
    with pytest.raises(ValueError, match="1 frames were added but not saved"):
        writer.finalize()
    writer.save_episode("open")
    writer.add_frame(frame(1))
    writer.discard_episode()
    assert writer.finalize() == tmp_path / "toy"
    assert json.loads((tmp_path / "toy/meta/info.json").read_text())["total_frames"] == 1


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({}, "no features"),
        ({"a/b": {"dtype": "float32", "shape": (1,)}}, "'a/b'"),
        ({"timestamp": {"dtype": "float32", "shape": (1,)}}, "writer's own"),
        ({"a": {"dtype": "float16", "shape": (1,)}}, "dtype 'float16'; possible: video, float32"),
        ({"a": {"dtype": "float32", "shape": (2, 2)}}, r"takes \(D,\)"),
        ({"a": {"dtype": "video", "shape": (33, 48, 3)}}, "even height and width"),
        ({"a": {"dtype": "float32", "shape": (2,), "names": ["x"]}}, "1 names for 2 dimensions"),
    ],
)
def test_bad_features(tmp_path, features, message):
    with pytest.raises(ValueError, match=message):
        LeRobotWriter(tmp_path / "toy", 10, features)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fps", [0, -1, 2.5, True])
def test_bad_fps(tmp_path, fps):
    with pytest.raises(ValueError, match="positive integer"):
        LeRobotWriter(tmp_path / "toy", fps, FEATURES)


def test_write_video(tmp_path):
    frames = [frame(value)[CAMERA] for value in range(6)]
    write_video(tmp_path / "clips/a.mp4", frames, fps=5)
    with av.open(tmp_path / "clips/a.mp4") as container:
        assert container.streams.video[0].average_rate == 5
        assert len(list(container.decode(video=0))) == 6
    with pytest.raises(ValueError, match="no frames"):
        write_video(tmp_path / "clips/b.mp4", [], fps=5)
    with pytest.raises(ValueError, match="the video takes"):
        write_video(tmp_path / "clips/b.mp4", [frames[0], frames[0][:16]], fps=5)
    assert [path.name for path in (tmp_path / "clips").iterdir()] == ["a.mp4"]


def test_damaged_numbers_are_noticed(tmp_path):
    write(tmp_path / "toy")
    file = tmp_path / "toy/data/chunk-000/file-000.parquet"
    content = bytearray(file.read_bytes())
    group = pq.read_metadata(file).row_group(0)
    columns = {group.column(number).path_in_schema.split(".")[0]: number for number in range(group.num_columns)}
    action = group.column(columns["action"])
    content[action.dictionary_page_offset + action.total_compressed_size - 1] ^= 1
    file.write_bytes(content)
    with pytest.raises(OSError, match="file-000.parquet cannot be read.*CRC"):
        _ = LeRobotDataset(tmp_path / "toy", 2).statistics
