"""Runs that tests share: one to be resumed, one that co-trains."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from resume_runs import outcome, trainer_for


@pytest.fixture(scope="session")
def settings(recipe_in, tmp_path_factory) -> Path:
    """Ten steps, six an epoch; dropout, noise and augmentation draw random numbers in the model and in the workers."""
    file = recipe_in(tmp_path_factory.mktemp("resume"))
    content = yaml.safe_load(file.read_text())
    content["policy_config"]["dropout"] = 0.1
    content |= {"augmentation": {"crop": 0.8, "brightness": 0.2}, "max_steps": 10, "save_strategy": "steps"}
    file.write_text(yaml.safe_dump(content | {"save_steps": 3}))
    return file


@pytest.fixture(scope="session")
def whole(settings, tmp_path_factory):
    """The run that nothing stops, with workers: its folder, with checkpoints 3, 6, 9 and 10, its logs and weights."""
    output = tmp_path_factory.mktemp("whole") / "run"
    trainer = trainer_for(settings, output, "--dataloader_num_workers", 2, "--dataloader_persistent_workers", "true")
    trainer.train()
    assert [row["step"] for row in outcome(trainer)[0]] == list(range(1, 11))
    return output, outcome(trainer)


def _write_conversations(folder: Path, images: bool = True) -> Path:
    """Five conversations of unequal lengths."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(5):
        turns = [{"from": "human", "value": "how many"}, {"from": "gpt", "value": " ".join(["block"] * (number + 1))}]
        records.append({"conversations": turns})
        if images:
            Image.fromarray(rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{number}.png")
            records[-1]["image"] = f"{number}.png"
    file = folder / "conversations.json"
    file.write_text(json.dumps(records))
    return file


@pytest.fixture
def write_conversations():
    return _write_conversations


@pytest.fixture
def cotraining_recipe(recipe, tmp_path, write_conversations) -> Path:
    """Two conversations to four robot samples. A policy that draws nothing, by plain gradient descent: runs compare."""
    settings = yaml.safe_load(recipe.read_text()) | {
        "framework": "qwen_oft",
        "policy_config": {"action_horizon": 4},
        "vlm_dataset": [str(write_conversations(tmp_path))],
        "vlm_per_device_train_batch_size": 2,
        "vlm_loss_scale": 0.3,
        "optim": "sgd",
        "learning_rate": 0.01,
        "lr_scheduler_type": "constant",
        "warmup_steps": 0,
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    file = tmp_path / "cotraining.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file
