"""Arguments that `hf-vla eval` and `hf-vla-client` have in common."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any

from hf_vla.inference.chunk_rules import MODES

__all__ = ["add_chunk_arguments", "chunk_settings", "json_object"]

_CHUNK = {
    "mode": "chunk_mode",
    "inference_delay": "inference_delay",
    "decay": "ensemble_decay",
    "length": "ensemble_length",
    "alpha": "ensemble_alpha",
}


def json_object(example: str) -> Callable[[str], dict[str, Any]]:
    """Return the `type` of an argument that takes a JSON object; `example` stands in its messages."""

    def read(text: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
        if not isinstance(value, dict):
            raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object such as {example}")
        return value

    return read


def add_chunk_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that decide what becomes of a policy's chunks; see `ChunkRule`."""
    parser.add_argument(
        "--execute-steps",
        type=int,
        help="actions of a chunk to execute, instead of the benchmark's chunk rule; default: the benchmark's, else 5, or the chunk's",
    )
    parser.add_argument(
        "--chunk-mode",
        choices=MODES,
        help="what becomes of chunks that overlap: only the newest counts (open_loop), the mean of all by age (temporal_ensemble, "
        "ACT's) or by agreement (adaptive_ensemble, StarVLA's), or each new one is drawn to continue the one before "
        "(real_time_chunking); default: the benchmark's, else open_loop",
    )
    parser.add_argument(
        "--inference-delay",
        type=int,
        metavar="STEPS",
        help="as on a robot whose policy takes this many control steps: a chunk is used only so many steps after its observation; "
        "default: 0",
    )
    parser.add_argument(
        "--ensemble-decay", type=float, help="of temporal_ensemble: weight exp(-decay i), i = 0 the oldest"
    )
    parser.add_argument("--ensemble-length", type=int, help="of adaptive_ensemble: number of chunks; default: all")
    parser.add_argument("--ensemble-alpha", type=float, help="of adaptive_ensemble: how much agreement counts")


def chunk_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what was given, as the `chunk` of `EvaluationSettings`; `execute_steps` is an argument of its own there."""
    given = {name: getattr(arguments, argument) for name, argument in _CHUNK.items()}
    return {name: value for name, value in given.items() if value is not None}
