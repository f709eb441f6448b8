"""Processes that train together, without starting them: what each of them draws."""

import pytest
import torch
from tiny_policy import tiny_trainer
from transformers import Trainer, TrainingArguments


@pytest.fixture
def first_draw(monkeypatch, tmp_path):
    """The first random number of training, in process `rank` of two."""
    monkeypatch.setattr(Trainer, "train", lambda self, *args, **kwargs: torch.rand(()).item())
    monkeypatch.setattr(TrainingArguments, "world_size", 2)

    def draw(rank: int, seed: int = 0) -> float:
        monkeypatch.setattr(TrainingArguments, "process_index", rank)
        return tiny_trainer(tmp_path, seed=seed).train()

    return draw


def test_processes_draw_different_noise_and_a_run_repeats(first_draw):
    assert first_draw(0) != first_draw(1)
    assert first_draw(1) == first_draw(1)
    assert first_draw(1) != first_draw(1, seed=5)
