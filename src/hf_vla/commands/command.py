"""What every command does first and last: user code is imported before arguments are read; errors are one line."""

import argparse
import functools
import sys
from collections.abc import Callable, Sequence

from ..plugins import import_user_code, load_plugins
from .parser import add_import_flag, one_line_errors


def command(main: Callable | None = None, *, extra: str | None = None) -> Callable:
    """Decorate a command's `main(argv)`, which returns its exit status, or None for success.

    Installed plugins are loaded, and what `--import` names is imported, before `main` makes its parser: their frameworks,
    environments and robots are known from there on. What the user can mend ends the program with one line and status 2.

    Args:
        extra: the extra of hf_vla that the command needs.
    """
    if main is None:
        return functools.partial(command, extra=extra)

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None, **options) -> int | None:
        argv = list(sys.argv[1:] if argv is None else argv)
        with one_line_errors(extra):
            load_plugins()
            for name in imports(argv):
                import_user_code(name)
            return main(argv, **options)

    return run


def imports(argv: Sequence[str]) -> list[str]:
    """Return the modules and files that `--import` names among the arguments of any command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_import_flag(parser)
    try:
        return getattr(parser.parse_known_args(argv)[0], "import") or []
    except argparse.ArgumentError:  # the command's own parser says so
        return []
