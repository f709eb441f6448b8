"""Datasets to read, and copies of them to damage."""

import shutil
from pathlib import Path

import pytest
from synthetic_v3 import CODECS, write_v3

DATASETS = Path(__file__).resolve().parents[1] / "reference" / "datasets"


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
def copied(tmp_path):
    """A function that copies one of the reference datasets."""
    return lambda name, to=None: shutil.copytree(DATASETS / name, tmp_path / (to or name))
