"""Write a dataset again with videos that are fast to read: H.264, every frame a key frame. Training reads frames in random order.

    hf-vla reencode lerobot/pusht datasets/pusht-fast
    hf-vla reencode datasets/droid datasets/droid-fast --psnr 45 --workers 8
    hf-vla reencode datasets/droid datasets/droid-lossless --lossless

DATASET is a LeRobot folder or Hub repository, v2.0, v2.1 or v3.0; OUT must not exist. Rows, statistics, timestamps and all else stay as
they are, byte for byte; meta/info.json says what the videos are now. Each frame is compared with the original: none is further from it
than --psnr says. A command that was stopped goes on if it is given again.
"""

from tqdm import tqdm

from .command import command
from .parser import ArgumentParser, log_to_console


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla reencode", description=__doc__, takes_file=False)
    parser.add_argument("dataset", metavar="DATASET", help="LeRobot folder or Hub repository")
    parser.add_argument("output", metavar="OUT", help="folder to write")
    parser.add_argument(
        "--psnr", type=float, default=40.0, help="peak signal-to-noise ratio of the worst frame, at least, in dB"
    )
    parser.add_argument("--lossless", action="store_true", help="keep every decoded frame bit for bit; larger files")
    parser.add_argument("--workers", type=int, default=1, help="processes that encode")
    return parser


@command(extra="train")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    from ..data.reencoding import reencode

    if arguments.workers < 1:
        raise ValueError(f"workers is {arguments.workers}; give 1 or more")
    with tqdm(unit=" videos", desc="re-encoding") as progress:

        def report(done: int, total: int) -> None:
            progress.total = total
            progress.update(done - progress.n)

        made = reencode(
            arguments.dataset,
            arguments.output,
            min_psnr=arguments.psnr,
            lossless=arguments.lossless,
            workers=arguments.workers,
            report=report,
        )
    before, after = (sum(getattr(video, name) for video in made) for name in ("bytes_before", "bytes_after"))
    worst = min(video.worst_psnr for video in made)
    print(
        f"{arguments.output}: {len(made)} videos, {sum(video.frames for video in made)} frames, "
        f"{after / 2**20:.1f} MiB ({after / before:.2f} times the original's); worst frame {worst:.1f} dB"
    )
