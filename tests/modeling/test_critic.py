"""The critic: values of observations, no gradient for the policy, files beside the policy's."""

import copy

import numpy as np
import pytest
import torch
from tiny_policies import STATE_DIM, build

from hf_vla.modeling.critic import Critic, DistributionalCritic, mean_states
from hf_vla.registry import FRAMEWORKS


def observations(framework: str, *which: int) -> dict:
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)
    states = np.random.default_rng(1).uniform(-1, 1, (3, STATE_DIM)).astype(np.float32)
    text = ["open the drawer", "put the red block on the green plate", "stop"]
    policy, processor = build(framework).model, build(framework).processor
    state = {"state": states[list(which)]} if policy.config.state_input else {}
    images, text = [[images[i]] for i in which], [text[i] for i in which]
    return dict(processor(images=images, text=text, normalized=True, **state))


def critic_of(policy) -> Critic:
    torch.manual_seed(0)
    critic = Critic.for_policy(policy, hidden_size=16)
    torch.nn.init.normal_(critic.layers[-1].weight)
    return critic


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_values_with_gradients_for_the_critic_alone(framework):
    policy = copy.deepcopy(build(framework).model)
    critic = critic_of(policy)
    values = critic.value(policy, observations(framework, 0, 1, 2))
    assert values.shape == (3,) and values.dtype == torch.float32 and len(values.unique()) == 3
    for row in range(3):
        assert torch.allclose(critic.value(policy, observations(framework, row))[0], values[row], atol=1e-4)
    values.sum().backward()
    assert all(p.grad is None for p in policy.parameters()) and critic.layers[0].weight.grad.any()


def test_a_new_critic_starts_from_the_mean_return():
    policy = build("qwen_oft").model
    critic = Critic.for_policy(policy)
    critic.start_from(0.4)
    assert torch.allclose(critic.value(policy, observations("qwen_oft", 0, 1)), torch.tensor(0.4))


def test_it_reads_the_robots_state():
    policy, inputs = build("qwen_pi").model, observations("qwen_pi", 0)
    critic = critic_of(policy)
    moved = {**inputs, "state": inputs["state"] + 0.5}
    assert not torch.allclose(critic.value(policy, moved), critic.value(policy, inputs))


def test_its_files_lie_beside_the_policys(tmp_path):
    policy = copy.deepcopy(build("qwen_pi").model)
    critic, inputs = critic_of(policy), observations("qwen_pi", 0, 1)
    policy.save_pretrained(tmp_path)
    critic.save_pretrained(tmp_path)
    assert torch.equal(Critic.from_pretrained(tmp_path).value(policy, inputs), critic.value(policy, inputs))
    assert not any("critic" in name for name in type(policy).from_pretrained(tmp_path).state_dict())


def test_a_distributional_critic_values_what_was_kept_by_its_distribution():
    torch.manual_seed(0)
    critic, states, state = DistributionalCritic(6, 2, 8, num_bins=5), torch.randn(3, 4, 6), torch.randn(3, 1, 2)
    torch.nn.init.normal_(critic.layers[-1].weight)
    expected = critic.expectation(critic.logits(mean_states(states), state))
    assert torch.equal(critic.of_observations(critic.observed(states, state=state)), expected)
    assert torch.equal(critic(states, state=state), expected) and len(expected.unique()) == 3


def test_bad_input(tmp_path):
    with pytest.raises(OSError, match=r"holds no critic: critic.json and critic.safetensors missing"):
        Critic.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="reads robot states of 3 dimensions, and was given 5"):
        Critic(7, 3)(torch.zeros(2, 4, 7), state=torch.zeros(2, 1, 5))
    with pytest.raises(
        ValueError, match=r"states of width 7, the policy's backbone has \d+; make one by Critic.for_policy"
    ):
        Critic(7).value(build("qwen_oft").model, observations("qwen_oft", 0))
