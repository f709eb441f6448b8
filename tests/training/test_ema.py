"""The moving average of the weights: its formula, who uses it, what is saved, and that resuming it is exact."""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from tiny_policy import TinyPolicy, items, tiny_trainer, weights
from transformers import TrainerCallback, default_data_collator

from hf_vla.training.ema import WeightAverage, check_engine


class Snapshots(TrainerCallback):
    def __init__(self):
        self.after = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.after.append(weights(model))


@pytest.mark.parametrize("every", [1, 2])
def test_the_average_is_that_of_the_formula(tmp_path, every):
    snapshots = Snapshots()
    trainer = tiny_trainer(tmp_path, callbacks=[snapshots], ema_decay=0.25, ema_update_every=every)
    expected = weights(trainer.model)
    with trainer.ema_weights():  # before training, they are the same
        assert all(torch.equal(expected[n], p) for n, p in weights(trainer.model).items())
    trainer.train()
    for n, snapshot in enumerate(snapshots.after[every - 1 :: every], start=1):
        decay = min(0.25, (1 + n) / (10 + n))
        expected = {name: decay * expected[name] + (1 - decay) * snapshot[name] for name in expected}
    with trainer.ema_weights():
        averaged = weights(trainer.model)
    for name, value in expected.items():
        torch.testing.assert_close(averaged[name], value, rtol=1e-5, atol=1e-7)
    assert all(torch.equal(snapshots.after[-1][name], p) for name, p in weights(trainer.model).items())


def test_evaluation_and_the_final_policy_have_the_average_and_checkpoints_both(tmp_path):
    trainer = tiny_trainer(tmp_path, ema_decay=0.9, save_strategy="steps", save_steps=3)
    trainer.train()
    raw = weights(trainer.model)
    trainer.save_model()
    with trainer.ema_weights(), trainer.ema_weights():  # one inside of the other is the same
        averaged = weights(trainer.model)
        batch = default_data_collator(items())
        expected = trainer.model.eval()(**batch)["loss"].item()
    assert not any(torch.equal(raw[name], averaged[name]) for name in raw)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(raw[name], p) for name, p in weights(trainer.model).items())
    for file, saved in (
        (tmp_path / "model.safetensors", averaged),
        (tmp_path / "checkpoint-6" / "model.safetensors", raw),
        (tmp_path / "checkpoint-6" / "ema.safetensors", averaged),
    ):
        found = load_file(file)
        assert found.keys() == saved.keys() and all(torch.equal(found[name], saved[name]) for name in saved), file


def test_weights_return_after_an_error(tmp_path):
    trainer = tiny_trainer(tmp_path, ema_decay=0.9)
    trainer.train()
    raw = weights(trainer.model)
    with pytest.raises(RuntimeError, match="evaluation"), trainer.ema_weights():
        raise RuntimeError("evaluation broke")
    assert all(torch.equal(raw[name], p) for name, p in weights(trainer.model).items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_resuming_is_exact(tmp_path, dtype):
    arguments = {
        "ema_decay": 0.9,
        "ema_update_every": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "weight_decay": 0.1,
    }

    class Typed(TinyPolicy):
        def forward(self, token, actions):
            return super().forward(token, actions.to(dtype))

    whole = tiny_trainer(tmp_path / "whole", Typed().to(dtype), **arguments)
    whole.train()
    again = tiny_trainer(tmp_path / "again", Typed().to(dtype), **arguments)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    for name in ("model.safetensors", "ema.safetensors"):
        first, second = (load_file(tmp_path / run / "checkpoint-6" / name) for run in ("whole", "again"))
        assert all(torch.equal(first[key], second[key]) for key in first), name
    assert {value.dtype for value in second.values()} == {torch.float32}
    with again.ema_weights():
        assert {p.dtype for p in again.model.parameters()} == {dtype}


@pytest.mark.parametrize(("at_end", "folder"), [(True, "."), (False, "best")])
def test_the_best_policy_is_the_average_of_its_step(tmp_path, at_end, folder):
    trainer = tiny_trainer(
        tmp_path,
        ema_decay=0.9,
        save_strategy="steps",
        eval_strategy="steps",
        save_steps=2,
        eval_steps=2,
        load_best_model_at_end=at_end,
        metric_for_best_model="loss",
        greater_is_better=True,  # so that the first is best
    )
    trainer.train()
    trainer.save_model()
    averaged = load_file(tmp_path / "checkpoint-2" / "ema.safetensors")
    policy = load_file(tmp_path / folder / "model.safetensors")
    assert all(torch.equal(policy[name], averaged[name]) for name in averaged)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"ema_decay": 0.9}, "holds no ema.safetensors: it was trained without ema_decay"),
        ({"ema_decay": 0.9}, {}, "was trained with ema_decay; set it to resume"),
    ],
)
def test_resuming_from_another_average_is_refused(tmp_path, before, after, message):
    tiny_trainer(tmp_path / "a", save_strategy="steps", save_steps=2, max_steps=2, **before).train()
    trainer = tiny_trainer(tmp_path / "b", **after)
    with pytest.raises(ValueError, match=message):
        trainer.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))


def test_an_average_of_other_parameters_is_refused(tmp_path):
    model = TinyPolicy()
    average = WeightAverage(0.9)
    average.start(model)
    average.save(tmp_path)
    model.action_queries.requires_grad_(False)
    with pytest.raises(ValueError, match="averages other parameters .* 1 differ, for example action_queries"):
        average.load(tmp_path, model)


def accelerator(zero_stage: int | None = None) -> SimpleNamespace:
    """One without an engine, or with DeepSpeed's of that stage."""
    plugin = None if zero_stage is None else SimpleNamespace(zero_stage=zero_stage)
    return SimpleNamespace(state=SimpleNamespace(deepspeed_plugin=plugin))


@pytest.mark.parametrize(
    ("trainer", "refused"),
    [
        ({}, None),
        ({"is_fsdp_enabled": True}, "FSDP"),
        ({"is_distributed_loading_by_transformers": True}, "FSDP or another sharding"),
        ({"accelerator": accelerator(3)}, "ZeRO-3"),
        ({"accelerator": accelerator(2)}, None),
    ],
)
def test_engines_without_whole_weights_are_refused(trainer, refused):
    whole = {"is_fsdp_enabled": False, "is_distributed_loading_by_transformers": False, "accelerator": accelerator()}
    trainer = SimpleNamespace(**{**whole, **trainer})
    if refused:
        with pytest.raises(ValueError, match=refused):
            check_engine(trainer)
    else:
        check_engine(trainer)
