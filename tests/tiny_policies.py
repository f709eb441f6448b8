"""A tiny policy of each framework with random weights, for tests of what is built on policies."""

import functools

import numpy as np
import torch
from reference_cases import base_vlm

from hf_vla import Policy
from hf_vla.modeling.qwen_fast.action_tokenizer import FastActionTokenizer
from hf_vla.registry import class_of

HORIZON, ACTION_DIM, STATE_DIM, STEPS = 3, 2, 2, 4
HEAD = {"attention_head_dim": 16, "num_future_tokens": 4, "num_inference_steps": STEPS}
DIT = {**HEAD, "action_hidden_size": 32, "num_action_layers": 4, "output_dim": 24}
DINO = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
OWN = {
    "qwen_pi_v3": {**HEAD, "action_hidden_size": 32, "interleave_self_attention": False},
    "qwen_pi": HEAD,
    "qwen_gr00t": DIT,
    "qwen_dual": {**DIT, "dino_config": DINO},
    "qwen_oft": {},
    "qwen_fast": {"generation_constraint": "length"},
    "qwen_adapter": {"num_action_queries": 4, "num_action_layers": 3},
    "qwen_discrete_diffusion": {**HEAD, "num_bins": 64, "decode_temperature": 1.0},
}
OF_ARM = {"min": [-1.0, 2.0], "max": [3.0, 4.0]}


@functools.cache
def _fast() -> FastActionTokenizer:
    chunks = np.random.default_rng(4).uniform(-1, 1, (64, HORIZON, ACTION_DIM))
    return FastActionTokenizer.fit(chunks, vocab_size=512)


@functools.cache
def build(framework: str, folder=None) -> Policy:
    """The same policy in every call: not to be changed."""
    fields = OWN[framework] | ({"fast": _fast()} if framework == "qwen_fast" else {})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, processor = class_of(framework, "model").from_vlm(
            folder or base_vlm(),
            random_init=True,
            action_dim=ACTION_DIM,
            state_dim=STATE_DIM,
            action_horizon=HORIZON,
            statistics={"arm": {"action": OF_ARM, "state": OF_ARM}},
            normalization_modes={"arm": {"action": "min_max", "state": "min_max"}},
            **fields,
        )
    return Policy(model, processor)


def observation() -> dict:
    """A wide view and a high one: 2 x 3 and 3 x 2 tokens of the tiny Qwen3-VL."""
    rng = np.random.default_rng(0)
    views = [rng.integers(0, 256, shape, dtype=np.uint8) for shape in ((64, 96, 3), (96, 64, 3))]
    return {"image": views, "lang": "open the drawer", "state": [0.5, 3.0]}
