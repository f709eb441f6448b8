"""Where a policy is loaded from, a folder or a Hub repository, and what is said where there is none."""

import os
from pathlib import Path

from huggingface_hub.errors import RepositoryNotFoundError
from transformers.utils import cached_file

_PROBE = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}


def hub_file(repository: str, name: str, hub: dict) -> Path | None:
    """A file of a Hub repository, downloaded where needed, or None where there is no such file or repository."""
    try:
        file = cached_file(repository, name, **hub, **_PROBE)
    except OSError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return None
        raise
    return None if file is None else Path(file)


def check_source(name_or_path: str | os.PathLike, **hub) -> None:
    """Raise where nothing can be loaded from there, saying what was looked for, and how to mend it.

    transformers says no more than that it could not connect, neither to what nor for what.

    Args:
        name_or_path: a folder or Hub repository.
        hub: Hub options.

    Raises:
        OSError: no such folder; or a repository that the Hub doesn't know, or that can't be reached and is not cached.
    """
    from .base_vlm import HUB_KWARGS
    from .starvla import find_repository

    path, name = Path(name_or_path), str(name_or_path)
    if path.is_dir():
        return
    if path.exists():
        raise NotADirectoryError(f"{name} is a file; give the folder of a policy, or a Hub repository")
    if name.startswith(("/", ".", "~")) or name.count("/") > 1:  # no name of a repository
        raise FileNotFoundError(f"no such folder: {name}" + (" (~ is not expanded)" if name[0] == "~" else ""))
    hub = {key: value for key, value in hub.items() if key in HUB_KWARGS}
    if find_repository(name, **hub) is None and hub_file(name, "config.json", hub) is None:
        raise OSError(
            f"no such folder: {name}, and no Hub repository of that name can be had: the Hub doesn't know it, or can't be "
            f"reached and it is not cached. Check the name; for use offline, download it first: hf download {name}"
        )


__all__ = ["check_source", "hub_file"]
