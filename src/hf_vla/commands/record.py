"""Record demonstrations of a simulator's scripted expert as a LeRobot v3.0 dataset.

One task:

    hf-vla record --env metaworld --task drawer-open --episodes 60 --output outputs/drawer-open

Several tasks into one dataset, with noise on the executed actions so that the data shows how to recover:

    hf-vla record --env metaworld --task button-press-topdown drawer-open window-open \\
        --episodes 60 --noise 0.1 --output outputs/three-tasks

Seeds place the objects. Recording takes seeds from 0 upwards; hf-vla eval starts at 10000, so that no policy is
evaluated on what it was shown. Only episodes that the expert solves are kept: the next seed replaces a failed one. A
recording that was interrupted goes on with the same command; its finished episodes are in OUTPUT.partial until then.
"""

import os

# One thread per process: the parallelism is in the workers, and idle threads that spin slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .command import command
from .environment_arguments import add_environment_arguments, chosen_tasks, environment_settings
from .parser import ArgumentParser, log_to_console


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla record", description=__doc__)
    add_environment_arguments(parser)
    parser.add_argument("--episodes", type=int, required=True, help="successful episodes to record for each task")
    parser.add_argument("--output", required=True, help="the dataset's folder; must not exist, or be empty")
    parser.add_argument("--seed-offset", type=int, default=0, help="first seed to try")
    parser.add_argument(
        "--num-workers", type=int, default=min(2, os.cpu_count() or 1), help="processes; the dataset is the same"
    )
    parser.add_argument(
        "--noise",
        type=float,
        default=0.0,
        help="standard deviation of the noise on executed actions; 1 is half of the action's range",
    )
    return parser


@command(extra="sim")
def main(argv: list[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    from ..data import LeRobotDataset
    from ..evaluation.demonstrations import record_dataset

    seeds = record_dataset(
        arguments.output,
        arguments.env,
        chosen_tasks(arguments),
        arguments.episodes,
        first_seed=arguments.seed_offset,
        noise=arguments.noise,
        num_workers=arguments.num_workers,
        **environment_settings(arguments),
    )
    for task, used in seeds.items():
        failed = len(used["failed_seeds"])
        print(f"{task}: {len(used['seeds'])} episodes recorded, {failed} dropped because the expert failed")
    LeRobotDataset(arguments.output, 1).write_card()
    print(f"dataset written to {arguments.output}")
    print(f"pictures and curves: hf-vla inspect {arguments.output} --output {arguments.output.rstrip('/')}.html")
