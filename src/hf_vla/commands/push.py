"""Upload a policy with its run, or a dataset, to the Hub, with a card.

    hf-vla push outputs/quickstart user/quickstart
    hf-vla push outputs/my-policy user/my-policy --evaluation outputs/evaluation --private
    hf-vla push datasets/my-robot user/my-robot

FOLDER is the output of hf-vla train, of hf-vla quickstart, or a LeRobot dataset. Of a run, the policy, its recipe, curves, evaluations
with their videos, and a report go along; checkpoints and optimizer states do not. The card's rates are also the Hub's metadata
(model-index); --benchmark also puts them on a leaderboard of the Hub. The demo is uploaded by hf-vla demo --push.
"""

import tempfile
from pathlib import Path

from .command import command
from .parser import ArgumentParser, log_to_console


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla push", description=__doc__, takes_file=False)
    parser.add_argument("folder", metavar="FOLDER", help="a policy's folder, a run's, or a dataset's")
    parser.add_argument("repository", metavar="USER/NAME", help="repository on the Hub; made if it is not there")
    parser.add_argument(
        "--evaluation", nargs="+", default=[], metavar="DIR", help="more output folders of hf-vla eval"
    )
    parser.add_argument(
        "--benchmark",
        metavar="USER/DATASET:TASK",
        help="benchmark of the Hub whose leaderboard is to show the success rate",
    )
    parser.add_argument(
        "--private", action="store_true", default=None, help="if the repository is made, make it private"
    )
    return parser


@command(extra="train")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder; give a policy's, a run's or a dataset's")
    if (folder / "meta" / "info.json").is_file():
        from ..data import LeRobotDataset

        if arguments.evaluation or arguments.benchmark:
            raise ValueError(f"{folder} is a dataset; --evaluation and --benchmark are for policies")
        address = LeRobotDataset(folder, 1).push_to_hub(arguments.repository, private=arguments.private)
    else:
        address = _push_run(folder, arguments)
    print(f"uploaded to {address}")


def _push_run(folder: Path, arguments) -> str:
    from ..cards.pushing import push_policy
    from ..cards.sections import SUMMARY
    from .run_report import find_run, write_report

    options = {"private": arguments.private, "benchmark": arguments.benchmark}
    try:
        run = find_run(folder, arguments.evaluation)
    except FileNotFoundError:
        if arguments.evaluation:
            raise
        return push_policy(folder, arguments.repository, **options)  # a policy without a run
    finished, named = [], {Path(name).resolve() for name in arguments.evaluation}
    for evaluation in run.evaluations:
        if (evaluation / SUMMARY).is_file():
            finished.append(evaluation)
        elif evaluation.resolve() in named:
            raise ValueError(
                f"the evaluation {evaluation} is not finished: run the same hf-vla eval again, or leave it out"
            )
        else:
            print(f"not in the card: the evaluation {evaluation}, which is not finished")
    policy = run.training or folder
    with tempfile.TemporaryDirectory() as place:
        report = write_report(run, Path(place) / "report.html")
        return push_policy(policy, arguments.repository, evaluations=finished, report=report, **options)
