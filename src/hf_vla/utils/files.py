"""Files and folders that are written whole or not at all."""

import contextlib
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_write(file: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `file`, with the same suffix, that takes its place at the end.

    Folders above are made. Of a write that fails or is killed, the old file stays.

    ```python
    >>> with atomic_write(folder / "config.json") as partial:  # doctest: +SKIP
    ...     partial.write_text("{}")

    ```

    Raises:
        OSError: it cannot be written.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.stem}.{uuid.uuid4().hex[:8]}.partial{file.suffix}")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


def refuse_full_folder(folder: Path) -> None:
    """Raise an OSError if `folder` is a file, or is not empty."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OSError(f"{folder} exists and is not empty; choose another folder or remove it")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `folder` that takes its place at the end, and is removed if anything fails.

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
