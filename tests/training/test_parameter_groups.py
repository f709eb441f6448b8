"""Parameter groups: which parameters a pattern names, what decays, and settings that have no effect."""

import math

import pytest
import torch
from tiny_policy import TinyPolicy, tiny_trainer, weights
from torch import nn

from hf_vla.training.parameter_groups import decayed_parameters, freeze, matching_parameters, rate_groups


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.vlm = nn.ModuleDict({"visual": nn.Linear(2, 2), "language_model": nn.Linear(2, 2)})
        self.action_head = nn.Linear(2, 2)


def test_a_pattern_is_searched_in_the_whole_name():
    assert matching_parameters(Tiny(), "visual", "x") == {"vlm.visual.weight", "vlm.visual.bias"}
    assert matching_parameters(Tiny(), r"^vlm\..*bias$", "x") == {"vlm.visual.bias", "vlm.language_model.bias"}


def test_first_match_wins_and_the_rest_is_the_default_group():
    groups = rate_groups(Tiny(), ["visual", "^vlm"])
    assert groups["vlm.visual.weight"] == "visual"
    assert groups["vlm.language_model.bias"] == "^vlm"
    assert groups["action_head.weight"] == "default"


def test_frozen_parameters_are_exactly_those_named():
    model = Tiny()
    frozen = freeze(model, ["visual", "action_head.bias"])
    assert frozen == {"vlm.visual.weight", "vlm.visual.bias", "action_head.bias"}
    assert {n for n, p in model.named_parameters() if not p.requires_grad} == frozen
    assert set(rate_groups(model, [])) == {n for n, _ in model.named_parameters()} - frozen


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("action_model", "did you mean action_head"),
        ("vlm.visul", "did you mean vlm.visual"),
        ("zzz", "modules are vlm, action_head"),
        ("(", "not a valid regular expression"),
    ],
)
def test_a_pattern_that_names_nothing_is_an_error(pattern, message):
    with pytest.raises(ValueError, match=message):
        matching_parameters(Tiny(), pattern, "freeze_modules")


def test_freezing_everything_is_an_error():
    with pytest.raises(ValueError, match="leave something to train"):
        freeze(Tiny(), ["."])


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


def test_a_rate_of_zero_leaves_the_weights(tmp_path):
    trainer = tiny_trainer(tmp_path, module_learning_rates={"action_head": 0}, weight_decay=0.1)
    before = weights(trainer.model)
    trainer.train()
    after = weights(trainer.model)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith("action_head")}
