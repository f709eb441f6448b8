"""The Hub: options of every function that loads from it, names of repositories, and single files of one."""

import os
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from huggingface_hub.utils import validate_repo_id
from transformers.utils import cached_file

#: Keyword arguments of all functions that load from the Hub
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
#: Those that also apply to other repositories, such as a backbone's
SHARED_HUB_KWARGS = tuple(name for name in HUB_KWARGS if name not in ("revision", "subfolder"))

_PROBE = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_gated_repo": False,
    "_raise_exceptions_for_connection_errors": False,
}


def hub_file(repository: str, name: str, hub: dict) -> Path | None:
    """Return a file of a Hub repository, downloaded if needed, or None if there is no such file or repository."""
    try:
        file = cached_file(repository, name, **hub, **_PROBE)
    except OSError as error:
        if isinstance(error.__cause__, RepositoryNotFoundError):
            return None
        raise
    return None if file is None else Path(file)


def hub_options(kwargs: Mapping, names: tuple[str, ...] = HUB_KWARGS) -> dict:
    """Return those of `kwargs` that are Hub options and not None."""
    return {name: kwargs[name] for name in names if kwargs.get(name) is not None}


def is_repository_name(name: str | os.PathLike) -> bool:
    """Return whether a name can be that of a user's Hub repository, "owner/name", and is not that of a folder here."""
    try:
        validate_repo_id(str(name))
    except HFValidationError:
        return False
    return str(name).count("/") == 1 and not Path(name).exists()


__all__ = ["HUB_KWARGS", "SHARED_HUB_KWARGS", "hub_file", "hub_options", "is_repository_name"]
