"""Datasets to read, and copies of them to damage."""

import shutil

import pytest
from synthetic_v3 import CODECS, write_v3


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """By codec, the folder and the truth of a v3.0 dataset. Not to be written to."""
    root = tmp_path_factory.mktemp("v3")
    return {codec: (root / codec, write_v3(root / codec, codec)) for codec in [*CODECS, "image"]}


@pytest.fixture
def v3(written, tmp_path):
    """A copy of the h264 v3.0 dataset."""
    return shutil.copytree(written["libx264"][0], tmp_path / "v3")


@pytest.fixture
def copied(shared_dir, tmp_path):
    """A function that copies one of the shared datasets."""
    return lambda name: shutil.copytree(shared_dir / "datasets" / name, tmp_path / name)
