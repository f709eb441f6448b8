"""What a run logs of its parameter groups: the table at the start, learning rates and gradient norms."""

import logging
import math

import pytest
import torch
from tiny_policy import tiny_trainer

from hf_vla.registry import class_of
from hf_vla.training.group_report import format_count, parameter_table


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
    lines = parameter_table(model, 1e-5, {"^action_head|^projectors": 1e-4}, 1e-8).splitlines()
    assert 12 <= len(lines) <= 20 and max(map(len, lines)) <= 120
    cells = {line.split()[0]: line for line in lines}
    layers = cells["vlm.model.language_model.layers.*"]
    assert "3.63 B" in layers and "yes" in layers and "1e-05" in layers and "1e-08 of 100.0 %" in layers
    assert "no" in cells["vlm.model.visual.blocks.*"].split() and "0.0001" in cells["projectors"]
    total = sum(p.numel() for p in model.parameters())
    assert lines[-1].startswith("all") and format_count(total) in lines[-1]


def test_counts_are_formatted_with_three_digits():
    numbers = (7, 999, 1000, 12345, 999_960, 1_234_567, 5_070_000_000)
    assert [format_count(n) for n in numbers] == ["7", "999", "1.00 k", "12.3 k", "1.00 M", "1.23 M", "5.07 B"]
