"""Where a dataset lies: a local folder as it is, a Hub repository as a snapshot of one commit."""

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

# What the Hub's HTTP client raises when a connection breaks off, whichever client it is.
_HTTPError = HfHubHTTPError.__bases__[0]


class DatasetSource:
    """A dataset's folder, local or in the Hub's cache, from which further files can be asked for.

    Args:
        path_or_repo_id: a folder, or a dataset repository's id on the Hub.
        revision: branch, tag or commit of the Hub repository; every file comes from the one commit it names now.

    Raises:
        FileNotFoundError: neither a folder nor a repository that can be reached or is cached.
    """

    def __init__(self, path_or_repo_id: str | Path, revision: str | None = None) -> None:
        self.name = str(path_or_repo_id)
        self.root = Path(path_or_repo_id).expanduser()
        self.revision = None
        if self.root.is_dir():
            if revision is not None:
                raise ValueError(f"{self.name} is a local folder: revision={revision!r} has no meaning there")
            return
        self.root = self._download(["meta/*"], revision)
        # A snapshot's folder is named after its commit: what is downloaded later comes from the same one.
        self.revision = self.root.name

    def fetch(self, files: Iterable[str], known: list[str]) -> None:
        """Download `files` unless the dataset is local.

        Args:
            files, known: paths relative to the folder, those wanted and all that `meta/` names.
        """
        if self.revision is not None:
            self._download(_patterns(set(files), known), self.revision)

    def _download(self, patterns: list[str], revision: str | None) -> Path:
        try:
            return Path(snapshot_download(self.name, repo_type="dataset", revision=revision, allow_patterns=patterns))
        except (OSError, ValueError, _HTTPError) as error:
            raise FileNotFoundError(
                f"{self.name!r} is not a local folder, and the Hub gave no dataset repository of that name: {error}"
            ) from error


def _patterns(wanted: set[str], known: Iterable[str], depth: int = 1) -> list[str]:
    """Return `wanted` with folders in place of all their files: the Hub's client compares every file with every pattern."""
    folders = defaultdict(list)
    for file in known:
        folders["/".join(file.split("/")[:depth])].append(file)
    patterns = []
    for folder, inside in folders.items():
        of_folder = wanted.intersection(inside)
        if of_folder and len(of_folder) == len(inside):
            patterns.append(folder if inside == [folder] else f"{folder}/*")
        elif of_folder:
            patterns += _patterns(of_folder, inside, depth + 1)
    return patterns
