"""Flags of commands that load a policy: how its actions return to robot units, and what it is asked for."""

import argparse
from typing import Any

from ..robots.normalization import UNNORMALIZATIONS

_OPTIONS = ("robot_type", "unnormalization", "ignore_state", "advantage", "guidance")


def add_policy_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--robot-type` and `--unnormalization`."""
    parser.add_argument(
        "--robot-type",
        help="robot type that the policy was trained on, by name or as a YAML file, if the checkpoint does not tell it",
    )
    parser.add_argument(
        "--unnormalization",
        choices=UNNORMALIZATIONS,
        help="how a StarVLA policy's actions return to robot units: as its server does it now, or as for its published results; "
        "default: what the policy was saved with, else current",
    )


def add_advantage(parser: argparse.ArgumentParser) -> None:
    """Add `--advantage` and `--guidance`, for commands that predict."""
    parser.add_argument(
        "--advantage",
        choices=("positive", "negative", "none"),
        help="what a policy that was trained on advantages is asked for; default: positive",
    )
    parser.add_argument(
        "--guidance",
        type=float,
        metavar="BETA",
        help="how far it is led away from what it does without being told an advantage; default: 1, no guidance",
    )


def add_ignore_state(parser: argparse.ArgumentParser) -> None:
    """Add `--ignore-state`, for commands whose callers send the robot's state."""
    parser.add_argument(
        "--ignore-state",
        action="store_true",
        default=None,
        help="drop the states that are sent, if the policy was trained without",
    )


def policy_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given of them, as arguments of `from_pretrained`."""
    given = {name: getattr(arguments, name, None) for name in _OPTIONS}
    return {name: value for name, value in given.items() if value is not None}


__all__ = ["add_advantage", "add_ignore_state", "add_policy_arguments", "policy_options"]
