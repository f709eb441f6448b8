"""Label the frames of LeRobot datasets by their advantage, for training on experience (RECAP).

    hf-vla label outputs/demonstrations outputs/rollouts --model outputs/policy --tag first

Fits a value function on the frozen policy's states: how long until the task is solved, and whether it will be. By it, each frame is
better or worse than expected: positive or negative. Demonstrations and a human's corrections are always positive, and of the
policy's own frames (hf-vla eval --record) the best 40 % of each task. Writes meta/returns_TAG.parquet and meta/advantages_TAG.parquet
beside each dataset, whose own files stay as they are, and meta/values_TAG.png, the values of some solved and failed
episodes over their frames; a recipe's key `advantage: TAG` trains on them, see
docs/recap.md.

Prints for each task how the values of solved episodes go with the time to success (rank correlation, 1 is best), all by value functions
that were not trained on the episode (it only chose the epoch), and the share of positive frames by source.
"""

import argparse

from .command import command
from .dataset_arguments import parse_with_many_datasets
from .parser import ArgumentParser, log_to_console


def make_parser() -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog="hf-vla label", description=__doc__, usage="%(prog)s DATASET ... --model POLICY [--flag value ...]"
    )
    parser.add_argument("--dataset", nargs="+", help="LeRobot folders; they may also be the first arguments")
    parser.add_argument("--model", required=True, help="folder or Hub repository of the policy whose states are read")
    parser.add_argument("--tag", default="recap", help="name of the labels")
    parser.add_argument("--lookahead", type=int, help="frames to look ahead; default 50")
    parser.add_argument("--positive-share", type=float, help="share of the policy's own frames; default 0.4")
    parser.add_argument("--failure-cost", type=float, help="in steps; default the task's longest episode")
    parser.add_argument(
        "--folds", type=int, help="value functions to fit, each without a part of the episodes; default 5"
    )
    parser.add_argument("--epochs", type=int, help="of each value function; default 20")
    parser.add_argument("--seed", type=int, help="default 0")
    parser.add_argument(
        "--source", help="who acted in episodes that don't say: demonstration, policy or human; default demonstration"
    )
    parser.add_argument(
        "--assume-success", action="store_true", help="count episodes that don't tell their success as solved"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace labels of the same tag")
    parser.add_argument("--unnorm-key", help="statistics key of the datasets; default their robot type")
    parser.add_argument("--cameras", nargs="+", help="cameras in the policy's order; default all")
    parser.add_argument("--columns", help="YAML file that says which columns mean what")
    parser.add_argument("--device", help="device of the policy, such as cpu or cuda; default: a GPU if there is one")
    parser.add_argument("--batch-size", type=int, default=32, help="frames that the policy reads at once")
    parser.add_argument("--num-workers", type=int, default=0, help="processes that read frames")
    return parser


_SETTINGS = ("lookahead", "positive_share", "failure_cost", "folds", "epochs", "seed")


@command(extra="train")
def main(argv: list[str] | None = None) -> None:
    arguments = parse_with_many_datasets(make_parser(), argv)
    log_to_console()
    from ..data import LeRobotDataset
    from ..data.advantage_labels import read_returns
    from ..data.outcomes import read_outcomes
    from ..inference.policy import Policy
    from ..training.value_curves import plot_values
    from ..training.value_labels import LabelSettings, label, report_lines

    given = {name: getattr(arguments, name) for name in _SETTINGS}
    settings = LabelSettings(**{name: value for name, value in given.items() if value is not None})
    policy = Policy.from_pretrained(arguments.model, arguments.unnorm_key, arguments.device)
    datasets = [
        LeRobotDataset(
            path,
            policy.action_horizon,
            arguments.cameras,
            unnorm_key=arguments.unnorm_key,
            columns=arguments.columns,
        )
        for path in arguments.dataset
    ]
    reports = label(
        policy,
        datasets,
        arguments.tag,
        settings,
        source=arguments.source,
        assume_success=arguments.assume_success,
        overwrite=arguments.overwrite,
        batch_size=arguments.batch_size,
        num_workers=arguments.num_workers,
    )
    for line in report_lines(reports):
        print(line)
    print(f"labels {arguments.tag!r} written beside {', '.join(arguments.dataset)}")
    pictures = []
    for dataset in datasets:
        outcomes = read_outcomes(dataset, arguments.source, arguments.assume_success)
        pictures.append(str(dataset.root / "meta" / f"values_{arguments.tag}.png"))
        plot_values(read_returns(dataset.root, arguments.tag), outcomes, pictures[-1])
    print(f"pictures: {', '.join(pictures)}")
