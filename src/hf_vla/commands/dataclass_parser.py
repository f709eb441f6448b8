"""Read dataclasses from a recipe, flags, or a recipe overridden by flags."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser

from .launching import LAUNCH_FLAGS, add_launch_flags
from .packaged import LAUNCH_CONFIGS, RECIPES, find_file
from .parser import ArgumentParser


class _DataclassParser(ArgumentParser, HfArgumentParser):
    """transformers' flags for the fields of dataclasses, with our reading of YAML files and our errors."""

    packaged = RECIPES
    of_other_commands = ("record", "eval")  # see hf-vla quickstart


def parse_dataclasses(
    types: Sequence[type],
    argv: Sequence[str] | None = None,
    description: str | None = None,
    command: str = "train",
) -> tuple[tuple, dict[str, Any]]:
    """Return instances of `types` from `[RECIPE] --flag value …`, and the settings that were given, by name.

    Mistakes end the program with one line; what the dataclasses refuse is a ValueError.

    Args:
        command: of `hf-vla`, for the usage.
    """
    parser = _DataclassParser(
        types, prog=f"hf-vla {command}", description=description, usage="%(prog)s [RECIPE] [--flag value …]"
    )
    add_launch_flags(parser.add_argument_group("several processes"))
    namespace = vars(parser.parse_args(argv))
    for name in LAUNCH_FLAGS:
        if namespace.pop(name) is not None:
            parser.error(f"{name} is not a setting of a recipe; give it on the command line, as --{name}")
    values = dict(namespace)
    if (engine := values.get("deepspeed")) is not None and not engine.lstrip().startswith("{"):
        values["deepspeed"] = str(find_file(engine, LAUNCH_CONFIGS, "DeepSpeed configuration", ".json"))
    instances = []
    for cls in types:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        instances.append(cls(**{name: value for name, value in values.items() if name in names}))
    defaults = vars(parser.parse_args([]))
    given = {name: _plain(value) for name, value in namespace.items() if value != defaults[name] and name != "config"}
    return tuple(instances), given


def _plain(value: Any) -> Any:
    """Return a mapping that came as JSON as a mapping, all else as it is."""
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
