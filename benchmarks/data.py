"""Samples per second of `LeRobotDataset`, beside a loader that opens the table and the videos for every sample.

Both read the same frames and action chunks, one process, one thread; each line ends with the ratio of the two.

    python benchmarks/data.py ../shared/datasets/v21_video ../shared/datasets/v20_bridge_like
"""

import argparse
import json
import time
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq

from hf_vla.data import LeRobotDataset

HORIZON = 16


class OpeningReader:
    """The loader to compare with: a v2 dataset, every file opened and searched from its start for every sample."""

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
        table = pq.read_table(self.root / self.info["data_path"].format(**place)).to_pandas()
        rows = np.minimum(np.arange(frame, frame + HORIZON), len(table) - 1)
        item = {"action": np.stack(table["action"].iloc[rows]), "state": table["observation.state"].iloc[frame][None]}
        item["image"] = [self._frame(camera, place, table["timestamp"].iloc[frame]) for camera in self.cameras]
        return item

    def _frame(self, camera: str, place: dict, timestamp: float):
        with av.open(str(self.root / self.info["video_path"].format(video_key=camera, **place))) as container:
            for frame in container.decode(video=0):
                if frame.time >= timestamp - 0.5 / self.info["fps"]:
                    return frame.to_image()
        raise OSError(f"no frame of {camera} at {timestamp}")


def samples_per_second(dataset, order: list[int], seconds: float) -> float:
    """Reads `order` over and over for at least `seconds`."""
    for index in order:
        dataset[index]
    read, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        for index in order:
            dataset[index]
        read += len(order)
    return read / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", nargs="+", type=Path, help="folders of v2.0 or v2.1 datasets with video")
    parser.add_argument("--seconds", type=float, default=2.0, help="time for each measurement")
    arguments = parser.parse_args()
    print(f"{'dataset':<18}{'reads':<8}{'order':<12}{'opening':>10}{'hf_vla':>10}{'ratio':>8}   samples/s")
    for root in arguments.datasets:
        every_camera = LeRobotDataset(root, HORIZON).cameras
        for reads, cameras in (("tables", []), ("all", every_camera)):
            ours, theirs = LeRobotDataset(root, HORIZON, cameras=cameras), OpeningReader(root, cameras)
            in_order = list(range(len(ours)))
            shuffled = np.random.default_rng(0).permutation(len(ours)).tolist()
            for name, order in (("sequential", in_order), ("random", shuffled)):
                before = samples_per_second(theirs, order, arguments.seconds)
                now = samples_per_second(ours, order, arguments.seconds)
                print(f"{root.name:<18}{reads:<8}{name:<12}{before:>10.0f}{now:>10.0f}{now / before:>8.1f}")


if __name__ == "__main__":
    main()
