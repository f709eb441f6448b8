"""A whole run from Python, without the command."""

import pytest
import yaml
from resume_runs import TYPES
from transformers import AutoModel

from hf_vla.commands.dataclass_parser import parse_dataclasses
from hf_vla.training.run import summarize, train


def arguments_of(file, *flags):
    (policy, data, args, peft, evaluation), given = parse_dataclasses(TYPES, [str(file), *map(str, flags)])
    return (policy, data, peft, evaluation, args), given


def test_a_run_leaves_a_policy_and_its_settings(recipe, tmp_path):
    output = tmp_path / "policy"
    arguments, given = arguments_of(recipe, "--max_steps", 2, "--output_dir", output)
    trainer = train(*arguments, given=given)
    assert trainer.state.global_step == 2
    written = yaml.safe_load((output / "config.yaml").read_text())
    assert written["max_steps"] == 2 and written["dataset"] == arguments[1].dataset
    assert AutoModel.from_pretrained(output).config.model_type == trainer.model.config.model_type
    *datasets, last, curves = summarize(trainer)
    assert last == f"policy written to {output}" and curves.startswith(f"curves: {output / 'loss.png'}")
    assert len(datasets) == 1 and " passes over " in datasets[0]


def test_the_summary_of_a_run_that_co_trains_is_of_the_robot_data(cotraining_recipe, tmp_path):
    arguments, given = arguments_of(cotraining_recipe, "--max_steps", 1, "--output_dir", tmp_path / "policy")
    assert " passes over 24 frames" in summarize(train(*arguments, given=given))[0]


def test_a_weight_of_conversations_that_do_not_exist_is_refused(recipe, tmp_path):
    arguments, given = arguments_of(recipe, "--vlm_loss_scale", 0.2, "--output_dir", tmp_path / "policy")
    with pytest.raises(ValueError, match="no vlm_dataset is set"):
        train(*arguments, given=given)
    assert not (tmp_path / "policy").exists()
