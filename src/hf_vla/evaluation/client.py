"""Evaluate a served policy in a simulator that has an environment of its own, without torch and transformers.

    hf-vla-client --server ws://gpu-machine:10093 --env simplerenv --suite widowx --output outputs/evaluation

It needs numpy, Pillow, msgpack and websockets, and Python 3.8 or newer: `pip install hf-vla-client` in the simulator's
environment. The records of benchmarks, the rollout loop and the result files are those of `hf-vla eval`, which does the same where
hf_vla itself is installed. The server is `hf-vla serve`, or StarVLA's.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Sequence

from hf_vla.evaluation.arguments import add_chunk_arguments, chunk_settings, json_object
from hf_vla.evaluation.benchmark import EvaluationSettings, evaluate_with_controls, score_lines
from hf_vla.evaluation.environments import environment_names, suite_tasks
from hf_vla.evaluation.records import PROTOCOLS
from hf_vla.plugins import import_user_code
from hf_vla.serving.client import PolicyClient

__all__ = ["main", "make_parser"]

# Seconds to wait for a server that goes away; as `hf-vla eval`.
_SERVER_WAIT = 300.0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="hf-vla-client",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--server", default="ws://127.0.0.1:10093", help="the policy server; default: %(default)s")
    parser.add_argument("--unnorm-key", help="which of the policy's statistics to use; default: the server's")
    parser.add_argument("--env", required=True, help=f"simulator: {', '.join(environment_names())}, or your own")
    parser.add_argument("--task", nargs="+", default=[], help="one or more tasks")
    parser.add_argument("--suite", nargs="+", default=[], help="all tasks of these suites")
    parser.add_argument(
        "--output", required=True, help="folder for the results; an evaluation that is there is continued"
    )
    parser.add_argument("--name", help="the policy's name in the results; default: the server's address")
    parser.add_argument("--episodes", type=int, help="episodes per task; default: the benchmark's")
    parser.add_argument("--seed-start", type=int, help="first seed; default: the benchmark's")
    add_chunk_arguments(parser)
    parser.add_argument(
        "--max-steps", type=int, help="steps after which an episode has failed; default: the benchmark's"
    )
    parser.add_argument(
        "--as",
        dest="benchmark_protocol",
        choices=PROTOCOLS[::-1],
        help="evaluate exactly as StarVLA did for its published results, or as its code does now",
    )
    parser.add_argument(
        "--env-config",
        type=json_object('{"max_steps": 100}'),
        default={},
        help="JSON: further settings of the simulator",
    )
    parser.add_argument(
        "--blind", action="store_true", help="also evaluate with images replaced by gray, as a control"
    )
    parser.add_argument(
        "--wrong-instruction",
        action="store_true",
        help="also evaluate with the instruction of another object of the scene or of another of the tasks, as a control",
    )
    parser.add_argument("--num-videos", type=int, default=0, help="episodes per task to film; needs PyAV; default: 0")
    parser.add_argument("--num-workers", type=int, default=1, help="processes, each with a simulator; default: 1")
    parser.add_argument(
        "--server-wait",
        type=float,
        help=f"seconds to wait for a server that goes away; default: {_SERVER_WAIT:g}, but a server that isn't there at the start "
        "is waited for only if this is given",
    )
    parser.add_argument(
        "--import", action="append", default=[], metavar="MODULE_OR_FILE", help="user code to import first"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status, 2 for what the user can mend, which is said in one line."""
    arguments = make_parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _evaluate(arguments)
    except (ImportError, OSError, ValueError) as error:  # ConnectionError and TimeoutError are OSErrors
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _evaluate(arguments: argparse.Namespace) -> None:
    for name in vars(arguments)["import"]:
        import_user_code(name)
    if arguments.num_videos:
        _check_videos()
    tasks = [*arguments.task, *(task for suite in arguments.suite for task in suite_tasks(arguments.env, suite))]
    environment = dict(arguments.env_config)
    if arguments.max_steps is not None:
        environment["max_steps"] = arguments.max_steps
    settings = EvaluationSettings(
        env=arguments.env,
        tasks=tasks,
        episodes=arguments.episodes,
        first_seed=arguments.seed_start,
        execute_steps=arguments.execute_steps,
        chunk=chunk_settings(arguments),
        blind=arguments.blind,
        wrong_instruction=arguments.wrong_instruction,
        untrained=False,
        num_videos=arguments.num_videos,
        environment=environment,
        benchmark_protocol=arguments.benchmark_protocol,
    )
    rows = evaluate_with_controls(
        functools.partial(
            PolicyClient, arguments.server, unnorm_key=arguments.unnorm_key, wait=arguments.server_wait or 0
        ),
        arguments.output,
        settings,
        policy_name=arguments.name or arguments.server,
        num_workers=arguments.num_workers,
        server_wait=_SERVER_WAIT if arguments.server_wait is None else arguments.server_wait,
    )
    for row in rows:
        interval = f"{row.wilson_low:.2f} to {row.wilson_high:.2f}"
        sys.stdout.write(
            f"{row.policy:40s} {row.task:28s} {row.successes:4d} of {row.episodes}   95 % interval {interval}\n"
        )
    for line in score_lines(settings, rows):
        sys.stdout.write(line + "\n")
    sys.stdout.write(f"results written to {arguments.output}\n")


def _check_videos() -> None:
    try:
        import av  # noqa: F401
    except ModuleNotFoundError as error:
        raise ImportError(
            "videos need PyAV, which is not installed: pip install av, or leave out --num-videos"
        ) from error
