"""Fixtures for the whole suite."""

import copy
import os
import shutil
import tempfile
from pathlib import Path

# Before huggingface_hub is imported: no test needs the Hub, or may find what a user has cached of it.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="hf_vla-")

import numpy as np
import pytest
import yaml

from hf_vla.data import LeRobotWriter
from hf_vla.plugins import USER_CODE

TEMPORARY = os.environ["HF_HOME"]
RECIPE = Path(__file__).resolve().parents[1] / "src" / "hf_vla" / "recipes" / "quickstart.yaml"
DATASETS = Path(__file__).resolve().parent / "reference" / "datasets"
SCHEDULING = os.sched_getscheduler(0) if hasattr(os, "sched_getscheduler") else None


def pytest_unconfigure() -> None:
    shutil.rmtree(TEMPORARY, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def temporary_files(tmp_path_factory):
    """Put temporary files of tests and their processes in a folder that is removed: killed processes leave theirs."""
    tmp_path_factory.getbasetemp()  # pytest's own stays where it is, to be looked at
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", TEMPORARY)
        patch.setattr(tempfile, "tempdir", TEMPORARY)
        yield


@pytest.fixture(autouse=True)
def no_real_time_thread():
    """Fail after a test that leaves a real-time thread behind, which starves what later tests start; see `kept_scheduling`."""
    yield
    if SCHEDULING is not None:
        assert os.sched_getscheduler(0) == SCHEDULING, "encode AV1 within scheduling.kept_scheduling()"


@pytest.fixture(autouse=True)
def no_user_code_of_other_tests():
    """Take back what `--import` leaves for the processes that a command starts: those of later tests would import it too."""
    before = os.environ.get(USER_CODE)
    yield
    os.environ.pop(USER_CODE, None)
    if before is not None:
        os.environ[USER_CODE] = before


@pytest.fixture(scope="session")
def reference_datasets(tmp_path_factory) -> Path:
    """The datasets of tests/reference, copied: reading one leaves a cache in its folder. Not to be changed otherwise."""
    return shutil.copytree(DATASETS, tmp_path_factory.mktemp("reference") / "datasets")


@pytest.fixture(scope="session")
def dataset(tmp_path_factory) -> Path:
    """Two episodes of 12 frames, 32x32, whose actions follow from the images."""
    root = tmp_path_factory.mktemp("data") / "tiny"
    features = {
        "observation.images.front": {"dtype": "video", "shape": (32, 32, 3), "names": ["height", "width", "channels"]},
        "observation.state": {"dtype": "float32", "shape": (3,), "names": ["x", "y", "z"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["dx", "dy"]},
    }
    rng = np.random.default_rng(0)
    with LeRobotWriter(root, fps=10, features=features, robot_type="tiny_arm") as writer:
        for task in ("push the block", "pull the block"):
            for step in range(12):
                writer.add_frame(
                    {
                        "observation.images.front": rng.integers(0, 255, (32, 32, 3), dtype=np.uint8),
                        "observation.state": rng.normal(size=3).astype(np.float32),
                        "action": np.array([np.sin(step), np.cos(step)], dtype=np.float32),
                    }
                )
            writer.save_episode(task=task)
    return root


@pytest.fixture
def recipe(dataset, tmp_path) -> Path:
    """The quickstart's recipe, shrunk, for that dataset: six steps on the CPU."""
    return write_recipe(dataset, tmp_path)


@pytest.fixture(scope="session")
def recipe_in(dataset):
    """The same recipe in a folder of the caller's choice."""
    return lambda folder: write_recipe(dataset, folder)


def write_recipe(dataset: Path, folder: Path) -> Path:
    settings = copy.deepcopy(yaml.safe_load(RECIPE.read_text()))
    settings |= {
        "dataset": [str(dataset)],
        "output_dir": str(folder / "policy"),
        "max_steps": 6,
        "per_device_train_batch_size": 4,
        "warmup_steps": 2,
        "logging_steps": 1,
        "dataloader_num_workers": 0,
        "dataloader_persistent_workers": False,
        "dataloader_prefetch_factor": None,
        "disable_tqdm": True,
        "use_cpu": True,
    }
    settings["policy_config"] |= {
        "action_hidden_size": 16,
        "attention_head_dim": 8,
        "action_horizon": 4,
        "repeated_diffusion_steps": 2,
    }
    settings["vlm_config"]["text_config"] |= {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 32}
    settings["vlm_config"]["text_config"] |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
    settings["vlm_config"]["text_config"]["rope_parameters"]["mrope_section"] = [4, 2, 2]
    settings["vlm_config"]["vision_config"] |= {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2}
    settings["vlm_config"]["vision_config"] |= {"out_hidden_size": 32, "num_position_embeddings": 16}
    file = folder / "recipe.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


@pytest.fixture(scope="session")
def reference(tmp_path_factory):
    """StarVLA's recorded variants; each is written and loaded once per session."""
    from reference_cases import ReferenceCases

    return ReferenceCases(tmp_path_factory.mktemp("reference"))
