"""Dataclasses from a YAML file, flags, or a YAML file overridden by flags."""

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser

from .parser import ArgumentParser


class _DataclassParser(ArgumentParser, HfArgumentParser):
    """transformers' flags for the fields of dataclasses, with our reading of YAML files and our errors."""


def parse_dataclasses(
    types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[tuple, dict[str, Any]]:
    """Instances of `types` from `[CONFIG.yaml] --flag value …`, and the settings that were given, by name.

    Mistakes end the program with one line; what the dataclasses refuse is a ValueError.
    """
    parser = _DataclassParser(types, description=description, usage="%(prog)s [CONFIG.yaml] [--flag value …]")
    namespace = vars(parser.parse_args(argv))
    instances = []
    for cls in types:
        names = {field.name for field in dataclasses.fields(cls) if field.init}
        instances.append(cls(**{name: value for name, value in namespace.items() if name in names}))
    defaults = vars(parser.parse_args([]))
    given = {name: _plain(value) for name, value in namespace.items() if value != defaults[name] and name != "config"}
    return tuple(instances), given


def _plain(value: Any) -> Any:
    """A mapping that came as JSON, as a mapping."""
    return json.loads(value) if isinstance(value, str) and value.startswith("{") else value
