"""Outcomes of episodes, RECAP's formulas by hand, labels beside a dataset, and the mixture that draws them."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_vla.data import DatasetMixture, LeRobotDataset, LeRobotWriter
from hf_vla.data.advantage_labels import AdvantageLabels, check_tag, read_returns, write_labels
from hf_vla.data.advantages import advantages, returns, threshold
from hf_vla.data.outcomes import Outcome, read_outcomes, successful_episodes

LENGTHS = (4, 6, 3)


def outcome(success, left, source="policy", task="open"):
    return Outcome(success, np.array(left), np.full(len(left), source, dtype=object), task)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Three episodes: solved at frame 2 by a person's demonstration, solved at the end and failed by a policy."""
    folder = tmp_path_factory.mktemp("outcomes") / "data"
    features = {
        "observation.images.front": {"dtype": "video", "shape": (16, 16, 3)},
        "observation.state": {"dtype": "float32", "shape": (1,)},
        "action": {"dtype": "float32", "shape": (1,)},
        "next.success": {"dtype": "bool", "shape": (1,)},
        "intervention": {"dtype": "bool", "shape": (1,)},
    }
    solved = ([0, 0, 1, 1], [0, 0, 0, 0, 0, 1], [0, 0, 0])
    human = ([0, 0, 0, 0], [0, 1, 1, 0, 0, 0], [0, 0, 0])
    about = (
        {"success": True, "source": "demonstration"},
        {"success": True, "source": "policy"},
        {"success": False, "source": "policy"},
    )
    with LeRobotWriter(folder, 10, features, "point") as writer:
        for episode, length in enumerate(LENGTHS):
            for frame in range(length):
                value = np.array([frame], np.float32)
                flags = {"next.success": bool(solved[episode][frame]), "intervention": bool(human[episode][frame])}
                image = np.full((16, 16, 3), 40 * episode, np.uint8)
                writer.add_frame(
                    {"observation.images.front": image, "observation.state": value, "action": value} | flags
                )
            writer.save_episode("open", about[episode])
    return folder


def labels_of(root, positive, tag="first", **options):
    lengths = list(LENGTHS)
    frames = np.concatenate([np.arange(length) for length in lengths])
    columns = {name: np.zeros(len(frames)) for name in ("return", "value", "advantage")}
    columns |= {"episode_index": np.repeat(np.arange(3), lengths), "frame_index": frames}
    columns |= {"positive": np.asarray(positive, bool), "source": np.full(len(frames), "policy", dtype=object)}
    return write_labels(root, tag, columns, {"policy": "p"}, **options)


def test_outcomes_are_read_of_metadata_and_frames(root):
    found = read_outcomes(LeRobotDataset(root, 1))
    assert [o.success for o in found.values()] == [True, True, False]
    assert [o.steps_left.tolist() for o in found.values()] == [[2, 1, 0, 0], [5, 4, 3, 2, 1, 0], [2, 1, 0]]
    assert found[1].source.tolist() == ["policy", "human", "human", "policy", "policy", "policy"]
    assert set(found[0].source) == {"demonstration"} and found[0].task == "open"
    assert successful_episodes(LeRobotDataset(root, 1)) == [0, 1]


def test_returns_by_hand():
    assert returns(outcome(True, [2, 1, 0, 0]), 4).tolist() == [-0.5, -0.25, 0, 0]
    assert returns(outcome(False, [2, 1, 0]), 4).tolist() == [-1, -1, -1]  # what a failure costs by default
    assert returns(outcome(False, [1, 0]), 4, failure_cost=2).tolist() == [-0.75, -0.5]


def test_advantages_by_hand():
    solved = outcome(True, [3, 2, 1, 0])
    values = np.array([-0.9, -0.4, -0.3, -0.1])
    # A_0 = -2/4 + V_2 - V_0, A_1 = -2/4 + V_3 - V_1; then the return from there, -1/4 and 0, minus the value
    expected = [-0.5 - 0.3 + 0.9, -0.5 - 0.1 + 0.4, -0.25 + 0.3, 0 + 0.1]
    assert np.allclose(advantages(solved, values, longest=4, lookahead=2), expected)
    failed = outcome(False, [2, 1, 0])
    assert np.allclose(
        advantages(failed, np.array([-0.5, -0.8, -1.0]), longest=4, lookahead=2), [-0.5 - 1.0 + 0.5, -1 + 0.8, 0]
    )
    to_the_end = advantages(solved, values, longest=4, lookahead=50)
    assert np.allclose(to_the_end, returns(solved, 4) - values)
    # A value function that is right finds no step better than another.
    assert np.allclose(advantages(solved, returns(solved, 4), longest=4, lookahead=2), 0)


def test_the_threshold_leaves_the_best_share():
    values = np.arange(10.0)
    assert (values > threshold(values, 0.4)).sum() == 4
    assert (values > threshold(values, 0.1)).sum() == 1


def test_labels_are_written_beside_the_data_and_read(root):
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    positive = [1, 1, 0, 0] + [0, 1, 0, 1, 0, 1] + [0, 0, 0]
    written = labels_of(root, positive)
    assert {path for path in root.rglob("*") if path.is_file()} == {*before, *written}
    assert all(path.read_bytes() == content for path, content in before.items())
    dataset = LeRobotDataset(root, 1, advantage="first")
    told = [dataset[index]["advantage"] for index in range(len(dataset))]
    assert told == ["positive" if mark else "negative" for mark in positive]
    assert [dataset.with_episodes([1])[index]["advantage"] for index in range(2)] == ["negative", "positive"]
    assert AdvantageLabels.read(root, "first").about == {"policy": "p"}
    assert set(read_returns(root, "first")) == {"episode_index", "frame_index", "return", "value"}
    assert "advantage" not in LeRobotDataset(root, 1)[0]
    assert LeRobotDataset(root, 1, advantage="positive")[9]["advantage"] == "positive"
    # What was trained on is known by the labels, not by their name.
    assert dataset.identity != LeRobotDataset(root, 1).identity


def test_labels_that_do_not_fit_are_refused(root):
    labels_of(root, np.zeros(13), "second")
    with pytest.raises(FileExistsError, match="is there already"):
        labels_of(root, np.ones(13), "second")
    labels_of(root, np.ones(13), "second", overwrite=True)
    with pytest.raises(ValueError, match="no advantages of the tag 'secnd'; did you mean second"):
        LeRobotDataset(root, 1, advantage="secnd")
    path = root / "meta/advantages_second.parquet"
    pq.write_table(pq.read_table(path).slice(0, 7), path)
    with pytest.raises(ValueError, match="episode 1 has 6 frames and 3 labels"):
        LeRobotDataset(root, 1, advantage="second")
    for tag in ("positive", "", "a/b", "../x"):
        with pytest.raises(ValueError, match="can't be a tag"):
            check_tag(tag)


def test_a_dataset_that_does_not_tell_its_success(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    (file,) = (tmp_path / "data/meta/episodes").rglob("*.parquet")
    pq.write_table(pq.read_table(file).drop_columns(["success", "source"]), file)
    assert [o.success for o in read_outcomes(LeRobotDataset(tmp_path / "data", 1)).values()] == [True, True, False]
    info = tmp_path / "data/meta/info.json"
    content = json.loads(info.read_text())
    del content["features"]["next.success"]
    info.write_text(json.dumps(content))
    dataset = LeRobotDataset(tmp_path / "data", 1)
    with pytest.raises(ValueError, match="does not tell which episodes were solved"):
        read_outcomes(dataset)
    found = read_outcomes(dataset, source="human", assume_success=True)
    assert all(o.success for o in found.values()) and found[2].steps_left.tolist() == [2, 1, 0]
    with pytest.raises(ValueError, match="source is 'robot'; possible: demonstration"):
        read_outcomes(dataset, source="robot")


def test_a_source_that_is_none_of_the_three(root, tmp_path):
    shutil.copytree(root, tmp_path / "data")
    (file,) = (tmp_path / "data/meta/episodes").rglob("*.parquet")
    table = pq.read_table(file)
    table = table.set_column(table.column_names.index("source"), "source", pa.array(["teleop"] * 3))
    pq.write_table(table, file)
    with pytest.raises(ValueError, match="episode 0 has the source 'teleop'"):
        read_outcomes(LeRobotDataset(tmp_path / "data", 1))


def changed(root, folder, pattern, name, values):
    """A copy of a dataset with another column in one file."""
    shutil.copytree(root, folder)
    (file,) = folder.glob(pattern)
    table = pq.read_table(file)
    column = pa.array(values, table.schema.field(name).type if None in values else None)
    pq.write_table(table.set_column(table.column_names.index(name), name, column), file)
    return folder


def test_empty_cells_are_not_taken_for_false(root, tmp_path):
    labels_of(root, np.ones(13), "whole", overwrite=True)
    some = [True] * 5 + [None] + [True] * 7
    labelled = changed(root, tmp_path / "labels", "meta/advantages_whole.parquet", "positive", some)
    with pytest.raises(
        ValueError, match="'positive' must be true or false in every row; 1 of 13 are not, the first is None in row 5"
    ):
        AdvantageLabels.read(labelled, "whole")
    frames = changed(root, tmp_path / "frames", "data/**/*.parquet", "intervention", some)
    with pytest.raises(ValueError, match="'intervention' must be true or false in every row; 1 of 13 are not"):
        read_outcomes(LeRobotDataset(frames, 1))


def test_labels_are_read_in_any_order_of_rows(root):
    marks = np.arange(13) % 3 == 0
    path = labels_of(root, marks, "mixed")[1]
    table = pq.read_table(path)
    pq.write_table(table.take(np.random.default_rng(0).permutation(13)), path)
    read = AdvantageLabels.read(root, "mixed").positive
    assert list(read) == [0, 1, 2] and np.array_equal(np.concatenate(list(read.values())), marks)


@pytest.mark.parametrize("success", ["false", float("nan"), 0.5])
def test_a_success_that_is_neither_true_nor_false(root, tmp_path, success):
    data = changed(root, tmp_path / "data", "meta/episodes/**/*.parquet", "success", [success] * 3)
    with pytest.raises(ValueError, match="episode 0 has the success .*; it must be true or false"):
        read_outcomes(LeRobotDataset(data, 1))


def test_a_success_may_be_a_number(root, tmp_path):
    data = changed(root, tmp_path / "data", "meta/episodes/**/*.parquet", "success", [1.0, 0.0, 1.0])
    assert [o.success for o in read_outcomes(LeRobotDataset(data, 1)).values()] == [True, False, True]


def test_dropout_of_advantages_is_drawn_by_item(root):
    dataset = LeRobotDataset(root, 1, advantage="positive")
    mixture = DatasetMixture([dataset], seed=3, epoch_size=400, advantage_dropout=0.3)
    drawn = [mixture[index]["advantage"] for index in range(400)]
    assert set(drawn) == {"positive", None} and 85 < drawn.count(None) < 155
    assert drawn == [mixture[index]["advantage"] for index in range(400)]
    mixture.set_epoch(1)
    assert drawn != [mixture[index]["advantage"] for index in range(400)]
    assert "advantage_dropout" in mixture.identity
    plain = LeRobotDataset(root, 1)
    assert "advantage_dropout" not in DatasetMixture([plain]).identity
    with pytest.raises(ValueError, match="label all members of a mixture, or none"):
        DatasetMixture([dataset, plain])
    with pytest.raises(ValueError, match=r"it must be in \[0, 1\)"):
        DatasetMixture([dataset], advantage_dropout=1.0)
