"""A loss or gradient that is not finite stops the run before the step, and the samples are named."""

import json

import numpy as np
import pytest
import torch
from resume_runs import trainer_for
from transformers import Trainer

from hf_vla.training.losses import FiniteLossGuard


def stopped(settings, output, monkeypatch, spoil, *flags):
    """The trainer that `spoil(trainer, loss)` has stopped, the items it read by index, its report and its message."""
    trainer = trainer_for(settings, output, *flags)
    items, read = {}, trainer.train_dataset.__getitem__
    monkeypatch.setattr(
        type(trainer.train_dataset), "__getitem__", lambda self, i: items.setdefault((self.epoch, i), read(i))
    )
    compute = Trainer.compute_loss

    def compute_loss(self, *args, **kwargs):
        loss, outputs = compute(self, *args, **kwargs)
        return spoil(self, loss), outputs

    monkeypatch.setattr(Trainer, "compute_loss", compute_loss)
    weights = []
    step = trainer.create_optimizer().step
    trainer.optimizer.step = lambda *a, **k: (step(*a, **k), weights.append(snapshot(trainer)))[0]
    with pytest.raises(ValueError, match="stopped before the optimizer step") as raised:
        trainer.train()
    assert all(torch.equal(a, b) for a, b in zip(weights[-1], snapshot(trainer), strict=True))
    return trainer, items, json.loads((output / "nan_batch.json").read_text()), str(raised.value)


@pytest.mark.parametrize("every", [3, 50])
def test_a_check_that_is_read_later_stops_all_the_same(settings, tmp_path, monkeypatch, every):
    """As on a GPU: the optimizer leaves out the bad step and those after it, and nothing is written meanwhile."""

    def spoil(trainer, loss):
        return loss * float("nan") if trainer.state.global_step == 4 and len(trainer._guard._losses) == 1 else loss

    monkeypatch.setattr(FiniteLossGuard, "MAX_UNREAD", every)
    monkeypatch.setattr("hf_vla.training.losses._skips_on_device", lambda trainer: True)
    flags = ["--per_device_train_batch_size", 2, "--global_batch_size", 4, "--logging_steps", 100]
    flags += ["--ema_decay", 0.5, "--save_steps", 100]
    trainer, items, report, message = stopped(settings, tmp_path, monkeypatch, spoil, *flags)
    assert report["step"] == 5 and "a loss of step 5 is nan" in message
    (batch,) = report["batches"]
    assert (batch["micro_batch"], [sample["index"] for sample in batch["samples"]]) == (1, [18, 19])
    # read with the third step after the last look, or else before the epoch ends
    assert trainer.state.global_step == {3: 5, 50: 6}[every]
    assert not list(tmp_path.glob("checkpoint-*"))
    state_of = trainer.optimizer.state_dict()["state"]
    assert {int(state["step"]) for state in state_of.values()} == {4}


def test_reading_later_changes_no_number(settings, tmp_path, monkeypatch):
    flags = ["--max_steps", 3, "--save_strategy", "no"]
    runs = []
    for later in (False, True):
        monkeypatch.setattr("hf_vla.training.losses._skips_on_device", lambda trainer, later=later: later)
        trainer = trainer_for(settings, tmp_path / str(later), *flags)
        trainer.train()
        assert trainer._guard.deferred is later
        runs.append(snapshot(trainer))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def snapshot(trainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def test_the_samples_of_the_micro_batch_are_named(settings, tmp_path, monkeypatch):
    """The second micro-batch of the second epoch's second step."""
    calls = []

    def spoil(trainer, loss):
        calls.append(trainer.state.global_step)
        return loss * float("inf") if calls.count(7) == 2 else loss

    flags = ["--per_device_train_batch_size", 2, "--global_batch_size", 4]
    trainer, items, report, message = stopped(settings, tmp_path, monkeypatch, spoil, *flags)
    assert report["step"] == 8 and trainer.state.global_step == 7 and "a loss of step 8 is inf" in message
    (batch,) = report["batches"]
    assert (batch["rank"], batch["micro_batch"], batch["loss"]) == (0, 1, "inf")
    assert [sample["index"] for sample in batch["samples"]] == [6, 7]
    (dataset,) = trainer.train_dataset.datasets
    for sample in batch["samples"]:
        assert sample["dataset"] == dataset.name
        item = dataset[dataset.episode_indices.index(sample["episode"]) * 12 + sample["frame"]]
        drawn = items[1, sample["index"]]
        assert item["lang"] == drawn["lang"] and np.array_equal(item["state"], drawn["state"])
    assert str(tmp_path / "nan_batch.json") in message


def test_a_gradient_that_is_not_finite(settings, tmp_path, monkeypatch):
    """Whose losses are: any of the step's samples may be the cause."""

    def spoil(trainer, loss):
        if trainer.state.global_step == 2:
            parameter = next(p for p in trainer.model.parameters() if p.requires_grad)
            loss = loss + torch.sqrt(parameter.sum() * 0)  # 0, with the derivative 0 * inf
        return loss

    flags = ["--per_device_train_batch_size", 2, "--global_batch_size", 4, "--max_grad_norm", 0]
    _, _, report, message = stopped(settings, tmp_path, monkeypatch, spoil, *flags)
    assert "the gradient of step 3 is nan" in message
    assert [[sample["index"] for sample in batch["samples"]] for batch in report["batches"]] == [[8, 9], [10, 11]]


def test_a_skipped_items_stand_in_is_named(settings, tmp_path, monkeypatch):
    mixture = trainer_for(settings, tmp_path, "--on_error", "skip").train_dataset
    broken = mixture.draw(0)[1]
    read = mixture.datasets[0].__getitem__

    def getitem(self, index):
        if index == broken:
            raise OSError("broken")
        return read(index)

    monkeypatch.setattr(type(mixture.datasets[0]), "__getitem__", getitem)
    attempt = next(n for n in range(1, 100) if mixture.draw(0, n)[1] != broken)
    assert mixture.sample_id(0) == mixture.datasets[0].sample_id(mixture.draw(0, attempt)[1])
    assert mixture.sample_id(0) != mixture.datasets[0].sample_id(broken)
