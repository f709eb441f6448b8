"""Predictions guided away from those of prompts without advantage, and what such prompts are."""

import numpy as np
import pytest
import tiny_policies
import torch

from hf_vla import Policy
from hf_vla.inference.precision import normalized_actions
from hf_vla.processing.prompt import ADVANTAGE_TEMPLATE

GUIDED = ("qwen_pi_v3", "qwen_pi", "qwen_gr00t", "qwen_dual", "qwen_fast")
OTHERS = ("qwen_oft", "qwen_adapter", "qwen_discrete_diffusion")


def told(framework, **options) -> Policy:
    """A tiny policy whose prompts tell advantages."""
    policy = tiny_policies.build(framework)
    settings = {name: getattr(policy.processor, name) for name in policy.processor.settings()}
    processor = type(policy.processor)(
        policy.processor.image_processor,
        policy.processor.tokenizer,
        **settings | {"advantage_template": ADVANTAGE_TEMPLATE},
    )
    return Policy(policy.model, processor, **options)


def prompts(processor, **options):
    observation = tiny_policies.observation()
    inputs = processor(images=[observation["image"]], text=observation["lang"], unnorm_key="arm", **options)
    return processor.tokenizer.decode(inputs["input_ids"][0])


@pytest.mark.parametrize("framework", (*GUIDED, *OTHERS))
def test_prompts_tell_the_advantage_behind_the_instruction(framework):
    plain, processor = tiny_policies.build(framework).processor, told(framework).processor
    without = prompts(plain)
    assert prompts(processor) == prompts(processor, advantage=None) == without
    positive = prompts(processor, advantage="positive")
    assert positive == without.replace("open the drawer", "open the drawer Advantage: positive", 1)
    assert prompts(processor, advantage=["negative"]) == positive.replace("positive", "negative")
    for given, message in (
        ("good", "advantage is 'good'; possible: positive, negative"),
        (["positive", "negative"], "2 advantages for 1 instructions"),
    ):
        with pytest.raises(ValueError, match=message):
            prompts(processor, advantage=given)
    with pytest.raises(ValueError, match="was not trained on advantages"):
        prompts(plain, advantage="positive")


def test_the_template_is_saved_if_there_is_one(tmp_path):
    plain, processor = tiny_policies.build("qwen_pi_v3").processor, told("qwen_pi_v3").processor
    assert "advantage_template" not in plain.to_dict()
    processor.save_pretrained(tmp_path)
    again = type(processor).from_pretrained(tmp_path)
    assert prompts(again, advantage="positive") == prompts(processor, advantage="positive")
    with pytest.raises(ValueError, match="advantage_template is '{instruction} is {goodness}'"):
        type(processor).from_pretrained(tmp_path, advantage_template="{instruction} is {goodness}")


@pytest.mark.parametrize("framework", (*GUIDED, *OTHERS))
def test_a_policy_asks_for_positive_by_itself(framework):
    observation = tiny_policies.observation()
    plain = tiny_policies.build(framework)
    given = {
        name: told(framework, **options).infer(observation, seed=1)
        for name, options in (
            ("auto", {}),
            ("positive", {"advantage": "positive"}),
            ("negative", {"advantage": "negative"}),
            ("none", {"advantage": "none"}),
        )
    }
    assert np.array_equal(given["auto"], given["positive"])
    assert np.array_equal(given["none"], plain.infer(observation, seed=1))
    if framework not in ("qwen_fast", "qwen_discrete_diffusion"):  # whose random weights may write the same tokens
        assert not np.array_equal(given["auto"], given["negative"])
        assert not np.array_equal(given["auto"], given["none"])
    assert (plain.advantage, told(framework).advantage) == (None, "positive")
    assert told(framework, advantage="negative").untrained().advantage == "negative"


def test_what_is_asked_is_part_of_the_fingerprint():
    prints = {told("qwen_pi_v3", **asked).fingerprint for asked in ({}, {"advantage": "none"}, {"guidance": 1.5})}
    assert len(prints) == 3
    assert told("qwen_pi_v3", advantage="positive", guidance=1).fingerprint == told("qwen_pi_v3").fingerprint


def inputs_of(policy, advantages):
    observation = tiny_policies.observation()
    state = np.array([observation["state"]] * len(advantages))
    return policy.processor(
        images=[observation["image"]] * len(advantages),
        text=[observation["lang"]] * len(advantages),
        state=state,
        advantage=advantages,
    )


@pytest.mark.parametrize("framework", GUIDED)
def test_guidance_of_1_is_the_condition_alone(framework):
    policy = told(framework)
    noise = {"noise": torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))}
    both = inputs_of(policy, ["positive", None])
    guided = policy.model.predict_action(**both, **noise, guidance=1.0)
    # The same prompts in the same batch, so that both are padded alike.
    alone = policy.model.predict_action(**both, noise=noise["noise"].repeat(2, 1, 1))[:1]
    assert torch.allclose(guided, alone, atol=1e-6)


@pytest.mark.parametrize("framework", ("qwen_pi_v3", "qwen_dual"))
def test_guidance_mixes_velocities(framework):
    policy = told(framework)
    noise = torch.randn(1, 3, 2, generator=torch.Generator().manual_seed(0))
    both = inputs_of(policy, ["positive", None])
    one_step = {"num_inference_steps": 1}
    positive, plain = policy.model.predict_action(**both, noise=noise.repeat(2, 1, 1), **one_step)
    guided = policy.model.predict_action(**both, noise=noise, guidance=2.5, **one_step)
    # One Euler step: the chunk is the noise and one velocity.
    assert torch.allclose(guided[0], plain + 2.5 * (positive - plain), atol=1e-5)
    several = policy.model.predict_action(**both, noise=noise.repeat(2, 1, 1), guidance=2.5, **one_step)
    assert torch.allclose(several, guided.repeat(2, 1, 1), atol=1e-6)


@pytest.mark.parametrize("framework", GUIDED)
def test_a_guided_policy(framework):
    observation = tiny_policies.observation()
    policy = told(framework, guidance=2.0)
    one = policy.infer(observation, seed=1)
    assert one.shape == (3, 2) and np.isfinite(one).all()
    batch = policy.infer([observation, observation], seed=[1, 1])
    assert np.allclose(batch, one, atol=1e-5)
    assert np.allclose(policy.predict(observation, seed=1).actions[0], one, atol=1e-5)
    measured = normalized_actions(policy, observation, seed=1)
    assert np.allclose(policy.processor.unnormalize_actions(torch.from_numpy(measured))[0], one, atol=1e-5)
    if policy.denoises:
        assert not np.allclose(one, told(framework).infer(observation, seed=1), atol=1e-6)
        again = policy.infer(observation, seed=1, previous_chunk=one[1:], inference_delay=1)
        assert np.allclose(again[0], one[1], atol=1e-5)
        with pytest.raises(ValueError, match="a guided prediction has no trace"):
            policy.predict(observation, trace=True)


@pytest.mark.parametrize("framework", OTHERS)
def test_frameworks_that_can_not_be_guided(framework):
    told(framework, guidance=1)
    with pytest.raises(ValueError, match="can't be guided: only velocities of flow matching and logits of tokens"):
        told(framework, guidance=1.5)


def test_guidance_that_can_not_be():
    for guidance in (0, -1, float("nan"), "2", True):
        with pytest.raises(ValueError, match="give a number above 0, of which 1 is no guidance"):
            told("qwen_pi_v3", guidance=guidance)
    plain = tiny_policies.build("qwen_pi_v3")
    with pytest.raises(ValueError, match="prompts tell no advantage from which it could lead away"):
        Policy(plain.model, plain.processor, guidance=2.0)
    with pytest.raises(ValueError, match="advantage is 'positive', and this policy was not trained on advantages"):
        Policy(plain.model, plain.processor, advantage="positive")
    with pytest.raises(ValueError, match="possible: auto, positive, negative, none"):
        told("qwen_pi_v3", advantage="better")
    policy = told("qwen_pi_v3")
    with pytest.raises(ValueError, match="1 rows are an odd number"):
        policy.model.predict_action(**inputs_of(policy, ["positive"]), guidance=2.0)
