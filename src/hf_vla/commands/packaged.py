"""Recipes and launch configurations that come with the package, by bare name."""

import logging
from pathlib import Path

from ..utils.suggestions import did_you_mean

__all__ = ["LAUNCH_CONFIGS", "RECIPES", "find_file", "names"]

logger = logging.getLogger(__name__)

_PACKAGE = Path(__file__).resolve().parents[1]
RECIPES = _PACKAGE / "recipes"
LAUNCH_CONFIGS = _PACKAGE / "launch_configs"
#: Where they lay in the repository until 0.1: `recipes/quickstart.yaml` is still understood.
_OLD_FOLDERS = {RECIPES: "recipes", LAUNCH_CONFIGS: "configs"}


def names(folder: Path, suffix: str = ".yaml") -> list[str]:
    """Return the bare names of the package's files in `folder`."""
    return sorted(file.stem for file in folder.glob(f"*{suffix}"))


def find_file(given: str, folder: Path, what: str, suffix: str = ".yaml") -> Path:
    """Return the file that a user names: a path, or the bare name of one of the package's.

    Args:
        given: what the user wrote.
        folder: `RECIPES` or `LAUNCH_CONFIGS`.
        what: what such a file is called in an error.
        suffix: of the package's files.

    Raises:
        FileNotFoundError: there is no such file; the message says which names are known.
    """
    path = Path(given)
    if path.is_file():
        return path
    known = names(folder, suffix)
    if given in known:
        return folder / f"{given}{suffix}"
    if path.suffix == suffix and path.stem in known and path.parent.name == _OLD_FOLDERS[folder]:
        logger.warning("there is no file %s; taking the package's %s %r: write its name alone", given, what, path.stem)
        return folder / path.name
    hint = did_you_mean(path.stem, known, f"the package's are {', '.join(known)}")
    raise FileNotFoundError(f"there is no {what} {given!r}{hint}; give one of these names or a file's path")
