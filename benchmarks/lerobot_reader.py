"""Samples per second of `LeRobotDataset` on a v3.0 dataset, against LeRobot's own reader or a stand-in for it.

    python benchmarks/lerobot_reader.py                        # makes its own: two 224 x 224 AV1 cameras, 20 x 75 frames
    python benchmarks/lerobot_reader.py --dataset datasets/my-robot --samples 500
    python benchmarks/lerobot_reader.py --lerobot ~/lerobot-environment/bin/python    # against LeRobot itself

LeRobot's requirements conflict with this package's, so it runs in an environment of its own (`--lerobot` names its
interpreter), in a process that waits between its rounds. Without `--lerobot`, a stand-in does what LeRobot 0.4's reader does, in
the cheapest way: a row of the tables through `datasets` as tensors, the rows of 16 actions likewise, the episode's row twice, and
each camera's frame from a torchcodec decoder that stays open, turned into a float tensor. Without torchcodec, our own decoder is
used instead. One process, one thread, random order; both are measured in turn by CPU time, which other work on the machine
changes little.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder reports its settings to stderr otherwise

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from data import FPS, HORIZON, SIZE, encode, textured_frames

from hf_vla.data import LeRobotDataset
from hf_vla.data.video import VideoReader

try:
    from torchcodec.decoders import VideoDecoder
except (ImportError, RuntimeError):  # not installed, or its FFmpeg is not
    VideoDecoder = None

CAMERAS = ["observation.images.front", "observation.images.wrist"]
DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"


def write_dataset(root: Path, episodes: int, length: int) -> Path:
    """Write a v3.0 dataset with one data file and one video file per camera, with LeRobot's encoder settings."""
    rng, frames = np.random.default_rng(0), episodes * length
    place = {"chunk_index": 0, "file_index": 0}
    features = {camera: {"dtype": "video", "shape": [SIZE, SIZE, 3], "names": None} for camera in CAMERAS}
    columns = {}
    for name, size in (("observation.state", 8), ("action", 7)):
        features[name] = {"dtype": "float32", "shape": [size], "names": None}
        values = rng.normal(size=frames * size).astype(np.float32)
        columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values), size)
    columns |= {
        "timestamp": np.tile(np.arange(length, dtype=np.float32) / FPS, episodes),
        "frame_index": np.tile(np.arange(length), episodes),
        "episode_index": np.repeat(np.arange(episodes), length),
        "index": np.arange(frames),
        "task_index": np.zeros(frames, np.int64),
    }
    starts = np.arange(episodes) * length
    one = {"dtype": "int64", "shape": [1], "names": None}
    features |= {name: one for name in ("frame_index", "episode_index", "index", "task_index")}
    features["timestamp"] = one | {"dtype": "float32"}
    rows = {"episode_index": np.arange(episodes), "tasks": [["move"]] * episodes, "length": [length] * episodes}
    rows |= {"dataset_from_index": starts, "dataset_to_index": starts + length}
    rows |= {f"data/{name}": [0] * episodes for name in place}
    for seed, camera in enumerate(CAMERAS):
        video = root / VIDEO.format(video_key=camera, **place)
        video.parent.mkdir(parents=True)
        encode(video, textured_frames(frames, seed), "av1")
        rows |= {f"videos/{camera}/{name}": [0] * episodes for name in place}
        rows |= {f"videos/{camera}/{name}_timestamp": (starts + n) / FPS for name, n in (("from", 0), ("to", length))}
    for file, table in (
        (DATA.format(**place), columns),
        ("meta/episodes/chunk-000/file-000.parquet", rows),
    ):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), root / file)
    pd.DataFrame({"task_index": [0]}, index=pd.Index(["move"], name="task")).to_parquet(root / "meta/tasks.parquet")
    info = {"codebase_version": "v3.0", "robot_type": "synthetic", "fps": FPS, "data_path": DATA, "video_path": VIDEO}
    info |= {"total_episodes": episodes, "total_frames": frames, "total_tasks": 1, "chunks_size": 1000}
    (root / "meta/info.json").write_text(json.dumps(info | {"features": features}))
    return root


# What the process with LeRobot runs: a line of item numbers in, samples per second of CPU time out.
LEROBOT = """
import json, sys, time
import torch
torch.set_num_threads(1)
import lerobot
from lerobot.datasets.lerobot_dataset import LeRobotDataset
root, fps, horizon = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
dataset = LeRobotDataset("local/dataset", root=root, delta_timestamps={"action": [step / fps for step in range(horizon)]})
print(f"LeRobot {lerobot.__version__}, {dataset.video_backend}", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    start = time.process_time()
    for index in order:
        item = dataset[index]
    print(len(order) / (time.process_time() - start), flush=True)
"""


class LeRobotItself:
    """LeRobot's reader in another interpreter; it starts once, and waits between rounds."""

    def __init__(self, python: str, root: Path, fps: float) -> None:
        command = [python, "-c", LEROBOT, str(root), str(fps), str(HORIZON)]
        environment = os.environ | {"HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, stdin=-1, stdout=-1, text=True, env=environment)
        self.name = self._answer()

    def samples_per_cpu_second(self, order: list[int]) -> float:
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("LeRobot's process ended; what it said stands above")
        return line.strip()


class StandIn:
    """Do what LeRobot's reader does for one sample of a v3.0 dataset."""

    def __init__(self, root: Path, cameras: list[str]) -> None:
        self.root, self.cameras = root, cameras
        self.info = json.loads((root / "meta/info.json").read_text())
        self.cache = tempfile.TemporaryDirectory()
        self.rows = self._table("data")
        self.rows.set_transform(
            lambda columns: {name: [torch.tensor(value) for value in column] for name, column in columns.items()}
        )
        episodes = self._table("meta/episodes")
        self.episodes = episodes.select_columns([name for name in episodes.column_names if "stats/" not in name])
        self.decoders = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        item = self.rows[index]
        number = item["episode_index"].item()
        episode = self.episodes[number]
        start, stop = episode["dataset_from_index"], episode["dataset_to_index"]
        wanted = [max(start, min(stop - 1, index + step)) for step in range(HORIZON)]
        item["action"] = torch.stack(self.rows[wanted]["action"])
        item["action_is_pad"] = torch.tensor([not start <= index + step < stop for step in range(HORIZON)])
        timestamp, episode = item["timestamp"].item(), self.episodes[number]
        for camera in self.cameras:
            part = {name: episode[f"videos/{camera}/{name}"] for name in ("chunk_index", "file_index")}
            path = self.root / self.info["video_path"].format(video_key=camera, **part)
            item[camera] = self._frame(path, episode[f"videos/{camera}/from_timestamp"] + timestamp)
        return item

    def _frame(self, path: Path, timestamp: float) -> torch.Tensor:
        if path not in self.decoders:
            self.decoders[path] = (
                VideoReader(path, self.info["fps"])
                if VideoDecoder is None
                else VideoDecoder(path, seek_mode="approximate")
            )
        decoder = self.decoders[path]
        if VideoDecoder is None:
            pixels = torch.from_numpy(np.array(decoder.frame_at(timestamp))).permute(2, 0, 1)
        else:
            pixels = decoder.get_frames_at([round(timestamp * decoder.metadata.average_fps)]).data[0]
        return (pixels / 255.0).type(torch.float32)

    def _table(self, folder: str) -> datasets.Dataset:
        files = [str(file) for file in sorted((self.root / folder).glob("*/*.parquet"))]
        return datasets.Dataset.from_parquet(files, cache_dir=self.cache.name)


def samples_per_cpu_second(dataset, order: list[int]) -> float:
    start = time.process_time()
    for index in order:
        dataset[index]
    return len(order) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="a v3.0 folder instead of own data")
    parser.add_argument("--lerobot", metavar="PYTHON", help="interpreter of an environment with LeRobot")
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        root = arguments.dataset or write_dataset(Path(folder) / "v3", episodes=20, length=75)
        ours = LeRobotDataset(root, HORIZON)
        order = np.random.default_rng(0).permutation(len(ours))[: arguments.samples].tolist()
        if arguments.lerobot:
            lerobot = LeRobotItself(arguments.lerobot, root, ours.fps)
            name, peer = lerobot.name, lerobot.samples_per_cpu_second
        else:
            stand_in = StandIn(root, ours.cameras)
            assert np.array_equal(stand_in[order[0]]["action"], ours[order[0]]["action"])
            name = f"stand-in with {'our decoder' if VideoDecoder is None else 'torchcodec'}"
            peer = partial(samples_per_cpu_second, stand_in)
        print(f"samples per second of CPU time\n\n| round | {name} | hf_vla | ratio |\n|---|---|---|---|")
        for number in range(arguments.rounds):
            before, now = peer(order), samples_per_cpu_second(ours, order)
            print(f"| {number + 1} | {before:.0f} | {now:.0f} | {now / before:.2f} |", flush=True)


if __name__ == "__main__":
    main()
