"""VLATrainer: which parameters move, at which rate, from where; what a run leaves behind."""

import dataclasses
import math

import pytest
import torch
from transformers import AutoModel, AutoProcessor

from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.inference.policy import Policy
from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments, build


def trainer_for(recipe, *flags) -> VLATrainer:
    types = (PolicyArguments, DataArguments, VLATrainingArguments)
    (policy, data, args), _ = parse_dataclasses(types, [str(recipe), *flags])
    model, processor, dataset = build(policy, data, args.seed)
    return VLATrainer(model, args, train_dataset=dataset, processing_class=processor)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_frozen_modules_stay_to_the_bit_and_the_others_move(recipe):
    trainer = trainer_for(recipe, "--freeze_modules", "^vlm", r"action_encoder\.layer2")
    before = weights(trainer)
    trainer.train()
    after = weights(trainer)
    frozen = {name for name in before if name.startswith("vlm.") or "action_encoder.layer2" in name}
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not torch.equal(
        before["action_head.action_encoder.layer1.weight"], after["action_head.action_encoder.layer1.weight"]
    )
    assert not torch.equal(before["projectors.0.1.weight"], after["projectors.0.1.weight"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--freeze_modules", "qwen_vl_interface"], "freeze_modules: 'qwen_vl_interface' matches no parameter"),
        (["--module_learning_rates", '{"action_model": 1e-3}'], "did you mean action_head"),
        (["--freeze_modules", "."], "leave something to train"),
    ],
)
def test_mistyped_patterns_stop_before_the_first_step(recipe, flags, message):
    with pytest.raises(ValueError, match=message):
        trainer_for(recipe, *flags)


def test_a_run_leaves_a_policy_that_predicts_in_robot_units(recipe, dataset):
    trainer = trainer_for(recipe)
    trainer.train()
    trainer.save_model()
    folder = trainer.args.output_dir
    policy = Policy.from_pretrained(folder, device="cpu")
    item = trainer.train_dataset[0]
    policy.reset(seed=1)
    actions = policy.infer(item)
    policy.reset(seed=1)
    assert actions.shape == (4, 2) and (actions == policy.infer(item)).all()
    policy.reset(seed=1)
    batch = policy.infer([item, item])
    assert batch.shape == (2, 4, 2)
    assert policy.processor.statistics["tiny_arm"]["action"]["max"][0] == pytest.approx(math.sin(8), abs=1e-6)
    untrained = policy.untrained(seed=0)
    assert not torch.equal(
        untrained.model.action_head.action_encoder.layer1.weight, policy.model.action_head.action_encoder.layer1.weight
    )
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 6 and all(row["action_loss"] == pytest.approx(row["loss"], abs=1e-3) for row in rows)


def test_pretrained_checkpoint_and_reload_modules(recipe, tmp_path):
    first = trainer_for(recipe)
    first.model.save_pretrained(tmp_path / "first")
    saved = weights(first)
    for p in first.model.parameters():
        p.data.add_(1)
    first.model.save_pretrained(tmp_path / "moved")
    everything = weights(trainer_for(recipe, "--pretrained_checkpoint", str(tmp_path / "moved")))
    assert all(torch.equal(everything[name], saved[name] + 1) for name in saved)
    flags = ["--pretrained_checkpoint", str(tmp_path / "moved"), "--reload_modules", "^projectors"]
    part = weights(trainer_for(recipe, *flags))
    assert all(torch.equal(part[name], saved[name] + name.startswith("projectors")) for name in saved)
    with pytest.raises(ValueError, match="reload_modules: 'nothing_like_it' matches no parameter"):
        trainer_for(recipe, *flags[:2], "--reload_modules", "nothing_like_it")


def test_saved_processor_equals_the_trained_one(recipe, tmp_path):
    trainer = trainer_for(recipe)
    trainer.save_model(str(tmp_path / "saved"))
    processor = AutoProcessor.from_pretrained(tmp_path / "saved")
    assert processor.to_dict() == trainer.processing_class.to_dict()
    item = trainer.train_dataset[3]
    call = {"images": item["image"], "text": item["lang"], "state": item["state"][None]}
    for name, value in processor(**call).items():
        assert torch.equal(value, trainer.processing_class(**call)[name]), name
    assert type(AutoModel.from_pretrained(tmp_path / "saved")) is type(trainer.model)


@pytest.mark.parametrize("flags", [["--bf16", "true"], ["--dtype", "bfloat16"]])
def test_bfloat16(recipe, flags):
    """Computing in bfloat16 on float32 weights, and bfloat16 weights."""
    trainer = trainer_for(recipe, *flags)
    expected = torch.bfloat16 if "--dtype" in flags else torch.float32
    assert {p.dtype for p in trainer.model.parameters()} == {expected}
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert len(losses) == 6 and all(math.isfinite(loss) for loss in losses)


def test_a_run_from_a_policy_repeats_from_its_own_settings():
    """What a run from `policy` records of itself is accepted again."""
    settings = dataclasses.asdict(PolicyArguments(policy="somewhere"))
    assert dataclasses.asdict(PolicyArguments(**settings)) == settings
