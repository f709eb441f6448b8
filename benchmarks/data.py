"""Samples per second of `LeRobotDataset` in random order, against a loader that opens the table and the videos per sample.

    python benchmarks/data.py                       # makes its own data: 224 x 224, AV1 and H.264, 1, 2 and 4 cameras
    python benchmarks/data.py --codecs h264 --cameras 1 --seconds 5
    python benchmarks/data.py --content simulator   # MetaWorld's images instead of a texture, which is harder to decode
    python benchmarks/data.py --dataset tests/reference/datasets/v21_video tests/reference/datasets/v20_bridge_like

Both give the same frames and chunks of 16 actions. The other loader reads the episode's parquet file, opens its mp4, seeks to
the key frame and decodes on from there, with one thread, as ours does. "tables" is without any camera. They are measured in
turn; of the two ratios, that of CPU time, workers included, changes least with other work on the machine. Afterwards: memory
over several epochs, a dataset with more files than stay open, and the start-up of 50,000 episodes. "frame_cache" is any epoch but
the first with that option: all frames are decoded already. "read only" leaves the images in the workers: how fast they read.
"""

import argparse
import itertools
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("SVT_LOG", "1")  # the AV1 encoder reports its settings to stderr otherwise

import av
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.utils.data import DataLoader, default_collate

from hf_vla.data import LeRobotDataset
from hf_vla.evaluation.environments import make_environment

HORIZON, SIZE, FPS = 16, 224, 30
ENCODERS = {"av1": "libsvtav1", "h264": "libx264"}
INFO = {
    "codebase_version": "v2.1",
    "robot_type": "synthetic",
    "chunks_size": 1000,
    "fps": FPS,
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
}


def write_dataset(root: Path, codec: str, cameras: int, episodes: int, length: int, content: str = "texture") -> Path:
    """Write a v2.1 dataset with LeRobot's encoder settings: a key frame every two frames, CRF 30."""
    names = [f"observation.images.camera_{camera}" for camera in range(cameras)]
    features = {name: {"dtype": "video", "shape": [SIZE, SIZE, 3]} for name in names}
    features |= {"observation.state": {"dtype": "float32", "shape": [8]}, "action": {"dtype": "float32", "shape": [7]}}
    rng = np.random.default_rng(0)
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps({**INFO, "features": features}))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "move"}))
    lines = [json.dumps({"episode_index": e, "tasks": ["move"], "length": length}) for e in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    for episode in range(episodes):
        place = {"episode_chunk": 0, "episode_index": episode}
        table = root / INFO["data_path"].format(**place)
        table.parent.mkdir(parents=True, exist_ok=True)
        columns = {
            "action": [row.tolist() for row in rng.normal(size=(length, 7)).astype(np.float32)],
            "observation.state": [row.tolist() for row in rng.normal(size=(length, 8)).astype(np.float32)],
            "timestamp": pa.array((np.arange(length) / FPS).astype(np.float32)),
            "episode_index": [episode] * length,
            "task_index": [0] * length,
        }
        pq.write_table(pa.table(columns), table)
        first = root / INFO["video_path"].format(video_key=names[0], **place)
        first.parent.mkdir(parents=True, exist_ok=True)
        encode(first, CONTENTS[content](length, episode), codec)
        for name in names[1:]:
            copy = root / INFO["video_path"].format(video_key=name, **place)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(first, copy)
    return root


def textured_frames(length: int, seed: int) -> Iterator[np.ndarray]:
    """Draw a textured background with a moving square under changing light: more detail than images usually have."""
    rng = np.random.default_rng(seed)
    texture = np.kron(rng.integers(0, 60, (28, 28, 3)), np.ones((8, 8, 1))) + rng.integers(0, 6, (SIZE, SIZE, 3))
    y, x = np.mgrid[:SIZE, :SIZE]
    for frame in range(length):
        light = 60 + 50 * np.sin(np.stack([x / 40 + frame / 30, y / 30 + frame / 20, (x + y) / 50], axis=-1))
        pixels = (texture + light).clip(0, 255).astype(np.uint8)
        left = int(100 + 80 * np.sin(frame / 15 + seed))
        pixels[90:120, left : left + 30] = (200, 30, 30)
        yield pixels


def simulator_frames(length: int, seed: int) -> Iterator[np.ndarray]:
    """Render MetaWorld's expert opening a drawer."""
    environment = make_environment("metaworld", "drawer-open", image_size=SIZE)
    observation = environment.reset(seed)
    for _ in range(length):
        yield np.asarray(observation["image"][0])
        environment.step(environment.expert_action())
        observation = environment.observation()
    environment.close()


CONTENTS = {"texture": textured_frames, "simulator": simulator_frames}


def encode(path: Path, frames: Iterable[np.ndarray], codec: str) -> None:
    scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(ENCODERS[codec], rate=FPS, options={"g": "2", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
    os.sched_setscheduler(0, *scheduling)  # SVT-AV1 makes root's thread a real-time one, which all else would wait for


class OpeningReader:
    """The loader to compare with: it reads a v2 dataset and opens every file for every sample."""

    def __init__(self, root: Path, cameras: list[str]) -> None:
        self.root, self.cameras = root, cameras
        self.info = json.loads((root / "meta/info.json").read_text())
        lines = (root / "meta/episodes.jsonl").read_text().splitlines()
        self.frames = [(e["episode_index"], f) for e in map(json.loads, lines) for f in range(e["length"])]

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> dict:
        episode, frame = self.frames[index]
        place = {"episode_chunk": episode // self.info["chunks_size"], "episode_index": episode}
        table = pq.read_table(self.root / self.info["data_path"].format(**place), use_threads=False).to_pandas()
        rows = np.minimum(np.arange(frame, frame + HORIZON), len(table) - 1)
        item = {
            "action": np.stack(table["action"].iloc[rows]),
            "state": np.stack([table["observation.state"].iloc[frame]]),
        }
        item["image"] = [self._frame(camera, place, table["timestamp"].iloc[frame]) for camera in self.cameras]
        return item

    def _frame(self, camera: str, place: dict, timestamp: float) -> Image.Image:
        with av.open(str(self.root / self.info["video_path"].format(video_key=camera, **place))) as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            container.seek(int(timestamp / stream.time_base), stream=stream)
            for frame in container.decode(stream):
                if frame.time >= timestamp - 0.5 / self.info["fps"]:
                    return Image.fromarray(frame.to_ndarray(format="rgb24"))
        raise OSError(f"no frame of {camera} at {timestamp}")


def collate(items: list[dict]) -> dict:
    """Make tensors, as a collator does in the workers: they come back in shared memory; PIL images would be copied."""
    batch = {name: default_collate([item[name] for item in items]) for name in ("action", "state")}
    images = [torch.from_numpy(np.array(image)) for item in items for image in item["image"]]
    return batch | ({"pixels": default_collate(images)} if images else {})


def leave_pixels(items: list[dict]) -> dict:
    """Send back no images, so that only the time of reading counts, not that of moving pixels."""
    return {"action": np.stack([item["action"] for item in items])}


class Rates(NamedTuple):
    """Samples per second by the clock, and per second of CPU time of this process and its workers together."""

    clock: float
    cpu: float


class Endless:
    """A sampler that repeats one random order without end, as it is not known beforehand how fast the machine is."""

    def __init__(self, size: int) -> None:
        self.order = np.random.default_rng(0).permutation(size).tolist()

    def __iter__(self) -> Iterator[int]:
        return itertools.cycle(self.order)


def measure(dataset, workers: int, seconds: float, collate_fn=collate) -> Rates:
    """Read batches of 16 in random order for at least `seconds`; files are already open when the clock starts."""
    others = set(psutil.Process().children())
    batches = iter(DataLoader(dataset, 16, sampler=Endless(len(dataset)), num_workers=workers, collate_fn=collate_fn))
    for _ in range(8):
        next(batches)
    processes = [psutil.Process(), *(set(psutil.Process().children()) - others)]

    def cpu_time() -> float:
        return sum(sum(process.cpu_times()[:2]) for process in processes)

    start, cpu_start, read = time.perf_counter(), cpu_time(), 0
    while time.perf_counter() - start < seconds:
        read += len(next(batches)["action"])
    return Rates(read / (time.perf_counter() - start), read / (cpu_time() - cpu_start))


def compare(
    name: str, ours: LeRobotDataset, workers: int, seconds: float, collate_fn=collate, rounds: int = 3
) -> None:
    """Measure both readers in turn, as other work on the machine comes and goes, and take the best of each."""
    opening = OpeningReader(ours.root, ours.cameras)
    measured = [[measure(dataset, workers, seconds, collate_fn) for dataset in (opening, ours)] for _ in range(rounds)]
    before, now = (Rates(*map(max, zip(*rates, strict=True))) for rates in zip(*measured, strict=True))
    print(
        f"| {name} | {len(ours.cameras) or 'tables'} | {workers} | {before.clock:.0f} | {now.clock:.0f} "
        f"| {now.clock / before.clock:.1f} | {now.cpu / before.cpu:.1f} |",
        flush=True,
    )


def many_files(root: Path, seconds: float, episodes: int = 600) -> None:
    """Measure one camera with more AV1 files than stay open: either reader has to open a file for nearly every frame."""
    write_dataset(root, "av1", cameras=1, episodes=1, length=80)
    line = json.loads((root / "meta/episodes.jsonl").read_text())
    lines = [json.dumps(line | {"episode_index": episode}) for episode in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    first = {"episode_chunk": 0, "episode_index": 0}
    table = pq.read_table(root / INFO["data_path"].format(**first))
    column = table.column_names.index("episode_index")
    camera = "observation.images.camera_0"
    video = root / INFO["video_path"].format(video_key=camera, **first)
    for episode in range(1, episodes):
        place = {"episode_chunk": 0, "episode_index": episode}
        indices = pa.array([episode] * len(table))
        pq.write_table(table.set_column(column, "episode_index", indices), root / INFO["data_path"].format(**place))
        shutil.copy(video, root / INFO["video_path"].format(video_key=camera, **place))
    compare(f"av1, {episodes} files", LeRobotDataset(root, HORIZON), 0, seconds)


def startup_seconds(root: Path, episodes: int = 50_000, length: int = 100) -> float:
    """Time opening a v2.1 dataset whose files, one table and two videos per episode, all exist and are checked for."""
    features = {name: {"dtype": "video", "shape": [SIZE, SIZE, 3]} for name in ("front", "wrist")}
    features |= {"action": {"dtype": "float32", "shape": [7]}}
    (root / "meta").mkdir(parents=True)
    (root / "meta/info.json").write_text(json.dumps({**INFO, "features": features}))
    (root / "meta/tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": "move"}))
    lines = [json.dumps({"episode_index": e, "tasks": ["move"], "length": length}) for e in range(episodes)]
    (root / "meta/episodes.jsonl").write_text("\n".join(lines))
    for episode in range(episodes):
        place = {"episode_chunk": episode // INFO["chunks_size"], "episode_index": episode}
        files = [INFO["data_path"].format(**place)]
        files += [INFO["video_path"].format(video_key=camera, **place) for camera in ("front", "wrist")]
        for file in files:
            if episode % INFO["chunks_size"] == 0:
                (root / file).parent.mkdir(parents=True)
            (root / file).touch()
    start = time.perf_counter()
    assert len(LeRobotDataset(root, HORIZON)) == episodes * length
    return time.perf_counter() - start


def resident_megabytes(dataset: LeRobotDataset, epochs: int) -> list[float]:
    """Return this process's memory after each of several epochs in random order."""
    megabytes, rng = [], np.random.default_rng(0)
    for _ in range(epochs):
        for index in rng.permutation(len(dataset)).tolist():
            dataset[index]
        megabytes.append(psutil.Process().memory_info().rss / 1e6)
    return megabytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", nargs="+", type=Path, help="v2.0 or v2.1 folders with video instead of own data")
    parser.add_argument("--codecs", nargs="+", default=list(ENCODERS), choices=ENCODERS)
    parser.add_argument("--content", default="texture", choices=CONTENTS, help="what the videos show")
    parser.add_argument("--cameras", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--episodes", type=int, default=8, help="of own data")
    parser.add_argument("--length", type=int, default=80, help="frames per episode of own data")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | cameras | workers | opening | hf_vla | ratio | ratio of CPU time |\n|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        roots = {root.name: root for root in arguments.dataset or []}
        if not roots:
            for codec in arguments.codecs:
                most = max(arguments.cameras)
                roots[codec] = write_dataset(
                    Path(folder) / codec, codec, most, arguments.episodes, arguments.length, arguments.content
                )
        for name, root in roots.items():
            every = LeRobotDataset(root, HORIZON).cameras
            counts = [len(every)] if arguments.dataset else arguments.cameras
            for workers in arguments.workers:
                for count in [0, *counts]:
                    ours = LeRobotDataset(root, HORIZON, every[:count])
                    compare(name, ours, workers, arguments.seconds)
                    if workers and count:
                        compare(f"{name}, read only", ours, workers, arguments.seconds, leave_pixels)
                kept = LeRobotDataset(root, HORIZON, every[: counts[-1]], frame_cache=Path(folder) / "frames")
                for index in range(len(kept)):
                    kept[index]
                compare(f"{name}, frame_cache", kept, workers, arguments.seconds)
            memory = resident_megabytes(LeRobotDataset(root, HORIZON), epochs=8)
            print(f"\n{name}: resident after each epoch, MB: {', '.join(f'{size:.0f}' for size in memory)}\n")
        if not arguments.dataset:
            many_files(Path(folder) / "files", arguments.seconds)
        print(f"start-up of 50,000 episodes: {startup_seconds(Path(folder) / 'many'):.1f} s")


if __name__ == "__main__":
    main()
