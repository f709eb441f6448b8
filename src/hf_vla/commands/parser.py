"""What all commands share: flags, a YAML file, or a YAML file overridden by flags; errors in one line.

    parser = ArgumentParser(prog="hf-vla eval", description="Evaluate a policy.")
    parser.add_argument("--episodes", type=int, default=20, help="episodes per task")
    with one_line_errors():
        arguments = parser.parse_args()
        ...

`hf-vla eval settings.yaml --episodes 5` then takes `episodes` from the flag and all else from the file.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from ..plugins import import_user_code
from ..utils.extras import missing_module
from ..utils.suggestions import did_you_mean
from ..utils.text import printable
from .packaged import find_file, names

__all__ = ["ArgumentParser", "add_import_flag", "log_to_console", "one_line_errors", "read_yaml"]

logger = logging.getLogger(__name__)


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Descriptions keep their line breaks (they hold commands to paste); flags show their defaults, if they have one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class ArgumentParser(argparse.ArgumentParser):
    """An `argparse.ArgumentParser` whose first positional argument may be a YAML file with values for its flags.

    The file is a mapping from flag names (without dashes, "-" or "_") to values; lists are for flags that take several
    values, booleans for switches, null keeps the default. Its key `base` names another file, whose values hold if it has
    none of its own. Flags on the command line win over the file; modules to import are taken from both. A required flag may be
    in either. An unknown key or flag, like every other mistake, ends the program with status 2 and one line `error: ...` that
    names the nearest known ones.

    Args:
        takes_file: whether there is such a file; for commands whose arguments are all positional.
    """

    #: Folder whose files the YAML file and its base may name by their stem, or None.
    packaged: Path | None = None
    #: Keys of the YAML file that are for other commands.
    of_other_commands: Sequence[str] = ()

    def __init__(self, *args: Any, takes_file: bool = True, **kwargs: Any):
        # Abbreviations would let a mistyped flag pass for another one.
        super().__init__(*args, **{"formatter_class": _HelpFormatter, "allow_abbrev": False, **kwargs})
        if takes_file:
            self.add_argument(
                "config", nargs="?", metavar="CONFIG.yaml", help="YAML file with values for the flags below; flags win"
            )
        add_import_flag(self)

    def parse_args(self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None):
        """Parse flags and the YAML file, if one is named. The namespace's `config` is the file's name or None."""
        flags = list(sys.argv[1:] if args is None else args)
        if "-h" in flags or "--help" in flags:
            return self._parse(flags, namespace)
        given = self._given(flags)
        if given.get("config") is None:
            return self._parse(flags, namespace)
        # Behind the flags: in front of CONFIG.yaml, a flag that takes several values would swallow it.
        return self._parse(flags + self._flags_from_yaml(given["config"], already=given), namespace)

    def error(self, message: str) -> None:
        """End the program with status 2 and one line."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")

    def _parse(self, flags: Sequence[str], namespace: argparse.Namespace | None) -> argparse.Namespace:
        namespace, unknown = self.parse_known_args(flags, namespace)
        if unknown:
            known = [option for action in self._actions for option in action.option_strings]
            hint = did_you_mean(unknown[0].split("=")[0], known, f"possible: {', '.join(known)}")
            self.error(f"unknown argument {unknown[0]!r}{hint}")
        return namespace

    def _given(self, flags: Sequence[str]) -> dict[str, Any]:
        """What the flags themselves say, without defaults; nothing is required."""
        before = [(action, action.required, action.default) for action in self._actions]
        try:
            for action in self._actions:
                action.required = False
                action.default = argparse.SUPPRESS
            return vars(self._parse(flags, None))
        finally:
            for action, required, default in before:
                action.required, action.default = required, default

    def _flags_from_yaml(self, path: str, already: dict[str, Any]) -> list[str]:
        try:
            content = read_yaml(path, self.packaged)
        except (ValueError, OSError) as error:
            self.error(str(error))
        content = {name: value for name, value in content.items() if name not in self.of_other_commands}
        for name in _listed(content.get("import")):
            import_user_code(str(name))
        # Reversed, so that of `--flag` and its opposite `--no_flag` the first counts.
        actions = {a.dest: a for a in reversed(self._actions) if a.option_strings and a.dest != "help"}
        flags: list[str] = []
        for name, value in content.items():
            if name not in actions:
                hint = did_you_mean(name, actions, f"possible: {', '.join(actions)}")
                self.error(f"{path}: unknown key {name!r}{hint}")
            if value is not None and (name not in already or name == "import"):
                flags += self._as_flags(actions[name], value, f"{path}: {name!r}")
        return flags

    def _as_flags(self, action: argparse.Action, value: Any, where: str) -> list[str]:
        option = max(action.option_strings, key=lambda name: (name.startswith("--"), not name.startswith("--no-")))
        if action.nargs == 0 or isinstance(action, argparse.BooleanOptionalAction):
            if not isinstance(value, bool):
                self.error(f"{where} is {value!r}; possible: true, false")
            if isinstance(action, argparse.BooleanOptionalAction):
                return [option if value else "--no-" + option.removeprefix("--")]
            return [option] if value else []
        if isinstance(value, dict):
            value = json.dumps(value)  # a flag that takes a mapping takes it as JSON
        values = _listed(value)
        if any(isinstance(item, (dict, list)) or item is None for item in values):
            self.error(f"{where} is {value!r}; possible: a value" + (" or a list of values" if action.nargs else ""))
        texts = [str(item) for item in values]
        if isinstance(action, argparse._AppendAction) and action.nargs is None:
            return [f"{option}={text}" for text in texts]
        if action.nargs in ("+", "*") or isinstance(action.nargs, int):
            return [option, *texts]
        if len(texts) != 1:
            self.error(f"{where} is a list of {len(texts)}; possible: one value")
        return [f"{option}={texts[0]}"]


def read_yaml(path: str, packaged: Path | None = None, including: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return the mapping in a YAML file; what it lacks is taken from the file that its key `base` names, relative to it.

    Args:
        path: the file or, if `packaged` is a folder, the bare name of one in it.
        including: files whose base this one is.

    Raises:
        ValueError: the file cannot be read, is not valid YAML, holds no mapping, or is its own base.
        OSError: `packaged` is given, and there is no such file and none of that name in it.
    """
    if packaged is not None:
        path = str(find_file(path, packaged, "recipe"))
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}; it must map flag names to values")
    content = {str(key).replace("-", "_"): value for key, value in content.items()}
    base = content.pop("base", None)
    if base is None:
        return content
    file = os.path.normpath(os.path.join(os.path.dirname(path), str(base)))
    if not os.path.isfile(file) and packaged is not None and str(base) in names(packaged):
        file = str(packaged / f"{base}.yaml")
    if file in (including := (*including, os.path.normpath(path))):
        raise ValueError(f"{path} is its own base, by way of {', '.join(including)}")
    return {**read_yaml(file, packaged, including), **content}


def add_import_flag(parser: argparse.ArgumentParser) -> None:
    """Add `--import`, which `hf_vla.commands.command` reads before all else."""
    parser.add_argument(
        "--import",
        action="append",
        metavar="MODULE",
        help="module or .py file with frameworks, environments or robots of your own; may be given several times",
    )


def _listed(value: Any) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def log_to_console(level: int = logging.INFO) -> None:
    """Show this package's log lines from `level` on, and other packages' warnings, without breaking progress bars."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stderr)

    class PrintableFormatter(logging.Formatter):
        def formatMessage(self, record: logging.LogRecord) -> str:
            # Our own messages quote files and clients: they are one line. Those of other packages may have several.
            record.message = printable(record.message, keep="" if record.name.startswith("hf_vla") else "\n\t")
            return super().formatMessage(record)

    handler = Handler()
    handler.setFormatter(PrintableFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("hf_vla").setLevel(level)


@contextmanager
def one_line_errors(extra: str | None = None) -> Iterator[None]:
    """Turn what the user can mend (`ValueError`, `OSError`, `ImportError`) into one line `error: ...` and status 2.

    The traceback goes to the log at level DEBUG. Ctrl-C ends with status 130. Other exceptions are bugs and pass.

    Args:
        extra: the extra of hf_vla to name first for a module that is not installed.
    """
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        if isinstance(error, ModuleNotFoundError) and "pip install" not in str(error):
            error = missing_module(error, extra=extra) or error
        logger.debug("traceback", exc_info=True)
        sys.stderr.write(f"error: {printable(' '.join(_message(error).split()))}\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted\n")
        sys.exit(130)


def _message(error: Exception) -> str:
    """What an error says; of one that a data loader's worker raised, not the traceback that PyTorch puts before it."""
    text = str(error)
    if not re.match(r"Caught \w+ in DataLoader worker process", text):
        return text
    messages = list(re.finditer(r"^[\w.]+: ", text, flags=re.MULTILINE))  # one for each error of the chain
    return text[messages[-1].end() :] if messages else text
