"""Where a policy is loaded from, a folder or a Hub repository, and what is said if there is none."""

import os
from pathlib import Path

from ..hub import hub_file, hub_options
from .starvla import find_repository


def check_source(name_or_path: str | os.PathLike, **hub) -> None:
    """Raise where nothing can be loaded from there, saying what was looked for, and how to mend it.

    transformers says no more than that it could not connect, neither to what nor for what.

    Args:
        name_or_path: a folder or Hub repository.
        hub: Hub options.

    Raises:
        OSError: no such folder; or a repository that the Hub doesn't know, or that can't be reached and is not cached.
    """
    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        return
    if path.exists():
        raise NotADirectoryError(f"{name} is a file; give the folder of a policy, or a Hub repository")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # no name of a repository
        raise FileNotFoundError(f"no such folder: {name}" + (" (~ is not expanded)" if name[0] == "~" else ""))
    hub = hub_options(hub)
    if find_repository(name, **hub) is None and hub_file(name, "config.json", hub) is None:
        raise OSError(
            f"no such folder: {name}, and no Hub repository of that name can be had: the Hub doesn't know it, or can't be "
            f"reached and it is not cached. Check the name; for use offline, download it first: hf download {name}"
        )


__all__ = ["check_source"]
