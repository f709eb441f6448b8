"""Folders and files that are written whole or not at all."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def refuse_full_folder(folder: Path) -> None:
    """Raise an OSError where `folder` is a file, or holds something."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{folder} exists and is not empty; choose another folder or remove it")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its place at the end, and is removed where anything fails.

    Raises:
        OSError: `folder` exists and is not empty.
    """
    folder = Path(folder)
    refuse_full_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield work
        work.chmod(0o755)
        if folder.exists():
            folder.rmdir()
        work.rename(folder)
    finally:
        if work.exists():
            shutil.rmtree(work)
