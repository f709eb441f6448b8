"""Look at a LeRobot dataset before training on it.

    hf-vla inspect datasets/my-robot
    hf-vla inspect datasets/my-robot --check --output report.html

Prints what it holds, the range of every dimension, and what looks odd: constant dimensions, jumps, outliers, frames that
repeat, clocks that disagree. --check reads every row and every frame, and ends with status 1 and a list if anything is wrong.
"""

import argparse
import sys

from .command import command
from .dataset_arguments import parse_with_datasets
from .parser import ArgumentParser, log_to_console


def make_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(prog="hf-vla inspect", description=__doc__, usage="%(prog)s DATASET [--flag value ...]")
    parser.add_argument("--dataset", help="LeRobot folder or Hub repository; may also be the first argument")
    parser.add_argument("--check", action="store_true", help="read everything")
    parser.add_argument("--output", help="write a report there, .html or .png")
    parser.add_argument("--robot", help="robot type, by name or as a YAML file; default the dataset's, if it is known")
    parser.add_argument("--columns", help="YAML file that says which columns mean what")
    parser.add_argument("--cameras", nargs="+", help="cameras to look at; default all")
    parser.add_argument("--episodes", nargs="+", type=int, help="episodes to look at; default all")
    return parser


@command
def main(argv: list[str] | None = None) -> int:
    arguments = parse_with_datasets(make_parser(), argv)
    log_to_console()
    from ..data import LeRobotDataset
    from ..data.inspection import check, describe
    from ..data.inspection_report import format_description, report_path, write_report

    output = report_path(arguments.output)
    options = {name: getattr(arguments, name) for name in ("robot", "columns", "cameras", "episodes")}
    problems = check(arguments.dataset, **options) if arguments.check else None
    for problem in problems or []:
        print(f"wrong: {problem}")
    if problems:
        print(f"error: {len(problems)} things are wrong in {arguments.dataset}", file=sys.stderr)
        return 1
    dataset = LeRobotDataset(arguments.dataset, 1, **options)
    description = describe(dataset)
    print(format_description(description))
    if problems is not None:
        print(f"\nchecked: all {len(dataset)} frames of {dataset.num_episodes} episodes can be read")
    if output is not None:
        print(f"report written to {write_report(output, dataset, description, checked=problems is not None)}")
    return 0
