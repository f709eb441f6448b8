"""Dataclasses from a YAML file, flags, or a YAML file overridden by flags."""

import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


class _Parser(HfArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def parse_dataclasses(
    types: Sequence[type], argv: Sequence[str] | None = None, description: str | None = None
) -> tuple[tuple, dict[str, Any]]:
    """Instances of `types` from `[CONFIG.yaml] --flag value …`, and what was given by name.

    Raises:
        ValueError: the file can't be read, or it or the flags hold an unknown name (the nearest known ones are named).
    """
    parser = _Parser(
        types, description=description, usage="%(prog)s [CONFIG.yaml] [--flag value …]", allow_abbrev=False
    )
    argv = list(sys.argv[1:] if argv is None else argv)
    from_file: dict[str, Any] = {}
    if argv and not argv[0].startswith("-"):
        from_file = _read(Path(argv.pop(0)))
    names = {action.dest for action in parser._actions} - {"help"}
    for name in from_file:
        if name not in names:
            raise ValueError(f"the YAML file sets {name!r}, which is no flag{_near(name, names)}")
    for action in parser._actions:
        action.required = False
    defaults = vars(parser.parse_args([]))
    parser.set_defaults(**from_file)
    *instances, unknown = parser.parse_args_into_dataclasses(
        argv, return_remaining_strings=True, look_for_args_file=False
    )
    if unknown:
        raise ValueError(f"unknown argument {unknown[0]!r}{_near(unknown[0].lstrip('-').split('=')[0], names)}")
    given = {name: value for name, value in vars(parser.parse_args(argv)).items() if value != defaults.get(name)}
    return tuple(instances), {**from_file, **given}


def _near(name: str, names) -> str:
    near = get_close_matches(name.replace("-", "_"), sorted(names), n=3, cutoff=0.5)
    return f"; did you mean {' or '.join(near)}?" if near else "; --help lists the flags"


def _read(path: Path) -> dict[str, Any]:
    """The file's settings; those of the file that `base:` names, relative to it, are taken where it has none."""
    try:
        content = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is no valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} must map flag names to values")
    # 1e-4 is a string to YAML 1.1, a number to everybody else.
    content = {str(name).replace("-", "_"): _number(value) for name, value in content.items()}
    base = content.pop("base", None)
    return content if base is None else {**_read(path.parent / base), **content}


def _number(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _number(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_number(item) for item in value]
    if isinstance(value, str) and "e" in value.lower():
        try:
            return float(value)
        except ValueError:
            return value
    return value
