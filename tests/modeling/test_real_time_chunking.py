"""Real-time chunking: the formulas on velocities with known solutions, then seams of a policy trained on two modes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from reference_cases import base_vlm

from hf_vla.inference.policy import Policy
from hf_vla.modeling import flow_matching
from hf_vla.modeling.real_time_chunking import RealTimeChunking, guidance_weight, overlap_weights
from hf_vla.registry import class_of

HORIZON, ACTION_DIM = 8, 2
EXECUTED, DELAY = 3, 2  # steps of the previous chunk, before the observation and while the new chunk is computed
BETA = 5.0
STEPS = 120
IMAGE = np.zeros((32, 32, 3), np.uint8)

HEAD = {"attention_head_dim": 16, "dropout": 0.0, "num_future_tokens": 4}
DIT = {**HEAD, "action_hidden_size": 32, "num_action_layers": 2, "output_dim": 32}
DINO = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 14}
FLOW_MATCHING = {
    "qwen_pi_v3": {**HEAD, "action_hidden_size": 32},
    "qwen_pi": HEAD,
    "qwen_gr00t": DIT,
    "qwen_dual": {**DIT, "dino_config": DINO},
}
STATISTICS = {"action": {"q01": [-2.0, -1.0], "q99": [4.0, 1.0]}}
frameworks = pytest.mark.parametrize("framework", FLOW_MATCHING)


def build(framework: str, own: dict):
    """A tiny policy with random weights, and its processor."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return class_of(framework, "model").from_vlm(
            base_vlm(),
            random_init=True,
            action_dim=ACTION_DIM,
            state_dim=0,
            action_horizon=HORIZON,
            image_size=[32, 32],
            statistics={"robot": STATISTICS},
            normalization_modes={"robot": {"action": "q99"}},
            **own,
        )


def inputs(processor, samples: int) -> dict:
    return processor(images=[[IMAGE]] * samples, text=["go"] * samples)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------- formulas


@pytest.mark.parametrize(("overlap", "delay"), [(5, 2), (5, 0), (5, 5), (1, 0), (8, 1)])
def test_soft_mask(overlap, delay):
    expected = []
    for i in range(overlap):
        c = (overlap - i) / (overlap - delay + 1)
        expected.append(1.0 if i < delay else c * (math.exp(c) - 1) / (math.e - 1))
    weights = overlap_weights(overlap, delay)
    assert torch.allclose(weights, torch.tensor(expected), atol=1e-6)
    assert (weights[:delay] == 1).all() and (weights[delay:] < 1).all() and (weights > 0).all()


@pytest.mark.parametrize(
    ("time", "beta", "weight"), [(0, 5, 5), (0.25, 5, 10 / 3), (0.5, 5, 2), (0.5, 1, 1), (0.9, 5, 5)]
)
def test_guidance_weight(time, beta, weight):
    assert guidance_weight(time, beta) == pytest.approx(weight)


def test_a_constant_velocity_is_inpainted_as_calculated():
    """x̂ = x + (1 - t) v has derivative 1: its distance to the previous chunk shrinks by 1 - w g(t) / n each step."""
    noise, velocity, previous = (torch.randn(3, 6, 2, generator=seeded(s)) for s in range(3))
    previous = previous[:, :4]
    guided = RealTimeChunking(previous, 2, BETA).guidance(6).guide(lambda x, _: velocity, 4)
    result = flow_matching.integrate(guided, noise, 4)
    factor = torch.ones(4)
    for g in (5, 10 / 3, 2, 10 / 3):
        factor *= 1 - overlap_weights(4, 2) * g / 4
    free = noise + velocity
    expected = previous + factor[:, None] * (free[:, :4] - previous)
    assert torch.allclose(result[:, :4], expected, atol=1e-5)
    assert torch.allclose(result[:, 4:], free[:, 4:], atol=1e-5)
    assert factor[:2].abs().max() < 0.004  # so much of the distance is left where the weight is 1
    assert (result[:, :2] - previous[:, :2]).abs().max() < 0.004 * (free[:, :2] - previous[:, :2]).abs().max()


def test_the_correction_is_the_transposed_jacobian_times_the_error():
    """A linear velocity that couples steps and dimensions, and not symmetrically."""
    horizon, dim, steps = 5, 2, 3
    matrix = 0.5 * torch.randn(horizon * dim, horizon * dim, generator=seeded(0), dtype=torch.float64)
    x, previous = (torch.randn(2, n, dim, generator=seeded(n), dtype=torch.float64) for n in (horizon, 3))
    guided = (
        RealTimeChunking(previous, 1, BETA)
        .guidance(horizon)
        .guide(lambda x, _: (x.flatten(1) @ matrix.T).view_as(x), steps)
    )
    weights = torch.zeros(horizon, dim, dtype=torch.float64)
    weights[:3] = overlap_weights(3, 1)[:, None]
    target = torch.zeros_like(x)
    target[:, :3] = previous
    for step in range(steps):
        jacobian = torch.eye(horizon * dim, dtype=torch.float64) + (1 - step / steps) * matrix
        error = weights.flatten() * (target.flatten(1) - x.flatten(1) @ jacobian.T)
        g = guidance_weight(step / steps, BETA)
        expected = x.flatten(1) @ matrix.T + g * error @ jacobian
        assert torch.allclose(guided(x, step).flatten(1), expected, atol=1e-6)
        assert not torch.allclose(expected, x.flatten(1) @ matrix.T + g * error @ jacobian.T, atol=1e-2)
        x = (x.flatten(1) + expected / steps).view_as(x)


def test_what_no_noise_leads_elsewhere_stays():
    """Data of a single chunk: the derivative is 0, and guidance does not leave the data."""
    actions, noise, previous = (torch.randn(2, 4, 2, generator=seeded(s)) for s in range(3))
    guided = RealTimeChunking(previous, 2, BETA).guidance(4).guide(lambda x, step: (actions - x) / (1 - step / 4), 4)
    assert torch.allclose(flow_matching.integrate(guided, noise, 4), actions, atol=1e-5)


# ---------------------------------------------------------- every framework


@frameworks
def test_every_framework_takes_a_previous_chunk(framework):
    policy, processor = build(framework, FLOW_MATCHING[framework])
    prompts, noise = inputs(processor, 2), torch.randn(2, HORIZON, ACTION_DIM, generator=seeded(1))
    previous = torch.randn(2, HORIZON - EXECUTED, ACTION_DIM, generator=seeded(2))
    graphs = {"vlm": [], "action_head": []}
    hooks = [
        policy.vlm.get_decoder()
        .layers[0]
        .register_forward_hook(lambda *_: graphs["vlm"].append(torch.is_grad_enabled())),
        policy.action_head.action_decoder.register_forward_hook(
            lambda *_: graphs["action_head"].append(torch.is_grad_enabled())
        ),
    ]
    guided = policy.predict_action(**prompts, noise=noise, previous_chunk=previous, inference_delay=DELAY)
    for hook in hooks:
        hook.remove()
    assert graphs == {"vlm": [False], "action_head": [True] * policy.config.num_inference_steps}
    assert all(p.grad is None for p in policy.parameters())
    assert guided.shape == (2, HORIZON, ACTION_DIM) and guided.dtype == torch.float32
    assert guided.isfinite().all() and not guided.requires_grad
    assert torch.equal(guided[:, :DELAY], previous[:, :DELAY])

    plain = policy.predict_action(**prompts, noise=noise)
    soft = slice(DELAY, HORIZON - EXECUTED)
    assert ((guided - plain)[:, soft].abs() > 1e-3).any(dim=-1).all()
    assert (guided - plain)[:, soft].mul(previous[:, soft] - plain[:, soft]).mean() > 0  # towards the previous chunk
    off = {"previous_chunk": previous, "inference_delay": DELAY, "max_guidance_weight": 0.0}
    unguided = policy.predict_action(**prompts, noise=noise, **off)
    assert torch.allclose(unguided[:, DELAY:], plain[:, DELAY:], atol=1e-6)

    alone = {name: value[:1] for name, value in inputs(processor, 1).items()}
    single = policy.predict_action(**alone, noise=noise[:1], previous_chunk=previous[:1], inference_delay=DELAY)
    assert torch.allclose(single, guided[:1], atol=1e-5)

    policy.to(torch.bfloat16)
    with torch.backends.mkldnn.flags(enabled=False):  # which compiles kernels for seconds where the CPU lacks bf16
        half = policy.predict_action(**prompts, noise=noise, previous_chunk=previous.bfloat16(), inference_delay=DELAY)
    assert half.dtype == torch.float32 and torch.allclose(half, guided, atol=0.05)


@pytest.fixture(scope="module")
def untrained():
    return build("qwen_gr00t", DIT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"previous_chunk": (2, 5, 3)}, r"shape \(2, 5, 3\); give .* \(2, 1 to 8, 2\)"),
        ({"previous_chunk": (5, 2)}, r"shape \(5, 2\)"),
        ({"previous_chunk": (1, 5, 2)}, r"shape \(1, 5, 2\)"),
        ({"previous_chunk": (2, 9, 2)}, r"shape \(2, 9, 2\)"),
        ({"previous_chunk": (2, 0, 2)}, "or None if none are left"),
        ({"previous_chunk": (2, 5, 2), "inference_delay": 6}, "inference_delay is 6; it must be from 0 to the 5"),
        ({"previous_chunk": (2, 5, 2), "inference_delay": -1}, "inference_delay is -1"),
        ({"previous_chunk": (2, 5, 2), "inference_delay": 1.0}, "inference_delay is 1.0; give a whole number"),
        ({"previous_chunk": (2, 5, 2), "inference_delay": True}, "inference_delay is True; give a whole number"),
        ({"previous_chunk": (2, 5, 2), "inference_delay": None}, "inference_delay is None; give a whole number"),
        ({"inference_delay": 1.5}, "inference_delay is 1.5; give a whole number"),
        ({"inference_delay": 1}, "there is no previous_chunk"),
        ({"max_guidance_weight": 2.0}, "max_guidance_weight is 2.0, but there is no previous_chunk that guides"),
        ({"previous_chunk": (2, 5, 2), "max_guidance_weight": math.inf}, "max_guidance_weight is inf"),
        ({"previous_chunk": (2, 5, 2), "max_guidance_weight": -1.0}, "max_guidance_weight is -1"),
    ],
)
def test_bad_arguments(untrained, settings, message):
    policy, processor = untrained
    settings = {k: torch.zeros(v) if k == "previous_chunk" else v for k, v in settings.items()}
    with pytest.raises(ValueError, match=message):
        policy.predict_action(**inputs(processor, 2), **settings)


def test_the_object_is_the_same_as_its_fields(untrained):
    policy, processor = untrained
    prompts, noise = inputs(processor, 2), torch.randn(2, HORIZON, ACTION_DIM, generator=seeded(1))
    fields = {"previous_chunk": torch.randn(2, 5, ACTION_DIM, generator=seeded(2)), "inference_delay": DELAY}
    fields["max_guidance_weight"] = 2.0
    expected = policy.predict_action(**prompts, noise=noise, **fields)
    given = RealTimeChunking(**fields)
    assert torch.equal(policy.predict_action(**prompts, noise=noise, real_time_chunking=given), expected)
    nothing = {"previous_chunk": None, "inference_delay": 0, "max_guidance_weight": 2.0}
    assert torch.equal(
        policy.predict_action(**prompts, noise=noise, **nothing), policy.predict_action(**prompts, noise=noise)
    )
    with pytest.raises(ValueError, match="give real_time_chunking, or its fields previous_chunk"):
        policy.predict_action(**prompts, real_time_chunking=given, **fields)
    with pytest.raises(ValueError, match="previous_chunk is .*; give a tensor"):
        RealTimeChunking([[0.0, 0.0]])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_previous_chunk_that_is_not_finite(untrained, value):
    policy, processor = untrained
    previous = torch.zeros(2, 5, ACTION_DIM)
    previous[1, 4, 0] = value
    with pytest.raises(ValueError, match="previous_chunk holds NaN or infinite"):
        policy.predict_action(**inputs(processor, 2), previous_chunk=previous)


def test_inference_mode_is_refused(untrained):
    policy, processor = untrained
    with torch.inference_mode(), pytest.raises(ValueError, match="inference_mode rules out; use torch.no_grad"):
        policy.predict_action(**inputs(processor, 2), previous_chunk=torch.zeros(2, 5, ACTION_DIM))


# ------------------------------------------------------- a trained policy


def curves(samples: int, generator: torch.Generator) -> torch.Tensor:
    """Demonstrations of two modes: circles of radius 0.25 to the left or right (±0.7), entered anywhere."""
    side = torch.tensor([[1.0], [-1.0]]).repeat(samples // 2, 1)
    phase = 2 * math.pi * torch.rand(samples, 1, generator=generator) + 0.5 * torch.arange(HORIZON)
    return torch.stack([0.7 * side + 0.25 * phase.cos(), 0.25 * phase.sin()], dim=-1)


@pytest.fixture(scope="module")
def trained():
    """A GR00T-like policy trained for a few seconds, its inputs, and what is left of its previous chunks."""
    policy, processor = build("qwen_gr00t", {**DIT, "repeated_diffusion_steps": 8})
    policy.vlm.requires_grad_(False)
    prompts, demonstrations = inputs(processor, 8), seeded(0)
    optimizer = torch.optim.Adam(policy.action_head.parameters(), lr=5e-3, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=5e-3, total_steps=STEPS)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for _ in range(STEPS):
            loss = policy(**prompts, actions=curves(8, demonstrations)).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    prompts = inputs(processor, 128)
    previous = policy.predict_action(**prompts, generator=seeded(2))[:, EXECUTED:]
    return policy, prompts, previous


def continued(trained, **settings) -> torch.Tensor:
    """The chunk after `previous`, of the same noise whatever the settings."""
    policy, prompts, previous = trained
    return policy.predict_action(
        **prompts, generator=seeded(3), previous_chunk=previous, inference_delay=DELAY, **settings
    )


def test_the_seam_shrinks(trained):
    policy, prompts, previous = trained

    def seam(chunk):
        return (chunk[:, DELAY] - previous[:, DELAY]).abs().mean().item()

    def jump(chunk):  # between the last action of the old chunk and the first of the new one, as executed
        return (chunk[:, DELAY] - previous[:, DELAY - 1]).abs().mean().item()

    def same_side(chunk):
        return (chunk[:, DELAY:, 0].mean(1).sign() == previous[..., 0].mean(1).sign()).float().mean().item()

    plain, guided = policy.predict_action(**prompts, generator=seeded(3)), continued(trained)
    assert seam(plain) > 0.35 and jump(plain) > 0.35 and 0.4 < same_side(plain) < 0.6
    assert seam(guided) < 0.4 * seam(plain)
    assert jump(guided) < 0.4 * jump(plain)
    assert same_side(guided) > 0.9


def test_guidance_alone_reaches_the_frozen_steps(trained, monkeypatch):
    """To 0.15 on average (the sides are 1.4 apart), before the sampler puts in what is executed."""
    previous = trained[-1]
    integrated = []

    def spy(*args):
        integrated.append(flow_matching.integrate(*args))
        return integrated[-1]

    monkeypatch.setattr(
        "hf_vla.modeling.action_head.flow_matching", SimpleNamespace(**vars(flow_matching) | {"integrate": spy})
    )
    returned = [continued(trained, max_guidance_weight=weight) for weight in (0.0, BETA)]
    unguided, guided = ((chunk[:, :DELAY] - previous[:, :DELAY]).abs().mean().item() for chunk in integrated)
    assert unguided > 0.35 and guided < 0.15
    assert all(torch.equal(chunk[:, :DELAY], previous[:, :DELAY]) for chunk in returned)


def test_a_longer_overlap_binds_more(trained):
    """Steps that `previous_chunk` lacks are free; the whole rest as frozen comes back as it was given."""
    policy, prompts, previous = trained
    by_length = [
        policy.predict_action(**prompts, generator=seeded(3), previous_chunk=previous[:, :n], inference_delay=1)
        for n in (1, 3, 5)
    ]
    distances = [(chunk[:, 1:5] - previous[:, 1:5]).abs().mean().item() for chunk in by_length]
    assert distances[0] > distances[1] > distances[2]
    frozen = policy.predict_action(**prompts, generator=seeded(3), previous_chunk=previous, inference_delay=5)
    assert torch.equal(frozen[:, :5], previous)


# ---------------------------------------------------------- robot units


def observation() -> dict:
    return {"image": [IMAGE], "lang": "go"}


def given_to_model(policy, monkeypatch) -> list:
    """Every `previous_chunk` that the model is given."""
    given, predict = [], policy.model.predict_action

    def spy(*args, real_time_chunking=None, **kwargs):
        given.append(None if real_time_chunking is None else real_time_chunking.previous_chunk)
        return predict(*args, real_time_chunking=real_time_chunking, **kwargs)

    monkeypatch.setattr(policy.model, "predict_action", spy)
    return given


def test_a_policy_in_robot_units(untrained, monkeypatch):
    policy = Policy(*untrained)
    given = given_to_model(policy, monkeypatch)
    policy.reset(seed=0)
    plain = policy.infer(observation())
    policy.reset(seed=0)
    normalized = torch.randn(5, ACTION_DIM, generator=seeded(4))
    normalized[0] = 3.0  # beyond the clip of mode q99: the robot executes it all the same
    rest = policy.processor.unnormalize_actions(normalized)
    chunk = policy.infer(observation(), previous_chunk=rest, inference_delay=DELAY)
    assert given[0] is None and torch.allclose(given[1], normalized[None], atol=1e-6)
    assert chunk.shape == plain.shape == (HORIZON, ACTION_DIM)
    np.testing.assert_allclose(chunk[:DELAY], rest[:DELAY], atol=1e-5)
    assert not np.allclose(chunk[DELAY:], plain[DELAY:], atol=1e-2)

    both = policy.infer([observation()] * 2, previous_chunk=np.stack([rest, rest + 1]), inference_delay=DELAY)
    assert both.shape == (2, HORIZON, ACTION_DIM)
    np.testing.assert_allclose(both[1, :DELAY], rest[:DELAY] + 1, atol=1e-5)


def test_every_normalisation_mode_comes_back(untrained, monkeypatch):
    policy = Policy(*untrained)
    given = given_to_model(policy, monkeypatch)
    statistics = {"q01": [1.0, 2.0], "q99": [1.0, 5.0], "min": [0.0, 7.0], "max": [4.0, 7.0]}
    statistics |= {"mean": [1.0, 3.0], "std": [0.0, 2.0]}
    normalized = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    monkeypatch.setattr(policy.processor, "statistics", {"robot": {"action": statistics}})
    expected = {
        ("binary", "q99"): normalized,
        ("none", "mean_std"): normalized,
        ("min_max", "binary"): normalized,
        ("q99", "min_max"): torch.tensor(
            [[1.0, 0.0]] * 3
        ),  # both constant: what training is given for their one value
        ("mean_std", "none"): torch.tensor([[0.0, 0.0], [0.0, 1.0], [0.0, 1.0]]),
    }
    for modes, wanted in expected.items():
        monkeypatch.setattr(policy.processor, "normalization_modes", {"robot": {"action": list(modes)}})
        rest = policy.processor.unnormalize_actions(normalized)
        chunk = policy.infer(observation(), previous_chunk=rest, inference_delay=3)
        assert torch.allclose(given[-1][0], wanted, atol=1e-6), modes
        np.testing.assert_allclose(chunk[:3], rest, atol=1e-5, err_msg=str(modes))


def test_bad_previous_chunks_in_robot_units(untrained):
    policy = Policy(*untrained)
    with pytest.raises(ValueError, match="last dimension must be 2"):
        policy.infer(observation(), previous_chunk=np.zeros((5, 3)))
    with pytest.raises(ValueError, match="previous_chunk has shape"):
        policy.infer([observation()] * 2, previous_chunk=np.zeros((5, 2)))
    with pytest.raises(ValueError, match="there is no previous_chunk"):
        policy.infer(observation(), inference_delay=2)
    with pytest.raises(ValueError, match="inference_delay is 1.0; give a whole number"):
        policy.infer(observation(), previous_chunk=np.zeros((5, 2)), inference_delay=1.0)
    regression = Policy(*build("qwen_oft", {}))
    with pytest.raises(ValueError, match="QwenOFTForActionPrediction does not denoise"):
        regression.infer(observation(), previous_chunk=np.zeros((5, 2)))
