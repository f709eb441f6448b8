"""Fixtures of the model tests."""

import pytest
from golden_cases import Golden


@pytest.fixture(scope="session")
def golden(tmp_path_factory) -> Golden:
    """The recorded variants; each is written and loaded once a session."""
    return Golden(tmp_path_factory.mktemp("golden"))
