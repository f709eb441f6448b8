"""A served policy and the same one in process: the same episodes, action by action, in MetaWorld and in LIBERO."""

import functools

import numpy as np
import pytest
import tiny_policies
import torch
from reference_cases import base_vlm
from test_server import serving

from hf_vla import Policy
from hf_vla.evaluation import make_environment
from hf_vla.evaluation.rollout import stream_episode
from hf_vla.inference import ChunkRule
from hf_vla.registry import class_of
from hf_vla.serving import PolicyClient

STEPS = 8


@functools.cache
def policy_for(framework: str, action_dim: int, state_dim: int) -> Policy:
    """A tiny policy with random weights for a robot of this size."""
    of_action, of_state = ({"min": [-1.0] * size, "max": [1.0] * size} for size in (action_dim, state_dim))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = class_of(framework, "model").from_vlm(
            base_vlm(),
            random_init=True,
            action_dim=action_dim,
            state_dim=state_dim,
            action_horizon=4,
            statistics={"robot": {"action": of_action, "state": of_state}},
            normalization_modes={"robot": {"action": "min_max", "state": "min_max"}},
            **tiny_policies.OWN[framework],
        )
    return Policy(model, processor)


def episode(policy, environment, seed, rule):
    steps = list(stream_episode(policy, environment, seed, chunk_rule=rule))
    return np.stack([step.action for step in steps[1:]]), [(step.success, step.new_chunk) for step in steps]


def assert_same_episodes(environment, framework, rule, seeds=(3, 4)):
    policy = policy_for(framework, len(environment.action_names), len(environment.state_names))
    with serving(policy) as (port, _), PolicyClient(f"ws://127.0.0.1:{port}") as client:
        assert client.supports_real_time_chunking == policy.supports_real_time_chunking
        for seed in seeds:
            here, said_here = episode(policy, environment, seed, rule)
            there, said_there = episode(client, environment, seed, rule)
            assert here.shape == (STEPS, len(environment.action_names))
            np.testing.assert_array_equal(there, here)
            assert said_there == said_here
            assert np.ptp(here, axis=0).max() > 0.01  # something happens
    assert not np.array_equal(episode(policy, environment, seeds[0], rule)[0], here)


@pytest.mark.parametrize(
    ("framework", "rule"),
    [
        ("qwen_pi_v3", ChunkRule(execute=2)),
        ("qwen_gr00t", ChunkRule("real_time_chunking", execute=2, inference_delay=1)),
        ("qwen_discrete_diffusion", ChunkRule("temporal_ensemble", execute=2)),
        ("qwen_oft", ChunkRule(execute=4)),
    ],
    ids=["flow", "real-time chunking", "discrete", "regression"],
)
def test_metaworld(framework, rule):
    environment = make_environment("metaworld", "reach", max_steps=STEPS, image_size=64)
    assert_same_episodes(environment, framework, rule)
    environment.close()


@pytest.mark.slow
def test_libero():
    pytest.importorskip("libero", reason="LIBERO is not installed: pip install 'hf_vla[libero]'")
    environment = make_environment(
        "libero", "libero_object/3", max_steps=STEPS, image_size=64, quality="fast", cameras=["image"]
    )
    assert_same_episodes(environment, "qwen_pi_v3", ChunkRule(execute=2), seeds=(0, 1))
    environment.close()
