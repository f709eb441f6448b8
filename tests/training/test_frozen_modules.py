"""Frozen modules: unchanged to the bit, without dropout; and what checkpointing of activations makes of them."""

import copy
from collections import Counter

import pytest
import torch
from tiny_policy import TinyPolicy, tiny_trainer, weights
from torch import nn
from transformers import TrainerCallback

from hf_vla.training.parameter_groups import FrozenInEval


class Modes(TrainerCallback):
    """Which modules were in training mode in each forward pass."""

    def __init__(self, model):
        self.seen = []
        self.hook = model.register_forward_pre_hook(
            lambda module, args: self.seen.append({name for name, m in module.named_modules() if m.training})
        )


@pytest.mark.parametrize("ema", [{}, {"ema_decay": 0.9}])
def test_frozen_parameters_stay_to_the_bit_under_weight_decay_and_ema(tmp_path, ema):
    trainer = tiny_trainer(tmp_path, freeze_modules=["^vlm", r"head\.0"], weight_decay=0.5, **ema)
    before = weights(trainer.model)
    trainer.train()
    trainer.evaluate()
    after = weights(trainer.model)
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {name for name in before if name.startswith(("vlm", "action_head.0"))}
    assert all(parameter.grad is None for name, parameter in trainer.model.named_parameters() if name in same)
    with trainer.ema_weights():
        averaged = weights(trainer.model)
    assert all(torch.equal(before[name], averaged[name]) for name in same)


def test_frozen_modules_are_in_evaluation_mode_in_every_step(tmp_path):
    model = TinyPolicy()
    modes = Modes(model)
    trainer = tiny_trainer(
        tmp_path, model, freeze_modules=["^vlm", r"head\.0"], gradient_accumulation_steps=2, max_steps=3
    )
    trainer.train()
    # Not frozen as a whole: action_head, whose Dropout belongs to what is trained there.
    trained = {"", "action_head", "action_head.1", "action_head.2", "action_head.3"}
    assert modes.seen == [trained] * 6
    trainer.evaluate()
    assert modes.seen[-1] == set()


def test_nothing_frozen_all_in_training_mode(tmp_path):
    model = TinyPolicy()
    modes = Modes(model)
    tiny_trainer(tmp_path, model, max_steps=1).train()
    assert modes.seen == [{name for name, _ in model.named_modules()}]


FROZEN = {
    "nothing": [],
    "the whole backbone": ["vlm."],
    "a part that gradients pass through": ["vlm.model.language_model."],
    "the head": ["action_head."],
}


@pytest.mark.parametrize("frozen", FROZEN)
def test_checkpointed_activations_leave_the_gradients(reference, frozen):
    """In backbone and head, under dropout, whatever is frozen; recomputed where gradients pass, and only there."""
    inputs = reference.case("QwenPI_v3", next(iter(reference.meta("QwenPI_v3")["cases"]))).model_inputs("forward")
    results = {}
    for checkpointed in (False, True):
        model = copy.deepcopy(reference.policy("QwenPI_v3"))
        if checkpointed:
            model.activation_checkpointing_enable()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(FROZEN[frozen])))
        calls = Counter()
        blocks = {
            "visual": model.vlm.model.visual.blocks[0].mlp,
            "language_model": model.vlm.model.language_model.layers[0].mlp,
            "head": model.action_head.transformer.transformer_blocks[0].ff,
        }
        for part, block in blocks.items():
            block.register_forward_pre_hook(lambda module, args, calls=calls, part=part: calls.update([part]))
        model.train()
        FrozenInEval().apply(model)
        in_training = {name for name, m in model.named_modules() if isinstance(m, nn.Dropout) and m.training}
        assert (not in_training) == (frozen == "the head")  # the backbone has none
        torch.manual_seed(0)
        loss = model(**inputs).loss
        loss.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        results[checkpointed] = loss.detach(), gradients, calls
    (loss, gradients, calls), (other_loss, other_gradients, other_calls) = results[False], results[True]
    assert torch.equal(loss, other_loss) and gradients.keys() == other_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(other_gradients[name], gradient, rtol=1e-6, atol=1e-9)
    assert calls == {"visual": 1, "language_model": 1, "head": 1}
    passed = 1 if frozen == "the whole backbone" else 2
    assert other_calls == {"visual": passed, "language_model": passed, "head": 2}


def test_reentrant_checkpoints_get_inputs_that_require_gradients(reference):
    model = copy.deepcopy(reference.policy("QwenPI_v3"))
    ids = torch.tensor([[1, 2]])
    model.vlm.requires_grad_(False)
    model.activation_checkpointing_enable({"use_reentrant": True})
    assert model.get_input_embeddings()(ids).requires_grad
    model.disable_input_require_grads()
    model.activation_checkpointing_enable({"preserve_rng_state": False})
    assert not model.get_input_embeddings()(ids).requires_grad
