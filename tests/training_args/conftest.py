"""The run that tests of resuming share."""

from pathlib import Path

import pytest
import yaml
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
