"""Sources that can't be loaded: the error names them, and what to do."""

import pytest
from huggingface_hub.errors import RepositoryNotFoundError

import hf_vla
from hf_vla import hub
from hf_vla.checkpoints import open_checkpoint


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
    snapshot = tmp_path / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (snapshot / "config.yaml").write_text("framework: {name: QwenPI_v3}")

    def cached_file(repository, name, **options):
        if repository.endswith("RT-1"):
            raise OSError("not a valid model identifier") from RepositoryNotFoundError.__new__(RepositoryNotFoundError)
        return str(snapshot / name) if name == "config.yaml" else None

    monkeypatch.setattr(hub, "cached_file", cached_file)
    assert open_checkpoint("StarVLA/Some-RT-1").name == "StarVLA/Some-RT_1"
    assert "loading StarVLA/Some-RT_1" in caplog.text


def test_the_format_is_recognised(tmp_path):
    for folder, files in {
        "ours": {"config.json": '{"model_type": "qwen_pi"}', "processor_config.json": "{}", "model.safetensors": ""},
        "ours, with an adapter beside it": {"config.json": "{}", "adapter_config.json": "{}", "model.safetensors": ""},
        "adapter": {"config.json": '{"model_type": "qwen_pi"}', "adapter_config.json": "{}"},
        "native": {"config.yaml": "framework: {name: QwenFM, action_model: {}}"},
    }.items():
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / name).write_text(content)
    found = {folder.name: open_checkpoint(folder) for folder in tmp_path.iterdir() if folder.name != "empty"}
    assert {name: (x.is_native, x.is_adapter, x.model_type) for name, x in found.items()} == {
        "ours": (False, False, "qwen_pi"),
        "ours, with an adapter beside it": (False, False, None),
        "adapter": (False, True, "qwen_pi"),
        "native": (True, False, "qwen_pi"),
    }
    with pytest.raises(OSError, match="holds no config.json, and no config.full.yaml or config.yaml of StarVLA's"):
        open_checkpoint(tmp_path / "empty")
    with pytest.raises(ValueError, match="ours is not a native StarVLA checkpoint.*base_vlm can't be used with it"):
        open_checkpoint(tmp_path / "ours", base_vlm="somewhere")


def test_files_of_a_repository_are_of_one_commit(tmp_path, monkeypatch):
    """That of the first file, whatever the branch holds when the others are read."""
    asked = []

    def cached_file(repository, name, **options):
        asked.append((name, options.get("revision")))
        snapshot = tmp_path / "snapshots" / "0123"
        snapshot.mkdir(parents=True, exist_ok=True)
        (snapshot / "config.json").write_text('{"model_type": "qwen_pi"}')
        return str(snapshot / name) if name == "config.json" else None

    monkeypatch.setattr(hub, "cached_file", cached_file)
    checkpoint = open_checkpoint("somebody/policy", revision="main")
    assert checkpoint.model_type == "qwen_pi" and checkpoint.files.hub["revision"] == "0123"
    assert asked[0] == ("config.json", "main") and {revision for _, revision in asked[1:]} == {"0123"}
