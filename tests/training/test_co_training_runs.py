"""Co-training through the trainer: one step of both kinds of samples, however its samples are dealt out."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.commands.train import main
from hf_vla.training.co_training_setup import refuse_plain_text
from hf_vla.training.trainer import VLATrainer
from hf_vla.training_args.arguments import VLATrainingArguments
from hf_vla.training_args.recipe import DataArguments, PolicyArguments, build


def trainer_for(recipe, *flags, **options) -> VLATrainer:
    types = (PolicyArguments, DataArguments, VLATrainingArguments)
    (policy, data, args), _ = parse_dataclasses(types, [str(recipe), *map(str, flags)])
    model, processor, dataset = build(policy, data, args.seed)
    options = {"train_dataset": dataset, "vlm_dataset": data.conversations, **options}
    return VLATrainer(model, args, processing_class=processor, **options)


def logged(trainer) -> list[dict]:
    return [row for row in trainer.state.log_history if "loss" in row]


def weights(trainer) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def test_a_step_follows_the_gradients_of_both_losses(cotraining_recipe):
    """One step of plain gradient descent moves by the rate times (action gradient + scale × language gradient)."""
    trainer = trainer_for(cotraining_recipe, "--max_steps", 1, "--learning_rate", 1, "--max_grad_norm", 0)
    batch = next(iter(trainer.get_train_dataloader()))
    words = batch.pop("vlm_batch")
    assert len(batch["actions"]) == 4 and len(words["labels"]) == 2
    trainer.model.train()
    before = weights(trainer)
    losses = [trainer.model(**batch).loss, trainer.model(**words).loss]
    (losses[0] + 0.3 * losses[1]).backward()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    trainer.train()
    for name, weight in weights(trainer).items():
        torch.testing.assert_close(before[name] - weight, gradients[name], rtol=1e-4, atol=1e-6, msg=name)
    (row,) = logged(trainer)
    assert row["action_loss"] == pytest.approx(losses[0].item(), rel=1e-5)
    assert row["vlm_loss"] == pytest.approx(losses[1].item(), rel=1e-5)
    assert row["loss"] == pytest.approx(row["action_loss"] + 0.3 * row["vlm_loss"], rel=1e-4)


def test_accumulated_micro_batches_are_one_batch(cotraining_recipe):
    """Though their episodes' ends are padded and their answers are of unequal lengths."""
    whole = trainer_for(cotraining_recipe)
    whole.train()
    flags = ["--per_device_train_batch_size", 2, "--vlm_per_device_train_batch_size", 1]
    parts = trainer_for(cotraining_recipe, *flags, "--gradient_accumulation_steps", 2)
    parts.train()
    counts = [whole.model.loss_counts(batch) for batch in parts.get_train_dataloader()]
    assert all(len({int(count[name]) for count in counts}) > 1 for name in ("action_loss", "vlm_loss")), "no hard case"
    for one, other in zip(logged(whole), logged(parts), strict=True):
        for name in ("loss", "action_loss", "vlm_loss", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-4), name
    expected = weights(whole)
    for name, weight in weights(parts).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("framework", ["qwen_pi_v3", "qwen_fast"])
def test_a_stochastic_policy_and_a_generating_one(cotraining_recipe, recipe, framework):
    own = yaml.safe_load(recipe.read_text())["policy_config"] if framework == "qwen_pi_v3" else {"action_horizon": 4}
    settings = yaml.safe_load(cotraining_recipe.read_text()) | {"framework": framework, "policy_config": own}
    cotraining_recipe.write_text(yaml.safe_dump(settings))
    trainer = trainer_for(cotraining_recipe, "--activation_checkpointing", True, "--max_steps", 2)
    trainer.train()
    rows = logged(trainer)
    assert len(rows) == 2
    for row in rows:
        assert row["loss"] == pytest.approx(row["action_loss"] + 0.3 * row["vlm_loss"], rel=1e-3)


def test_the_model_card_names_both_kinds_of_data(cotraining_recipe):
    trainer = trainer_for(cotraining_recipe, "--max_steps", 1)
    trainer.train()
    trainer.save_model()
    card = (Path(trainer.args.output_dir) / "README.md").read_text()
    assert "tiny (100%)" in card and "conversations (5); weight of their loss 0.3" in card


def test_conversations_are_in_a_new_tokenizers_vocabulary(cotraining_recipe, recipe):
    with_words, without = (trainer_for(file).processing_class.tokenizer for file in (cotraining_recipe, recipe))
    assert len(with_words.tokenize("how many")) < len(without.tokenize("how many"))


class TestRefused:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"vlm_dataset": None}, "vlm_per_device_train_batch_size is set, but there are no conversations"),
            ({"vlm_dataset": ["nowhere.json"]}, "nowhere.json is missing"),
            ({"vlm_per_device_train_batch_size": 0}, "it must be 1 or more"),
            ({"vlm_dataset": None, "vlm_image_root": "a"}, "no vlm_dataset is set"),
        ],
    )
    def test_settings(self, cotraining_recipe, change, message):
        settings = yaml.safe_load(cotraining_recipe.read_text()) | change
        cotraining_recipe.write_text(yaml.safe_dump(settings))
        with pytest.raises((ValueError, OSError), match=message):
            trainer_for(cotraining_recipe)

    def test_a_scale_of_no_loss(self, recipe, capsys):
        with pytest.raises(SystemExit):
            main([str(recipe), "--vlm_loss_scale", "0.5"])
        assert "error: vlm_loss_scale weighs the loss of vlm_dataset's conversations" in capsys.readouterr().err

    def test_a_dataset_that_is_read_at_random(self, cotraining_recipe):
        dataset = trainer_for(cotraining_recipe).train_dataset.mixture.datasets[0]
        with pytest.raises(ValueError, match="give DatasetMixture"):
            trainer_for(cotraining_recipe, train_dataset=dataset)

    def test_plain_text_where_parameters_are_sharded(self, cotraining_recipe, write_conversations, tmp_path):
        write_conversations(tmp_path, images=False)
        dataset = trainer_for(cotraining_recipe).train_dataset
        fsdp = SimpleNamespace(fsdp_plugin=object())
        zero = [SimpleNamespace(deepspeed_plugin=SimpleNamespace(zero_stage=stage)) for stage in (2, 3)]
        for state in (fsdp, zero[1]):
            with pytest.raises(ValueError, match="5 of 5 conversations have no image"):
                refuse_plain_text(dataset, SimpleNamespace(num_processes=2, state=state))
            refuse_plain_text(dataset, SimpleNamespace(num_processes=1, state=state))
        refuse_plain_text(dataset, SimpleNamespace(num_processes=2, state=zero[0]))
