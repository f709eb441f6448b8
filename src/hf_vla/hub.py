"""The Hub: options of every function that loads from it, and single files of a repository."""

from collections.abc import Mapping
from pathlib import Path

from huggingface_hub.errors import RepositoryNotFoundError
from transformers.utils import cached_file

#: Keyword arguments that say from where on the Hub, and how, something is loaded
HUB_KWARGS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")

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


def hub_options(kwargs: Mapping) -> dict:
    """Those of `kwargs` that are Hub options and not None."""
    return {name: kwargs[name] for name in HUB_KWARGS if kwargs.get(name) is not None}


__all__ = ["HUB_KWARGS", "hub_file", "hub_options"]
