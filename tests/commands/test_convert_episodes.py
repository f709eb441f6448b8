"""`hf-vla convert-episodes`: from folders of images and numbers to a dataset that reads back equal."""

import pickle
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hf_vla.commands.convert_episodes import main
from hf_vla.commands.main import main as hf_vla
from hf_vla.data import LeRobotDataset
from hf_vla.data.inspection import check

LENGTHS = [4, 6]


def picture(episode, frame, camera, size=(48, 32)):
    return Image.new("RGB", size, (40 * episode + 20, 30 * frame, 200 if camera == "front" else 20))


@pytest.fixture(params=["csv", "npz"])
def recordings(request, tmp_path):
    """A folder of recordings, its actions and its states."""
    rng = np.random.default_rng(0)
    source, actions, states = tmp_path / "recordings", [], []
    for episode, length in enumerate(LENGTHS):
        folder = source / f"episode_{episode:03d}"
        for camera in ("front", "wrist"):
            (folder / camera).mkdir(parents=True)
            for frame in range(length):
                picture(episode, frame, camera).save(folder / camera / f"{frame:06d}.png")
        action, state = rng.normal(size=(length, 2)), rng.normal(size=(length, 3))
        if request.param == "csv":
            header = "time,state_x,action_dx,state_y,action_grip,state_z"
            columns = np.stack(
                [np.arange(length), state[:, 0], action[:, 0], state[:, 1], action[:, 1], state[:, 2]], 1
            )
            np.savetxt(folder / "data.csv", columns, delimiter=",", header=header, comments="", fmt="%.9g")
        else:
            np.savez(folder / "data.npz", action=action, state=state)
        (folder / "instruction.txt").write_text(f"task {episode}\n")
        actions.append(action)
        states.append(state)
    return source, actions, states


def convert(source, output, *more):
    main(["--input", str(source), "--output", str(output), "--fps", "10", *more])


def test_reads_back_equal(recordings, tmp_path, capsys):
    source, actions, states = recordings
    convert(source, tmp_path / "dataset", "--robot-type", "my_arm")
    assert "dataset written to" in capsys.readouterr().out
    dataset = LeRobotDataset(tmp_path / "dataset", action_horizon=3, cameras=["front", "wrist"])
    assert (len(dataset), dataset.unnorm_key, dataset.fps, dataset.num_episodes) == (10, "my_arm", 10, 2)
    if (source / "episode_000/data.csv").exists():
        assert (dataset.action_names, dataset.state_names) == (["dx", "grip"], ["x", "y", "z"])
    frames = [(episode, frame) for episode, length in enumerate(LENGTHS) for frame in range(length)]
    for item, (episode, frame) in zip(dataset, frames, strict=True):
        np.testing.assert_allclose(item["action"][0], actions[episode][frame], rtol=1e-6)
        np.testing.assert_allclose(item["state"][0], states[episode][frame], rtol=1e-6)
        assert item["lang"] == f"task {episode}"
        for camera, image in zip(("front", "wrist"), item["image"], strict=True):
            difference = np.asarray(image).astype(int) - np.asarray(picture(episode, frame, camera)).astype(int)
            assert np.abs(difference).mean() < 5
    assert check(tmp_path / "dataset") == []


def test_size_and_one_instruction_for_all(recordings, tmp_path):
    source = recordings[0]
    for folder in source.iterdir():
        (folder / "instruction.txt").unlink()
    convert(source, tmp_path / "small", "--image-size", "16", "24", "--instruction", "open it")
    item = LeRobotDataset(tmp_path / "small", 3)[0]
    assert (item["image"][0].size, item["lang"]) == ((16, 24), "open it")


def damage(name):
    def change(source):
        folder = source / "episode_001"
        if name == "instruction":
            (folder / "instruction.txt").write_text(" ")
        elif name == "images":
            (folder / "wrist/000002.png").unlink()
        elif name == "camera":
            shutil.rmtree(folder / "wrist")
        elif name == "size":
            Image.new("RGB", (16, 16)).save(folder / "front/000001.png")
        elif name == "image":
            (folder / "front/000001.png").write_bytes(b"no image")
        elif name == "numbers":
            (folder / "data.csv").unlink(missing_ok=True)
            (folder / "data.npz").unlink(missing_ok=True)
        elif name == "nan":
            (folder / "data.csv").unlink(missing_ok=True)
            action = np.zeros((6, 2))
            action[3, 1] = np.nan
            np.savez(folder / "data.npz", action=action, state=np.zeros((6, 3)))
        elif name == "text":
            (folder / "data.npz").unlink(missing_ok=True)
            (folder / "data.csv").write_text("action_dx\n" + "0\n" * 3 + "zero\n" + "0\n" * 2)
        elif name == "array":
            (folder / "data.csv").unlink(missing_ok=True)
            np.savez(folder / "data.npz", actions=np.zeros((6, 2)))
        elif name == "both":
            np.savez(folder / "data.npz", action=np.zeros((6, 2)))
        elif name == "twice":
            (folder / "data.csv").write_text("action_dx,action_dx\n" + "0,0\n" * 6)
        elif name in ("empty", "pickle", "single", "cut", "flipped", "objects", "number", "no rows"):
            (folder / "data.csv").unlink(missing_ok=True)
            npz(folder / "data.npz", name)
        elif name == "unpadded":
            for frame, file in enumerate(sorted((folder / "front").iterdir())):
                file.rename(file.with_name(f"{frame + 7}.png"))
        elif name == "deep colours":
            Image.fromarray(np.full((32, 48), 40_000, np.uint16)).save(folder / "front/000003.png")
        elif name == "encoding":
            (folder / "instruction.txt").write_bytes("öffne".encode("latin1"))
        elif name == "dimensions":
            (folder / "data.csv").unlink(missing_ok=True)
            np.savez(folder / "data.npz", action=np.zeros((6, 5)), state=np.zeros((6, 3)))

    return change


def npz(path, name):
    np.savez(path, action=np.zeros((0 if name == "no rows" else 6, 2)))
    content = path.read_bytes()
    if name == "empty":
        path.write_bytes(b"")
    elif name == "pickle":
        path.write_bytes(pickle.dumps({"action": 1}))
    elif name == "single":
        with path.open("wb") as file:
            np.save(file, np.zeros((6, 2)))
    elif name == "cut":
        path.write_bytes(content[:100])
    elif name == "flipped":
        path.write_bytes(content[:180] + b"\xff" * 10 + content[190:])
    elif name == "objects":
        np.savez(path, action=np.array([[1], [1, 2]], object))
    elif name == "number":
        np.savez(path, action=1.0)


@pytest.mark.parametrize("recordings", ["csv"], indirect=True)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("both", "episode_001 has both data.csv and data.npz; keep one"),
        ("twice", "data.csv has more than one column 'action_dx'"),
        ("empty", "data.npz is not an npz file, or is damaged; numpy.savez writes them"),
        ("pickle", "data.npz is not an npz file, or is damaged; numpy.savez writes them"),
        ("single", "data.npz is not an npz file, or is damaged; numpy.savez writes them"),
        ("cut", "data.npz is not an npz file, or is damaged; numpy.savez writes them"),
        ("flipped", "data.npz cannot be read: Bad CRC-32"),
        ("objects", "data.npz cannot be read: Object arrays"),
        ("number", r"data.npz: action is float64 of shape \(\); expected numbers \(T, D\)"),
        ("no rows", r"data.npz: action is of shape \(0, 2\), without any numbers"),
        ("unpadded", "episode_001/front: 12.png sorts before 7.png.*leading zeros"),
        ("deep colours", "episode_001/front/000003.png cannot be read: it is an image of mode 'I;16'"),
        ("encoding", "episode_001/instruction.txt is not encoded in UTF-8"),
        ("instruction", "episode_001: there is no instruction.txt, or it is empty"),
        ("images", "episode_001/wrist has 5 images for 6 rows"),
        ("camera", r"cameras of .*episode_001 are \['front'\]"),
        ("size", "episode_001/front/000001.png is 16 x 16, the first of its camera 48 x 32"),
        ("image", "episode_001/front/000001.png cannot be read"),
        ("numbers", "episode_001 has neither data.csv nor data.npz"),
        ("nan", r"action names of .*episode_001 are None"),
        ("text", "data.csv, line 5: could not convert string to float: 'zero'"),
        ("array", "data.npz has no array 'action'; it has actions"),
        ("dimensions", "action dimensions of .*episode_001 are 5, those of .*episode_000 2"),
    ],
)
def test_one_clear_error_and_nothing_left_behind(recordings, tmp_path, capsys, name, message):
    damage(name)(recordings[0])
    with pytest.raises(SystemExit) as exit:
        convert(recordings[0], tmp_path / "dataset")
    assert exit.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f"error: .*{message}", error)
    assert [path.name for path in tmp_path.iterdir()] == ["recordings"]


@pytest.mark.parametrize("recordings", ["csv"], indirect=True)
def test_texts_of_spreadsheets_and_editors(recordings, tmp_path):
    """With a byte order mark, which is no part of the first column's name, and a blank line at the end."""
    for folder in recordings[0].iterdir():
        table, text = folder / "data.csv", folder / "instruction.txt"
        lines = table.read_text().splitlines()
        rows = [",".join(line.split(",")[1:]) for line in lines]  # a state comes first
        table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*rows, "", ""]).encode())
        text.write_bytes(b"\xef\xbb\xbf" + text.read_bytes())
    convert(recordings[0], tmp_path / "dataset")
    dataset = LeRobotDataset(tmp_path / "dataset", 1)
    assert dataset.state_names == ["x", "y", "z"]
    assert dataset.instructions == ["task 0", "task 1"]


@pytest.mark.parametrize("recordings", ["npz"], indirect=True)
def test_images_may_be_named_by_their_times(recordings, tmp_path):
    times = ["1.5", "1.55", "1.6", "1.65", "1.7", "1.75"]
    for folder in recordings[0].iterdir():
        for time, file in zip(times, sorted((folder / "front").iterdir()), strict=False):
            file.rename(file.with_name(f"{time}.png"))
    convert(recordings[0], tmp_path / "dataset")
    red, green, _ = LeRobotDataset(tmp_path / "dataset", 1, cameras=["front"])[3]["image"][0].getpixel((20, 20))
    assert abs(red - 20) < 8 and abs(green - 90) < 8


def test_image_size_of_videos(recordings, tmp_path, capsys):
    for size in (("33", "32"), ("0", "32")):
        with pytest.raises(SystemExit):
            convert(recordings[0], tmp_path / "dataset", "--image-size", *size)
        assert f"the image size is {size[0]} x 32; videos need even sizes" in capsys.readouterr().err


@pytest.mark.parametrize("recordings", ["npz"], indirect=True)
def test_nan_is_found_before_anything_is_written(recordings, tmp_path, capsys):
    damage("nan")(recordings[0])
    with pytest.raises(SystemExit):
        convert(recordings[0], tmp_path / "dataset")
    assert re.search(r"episode_001: action\[1\] at frame 3 is nan", capsys.readouterr().err)


def test_empty_and_missing_folders(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    for source, message in ((tmp_path / "empty", "holds no folders"), (tmp_path / "none", "is not a folder")):
        with pytest.raises(SystemExit):
            convert(source, tmp_path / "dataset")
        assert message in capsys.readouterr().err


def test_the_guide_leads_to_a_dataset(tmp_path, monkeypatch, capsys):
    guide = (Path(__file__).resolve().parents[2] / "docs" / "your_dataset.md").read_text()
    (recording,) = re.findall(r"```python\n(.*?)```", guide, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(recording, {})
    commands = re.findall(r"^hf-vla ((?:convert-episodes|inspect) .*)$", guide, flags=re.MULTILINE)
    assert len(commands) == 2
    for command in commands:
        assert hf_vla(shlex.split(command)) == 0
    assert "all 40 frames of 2 episodes can be read" in capsys.readouterr().out
    assert (tmp_path / "datasets/my-robot.html").is_file()
    assert LeRobotDataset("datasets/my-robot", 16)[0]["lang"] == "wave at the camera"
    assert "* wave at the camera" in Path("datasets/my-robot/README.md").read_text()
