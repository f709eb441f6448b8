"""Compare evaluations of the same episodes: which policies differ by more than noise.

    hf-vla compare outputs/evaluation-a outputs/evaluation-b
    hf-vla compare outputs/evaluation --controls
    hf-vla compare outputs/evaluation-step-* --output outputs/comparison

RUN is a folder that hf-vla eval wrote. Policies are compared in pairs, on the tasks and seeds that both ran: by McNemar's
exact test on the episodes that only one of the two solved, with Holm's correction for several pairs. With --output, tables
and a figure are written; if the policies were saved at different steps of a training, also success over training steps, in
the form of StarVLA's model cards.
"""

from pathlib import Path

from .command import command
from .parser import ArgumentParser


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla compare", description=__doc__, takes_file=False)
    parser.add_argument("runs", metavar="RUN", nargs="+", help="folder that hf-vla eval wrote")
    parser.add_argument(
        "--controls", action="store_true", help="compare the controls too; done anyway if there is only one RUN"
    )
    parser.add_argument("--output", help="folder for tables and figures")
    return parser


@command(extra="sim")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    from ..evaluation.comparison import compare, read_policies
    from ..evaluation.report import summarize_policies, write_comparison

    policies = read_policies(arguments.runs, controls=arguments.controls or len(arguments.runs) == 1)
    comparisons = compare(policies)
    for row in summarize_policies(policies):
        interval = f"{row.wilson_low:.2f} to {row.wilson_high:.2f}"
        print(f"{row.policy:40s} {row.task:28s} {row.successes:4d} of {row.episodes}   95 % interval {interval}")
    for each in comparisons:
        verdict = "more than noise" if each.is_significant else "may be noise"
        print(
            f"{each.first} minus {each.second}: {100 * each.difference:+.1f} points in {each.episodes} episodes, 95 % interval "
            f"{100 * each.low:+.1f} to {100 * each.high:+.1f}; solved by one only: {each.only_first} and {each.only_second}; "
            f"p = {each.adjusted_p_value:.2g}: {verdict}"
        )
    if arguments.output is not None:
        write_comparison(policies, comparisons, arguments.output)
        print(f"comparison written to {arguments.output}")
        print(f"pictures: {', '.join(map(str, sorted(Path(arguments.output).rglob('*.png'))))}")
