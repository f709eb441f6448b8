"""`meta/` of v3.0 datasets that LeRobot's converter from v2.1 made: it names the wrong data file for some episodes."""

import logging
import shutil
from fnmatch import fnmatch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from synthetic_v3 import DATA_FILES, LENGTHS

from hf_vla.data import LeRobotDataset
from hf_vla.data.lerobot_metadata import load_metadata

HORIZON = 6
DATA = "data/chunk-000/file-{:03d}.parquet"


def note_data_files(root, files: list[int]) -> None:
    """Change which data file `meta/episodes` names for each episode."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    column = table.column_names.index("data/file_index")
    pq.write_table(table.set_column(column, "data/file_index", pa.array(files)), path)


def one_file_each(root) -> None:
    """Write every episode's rows into a file of its own, numbered from 1."""
    paths = sorted(root.glob("data/*/*.parquet"))
    rows = pa.concat_tables([pq.read_table(path) for path in paths])
    for path in paths:
        path.unlink()
    for episode in range(len(LENGTHS)):
        pq.write_table(rows.filter(pc.equal(rows["episode_index"], episode)), root / DATA.format(episode + 1))


def check_same_items(dataset: LeRobotDataset, expected: list[dict]) -> None:
    assert len(dataset) == len(expected)
    for item, other in zip(dataset, expected, strict=True):
        np.testing.assert_array_equal(item["action"], other["action"])
        np.testing.assert_array_equal(item["state"], other["state"])
        assert (item["lang"], item["image"]) == (other["lang"], other["image"])


@pytest.mark.parametrize("stored", ["libx264", "image"])
@pytest.mark.parametrize("layout", ["last of a full file", "files of one episode"])
def test_episode_in_the_file_after_the_one_named(written, tmp_path, caplog, layout, stored):
    root = shutil.copytree(written[stored][0], tmp_path / "converted")
    expected = list(LeRobotDataset(root, HORIZON))
    if layout == "files of one episode":  # file-000 is never written, the last file is named for no episode
        one_file_each(root)
        note_data_files(root, [0, 1, 2, 3, 4])
    else:
        note_data_files(root, [0, 0, 0, 1, 2])
    with caplog.at_level(logging.INFO, logger="hf_vla"):
        check_same_items(LeRobotDataset(root, HORIZON), expected)
    assert "names the data file before that of episode 2" in caplog.text
    start = sum(LENGTHS[:3])
    check_same_items(LeRobotDataset(root, HORIZON, episodes=[3]), expected[start : start + LENGTHS[3]])


def test_next_file_is_not_downloaded_yet(v3):
    note_data_files(v3, [0, 0, 0, 1, 2])
    (v3 / DATA.format(1)).unlink()
    data = load_metadata(v3).data
    assert [data.path(row) for row in range(5)] == [DATA.format(file) for file in (0, 0, 1, 2, 2)]
    (v3 / DATA.format(0)).unlink()  # nothing is known of the episodes that it is named for
    assert load_metadata(v3).data.path(2) == DATA.format(0)


@pytest.mark.parametrize("episodes", [None, [2], [1, 2]])
def test_repository_is_read_right_when_it_is_first_downloaded(v3, tmp_path, monkeypatch, episodes):
    expected = list(LeRobotDataset(v3, HORIZON, episodes=episodes))
    note_data_files(v3, [0, 0, 0, 1, 2])
    snapshot, asked = tmp_path / "snapshots" / "c0ffee", []

    def download(repo_id, repo_type, revision, allow_patterns):
        asked.append(allow_patterns)
        for file in v3.rglob("*.*"):
            name = str(file.relative_to(v3))
            if file.is_file() and any(fnmatch(name, pattern) for pattern in allow_patterns):
                (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, snapshot / name)
        return str(snapshot)

    monkeypatch.setattr("hf_vla.data.hub.snapshot_download", download)
    check_same_items(LeRobotDataset("lab/robot", HORIZON, episodes=episodes), expected)
    assert len(asked) == (2 if episodes is None else 3)


def test_right_files_stay(v3):
    data = load_metadata(v3).data
    assert [data.path(row) for row in range(5)] == [DATA.format(file) for file in DATA_FILES]
