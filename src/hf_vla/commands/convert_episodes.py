"""Make a LeRobot dataset from folders of recorded episodes.

    hf-vla convert-episodes --input recordings --output datasets/my-robot --fps 10 --robot-type my_arm
    hf-vla convert-episodes --input recordings --output datasets/my-robot --fps 10 \\
        --instruction "open the drawer" --image-size 224 224

The folder of an episode holds one folder of images per camera, data.csv (columns state_NAME and action_NAME) or data.npz
(arrays state and action), one row per frame, and instruction.txt. docs/your_dataset.md leads from there to training.
"""

import argparse

from .command import command
from .parser import ArgumentParser, log_to_console


def make_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="hf-vla convert-episodes", description=__doc__)
    parser.add_argument("--input", required=True, help="folder with one folder per episode")
    parser.add_argument("--output", required=True, help="folder of the new dataset")
    parser.add_argument("--fps", type=int, required=True, help="frames per second of the recordings")
    parser.add_argument("--robot-type", help="name of the robot; the key of the dataset's statistics")
    parser.add_argument("--instruction", help="for episodes without instruction.txt")
    parser.add_argument("--image-size", nargs=2, type=int, metavar=("WIDTH", "HEIGHT"), help="resize images to this")
    return parser


@command
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    from ..data import LeRobotDataset
    from ..data.episode_folders import convert_episodes

    output = convert_episodes(
        arguments.input,
        arguments.output,
        arguments.fps,
        robot_type=arguments.robot_type,
        instruction=arguments.instruction,
        image_size=tuple(arguments.image_size) if arguments.image_size else None,
    )
    LeRobotDataset(output, 1).write_card()
    print(f"dataset written to {output}")
