"""Samples of unequal weight in the trainer: they count so in a step, however its samples are dealt out to micro-batches."""

import pytest
import torch
import yaml
from resume_runs import TYPES

from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.data import VLADataCollator
from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.recipe import build


class WeightedCollator:
    """Adds a weight to every sample; by default 1 to 3, from its action."""

    def __init__(self, processor, constant: float | None = None):
        self.collator, self.constant = VLADataCollator(processor), constant

    def __call__(self, items):
        weights = [1 + 2 * abs(float(item["action"][0, 0])) % 2 for item in items]
        constants = [self.constant] * len(items)
        return self.collator(items) | {"sample_weight": torch.tensor(weights if self.constant is None else constants)}


def trained(recipe, output, *flags, constant=None):
    flags = [str(recipe), "--output_dir", str(output), "--max_steps", "3", "--logging_steps", "1", *map(str, flags)]
    (policy, data, args, *_), _ = parse_dataclasses(TYPES, [*flags, "--save_strategy", "no"])
    model, processor, dataset = build(policy, data, args.seed)
    collator = WeightedCollator(processor, constant)
    trainer = VLATrainer(model, args, train_dataset=dataset, processing_class=processor, data_collator=collator)
    trainer.train()
    return [row["action_loss"] for row in trainer.state.log_history if "loss" in row], model.state_dict()


@pytest.fixture
def plain(cotraining_recipe):
    """The recipe of the policy that draws nothing, without conversations."""
    settings = yaml.safe_load(cotraining_recipe.read_text())
    settings = {name: value for name, value in settings.items() if not name.startswith("vlm_") or name == "vlm_config"}
    cotraining_recipe.write_text(yaml.safe_dump(settings))
    return cotraining_recipe


def test_weights_count_alike_in_one_batch_and_in_two(plain, tmp_path):
    losses, weights = trained(plain, tmp_path / "one", "--per_device_train_batch_size", 4)
    flags = ("--per_device_train_batch_size", 2, "--gradient_accumulation_steps", 2)
    accumulated, other = trained(plain, tmp_path / "two", *flags)
    assert accumulated == pytest.approx(losses, rel=1e-4)
    for name, value in weights.items():
        torch.testing.assert_close(other[name], value, rtol=1e-3, atol=1e-5)
    unweighted, _ = trained(plain, tmp_path / "same", "--per_device_train_batch_size", 4, constant=1.0)
    assert unweighted != pytest.approx(losses, rel=1e-3)


def test_equal_weights_change_nothing(plain, tmp_path):
    once, _ = trained(plain, tmp_path / "once", constant=1.0)
    thrice, _ = trained(plain, tmp_path / "thrice", constant=3.0)
    assert thrice == pytest.approx(once, rel=1e-5)
