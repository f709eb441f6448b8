"""Sources that can't be loaded: the error names them, and what to do."""

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

import hf_vla
from hf_vla import hub as sources
from hf_vla.checkpoints import starvla


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")  # where no quickstart has left a policy


@pytest.mark.parametrize("name", ["/nowhere/policy", "./policy", "../policy", "~/policy", "outputs/quickstart/policy"])
def test_folders(name):
    with pytest.raises(FileNotFoundError, match=f"no such folder: {name}"):
        hf_vla.Policy.from_pretrained(name)


def test_a_file(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is a file; give the folder"):
        hf_vla.Policy.from_pretrained(str(tmp_path / "model.pt"))


@pytest.mark.parametrize("name", ["policy", "somebody/policy", "somebody/policy-RT-1"])
def test_repositories(name):
    with pytest.raises(OSError, match=f"no such folder: {name}, and no Hub repository .* hf download {name}"):
        hf_vla.Policy.from_pretrained(name)


def test_the_other_spelling_of_a_repository_that_the_hub_does_not_know(tmp_path, monkeypatch, caplog):
    (tmp_path / "config.yaml").write_text("framework: {name: QwenPI_v3}")

    def cached_file(repository, name, **options):
        if repository.endswith("RT-1"):
            raise OSError("not a valid model identifier") from RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        return str(tmp_path / name) if name == "config.yaml" else None

    monkeypatch.setattr(sources, "cached_file", cached_file)
    assert starvla.find_repository("StarVLA/Some-RT-1").name == "StarVLA/Some-RT_1"
    assert "loading StarVLA/Some-RT_1" in caplog.text
