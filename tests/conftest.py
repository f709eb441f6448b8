"""Fixtures for the whole suite."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared reference material beside the repository. Without it the tests fail: none is skipped."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is missing: the tests need the shared reference material there")
    return folder
