"""`hf-vla train --launch NAME`: the same command in several processes, which accelerate's launcher starts."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from .packaged import LAUNCH_CONFIGS, find_file, names

__all__ = ["LAUNCH_FLAGS", "add_launch_flags", "launch_command", "split_launch_arguments", "start"]

#: What is said to accelerate's launcher rather than to the processes; its own names.
_FLAGS = {
    "num_processes": "processes on all machines together, one per GPU",
    "num_machines": "machines; the same command is given on each",
    "machine_rank": "this machine's number, from 0",
    "main_process_ip": "address of machine 0",
    "main_process_port": "port of machine 0",
}
LAUNCH_FLAGS = ("launch", *_FLAGS)


def add_launch_flags(parser) -> None:
    """Add `--launch` and what goes with it."""
    parser.add_argument(
        "--launch",
        metavar="NAME",
        help=f"start several processes by accelerate's launcher: {', '.join(names(LAUNCH_CONFIGS))}, or a file of accelerate's",
    )
    for name, what in _FLAGS.items():
        parser.add_argument(f"--{name}", help=f"with --launch: {what}")


def split_launch_arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return what is said about launching, and all other arguments.

    Raises:
        ValueError: a flag that belongs to `--launch` is given without it.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_launch_flags(parser)
    try:
        launch, rest = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise ValueError(str(error)) from None
    given = [name for name in _FLAGS if getattr(launch, name) is not None]
    if given and launch.launch is None:
        raise ValueError(
            f"--{given[0]} is for accelerate's launcher: add --launch, with one of {', '.join(names(LAUNCH_CONFIGS))}"
        )
    return launch, rest


def launch_command(launch: argparse.Namespace, command: Sequence[str]) -> list[str]:
    """Return the command line that runs `hf-vla COMMAND` under accelerate's launcher.

    Raises:
        OSError: there is no such configuration.
        ValueError: it is not one of accelerate's, or there is no GPU to count and `--num_processes` is not given.
    """
    file = find_file(launch.launch, LAUNCH_CONFIGS, "launch configuration")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or "distributed_type" not in content:
        raise ValueError(f"{file} is not a configuration of accelerate: it has no distributed_type")
    flags = {name: getattr(launch, name) for name in _FLAGS}
    if flags["num_processes"] is None:
        flags["num_processes"] = _count_gpus() * int(flags["num_machines"] or content.get("num_machines", 1))
    engine = (content.get("deepspeed_config") or {}).get("deepspeed_config_file")
    if engine is not None and not Path(engine).is_file():
        flags["deepspeed_config_file"] = file.parent.resolve() / engine  # beside the file that names it
    told = [text for name, value in flags.items() if value is not None for text in (f"--{name}", str(value))]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(file), *told]
    return [*launcher, "-m", "hf_vla", *command]


def _count_gpus() -> int:
    import torch

    if not torch.accelerator.is_available():
        raise ValueError("there is no GPU to count processes by; give --num_processes")
    return torch.accelerator.device_count()


def start(command: Sequence[str]) -> None:
    """Replace this process by `command`: signals and the exit status are the launcher's."""
    sys.stdout.flush()
    sys.stderr.flush()
    os.execv(command[0], list(command))
