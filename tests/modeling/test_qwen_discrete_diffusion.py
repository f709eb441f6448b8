"""QwenDiscreteDiffusion: bins, masking, rounds of decoding and what they draw, previous chunks, StarVLA's format."""

import numpy as np
import pytest
import torch
from reference_cases import base_vlm
from transformers import AutoConfig, AutoModel

from hf_vla import QwenDiscreteDiffusionConfig, QwenDiscreteDiffusionForActionPrediction
from hf_vla.checkpoints.starvla_writer import save_repository
from hf_vla.registry import starvla_mapping

HORIZON, ACTION_DIM, BINS = 3, 2, 16
RANGE = {"min": [-1.0] * ACTION_DIM, "max": [1.0] * ACTION_DIM}


def build(**fields):
    torch.manual_seed(0)
    settings = {
        "action_dim": ACTION_DIM,
        "state_dim": ACTION_DIM,
        "action_horizon": HORIZON,
        "attention_head_dim": 16,
        "num_future_tokens": 2,
        "num_bins": BINS,
        "statistics": {"arm": {"action": RANGE, "state": RANGE}},
        "normalization_modes": {"arm": {"action": "min_max", "state": "min_max"}},
    }
    model_class = QwenDiscreteDiffusionForActionPrediction
    return model_class.from_vlm(base_vlm(), random_init=True, **{**settings, **fields})


def inputs_of(processor, samples: int = 2, **more):
    rng = np.random.default_rng(0)
    return processor(
        images=[[rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)] for _ in range(samples)],
        text=["open the drawer", "put the red block on the green plate"][:samples],
        state=rng.uniform(-1, 1, (samples, ACTION_DIM)),
        **more,
    )


def test_bins():
    head = build()[0].action_head
    actions = torch.tensor([-5.0, -1.0, -0.87, 0.01, 0.99, 1.0, 5.0])
    bins = head.encode(actions)
    assert bins.tolist() == [0, 0, 1, 8, 15, 15, 15]
    assert (head.decode(bins) - actions.clamp(-1, 1)).abs().max() <= 1 / BINS + 1e-6
    assert head.decode(torch.tensor([BINS])).item() == 0.0  # masked


def test_the_loss_is_of_masked_tokens():
    """With the draw given, as written out: each draw's mean over its masked tokens, and the error without gradient."""
    policy, processor = build()
    actions = np.random.default_rng(1).uniform(-1, 1, (2, HORIZON, ACTION_DIM)).astype(np.float32)
    batch = inputs_of(processor, actions=actions)
    time, order = (
        torch.tensor([0.3, 0.9]),
        torch.rand(2, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(1)),
    )
    output = policy(**batch, timestep=time, noise=order)
    head = policy.action_head
    observation = {name: x for name, x in batch.items() if name not in ("actions", "state")}
    conditioning = policy.conditioning(**observation)
    bins, expected = head.encode(batch["actions"]), []
    number = (6 * (1 - torch.cos(torch.pi / 2 * time))).round().clamp(min=1).long()
    for i in range(2):
        lowest = order[i].flatten().argsort()[: number[i]]
        tokens = bins.clone()
        tokens[i].view(-1)[lowest] = BINS
        logits = head.logits(tokens[:, None], conditioning, state=batch["state"])[i, 0]
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), bins[i].flatten(), reduction="none")
        error = (head.decode(logits.argmax(-1)) - batch["actions"][i]).abs().mean()
        expected.append(losses[lowest].mean() + 0.1 * error)
    assert torch.allclose(output.loss_per_sample, torch.stack(expected), atol=1e-5)
    assert torch.allclose(output.loss, output.loss_per_sample.mean(), atol=1e-5)


def test_padding_is_neither_learnt_nor_shown():
    policy, processor = build()
    batch = dict(inputs_of(processor, actions=np.zeros((2, HORIZON, ACTION_DIM))))
    mask = torch.tensor([[True, True, False], [True, True, True]])
    drawn = {"timestep": torch.tensor([0.5, 0.5]), "noise": torch.rand(2, HORIZON, ACTION_DIM)}
    before = policy(**batch, **drawn, action_mask=mask).loss
    batch["actions"] = batch["actions"].clone()
    batch["actions"][0, -1] = 0.9
    assert torch.equal(policy(**batch, **drawn, action_mask=mask).loss, before)
    assert not torch.equal(policy(**batch, **drawn).loss, before)


def test_rounds_unmask_all_and_their_proposals_have_log_probabilities():
    policy, processor = build()
    inputs = dict(inputs_of(processor))
    state = inputs.pop("state")
    head, seen = policy.action_head, []
    with torch.no_grad():
        conditioning = policy.conditioning(**inputs)
        rounds = head.rounds

        def recorded(*args, **kwargs):
            for decoding in rounds(*args, **kwargs):
                seen.append(decoding)
                yield decoding

        head.rounds = recorded
        torch.manual_seed(3)
        actions = head.sample(conditioning, state=state)
        assert len(seen) == policy.config.num_inference_steps
        assert (seen[0].tokens == BINS).all() and (seen[-1].remaining < BINS).all()
        assert torch.equal(head.decode(seen[-1].remaining), actions)
        for before, after in zip(seen, seen[1:], strict=False):
            assert torch.equal(before.remaining, after.tokens)
        # All rounds of an observation in one call, as reinforcement learning needs them.
        tokens = torch.stack([decoding.tokens for decoding in seen], dim=1)
        together = head.logits(tokens, conditioning, state=state)
        alone = head.logits(seen[2].tokens[:, None], conditioning, state=state)
    assert torch.allclose(together[:, 2:3], alone, atol=1e-5)


def test_noise_fixes_each_chunk_by_itself():
    policy, processor = build(decode_temperature=1.0)
    inputs = inputs_of(processor)
    noise = torch.randn(6, HORIZON, ACTION_DIM, generator=torch.Generator().manual_seed(0))  # three draws of two
    chunks = policy.predict_action(**inputs, noise=noise)
    assert chunks.shape == (6, HORIZON, ACTION_DIM) and len(torch.unique(chunks, dim=0)) > 1
    assert torch.equal(policy.predict_action(**inputs, noise=noise[2:4]), chunks[2:4])
    with pytest.raises(ValueError, match="noise has shape"):
        policy.predict_action(**inputs, noise=noise[:3])


def test_temperature_zero_draws_nothing():
    policy, processor = build()
    inputs = inputs_of(processor)
    certain = policy.predict_action(**inputs, decode_temperature=0.0, choice_temperature=0.0)
    assert torch.equal(policy.predict_action(**inputs, decode_temperature=0.0, choice_temperature=0.0), certain)
    policy.config.use_simple_max = True
    steps = []
    policy.predict_action(**inputs, on_step=steps.append)
    assert len(steps) == 1 and torch.equal(steps[0].noisy_actions, torch.zeros(2, HORIZON, ACTION_DIM))


def test_a_previous_chunk_is_known_from_the_start():
    policy, processor = build()
    previous = torch.tensor([0.3, -0.7]).expand(2, 2, 2)
    chunk = policy.predict_action(**inputs_of(processor), previous_chunk=previous, inference_delay=1)
    assert torch.equal(chunk[:, :1], previous[:, :1])
    assert (chunk[:, 1:2] - previous[:, 1:]).abs().max() <= 1 / BINS
    with pytest.raises(ValueError, match="max_guidance_weight is 2.0, but discrete diffusion is not guided"):
        policy.predict_action(**inputs_of(processor), previous_chunk=previous, max_guidance_weight=2.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action_low": 1.0}, "action_low is 1.0"),
        ({"decode_schedule": "cubic"}, "decode_schedule is 'cubic'; known are 'cosine', 'linear'"),
        ({"decode_temperature": -1.0}, "decode_temperature is -1.0"),
        ({"num_bins": 0}, "num_bins is 0"),
        ({"no_mask_token_prob": 1.0}, "no_mask_token_prob is 1.0"),
        ({"max_action_positions": 100}, r"action_horizon \* action_dim \(112\) exceeds max_action_positions"),
    ],
)
def test_settings_without_a_possible_value(fields, message):
    with pytest.raises(ValueError, match=message):
        QwenDiscreteDiffusionConfig(vlm_config=AutoConfig.from_pretrained(base_vlm()), **fields)


def test_bits_are_refused():
    tree = {"framework": {"action_model": {"representation": "bit"}}}
    with pytest.raises(ValueError, match="representation is 'bit'"):
        starvla_mapping("qwen_discrete_diffusion").to_config(tree)


@pytest.mark.parametrize("sinusoidal", [True, False])
def test_written_and_read_in_starvlas_format(sinusoidal, tmp_path):
    policy, processor = build(sinusoidal_positions=sinusoidal)
    folder = save_repository(policy, processor, tmp_path / "run", base_vlm=str(base_vlm()))
    weights = torch.load(folder / "checkpoints" / "steps_0_pytorch_model.pt", weights_only=True)
    assert "action_model.binning.bin_centers" in weights
    assert ("action_model.model.transformer_blocks.0.pos_embed.pe" in weights) == sinusoidal
    loaded = AutoModel.from_pretrained(folder)
    assert loaded.config.sinusoidal_positions == sinusoidal and loaded.config.mask_padding is False
    inputs, noise = inputs_of(processor, 1), torch.randn(1, HORIZON, ACTION_DIM)
    assert torch.equal(loaded.predict_action(**inputs, noise=noise), policy.predict_action(**inputs, noise=noise))
