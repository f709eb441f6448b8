"""What commands ask about a simulator: its name, its tasks and its settings."""

import argparse
import inspect
from typing import Any

from ..evaluation.arguments import json_object
from ..evaluation.environments import environment_class, environment_names, suite_tasks

__all__ = ["add_environment_arguments", "chosen_tasks", "environment_settings"]


def add_environment_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--env", default="metaworld", help=f"simulator: {', '.join(environment_names())}, or your own")
    parser.add_argument("--task", nargs="+", action="extend", help="one or more tasks, separated by spaces or commas")
    parser.add_argument("--suite", nargs="+", action="extend", help="all tasks of these suites, such as libero_object")
    parser.add_argument(
        "--max-steps", type=int, help="steps after which an episode has failed; default: the simulator's"
    )
    parser.add_argument("--image-size", type=int, help="width and height of the images; default: the simulator's")
    parser.add_argument("--camera", nargs="+", help="the simulator's camera or cameras; default: the simulator's")
    parser.add_argument(
        "--env-config", type=json_object('{"image_size": 128}'), help="JSON: further settings of the simulator"
    )


def chosen_tasks(arguments: argparse.Namespace) -> list[str]:
    """Return the tasks of `--task` and `--suite`.

    Raises:
        ValueError: there are none, or a suite is unknown.
    """
    tasks = [task for part in arguments.task or [] for task in part.split(",") if task]
    for suite in [suite for part in arguments.suite or [] for suite in part.split(",") if suite]:
        tasks += suite_tasks(arguments.env, suite)
    if not tasks:
        raise ValueError("no tasks are given; name them by --task" + _or_suites(arguments.env))
    return tasks


def environment_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, as keyword arguments of `make_environment`.

    Raises:
        ValueError: several cameras for a simulator that takes one.
    """
    settings = {"max_steps": arguments.max_steps, "image_size": arguments.image_size}
    if arguments.camera:
        cameras = [camera for part in arguments.camera for camera in part.split(",") if camera]
        parameters = inspect.signature(environment_class(arguments.env)).parameters
        if "cameras" in parameters and (len(cameras) > 1 or "camera" not in parameters):
            settings["cameras"] = cameras
        elif len(cameras) == 1:
            settings["camera"] = cameras[0]
        else:
            raise ValueError(f"{arguments.env} takes one camera, not {len(cameras)}: {', '.join(cameras)}")
    given = {name: value for name, value in settings.items() if value is not None}
    return {**(arguments.env_config or {}), **given}


def _or_suites(env: str) -> str:
    suites = environment_class(env).suites()
    return f", or suites by --suite: {', '.join(suites)}" if suites else ""
