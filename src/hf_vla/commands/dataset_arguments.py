"""What commands that read datasets have in common: the datasets may be their first argument, and which episodes are read how."""

import argparse
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--episodes` and `--timestamps`; `reading_options` reads them."""
    parser.add_argument(
        "--episodes", nargs="+", metavar="N", help="episodes to read: numbers, and ranges such as 0-41; default all"
    )
    parser.add_argument(
        "--timestamps",
        help="which frame of its video a row shows: stored, exact, nearest or by_frame_index, see docs/data.md; default stored",
    )


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `LeRobotDataset` that `--episodes` and `--timestamps` stand for.

    Raises:
        ValueError: episodes that are neither numbers nor ranges, or an unknown rule.
    """
    from ..data.checks import episode_list
    from ..data.frame_times import checked_rule

    return {
        "episodes": episode_list(arguments.episodes),
        "timestamps": checked_rule(arguments.timestamps or "stored"),
    }


def parse_with_datasets(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse `hf-vla COMMAND DATASET --flag ...`, for a `hf_vla.commands.parser.ArgumentParser` that has the flag `--dataset`.

    A positional argument that is a YAML file keeps its meaning; any other is the value of `--dataset`.
    """
    arguments = parse_with_positional(parser, argv, "--dataset")
    if not arguments.dataset:
        parser.error("name a dataset: a LeRobot folder or a Hub repository")
    return arguments


def parse_with_many_datasets(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse `hf-vla COMMAND DATASET … --flag …`, or with a YAML file in front; several datasets may come first."""
    argv = list(sys.argv[1:] if argv is None else argv)
    first = list(itertools.takewhile(lambda argument: not argument.startswith("-"), argv))
    files = [argument for argument in first[:1] if Path(argument).suffix in (".yaml", ".yml")]
    if datasets := first[len(files) :]:
        argv = [*files, "--dataset", *datasets, *argv[len(first) :]]
    arguments = parser.parse_args(argv)
    if not arguments.dataset:
        parser.error("name a dataset: a LeRobot folder")
    return arguments


def parse_with_positional(
    parser: argparse.ArgumentParser, argv: Sequence[str] | None, flag: str
) -> argparse.Namespace:
    """Parse a command line whose first argument, unless it is a YAML file, is the value of `flag`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if "-h" not in argv and "--help" not in argv:
        given = vars(parser.parse_known_args(argv)[0])["config"]
        if given is not None and Path(given).suffix not in (".yaml", ".yml"):
            argv.remove(given)
            argv += [flag, given]
    return parser.parse_args(argv)
