"""`hf-vla reencode`: the same dataset with fast videos."""

import json
import shutil

import av
import numpy as np
import pytest

from hf_vla.commands.main import main
from hf_vla.data import LeRobotDataset, LeRobotWriter, reencoding

VIDEOS = {"v21_video": "*/*/*/*.mp4", "v30": "*/*/*.mp4"}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory, reference_datasets):
    """By name: one of v2.1 with two cameras, and one of v3.0 whose episodes share a file, of colours and no key frames between."""
    root = tmp_path_factory.mktemp("datasets")
    shutil.copytree(reference_datasets / "v21_video", root / "v21_video")
    info = root / "v21_video" / "meta" / "info.json"
    info.write_text(info.read_text().replace('"video.codec": "h264"', '"video.codec": "mpeg4", "video.g": 20'))
    features = {
        "observation.images.front": {"dtype": "video", "shape": (48, 64, 3)},
        "action": {"dtype": "float32", "shape": (2,)},
    }
    with LeRobotWriter(root / "v30", fps=10, features=features, crf=12, gop_size=20) as writer:
        for seed in range(2):
            coarse = np.random.default_rng(seed).uniform(0, 255, (7, 3, 4, 3))
            for image in coarse.repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8):
                writer.add_frame({"observation.images.front": image, "action": np.zeros(2, np.float32)})
            writer.save_episode("look")
    return {name: root / name for name in VIDEOS}


def frames(folder) -> np.ndarray:
    dataset = LeRobotDataset(folder, action_horizon=1)
    return np.concatenate([np.ravel(view).astype(int) for i in range(len(dataset)) for view in dataset[i]["image"]])


@pytest.mark.parametrize("name", VIDEOS)
def test_only_the_videos_change(datasets, name, tmp_path, capsys):
    source, output = datasets[name], tmp_path / "out"
    assert main(["reencode", str(source), str(output), "--psnr", "42"]) == 0
    told = capsys.readouterr().out
    assert float(told.rsplit("worst frame ")[1].split(" dB")[0]) >= 42
    difference = frames(source) - frames(output)
    assert 10 * np.log10(255**2 / np.square(difference).mean()) > 36  # in RGB, in which chroma weighs more
    videos = [file for file in output.rglob("*.mp4")]
    assert len(videos) == len(list(source.rglob("*.mp4")))
    for video in videos:
        with av.open(str(video)) as container:
            assert container.streams.video[0].codec_context.name == "h264"
            assert all(packet.is_keyframe for packet in container.demux(video=0) if packet.size)
    changed = {
        file.relative_to(source).as_posix()
        for file in source.rglob("*")
        if file.is_file()
        and ".hf_vla" not in file.parts
        and file.read_bytes() != (output / file.relative_to(source)).read_bytes()
    }
    assert {file for file in changed if not file.endswith(".mp4")} <= {"meta/info.json"}
    before, after = (json.loads((folder / "meta" / "info.json").read_text()) for folder in (source, output))
    for info, codecs in ((before, {("h264", None), ("mpeg4", 20)}), (after, {("h264", None), ("h264", 1)})):
        for feature in info["features"].values():
            if feature["dtype"] == "video":
                assert (feature["info"].pop("video.codec"), feature["info"].pop("video.g", None)) in codecs
    assert before == after


def test_without_loss(datasets, tmp_path):
    reencoding.reencode(datasets["v30"], tmp_path / "out", lossless=True)
    assert np.array_equal(frames(tmp_path / "out"), frames(datasets["v30"]))


def test_a_stopped_command_goes_on(datasets, tmp_path, monkeypatch):
    source, output, encoded = datasets["v21_video"], tmp_path / "out", []
    encode = reencoding.reencode_video

    def stopping(path, *args, **kwargs):
        if len(encoded) == 3:
            raise KeyboardInterrupt
        encoded.append(path)
        return encode(path, *args, **kwargs)

    monkeypatch.setattr(reencoding, "reencode_video", stopping)
    with pytest.raises(KeyboardInterrupt):
        reencoding.reencode(source, output)
    assert not output.exists()
    with pytest.raises(ValueError, match="was begun with other settings"):
        reencoding.reencode(source, output, min_psnr=45)
    monkeypatch.setattr(
        reencoding, "reencode_video", lambda path, *a, **k: encoded.append(path) or encode(path, *a, **k)
    )
    made = reencoding.reencode(source, output)
    assert len(encoded) == len(set(encoded)) == len(made) == 8
    assert sum(video.frames for video in made) == 2 * 77
    assert not (output / "reencoding.json").exists() and not list(tmp_path.glob(".*"))
    with pytest.raises(FileExistsError, match="is not empty"):
        reencoding.reencode(source, output)


def test_a_damaged_video_is_named(datasets, tmp_path):
    shutil.copytree(datasets["v30"], tmp_path / "damaged")
    (video,) = (tmp_path / "damaged").rglob("*.mp4")
    data = bytearray(video.read_bytes())
    middle = (data.index(b"mdat") + len(data)) // 2
    data[middle : middle + 400] = bytes([255]) * 400
    video.write_bytes(data)
    with pytest.raises(OSError, match=video.name):
        reencoding.reencode(tmp_path / "damaged", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_loss_is_not_promised_if_pixels_are_converted(tmp_path):
    with av.open(str(tmp_path / "deep.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p10le"
        for value in range(3):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * value, np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p10le")))
        container.mux(stream.encode(None))
    with pytest.raises(
        ValueError, match="deep.mp4 has pixels of the format yuv420p10le, which would be converted to yuv420p"
    ):
        reencoding.reencode_video(tmp_path / "deep.mp4", tmp_path / "out.mp4", float("inf"))
    assert not (tmp_path / "out.mp4").exists()
    assert reencoding.reencode_video(tmp_path / "deep.mp4", tmp_path / "out.mp4", 40.0).frames == 3
