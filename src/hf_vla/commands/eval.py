"""Evaluate a policy in closed loop.

    hf-vla eval --model outputs/policy --env metaworld --task drawer-open --episodes 20 \\
        --output outputs/evaluation

Several tasks, with controls whose images are blanked or whose instruction is another one, and without the untrained one:

    hf-vla eval --model outputs/policy --task drawer-open,window-open --episodes 20 --blind \\
        --wrong-instruction --no-untrained-baseline --output outputs/evaluation

A policy that hf-vla serve serves, perhaps on another machine:

    hf-vla eval --model ws://gpu-machine:10093 --task drawer-open --no-untrained-baseline --output outputs/evaluation

LIBERO's protocol: all tasks of a suite, 50 official initial states each:

    hf-vla eval --model outputs/policy --env libero --suite libero_object --execute-steps 8 --output outputs/evaluation

Real-time chunking, as on a robot whose policy takes three control steps:

    hf-vla eval --model outputs/policy --task drawer-open --execute-steps 4 --chunk-mode real_time_chunking \\
        --inference-delay 3 --output outputs/evaluation

What the policy saw and did, as a dataset to train on or to label (hf-vla label):

    hf-vla eval --model outputs/policy --task drawer-open --episodes 50 --seed-start 20000 --no-untrained-baseline \\
        --output outputs/rollouts-evaluation --record outputs/rollouts

Writes success_summary.csv, success_summary.png, episodes.csv, raw_success.txt, success_summary/ and videos/ into the
output folder. Each episode is on the disk as soon as it is finished: if the evaluation is interrupted, the same command
runs what is missing. hf-vla compare tells whether two evaluations differ by more than noise. Seeds place the objects; they start at 10000, apart from hf-vla record, which starts at 0. For benchmarks with official initial states
they are the numbers of the episodes, from 0.
"""

import functools
import os
from argparse import BooleanOptionalAction
from pathlib import Path

# One thread per process: the parallelism is in the workers, and idle threads that spin slow them down.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from ..evaluation.arguments import add_chunk_arguments, chunk_settings
from .command import command
from .environment_arguments import add_environment_arguments, chosen_tasks, environment_settings
from .parser import ArgumentParser, log_to_console
from .policy_arguments import add_advantage, add_ignore_state, add_policy_arguments, policy_options

_SERVED = ("ws://", "wss://")
_SERVER_WAIT = 300.0


def make_parser() -> ArgumentParser:
    parser = ArgumentParser(prog="hf-vla eval", description=__doc__)
    parser.add_argument(
        "--model", required=True, help="folder or Hub repository of the policy, or a server's ws://host:port"
    )
    add_environment_arguments(parser)
    parser.add_argument("--episodes", type=int, help="episodes for each task; default: the simulator's")
    parser.add_argument(
        "--output", required=True, help="folder for table, figure and videos; an evaluation that is there is continued"
    )
    parser.add_argument("--name", help="the policy's name in table and figure; default: the model's last part")
    parser.add_argument("--seed-start", type=int, help="first seed, of objects and policy; default: the simulator's")
    add_chunk_arguments(parser)
    parser.add_argument(
        "--as",
        dest="benchmark_protocol",
        choices=("published", "current"),
        help="evaluate exactly as StarVLA did for its published results, or as its code does now; default: the simulator's defaults",
    )
    parser.add_argument("--unnorm-key", help="which of the model's statistics to use, if it has several")
    add_policy_arguments(parser)
    add_ignore_state(parser)
    add_advantage(parser)
    parser.add_argument("--device", help="device of the policy, such as cpu or cuda; default: a GPU if there is one")
    parser.add_argument(
        "--blind", action="store_true", help="also evaluate with images replaced by gray, as a control"
    )
    parser.add_argument(
        "--wrong-instruction",
        action="store_true",
        help="also evaluate with the instruction of another object of the scene or of another of the tasks, as a control; "
        "what counts is the task itself",
    )
    parser.add_argument(
        "--untrained-baseline",
        action=BooleanOptionalAction,
        default=True,
        help="also evaluate the policy with random weights",
    )
    parser.add_argument(
        "--record",
        metavar="DATASET",
        help="new folder for a LeRobot dataset of the policy's episodes, solved and failed ones, to train on or to label",
    )
    parser.add_argument("--num-videos", type=int, default=2, help="episodes to film for each task")
    parser.add_argument(
        "--server-wait",
        type=float,
        metavar="SECONDS",
        help=f"how long to wait for a policy server that goes away; default: {_SERVER_WAIT:g}, but a server that isn't there "
        "at the start is waited for only if this is given",
    )
    parser.add_argument(
        "--model-card",
        action="store_true",
        help="put the results into the model card in the policy's folder, also as the Hub's metadata (model-index)",
    )
    parser.add_argument(
        "--training-step", type=int, help="at which step the policy was saved; default: what its folder or name tells"
    )
    parser.add_argument("--num-workers", type=int, default=1, help="processes, each with a copy of the policy")
    return parser


def load_policy(model: str, unnorm_key: str | None, device: str | None, **options):
    """Return the `RolloutPolicy` that `--model` names: served elsewhere, or loaded here, with `options` for either."""
    if model.startswith(_SERVED):
        from ..serving import PolicyClient

        return PolicyClient(model, unnorm_key=unnorm_key, **options)
    from ..inference.policy import Policy

    return Policy.from_pretrained(model, unnorm_key=unnorm_key, device=device, **options)


@command(extra="sim")
def main(argv: list[str] | None = None, load=load_policy) -> None:
    arguments = make_parser().parse_args(argv)
    log_to_console()
    from ..evaluation.benchmark import EvaluationSettings, evaluate_with_controls, score_lines
    from ..evaluation.report import find_training_step

    options = policy_options(arguments)
    served = arguments.model.startswith(_SERVED)
    if arguments.server_wait is not None and (not served or not 0 <= arguments.server_wait < float("inf")):
        raise ValueError(
            f"--server-wait is {arguments.server_wait:g}; give seconds, with a server's ws://host:port as --model"
        )
    if served and (arguments.untrained_baseline or arguments.device or options):
        raise ValueError(
            "a served policy is as it is: give --no-untrained-baseline, and --device, --robot-type, --unnormalization, "
            "--ignore-state, --advantage and --guidance to its server"
        )
    if served and arguments.server_wait:
        options["wait"] = arguments.server_wait
    if arguments.model_card and not (Path(arguments.model) / "config.json").is_file():
        raise ValueError(f"--model-card: {arguments.model} is not the folder of a policy; its card can't be written")
    settings = EvaluationSettings(
        env=arguments.env,
        tasks=chosen_tasks(arguments),
        episodes=arguments.episodes,
        first_seed=arguments.seed_start,
        execute_steps=arguments.execute_steps,
        chunk=chunk_settings(arguments),
        blind=arguments.blind,
        wrong_instruction=arguments.wrong_instruction,
        untrained=arguments.untrained_baseline,
        num_videos=arguments.num_videos,
        environment=environment_settings(arguments),
        benchmark_protocol=arguments.benchmark_protocol,
    )
    if arguments.benchmark_protocol is not None and not served and arguments.unnormalization is None:
        options["unnormalization"] = settings.record_of(settings.tasks[0]).unnormalization
    rows = evaluate_with_controls(
        functools.partial(load, arguments.model, arguments.unnorm_key, arguments.device, **options),
        arguments.output,
        settings,
        policy_name=arguments.name or Path(arguments.model).name,
        num_workers=arguments.num_workers,
        server_wait=(_SERVER_WAIT if arguments.server_wait is None else arguments.server_wait) if served else 0,
        training_step=find_training_step(arguments.model)
        if arguments.training_step is None
        else arguments.training_step,
        record=arguments.record,
    )
    for row in rows:
        interval = f"{row.wilson_low:.2f} to {row.wilson_high:.2f}"
        print(f"{row.policy:40s} {row.task:28s} {row.successes:4d} of {row.episodes}   95 % interval {interval}")
    for line in score_lines(settings, rows):
        print(line)
    if arguments.model_card:
        from ..cards.model_card import add_results

        print(f"results put into {add_results(arguments.model, Path(arguments.output) / 'success_summary.csv')}")
    print(f"results written to {arguments.output}")
    pictures = [Path(arguments.output) / name for name in ("success_summary.png", "videos")]
    if there := [str(path) for path in pictures if path.exists()]:
        print(f"pictures: {', '.join(there)}; all on one page: hf-vla report {arguments.output}")
