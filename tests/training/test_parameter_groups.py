"""Parameter groups: what decays, which settings have no effect, what is logged of each group and at the start."""

import logging
import math

import pytest
import torch
from tiny_policy import TinyPolicy, tiny_trainer, weights
from torch import nn

from hf_vla.registry import class_of
from hf_vla.training.overview import human, overview
from hf_vla.training.parameter_groups import decayed_parameters


def test_weight_decay_is_for_matrices_only(tmp_path):
    trainer = tiny_trainer(tmp_path, weight_decay=0.1, module_learning_rates={"action_head": 1e-3})
    optimizer = trainer.create_optimizer()
    names = {id(p): name for name, p in trainer.model.named_parameters()}
    decayed = {names[id(p)] for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    assert decayed == {"vlm.1.weight", "action_head.0.weight", "action_head.3.weight"}
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(names)


@pytest.mark.parametrize("variant", ["QwenDual", "QwenPI_v3", "QwenPI_v3__qwen25"])
def test_weight_decay_of_real_policies(reference, variant):
    model = reference.policy(variant)
    decayed = set(decayed_parameters(model))
    modules = dict(model.named_modules())
    for name, parameter in model.named_parameters():
        owner = modules[name.rpartition(".")[0]]
        assert (name in decayed) == isinstance(owner, nn.Linear | nn.Conv2d | nn.Conv3d) * (parameter.ndim > 1), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"freeze_modules": ["^vlm"], "module_learning_rates": {r"vlm\.1": 1e-3}},
            r"all that 'vlm\\\\.1' matches is frozen",
        ),
        (
            {"module_learning_rates": {"^action": 1e-3, "action_head": 1e-4}},
            "all that 'action_head' matches has its rate from '\\^action' before it",
        ),
        (
            {"module_learning_rates": {"head": 1e-3, "queries": 1e-2, "^action": 1e-4}},
            "from 'head', 'queries' before it",
        ),
        ({"module_learning_rates": {"default": 1e-3}}, "what the group of all other parameters is called"),
        ({"module_learning_rates": {"action": "fast"}}, "'action' has 'fast'; give a rate"),
        ({"module_learning_rates": {"action": -1}}, "'action' has -1; give a rate"),
        ({"module_learning_rates": {"action": math.inf}}, "give a rate, 0 or more"),
        ({"freeze_modules": ["vlm", "action"]}, "leave something to train"),
        ({"ema_decay": 1.0}, "ema_decay is 1.0; it must be between 0 and 1"),
        ({"ema_decay": 0.9, "ema_update_every": 0}, "ema_update_every is 0"),
        ({"repeated_diffusion_steps": 0}, "repeated_diffusion_steps is 0"),
    ],
)
def test_settings_that_fight_are_refused_before_training(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, **arguments)


def test_a_pattern_may_be_frozen_or_taken_in_part(tmp_path):
    rates = {"action_head.0": 1e-3, "^action": 1e-4, "^vlm": 1e-5}
    trainer = tiny_trainer(tmp_path, freeze_modules=["vlm.0"], module_learning_rates=rates)
    optimizer = trainer.create_optimizer()
    assert {name: g["lr"] for name, g in zip(trainer.group_names, optimizer.param_groups, strict=True)} == rates


def test_an_optimizer_that_is_passed_in_has_its_own_rates(tmp_path):
    from hf_vla.training.trainer import VLATrainer

    model, given = TinyPolicy(), tiny_trainer(tmp_path, module_learning_rates={"action_head": 1e-3})
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match="no effect on an optimizer that is passed in"):
        VLATrainer(model, given.args, data_collator=given.data_collator, optimizers=(optimizer, None))


def test_logged_of_each_group_and_loss(tmp_path):
    trainer = tiny_trainer(tmp_path, module_learning_rates={"^action": 1e-3}, max_grad_norm=0.01, warmup_steps=2)
    trainer.train()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert len(rows) == 6
    for step, row in enumerate(rows):
        share = step / 2 if step < 2 else (6 - step) / 4
        assert row["learning_rate/default"] == row["learning_rate"] == pytest.approx(1e-2 * share)
        assert row["learning_rate/^action"] == pytest.approx(1e-3 * share)
        both = math.hypot(row["grad_norm/default"], row["grad_norm/^action"])
        assert both == pytest.approx(row["grad_norm"], rel=1e-3) and both > 0.01
        assert row["action_loss"] == pytest.approx(row["loss"], rel=1e-6) and "vlm_loss" not in row


def test_tensorboard_shows_every_group(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "logs").mkdir()
    trainer = tiny_trainer(
        tmp_path, module_learning_rates={"^action_head|queries": 1e-3}, report_to="tensorboard", max_steps=2
    )
    trainer.train()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    shown = [tag for tag in events.Tags()["scalars"] if "learning_rate/" in tag]
    assert sorted(shown) == ["train/learning_rate/^action_head|queries", "train/learning_rate/default"]


def test_the_table_is_logged_once_at_the_start(tmp_path, caplog):
    trainer = tiny_trainer(
        tmp_path, freeze_modules=["vlm.0"], module_learning_rates={"^action": 5e-4}, weight_decay=0.01, max_steps=2
    )
    with caplog.at_level(logging.INFO, logger="hf_vla"):
        trainer.train()
    (record,) = [record for record in caplog.records if "what is trained" in record.message]
    assert record.message.splitlines()[1:] == [
        "module             parameters  trainable    learning rate  weight decay",
        "(the model's own)  4           yes          0.0005         -",
        "vlm.0              20          no           -              -",
        "vlm.1,3            28          yes          0.01           0.01 of 57.1 %",
        "action_head.*      30          yes          0.0005         0.01 of 80.0 %",
        "all                82          62 (75.6 %)",
    ]


def test_the_table_of_five_billion_parameters_fits_a_screen():
    text = {"hidden_size": 2560, "num_hidden_layers": 36, "intermediate_size": 9728, "num_attention_heads": 32}
    text |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936}
    vision = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "out_hidden_size": 2560}
    vlm = {"model_type": "qwen3_vl", "text_config": text, "vision_config": vision, "tie_word_embeddings": True}
    with torch.device("meta"):
        model = class_of("qwen_pi_v3", "model")(class_of("qwen_pi_v3", "config")(vlm_config=vlm))
    model.vlm.model.visual.requires_grad_(False)
    lines = overview(model, 1e-5, {"^action_head|^projectors": 1e-4}, 1e-8).splitlines()
    assert 12 <= len(lines) <= 20 and max(map(len, lines)) <= 120
    cells = {line.split()[0]: line for line in lines}
    layers = cells["vlm.model.language_model.layers.*"]
    assert "3.63 B" in layers and "yes" in layers and "1e-05" in layers and "1e-08 of 100.0 %" in layers
    assert "no" in cells["vlm.model.visual.blocks.*"].split() and "0.0001" in cells["projectors"]
    total = sum(p.numel() for p in model.parameters())
    assert lines[-1].startswith("all") and human(total) in lines[-1]


def test_human_numbers():
    numbers = (7, 999, 1000, 12345, 999_960, 1_234_567, 5_070_000_000)
    assert [human(n) for n in numbers] == ["7", "999", "1.00 k", "12.3 k", "1.00 M", "1.23 M", "5.07 B"]


def test_a_rate_of_zero_leaves_the_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, module_learning_rates={"action_head": 0}, weight_decay=0.1)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("action_head")}
