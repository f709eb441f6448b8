"""Make one HTML page of a run: settings, curves, speed, memory, evaluations with their videos.

    hf-vla report outputs/quickstart
    hf-vla report outputs/my-policy --evaluation outputs/evaluation --output my-policy.html

RUN is an output folder of hf-vla train, eval or quickstart. Evaluations in its subfolders are found, others are named with
--evaluation. The page needs no other file and no network. Of a run that is not finished, it shows what is there and says what is missing.
"""

from pathlib import Path

from .command import command
from .parser import ArgumentParser, log_to_console


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla report", description=__doc__, takes_file=False)
    parser.add_argument("run", metavar="RUN", help="output folder of hf-vla train, eval or quickstart")
    parser.add_argument(
        "--evaluation", nargs="+", default=[], metavar="DIR", help="more output folders of hf-vla eval"
    )
    parser.add_argument("--output", metavar="FILE.html", help="page to write; default: report.html in RUN")
    parser.add_argument(
        "--max-video-megabytes", type=float, default=50.0, help="how much of the page may be videos; others are named"
    )
    return parser


@command(extra="train")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    from .run_report import find_run, write_report

    run = find_run(arguments.run, arguments.evaluation)
    output = arguments.output or Path(arguments.run) / "report.html"
    written = write_report(run, output, arguments.max_video_megabytes)
    for line in run.missing:
        print(f"missing: {line}")
    print(f"report written to {written}")
