"""How much faster a dataset is read after `hf-vla reencode`: processor time per frame, in random order and in order.

    python benchmarks/reencoding.py                          # its own data: 224 x 224, AV1 and H.264, a key frame every two frames
    python benchmarks/reencoding.py --content simulator      # MetaWorld's images instead of a texture
    python benchmarks/reencoding.py --dataset datasets/my-robot

Original and copy are read in turn, in one process with one thread; the copy's worst frame and its size are told too.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from data import CONTENTS, ENCODERS, HORIZON, write_dataset

from hf_vla.data import LeRobotDataset
from hf_vla.data.reencoding import reencode


def seconds_per_image(dataset: LeRobotDataset, order: list[int]) -> float:
    start = time.process_time()
    for index in order:
        dataset[index]
    return (time.process_time() - start) / (len(order) * len(dataset.cameras))


def compare(name: str, original: Path, copy: Path, frames: int, rounds: int, **options) -> None:
    made = reencode(original, copy, **options)
    worst = min(video.worst_psnr for video in made)
    size = sum(video.bytes_after for video in made) / sum(video.bytes_before for video in made)
    datasets = [LeRobotDataset(root, HORIZON) for root in (original, copy)]
    number = min(frames, len(datasets[0]))
    orders = {
        "random": np.random.default_rng(0).permutation(len(datasets[0]))[:number].tolist(),
        "in order": list(range(number)),
    }
    for kind, order in orders.items():
        times = [[seconds_per_image(dataset, order) for dataset in datasets] for _ in range(rounds + 1)][1:]
        before, after = (1e3 * statistics.median(of_one) for of_one in zip(*times, strict=True))
        print(
            f"| {name} | {kind} | {before:.2f} | {after:.2f} | {before / after:.1f} | {size:.1f} | {worst:.1f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, help="a LeRobot folder instead of own data")
    parser.add_argument("--codecs", nargs="+", default=list(ENCODERS), choices=ENCODERS)
    parser.add_argument("--content", default="texture", choices=CONTENTS, help="what the videos show")
    parser.add_argument("--psnr", type=float, default=40.0, help="of the worst frame, at least")
    parser.add_argument("--frames", type=int, default=400, help="read per round")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts, after one to warm up")
    a = parser.parse_args()
    print(
        "| data | order | before, ms per image | after | ratio | bytes, times | worst frame, dB |\n|---|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        roots = {"given": a.dataset} if a.dataset else {}
        for codec in [] if a.dataset else a.codecs:
            roots[codec] = write_dataset(Path(folder) / codec, codec, 1, 4, 100, a.content)
        for name, root in roots.items():
            compare(name, root, Path(folder) / f"{name}-fast", a.frames, a.rounds, min_psnr=a.psnr)


if __name__ == "__main__":
    main()
